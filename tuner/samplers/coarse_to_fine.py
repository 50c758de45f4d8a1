"""Coarse to fine: look everywhere, then look closer where it was good.

Source of the idea: Ng, "Improving Deep Neural Networks", week 3, "Tuning process": sample the whole range at random,
zoom into the region of the best points, sample more densely there.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tuner.errors import DefinitionError
from tuner.samplers.view import BoxLens, Lens, LensSampler, reseed
from tuner.scales import from_unit, to_unit

__all__ = ["CoarseToFineSampler", "stage_lengths"]


class CoarseToFineSampler(LensSampler):
    """A zoom over any sampler: stage by stage, `inside` chooses within a smaller box around the best points.

    Stage 0 sees the whole range. At the start of each later stage the `best` completed trials so far span a box on
    the parameters' own scales; padded, it is what the inner sampler sees until the next stage. A categorical
    parameter keeps the choices that the best trials have. The stage is a function of the trial's number, and the box
    of those trials before the stage that have ended by then: a restart between two trials of a serial study sees the
    same box.

    Args:
        inside: the sampler that chooses inside the box; by default uniform at random.
        stages: lengths in trials; the last one repeats for as long as the study goes on.
        best: how many points span the box.
        padding: how far the box reaches beyond them on each side, in shares of their extent.
        seed: with one, the inner sampler's choices are a function of (seed, trial number) and the history.

    Raises:
        DefinitionError: a stage is not at least one trial long, `best` is under 2 or `padding` negative.
    """

    def __init__(
        self,
        *,
        inside: BaseSampler | None = None,
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
        super().__init__(inside or RandomSampler(seed))
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


def narrowed(outer: BaseDistribution, low: float, high: float) -> BaseDistribution:
    """The numeric distribution `outer` cut to the places [low, high] of its unit interval, ends included."""
    if isinstance(outer, IntDistribution):
        return IntDistribution(from_unit(outer, low), from_unit(outer, high), log=outer.log, step=outer.step)
    assert isinstance(outer, FloatDistribution)
    return FloatDistribution(from_unit(outer, low), from_unit(outer, high), log=outer.log, step=outer.step)


def stage_lengths(trials: int, shares: Sequence[float] = (0.5, 0.3, 0.2)) -> list[int]:
    """Lengths of stages that share `trials` as `shares` say, each at least 1."""
    lengths = [max(1, round(trials * share)) for share in shares[:-1]]
    return [*lengths, max(1, trials - sum(lengths))]
