"""An English model learns Arabic: what it reads, in which shares, and that finished runs are not repeated."""

import re

import numpy as np
import pytest

from dialectbook import english
from dialectbook.data import curate, load_pool, split_scenarios, to_pairs
from dialectbook.english import continued, documents, english_tokenizer, held_out_texts, load_english, mixture, text_bits, untie
from dialectbook.files import UserError, write_jsonl
from dialectbook.findings import finding, reading, tokens_to_reach, with_holm
from dialectbook.knobs import load_knobs
from dialectbook.paths import Run
from dialectbook.pretrain import bits_per_character
from dialectbook.vocabulary import expand_tokenizer, learn_additions


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """Knobs, run folder, curated scenarios and splits of profile smoke."""
    knobs, _ = load_knobs("smoke")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIALECTBOOK_RUNS", str(tmp_path_factory.mktemp("runs")))
        run = Run("smoke")
    scenarios, _ = curate(load_pool(), knobs)
    splits = split_scenarios(scenarios, knobs.split_shares, knobs.data_seed)
    for name, some in splits.items():
        write_jsonl(run.split(name), to_pairs(some))
    return knobs, run, scenarios, {name: to_pairs(some) for name, some in splits.items()}


@pytest.fixture(scope="module")
def expanded(smoke):
    knobs, _, scenarios, splits = smoke
    texts = documents(scenarios, splits["train"])
    old = english_tokenizer(knobs, texts)
    additions = learn_additions(old, [text for version in ("msa", "hijazi", "najdi") for _, text in texts[version]], 200)
    return texts, old, additions, expand_tokenizer(old, additions, knobs.added_tokens)


def test_held_out_text_never_enters(smoke, expanded):
    """English twin, its tokenizer, added tokens and mixtures are made of training scenarios only."""
    knobs, _, scenarios, splits = smoke
    texts, _, _, tokenizer = expanded
    train = {pair["scenario_id"] for pair in splits["train"]}
    assert all({i for i, _ in some} <= train for some in texts.values()) and texts["english"]
    held_out, ids = held_out_texts(scenarios, splits["test"], 10, knobs.data_seed)
    assert not train & set(ids) and {"MSA", "English", "Mixed"} == set(held_out) and len(held_out["Mixed"]) == 10
    assert all(re.search("[A-Za-z]", text) and re.search("[\u0621-\u064a]", text) for text in held_out["Mixed"])
    for parallel in (False, True):
        rows, _ = mixture(texts, tokenizer, 0.5, parallel, 20_000, 64, 1)
        read = tokenizer.decode([i for row in rows for i in row])
        for pair in splits["dev"] + splits["test"]:
            assert pair["response"] not in read and pair["response_msa"] not in read
        assert not any(text in read for text in held_out["Mixed"])
        for scenario in scenarios:
            if scenario["id"] not in train and "english" in scenario:
                assert scenario["english"]["response"] not in read


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_mixture_has_its_share(smoke, expanded, share):
    """The same number of tokens in every mixture, and the share that was asked for."""
    texts, old, _, tokenizer = expanded
    rows, characters = mixture(texts, tokenizer, share, False, 8192, 64, 1)
    assert len(rows) == 128 and {len(row) for row in rows} == {64} and characters > 0
    everything, _ = mixture(texts, tokenizer, 1.0, False, 8192, 64, 1)
    added, in_arabic = ((np.array(some) >= len(old)).mean() for some in (rows, everything))
    assert added == pytest.approx(share * in_arabic, abs=0.05)


def test_parallel_changes_the_order_only(smoke, expanded):
    """With and without parallel texts the same sentences are read: only what stands beside what differs."""
    texts, _, _, tokenizer = expanded
    apart, together = (tokenizer.decode([i for row in mixture(texts, tokenizer, 0.5, parallel, 6000, 50, 1)[0] for i in row], skip_special_tokens=False)
                       for parallel in (False, True))
    assert apart != together
    pairs = {s: text for s, text in texts["english"]}
    beside = [sum(f"{text}\n{pairs[i]}" in read for i, text in texts["msa"] if i in pairs) for read in (apart, together)]
    assert beside[0] == 0 and beside[1] > 5


def test_bits_agree(smoke, expanded):
    """The sum over texts is what chapter 04 measures on all of them together."""
    knobs, run, scenarios, splits = smoke
    texts, *_ = expanded
    model, tokenizer = load_english(knobs, run, texts)
    some = [text for _, text in texts["english"][:20]]
    each = text_bits(model, tokenizer, some)
    assert each.shape == (20,) and each.sum() / sum(map(len, some)) == pytest.approx(bits_per_character(model, tokenizer, some), rel=5e-3)
    assert untie(model).lm_head.weight.data_ptr() != model.get_input_embeddings().weight.data_ptr()
    assert text_bits(model, tokenizer, some) == pytest.approx(each)


def test_a_finished_run_is_read(smoke, expanded, monkeypatch):
    """A chapter that runs again, or was killed, trains only what is not finished; another seed or start is another run."""
    knobs, run, scenarios, splits = smoke
    texts, old, additions, _ = expanded
    held_out, _ = held_out_texts(scenarios, splits["test"], 4, knobs.data_seed)
    options = {"start": "pieces", "share": 0.5, "frozen": 0.5}
    record = continued(knobs, run, texts, held_out, additions, 1, **options)
    assert [point["tokens"] for point in record["curve"]] == [0, 256, 512, 1024]
    assert set(record["curve"][0]["bits"]) == {"MSA", "English", "Mixed"}
    monkeypatch.setattr(english, "continue_training", lambda *a, **k: pytest.fail("trained again"))
    assert continued(knobs, run, texts, held_out, additions, 1, **options)["text_bits"] == record["text_bits"]
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        continued(knobs, run, texts, held_out, additions, 2, **options)
    assert not list(run.english.rglob("*.bin"))


def test_findings():
    """Second minus first, over scenarios, with the difference of each seed; Holm never lowers a p-value."""
    groups, seeds = [*"abcdefghij"] * 2, [1] * 10 + [2] * 10
    first = np.arange(20.0)
    tests = with_holm([finding("a", "worse by one", first, first + 1 + 0.1 * (np.arange(20) % 3), groups, seeds, 200, "lower"),
                       finding("b", "the same", first, first, groups, seeds, 200, "lower")])
    assert tests[0]["difference"] == pytest.approx(1.1, abs=0.05) and tests[0]["low"] > 1 and tests[0]["p"] < 0.01
    assert len(tests[0]["seeds"]) == 2 and tests[0]["n"] == 20 and tests[1]["p"] == 1
    assert all(test["p_holm"] >= test["p"] for test in tests)
    curve = [{"tokens": 0, "bits": {"MSA": 5.0}}, {"tokens": 100, "bits": {"MSA": 4.0}}]
    assert tokens_to_reach(curve, "MSA", 4.5) == 50 and tokens_to_reach(curve, "MSA", 6) == 0 and tokens_to_reach(curve, "MSA", 1) is None


def test_reading():
    """A word for a test: nothing is better that one seed contradicts."""
    test = {"p_holm": 0.01, "difference": -1.0, "seeds": [-1.0, -0.5], "better": "lower"}
    assert reading(test) == "better" and reading(test | {"better": "higher"}) == "worse"
    assert reading(test | {"seeds": [-1.0, 0.1]}) == reading(test | {"p_holm": 0.06}) == "not told apart"


@pytest.mark.parametrize("tied", [True, False])
def test_a_hub_model_goes_the_same_way(smoke, tied, tmp_path):
    """On the GPU profiles the English model comes from the hub, with Llama-2's kind of tokenizer and no pad token."""
    import torch
    from test_vocabulary import llama_two
    from transformers import LlamaConfig, LlamaForCausalLM

    _, run, scenarios, splits = smoke
    texts = documents(scenarios, splits["train"])
    tokenizer = llama_two([text for _, text in texts["english"]])
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                                 tie_word_embeddings=tied, bos_token_id=1, eos_token_id=2)).to(torch.bfloat16).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    knobs, _ = load_knobs("smoke", "", {"english_model": str(tmp_path / "model"), "english_sizes": [0], "met_tokens": 0})
    old = english_tokenizer(knobs, texts)
    additions = learn_additions(old, [text for _, text in texts["msa"]], 200)
    held_out, _ = held_out_texts(scenarios, splits["test"], 4, knobs.data_seed)
    record = continued(knobs, run, texts, held_out, additions, 1, share=0.5)
    assert record["tokenizer"] == len(old) + knobs.added_tokens and record["settings"]["met"] == 0
    assert record["curve"][-1]["bits"]["MSA"] < record["curve"][0]["bits"]["MSA"]
    with pytest.raises(UserError, match="english_model"):
        load_english(knobs.model_copy(update={"english_model": str(tmp_path)}), run, texts)
