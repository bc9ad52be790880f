"""Metrics: each faithful value against a slow, literal formulation; intervals and tests against known answers."""

import math
import re
from collections import Counter

import numpy as np
import pytest
import sacrebleu

from dialectbook import metrics, stats
from dialectbook.data import REGIONS, load_pool

POOL = load_pool()
REFERENCES = [s["hijazi"]["response"] for s in POOL[:60]]
PREDICTIONS = [s["najdi"]["response"] for s in POOL[:50]] + ["", "كلمة", "كيـف حَالك اليوم؟", "كيف حالك اليوم", *REFERENCES[54:58], "<DIALECT=NAJDI> هلا والله", "< dialect = x > هلا"]
PROBABILITIES = np.random.default_rng(0).dirichlet(np.full(5, 0.4), len(PREDICTIONS))


def literal_faithful(predictions, references, probabilities):
    """The released evaluation, formulated independently with plain loops over all pairs."""
    n = len(predictions)
    labels = [max(range(5), key=lambda column: row[column]) for row in probabilities]
    distinct = {}
    for order in (2, 3):
        grams = [[tuple(words[i:i + order]) for i in range(len(words) - order + 1)] for words in map(str.split, predictions)]
        distinct[order] = len({g for some in grams for g in some}) / sum(max(1, len(some)) for some in grams)
    bleu = [sacrebleu.corpus_bleu([predictions[i]], [[predictions[j] for j in range(n) if j != i]]).score for i in range(n)]

    def vector(text):
        text = re.sub("[\u0610-\u061a\u064b-\u065f\u06d6-\u06ed]", "", text.replace("\u0640", ""))
        text = re.sub(r"[^\w\s\u0600-\u06FF]", " ", re.sub(r"\s+", " ", text)).strip().lower()
        words = re.findall(r"(?u)\b\w\w+\b", text)
        return Counter(" ".join(words[i:i + k]) for k in (1, 2, 3) for i in range(len(words) - k + 1))

    vectors = [vector(text) for text in predictions]
    documents = Counter(gram for v in vectors for gram in v)
    weighted = [{g: c * (math.log((1 + n) / (1 + documents[g])) + 1) for g, c in v.items()} for v in vectors]
    close = 0
    for i in range(n):
        for j in range(i + 1, n):
            a, b = weighted[i], weighted[j]
            size = math.sqrt(sum(x * x for x in a.values()) * sum(x * x for x in b.values()))
            close += size > 0 and sum(a[g] * b.get(g, 0) for g in a) / size >= 0.90
    return {
        "saudi_label_percent": 100 * sum(label == 0 for label in labels) / n, "msa_mean_probability_percent": 100 * sum(row[1] for row in probabilities) / n,
        "low_confidence_percent": 100 * sum(max(row) < 0.55 for row in probabilities) / n, "tag_echo_percent": 100 * sum(bool(re.search(r"(?i)<\s*dialect\s*=\s*[^>]+>", text)) for text in predictions) / n,
        "chrf2": sacrebleu.corpus_chrf(predictions, [references]).score, "distinct_2": distinct[2], "distinct_3": distinct[3],
        "self_bleu_first_other_percent": sum(bleu) / n, "near_duplicate_pairs_percent": 100 * close / (n * (n - 1) / 2)}


def test_faithful_equals_the_literal_formulation():
    """The fast path must be the released computation, to nine digits, on Arabic with empty, short, tagged and equal texts."""
    ours = metrics.faithful_metrics(PREDICTIONS, REFERENCES, PROBABILITIES, REGIONS)
    literal = literal_faithful(PREDICTIONS, REFERENCES, PROBABILITIES)
    assert ours.keys() == literal.keys() and literal["near_duplicate_pairs_percent"] > 0
    for name, value in literal.items():
        assert ours[name] == pytest.approx(value, abs=1e-9), name


def test_released_self_bleu_uses_one_reference():
    """Audit item 2: handing n-1 references as one stream makes sacrebleu use the first only."""
    released = sacrebleu.corpus_bleu([PREDICTIONS[3]], [[p for i, p in enumerate(PREDICTIONS) if i != 3]]).score
    one = sacrebleu.corpus_bleu([PREDICTIONS[3]], [[PREDICTIONS[0]]]).score
    every = sacrebleu.corpus_bleu([PREDICTIONS[3]], [[p] for i, p in enumerate(PREDICTIONS) if i != 3]).score
    assert released == one != every


def test_sampled_self_bleu_equals_sacrebleu_per_text():
    """The shared reference cache must not change the score of any text."""
    import random

    texts = [p for p in PREDICTIONS if p][:20]
    scores = metrics.self_bleu_sampled(texts, 5, seed=3)
    drawn = np.random.default_rng(3).choice(len(texts), 6, replace=False)
    outside = random.Random(0).choice([i for i in range(len(texts)) if i not in drawn])
    expected = sacrebleu.sentence_bleu(texts[outside], [texts[j] for j in drawn[:5]]).score
    assert scores[outside] == pytest.approx(expected, abs=1e-9)
    inside = int(drawn[0])
    assert scores[inside] == pytest.approx(sacrebleu.sentence_bleu(texts[inside], [texts[j] for j in drawn[1:]]).score, abs=1e-9)


def test_corrected_metrics_have_intervals_that_hold_the_value():
    """Every corrected value comes with n and an interval around it; chrF++ is sacrebleu's with word order 2."""
    produced = np.where(PROBABILITIES.argmax(1) == 0, "HIJAZI", "MSA")
    values = metrics.corrected_metrics(PREDICTIONS, REFERENCES, PROBABILITIES, REGIONS, scenarios=np.arange(60) // 2, requested=["HIJAZI"] * 60,
                                       produced=produced, prompts=["<DIALECT=HIJAZI>"] * 60, self_bleu_references=10, resamples=500)
    for name, entry in values.items():
        assert entry["low"] - 1e-9 <= entry["value"] <= entry["high"] + 1e-9, name
        assert entry["n"] == 60
    expected = sacrebleu.corpus_chrf(PREDICTIONS, [REFERENCES], word_order=2)
    assert values["chrf_plus_plus"]["value"] == pytest.approx(expected.score, abs=1e-9) and "nw:2" in values["chrf_plus_plus"]["signature"]
    assert values["tag_echo_share"]["count"] == 2 and values["tag_echo_with_prompt_share"]["count"] == 60
    assert values["requested_dialect_accuracy"]["count"] == int((PROBABILITIES.argmax(1) == 0).sum()) == values["dialect_share"]["count"]


def test_an_answer_in_english_is_in_no_dialect():
    """The judge must choose a label: the twin's English answers to a Latin tag were counted as Gulf Arabic."""
    from dialectbook.judge import judged_dialect

    texts = ["Say of the bench in the per.", "هلا والله ok", "12 !", ""]
    gulf, najdi = np.tile([1.0, 0, 0, 0, 0], (4, 1)), np.tile([0.0, 1.0], (4, 1))
    assert judged_dialect(texts, gulf, najdi).tolist() == ["OTHER", "NAJDI", "OTHER", "OTHER"]


def test_chrf_from_counts_equals_sacrebleu():
    """The vectorised bootstrap formula must give sacrebleu's own score on the whole corpus."""
    metric = sacrebleu.metrics.CHRF(word_order=2)
    counts = np.array(metric._extract_corpus_statistics(PREDICTIONS, [REFERENCES]), dtype=float)
    assert metrics._chrf_scores(counts.sum(0, keepdims=True), metric.beta)[0] == pytest.approx(metric.corpus_score(PREDICTIONS, [REFERENCES]).score, abs=1e-9)


def test_distinct_at_budget_does_not_grow_with_length():
    """Audit item 20: distinct-n falls with corpus size; at one budget a doubled corpus of fresh text stays where it was."""
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(400)]
    texts = [" ".join(rng.choice(words, 20)) for _ in range(400)]
    small, large = texts[:100], texts
    assert metrics.distinct_n(large, 2) < metrics.distinct_n(small, 2) - 0.003
    same = metrics.distinct_at_budget(large, 2, 1000)["value"] - metrics.distinct_at_budget(small, 2, 1000)["value"]
    assert abs(same) < 0.003


def test_published_shares_have_the_counts_and_intervals():
    """401, 673 and 704 of 836, with the Wilson intervals of the audit."""
    for count, percent, low, high in ((401, 47.97, 44.60, 51.35), (673, 80.50, 77.68, 83.05), (704, 84.21, 81.58, 86.53)):
        assert [round(100 * x, 2) for x in stats.wilson(count, 836)] == [percent, low, high]


def test_paired_difference_knows_clusters():
    """Ten copies of each row must not make a difference more certain: scenarios are the unit, not answers."""
    rng = np.random.default_rng(1)
    first, second = rng.random(40) < 0.5, rng.random(40) < 0.6
    one = stats.paired_difference(first, second, np.arange(40), 2000)
    ten = stats.paired_difference(np.repeat(first, 10), np.repeat(second, 10), np.repeat(np.arange(40), 10), 2000)
    assert one["difference"] == pytest.approx(ten["difference"]) and one["p"] == pytest.approx(ten["p"]) and ten["groups"] == 40
    assert one["low"] == pytest.approx(ten["low"]) and one["high"] == pytest.approx(ten["high"])


def test_paired_difference_finds_and_does_not_find():
    same = stats.paired_difference([0, 1] * 30, [0, 1] * 30, np.arange(60), 500)
    assert same["difference"] == 0 and same["p"] == 1
    assert stats.paired_difference(np.zeros(60), np.ones(60), np.arange(60), 500)["p"] < 0.001


def test_mcnemar_is_the_exact_binomial():
    from scipy.stats import binomtest

    first, second = [1] * 8 + [0] * 22, [0] * 6 + [1] * 2 + [1] * 15 + [0] * 7
    only_first, only_second, p = stats.mcnemar_exact(first, second)
    assert (only_first, only_second) == (6, 15) and p == pytest.approx(binomtest(6, 21).pvalue)


def test_experiments_on_other_prompts_cannot_be_compared():
    """Pairing two runs row by row is only right when they answered the same prompts."""
    from dialectbook.results import compare, outcomes

    run = {"seed": 1, "outcomes": {"scenario_id": ["a", "b"], "dialect": ["HIJAZI", "NAJDI"], "instruction_kind": ["neutral"] * 2, "produced": ["MSA", "NAJDI"]}}
    other = {**run, "outcomes": {**run["outcomes"], "scenario_id": ["a", "c"]}}
    with pytest.raises(ValueError, match="differ in scenario"):
        compare(outcomes([run]), outcomes([other]), "MSA share", 100)
    assert compare(outcomes([run]), outcomes([run]), "MSA share", 100)["difference"] == 0


def test_bertscore_of_an_empty_answer_is_zero(tmp_path):
    """bert-score encodes an empty text by a method that a Llama tokenizer has not: one empty answer stopped chapter 08."""
    from dialectbook.knobs import load_knobs
    from dialectbook.model import build_twin, train_tokenizer

    tokenizer = train_tokenizer(REFERENCES, 400)
    build_twin(load_knobs("smoke")[0], tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    scores = metrics.BertScorer(str(tmp_path), 2, "twin")([REFERENCES[0], "", " ", PREDICTIONS[1]], REFERENCES[:4])
    assert scores[0] == pytest.approx(1, abs=1e-4) and list(scores[1:3]) == [0, 0] and 0 < scores[3] < 1
