"""Putting runs together, chapter 09: all experiments and seeds of a profile, endpoints, paired comparisons."""

import numpy as np

from .data import DIALECTS
from .files import read_json
from .stats import bootstrap_mean, paired_difference

# fixed before the first run was looked at
ENDPOINTS = {"requested-dialect accuracy": "primary: the judge gives the answer the dialect that was asked for",
             "MSA share": "secondary: the judge labels the answer MSA",
             "dialect share": "secondary: the judge labels the answer GLF (Saudi), either dialect"}


def collect(run, experiments, seeds):
    """Return experiment -> list of its metrics.json per seed; says which chapter makes a missing one."""
    return {name: [read_json(run.experiment(name, seed) / "metrics.json", f"08_metrics (experiment {name}, seed {seed})") for seed in seeds]
            for name in experiments}


def outcomes(metrics):
    """Return the answers of all seeds of one experiment as arrays: scenario, dialect, kind, seed, and one 0/1 per endpoint."""
    parts = [(m["outcomes"], m["seed"]) for m in metrics]
    rows = {key: np.concatenate([np.array(o[source]) for o, _ in parts])
            for key, source in (("scenario", "scenario_id"), ("dialect", "dialect"), ("kind", "instruction_kind"), ("produced", "produced"))}
    rows["seed"] = np.concatenate([np.full(len(o["dialect"]), seed) for o, seed in parts])
    rows["requested-dialect accuracy"] = (rows["produced"] == rows["dialect"]).astype(float)
    rows["MSA share"] = (rows["produced"] == "MSA").astype(float)
    rows["dialect share"] = np.isin(rows["produced"], DIALECTS).astype(float)
    return rows


def share(rows, endpoint, resamples, keep=None):
    """Return {"value", "low", "high", "n"} of an endpoint over all seeds, bootstrapped over scenarios; `keep` selects rows."""
    keep = np.ones(len(rows["kind"]), bool) if keep is None else keep
    value, low, high = bootstrap_mean(rows[endpoint][keep], rows["scenario"][keep], resamples)
    return {"value": value, "low": low, "high": high, "n": int(keep.sum())}


def compare(first, second, endpoint, resamples, kind=None):
    """Return the paired comparison of two experiments on the same prompts and seeds (`stats.paired_difference`).

    Raises ValueError if the two did not answer the same prompts in the same order.
    """
    for key in ("scenario", "dialect", "kind", "seed"):
        if not np.array_equal(first[key], second[key]):
            raise ValueError(f"the two experiments differ in {key}: they did not answer the same prompts")
    keep = np.ones(len(first["kind"]), bool) if kind is None else first["kind"] == kind
    return paired_difference(first[endpoint][keep], second[endpoint][keep], first["scenario"][keep], resamples)


def mean_over_seeds(metrics, reading, name):
    """Return (mean, lowest, highest) of one metric over the seeds; `reading` is faithful or corrected."""
    values = [m[reading][name]["value"] if reading == "corrected" else m[reading][name] for m in metrics]
    return float(np.mean(values)), min(values), max(values)
