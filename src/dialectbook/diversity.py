"""How varied a set of items is, chapter 02, with intervals over requests.

Items of one answer are not independent, so requests are drawn, not items. And they are drawn without replacement: what is counted
here are repetitions, and a bootstrap, which draws some requests twice, would put repetitions in. The spread over random parts of
the requests gives the standard error (delete-d jackknife, Shao and Wu 1989).
"""

import csv
from functools import partial

import numpy as np

from .dedup import rouge_l, words_of
from .metrics import distinct_at_budget
from .self_instruct import FOLDER, Pools, pool_words
from .stats import holm, wilson


def good(candidates):
    """Return the candidates that passed every filter but the pool, which alone depends on what came before."""
    return [item for item in candidates if item["reason"] in ("", "repeats the pool")]


def pooled(candidates, seeds, threshold=0.7, scope="global"):
    """Return the items that one pool over all tasks ("global"), or a pool per task ("task"), keeps of the good candidates."""
    pools = Pools(seeds, threshold, scope)
    return [item for item in good(candidates) if pools.add(item) is None]


def repeated_across_tasks(items, threshold=0.7):
    """Return per item whether an earlier item of another task is at ROUGE-L >= threshold."""
    words = [pool_words(item) for item in items]
    return [any(items[j]["task"] != item["task"] and rouge_l(words[i], words[j]) >= threshold - 1e-12 for j in range(i)) for i, item in enumerate(items)]


def asked(items):
    """Return what the items ask, instruction and input, as texts."""
    return [f"{item['instruction']} {item['input']}" for item in items]


def coverage(items, types, budget, seed=0):
    """Return the share of `types` (a set of words) that occur in the items, read in random order up to `budget` words."""
    read = []
    for i in np.random.default_rng(seed).permutation(len(items)):
        read += pool_words(items[i])
        if len(read) >= budget:
            break
    return len(types & set(read[:budget])) / len(types)


def measures_of(candidates, seeds, threshold, scope, types, budget, seed=0):
    """Return name -> value for one way of pooling: what is kept, and how varied it is at `budget` word pairs (and words)."""
    kept = pooled(candidates, seeds, threshold, scope)
    return {"kept": len(kept) / len(candidates), "repeated across tasks": float(np.mean(repeated_across_tasks(kept, threshold))),
            "distinct-2": distinct_at_budget(asked(kept), 2, budget, resamples=10, seed=seed)["value"],
            "coverage": float(np.mean([coverage(kept, types, budget, seed + i) for i in range(5)]))}


def drawn(candidates, measure, requests, draws, seed=0):
    """Return (values, factor, n): name -> an array of `measure` on random parts of so many requests; what their variance is multiplied
    by to give that of the whole, (n - d) / d when d of n requests are left out; and the number of candidates."""
    rng, names = np.random.default_rng(seed), sorted({item["request"] for item in candidates})
    rows = []
    for draw in range(draws):
        some = set(rng.choice(names, requests, replace=False).tolist())
        rows.append(measure([item for item in candidates if item["request"] in some], seed=draw))
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}, requests / (len(names) - requests), len(candidates)


def compare(first, second, name, paired):
    """Return {difference, low, high, p, n}: second minus first of what `drawn` returned, with a normal interval and test.

    paired: both were drawn from the same requests with the same seed.
    """
    from scipy.stats import norm

    (a, factor_a, n_a), (b, factor_b, n_b) = ((values[name], factor, n) for values, factor, n in (first, second))
    difference = float(b.mean() - a.mean())
    variance = factor_a * np.var(b - a) if paired else factor_a * np.var(a) + factor_b * np.var(b)
    error = float(np.sqrt(variance))
    p = 2 * float(norm.sf(abs(difference) / error)) if error else float(difference == 0)
    return {"difference": difference, "low": difference - 1.96 * error, "high": difference + 1.96 * error, "p": p, "n": n_a if paired else n_a + n_b}


def estimate(values, name):
    """Return {"value", "low", "high", "n"} of what `drawn` returned."""
    numbers, factor, n = values[0][name], *values[1:]
    error = 1.96 * float(np.sqrt(factor * np.var(numbers)))
    return {"value": float(numbers.mean()), "low": float(numbers.mean()) - error, "high": float(numbers.mean()) + error, "n": n}


def compare_recipes(candidates, seeds, threshold, types, draws):
    """Return (rows, tests): four recipes side by side, and the comparisons of the chapter (Holm over all of them).

    `candidates` has one list per prompt: "one" prompt for all tasks, or its "own" per task. Each is pooled per task and globally. Prompts
    are compared at the same number of candidates, half of what the smaller list has; pools on the same candidates, request by request.
    """
    half = {prompt: len({item["request"] for item in some}) // 2 for prompt, some in candidates.items()}
    fewest = min(len(some) for some in candidates.values()) / 2
    requests = {prompt: min(half[prompt], round(fewest * 2 * half[prompt] / len(some))) for prompt, some in candidates.items()}

    def draw(prompt, scope, size, budget):
        return drawn(candidates[prompt], partial(measures_of, seeds=seeds, threshold=threshold, scope=scope, types=types, budget=budget), size, draws)

    def pairs(prompt, size):  # a budget that nearly every part of this size can fill
        kept = pooled(candidates[prompt], seeds, threshold)
        return int(0.8 * sum(max(0, len(text.split()) - 1) for text in asked(kept)) * size / (2 * half[prompt]))

    budget, wide = min(pairs(prompt, size) for prompt, size in requests.items()), pairs("own", half["own"])
    arms = {(prompt, scope): draw(prompt, scope, requests[prompt], budget) for prompt in candidates for scope in ("task", "global")}
    rows = [{"prompt": prompt, "pool": scope, "candidates drawn": round(len(candidates[prompt]) * requests[prompt] / (2 * half[prompt])),
             "word pairs": budget, **{name: estimate(values, name) for name in values[0]}} for (prompt, scope), values in arms.items()]
    by_task, by_all = (draw("own", scope, half["own"], wide) for scope in ("task", "global"))
    plan = [("pool", name, "own prompts, a pool per task", "own prompts, global pool", by_task, by_all, True)
            for name in ("distinct-2", "coverage", "kept", "repeated across tasks")]
    plan += [("prompts", name, "one prompt, global pool", "own prompts, global pool", arms["one", "global"], arms["own", "global"], False)
             for name in ("distinct-2", "coverage", "kept")]
    plan += [("both", "distinct-2", "one prompt, a pool per task", "own prompts, global pool", arms["one", "task"], arms["own", "global"], False)]
    tests = [{"id": f"{about}: {name}", "what": name, "first": first, "second": second, **compare(a, b, name, paired)}
             for about, name, first, second, a, b, paired in plan]
    return rows, [test | {"p_holm": p} for test, p in zip(tests, holm([test["p"] for test in tests]))]


def sweep(candidates, seeds, pairs, thresholds):
    """Return one row per threshold: what either pool keeps of the good candidates, and what it misses and falsely takes of the pairs."""
    n = len(good(candidates))
    return [{"threshold": threshold, **{scope: len(pooled(candidates, seeds, threshold, scope)) / n for scope in ("task", "global")}, "n": n,
             **rates_at(pairs, threshold)} for threshold in thresholds]


# ---- what ROUGE-L does not see --------------------------------------------------------------------------------------

def load_paraphrases():
    """Return the labelled pairs: rows with id, dialect, label (same: both ask for the same thing; other), first, second, rouge_l."""
    with (FOLDER / "paraphrases.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    words = [[pool_words({"instruction": row[side], "input": ""}) for side in ("first", "second")] for row in rows]
    return [row | {"rouge_l": rouge_l(*pair)} for row, pair in zip(rows, words)]


def rates_at(pairs, threshold):
    """Return {"missed", "false alarms"} at a threshold, each {"value", "low", "high", "n"} with Wilson's interval.

    missed: pairs that ask for the same thing and stay below it; false alarms: pairs that do not and reach it.
    """
    rates = {}
    for name, label, over in (("missed", "same", False), ("false alarms", "other", True)):
        mine = [pair["rouge_l"] >= threshold - 1e-12 for pair in pairs if pair["label"] == label]
        rates[name] = wilson(mine.count(over), len(mine))
    return rates


def types_of(pairs, least=2):
    """Return the set of words that occur in at least so many instructions of the pairs: what people ask about, for `coverage`."""
    seen = {}
    for pair in pairs:
        for word in set(pool_words({"instruction": pair["instruction"], "input": ""})):
            seen[word] = seen.get(word, 0) + 1
    return {word for word, n in seen.items() if n >= least and words_of(word)}
