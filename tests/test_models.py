"""Models, judges, training, sampling: each test guards one incident that would ruin results without a sound."""

import os
import re
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (AutoTokenizer, BertConfig, BertForSequenceClassification, BertTokenizer, LlamaConfig,
                          LlamaForCausalLM, LlamaTokenizer, TrainerCallback)

from dialectbook import sample, sft
from dialectbook.data import DIALECTS, REGIONS, SPLITS, ask, prompts_of_test, split_scenarios, to_pairs
from dialectbook.files import UserError, write_jsonl
from dialectbook.judge import HubJudge, NgramJudge
from dialectbook.knobs import load_knobs, profile_names
from dialectbook.model import encoder_of, identity_of, load_base, load_tokenizer, load_tuned, train_tokenizer
from dialectbook.paths import Run
from dialectbook.pretrain import corpus

SUBJECTS = ("القهوة", "السوق", "المطر", "الكتاب", "السيارة", "المدرسة", "البحر", "التمر", "الرحلة", "العائلة", "النوم", "الصحة")
TEXTS = ("كيف أسوي القهوة الزينة؟", "وش رأيك في السوق اليوم؟", "إيش أخبار المطر في جدة؟", "The weather is nice today.",
         "### Instruction:\n### Response:\n", "أبغى أروح البحر بعد العصر", "ابي اروح للبر عقب العصر")


# ---- fixtures ------------------------------------------------------------------------------------------------------

def scenarios(count):
    """Return scenarios of the pool's schema, no two with the same text."""
    def version(name, number):
        subject = SUBJECTS[number % len(SUBJECTS)] + f" {number}"
        return {"instruction": f"{name}: حدثني عن {subject}؟", "response": f"جواب {name} عن {subject} طيب" + " جدا" * (number % 4)}
    return [{"id": f"s{n}", "topic": f"topic{n % 3}", "task": "question", "length": "short",
             **{name: version(name, n) for name in ("msa", "hijazi", "najdi", "english")}} for n in range(count)]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The folder of a small Llama in the hub's format with a SentencePiece tokenizer that, like Llama's, has no pad token."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("hub")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 3), model_prefix=str(folder / "tokenizer"), vocab_size=400, model_type="bpe",
        byte_fallback=True, pad_id=-1, minloglevel=2, normalization_rule_name="identity", remove_extra_whitespaces=False)
    tokenizer = LlamaTokenizer.from_pretrained(str(folder))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                 num_attention_heads=4)).save_pretrained(folder)
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of profile smoke with five scenarios to train on and two for dev."""
    monkeypatch.setenv("DIALECTBOOK_RUNS", str(tmp_path))
    run, pool = Run("smoke"), scenarios(7)
    write_jsonl(run.split("train"), to_pairs(pool[:5]))
    write_jsonl(run.split("dev"), to_pairs(pool[5:]))
    return run


def knobs_of(hub, **overrides):
    """Return the knobs of experiment token with the hub stand-in as base."""
    return load_knobs("smoke", "token", overrides={"base_model": str(hub), "batch_size": 4, **overrides})[0]


def weights(folder):
    return load_file(str(folder / "adapter_model.safetensors"))


def copy_without(hub, folder, name):
    """Return a copy of the model folder without one file."""
    shutil.copytree(hub, folder)
    (folder / name).unlink()
    return folder


class Stopped(Exception):
    """Stands for the kill of a run; no code of the book catches it."""


def stop(*arguments):
    raise Stopped


def assert_one_sentence(error, knob):
    """The message of a UserError starts with the knob and holds no line of a traceback."""
    text = str(error.value)
    assert text.startswith(f"{knob} = ") and text.endswith(".") and "\n" not in text and "Traceback" not in text
    assert error.value.__cause__ is None and (error.value.__suppress_context__ or error.value.__context__ is None)
    assert error.value._render_traceback_() == [f"UserError: {text}"]


# ---- a model from the hub --------------------------------------------------------------------------------------------

def test_hub_model_is_tuned_and_sampled(hub, run):
    """Swapping the twin for a hub model broke batching: Llama's tokenizer has no pad token, its outputs began with the prompt."""
    assert AutoTokenizer.from_pretrained(str(hub)).pad_token_id is None
    knobs = knobs_of(hub, top_k=1, max_new_tokens=12, sample_batch_size=4)
    tokenizer = load_tokenizer(knobs, run)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id and tokenizer.padding_side == "left"

    record = sft.train_adapter(knobs, run, "token", 1)
    assert record["steps"] == 3 and record["trainable"] < record["parameters"] and record["dev_response_loss"] > 0
    tuned = load_tuned(knobs, run, "token", 1)
    batch = tokenizer("### Instruction:\nسؤال", return_tensors="pt")
    with torch.no_grad():
        assert not torch.equal(tuned(**batch).logits, load_base(knobs, run)(**batch).logits)  # the adapter is at work

    pairs = to_pairs(scenarios(3))
    pairs[0]["instruction"] = "قل"  # prompts of very different length share a batch
    rows = ask(pairs, "dialect", "prefix")
    predictions = sample.sample_responses(tuned, tokenizer, rows, knobs, run.experiment("token", 1), seed=1)
    assert [p["prompt"] for p in predictions] == [row["prompt"] for row in rows]
    for row, prediction in zip(rows, predictions):
        assert row["instruction"] not in prediction["prediction"] and "DIALECT=" not in prediction["prediction"]
        alone = sample.generate(tuned, tokenizer, [row["prompt"]], knobs, seed=1)[0]
        assert prediction["prediction"] == alone  # top_k = 1: padding must not change the text


def test_missing_model_is_one_sentence(hub, run, monkeypatch):
    """A mistyped folder or a machine without network gave forty lines of traceback instead of the knob to mend."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in (str(run.root / "nowhere"), "someone/a-model-that-is-not-here"):
        for load in (load_tokenizer, load_base):
            with pytest.raises(UserError) as error:
                load(knobs_of(name), run)
            assert_one_sentence(error, "base_model")
            assert name in str(error.value)
    assert "hub cannot be reached" in str(error.value)
    with pytest.raises(UserError, match="without config.json") as error:
        load_base(knobs_of(copy_without(hub, run.root / "half", "config.json")), run)
    assert_one_sentence(error, "base_model")


def test_gated_model_asks_for_a_token(run, monkeypatch):
    """ALLaM's terms not yet accepted looked like a missing model; the reader must hear of HF_TOKEN."""
    from huggingface_hub.errors import GatedRepoError

    response = SimpleNamespace(headers={}, request=None)
    for failure in (GatedRepoError("Cannot access.", response=response), OSError("You are trying to access a gated repo.\nAsk.")):
        def refuse(*arguments, failure=failure, **options):
            raise failure
        monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", refuse)
        with pytest.raises(UserError, match="HF_TOKEN") as error:
            load_base(knobs_of("someone/gated"), run)
        assert_one_sentence(error, "base_model")


def test_weights_other_than_whole_safetensors_are_refused(hub, run):
    """A pickled .bin can run code when loaded; a download cut off half-way ended in a traceback; 401 in a path said "gated"."""
    folder = copy_without(hub, run.root / "pickled-401", "model.safetensors")
    torch.save(LlamaForCausalLM.from_pretrained(hub).state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="no safetensors") as error:
        load_base(knobs_of(folder), run)
    assert_one_sentence(error, "base_model")
    assert "HF_TOKEN" not in str(error.value)

    whole = (hub / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:len(whole) // 2])
    with pytest.raises(UserError) as error:
        load_base(knobs_of(folder), run)
    assert_one_sentence(error, "base_model")


def test_remote_code_is_off_in_every_profile():
    """One profile with trust_remote_code on would run a stranger's Python on every reader's machine."""
    assert {name: load_knobs(name)[0].trust_remote_code for name in profile_names()} == dict.fromkeys(profile_names(), False)
    assert len(profile_names()) >= 5


# ---- training --------------------------------------------------------------------------------------------------------

KILL = """
import os, signal, sys
from transformers import TrainerCallback
from dialectbook import sft
from dialectbook.knobs import Knobs
from dialectbook.paths import Run

class Kill(TrainerCallback):
    def on_save(self, *arguments, **options):
        os.kill(os.getpid(), signal.SIGKILL)

make = sft.make_trainer
def make_and_kill(*arguments):
    trainer = make(*arguments)
    trainer.add_callback(Kill())
    return trainer

sft.make_trainer = make_and_kill
sft.train_adapter(Knobs.model_validate_json(sys.argv[1]), Run("smoke"), "token", 1)
"""


def test_killed_training_resumes_to_the_same_weights(hub, run, monkeypatch):
    """A training killed on a free GPU started over, or resumed to other weights than an undisturbed one."""
    knobs = knobs_of(hub, num_epochs=2, lora_dropout=0.1)
    whole = sft.train_adapter(knobs, run, "undisturbed", 1)
    killed = subprocess.run([sys.executable, "-c", KILL, knobs.model_dump_json()], env=os.environ, capture_output=True,
                            check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    folder = run.experiment("token", 1)
    with pytest.raises(UserError, match="06_lora_sft"):
        load_tuned(knobs, run, "token", 1)  # half a training is no adapter
    (work,) = folder.glob("adapter.unfinished-*")
    assert [path.name for path in work.glob("checkpoint-*")] == ["checkpoint-3"]
    shutil.copytree(work / "checkpoint-3", work / "checkpoint-6")  # as if killed again while checkpoint-6 was written
    (work / "checkpoint-6" / "trainer_state.json").unlink()

    make, resumed_at = sft.make_trainer, []
    class Watch(TrainerCallback):
        def on_train_begin(self, arguments, state, control, **options):
            resumed_at.append(state.global_step)
    def make_and_watch(*arguments):
        trainer = make(*arguments)
        trainer.add_callback(Watch())
        return trainer
    monkeypatch.setattr(sft, "make_trainer", make_and_watch)
    record = sft.train_adapter(knobs, run, "token", 1)
    assert resumed_at == [3]
    assert record["steps"] == whole["steps"] == 6 and record["best_checkpoint"] == whole["best_checkpoint"]
    assert [row["step"] for row in record["dev"]] == [3, 6]
    assert [row["loss"] for row in record["dev"]] == pytest.approx([row["loss"] for row in whole["dev"]], abs=1e-6)
    first, second = weights(run.experiment("undisturbed", 1) / "adapter"), weights(folder / "adapter")
    assert first.keys() == second.keys() and any(value.abs().max() > 0 for key, value in first.items() if "lora_B" in key)
    for key in first:
        assert torch.allclose(first[key], second[key], rtol=1e-6, atol=1e-8), key
    assert [path.name for path in folder.iterdir()] == ["adapter"]


def test_finished_adapter_is_kept_until_a_knob_changes(hub, run, monkeypatch):
    """Running chapter 06 twice trained for hours again; a failing second training left the reader without the first adapter."""
    record = sft.train_adapter(knobs_of(hub), run, "token", 1)
    adapter = run.experiment("token", 1) / "adapter"
    before = weights(adapter)
    monkeypatch.setattr(sft, "make_trainer", stop)
    assert sft.train_adapter(knobs_of(hub), run, "token", 1) == record
    for change in ({"learning_rate": 2.0e-3}, {"tag_train": "none"}, {"data_seed": 7}):
        with pytest.raises(Stopped):
            sft.train_adapter(knobs_of(hub, **change), run, "token", 1)
    after = weights(adapter)
    assert all(torch.equal(before[key], after[key]) for key in before)
    load_tuned(knobs_of(hub), run, "token", 1)


def test_tuned_model_never_falls_back_to_the_base(hub, run):
    """A missing adapter was skipped without a word, and the base model's scores were printed as the tuned model's."""
    with pytest.raises(UserError, match="06_lora_sft"):
        load_tuned(knobs_of(hub), run, "token", 1)
    sft.train_adapter(knobs_of(hub), run, "token", 1)
    with pytest.raises(UserError, match="06_lora_sft.*seed = 2"):
        load_tuned(knobs_of(hub), run, "token", 2)
    with pytest.raises(UserError, match="04_continued_pretraining"):
        load_base(knobs_of("twin"), run)


@pytest.mark.parametrize("loss_on", ["full", "response"])
def test_plain_loss_is_trls_loss(hub, run, loss_on):
    """The faster loss on a CPU must be the loss of TRL itself, or CPU and GPU runs train different objectives."""
    from trl import SFTTrainer

    knobs = knobs_of(hub, loss_on=loss_on, lora_dropout=0.0)
    rows = sft.rows_of(knobs, run, "train")
    ours = sft.make_trainer(load_base(knobs, run), load_tokenizer(knobs, run), rows, rows, knobs, 1, run.root / "ours", sft.lora_config(knobs))
    for name, parameter in ours.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    stock = SFTTrainer(model=ours.model.eval(), args=ours.args, processing_class=ours.processing_class,
                       train_dataset=ours.train_dataset, eval_dataset=ours.eval_dataset)
    batch = ours.data_collator([ours.train_dataset[i] for i in range(4)])
    masked = (batch["labels"][batch["attention_mask"] == 1] == -100).sum()
    assert masked > 0 if loss_on == "response" else masked == 0
    for items in (None, torch.tensor(500)):  # 500: tokens of all batches of an accumulated step
        losses = [trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=items).item() for trainer in (ours, stock)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-5) and losses[0] > 0


# ---- sampling --------------------------------------------------------------------------------------------------------

def test_interrupted_sampling_continues_to_the_same_text(hub, run, monkeypatch):
    """A sampling killed in the night began anew, or went on with other random numbers; its half-written line broke the file."""
    knobs = knobs_of(hub, sample_batch_size=2, max_new_tokens=8)
    model, tokenizer = load_base(knobs, run).eval(), load_tokenizer(knobs, run)
    rows = ask(to_pairs(scenarios(3)), "dialect", "prefix")
    generate, calls = sample.generate_to_end, []

    def interrupted(*arguments):
        calls.append(arguments)
        return stop() if len(calls) == 2 else generate(*arguments)

    whole = sample.sample_responses(model, tokenizer, rows, knobs, run.root / "whole", seed=1)
    monkeypatch.setattr(sample, "generate_to_end", interrupted)
    with pytest.raises(Stopped):
        sample.sample_responses(model, tokenizer, rows, knobs, run.root / "cut", seed=1)
    (partial,) = (run.root / "cut").glob("predictions.unfinished-*.jsonl")
    lines = partial.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2 and not (run.root / "cut" / "predictions.jsonl").exists()
    with partial.open("ab") as file:
        file.write(lines[0].encode()[:-30])  # the write that the kill cut off
    assert sample.sample_responses(model, tokenizer, rows, knobs, run.root / "cut", seed=1) == whole
    assert len(calls) == 4  # three batches, of which the second was asked twice: the first was not made again
    assert [path.name for path in (run.root / "cut").glob("predictions*")] == ["predictions.jsonl"]
    assert len({row["prediction"] for row in whole}) > 1


def test_finished_predictions_are_read_until_model_or_rows_change(hub, run, monkeypatch):
    """Another base model, or a corrected reference answer, was scored with the predictions file of the earlier one."""
    knobs, rows = knobs_of(hub), ask(to_pairs(scenarios(2)), "dialect", "prefix")
    monkeypatch.setattr(sample, "generate_to_end", lambda model, tokenizer, prompts, *rest: [(f"جواب {n}", False) for n in range(len(prompts))])
    first = sample.sample_responses(None, None, rows, knobs, run.root, seed=1)
    monkeypatch.setattr(sample, "generate_to_end", stop)
    assert sample.sample_responses(None, None, rows, knobs, run.root, seed=1) == first
    corrected = [{**rows[0], "response": "جواب آخر"}, *rows[1:]]
    for again in ((rows, knobs_of("someone/other-base"), 1), (corrected, knobs, 1), (rows, knobs, 2)):
        with pytest.raises(Stopped):
            sample.sample_responses(None, None, again[0], again[1], run.root, seed=again[2])


def test_answers_cut_at_the_limit_are_known(hub, run):
    """An answer that ran into max_new_tokens looks like any other; the error analysis has to know it."""
    knobs = knobs_of(hub, top_k=1)
    model, tokenizer = load_base(knobs, run).eval(), load_tokenizer(knobs, run)
    prompts = ["### Instruction:\nسؤال", "السوق"]
    long = sample.generate_to_end(model, tokenizer, prompts, knobs, seed=1)
    assert [text for text, _ in long] == sample.generate(model, tokenizer, prompts, knobs, seed=1)
    bias = torch.zeros(model.config.vocab_size)
    bias[tokenizer.eos_token_id] = 100.0
    model.lm_head.register_forward_hook(lambda module, inputs, output: output + bias)  # now it ends at once
    assert [cut for _, cut in sample.generate_to_end(model, tokenizer, prompts, knobs, seed=1)] == [False, False]
    model.lm_head.register_forward_hook(lambda module, inputs, output: output - 2 * bias)  # and now never
    assert [cut for _, cut in sample.generate_to_end(model, tokenizer, prompts, knobs, seed=1)] == [True, True]


def test_another_round_of_sampling_is_another_sample(hub, run):
    """The same seed in a second round must not give the same answers, or the spread of sampling would be 0."""
    rows, found = ask(to_pairs(scenarios(2)), "dialect", "prefix"), []
    for number in (0, 1):
        knobs = knobs_of(hub, max_new_tokens=12, sampling_round=number, temperature=2.0)
        found.append(sample.sample_responses(load_base(knobs, run).eval(), load_tokenizer(knobs, run), rows, knobs, run.root / str(number), seed=1))
    assert [row["prompt"] for row in found[0]] == [row["prompt"] for row in found[1]]
    assert [row["prediction"] for row in found[0]] != [row["prediction"] for row in found[1]]


def test_sampled_line_separators_do_not_break_resuming(hub, run, monkeypatch):
    """A model wrote U+2028, which Python counts as a line end: the partial file could not be read again."""
    knobs = knobs_of(hub, sample_batch_size=2)
    rows = ask(to_pairs(scenarios(2)), "dialect", "prefix")
    answers = iter([[("a\u2028b\x85c", False), ("d\x0ce", True)]])
    monkeypatch.setattr(sample, "generate_to_end", lambda *arguments: next(answers))
    with pytest.raises(StopIteration):
        sample.sample_responses(None, None, rows, knobs, run.root, seed=1)
    answers = iter([[("f", False), ("g", False)]])
    predictions = sample.sample_responses(None, None, rows, knobs, run.root, seed=1)
    assert {row["prediction"] for row in predictions} == {"a\u2028b\x85c", "d\x0ce", "f", "g"}


# ---- judges ----------------------------------------------------------------------------------------------------------

def classifier(folder, labels):
    """Return a small BERT classifier with these labels, saved in the hub's format into `folder`."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "كيف", "حالك", "وش", "ازيك", "شلونك", "لاباس", "؟"]
    BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(folder)
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        id2label=dict(enumerate(labels)), label2id={label: number for number, label in enumerate(labels)}, initializer_range=1.0))
    model.save_pretrained(folder)
    return model.eval()


def test_hub_judge_columns_follow_regions(tmp_path):
    """The hub's classifier has labels in its own order: taken as they came, Gulf texts were counted as Levantine."""
    own = ["LEV", "MAGHREB", "GLF", "EGY", "MSA"]
    model = classifier(tmp_path, own)
    texts = ["كيف حالك ؟", "وش", "ازيك شلونك لاباس ؟ كيف", "لاباس"]
    judge = HubJudge(str(tmp_path), "main", batch_size=3)
    found = judge.probabilities(texts)
    batch = AutoTokenizer.from_pretrained(str(tmp_path))(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        raw = torch.softmax(model(**batch).logits, -1).numpy()
    assert judge.labels == REGIONS == ("GLF", "MSA", "LEV", "EGY", "MAGH")
    assert np.allclose(found, raw[:, [2, 4, 0, 3, 1]], atol=1e-5) and np.ptp(raw, axis=1).min() > 0.01
    assert judge.probabilities([]).shape == (0, 5)


@pytest.mark.parametrize("labels", [["LEV", "IRAQ", "GLF", "EGY", "MSA"], ["joy", "anger"]])
def test_hub_judge_with_other_labels_is_refused(tmp_path, labels):
    """A sentiment classifier given as judge_model yielded dialect scores; its labels must be named instead."""
    classifier(tmp_path, labels)
    with pytest.raises(UserError) as error:
        HubJudge(str(tmp_path), "main")
    assert_one_sentence(error, "judge_model")
    assert ", ".join(label.upper() for label in labels) in str(error.value) and ", ".join(REGIONS) in str(error.value)


@pytest.mark.parametrize("order", [REGIONS, DIALECTS, DIALECTS[::-1]])
def test_ngram_judge_survives_the_disk(tmp_path, order):
    """A pickled judge runs code and breaks with the next scikit-learn; arrays that came back reversed swapped the dialects."""
    words = ("وش", "كيف", "شو", "ازيك", "واش")
    texts = [f"{words[n % len(order)]} {subject}" for n, subject in enumerate(SUBJECTS * 2)]
    labels = [order[n % len(order)] for n in range(len(texts))]
    judge = NgramJudge.fit(texts, labels, order)
    judge.save(tmp_path / "judge")
    loaded = NgramJudge.load(tmp_path / "judge")
    found = loaded.probabilities(texts)
    assert np.array_equal(found, judge.probabilities(texts)) and loaded.labels == judge.labels == tuple(order)
    assert np.allclose(found.sum(axis=1), 1) and [order[column] for column in found.argmax(axis=1)] == labels
    assert {path.suffix for path in (tmp_path / "judge").rglob("*")} == {".safetensors", ".json"}


def test_judge_needs_every_class():
    """With texts of one dialect only, scikit-learn's own error named neither the judge nor the label that was missing."""
    with pytest.raises(UserError, match="HIJAZI, NAJDI.*only NAJDI"):
        NgramJudge.fit(["وش", "ابي"], ["NAJDI", "NAJDI"], DIALECTS)


# ---- the twin's corpus and tokenizer -----------------------------------------------------------------------------------

def test_nothing_of_dev_or_test_enters_pretraining():
    """Test answers in the base's pre-training would make every later score a memory test."""
    pool = scenarios(40)
    splits = split_scenarios(pool, [0.8, 0.1, 0.1], seed=1)
    regions = [{"id": "r", "text": "ازيك عامل ايه", "region": "EGY"}]
    for share, versions in ((1.0, ("msa", "hijazi", "najdi", "english")), (0.0, ("msa", "english"))):
        texts = corpus(pool, to_pairs(splits["train"]), regions, share, seed=1)
        assert not any("DIALECT" in text for text in texts), "the base must not have met the dialect tag"
        lines = {re.sub(r"^<(TOPIC|REGION)=\w+>", "", line) for line in "\n".join(texts).splitlines()}
        sentences = 2 * round(share * len(splits["train"])) + 1  # the dialect responses once more, and the one of EGY
        assert len(texts) == len(versions) * len(splits["train"]) + sentences and "ازيك عامل ايه" in lines
        assert all(s[version]["response"] in lines for s in splits["train"] for version in versions)
        for scenario in splits["dev"] + splits["test"]:
            for version in ("msa", "hijazi", "najdi", "english"):
                assert not lines & set(scenario[version].values())
    assert [len(splits[name]) for name in SPLITS] == [32, 4, 4]


def test_identity_changes_with_the_base(tmp_path):
    """A local base that was exchanged under the same path must not pass for the one that an adapter was trained on."""
    knobs, _ = load_knobs("a100", "token", {"base_model": str(tmp_path)})
    (tmp_path / "config.json").write_text("{}")
    before = identity_of(knobs, Run("a100"))
    (tmp_path / "model.safetensors").write_bytes(b"12")
    assert identity_of(knobs, Run("a100")) != before
    hub, _ = load_knobs("a100", "token")
    assert identity_of(hub, Run("a100")) == f"{hub.base_model}@{hub.base_revision}"


def test_encoder_of_bertscore_is_pinned(tmp_path, monkeypatch):
    """bert-score takes no revision: the encoder must be fetched at its commit first, and only as safetensors."""
    import huggingface_hub

    asked = {}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda path, **options: asked.update(options, path=path) or str(tmp_path))
    knobs, _ = load_knobs("a100")
    folder, layer, name = encoder_of(knobs, Run("a100"))
    assert folder == str(tmp_path) and layer == 9 and name == "bert-base-multilingual-cased@3f076fd"
    assert asked["revision"] == knobs.bertscore_revision and not any("bin" in pattern for pattern in asked["allow_patterns"])


def test_fewer_test_scenarios_are_drawn_whole(tmp_path, monkeypatch):
    """A profile may answer fewer test scenarios, but always both dialects of one, and the same ones every time."""
    monkeypatch.setenv("DIALECTBOOK_RUNS", str(tmp_path))
    run = Run("tiny")
    write_jsonl(run.split("test"), to_pairs(scenarios(30)))
    knobs, _ = load_knobs("tiny", "token", {"test_scenarios": 7})
    rows = prompts_of_test(knobs, run)
    assert len(rows) == 7 * 2 * 2 and rows == prompts_of_test(knobs, run)
    assert len({row["scenario_id"] for row in rows}) == 7
    assert len(prompts_of_test(load_knobs("tiny", "token", {"test_scenarios": 0})[0], run)) == 30 * 2 * 2


def test_tokenizer_loses_nothing(tmp_path):
    """A tokenizer that drops diacritics, emoji or the tag trains on other texts than those of the dataset."""
    tokenizer = train_tokenizer(TEXTS, 300)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(str(tmp_path))
    text = "### Instruction:\n<DIALECT=NAJDI>كَيْفَ الحَالُ؟ 👩‍👧 😀 0123 ٤٥٦،  two  spaces\t\u2028\n"
    ids = loaded(text)["input_ids"]
    assert loaded.decode(ids, skip_special_tokens=True) == text
    assert ids == tokenizer(text)["input_ids"] and ids[0] == loaded.bos_token_id == 0
    assert (loaded.eos_token_id, loaded.pad_token_id) == (1, 2) and len(loaded) == 300
