"""Optimizers on one flat parameter vector, a few in-place passes each.

The forms are the course's. Momentum is the exponentially weighted average v = βv + (1-β)g, p = p - αv;
frameworks leave out the factor: v = βv + g, so that their α is (1-β) times ours. RMSprop is s = βs + (1-β)g²,
p = p - αg/(√s + ε) and Adam (Kingma & Ba 2015, algorithm 1) both together with bias correction; in these
two the forms agree with the frameworks'.

Inside, moments are kept divided by (1-β): m/(1-β) needs one pass less per step, and the factor moves into the
step's two scalars, which are worked out for a whole epoch at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np

from objectives.network.architecture import Array
from objectives.network.step import Call

__all__ = [
    "OPTIMIZERS",
    "Adam",
    "Momentum",
    "Optimizer",
    "OptimizerName",
    "RMSprop",
    "Sgd",
    "create_optimizer",
]

OptimizerName = Literal["adam", "momentum", "rmsprop", "sgd"]

CHUNK = 32_768
"""Entries updated at a time: parameters, gradient and moments of a chunk stay in cache together."""

TINY = 1e-25
"""Moments below this are zeroed once an epoch: denormal numbers slow a step down to twice its time and more.
"""


class Optimizer:
    """Updates `parameters` (…, n) in place from `gradient` (…, n).

    `line` is the list of calls of one step; `scalars` (k, …) are the numbers it reads, one row of `table` a
    step. Learning rate, momentum and the rest are numbers, or arrays (networks,) for a stack of networks.
    """

    moments: ClassVar[tuple[str, ...]] = ()
    scalar_count: ClassVar[int] = 1

    def __init__(
        self,
        parameters: Array,
        gradient: Array,
        *,
        momentum: Any = 0.9,
        beta_2: Any = 0.999,
        epsilon: Any = 1e-8,
    ) -> None:
        self.parameters, self.gradient = parameters, gradient
        self.lead = parameters.shape[:-1]
        dtype = parameters.dtype
        self.state: dict[str, Array] = {name: np.zeros_like(parameters) for name in self.moments}
        column = (*self.lead, 1) if self.lead else ()
        self.scalars = np.zeros((self.scalar_count, *column), dtype)
        self.beta_1_array, self.beta_2_array = np.zeros(column, dtype), np.zeros(column, dtype)
        self.momentum, self.beta_2, self.epsilon = (
            np.broadcast_to(np.asarray(x, np.float64), self.lead) for x in (momentum, beta_2, epsilon)
        )
        self.decayed_1, self.decayed_2 = np.ones(self.lead), np.ones(self.lead)
        self._bind_betas()
        self.line = self._line()

    def scalar(self, i: int) -> Array:
        """One of `scalars` as a view (indexing would copy)."""
        return self.scalars[i : i + 1].reshape(self.scalars.shape[1:])

    def set_momentum(self, momentum: Any) -> None:
        """Change β (β₁ with Adam); the moment itself, and Adam's bias correction, carry on from where they
        are.
        """
        new = np.broadcast_to(np.asarray(momentum, np.float64), self.lead)
        if "m" in self.state:
            rescale = (1 - self.momentum) / (1 - new)
            self.state["m"] *= rescale.reshape(self.beta_1_array.shape).astype(self.parameters.dtype)
        self.momentum = new
        self._bind_betas()

    def table(self, learning_rate: Any, steps: int) -> Array:
        """The scalars of the next `steps` steps, (steps, k, …); moves the bias correction on by as many
        steps.
        """
        rows = self._scalars(np.broadcast_to(np.asarray(learning_rate, np.float64), self.lead), steps)
        stacked = np.stack(rows, axis=1).astype(self.parameters.dtype)
        return stacked.reshape(steps, *self.scalars.shape)

    def flush_denormals(self) -> None:
        """Zero what is too small to matter but slow to compute with."""
        for moment in self.state.values():
            moment[
                np.abs(moment) < (TINY if moment is self.state.get("m") else np.finfo(moment.dtype).tiny)
            ] = 0

    def snapshot(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        arrays = {name: moment.copy() for name, moment in self.state.items()}
        return {**arrays, "decayed_1": self.decayed_1.copy(), "decayed_2": self.decayed_2.copy()}

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Continue from a `snapshot`, which was taken with the momentum that this optimizer has now."""
        for name, moment in self.state.items():
            moment[...] = snapshot[name]
        self.decayed_1, self.decayed_2 = np.array(snapshot["decayed_1"]), np.array(snapshot["decayed_2"])

    def _bind_betas(self) -> None:
        self.beta_1_array[...] = self.momentum.reshape(self.beta_1_array.shape)
        self.beta_2_array[...] = self.beta_2.reshape(self.beta_2_array.shape)

    def _line(self) -> list[Call]:
        n = self.parameters.shape[-1]
        chunk = max(1, CHUNK // int(np.prod(self.lead, dtype=int)))
        scratch = np.empty((*self.lead, min(n, chunk)), self.parameters.dtype)
        line: list[Call] = []
        for start in range(0, n, chunk):
            part = slice(start, min(n, start + chunk))
            p, g = self.parameters[..., part], self.gradient[..., part]
            moments = {name: moment[..., part] for name, moment in self.state.items()}
            line += self._update(p, g, scratch[..., : p.shape[-1]], **moments)
        return line

    def _update(self, p: Array, g: Array, scratch: Array, **moments: Array) -> list[Call]:
        raise NotImplementedError

    def _scalars(self, learning_rate: Any, steps: int) -> list[Any]:
        """Arrays (steps, …), one for each of `scalars`."""
        raise NotImplementedError

    def _constant(self, value: Any, steps: int) -> Any:
        return np.broadcast_to(value, (steps, *self.lead))


class Sgd(Optimizer):
    """p = p - αg."""

    def _update(self, p: Array, g: Array, scratch: Array, **moments: Array) -> list[Call]:
        return [partial(np.multiply, g, self.scalar(0), scratch), partial(np.subtract, p, scratch, p)]

    def _scalars(self, learning_rate: Any, steps: int) -> list[Any]:
        return [self._constant(learning_rate, steps)]


class Momentum(Optimizer):
    """v = βv + (1-β)g, p = p - αv."""

    moments = ("m",)

    def _update(self, p: Array, g: Array, scratch: Array, **moments: Array) -> list[Call]:
        m = moments["m"]
        return [
            partial(np.multiply, m, self.beta_1_array, m),
            partial(np.add, m, g, m),
            partial(np.multiply, m, self.scalar(0), scratch),
            partial(np.subtract, p, scratch, p),
        ]

    def _scalars(self, learning_rate: Any, steps: int) -> list[Any]:
        return [self._constant(learning_rate * (1 - self.momentum), steps)]


class RMSprop(Optimizer):
    """s = βs + (1-β)g², p = p - αg/(√s + ε), with `beta_2` as β (Hinton's lecture 6e)."""

    moments = ("v",)
    scalar_count = 2

    def _update(self, p: Array, g: Array, scratch: Array, **moments: Array) -> list[Call]:
        v = moments["v"]
        return [
            partial(np.multiply, v, self.beta_2_array, v),
            partial(np.multiply, g, g, scratch),
            partial(np.add, v, scratch, v),
            partial(np.sqrt, v, scratch),
            partial(np.add, scratch, self.scalar(1), scratch),
            partial(np.divide, g, scratch, scratch),
            partial(np.multiply, scratch, self.scalar(0), scratch),
            partial(np.subtract, p, scratch, p),
        ]

    def _scalars(self, learning_rate: Any, steps: int) -> list[Any]:
        root = np.sqrt(1 - self.beta_2)
        return [self._constant(learning_rate / root, steps), self._constant(self.epsilon / root, steps)]


class Adam(Optimizer):
    """m = β₁m + (1-β₁)g, v = β₂v + (1-β₂)g², p = p - α m̂/(√v̂ + ε) with m̂ = m/(1-β₁ᵗ), v̂ = v/(1-β₂ᵗ)."""

    moments = ("m", "v")
    scalar_count = 2

    def _update(self, p: Array, g: Array, scratch: Array, **moments: Array) -> list[Call]:
        m, v = moments["m"], moments["v"]
        return [
            partial(np.multiply, m, self.beta_1_array, m),
            partial(np.add, m, g, m),
            partial(np.multiply, g, g, scratch),
            partial(np.multiply, v, self.beta_2_array, v),
            partial(np.add, v, scratch, v),
            partial(np.sqrt, v, scratch),
            partial(np.add, scratch, self.scalar(1), scratch),
            partial(np.divide, m, scratch, scratch),
            partial(np.multiply, scratch, self.scalar(0), scratch),
            partial(np.subtract, p, scratch, p),
        ]

    def _scalars(self, learning_rate: Any, steps: int) -> list[Any]:
        t = np.arange(1, steps + 1).reshape(-1, *(1 for _ in self.lead))
        decayed_1, decayed_2 = self.decayed_1 * self.momentum**t, self.decayed_2 * self.beta_2**t
        self.decayed_1, self.decayed_2 = decayed_1[-1], decayed_2[-1]
        # with M = m/(1-β₁), V = v/(1-β₂): m̂/(√v̂ + ε) = M (1-β₁)/(1-β₁ᵗ) / (root·(√V + ε/root))
        root = np.sqrt((1 - self.beta_2) / (1 - decayed_2))
        rate = learning_rate * (1 - self.momentum) / (1 - decayed_1)
        return [rate / root, self.epsilon / root]


OPTIMIZERS: dict[OptimizerName, type[Optimizer]] = {
    "adam": Adam,
    "momentum": Momentum,
    "rmsprop": RMSprop,
    "sgd": Sgd,
}


def create_optimizer(name: OptimizerName, parameters: Array, gradient: Array, **settings: Any) -> Optimizer:
    """The optimizer of that name; ValueError if there is none."""
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer must be one of {list(OPTIMIZERS)}; got {name!r}")
    return OPTIMIZERS[name](parameters, gradient, **settings)
