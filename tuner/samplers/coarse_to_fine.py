"""Coarse to fine: look everywhere, then look closer where it was good.

Source of the idea: Ng, "Improving Deep Neural Networks", week 3, "Tuning process": sample the whole range at random,
zoom into the region of the best points, sample more densely there. `StageZoom` is that, word by word; `ModelZoom` lets
a model place the box and choose inside it; `BoxedSampler` lets any other sampler choose inside the model's box.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tuner.errors import DefinitionError
from tuner.samplers.box import narrowed
from tuner.samplers.local_gp import EXPLANATION, ModelZoom, ZoomOptions, entropy
from tuner.samplers.scalarization import ScalarView, draw_weights
from tuner.samplers.view import BoxLens, Lens, LensSampler, reseed
from tuner.scales import to_unit
from tuner.words import plural

__all__ = ["BoxedSampler", "CoarseToFineSampler", "Inside", "StageZoom", "explain_trial", "stage_lengths"]

Inside = Literal["local-gp", "random", "sobol", "tpe"]
"""The samplers inside the box that have a name."""


class CoarseToFineSampler(BaseSampler):
    """A zoom over any sampler: look at the whole range, then inside a box around the best point.

    A coarse stage of 2 trials a parameter (6 to 10) looks everywhere. Then the box doubles when trials in it succeed
    and halves when they fail; it is centred where a Gaussian process believes the best finished point to be and
    narrowed first along the axes that matter most; two fifths of the trials go on looking everywhere, by turns
    for little more than the best and for much. The box is a function of the finished trials: every worker and every
    restart sees the same one.

    With several objectives each trial sees them as one, with weights of its own (`tuner.samplers.scalarization`).

    Args:
        inside: who chooses inside the box: the same Gaussian process (`local-gp`, the default), chance (`random`,
            `sobol`), `tpe`, or any Optuna sampler. The last two see only trials inside the box, which then stands
            still between two changes of its length.
        stages: lengths in trials, the last one repeating: the course's own zoom instead, whose box is spanned by the
            best points at each stage's start (`StageZoom`); `inside` is then a sampler or `random`.
        best: for `stages`: how many points span the box.
        padding: for `stages`: how far the box reaches beyond them on each side, in shares of their extent.
        seed: with one, choices are a function of (seed, trial number) and the history.
        options: of the box and the model.

    Raises:
        DefinitionError: `stages` with an `inside` that needs the model's box, with `options`, or not at least one trial
            long, `best` under 2 or `padding` negative; `options` that are no `ZoomOptions`.

    Example:
        >>> study = optuna.create_study(sampler=CoarseToFineSampler(seed=0))
        >>> study.optimize(lambda trial: trial.suggest_float("x", -5, 5) ** 2, n_trials=40)
        >>> study.best_value < 1e-3
        True
    """

    def __init__(
        self,
        *,
        inside: Inside | BaseSampler | None = None,
        stages: Sequence[int] | None = None,
        best: int = 5,
        padding: float = 0.25,
        seed: int | None = None,
        options: ZoomOptions | None = None,
    ) -> None:
        if options is not None and stages is not None:
            raise DefinitionError(
                "options belong to the adaptive box, which stages replace: give one of them"
            )
        self._inside, self._stages, self._best, self._padding = inside, stages, best, padding
        self._options, self._is_seeded = options, seed is not None
        self._seed = entropy() if seed is None else seed
        self._of_trial: tuple[tuple[int, int], BaseSampler, ScalarView] | None = None
        self.zoom = self._zoom(inside, seed)

    def _zoom(self, inside: Inside | BaseSampler | None, seed: int | None) -> BaseSampler:
        if self._stages is None:
            return _model_zoom(inside or "local-gp", seed, self._options)
        sampler = _named(inside or "random", seed)
        return StageZoom(
            inside=sampler, stages=self._stages, best=self._best, padding=self._padding, seed=seed
        )

    def _seen(self, study: optuna.Study, trial: FrozenTrial) -> tuple[BaseSampler, optuna.Study]:
        """The zoom that chooses for a trial, and the study as it sees it.

        With several objectives all that a zoom has learnt is for other weights: so each trial has a new one.
        """
        if len(study.directions) == 1:
            return self.zoom, study
        which, known = (study._study_id, trial.number), self._of_trial
        if known is None or known[0] != which:
            weights = draw_weights(self._seed, trial.number, len(study.directions))
            zoom = self._zoom(copy.deepcopy(self._inside), self._seed)
            known = self._of_trial = (which, zoom, ScalarView(study, weights))
        return known[1:]

    def __str__(self) -> str:
        return f"CoarseToFineSampler({self.zoom})"

    def reseed_rng(self) -> None:
        """Draw otherwise from now on."""
        self.zoom.reseed_rng()
        if not self._is_seeded:
            self._seed = entropy()

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """What is chosen together."""
        zoom, seen = self._seen(study, trial)
        return zoom.infer_relative_search_space(seen, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The next point."""
        zoom, seen = self._seen(study, trial)
        return zoom.sample_relative(seen, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A parameter on its own."""
        zoom, seen = self._seen(study, trial)
        return zoom.sample_independent(seen, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Prepare for the trial."""
        self._of_trial = None  # a choice for the same number may be made again, with more trials ended
        zoom, seen = self._seen(study, trial)
        zoom.before_trial(seen, trial)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Take note of how the trial ended; of several objectives the study alone does."""
        if len(study.directions) == 1:
            self.zoom.after_trial(study, trial, state, values)


def _model_zoom(
    inside: Inside | BaseSampler, seed: int | None, options: ZoomOptions | None
) -> ModelZoom | BoxedSampler:
    if inside in ("local-gp", "random", "sobol"):
        return ModelZoom(inside, options=options, seed=seed)
    return BoxedSampler(_named(inside, seed), options=options, seed=seed)


def _named(inside: Inside | BaseSampler, seed: int | None) -> BaseSampler:
    if isinstance(inside, BaseSampler):
        return inside
    if inside == "tpe":
        return TPESampler(seed=seed)
    if inside == "random":
        return RandomSampler(seed)
    if inside in ("local-gp", "sobol"):
        raise DefinitionError(
            f"inside {inside!r} has a box of its own and takes no stages; random, tpe or a sampler do"
        )
    raise DefinitionError(f"inside needs to be {', '.join(get_args(Inside))} or a sampler; got {inside!r}")


LOOKS = {
    "coarse": "the coarse look",
    "everywhere": "a look everywhere",
    "blind": "a blind look everywhere",
}


def explain_trial(trial: FrozenTrial) -> str:
    """Where a trial was looked for, in words: "stage 3, box of length 0.2: rate 0.003–0.02, activation relu".

    Or "stage 3, a look everywhere, for a gain of more than 0.3 standard deviations": see `ZoomOptions.margins`. In a
    stage of a box a trial lies in it, or beside it where a good point near its edge was changed.
    """
    note = trial.system_attrs.get(EXPLANATION)
    if note is None:
        return "not placed by coarse-to-fine: at random, or by somebody else"
    if note["look"] != "box":
        margin = note.get("margin")
        more = f", for a gain of more than {plural(margin, 'standard deviation')}" if margin else ""
        return f"stage {note['stage']}, {LOOKS[note['look']]}{more}"
    ends = ", ".join(
        f"{name} {_shown(trial.distributions.get(name), *described)}"
        for name, described in note["box"].items()
    )
    return f"stage {note['stage']}, box of length {note['length']:.3g}: {ends}"


def _shown(distribution: BaseDistribution | None, first: Any, second: Any) -> str:
    """The ends of a parameter's box; of choices without an order, whose second is the chance to leave it, the first."""
    if isinstance(distribution, CategoricalDistribution):
        return f"{first}–{second}" if second in distribution.choices and second != first else f"{first}"
    if isinstance(first, int) and isinstance(second, int):
        return f"{first}–{second}"
    digits = 3
    while (low := _rounded(first, digits)) == (high := _rounded(second, digits)) and digits < 17:
        digits += 1
    return f"{low}–{high}"


def _rounded(value: float, digits: int) -> str:
    """To so many digits; of what is nearly 1, like a momentum of 0.9999, at least as many as tell it from 1."""
    if 0 < value < 1:
        digits = max(digits, math.ceil(-math.log10(1 - value)))
    return f"{value:.{digits}g}"


class BoxedSampler(LensSampler):
    """Any sampler inside the model's box.

    The box stands still until its length changes; then the inner sampler starts afresh in the new one. In the coarse
    stage, and in the trials that look everywhere, it sees the whole range.
    """

    def __init__(
        self, inner: BaseSampler, *, options: ZoomOptions | None = None, seed: int | None = None
    ) -> None:
        super().__init__(inner)
        self.model = ModelZoom("random", options=options, seed=seed)
        self._seed = seed
        self._fresh = copy.deepcopy(inner)
        self._lenses: dict[str, BoxLens] = {}

    def lens_version(self, study: optuna.Study, trial: FrozenTrial) -> tuple[int, ...]:
        """How often the box's length has changed; nothing outside the box."""
        self._raise_error_if_multi_objective(study)
        self.model.update(study)
        if self.model.is_coarse(trial.number) or not self.model.is_local(trial.number):
            return ()
        return (self.model.state().changes, len(self.model.axes))

    def lenses_changed(self) -> None:
        """Let the inner sampler start afresh; the box is found when it is asked for."""
        self._lenses = {}
        self.inner = copy.deepcopy(self._fresh)

    def lens(
        self, study: optuna.Study, trial: FrozenTrial, name: str, outer: BaseDistribution
    ) -> Lens | None:
        """The box of one parameter; None where it sees the whole range."""
        if not self.lens_version(study, trial):
            return None
        if not self._lenses:
            box, axes = self.model.steady_box(), self.model.axes
            self._lenses = {n: BoxLens(box.distribution(axes, i)) for i, n in enumerate(axes.names)}
        lens = self._lenses.get(name)
        return lens if lens is not None and self.model.axes.distributions[name] == outer else None

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Enter the trial's box, and set the inner sampler's random state for this trial."""
        self._view(study, trial)
        if self._seed is not None:
            reseed(self.inner, np.random.SeedSequence((self._seed, trial.number)))
        super().before_trial(study, trial)


class StageZoom(LensSampler):
    """Stage by stage, `inside` chooses within a smaller box around the best points: the course's own zoom.

    Stage 0 sees the whole range. At the start of each later stage the `best` completed trials so far span a box on
    the parameters' own scales; padded, it is what the inner sampler sees until the next stage. A categorical
    parameter keeps the choices that the best trials have. The stage is a function of the trial's number, and the box
    of those trials before the stage that have ended by then: a restart between two trials of a serial study sees the
    same box.

    Args: see `CoarseToFineSampler`.
    """

    def __init__(
        self,
        *,
        inside: BaseSampler,
        stages: Sequence[int] = (20, 12, 8),
        best: int = 5,
        padding: float = 0.25,
        seed: int | None = None,
    ) -> None:
        if not stages or min(stages) < 1:
            raise DefinitionError(f"stages needs lengths of at least 1; got {list(stages)}")
        if best < 2:
            raise DefinitionError(f"best needs to be at least 2; got {best}")
        if not padding >= 0:
            raise DefinitionError(f"padding needs to be at least 0; got {padding}")
        super().__init__(inside)
        self.stages = tuple(stages)
        self.best = best
        self.padding = padding
        self._seed = seed
        self._fresh_inside = copy.deepcopy(self.inner)
        self._boxes: dict[str, tuple[BaseDistribution, BoxLens | None]] = {}

    def stage(self, number: int) -> tuple[int, int]:
        """The stage that trial `number` belongs to, and the number of the stage's first trial."""
        start = 0
        for stage, length in enumerate(self.stages[:-1]):
            if number < start + length:
                return stage, start
            start += length
        repeats = (number - start) // self.stages[-1]
        return len(self.stages) - 1 + repeats, start + repeats * self.stages[-1]

    def lens_version(self, study: optuna.Study, trial: FrozenTrial) -> int:
        """The stage."""
        self._raise_error_if_multi_objective(study)  # every way into the sampler passes here
        return self.stage(trial.number)[0]

    def lenses_changed(self) -> None:
        """Forget the boxes of the last stage; the inner sampler starts afresh in the new ones."""
        self._boxes = {}
        self.inner = copy.deepcopy(self._fresh_inside)

    def lens(
        self, study: optuna.Study, trial: FrozenTrial, name: str, outer: BaseDistribution
    ) -> Lens | None:
        """The box of one parameter in this trial's stage; None where it sees the whole range."""
        known = self._boxes.get(name)
        if known is None or known[0] != outer:
            self._boxes[name] = known = (outer, self._box(study, trial, name, outer))
        return known[1]

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Enter the trial's stage, and set the inner sampler's random state for this trial."""
        self._view(study, trial)
        if self._seed is not None:
            reseed(self.inner, np.random.SeedSequence((self._seed, trial.number)))
        super().before_trial(study, trial)

    def _box(
        self, study: optuna.Study, trial: FrozenTrial, name: str, outer: BaseDistribution
    ) -> BoxLens | None:
        stage, start = self.stage(trial.number)
        values = [
            t.params[name] for t in self._best_before(study, start) if t.distributions.get(name) == outer
        ]
        if stage == 0 or len(values) < 2:
            return None
        if isinstance(outer, CategoricalDistribution):
            return BoxLens(CategoricalDistribution([c for c in outer.choices if c in values]))
        units = [to_unit(outer, value) for value in values]
        low, high = min(units), max(units)
        pad = max(self.padding * (high - low), 0.5 ** (stage + 4))  # never quite flat, but ever flatter
        return BoxLens(narrowed(outer, max(0.0, low - pad), min(1.0, high + pad)))

    def _best_before(self, study: optuna.Study, start: int) -> list[FrozenTrial]:
        trials = study._get_trials(deepcopy=False, states=(TrialState.COMPLETE,), use_cache=True)
        sign = 1 if study.direction == StudyDirection.MINIMIZE else -1
        earlier = [(sign * t.value, t.number, t) for t in trials if t.number < start and t.value is not None]
        return [t for _, _, t in sorted(earlier)[: self.best]]


def stage_lengths(trials: int, shares: Sequence[float] = (0.5, 0.3, 0.2)) -> list[int]:
    """Lengths of stages that share `trials` as `shares` say, each at least 1."""
    lengths = [max(1, round(trials * share)) for share in shares[:-1]]
    return [*lengths, max(1, trials - sum(lengths))]
