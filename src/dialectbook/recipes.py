"""What chapters 12 and 13 show: recipes of two stages compared, and English replay against dialect, with tests and figures."""

from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from .data import DIALECTS
from .files import fingerprint, read_json, write_json
from .findings import finding
from .model import identity_of, load_base, load_tokenizer
from .preference import outcomes
from .retention import retention
from .sample import sample_responses
from .show import errors, interval, new_figure, save_figure
from .stages import BLENDS, base_record, count_tokens, load_adapter, test_prompts, train_recipe
from .stats import bootstrap_mean, ratio_of_sums

RECIPES = {"both stages": {}, "stage 2 alone": {"stages": (2,)}, "stage 2 alone, all texts": {"stages": (2,), "texts_as_pairs": True},
           "low rank only": {"embeddings": False}, "not rank-stabilised": {"rslora": False}}
SETS = {"dialects": DIALECTS, "Hijazi": ("HIJAZI",), "Najdi": ("NAJDI",), "English": ("English",)}
ITEMS = "English items"
SLUGS = {"English": "english", ITEMS: "items", "dialects": "dialects", "dialect share": "dialect_share", "MSA share": "msa_share", "chrF++": "chrf"}
QUALITY = {"dialect share": "higher", "MSA share": "lower", "chrF++": "higher"}  # and which way is better
PAINT = ("#000000", "#0072B2", "#009E73", "#E69F00", "#D55E00")


# ---- chapter 12 ----------------------------------------------------------------------------------------------------

def budget_row(knobs, data, tokenizer, parameters, trainable, flops):
    """Return how many trainings chapters 12 and 13 make, and an estimate of their memory and time before they start.

    Weights are counted in the profile's precision, what is trained in float32 with a gradient and two moments; a token costs 6
    operations per weight, and a third of the measured matrix speed is taken as reached. Measuring comes on top.
    """
    ranks, shares = len(knobs.stage_ranks) - 1, knobs.replay_shares[1:]
    first, second = 3 + ranks, len(RECIPES) + ranks + 2 * len(shares)  # stage 1 is shared by recipes that differ in stage 2 only
    tokens = [budget or sum(count_tokens(tokenizer, row) for row in rows) for budget, rows in ((knobs.stage1_tokens, data["texts"]), (knobs.stage2_tokens, data["pairs"]))]
    read = len(knobs.seeds) * ((first + 1) * tokens[0] + (second + sum(share / (1 - share) for share in shares)) * tokens[1])  # + 1: all texts as pairs
    width, trainings = {"float32": 4}.get(knobs.dtype, 2), len(knobs.seeds) * (first + second)
    return {"trainings": trainings, "tokens in all": round(read), "parameters": parameters, "trained": trainable,
            "memory without activations (GiB)": (width * parameters + 16 * trainable) / 2**30,
            "adapters on disk (GiB)": trainings * 4 * trainable / 2**30, "training (minutes)": read * 6 * parameters / (flops / 3) / 60}


def run_recipes(knobs, run, data, recipes):
    """Return name -> records of `stages.train_recipe`, one per seed."""
    bar = tqdm([(name, seed) for name in recipes for seed in knobs.seeds], desc="recipes", unit="training")
    records = {name: [] for name in recipes}
    for name, seed in bar:
        records[name].append(train_recipe(knobs, run, data, seed, **recipes[name]))
    return records


def of_base(knobs, run, data):
    """Return the base's record once per seed, to be compared with recipes: nothing in it depends on the seed."""
    record = base_record(knobs, run, data)
    return [record | {"settings": record["settings"] | {"seed": seed}} for seed in knobs.seeds]


def bits_rows(records, name):
    """Return (bits, scenarios, seeds) of all held-out answers of a set of SETS; the mean of bits is that of all text per character."""
    parts = [(record, version) for record in records for version in SETS[name]]
    characters = np.mean([n for record, version in parts for n in record["text_characters"][version]])
    return (np.concatenate([record["text_bits"][version] for record, version in parts]) / characters,
            np.concatenate([record["scenario"][version] for record, version in parts]),
            np.concatenate([[record["settings"]["seed"]] * len(record["text_bits"][version]) for record, version in parts]))


def mean_bits(records, name, resamples):
    """Return {"value", "low", "high"}: bits per character with a 95 % interval over scenarios."""
    parts = [(record, version) for record in records for version in SETS[name]]
    bits, characters, scenarios = (np.concatenate([record[key][version] for record, version in parts])
                                   for key in ("text_bits", "text_characters", "scenario"))
    return ratio_of_sums(bits, characters, scenarios, resamples)


def compare_bits(slug, what, first, second, name, resamples):
    """Return the `finding` on bits per character of one of SETS: second minus first, lower is better."""
    bits, scenarios, seeds = bits_rows(second, name)
    return finding(slug, f"{name}: {what}", bits_rows(first, name)[0], bits, scenarios, seeds, resamples, "lower")


def recipe_rows(runs, resamples):
    """Return per recipe: trained parameters, tokens read, bits per character with 95 % intervals."""
    return [{"recipe": name, "trained, % of all": 100 * records[0]["trainable"] / records[0]["parameters"], "scale": scale_of(records[0]),
             "tokens read": sum(records[0]["counts"].values()),
             **{f"{which} [95 %]": interval(mean_bits(records, which, resamples)) for which in ("Hijazi", "Najdi", "English")}, "seeds": len(records)}
            for name, records in runs.items()]


def scale_of(record):
    """Return what multiplies the adapter's product: alpha / sqrt(rank) when rank-stabilised, else alpha / rank; None without an adapter."""
    settings = record["settings"]
    return settings["stage_lora_alpha"] / settings["rank"] ** (0.5 if settings["rslora"] else 1) if "rank" in settings else None


def recipe_findings(base, runs, ranks, resamples):
    """Return the tests of chapter 12: each part of the recipe taken away, rank by rank, before and after."""
    both, tests = runs["both stages"], []
    for name in ("dialects", "English"):
        slug = name.lower()
        tests += [compare_bits(f"recipe_{slug}", "base, both stages", base, both, name, resamples),
                  compare_bits(f"stages_{slug}", "stage 2 alone, both stages", runs["stage 2 alone"], both, name, resamples),
                  compare_bits(f"stages_same_texts_{slug}", "stage 2 alone on all texts, both stages", runs["stage 2 alone, all texts"], both, name, resamples),
                  compare_bits(f"embeddings_{slug}", "low rank only, embeddings in full", runs["low rank only"], both, name, resamples),
                  compare_bits(f"rslora_{slug}", "not rank-stabilised, rank-stabilised", runs["not rank-stabilised"], both, name, resamples)]
    order = sorted(ranks)
    tests += [compare_bits(f"rank_{low}_{high}", f"rank {low}, rank {high}", ranks[low], ranks[high], "dialects", resamples)
              for low, high in [*zip(order, order[1:]), *([(order[0], order[-1])] if len(order) > 2 else [])]]
    return [*tests, compare_bits("rank_english", f"rank {order[0]}, rank {order[-1]}", ranks[order[0]], ranks[order[-1]], "English", resamples)]


def draw_recipes(run, base, runs, ranks, resamples):
    """Draw bits per character of the dialects and of English: per recipe on the left, their change by rank on the right; small marks are seeds."""
    figure, (left, middle, right) = new_figure(width=10, height=3.6, columns=3)
    named, rows = {"base": base, **runs}, []
    for axis, name in ((left, "dialects"), (middle, "English")):
        for place, (label, records) in enumerate(named.items()):
            point = mean_bits(records, name, resamples)
            axis.errorbar(point["value"], place, xerr=errors([point]), fmt="o", color="#0072B2", capsize=2)
            axis.plot([bits_rows([record], name)[0].mean() for record in records], [place + 0.25] * len(records), "|", color="#D55E00")
            rows.append({"run": label, "set": name, **{key: point[key] for key in ("value", "low", "high")}})
        axis.set(xlabel=f"{name}, bits per character", yticks=range(len(named)))
        axis.set_yticklabels(list(named) if axis is left else [], fontsize=7)
        axis.invert_yaxis()
    for name, colour in (("dialects", "#0072B2"), ("English", "#009E73")):
        points = {rank: compare_bits("", "", base, ranks[rank], name, resamples) for rank in sorted(ranks)}
        values = np.array([[point[key] for key in ("difference", "low", "high")] for point in points.values()])
        right.errorbar(list(points), values[:, 0], [values[:, 0] - values[:, 1], values[:, 2] - values[:, 0]], fmt="o-", color=colour, capsize=2, label=name)
        rows += [{"run": f"rank {rank} minus base", "set": name, "value": point["difference"], "low": point["low"], "high": point["high"]}
                 for rank, point in points.items()]
    right.set_xscale("log", base=2)
    right.axhline(0, color="black", linewidth=0.8)
    right.set(xlabel="rank", ylabel="change from the base, bits per character", xticks=sorted(ranks))
    right.set_xticklabels(sorted(ranks))
    right.legend(fontsize=7)
    save_figure(figure, run, "recipes", rows)


# ---- chapter 13 ----------------------------------------------------------------------------------------------------

def label_of(share, equal):
    """Return the name of a blend in tables and figures."""
    return f"{100 * share:.0f} % English" + (f", equal {'tokens' if equal == 'total' else 'dialect tokens'}" if share else "")


def run_blends(knobs, run, data):
    """Return (share, equal) -> records of both stages with this share of English in stage 2; without English the two are one."""
    return run_recipes(knobs, run, data, {(share, equal): {"share": share, "equal": equal} for equal in BLENDS for share in knobs.replay_shares
                                          if share or equal == "total"})


def evaluate_all(knobs, run, named, tasks_folder):
    """Return name -> records, each one `evaluated`, with one progress bar."""
    bar = tqdm(total=sum(map(len, named.values())), desc="measuring", unit="model")
    done = {}
    for name, records in named.items():
        done[name] = []
        for record in records:
            done[name].append(evaluated(knobs, run, record, tasks_folder))
            bar.update()
    return done


def evaluated(knobs, run, record, tasks_folder):
    """Return the record with "answers" (`preference.outcomes` and dialect share of its answers to the test prompts) and "items" (0 or 1
    per English item and task, by lm-eval).

    Both are kept beside the adapter; what is there with the same recipe is read.
    """
    seed = record["settings"]["seed"]
    folder = Path(record["folder"] or run.root / "stages" / f"base-seed-{seed}")
    tokenizer, made_from = load_tokenizer(knobs, run), record["folder"] and Path(record["folder"]).name or identity_of(knobs, run)
    model = (load_adapter(knobs, run, record["folder"]) if record["folder"] else load_base(knobs, run)).eval()
    answers = sample_responses(model, tokenizer, test_prompts(knobs, run), knobs, folder, seed, made_from)
    recipe = fingerprint({"made_from": made_from, "tasks": knobs.retention_tasks, "fraction": knobs.retention_fraction}, [tasks_folder, *_CODE])
    kept = (folder if record["folder"] else run.root / "stages") / f"english-items-{recipe}.json"
    if not kept.is_file():
        fraction = knobs.retention_fraction if knobs.retention_fraction < 1 else None
        write_json(kept, retention(model, tokenizer, knobs.retention_tasks, tasks_folder, limit=fraction))
    return record | {"answers": outcomes(knobs, run, answers), "items": read_json(kept)}


_CODE = [Path(__file__).with_name("retention.py")]


def quality(records, name):
    """Return (values, groups, seeds) of a measure of QUALITY over the answers, or of ITEMS over the English items, of all seeds.

    Every task of ITEMS weighs the same, however many items it has; "English items: task" is one task alone.
    """
    values, groups = [], []
    for record in records:
        if name.startswith(ITEMS):
            tasks = {task: some for task, some in record["items"].items() if name in (ITEMS, f"{ITEMS}: {task}")}
            whole = sum(map(len, tasks.values())) / len(tasks)
            values.append(np.array([item["right"] * whole / len(some) for some in tasks.values() for item in some]))
            groups.append([item["group"] for some in tasks.values() for item in some])
        else:
            values.append(record["answers"][name])
            groups.append(record["answers"]["scenario"])
    return np.concatenate(values), np.concatenate(groups), np.repeat([record["settings"]["seed"] for record in records], len(values[0]))


def mean_quality(records, name, resamples):
    """Return {"value", "low", "high"} of a measure, shares in percent."""
    values, groups, _ = quality(records, name)
    scale = 1 if name == "chrF++" else 100
    found = bootstrap_mean(values, groups, resamples)
    return {key: scale * found[key] for key in ("value", "low", "high")}


def blend_rows(base, first, blends, resamples):
    """Return per blend, for the base and after stage 1: tokens, English items, bits per character, quality of the answers [95 %]."""
    rows = []
    for label, records in {"base": base, "after stage 1": first, **{label_of(*key): records for key, records in blends.items()}}.items():
        counts = records[0]["counts"]
        rows.append({"model": label, "dialect tokens": counts.get("dialect tokens", 0), "English tokens": counts.get("English tokens", 0),
                     "English items right, %": interval(mean_quality(records, ITEMS, resamples), 1),
                     "English bits": interval(mean_bits(records, "English", resamples)), "dialect bits": interval(mean_bits(records, "dialects", resamples)),
                     **{f"{name}{'' if name == 'chrF++' else ', %'}": interval(mean_quality(records, name, resamples), 1) for name in QUALITY}})
    return rows


def blend_findings(base, first, blends, resamples):
    """Return the tests of chapter 13: what English costs and keeps, blend by blend, and both stages against the base."""
    none, tests = blends[0.0, "total"], []

    def compare(slug, what, one, two, name, better):
        if name in SETS:
            tests.append(compare_bits(slug, what, one, two, name, resamples))
        else:
            values, groups, seeds = quality(two, name)
            scale = 1 if name == "chrF++" else 100
            tests.append(finding(slug, f"{name}: {what}", scale * quality(one, name)[0], scale * values, groups, seeds, resamples, better))

    for (share, equal), records in blends.items():
        slug, what = f"{100 * share:.0f}_{equal}", f"no English, {label_of(share, equal)}"
        for name, better in (("English", "lower"), (ITEMS, "higher"), ("dialects", "lower"), ("dialect share", "higher")) if share else ():
            compare(f"replay_{SLUGS[name]}_{slug}", what, none, records, name, better)
    shares = sorted({share for share, _ in blends if share})
    for low, high in zip(shares, shares[1:]):
        for name in ("English", "dialects"):
            compare(f"more_{SLUGS[name]}_{100 * high:.0f}", f"{label_of(low, 'total')}, {label_of(high, 'total')}", blends[low, "total"],
                    blends[high, "total"], name, "lower")
    main = min(blends, key=lambda key: (abs(key[0] - 0.2), key[1] != "dialect"))  # Alif's own share, on top of the dialect tokens
    for slug, what, records in (("after_stage_1", "base, after stage 1", first), ("no_replay", "base, both stages without English", none),
                                ("replay", f"base, both stages, {label_of(*main)}", blends[main])):
        for name, better in (("English", "lower"), (ITEMS, "higher"), ("dialects", "lower"), *QUALITY.items()):
            compare(f"{slug}_{SLUGS[name]}", what, base, records, name, better)
    for task in base[0]["items"]:
        compare(f"replay_{task}", f"base, both stages, {label_of(*main)}", base, blends[main], f"{ITEMS}: {task}", "higher")
    return tests


def front(points):
    """Return the numbers of the points that no other point beats in one coordinate without losing in the other; smaller is better."""
    return [i for i, (x, y) in enumerate(points)
            if not any((a <= x and b <= y) and (a < x or b < y) for a, b in points)]


def draw_pareto(run, base, first, blends, resamples):
    """Draw English against dialect, in bits per character on the left (lower left is best) and in items and answers on the right (upper
    right is best): one point per blend with 95 % intervals, rings and a line where no other beats it; the base's English as a line,
    since its dialect is far outside."""
    figure, axes = new_figure(width=9.5, height=4.6, columns=2)
    named = {"base": base, "after stage 1": first, **{label_of(*key): records for key, records in blends.items()}}
    shares, rows = sorted({share for share, _ in blends}), []
    for axis, (x, y), sign in zip(axes, (("English", "dialects"), (ITEMS, "dialect share")), (1, -1)):
        middle = {}
        for label, records in named.items():
            one, two = ((mean_bits if name in SETS else mean_quality)(records, name, resamples) for name in (x, y))
            key = next((key for key in blends if label_of(*key) == label), None)
            rows.append({"model": label, "x": x, "y": y, **{f"x {k}": v for k, v in one.items() if k != "n"}, **{f"y {k}": v for k, v in two.items() if k != "n"}})
            if label == "base":
                axis.axvline(one["value"], color="#888888", linestyle=":", linewidth=1)
                axis.text(one["value"], 0.98 if sign > 0 else 0.02, f"base, {y} {two['value']:.2f} ", transform=axis.get_xaxis_transform(),
                          rotation=90, ha="right", va="top" if sign > 0 else "bottom", fontsize=6, color="#666666")  # away from the best corner
                continue
            style = {"fmt": "D", "color": "#888888"} if key is None else {
                "fmt": "o" if key[1] == "total" or not key[0] else "^", "color": PAINT[shares.index(key[0]) % len(PAINT)]}
            axis.errorbar(one["value"], two["value"], xerr=errors([one]), yerr=errors([two]), capsize=0, elinewidth=0.6, markersize=6, label=label, **style)
            middle[label] = (one["value"], two["value"])
        best = sorted(list(middle.values())[i] for i in front([(sign * a, sign * b) for a, b in middle.values()]))
        axis.plot(*zip(*best), "o--", color="black", linewidth=0.8, fillstyle="none", markersize=12, label="not beaten")
    axes[0].set(xlabel="English, bits per character", ylabel="dialects, bits per character", title="lower left is better")
    axes[1].set(xlabel="English items right, %", ylabel="answers in a Saudi dialect, %", title="upper right is better")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=7, labelspacing=0.9)
    save_figure(figure, run, "replay_pareto", rows)
