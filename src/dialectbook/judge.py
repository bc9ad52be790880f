"""Judges: dialect classifiers behind one interface, `labels` and `probabilities(texts)`.

Two of them: NgramJudge, trained in chapter 05 and kept without pickle, and HubJudge, a classifier from the hub
(the paper's MARBERTv2). Columns always come in the order of `labels`.
"""

import json
from pathlib import Path

import numpy as np

from .data import DIALECTS, REGIONS
from .files import UserError, fingerprint, mark_finished, write_json

FEATURES = {"analyzer": "char_wb", "ngram_range": (1, 5), "n_features": 2**17, "norm": "l2", "alternate_sign": False}


class NgramJudge:
    """Logistic regression on hashed character n-grams (scikit-learn); hashing needs no vocabulary, so only arrays are kept."""

    def __init__(self, labels, weights, bias):
        self.labels, self.weights, self.bias = tuple(labels), weights, bias

    @classmethod
    def fit(cls, texts, labels, order, seed=0):
        """Return a judge trained on texts and their labels; `order` gives the columns. Classes weigh equally."""
        from sklearn.linear_model import LogisticRegression

        if set(labels) != set(order):
            raise UserError(f"the judge needs texts of {', '.join(order)}; found only {', '.join(sorted(set(labels)))}.")
        model = LogisticRegression(C=100.0, class_weight="balanced", max_iter=500, random_state=seed)  # C chosen on the dev split
        model.fit(_features(texts), labels)
        rows = [list(model.classes_).index(label) for label in order] if len(order) > 2 else None
        weights = model.coef_[rows] if rows else np.vstack([-model.coef_[0], model.coef_[0]]) / 2
        bias = model.intercept_[rows] if rows else np.array([-model.intercept_[0], model.intercept_[0]]) / 2
        if not rows and list(model.classes_) != list(order):
            weights, bias = weights[::-1], bias[::-1]
        return cls(order, np.ascontiguousarray(weights, dtype=np.float32), bias.astype(np.float32))

    def probabilities(self, texts):
        """Return an array (texts, labels) of probabilities; each row sums to 1."""
        scores = _features(texts) @ self.weights.T.astype(np.float64) + self.bias
        scores -= scores.max(axis=1, keepdims=True)
        return np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)

    def save(self, folder):
        """Write the judge as safetensors and JSON into `folder`; return the folder."""
        from safetensors.numpy import save_file

        Path(folder).mkdir(parents=True, exist_ok=True)
        save_file({"weights": self.weights, "bias": self.bias}, str(Path(folder) / "judge.safetensors"))
        write_json(Path(folder) / "labels.json", {"labels": self.labels})
        mark_finished(folder, fingerprint({}, [Path(folder) / "judge.safetensors"]))
        return folder

    @classmethod
    def load(cls, folder):
        """Return the judge kept in `folder`; says which chapter makes it when it is missing."""
        from safetensors.numpy import load_file

        folder = Path(folder)
        if not (folder / "recipe.json").is_file():
            raise UserError(f"{folder} holds no judge. Chapter 05_dialect_judge makes it: run that one first.")
        arrays = load_file(str(folder / "judge.safetensors"))
        return cls(json.loads((folder / "labels.json").read_text(encoding="utf-8"))["labels"], arrays["weights"], arrays["bias"])


class HubJudge:
    """A five-way region classifier in the hub's format; its own label order and names are mapped to REGIONS."""

    labels = REGIONS

    def __init__(self, path, revision, batch_size=64, trust_remote_code=False):
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        from .hardware import detect
        from .model import from_hub

        options = {"trust_remote_code": trust_remote_code}
        self.tokenizer = from_hub(AutoTokenizer.from_pretrained, path, revision, "judge_model", **options)
        self.model = from_hub(AutoModelForSequenceClassification.from_pretrained, path, revision, "judge_model",
                               use_safetensors=True, **options).to(detect().device).eval()
        names = {"MAGHREB": "MAGH", "MAGHREBI": "MAGH", "GULF": "GLF"}
        own = [str(self.model.config.id2label[i]).strip().upper() for i in range(self.model.config.num_labels)]
        own = [names.get(label, label) for label in own]
        if sorted(own) != sorted(REGIONS):
            raise UserError(f"judge_model = {path!r} has the labels {', '.join(own)}; expected {', '.join(REGIONS)}.")
        self.columns = [own.index(label) for label in REGIONS]
        self.commit = getattr(self.model.config, "_commit_hash", None)
        self.batch_size = batch_size

    def probabilities(self, texts):
        """Return an array (texts, labels); texts are cut at 128 word-pieces as in the released code."""
        import torch

        parts = []
        for start in range(0, len(texts), self.batch_size):
            batch = self.tokenizer(list(texts[start:start + self.batch_size]), padding=True, truncation=True, max_length=128,
                                   return_tensors="pt").to(self.model.device)
            with torch.inference_mode():
                parts.append(torch.softmax(self.model(**batch).logits.float(), -1).cpu().numpy())
        return np.vstack(parts)[:, self.columns] if parts else np.zeros((0, len(REGIONS)))


def load_region_judge(knobs, run):
    """Return the judge of regions that the profile asks for."""
    if knobs.judge_model == "builtin":
        return NgramJudge.load(run.judge / "regions")
    return HubJudge(knobs.judge_model, knobs.judge_revision, trust_remote_code=knobs.trust_remote_code)


def load_dialect_judge(run):
    """Return the judge of Hijazi against Najdi; always the built-in one, since no public classifier tells them apart."""
    return NgramJudge.load(run.judge / "dialects")


def load_independent_judges(run):
    """Return (region judge, dialect judge) trained on texts that no model of the run has read (chapter 05)."""
    return NgramJudge.load(run.judge / "independent_regions"), NgramJudge.load(run.judge / "independent_dialects")


def read_by(judges, texts):
    """Return (labels, region probabilities) of texts: `judged_dialect` by a pair of region and dialect judge."""
    regions, dialects = (judge.probabilities(texts) for judge in judges)
    return judged_dialect(texts, regions, dialects), regions


def judged_dialect(texts, region_probabilities, dialect_probabilities):
    """Return per text HIJAZI or NAJDI when the region judge says GLF, else the region; OTHER for a text not in Arabic letters.

    `region_probabilities` has the columns REGIONS, `dialect_probabilities` the columns DIALECTS. A judge must choose one
    of its labels even for English or for nothing; such an answer is in no dialect, whatever the judge says.
    """
    regions = np.array(REGIONS)[np.asarray(region_probabilities).argmax(axis=1)]
    dialects = np.array(DIALECTS)[np.asarray(dialect_probabilities).argmax(axis=1)]
    labels = np.where(regions == "GLF", dialects, regions)
    return np.where([is_arabic(text) for text in texts], labels, "OTHER")


def is_arabic(text):
    """Return whether more than half of the letters of a text are Arabic; a text without letters is not."""
    letters = [letter for letter in text if letter.isalpha()]
    return 2 * sum("\u0600" <= letter <= "\u06ff" for letter in letters) > len(letters)


def _features(texts):
    """Return sparse character n-gram features; diacritics are dropped, since people type them at will."""
    import re

    from sklearn.feature_extraction.text import HashingVectorizer

    return HashingVectorizer(**FEATURES).transform(re.sub("[\u064b-\u0652\u0640]", "", text) for text in texts)
