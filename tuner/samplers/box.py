"""The box of coarse-to-fine: how long it is, where it lies, how its sides differ.

Its rules are those of trust regions: Eriksson, Pearce, Gardner, Turner and Poloczek, "Scalable Global Optimization via
Local Bayesian Optimization", NeurIPS (2019), cited as [TuRBO].
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from tuner.samplers.axes import Axes
from tuner.samplers.gaussian_process import Floats
from tuner.scales import from_unit

__all__ = [
    "Box",
    "BoxLength",
    "BoxRules",
    "BoxState",
    "make_box",
    "narrowed",
    "turn_everywhere",
]


@dataclass(frozen=True, slots=True)
class BoxRules:
    """When the box changes, in shares of the range: where it starts, how short it gets, after how many successes it
    doubles, and how much of its distance from the median the best value must gain for a success.
    """

    start: float = 0.8
    least: float = 2.0**-6
    successes: int = 2
    tolerance: float = 1e-3

    def failures(self, axes: int) -> int:
        """After how many failures in a row it halves."""
        return max(4, axes)


@dataclass(frozen=True, slots=True)
class BoxState:
    """The length, the runs of successes and failures that led there, the best value, how often the length changed."""

    length: float
    successes: int = 0
    failures: int = 0
    best: float = np.inf
    changes: int = 0


class BoxLength:
    """The length of the box, a pure function of the finished trials in the order of their numbers.

    Each ask costs what is new since the last one: the states after each trial are kept, and taken back as far as a
    trial ended out of turn.
    """

    def __init__(self, rules: BoxRules) -> None:
        self.rules = rules
        self.forget()

    def forget(self) -> None:
        """Start from nothing."""
        self._states: list[BoxState] = []
        self._numbers: list[int] = []
        self._ordered: list[float] = []  # the values, ascending

    def update(
        self,
        numbers: NDArray[np.intp],
        values: Floats,
        axes: int,
        *,
        unchanged: int,
        is_local: Callable[[int], bool],
    ) -> BoxState:
        """The state after the trials `numbers`, ascending, with `values`; both (n,).

        Args:
            numbers: of the finished trials.
            values: to be minimized.
            axes: how many the box has.
            unchanged: trials below this number are as in the last call.
            is_local: whether a trial looked inside the box, so that its failure counts.
        """
        keep = bisect.bisect_left(self._numbers, unchanged)
        del self._states[keep:], self._numbers[keep:]
        if keep < len(self._ordered):
            self._ordered = np.sort(values[:keep]).tolist()
        for i in range(keep, len(numbers)):
            before, value = self._states[-1] if self._states else BoxState(self.rules.start), float(values[i])
            margin = self.rules.tolerance * (self._ordered[i // 2] - before.best) if i else 0.0
            gained = value < before.best - (margin if np.isfinite(margin) else 0.0)
            state = self._after(before, gained, is_local(int(numbers[i])), axes)
            best = min(before.best, value)
            self._states.append(BoxState(state.length, state.successes, state.failures, best, state.changes))
            self._numbers.append(int(numbers[i]))
            bisect.insort(self._ordered, value)
        return self._states[-1] if self._states else BoxState(self.rules.start)

    def last_change(self) -> int:
        """How many trials had finished when the length changed last."""
        changes = self._states[-1].changes if self._states else 0
        first = len(self._states)
        while first and self._states[first - 1].changes == changes:
            first -= 1
        return first + 1

    def _after(self, before: BoxState, gained: bool, local: bool, axes: int) -> BoxState:
        """[TuRBO] section 3, but that trials which looked everywhere count only if they gained."""
        rules, length, changes = self.rules, before.length, before.changes
        if gained:
            if before.successes + 1 < rules.successes:
                return BoxState(length, before.successes + 1, 0, changes=changes)
            return BoxState(min(2 * length, 2.0), changes=changes + (length < 2.0))
        if not local:
            return BoxState(length, before.successes, before.failures, changes=changes)
        if before.failures + 1 < rules.failures(axes):
            return BoxState(length, 0, before.failures + 1, changes=changes)
        shorter = length / 2
        return BoxState(rules.start if shorter < rules.least else shorter, changes=changes + 1)


def turn_everywhere(number: int, share: float) -> int | None:
    """The turn of trial `number` among those that look at the whole space, from 0; None if it is not one of them.

    `share` of all trials are, evenly spread; those of the coarse stage have turns that are not used.
    """
    before = int(number * share)
    return before if int((number + 1) * share) > before else None


@dataclass(frozen=True, slots=True)
class Box:
    """Places: a numeric axis in [low, high]; a categorical one leaves the centre's choice with chance `freedom`."""

    centre: Floats
    low: Floats
    high: Floats
    freedom: Floats

    def distribution(self, axes: Axes, index: int) -> BaseDistribution:
        """The distribution of one axis cut to the box; categorical ones are left whole."""
        outer = axes.distributions[axes.names[index]]
        if isinstance(outer, CategoricalDistribution):
            return outer
        return narrowed(outer, float(self.low[index]), float(self.high[index]))

    def describe(self, axes: Axes) -> dict[str, list[Any]]:
        """By name: the ends of numeric axes, the centre's choice and the chance to leave it of categorical ones."""
        described: dict[str, list[Any]] = {}
        for i, name in enumerate(axes.names):
            if np.isnan(self.centre[i]):
                continue
            if axes.is_categorical[i]:
                described[name] = [axes.value(i, self.centre[i]), round(float(self.freedom[i]), 3)]
            else:
                described[name] = [axes.value(i, self.low[i]), axes.value(i, self.high[i])]
        return described


def make_box(axes: Axes, centre: Floats, lengths: Floats, length: float) -> Box:
    """The box of a length around a point: side L ℓᵢ / ℓ̄, the ratio clipped to ¼ … 4, ℓ̄ the geometric mean.

    [TuRBO] section 3.1: an axis on which the function changes quickly is narrowed first. One that is inactive at
    the centre is free; one with levels keeps the neighbouring ones in reach.
    """
    weights = lengths / np.exp(np.log(lengths).mean())
    side = np.maximum(length * np.clip(weights, 0.25, 4.0), 2.5 / axes.size)
    low, high = np.clip(centre - side / 2, 0, 1), np.clip(centre + side / 2, 0, 1)
    inactive = np.isnan(centre)
    return Box(centre, np.where(inactive, 0.0, low), np.where(inactive, 1.0, high), np.clip(side, 0.1, 1.0))


def narrowed(outer: BaseDistribution, low: float, high: float) -> BaseDistribution:
    """The numeric distribution `outer` cut to the places [low, high] of its unit interval, ends included."""
    if isinstance(outer, IntDistribution):
        return IntDistribution(from_unit(outer, low), from_unit(outer, high), log=outer.log, step=outer.step)
    assert isinstance(outer, FloatDistribution)
    return FloatDistribution(from_unit(outer, low), from_unit(outer, high), log=outer.log, step=outer.step)
