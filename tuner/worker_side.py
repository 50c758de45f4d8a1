"""What a worker needs of ask and tell: the same code runs a trial of a database's study and one of a service's."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, Protocol

from optuna.trial import FrozenTrial, TrialState

from tuner.ask_tell import Lease, Reply, Values
from tuner.definition import StudyDefinition
from tuner.samplers import Segment

__all__ = ["WorkerSide"]


class WorkerSide(Protocol):
    """One study, seen by whoever runs its trials. `tuner.ask_tell.AskTell` tells what each method does and raises."""

    @property
    def definition(self) -> StudyDefinition:
        """What the study is."""

    @property
    def lease_seconds(self) -> float:
        """How long a lease lasts that is not renewed."""

    def report(self, lease: Lease, epoch: int, value: float, *, seconds: float = 0.0) -> Reply:
        """Record the value after an epoch, renew the lease, and say whether to go on."""

    def report_many(self, lease: Lease, values: Mapping[int, float], *, seconds: float = 0.0) -> Reply:
        """Record values by epoch, renew the lease, and say whether to go on."""

    def heartbeat(self, lease: Lease) -> Reply:
        """Renew the lease without news."""

    def reap(self) -> int:
        """End the leases of lost workers; how many there were."""

    def tell(
        self,
        lease: Lease,
        state: TrialState,
        values: Values | None,
        attrs: Mapping[str, Any] | None = None,
        *,
        seconds: float = 0.0,
    ) -> TrialState:
        """End the trial with its value, or values, and attributes."""

    def release(self, lease: Lease) -> None:
        """Give the trial back unfinished."""

    def user_attrs(self, lease: Lease) -> dict[str, Any]:
        """The user attributes of a trial, earlier attempts' included."""

    def set_attrs(self, lease: Lease, attrs: Mapping[str, Any]) -> None:
        """Set user attributes of a running trial."""

    def segment(self, lease: Lease) -> Segment | None:
        """The trial's place in its population; None where it is a whole training."""

    def save_checkpoint(self, lease: Lease, epoch: int, data: bytes) -> None:
        """Keep the training's state after `epoch`, instead of an earlier one."""

    def checkpoint(self, number: int) -> tuple[int, bytes] | None:
        """Epoch and state of the last checkpoint of trial `number`; None if there is none."""

    def drop_checkpoints(self, needed: Callable[[Sequence[FrozenTrial]], Container[int]]) -> None:
        """Delete checkpoints of ended trials."""
