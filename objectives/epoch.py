"""The contract of an objective: a generator of epochs.

An objective's `evaluate` yields an `Epoch` after each epoch of training; the value of the last one is the
trial's score. Everything else follows from this one idea:

* pruning is `close()` on the generator;
* a person adjusting a running training (panda) is `send({"learning_rate": 0.01})`;
* continuing after a lost worker, and population-based training, are `evaluate(..., resume=checkpoint)`.

The contract imports nothing but the standard library, so that a user's own package can follow it freely.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, NamedTuple, Protocol, runtime_checkable

__all__ = [
    "Adjustment",
    "Diverged",
    "Epoch",
    "Epochs",
    "Hyperparameter",
    "Objective",
    "Seed",
    "complete_params",
]


class Seed(NamedTuple):
    """Where a trial's randomness comes from.

    `study` is shared by all trials of a study: it decides what must be the same for all of them, such as the
    split of the data. `(study, trial)` decides what may differ: initial weights, the order of mini-batches,
    observation noise. Two studies with the same `study` seed are paired: trial k of one meets the same luck
    as trial k of the other. Both are non-negative, so that `numpy.random.default_rng(seed)` takes the pair.
    """

    study: int
    trial: int = 0


@dataclass(frozen=True, slots=True)
class Epoch:
    """What an objective tells after one epoch.

    `number` counts from 1. `value` is what is tuned, in the units of the objective. `metrics` are further
    numbers by name (for instance `train_loss`, `dev_error`, `seconds`). `checkpoint` takes a snapshot when it
    is called, valid until the generator goes on; objectives without checkpoints leave it None.
    """

    number: int
    value: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    checkpoint: Callable[[], bytes] | None = None


Adjustment = Mapping[str, Any]
"""New values for adjustable hyperparameters, by name, sent into a running generator."""

Epochs = Generator[Epoch, Adjustment | None, None]
"""What `Objective.evaluate` returns."""


class Diverged(ArithmeticError):  # noqa: N818 - the field's word for what happened
    """A training whose numbers left the finite range; its trial fails with this as the reason.

    `epoch` is the epoch (from 1) in which it happened, `cause` says what was seen.
    """

    def __init__(self, epoch: int, cause: str) -> None:
        super().__init__(epoch, cause)
        self.epoch = epoch
        self.cause = cause

    def __str__(self) -> str:
        return f"diverged in epoch {self.epoch}: {self.cause}"


@dataclass(frozen=True, slots=True)
class Hyperparameter:
    """A hyperparameter that an objective accepts.

    `priority` is the tier in which it is worth tuning: 1 first (learning rate), then 2 (momentum, hidden
    units, batch size), then 3 (layers, decay); None marks one that is rarely tuned, such as Adam's ε.
    `low` and `high` bound what is legal, ends included (None: unbounded); `choices` lists what is legal for a
    categorical one. `integer` ones are counts. `adjustable` ones may be changed while the training runs.
    """

    name: str
    default: Any
    priority: int | None = None
    description: str = ""
    low: float | None = None
    high: float | None = None
    choices: tuple[Any, ...] | None = None
    integer: bool = False
    adjustable: bool = False

    def check(self, value: Any) -> None:
        """Raise ValueError when `value` is not legal for this hyperparameter, naming the rule and the value."""
        if self.choices is not None:
            if value not in self.choices:
                raise ValueError(f"{self.name} must be one of {list(self.choices)}; got {value!r}")
            return
        if self.integer and (isinstance(value, bool) or not isinstance(value, Integral)):
            raise ValueError(f"{self.name} must be a whole number; got {value!r}")
        if self.low is not None or self.high is not None:
            if isinstance(value, bool) or not isinstance(value, Real):
                raise ValueError(f"{self.name} must be a number; got {value!r}")
            number = float(value)  # NaN lies nowhere
            if (self.low is not None and not number >= self.low) or (
                self.high is not None and not number <= self.high
            ):
                raise ValueError(f"{self.name} must lie in {self.range()}; got {value!r}")

    def range(self) -> str:
        """The legal values, for messages and help texts."""
        if self.choices is not None:
            return " | ".join(map(str, self.choices))
        low = "-inf" if self.low is None else f"{self.low:.10g}"
        high = "inf" if self.high is None else f"{self.high:.10g}"
        return f"[{low}, {high}]"


@runtime_checkable
class Objective(Protocol):
    """Something to tune. Register it under a name in the entry-point group `tuner.objectives`.

    It may also have `metrics`, the names of those that each of its epochs has: then a study of several objectives is
    checked against them before it begins, not only after its first epoch.
    """

    @property
    def name(self) -> str:
        """The registered name."""

    @property
    def description(self) -> str:
        """One line on what is evaluated and what the value means."""

    @property
    def direction(self) -> str:
        """`minimize` or `maximize`: what is good about the value."""

    @property
    def hyperparameters(self) -> tuple[Hyperparameter, ...]:
        """What it accepts, in the order in which it is worth reading about."""

    def evaluate(self, params: Mapping[str, Any], *, seed: Seed, resume: bytes | None = None) -> Epochs:
        """Train with `params` (what is absent takes its default) and yield an `Epoch` after each epoch.

        With `resume`, a checkpoint, the training goes on after the epoch in which that was taken. Adjustable
        hyperparameters that `params` gives are what it goes on with, whatever they were before; those that it does
        not give stay as they were.

        Raises:
            ValueError: a name is unknown or a value not legal; before the first epoch.
            Diverged: the numbers left the finite range.
        """


def complete_params(accepted: Iterable[Hyperparameter], params: Mapping[str, Any]) -> dict[str, Any]:
    """All accepted hyperparameters with their values: those of `params`, defaults for the rest.

    Raises:
        ValueError: a name that is not accepted (the nearest accepted one is suggested) or an illegal value.
    """
    known = {h.name: h for h in accepted}
    for name, value in params.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"unknown hyperparameter {name!r}{hint}; accepted: {', '.join(sorted(known))}")
        known[name].check(value)
    return {name: params.get(name, h.default) for name, h in known.items()}
