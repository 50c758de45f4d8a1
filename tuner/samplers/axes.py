"""Distributions as axes: what a model works on instead of values.

A point is a row with a place for each axis: numeric axes hold the place in [0, 1] on the parameter's scale, snapped to
a legal value; categorical axes hold the index of the choice; NaN means that the parameter is inactive.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from tuner.samplers.gaussian_process import Floats
from tuner.scales import from_unit, to_unit

__all__ = ["Axes"]

NEUTRAL = 0.5
"""Where an inactive numeric axis lies for the model."""


class Axes:
    """The axes of some distributions, in order; none of them has a single value only."""

    def __init__(self, distributions: Mapping[str, BaseDistribution]) -> None:
        self.distributions = dict(distributions)
        self.names = list(distributions)
        self.choices = np.array(
            [len(d.choices) if isinstance(d, CategoricalDistribution) else 0 for d in distributions.values()],
            dtype=np.intp,
        )
        self.is_categorical: NDArray[np.bool_] = self.choices > 0
        self.numeric = np.flatnonzero(~self.is_categorical)
        self.categorical = np.flatnonzero(self.is_categorical)
        self.feature_axis: NDArray[np.intp] = np.repeat(np.arange(len(self)), np.maximum(self.choices, 1))
        self.first_feature = np.concatenate([[0], np.cumsum(np.maximum(self.choices, 1))[:-1]]).astype(
            np.intp
        )
        self.size = np.array([_size(d) for d in distributions.values()])

    def __len__(self) -> int:
        return len(self.names)

    def row(self, params: Mapping[str, Any]) -> Floats:
        """The row of a point, NaN where a parameter is absent, shape (axes,)."""
        row = np.full(len(self), np.nan)
        for i, (name, distribution) in enumerate(self.distributions.items()):
            if name in params:
                row[i] = _place(distribution, params[name])
        return row

    def value(self, index: int, place: float) -> Any:
        """The value of axis `index` at a place."""
        distribution = self.distributions[self.names[index]]
        if isinstance(distribution, CategoricalDistribution):
            return distribution.choices[int(place)]
        return from_unit(distribution, float(place))

    def from_units(self, units: Floats) -> Floats:
        """Rows (m, axes) from uniform numbers in [0, 1] (m, axes)."""
        rows = units.copy()
        for i in self.categorical:
            rows[:, i] = np.minimum(np.floor(units[:, i] * self.choices[i]), self.choices[i] - 1)
        return self.snap(rows)

    def snap(self, rows: Floats) -> Floats:
        """Numeric places moved to the nearest legal value, in place; shape (m, axes) in and out."""
        np.clip(rows[:, self.numeric], 0, 1, out=rows[:, self.numeric])
        for i in self.numeric:
            rows[:, i] = _snapped(self.distributions[self.names[i]], np.clip(rows[:, i], 0.0, 1.0))
        return rows

    def features(self, rows: Floats) -> Floats:
        """What the model sees of rows (m, axes): shape (m, features). Inactive axes are neutral."""
        features = np.zeros((len(rows), len(self.feature_axis)))
        places = np.nan_to_num(rows[:, self.numeric], nan=NEUTRAL)
        features[:, self.first_feature[self.numeric]] = places
        for i in self.categorical:
            (active,) = np.nonzero(~np.isnan(rows[:, i]))
            features[active, self.first_feature[i] + rows[active, i].astype(np.intp)] = np.sqrt(0.5)
        return features


def _size(distribution: BaseDistribution) -> float:
    """How many values there are."""
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    if distribution.step is None:
        return np.inf
    return round((distribution.high - distribution.low) / distribution.step) + 1


def _place(distribution: BaseDistribution, value: Any) -> float:
    if isinstance(distribution, CategoricalDistribution):
        try:
            return float(distribution.to_internal_repr(value))
        except ValueError:  # of an older distribution of that name
            return np.nan
    return to_unit(distribution, value)


def _snapped(distribution: BaseDistribution, units: Floats) -> Floats:
    """As `to_unit(distribution, from_unit(distribution, u))` for all u; shape (m,) in and out."""
    if isinstance(distribution, IntDistribution) and distribution.log:
        low, high = np.log(distribution.low - 0.5), np.log(distribution.high + 0.5)
        values = np.clip(np.rint(np.exp(low + units * (high - low))), distribution.low, distribution.high)
        snapped: Floats = (np.log(values) - low) / (high - low)
        return snapped
    size = _size(distribution)
    if not np.isfinite(size):
        return units
    cell: Floats = (np.minimum(np.floor(units * size), size - 1) + 0.5) / size
    return cell
