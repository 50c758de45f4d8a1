"""Population-based training (Jaderberg et al. 2017, arXiv:1711.09846) as a sampler: exploit and explore.

A population of trainings goes on side by side, an interval of epochs at a time. A trial is one such interval, a
*segment*: its parameters are exactly those that it trained with. What the segment continues stands in its system
attribute `population`; whoever runs it takes the network from there.

After each interval a member of the population that is among the worst of its generation leaves its own network for a
copy of one of the best (exploit) and perturbs that one's hyperparameters (explore); any other goes on as it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tuner.samplers.view import Lens
from tuner.scales import from_unit, to_unit

__all__ = ["ENDED", "ENDED_WITH", "Generations", "PopulationSampler", "Segment", "moved", "segment_of"]

PLAN = "population"
"""The system attribute that says what a trial continues: a `Segment`."""

ENDED = "member_ended"
"""The user attribute of a segment after which its training cannot go on: why."""

ENDED_WITH = "ended_with"
"""The user attribute of a segment that was adjusted while it ran: the hyperparameters that it ended with."""


@dataclass(frozen=True, slots=True)
class Segment:
    """The place of a trial in its population.

    `generation` counts from 1. `member` is the number of the trial with which the member began, `parent` that of the
    trial whose checkpoint is continued (None in generation 1), `born` that of the trial in which this network was
    initialised. `changes` are the hyperparameters that differ from the parent's, as `name: (old, new)`.
    """

    generation: int
    member: int
    born: int
    parent: int | None = None
    changes: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)

    def dump(self) -> dict[str, Any]:
        """As it is stored."""
        changes = {name: list(pair) for name, pair in self.changes.items()}
        whose = {"member": self.member, "born": self.born, "parent": self.parent}
        return {"generation": self.generation, **whose, "changes": changes}


def segment_of(system_attrs: Mapping[str, Any]) -> Segment | None:
    """What a trial's system attributes say; None of a trial of another sampler."""
    plan = system_attrs.get(PLAN)
    if plan is None:
        return None
    changes = {name: (old, new) for name, (old, new) in plan["changes"].items()}
    return Segment(plan["generation"], plan["member"], plan["born"], plan["parent"], changes)


class Generations:
    """A study's segments by generation, and who may continue which.

    The best `most` of a generation are all that can be copied, however many members it comes to have: what has once
    fallen out of them never comes back, and its checkpoint can go.

    Args:
        trials: of the study; those that are no segments are left out.
        minimize: whether small values are good.
        quantile: which share of a generation is copied from, and which copies; at most a half.
        population: how many members there are to be.
    """

    def __init__(
        self, trials: Sequence[FrozenTrial], *, minimize: bool, quantile: float, population: int
    ) -> None:
        self._sign = 1.0 if minimize else -1.0
        self._quantile, self.population = quantile, population
        self._most = max(1, int(quantile * population))
        self.trials: dict[int, FrozenTrial] = {}
        self.segments: dict[int, Segment] = {}
        self._finished: dict[int, list[FrozenTrial]] = defaultdict(list)
        for trial in trials:
            segment = segment_of(trial.system_attrs)
            if segment is None:
                continue
            self.trials[trial.number], self.segments[trial.number] = trial, segment
            if trial.state.is_finished():
                self._finished[segment.generation].append(trial)

    def ranked(self, generation: int) -> list[FrozenTrial]:
        """The finished segments of a generation, the best first; failed and pruned ones last."""
        return sorted(self._finished[generation], key=self._rank)

    def top(self, generation: int) -> list[FrozenTrial]:
        """Those that may be copied: the top quantile of what can go on."""
        share = max(1, int(self._quantile * len(self._finished[generation])))
        return self._continuable(generation)[: min(share, self._most)]

    def is_in_bottom(self, trial: FrozenTrial) -> bool:
        """Whether a finished segment is in the bottom quantile of its generation. Failed and pruned ones always are."""
        if trial.state is not TrialState.COMPLETE:
            return True
        ranked = self.ranked(self.segments[trial.number].generation)
        share = max(1, int(self._quantile * len(ranked))) if len(ranked) > 1 else 0
        return trial in ranked[len(ranked) - share :]

    def donors(self, trial: FrozenTrial) -> list[FrozenTrial]:
        """Whom a finished segment may be continued from: itself, or the top where it is in the bottom quantile.

        Empty where the segment failed and there is none to copy.
        """
        if not self.is_in_bottom(trial):
            return [trial]
        others = [t for t in self.top(self.segments[trial.number].generation) if t.number != trial.number]
        return others or ([trial] if trial.state is TrialState.COMPLETE else [])

    def next(self) -> FrozenTrial | None:
        """The finished segment whose member goes on next; None where another member is to begin.

        New members begin one after the other until there are `population`, and when none is free: so after the end of
        all members another population begins.
        """
        newest = max(self.segments, default=None)
        is_filling = newest is None or self.segments[newest].generation == 1
        if is_filling and len(self._open) < self.population:
            return None
        free = [number for number in self._open if self.trials[number].state.is_finished()]
        first = min(free, key=lambda number: (self.segments[number].generation, number), default=None)
        return None if first is None else self.trials[first]

    def needed(self) -> set[int]:
        """The numbers of the trials whose checkpoints somebody may continue still, and that of the best one."""
        running = {
            segment.parent
            for number, segment in self.segments.items()
            if not self.trials[number].state.is_finished() and segment.parent is not None
        }
        top = {t.number for generation in self._finished for t in self._continuable(generation)[: self._most]}
        complete = [t for t in self.trials.values() if t.state is TrialState.COMPLETE]
        best = min(complete, key=self._rank, default=None)
        return running | top | set(self._open) | ({best.number} if best is not None else set())

    @cached_property
    def _open(self) -> list[int]:
        """The last segments of the members that can go on, or are running."""
        last: dict[int, int] = {}
        for number in sorted(self.segments):
            last[self.segments[number].member] = number
        return [number for number in last.values() if not self._is_over(self.trials[number])]

    def _is_over(self, trial: FrozenTrial) -> bool:
        if ENDED in trial.user_attrs:
            return True
        return trial.state in (TrialState.FAIL, TrialState.PRUNED) and not self.donors(trial)

    def _continuable(self, generation: int) -> list[FrozenTrial]:
        ranked = self.ranked(generation)
        return [t for t in ranked if t.state is TrialState.COMPLETE and ENDED not in t.user_attrs]

    def _rank(self, trial: FrozenTrial) -> tuple[bool, float, int]:
        if trial.state is not TrialState.COMPLETE or trial.value is None:
            return True, 0.0, trial.number
        return False, self._sign * trial.value, trial.number


class PopulationSampler(BaseSampler):
    """Population-based training. What it draws anew is uniform on each parameter's scale.

    The choice for a trial is a function of (seed, trial number, finished trials).

    Args:
        explore: the parameters that may change in a network that is trained already; None: all.
        lenses: the scales that the database does not know, by parameter.
        population: how many members there are to be.
        quantile: the share of a generation that is left, and that is copied; at most a half.
        step: how far an explored parameter moves, as a share of its range on its scale.
        resample: the probability that it is drawn anew instead.
        seed: of all draws.
    """

    def __init__(
        self,
        *,
        explore: Collection[str] | None = None,
        lenses: Mapping[str, Lens] | None = None,
        population: int = 8,
        quantile: float = 0.25,
        step: float = 0.1,
        resample: float = 0.25,
        seed: int = 0,
    ) -> None:
        self._explore, self._lenses = explore, dict(lenses or {})
        self._population, self._quantile = population, quantile
        self._step, self._resample, self._seed = step, resample, seed
        self._random = RandomSampler(seed)

    def reseed_rng(self) -> None:
        """Draw other points to begin with; what is explored depends on the seed alone."""
        self._random.reseed_rng()

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Note on the trial what it continues."""
        self._raise_error_if_multi_objective(study)
        segment = self._choose(study, trial)
        study._storage.set_trial_system_attr(trial._trial_id, PLAN, segment.dump())

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """All parameters of the trial that is continued; nothing in generation 1."""
        self._raise_error_if_multi_objective(study)
        parent = self._parent(study, trial)[1]
        return {} if parent is None else dict(parent.distributions)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The parent's hyperparameters, as it ended with them, and what is changed."""
        segment, parent = self._parent(study, trial)
        if segment is None or parent is None:
            return {}
        inherited = _ended_with(parent, self._lenses)
        changed = {name: new for name, (_, new) in segment.changes.items()}
        return {name: value for name, value in {**inherited, **changed}.items() if name in search_space}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A draw from the whole range."""
        self._raise_error_if_multi_objective(study)
        lens = self._lenses.get(param_name)
        seen = param_distribution if lens is None else lens.see(param_distribution)
        value = self._random.sample_independent(study, trial, param_name, seen)
        return value if lens is None else lens.outward(param_distribution, value)

    def _parent(self, study: optuna.Study, trial: FrozenTrial) -> tuple[Segment | None, FrozenTrial | None]:
        """What the trial is, as `before_trial` has noted, and the trial that it continues."""
        segment = segment_of(study._storage.get_trial_system_attrs(trial._trial_id))
        if segment is None or segment.parent is None:
            return segment, None
        trials = study._get_trials(deepcopy=False, use_cache=True)
        return segment, next(t for t in trials if t.number == segment.parent)

    def _choose(self, study: optuna.Study, trial: FrozenTrial) -> Segment:
        begun = Segment(generation=1, member=trial.number, born=trial.number)
        if trial.system_attrs.get("fixed_params"):  # a point of somebody's choice begins a member of its own
            return begun
        others = [t for t in study._get_trials(deepcopy=False, use_cache=True) if t.number != trial.number]
        minimize = study.direction == StudyDirection.MINIMIZE
        generations = Generations(
            others, minimize=minimize, quantile=self._quantile, population=self._population
        )
        last = generations.next()
        if last is None:
            return begun
        rng = np.random.default_rng((self._seed, trial.number))
        donors = generations.donors(last)
        donor = donors[rng.integers(len(donors))]
        before, source = generations.segments[last.number], generations.segments[donor.number]
        changes = {} if donor.number == last.number else self._explored(donor, rng)
        return Segment(before.generation + 1, before.member, source.born, donor.number, changes)

    def _explored(self, donor: FrozenTrial, rng: np.random.Generator) -> dict[str, tuple[Any, Any]]:
        changes = {}
        for name, old in _ended_with(donor, self._lenses).items():
            if self._explore is not None and name not in self._explore:
                continue
            distribution, lens = donor.distributions[name], self._lenses.get(name)
            anew, place, up = rng.random() < self._resample, rng.random(), rng.random() < 0.5
            has_order = lens is not None or not isinstance(distribution, CategoricalDistribution)
            if anew or not has_order:
                new = _at(distribution, lens, place)
            else:
                new = moved(distribution, lens, old, self._step if up else -self._step)
            if new != old:
                changes[name] = (old, new)
        return changes


def moved(distribution: BaseDistribution, lens: Lens | None, value: Any, step: float) -> Any:
    """The value `step` away on the parameter's scale, a share of its range, up or down.

    Where that leaves the range it goes the other way. Where values are so few that a step leads to none other, it goes
    as far as the next.
    """
    place = _place(distribution, lens, value)
    while abs(step) < 1:
        for target in (place + step, place - step):
            if 0 <= target <= 1 and (new := _at(distribution, lens, target)) != value:
                return new
        step *= 2
    return _at(distribution, lens, 0.0 if place > 0.5 else 1.0)


def _place(distribution: BaseDistribution, lens: Lens | None, value: Any) -> float:
    """Where a value lies in [0, 1] of its scale."""
    if lens is None:
        return to_unit(distribution, value)
    return to_unit(lens.see(distribution), lens.inward(distribution, value))


def _at(distribution: BaseDistribution, lens: Lens | None, place: float) -> Any:
    """The value at a place in [0, 1] of its scale."""
    if lens is None:
        return from_unit(distribution, place)
    return lens.outward(distribution, from_unit(lens.see(distribution), place))


def _ended_with(trial: FrozenTrial, lenses: Mapping[str, Lens]) -> dict[str, Any]:
    """The parameters that a segment ended with: its own, or what a person made of them, kept within the space."""
    params = dict(trial.params)
    for name, value in trial.user_attrs.get(ENDED_WITH, {}).items():
        if name in params:
            params[name] = _within(trial.distributions[name], lenses.get(name), value, params[name])
    return params


def _within(distribution: BaseDistribution, lens: Lens | None, value: Any, otherwise: Any) -> Any:
    """The value, or the nearest that the space has; of choices that do not have it, `otherwise`."""
    if isinstance(distribution, CategoricalDistribution):
        return value if value in distribution.choices else otherwise
    if distribution._contains(distribution.to_internal_repr(value)):
        return value
    return _at(distribution, lens, _place(distribution, lens, value))
