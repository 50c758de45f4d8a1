"""What a comparison shows besides which arm is better: which parameters matter, which evaluation is right, what depends
on what.

All of it is read from the trials of a comparison, so that it goes on where it stopped, like any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import scipy  # its parts are imported when first used: half a second
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from tuner.comparison.importance import METHODS, Method, Points, importance_shares, unit_points
from tuner.comparison.result import SIGNIFICANCE, ComparisonResult
from tuner.comparison.runs import Floats, Run
from tuner.definition import ComparisonDefinition
from tuner.errors import DefinitionError
from tuner.statistics import (
    Estimate,
    differences,
    holm,
    median_difference,
    signed_ranks,
    wilcoxon_p,
)

__all__ = [
    "Agreement",
    "Importance",
    "Interaction",
    "Tested",
    "agreement",
    "importance",
    "interaction",
    "paired",
    "require_importance",
]

Rows: TypeAlias = NDArray[np.intp]

RESAMPLES = 100
"""Of the bootstrap: one takes a forest a problem."""


@dataclass(frozen=True, slots=True)
class Tested:
    """A difference over paired seeds, its 95% interval, and the Wilcoxon signed-rank test's p."""

    difference: Estimate
    p: float
    is_above: bool
    """Whether the test's ranks point above 0."""

    @property
    def is_settled(self) -> bool:
        """Whether it is significant."""
        return self.p < SIGNIFICANCE


def paired(first: Floats, second: Floats) -> Tested:
    """first − second over paired seeds, both of shape (seeds,)."""
    difference = median_difference(first, second)
    return Tested(difference, wilcoxon_p(first, second), signed_ranks(first, second) > 0)


# -------------------------------------------------------------------------------------------- which parameters matter


@dataclass(frozen=True, slots=True)
class Importance:
    """Shares of importance by one method, means over problems: the arms of a comparison, each with random trials.

    `shares` has an estimate a parameter, in the space's order; `steps` one a pair of neighbouring tiers, by how much a
    parameter of the first has more than one of the second in the mean. `orders` has for each problem the parameters,
    the most important first, with Kendall's τ_b between shares and tiers.
    """

    method: Method
    shares: dict[str, Estimate]
    steps: dict[tuple[int, int], Estimate]
    orders: dict[str, tuple[list[str], float]]


def require_importance(definition: ComparisonDefinition) -> None:
    """See that a comparison can tell how much parameters matter.

    Raises:
        DefinitionError: the space has conditions or one parameter, or an arm has another.
    """
    space = definition.space
    if space.is_conditional or len(space) < 2:
        raise DefinitionError("importance needs two or more parameters, none of them under a condition")
    for member in definition.members:
        if member.definition.space != space:
            raise DefinitionError(f"importance needs one space for all arms; {member.arm} has another")


def importance(
    result: ComparisonResult, on_step: Callable[[int, int], None] = lambda done, of: None
) -> list[Importance]:
    """How much the parameters matter, by each method, with 95% intervals.

    Values are ranked within each run, so that problems and splits of the data weigh alike and trainings that went
    nowhere do not outweigh all others; a failed trial has the worst rank. The intervals are the basic bootstrap's, 2θ̂ −
    q (Davison and Hinkley 1997, eq. 5.6), which allows for the bias that repeated trials bring: trials are drawn anew
    within each seed, the same numbers for all problems, since arms may share their points (the random sampler's follow
    from seed and number). They are about these problems and seeds; of others they say nothing.

    Args:
        result: of a comparison as `require_importance` wants it.
        on_step: told how many of how many resamples are done.

    Raises:
        DefinitionError: see `require_importance`.
    """
    require_importance(result.definition)
    space = result.definition.space
    problems = {arm: _Problem.of(result, arm) for arm in result.arms}
    resamples = _resamples(list(problems.values()))
    total = len(METHODS) * len(problems) * (RESAMPLES + 1)
    tables: list[list[Floats]] = [
        [] for _ in METHODS
    ]  # a method, a problem: shape (1 + RESAMPLES, parameters)
    done = 0
    for problem in problems.values():
        draws = [np.arange(len(problem.losses)), *(problem.rows(drawn) for drawn in resamples)]
        for table, method in zip(tables, METHODS, strict=True):
            rows = []
            for draw in draws:
                points = [problem.points[i] for i in draw]
                rows.append(importance_shares(points, problem.distributions, problem.losses[draw], method))
                done += 1
                on_step(done, total)
            table.append(np.array(rows))
    tiers = np.array([parameter.priority for _, parameter in space.items()])
    return [
        _summed_up(method, list(space), tiers, dict(zip(problems, table, strict=True)))
        for method, table in zip(METHODS, tables, strict=True)
    ]


Key: TypeAlias = tuple[int, int]
"""A seed and a trial's number: what arms have in common."""


@dataclass(frozen=True, slots=True)
class _Problem:
    """The trials of an arm, all its runs together, and where the trial of each seed and number is among them."""

    points: Points
    distributions: dict[str, BaseDistribution]
    losses: Floats
    places: dict[Key, int]

    @classmethod
    def of(cls, result: ComparisonResult, arm: str) -> _Problem:
        points: list[Mapping[str, Any]] = []
        losses: list[Floats] = []
        places: dict[Key, int] = {}
        distributions: dict[str, BaseDistribution] = {}
        for run in result.runs_of(arm):
            trials = [t for t in run.trials if t.state in (TrialState.COMPLETE, TrialState.FAIL)]
            found, distributions = unit_points(result.definition.space, trials)
            places |= {(run.seed, trial.number): len(points) + i for i, trial in enumerate(trials)}
            points += found
            values = np.array([_loss(trial, result.sign) for trial in trials])
            losses.append(scipy.stats.rankdata(values) / len(values))
        return cls(points, distributions, np.concatenate(losses), places)

    def rows(self, drawn: Sequence[Key]) -> Rows:
        """Where the drawn trials are; without those that this problem does not have."""
        return np.array([self.places[key] for key in drawn if key in self.places], dtype=np.intp)


def _resamples(problems: Sequence[_Problem]) -> list[list[Key]]:
    """As many trials of each seed as there are, with repetitions, `RESAMPLES` times; the same ones for all problems."""
    by_seed: dict[int, list[Key]] = {}
    for key in sorted(set().union(*(problem.places for problem in problems))):
        by_seed.setdefault(key[0], []).append(key)
    rng = np.random.default_rng(0)
    return [
        [keys[i] for keys in by_seed.values() for i in rng.integers(len(keys), size=len(keys))]
        for _ in range(RESAMPLES)
    ]


def _summed_up(
    method: Method, names: list[str], tiers: NDArray[np.int_], tables: dict[str, Floats]
) -> Importance:
    mean = np.mean(list(tables.values()), axis=0)  # over problems: (1 + RESAMPLES, parameters)
    by_tier = {int(tier): mean[:, tiers == tier].mean(axis=1) for tier in np.unique(tiers)}
    orders = {}
    for problem, table in tables.items():
        order = np.argsort(-table[0], kind="stable")
        tau = float(scipy.stats.kendalltau(-tiers, table[0]).statistic)
        orders[problem] = [names[i] for i in order], tau
    return Importance(
        method,
        {name: _share(_basic(mean[:, i])) for i, name in enumerate(names)},
        {(first, second): _basic(by_tier[first] - by_tier[second]) for first, second in pairwise(by_tier)},
        orders,
    )


def _share(estimate: Estimate) -> Estimate:
    """With its interval cut off where no share can be."""
    low, high = (min(max(end or 0.0, 0.0), 1.0) for end in (estimate.low, estimate.high))
    return Estimate(estimate.value, low, high)


def _basic(column: Floats) -> Estimate:
    """The first entry, and the basic bootstrap interval from the others."""
    value = float(column[0])
    low, high = np.quantile(column[1:], (0.025, 0.975))
    return Estimate(value, 2 * value - float(high), 2 * value - float(low))


# -------------------------------------------------------------------------------------------- who orders points right


@dataclass(frozen=True, slots=True)
class Agreement:
    """Spearman's rank correlation of an arm's values with the reference's over the same points, shape (seeds,)."""

    arm: str
    correlations: Floats


def agreement(result: ComparisonResult) -> list[Agreement]:
    """How well each arm orders points as the reference does: the trials that both have under one number.

    Failed trials are the worst; who finds all points alike has a correlation of 0. Arms share points where their
    sampler draws them by number and seed, as the random one.

    Raises:
        DefinitionError: trials of one number are not the same point, or fewer than two are shared.
    """
    reference = result.definition.comparison.reference
    truth = {run.seed: run for run in result.runs_of(reference)}
    return [
        Agreement(
            arm, np.array([_correlation(run, truth[run.seed], result.sign) for run in result.runs_of(arm)])
        )
        for arm in result.arms
        if arm != reference
    ]


def _correlation(run: Run, truth: Run, sign: int) -> float:
    there = {trial.number: trial for trial in truth.trials}
    shared = [(trial, there[trial.number]) for trial in run.trials if trial.number in there]
    for trial, other in shared:
        if trial.params != other.params:
            raise DefinitionError(
                f"agreement needs the same points; trial {trial.number} of {run.study} and of {truth.study} differ"
            )
    if len(shared) < 2:
        raise DefinitionError(
            f"agreement needs two or more points that both tried; {run.study} has {len(shared)}"
        )
    ranks = [
        scipy.stats.rankdata([_loss(trial, sign) for trial in trials]) for trials in zip(*shared, strict=True)
    ]
    if any(np.ptp(column) == 0 for column in ranks):  # all are alike to it: no order, so none that agrees
        return 0.0
    return float(scipy.stats.pearsonr(*ranks).statistic)  # of ranks: Spearman's, with infinities


# ----------------------------------------------------------------------------------------------- what depends on what


@dataclass(frozen=True, slots=True)
class Interaction:
    """What the second arm of each pair has more than the first, and how much more in the first pair than in the last.

    p-values are Holm's over the two questions: is there an effect in the first pair, and does it shrink.
    """

    effects: dict[str, Tested]
    shrinks: Tested


def interaction(result: ComparisonResult) -> Interaction:
    """Whether what two arms differ by shrinks from the first pair of arms to the last, seed by seed."""
    pairs = list(zip(result.arms[::2], result.arms[1::2], strict=True))
    rows = dict(zip(result.arms, result.finals, strict=True))
    effects = {f"{second} − {first}": paired(rows[second], rows[first]) for first, second in pairs}
    (first, second), (third, fourth) = pairs[0], pairs[-1]
    shrinks = paired(differences(rows[second], rows[first]), differences(rows[fourth], rows[third]))
    begin = next(iter(effects))
    adjusted = holm(np.array([effects[begin].p, shrinks.p]))
    effects[begin] = Tested(effects[begin].difference, float(adjusted[0]), effects[begin].is_above)
    return Interaction(effects, Tested(shrinks.difference, float(adjusted[1]), shrinks.is_above))


def _loss(trial: FrozenTrial, sign: int) -> float:
    """A trial's value as a loss, infinite if it failed."""
    return sign * trial.value if trial.state == TrialState.COMPLETE and trial.value is not None else math.inf
