"""Scales: how one parameter's range is laid on the unit interval.

A sampler that draws u uniformly in [0, 1] draws the parameter uniformly *on its scale*: a learning rate between
1e-4 and 1 belongs on a log scale (a quarter of the draws in each decade), a momentum between 0.9 and 0.999 on a
reverse-log scale (as many draws average over 10–100 steps as over 100–1000). Source: Ng, "Improving Deep Neural
Networks", week 3, "Using an appropriate scale to pick hyperparameters".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from tuner.errors import DefinitionError

__all__ = [
    "LinearScale",
    "LogScale",
    "ReverseLogScale",
    "Scale",
    "ScaleName",
    "from_reversed",
    "from_unit",
    "is_reversible",
    "make_scale",
    "reversed_distribution",
    "to_reversed",
    "to_unit",
]

ScaleName = Literal["linear", "log", "reverse_log"]


class Scale(Protocol):
    """A monotone map of [low, high] onto [0, 1] and back."""

    @property
    def low(self) -> float:
        """The lower end, mapped to 0."""

    @property
    def high(self) -> float:
        """The upper end, mapped to 1."""

    def to_unit(self, value: float) -> float:
        """The place of `value` in [0, 1]; values outside the range are mapped to the nearer end."""

    def from_unit(self, unit: float) -> float:
        """The value at place `unit`; never outside [low, high], whatever the rounding."""


@dataclass(frozen=True, slots=True)
class LinearScale:
    """An interval, uniform in the value itself."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.high - self.low) and self.low <= self.high):
            raise DefinitionError(
                f"linear scale needs low <= high at a finite distance; got low={self.low}, high={self.high}"
            )

    def to_unit(self, value: float) -> float:
        """u = (value − low) / (high − low); 0 where the interval is a single point."""
        if self.high == self.low:
            return 0.0
        return (_clip(value, self.low, self.high) - self.low) / (self.high - self.low)

    def from_unit(self, unit: float) -> float:
        """Value = low + u (high − low)."""
        return _clip(self.low * (1 - unit) + self.high * unit, self.low, self.high)


@dataclass(frozen=True, slots=True)
class LogScale:
    """A positive interval, uniform in log(value)."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (0 < self.low <= self.high < math.inf):
            raise DefinitionError(f"log scale needs 0 < low <= high; got low={self.low}, high={self.high}")

    def to_unit(self, value: float) -> float:
        """u = log(value / low) / log(high / low)."""
        if self.high == self.low:
            return 0.0
        value = _clip(value, self.low, self.high)
        start, end = math.log(self.low), math.log(self.high)
        if start == end:  # so near that the logarithm cannot tell them apart
            return float(value == self.high)
        return _clip((math.log(value) - start) / (end - start), 0.0, 1.0)

    def from_unit(self, unit: float) -> float:
        """Value = low^(1−u) · high^u."""
        log_value = (1 - unit) * math.log(self.low) + unit * math.log(self.high)
        return _clip(math.exp(log_value), self.low, self.high)


@dataclass(frozen=True, slots=True)
class ReverseLogScale:
    """An interval below 1, uniform in log(1 − value): for decay rates β, whose effect goes with 1/(1−β)."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (-math.inf < self.low <= self.high < 1):
            raise DefinitionError(
                f"reverse_log scale needs low <= high < 1; got low={self.low}, high={self.high}"
            )

    def to_unit(self, value: float) -> float:
        """u = log((1−low) / (1−value)) / log((1−low) / (1−high))."""
        if self.high == self.low:
            return 0.0
        value = _clip(value, self.low, self.high)
        start, end = (
            math.log1p(-self.low),
            math.log1p(-self.high),
        )  # log1p: 1 − β would lose digits of a small β
        if start == end:  # so near that the logarithm cannot tell them apart
            return float(value == self.high)
        return _clip((start - math.log1p(-value)) / (start - end), 0.0, 1.0)

    def from_unit(self, unit: float) -> float:
        """Value = 1 − (1−low)^(1−u) · (1−high)^u."""
        log_complement = (1 - unit) * math.log1p(-self.low) + unit * math.log1p(-self.high)
        return _clip(-math.expm1(log_complement), self.low, self.high)


def make_scale(name: ScaleName, low: float, high: float) -> Scale:
    """The scale of that name over [low, high].

    Raises:
        DefinitionError: the range is not legal on this scale.
    """
    return _SCALES[name](low, high)


_SCALES: dict[ScaleName, type[LinearScale | LogScale | ReverseLogScale]] = {
    "linear": LinearScale,
    "log": LogScale,
    "reverse_log": ReverseLogScale,
}


def from_unit(distribution: BaseDistribution, unit: float) -> Any:
    """The value of an Optuna distribution at place `unit` in [0, 1] of its own scale.

    Where there are finitely many values (steps, integers, choices), each owns an equal share of the unit interval
    of its scale, so that uniform `unit` gives what `optuna.samplers.RandomSampler` would draw.
    """
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[_cell(unit, len(distribution.choices))]
    if isinstance(distribution, IntDistribution) and distribution.log:
        return round(_clip(_int_log_scale(distribution).from_unit(unit), distribution.low, distribution.high))
    if isinstance(distribution, IntDistribution):
        size = (distribution.high - distribution.low) // distribution.step + 1
        return distribution.low + distribution.step * _cell(unit, size)
    assert isinstance(distribution, FloatDistribution)
    if distribution.step is not None:
        value = distribution.low + distribution.step * _cell(unit, _steps(distribution))
        return min(value, distribution.high)
    return _float_scale(distribution).from_unit(unit)


def to_unit(distribution: BaseDistribution, value: Any) -> float:
    """The place of `value` in [0, 1]: the inverse of `from_unit`, the middle of its share where it has one."""
    if isinstance(distribution, CategoricalDistribution):
        return (distribution.to_internal_repr(value) + 0.5) / len(distribution.choices)
    if isinstance(distribution, IntDistribution) and distribution.log:
        return _int_log_scale(distribution).to_unit(value)
    if isinstance(distribution, IntDistribution):
        half = distribution.step / 2
        return LinearScale(distribution.low - half, distribution.high + half).to_unit(value)
    assert isinstance(distribution, FloatDistribution)
    if distribution.step is not None:
        half = distribution.step / 2
        return LinearScale(distribution.low - half, distribution.high + half).to_unit(value)
    return _float_scale(distribution).to_unit(value)


def is_reversible(distribution: BaseDistribution) -> bool:
    """Whether a reverse-log scale can be laid on it: a linear range, of real numbers below 1 or of any integers."""
    if isinstance(distribution, IntDistribution):
        return not distribution.log
    return isinstance(distribution, FloatDistribution) and not distribution.log and distribution.high < 1


def reversed_distribution(distribution: BaseDistribution) -> FloatDistribution | IntDistribution:
    """What is log-uniform where `distribution` is reverse-log: 1 − value; of integers, 1 + the steps below high.

    A stepped range of real numbers is widened by half a step at both ends, so that each of its values gets the share
    of the log scale that lies nearest to it.
    """
    if isinstance(distribution, IntDistribution):
        return IntDistribution(1, (distribution.high - distribution.low) // distribution.step + 1, log=True)
    assert isinstance(distribution, FloatDistribution)
    low, high = 1 - distribution.high, 1 - distribution.low
    if distribution.step is not None:
        low, high = max(low - distribution.step / 2, low / 2), high + distribution.step / 2
    return FloatDistribution(low, high, log=True)


def to_reversed(distribution: BaseDistribution, value: Any) -> Any:
    """The value of `reversed_distribution` that stands for `value`."""
    if isinstance(distribution, IntDistribution):
        return (distribution.high - value) // distribution.step + 1
    seen = reversed_distribution(distribution)
    return _clip(1 - value, seen.low, seen.high)


def from_reversed(distribution: BaseDistribution, value: Any) -> Any:
    """The value that a value of `reversed_distribution` stands for, never outside the range."""
    if isinstance(distribution, IntDistribution):
        return distribution.high - (int(value) - 1) * distribution.step
    assert isinstance(distribution, FloatDistribution)
    if distribution.step is None:
        return _clip(1 - value, distribution.low, distribution.high)
    nearest = round((1 - value - distribution.low) / distribution.step)
    return _clip(distribution.low + nearest * distribution.step, distribution.low, distribution.high)


def _float_scale(distribution: FloatDistribution) -> Scale:
    return make_scale("log" if distribution.log else "linear", distribution.low, distribution.high)


def _int_log_scale(distribution: IntDistribution) -> LogScale:
    return LogScale(distribution.low - 0.5, distribution.high + 0.5)


def _steps(distribution: FloatDistribution) -> int:
    assert distribution.step is not None
    return round((distribution.high - distribution.low) / distribution.step) + 1


def _cell(unit: float, size: int) -> int:
    return min(int(unit * size), size - 1)


def _clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)
