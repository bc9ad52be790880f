"""The metrics of the paper's Table II, each twice: *faithful* (what the released code computes, PAPERS audit items 1-5,
9, 20-22; evaluation/allam_eval/evaluation.py) and *corrected*. Names say what is computed.
"""

import re

import numpy as np

from .stats import bootstrap_mean, resample_weights, sum_by_group, wilson

ECHO = re.compile(r"<\s*DIALECT\s*=\s*[^>]+>", re.IGNORECASE)
NEAR_DUPLICATE = 0.90  # cosine of TF-IDF word 1-3-grams, as released


# ---- faithful ------------------------------------------------------------------------------------------------------

def faithful_metrics(predictions, references, region_probabilities, labels, low_confidence=0.55, bertscore=None):
    """Return the values that the released code would print for these outputs, under names that say what they are.

    `region_probabilities` has one row per prediction and the columns `labels`. `bertscore` is a BertScorer, or None.
    Percentages are 0 to 100, distinct-n and BERTScore 0 to 1, as in the released reports.
    """
    from sacrebleu.metrics import CHRF

    probabilities = np.asarray(region_probabilities)
    top = probabilities.argmax(axis=1)
    gulf, msa = list(labels).index("GLF"), list(labels).index("MSA")
    values = {
        "saudi_label_percent": 100 * float(np.mean(top == gulf)),
        "msa_mean_probability_percent": 100 * float(probabilities[:, msa].mean()),
        "low_confidence_percent": 100 * float(np.mean(probabilities.max(axis=1) < low_confidence)),
        "tag_echo_percent": 100 * float(np.mean([bool(ECHO.search(text)) for text in predictions])),
        "chrf2": CHRF().corpus_score(predictions, [references]).score,
        "distinct_2": distinct_n(predictions, 2),
        "distinct_3": distinct_n(predictions, 3),
        "self_bleu_first_other_percent": self_bleu_first_other(predictions),
        "near_duplicate_pairs_percent": near_duplicate_pairs_percent(predictions),
    }
    if bertscore:
        values["bertscore_raw_f1"] = float(np.mean(bertscore(predictions, references)))
    return values


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


# ---- corrected -----------------------------------------------------------------------------------------------------

def corrected_metrics(predictions, references, region_probabilities, labels, scenarios=None, requested=None, produced=None,
                      prompts=None, low_confidence=0.55, self_bleu_references=100, bigram_budget=None, bertscore=None,
                      resamples=10_000, seed=0):
    """Return name -> {"value", "low", "high", "n", …}: every value with its 95 % interval; shares also with their count.

    `produced` are the judged labels per row (`judge.judged_dialect`); without them the judge's regions count as they are.
    With `requested` dialects they give the requested-dialect accuracy. `scenarios` groups rows for the bootstrap (default:
    each row alone). `bigram_budget` is the number of bigrams at which distinct-2 is compared.
    Shares are 0 to 1 with Wilson intervals; the others have bootstrap intervals over scenarios.
    """
    n = len(predictions)
    scenarios = np.arange(n) if scenarios is None else np.asarray(scenarios)
    probabilities = np.asarray(region_probabilities)
    produced = np.array(labels)[probabilities.argmax(axis=1)] if produced is None else np.asarray(produced)
    duplicates = {i for pair in _close_pairs(predictions, NEAR_DUPLICATE) for i in pair}
    shares = {
        "dialect_share": np.isin(produced, ("GLF", "HIJAZI", "NAJDI")),
        "msa_label_share": produced == "MSA",
        "low_confidence_share": probabilities.max(axis=1) < low_confidence,
        "tag_echo_share": [bool(ECHO.search(text)) for text in predictions],
        "near_duplicate_outputs_share": [i in duplicates for i in range(n)],
        "empty_share": [not text.strip() for text in predictions],
    }
    if prompts is not None:
        shares["tag_echo_with_prompt_share"] = [bool(ECHO.search(p + t)) for p, t in zip(prompts, predictions)]
    if requested is not None:
        shares["requested_dialect_accuracy"] = produced == np.asarray(requested)
    values = {}
    for name, hits in shares.items():
        share, low, high = wilson(int(np.sum(hits)), n)
        values[name] = {"value": share, "low": low, "high": high, "count": int(np.sum(hits)), "n": n}

    def mean(name, numbers):
        value, low, high = bootstrap_mean(numbers, scenarios, resamples, seed)
        values[name] = {"value": value, "low": low, "high": high, "n": n}

    mean("msa_mean_probability", probabilities[:, list(labels).index("MSA")])
    mean("output_words", [len(text.split()) for text in predictions])
    values["length_ratio"] = ratio_of_sums([len(text.split()) for text in predictions],
                                           [len(text.split()) for text in references], scenarios, resamples, seed)
    values["chrf_plus_plus"] = chrf_with_interval(predictions, references, scenarios, resamples, seed)
    cut = [" ".join(p.split()[:len(r.split())]) for p, r in zip(predictions, references)]
    values["chrf_plus_plus_length_matched"] = chrf_with_interval(cut, references, scenarios, resamples, seed)
    values["distinct_2_equal_budget"] = distinct_at_budget(predictions, 2, bigram_budget, seed=seed)
    values["distinct_3_equal_budget"] = distinct_at_budget(predictions, 3, bigram_budget, seed=seed)
    mean("self_bleu_sampled", self_bleu_sampled(predictions, self_bleu_references, seed))
    values["self_bleu_sampled"]["references"] = min(self_bleu_references, n - 1)
    if bertscore:
        mean("bertscore_raw_f1", bertscore(predictions, references))
        values["bertscore_raw_f1"]["signature"] = bertscore.signature
    return values


def chrf_with_interval(predictions, references, scenarios, resamples, seed=0):
    """Return chrF++ (sacrebleu, word order 2, 0 to 100) with a bootstrap interval over scenarios and its signature."""
    from sacrebleu.metrics import CHRF

    metric = CHRF(word_order=2)
    # sacrebleu resamples segments only; scenarios need its per-segment counts, which it keeps behind an underscore
    counts = np.array(metric._extract_corpus_statistics(predictions, [references]), dtype=float)
    weights, codes = resample_weights(scenarios, resamples, seed)
    low, high = np.quantile(_chrf_scores(weights @ sum_by_group(counts, codes), metric.beta), [0.025, 0.975])
    return {"value": metric.corpus_score(predictions, [references]).score, "low": float(low), "high": float(high),
            "n": len(predictions), "signature": str(metric.get_signature())}


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


def ratio_of_sums(numerators, denominators, groups, resamples, seed=0):
    """Return sum(numerators) / sum(denominators) with a bootstrap interval over groups."""
    weights, codes = resample_weights(groups, resamples, seed)
    top, bottom = weights @ sum_by_group(numerators, codes), weights @ sum_by_group(denominators, codes)
    low, high = np.quantile(top / bottom, [0.025, 0.975])
    return {"value": float(np.sum(numerators) / np.sum(denominators)), "low": float(low), "high": float(high),
            "n": len(numerators)}


class BertScorer:
    """BERTScore, raw F1 per text, with any local or hub encoder (bert-score); `signature` names what was used.

    Without a network the encoder is the base twin, a decoder whose states see only the words before them; the
    signature says so. Baselines for Arabic do not exist in bert-score 0.3.13, so there is no rescaled value (item 5).
    """

    def __init__(self, path, layer, name=""):
        from bert_score import BERTScorer

        self.scorer = BERTScorer(model_type=path, num_layers=layer, idf=False, rescale_with_baseline=False, batch_size=64)
        self.signature = f"{name or path}_L{layer}_no-idf_raw"

    def __call__(self, predictions, references):
        """Return F1 per text; 0 for an empty one, as bert-score itself sets it (its encoding of nothing needs a BERT tokenizer)."""
        scores = np.zeros(len(predictions))
        full = [i for i, text in enumerate(predictions) if text.strip() and references[i].strip()]
        if full:
            _, _, f1 = self.scorer.score([predictions[i] for i in full], [references[i] for i in full])
            scores[full] = f1.numpy()
        return scores


def normalize_arabic(text):
    """Return the text as the released near-duplicate check sees it: no tatweel, diacritics or non-Arabic punctuation."""
    text = re.sub("[\u0610-\u061a\u064b-\u065f\u06d6-\u06ed]", "", text.replace("\u0640", ""))
    return re.sub(r"[^\w\s\u0600-\u06ff]", " ", re.sub(r"\s+", " ", text)).strip()


def _ngrams(words, n):
    return list(zip(*(words[i:] for i in range(n))))


def _close_pairs(texts, threshold):
    """Return the pairs (i, j), i < j, whose TF-IDF cosine reaches the threshold; sparse, so n is not squared in memory."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    if len(texts) < 2:
        return []
    try:
        rows = TfidfVectorizer(analyzer="word", ngram_range=(1, 3)).fit_transform(map(normalize_arabic, texts))
    except ValueError:  # no text holds a word
        return []
    upper = (rows @ rows.T).tocoo()
    return [(int(i), int(j)) for i, j, value in zip(upper.row, upper.col, upper.data) if i < j and value >= threshold]
