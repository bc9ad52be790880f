"""Quantisation: what is rounded and what stays, sizes that add up, variants asked alike, and nothing where there is nothing to compare."""

import sys

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dialectbook import sample
from dialectbook.claims import load_claims
from dialectbook.data import DIALECTS, REGIONS, clean_scenario, load_pool, load_regions, load_split, prompts_of_test
from dialectbook.files import UserError
from dialectbook.findings import with_holm
from dialectbook.judge import NgramJudge
from dialectbook.knobs import load_knobs
from dialectbook.model import load_model, load_tokenizer, load_tuned
from dialectbook.paths import Run
from dialectbook.quantise import (VARIANTS, bits_per_weight, by_hand_rows, dequantised, disk_of, layers_of, load_variants, memory_of, quality,
                                  size_by_hand, size_rows, speed_rows, speeds)
from dialectbook.sft import train_adapter
from dialectbook.variants import answer_rows, claim_rows, draw_losses, draw_size, findings, kept, quality_rows, test_id as id_of
from small_run import small_run


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """Knobs of experiment token, and a run with splits, judges, an untrained base and a tuned adapter."""
    knobs, _ = load_knobs("smoke", "token", {"learning_rate": 0.02})
    run, _ = small_run(tmp_path_factory, knobs, [clean_scenario(s, False) for s in load_pool()[:80]])
    pairs = load_split(run, "train")
    regions = [(row["text"], row["region"]) for row in load_regions(False)[::20]] + [(pair["response_msa"], "MSA") for pair in pairs[:40]]
    NgramJudge.fit(*zip(*regions), REGIONS).save(run.judge / "regions")
    NgramJudge.fit([pair["response"] for pair in pairs], [pair["dialect"] for pair in pairs], DIALECTS).save(run.judge / "dialects")
    train_adapter(knobs, run, "token", 1)
    return knobs, run


@pytest.fixture(scope="module")
def models(smoke):
    return load_variants(*smoke, 1)


@pytest.fixture(scope="module")
def results(smoke):
    return quality(*smoke)


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(5, 25)[None]).logits


def test_linear_layers_are_rounded_and_nothing_else(smoke, models):
    """The tied head was once rounded with the rest in other libraries; embeddings and norms must stay to the last bit."""
    own = models[0]
    assert torch.allclose(logits(own), logits(load_tuned(*smoke, "token", 1)), atol=1e-4), "merging changes nothing"
    assert len(layers_of(own)) == 7 * own.config.num_hidden_layers
    for bits in (8, 4):
        kept = dict(models[bits].named_parameters())
        for name, weight in own.named_parameters():
            assert ("embed" in name or "norm" in name) == (kept[name].dtype == weight.dtype and torch.equal(kept[name], weight)), (bits, name)
        assert models[bits].get_output_embeddings().weight.data_ptr() == models[bits].get_input_embeddings().weight.data_ptr()


def test_an_untied_head_stays_too(smoke, tmp_path):
    """ALLaM-7B's head is a matrix of its own: it keeps own precision, as the arithmetic of sizes says."""
    own = LlamaForCausalLM(LlamaConfig(vocab_size=96, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2,
                                       tie_word_embeddings=False))
    own.save_pretrained(tmp_path)
    for bits in (8, 4):
        model = load_model(smoke[0], str(tmp_path), bits)
        assert torch.equal(model.lm_head.weight, own.lm_head.weight) and len(layers_of(model)) == 7
        assert 0 <= sum(memory_of(model).values()) - size_by_hand(own, 4)[bits] < 2_000 * 7


def test_rounding_is_what_its_name_says(models):
    """8 bits: each row in whole steps of its largest weight over 127. NF4: at most 16 values a block of 64, its largest one kept."""
    for name, layer in layers_of(models[0]).items():
        weight = layer.weight.detach()
        step = weight.abs().amax(1, keepdim=True) / 127
        eight = dequantised(layers_of(models[8])[name])
        assert torch.allclose(eight, (weight / step).round() * step, atol=1.01 * float(step.max()))  # ties may fall either way
        assert float(((eight - weight).abs() / step).max()) < 0.57  # half a step, and the cast to float16 before it: 127 / 2^11
        four, blocks = dequantised(layers_of(models[4])[name]).reshape(-1, 64), weight.reshape(-1, 64)
        assert max(len(block.unique()) for block in four) <= 16
        largest = blocks.abs().amax(1)
        assert torch.allclose(four.abs().amax(1), largest, rtol=0.05)
        assert float(((four - blocks).abs() / largest[:, None]).max()) < 0.2  # half of NF4's widest gap, 0.30, and the scale's own error


def test_variants_answer_almost_as_the_model(models):
    """A wrong layout of packed weights gives other answers without an error; the logits must stay near, 8 bits nearer than 4."""
    own = logits(models[0])
    error = {bits: float((logits(models[bits]) - own).norm() / own.norm()) for bits in (8, 4)}
    assert 0 < error[8] < 0.05 and error[8] < error[4] < 0.5
    used = next(iter(layers_of(models[8]).values()))  # the library moves the scales of a layer when it is used
    assert torch.allclose(dequantised(used), next(iter(layers_of(models[0]).values())).weight, atol=0.01)


def test_sizes_add_up(models):
    """By hand, in memory and on disk the same to within the tables and names that a file holds."""
    for bits, model in models.items():
        hand, memory = size_by_hand(models[0], 4)[bits], sum(memory_of(model).values())
        layers = len(layers_of(model))
        assert 0 <= memory - hand < 2_000 * layers, (bits, memory, hand)
        assert 0 <= disk_of(model) - memory < 2_000 * layers + 4_000
    assert bits_per_weight(8, 256) == 8.125 and 4.12 < bits_per_weight(4, 256) < 4.13
    rows = size_rows(models)
    assert [row["variant"] for row in rows] == list(VARIANTS.values()) and rows[0]["file %"] == 100 > rows[1]["file %"] > rows[2]["file %"]
    allam = by_hand_rows(models)[0]
    assert allam["weights"] == 7_000_559_616 and 50 < allam["8-bit (LLM.int8) %"] < 55 and 25 < allam["4-bit (NF4) %"] < 32


def test_a_saved_variant_is_the_same_model(smoke, models, tmp_path):
    """The file that is weighed must hold the whole variant."""
    for bits in (8, 4):
        before = logits(models[bits])
        models[bits].save_pretrained(tmp_path / str(bits))
        again = load_model(smoke[0], str(tmp_path / str(bits)), bits)
        assert torch.equal(before, logits(again)), bits


def test_speeds_are_ratios_of_one_repeat(smoke, models):
    knobs, run = smoke
    measured = speeds(models, load_tokenizer(knobs, run), prompts_of_test(knobs, run), 2)
    assert len(measured) == 3 * 2 * 3 and all(row["tokens per second"] > 0 for row in measured)
    for row in measured:
        own = next(r for r in measured if (r["work"], r["repeat"], r["bits"]) == (row["work"], row["repeat"], 0))
        assert row["ratio"] == row["tokens per second"] / own["tokens per second"]
    assert all(row["lowest"] <= row["ratio to own precision"] <= row["highest"] and row["repeats"] == 2 for row in speed_rows(measured))


def test_variants_are_asked_alike_and_answers_are_kept(smoke, results, monkeypatch):
    knobs, run = smoke
    assert list(results) == [0, 8, 4]
    for some in results.values():
        assert [one["seed"] for one in some] == knobs.seeds
        assert some[0]["scenario"] == results[0][0]["scenario"] and len(set(some[0]["scenario"])) == knobs.quantise_test_scenarios
        rows = {dialect: [s for s, d in zip(some[0]["scenario"], some[0]["dialect"]) if d == dialect] for dialect in DIALECTS}
        assert rows["HIJAZI"] == rows["NAJDI"], "the comparison of the dialects is paired"
    monkeypatch.setattr(sample, "generate_to_end", lambda *_: pytest.fail("sampled again"))
    assert all(again[0]["texts"] == one[0]["texts"] for again, one in zip(quality(knobs, run).values(), results.values()))
    assert not list(run.root.glob("merged-*")), "the merged model is not left behind"


def test_findings_have_the_ledgers_ids_and_signs(results):
    """Against itself a model loses nothing; a variant with more bits per character loses, in the dialect that has them."""
    worse = [{**one, "bits": one["bits"] + one["characters"] * 0.1 * (one["dialect"] == "NAJDI")} for one in results[0]]
    tests = {test["id"]: test for test in with_holm(findings({0: results[0], 8: results[0], 4: worse}, 200))}
    assert all(test["difference"] == 0 for name, test in tests.items() if name.startswith("int8"))
    assert tests["int4_najdi_bits"]["difference"] == pytest.approx(0.1) and tests["int4_hijazi_bits"]["difference"] == 0
    assert tests["int4_hijazi_against_najdi_bits"]["difference"] == pytest.approx(0.1)
    assert tests["int4_najdi_requested_dialect_accuracy"]["better"] == "higher" and tests["int4_both_msa_share"]["better"] == "lower"
    assert tests["int8_both_bits"]["n"] == 2 * tests["int8_hijazi_bits"]["n"] and id_of(4, "HIJAZI", "chrF++") == "int4_hijazi_chrf"
    assert kept({0: results[0], 8: results[0]}, 8, "NAJDI", 200)["value"] == pytest.approx(100)
    gain = sum((one["base bits"] - one["bits"])[one["dialect"] == "NAJDI"].sum() for one in results[0])
    characters = sum(one["characters"][one["dialect"] == "NAJDI"].sum() for one in results[0])
    assert kept({0: results[0], 4: worse}, 4, "NAJDI", 200)["value"] == pytest.approx(100 * (1 - 0.1 * characters / gain))
    claims = [claim for claim in load_claims() if claim["chapter"] == "16_quantisation"]
    assert len(claims) == 4 and all(claim["test"]["at"][1]["id"] in tests for claim in claims)
    verdicts = {row["claim"]: row["verdict"] for row in claim_rows(list(tests.values()), True)}
    assert verdicts[claims[0]["claim"]] == "twin supports" and verdicts[claims[2]["claim"]] == "twin contradicts"


def test_a_base_in_4_bits_has_nothing_to_compare(smoke, tmp_path):
    """Profile t4 loads its base in 4 bits: the chapter must pass with empty tables, and a contradiction is one sentence."""
    t4, _ = load_knobs("t4", "token")
    run = Run(str(tmp_path / "t4"))
    assert t4.quantization == "nf4" and load_variants(t4, run, 42) == {} == quality(t4, run)
    tests = with_holm(findings({}, 200))
    assert tests == size_rows({}) == speed_rows(speeds({}, None, [], 2)) == quality_rows({}, 200) == claim_rows([], False) == answer_rows({}, [])
    assert draw_size(run, [], tests, []) is draw_losses(run, tests) is None and len(by_hand_rows({})) == 1
    with pytest.raises(UserError, match=r"there is no own precision.*set quantise_bits = \[\]") as error:
        load_variants(t4.model_copy(update={"quantise_bits": [4]}), run, 42)
    assert "\n" not in str(error.value)


def test_what_is_missing_is_named(smoke, monkeypatch):
    """The adapter by its chapter, the library by its package."""
    with pytest.raises(UserError, match="06_lora_sft"):
        load_variants(*smoke, 7)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match="pip install bitsandbytes") as error:
        load_variants(*smoke, 1)
    assert "\n" not in str(error.value)
