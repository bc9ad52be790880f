"""Uncertainty: Wilson intervals, bootstrap over scenarios, paired tests. Shares are 0 to 1 unless a name says percent."""

import numpy as np


def wilson(count, n, level=0.95):
    """Return (share, low, high): a proportion with its Wilson interval (statsmodels)."""
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(count, n, alpha=1 - level, method="wilson")
    return count / n, float(low), float(high)


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
    """Return (mean, low, high): percentile bootstrap over groups of the mean of `values`."""
    weights, codes = resample_weights(groups, resamples, seed)
    totals, sizes = weights @ sum_by_group(values, codes), weights @ sum_by_group(np.ones(len(codes)), codes)
    low, high = np.quantile(totals / sizes, [(1 - level) / 2, (1 + level) / 2])
    return float(np.mean(values)), float(low), float(high)


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
    mean, low, high = bootstrap_mean(change, groups, resamples, seed)
    test = permutation_test((sums, np.zeros_like(sums)), lambda a, b, axis: np.mean(a - b, axis=axis), vectorized=True,
                            permutation_type="samples", n_resamples=9999, rng=np.random.default_rng(seed))
    return {"difference": mean, "low": low, "high": high, "p": float(test.pvalue), "n": len(change), "groups": len(sums)}


def mcnemar_exact(first, second):
    """Return (only_first, only_second, p): McNemar's exact test of two yes/no outcomes on the same rows (statsmodels)."""
    from statsmodels.stats.contingency_tables import mcnemar

    first, second = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    table = [[int((first & second).sum()), only_first], [only_second, int((~first & ~second).sum())]]
    return only_first, only_second, float(mcnemar(table, exact=True).pvalue)
