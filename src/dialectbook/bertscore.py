"""BERTScore with any local or hub encoder (bert-score), raw and rescaled by a baseline of its own."""

from pathlib import Path

import numpy as np

from .files import fingerprint, read_json, write_json

BASELINE_PAIRS = 500


class BertScorer:
    """BERTScore, F1 per text; `signature` names what was used, `baseline` is the F1 of unrelated texts (None before `set_baseline`).

    Without a network the encoder is the base twin, a decoder whose states see only the words before them; the signature
    says so.
    """

    def __init__(self, path, layer, name=""):
        from bert_score import BERTScorer

        self.path = Path(path)
        self.scorer = BERTScorer(model_type=path, num_layers=layer, idf=False, rescale_with_baseline=False, batch_size=64)
        if self.scorer._tokenizer.sep_token is None:
            _mark_both_ends(self.scorer._tokenizer)
        self.signature = self.scorer.hash.replace(str(path), name or str(path))  # bert-score's hash string, without a local folder
        self.baseline = None
        self.known = {}  # (prediction, reference) -> F1: several metrics ask for the same pairs

    def __call__(self, predictions, references):
        """Return F1 per text; 0 for an empty one, as bert-score itself sets it (its encoding of nothing needs a BERT tokenizer)."""
        pairs = list(zip(predictions, references))
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self.known]
        full = [(p, r) for p, r in new if p.strip() and r.strip()]
        self.known |= dict.fromkeys(new, 0.0)
        if full:
            _, _, f1 = self.scorer.score(*map(list, zip(*full)))
            self.known |= dict(zip(full, f1.double().tolist()))
        return np.array([self.known[pair] for pair in pairs])

    def set_baseline(self, texts, pairs=BASELINE_PAIRS, seed=0, keep=None):
        """Return the mean F1 of random pairs of different texts, and rescale by it from now on.

        bert-score 0.3.13 ships no baseline for Arabic (audit item 5); this is its own recipe (Zhang et al. 2020, section 3) on
        the training responses: far fewer pairs than its one million, so good to about the second digit. `keep` is a file in which
        it stays: of many experiments only the first computes it.
        """
        files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(self.path.iterdir())]
        recipe = fingerprint({"encoder": files, "signature": self.signature, "texts": texts, "pairs": pairs, "seed": seed}, [__file__])
        self.signature_rescaled = f"{self.signature}_rescaled-by-own-baseline-of-{pairs}-pairs"
        kept = read_json(keep) if keep and keep.is_file() else {}
        if kept.get("recipe") == recipe:
            self.baseline = kept["baseline"]
            return self.baseline
        rng = np.random.default_rng(seed)
        first = rng.integers(len(texts), size=pairs)
        second = (first + rng.integers(1, len(texts), size=pairs)) % len(texts)
        self.baseline = float(np.mean(self([texts[i] for i in first], [texts[i] for i in second])))
        if keep:
            write_json(keep, {"recipe": recipe, "baseline": self.baseline})
        return self.baseline

    def rescale(self, value):
        """Return a raw F1 on the scale on which unrelated texts have 0 and equal ones 1."""
        return (value - self.baseline) / (1 - self.baseline)


def _mark_both_ends(tokenizer):
    """Make a decoder's tokenizer put its marks at both ends of a text, as BERT's does, and name them so that they do not count.

    bert-score leaves out the tokens cls and sep and takes a text of two tokens for empty: the mark at the beginning, which is
    the same in every text, would count as a word found, and a text of one token would score 0.
    """
    from tokenizers.processors import TemplateProcessing

    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos} $A {eos}", special_tokens=[
        (bos, tokenizer.bos_token_id), (eos, tokenizer.eos_token_id)])
    tokenizer.cls_token, tokenizer.sep_token = bos, eos
