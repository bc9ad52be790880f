"""What chapter 16 shows: quantised variants against own precision, per dialect."""

import numpy as np

from .claims import load_claims, verdict_of
from .data import DIALECTS
from .findings import finding
from .quantise import VARIANTS, speed_rows
from .show import COLOURS, NAMES, interval, new_figure, save_figure
from .stats import bootstrap_mean, ratio_of_sums

MEASURES = {"bits": "lower", "requested-dialect accuracy": "higher", "MSA share": "lower", "chrF++": "higher"}  # and which way is better
SHARES = ("requested-dialect accuracy", "MSA share")  # shown in percent
LABELS = {"bits": "bits per character"}


def values_of(some, measure, dialect):
    """Return (values, scenarios, seeds) of the answers in one dialect ("both": in either) over all seeds, as arrays.

    "bits" is divided by the mean length, so that its mean is that of all characters together; shares are 0 or 1.
    """
    chosen = [np.isin(one["dialect"], DIALECTS if dialect == "both" else [dialect]) for one in some]
    values = np.concatenate([one[measure][keep] for one, keep in zip(some, chosen)])
    if measure.endswith("bits"):
        values = values / np.concatenate([one["characters"][keep] for one, keep in zip(some, chosen)]).mean()
    return (values, np.concatenate([np.array(one["scenario"])[keep] for one, keep in zip(some, chosen)]),
            np.concatenate([np.full(keep.sum(), one["seed"]) for one, keep in zip(some, chosen)]))


def kept(results, bits, dialect, resamples):
    """Return how much of the bits that tuning gained over the base a variant keeps, in percent with its interval over scenarios."""
    base, scenarios, _ = values_of(results[0], "base bits", dialect)
    own, variant = (values_of(results[which], "bits", dialect)[0] for which in (0, bits))
    return ratio_of_sums(100 * (base - variant), base - own, scenarios, resamples)


def quality_rows(results, resamples):
    """Return one row per variant and dialect: each measure with its 95 % interval over scenarios, and the answers that stay word for word."""
    rows = []
    for bits, some in results.items():
        for dialect in DIALECTS:
            row = {"variant": VARIANTS[bits], "dialect": NAMES[dialect], "seeds": len(some), "n": len(values_of(some, "bits", dialect)[0])}
            for measure in MEASURES:
                values, scenarios, _ = values_of(some, measure, dialect)
                scale = 100 if measure in SHARES else 1
                found = (ratio_of_sums(values, values_of(some, "characters", dialect)[0] / values_of(some, "characters", dialect)[0].mean(), scenarios, resamples)
                         if measure == "bits" else bootstrap_mean(values, scenarios, resamples))
                row[LABELS.get(measure, measure) + " %" * (measure in SHARES)] = interval(found, 3 if measure == "bits" else 1, scale)
            same = [a == b for one, own in zip(some, results[0]) for a, b, d in zip(one["texts"], own["texts"], one["dialect"]) if d == dialect]
            row["kept of the gain by tuning %"] = interval(kept(results, bits, dialect, resamples), 1) if bits else None
            row["words"] = float(values_of(some, "words", dialect)[0].mean())
            rows.append(row | {"same answer as own precision %": 100 * float(np.mean(same)) if bits else None})
    return rows


def test_id(bits, dialect, measure):
    """Return the id of a test, such as int8_hijazi_bits; int8 and int4 stand for 8 and 4 bits."""
    return f"int{bits}_{dialect}_{measure}".lower().replace("++", "").replace(" ", "_").replace("-", "_")


def findings(results, resamples):
    """Return the chapter's tests: each measure in own precision and quantised, per dialect and for both; then whether one dialect loses more."""
    tests = []
    for bits in list(results)[1:]:
        for dialect in (*DIALECTS, "both"):
            for measure, better in MEASURES.items():
                first, scenarios, seeds = values_of(results[0], measure, dialect)
                what = f"{NAMES.get(dialect, 'Both')}, {LABELS.get(measure, measure)}: own precision, {VARIANTS[bits]}"
                tests.append(finding(test_id(bits, dialect, measure), what, first, values_of(results[bits], measure, dialect)[0],
                                     scenarios, seeds, resamples, better))
        lost = [values_of(results[bits], "bits", dialect)[0] - values_of(results[0], "bits", dialect)[0] for dialect in DIALECTS]
        _, scenarios, seeds = values_of(results[0], "bits", DIALECTS[0])  # each question is there in both dialects, in the same order
        tests.append(finding(test_id(bits, "hijazi_against_najdi", "bits"), f"bits per character lost, {VARIANTS[bits]}: Hijazi, Najdi",
                             *lost, scenarios, seeds, resamples))
    return tests


def claim_rows(tests, twin):
    """Return one row per claim of the ledger that this chapter decides: margin, difference with its interval, verdict."""
    by_id = {test["id"]: test for test in tests}
    return [{"claim": claim["claim"], "published": claim["published"], "margin": claim["test"]["margin"],
             "difference here": f"{test['difference']:+.4f} [{test['low']:+.4f}, {test['high']:+.4f}]", "n": test["n"],
             "verdict": verdict_of(test, "same", twin, claim["test"]["margin"])}
            for claim in ledger_claims() if (test := by_id.get(claim["test"]["at"][1]["id"]))]


def ledger_claims():
    """Return the claims of the ledger that this chapter decides."""
    return [claim for claim in load_claims() if claim["chapter"] == "16_quantisation"]


def answer_rows(results, asked, every=5, most=4):
    """Return some prompts and each variant's answer of the first seed; `asked` are the prompts in the order of the answers."""
    return [{"asked for": NAMES[row["dialect"]], "prompt": row["prompt"].split("\n")[1],
             **{VARIANTS[bits]: some[0]["texts"][number] for bits, some in results.items()}}
            for number, row in list(enumerate(asked))[:every * most:every] if results]


# ---- figures -------------------------------------------------------------------------------------------------------

def draw_size(run, sizes, tests, measured):
    """Draw bits per character lost against the size of the file, and the speed of each variant as a ratio with its range."""
    if not tests:
        return
    figure, (left, right) = new_figure(width=9, columns=2)
    lost = {test["id"]: test for test in tests}
    own = {"difference": 0.0, "low": 0.0, "high": 0.0}
    rows = [{"dialect": dialect, "variant": size["variant"], "file (MB)": size["file (MB)"], **{
        key: lost.get(f"int{size['bits']}_{dialect.lower()}_bits", own)[key] for key in own}} for dialect in DIALECTS for size in sizes]
    for dialect, marker, aside in zip(DIALECTS, "os", (-0.01, 0.01)):
        x, y, low, high = (np.array([row[key] for row in rows if row["dialect"] == dialect]) for key in ("file (MB)", *own))
        left.errorbar(x + aside * x.max(), y, yerr=[y - low, high - y], color=COLOURS[dialect], marker=marker, markersize=5, capsize=2,
                      label=NAMES[dialect])
    margin = next(claim["test"]["margin"] for claim in ledger_claims() if claim["id"] == "alif-quantised-8bit")
    left.axhspan(-margin, margin, color="#666666", alpha=0.12, linewidth=0, label="margin of the claim")
    for size, height, aside, align in zip(sizes, y, ((0, -16), (10, -16), (-12, 0)), ("center", "left", "right")):
        left.annotate(size["variant"], (size["file (MB)"], height), aside, textcoords="offset points", ha=align, fontsize=7)
    left.set(xlabel="file (MB)", ylabel="bits per character lost", xlim=(0, 1.15 * max(size["file (MB)"] for size in sizes)))
    left.legend(fontsize=7)
    ratios = [row for row in speed_rows(measured) if row["variant"] != VARIANTS[0]]
    for place, row in enumerate(ratios):
        middle = row["ratio to own precision"]
        right.errorbar(middle, place, xerr=[[middle - row["lowest"]], [row["highest"] - middle]], fmt="D", color="#0072B2", markersize=5, capsize=2)
    right.axvline(1, color="black", linewidth=0.8)
    right.set(yticks=range(len(ratios)), xlabel="speed as a ratio to own precision")
    right.set_yticklabels([f"{row['work']},\n{row['variant']}" for row in ratios], fontsize=7)
    right.invert_yaxis()
    save_figure(figure, run, "quantised_size", rows)


def draw_losses(run, tests):
    """Draw what each variant changes per dialect and measure, with 95 % intervals."""
    if not tests:
        return
    figure, axes = new_figure(width=10, height=2.6, columns=len(MEASURES))
    by_id = {test["id"]: test for test in tests}
    places = [(bits, dialect) for bits in (8, 4) for dialect in (*DIALECTS, "both") if test_id(bits, dialect, "bits") in by_id]
    for axis, measure in zip(axes, MEASURES):
        for place, (bits, dialect) in enumerate(places):
            test, scale = by_id[test_id(bits, dialect, measure)], 100 if measure in SHARES else 1
            value, low, high = (scale * test[key] for key in ("difference", "low", "high"))
            axis.errorbar(value, place, xerr=[[value - low], [high - value]], fmt="o", color=COLOURS.get(dialect, "black"), markersize=5, capsize=2)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set(xlabel=LABELS.get(measure, measure) + " (points)" * (measure in SHARES), yticks=range(len(places)))
        axis.set_yticklabels([f"{bits}-bit, {NAMES.get(dialect, 'both')}" for bits, dialect in places] if measure == "bits" else [], fontsize=7)
        axis.invert_yaxis()
    save_figure(figure, run, "quantised_losses", [{key: test[key] for key in ("id", "what", "first", "second", "difference", "low", "high", "p", "n")}
                                                  for test in tests])
