"""Every metric of the book as an object of evaluate: `compute(predictions=…, references=…)`, `evaluate.combine`, no network.

  from dialectbook.metric_objects import load_metrics
  evaluate.combine(list(load_metrics().values())).compute(predictions=answers, references=references)
"""

import numpy as np

from .data import REGIONS
from .metrics import (FAITHFUL_OF_JUDGE, FAITHFUL_OF_TEXT, chrf_plus_plus, cut_to_reference, distinct_at_budget, near_duplicates_of,
                      self_bleu_sampled)

CORRECTED_OF_TEXT = {  # each takes (predictions, references)
    "chrf_plus_plus": lambda predictions, references: chrf_plus_plus().corpus_score(predictions, [references]).score,
    "chrf_plus_plus_length_matched": lambda predictions, references: chrf_plus_plus().corpus_score(
        cut_to_reference(predictions, references), [references]).score,
    "distinct_2_equal_budget": lambda predictions, _: distinct_at_budget(predictions, 2)["value"],
    "distinct_3_equal_budget": lambda predictions, _: distinct_at_budget(predictions, 3)["value"],
    "self_bleu_sampled": lambda predictions, _: float(np.mean(self_bleu_sampled(predictions, 100))),
    "near_duplicate_outputs_share": lambda predictions, _: float(np.mean(near_duplicates_of(predictions))),
    "length_ratio": lambda predictions, references: sum(len(p.split()) for p in predictions) / sum(len(r.split()) for r in references),
}


def load_metrics(judge=None, bertscore=None, low_confidence=0.55):
    """Return name -> evaluate.Metric for every metric: those of texts always, those of a judge or a BertScorer where one is given.

    Names and scales are those of `faithful_metrics` and `corrected_metrics`; each object returns {name: value}.
    """
    functions = {**FAITHFUL_OF_TEXT, **CORRECTED_OF_TEXT}
    if judge:
        last = {}  # the judge reads the same answers once, not once per metric

        def probabilities(predictions):
            if last.get("texts") != predictions:
                last.update(texts=list(predictions), rows=np.asarray(judge.probabilities(predictions)))
            return last["rows"]

        for name, compute in FAITHFUL_OF_JUDGE.items():
            functions[name] = lambda predictions, _, compute=compute: compute(probabilities(predictions), list(REGIONS), low_confidence)
        functions["msa_label_share"] = lambda predictions, _: float(np.mean(probabilities(predictions).argmax(axis=1) == REGIONS.index("MSA")))
    if bertscore:
        functions["bertscore_raw_f1"] = lambda predictions, references: float(np.mean(bertscore(predictions, references)))
    return {name: as_metric(name, function) for name, function in functions.items()}


def as_metric(name, function):
    """Return function(predictions, references) -> number as an evaluate.Metric that keeps its rows in memory."""
    import datasets
    import evaluate

    class TextMetric(evaluate.Metric):
        def _info(self):
            text = datasets.Value("string")
            return evaluate.MetricInfo(description=function.__doc__ or name, citation="", inputs_description="predictions and references: texts",
                                       features=datasets.Features({"predictions": text, "references": text}))

        def _compute(self, predictions, references):
            return {name: function(predictions, references)}

    return TextMetric(config_name=name, keep_in_memory=True)
