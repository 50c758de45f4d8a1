"""Own tables beside Optuna's: who works on which trial, and what each study has spent.

A running trial has a *lease*: its owner, a fencing id that grows with every take-over, how many attempts there were,
and when it expires by the database's clock. Whoever holds an older fencing id is refused, so that a worker believed
dead cannot overwrite what its successor did. A lease ends with its trial.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil
import sqlalchemy as sa
from sqlalchemy.orm import Session

from tuner.errors import LeaseLostError
from tuner.storage import Database

__all__ = ["LeaseRow", "Ledger", "Owner", "Spent", "metadata"]

metadata = sa.MetaData()

_leases = sa.Table(
    "tuner_leases",
    metadata,
    sa.Column("trial_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("study_id", sa.Integer, nullable=False, index=True),
    sa.Column("owner", sa.String(255), nullable=False),
    sa.Column("fence", sa.Integer, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("expires_at", sa.Float(53), nullable=False),
    sa.Column("epochs", sa.Integer, nullable=False),
    sa.Column("seconds", sa.Float(53), nullable=False),
)

_spent = sa.Table(
    "tuner_spent",
    metadata,
    sa.Column("study_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("trials", sa.Integer, nullable=False),
    sa.Column("ended", sa.Integer, nullable=False),
    sa.Column("epochs", sa.Integer, nullable=False),
    sa.Column("seconds", sa.Float(53), nullable=False),
)


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


@dataclass(frozen=True, slots=True)
class LeaseRow:
    """A lease as the ledger holds it. `epochs` and `seconds` are what this attempt has spent so far.

    `expires_at` is in seconds since 1970 by the database's clock; it is known of what was read.
    """

    trial_id: int
    fence: int
    attempt: int
    owner: str
    is_expired: bool
    epochs: int
    seconds: float
    expires_at: float | None = None


@dataclass(frozen=True, slots=True)
class Spent:
    """What a study has used: trials begun, those of them that have ended, epochs reported, seconds between reports."""

    trials: int = 0
    ended: int = 0
    epochs: int = 0
    seconds: float = 0.0


class Ledger:
    """The ledger in one database. Methods that take a session are part of the caller's transaction."""

    def __init__(self, database: Database, *, lease_seconds: float = 120.0) -> None:
        self.database = database
        self.lease_seconds = lease_seconds

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A transaction over Optuna's tables and the ledger's."""
        with self.database.transaction() as session:
            yield session

    def open_leases(self, session: Session, study_id: int) -> list[LeaseRow]:
        """The leases of a study's running trials, by trial id."""
        columns = _leases.c
        query = (
            sa.select(
                columns.trial_id,
                columns.fence,
                columns.attempt,
                columns.owner,
                columns.expires_at < _now(session),
                columns.epochs,
                columns.seconds,
                columns.expires_at,
            )
            .where(columns.study_id == study_id)
            .order_by(columns.trial_id)
        )
        return [LeaseRow(*row) for row in session.execute(query)]

    def grant(self, session: Session, study_id: int, trial_id: int, owner: str) -> int:
        """A first lease for a trial that was just begun; counts the trial as spent. Returns the fencing id."""
        values = {"trial_id": trial_id, "study_id": study_id, "owner": owner, "fence": 1, "attempt": 1}
        values |= {"epochs": 0, "seconds": 0.0, "expires_at": _now(session) + self.lease_seconds}
        session.execute(sa.insert(_leases).values(values))
        self._spend(session, study_id, trials=1)
        return 1

    def take_over(self, session: Session, study_id: int, lost: LeaseRow, owner: str) -> LeaseRow | None:
        """Give a lost trial to `owner`, to run again from its start; what the lost attempt spent is given back.

        Returns the new lease, or None if another was quicker.
        """
        changed = session.execute(
            sa.update(_leases)
            .where(_is_held(lost.trial_id, lost.fence))
            .values(
                owner=owner,
                fence=lost.fence + 1,
                attempt=lost.attempt + 1,
                expires_at=_now(session) + self.lease_seconds,
                epochs=0,
                seconds=0.0,
            )
        )
        if _rows(changed) == 0:
            return None
        self._spend(session, study_id, epochs=-lost.epochs, seconds=-lost.seconds)
        fence, attempt = lost.fence + 1, lost.attempt + 1
        return LeaseRow(lost.trial_id, fence, attempt, owner, is_expired=False, epochs=0, seconds=0.0)

    def renew(
        self,
        session: Session,
        study_id: int,
        trial_id: int,
        fence: int,
        *,
        epochs: int = 0,
        seconds: float = 0.0,
    ) -> None:
        """Put off the expiry and count what was spent since.

        Raises:
            LeaseLostError: the fencing id is not the lease's any more.
        """
        changed = session.execute(
            sa.update(_leases)
            .where(_is_held(trial_id, fence))
            .values(
                expires_at=_now(session) + self.lease_seconds,
                epochs=_leases.c.epochs + epochs,
                seconds=_leases.c.seconds + seconds,
            )
        )
        _require(changed, trial_id)
        if epochs or seconds:
            self._spend(session, study_id, epochs=epochs, seconds=seconds)

    def expire(self, session: Session, trial_id: int, fence: int) -> None:
        """Let a lease run out now, so that the next asker takes the trial over.

        Raises:
            LeaseLostError: the fencing id is not the lease's any more.
        """
        changed = session.execute(
            sa.update(_leases)
            .where(_is_held(trial_id, fence))
            # handed back in order, so not a failure; the fence shuts out whoever holds the lease still
            .values(expires_at=0.0, attempt=_leases.c.attempt - 1, fence=_leases.c.fence + 1)
        )
        _require(changed, trial_id)

    def end(
        self,
        session: Session,
        study_id: int,
        trial_id: int,
        fence: int,
        *,
        epochs: int = 0,
        seconds: float = 0.0,
    ) -> None:
        """End a lease with its trial, and count what was spent since the last report.

        Raises:
            LeaseLostError: the fencing id is not the lease's any more.
        """
        changed = session.execute(sa.delete(_leases).where(_is_held(trial_id, fence)))
        _require(changed, trial_id)
        self._spend(session, study_id, ended=1, epochs=epochs, seconds=seconds)

    def spent(self, session: Session, study_id: int) -> Spent:
        """What the study has used so far."""
        columns = _spent.c
        query = sa.select(columns.trials, columns.ended, columns.epochs, columns.seconds)
        row = session.execute(query.where(columns.study_id == study_id)).first()
        return Spent(*row) if row else Spent()

    def _spend(self, session: Session, study_id: int, **more: float) -> None:
        columns = _spent.c
        changed = session.execute(
            sa.update(_spent)
            .where(columns.study_id == study_id)
            .values({name: columns[name] + amount for name, amount in more.items()})
        )
        if _rows(changed) == 0:  # the first ask of the study; it holds the study's lock
            values = {"study_id": study_id, "trials": 0, "ended": 0, "epochs": 0, "seconds": 0.0}
            session.execute(sa.insert(_spent).values(values | more))


def _is_held(trial_id: int, fence: int) -> sa.ColumnElement[bool]:
    """The row of a lease, if its fencing id is this one still."""
    return sa.and_(_leases.c.trial_id == trial_id, _leases.c.fence == fence)


def _now(session: Session) -> sa.ColumnElement[float]:
    """The database's clock, in seconds since 1970."""
    if session.get_bind().dialect.name == "sqlite":
        return (sa.func.julianday("now") - 2440587.5) * 86400.0
    return sa.cast(sa.extract("epoch", sa.func.clock_timestamp()), sa.Float(53))


def _rows(result: sa.Result[tuple[()]]) -> int:
    assert isinstance(result, sa.CursorResult)
    return result.rowcount


def _require(result: sa.Result[tuple[()]], trial_id: int) -> None:
    if _rows(result) == 0:
        raise LeaseLostError(
            f"the lease on trial id {trial_id} is lost: it has ended, or another took it over"
        )
