"""Putting runs together, chapter 09: all experiments and seeds of a profile, endpoints, paired comparisons."""

import numpy as np

from .data import DIALECTS
from .files import read_json, read_jsonl
from .metrics import chrf_difference, chrf_with_interval, cut_to_reference
from .show import NAMES, p_value, points
from .stats import bootstrap_mean, crossed_bootstrap, holm, paired_difference, seed_deviations, wilson

# fixed before the first run was looked at
ENDPOINTS = {"requested-dialect accuracy": "primary: the judge gives the answer the dialect that was asked for",
             "MSA share": "secondary: the judge labels the answer MSA",
             "dialect share": "secondary: the judge labels the answer GLF (Saudi), either dialect"}


def collect(run, experiments, seeds):
    """Return experiment -> list of its metrics.json per seed; says which chapter makes a missing one."""
    return {name: [read_json(run.experiment(name, seed) / "metrics.json", f"08_metrics (experiment {name}, seed {seed})") for seed in seeds]
            for name in experiments}


def origin(knobs, run, rows):
    """Return in a sentence where the numbers of an experiment come from: profile, model, scenarios, answers, seeds; `rows` as of `outcomes`."""
    model = " (CPU twin, not ALLaM-7B)" if knobs.base_model == "twin" else ""
    return (f"Profile {run.root.name}{model}: {len(set(rows['scenario']))} test scenarios, {len(rows['seed']) // len(knobs.seeds)} answers per run, "
            f"seeds {', '.join(map(str, knobs.seeds))}.")


def outcomes(metrics):
    """Return the answers of all seeds of one experiment as arrays, one entry per answer.

    Texts: scenario, dialect (requested), kind, topic, task, length, produced, produced_independent. Numbers: seed, probability (of
    the judge's region), words, BERTScore F1, one 0/1 per endpoint, and "failures", one 0/1 array per rule.
    """
    parts = [(m["outcomes"], m["seed"]) for m in metrics]
    names = {"scenario": "scenario_id", "kind": "instruction_kind", "BERTScore F1": "bertscore"}
    keys = ("scenario", "dialect", "kind", "topic", "task", "length", "names_dialect", "produced", "produced_independent", "probability", "words",
            "BERTScore F1", "tag_echo")
    rows = {key: np.concatenate([np.array(o[names.get(key, key)]) for o, _ in parts]) for key in keys}
    rows["seed"] = np.concatenate([np.full(len(o["dialect"]), seed) for o, seed in parts])
    rows["failures"] = {rule: np.concatenate([np.array(o["failures"][rule], dtype=float) for o, _ in parts]) for rule in parts[0][0]["failures"]}
    return rows | endpoints_of(rows["produced"], rows["dialect"])


def endpoints_of(produced, dialect):
    """Return endpoint -> 0/1 per answer, from the judged labels and the requested dialects."""
    return {"requested-dialect accuracy": (produced == dialect).astype(float), "MSA share": (produced == "MSA").astype(float),
            "dialect share": np.isin(produced, DIALECTS).astype(float)}


def share(rows, endpoint, resamples, keep=None):
    """Return {"value", "low", "high", "n"} of an endpoint over all seeds, bootstrapped over scenarios; `keep` selects rows."""
    keep = np.ones(len(rows["kind"]), bool) if keep is None else keep
    return bootstrap_mean(rows[endpoint][keep], rows["scenario"][keep], resamples)


def over_seeds(rows, endpoint, resamples):
    """Return {"value", "low", "high", "n"} of an endpoint with scenarios and training seeds both drawn anew (`crossed_bootstrap`)."""
    return crossed_bootstrap(rows[endpoint], rows["scenario"], rows["seed"], resamples)


def deviations_of_seeds(first, again, endpoint):
    """Return the standard deviations of an endpoint between training seeds and between samplings (`seed_deviations`).

    `first` and `again` are two samplings of the same trained models.
    """
    seeds = sorted(set(first["seed"]))
    return seed_deviations([[rows[endpoint][rows["seed"] == seed].mean() for rows in (first, again)] for seed in seeds])


def compare(first, second, endpoint, resamples, kind=None):
    """Return the paired comparison of two experiments on the same prompts and seeds (`stats.paired_difference`).

    Adds seeds_low and seeds_high: the interval with training seeds drawn anew too (`crossed_bootstrap`; None with one seed). Raises ValueError if the
    two did not answer the same questions in the same order.
    """
    for key in ("scenario", "dialect", "kind", "seed"):
        if not np.array_equal(first[key], second[key]):
            raise ValueError(f"the two experiments differ in {key}: they did not answer the same prompts")
    keep = np.ones(len(first["kind"]), bool) if kind is None else first["kind"] == kind
    a, b, scenarios = first[endpoint][keep], second[endpoint][keep], first["scenario"][keep]
    seeds = first["seed"][keep]
    anew = crossed_bootstrap(b - a, scenarios, seeds, resamples) if len(set(seeds)) > 1 else {"low": None, "high": None}
    return paired_difference(a, b, scenarios, resamples) | {"seeds_low": anew["low"], "seeds_high": anew["high"]}


def compare_all(plan, rows, resamples):
    """Return one dict per planned comparison (first, second, endpoint, kind or None), corrected together by Holm's method.

    Keys: first, second, endpoint, kind ("all" without one), those of `compare`, and p_holm. Comparisons of a kind of instruction
    that was not asked, or with an experiment that was not run, are left out.
    """
    plan = [row for row in plan if row[0] in rows and row[1] in rows and (row[3] is None or row[3] in rows[row[0]]["kind"])]
    tests = [{"first": a, "second": b, "endpoint": endpoint, "kind": kind or "all", **compare(rows[a], rows[b], endpoint, resamples, kind)}
             for a, b, endpoint, kind in plan]
    return [test | {"p_holm": p} for test, p in zip(tests, holm([test["p"] for test in tests]))]


def comparison_rows(tests):
    """Return the tests of `compare_all` as rows for a table that people read, in points (BERTScore in hundredths)."""
    def between(test, low, high):
        return None if test[low] is None else f"{points(test[low])} to {points(test[high])}"

    return [{"comparison": f"{NAMES[test['second']]} − {NAMES[test['first']]}", "endpoint": test["endpoint"], "asked in": test["kind"],
             "difference (points)": points(test["difference"]), "95 % interval": between(test, "low", "high"),
             "with new seeds": between(test, "seeds_low", "seeds_high"), "n": test["n"], "scenarios": test["groups"],
             "p": p_value(test["p"]), "p (Holm)": p_value(test["p_holm"])} for test in tests]


def compare_texts(run, first, second, seeds, resamples):
    """Return the paired comparison of two experiments by chrF++ over all seeds (`metrics.chrf_difference`)."""
    rows = [[row for seed in seeds for row in read_jsonl(run.experiment(name, seed) / "predictions.jsonl")] for name in (first, second)]
    a, b = ([row["prediction"] for row in some] for some in rows)
    return chrf_difference(a, b, [row["reference"] for row in rows[0]], [row["scenario_id"] for row in rows[0]], resamples)


def chrf_of(run, name, seeds, resamples):
    """Return chrF++ of all seeds of an experiment, length-matched, with a bootstrap interval over scenarios (`chrf_with_interval`)."""
    rows = [row for seed in seeds for row in read_jsonl(run.experiment(name, seed) / "predictions.jsonl")]
    references = [row["reference"] for row in rows]
    cut = cut_to_reference([row["prediction"] for row in rows], references)
    return chrf_with_interval(cut, references, [row["scenario_id"] for row in rows], resamples)


def by_kind(rows, endpoint, resamples):
    """Return the paired comparison of neutral and dialect instructions of one experiment: neutral minus dialect (`paired_difference`)."""
    neutral, dialect = (rows["kind"] == kind for kind in ("neutral", "dialect"))
    keys = [list(zip(rows["seed"][keep], rows["scenario"][keep], rows["dialect"][keep])) for keep in (neutral, dialect)]
    if keys[0] != keys[1]:
        raise ValueError("the two kinds of instruction did not ask the same questions")
    return paired_difference(rows[endpoint][dialect], rows[endpoint][neutral], rows["scenario"][neutral], resamples)


def matrix(rows, produced="produced", keep=None):
    """Return (counts, labels): answers by requested (rows, DIALECTS) and judged dialect (columns, labels)."""
    keep = np.ones(len(rows["kind"]), bool) if keep is None else keep
    labels = (*DIALECTS, "MSA", "LEV", "EGY", "MAGH", "OTHER")
    return np.array([[np.sum(keep & (rows["dialect"] == asked) & (rows[produced] == label)) for label in labels] for asked in DIALECTS]), labels


def failure_rates(rows, by):
    """Return one row per value of `by` ("topic", "task" or "length") and failure rule: count, n, value, low, high (Wilson)."""
    found = []
    for group in sorted(set(rows[by])):
        mine = rows[by] == group
        for rule, broken in rows["failures"].items():
            count = int(broken[mine].sum())
            found.append({by: group, "rule": rule, "count": count, **wilson(count, int(mine.sum()))})
    return found


def mean_over_seeds(metrics, reading, name):
    """Return (mean, lowest, highest) of one metric over the seeds; `reading` is faithful or corrected."""
    values = [m[reading][name]["value"] if reading == "corrected" else m[reading][name] for m in metrics]
    return float(np.mean(values)), min(values), max(values)
