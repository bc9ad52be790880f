"""Metrics: each faithful value against a slow, literal formulation; intervals and tests against known answers."""

import math
import re
from collections import Counter

import numpy as np
import pytest
import sacrebleu

from dialectbook import metrics, stats
from dialectbook.bertscore import BertScorer
from dialectbook.data import REGIONS, load_pool
from dialectbook.show import percent

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
        assert [round(100 * stats.wilson(count, 836)[key], 2) for key in ("value", "low", "high")] == [percent, low, high]


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

    run = {"seed": 1, "outcomes": {"scenario_id": ["a", "b"], "dialect": ["HIJAZI", "NAJDI"], "instruction_kind": ["neutral"] * 2, "produced": ["MSA", "NAJDI"],
                                   "failures": {}, **dict.fromkeys(("topic", "task", "length", "names_dialect", "produced_independent", "probability", "words",
                                                                    "bertscore", "tag_echo"), [0, 0])}}
    other = {**run, "outcomes": {**run["outcomes"], "scenario_id": ["a", "c"]}}
    with pytest.raises(ValueError, match="differ in scenario"):
        compare(outcomes([run]), outcomes([other]), "MSA share", 100)
    assert compare(outcomes([run]), outcomes([run]), "MSA share", 100)["difference"] == 0


# ---- BERTScore -----------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """The folder of a small random Llama: an encoder in the hub's format, as the twin is."""
    from dialectbook.knobs import load_knobs
    from dialectbook.model import build_twin, train_tokenizer

    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = train_tokenizer(REFERENCES, 400)
    build_twin(load_knobs("smoke")[0], tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_bertscore_equals_the_literal_formulation(encoder):
    """Greedy matching of token states by cosine, one pair at a time in double precision, to nine digits.

    The marks at both ends can be matched but do not count, as with BERT: the first once counted as a word found in every text.
    """
    import torch

    scorer = BertScorer(str(encoder), 2, "twin")
    scorer.scorer._model.double()
    model, tokenizer = scorer.scorer._model, scorer.scorer._tokenizer

    def states(text):
        with torch.no_grad():
            hidden = model(torch.tensor([tokenizer(text.strip())["input_ids"]]))[0][0]
        return hidden / hidden.norm(dim=-1, keepdim=True)

    def mean(values):
        values = values[1:-1]
        return float((values * (torch.ones(len(values)) / len(values))).sum())  # bert-score keeps the weights 1/n in single precision

    expected = []
    for prediction, reference in zip(PREDICTIONS[:6], REFERENCES[:6]):
        cosine = states(prediction) @ states(reference).T
        precision, recall = mean(cosine.max(1).values), mean(cosine.max(0).values)
        expected.append(2 * precision * recall / (precision + recall))
    assert scorer(PREDICTIONS[:6], REFERENCES[:6]) == pytest.approx(expected, abs=1e-9)
    assert metrics.faithful_metrics(PREDICTIONS[:6], REFERENCES[:6], PROBABILITIES[:6], REGIONS, bertscore=scorer)["bertscore_raw_f1"] == pytest.approx(np.mean(expected), abs=1e-9)
    assert scorer.signature.startswith("twin_L2_no-idf_version=") and str(encoder) not in scorer.signature


def test_bertscore_of_an_empty_answer_is_zero(encoder):
    """bert-score encodes an empty text by a method that a Llama tokenizer has not: one empty answer stopped chapter 08."""
    scores = BertScorer(str(encoder), 2, "twin")([REFERENCES[0], "", " ", PREDICTIONS[1]], REFERENCES[:4])
    assert scores[0] == pytest.approx(1, abs=1e-4) and list(scores[1:3]) == [0, 0] and 0 < scores[3] < 1


def test_bertscore_of_one_token(encoder):
    """bert-score takes two tokens for nothing, [CLS] and [SEP]: a class of one token after a decoder's <s> scored 0 against itself."""
    scorer = BertScorer(str(encoder), 2, "twin")
    assert len(scorer.scorer._tokenizer("a", add_special_tokens=False)["input_ids"]) == 1
    scores = scorer(["a", REFERENCES[0]], ["a", "a"])
    assert scores[0] == pytest.approx(1, abs=1e-4) and scores[1] < 0.99


def test_rescaled_bertscore_has_its_own_baseline(encoder):
    """Unrelated texts have 0, equal ones 1; the value says whose baseline it is, and length is taken out beside it."""
    scorer = BertScorer(str(encoder), 2, "twin")
    texts = [s["hijazi"]["response"] for s in POOL[:40]]
    base = scorer.set_baseline(texts, pairs=60)
    assert 0 < base < 1 and scorer.rescale(base) == 0 and scorer.rescale(1.0) == 1
    values = metrics.corrected_metrics(PREDICTIONS[:20], REFERENCES[:20], PROBABILITIES[:20], REGIONS, self_bleu_references=5, resamples=200, bertscore=scorer)
    raw, rescaled = values["bertscore_raw_f1"], values["bertscore_rescaled_f1"]
    assert all(rescaled[key] == pytest.approx((raw[key] - base) / (1 - base)) for key in ("value", "low", "high"))
    assert "own-baseline-of-60-pairs" in rescaled["signature"] and "rescaled" not in raw["signature"]
    cut = metrics.cut_to_reference(PREDICTIONS[:20], REFERENCES[:20])
    assert values["bertscore_raw_f1_length_matched"]["value"] == pytest.approx(float(np.mean(scorer(cut, REFERENCES[:20]))))


# ---- objects of evaluate -------------------------------------------------------------------------------------------

def test_metrics_are_objects_of_evaluate(encoder, tmp_path, monkeypatch):
    """compute with keywords, combine, no network and no files; the values are those of the functions, to nine digits."""
    import evaluate

    from dialectbook.metric_objects import load_metrics

    class Judge:
        labels = REGIONS

        def probabilities(self, texts):
            return PROBABILITIES[:len(texts)]

    monkeypatch.chdir(tmp_path)
    scorer = BertScorer(str(encoder), 2, "twin")
    objects = load_metrics(Judge(), scorer)
    assert all(isinstance(one, evaluate.Metric) for one in objects.values())
    together = evaluate.combine(list(objects.values())).compute(predictions=PREDICTIONS, references=REFERENCES)
    assert list(together) == list(objects) and not list(tmp_path.iterdir())
    faithful = metrics.faithful_metrics(PREDICTIONS, REFERENCES, PROBABILITIES, REGIONS, bertscore=scorer)
    corrected = metrics.corrected_metrics(PREDICTIONS, REFERENCES, PROBABILITIES, REGIONS, resamples=100, bertscore=scorer)
    for name, value in faithful.items():
        assert together[name] == pytest.approx(value, abs=1e-9), name
    for name in set(together) - set(faithful):
        assert together[name] == pytest.approx(corrected[name]["value"], abs=1e-9), name
    alone = objects["chrf2"].compute(predictions=PREDICTIONS, references=REFERENCES)
    assert alone == {"chrf2": together["chrf2"]} == objects["chrf2"].compute(predictions=PREDICTIONS, references=REFERENCES)


# ---- length, near-duplicates of training text ------------------------------------------------------------------------

def test_length_matched_metrics_see_cut_answers():
    """The paper's base writes three times as many words: its metrics are compared on answers cut to the reference's length."""
    cut = metrics.cut_to_reference(["a b c d", "a", ""], ["x y", "x y", "x"])
    assert cut == ["a b", "a", ""]
    values = metrics.corrected_metrics(PREDICTIONS, REFERENCES, PROBABILITIES, REGIONS, produced_of_cut=["MSA"] * 15 + ["NAJDI"] * 45, self_bleu_references=5, resamples=200)
    assert values["msa_label_share_length_matched"]["count"] == 15 and values["dialect_share_length_matched"]["count"] == 45
    matched = sacrebleu.corpus_chrf(metrics.cut_to_reference(PREDICTIONS, REFERENCES), [REFERENCES], word_order=2).score
    assert values["chrf_plus_plus_length_matched"]["value"] == pytest.approx(matched, abs=1e-9)


def test_near_duplicates_of_training_text():
    """An answer that copies a training response must be counted, one that only shares words must not."""
    training = [s["hijazi"]["response"] for s in POOL[100:140]]
    answers = [training[3], training[5] + " ؟", POOL[200]["najdi"]["response"], ""]
    assert metrics.near_duplicates_of(answers, training) == [True, True, False, False]
    assert metrics.near_duplicates_of(["", "12"], ["..."]) == [False, False]
    values = metrics.corrected_metrics(answers, training[:4], PROBABILITIES[:4], REGIONS, training=training, resamples=200)
    assert values["near_duplicate_of_training_share"]["count"] == 2


# ---- uncertainty -----------------------------------------------------------------------------------------------------

def test_chrf_difference_is_paired():
    """On the same resamples equal answers differ by nothing; better ones are found, with sacrebleu's own difference."""
    same = metrics.chrf_difference(PREDICTIONS, PREDICTIONS, REFERENCES, np.arange(60), 400)
    assert same["difference"] == same["low"] == same["high"] == 0 and same["p"] == 1
    better = metrics.chrf_difference(PREDICTIONS, REFERENCES, REFERENCES, np.arange(60) // 2, 400)
    expected = 100 - sacrebleu.corpus_chrf(PREDICTIONS, [REFERENCES], word_order=2).score
    assert better["difference"] == pytest.approx(expected) and better["low"] > 0 and better["p"] == 2 / 400 and better["groups"] == 30


def test_crossed_bootstrap_knows_seeds():
    """Seeds that disagree widen the interval; seeds that agree leave it as it was."""
    rng = np.random.default_rng(0)
    scenario, seed = np.tile(np.arange(60), 3), np.repeat([1, 2, 3], 60)
    alike = rng.random(180) < 0.5
    apart = np.concatenate([rng.random(60) < share for share in (0.1, 0.5, 0.9)])
    crossed = {name: stats.crossed_bootstrap(values, scenario, seed, 2000) for name, values in (("alike", alike), ("apart", apart))}
    crossed["plain"] = stats.bootstrap_mean(apart, scenario, 2000)
    width = {name: found["high"] - found["low"] for name, found in crossed.items()}
    assert width["apart"] > 2 * width["plain"] and width["apart"] > 2 * width["alike"]
    assert crossed["apart"]["value"] == pytest.approx(apart.mean()) and crossed["apart"]["n"] == 180
    one = stats.crossed_bootstrap(alike[:60], scenario[:60], seed[:60], 2000)
    assert one["low"] == pytest.approx(stats.bootstrap_mean(alike[:60], scenario[:60], 2000)["low"], abs=0.03)


def test_an_estimate_of_nothing_is_no_number():
    """A share of no rows is neither 0 nor NaN."""
    nothing = stats.wilson(0, 0)
    assert nothing == {"value": None, "low": None, "high": None, "n": 0}
    assert percent(nothing) is None and percent(stats.wilson(0, 10)).startswith("0.0 [0.0, ")


def test_seed_deviations_tell_training_from_sampling():
    """Known deviations, 2 for training and 1 for sampling, come back; what sampling explains is not called training."""
    rng = np.random.default_rng(0)
    runs = rng.normal(0, 2, (4000, 1)) + rng.normal(0, 1, (4000, 2))
    found = stats.seed_deviations(runs)
    assert found["training"] == pytest.approx(2, abs=0.1) and found["sampling"] == pytest.approx(1, abs=0.05)
    assert stats.seed_deviations([[1.0, 3.0], [3.0, 1.0]])["training"] == 0
    assert stats.seed_deviations([[1.0, 3.0]])["training"] is None, "one training seed tells nothing about training"


def test_judge_errors_are_taken_out():
    """Shares mixed by a known confusion come back, and the interval of a judge measured on few texts is wider."""
    confusion = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.0, 0.05, 0.95]])
    truth = np.array([0.5, 0.2, 0.3])
    assert stats.unmix(truth @ confusion, confusion) == pytest.approx(truth)
    assert stats.unmix(np.array([0.0, 0.0, 1.0]), confusion).min() == 0
    rng = np.random.default_rng(0)
    true = rng.choice(3, 6000, p=truth)
    judged = np.array(["HIJAZI", "NAJDI", "MSA"])[[rng.choice(3, p=confusion[t]) for t in true]]
    widths = []
    for texts in (100_000, 60):
        found = stats.adjusted_accuracy(judged, np.full(6000, "HIJAZI"), np.arange(6000), ["HIJAZI", "NAJDI", "MSA"], confusion * texts, 500)
        assert found["low"] < found["value"] < found["high"]
        widths.append(found["high"] - found["low"])
        if texts > 1000:
            assert found["value"] == pytest.approx((true == 0).mean(), abs=0.02) and abs((judged == "HIJAZI").mean() - 0.5) > 0.02
    assert widths[1] > 2 * widths[0]
    other = stats.adjusted_accuracy(["OTHER"] * 10, ["HIJAZI"] * 10, np.arange(10), ["HIJAZI", "NAJDI", "MSA"], confusion * 100, 100)
    assert other["value"] == 0, "an answer in another script is wrong whatever the judge's errors"


def test_holm_and_seed_means():
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    two = stats.mean_difference_of_seeds([1.0, 2.0, 3.0], [1.5, 2.4, 3.6])
    assert two["difference"] == pytest.approx(0.5) and two["low"] < 0.5 < two["high"] and two["p"] < 0.05 and two["n"] == 3
    assert stats.mean_difference_of_seeds([1.0], [2.0])["p"] is None
    assert stats.mean_of_seeds([1.0]) == {"value": 1.0, "low": None, "high": None, "n": 1}
    assert stats.mean_of_seeds([1.0, 2.0, 3.0])["low"] == pytest.approx(2 - 4.302653 / 3**0.5, abs=1e-5)


def test_scenarios_of_two_groups_are_compared_as_scenarios():
    rng = np.random.default_rng(0)
    a, b = (rng.random(300) < 0.2).astype(float), (rng.random(300) < 0.5).astype(float)
    found = stats.independent_difference(a, b, np.arange(300) // 3, np.arange(300) // 3, 500)
    assert found["groups"] == 200 and found["low"] > 0 and found["p"] < 0.01
    assert stats.independent_difference(a, a, np.arange(300), np.arange(300), 500)["p"] > 0.5


# ---- what goes wrong -------------------------------------------------------------------------------------------------

def test_failures_by_rule():
    """Each rule finds its own fault and leaves a good answer alone."""
    from dialectbook.failures import RULES, failures

    prompt = "### Instruction:\n<DIALECT=NAJDI>وش رايك في القهوة السعودية مع التمر؟\n\n### Response:\n"
    cases = {
        "": ("زينة والله، خصوصا مع السكري.", "NAJDI", False), "MSA leak": ("إنها لذيذة حقا.", "MSA", False), "wrong dialect": ("حلوة مرة دحين.", "HIJAZI", False),
        "other region": ("كويسة قوي.", "EGY", False), "other script": ("very good", "OTHER", False), "repetition loop": ("مع التمر زين مع التمر زين مع التمر زين", "NAJDI", False),
        "echo": ("وش رايك في القهوة السعودية مع التمر؟", "NAJDI", False), "over-long": ("زينة", "NAJDI", True), "empty": (" ؟ ", "NAJDI", False)}
    rows = [{"prediction": text, "prompt": prompt, "reference": "والله زينة مع التمر السكري", "dialect": "NAJDI", "cut": cut} for text, _, cut in cases.values()]
    found = failures(rows, [label for _, label, _ in cases.values()])
    assert list(found) == list(RULES)
    for number, expected in enumerate(cases):
        assert [rule for rule in RULES if found[rule][number]] == ([expected] if expected else [])
    tagged = {**rows[0], "prediction": "<DIALECT=NAJDI> زينة"}
    assert failures([tagged, {**rows[0], "prediction": "كلمة " * 30}], ["NAJDI"] * 2) == {**dict.fromkeys(RULES, [False, False]), "echo": [True, False], "repetition loop": [False, True], "over-long": [False, True]}


def test_kept_baseline_is_read_until_its_texts_change(encoder, tmp_path, monkeypatch):
    """Thirty-six experiments computed the same baseline; one that is kept must still follow its texts."""
    texts, keep = [f"كلمة {i} في {i % 7}" for i in range(30)], tmp_path / "baseline.json"
    first = BertScorer(str(encoder), 2)
    value = first.set_baseline(texts, pairs=20, keep=keep)
    again = BertScorer(str(encoder), 2)
    monkeypatch.setattr(BertScorer, "__call__", lambda *_: pytest.fail("computed again"))
    assert again.set_baseline(texts, pairs=20, keep=keep) == again.baseline == value and again.signature_rescaled == first.signature_rescaled
    monkeypatch.undo()
    assert again.set_baseline(texts[:20], pairs=20, keep=keep) != value
