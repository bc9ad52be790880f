"""The metrics of the paper's Table II, each twice: *faithful* (what the released code computes, audit items 1 to 5, 9, 20 to 22;
evaluation/allam_eval/evaluation.py) and *corrected*. Names say what is computed. As objects of evaluate: `metric_objects`.
"""

import re

import numpy as np

from .stats import bootstrap_mean, ratio_of_sums, resample_weights, sum_by_group, wilson

ECHO = re.compile(r"<\s*DIALECT\s*=\s*[^>]+>", re.IGNORECASE)
NEAR_DUPLICATE = 0.90  # cosine of TF-IDF word 1-3-grams, as released
SAUDI = ("GLF", "HIJAZI", "NAJDI")


# ---- faithful ------------------------------------------------------------------------------------------------------

def faithful_metrics(predictions, references, region_probabilities, labels, low_confidence=0.55, bertscore=None):
    """Return the values that the released code would print for these outputs, under names that say what they are.

    `region_probabilities` has one row per prediction and the columns `labels`. `bertscore` is a BertScorer, or None.
    Percentages are 0 to 100, distinct-n and BERTScore 0 to 1, as in the released reports.
    """
    probabilities = np.asarray(region_probabilities)
    values = {name: compute(probabilities, list(labels), low_confidence) for name, compute in FAITHFUL_OF_JUDGE.items()}
    values |= {name: compute(predictions, references) for name, compute in FAITHFUL_OF_TEXT.items()}
    if bertscore:
        values["bertscore_raw_f1"] = float(np.mean(bertscore(predictions, references)))
    return values


def chrf2(predictions, references):
    """Return chrF2 of the corpus, 0 to 100 (sacrebleu's defaults: characters only, beta 2); the paper prints it as chrF++."""
    from sacrebleu.metrics import CHRF

    return CHRF().corpus_score(predictions, [references]).score


def has_tag(texts):
    """Return per text whether it holds a dialect tag."""
    return [bool(ECHO.search(text)) for text in texts]


def distinct_n(texts, n):
    """Return different n-grams over all n-grams, whitespace words, whole corpus; a text without one counts 1 (as released)."""
    seen, total = set(), 0
    for text in texts:
        grams = _ngrams(text.split(), n)
        total += max(1, len(grams))
        seen.update(grams)
    return len(seen) / total if total else 0.0


def self_bleu_first_other(texts):
    """Return the mean BLEU (0 to 100) of each text against the first other one: what the released Self-BLEU computes.

    The released call hands sacrebleu one stream of n-1 references, of which only the first is used (audit item 2).
    """
    from sacrebleu.metrics import BLEU

    if len(texts) < 2:
        return 0.0
    bleu = BLEU(references=[[texts[0]]])  # the reference is tokenised once, not once per text
    scores = [BLEU().corpus_score([texts[0]], [[texts[1]]]).score]
    return float(np.mean(scores + [bleu.corpus_score([text], None).score for text in texts[1:]]))


def near_duplicate_pairs_percent(texts, threshold=NEAR_DUPLICATE):
    """Return near-duplicate pairs in percent of all pairs (as released: TF-IDF word 1-3-grams, cosine >= 0.90)."""
    pairs = len(texts) * (len(texts) - 1) / 2
    return 100 * len(_close_pairs(texts, threshold)) / max(1, pairs)


FAITHFUL_OF_TEXT = {  # each takes (predictions, references)
    "tag_echo_percent": lambda predictions, _: 100 * float(np.mean(has_tag(predictions))),
    "chrf2": chrf2,
    "distinct_2": lambda predictions, _: distinct_n(predictions, 2),
    "distinct_3": lambda predictions, _: distinct_n(predictions, 3),
    "self_bleu_first_other_percent": lambda predictions, _: self_bleu_first_other(predictions),
    "near_duplicate_pairs_percent": lambda predictions, _: near_duplicate_pairs_percent(predictions),
}
FAITHFUL_OF_JUDGE = {  # each takes (probabilities, labels, low_confidence)
    "saudi_label_percent": lambda p, labels, _: 100 * float(np.mean(p.argmax(axis=1) == labels.index("GLF"))),
    "msa_mean_probability_percent": lambda p, labels, _: 100 * float(p[:, labels.index("MSA")].mean()),
    "low_confidence_percent": lambda p, _, low: 100 * float(np.mean(p.max(axis=1) < low)),
}


# ---- corrected -----------------------------------------------------------------------------------------------------

def corrected_metrics(predictions, references, region_probabilities, labels, scenarios=None, requested=None, produced=None,
                      produced_of_cut=None, prompts=None, training=None, low_confidence=0.55, self_bleu_references=100, bigram_budget=None,
                      bertscore=None, resamples=10_000, seed=0):
    """Return name -> {"value", "low", "high", "n", …}: every value with its 95 % interval.

    Shares are 0 to 1 with their count, the Wilson interval and, as `by_scenario`, the bootstrap interval over scenarios; the
    others have bootstrap intervals over scenarios. `produced` are the judged labels per row (`judge.judged_dialect`); without
    them the judge's regions count as they are. With `requested` dialects they give the requested-dialect accuracy.
    `produced_of_cut` are the labels of the answers cut to the length of their references (`cut_to_reference`), `training` the
    responses trained on. `scenarios` groups rows for the bootstrap (default: each row alone). `bigram_budget` is the number
    of n-grams at which distinct-n is compared.
    """
    n = len(predictions)
    scenarios = np.arange(n) if scenarios is None else np.asarray(scenarios)
    probabilities = np.asarray(region_probabilities)
    produced = np.array(labels)[probabilities.argmax(axis=1)] if produced is None else np.asarray(produced)
    shares = {
        "dialect_share": np.isin(produced, SAUDI),
        "msa_label_share": produced == "MSA",
        "low_confidence_share": probabilities.max(axis=1) < low_confidence,
        "tag_echo_share": has_tag(predictions),
        "near_duplicate_outputs_share": near_duplicates_of(predictions),
        "empty_share": [not text.strip() for text in predictions],
    }
    if training is not None:
        shares["near_duplicate_of_training_share"] = near_duplicates_of(predictions, training)
    if prompts is not None:
        shares["tag_echo_with_prompt_share"] = has_tag([p + t for p, t in zip(prompts, predictions)])
    if requested is not None:
        shares["requested_dialect_accuracy"] = produced == np.asarray(requested)
    if produced_of_cut is not None:
        shares["dialect_share_length_matched"] = np.isin(produced_of_cut, SAUDI)
        shares["msa_label_share_length_matched"] = np.asarray(produced_of_cut) == "MSA"
    values = {}
    for name, hits in shares.items():
        over_scenarios = bootstrap_mean(hits, scenarios, resamples, seed)
        values[name] = {**wilson(int(np.sum(hits)), n), "by_scenario": [over_scenarios["low"], over_scenarios["high"]], "count": int(np.sum(hits))}

    def mean(name, numbers):
        values[name] = bootstrap_mean(numbers, scenarios, resamples, seed)

    mean("msa_mean_probability", probabilities[:, list(labels).index("MSA")])
    mean("output_words", [len(text.split()) for text in predictions])
    values["length_ratio"] = ratio_of_sums([len(text.split()) for text in predictions],
                                           [len(text.split()) for text in references], scenarios, resamples, seed)
    cut = cut_to_reference(predictions, references)
    values["chrf_plus_plus"] = chrf_with_interval(predictions, references, scenarios, resamples, seed)
    values["chrf_plus_plus_length_matched"] = chrf_with_interval(cut, references, scenarios, resamples, seed)
    values["distinct_2_equal_budget"] = distinct_at_budget(predictions, 2, bigram_budget, seed=seed)
    values["distinct_3_equal_budget"] = distinct_at_budget(predictions, 3, bigram_budget, seed=seed)
    mean("self_bleu_sampled", self_bleu_sampled(predictions, self_bleu_references, seed))
    values["self_bleu_sampled"]["references"] = min(self_bleu_references, n - 1)
    if bertscore:
        for name, texts in (("bertscore_raw_f1", predictions), ("bertscore_raw_f1_length_matched", cut)):
            mean(name, bertscore(texts, references))
            values[name]["signature"] = bertscore.signature
        if bertscore.baseline is not None:  # a linear change of scale, so the interval follows
            raw = values["bertscore_raw_f1"]
            values["bertscore_rescaled_f1"] = {**raw, **{key: bertscore.rescale(raw[key]) for key in ("value", "low", "high")},
                                               "signature": bertscore.signature_rescaled}
    return values


def cut_to_reference(predictions, references):
    """Return each prediction cut to as many words as its reference has: what a metric sees when length is taken out."""
    return [" ".join(p.split()[:len(r.split())]) for p, r in zip(predictions, references)]


def chrf_with_interval(predictions, references, scenarios, resamples, seed=0):
    """Return chrF++ (sacrebleu, word order 2, 0 to 100) with a bootstrap interval over scenarios and its signature."""
    metric = chrf_plus_plus()
    value, scores = _chrf_resampled(metric, predictions, references, *resample_weights(scenarios, resamples, seed))
    low, high = np.quantile(scores, [0.025, 0.975])
    return {"value": value, "low": float(low), "high": float(high), "n": len(predictions), "signature": str(metric.get_signature())}


def chrf_difference(first, second, references, scenarios, resamples, seed=0):
    """Return the paired comparison of two sets of answers by chrF++: difference (second minus first), low, high, p, n, groups.

    Both are scored on the same bootstrap resamples of scenarios; p is twice the smaller share of differences on either side of
    0 (at least 2 / resamples).
    """
    metric, drawn = chrf_plus_plus(), resample_weights(scenarios, resamples, seed)
    (before, first_scores), (after, second_scores) = (_chrf_resampled(metric, texts, references, *drawn) for texts in (first, second))
    changes = second_scores - first_scores
    low, high = np.quantile(changes, [0.025, 0.975])
    p = 2 * min(np.mean(changes <= 0), np.mean(changes >= 0))
    return {"difference": after - before, "low": float(low), "high": float(high), "p": float(min(1, max(p, 2 / resamples))), "n": len(first),
            "groups": drawn[0].shape[1]}


def chrf_plus_plus():
    """Return sacrebleu's chrF++: character 6-grams and word bigrams, beta 2."""
    from sacrebleu.metrics import CHRF

    return CHRF(word_order=2)


def chrf_per_answer(predictions, references):
    """Return per text its chrF++, 0 to 100 (sacrebleu); means of these are not the chrF++ of a corpus."""
    chrf = chrf_plus_plus()
    return np.array([chrf.sentence_score(p, [r]).score for p, r in zip(predictions, references)])


def _chrf_resampled(metric, predictions, references, weights, codes):
    """Return (chrF of the corpus, chrF of each resample of scenarios)."""
    # sacrebleu resamples segments only; scenarios need its per-segment counts, which it keeps behind an underscore
    counts = np.array(metric._extract_corpus_statistics(predictions, [references]), dtype=float)
    value = _chrf_scores(counts.sum(axis=0, keepdims=True), metric.beta)[0]
    return float(value), _chrf_scores(weights @ sum_by_group(counts, codes), metric.beta)


def _chrf_scores(sums, beta):
    """Return chrF per row of summed counts (hyp, ref, match per order): sacrebleu's effective-order formula."""
    hyp, ref, match = sums[:, 0::3], sums[:, 1::3], sums[:, 2::3]
    used = (hyp > 0) & (ref > 0)
    orders = np.maximum(used.sum(axis=1), 1)
    precision = np.where(used, match / np.maximum(hyp, 1), 0).sum(axis=1) / orders
    recall = np.where(used, match / np.maximum(ref, 1), 0).sum(axis=1) / orders
    bottom = beta**2 * precision + recall
    return np.where(bottom > 0, 100 * (1 + beta**2) * precision * recall / np.maximum(bottom, 1e-12), 0)


def distinct_at_budget(texts, n, budget=None, resamples=100, seed=0):
    """Return distinct-n on texts drawn at random until `budget` n-grams are reached: comparable across output lengths.

    The value is the mean of the resamples, low and high their 2.5 and 97.5 percentiles. Without a budget it is half of
    the n-grams at hand; a budget above what is at hand is cut to it, and the one used is returned.
    """
    grams = [_ngrams(text.split(), n) for text in texts]
    total = sum(map(len, grams))
    budget = min(budget or total // 2, total)
    rng, scores = np.random.default_rng(seed), []
    for _ in range(resamples):
        chosen = []
        for i in rng.permutation(len(grams)):
            chosen += grams[i]
            if len(chosen) >= budget:
                break
        scores.append(len(set(chosen[:budget])) / budget if budget else 0.0)
    low, high = np.quantile(scores, [0.025, 0.975])
    return {"value": float(np.mean(scores)), "low": float(low), "high": float(high), "n": len(texts), "ngrams": budget}


def self_bleu_sampled(texts, references, seed=0):
    """Return per text the BLEU (0 to 100) against the same number of random other texts as references.

    A fixed number, since Self-BLEU grows with it. One draw of references+1 texts serves all, each leaving itself out.
    """
    from sacrebleu.metrics import BLEU

    if len(texts) < 2:
        return [0.0] * len(texts)
    size = min(references, len(texts) - 1)
    drawn = np.random.default_rng(seed).choice(len(texts), size + 1, replace=False)
    first = [int(i) for i in drawn[:size]]
    common = BLEU(references=[[texts[i]] for i in first], effective_order=True)
    scores = []
    for i, text in enumerate(texts):
        if i in first:
            others = [texts[j] for j in drawn if j != i]
            scores.append(BLEU(effective_order=True).sentence_score(text, others).score)
        else:
            scores.append(common.corpus_score([text], None).score)
    return scores


def normalize_arabic(text):
    """Return the text as the released near-duplicate check sees it: no tatweel, diacritics or non-Arabic punctuation."""
    text = re.sub("[\u0610-\u061a\u064b-\u065f\u06d6-\u06ed]", "", text.replace("\u0640", ""))
    return re.sub(r"[^\w\s\u0600-\u06ff]", " ", re.sub(r"\s+", " ", text)).strip()


def _ngrams(words, n):
    return list(zip(*(words[i:] for i in range(n))))


def near_duplicates_of(texts, others=None, threshold=NEAR_DUPLICATE):
    """Return per text whether it has a near-duplicate among the other texts or, if given, among `others` (cosine of TF-IDF)."""
    if others is None:
        close = {i for pair in _close_pairs(texts, threshold) for i in pair}
    else:
        rows = _tfidf([*texts, *others])
        near = (rows[:len(texts)] @ rows[len(texts):].T).tocoo() if rows is not None else None
        close = set() if near is None else {int(i) for i, value in zip(near.row, near.data) if value >= threshold}
    return [i in close for i in range(len(texts))]


def _close_pairs(texts, threshold):
    """Return the pairs (i, j), i < j, whose TF-IDF cosine reaches the threshold; sparse, so n is not squared in memory."""
    rows = _tfidf(texts) if len(texts) > 1 else None
    if rows is None:
        return []
    upper = (rows @ rows.T).tocoo()
    return [(int(i), int(j)) for i, j, value in zip(upper.row, upper.col, upper.data) if i < j and value >= threshold]


def _tfidf(texts):
    """Return the texts as sparse TF-IDF rows of length 1 over word 1-3-grams, as released; None if no text holds a word."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    try:
        return TfidfVectorizer(analyzer="word", ngram_range=(1, 3)).fit_transform(map(normalize_arabic, texts))
    except ValueError:
        return None
