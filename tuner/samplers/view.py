"""The view: what stands between a sampler and the study that it samples for.

A sampler asks a study two things: which trials there are, and which distributions the parameters have. A `StudyView`
answers both through one `Lens` a parameter, and so can

* show a reverse-log parameter as log-uniform 1 − β while the database keeps β (`ReverseLogLens`): every sampler then
  works on that scale without knowing of it;
* narrow a parameter to a box (`BoxLens`): this is all that coarse-to-fine is, with any sampler inside the box;
* hold back what the sampler writes, so that an ask can put trial, parameters and attributes into one transaction;
* keep finished trials translated, so that an ask does not translate the whole history again.

`LensSampler` is the other half: an ordinary Optuna sampler that lets an inner one see through lenses, and translates
its answers back.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    _get_single_value,
)
from optuna.samplers import BaseSampler
from optuna.samplers._lazy_random_state import LazyRandomState
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from tuner.scales import from_reversed, is_reversible, reversed_distribution, to_reversed

__all__ = [
    "BoxLens",
    "HeldWrites",
    "Lens",
    "LensSampler",
    "OrderedLens",
    "ReverseLogLens",
    "SeenTrials",
    "StudyView",
    "ViewSampler",
    "outside",
    "reseed",
]


class Lens(Protocol):
    """How a sampler sees one parameter. `distribution` is always the one outside, as in the database."""

    def see(self, distribution: BaseDistribution) -> BaseDistribution:
        """The distribution that the sampler sees."""

    def contains(self, distribution: BaseDistribution, value: Any) -> bool:
        """Whether the sampler sees `value` at all."""

    def inward(self, distribution: BaseDistribution, value: Any) -> Any:
        """What the sampler sees of `value`."""

    def outward(self, distribution: BaseDistribution, value: Any) -> Any:
        """What the database gets for the sampler's `value`: the inverse of `inward`."""


@dataclass(frozen=True, slots=True)
class ReverseLogLens:
    """A decay rate β in [low, high] seen as 1 − β, log-uniform in [1 − high, 1 − low]; see `reversed_distribution`."""

    def see(self, distribution: BaseDistribution) -> BaseDistribution:
        """The log scale of 1 − β; what has none (a log range, choices, numbers of 1 and above) is seen as it is."""
        return reversed_distribution(distribution) if is_reversible(distribution) else distribution

    def contains(self, distribution: BaseDistribution, value: Any) -> bool:
        """Always."""
        return True

    def inward(self, distribution: BaseDistribution, value: Any) -> Any:
        """1 − β."""
        return to_reversed(distribution, value) if is_reversible(distribution) else value

    def outward(self, distribution: BaseDistribution, value: Any) -> Any:
        """β, never outside [low, high]."""
        return from_reversed(distribution, value) if is_reversible(distribution) else value


@dataclass(frozen=True, slots=True)
class OrderedLens:
    """Choices that have an order, such as 8, 16, 32, seen as their places 0, 1, 2."""

    def see(self, distribution: BaseDistribution) -> BaseDistribution:
        """The places; anything but choices is seen as it is."""
        if not isinstance(distribution, CategoricalDistribution):
            return distribution
        return IntDistribution(0, len(distribution.choices) - 1)

    def contains(self, distribution: BaseDistribution, value: Any) -> bool:
        """Always."""
        return True

    def inward(self, distribution: BaseDistribution, value: Any) -> Any:
        """The place."""
        if not isinstance(distribution, CategoricalDistribution):
            return value
        return int(distribution.to_internal_repr(value))

    def outward(self, distribution: BaseDistribution, value: Any) -> Any:
        """The choice."""
        return distribution.choices[value] if isinstance(distribution, CategoricalDistribution) else value


@dataclass(frozen=True, slots=True)
class BoxLens:
    """A parameter narrowed to `box`, a distribution of the same kind inside the outer one.

    Values outside the box are not seen: a trial with one is hidden from the sampler as a whole.
    """

    box: BaseDistribution

    def see(self, distribution: BaseDistribution) -> BaseDistribution:
        """The box."""
        return self.box

    def contains(self, distribution: BaseDistribution, value: Any) -> bool:
        """Whether the value lies in the box, ends included."""
        box = self.box
        if isinstance(box, CategoricalDistribution):
            return value in box.choices
        assert isinstance(box, (FloatDistribution, IntDistribution))
        return bool(box.low <= value <= box.high)

    def inward(self, distribution: BaseDistribution, value: Any) -> Any:
        """The value itself."""
        return value

    def outward(self, distribution: BaseDistribution, value: Any) -> Any:
        """The value itself."""
        return value


@dataclass(slots=True)
class HeldWrites:
    """What a sampler wrote for a trial that is not in the database yet, to be stored with the trial."""

    trial_id: int
    system_attrs: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class SeenTrials:
    """What a view has translated so far: finished trials by id, None for hidden ones, and the first ones as a list.

    The list lets an ask read a long history without touching each of its trials again.
    """

    by_id: dict[int, FrozenTrial | None] = field(default_factory=dict)
    first: list[FrozenTrial] = field(default_factory=list)
    count: int = 0
    last_id: int | None = None

    def forget_first(self) -> None:
        """The trials are not the ones in the list, or not in its order."""
        self.first, self.count, self.last_id = [], 0, None


LensOf: TypeAlias = Callable[[str, BaseDistribution], Lens | None]
"""The lens of a parameter, given its name and its distribution in the database; None shows it as it is."""


class StudyView(optuna.Study):
    """A study as a sampler sees it: `optuna.Study`'s interface over another study, translated.

    Args:
        study: what is viewed; may be a view itself.
        lens_of: the lens of each parameter; None shows all as they are.
        cache: what is translated already. The caller keeps it from ask to ask and drops it when the lenses change.
        held: attributes written for `held.trial_id` go there instead of the database.
        remembering: show the trials as they were last read in this thread, whoever asks; the caller says when to read
            them again.
    """

    keeps_notes = True
    """Whether what a sampler notes on the study as a whole gets there."""

    def __init__(
        self,
        study: optuna.Study,
        lens_of: LensOf | None = None,
        *,
        cache: SeenTrials | None = None,
        held: HeldWrites | None = None,
        remembering: bool = False,
    ) -> None:
        # not Study.__init__, which would ask the database again for what `study` knows
        self.study_name = study.study_name
        self.sampler = study.sampler
        self.pruner = study.pruner
        self._study_id = study._study_id
        self._directions = study._directions
        self._thread_local = study._thread_local
        self._viewed = study
        self._lens_of = lens_of
        self._remembering = remembering
        self._cache = SeenTrials() if cache is None else cache
        self._storage = _ViewStorage(study._storage, self, held)  # type: ignore[assignment]  # quacks like one

    def stop(self) -> None:
        """Stop the viewed study's optimization loop."""
        self._viewed.stop()

    def _get_trials(
        self,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
        use_cache: bool = False,
    ) -> list[FrozenTrial]:
        trials = self._viewed._get_trials(
            deepcopy=False, states=states, use_cache=use_cache or self._remembering
        )
        if self._lens_of is not None and states is None:
            trials = self._translate_all(trials)
        elif self._lens_of is not None:
            trials = [view for trial in trials if (view := self.translate(trial)) is not None]
        return copy.deepcopy(trials) if deepcopy else trials

    def _translate_all(self, trials: list[FrozenTrial]) -> list[FrozenTrial]:
        cache = self._cache
        if cache.count and (cache.count > len(trials) or trials[cache.count - 1]._trial_id != cache.last_id):
            cache.forget_first()
        while cache.count < len(trials) and trials[cache.count].state.is_finished():
            trial = trials[cache.count]
            view = self.translate(trial)
            cache.first += [] if view is None else [view]
            cache.count, cache.last_id = cache.count + 1, trial._trial_id
        rest = [view for trial in trials[cache.count :] if (view := self.translate(trial)) is not None]
        return cache.first + rest

    def outward(self, name: str, value: Any) -> Any:
        """What the viewed study calls `value`, a value of the parameter `name`."""
        outer = _latest_distributions(self._viewed, {name}).get(name)
        lens = self._lens_of(name, outer) if self._lens_of is not None and outer is not None else None
        return value if lens is None or outer is None else lens.outward(outer, value)

    def translate(self, trial: FrozenTrial) -> FrozenTrial | None:
        """The trial as the sampler sees it; None where it is hidden."""
        if self._lens_of is None:
            return trial
        if not trial.state.is_finished():
            return _translate(trial, self._lens_of)
        known = self._cache.by_id
        if trial._trial_id not in known:
            known[trial._trial_id] = _translate(trial, self._lens_of)
        return known[trial._trial_id]


def outside(study: optuna.Study, name: str, value: Any) -> Any:
    """What the database calls `value`, a value of the parameter `name` as a sampler sees it that is shown `study`."""
    while isinstance(study, StudyView):
        value, study = study.outward(name, value), study._viewed
    return value


def _translate(trial: FrozenTrial, lens_of: LensOf) -> FrozenTrial | None:
    seen: FrozenTrial | None = None
    for name, outer in trial.distributions.items():
        lens = lens_of(name, outer)
        if lens is None:
            continue
        value = trial.params[name]
        if not lens.contains(outer, value):
            return None
        if seen is None:
            seen = copy.copy(trial)
            seen.params = dict(trial.params)
            seen.distributions = dict(trial.distributions)
        seen.params[name] = lens.inward(outer, value)
        seen.distributions[name] = lens.see(outer)
    return trial if seen is None else seen


class _ViewStorage:
    """The storage that a viewed study shows: translated trials, held writes, all else as it is."""

    def __init__(self, storage: BaseStorage, view: StudyView, held: HeldWrites | None) -> None:
        self._storage = storage
        self._view = view
        self._held = held

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        assert study_id == self._view._study_id
        return self._view._get_trials(deepcopy=deepcopy, states=states)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        trial = self._storage.get_trial(trial_id)
        return self._view.translate(trial) or trial

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        return self.get_trial(self._storage.get_best_trial(study_id)._trial_id)

    def get_trial_system_attrs(self, trial_id: int) -> dict[str, Any]:
        if self._held is not None and trial_id == self._held.trial_id:
            return dict(self._held.system_attrs)
        return self._storage.get_trial_system_attrs(trial_id)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        if self._view.keeps_notes:
            self._storage.set_study_user_attr(study_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        if self._held is not None and trial_id == self._held.trial_id:
            self._held.system_attrs[key] = value
        else:
            self._storage.set_trial_system_attr(trial_id, key, value)


class LensSampler(BaseSampler):
    """An ordinary Optuna sampler that lets `inner` see the study through lenses.

    Subclasses say which lens a parameter has (`lens`) and when the lenses change (`lens_version`).
    """

    def __init__(self, inner: BaseSampler) -> None:
        self.inner = inner
        self._cache = SeenTrials()
        self._cache_of: tuple[int, Any] | None = None

    def __str__(self) -> str:
        return f"{type(self).__name__}({self.inner})"

    def lens(
        self, study: optuna.Study, trial: FrozenTrial, name: str, outer: BaseDistribution
    ) -> Lens | None:
        """The lens of the parameter `name`, whose distribution in the database is `outer`, for this trial."""
        raise NotImplementedError

    def lens_version(self, study: optuna.Study, trial: FrozenTrial) -> Any:
        """Whatever changes when the lenses do."""
        return None

    def lenses_changed(self) -> None:
        """Called when the inner sampler is about to see another study than before."""

    def reseed_rng(self) -> None:
        """Let the inner sampler draw otherwise from now on."""
        self.inner.reseed_rng()

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """What the inner sampler would choose together, as distributions of the database."""
        view, seen = self._view(study, trial)
        inside = self.inner.infer_relative_search_space(view, seen)
        outer = _latest_distributions(study, set(inside))
        return {name: outer.get(name, distribution) for name, distribution in inside.items()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The inner sampler's joint choice inside the lenses."""
        view, seen = self._view(study, trial)
        lenses = {name: self.lens(study, trial, name, outer) for name, outer in search_space.items()}
        inside = {n: _see(lenses[n], outer) for n, outer in search_space.items()}
        chosen = self.inner.sample_relative(
            view, seen, {n: box for n, box in inside.items() if search_space[n].single() or not box.single()}
        )
        for name, box in inside.items():
            if name not in chosen and box.single() and not search_space[name].single():
                chosen[name] = _get_single_value(box)
        return {n: _outward(lenses.get(n), search_space[n], v) for n, v in chosen.items()}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The inner sampler's choice of one parameter inside its lens."""
        view, seen = self._view(study, trial)
        lens = self.lens(study, trial, param_name, param_distribution)
        inside = _see(lens, param_distribution)
        if inside.single():
            value = _get_single_value(inside)
        else:
            value = self.inner.sample_independent(view, seen, param_name, inside)
        return _outward(lens, param_distribution, value)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Tell the inner sampler."""
        self.inner.before_trial(*self._view(study, trial))

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Tell the inner sampler."""
        self.inner.after_trial(*self._view(study, trial), state, values)

    def _view(self, study: optuna.Study, trial: FrozenTrial) -> tuple[StudyView, FrozenTrial]:
        version = (study._study_id, self.lens_version(study, trial))
        if version != self._cache_of:
            self._cache, self._cache_of = SeenTrials(), version
            self.lenses_changed()
        view = StudyView(study, lambda name, outer: self.lens(study, trial, name, outer), cache=self._cache)
        return view, view.translate(trial) or trial


def _see(lens: Lens | None, outer: BaseDistribution) -> BaseDistribution:
    return outer if lens is None else lens.see(outer)


def _outward(lens: Lens | None, outer: BaseDistribution, value: Any) -> Any:
    return value if lens is None else lens.outward(outer, value)


def _latest_distributions(study: optuna.Study, names: set[str]) -> dict[str, BaseDistribution]:
    """By name, the distribution in the database that the newest trial with this parameter has."""
    found: dict[str, BaseDistribution] = {}
    if not names:
        return found
    for trial in reversed(study._get_trials(deepcopy=False, use_cache=True)):
        found = {n: d for n, d in trial.distributions.items() if n in names} | found
        if len(found) == len(names):
            break
    return found


class ViewSampler(LensSampler):
    """Any Optuna sampler on the scales of a space, with randomness that a restart continues.

    Args:
        inner: the sampler that chooses.
        reverse_log: names of the parameters that it sees as log-uniform 1 − β.
        ordered: names of the categorical parameters that it sees as places in their order.
        seed: before each trial all random states inside are set from (seed, trial number), so that the choice for
            trial n does not depend on which process made the ones before. None leaves them alone.
    """

    def __init__(
        self,
        inner: BaseSampler,
        *,
        reverse_log: Container[str] = (),
        ordered: Container[str] = (),
        seed: int | None = None,
    ) -> None:
        super().__init__(inner)
        self._reverse_log = reverse_log
        self._ordered = ordered
        self._seed = seed

    def lens(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        name: str,
        outer: BaseDistribution,
    ) -> Lens | None:
        """The lens that the parameter wants."""
        if name in self._reverse_log:
            return ReverseLogLens()
        return OrderedLens() if name in self._ordered else None

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Set the random states for this trial, then tell the inner sampler."""
        if self._seed is not None:
            reseed(self.inner, np.random.SeedSequence((self._seed, trial.number)))
        super().before_trial(study, trial)


def reseed(sampler: BaseSampler, seed: np.random.SeedSequence) -> None:
    """Set every random state inside `sampler`, and inside samplers that it holds, from `seed`.

    Optuna's samplers only offer to reseed themselves from the operating system's entropy. All keep their generators
    as `LazyRandomState` attributes, found here by type; the conformance tests hold for each registered sampler that
    a restart between any two trials changes nothing, and so would notice one that does not.
    """
    for owner, name, state in _random_states(sampler, set()):
        (word,) = seed.spawn(1)[0].generate_state(1)
        if isinstance(state, LazyRandomState):
            state.rng.seed(int(word))
        else:
            setattr(owner, name, np.random.default_rng(int(word)))


def _random_states(sampler: BaseSampler, seen: set[int]) -> list[tuple[Any, str, Any]]:
    if id(sampler) in seen:
        return []
    seen.add(id(sampler))
    states: list[tuple[Any, str, Any]] = []
    for name, attribute in sorted(vars(sampler).items()):
        if isinstance(attribute, (LazyRandomState, np.random.Generator)):
            states.append((sampler, name, attribute))
        elif isinstance(attribute, BaseSampler):
            states += _random_states(attribute, seen)
    return states
