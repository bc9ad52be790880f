"""The knobs: every setting of the book, its type and range, and where its value comes from.

`params/paper.yaml` states the published settings, a profile overrides what its machine must, an experiment changes what
it is about, and the reader may override the rest:  paper < profile < experiment < overrides.
"""

from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .files import UserError
from .paths import PARAMS

Kind = Literal["dialect", "neutral", "mixed"]
Tag = Literal["none", "prefix"]
Asked = Literal["none", "prefix", "swapped", "words"]


PAPER_EXPERIMENTS = ("base", "base_tagged", "no_token", "token")  # always run


class Knobs(BaseModel):
    """All knobs of a run; types are strict, so the text "2e-4" is not taken for a number."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    # data
    scenarios: int = Field(ge=0, description="scenarios kept after the curation, in the proportions of topic_pairs; 0: all")
    topic_pairs: dict[str, int] = Field(description="pairs per topic, which set the proportions; 'other': all other topics together")
    banned_topics: list[str] = Field(description="topics dropped by the curation")
    keep_diacritics: bool = Field(description="keep short vowels and shadda (U+064B to U+0652) in the texts")
    max_words: int = Field(ge=10, le=2000, description="longest instruction or response kept, in words")
    rouge_l_threshold: float = Field(gt=0, le=1, description="ROUGE-L at which a second instruction is a repetition")
    split_shares: list[float] = Field(min_length=3, max_length=3, description="train, dev and test share of scenarios")
    data_seed: int = Field(ge=0, description="seed of shuffling and splitting")
    instruction_kind_train: Kind = Field(description="instructions trained on: in the dialect, neutral (MSA), or mixed")
    instruction_kind_test: Kind = Field(description="instructions tested on; mixed asks every pair both ways")
    test_scenarios: int = Field(ge=0, description="test scenarios that are answered, drawn at random; 0: all")
    # base model
    base_model: str = Field(min_length=1, description="'twin', a hub id or a local folder in the hub's format")
    base_revision: str = Field(description="commit or tag of the hub model")
    trust_remote_code: bool = Field(description="run Python code that comes with a hub model")
    quantization: Literal["none", "nf4"] = Field(description="weights of the frozen base")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(description="compute precision")
    vocab_size: int = Field(ge=300, le=300_000, description="tokens of the twin's byte-level BPE")
    twin_hidden_size: int = Field(ge=32, le=4096, multiple_of=8)
    twin_layers: int = Field(ge=1, le=64)
    twin_heads: int = Field(ge=1, le=64)
    pretrain_tokens: int = Field(ge=1000, description="tokens that the twin's pre-training sees")
    pretrain_learning_rate: float = Field(gt=0, lt=1)
    pretrain_batch_size: int = Field(ge=1, le=4096, description="sequences per step")
    pretrain_weight_decay: float = Field(ge=0, le=10)
    pretrain_dialect_share: float = Field(ge=0, le=1, description="share of the training scenarios whose dialect versions "
                                          "enter the twin's pre-training; the MSA version of each always does")
    # an English model learns Arabic (chapters 03 and 11)
    english_model: str = Field(min_length=1, description="'twin', a hub id or a local folder of an English-centric model")
    english_revision: str = Field(description="commit of the hub model")
    english_vocab_size: int = Field(ge=300, le=300_000, description="tokens of the English twin's byte-level BPE")
    english_tokens: int = Field(ge=1000, description="tokens that the English twin's pre-training sees")
    english_sizes: list[int] = Field(min_length=1, description="hidden sizes of the English twins; the first is used, the others "
                                     "are compared with it; [0] for a hub model")
    added_sizes: list[int] = Field(min_length=3, description="sizes of the added vocabulary whose fertility is measured, growing from 0")
    added_tokens: int = Field(ge=1, description="Arabic tokens added for the models")
    start_tokens: int = Field(ge=256, description="tokens of each run that compares starts of the new embeddings")
    met_tokens: int = Field(ge=0, description="tokens, half of them Arabic in bytes, that a second English twin meets before its "
                            "vocabulary grows; 0: no second twin")
    balance_tokens: int = Field(ge=256, description="tokens of each continued pre-training")
    balance_learning_rate: float = Field(gt=0, lt=1)
    balance_batch_size: int = Field(ge=1, le=4096, description="rows per step")
    balance_row_tokens: int = Field(ge=16, le=32768, description="tokens per row")
    balance_texts: int = Field(ge=2, description="held-out texts per language in which bits per character are measured")
    # LoRA
    tune: bool = Field(description="train an adapter; false evaluates the base as it is")
    tag_train: Tag = Field(description="dialect tag before the training instructions")
    tag_test: Asked = Field(description="what stands before the test instructions: nothing, the tag, the other dialect's tag "
                            "(swapped), or a request for the dialect in words")
    lora_r: int = Field(ge=1, le=1024)
    lora_alpha: int = Field(ge=1, le=4096)
    lora_dropout: float = Field(ge=0, lt=1)
    lora_targets: list[str] = Field(min_length=1)
    num_epochs: int = Field(ge=1, le=100)
    learning_rate: float = Field(gt=0, lt=1)
    lr_scheduler: Literal["cosine", "cosine_with_restarts", "linear", "constant"]
    warmup_ratio: float = Field(ge=0, lt=1)
    batch_size: int = Field(ge=1, le=4096, description="sequences per device and forward pass")
    gradient_accumulation: int = Field(ge=1, le=1024)
    gradient_checkpointing: bool
    max_length: int = Field(ge=32, le=32768, description="tokens per training row")
    packing: bool = Field(description="fill rows with several examples")
    loss_on: Literal["full", "response"] = Field(description="tokens that the loss counts")
    keep_best: bool = Field(description="end with the checkpoint of the lowest dev loss")
    seeds: list[int] = Field(min_length=1, description="training and sampling seeds; one run each")
    # preference alignment (chapter 14)
    dpo_betas: list[float] = Field(min_length=1, description="strength of the pull towards the reference; the first is the main one")
    dpo_learning_rate: float = Field(gt=0, lt=1)
    dpo_epochs: int = Field(ge=1, le=100)
    dpo_batch_size: int = Field(ge=1, le=4096, description="pairs per forward pass")
    dpo_gradient_accumulation: int = Field(ge=1, le=1024, description="forward passes per step")
    dpo_pairs: int = Field(ge=0, description="training pairs, drawn by scenario; 0: all")
    dpo_test_scenarios: int = Field(ge=0, description="test scenarios answered before and after, of those that chapter 07 answers; 0: all of these")
    dpo_sweep_seeds: int = Field(ge=1, description="seeds of the other betas and of the other dialect as rejected answer")
    # two stages and replay (chapters 12 and 13)
    stage_model: str = Field(min_length=1, description="'twin', a hub id or a local folder of the model that goes through both stages")
    stage_revision: str = Field(description="commit of the hub model")
    stage_base_tokens: int = Field(ge=256, description="tokens, half English, half MSA, that make the twin's base")
    stage_lora_r: int = Field(ge=1, le=1024, description="rank of the adapter that goes through both stages")
    stage_lora_alpha: int = Field(ge=1, le=4096)
    stage_lora_dropout: float = Field(ge=0, lt=1)
    stage_ranks: list[int] = Field(min_length=1, description="ranks that are compared; stage_lora_r belongs to them")
    stage1_learning_rate: float = Field(gt=0, lt=1)
    stage1_embedding_learning_rate: float = Field(gt=0, lt=1, description="of the matrices trained in full")
    stage2_learning_rate: float = Field(gt=0, lt=1)
    stage2_embedding_learning_rate: float = Field(gt=0, lt=1, description="of the matrices trained in full")
    stage_batch_size: int = Field(ge=1, le=4096, description="rows per forward pass")
    stage_gradient_accumulation: int = Field(ge=1, le=1024, description="forward passes per step")
    stage1_tokens: int = Field(ge=0, description="tokens of plain dialect text; 0: all texts once")
    stage2_tokens: int = Field(ge=0, description="tokens of instructions and responses; 0: all dialect pairs once")
    stage_test_scenarios: int = Field(ge=0, description="test scenarios in dialect that are scored and answered; 0: all")
    replay_shares: list[float] = Field(min_length=2, description="shares of English in stage 2, growing from 0, below 1")
    retention_tasks: list[str] = Field(min_length=1, description="tasks of lm-eval that measure English: english_order and english_cloze "
                                       "are the project's own items")
    retention_items: int = Field(ge=8, description="the project's own English items, both tasks together, at most")
    retention_fraction: float = Field(gt=0, le=1, description="part of each public task that is asked")
    # quantisation (chapter 16)
    quantise_bits: list[Literal[8, 4]] = Field(description="bits of the quantised variants that are compared with the tuned model; []: none")
    quantise_test_scenarios: int = Field(ge=0, description="test scenarios, drawn at random, that each variant scores and answers; 0: all")
    quantise_repeats: int = Field(ge=2, le=1000, description="times that the speed of each variant is measured, in turn")
    # sampling
    temperature: float = Field(gt=0, le=5)
    top_p: float = Field(gt=0, le=1)
    top_k: int = Field(ge=0)
    max_new_tokens: int = Field(ge=1, le=8192)
    sample_batch_size: int = Field(ge=1, le=4096)
    sampling_round: int = Field(ge=0, le=1000, description="0, or another number to sample the same model once more")
    # self-instruct
    instruct_human_seeds: int = Field(ge=1, le=20, description="written examples in a request")
    instruct_machine_seeds: int = Field(ge=0, le=20, description="examples in a request that the teacher wrote before")
    instruct_items: int = Field(ge=1, le=50, description="new items asked for in a request")
    instruct_max_words: int = Field(ge=10, le=1000, description="longest instruction, input or output kept, in words")
    instruct_judge_floor: float = Field(ge=0, le=1, description="least probability, by the judge, that an item is in the dialect asked for")
    instruct_requests: int = Field(ge=0, le=100_000, description="requests to a teacher behind a server; recorded answers are always read whole")
    instruct_concurrency: int = Field(ge=1, le=256, description="requests under way at once; their examples come from what was kept before")
    instruct_budget_usd: float = Field(ge=0, description="no request is made that would cost more in all")
    teacher_usd_in: float = Field(ge=0, description="price of a million tokens of prompt")
    teacher_usd_out: float = Field(ge=0, description="price of a million tokens of answer")
    teacher_temperature: float = Field(ge=0, le=5)
    teacher_max_tokens: int = Field(ge=16, le=100_000, description="longest answer in tokens")
    teacher_requests_per_minute: float = Field(gt=0, description="rate limit")
    teacher_retries: int = Field(ge=0, le=20, description="tries after the first one, with back-off")
    teacher_timeout: float = Field(gt=0, description="seconds to wait for an answer")
    # measuring
    experiments: list[str] = Field(description="experiments that are sampled and measured, of params/experiments.yaml; [all]: every one")
    judge_model: str = Field(min_length=1, description="'builtin', a hub id or a local folder")
    judge_revision: str
    low_confidence: float = Field(gt=0, lt=1, description="highest probability under which a label is unsure")
    bertscore_model: str = Field(min_length=1, description="'twin' (the base itself), a hub id or a local folder")
    bertscore_revision: str = Field(description="commit of the hub model")
    bertscore_layer: int = Field(ge=1, le=100)
    self_bleu_references: int = Field(ge=1, description="other outputs that each output is compared with (corrected)")
    resamples: int = Field(ge=100, description="bootstrap resamples")
    # objective metrics (chapter 15)
    objective_items: int = Field(ge=0, description="items of each task and dialect; 0: as many as every one of them has")
    llm_judge: bool = Field(description="ask an LLM judge, behind JUDGE_BASE_URL and JUDGE_MODEL, which of two answers is better")
    llm_judge_items: int = Field(ge=0, description="items of each task and dialect whose answers it compares; 0: all")


def read_yaml(path):
    """Return a YAML file's mapping; raises UserError that names file, line and problem."""
    if not path.is_file():
        raise UserError(f"{path} is missing.")
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if getattr(error, "problem_mark", None) else ""
        raise UserError(f"{path}{line}: not valid YAML ({getattr(error, 'problem', error)}).") from None


def profile_names():
    """Return the names of all profiles (the files in params/ that say `extends`)."""
    return sorted(p.stem for p in PARAMS.glob("*.yaml") if "extends" in read_yaml(p))


def experiments():
    """Return the named experiments: name -> {"about", "changes", "model_of"} (params/experiments.yaml).

    `model_of` names the experiment whose adapters answer: the experiment's own name unless the file says otherwise; then
    the changes are that experiment's and its own on top.
    """
    known = read_yaml(PARAMS / "experiments.yaml")
    for name, entry in known.items():
        model = entry.setdefault("model_of", name)
        if model not in known:
            raise UserError(f"experiments.yaml: model_of = {model!r} of {name} is unknown; it must be one of {', '.join(known)}.")
    return {name: {**entry, "changes": {**known[entry["model_of"]]["changes"], **entry["changes"]}} for name, entry in known.items()}


def chosen_experiments(knobs):
    """Return the experiments of this run as `experiments` does: those of the paper, and the others that the knob names."""
    known = experiments()
    return {name: entry for name, entry in known.items() if name in PAPER_EXPERIMENTS or name in knobs.experiments or knobs.experiments == ["all"]}


def load_knobs(profile, experiment="", overrides=None):
    """Return (knobs, table): the validated Knobs of a run, and where each comes from.

    `table` has one row per knob: knob, here, paper, source, reason. Raises UserError (one sentence: file, key, what was
    found, what is allowed) for an unknown profile, experiment or knob, a wrong type, or a value out of range.
    """
    if profile not in profile_names():
        raise UserError(f"profile {profile!r} is unknown; choose one of: auto, {', '.join(profile_names())}.")
    paper_file, profile_file = PARAMS / "paper.yaml", PARAMS / f"{profile}.yaml"
    paper = read_yaml(paper_file)
    values = {key: entry["value"] for key, entry in paper.items()}
    origin = dict.fromkeys(values, paper_file.name)
    reason = dict.fromkeys(values, "")
    for key, entry in read_yaml(profile_file).get("overrides", {}).items():
        values[key], origin[key], reason[key] = entry["value"], profile_file.name, entry["reason"]
    if experiment:
        known = experiments()
        if experiment not in known:
            raise UserError(f"experiment {experiment!r} is unknown; params/experiments.yaml has: {', '.join(known)}.")
        for key, value in known[experiment]["changes"].items():
            values[key], origin[key], reason[key] = value, "experiments.yaml", f"what experiment {experiment} is about"
    for key, value in (overrides or {}).items():
        values[key], origin[key], reason[key] = value, "overrides", "set by the reader"
    try:
        knobs = Knobs(**values)
    except ValidationError as error:
        raise UserError(_sentence(error.errors()[0], values, origin)) from None
    if abs(sum(knobs.split_shares) - 1) > 1e-9 or min(knobs.split_shares) <= 0:
        raise UserError(f"{origin['split_shares']}: split_shares = {knobs.split_shares} must be positive and sum to 1.")
    if "other" not in knobs.topic_pairs or min(knobs.topic_pairs.values()) <= 0:
        raise UserError(f"{origin['topic_pairs']}: topic_pairs = {knobs.topic_pairs} must have positive numbers and the key 'other', "
                        "the pairs of all topics that it does not name.")
    if knobs.twin_hidden_size % knobs.twin_heads:
        raise UserError(f"{origin['twin_heads']}: twin_heads = {knobs.twin_heads} must divide twin_hidden_size = "
                        f"{knobs.twin_hidden_size}.")
    if knobs.replay_shares[0] != 0 or knobs.replay_shares != sorted(set(knobs.replay_shares)) or knobs.replay_shares[-1] >= 1:
        raise UserError(f"{origin['replay_shares']}: replay_shares = {knobs.replay_shares} must begin with 0.0 and grow, and stay below 1.")
    if knobs.stage_lora_r not in knobs.stage_ranks:
        raise UserError(f"{origin['stage_ranks']}: stage_ranks = {knobs.stage_ranks} must hold stage_lora_r = {knobs.stage_lora_r}.")
    unknown = [name for name in knobs.experiments if name not in (*experiments(), "all")]
    if unknown:
        raise UserError(f"{origin['experiments']}: experiments names {unknown[0]!r}, which params/experiments.yaml does not have; it has: "
                        f"{', '.join(experiments())} (or all).")
    table = [{"knob": key, "here": values[key], "paper": paper[key]["value"] if paper[key].get("published", True) else "–",
              "source": paper[key]["source"], "reason": reason[key]} for key in Knobs.model_fields]
    return knobs, table


def _sentence(problem, values, origin):
    """Return one sentence for pydantic's first complaint: file, key, what was found, what is allowed, the fix."""
    key = str(problem["loc"][0])
    where = origin.get(key, "paper.yaml")
    if problem["type"] == "extra_forbidden":
        from rapidfuzz import process

        near = process.extractOne(key, list(Knobs.model_fields))[0]
        return f"{where}: {key!r} is no knob; did you mean {near!r}? Known knobs: {', '.join(Knobs.model_fields)}."
    if problem["type"] == "missing":
        return f"paper.yaml: the knob {key!r} is missing; every knob needs a value and a source there."
    found = values[key]
    allowed = problem["msg"].replace("Input should be", "it must be")
    fix = ""
    if isinstance(found, str) and problem["type"] in ("float_type", "int_type"):
        fix = f" YAML reads it as text: write it without quotes and with a point, e.g. {_as_number(found)}."
    return f"{where}: {key} = {found!r} ({type(found).__name__}) is not allowed: {allowed}.{fix}"


def _as_number(text):
    try:
        value = float(text)
    except ValueError:
        return "2.0e-4"
    return f"{value:.1e}" if "e" in text.lower() else repr(value)
