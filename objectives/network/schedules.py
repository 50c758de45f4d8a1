"""Learning-rate schedules: the factor on the learning rate in each epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["SCHEDULES", "ReduceOnPlateau", "Schedule", "ScheduleName"]

ScheduleName = Literal["constant", "step", "exponential", "inverse", "inverse_sqrt", "cosine", "plateau"]

SCHEDULES: tuple[ScheduleName, ...] = (
    "constant",
    "step",
    "exponential",
    "inverse",
    "inverse_sqrt",
    "cosine",
    "plateau",
)


@dataclass(frozen=True, slots=True)
class Schedule:
    """The learning rate's factor as a function of the epoch t, which counts from 0.

    | name | factor | `decay` d |
    |---|---|---|
    | constant | 1 | unused |
    | step | (1 - d)^⌊t/every⌋ | lost at each step |
    | exponential | (1 - d)^t | lost in each epoch (0.05 is the course's 0.95^t) |
    | inverse | 1/(1 + d·t) | the course's decay rate |
    | inverse_sqrt | 1/√(t + 1) | unused |
    | cosine | d + (1 - d)(1 + cos(πt/epochs))/2 | the factor at the end (Loshchilov & Hutter 2017) |
    | plateau | 1; lowered by `ReduceOnPlateau` | lost at each plateau |

    During the first `warmup` epochs all are multiplied by (t + 1)/(warmup + 1).
    """

    name: ScheduleName = "constant"
    decay: float = 0.0
    every: int = 10
    epochs: int = 1
    warmup: int = 0

    def __post_init__(self) -> None:
        if self.name not in SCHEDULES:
            raise ValueError(f"schedule must be one of {list(SCHEDULES)}; got {self.name!r}")
        if not self.decay >= 0 or (self.name != "inverse" and self.decay > 1):
            raise ValueError(f"decay must lie in [0, 1] for schedule {self.name!r}; got {self.decay}")
        if self.every < 1 or self.epochs < 1 or self.warmup < 0:
            raise ValueError(
                f"every and epochs must be positive and warmup not negative; got {self.every}, {self.epochs},"
                f" {self.warmup}"
            )

    def factor(self, epoch: int) -> float:
        """What to multiply the learning rate by in epoch `epoch`, from 0."""
        return self._decayed(epoch) * min(1.0, (epoch + 1) / (self.warmup + 1))

    def _decayed(self, t: int) -> float:
        match self.name:
            case "step":
                return (1 - self.decay) ** (t // self.every)
            case "exponential":
                return (1 - self.decay) ** t
            case "inverse":
                return 1 / (1 + self.decay * t)
            case "inverse_sqrt":
                return 1 / math.sqrt(t + 1)
            case "cosine":
                return self.decay + (1 - self.decay) * (1 + math.cos(math.pi * t / self.epochs)) / 2
            case _:
                return 1.0


@dataclass(slots=True)
class ReduceOnPlateau:
    """Lowers the factor to (1 - decay) of itself when the loss has not improved for more than `patience`
    epochs.

    Improvement is a loss below (1 - threshold) of the best, as in PyTorch's ReduceLROnPlateau.
    """

    decay: float
    patience: int = 5
    threshold: float = 1e-4
    factor: float = 1.0
    best: float = math.inf
    bad_epochs: int = 0

    def update(self, loss: float) -> float:
        """Take an epoch's loss; return the factor for the next epoch."""
        if loss < self.best * (1 - self.threshold):
            self.best, self.bad_epochs = loss, 0
        else:
            self.bad_epochs += 1
        if self.bad_epochs > self.patience:
            self.factor *= 1 - self.decay
            self.bad_epochs = 0
        return self.factor
