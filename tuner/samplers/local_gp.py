"""Coarse to fine by a model: a box around the best point that breathes with success, a Gaussian process inside.

Look everywhere first; then in a box around the point that the model believes best, which grows while that helps and
shrinks while it does not. Important axes, on which the model is short-sighted, are narrowed first. A share of the asks
looks at the whole space, so that a better hill can still be found: some blindly, most where the model expects one, by
turns for little more than the best and for much. Targets both near and far are from Jones, "A Taxonomy of Global
Optimization Methods Based on Response Surfaces", J. Global Optimization 21 (2001), there for the probability of
improvement; here for the expected one, a target at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
import optuna
import scipy  # its parts are imported when first used: half a second
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial
from threadpoolctl import ThreadpoolController

from tuner.errors import DefinitionError
from tuner.samplers.axes import Axes
from tuner.samplers.box import Box, BoxLength, BoxRules, BoxState, make_box, turn_everywhere
from tuner.samplers.gaussian_process import (
    Floats,
    GaussianProcess,
    Hyperparameters,
    Prior,
    fit,
    log_expected_improvement,
    warp,
)
from tuner.samplers.history import ActivityRules, History, TargetsThen
from tuner.samplers.view import outside

__all__ = ["BOXES", "EXPLANATION", "ModelZoom", "ZoomOptions", "entropy"]

EXPLANATION = "coarse-to-fine"
"""System attribute of a trial: where it was looked for."""

Look = Literal["box", "everywhere", "blind"]
"""Where a trial looks: inside the box, or at the whole space, as whoever is inside would choose; or there blindly, so
that no region is left out for ever.
"""

BLIND = 5
"""One look in so many at the whole space is blind."""

BOXES = "coarse-to-fine: boxes"
"""User attribute of the study: the boxes so far, each with the number of the first trial chosen in it."""

LOOKED_AT = 1000
"""Of more finished trials these are looked at, so that an ask takes no longer."""

BOXES_KEPT = 200
"""So many of them: an attribute is read and written as a whole."""


LEAST = {
    "startup": 1,
    "model_points": 10,
    "candidates": 1,
    "mutations": 1,
    "parents": 1,
    "ascents": 1,
    "steps": 1,
    "rounds": 0,
}
"""The least that options which count something may be."""


@dataclass(frozen=True, slots=True)
class ZoomOptions:
    """What may be tuned of the tuner.

    `startup` is the length of the coarse stage, by default 2 trials a parameter, 6 to 10. `everywhere` is the share of
    trials that look at the whole space, one in five of them blindly, whatever the model believes. With `local-gp` the
    others ask for an improvement by more than the `margins`, one after the other, in standard deviations of the warped
    values (`warp`: they shrink as the better half draws together). A margin of 1 goes where there may be much more, 0
    polishes what is best. While the noise is more than `noise_limit` of the signal, only the blind ones look there: the
    others would find luck. `model_points` is how many points the model has at most (an ask costs their cube),
    `candidates` and `mutations` how many points it judges, `parents` how many of the best are mutated, `ascents` from
    how many candidates it climbs, `steps` how far at most, `rounds` how often the best are polished.

    Raises:
        DefinitionError: a share that is not in [0, 1], margins that are not at least one finite number ≥ 0, a noise
            limit that is no number ≥ 0, a number of points that is too small or not whole, rules or a prior that are
            none.
    """

    startup: int | None = None
    everywhere: float = 0.4
    margins: tuple[float, ...] = (1.0, 0.3, 0.1, 0.0)
    noise_limit: float = 0.1
    model_points: int = 150
    candidates: int = 512
    mutations: int = 384
    parents: int = 5
    ascents: int = 5
    steps: int = 15
    rounds: int = 3
    rules: BoxRules = field(default_factory=BoxRules)
    prior: Prior = field(default_factory=Prior)

    def __post_init__(self) -> None:
        if not _is_number(self.everywhere) or not 0 <= self.everywhere <= 1:
            raise DefinitionError(f"everywhere needs to be a share from 0 to 1; got {self.everywhere!r}")
        if not isinstance(self.margins, tuple) or not self.margins:
            raise DefinitionError(f"margins needs to be a tuple of numbers; got {self.margins!r}")
        if not all(_is_number(margin) and 0 <= margin < np.inf for margin in self.margins):
            raise DefinitionError(f"margins needs to be finite numbers of at least 0; got {self.margins!r}")
        if not _is_number(self.noise_limit) or not self.noise_limit >= 0:
            raise DefinitionError(f"noise_limit needs to be a number of at least 0; got {self.noise_limit!r}")
        for name, least in LEAST.items():
            count = getattr(self, name)
            if count is None and name == "startup":
                continue
            if not isinstance(count, Integral) or not _is_number(count) or count < least:
                raise DefinitionError(f"{name} needs to be a whole number, {least} or more; got {count!r}")
        for name, kind in {"rules": BoxRules, "prior": Prior}.items():
            if not isinstance(part := getattr(self, name), kind):
                raise DefinitionError(f"{name} needs to be {kind.__name__}(...); got {part!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class Belief:
    """The model after some trials: its points' rows, best believed first, and the box around the first of them."""

    model: GaussianProcess
    rows: Floats
    best: float
    box: Box


class ModelZoom(BaseSampler):
    """The zoom; in its box the model chooses (`local-gp`), or chance does (`random`, `sobol`).

    Everything derives from (seed, trial number) and the finished trials.
    """

    def __init__(
        self,
        inside: Literal["local-gp", "random", "sobol"] = "local-gp",
        *,
        options: ZoomOptions | None = None,
        seed: int | None = None,
    ) -> None:
        if not isinstance(options, ZoomOptions | None):
            raise DefinitionError(f"options needs to be ZoomOptions(...); got {options!r}")
        self.inside = inside
        self.options = options or ZoomOptions()
        self._is_seeded = seed is not None
        self._seed = entropy() if seed is None else seed
        self._random = RandomSampler(self._seed)
        self._history = History()
        self._length = BoxLength(self.options.rules)
        self._targets_then = TargetsThen()
        self._fitted: dict[bytes, Hyperparameters] = {}
        self._sobol: dict[int, Floats] = {}
        self._axes: Axes | None = None
        self._noted_changes = -1

    def reseed_rng(self) -> None:
        """Draw otherwise from now on, where no seed was given."""
        self._random.reseed_rng()
        if not self._is_seeded:
            self._seed, self._sobol = entropy(), {}

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """All parameters seen so far; those that are inactive in this trial are chosen in vain."""
        self._raise_error_if_multi_objective(study)
        self.update(study)
        return dict(self._history.axes.distributions)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The next point."""
        self._raise_error_if_multi_objective(study)
        if not search_space:
            return {}
        self.update(study)
        axes = self._history.axes
        with _one_thread():
            row = self._row(study, trial)
        return {
            name: axes.value(i, row[i])
            for i, name in enumerate(axes.names)
            if search_space.get(name) == axes.distributions[name] and not np.isnan(row[i])
        }

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A parameter that no trial had before: at random."""
        self._raise_error_if_multi_objective(study)
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Set the random state for parameters that no trial had before."""
        (word,) = np.random.SeedSequence((self._seed, trial.number)).generate_state(1)
        self._random._rng.rng.seed(int(word))

    # where to look

    def update(self, study: optuna.Study) -> None:
        """Take in what has happened in the study."""
        self._history.update(study)
        if self._axes is not self._history.axes:  # another study, or another parameter
            self._axes = self._history.axes
            self._length.forget()
            self._targets_then.forget()
            self._fitted = {}

    @property
    def axes(self) -> Axes:
        """The axes known so far."""
        return self._history.axes

    @property
    def startup(self) -> int:
        """The length of the coarse stage."""
        return self.options.startup or max(6, min(2 * len(self.axes), 10))

    def is_coarse(self, number: int) -> bool:
        """Whether trial `number` belongs to the coarse stage: too early, or too little known."""
        return number < self.startup or int(self._history.finished.sum()) < 3

    def is_local(self, number: int) -> bool:
        """Whether trial `number` looks inside the box."""
        return number >= self.startup and turn_everywhere(number, self.options.everywhere) is None

    def state(self) -> BoxState:
        """The box's length and what led to it."""
        places = np.flatnonzero(self._history.finished)
        numbers, unchanged = self._history.numbers[places], self._history.take_changes()
        values, pruned = self._history.values[places], self._history.pruned[places]
        targets = self._targets_then.update(numbers, values, pruned, unchanged=unchanged)
        return self._length.update(
            numbers, targets, len(self.axes), unchanged=unchanged, is_local=self.is_local
        )

    def steady_box(self) -> Box:
        """The box as it was when its length changed last: for samplers that need one that stands still."""
        state = self.state()
        with _one_thread():
            return self._believe(state.length, self._length.last_change()).box

    def _row(self, study: optuna.Study, trial: FrozenTrial) -> Floats:
        number = trial.number
        if self.is_coarse(number):
            self._note(study, trial, {"look": "coarse", "stage": 0})
            return self._sobol_row(number)
        state, kind = self.state(), self._look(number)
        note: dict[str, Any] = {"look": kind, "stage": state.changes + 1}
        match kind:
            case "box":
                belief = self._believe(state.length)
                note |= {"length": state.length, "box": self._described(study, belief.box)}
                self._note_box(study, trial, state, note)
                row = self._choose(number, belief, 0.0)
            case "everywhere":
                margin = self._margin(number)
                if self.inside == "local-gp":
                    note["margin"] = margin
                row = self._choose(number, self._believe(np.inf), margin)
            case "blind":
                row = self._sobol_row(number)
        self._note(study, trial, note)
        return row

    def _look(self, number: int) -> Look:
        """Where trial `number` looks: while there is much noise, at the whole space only blindly."""
        turn = turn_everywhere(number, self.options.everywhere)
        if turn is None:
            return "box"
        if turn % BLIND == BLIND - 1:
            return "blind"
        return "box" if self._is_noisy() else "everywhere"

    def _margin(self, number: int) -> float:
        """By how much more than the best trial `number` is to improve: the margins take turns."""
        turn = turn_everywhere(number, self.options.everywhere) or 0
        led = turn - turn // BLIND  # without the blind ones before it
        return self.options.margins[led % len(self.options.margins)]

    def _choose(self, number: int, belief: Belief, margin: float) -> Floats:
        rng = np.random.default_rng((self._seed, number))
        if self.inside == "local-gp":
            return self._best_candidate(number, rng, belief, margin)
        tries = self._sobol_points(len(self.axes), number + 8)[number : number + 8]
        units = tries if self.inside == "sobol" else rng.uniform(size=tries.shape)
        rows = self._rules().apply(self._into_box(rng, belief.box, units))
        row: Floats = rows[int(np.argmin(self._history.contains(rows)))]
        return row

    def _sobol_row(self, number: int) -> Floats:
        """The Sobol point of the trial's number; where that is taken already, one after it."""
        units = self._sobol_points(len(self.axes), number + 64)[number : number + 64]
        rows = self._rules().apply(self.axes.from_units(units))
        row: Floats = rows[int(np.argmin(self._history.contains(rows)))]
        return row

    def _sobol_points(self, dimension: int, count: int) -> Floats:
        """The first points of the scrambled sequence, at least `count`."""
        known = self._sobol.get(dimension)
        if known is None or len(known) < count:
            engine = scipy.stats.qmc.Sobol(dimension, scramble=True, rng=np.random.default_rng(self._seed))
            known = self._sobol[dimension] = engine.random_base2(max(9, (count - 1).bit_length()))
        return known

    # what the model believes

    def _targets(self, places: NDArray[np.intp]) -> Floats:
        """What the model is told: values to minimize; pruned trials are no better than the median."""
        values = self._history.values[places]
        pruned = self._history.pruned[places]
        if pruned.any():
            whole = values[~pruned]
            floor = np.median(whole) if len(whole) else -np.inf
            values = np.where(pruned, np.maximum(values, floor), values)
        return values

    def _rules(self) -> ActivityRules:
        rows = self._history.rows[-1000:]
        return ActivityRules(self.axes, rows[~np.isnan(rows).all(axis=1)])

    def _believe(self, length: float, first: int | None = None) -> Belief:
        """The model and the box after the `first` finished trials, by default all."""
        finished = np.flatnonzero(self._history.finished)[:first]
        hyperparameters = self._hyperparameters(finished)
        (known, targets), axes = self._shown(finished), self.axes
        model = GaussianProcess.condition(axes.features(known), axes.feature_axis, targets, hyperparameters)
        believed = model.predict_mean(model.features)
        order = np.argsort(believed, kind="stable")
        box = make_box(axes, known[order[0]], hyperparameters.lengths, length)
        return Belief(model, known[order], float(believed[order[0]]), box)

    def _is_noisy(self) -> bool:
        hyperparameters = self._hyperparameters(np.flatnonzero(self._history.finished))
        return hyperparameters.noise > self.options.noise_limit

    def _shown(self, places: NDArray[np.intp]) -> tuple[Floats, Floats]:
        """What the model is shown of these finished trials: rows, and what they are worth to it."""
        values = self._targets(places)
        some = looked_at(values, LOOKED_AT)
        rows, values = self._history.rows[places[some]], values[some]
        chosen = select(self.axes, rows, values, self.options.model_points)
        return rows[chosen], warp(values)[chosen]

    def _hyperparameters(self, places: NDArray[np.intp]) -> Hyperparameters:
        """Fitted to the first of the trials, as many as the last milestone says: the same after a restart."""
        first = milestone(len(places))
        key = self._history.numbers[places[max(0, first - 1000) : first]].tobytes()
        if key not in self._fitted:
            rows, targets = self._shown(places[:first])  # of those alone: a later median would be another
            features = self.axes.features(rows)
            self._fitted = {key: fit(features, self.axes.feature_axis, targets, self.options.prior)}
        return self._fitted[key]

    # what it proposes

    def _best_candidate(self, number: int, rng: np.random.Generator, belief: Belief, margin: float) -> Floats:
        """Where the improvement by more than `margin` is expected to be greatest: E[max(best − margin − f, 0)].

        Running trials are taken for what the model believes of them, also if that is the best: else who asks next
        would be sent to the same place.
        """
        axes, rules = self.axes, self._rules()
        running = axes.features(self._history.running(number))
        model = belief.model.with_pending(running)
        target = min([belief.best, *belief.model.predict_mean(running)]) - margin

        def gain(rows: Floats) -> Floats:
            mean, deviation = model.predict(axes.features(rows))
            gains = log_expected_improvement(mean, deviation, target)
            gains[self._history.contains(rows)] = -np.inf  # nothing is evaluated twice
            return gains

        rows = rules.apply(self._candidates(rng, belief))
        gains = gain(rows)
        climbed = rules.apply(self._climbed(rows[self._starts(gains)], model, belief.box, target))
        rows, gains = np.concatenate([rows, climbed]), np.concatenate([gains, gain(climbed)])
        for step in [0.1, 0.03, 0.01, 0.003][: self.options.rounds]:
            best = np.argsort(-gains, kind="stable")[:4]
            near = rules.apply(self._near(rng, rows[best], belief.box, step))
            rows, gains = np.concatenate([rows[best], near]), np.concatenate([gains[best], gain(near)])
        if not np.isfinite(gains.max()):  # all is known here
            return self._sobol_row(number)
        row: Floats = rows[int(np.argmax(gains))]
        return row

    def _starts(self, gains: Floats) -> NDArray[np.intp]:
        """Where to climb from: the best of all, and the best of those that are from all over, the first ones."""
        count = self.options.ascents
        scattered = np.argsort(-gains[: self.options.candidates], kind="stable")[:count]
        starts = dict.fromkeys([int(np.argmax(gains)), *scattered.tolist()])
        return np.array(list(starts)[:count], dtype=np.intp)

    def _climbed(self, rows: Floats, model: GaussianProcess, box: Box, target: float) -> Floats:
        """Rows (m, axes), their active numbers moved to where the expected improvement is greatest nearby, by L-BFGS-B.

        They stay in the box, or between it and where they start. Levels are climbed as if there were places between
        them, categories stay as they are.
        """
        axes, climbed = self.axes, rows.copy()
        for row, features in zip(climbed, axes.features(rows), strict=True):
            free = axes.numeric[~np.isnan(row[axes.numeric])]
            places, start = axes.first_feature[free], row[free]

            def loss(x: Floats, features: Floats = features, places: Any = places) -> tuple[float, Floats]:
                features[places] = x
                value, gradient = model.improvement_gradient(features, target)
                return -value, -gradient[places]

            if len(free):
                row[free] = scipy.optimize.minimize(
                    loss,
                    start,
                    jac=True,
                    method="L-BFGS-B",
                    bounds=list(
                        zip(np.minimum(box.low[free], start), np.maximum(box.high[free], start), strict=True)
                    ),
                    options={"maxiter": self.options.steps, "maxfun": 2 * self.options.steps},
                ).x
        return axes.snap(climbed)

    def _candidates(self, rng: np.random.Generator, belief: Belief) -> Floats:
        points = self._sobol_points(len(self.axes), self.options.candidates)[: self.options.candidates]
        units = (points + rng.uniform(size=len(self.axes))) % 1.0  # rotated: Cranley and Patterson (1976)
        inside = self._into_box(rng, belief.box, units)
        return np.concatenate([inside, self._mutations(rng, belief)])

    def _into_box(self, rng: np.random.Generator, box: Box, units: Floats) -> Floats:
        """Rows in the box from uniform numbers, both (m, axes)."""
        axes = self.axes
        rows = axes.from_units(units)
        numeric, categorical = axes.numeric, axes.categorical
        rows[:, numeric] = box.low[numeric] + units[:, numeric] * (box.high - box.low)[numeric]
        stay = rng.uniform(size=(len(rows), len(categorical))) >= box.freedom[categorical]
        kept = box.centre[categorical]
        rows[:, categorical] = np.where(stay & ~np.isnan(kept), kept, rows[:, categorical])
        return axes.snap(rows)

    def _mutations(self, rng: np.random.Generator, belief: Belief) -> Floats:
        """The best points with one to three axes changed: a step, or for one in four anything in the box."""
        axes, m, box, best = (
            self.axes,
            self.options.mutations,
            belief.box,
            belief.rows[: self.options.parents],
        )
        units = rng.uniform(size=(m, len(axes)))
        fresh = axes.from_units(units)
        fresh[:, axes.numeric] = (box.low + units * (box.high - box.low))[:, axes.numeric]
        parents = best[rng.integers(len(best), size=m)]
        parents = np.where(np.isnan(parents), fresh, parents)
        step = np.maximum((box.high - box.low) / 4, np.maximum(0.01, 1 / self.axes.size))
        moved = parents + rng.normal(size=parents.shape) * step
        moved[:, axes.categorical] = fresh[:, axes.categorical]
        changed = np.where(rng.uniform(size=(m, 1)) < 0.25, fresh, moved)
        rank = np.argsort(np.argsort(rng.uniform(size=parents.shape), axis=1), axis=1)
        return axes.snap(np.where(rank < rng.integers(1, 4, size=(m, 1)), changed, parents))

    def _near(self, rng: np.random.Generator, points: Floats, box: Box, step: float) -> Floats:
        """Points around the given ones, 48 each, two in three with numbers moved alone; steps in shares of the box."""
        axes = self.axes
        rows = np.repeat(points, 48, axis=0)
        deviation = np.broadcast_to(step * (box.high - box.low), rows.shape).copy()
        leaps = np.arange(len(rows)) % 3 == 0
        deviation[leaps] = np.maximum(deviation[leaps], 0.5 / axes.size)  # the next level is in reach
        some = rng.uniform(size=rows.shape) < rng.choice([0.3, 1.0], size=(len(rows), 1))
        moved = rows + rng.normal(size=rows.shape) * deviation * some
        fresh = axes.from_units(rng.uniform(size=rows.shape))
        other = leaps[:, None] & (rng.uniform(size=rows.shape) < 1 / len(axes)) & ~np.isnan(rows)
        moved[:, axes.categorical] = np.where(other, fresh, rows)[:, axes.categorical]
        return axes.snap(moved)

    # what it tells

    def _described(self, study: optuna.Study, box: Box) -> dict[str, list[Any]]:
        described = box.describe(self.axes)
        for i, name in enumerate(self.axes.names):
            if name not in described:
                continue
            if self.axes.is_categorical[i]:
                described[name][0] = outside(study, name, described[name][0])
            else:
                low, high = (outside(study, name, end) for end in described[name])
                is_turned = isinstance(low, (int, float)) and isinstance(high, (int, float)) and low > high
                described[name] = [high, low] if is_turned else [low, high]  # turned by a reverse-log scale
        return described

    def _note(self, study: optuna.Study, trial: FrozenTrial, note: dict[str, Any]) -> None:
        study._storage.set_trial_system_attr(trial._trial_id, EXPLANATION, note)

    def _note_box(
        self, study: optuna.Study, trial: FrozenTrial, state: BoxState, note: dict[str, Any]
    ) -> None:
        """Add the box to the study's, where it is new: its length changed since the last one."""
        if state.changes == self._noted_changes:
            return
        self._noted_changes = state.changes
        known = study._storage.get_study_user_attrs(study._study_id).get(BOXES, [])
        if all(box["stage"] != note["stage"] for box in known):
            entry = {"trial": trial.number, **{k: note[k] for k in ("stage", "length", "box")}}
            study._storage.set_study_user_attr(study._study_id, BOXES, [*known, entry][-BOXES_KEPT:])


_BLAS: list[ThreadpoolController] = []


def _one_thread() -> Any:
    """BLAS on one thread for a while: the matrices are small, and waiting threads would cost more than they bring."""
    if not _BLAS:
        _BLAS.append(ThreadpoolController())  # finding the libraries takes milliseconds, once
    return _BLAS[0].limit(limits=1, user_api="blas")


def entropy() -> int:
    """A seed where none was given."""
    return int(np.random.SeedSequence().generate_state(1)[0])


def milestone(finished: int) -> int:
    """The last of 1, 2, …, 12, 13, …, 24, 26, … that is at most `finished`: models are refitted less and less often."""
    last = following = 1
    while following <= finished:
        last, following = following, following + max(1, following // 12)
    return last


def looked_at(values: Floats, count: int) -> NDArray[np.intp]:
    """Which of many trials are looked at, ascending: the best and some from all over, about half of `count` each."""
    if len(values) <= count:
        return np.arange(len(values))
    is_one = np.zeros(len(values), dtype=np.bool_)
    is_one[np.argpartition(values, count // 2)[: count // 2]] = True
    is_one[np.linspace(0, len(values) - 1, count // 2).astype(np.intp)] = True
    return np.flatnonzero(is_one)


def select(axes: Axes, rows: Floats, values: Floats, count: int) -> NDArray[np.intp]:
    """Which points the model sees, ascending: a fifth the best, half nearest to the best one, the rest from all over.

    Few for being good: values that noise made look good would mislead a model that sees little else.
    """
    if len(values) <= count:
        return np.arange(len(values))
    best = np.argpartition(values, count // 5)[: count // 5]
    features = axes.features(rows)
    distance = ((features - features[int(np.argmin(values))]) ** 2).sum(axis=1)
    distance[best] = np.inf
    near = np.argpartition(distance, count // 2)[: count // 2]
    rest = np.setdiff1d(np.arange(len(values)), np.concatenate([best, near]))
    far = rest[np.linspace(0, len(rest) - 1, count - len(best) - len(near)).astype(np.intp)]
    return np.sort(np.concatenate([best, near, far]))
