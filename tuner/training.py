"""An objective's training, epoch by epoch, held to its contract; adjustments go in between two epochs."""

from __future__ import annotations

import logging
import math
import operator
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Self

from objectives.epoch import Diverged, Epoch, Epochs, Objective, Seed

__all__ = ["Training", "TrainingError", "planned_epochs"]

_log = logging.getLogger(__name__)


def planned_epochs(objective: Objective, params: Mapping[str, Any]) -> int | None:
    """How many epochs a training has, where its hyperparameters say so."""
    defaults = {h.name: h.default for h in objective.hyperparameters}
    planned = params.get("epochs", defaults.get("epochs"))
    return planned if isinstance(planned, int) else None


class NoNumberError(Exception):
    """What a function returned is no number: its trial has failed, and the next one may do better."""


class TrainingError(Exception):
    """What an objective raised, apart from what our own code around it may raise."""

    def __init__(self, cause: Exception | SystemExit) -> None:
        super().__init__(cause)
        self.cause = cause

    @property
    def is_error(self) -> bool:
        """Whether it was an exception rather than numbers that diverged, or were none."""
        return not isinstance(self.cause, (Diverged, NoNumberError))

    @property
    def failure(self) -> str:
        """The reason in one line."""
        return f"{type(self.cause).__name__}: {self.cause}" if self.is_error else str(self.cause)

    @property
    def attrs(self) -> dict[str, str]:
        """What is kept of it on the trial."""
        if not self.is_error:
            return {"failure": self.failure}
        kind = type(self.cause).__name__
        return {
            "failure": self.failure,
            "error_type": kind,
            "traceback": "".join(traceback.format_exception(self.cause)),
        }


class Training:
    """One training. Close it at the end, for instance with `with`.

    Args:
        objective: what to train.
        params: the hyperparameters it begins with, fixed ones included.
        seed: of the study and the trial.
        resume: a checkpoint to go on from.
        epoch: the epoch after which the checkpoint was taken.
    """

    def __init__(
        self,
        objective: Objective,
        params: Mapping[str, Any],
        seed: Seed,
        *,
        resume: bytes | None = None,
        epoch: int = 0,
    ) -> None:
        self.objective, self.epoch = objective, epoch
        self._begin: Callable[[], Epochs] = lambda: objective.evaluate(params, seed=seed, resume=resume)
        self._epochs: Epochs | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def advance(self, adjustment: Mapping[str, Any] | None = None) -> Epoch | None:
        """Train one epoch, adjusted first; None at the end of the training.

        There is nothing to adjust before the first epoch: a training begins with its parameters.

        Raises:
            TrainingError: the objective raised, or broke its contract; the training is over then.
        """
        try:
            while True:
                epoch = self._next(adjustment or None)
                if epoch is None:
                    if self.epoch == 0:
                        raise ValueError(f"objective {self.objective.name!r} yielded no epoch")
                    return None
                if epoch.number == self.epoch:  # a checkpoint of the last epoch yields that one again
                    adjustment = None
                    continue
                self.epoch = epoch.number
                return epoch
        except (Exception, SystemExit) as error:
            self.close()
            raise TrainingError(error) from error

    def close(self) -> None:
        """End the training. What it raises then is logged: nothing depends on it any more.

        One that another thread is training cannot be ended from here; it ends with that thread.
        """
        try:
            if self._epochs is not None and not getattr(self._epochs, "gi_running", False):
                self._epochs.close()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a training raises
            _log.warning("a training raised while it was closed", exc_info=error)

    def _next(self, adjustment: Mapping[str, Any] | None) -> Epoch | None:
        try:
            if self._epochs is None:
                assert not adjustment
                self._epochs = self._begin()
                return _checked(next(self._epochs), self.epoch, resumed=self.epoch > 0)
            return _checked(self._epochs.send(adjustment), self.epoch)
        except StopIteration:
            return None


def _checked(epoch: Epoch, last: int, *, resumed: bool = False) -> Epoch:
    """The epoch in plain numbers, if it keeps to the contract."""
    number, value = operator.index(epoch.number), float(epoch.value)
    if not (last < number < 2**31 or (resumed and number == last)):
        raise ValueError(f"epoch numbers must grow from 1; got {number} after {last}")
    if math.isnan(value):
        raise Diverged(number, "the value is not a number")
    metrics = {}
    for name, metric in epoch.metrics.items():
        if not isinstance(name, str) or not 0 < len(name) <= 200 or "\0" in name:
            raise ValueError(f"a metric's name is 1 to 200 characters without NUL; got {name!r}")
        metrics[name] = float(metric)
    return Epoch(number, value, metrics, epoch.checkpoint)
