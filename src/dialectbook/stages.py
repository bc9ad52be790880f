"""Two stages with one adapter, as Alif trains, chapters 12 and 13: plain text in the dialects, then instructions blended with English.

A *recipe* says how: rank, embeddings (in full or not at all), rank-stabilised scaling, which stages, how much English. The base knows
English and some Arabic, and the dialects hardly: Llama-3.1 in the paper; on a CPU the English twin after English and MSA.
"""

import random
import shutil
import tempfile
from pathlib import Path

from .data import DIALECTS, ask, curate, load_pool, load_split, prompts_of_test
from .english import continue_training, documents, load_english, mixture, training_settings, untie
from .files import fingerprint, is_finished, mark_finished, read_json, write_json
from .hardware import has_bf16
from .model import count_parameters, identity_of, load_base, load_tokenizer, response_logp
from .pretrain import replace_folder
from .sft import make_trainer
from .vocabulary import expand_model, expand_tokenizer, learn_additions

BLENDS = ("total", "dialect")  # what is held equal when English is added: all tokens of stage 2, or its dialect tokens
MATRICES = ["embed_tokens", "lm_head"]
CODE = [__file__, str(Path(__file__).with_name("english.py")), str(Path(__file__).with_name("vocabulary.py"))]


# ---- what is read --------------------------------------------------------------------------------------------------

def stage_data(knobs, run):
    """Return {"texts", "pairs", "english", "held_out"}: plain dialect texts of one half of the training scenarios, prompts with responses of
    the other half, English prompts with responses; and what is held out. A text also has its "prompt" and "completion".

    "held_out" is of the test split, name -> rows: Hijazi and Najdi answers to `stage_test_scenarios` scenarios (0: all), asked both
    ways, and English ones to all scenarios that have them.
    """
    scenarios, _ = curate(load_pool(), knobs)
    train = load_split(run, "train")
    ids = {pair["scenario_id"] for pair in train}
    order = random.Random(knobs.data_seed).sample(sorted(ids), len(ids))
    halves = [[pair for pair in train if pair["scenario_id"] in half] for half in (set(order[:len(order) // 2]), set(order[len(order) // 2:]))]
    texts = [{"text": f"{pair['instruction']}\n{pair['response']}", "prompt": pair["prompt"], "completion": pair["response"]}
             for pair in ask(halves[0], "dialect", "none")]
    pairs = [{"prompt": pair["prompt"], "completion": pair["response"]} for pair in ask(halves[1], knobs.instruction_kind_train, "none", seed=knobs.data_seed)]
    return {"texts": texts, "pairs": pairs, "english": english_rows(scenarios, ids), "held_out": {
        **{dialect: [{"prompt": row["prompt"], "completion": row["response"], "scenario_id": row["scenario_id"]}
                     for row in test_prompts(knobs, run) if row["dialect"] == dialect] for dialect in DIALECTS},
        "English": english_rows(scenarios, {pair["scenario_id"] for pair in load_split(run, "test")})}}


def english_rows(scenarios, ids):
    """Return prompt, completion and scenario of the English version of these scenarios, where there is one."""
    pairs = [{"scenario_id": s["id"], "dialect": "", "instruction": s["english"]["instruction"], "response": s["english"]["response"]}
             for s in scenarios if s["id"] in ids and "english" in s]
    return [{"prompt": row["prompt"], "completion": row["response"], "scenario_id": row["scenario_id"]} for row in ask(pairs, "dialect", "none")]


def test_prompts(knobs, run):
    """Return the test prompts (`data.prompts_of_test`) of `stage_test_scenarios` scenarios, without a tag."""
    return prompts_of_test(knobs.model_copy(update={"test_scenarios": knobs.stage_test_scenarios, "tag_test": "none"}), run)


def count_tokens(tokenizer, row):
    """Return the tokens of a row, its end included: of its text if it has one, else of its prompt and completion."""
    return len(tokenizer(row.get("text") or row["prompt"] + row["completion"])["input_ids"]) + 1


def take(rows, tokenizer, budget, seed):
    """Return (rows, tokens): rows in random order until they hold `budget` tokens (None: each once), from the start again if they run out.

    With one seed a smaller budget takes the beginning of what a larger one takes.
    """
    taken, tokens, rng = [], 0, random.Random(seed)
    while rows and (budget is None or tokens < budget):
        for row in rng.sample(rows, len(rows)):
            if budget is not None and tokens >= budget:
                break
            taken.append(row)
            tokens += count_tokens(tokenizer, row)
        if budget is None:
            break
    return taken, tokens


def blend(data, tokenizer, budget, share, equal, seed):
    """Return (rows, counts) of stage 2: dialect pairs, then English ones as `share` of all tokens (the Trainer shuffles them).

    `equal` says what `budget` (0: the tokens of all dialect pairs) holds: "total" all tokens, so that English takes the place
    of dialect, "dialect" the dialect tokens alone, so that English comes on top.
    """
    budget = budget or sum(count_tokens(tokenizer, row) for row in data["pairs"])
    dialect = budget * (1 - share) if equal == "total" else budget
    own, own_tokens = take(data["pairs"], tokenizer, dialect, seed)
    other, other_tokens = take(data["english"], tokenizer, dialect * share / (1 - share), seed)
    rows = [{key: row[key] for key in ("prompt", "completion")} for row in own + other]
    return rows, {"dialect tokens": own_tokens, "English tokens": other_tokens}


# ---- the base ------------------------------------------------------------------------------------------------------

def base_knobs(knobs, run):
    """Return the knobs with `stage_model` as their base model: on a CPU a twin of its own, made here if it is not there yet.

    It is the English twin of chapter 03 with Arabic tokens, trained on half English, half MSA, and no dialect.
    """
    if knobs.stage_model != "twin":
        return knobs.model_copy(update={"base_model": knobs.stage_model, "base_revision": knobs.stage_revision, "quantization": "none"})
    folder = run.root / "stages" / "base"
    scenarios, _ = curate(load_pool(), knobs)
    read = documents(scenarios, load_split(run, "train")) | {"hijazi": [], "najdi": []}
    recipe = fingerprint({**training_settings(knobs), "tokens": knobs.stage_base_tokens, "texts": read, "bf16": has_bf16()}, CODE[1:])
    if not is_finished(folder, recipe):
        model, old = load_english(knobs, run, read)
        tokenizer = expand_tokenizer(old, learn_additions(old, [text for _, text in read["msa"]], knobs.added_tokens), knobs.added_tokens)
        model = expand_model(model, old, tokenizer)
        rows, _ = mixture(read, tokenizer, 0.5, False, knobs.stage_base_tokens, knobs.balance_row_tokens, knobs.data_seed)
        continue_training(model, tokenizer, rows, len(rows) // knobs.balance_batch_size, 0, len(old), knobs, knobs.data_seed)
        work = folder.with_name("base.unfinished")
        shutil.rmtree(work, ignore_errors=True)
        model.save_pretrained(work)
        tokenizer.save_pretrained(work)
        mark_finished(work, recipe)
        replace_folder(work, folder)
    return knobs.model_copy(update={"base_model": str(folder), "base_revision": recipe})


# ---- adapters ------------------------------------------------------------------------------------------------------

def new_adapter(knobs, run, rank, embeddings, rslora):
    """Return the base with a new LoRA adapter of this rank on the seven projections; with `embeddings` both matrices are trained in full.

    Scale of the adapter: alpha / sqrt(rank) with `rslora` (Kalajdzievski, arXiv 2312.03732), alpha / rank without. Input and
    output matrix are untied first, as they are in Alif's base: PEFT trains a copy of each, and the configuration of a merged
    model must not call them tied.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=knobs.stage_lora_alpha, lora_dropout=knobs.stage_lora_dropout, use_rslora=rslora, bias="none",
                        target_modules=knobs.lora_targets, modules_to_save=MATRICES if embeddings else None, task_type="CAUSAL_LM")
    return get_peft_model(untie(load_base(knobs, run)), config)


def load_adapter(knobs, run, folder, trainable=False):
    """Return the untied base with the adapter in this folder; to be trained on, its full matrices are in float32, as they were kept."""
    from peft import PeftModel

    base = untie(load_base(knobs, run))
    if trainable:
        base.get_input_embeddings().float(), base.get_output_embeddings().float()
    return PeftModel.from_pretrained(base, str(folder), is_trainable=trainable)


def cast_matrices(model, dtype):
    """Give the matrices trained in full this precision: float32 to be trained and kept, where 16 bits would lose small steps, else the base's."""
    for name, weight in model.named_parameters():
        if weight.requires_grad and any(matrix in name for matrix in MATRICES):
            weight.data = weight.data.to(dtype)


def optimizer_of(model, learning_rate, embedding_learning_rate):
    """Return AdamW with one learning rate for the low-rank weights and one for the full matrices (train_cpt.py, train_ft.py)."""
    import torch

    groups = {learning_rate: [], embedding_learning_rate: []}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            groups[embedding_learning_rate if any(matrix in name for matrix in MATRICES) else learning_rate].append(weight)
    return torch.optim.AdamW([{"params": weights, "lr": rate} for rate, weights in groups.items() if weights], betas=(0.9, 0.999), weight_decay=0.0)


def train(model, tokenizer, rows, knobs, seed, stage):
    """Train the model's adapter in place on the rows, once through: stage 1 on all tokens of a text, stage 2 on those of the response."""
    import datasets
    import torch

    rate, of_matrices = ((knobs.stage1_learning_rate, knobs.stage1_embedding_learning_rate) if stage == 1 else
                         (knobs.stage2_learning_rate, knobs.stage2_embedding_learning_rate))
    own = knobs.model_copy(update={"batch_size": knobs.stage_batch_size, "gradient_accumulation": knobs.stage_gradient_accumulation, "num_epochs": 1,
                                   "learning_rate": rate, "lr_scheduler": "cosine", "packing": False, "loss_on": "full" if stage == 1 else "response"})
    model.config.use_cache = False
    cast_matrices(model, torch.float32)
    datasets.disable_progress_bars()  # a bar per recipe is enough (`recipes.run_recipes`)
    with tempfile.TemporaryDirectory() as work:
        trainer = make_trainer(model, tokenizer, rows, None, own, seed, work, optimizer=optimizer_of(model, rate, of_matrices))
        trainer.train()
    datasets.enable_progress_bars()
    trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    model.config.use_cache = True


def train_recipe(knobs, run, data, seed, stages=(1, 2), rank=0, embeddings=True, rslora=True, share=0.0, equal="total", texts_as_pairs=False):
    """Return the record of one recipe and seed: settings, counts, what is `measured`; its adapter is kept in record["folder"].

    Stage 2 goes on from the adapter of stage 1 with the same settings, which is trained once and shared. `rank` 0 is
    `stage_lora_r`. With `texts_as_pairs` stage 2 alone also reads what stage 1 would, as
    instructions. A finished recipe is
    read, not trained again.
    """
    import torch
    from transformers import set_seed

    settings = {"stages": list(stages), "rank": rank or knobs.stage_lora_r, "embeddings": embeddings, "rslora": rslora, "seed": seed, "bf16": has_bf16(),
                **({"share": share, "equal": equal, "texts_as_pairs": texts_as_pairs} if 2 in stages else {}), **_settings(knobs, stages)}
    recipe = fingerprint({**settings, "base": identity_of(knobs, run), "data": data}, CODE[:1])
    folder = run.root / "stages" / recipe
    if is_finished(folder, recipe):
        return read_json(folder / "record.json") | {"folder": str(folder)}

    tokenizer, counts, first = load_tokenizer(knobs, run), {}, None
    if stages == (1, 2):
        first = train_recipe(knobs, run, data, seed, (1,), rank, embeddings, rslora)
        counts.update(first["counts"])
    set_seed(seed)
    model = load_adapter(knobs, run, first["folder"], trainable=True) if first else new_adapter(knobs, run, settings["rank"], embeddings, rslora)
    everything, trainable = count_parameters(model)
    if stages == (1,):
        rows, counts["text tokens"] = take(data["texts"], tokenizer, knobs.stage1_tokens or None, seed)
        rows = [{"text": row["text"]} for row in rows]
    else:
        rows, own = blend(data, tokenizer, knobs.stage2_tokens, share, equal, seed)
        counts.update(own)
        if texts_as_pairs:
            texts, counts["text tokens"] = take(data["texts"], tokenizer, knobs.stage1_tokens or None, seed)
            rows += [{key: row[key] for key in ("prompt", "completion")} for row in texts]
    train(model, tokenizer, rows, knobs, seed, stages[-1])
    work = folder.with_name(f"{recipe}.unfinished")
    shutil.rmtree(work, ignore_errors=True)
    model.eval().save_pretrained(str(work))
    cast_matrices(model, getattr(torch, knobs.dtype))
    record = {"settings": settings, "parameters": everything, "trainable": trainable, "counts": counts,
              **measured(model, tokenizer, data["held_out"])}
    del model
    free_memory()
    write_json(work / "record.json", record)
    mark_finished(work, recipe)
    replace_folder(work, folder)
    return record | {"folder": str(folder)}


def free_memory():
    """Collect what a training left behind: trainer and optimiser refer to each other, and a GPU holds their memory until then."""
    import gc

    import torch

    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def base_record(knobs, run, data):
    """Return the record of the base itself: nothing trained."""
    model = load_base(knobs, run).eval()
    return {"settings": {"stages": [], "seed": 0}, "counts": {}, "parameters": count_parameters(model)[0], "trainable": 0,
            **measured(model, load_tokenizer(knobs, run), data["held_out"]), "folder": ""}


def measured(model, tokenizer, rows_of):
    """Return {"text_bits", "text_characters", "scenario"}: name -> per held-out answer its bits after its prompt (end included), its
    characters, its scenario."""
    found = {"text_bits": {}, "text_characters": {}, "scenario": {}}
    for name, rows in rows_of.items():
        logp = response_logp(model, tokenizer, [row["prompt"] for row in rows], [row["completion"] for row in rows])
        found["text_bits"][name] = [-float(nats) / 0.6931471805599453 for nats in logp]
        found["text_characters"][name] = [len(row["completion"]) for row in rows]
        found["scenario"][name] = [row["scenario_id"] for row in rows]
    return found


def _settings(knobs, stages):
    later = "stage2_" if stages == (1,) else "-"  # stage 1 is the same whatever stage 2 will be
    return {key: value for key, value in knobs.model_dump().items() if key in ("max_length", "dtype", "quantization", "lora_targets", "warmup_ratio")
            or key.startswith("stage") and not key.startswith(("stage_ranks", "stage_lora_r", later))}
