"""What chapter 15 shows: measures per task and model, what metrics give to pairs of texts, the tests, the figure."""

import numpy as np

from .findings import finding
from .objective import CLASS_SHARES, CLASSED, COMPARED, EXPERIMENTS, FLOOR, METRICS, SHARES
from .self_instruct import TASKS
from .show import COLOURS, MARKERS, NAMES, errors, interval, new_figure, percent, save_figure
from .stats import bootstrap_mean, wilson


def estimate(metric, values, resamples):
    """Return {"value", "low", "high", "n"} of an array (seeds, items), n being answers.

    Shares have Wilson's interval, counted as if every item had been answered once (cautious, and no point when all are 0); the
    others a bootstrap over items.
    """
    if metric in SHARES:
        found = wilson(values.mean() * values.shape[1], values.shape[1])
    else:
        found = bootstrap_mean(values.ravel(), np.tile(np.arange(values.shape[1]), len(values)), resamples)
    low, high = min(found["low"], found["value"]), max(found["high"], found["value"])  # 0 may lie below 1e-18
    return {"value": found["value"], "low": low, "high": high, "n": values.size}


def measures(results, items, resamples):
    """Return one row per task (and "all") and model: task, model, items, answers, mean words, each metric with its 95 % interval.

    Shares of classes are there for the tasks that have them.
    """
    rows = []
    for task in (*TASKS, "all"):
        mine = np.array([task in ("all", item["task"]) for item in items])
        for name, scores in results.items():
            found = {metric: estimate(metric, scores[metric][:, mine], resamples)
                     for metric in (*METRICS, *(CLASS_SHARES if task in CLASSED else ()))}
            words = float(np.mean([len(text.split()) for texts in scores["texts"] for text, yes in zip(texts, mine) if yes]))
            rows.append({"task": task, "model": name, "items": int(mine.sum()), "answers": found["token F1"]["n"],
                         "words": words, **found})
    return rows


def pair_measures(pairs, metrics, resamples):
    """Return per label each metric between the first and the second text of labelled pairs, with its 95 % interval."""
    rows = []
    for label in dict.fromkeys(pair["label"] for pair in pairs):
        first, second = zip(*((pair["first"], pair["second"]) for pair in pairs if pair["label"] == label))
        scores = {metric: estimate(metric, score(second, first)[None], resamples) for metric, score in metrics.items()}
        rows.append({"label": label, "pairs": len(first), **scores})
    return rows


def above_floor(rows):
    """Return per metric in how many tasks each model's mean is above that of FLOOR, an answer to another question."""
    value = {(row["task"], row["model"], metric): row[metric]["value"] for row in rows for metric in METRICS}
    return [{"metric": metric, "tasks": len(TASKS),
             **{NAMES[model]: sum(value[task, model, metric] > value[task, FLOOR, metric] for task in TASKS)
                for model in EXPERIMENTS}} for metric in METRICS]


def shown(rows):
    """Return rows of measures for readers: shares in percent, the names of models, every value with its interval."""
    digits = {"token F1": 2, "chrF++": 1, "BERTScore": 3}

    def text(name, value):
        if isinstance(value, dict):
            return percent(value) if name in SHARES else interval(value, digits[name])
        return NAMES.get(value, value)

    return [{name: text(name, value) for name, value in row.items()} for row in rows]


def findings(results, items, seeds, resamples):
    """Return the chapter's tests: base against Token and No-Token against Token, by each metric, over all tasks and in each."""
    tests = []
    for first, second in COMPARED:
        for metric in METRICS:
            for task in ("all", *TASKS):
                mine = [task in ("all", item["task"]) for item in items]
                groups = np.tile([item["id"] for item, yes in zip(items, mine) if yes], len(seeds))
                before, after = (results[name][metric][:, mine].ravel() for name in (first, second))
                name = f"{first}_{second}_{metric.lower().replace('++', '').replace(' ', '_')}_{task}"
                what = f"{metric}, {'all tasks' if task == 'all' else task}: {NAMES[first]}, {NAMES[second]}"
                tests.append(finding(name, what, before, after, groups, np.repeat(seeds, sum(mine)), resamples, "higher"))
    return tests


def draw_measures(run, rows):
    """Draw each metric per task and model with its 95 % interval; grey crosses are FLOOR."""
    figure, axes = new_figure(width=10, height=4, columns=4)
    models, tasks = list(dict.fromkeys(row["model"] for row in rows)), list(dict.fromkeys(row["task"] for row in rows))
    for axis, metric in zip(axes, METRICS):
        for place, model in enumerate(models):
            found = [row[metric] for row in rows if row["model"] == model]
            axis.errorbar([one["value"] for one in found], np.arange(len(tasks)) + 0.18 * (place - 1.5), xerr=errors(found),
                          linestyle="none", marker=MARKERS.get(model, "x"), color=COLOURS.get(model, "#999999"),
                          label=NAMES.get(model, model), capsize=2, markersize=4)
        axis.set(xlabel=f"{metric} ({METRICS[metric]})", yticks=range(len(tasks)))
        axis.set_yticklabels(tasks if metric == "exact match" else [])
        axis.invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(models))
    save_figure(figure, run, "objective_metrics", [
        {"task": row["task"], "model": row["model"],
         **{f"{metric} {key}": value for metric in METRICS for key, value in row[metric].items()}}
        for row in rows])
