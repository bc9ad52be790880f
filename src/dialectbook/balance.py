"""What chapter 11 shows: mixtures of two languages, what each part of the recipe buys, and models of three sizes."""

import numpy as np

from .english import continued
from .findings import compare_runs, draw_curve, finding, mean_bits, rows_of_text, text_groups
from .show import interval, new_figure, save_figure
from .stats import ratio_of_sums

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
SETS = ("MSA", "English", "Mixed")
PAINT = {0.0: "#56B4E9", 0.25: "#0072B2", 0.5: "#009E73", 0.75: "#E69F00", 1.0: "#D55E00"}
PARTS = {"no expansion": {"start": "", "share": 1.0}, "expansion, random start": {"start": "random", "share": 1.0},
         "expansion, mean start": {"start": "pieces", "share": 1.0}, "mean start, half English": {"start": "pieces", "share": 0.5}}


def run_seeds(knobs, run, read, held_out, additions, **options):
    """Return one record per seed of `english.continued`; the English model has met some Arabic, as real ones have."""
    return [continued(knobs, run, read, held_out, additions, seed, **({"met": knobs.met_tokens} | options)) for seed in knobs.seeds]


def run_mixtures(*arguments):
    """Return (share, parallel) -> records. Parallel texts need both languages, so there are none at 0 and 100 % Arabic."""
    return {(share, parallel): run_seeds(*arguments, share=share, parallel=parallel)
            for share in SHARES for parallel in (False, True) if not parallel or 0 < share < 1}


def run_sizes(knobs, *arguments, share=0.5):
    """Return hidden size -> records with this share of Arabic, smallest model first; nothing if there is one size only."""
    sizes = sorted(knobs.english_sizes) if len(knobs.english_sizes) > 1 else []
    return {size: run_seeds(knobs, *arguments, size=size, share=share) for size in sizes}


def budget_row(knobs, parameters, flops):
    """Return how many trainings this chapter makes, and an estimate of their memory and time before they start.

    A float32 weight has a gradient and two moments of Adam; a token costs 6 operations per weight; a third of the measured
    matrix speed is taken as reached. Measuring on test texts comes on top, about as long again for a twin.
    """
    each = len(SHARES) + len(SHARES) - 2 + len(PARTS) - 2 + 1 + 2 * (len(knobs.english_sizes) - 1)
    runs = each * len(knobs.seeds)
    return {"trainings": runs, "tokens each": knobs.balance_tokens, "parameters": parameters, "memory (GiB)": 16 * parameters / 2**30,
            "training (minutes)": runs * knobs.balance_tokens * 6 * parameters / (flops / 3) / 60}


def change(records, name):
    """Return per text and seed the change of bits per character from start to end, weighted as in the whole text."""
    return rows_of_text(records, name) - rows_of_text(records, name, "start_bits")


def bits_rows(labelled, resamples):
    """Return per label: bits per character at the end on each test set with its 95 % interval, and the text read."""
    rows = []
    for label, records in labelled.items():
        row = {"run": label, "characters read": records[0]["characters"]}
        for name in SETS:
            bits, characters = (np.concatenate([record[key][name] for record in records]) for key in ("text_bits", "text_characters"))
            row[f"{name} [95 %]"] = interval(ratio_of_sums(bits, characters, text_groups(records, name), resamples))
        rows.append(row | {"seeds": len(records)})
    return rows


def label_of(share, parallel=False):
    """Return the name of a mixture in tables and figures."""
    return f"{100 * share:.0f} % Arabic{', parallel' if parallel else ''}"


def draw_mixtures(run, mixtures):
    """Draw bits per character against tokens for each mixture: one panel per test set, dashed lines with parallel texts."""
    figure, axes = new_figure(width=9.5, columns=3)
    for axis, name in zip(axes, SETS):
        for (share, parallel), records in mixtures.items():
            draw_curve(axis, records, name, PAINT[share], label_of(share, parallel), linestyle="--" if parallel else "-")
        axis.set(title=name, xlabel="training tokens")
        axis.ticklabel_format(axis="x", style="plain")
        axis.tick_params(axis="x", labelsize=7)
    axes[0].set_ylabel("bits per character (band: all seeds)")
    axes[0].legend(fontsize=6)
    save_figure(figure, run, "mixtures", [
        {"share": share, "parallel": parallel, "seed": record["settings"]["seed"], "tokens": point["tokens"], **point["bits"]}
        for (share, parallel), records in mixtures.items() for record in records for point in record["curve"]])


def draw_trade(run, mixtures, sizes):
    """Draw English against MSA at the end: one point per mixture on the left, one arrow from start to end per model on the right."""
    figure, (left, right) = new_figure(width=8, columns=2)
    for (share, parallel), records in mixtures.items():
        left.plot(mean_bits(records, "MSA"), mean_bits(records, "English"), "^" if parallel else "o", color=PAINT[share],
                  label=label_of(share, parallel), markersize=6)
    left.axhline(mean_bits(mixtures[0.5, False], "English", 0), color="black", linestyle=":", label="English before")
    left.set(title="mixtures", xlabel="MSA, bits per character", ylabel="English, bits per character")
    left.legend(fontsize=6)
    for (size, records), colour in zip(sizes.items(), ("#56B4E9", "#0072B2", "#000000")):
        points = [[mean_bits(records, name, at) for name in ("MSA", "English")] for at in (0, -1)]
        right.annotate("", points[1], points[0], arrowprops={"arrowstyle": "->", "color": colour})
        right.plot(*zip(*points), "o", color=colour, markersize=4, label=f"hidden size {size}")
    right.set(title="model size, half Arabic: start to end", xlabel="MSA, bits per character")
    right.legend(fontsize=7)
    save_figure(figure, run, "trade", [
        {"run": str(label), "seed": record["settings"]["seed"], **record["curve"][-1]["bits"]}
        for label, records in [*mixtures.items(), *sizes.items()] for record in records])


def size_rows(sizes, mixture):
    """Return per hidden size: bits per character before and after, and both changes."""
    return [{"hidden size": size, "mixture": mixture, **{f"{name} {word}": value for name in ("MSA", "English") for word, value in (
                ("before", mean_bits(records, name, 0)), ("after", mean_bits(records, name)),
                ("change", mean_bits(records, name) - mean_bits(records, name, 0)))}} for size, records in sizes.items()]


def findings(parts, mixtures, phases, sizes, sizes_arabic, resamples):
    """Return the chapter's tests on bits per character: lower is better, second minus first."""
    half, whole = mixtures[0.5, False], mixtures[1.0, False]

    def compare(name, what, first, second, test_set, at=("text_bits", "text_bits")):
        return compare_runs(name, what, first, second, test_set, resamples, at)

    names = list(parts)
    tests = [
        compare("expansion_msa", "MSA: no expansion, expansion with random start", parts[names[0]], parts[names[1]], "MSA"),
        compare("mean_start_msa", "MSA: random start, mean start", parts[names[1]], parts[names[2]], "MSA"),
        compare("mixture_msa", "MSA: all Arabic, half English", whole, half, "MSA"),
        compare("mixture_english", "English: all Arabic, half English", whole, half, "English"),
        compare("mixture_mixed", "mixed languages: all Arabic, half English", whole, half, "Mixed"),
        compare("expansion_english_step0", "English at step 0: old tokenizer, expanded", parts[names[0]], half, "English", ("start_bits", "start_bits")),
        compare("forgetting_all_arabic", "English: before, after all Arabic", whole, whole, "English", ("start_bits", "text_bits")),
        compare("forgetting_half", "English: before, after half English", half, half, "English", ("start_bits", "text_bits")),
        compare("gain_half", "MSA: before, after half English", half, half, "MSA", ("start_bits", "text_bits")),
        *(compare(f"parallel_{test_set.lower()}", f"{test_set}, half English: texts apart, parallel", half, mixtures[0.5, True], test_set) for test_set in SETS),
        *(compare(f"new_first_{test_set.lower()}", f"{test_set}, half English: all weights at once, new embeddings first", half, phases, test_set)
          for test_set in ("MSA", "English")),
    ]
    for mixture, some in (("half English", sizes), ("all Arabic", sizes_arabic)):
        if some:
            small, large = list(some.values())[0], list(some.values())[-1]
            slug = mixture.lower().replace(" ", "_")
            seeds = np.repeat([record["settings"]["seed"] for record in small], len(small[0]["text_bits"]["MSA"]))
            tests += [finding(f"size_{test_set.lower()}_{slug}", f"change of {test_set}, {mixture}: smallest model, largest", change(small, test_set),
                              change(large, test_set), text_groups(small, test_set), seeds, resamples, "lower") for test_set in ("MSA", "English")]
            tests += [compare(f"size_{place}_english_{slug}", f"English, {place} model, {mixture}: before, after", records, records, "English",
                              ("start_bits", "text_bits")) for place, records in (("smallest", small), ("largest", large))]
    return tests
