"""Optimizers on one flat parameter vector, a few in-place passes each.

The forms are the course's. Momentum is the exponentially weighted average v = βv + (1-β)g, p = p - αv;
frameworks leave out the factor: v = βv + g, so that their α is (1-β) times ours. RMSprop is s = βs + (1-β)g²,
p = p - αg/(√s + ε) and Adam (Kingma & Ba 2015, algorithm 1) both together with bias correction; in these
two the forms agree with the frameworks'.

Inside, the moments are `WeightedSum`s, without the factor (1-β); it moves into the step's scalars, which are
worked out for a whole epoch at once. A pass over all parameters that does y = y + a·x is one BLAS call, axpy,
where NumPy would need two.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np

from objectives.network.architecture import Array
from objectives.network.arrays import Call, add_scaled, aligned_zeros

__all__ = [
    "OPTIMIZERS",
    "Adam",
    "Momentum",
    "Optimizer",
    "OptimizerName",
    "RMSprop",
    "Sgd",
    "WeightedSum",
    "create_optimizer",
]

OptimizerName = Literal["adam", "momentum", "rmsprop", "sgd"]

CHUNK = 49_152
"""Entries updated at a time: parameters, gradient and moments of a chunk stay in cache together. A multiple of
32, as BLAS may round the rest of a chunk otherwise."""

LARGEST_WEIGHT = 256.0
"""How far the weights of a `WeightedSum` grow: enough that going back to 1 costs little. Squared gradients
overflow that much earlier: in single precision at 10¹⁷ and β₂ = 0.999 instead of 10¹⁸."""

TINY = 1e-25
"""Moments below this are zeroed once an epoch: on some processors denormal numbers slow a step down to twice
its time and more."""


class WeightedSum:
    """S = Σ βᵗ⁻ⁱ xᵢ over the steps i = 1..t, where a step takes one pass.

    S = βS + x takes two: it makes all older terms lighter. Here the newer ones become heavier instead: `array`
    is w·S with w = β⁻ᵃ, so that a step is array = array + w·x. The age a is one more at each step; at the
    `period`-th, before w passes `LARGEST_WEIGHT`, `array` is brought back to age 0, where it is S itself.
    """

    def __init__(self, like: Array, decay: Any) -> None:
        """Of arrays x like `like` (…, n), with β = `decay` (…)."""
        self.array, self.lead = aligned_zeros(like.shape, like.dtype), like.shape[:-1]
        self.age = 0
        self._set_decay(decay)

    def _set_decay(self, decay: Any) -> None:
        self.decay = decay
        with np.errstate(divide="ignore"):  # β = 0 forgets at once, which is a period of 1
            self.period = 1 + int(math.log(LARGEST_WEIGHT) / -np.log(np.min(decay)))

    def change_decay(self, decay: Any) -> None:
        """Go on with another β, with the average (1-β) S as it was; with the same, nothing is rounded anew."""
        if np.array_equal(decay, self.decay):
            return
        self._scale((1 - self.decay) / (1 - decay) * self.decay**self.age)
        self.age = 0
        self._set_decay(decay)

    def snapshot(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {"array": self.array.copy(), "age": self.age, "decay": np.array(self.decay)}

    def restore(self, snapshot: Any) -> None:
        """Continue from a `snapshot`; with the average as it was, where that has another β."""
        if not isinstance(snapshot, Mapping):  # older checkpoints have the sum itself
            snapshot = {"array": snapshot, "age": 0}
        own = self.decay
        self._set_decay(snapshot.get("decay", own))
        self.array[...], self.age = snapshot["array"], snapshot["age"]
        self.change_decay(own)

    def plan(self, steps: int) -> tuple[Any, range]:
        """The weights w (steps, …) of the next `steps` steps, and before which of these to `renew`."""
        ages = np.arange(self.age + 1, self.age + steps + 1) % self.period
        due = range(self.period - 1 - self.age, steps, self.period)
        self.age = (self.age + steps) % self.period
        return self.decay ** -ages.reshape(-1, *(1 for _ in self.lead)), due

    def renew(self) -> None:
        """Bring `array` from the last age of a period to age 0, and that a step on."""
        self._scale(self.decay**self.period)

    def _scale(self, factor: Any) -> None:
        self.array *= np.reshape(factor, (*self.lead, 1) if self.lead else ()).astype(self.array.dtype)


class Optimizer:
    """Updates `parameters` (…, n) in place from `gradient` (…, n).

    `line` is the list of calls of one step; `scalars` (k, …) are the numbers it reads, which `steps` writes.
    Learning rate, momentum and the rest are numbers, or arrays (networks,) for a stack of networks.
    """

    moment_names: ClassVar[tuple[str, ...]] = ()
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
        self.momentum, self.beta_2, self.epsilon = (
            np.broadcast_to(np.asarray(x, np.float64), self.lead) for x in (momentum, beta_2, epsilon)
        )
        decays = {"m": self.momentum, "v": self.beta_2}
        self.moments = {name: WeightedSum(parameters, decays[name]) for name in self.moment_names}
        column = (*self.lead, 1) if self.lead else ()
        self.scalars = np.zeros((self.scalar_count + len(self.moments), *column), parameters.dtype)
        self.decayed_1, self.decayed_2 = np.ones(self.lead), np.ones(self.lead)
        self.line = self._line()

    def scalar(self, i: int) -> Array:
        """One of `scalars` as a view (indexing would copy)."""
        return self.scalars[i : i + 1].reshape(self.scalars.shape[1:])

    def weight(self, name: str) -> Array:
        """What a moment's newest term is multiplied by, one of `scalars`."""
        return self.scalar(self.scalar_count + list(self.moments).index(name))

    def set_momentum(self, momentum: Any) -> None:
        """Change β (β₁ with Adam); the moment itself, and Adam's bias correction, carry on from where they
        are.
        """
        self.momentum = np.broadcast_to(np.asarray(momentum, np.float64), self.lead)
        if "m" in self.moments:
            self.moments["m"].change_decay(self.momentum)

    def steps(self, learning_rate: Any, count: int) -> Iterator[None]:
        """Prepare `count` steps, one each time that the iterator is advanced: run `line` after each.

        The bias correction and the moments' ages move on by all of them at the first: whoever stops before the
        last has to end the training.
        """
        weights, renewals = {}, dict[int, list[Call]]()
        for name, moment in self.moments.items():
            weights[name], due = moment.plan(count)
            for step in due:
                renewals.setdefault(step, []).append(moment.renew)
        columns = [*self._scalars(np.asarray(learning_rate, np.float64), count, **weights), *weights.values()]
        rows = np.array(columns, self.scalars.dtype).swapaxes(0, 1).reshape(count, *self.scalars.shape)
        for step, row in enumerate(rows):
            for renew in renewals.get(step, ()):
                renew()
            self.scalars[...] = row
            yield

    def flush_denormals(self) -> None:
        """Zero what is too small to matter but slow to compute with."""
        for name, moment in self.moments.items():
            smallest = TINY if name == "m" else np.finfo(moment.array.dtype).tiny
            moment.array[np.abs(moment.array) < smallest] = 0

    def snapshot(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        moments = {name: moment.snapshot() for name, moment in self.moments.items()}
        return {**moments, "decayed_1": self.decayed_1.copy(), "decayed_2": self.decayed_2.copy()}

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Continue from a `snapshot`; moments that were taken with another β keep their average."""
        for name, moment in self.moments.items():
            moment.restore(snapshot[name])
        self.decayed_1, self.decayed_2 = np.array(snapshot["decayed_1"]), np.array(snapshot["decayed_2"])

    def _line(self) -> list[Call]:
        n = self.parameters.shape[-1]
        chunk = max(1, CHUNK // math.prod(self.lead))
        scratch = aligned_zeros((*self.lead, min(n, chunk)), self.parameters.dtype)
        line: list[Call] = []
        for start in range(0, n, chunk):
            part = slice(start, min(n, start + chunk))
            p, g = self.parameters[..., part], self.gradient[..., part]
            moments = {name: moment.array[..., part] for name, moment in self.moments.items()}
            line += self._update(p, g, scratch[..., : p.shape[-1]], **moments)
        return line

    def _add(self, y: Array, factor: Array, x: Array, scratch: Array) -> list[Call]:
        """y = y + factor·x; BLAS has no factor for each network of a stack, nor arrays with gaps."""
        if self.lead or not (y.flags.c_contiguous and x.flags.c_contiguous):
            return [partial(np.multiply, x, factor, scratch), partial(np.add, y, scratch, y)]
        return [add_scaled(y, factor, x)]

    def _update(self, p: Array, g: Array, scratch: Array, **moments: Array) -> list[Call]:
        raise NotImplementedError

    def _scalars(self, learning_rate: Any, steps: int, **weights: Any) -> list[Any]:
        """Arrays (steps, …), one for each of the first `scalar_count` of `scalars`."""
        raise NotImplementedError


class Sgd(Optimizer):
    """p = p - αg."""

    def _update(self, p: Array, g: Array, scratch: Array, **moments: Array) -> list[Call]:
        return self._add(p, self.scalar(0), g, scratch)

    def _scalars(self, learning_rate: Any, steps: int, **weights: Any) -> list[Any]:
        return [np.broadcast_to(-learning_rate, (steps, *self.lead))]


class Momentum(Optimizer):
    """v = βv + (1-β)g, p = p - αv."""

    moment_names = ("m",)

    def _update(self, p: Array, g: Array, scratch: Array, **moments: Array) -> list[Call]:
        m = moments["m"]
        return [*self._add(m, self.weight("m"), g, scratch), *self._add(p, self.scalar(0), m, scratch)]

    def _scalars(self, learning_rate: Any, steps: int, **weights: Any) -> list[Any]:
        return [-learning_rate * (1 - self.momentum) / weights["m"]]


class RMSprop(Optimizer):
    """s = βs + (1-β)g², p = p - αg/(√s + ε), with `beta_2` as β (Hinton's lecture 6e)."""

    moment_names = ("v",)
    scalar_count = 2

    def _update(self, p: Array, g: Array, scratch: Array, **moments: Array) -> list[Call]:
        v = moments["v"]
        return [
            partial(np.multiply, g, g, scratch),
            *self._add(v, self.weight("v"), scratch, scratch),
            partial(np.sqrt, v, scratch),
            partial(np.add, scratch, self.scalar(1), scratch),
            partial(np.divide, g, scratch, scratch),
            *self._add(p, self.scalar(0), scratch, scratch),
        ]

    def _scalars(self, learning_rate: Any, steps: int, **weights: Any) -> list[Any]:
        root = np.sqrt((1 - self.beta_2) / weights["v"])
        return [-learning_rate / root, self.epsilon / root]


class Adam(Optimizer):
    """m = β₁m + (1-β₁)g, v = β₂v + (1-β₂)g², p = p - α m̂/(√v̂ + ε) with m̂ = m/(1-β₁ᵗ), v̂ = v/(1-β₂ᵗ)."""

    moment_names = ("m", "v")
    scalar_count = 2

    def _update(self, p: Array, g: Array, scratch: Array, **moments: Array) -> list[Call]:
        m, v = moments["m"], moments["v"]
        return [
            *self._add(m, self.weight("m"), g, scratch),
            partial(np.multiply, g, g, scratch),
            *self._add(v, self.weight("v"), scratch, scratch),
            partial(np.sqrt, v, scratch),
            partial(np.add, scratch, self.scalar(1), scratch),
            partial(np.divide, m, scratch, scratch),
            *self._add(p, self.scalar(0), scratch, scratch),
        ]

    def _scalars(self, learning_rate: Any, steps: int, **weights: Any) -> list[Any]:
        t = np.arange(1, steps + 1).reshape(-1, *(1 for _ in self.lead))
        decayed_1, decayed_2 = self.decayed_1 * self.momentum**t, self.decayed_2 * self.beta_2**t
        self.decayed_1, self.decayed_2 = decayed_1[-1], decayed_2[-1]
        # with M = w₁ m/(1-β₁), V = w₂ v/(1-β₂):
        # m̂/(√v̂ + ε) = M (1-β₁)/(w₁ (1-β₁ᵗ)) / (root·(√V + ε/root))
        root = np.sqrt((1 - self.beta_2) / (1 - decayed_2) / weights["v"])
        rate = learning_rate * (1 - self.momentum) / (1 - decayed_1) / weights["m"]
        return [-rate / root, self.epsilon / root]


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
