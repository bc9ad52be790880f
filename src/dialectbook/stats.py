"""Uncertainty: Wilson intervals, bootstrap over scenarios, paired tests. Shares are 0 to 1 unless a name says percent."""

import numpy as np


def wilson(count, n, level=0.95):
    """Return {"value", "low", "high", "n"}: a share with its Wilson interval (statsmodels); None where n is 0."""
    from statsmodels.stats.proportion import proportion_confint

    if not n:
        return {"value": None, "low": None, "high": None, "n": 0}
    low, high = proportion_confint(count, n, alpha=1 - level, method="wilson")
    return {"value": float(count / n), "low": float(low), "high": float(high), "n": n}


def resample_weights(groups, resamples, seed=0):
    """Return (weights, codes): how often each group is drawn in each bootstrap resample, and each row's group number.

    `groups` has one label per row (the scenario), so that answers to one scenario stay together.
    weights has the shape (resamples, groups).
    """
    names, codes = np.unique(np.asarray(groups), return_inverse=True)
    rng = np.random.default_rng(seed)
    return rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples), codes


def sum_by_group(values, codes):
    """Return the sums of `values` (rows, …) per group number: shape (groups, …)."""
    values = np.asarray(values, dtype=float)
    sums = np.zeros((codes.max() + 1, *values.shape[1:]))
    np.add.at(sums, codes, values)
    return sums


def bootstrap_mean(values, groups, resamples, seed=0, level=0.95):
    """Return {"value", "low", "high", "n"}: the mean of `values` with a percentile bootstrap over groups."""
    weights, codes = resample_weights(groups, resamples, seed)
    totals, sizes = weights @ sum_by_group(values, codes), weights @ sum_by_group(np.ones(len(codes)), codes)
    low, high = np.quantile(totals / sizes, [(1 - level) / 2, (1 + level) / 2])
    return {"value": float(np.mean(values)), "low": float(low), "high": float(high), "n": len(values)}


def ratio_of_sums(numerators, denominators, groups, resamples, seed=0):
    """Return {"value", "low", "high", "n"}: sum(numerators) / sum(denominators) with a percentile bootstrap over groups."""
    weights, codes = resample_weights(groups, resamples, seed)
    top, bottom = weights @ sum_by_group(numerators, codes), weights @ sum_by_group(denominators, codes)
    low, high = np.quantile(top / bottom, [0.025, 0.975])
    return {"value": float(np.sum(numerators) / np.sum(denominators)), "low": float(low), "high": float(high), "n": len(numerators)}


def paired_difference(first, second, groups, resamples, seed=0):
    """Return the comparison of two outcomes on the same rows as a dict.

    Keys: difference (second minus first, of means), low, high (95 % bootstrap over groups), p (two-sided sign-flip
    permutation test of the group means, scipy), n, groups. Groups are scenarios: answers to one scenario, from any
    dialect, kind of instruction or seed, are not independent and stay together.
    """
    from scipy.stats import permutation_test

    change = np.asarray(second, dtype=float) - np.asarray(first, dtype=float)
    _, codes = np.unique(np.asarray(groups), return_inverse=True)
    sums = sum_by_group(change, codes)
    mean = bootstrap_mean(change, groups, resamples, seed)
    test = permutation_test((sums, np.zeros_like(sums)), lambda a, b, axis: np.mean(a - b, axis=axis), vectorized=True,
                            permutation_type="samples", n_resamples=9999, rng=np.random.default_rng(seed))
    return {"difference": mean["value"], "low": mean["low"], "high": mean["high"], "p": float(test.pvalue), "n": len(change), "groups": len(sums)}


def independent_difference(first, second, first_groups, second_groups, resamples, seed=0):
    """Return the comparison of outcomes on different scenarios as a dict: difference (second minus first), low, high, p, n, groups.

    Means of scenarios are compared: a bootstrap within each side for the interval, a permutation test of scenarios for p (scipy).
    """
    from scipy.stats import permutation_test

    def means(values, groups):
        _, codes = np.unique(np.asarray(groups), return_inverse=True)
        return sum_by_group(values, codes) / sum_by_group(np.ones(len(codes)), codes)

    a, b = means(first, first_groups), means(second, second_groups)
    rng = np.random.default_rng(seed)
    drawn = [one[rng.integers(len(one), size=(resamples, len(one)))].mean(axis=1) for one in (a, b)]
    low, high = np.quantile(drawn[1] - drawn[0], [0.025, 0.975])
    test = permutation_test((b, a), lambda x, y, axis: np.mean(x, axis=axis) - np.mean(y, axis=axis), vectorized=True, n_resamples=9999,
                            rng=np.random.default_rng(seed))
    return {"difference": float(b.mean() - a.mean()), "low": float(low), "high": float(high), "p": float(test.pvalue),
            "n": len(first) + len(second), "groups": len(a) + len(b)}


def mean_of_seeds(values):
    """Return {"value", "low", "high", "n"}: the mean of one value per seed with its t-interval (95 %); None without a second seed."""
    from scipy.stats import t

    value, n = float(np.mean(values)), len(values)
    half = float(t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n)) if n > 1 else None
    return {"value": value, "low": None if half is None else value - half, "high": None if half is None else value + half, "n": n}


def mean_difference_of_seeds(first, second):
    """Return the comparison of two settings that were each run once per seed, paired by seed, as a dict.

    Keys: difference (second minus first), low, high (95 %, t), p (paired t-test, scipy), n (seeds). With one seed only the
    difference is known; the rest is None.
    """
    from scipy.stats import ttest_rel

    difference = float(np.mean(second) - np.mean(first))
    if len(first) < 2:
        return {"difference": difference, "low": None, "high": None, "p": None, "n": len(first)}
    test = ttest_rel(second, first)
    low, high = test.confidence_interval()
    return {"difference": difference, "low": float(low), "high": float(high), "p": float(test.pvalue), "n": len(first)}


def mcnemar_exact(first, second):
    """Return (only_first, only_second, p): McNemar's exact test of two yes/no outcomes on the same rows (statsmodels)."""
    from statsmodels.stats.contingency_tables import mcnemar

    first, second = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    table = [[int((first & second).sum()), only_first], [only_second, int((~first & ~second).sum())]]
    return only_first, only_second, float(mcnemar(table, exact=True).pvalue)


def crossed_bootstrap(values, groups, seeds, resamples, seed=0, level=0.95):
    """Return {"value", "low", "high", "n"}: a mean with scenarios and seeds both drawn anew, each as a whole (the pigeonhole bootstrap, Owen 2007).

    Wider than a bootstrap over scenarios alone when seeds disagree, and cautious: with few seeds it errs on the wide side.
    """
    weights, codes = resample_weights(groups, resamples, seed)
    seed_weights, seed_codes = resample_weights(seeds, resamples, seed + 1)
    cell = codes * (seed_codes.max() + 1) + seed_codes
    shape = (codes.max() + 1, seed_codes.max() + 1)
    totals = np.bincount(cell, np.asarray(values, dtype=float), minlength=shape[0] * shape[1]).reshape(shape)
    sizes = np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape)
    means = np.einsum("rg,gs,rs->r", weights, totals, seed_weights, optimize=True) / np.einsum("rg,gs,rs->r", weights, sizes, seed_weights, optimize=True)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return {"value": float(np.mean(values)), "low": float(low), "high": float(high), "n": len(values)}


def seed_deviations(runs):
    """Return {"training", "sampling"}: standard deviations of a mean between training seeds and between samplings of one training.

    `runs` has the shape (training seeds, samplings), one mean each. One-way analysis of variance: the spread within a training
    seed is sampling; what the spread of their means has beyond its share of that is training (0 if nothing is left).
    """
    runs = np.asarray(runs, dtype=float)
    within = runs.var(axis=1, ddof=1).mean()
    between = runs.mean(axis=1).var(ddof=1) - within / runs.shape[1] if len(runs) > 1 else float("nan")
    return {"training": float(np.sqrt(max(0.0, between))) if between == between else None, "sampling": float(np.sqrt(within))}


def unmix(observed, confusion):
    """Return the shares of true labels behind observed shares of judged labels: p = C'^-1 q (Rogan and Gladen 1978, many labels).

    observed (…, k) sums to 1 (or is all 0); confusion (…, k, k) has one row per true label, the shares of what the judge says of it. Shares
    that the inversion puts below 0 become 0, and the rest is scaled to sum to 1; nothing observed (all 0) stays nothing.
    """
    shares = np.linalg.solve(np.swapaxes(confusion, -1, -2), np.asarray(observed)[..., None])[..., 0].clip(0)
    return shares / np.maximum(shares.sum(axis=-1, keepdims=True), 1e-12)


def adjusted_accuracy(produced, requested, groups, labels, confusion, resamples, seed=0, level=0.95):
    """Return {"value", "low", "high", "n"}: the share of answers truly of the requested label, the judge's errors taken out (`unmix`).

    `confusion` holds counts, a row per true label and a column per judged one, both in the order of `labels`. An answer with a
    label outside `labels` counts as wrong. The interval draws scenarios anew and, for the judge, each row of its confusion
    matrix from a Dirichlet distribution (counts + 1/2), so it carries both uncertainties. It takes for granted that the judge errs on
    answers as it errs on the texts of the matrix.
    """
    produced, requested, counts = np.asarray(produced), np.asarray(requested), np.asarray(confusion) + 0.5
    weights, codes = resample_weights(groups, resamples, seed)
    weights = np.vstack([np.ones(weights.shape[1], int), weights])  # the first row is the estimate itself
    rng = np.random.default_rng(seed + 1)
    drawn = np.stack([rng.dirichlet(row, resamples) for row in counts], axis=1)
    drawn = np.concatenate([(counts / counts.sum(axis=1, keepdims=True))[None], drawn])
    right = 0.0
    for label in np.unique(requested):
        asked = requested == label
        judged = weights @ sum_by_group((produced[:, None] == np.asarray(labels)) & asked[:, None], codes)
        known = judged.sum(axis=1, keepdims=True)
        right = right + known[:, 0] * unmix(judged / np.maximum(known, 1), drawn)[:, list(labels).index(label)]
    shares = right / (weights @ sum_by_group(np.ones(len(codes)), codes))
    low, high = np.quantile(shares[1:], [(1 - level) / 2, (1 + level) / 2])
    return {"value": float(shares[0]), "low": float(low), "high": float(high), "n": len(produced)}


def holm(p_values):
    """Return the p-values corrected for their number by Holm's method (statsmodels)."""
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(p_values, method="holm")[1]] if len(p_values) else []
