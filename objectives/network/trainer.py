"""Mini-batch training, an epoch at a time."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from objectives.network.architecture import Array
from objectives.network.arrays import Call, aligned_zeros
from objectives.network.network import Network
from objectives.network.optimizers import OPTIMIZERS, OptimizerName, create_optimizer
from objectives.network.schedules import ReduceOnPlateau, Schedule
from objectives.network.step import Regularization, Step

__all__ = ["ADJUSTABLE", "EarlyStopping", "EpochReport", "NotFinite", "Settings", "Trainer"]

ADJUSTABLE = ("learning_rate", "momentum", "l1", "l2", "dropout", "batch_size")
"""Settings that may change between epochs."""


class NotFinite(ArithmeticError):  # noqa: N818 - says what was seen
    """Gradients or parameters left the finite range; the message says which."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to train; see `objectives.network.optimizers` for the symbols.

    `momentum` is β, and β₁ with Adam; `beta_2` is RMSprop's β too. `bn_momentum` is the decay m of the
    running statistics, running = m·running + (1-m)·batch (PyTorch's `momentum` is 1-m). `batch_size` 1 is
    stochastic and one of at least the number of samples is full-batch gradient descent. Learning rate,
    momentum, beta_2, epsilon, l1, l2, dropout and bn_momentum may be arrays (networks,) for a stack of
    networks.
    """

    learning_rate: Any = 0.001
    momentum: Any = 0.9
    beta_2: Any = 0.999
    epsilon: Any = 1e-8
    optimizer: OptimizerName = "adam"
    batch_size: int = 32
    l1: Any = 0.0
    l2: Any = 0.0
    dropout: Any = 0.0
    bn_momentum: Any = 0.9
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {list(OPTIMIZERS)}; got {self.optimizer!r}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {self.batch_size}")
        for name in ("momentum", "beta_2", "dropout", "bn_momentum"):
            value = np.asarray(getattr(self, name))
            if not np.all((value >= 0) & (value < 1)):
                raise ValueError(f"{name} must lie in [0, 1); got {getattr(self, name)}")
        for name in ("learning_rate", "epsilon", "l1", "l2"):
            value = np.asarray(getattr(self, name))
            if not np.all((value >= 0) & np.isfinite(value)):
                raise ValueError(f"{name} must be finite and not negative; got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class EpochReport:
    """What an epoch of training was like.

    `learning_rate` is the one used; `gradient_norm` the root mean square, over the epoch's steps, of the
    gradient's 2-norm (regularisation included); `seconds` the wall time. The first two are arrays
    (networks,) in a stack.
    """

    number: int
    learning_rate: Any
    gradient_norm: Any
    seconds: float


class Trainer:
    """Trains a network on rows X (m, n0) with integer labels y (m,), in place.

    `rngs` are the generators for the order of samples and the dropout, one for each network of the stack
    (one for a single network). In every epoch each sample is seen once; the last batch may be smaller,
    except that with batch normalisation a last batch of one joins the batch before it.
    """

    def __init__(
        self,
        network: Network,
        X: Array,
        y: np.ndarray[Any, Any],
        settings: Settings,
        rngs: Sequence[np.random.Generator],
    ) -> None:
        self.network, self.rngs = network, rngs
        dtype, lead = network.parameters.dtype, network.parameters.shape[:-1]
        self.X = np.ascontiguousarray(X, dtype)
        self.onehot = np.eye(network.architecture.sizes[-1], dtype=dtype)[y]
        self.settings = settings
        self.gradient: Array = aligned_zeros(network.parameters.shape, dtype)
        self.optimizer = create_optimizer(
            settings.optimizer,
            network.parameters,
            self.gradient,
            momentum=settings.momentum,
            beta_2=settings.beta_2,
            epsilon=settings.epsilon,
        )
        self.regularization = Regularization(lead, dtype)
        self.regularization.set(l1=settings.l1, l2=settings.l2, dropout=settings.dropout)
        self.plateau = ReduceOnPlateau(settings.schedule.decay, settings.schedule.every)
        self.epochs = 0
        self._steps: dict[int, tuple[Step, list[list[Call]]]] = {}
        self._check_batches(settings.batch_size)

    def epoch(self) -> EpochReport:
        """Train one epoch.

        Raises:
            NotFinite: a single network's gradient or parameters are NaN or infinite. Networks of a stack go
            on.
        """
        started = time.perf_counter()
        learning_rate = self.learning_rate
        with np.errstate(all="ignore"):
            square_norm, steps = self._run(learning_rate)
            self.optimizer.flush_denormals()
            self._check_finite(np.vecdot(self.network.parameters, self.network.parameters), "parameters")
            norm = np.sqrt(square_norm / steps)
        self.epochs += 1
        gradient_norm = norm if self.network.parameters.ndim > 1 else float(norm)
        return EpochReport(self.epochs, learning_rate, gradient_norm, time.perf_counter() - started)

    @property
    def learning_rate(self) -> Any:
        """The learning rate of the next epoch."""
        return self.settings.learning_rate * self.settings.schedule.factor(self.epochs) * self.plateau.factor

    def observe(self, loss: float) -> None:
        """Tell the loss that the `plateau` schedule watches, once after each epoch."""
        if self.settings.schedule.name == "plateau":
            self.plateau.update(loss)

    def adjust(self, **changes: Any) -> None:
        """Change settings from the next epoch on.

        Raises:
            ValueError: a setting that is not in `ADJUSTABLE`, or an illegal value; nothing is changed then.
        """
        refused = sorted(set(changes) - set(ADJUSTABLE))
        if refused:
            raise ValueError(
                f"cannot be adjusted while training: {', '.join(refused)}; can: {', '.join(ADJUSTABLE)}"
            )
        settings = dataclasses.replace(self.settings, **changes)
        self._check_batches(settings.batch_size)
        before = self.regularization.active, self.regularization.dropping
        self.settings = settings
        self.regularization.set(l1=settings.l1, l2=settings.l2, dropout=settings.dropout)
        if "momentum" in changes:
            self.optimizer.set_momentum(settings.momentum)
        if (self.regularization.active, self.regularization.dropping) != before or "batch_size" in changes:
            self._steps.clear()

    def snapshot(self) -> dict[str, Any]:
        """Everything that the rest of the training depends on, for `objectives.network.checkpoint.dump`."""
        return {
            "parameters": self.network.parameters.copy(),
            "running": self.network.running.copy(),
            "optimizer": self.optimizer.snapshot(),
            "rngs": [rng.bit_generator.state for rng in self.rngs],
            "plateau": dataclasses.asdict(self.plateau),
            "settings": {name: getattr(self.settings, name) for name in ADJUSTABLE},
            "epochs": self.epochs,
        }

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Continue from a `snapshot`: bit for bit the training that was never interrupted."""
        self.adjust(**snapshot["settings"])
        self.network.parameters[...] = snapshot["parameters"]
        self.network.running[...] = snapshot["running"]
        self.optimizer.restore(snapshot["optimizer"])
        for rng, state in zip(self.rngs, snapshot["rngs"], strict=True):
            rng.bit_generator.state = state
        self.plateau = ReduceOnPlateau(**snapshot["plateau"])
        self.epochs = snapshot["epochs"]

    def _run(self, learning_rate: Any) -> tuple[Any, int]:
        """All steps of an epoch; the sum of the squared gradient norms, and how many steps."""
        order = self._order()
        batches = list(self._batches(self.settings.batch_size))
        steps = self.optimizer.steps(learning_rate, sum(count for _, count in batches))
        start = done = 0
        square_norm = np.zeros(self.gradient.shape[:-1])
        for batch, count in batches:
            step, lines = self._step(batch, count)
            stop = start + batch * count
            for first in range(start, stop, batch * step.slots):
                rows = order[..., first : min(first + batch * step.slots, stop)]
                step.gather(self.X, self.onehot, rows)
                filled = rows.shape[-1] // batch
                for line in lines[:filled]:
                    next(steps)
                    for call in line:
                        call()
                done += filled
                step.update_running(filled)
                square_norm = square_norm + step.square_norms[:filled].sum(axis=0, dtype=np.float64)
                self._check_finite(square_norm, "gradients")
            start = stop
        return square_norm, done

    def _order(self) -> np.ndarray[Any, Any]:
        orders = [rng.permutation(len(self.X)) for rng in self.rngs]
        return np.stack(orders) if self.gradient.ndim > 1 else orders[0]

    def _batches(self, size: int) -> Iterator[tuple[int, int]]:
        """Pairs (batch size, how many), covering all samples."""
        count, rest = divmod(len(self.X), size)
        if rest == 1 and count and self.network.architecture.normalized_sizes:
            count, rest = count - 1, size + 1
        if count:
            yield size, count
        if rest:
            yield rest, 1

    def _check_batches(self, size: int) -> None:
        smallest = min(batch for batch, _ in self._batches(size))
        if smallest < 2 and self.network.architecture.normalized_sizes:
            raise ValueError(f"batch normalisation needs batches of at least 2; got {smallest}")

    def _step(self, batch: int, count: int) -> tuple[Step, list[list[Call]]]:
        if batch not in self._steps:
            step = Step(
                self.network,
                self.gradient,
                batch,
                bn_momentum=self.settings.bn_momentum,
                regularization=self.regularization,
                rngs=self.rngs,
                batches=count,
            )
            self._steps[batch] = step, [line + self.optimizer.line for line in step.lines]
        return self._steps[batch]

    def _check_finite(self, value: Any, what: str) -> None:
        if value.ndim == 0 and not np.isfinite(value):
            raise NotFinite(f"{what} are not finite (square norm {float(value)})")


@dataclass(slots=True)
class EarlyStopping:
    """Stops when the loss has not improved for `patience` epochs, and restores the best network seen."""

    patience: int
    best: float = math.inf
    best_epoch: int = 0
    parameters: Array | None = None
    running: Array | None = None

    def update(self, epoch: int, loss: float, network: Network) -> bool:
        """Take an epoch's loss; whether to stop."""
        if loss < self.best:
            self.best, self.best_epoch = loss, epoch
            self.parameters, self.running = network.parameters.copy(), network.running.copy()
        return epoch - self.best_epoch >= self.patience

    def restore_best(self, network: Network) -> None:
        """Give the network the parameters and running statistics of its best epoch."""
        if self.parameters is not None and self.running is not None:
            network.parameters[...] = self.parameters
            network.running[...] = self.running
