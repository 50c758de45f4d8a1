"""What a training was like: bias and variance, plateaus and saddles, internal covariate shift."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from objectives.network.architecture import Array
from objectives.network.network import Network

__all__ = [
    "BiasVariance",
    "Diagnosis",
    "Moments",
    "Shift",
    "course",
    "covariate_shifts",
    "diagnose",
    "input_moments",
    "on_plateau",
    "plateau_epochs",
]

NEAR_ZERO = 0.01
"""Gradient norms (nats per unit of parameter) below this count as near zero."""

MARGIN = 0.05
"""Nats by which a loss must exceed the best to be above it."""

TINY = 1e-12

WINDOW = 5
"""Epochs over which the course of a curve is judged."""

FLAT = 0.01
"""A curve that gained less than this share of all it gained, over `WINDOW` epochs, is flat."""

LOST = 0.05
"""A curve that lost more than this share of all it gained, since its best, gets worse."""


@dataclass(frozen=True, slots=True)
class BiasVariance:
    """How far the train error is from a reference, and the dev error from the train error; shares of samples.

    `reference_error` is what can be reached, such as a person's error, or the share of wrong labels. More
    than `tolerance` counts as high.
    """

    train_error: float
    dev_error: float
    reference_error: float = 0.0
    tolerance: float = 0.02

    @property
    def bias(self) -> float:
        """Avoidable bias: train error minus reference."""
        return self.train_error - self.reference_error

    @property
    def variance(self) -> float:
        """Dev error minus train error."""
        return self.dev_error - self.train_error

    @property
    def verdict(self) -> str:
        """`high bias`, `high variance`, `high bias and high variance` or `low bias and low variance`."""
        values = {"bias": self.bias, "variance": self.variance}
        high = [f"high {name}" for name, value in values.items() if value > self.tolerance]
        return " and ".join(high) or "low bias and low variance"

    def __str__(self) -> str:
        cures = []
        if self.bias > self.tolerance:
            cures.append("a bigger network, longer training or a better learning rate may help")
        if self.variance > self.tolerance:
            cures.append("more data, L2, dropout or stopping earlier may help")
        numbers = (
            f"bias {self.bias:.1%} (train error {self.train_error:.1%} against {self.reference_error:.1%}), "
            f"variance {self.variance:.1%} (dev error {self.dev_error:.1%} against train)"
        )
        return f"{self.verdict}: {numbers}" + "".join(f"; {cure}" for cure in cures)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What `diagnose` found; `str` of it is for people."""

    bias_variance: BiasVariance
    plateaus: tuple[int, ...]

    def __str__(self) -> str:
        where = ", ".join(map(str, self.plateaus))
        plateaus = f"plateau or saddle in epochs {where}" if where else "no plateau or saddle"
        return f"{self.bias_variance}. {plateaus}."


def diagnose(
    epochs: Sequence[Mapping[str, float]], *, reference_error: float = 0.0, best_loss: float | None = None
) -> Diagnosis:
    """From the metrics of a trial's epochs (`train_error`, `dev_error`, `train_loss`, `gradient_norm`).

    `best_loss` is the best train loss known, of other trials for instance; if absent, the best of these
    epochs.
    """
    last = epochs[-1]
    return Diagnosis(
        BiasVariance(last["train_error"], last["dev_error"], reference_error),
        plateau_epochs(
            [epoch["train_loss"] for epoch in epochs],
            [epoch["gradient_norm"] for epoch in epochs],
            best_loss=best_loss,
        ),
    )


def on_plateau(loss: float, gradient_norm: float, best_loss: float) -> bool:
    """Whether the gradient is near zero though the loss is above the best: a plateau, a saddle, a poor
    minimum.
    """
    return gradient_norm < NEAR_ZERO and loss > best_loss + MARGIN


def plateau_epochs(
    losses: Sequence[float], gradient_norms: Sequence[float], *, best_loss: float | None = None
) -> tuple[int, ...]:
    """The epochs, from 1, that were spent on a plateau or near a saddle.

    Looked at from the end, when the best loss of the training is known. A training that never left its
    plateau has no better loss to compare with: `best_loss` may come from elsewhere.
    """
    best = min(losses) if best_loss is None else min(best_loss, *losses)
    pairs = enumerate(zip(losses, gradient_norms, strict=True), start=1)
    return tuple(epoch for epoch, (loss, norm) in pairs if on_plateau(loss, norm, best))


def course(values: Sequence[float], *, minimize: bool = True) -> str:
    """How a learning curve goes, in words, from its values alone; epochs count from 1.

    `just begun`, `diverging`, `oscillating`, `getting worse`, `plateau` or `improving`, each with what tells
    it and what may help.
    """
    costs = [value if minimize else -value for value in values]
    if len(costs) < 3:
        return "just begun: wait for more epochs"
    best = min(range(len(costs)), key=costs.__getitem__)
    gained, lost = max(costs[0] - costs[best], 0.0), costs[-1] - costs[best]
    recent = costs[-WINDOW - 1 :]
    steps = [after - before for before, after in pairwise(recent)]
    if not math.isfinite(costs[-1]) or (costs[-1] > costs[0] and all(step > 0 for step in steps[-2:])):
        return "diverging: worse than after its first epoch; a smaller learning rate may help"
    if _turns(steps) >= WINDOW - 2 and sum(map(abs, steps)) > LOST * gained + TINY:
        return f"oscillating: up and down in the last {len(steps)} epochs; a smaller learning rate may help"
    if lost > LOST * gained and len(costs) - 1 - best >= 2:
        return f"getting worse: best in epoch {best + 1}; regularisation or stopping there may help"
    if len(costs) > WINDOW and min(costs[:-WINDOW]) - costs[best] <= FLAT * gained:
        return f"plateau: hardly any gain in the last {WINDOW} epochs"
    return f"improving: best in epoch {best + 1}"


def _turns(steps: Sequence[float]) -> int:
    """How often a curve changed between rising and falling."""
    return sum(before * after < 0 for before, after in pairwise(steps))


class Moments(NamedTuple):
    """Mean and variance (units,) of what a layer receives."""

    mean: Array
    variance: Array


class Shift(NamedTuple):
    """Change of a layer's inputs: of means in standard deviations, of variances relative to what they were."""

    mean: float
    variance: float


def input_moments(network: Network, X: Array) -> list[Moments]:
    """Moments of the inputs to layers 2, …, L over rows X (m, n0); the first layer's inputs are the data."""
    _, *inputs, _ = network.layer_inputs(X)
    return [Moments(A.mean(axis=-1), A.var(axis=-1)) for A in inputs]


def covariate_shifts(before: Sequence[Moments], after: Sequence[Moments]) -> list[Shift]:
    """Internal covariate shift (Ioffe & Szegedy 2015) of each layer: how its inputs moved between two epochs.

    With mean μ and variance σ² over samples, as vectors over the layer's units: ‖μ' - μ‖/√Σσ² for the means,
    ‖σ'² - σ²‖/‖σ²‖ for the variances.
    """
    return [
        Shift(
            float(np.linalg.norm(b.mean - a.mean) / np.sqrt(a.variance.sum() + TINY)),
            float(np.linalg.norm(b.variance - a.variance) / (np.linalg.norm(a.variance) + TINY)),
        )
        for a, b in zip(before, after, strict=True)
    ]
