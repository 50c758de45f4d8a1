"""Gradient descent on analytic landscapes: how many steps an optimizer takes from beside a saddle, from a plateau,
through a ravine, out of local optima.

The optimizers are the network's own (`objectives.network.optimizers`), on coordinates instead of weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from objectives.datasets import random_stream
from objectives.epoch import Adjustment, Epoch, Epochs, Hyperparameter, Seed, complete_params
from objectives.functions import Landscape, make_rastrigin, make_rosenbrock, make_saddle, plateau, saddle
from objectives.network.checkpoint import CheckpointError, dump, load
from objectives.network.optimizers import OPTIMIZERS, create_optimizer

__all__ = ["TERRAINS", "Descents", "Terrain", "descents"]

Array = NDArray[np.float64]

STEPS = 100
"""Of an epoch."""


@dataclass(frozen=True, slots=True)
class Terrain:
    """A landscape of two variables, where descents on it begin, and when they are through.

    They begin evenly in the box `low` to `high`; with `is_polar` these are radius and angle (a share of a turn) instead
    of coordinates. They are through once f(x) − f* is at most `level`.
    """

    landscape: Landscape
    low: tuple[float, float]
    high: tuple[float, float]
    level: float
    is_polar: bool = False

    def starts(self, count: int, rng: np.random.Generator) -> Array:
        """Points to begin at, shape (count, 2)."""
        drawn: Array = rng.uniform(self.low, self.high, (count, 2))
        if not self.is_polar:
            return drawn
        radius, angle = drawn[:, 0], 2 * np.pi * drawn[:, 1]
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)

    def regret(self, x: Array) -> Array:
        """f(x) − f* at points of shape (count, 2)."""
        return self.landscape.value(x) - self.landscape.optimum.value


TERRAINS: dict[str, Terrain] = {
    # the line x1 = 0 leads into the saddle; 96% of the way from there to the minimum
    "saddle": Terrain(saddle, (-2.0, -1e-3), (2.0, 1e-3), 0.01),
    "flat-saddle": Terrain(make_saddle(0.01, "flat-saddle"), (-2.0, -1e-3), (2.0, 1e-3), 1e-4),
    "plateau": Terrain(plateau, (3.0, 0.0), (4.0, 1.0), 0.01, is_polar=True),
    "ravine": Terrain(make_rosenbrock(2, "ravine"), (-2.0, -1.0), (2.0, 3.0), 0.01),
    "egg-box": Terrain(make_rastrigin(2, "egg-box"), (-5.12, -5.12), (5.12, 5.12), 0.01),
}
"""By name. Gradients on the plateau are 0.03 to 0.001 at the start, and about 0.6 at the steepest; in the ravine
curvatures differ by a factor of 2,500 at the minimum; of the egg box's hundred minima one is within the level."""


@dataclass(frozen=True, slots=True)
class Descents:
    """The mean number of steps until a level is reached, over many starting points; an `Objective`.

    A start that does not reach it, or whose numbers overflow, counts with all steps that there are: 100 an epoch. The
    starting points follow from `seed.study` alone, so that every learning rate is tried from the same; `test_metrics`
    begins elsewhere. Epoch k tells what is known after 100 k steps: those still on their way count with all steps, so
    that the value only falls. It ends early once all are through.

    Metrics: `reached`, the share of starts that are through, and `regret`, the median of f(x) − f* where they are now.
    """

    name: str = "descents"
    description: str = "steps that an optimizer takes down an analytic landscape, mean over starting points"
    direction: str = "minimize"

    @property
    def hyperparameters(self) -> tuple[Hyperparameter, ...]:
        """The landscape, the optimizer and its settings, and how long and how often it descends."""
        return (
            Hyperparameter("learning_rate", 0.1, 1, "α, the step size", low=1e-8, high=1e4),
            Hyperparameter("momentum", 0.9, 2, "β of momentum, β₁ of Adam", low=0.0, high=0.999999),
            Hyperparameter("beta_2", 0.999, None, "β₂ of Adam, β of RMSprop", low=0.0, high=0.9999999),
            Hyperparameter("epsilon", 1e-8, None, "ε of Adam and RMSprop", low=1e-16, high=1.0),
            Hyperparameter("optimizer", "sgd", None, "how steps are made", choices=tuple(OPTIMIZERS)),
            Hyperparameter("landscape", "saddle", None, "where", choices=tuple(TERRAINS)),
            Hyperparameter("starts", 16, None, "starting points", low=1, high=10_000, integer=True),
            Hyperparameter(
                "epochs", 10, None, "of 100 steps each, at most", low=1, high=100_000, integer=True
            ),
        )

    def evaluate(self, params: Mapping[str, Any], *, seed: Seed, resume: bytes | None = None) -> Epochs:
        """See `objectives.epoch.Objective`; nothing can be adjusted.

        Raises:
            ValueError: from the first `next`, for parameters or a checkpoint; from `send`, for an adjustment.
        """
        descent = _Descent(complete_params(self.hyperparameters, params), random_stream(seed.study, 0))
        if resume is not None:
            descent.restore(resume)
        for epoch in descent.epochs():
            _refuse((yield epoch))

    def test_metrics(self, params: Mapping[str, Any], *, seed: Seed) -> dict[str, float]:
        """`test_steps` and `test_reached` from starting points that follow from both parts of the seed."""
        descent = _Descent(complete_params(self.hyperparameters, params), random_stream(seed, 1))
        *_, last = descent.epochs()
        return {"test_steps": last.value, "test_reached": last.metrics["reached"]}


class _Descent:
    """All starts side by side: one optimizer on points (starts, 2)."""

    def __init__(self, full: Mapping[str, Any], rng: np.random.Generator) -> None:
        self.full, self.terrain = full, TERRAINS[full["landscape"]]
        self.x = self.terrain.starts(full["starts"], rng)
        self.gradient = np.zeros_like(self.x)
        settings = {name: full[name] for name in ("momentum", "beta_2", "epsilon")}
        self.optimizer = create_optimizer(full["optimizer"], self.x, self.gradient, **settings)
        self.done = 0
        self.limit = float(STEPS * full["epochs"])
        self.taken = np.where(self.terrain.regret(self.x) <= self.terrain.level, 0.0, np.inf)

    def epochs(self) -> Iterator[Epoch]:
        while self.done < self.full["epochs"] and (np.isinf(self.taken).any() or not self.done):
            with np.errstate(all="ignore"):  # of a start that diverges
                self._descend()
            yield self._epoch()

    def restore(self, resume: bytes) -> None:
        """Go on after a checkpoint's epoch.

        Raises:
            CheckpointError: it is none of a descent like this one.
        """
        state = load(resume)
        if "descent" not in state or state["descent"]["like"] != self._like:
            raise CheckpointError("the checkpoint is of another descent")
        state = state["descent"]
        self.x[...], self.taken[...], self.done = state["x"], state["taken"], state["done"]
        self.optimizer.restore(state["optimizer"])

    @property
    def _like(self) -> dict[str, Any]:
        return {name: self.full[name] for name in ("landscape", "optimizer", "starts", "epochs")}

    def _descend(self) -> None:
        """The steps of one epoch."""
        for step, _ in enumerate(self.optimizer.steps(self.full["learning_rate"], STEPS), start=1):
            self.gradient[...] = self.terrain.landscape.gradient(self.x)
            for call in self.optimizer.line:
                call()
            through = self.terrain.regret(self.x) <= self.terrain.level  # NaN is not
            now = float(STEPS * self.done + step)
            self.taken[through] = np.minimum(self.taken[through], now)
        self.done += 1

    def _epoch(self) -> Epoch:
        with np.errstate(all="ignore"):
            regret = float(np.median(np.nan_to_num(self.terrain.regret(self.x), nan=np.inf)))
        metrics = {"reached": float(np.mean(np.isfinite(self.taken))), "regret": regret}
        return Epoch(self.done, float(np.minimum(self.taken, self.limit).mean()), metrics, self._checkpoint)

    def _checkpoint(self) -> bytes:
        state = {"x": self.x, "taken": self.taken, "done": self.done, "optimizer": self.optimizer.snapshot()}
        return dump({"descent": {**state, "like": self._like}})


def _refuse(adjustment: Adjustment | None) -> None:
    if adjustment:
        raise ValueError(f"a descent cannot be adjusted; got {', '.join(sorted(adjustment))}")


descents = Descents()
"""Registered."""
