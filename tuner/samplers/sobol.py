"""Scrambled Sobol points that are a pure function of (seed, trial number)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
import scipy  # its parts are imported when first used: half a second
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial

from tuner.scales import from_unit

__all__ = ["SobolSampler"]


class SobolSampler(BaseSampler):
    """Point n of a scrambled Sobol sequence for trial n, one dimension a parameter.

    Unlike `optuna.samplers.QMCSampler`, which counts its points in the study and can hand one out twice when workers
    ask at once, the trial's number is the point's index. Parameters without a dimension are drawn at random.

    Args:
        names: the parameters that have a dimension, in order.
        seed: of the scrambling (Owen 1998, as in `scipy.stats.qmc.Sobol`), and of what is drawn at random.
    """

    def __init__(self, names: Sequence[str], *, seed: int = 0) -> None:
        self._dimension = {name: i for i, name in enumerate(names)}
        self._seed = seed
        self._points: NDArray[np.float64] = np.empty((0, len(names)))
        self._random = RandomSampler(seed)

    def point(self, number: int) -> NDArray[np.float64]:
        """Point `number` in the unit cube, shape (dimensions,)."""
        if number >= len(
            self._points
        ):  # doubles, so that a study of n trials draws less than 4n points in all
            exponent = max(6, (number + 1).bit_length())
            engine = scipy.stats.qmc.Sobol(
                len(self._dimension), scramble=True, rng=np.random.default_rng(self._seed)
            )
            self._points = engine.random_base2(exponent)
        point: NDArray[np.float64] = self._points[number]
        return point

    def reseed_rng(self) -> None:
        """Reseed what is drawn at random; the sequence stays."""
        self._random.reseed_rng()

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Nothing: each coordinate of a point can be told on its own."""
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
        if param_name in self._dimension:
            unit = self.point(trial.number)[self._dimension[param_name]]
            return from_unit(param_distribution, float(unit))
        return self._random.sample_independent(study, trial, param_name, param_distribution)
