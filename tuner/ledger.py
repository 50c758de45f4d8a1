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
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, cast

import psutil
import sqlalchemy as sa
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.functions import FunctionElement

from tuner.errors import ConflictError, LeaseLostError
from tuner.storage import MANY, Database, Mode
from tuner.tables import CheckpointRow, CommandRow, LeaseRow, SpentRow, metadata

__all__ = [
    "ARCHIVED",
    "COMPARISON",
    "DEFINITION",
    "ENDED_BY_HAND",
    "Candidate",
    "Command",
    "Ending",
    "HeldLease",
    "Ledger",
    "Owner",
    "Spent",
    "StudyState",
    "Unattended",
]

ARCHIVED = "tuner:archived"
"""The study's attribute that says that it was archived."""

COMPARISON = "tuner:comparison"
"""The attribute of a comparison's studies that names it."""

DEFINITION = "tuner:definition"
"""The attribute that holds the document a study was made from."""


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
        if self.host != _host():
            return False
        try:
            return _started(self.pid) != self.started
        except PermissionError:  # another user's, which this system hides
            return False


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
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 0)  # a process that is there, and not to be seen: PermissionError
            return None
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None


ENDED_BY_HAND = "it has ended already, perhaps by hand"


class StudyState(StrEnum):
    """Whether a study hands out trials."""

    OPEN = "open"
    PAUSED = "paused"
    """No trial begins; those that run go on."""
    STOPPED = "stopped"
    """No trial begins, and those that ran were to end with their next report."""
    ARCHIVED = "archived"
    """Out of the way: no trial begins."""


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
        return self.expires_in < 0 or self.is_gone

    @property
    def is_gone(self) -> bool:
        """Whether its owner is a process of this host that is no more."""
        owner = Owner.parse(self.owner)
        return owner is not None and owner.is_gone()


@dataclass(frozen=True, slots=True)
class Spent:
    """What a study has used: trials begun, those of them that have ended, epochs reported, seconds between reports.

    `state` is that of the study when this was read: whoever looks what is left has to know that as well.
    """

    trials: int = 0
    ended: int = 0
    epochs: int = 0
    seconds: float = 0.0
    state: StudyState = StudyState.OPEN


@dataclass(frozen=True, slots=True)
class Candidate:
    """A study that may have trials for a worker. `is_busy`: a trial of it is in somebody's hands."""

    study_id: int
    name: str
    state: StudyState
    is_busy: bool
    is_member: bool
    """Whether it is a comparison's."""


@dataclass(frozen=True, slots=True)
class Unattended:
    """An open study of which nobody has a trial in hand. It may be finished: only its definition tells."""

    definition: Any
    """As the database has it: a JSON document."""
    spent: Spent
    must_run_again: bool
    """Whether a trial that was begun waits."""


@dataclass(frozen=True, slots=True)
class Command:
    """What a person asks of a running trial. `values` are new values by name, of an `adjust`; empty for a `stop`."""

    kind: str
    values: Mapping[str, Any]
    by: str
    key: str = field(default_factory=lambda: uuid.uuid4().hex, compare=False)


class _Now(FunctionElement[float]):
    """The database's clock, in seconds since 1970."""

    type = sa.Float(53)
    inherit_cache = True


@compiles(_Now, "sqlite")
def _sqlite_now(_element: _Now, _compiler: Any, **_: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(_Now, "postgresql")
def _postgresql_now(_element: _Now, _compiler: Any, **_: Any) -> str:
    return "CAST(EXTRACT(epoch FROM clock_timestamp()) AS DOUBLE PRECISION)"


# Statements are made once: that takes ten times as long as to run one. They speak of plain tables, as what they write
# and read is rows and not objects that a session keeps.
_LEASES, _BOOKS, _COMMANDS, _CHECKPOINTS = (
    cast("sa.Table", row.__table__) for row in (LeaseRow, SpentRow, CommandRow, CheckpointRow)
)
_NOW, _given = _Now(), sa.bindparam
_LEASE, _COMMAND = _LEASES.c, _COMMANDS.c
_TRIAL = cast("sa.Table", models.TrialModel.__table__).c
_STUDY = cast("sa.Table", models.StudyModel.__table__).c
_STUDY_ATTRS = cast("sa.Table", models.StudyUserAttributeModel.__table__)
_STUDY_ATTR = _STUDY_ATTRS.c

_OF_TRIAL = (_LEASE.study_id == _given("study"), _LEASE.trial_id == _given("trial"))
_THIS = (*_OF_TRIAL, _LEASE.fence == _given("the_fence"))
_OPEN = _LEASE.ending.is_(None)
_OPEN_LEASES = (
    sa.select(
        _LEASE.trial_id,
        _LEASE.fence,
        _LEASE.attempt,
        _LEASE.owner,
        _LEASE.expires_at - _NOW,
        _LEASE.epochs,
        _LEASE.seconds,
    )
    .where(_LEASE.study_id == _given("study"), _OPEN)
    .order_by(_LEASE.trial_id)
)
_HELD = _OPEN_LEASES.where(
    _LEASE.trial_id == _given("trial"), _LEASE.fence == _given("the_fence")
).with_for_update()
_GRANTED = sa.select(_LEASE.trial_id, _LEASE.fence, _LEASE.attempt, _LEASE.ending).where(
    _LEASE.study_id == _given("study"), _LEASE.request_id == _given("request")
)
_LAST = (
    sa.select(_LEASE.fence, _LEASE.attempt, _LEASE.ending)
    .where(*_OF_TRIAL)
    .order_by(_LEASE.fence.desc())
    .limit(1)
)
_HISTORY = (
    sa.select(_LEASE.owner, _LEASE.granted_at, _LEASE.ended_at, _LEASE.ending, _LEASE.epochs)
    .where(*_OF_TRIAL)
    .order_by(_LEASE.fence)
)
_GRANT = sa.insert(_LEASES).values(granted_at=_NOW, expires_at=_NOW + _given("lease_seconds"))
_RENEW = (
    sa.update(_LEASES)
    .where(
        *_THIS,
        _OPEN,
        sa.exists().where(_TRIAL.trial_id == _LEASE.trial_id, _TRIAL.state == TrialState.RUNNING),
    )
    .values(
        expires_at=_NOW + _given("lease_seconds"),
        epochs=_LEASE.epochs + _given("more_epochs"),
        seconds=_LEASE.seconds + _given("more_seconds"),
    )
    .returning(_LEASE.commands)
)
_ADOPT = sa.update(_LEASES).where(*_THIS).values(owner=_given("who"))
_END = (
    sa.update(_LEASES)
    .where(*_THIS, _OPEN)
    .values(
        ended_at=_NOW,
        ending=_given("how"),
        told=_given("what"),
        epochs=_LEASE.epochs + _given("more_epochs"),
        seconds=_LEASE.seconds + _given("more_seconds"),
    )
    .returning(_LEASE.trial_id)
)
_ENDING = sa.select(_LEASE.ending, _LEASE.told).where(*_THIS)
_ATTEMPT = sa.select(_LEASE.attempt).where(*_THIS)
_TO_RUN_AGAIN = (
    sa.select(_TRIAL.trial_id)
    .where(
        _TRIAL.study_id == _given("study"),
        _TRIAL.state == TrialState.WAITING,
        sa.exists().where(_LEASE.study_id == _TRIAL.study_id, _LEASE.trial_id == _TRIAL.trial_id),
    )
    .limit(1)
)
_NOT_BEGUN = sa.select(sa.func.count(_TRIAL.trial_id)).where(
    _TRIAL.study_id == _given("study"),
    _TRIAL.state == TrialState.WAITING,
    ~sa.exists().where(_LEASE.study_id == _TRIAL.study_id, _LEASE.trial_id == _TRIAL.trial_id),
)
_OVERDUE = sa.select(_LEASE.study_id).where(_OPEN, _LEASE.expires_at < _NOW).distinct()
_HOLDER = (
    sa.update(_LEASES).where(*_OF_TRIAL, _OPEN).values(commands=_LEASE.commands + 1).returning(_LEASE.fence)
)
_HEARD = sa.update(_LEASES).where(*_THIS).values(commands=0)
_IS_ARCHIVED = sa.exists().where(
    _STUDY_ATTR.study_id == _BOOKS.c.study_id, _STUDY_ATTR.key == ARCHIVED, _STUDY_ATTR.value_json == "true"
)
_SPENT = sa.select(
    _BOOKS.c.trials,
    _BOOKS.c.ended,
    _BOOKS.c.epochs,
    _BOOKS.c.seconds,
    sa.case((_IS_ARCHIVED, StudyState.ARCHIVED.value), else_=_BOOKS.c.state).label("state"),
).where(_BOOKS.c.study_id == _given("study"))
_SPEND = (
    sa.update(_BOOKS)
    .where(_BOOKS.c.study_id == _given("study"))
    .values(
        {name: _BOOKS.c[name] + _given(f"more_{name}") for name in ("trials", "ended", "epochs", "seconds")}
    )
    .returning(_BOOKS.c.trials, _BOOKS.c.ended, _BOOKS.c.epochs, _BOOKS.c.seconds, _BOOKS.c.state)
)
_OBJECTIVE = _STUDY_ATTRS.alias()
_CANDIDATES = (
    sa.select(
        _STUDY.study_id,
        _STUDY.study_name,
        sa.case((_IS_ARCHIVED, StudyState.ARCHIVED.value), else_=_BOOKS.c.state).label("state"),
        sa.exists().where(_LEASE.study_id == _STUDY.study_id, _OPEN).label("is_busy"),
        sa.exists()
        .where(_STUDY_ATTR.study_id == _STUDY.study_id, _STUDY_ATTR.key == COMPARISON)
        .label("is_member"),
    )
    .join(_BOOKS, _BOOKS.c.study_id == _STUDY.study_id)
    .join(_OBJECTIVE, sa.and_(_OBJECTIVE.c.study_id == _STUDY.study_id, _OBJECTIVE.c.key == "objective"))
    .where(_OBJECTIVE.c.value_json.in_(_given("objectives", expanding=True)))
    .order_by(_BOOKS.c.trials, _STUDY.study_id)
)
_DEFINITION = _STUDY_ATTRS.alias()
_UNATTENDED = (
    sa.select(
        _DEFINITION.c.value_json.label("definition"),
        *(_BOOKS.c[name] for name in ("trials", "ended", "epochs", "seconds", "state")),
        sa.exists()
        .where(
            _TRIAL.study_id == _BOOKS.c.study_id,
            _TRIAL.state == TrialState.WAITING,
            _TRIAL.trial_id.in_(sa.select(_LEASE.trial_id).where(_LEASE.study_id == _BOOKS.c.study_id)),
        )
        .label("must_run_again"),
    )
    .join_from(_BOOKS, _DEFINITION, _DEFINITION.c.study_id == _BOOKS.c.study_id)
    .where(
        _DEFINITION.c.key == DEFINITION,
        _BOOKS.c.state == StudyState.OPEN.value,
        ~_IS_ARCHIVED,
        ~sa.exists().where(_LEASE.study_id == _BOOKS.c.study_id, _OPEN),
    )
)
_SET_STATE = sa.update(_BOOKS).where(_BOOKS.c.study_id == _given("study")).values(state=_given("new_state"))
_ABOUT_TRIAL = (_COMMAND.study_id == _given("study"), _COMMAND.trial_id == _given("trial"))
_WANTED = (
    sa.select(_COMMAND.kind, _COMMAND.values_json, _COMMAND.by)
    .where(*_ABOUT_TRIAL)
    .order_by(_COMMAND.command_id)
)
_NAMED = sa.select(_COMMAND.kind, _COMMAND.values_json).where(_COMMAND.command_key == _given("key"))
_WAITING = _WANTED.where(_COMMAND.delivered_fence.is_(None))
_DELIVERED = _WANTED.where(
    _COMMAND.delivered_fence == _given("the_fence"), _COMMAND.delivered_epoch == _given("epoch")
)
_TAKE_BACK = (
    sa.update(_COMMANDS)
    .where(*_ABOUT_TRIAL, _COMMAND.kind == "stop", _COMMAND.delivered_fence == _given("the_fence"))
    .values(delivered_fence=None, delivered_epoch=None)
)
_DELIVER = (
    sa.update(_COMMANDS)
    .where(*_ABOUT_TRIAL, _COMMAND.delivered_fence.is_(None))
    .values(delivered_fence=_given("the_fence"), delivered_epoch=_given("epoch"))
)


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
        self._open_books(session, study_id)

    def open_leases(self, session: Session, study_id: int) -> list[HeldLease]:
        """The leases of a study's running trials, by trial id."""
        return [HeldLease(*row) for row in session.execute(_OPEN_LEASES, {"study": study_id})]

    def held(self, session: Session, study_id: int, trial_id: int, fence: int) -> HeldLease:
        """An open lease.

        Raises:
            LeaseLostError: it has ended.
        """
        key = {"study": study_id, "trial": trial_id, "the_fence": fence}
        row = session.execute(_HELD, key).one_or_none()
        if row is None:
            raise self._lost(session, key)
        return HeldLease(*row)

    def require_open(self, session: Session, study_id: int, trial_id: int, fence: int) -> None:
        """See that a lease is open still.

        Raises:
            LeaseLostError: it has ended.
        """
        key = {"study": study_id, "trial": trial_id, "the_fence": fence}
        row = session.execute(_ENDING, key).one_or_none()
        if row is None or row.ending is not None:
            raise self._lost(session, key)

    def ending(self, session: Session, study_id: int, trial_id: int, fence: int) -> Ending | None:
        """How a lease ended; None while it is open, or if there never was one."""
        key = {"study": study_id, "trial": trial_id, "the_fence": fence}
        ending: str | None = session.scalar(_ENDING, key)
        return None if ending is None else Ending(ending)

    def granted_to(
        self, session: Session, study_id: int, request_id: str
    ) -> tuple[int, int, int, Ending | None] | None:
        """Trial id, fence, attempt and ending of the lease that a request was granted; None if it was granted none."""
        row = session.execute(_GRANTED, {"study": study_id, "request": request_id}).one_or_none()
        return (
            None if row is None else (row.trial_id, row.fence, row.attempt, row.ending and Ending(row.ending))
        )

    def begun(self, session: Session, study_id: int, trial_ids: Sequence[int]) -> set[int]:
        """Those of the trials that had a lease before."""
        query = sa.select(_LEASE.trial_id).where(_LEASE.study_id == study_id).distinct()
        blocks = (trial_ids[first : first + MANY] for first in range(0, len(trial_ids), MANY))
        return {i for block in blocks for i in session.scalars(query.where(_LEASE.trial_id.in_(block)))}

    def adopt(self, session: Session, study_id: int, trial_id: int, fence: int, owner: str) -> None:
        """Let another process of its owner go on with an open lease.

        Raises:
            LeaseLostError: the lease has ended.
        """
        self.renew(session, study_id, trial_id, fence)
        key = {"study": study_id, "trial": trial_id, "the_fence": fence}
        session.execute(_ADOPT, {**key, "who": owner})

    def last_lease(
        self, session: Session, study_id: int, trial_id: int
    ) -> tuple[int, int, Ending | None] | None:
        """Fence, attempt and ending (None: it is open) of the last lease on a trial; None if it never had one."""
        row = session.execute(_LAST, {"study": study_id, "trial": trial_id}).one_or_none()
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
        waiting = 0 if fence == 1 else len(self.waiting(session, study_id, trial_id))
        key = {"study_id": study_id, "trial_id": trial_id, "fence": fence, "attempt": attempt}
        who = {"owner": owner, "request_id": request_id}
        session.execute(_GRANT, {**key, **who, "commands": waiting, "lease_seconds": self.lease_seconds})

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
        key = {"study": study_id, "trial": trial_id, "the_fence": fence}
        more = {"more_epochs": epochs, "more_seconds": seconds, "lease_seconds": self.lease_seconds}
        commands: int | None = session.scalar(_RENEW, key | more)
        if commands is None:
            raise self._lost(session, key)
        return commands

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
        """End a lease; `told` is kept as JSON.

        Raises:
            LeaseLostError: it has ended already.
        """
        key = {"study": study_id, "trial": trial_id, "the_fence": fence}
        how = {"how": ending.value, "what": None if told is None else json.dumps(told)}
        more = {"more_epochs": epochs, "more_seconds": seconds}
        if session.scalar(_END, key | how | more) is None:
            raise self._lost(session, key)
        if ending in (
            Ending.LOST,
            Ending.RELEASED,
        ):  # who hears of a stop and is lost has not stopped the trial
            session.execute(_TAKE_BACK, key)

    def was_told(self, session: Session, study_id: int, trial_id: int, fence: int, told: Any) -> bool:
        """Whether this lease ended with exactly this told; False if it has not ended with a tell.

        Raises:
            ConflictError: something else was told.
        """
        key = {"study": study_id, "trial": trial_id, "the_fence": fence}
        row = session.execute(_ENDING, key).one_or_none()
        if row is None or row.ending != Ending.TOLD:
            return False
        if row.told != json.dumps(told):
            number = self._number(session, trial_id)
            raise ConflictError(
                f"{number} was told {_in_words(json.loads(row.told))} before; now {_in_words(told)}"
            )
        return True

    def history(self, session: Session, study_id: int, trial_id: int) -> list[dict[str, Any]]:
        """All attempts at a trial in order; times in seconds since 1970."""
        rows = session.execute(_HISTORY, {"study": study_id, "trial": trial_id})
        return [dict(row._mapping) for row in rows]

    def spend(
        self,
        session: Session,
        study_id: int,
        *,
        trials: int = 0,
        ended: int = 0,
        epochs: int = 0,
        seconds: float = 0.0,
    ) -> Spent:
        """Add to what a study has used, and return the sum. The row stays locked until the transaction ends."""
        more = {"trials": trials, "ended": ended, "epochs": epochs, "seconds": seconds}
        values = {"study": study_id, **{f"more_{name}": amount for name, amount in more.items()}}
        row = session.execute(_SPEND, values).one_or_none()
        if row is None:  # a study from before there were books, at its first ask
            self._open_books(session, study_id)
            row = session.execute(_SPEND, values).one()
        return _spent(row)

    def spent(self, session: Session, study_id: int) -> Spent:
        """What the study has used so far."""
        row = session.execute(_SPENT, {"study": study_id}).one_or_none()
        return _spent(row) if row else Spent()

    def set_state(self, session: Session, study_id: int, state: StudyState) -> None:
        """Pause, stop or reopen a study. An ask that is under way has seen it, or waits until it does."""
        self.spend(session, study_id)  # locks the books, and opens them where there are none
        session.execute(_SET_STATE, {"study": study_id, "new_state": state.value})

    def attempt(self, session: Session, study_id: int, trial_id: int, fence: int) -> int | None:
        """Which attempt at the trial a lease was; None if there never was such a lease."""
        key = {"study": study_id, "trial": trial_id, "the_fence": fence}
        attempt: int | None = session.scalar(_ATTEMPT, key)
        return attempt

    def is_unfinished(self, session: Session, study_id: int) -> bool:
        """Whether a trial that was begun has yet to end."""
        key = {"study": study_id}
        return (
            session.execute(_OPEN_LEASES, key).first() is not None
            or session.execute(_TO_RUN_AGAIN, key).first() is not None
        )

    def not_begun(self, session: Session, study_id: int) -> int:
        """How many trials wait that were never begun: points chosen by hand."""
        return session.scalar(_NOT_BEGUN, {"study": study_id}) or 0

    def studies_by_state(self, session: Session) -> dict[StudyState, int]:
        """How many studies there are in each state that any is in; without those that have no books yet."""
        state = sa.case((_IS_ARCHIVED, StudyState.ARCHIVED.value), else_=_BOOKS.c.state).label("state")
        found = sa.select(state).subquery()
        counted = session.execute(sa.select(found.c.state, sa.func.count()).group_by(found.c.state))
        return {StudyState(name): number for name, number in counted}

    def open_lease_count(self, session: Session) -> int:
        """How many trials are in the hands of workers."""
        return session.scalar(sa.select(sa.func.count()).select_from(_LEASES).where(_OPEN)) or 0

    def unattended(self, session: Session) -> list[Unattended]:
        """The open studies of which nobody has a trial in hand."""
        return [
            Unattended(row.definition, _spent(row), row.must_run_again)
            for row in session.execute(_UNATTENDED)
        ]

    def overdue(self, session: Session) -> list[int]:
        """The ids of the studies that have a lease which has run out."""
        return list(session.scalars(_OVERDUE))

    def candidates(self, session: Session, objectives: Sequence[str]) -> list[Candidate]:
        """The studies whose objective is among these, those with the fewest trials first."""
        wanted = [json.dumps(name) for name in objectives]
        found = session.execute(_CANDIDATES, {"objectives": wanted})
        return [
            Candidate(row.study_id, row.study_name, StudyState(row.state), row.is_busy, row.is_member)
            for row in found
        ]

    def asked_before(self, session: Session, study_ids: Sequence[int], request_id: str) -> int | None:
        """The id of that of these studies in which a request was granted a trial; None if it was in none."""
        query = sa.select(_LEASE.study_id).where(_LEASE.request_id == request_id)
        for first in range(0, len(study_ids), MANY):
            block = study_ids[first : first + MANY]
            if (found := session.scalar(query.where(_LEASE.study_id.in_(block)))) is not None:
                return cast("int", found)
        return None

    def command(self, session: Session, study_id: int, trial_id: int, command: Command) -> bool:
        """Leave a command for the next report of a trial, once; False if nobody has a lease on it.

        Raises:
            ConflictError: its key was another command's before.
        """
        row = {"study_id": study_id, "trial_id": trial_id, "kind": command.kind, "by": command.by}
        insert = self.database.insert(_COMMANDS).values(
            **row, command_key=command.key, values_json=json.dumps(dict(command.values)), asked_at=_NOW
        )
        if session.scalar(insert.on_conflict_do_nothing().returning(_COMMAND.command_id)) is None:
            before = session.execute(_NAMED, {"key": command.key}).one()
            if (before.kind, json.loads(before.values_json)) != (command.kind, dict(command.values)):
                raise ConflictError(
                    f"this request's key was that of another before: {before.kind} {before.values_json}"
                )
            return True
        return session.scalar(_HOLDER, {"study": study_id, "trial": trial_id}) is not None

    def deliver(
        self, session: Session, study_id: int, trial_id: int, fence: int, epoch: int
    ) -> list[Command]:
        """The commands that wait for a trial, oldest first; they count as delivered with the report of `epoch`."""
        key = {"study": study_id, "trial": trial_id, "the_fence": fence}
        session.execute(_DELIVER, {**key, "epoch": epoch})
        session.execute(_HEARD, key)
        return self.delivered(session, study_id, trial_id, fence, epoch)

    def waiting(self, session: Session, study_id: int, trial_id: int) -> list[Command]:
        """The commands that wait for a trial's next report, oldest first."""
        return _commands(session.execute(_WAITING, {"study": study_id, "trial": trial_id}))

    def delivered(
        self, session: Session, study_id: int, trial_id: int, fence: int, epoch: int
    ) -> list[Command]:
        """The commands that were delivered with the report of `epoch`, oldest first."""
        key = {"study": study_id, "trial": trial_id, "the_fence": fence, "epoch": epoch}
        return _commands(session.execute(_DELIVERED, key))

    def save_checkpoint(
        self, session: Session, study_id: int, trial_id: int, epoch: int, data: bytes
    ) -> None:
        """Keep a training's state after an epoch, instead of an earlier one."""
        self.drop_checkpoint(session, study_id, trial_id)
        row = {"study_id": study_id, "trial_id": trial_id, "epoch": epoch, "data": data}
        session.execute(sa.insert(_CHECKPOINTS).values(row))

    def checkpoint(self, session: Session, study_id: int, trial_id: int) -> tuple[int, bytes] | None:
        """Epoch and state of the checkpoint of a trial; None if there is none."""
        columns = _CHECKPOINTS.c
        query = sa.select(columns.epoch, columns.data)
        which = (columns.study_id == study_id, columns.trial_id == trial_id)
        row = session.execute(query.where(*which)).one_or_none()
        return None if row is None else (row.epoch, row.data)

    def checkpointed(self, session: Session, study_id: int) -> dict[int, int]:
        """The epochs of the checkpoints that there are, by the ids of their trials."""
        columns = _CHECKPOINTS.c
        query = sa.select(columns.trial_id, columns.epoch).where(columns.study_id == study_id)
        return {row.trial_id: row.epoch for row in session.execute(query)}

    def drop_checkpoint(self, session: Session, study_id: int, trial_id: int) -> None:
        """Forget the checkpoint of a trial."""
        columns = _CHECKPOINTS.c
        session.execute(
            sa.delete(_CHECKPOINTS).where(columns.study_id == study_id, columns.trial_id == trial_id)
        )

    def _open_books(self, session: Session, study_id: int) -> None:
        session.execute(self.database.insert(_BOOKS).values(study_id=study_id).on_conflict_do_nothing())

    def _lost(self, session: Session, key: Mapping[str, int]) -> LeaseLostError:
        """Why a lease is not open any more, in words."""
        row, trial = session.execute(_ENDING, key).one_or_none(), self._number(session, key["trial"])
        if row is not None and row.ending is None:
            return LeaseLostError(f"{trial}: {ENDED_BY_HAND}")
        how = "there is none" if row is None else f"it ended: {row.ending}"
        return LeaseLostError(f"lease {key['the_fence']} on {trial} is lost ({how})")

    def _number(self, session: Session, trial_id: int) -> str:
        """A trial as people know it."""
        number = session.scalar(sa.select(_TRIAL.number).where(_TRIAL.trial_id == trial_id))
        return "a trial that was deleted" if number is None else f"trial {number}"


def _in_words(told: Mapping[str, Any]) -> str:
    """What was told of a trial, as `complete with 0.5`."""
    values = ", ".join(told["values"] or ())
    state = str(told["state"]).lower()
    return f"{state} with {values}" if values else state


def _spent(row: Any) -> Spent:
    return Spent(row.trials, row.ended, row.epochs, row.seconds, StudyState(row.state))


def _commands(rows: Iterable[Any]) -> list[Command]:
    return [Command(kind, json.loads(values), by) for kind, values, by in rows]
