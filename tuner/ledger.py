"""Who works on which trial, and what each study has spent: the tables of `tuner.tables` at work.

A running trial has a *lease*: its owner, a fencing id that grows with every lease on the trial, how many attempts there
were, and when it expires by the database's clock. Whoever holds an older fencing id is refused, so that a worker
believed dead cannot overwrite what its successor did. A lease that has ended keeps how, and what was told: the same
request, report or tell again gets the same answer.

Rows are locked in one order everywhere, so that nothing waits in a circle: study, spent, lease, trial.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, cast

import psutil
import sqlalchemy as sa
from sqlalchemy.orm import Session

from tuner.errors import ConflictError, LeaseLostError
from tuner.storage import Database, Mode
from tuner.tables import CheckpointRow, CommandRow, LeaseRow, SpentRow, metadata

__all__ = ["Command", "Ending", "HeldLease", "Ledger", "Owner", "Spent"]


@dataclass(frozen=True, slots=True)
class Owner:
    """A process that works on trials: host, process id, and when it started, as ids are used again."""

    host: str
    pid: int
    started: float

    @classmethod
    def here(cls) -> Owner:
        """This process."""
        return cls(_host(), os.getpid(), _started(os.getpid()) or 0.0)

    @classmethod
    def parse(cls, text: str) -> Owner | None:
        """What `str` wrote; None where it is of another kind."""
        try:
            host, pid, started = text.rsplit("/", 2)
            return cls(host, int(pid), float(started))
        except ValueError:
            return None

    def __str__(self) -> str:
        return f"{self.host}/{self.pid}/{self.started!r}"

    def is_gone(self) -> bool:
        """True only if it was a process of this host that is no more; elsewhere one cannot know."""
        return self.host == _host() and _started(self.pid) != self.started


@cache
def _host() -> str:
    """This host as far as its process ids reach: cloned machines and containers may share a name."""
    parts = [socket.gethostname()[:100]]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").stat().st_ino))
    return ":".join(parts)


def _started(pid: int) -> float | None:
    """When a living process started; on Linux in ticks since the boot, which no change of the clock moves."""
    if Path("/proc/self/stat").exists():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return (
                None if fields[0] == "Z" else float(fields[19])
            )  # a zombie is dead, its parent only has not noticed
        except (FileNotFoundError, ProcessLookupError):
            return None
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None


class Ending(StrEnum):
    """How a lease ended."""

    TOLD = "told"
    LOST = "lost"
    """It expired, or its owner is gone; the trial waits for another, unless it was the last attempt."""
    RELEASED = "released"
    """Given back in order; the trial waits for another."""
    BY_HAND = "by hand"
    """Somebody ended the trial in the dashboard, say; the lease ran out after that."""


@dataclass(frozen=True, slots=True)
class HeldLease:
    """A lease as the ledger holds it. `epochs` and `seconds` are what this attempt has spent so far."""

    trial_id: int
    fence: int
    attempt: int
    owner: str
    expires_in: float
    """Seconds from now; negative once it has expired."""
    epochs: int
    seconds: float

    @property
    def is_lost(self) -> bool:
        """Whether nobody is working on the trial any more."""
        owner = Owner.parse(self.owner)
        return self.expires_in < 0 or (owner is not None and owner.is_gone())


@dataclass(frozen=True, slots=True)
class Spent:
    """What a study has used: trials begun, those of them that have ended, epochs reported, seconds between reports."""

    trials: int = 0
    ended: int = 0
    epochs: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Command:
    """What a person asks of a running trial. `values` are new values by name, of an `adjust`; empty for a `stop`."""

    kind: str
    values: Mapping[str, Any]
    by: str


# plain tables: what is written and read here are rows, not objects that a session keeps
_LEASES, _BOOKS, _COMMANDS, _CHECKPOINTS = (
    cast("sa.Table", row.__table__) for row in (LeaseRow, SpentRow, CommandRow, CheckpointRow)
)
_SPENT = (_BOOKS.c.trials, _BOOKS.c.ended, _BOOKS.c.epochs, _BOOKS.c.seconds)


class Ledger:
    """The ledger in one database. Methods that take a session are part of the caller's transaction."""

    def __init__(self, database: Database, *, lease_seconds: float = 120.0) -> None:
        self.database = database
        self.lease_seconds = lease_seconds

    def transaction(self, mode: Mode = Mode.DURABLE) -> AbstractContextManager[Session]:
        """A transaction over Optuna's tables and the ledger's."""
        return self.database.transaction(mode)

    def open_study(self, session: Session, study_id: int) -> None:
        """Begin the books of a new study, and forget those of a deleted one that had its id."""
        for table in metadata.tables.values():
            if "study_id" in table.c:
                session.execute(sa.delete(table).where(table.c.study_id == study_id))
        session.execute(sa.insert(_BOOKS).values(study_id=study_id))

    def open_leases(self, session: Session, study_id: int, *, trial_id: int | None = None) -> list[HeldLease]:
        """The leases of a study's running trials, by trial id; or only that of one trial."""
        query = (
            sa.select(
                _LEASES.c.trial_id,
                _LEASES.c.fence,
                _LEASES.c.attempt,
                _LEASES.c.owner,
                _LEASES.c.expires_at - self._now(),
                _LEASES.c.epochs,
                _LEASES.c.seconds,
            )
            .where(_LEASES.c.study_id == study_id, _LEASES.c.ending.is_(None))
            .order_by(_LEASES.c.trial_id)
        )
        if trial_id is not None:
            query = query.where(_LEASES.c.trial_id == trial_id)
        return [HeldLease(*row) for row in session.execute(query)]

    def granted_to(self, session: Session, study_id: int, request_id: str) -> tuple[int, int, int] | None:
        """Trial id, fence and attempt of the lease that a request was granted; None if it was granted none."""
        query = sa.select(_LEASES.c.trial_id, _LEASES.c.fence, _LEASES.c.attempt)
        which = (_LEASES.c.study_id == study_id, _LEASES.c.request_id == request_id)
        row = session.execute(query.where(*which)).one_or_none()
        return None if row is None else cast("tuple[int, int, int]", tuple(row))

    def last_lease(
        self, session: Session, study_id: int, trial_id: int
    ) -> tuple[int, int, Ending | None] | None:
        """Fence, attempt and ending (None: it is open) of the last lease on a trial; None if it never had one."""
        query = sa.select(_LEASES.c.fence, _LEASES.c.attempt, _LEASES.c.ending)
        which = (_LEASES.c.study_id == study_id, _LEASES.c.trial_id == trial_id)
        row = session.execute(query.where(*which).order_by(_LEASES.c.fence.desc()).limit(1)).one_or_none()
        return None if row is None else (row.fence, row.attempt, row.ending and Ending(row.ending))

    def grant(
        self,
        session: Session,
        study_id: int,
        trial_id: int,
        owner: str,
        request_id: str,
        *,
        fence: int = 1,
        attempt: int = 1,
    ) -> None:
        """Lease a trial that was just set running. Commands that its last holder did not hear wait for this one."""
        now = self._now()
        waiting = sa.select(sa.func.count()).where(
            _COMMANDS.c.study_id == study_id,
            _COMMANDS.c.trial_id == trial_id,
            _COMMANDS.c.delivered_fence.is_(None),
        )
        session.execute(
            sa.insert(_LEASES).values(
                study_id=study_id,
                trial_id=trial_id,
                fence=fence,
                attempt=attempt,
                owner=owner,
                request_id=request_id,
                granted_at=now,
                expires_at=now + self.lease_seconds,
                commands=0 if fence == 1 else waiting.scalar_subquery(),
            )
        )

    def renew(
        self,
        session: Session,
        study_id: int,
        trial_id: int,
        fence: int,
        *,
        epochs: int = 0,
        seconds: float = 0.0,
    ) -> int:
        """Put off the expiry and note what this attempt spent since. Returns how many commands wait for a report.

        Raises:
            LeaseLostError: the lease has ended.
        """
        changed = session.execute(
            sa.update(_LEASES)
            .where(*_is_open(study_id, trial_id, fence))
            .values(
                expires_at=self._now() + self.lease_seconds,
                epochs=_LEASES.c.epochs + epochs,
                seconds=_LEASES.c.seconds + seconds,
            )
            .returning(_LEASES.c.commands)
        ).one_or_none()
        if changed is None:
            raise self._lost(session, study_id, trial_id, fence)
        return int(changed.commands)

    def end(
        self,
        session: Session,
        study_id: int,
        trial_id: int,
        fence: int,
        ending: Ending,
        *,
        told: Any = None,
        epochs: int = 0,
        seconds: float = 0.0,
    ) -> None:
        """End a lease.

        Raises:
            LeaseLostError: it has ended already.
        """
        changed = session.execute(
            sa.update(_LEASES)
            .where(*_is_open(study_id, trial_id, fence))
            .values(
                ended_at=self._now(),
                ending=ending.value,
                told=None if told is None else json.dumps(told),
                epochs=_LEASES.c.epochs + epochs,
                seconds=_LEASES.c.seconds + seconds,
            )
            .returning(_LEASES.c.trial_id)
        ).one_or_none()
        if changed is None:
            raise self._lost(session, study_id, trial_id, fence)

    def was_told(self, session: Session, study_id: int, trial_id: int, fence: int, told: Any) -> bool:
        """Whether this lease ended with exactly this told; False if it has not ended with a tell.

        Raises:
            ConflictError: something else was told.
        """
        query = sa.select(_LEASES.c.told).where(
            *_is(study_id, trial_id, fence), _LEASES.c.ending == Ending.TOLD
        )
        before = session.scalar(query)
        if before is None:
            return False
        if before != json.dumps(told):
            raise ConflictError(f"trial id {trial_id} was told {before} before; now {json.dumps(told)}")
        return True

    def history(self, session: Session, study_id: int, trial_id: int) -> list[dict[str, Any]]:
        """All attempts at a trial in order; times in seconds since 1970."""
        columns = (
            _LEASES.c.owner,
            _LEASES.c.granted_at,
            _LEASES.c.ended_at,
            _LEASES.c.ending,
            _LEASES.c.epochs,
        )
        which = (_LEASES.c.study_id == study_id, _LEASES.c.trial_id == trial_id)
        return [
            dict(row._mapping)
            for row in session.execute(sa.select(*columns).where(*which).order_by(_LEASES.c.fence))
        ]

    def spend(self, session: Session, study_id: int, **more: float) -> Spent:
        """Add to what a study has used, and return the sum. The row stays locked until the transaction ends."""
        query = sa.update(_BOOKS).where(_BOOKS.c.study_id == study_id).returning(*_SPENT)
        added = {name: _BOOKS.c[name] + amount for name, amount in more.items()}
        row = session.execute(query.values(added)).one_or_none()
        if row is None:  # a study from before there were books, at its first ask
            session.execute(sa.insert(_BOOKS).values(study_id=study_id))
            return self.spend(session, study_id, **more)
        return Spent(*row)

    def spent(self, session: Session, study_id: int) -> Spent:
        """What the study has used so far."""
        row = session.execute(sa.select(*_SPENT).where(_BOOKS.c.study_id == study_id)).one_or_none()
        return Spent(*row) if row else Spent()

    def command(self, session: Session, study_id: int, trial_id: int, command: Command) -> bool:
        """Leave a command for the next report of a trial; False if nobody has a lease on it."""
        session.execute(
            sa.insert(_COMMANDS).values(
                study_id=study_id,
                trial_id=trial_id,
                kind=command.kind,
                values_json=json.dumps(dict(command.values)),
                by=command.by,
                asked_at=self._now(),
            )
        )
        changed = session.execute(
            sa.update(_LEASES)
            .where(_LEASES.c.study_id == study_id, _LEASES.c.trial_id == trial_id, _LEASES.c.ending.is_(None))
            .values(commands=_LEASES.c.commands + 1)
            .returning(_LEASES.c.fence)
        ).one_or_none()
        return changed is not None

    def deliver(
        self, session: Session, study_id: int, trial_id: int, fence: int, epoch: int
    ) -> list[Command]:
        """The commands that wait for a trial, oldest first; they count as delivered with the report of `epoch`."""
        which = (_COMMANDS.c.study_id == study_id, _COMMANDS.c.trial_id == trial_id)
        session.execute(
            sa.update(_COMMANDS)
            .where(*which, _COMMANDS.c.delivered_fence.is_(None))
            .values(delivered_fence=fence, delivered_epoch=epoch)
        )
        session.execute(sa.update(_LEASES).where(*_is(study_id, trial_id, fence)).values(commands=0))
        return self.delivered(session, study_id, trial_id, fence, epoch)

    def waiting(self, session: Session, study_id: int, trial_id: int) -> list[Command]:
        """The commands that wait for a trial's next report, oldest first."""
        return self._commands(session, study_id, trial_id, _COMMANDS.c.delivered_fence.is_(None))

    def delivered(
        self, session: Session, study_id: int, trial_id: int, fence: int, epoch: int
    ) -> list[Command]:
        """The commands that were delivered with the report of `epoch`, oldest first."""
        columns = _COMMANDS.c
        which = (columns.delivered_fence == fence, columns.delivered_epoch == epoch)
        return self._commands(session, study_id, trial_id, *which)

    def _commands(
        self, session: Session, study_id: int, trial_id: int, *which: sa.ColumnElement[bool]
    ) -> list[Command]:
        columns = _COMMANDS.c
        query = (
            sa.select(columns.kind, columns.values_json, columns.by)
            .where(columns.study_id == study_id, columns.trial_id == trial_id, *which)
            .order_by(columns.command_id)
        )
        return [Command(kind, json.loads(values), by) for kind, values, by in session.execute(query)]

    def save_checkpoint(
        self,
        session: Session,
        study_id: int,
        trial_id: int,
        epoch: int,
        data: bytes,
        *,
        keep: Sequence[int] = (),
    ) -> None:
        """Keep a training's state after an epoch, instead of all others of the trial but those of the epochs `keep`."""
        which = (_CHECKPOINTS.c.study_id == study_id, _CHECKPOINTS.c.trial_id == trial_id)
        session.execute(
            sa.delete(_CHECKPOINTS).where(*which, _CHECKPOINTS.c.epoch.not_in(set(keep) - {epoch}))
        )
        row = {"study_id": study_id, "trial_id": trial_id, "epoch": epoch, "data": data}
        session.execute(sa.insert(_CHECKPOINTS).values(row))

    def checkpoint(
        self, session: Session, study_id: int, trial_id: int, epoch: int | None = None
    ) -> tuple[int, bytes] | None:
        """Epoch and state of a checkpoint of a trial, the latest by default; None if there is none."""
        query = sa.select(_CHECKPOINTS.c.epoch, _CHECKPOINTS.c.data).where(
            _CHECKPOINTS.c.study_id == study_id, _CHECKPOINTS.c.trial_id == trial_id
        )
        if epoch is not None:
            query = query.where(_CHECKPOINTS.c.epoch == epoch)
        row = session.execute(query.order_by(_CHECKPOINTS.c.epoch.desc()).limit(1)).one_or_none()
        return None if row is None else (row.epoch, row.data)

    def _lost(self, session: Session, study_id: int, trial_id: int, fence: int) -> LeaseLostError:
        """Why a lease is not open any more, in words."""
        ending = session.scalar(sa.select(_LEASES.c.ending).where(*_is(study_id, trial_id, fence)))
        how = "there never was one" if ending is None else f"it ended: {ending}"
        return LeaseLostError(f"the lease {fence} on trial id {trial_id} is lost ({how})")

    def _now(self) -> sa.ColumnElement[float]:
        """The database's clock, in seconds since 1970."""
        if self.database.is_sqlite:
            return (sa.func.julianday("now") - 2440587.5) * 86400.0
        return sa.cast(sa.extract("epoch", sa.func.clock_timestamp()), sa.Float(53))


def _is(study_id: int, trial_id: int, fence: int) -> tuple[sa.ColumnElement[bool], ...]:
    return (_LEASES.c.study_id == study_id, _LEASES.c.trial_id == trial_id, _LEASES.c.fence == fence)


def _is_open(study_id: int, trial_id: int, fence: int) -> tuple[sa.ColumnElement[bool], ...]:
    return (*_is(study_id, trial_id, fence), _LEASES.c.ending.is_(None))
