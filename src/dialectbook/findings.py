"""Findings: paired comparisons in one shape, which a chapter's results file lists under "tests" and the ledger reads.

The second half reads the records of `english.continued`: bits per character along a training.
"""

import numpy as np

from .stats import holm, paired_difference


def finding(name, what, first, second, groups, seeds, resamples, better=""):
    """Return one comparison, second minus first, on the same rows: id, what, first, second, difference, low, high, p, n, seeds.

    `groups` has the scenario of each row and `seeds` its training seed. Interval and p come from `paired_difference`, over
    scenarios; "seeds" holds the difference in each seed alone, since a few trainings are no sample to test on. `better`
    is "lower" or "higher": the direction in which second wins.
    """
    first, second, seeds = np.asarray(first, dtype=float), np.asarray(second, dtype=float), np.asarray(seeds)
    result = paired_difference(first, second, groups, resamples)
    return {"id": name, "what": what, "first": float(first.mean()), "second": float(second.mean()), "better": better,
            "difference": result["difference"], "low": result["low"], "high": result["high"], "p": result["p"],
            "n": result["n"], "scenarios": result["groups"],
            "seeds": [float((second - first)[seeds == seed].mean()) for seed in np.unique(seeds)]}


def with_holm(tests):
    """Return the tests with "p_holm": p-values corrected by Holm's method for all tests of the chapter."""
    return [{**test, "p_holm": p} for test, p in zip(tests, holm([test["p"] for test in tests]))]


def reading(test):
    """Return what a test says: "better", "worse", or "not told apart" (p after Holm below 0.05, and every seed must agree)."""
    agree = len({value > 0 for value in test["seeds"]}) == 1
    if test["p_holm"] >= 0.05 or not agree:
        return "not told apart"
    return "better" if (test["difference"] > 0) == (test["better"] == "higher") else "worse"


def finding_rows(tests, digits=3):
    """Return the tests as rows for a table that people read."""
    from .show import p_value

    return [{"comparison": test["what"], "first": round(test["first"], digits), "second": round(test["second"], digits),
             "difference [95 %]": f"{test['difference']:+.{digits}f} [{test['low']:+.{digits}f}, {test['high']:+.{digits}f}]",
             "each seed": ", ".join(f"{value:+.{digits}f}" for value in test["seeds"]),
             "p (Holm)": p_value(test["p_holm"]), "n": test["n"]} for test in tests]


# ---- records of continued pre-training -----------------------------------------------------------------------------

def rows_of_text(records, name, at="text_bits"):
    """Return bits per character of each held-out text and record, as one array; its mean is that of all text together."""
    return np.concatenate([np.array(record[at][name]) / np.mean(record["text_characters"][name]) for record in records])


def text_groups(records, name):
    """Return the number of each held-out text, once per record: the groups of `rows_of_text`, each text a scenario of its own."""
    return np.tile(np.arange(len(records[0]["text_bits"][name])), len(records))


def compare_runs(name, what, first, second, test_set, resamples, at=("text_bits", "text_bits")):
    """Return the `finding` on bits per character of two lists of records, one per seed; lower is better.

    `at` says for each list whether its bits are those of the start ("start_bits") or of the end ("text_bits").
    """
    seeds = np.repeat([record["settings"]["seed"] for record in second], len(second[0]["text_bits"][test_set]))
    return finding(name, what, rows_of_text(first, test_set, at[0]), rows_of_text(second, test_set, at[1]),
                   text_groups(second, test_set), seeds, resamples, better="lower")


def mean_bits(records, name, point=-1):
    """Return the mean over seeds of bits per character at one point of the curve (the last by default)."""
    return float(np.mean([record["curve"][point]["bits"][name] for record in records]))


def draw_curve(axis, records, name, colour, label, along="tokens", **style):
    """Draw bits per character against tokens (or characters) read: the mean of the seeds, with a band from lowest to highest."""
    x = [point[along] for point in records[0]["curve"]]
    y = np.array([[point["bits"][name] for point in record["curve"]] for record in records])
    axis.plot(x, y.mean(0), color=colour, label=label, **style)
    axis.fill_between(x, y.min(0), y.max(0), color=colour, alpha=0.15, linewidth=0)


def tokens_to_reach(curve, name, level):
    """Return the tokens after which a curve of bits per character is at or below a level, interpolated; None if never."""
    for before, after in zip([None, *curve], curve):
        if after["bits"][name] <= level:
            if before is None:
                return 0
            gap = before["bits"][name] - after["bits"][name]
            return before["tokens"] + (after["tokens"] - before["tokens"]) * (before["bits"][name] - level) / gap
    return None
