"""Statistics of paired comparisons: arms in rows, seeds in columns, lower is better throughout.

An infinite value is a run without any result: worse than every other, as good as another such run.

Sources: Demšar, "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 7 (2006); the others are named
where they are used. SciPy does the tests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy  # its parts are imported when first used: half a second
from numpy.typing import NDArray

__all__ = [
    "LEAST_SEEDS",
    "Estimate",
    "Spread",
    "critical_difference",
    "differences",
    "friedman_p",
    "holm",
    "is_noisy",
    "mean_ranks",
    "median_difference",
    "pairwise_p",
    "seeds_needed",
    "signed_ranks",
    "spread",
    "vargha_delaney",
    "wilcoxon_p",
    "win_probability",
]

Floats = NDArray[np.float64]

LEAST_SEEDS = 6
"""Below so many pairs there is no 95% interval for a median: 5 all lie on one side of it in 2 · 0.5⁵ > 5% of cases."""

MOST_EXACT = 50
"""Pairs up to which the signed-rank test is exact, as SciPy's without ties."""

RESAMPLES = 4000
"""Of the bootstrap; always the same ones, so that a result read again says the same."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its 95% interval; the ends are None where there are too few seeds for one."""

    value: float
    low: float | None
    high: float | None


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

    Pairs that do not differ say nothing; 1 where none does. Exact, given the ties, for up to 50 pairs that differ:
    SciPy takes the normal approximation as soon as two of 14 are alike, and finds p = 0.025 where 5 of 20 differ, all
    one way, which chance does in 2 · 0.5⁵ = 6% of cases.
    """
    found = _unequal(first, second)
    if len(found) > MOST_EXACT:
        return float(scipy.stats.wilcoxon(found).pvalue)
    ranks = np.rint(2 * scipy.stats.rankdata(np.abs(found))).astype(int)  # twice them: ties have halves
    chances = np.ones(1)  # of each sum of the ranks with a plus, where each sign is a coin's
    for rank in ranks:
        chances = (np.pad(chances, (0, rank)) + np.pad(chances, (rank, 0))) / 2
    seen = int(ranks[found > 0].sum())
    return min(1.0, 2 * float(min(chances[: seen + 1].sum(), chances[seen:].sum())))


def differences(first: Floats, second: Floats) -> Floats:
    """first − second, shape (seeds,); 0 where both are infinite, which is a tie."""
    found: Floats = np.zeros(len(first))
    np.subtract(first, second, out=found, where=first != second)
    return found


def _unequal(first: Floats, second: Floats) -> Floats:
    """The differences that are not 0, to ten digits: 0.97 − 0.95 and 0.98 − 0.96 are a tie."""
    found = differences(first, second)
    return np.array([float(f"{value:.10g}") for value in found[found != 0].tolist()])


def signed_ranks(first: Floats, second: Floats) -> float:
    """The signed-rank sum that Wilcoxon's test is about: negative where `first` tends to be lower."""
    found = _unequal(first, second)
    return float(np.sum(np.sign(found) * scipy.stats.rankdata(np.abs(found))))


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


def critical_difference(arms: int, seeds: int, significance: float = 0.05) -> float:
    """Nemenyi's: mean ranks further apart than this differ significantly, all pairs considered.

    CD = q · √(k(k + 1) / 6N) with k arms and N seeds, q the studentized range's quantile over √2 (Demšar 2006, 3.2.2).
    """
    quantile = float(scipy.stats.studentized_range.ppf(1 - significance, arms, np.inf))
    return quantile / math.sqrt(2) * math.sqrt(arms * (arms + 1) / (6 * seeds))


def median_difference(first: Floats, second: Floats) -> Estimate:
    """The median of first − second over paired seeds, and its bootstrap interval; from `LEAST_SEEDS` seeds on.

    Of the median: at 6 to 20 seeds its interval covers in 91 to 96 of 100 cases, that of the mean in 80 to 94. By the
    percentile method: BCa's acceleration comes from the jackknife, which fails for medians (Efron and Tibshirani
    1993, 10.6), and measured it covers no better (89 to 97).
    """
    found = differences(first, second)
    finite = np.abs(found[np.isfinite(found)])
    largest = float(finite.max(initial=0.0))
    bounded = np.clip(found, -4 * (largest or 1.0), 4 * (largest or 1.0))  # so that ∞ − ∞ arises nowhere

    def unbounded(value: float) -> float:
        return math.copysign(math.inf, value) if abs(value) > largest * (1 + 1e-9) else float(value)

    value = unbounded(np.median(bounded))
    if len(found) < LEAST_SEEDS:
        return Estimate(value, None, None)
    interval = scipy.stats.bootstrap(
        (bounded,),
        np.median,
        method="percentile",
        n_resamples=RESAMPLES,
        batch=max(1, 1_000_000 // len(found)),
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Estimate(value, unbounded(interval.low), unbounded(interval.high))


def win_probability(first: Floats, second: Floats) -> Estimate:
    """The probability that `first` is lower with the same seed, ties half, and Wilson's interval; shapes (seeds,).

    Wilson's: (p̂ + z²/2n ± z √(p̂(1 − p̂)/n + z²/4n²)) / (1 + z²/n).
    """
    found = differences(first, second)
    n, p = len(found), float(np.mean((found < 0) + 0.5 * (found == 0)))
    z = float(scipy.special.ndtri(0.975))
    centre, reach = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Estimate(p, (centre - reach) / (1 + z * z / n), (centre + reach) / (1 + z * z / n))


def vargha_delaney(first: Floats, second: Floats) -> float:
    """Â: the probability that a run of `first` is lower than one of `second` with any seed, ties half.

    0.5 says that they are alike; above 0.56, 0.64 and 0.71 the effect is called small, medium and large (Vargha and
    Delaney, "A Critique and Improvement of the CL Common Language Effect Size Statistics", 2000).
    """
    n, m = len(first), len(second)
    ranks = scipy.stats.rankdata(np.concatenate([second, first]))  # of `second` among both
    return float((ranks[:m].sum() / m - (m + 1) / 2) / n)


def seeds_needed(
    first: Floats, second: Floats, *, hypotheses: int = 1, significance: float = 0.05, power: float = 0.8
) -> int | None:
    """How many paired seeds the Wilcoxon test needs to tell the two apart with this power, if these are typical.

    By the normal approximation of the signed-rank sum W over N differences (Lehmann, "Nonparametrics", 1975, 4.2):

        E W = N p₁ + N(N−1)/2 p₂
        Var W = N p₁(1−p₁) + N(N−1)/2 (2(p₁−p₂)² + 3p₂(1−p₂)) + N(N−1)(N−2) (p₃−p₂²)

    with p₁ = P(D > 0), p₂ = P(D + D′ > 0), p₃ = P(D + D′ > 0 and D + D″ > 0), each estimated from the differences that
    were seen, ties half. The significance is shared among the hypotheses. From few seeds this is a rough guess.

    Returns:
        N, at least as many as can be significant at all; None where a million would not do, or with fewer than three.
    """
    found = np.sort(differences(first, second))
    if len(found) < 3:
        return None
    shares = _sums_above_zero(found)
    alpha = significance / hypotheses
    least = math.floor(math.log2(2 / alpha)) + 1  # 2 · 0.5ᴺ < α: all one way
    low, high = least - 1, least
    while _power(high, shares, alpha) < power:
        low, high = high, 2 * high
        if high > 2_000_000:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _power(middle, shares, alpha) >= power else (middle, high)
    return high


def _sums_above_zero(found: Floats) -> tuple[float, float, float]:
    """p₁, p₂ and p₃ of `seeds_needed`, unbiased, from sorted differences; signs such that p₂ ≥ ½."""
    n = len(found)
    sign = (found > 0) + 0.5 * (found == 0)
    above = n - np.searchsorted(found, -found, side="right")
    level = n - np.searchsorted(found, -found, side="left") - above
    others = above + 0.5 * level - sign  # how many of the others make a sum above 0 with each
    p1, p2 = float(sign.mean()), float(others.sum()) / (n * (n - 1))
    if p2 < 0.5:
        p1, p2, others = 1 - p1, 1 - p2, n - 1 - others
    p3 = float(np.sum(others * (others - 1))) / (n * (n - 1) * (n - 2))
    return p1, p2, p3


def _power(n: int, shares: tuple[float, float, float], alpha: float) -> float:
    """The probability that the Wilcoxon test over n differences is significant."""
    p1, p2, p3 = shares
    pairs = n * (n - 1) / 2
    mean = n * p1 + pairs * p2
    variance = (
        n * p1 * (1 - p1)
        + pairs * (2 * (p1 - p2) ** 2 + 3 * p2 * (1 - p2))
        + 2 * pairs * (n - 2) * (p3 - p2 * p2)
    )
    limit = n * (n + 1) / 4 + scipy.special.ndtri(1 - alpha / 2) * math.sqrt(n * (n + 1) * (2 * n + 1) / 24)
    return float(scipy.special.ndtr((mean - limit) / math.sqrt(max(variance, 1e-12))))


def is_noisy(values: Floats) -> bool:
    """Whether seeds differ by more than arms do: the typical interquartile range over seeds exceeds that of medians.

    Args:
        values: shape (arms, seeds).
    """
    if values.shape[1] < 2:
        return False
    spreads = [spread(row) for row in values]
    ranges = [s.high - s.low for s in spreads if math.isfinite(s.low) and math.isfinite(s.high)]
    medians = [s.median for s in spreads if math.isfinite(s.median)]
    if len(medians) < len(spreads) or not ranges:
        return False
    return float(np.median(ranges)) > max(medians) - min(medians)
