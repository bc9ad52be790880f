"""What chapter 14 shows: aligned models before and after, margins, length."""

import numpy as np

from .findings import finding
from .metrics import distinct_at_budget
from .preference import EXPERIMENTS, REJECTED
from .show import COLOURS, MARKERS, NAMES, errors, interval, new_figure, save_figure
from .stats import bootstrap_mean

MEASURES = {"MSA share": "lower", "requested-dialect accuracy": "higher", "chrF++": "higher", "words": ""}  # and which way is better
SHARES = ("MSA share", "requested-dialect accuracy")  # shown in percent
BETA_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#E69F00")


def label_of(experiment, rejected, beta):
    """Return the name of a model in tables and figures."""
    return NAMES[experiment] + (f", DPO against {rejected.upper() if rejected == 'msa' else 'other dialect'}, β {beta}" if rejected else ", before")


def pooled(some, name):
    """Return one measure over several seeds, one after the other."""
    return np.concatenate([one[name] for one in some])


def measure_rows(results, english_characters, resamples):
    """Return per model each measure over its seeds with its 95 % interval, diversity at equal length, English bits."""
    budget = min(sum(max(0, len(text.split()) - 1) for one in some[:1] for text in one["texts"]) for some in results.values()) // 2
    rows = []
    for key, some in results.items():
        row = {"model": label_of(*key), "seeds": len(some), "answers": len(pooled(some, "scenario"))}
        for name in MEASURES:
            row[name] = interval(bootstrap_mean(pooled(some, name), pooled(some, "scenario"), resamples), 1, 100 if name in SHARES else 1)
        row["distinct-2"] = interval(distinct_at_budget(list(pooled(some, "texts")), 2, budget), 3)
        rows.append(row | {"English bits per character": float(pooled(some, "english").sum() / len(some) / sum(english_characters))})
    return rows


def findings(results, main_beta, english_ids, english_characters, resamples):
    """Return the chapter's tests: each measure before and after, per experiment; and the same for the other dialect rejected."""
    tests = []

    def compare(name, what, key, measure, better):
        after = results[key]
        before = [one for one in results[key[0], "", None] if one["seed"] in {two["seed"] for two in after}]
        scale = np.mean(english_characters) if measure == "english" else 0.01 if measure in SHARES else 1
        groups = np.tile(english_ids, len(after)) if measure == "english" else pooled(after, "scenario")
        seeds = np.repeat([one["seed"] for one in after], len(after[0][measure]))
        tests.append(finding(name, what, pooled(before, measure) / scale, pooled(after, measure) / scale, groups, seeds, resamples, better))

    for experiment in EXPERIMENTS:
        for rejected in REJECTED:
            for measure, better in MEASURES.items() if rejected == "msa" else list(MEASURES.items())[:2]:
                slug = measure.lower().replace("++", "").replace(" ", "_").replace("-", "_")
                compare(f"dpo_{rejected}_{experiment}_{slug}", f"{NAMES[experiment]}, {REJECTED[rejected]} rejected, {measure}: before, after",
                        (experiment, rejected, main_beta), measure, better)
        compare(f"dpo_msa_{experiment}_english", f"{NAMES[experiment]}, {REJECTED['msa']} rejected, English bits per character: before, after",
                (experiment, "msa", main_beta), "english", "lower")
    return tests


def draw_training(run, records):
    """Draw reward margins and the share of pairs ranked right during training, one colour per beta, dashed for No-Token."""
    figure, axes = new_figure(width=8, columns=2)
    betas = sorted({beta for _, _, beta in records})
    for (experiment, rejected, beta), some in records.items():
        if rejected == "msa":
            steps = [row["step"] for row in some[0]["train"]]
            for axis, name in zip(axes, ("margin", "accuracy")):
                axis.plot(steps, np.mean([[row[name] for row in record["train"]] for record in some], axis=0), color=BETA_COLOURS[betas.index(beta)],
                          linestyle="--" if experiment == "no_token" else "-", label=f"{NAMES[experiment]}, β {beta}")
    axes[0].set(xlabel="step", ylabel="reward margin, chosen over rejected")
    axes[1].set(xlabel="step", ylabel="share of pairs with a positive margin", ylim=(0, 1.02))
    axes[1].legend(fontsize=7)
    save_figure(figure, run, "dpo_training", [{"model": label_of(*key), "seed": record["seed"], **row}
                                              for key, some in records.items() for record in some for row in record["train"]])


def draw_outcomes(run, results, resamples):
    """Draw each measure of each model with its 95 % interval, before and after."""
    figure, axes = new_figure(width=10, height=3.6, columns=4)
    for axis, name in zip(axes, MEASURES):
        for row, (key, some) in enumerate(results.items()):
            found, scale = bootstrap_mean(pooled(some, name), pooled(some, "scenario"), resamples), 100 if name in SHARES else 1
            axis.errorbar(scale * found["value"], row, xerr=errors([found], scale), fmt=MARKERS[key[0]], color=COLOURS[key[0]],
                          fillstyle="none" if not key[1] else "full", markersize=5, capsize=2)
        axis.set(xlabel=name + (" (%)" if name in SHARES else ""), yticks=range(len(results)))
        axis.set_yticklabels([label_of(*key) for key in results] if name == "MSA share" else [], fontsize=7)
        axis.invert_yaxis()
    save_figure(figure, run, "dpo_outcomes", measure_rows(results, [1], resamples))


def length_rows(records):
    """Return per model how the dev margin goes with length: share of longer chosen answers, Spearman's rho and its p, accuracy by length."""
    from scipy.stats import spearmanr

    rows = []
    for key, some in records.items():
        dev = [row for record in some for row in record["dev"]]
        longer, margin = (np.array([row["chosen_words"] - row["rejected_words"] for row in dev]), np.array([row["margin"] for row in dev]))
        first = len(some[0]["dev"])
        rho = spearmanr(longer[:first], np.mean([[row["margin"] for row in record["dev"]] for record in some], axis=0))
        rows.append({"model": label_of(*key), "dev pairs": first, "chosen minus rejected, words": float(longer[:first].mean()),
                     "rho of margin and length": float(rho.statistic), "p": float(rho.pvalue),
                     "ranked right %": 100 * float((margin > 0).mean()), "where chosen is longer": 100 * float((margin[longer > 0] > 0).mean()),
                     "where it is not": 100 * float((margin[longer <= 0] > 0).mean())})
    return rows


def draw_length(run, records, main_beta):
    """Draw the dev margin of each pair against how many words longer its chosen answer is, for both experiments."""
    figure, axes = new_figure(width=8, columns=2)
    for axis, experiment in zip(axes, EXPERIMENTS):
        dev = records[experiment, "msa", main_beta][0]["dev"]
        axis.scatter([row["chosen_words"] - row["rejected_words"] for row in dev], [row["margin"] for row in dev], s=8, alpha=0.5,
                     color=COLOURS[experiment], linewidth=0)
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set(title=f"{NAMES[experiment]}, β {main_beta}", xlabel="chosen minus rejected (words)")
    axes[0].set_ylabel("reward margin on dev")
    save_figure(figure, run, "dpo_length", [{"experiment": experiment, **row} for experiment in EXPERIMENTS
                                            for row in records[experiment, "msa", main_beta][0]["dev"]])
