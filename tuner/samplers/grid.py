"""Grid search whose points are a pure function of (seed, trial number)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from tuner.errors import DefinitionError
from tuner.space import CategoricalParameter, Space

__all__ = ["GridSampler", "fit_levels"]

LARGEST_GRID = 1_000_000
"""Points; the order of visits is a permutation held in memory."""


class GridSampler(BaseSampler):
    """Every point of a grid once, in a shuffled order: trial n visits point order[n].

    Shuffled, because a grid in lexicographic order looks at one corner for as long as it runs. With any number of
    workers no point is visited twice and none is left out, as trial numbers are unique; a study that goes on past
    the last point starts over. Parameters that are not in the grid are drawn at random.

    Args:
        levels: the values to try, by parameter name.
        seed: of the order, and of what is drawn at random.

    Raises:
        DefinitionError: an axis has no values, or the grid has more than a million points.
    """

    def __init__(self, levels: Mapping[str, Sequence[Any]], *, seed: int = 0) -> None:
        for name, values in levels.items():
            if not values:
                raise DefinitionError(f"a grid needs at least one level of {name}; got none")
        self.levels = {name: list(values) for name, values in levels.items()}
        if self.capacity > LARGEST_GRID:
            raise DefinitionError(
                f"a grid has at most {LARGEST_GRID:,} points; got {self.capacity:,} = "
                + " × ".join(str(len(values)) for values in self.levels.values())
            )
        self._order = np.random.default_rng(seed).permutation(self.capacity)
        self._random = RandomSampler(seed)

    @property
    def capacity(self) -> int:
        """How many points there are."""
        return math.prod(len(values) for values in self.levels.values())

    def point(self, number: int) -> dict[str, Any]:
        """The point that trial `number` visits."""
        shape = [len(values) for values in self.levels.values()]
        indices = np.unravel_index(self._order[number % self.capacity], shape) if shape else ()
        return {name: values[int(i)] for (name, values), i in zip(self.levels.items(), indices, strict=True)}

    def reseed_rng(self) -> None:
        """Reseed what is drawn at random; the grid's order stays."""
        self._random.reseed_rng()

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Nothing: each parameter of a point can be told on its own."""
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Nothing, see `infer_relative_search_space`."""
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The parameter's value at this trial's point."""
        if param_name in self.levels:
            return self.point(trial.number)[param_name]
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Stop a `study.optimize` loop after the last point."""
        if self.levels and trial.number >= self.capacity - 1:
            with contextlib.suppress(RuntimeError):  # not in such a loop
                study.stop()


def fit_levels(space: Space, points: int) -> dict[str, list[Any]]:
    """Levels for each parameter such that their product is at most `points`, as near to it as one more level allows.

    Categorical parameters get all their choices, unless these are ordered. The others grow in turn: next is the one
    with the fewest levels, weighted by priority, so that important ones get more of them.

    Raises:
        DefinitionError: not even all choices of the categorical parameters fit.
    """
    points = min(points, LARGEST_GRID)
    whole = {n for n, p in space.items() if isinstance(p, CategoricalParameter) and not p.ordered}
    counts = {n: (p.size or 1) if n in whole else 1 for n, p in space.items()}
    if math.prod(counts.values()) > points:
        raise DefinitionError(
            f"a grid over all choices has {math.prod(counts.values()):,} points; "
            f"the budget is {points:,}: raise budget.trials or give sampler.levels"
        )
    growing = set(space) - whole
    while growing:
        if len(growing) == 1:  # the last one takes all that is left at once
            (name,) = growing
            room = points // (math.prod(counts.values()) // counts[name])
            counts[name] = min(space[name].size or room, room)
            break
        name = min(
            growing, key=lambda n: (counts[n] * space[n].priority, space[n].priority, list(space).index(n))
        )
        size = space[name].size
        room = math.prod(counts.values()) // counts[name] * (counts[name] + 1) <= points
        if room and (size is None or counts[name] < size):
            counts[name] += 1
        else:
            growing.remove(name)
    return {name: parameter.levels(counts[name]) for name, parameter in space.items()}
