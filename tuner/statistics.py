"""Statistics of paired comparisons: arms in rows, seeds in columns, lower is better throughout.

Sources: Demšar, "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 7 (2006); SciPy does the tests.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy  # its parts are imported when first used: half a second
from numpy.typing import NDArray

__all__ = ["Spread", "friedman_p", "holm", "mean_ranks", "pairwise_p", "spread", "wilcoxon_p"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float


def spread(values: Floats) -> Spread:
    """Median, lower and upper quartile of `values`, shape (n,), infinite ones included.

    The median-unbiased estimate (Hyndman and Fan 1996, number 8), as `numpy.quantile(method="median_unbiased")`, which
    cannot cope with infinities.
    """
    ordered = np.sort(values)
    return Spread(_quantile(ordered, 0.5), _quantile(ordered, 0.25), _quantile(ordered, 0.75))


def _quantile(ordered: Floats, share: float) -> float:
    n = len(ordered)
    place = min(max(share * (n + 1 / 3) - 2 / 3, 0), n - 1)
    below = int(place)
    low, high = float(ordered[below]), float(ordered[min(below + 1, n - 1)])
    between = place - below
    return low if between < 1e-12 or low == high else low + between * (high - low)


def mean_ranks(values: Floats) -> Floats:
    """Each arm's rank among the arms, 1 = lowest value, ties shared, averaged over seeds.

    Args:
        values: shape (arms, seeds).

    Returns:
        Shape (arms,).
    """
    ranks: Floats = scipy.stats.rankdata(values, axis=0).mean(axis=1)
    return ranks


def friedman_p(values: Floats) -> float | None:
    """The Friedman test's p-value: whether the arms differ at all. None below 3 arms or 2 seeds.

    Args:
        values: shape (arms, seeds).
    """
    arms, seeds = values.shape
    if arms < 3 or seeds < 2 or np.all(values == values[0]):
        return None
    return float(scipy.stats.friedmanchisquare(*values).pvalue)


def wilcoxon_p(first: Floats, second: Floats) -> float:
    """The two-sided Wilcoxon signed-rank test's p-value for paired samples, both of shape (seeds,).

    1 where no pair differs. Exact for up to 50 pairs without ties.
    """
    differences = np.zeros(len(first))
    np.subtract(first, second, out=differences, where=first != second)  # infinite against infinite is a tie
    if not np.any(differences):
        return 1.0
    return float(scipy.stats.wilcoxon(differences).pvalue)


def holm(p_values: Floats) -> Floats:
    """Holm's step-down adjustment for testing several hypotheses at once; shape (n,) in and out.

    p̃₍ᵢ₎ = max over j ≤ i of min(1, (n − j + 1) p₍ⱼ₎), with p₍₁₎ ≤ p₍₂₎ ≤ …
    """
    order = np.argsort(p_values)
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.maximum.accumulate(np.minimum(1.0, factors * p_values[order]))
    result: Floats = np.empty_like(adjusted)
    result[order] = adjusted
    return result


def pairwise_p(values: Floats) -> Floats:
    """Wilcoxon p-values of all pairs of arms, adjusted together by Holm's method.

    All pairs, not only those with the best arm: which arm is best was seen in the same data.

    Args:
        values: shape (arms, seeds).

    Returns:
        Shape (arms, arms), symmetric, 1 on the diagonal.
    """
    adjusted: Floats = np.ones((len(values), len(values)))
    first, second = np.triu_indices(len(values), k=1)
    raw = np.array([wilcoxon_p(values[i], values[j]) for i, j in zip(first, second, strict=True)])
    adjusted[first, second] = adjusted[second, first] = holm(raw)
    return adjusted
