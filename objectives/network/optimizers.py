"""Optimizers on one flat parameter vector, a few in-place passes each.

The forms are the course's. Momentum is the exponentially weighted average v = βv + (1-β)g, p = p - αv;
frameworks leave out the factor: v = βv + g, so that their α is (1-β) times ours. RMSprop is s = βs + (1-β)g²,
p = p - αg/(√s + ε) and Adam (Kingma & Ba 2015, algorithm 1) both together with bias correction; in these
two the forms agree with the frameworks'.

Two things make a step cheap, both by moving factors from passes over all entries into the step's few scalars,
which are worked out for a whole epoch at once. Moments are kept divided by (1-β): M = βM + g. And a single
network's M is not made smaller at each step, but what it takes in grows: with M = βᵏM' it is M' += β⁻ᵏg, one
call to BLAS. After an epoch, or when β⁻ᵏ has become large, M' is brought back to M.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
from scipy.linalg import get_blas_funcs

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
"""Moments below this are zeroed once an epoch: denormal numbers slow a step down to twice its time and more."""

GROWTH = 1e6
"""At most so much larger than at first may what moments take in become."""


class Optimizer:
    """Updates `parameters` (…, n) in place from `gradient` (…, n).

    `line` is the list of calls of one step; `scalars` (k, …) are the numbers it reads, one row of `table` a
    step. Learning rate, momentum and the rest are numbers, or arrays (networks,) for a stack of networks.
    """

    moments: ClassVar[tuple[str, ...]] = ()
    own_scalars: ClassVar[tuple[str, ...]] = ("step",)

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
        self.state: dict[str, Array] = {name: np.zeros_like(parameters) for name in self.moments}
        self.names = [*self.own_scalars, *(f"{x} of {m}" for m in self.moments for x in ("decay", "growth"))]
        self.scalars = np.zeros((len(self.names), *self._column), parameters.dtype)
        self.momentum, self.beta_2, self.epsilon = (
            np.broadcast_to(np.asarray(x, np.float64), self.lead) for x in (momentum, beta_2, epsilon)
        )
        self.decayed_1, self.decayed_2 = np.ones(self.lead), np.ones(self.lead)
        self._cycles: dict[tuple[str, int], tuple[Any, Any, Any]] = {}
        self._owed = {name: np.ones(self._column, parameters.dtype) for name in self.moments}
        self._is_settled = True
        self._axpy = get_blas_funcs("axpy", dtype=parameters.dtype)
        self.line = self._line()

    @property
    def _column(self) -> tuple[int, ...]:
        """The shape of a number for each network, to go with the entries."""
        return (*self.lead, 1) if self.lead else ()

    def scalar(self, name: str) -> Array:
        """One of `scalars` as a view (indexing would copy)."""
        i = self.names.index(name)
        return self.scalars[i : i + 1].reshape(self._column)

    def beta(self, moment: str) -> Any:
        """The β of a moment."""
        return self.momentum if moment == "m" else self.beta_2

    def set_momentum(self, momentum: Any) -> None:
        """Change β (β₁ with Adam); the moment itself, and Adam's bias correction, carry on from where they
        are.
        """
        self.settle()
        new = np.broadcast_to(np.asarray(momentum, np.float64), self.lead)
        if "m" in self.state:
            rescale = (1 - self.momentum) / (1 - new)
            self.state["m"] *= rescale.reshape(self._column).astype(self.parameters.dtype)
        self.momentum = new
        self._cycles.clear()

    def table(self, learning_rate: Any, steps: int) -> Array:
        """The scalars of the next `steps` steps, (steps, k, …); moves the bias correction on by as many
        steps.
        """
        self.settle()
        rows: dict[str, Any] = {}
        shrunk: dict[str, Any] = {}
        for moment in self.moments:
            decay, growth, shrunk[moment] = self._cycle(moment, steps)
            rows[f"decay of {moment}"], rows[f"growth of {moment}"] = decay, growth
            self._owed[moment][...] = shrunk[moment][-1:].reshape(self._column)
        self._is_settled = False
        rate = np.broadcast_to(np.asarray(learning_rate, np.float64), self.lead)
        rows |= self._scalars(rate, steps, **shrunk)
        table = np.empty((steps, len(self.names), *self.lead), self.parameters.dtype)
        for i, name in enumerate(self.names):
            table[:, i] = rows[name]
        return table.reshape(steps, *self.scalars.shape)

    def settle(self) -> None:
        """Bring the moments to their own size, and zero what is too small to matter but slow to compute with."""
        if self._is_settled:
            return
        self._is_settled = True
        for name, moment in self.state.items():
            np.multiply(moment, self._owed[name], moment)
            moment[np.abs(moment) < self.smallest(name)] = 0

    def smallest(self, moment: str) -> float:
        """What is below this in a moment is zeroed once an epoch."""
        return TINY if moment == "m" else float(np.finfo(self.parameters.dtype).tiny)

    def snapshot(self) -> dict[str, Any]:
        """Everything that the next step depends on, after an epoch."""
        self.settle()
        arrays = {name: moment.copy() for name, moment in self.state.items()}
        return {**arrays, "decayed_1": self.decayed_1.copy(), "decayed_2": self.decayed_2.copy()}

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Continue from a `snapshot`, which was taken with the momentum that this optimizer has now."""
        for name, moment in self.state.items():
            moment[...] = snapshot[name]
        self._is_settled = True
        self.decayed_1, self.decayed_2 = np.array(snapshot["decayed_1"]), np.array(snapshot["decayed_2"])

    def _cycle(self, moment: str, steps: int) -> tuple[Any, Any, Any]:
        """For each step by what M' is multiplied before, 1 for most of them, and β⁻ᵏ and βᵏ after it."""
        if (moment, steps) not in self._cycles:
            beta = self.beta(moment)
            with np.errstate(divide="ignore"):
                longest = np.floor(-np.log(GROWTH) / np.log(beta))
            block = np.ones_like(longest) if self.lead else np.clip(longest, 1, 2**31)
            step = np.arange(steps).reshape(-1, *(1 for _ in self.lead))
            exponents = step % block
            decay = np.where(exponents == 0, beta ** np.where(step == 0, 1, block), 1.0)
            self._cycles[moment, steps] = decay, beta**-exponents, beta**exponents
        return self._cycles[moment, steps]

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

    def _take_in(self, name: str, moment: Array, new: Array) -> list[Call]:
        """M = βM + new. In a stack, where β may be another for each network, as it stands."""
        decay, growth = self.scalar(f"decay of {name}"), self.scalar(f"growth of {name}")
        if self.lead:
            return [partial(np.multiply, moment, decay, moment), partial(np.add, moment, new, moment)]
        return [partial(_decay, moment, decay), partial(self._axpy, new, moment, len(moment), growth)]

    def _move(self, p: Array, along: Array, scratch: Array) -> list[Call]:
        """p = p + step · along, where `scratch` may be `along`."""
        step = self.scalar("step")
        if self.lead:
            return [partial(np.multiply, along, step, scratch), partial(np.add, p, scratch, p)]
        return [partial(self._axpy, along, p, len(p), step)]

    def _update(self, p: Array, g: Array, scratch: Array, **moments: Array) -> list[Call]:
        raise NotImplementedError

    def _scalars(self, learning_rate: Any, steps: int, **shrunk: Any) -> dict[str, Any]:
        """What `own_scalars` are at each step, arrays (steps, …); `shrunk` are the βᵏ of the moments."""
        raise NotImplementedError


def _decay(moment: Array, by: Array) -> None:
    if by.item() != 1:
        np.multiply(moment, by, moment)


class Sgd(Optimizer):
    """p = p - αg."""

    def _update(self, p: Array, g: Array, scratch: Array, **moments: Array) -> list[Call]:
        return self._move(p, g, scratch)

    def _scalars(self, learning_rate: Any, steps: int, **shrunk: Any) -> dict[str, Any]:
        return {"step": -learning_rate}


class Momentum(Optimizer):
    """v = βv + (1-β)g, p = p - αv."""

    moments = ("m",)

    def _update(self, p: Array, g: Array, scratch: Array, **moments: Array) -> list[Call]:
        return [*self._take_in("m", moments["m"], g), *self._move(p, moments["m"], scratch)]

    def _scalars(self, learning_rate: Any, steps: int, **shrunk: Any) -> dict[str, Any]:
        return {"step": -learning_rate * (1 - self.momentum) * shrunk["m"]}


class RMSprop(Optimizer):
    """s = βs + (1-β)g², p = p - αg/(√s + ε), with `beta_2` as β (Hinton's lecture 6e)."""

    moments = ("v",)
    own_scalars = ("step", "epsilon")

    def _update(self, p: Array, g: Array, scratch: Array, **moments: Array) -> list[Call]:
        v = moments["v"]
        return [
            partial(np.multiply, g, g, scratch),
            *self._take_in("v", v, scratch),
            partial(np.sqrt, v, scratch),
            partial(np.add, scratch, self.scalar("epsilon"), scratch),
            partial(np.divide, g, scratch, scratch),
            *self._move(p, scratch, scratch),
        ]

    def _scalars(self, learning_rate: Any, steps: int, **shrunk: Any) -> dict[str, Any]:
        # s = (1-β)βᵏV': g/(√s + ε) = g / (root·(√V' + ε/root))
        root = np.sqrt((1 - self.beta_2) * shrunk["v"])
        return {"step": -learning_rate / root, "epsilon": self.epsilon / root}


class Adam(Optimizer):
    """m = β₁m + (1-β₁)g, v = β₂v + (1-β₂)g², p = p - α m̂/(√v̂ + ε) with m̂ = m/(1-β₁ᵗ), v̂ = v/(1-β₂ᵗ)."""

    moments = ("m", "v")
    own_scalars = ("step", "epsilon")

    def _update(self, p: Array, g: Array, scratch: Array, **moments: Array) -> list[Call]:
        m, v = moments["m"], moments["v"]
        return [
            *self._take_in("m", m, g),
            partial(np.multiply, g, g, scratch),
            *self._take_in("v", v, scratch),
            partial(np.sqrt, v, scratch),
            partial(np.add, scratch, self.scalar("epsilon"), scratch),
            partial(np.divide, m, scratch, scratch),
            *self._move(p, scratch, scratch),
        ]

    def _scalars(self, learning_rate: Any, steps: int, **shrunk: Any) -> dict[str, Any]:
        t = np.arange(1, steps + 1).reshape(-1, *(1 for _ in self.lead))
        decayed_1, decayed_2 = self.decayed_1 * self.momentum**t, self.decayed_2 * self.beta_2**t
        self.decayed_1, self.decayed_2 = decayed_1[-1], decayed_2[-1]
        # m = (1-β₁)β₁ᵏM', v = (1-β₂)β₂ᵏV': m̂/(√v̂ + ε) = M' (1-β₁)β₁ᵏ/(1-β₁ᵗ) / (root·(√V' + ε/root))
        root = np.sqrt((1 - self.beta_2) * shrunk["v"] / (1 - decayed_2))
        rate = learning_rate * (1 - self.momentum) * shrunk["m"] / (1 - decayed_1)
        return {"step": -rate / root, "epsilon": self.epsilon / root}


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
