"""Going on where an earlier attempt at a trial was: the checkpoint that it left, and what it had reported by then.

What an attempt has reported is forgotten, and given back to the budget, when its worker is lost. So a checkpoint that
is left for the next attempt carries the values up to its epoch: they are reported again, and the trial that was lost
has the same reports, and has cost the same, as one that was not.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from objectives.epoch import Epoch
from tuner.ask_tell import Lease
from tuner.errors import LeaseLostError, TunerError
from tuner.worker_side import WorkerSide

__all__ = ["LARGEST", "Keeper", "Resumption", "find_resumption"]

_log = logging.getLogger(__name__)

LARGEST = 16 * 2**20
"""Bytes of a checkpoint that is kept; a larger training begins at its start again."""

MAGIC = b"tuner-resumption-1 "
"""Tells such a checkpoint from the bare network of a population's segment."""


@dataclass(frozen=True, slots=True)
class Resumption:
    """Where an attempt goes on: after the last epoch of `values`, with the training's state `data`.

    `seconds` are what the training took until then, `metrics` those of that epoch.
    """

    values: Mapping[int, float]
    seconds: float
    data: bytes
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def epoch(self) -> int:
        """The last that was trained."""
        return max(self.values)

    @property
    def last(self) -> Epoch:
        """The last that was trained, as it was yielded."""
        return Epoch(self.epoch, self.values[self.epoch], self.metrics)

    def pack(self) -> bytes:
        """As it is kept: a line of JSON, then the training's state."""
        values = [[epoch, repr(value)] for epoch, value in sorted(self.values.items())]
        metrics = {name: repr(float(value)) for name, value in self.metrics.items()}
        head = json.dumps({"values": values, "seconds": self.seconds, "metrics": metrics}).encode()
        return MAGIC + head + b"\n" + self.data

    @classmethod
    def unpack(cls, packed: bytes) -> Resumption | None:
        """What `pack` made; None of anything else, so that the training begins at its start."""
        if not packed.startswith(MAGIC):
            return None
        head, _, data = packed.removeprefix(MAGIC).partition(b"\n")
        try:
            known: dict[str, Any] = json.loads(head)
            values = {int(epoch): float(value) for epoch, value in known["values"]}
            metrics = {name: float(value) for name, value in known.get("metrics", {}).items()}
            return cls(values, float(known["seconds"]), data, metrics) if values else None
        except (ValueError, KeyError, TypeError, AttributeError):
            return None


def find_resumption(ask_tell: WorkerSide, lease: Lease) -> Resumption | None:
    """What earlier attempts at a trial have left; None on the first."""
    if lease.fence == 1:
        return None
    kept = ask_tell.checkpoint(lease.number)
    return None if kept is None else Resumption.unpack(kept[1])


class Keeper:
    """Leaves checkpoints of a training for the next attempt at its trial, where its objective gives any.

    Args:
        ask_tell: the study.
        lease: of the trial.
        every: at most one in so many seconds; None: none at all.
    """

    def __init__(self, ask_tell: WorkerSide, lease: Lease, every: float | None) -> None:
        self._ask_tell, self._lease, self._every = ask_tell, lease, every
        self._kept = time.monotonic()
        self._seconds = 0.0

    @property
    def is_on(self) -> bool:
        """Whether checkpoints are kept at all."""
        return self._every is not None

    @property
    def _name(self) -> str:
        return f"{self._ask_tell.definition.name} trial {self._lease.number}"

    def spent(self, seconds: float) -> None:
        """The training has gone on for so long."""
        self._seconds += seconds

    def after(self, epoch: Epoch) -> None:
        """An epoch was reported, and the training goes on: keep it if it is time to."""
        if self._every is not None and time.monotonic() - self._kept >= self._every:
            self.keep(epoch)

    def keep(self, epoch: Epoch) -> None:
        """Leave a checkpoint now."""
        if self._every is None or epoch.checkpoint is None or epoch.number not in self._lease.values:
            return
        values, data = dict(self._lease.values), epoch.checkpoint()
        packed = Resumption(values, self._seconds, data, epoch.metrics).pack()
        if len(packed) > LARGEST:
            _log.warning(
                "%s: no checkpoints are kept, as one of %d bytes is too large (at most %d)",
                self._name,
                len(packed),
                LARGEST,
            )
            self._every = None
            return
        try:
            self._ask_tell.save_checkpoint(self._lease, epoch.number, packed)
        except LeaseLostError:
            raise
        except TunerError as error:  # the training itself is well
            _log.warning("%s: a checkpoint is not kept: %s", self._name, error)
        self._kept = time.monotonic()
