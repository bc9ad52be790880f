"""Arithmetic on published figures, chapter 17: no model, no data, only params/released.yaml, released_alif.yaml and audit.yaml."""

from fractions import Fraction

import numpy as np

from .knobs import read_yaml
from .paths import PARAMS
from .stats import wilson

AUDIT_KEYS = ("number", "item", "paper", "code", "evidence", "source", "changes", "here")
LARGEST_TOTAL = 250_000  # n-grams searched; 836 outputs of at most 256 tokens hold fewer


def released(name="released"):
    """Return the published figures: key -> value, as printed (params/<name>.yaml has the source of each)."""
    return {key: entry["value"] for key, entry in read_yaml(PARAMS / f"{name}.yaml").items()}


def sources(name="released"):
    """Return where each published figure stands, as rows of a table."""
    return [{"figure": key.replace("_", " "), "source": entry["source"]} for key, entry in read_yaml(PARAMS / f"{name}.yaml").items()]


def audit():
    """Return the audit of the released code: a list of mappings with AUDIT_KEYS (params/audit.yaml)."""
    return read_yaml(PARAMS / "audit.yaml")


def audit_rows():
    """Return the audit as rows of a table, with headings for readers."""
    return [{"item": f"{entry['number']}. {entry['item']}", "the paper says": entry["paper"], "the code does": breakable(entry["code"]),
             "how we know": f"{entry['evidence']}\n{breakable(entry['source'])}",
             "a conclusion changed? what we do": f"{entry['changes']}\nHere: {entry['here']}"} for entry in audit()]


def breakable(path):
    """Return the text with places where a browser may break a line (zero-width spaces) after / and _."""
    return path.replace("/", "/\u200b").replace("_", "_\u200b")


def counts_behind(percent, n, digits=2):
    """Return the whole numbers k whose share 100 k / n is printed as `percent` with that many digits; mostly none or one."""
    near, half = round(percent * n / 100), 0.5 * 10**-digits + 1e-9
    return [k for k in (near - 1, near, near + 1) if 0 <= k <= n and abs(100 * k / n - percent) <= half]


def counts_of_percentages(figures):
    """Return (model, column) -> the counts of outputs behind each printed percentage of Table II (`counts_behind`)."""
    return {(model, column): counts_behind(percent, figures["outputs"])
            for model, row in figures["percent"].items() for column, percent in row.items()}


def compare_counts(first, second, n_first, n_second):
    """Return the unpaired comparison of two counts: difference, low, high (percentage points, second minus first), p's.

    p_z is the two-sided z-test with pooled variance (statsmodels), p_fisher Fisher's exact test (scipy); the interval is
    Wald's, 95 %.
    """
    from scipy.stats import fisher_exact
    from statsmodels.stats.proportion import confint_proportions_2indep, proportions_ztest

    z, p_z = proportions_ztest([second, first], [n_second, n_first])
    low, high = confint_proportions_2indep(second, n_second, first, n_first, method="wald", compare="diff")
    fisher = fisher_exact([[second, n_second - second], [first, n_first - first]])
    return {"difference": 100 * (second / n_second - first / n_first), "low": 100 * float(low), "high": 100 * float(high),
            "z": float(z), "p_z": float(p_z), "p_fisher": float(fisher.pvalue)}


def paired_range(first, second, n):
    """Return the two p-values of McNemar's exact test between which any pairing of two counts of the same n prompts lies.

    The first pairs the successes as far as possible, the second as little as possible.
    """
    from scipy.stats import binomtest

    low, high = sorted((first, second))
    most = (low - max(0, low + high - n), high - max(0, low + high - n))
    return [float(binomtest(a, a + b).pvalue) for a, b in ((0, high - low), most)]


def whole_fractions(value, largest=LARGEST_TOTAL):
    """Return all (numerator, denominator) up to `largest` whose quotient is exactly this floating-point number."""
    simple = Fraction(value).limit_denominator(largest)
    if float(simple) != value:
        return []
    return [(simple.numerator * i, simple.denominator * i) for i in range(1, largest // simple.denominator + 1)]


def ngram_totals(distinct_2, distinct_3, outputs, max_words):
    """Return the n-gram counts that both distinct fractions allow, as dicts; words are whitespace words.

    The released code counts max(1, words - 1) bigrams and max(1, words - 2) trigrams per output, so the two totals differ
    by the number of outputs with three words or more; none of these has more than `max_words`.
    """
    found = []
    for unique_2, total_2 in whole_fractions(distinct_2):
        for unique_3, total_3 in whole_fractions(distinct_3):
            longer = total_2 - total_3
            if 0 < longer <= outputs and total_2 - (outputs - longer) <= longer * (max_words - 1):
                found.append({"bigrams": total_2, "unique bigrams": unique_2, "trigrams": total_3, "unique trigrams": unique_3,
                              "outputs of at most 2 words": outputs - longer, "mean words": (total_2 + outputs) / outputs})
    return found


def recovered_lengths(figures):
    """Return one row per model and solution of `ngram_totals`, with words per second from the logged time per output."""
    return [{"model": figures["names"][model], **solution,
             "words per second": solution["mean words"] / figures["seconds_per_output"][model]}
            for model, row in figures["distinct"].items()
            for solution in ngram_totals(row["distinct_2"], row["distinct_3"], figures["outputs"], figures["max_new_tokens"])]


def label_shares(figures):
    """Return (model, label) -> count, n, value, low, high: shares of the GLF and MSA labels with 95 % Wilson intervals."""
    shares = {}
    for model, labels in figures["labels"].items():
        for label in ("GLF", "MSA"):
            shares[model, label] = {"model": model, "label": label, "count": labels[label], **wilson(labels[label], sum(labels.values()))}
    return shares


def split_rows(figures):
    """Return one row per printed split: n, share, the paper's share (percent), dialects, and labels in capitals."""
    splits = figures["splits"]
    total = sum(split["n"] for split in splits.values())
    return [{"split": name, "n": split["n"], "share %": 100 * split["n"] / total, "paper %": 100 * share,
             "Hijazi": split["Hijazi"] + split["HIJAZI"], "Najdi": split["Najdi"] + split["NAJDI"],
             "of these in capitals": split["HIJAZI"] + split["NAJDI"]}
            for (name, split), share in zip(splits.items(), figures["split_shares"])]


def floor_split(sizes, shares):
    """Return the rows in train, dev and test when each bucket gives floor(share * size) to the first two and the rest to test."""
    sizes = np.asarray(sizes)
    train, dev = (np.floor(share * sizes + 1e-9).astype(int).sum() for share in shares[:2])
    return [int(train), int(dev), int(sizes.sum() - train - dev)]


def buckets_needed(train, dev, total, shares):
    """Return (regular, single): how many buckets of many rows and of one row explain the rows that rounding down took.

    A bucket of many rows loses on average the mean fractional part of share * size; a bucket of one row loses the share.
    """
    losses = [[float(np.mean(share * np.arange(10) % 1.0)), share] for share in shares[:2]]
    regular, single = np.linalg.solve(losses, [shares[0] * total - train, shares[1] * total - dev])
    return float(regular), float(single)


def denominators(percents, largest):
    """Return every denominator up to `largest` from which all these percentages (two decimals) can come."""
    return [n for n in range(1, largest + 1) if all(counts_behind(percent, n) for percent in percents)]


def human_designs(figures):
    """Return one row per possible design of the human ratings: its denominator, how many printed percentages fit, and what rating
    from 1 to 5 Token's dialect score would be."""
    printed, score = [p for row in figures["human_percent"].values() for p in row.values()], figures["human_percent"]["token"]["dialect"]
    rows = []
    for design in figures["human_designs"]:
        size = design["raters"] * design["prompts"] * design["points"]
        rows.append({**{key: design[key] for key in ("raters", "prompts", "scale")}, "denominator": size,
                     "percentages that fit": sum(bool(counts_behind(percent, size)) for percent in printed),
                     "Token, dialect, as a rating": (5 - design["points"]) + design["points"] * score / 100})
    return rows


def losses_per(figures):
    """Return variant -> tokens per training example, and the best dev loss in nats per token and per example.

    Packed rows of `row_tokens`, two per batch (the last may hold one); the first token of a row is not predicted.
    """
    length, splits = figures["row_tokens"], figures["splits"]
    return {name: {"tokens per training example": 2 * log["batches"] * length / splits["train"]["n"],
                   "nats per token": log["best_dev_loss"],
                   "nats per example": log["best_dev_loss"] * log["dev_rows"] * (length - 1) / splits["dev"]["n"]}
            for name, log in figures["training_logs"].items()}


def smoothed(values, weight=0.6):
    """Return the exponential moving average: weight on the average so far, the rest on the new value."""
    averages = [values[0]]
    for value in values[1:]:
        averages.append(weight * averages[-1] + (1 - weight) * value)
    return averages


def loss_curve(figures, variant, accumulation=8):
    """Return the dev loss of "token" or "no_token" as rows of step, logged (nats per token) and smoothed, as in figure 6.

    An epoch ends at the step of its last whole group of `accumulation` batches. Token's points in the figure include five of
    another run (`figure_six` in params/released.yaml).
    """
    losses, batches = figures["dev_loss"][variant], figures["training_logs"][variant]["batches"]
    points = [(epoch * batches // accumulation, loss) for epoch, loss in enumerate(losses, 1)]
    if variant == "token":
        other = figures["figure_six"]["other_run"]
        points = sorted([*points, *zip(other["steps"], other["loss"])])
    return [{"variant": variant, "step": step, "logged": loss, "smoothed": average, "run": "this" if loss in losses else "another"}
            for (step, loss), average in zip(points, smoothed([loss for _, loss in points]))]


def lowest_losses(figures):
    """Return variant -> lowest dev loss and its step: in the log, smoothed here, and read from figure 6 (nats per token)."""
    lowest = {}
    for variant, printed in (("no_token", figures["figure_six"]["no_token"]), ("token", figures["figure_six"]["token"])):
        rows = loss_curve(figures, variant)
        log, drawn = min((r for r in rows if r["run"] == "this"), key=lambda r: r["logged"]), min(rows, key=lambda r: r["smoothed"])
        lowest[variant] = {"log": log["logged"], "log, step": log["step"], "smoothed here": round(drawn["smoothed"], 3),
                           "smoothed, step": drawn["step"], "figure 6": printed["minimum"]}
    return lowest


def gains_unrounded(figures):
    """Return the gain of Token over the base, from the unrounded reports: chrF (0 to 100) and BERTScore (0 to 1)."""
    return {name: figures[key]["token"] - figures[key]["base"]
            for name, key in (("chrF", "chrf_unrounded"), ("BERTScore", "bertscore_unrounded"))}


def against_paper(figures):
    """Return one row per printed figure that other printed figures decide: paper, here, and the verdict exact or inconsistent."""
    names, pairs, splits = figures["names"], figures["pairs"], split_rows(figures)
    counts, gains, total = counts_of_percentages(figures), gains_unrounded(figures), sum(row["n"] for row in splits)
    five = 100 * sum(sorted(figures["top_topics"].values())[-5:]) / pairs
    scales = {round(row["repository"] / row["paper"]) for row in figures["self_bleu"].values()}
    rows = []

    def add(figure, paper, here, same):
        rows.append({"figure": figure, "paper": paper, "here": here, "verdict": "exact" if same else "inconsistent"})

    for column in figures["percent"]["base"]:
        fit = sum(bool(counts[model, column]) for model in names)
        add(f"{column} %: a share of {figures['outputs']} outputs", f"{len(names)} values", f"{fit} fit a count", fit == len(names))
    add("pairs", f"{pairs:,}", f"{total:,} were split", pairs == total)
    add("shares of the splits, %", "/".join(f"{row['paper %']:.0f}" for row in splits), "/".join(f"{row['share %']:.1f}" for row in splits),
        all(round(row["share %"]) == round(row["paper %"]) for row in splits))
    add("five largest topics, % of the dataset", f"≈{figures['top_five_percent']}", f"{five:.1f}",
        round(five) == figures["top_five_percent"])
    add("scales of Self-BLEU in one column", "1", str(len(scales)), len(scales) == 1)
    for name, digits in (("chrF", 2), ("BERTScore", 3)):
        printed = figures[name.lower()]["difference"]
        add(f"{name}, Token − base", f"{printed:+.{digits}f}", f"{gains[name]:+.{digits + 2}f}", round(gains[name], digits) == printed)
    for variant, row in lowest_losses(figures).items():
        add(f"lowest dev loss, {names[variant]}", f"{row['figure 6']:.3f} (figure 6)", f"{row['log']:.4f} (log)",
            round(row["log"], 3) == row["figure 6"])
    return rows


def best_of_table_two(figures):
    """Return column -> the models with its best printed value, and how many stand before No-Token and before Token.

    Human ratings are included for the four models that have them. Higher is better, but for MSA leak, low confidence and
    Self-BLEU (on the repository's one scale).
    """
    columns = {f"{c} %": ({m: row[c] for m, row in figures["percent"].items()}, c == "Saudi") for c in ("Saudi", "MSA leak", "low confidence")}
    columns |= {c: ({m: row[c] for m, row in figures["text_metrics"].items()}, True) for c in figures["text_metrics"]["base"]}
    columns["Self-BLEU"] = {m: row["repository"] for m, row in figures["self_bleu"].items()}, False
    columns |= {f"human, {c} %": ({m: row[c] for m, row in figures["human_percent"].items()}, True) for c in figures["human_percent"]["token"]}
    found = {}
    for column, (values, high) in columns.items():
        better = (lambda a, b: a > b) if high else (lambda a, b: a < b)
        before = {m: sum(better(v, values[m]) for o, v in values.items() if o not in ("token", "no_token")) for m in ("token", "no_token")}
        found[column] = {"best": [m for m, v in values.items() if not any(better(o, v) for o in values.values())],
                         "other models before No-Token": before["no_token"], "other models before Token": before["token"]}
    return found


def alif_checks(figures):
    """Return what Alif's printed figures give when computed with: sums, shares, means and scales (params/released_alif.yaml)."""
    tasks, blend, lora = figures["tasks"], figures["blend"], figures["lora"]
    averages, test = figures["averages"], {task: row["test"] for task, row in tasks.items()}
    table = figures["urdu_eval"]
    return {
        "training items": sum(row["train"] for row in tasks.values()), "test items": sum(test.values()), "blend": sum(blend.values()),
        "English share of the blend": (blend["Alpaca"] + blend["OpenOrca"]) / sum(blend.values()),
        "Alpaca items": int(figures["alpaca"]["items"] * figures["alpaca"]["share"]),
        "hours": figures["hours"]["stage 1"] + figures["hours"]["stage 2"],
        "LoRA scale": lora["alpha"] / lora["r"], "LoRA scale, rank-stabilised": lora["alpha"] / lora["r"] ** 0.5,
        "lead over the next model": round(averages["Alif"] - max(v for m, v in averages.items() if m != "Alif"), 1),
        "English tests lower than the base": sum(after < before for before, after in figures["english"].values()),
        "tasks of Urdu-Eval with Alif before Llama": sum(table["Alif-1.0-8B-Instruct"]["tasks"][t] > table["Llama-3.1-8B-Instruct"]["tasks"][t] for t in tasks),
        "overall, plain mean": {m: round(float(np.mean(list(row["tasks"].values()))), 2) for m, row in table.items()},
        "overall, weighted by items": {m: round(sum(row["tasks"][t] * n for t, n in test.items()) / sum(test.values()), 2) for m, row in table.items()},
    }
