"""Two stages and replay: nothing held out is read, budgets are what they say, adapters with full matrices survive merging, lm-eval counts right."""

import json
from pathlib import Path

import lm_eval
import numpy as np
import pytest
import torch
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM

from dialectbook import model as models
from dialectbook import retention as retention_module
from dialectbook import stages
from dialectbook.data import DIALECTS, REGIONS, curate, load_pool, load_split, split_scenarios
from dialectbook.files import UserError, read_jsonl
from dialectbook.judge import NgramJudge
from dialectbook.knobs import load_knobs
from dialectbook.model import load_base, load_tokenizer, response_logp
from dialectbook.recipes import bits_rows, evaluated, front, mean_bits, of_base, scale_of
from dialectbook.retention import LOCAL, TASKS, english_items, retention, write_tasks
from dialectbook.stages import base_knobs, blend, count_tokens, load_adapter, new_adapter, optimizer_of, stage_data, train_recipe
from small_run import small_run


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """Knobs, and a run of profile smoke with its splits and an untrained base."""
    knobs, _ = load_knobs("smoke", "", {"retention_items": 40, "stage_batch_size": 2, "stage1_learning_rate": 5.0e-3})
    run, splits = small_run(tmp_path_factory, knobs, curate(load_pool(), knobs)[0])
    for name, labels in (("regions", REGIONS), ("dialects", DIALECTS)):
        NgramJudge.fit(["كيف الحال", "وش", "ايش", "ماذا", "ازيك"][:len(labels)], list(labels), list(labels)).save(run.judge / name)
    return knobs, run, splits


@pytest.fixture(scope="module")
def record(smoke):
    knobs, run, _ = smoke
    return train_recipe(knobs, run, stage_data(knobs, run), 1)


# ---- data ----------------------------------------------------------------------------------------------------------

def test_nothing_held_out_is_read(smoke):
    """A held-out answer, or an English item, that a stage has read would be remembered, not kept."""
    knobs, run, splits = smoke
    data = stage_data(knobs, run)
    test = data.pop("held_out")
    read = "\n".join(row.get("text") or row["completion"] for rows in data.values() for row in rows)
    assert all(rows for rows in data.values()) and set(test) == {*DIALECTS, "English"}
    held = {s["id"] for name in ("dev", "test") for s in splits[name]}
    assert {row["scenario_id"] for rows in test.values() for row in rows} <= {s["id"] for s in splits["test"]}
    assert not any(s[version]["response"] in read for name in ("dev", "test") for s in splits[name] for version in ("msa", "hijazi", "najdi", "english") if version in s)
    asked = {item["scenario_id"] for name in LOCAL for item in read_jsonl(write_tasks(knobs, run) / f"{name}.jsonl")}
    assert asked and asked <= held


def test_stages_share_no_scenario_and_the_base_has_read_no_dialect(smoke):
    """Texts read twice, or by the base, would make a stage a repetition."""
    knobs, run, splits = smoke
    data = stage_data(knobs, run)
    first, second = {row["text"].split("\n")[-1] for row in data["texts"]}, {row["completion"] for row in data["pairs"]}
    assert not first & second
    assert all(row["text"].endswith("\n" + row["completion"]) and row["text"].split("\n")[0] in row["prompt"] for row in data["texts"])
    assert len(data["texts"]) + len(data["pairs"]) == len(load_split(run, "train"))
    tokenizer, read = load_tokenizer(knobs, run), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "load_english", lambda knobs, run, read: (load_base(knobs, run), load_tokenizer(knobs, run)))
        patch.setattr(stages, "expand_tokenizer", lambda old, additions, size: old)
        patch.setattr(stages, "expand_model", lambda model, old, new: model)
        patch.setattr(stages, "continue_training", lambda model, tokenizer, rows, *_: read.extend(rows))
        own = base_knobs(knobs.model_copy(update={"stage_base_tokens": 30_000}), run)
    text = "".join(tokenizer.batch_decode(read))
    answers = {version: [s[version]["response"] for s in splits["train"] if version in s] for version in ("msa", "english", "hijazi", "najdi")}
    share = {version: np.mean([answer in text for answer in some]) for version, some in answers.items()}
    assert share["msa"] > 0.3 < share["english"] and share["hijazi"] == share["najdi"] == 0
    assert load_base(own, run).config.vocab_size == len(tokenizer) and own.base_model != knobs.base_model
    hub = base_knobs(knobs.model_copy(update={"stage_model": "hub/model", "stage_revision": "f" * 40}), run)
    assert (hub.base_model, hub.base_revision) == ("hub/model", "f" * 40)


def test_blends_hold_equal_what_they_say(smoke):
    """A blend with more tokens learns more of everything; that is not replay's doing."""
    knobs, run, _ = smoke
    data, tokenizer, budget = stage_data(knobs, run), load_tokenizer(knobs, run), 2000
    longest = max(count_tokens(tokenizer, row) for row in data["pairs"] + data["english"])
    none, counts = blend(data, tokenizer, budget, 0.0, "total", 1)
    assert counts["English tokens"] == 0 and budget <= counts["dialect tokens"] <= budget + longest
    for share in (0.1, 0.3):
        _, total = blend(data, tokenizer, budget, share, "total", 1)
        rows, on_top = blend(data, tokenizer, budget, share, "dialect", 1)
        assert abs(sum(total.values()) - budget) <= 2 * longest and on_top["dialect tokens"] == counts["dialect tokens"]
        for some, whole in ((total, budget), (on_top, budget / (1 - share))):
            assert abs(some["English tokens"] - share * whole) <= longest
        assert {row["completion"] for row in none} == {row["completion"] for row in rows} - {row["completion"] for row in data["english"]}
    assert blend(data, tokenizer, budget, 0.3, "total", 1)[0] != blend(data, tokenizer, budget, 0.3, "total", 2)[0]
    _, endless = blend(data, tokenizer, 50_000, 0.5, "total", 1)  # more than there is: from the start again
    assert endless["dialect tokens"] >= 25_000


# ---- adapters ------------------------------------------------------------------------------------------------------

def test_merged_adapter_is_reloaded_as_it_was(smoke, record, tmp_path):
    """Copies of tied matrices are two once trained: a configuration that calls them tied makes other loaders use one for both."""
    knobs, run, _ = smoke
    assert load_base(knobs, run).config.tie_word_embeddings
    tokenizer, adapted = load_tokenizer(knobs, run), load_adapter(knobs, run, record["folder"]).eval()
    batch = tokenizer("### Instruction:\nكيف الحال؟\n\n### Response:\n", return_tensors="pt")
    with torch.no_grad():
        wanted, base = adapted(**batch).logits, load_base(knobs, run)(**batch).logits
        assert (wanted - base).abs().max() > 1e-2  # trained
        plain = adapted.merge_and_unload()
        assert torch.allclose(plain(**batch).logits, wanted, atol=1e-4)
        first, last = plain.get_input_embeddings().weight, plain.get_output_embeddings().weight
        assert not torch.equal(first, last) and not any("lora" in name or "modules_to_save" in name for name in plain.state_dict())
        plain.save_pretrained(tmp_path / "whole")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", use_safetensors=True).eval()
        assert torch.allclose(again(**batch).logits, wanted, atol=1e-4)
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["tie_word_embeddings"] is False


def test_scale_is_rank_stabilised_or_plain(smoke):
    """alpha 32 at rank 128: 2.83 with rank-stabilised scaling, 0.25 without; the paper's text does not say which."""
    knobs, run, _ = smoke
    for rslora, scale in ((True, 32 / 128**0.5), (False, 0.25)):
        model = new_adapter(knobs, run, 128, False, rslora)
        scales = {module.scaling["default"] for module in model.modules() if hasattr(module, "lora_A")}
        assert scales == {scale}
        assert scale_of({"settings": {"stage_lora_alpha": 32, "rank": 128, "rslora": rslora}}) == scale


def test_embeddings_are_trained_in_full_or_not_at_all(smoke):
    """A frozen copy would be counted as trained; each kind of weight has its own learning rate."""
    knobs, run, _ = smoke
    base = load_base(knobs, run)
    low, full = (sum(p.numel() for p in new_adapter(knobs, run, 4, embeddings, True).parameters() if p.requires_grad) for embeddings in (False, True))
    assert full - low == 2 * base.get_input_embeddings().weight.numel()
    model = new_adapter(knobs, run, 4, True, True)
    groups = {group["lr"]: sum(p.numel() for p in group["params"]) for group in optimizer_of(model, 1e-3, 5e-4).param_groups}
    assert groups == {1e-3: low, 5e-4: full - low}


def test_stage_2_goes_on_from_stage_1(smoke, record, monkeypatch):
    """Stage 2 once began with a new adapter: stage 1 was trained and thrown away."""
    knobs, run, _ = smoke
    data = stage_data(knobs, run)
    starts, train = [], stages.train

    def watched(model, tokenizer, rows, knobs, seed, stage):
        starts.append((stage, {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}))
        return train(model, tokenizer, rows, knobs, seed, stage)

    monkeypatch.setattr(stages, "train", watched)
    again = train_recipe(knobs, run, data, 1)
    assert not starts and again == record  # finished recipes are read
    other = train_recipe(knobs, run, data, 1, share=0.2, equal="dialect")
    (stage, weights), = starts  # stage 1 is shared
    assert stage == 2 and other["folder"] != record["folder"] and other["counts"]["English tokens"] > 0
    first = load_adapter(knobs, run, train_recipe(knobs, run, data, 1, (1,))["folder"], trainable=True)
    trained = dict(first.named_parameters())
    assert all(torch.equal(weight, trained[name]) for name, weight in weights.items())
    assert any(weight.abs().max() > 0 for name, weight in weights.items() if "lora_B" in name)


def test_stage_2_counts_the_response_only(smoke, monkeypatch):
    """The released code counts the whole text where the paper says output tokens only."""
    knobs, run, _ = smoke
    data, tokenizer, seen = stage_data(knobs, run), load_tokenizer(knobs, run), []
    make = stages.make_trainer

    def watched(*arguments, **options):
        trainer = make(*arguments, **options)
        seen.append(next(iter(trainer.get_train_dataloader())))
        return trainer

    monkeypatch.setattr(stages, "make_trainer", watched)
    for stage, rows in ((1, data["texts"][:8]), (2, data["pairs"][:8])):
        stages.train(new_adapter(knobs, run, 4, False, True), tokenizer, rows, knobs, 1, stage)
    text, pairs = ((batch["labels"] != -100) & (batch["attention_mask"] == 1) for batch in seen)
    assert (text | (seen[0]["attention_mask"] == 0)).all()
    responses = {row["completion"] for row in data["pairs"][:8]}
    for ids, counted in zip(seen[1]["input_ids"], pairs):
        assert tokenizer.decode(ids[counted], skip_special_tokens=True).strip() in responses
        assert ids[counted][-1] == tokenizer.eos_token_id


# ---- measuring -----------------------------------------------------------------------------------------------------

def test_harness_counts_as_its_formula_says(smoke, monkeypatch):
    """lm-eval's accuracy on local items is the share whose right choice is likeliest."""
    knobs, run, _ = smoke
    folder, tokenizer, model = write_tasks(knobs, run), load_tokenizer(knobs, run), load_base(knobs, run).eval()
    scores = retention(model, tokenizer, list(LOCAL), folder)
    monkeypatch.setattr(models, "has_bf16", lambda: False)  # lm-eval multiplies in float32
    assert set(scores) == set(LOCAL)
    for task in LOCAL:
        items = read_jsonl(folder / f"{task}.jsonl")
        assert len(scores[task]) == len(items) > 3
        eos, tokenizer.eos_token = tokenizer.eos_token, ""  # lm-eval scores a choice without an end
        right = []
        for item in items:
            space = " " if item["question"] else ""
            logp = response_logp(model, tokenizer, [item["question"]] * 4, [space + choice for choice in item["choices"]])
            right.append(float(np.argmax(logp) == item["label"]))
        tokenizer.eos_token = eos
        assert scores[task] == [{"right": one, "group": item["scenario_id"]} for one, item in zip(right, items)]
    with pytest.raises(UserError, match="retention_tasks has 'mmlu_pro'; choose from"):
        retention(model, tokenizer, ["mmlu_pro"], folder)


def test_public_tasks_are_the_harness_own():
    """GPU profiles ask lm-eval's tasks by the same call: each must exist there with the accuracy that is read."""
    manager = TaskManager()
    for task in set(TASKS) - set(LOCAL):
        assert task in manager.all_tasks, task
    for path in ("arc/arc_easy.yaml", "hellaswag/hellaswag.yaml", "mmlu/default/_default_template_yaml"):  # arc_challenge includes arc_easy
        text = (Path(lm_eval.__file__).parent / "tasks" / path).read_text()
        assert "metric: acc\n" in text and "multiple_choice" in text


def test_a_group_of_tasks_is_read_as_one(smoke, tmp_path):
    """mmlu is a group: its items come back under the names of 57 parts."""
    knobs, run, _ = smoke
    folder = write_tasks(knobs, run)
    for part in ("order", "cloze"):
        text = (folder / f"english_{part}.yaml").read_text().replace(f"task: english_{part}", f"task: mmlu_{part}")
        (tmp_path / f"mmlu_{part}.yaml").write_text(text)
    (tmp_path / "mmlu.yaml").write_text("group: mmlu\ntask: [mmlu_order, mmlu_cloze]\n")
    model, tokenizer = load_base(knobs, run).eval(), load_tokenizer(knobs, run)
    own = retention(model, tokenizer, list(LOCAL), folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retention_module, "LOCAL", ("mmlu",))  # read from the folder, not from lm-eval's own files
        found = retention(model, tokenizer, ["mmlu"], tmp_path)["mmlu"]
    assert sorted(map(str, found)) == sorted(str(item) for some in own.values() for item in some)


@pytest.mark.parametrize("change, fix", [({"replay_shares": [0.1, 0.2]}, "must begin with 0.0"), ({"replay_shares": [0.0, 1.0]}, "stay below 1"),
                                         ({"stage_lora_r": 7}, "must hold stage_lora_r = 7")])
def test_wrong_shares_and_ranks_are_told(change, fix):
    """A share of 1 ended in a division by zero, far from the knob."""
    with pytest.raises(UserError, match="replay_shares|stage_ranks") as error:
        load_knobs("tiny", "", change)
    assert fix in str(error.value)


def test_items_are_enough_and_fair():
    """At least 300 items; the right choice must not stand out by its place."""
    knobs, _ = load_knobs("tiny")
    scenarios, _ = curate(load_pool(), knobs)
    splits = split_scenarios(scenarios, knobs.split_shares, knobs.data_seed)
    items = english_items(scenarios, {s["id"] for name in ("dev", "test") for s in splits[name]}, 400, 42)
    assert sum(map(len, items.values())) >= 300 and all(len(some) >= 100 for some in items.values())
    for some in items.values():
        assert all(len(set(item["choices"])) == 4 for item in some)
        places = np.bincount([item["label"] for item in some], minlength=4) / len(some)
        assert 0.15 < places.min() and places.max() < 0.35
    for item in items["english_order"]:
        assert len({tuple(sorted(choice.split())) for choice in item["choices"]}) == 1  # the same words
    said = " ".join(s["english"]["response"] for s in scenarios if "english" in s)
    for item in items["english_cloze"]:
        assert f"{item['question']} {item['choices'][item['label']]}" in said


def test_measures_of_a_recipe(smoke, record):
    """Bits per character of several answers are those of all text together, and evaluated answers are kept."""
    knobs, run, _ = smoke
    expected = sum(sum(record["text_bits"][d]) for d in DIALECTS) / sum(sum(record["text_characters"][d]) for d in DIALECTS)
    assert mean_bits([record], "dialects", 50)["value"] == pytest.approx(expected)
    bits, scenarios, seeds = bits_rows([record, record], "Hijazi")
    assert len(bits) == len(scenarios) == len(seeds) == 2 * len(record["text_bits"]["HIJAZI"])
    folder = write_tasks(knobs, run)
    whole = evaluated(knobs, run, record, folder)
    assert set(whole["items"]) == set(knobs.retention_tasks) and len(whole["answers"]["dialect share"]) == len(whole["answers"]["texts"])
    assert evaluated(knobs, run, record, folder)["items"] == whole["items"]
    base, = of_base(knobs, run, stage_data(knobs, run))
    assert base["settings"]["seed"] == 1 and base["text_bits"].keys() == record["text_bits"].keys()
    assert evaluated(knobs, run, base, folder)["answers"]["texts"] != whole["answers"]["texts"]


def test_front_keeps_what_nothing_beats():
    """The Pareto line once joined points that another point beats in both."""
    assert front([(1, 5), (2, 3), (3, 4), (4, 1), (2, 3)]) == [0, 1, 3, 4]
    assert front([(1, 1), (2, 2)]) == [0]
