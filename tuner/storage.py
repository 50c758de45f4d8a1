"""Optuna's storage on its unmodified schema, written and read in bulk, under settings that keep its promises.

The tables are Optuna's own: a stock optuna-dashboard and `optuna.load_study` open the result. `Database` only changes
*how* they are used: on SQLite every transaction that writes takes the write lock at its start (the stock storage hands
one waiting trial to two askers otherwise), several changes share a transaction, and trials are read in one statement a
table. `tuner.schema` makes the tables.
"""

from __future__ import annotations

import functools
import json
import math
import os
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from datetime import datetime
from enum import StrEnum
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast
from weakref import WeakValueDictionary

import optuna
import sqlalchemy as sa
import tenacity
from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.study import StudyDirection
from optuna.study.study import _SYSTEM_ATTR_METRIC_NAMES
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session

from tuner.errors import StorageError, StorageUnavailableError
from tuner.termination import pause

__all__ = [
    "BUSY_SECONDS",
    "DEFAULT_URL",
    "SYSTEM_ATTRS",
    "USER_ATTRS",
    "Database",
    "Mode",
    "cached",
    "explain",
    "patience",
    "patiently",
    "safe_url",
]

DEFAULT_URL = "sqlite:///tuner.db"

BUSY_SECONDS = 30.0
"""How long a statement may wait for another's lock before it fails. It may take twice as long: on a server, and where
threads of this process wait for each other before."""

QUICK_SECONDS = 0.1
"""How long a writer looks again and again whether SQLite is free, rather than go to sleep."""

IDLE_SECONDS = 2.0
"""A server's connection that was not used for so long is tried before it is used again."""

POOL = {"max_overflow": -1}
"""As many connections as threads ask for at once: one that waits for a connection may hold a lock that others want."""

PATIENCE = 60.0
"""For how many seconds what failed for want of a database is tried again."""

# Optuna's tables, which its own methods write with several statements for every single value
_STUDIES = cast("sa.Table", models.StudyModel.__table__)
_DIRECTIONS = cast("sa.Table", models.StudyDirectionModel.__table__)
_STUDY_ATTRS = cast("sa.Table", models.StudyUserAttributeModel.__table__)
_STUDY_SYSTEM_ATTRS = cast("sa.Table", models.StudySystemAttributeModel.__table__)
_TRIALS = cast("sa.Table", models.TrialModel.__table__)
_PARAMS = cast("sa.Table", models.TrialParamModel.__table__)
_VALUES = cast("sa.Table", models.TrialValueModel.__table__)
_REPORTS = cast("sa.Table", models.TrialIntermediateValueModel.__table__)
USER_ATTRS = cast("sa.Table", models.TrialUserAttributeModel.__table__)
SYSTEM_ATTRS = cast("sa.Table", models.TrialSystemAttributeModel.__table__)

MANY = 500
"""So many ids fit into one statement on every database."""


# statements are made once: that takes ten times as long as to run one
_given = sa.bindparam
# not against the foreign keys of rows that others insert meanwhile: who claims a waiting trial locks the books first
_LOCK_STUDY = (
    sa.select(_STUDIES.c.study_id)
    .where(_STUDIES.c.study_id == _given("study"))
    .with_for_update(key_share=True)
)
_STATE = sa.select(_TRIALS.c.state).where(_TRIALS.c.trial_id == _given("trial"))
_STATE_LOCKED = _STATE.with_for_update()
_LAST_NUMBER = (
    sa.select(_TRIALS.c.number)
    .where(_TRIALS.c.study_id == _given("study"))
    .order_by(_TRIALS.c.trial_id.desc())
    .limit(1)
)
_NEW_TRIAL = sa.insert(_TRIALS).returning(_TRIALS.c.trial_id)
_NEW_PARAMS, _NEW_VALUES = sa.insert(_PARAMS), sa.insert(_VALUES)
_END_TRIAL = (
    sa.update(_TRIALS)
    .where(
        _TRIALS.c.trial_id == _given("trial"),
        _TRIALS.c.state.in_([TrialState.RUNNING, TrialState.WAITING]),
    )
    .values(state=_given("after"), datetime_complete=_given("now"))
    .returning(_TRIALS.c.trial_id)
)
_LATER_TRIALS = (
    sa.select(_TRIALS)
    .where(_TRIALS.c.study_id == _given("study"), _TRIALS.c.trial_id > _given("after"))
    .order_by(_TRIALS.c.trial_id)
)
_THESE_TRIALS = (
    sa.select(_TRIALS)
    .where(_TRIALS.c.study_id == _given("study"), _TRIALS.c.trial_id.in_(_given("these", expanding=True)))
    .order_by(_TRIALS.c.trial_id)
)
_ALL_OF = {
    table: sa.select(table)
    .where(table.c.trial_id.in_(_given("trials", expanding=True)))
    .order_by(next(iter(table.primary_key)))
    for table in (_PARAMS, _VALUES, _REPORTS, USER_ATTRS, SYSTEM_ATTRS)
}


class Mode(StrEnum):
    """What a transaction is for."""

    READ = "read"
    """Reads only: waits for no writer, and no writer waits for it."""
    RELAXED = "relaxed"
    """Reaches the disk a little later: a power cut may take back the last ones together, never a part of one. For
    reports and heartbeats."""
    DURABLE = "durable"
    """On the disk when it ends. For what somebody was told: a trial that was handed out, a result that was taken."""


_MODE = "tuner_mode"
_IS_SETTLED = "tuner_is_settled"
"""Options of a transaction: what it is for, and whether somebody waits for the disk after it."""


P = ParamSpec("P")
R = TypeVar("R")


class _OfDatabase(Protocol):
    @property
    def url(self) -> str: ...


D = TypeVar("D", bound=_OfDatabase)

_trying = ContextVar("_trying", default=False)
"""Whether a caller tries again already: then what it calls need not."""

_patience: ContextVar[float | None] = ContextVar("_patience", default=None)


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Let all of this thread or task in the block wait for a database for no longer than `seconds`.

    For who must give an answer soon, even if it is that there is none.
    """
    token = _patience.set(seconds)
    try:
        yield
    finally:
        _patience.reset(token)


def _patience_now() -> float:
    given = _patience.get()
    return PATIENCE if given is None else given


def patiently(method: Callable[Concatenate[D, P], R]) -> Callable[Concatenate[D, P], R]:
    """Let a method try again while its database does not answer, for `PATIENCE` seconds, ever more slowly.

    Within a block of `patience` it is as long as that says.

    Only for what may be done twice: a transaction whose end was not heard of may have been carried out.

    Raises:
        StorageUnavailableError: it still does not answer; the text says for how long that was tried, and its reason.
    """

    def once(self: D, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(self, *args, **kwargs)
        except (optuna.exceptions.StorageInternalError, sa.exc.SQLAlchemyError) as error:
            raise explain(self.url, error) from error  # out of Optuna's own methods

    @functools.wraps(method)
    def trying(self: D, *args: P.args, **kwargs: P.kwargs) -> R:
        if _trying.get():
            return once(self, *args, **kwargs)
        token = _trying.set(True)
        try:
            result: R = _retrying()(once, self, *args, **kwargs)
        except tenacity.RetryError as failed:
            error = failed.last_attempt.exception()
            raise StorageUnavailableError(f"{error} (tried again for {_patience_now():.0f} s)") from error
        finally:
            _trying.reset(token)
        return result

    return cast("Callable[Concatenate[D, P], R]", trying)


def _retrying() -> tenacity.Retrying:
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(StorageUnavailableError),
        wait=tenacity.wait_random_exponential(multiplier=0.1, max=5.0),
        stop=tenacity.stop_after_delay(_patience_now()),
        sleep=pause,
    )


class Turn:
    """Lets one thread of this process in at a time; a thread that is in may enter again.

    Others wait for at most `BUSY_SECONDS`, and then go in as well: it spares threads a race that they would lose, while
    the database itself sees to it that none does harm.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._held = threading.local()

    def __enter__(self) -> None:
        held: list[bool] = self._held.__dict__.setdefault("held", [])
        held.append(self._lock.acquire(timeout=BUSY_SECONDS))

    def __exit__(self, *_: object) -> None:
        if self._held.held.pop():
            self._lock.release()


_turns: WeakValueDictionary[tuple[object, ...], Turn] = WeakValueDictionary()
_turns_lock = threading.Lock()


def _begin_anew() -> None:
    """In a fork: the threads that were in have stayed behind, and would never leave."""
    global _turns_lock  # noqa: PLW0603
    _turns_lock = threading.Lock()
    for turn in list(_turns.values()):
        turn.__init__()  # type: ignore[misc]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


def in_turn(*what: object) -> Turn:
    """The turn of all in this process that name the same. It lasts as long as somebody keeps it."""
    with _turns_lock:
        return _turns.setdefault(what, Turn())


class SqliteConnection(sqlite3.Connection):
    """A connection with our PRAGMAs; as a class, because event listeners do not survive pickling."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # readers, such as the dashboard, do not block writers
        self.has_log = self.execute("PRAGMA journal_mode = WAL").fetchone()[0] == "wal"
        self.execute("PRAGMA foreign_keys = ON")
        self.file: str = self.execute("PRAGMA database_list").fetchone()[2]

    def begins_soon(self) -> bool:
        """Begin a transaction with the write lock; False if another has held that for `QUICK_SECONDS`."""
        self.execute("PRAGMA busy_timeout = 0")
        try:
            until = time.monotonic() + QUICK_SECONDS
            while time.monotonic() < until:
                try:
                    self.execute("BEGIN IMMEDIATE")
                    return True
                except sqlite3.OperationalError as error:
                    if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                        return False  # another try says why
                    time.sleep(0.0003)
            return False
        finally:
            self.execute(f"PRAGMA busy_timeout = {int(min(BUSY_SECONDS, _patience_now()) * 1000)}")


class _Log:
    """SQLite's write-ahead log, which threads bring to the disk together.

    SQLite itself does so at each commit (`synchronous = FULL`), one after the other and under its write lock. Here a
    commit leaves that out, and whoever is to be answered waits for the disk afterwards, without the lock: one wait
    serves all that was committed before it began.
    """

    def __init__(self, url: str) -> None:
        self.file: str | None = None
        """None where the file has no such log, and before anything was read from it: then each commit waits."""
        self._url, self._turn = url, in_turn("settle", url)
        self._begun = self._done = 0

    def settle(self) -> None:
        """See that all that was committed until now, by whichever process, outlasts a power cut.

        Raises:
            StorageError: it cannot be written.
        """
        wanted = self._begun + 1  # the next wait to begin
        with self._turn:
            if self._done >= wanted or self.file is None:
                return
            self._begun = mine = self._begun + 1
            try:
                _sync(self.file)
            except OSError as error:
                raise StorageError(f"{safe_url(self._url)} cannot be written to: {error.strerror}") from error
            self._done = mine


def _sync(file: str) -> None:
    """Wait until a file is on the disk; one that is not there was written back into the database, and is."""
    try:
        opened = os.open(file, os.O_RDWR)
    except FileNotFoundError:
        return
    try:
        getattr(os, "fdatasync", os.fsync)(opened)  # as SQLite does
    finally:
        os.close(opened)


class Database(RDBStorage):
    """Optuna's storage with transactions that hold together.

    Use `tuner.schema.open_storage` to get one.
    """

    def __init__(
        self, url: str, *, skip_table_creation: bool = False, skip_compatibility_check: bool = False
    ) -> None:
        super().__init__(
            url,
            engine_kwargs=_engine_settings(url),
            skip_table_creation=skip_table_creation,
            skip_compatibility_check=skip_compatibility_check,
        )
        self._prepare()

    def __getstate__(self) -> dict[Any, Any]:
        state = super().__getstate__()
        for name in ("_writing", "_log", "_settling"):
            del state[name]
        return state

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        self._prepare()

    def _prepare(self) -> None:
        self.is_sqlite = self.engine.dialect.name == "sqlite"
        self._writing: AbstractContextManager[None] = nullcontext()
        if self.is_sqlite:
            self._writing = in_turn("write", self.url)
        self._log = _Log(self.url)
        self._settling = threading.local()
        # each dialect has its own word for what an INSERT does about rows that are there
        self.insert: Callable[[sa.Table], Any] = sqlite.insert if self.is_sqlite else postgresql.insert
        report = self.insert(_REPORTS).on_conflict_do_nothing()
        self._report = report.returning(_REPORTS.c.step)
        self._set_attrs = {table: _upsert(self.insert(table)) for table in (USER_ATTRS, SYSTEM_ATTRS)}
        if self.is_sqlite:
            sa.event.listen(self.engine, "connect", functools.partial(_leave_transactions_to_us, self._log))
            sa.event.listen(self.engine, "begin", _begin)
            self.engine.dispose()  # connections made before know nothing of this
        else:
            sa.event.listen(self.engine, "checkin", _note_return)
            sa.event.listen(self.engine, "checkout", functools.partial(_try_idle, self.engine.dialect))

    def close(self) -> None:
        """Close all connections. Those of other threads close when their threads end."""
        self.scoped_session.remove()
        self.engine.dispose()

    @contextmanager
    def transaction(self, mode: Mode = Mode.DURABLE) -> Iterator[Session]:
        """A session whose changes are committed together at the end, or not at all.

        Raises:
            StorageUnavailableError: the database does not answer; it may be worth another try.
            StorageError: it refuses.
        """
        turn = nullcontext() if mode is Mode.READ else self._writing
        is_settled = mode is Mode.DURABLE and self._settles
        settled = self.settled() if is_settled else nullcontext()
        try:
            with settled, turn, _create_scoped_session(self.scoped_session) as session:
                session.connection(execution_options={_MODE: mode, _IS_SETTLED: is_settled})
                if mode is Mode.RELAXED and not self.is_sqlite:
                    session.execute(sa.text("SET LOCAL synchronous_commit = off"))
                yield session
        except (optuna.exceptions.StorageInternalError, sa.exc.SQLAlchemyError) as error:
            raise explain(self.url, error) from error

    @contextmanager
    def settled(self) -> Iterator[None]:
        """A block whose durable transactions, and all that they have read, are on the disk when it ends.

        It spares locks that are held within it the wait for the disk: on SQLite that is at its end. A server groups the
        commits of its clients itself, and waits at each.
        """
        if not self._settles or getattr(self._settling, "is_within", False):
            yield
            return
        self._settling.is_within = True
        try:
            yield
        finally:
            self._settling.is_within = False
        self._log.settle()

    @property
    def _settles(self) -> bool:
        return self._log.file is not None

    def create_study(
        self,
        session: Session,
        name: str,
        directions: Sequence[StudyDirection],
        user_attrs: Mapping[str, Any],
        metric_names: Sequence[str] = (),
    ) -> int:
        """Create a study with its attributes, and the names of its objectives if they have any; its id.

        Raises:
            DuplicatedStudyError: there is one of this name.
        """
        insert = sa.insert(_STUDIES).values(study_name=name).returning(_STUDIES.c.study_id)
        try:
            study_id = cast("int", session.execute(insert).scalar_one())
        except sa.exc.IntegrityError:
            raise optuna.exceptions.DuplicatedStudyError(name) from None
        objectives = [
            {"study_id": study_id, "objective": place, "direction": direction}
            for place, direction in enumerate(directions)
        ]
        session.execute(sa.insert(_DIRECTIONS), objectives)
        system_attrs = {_SYSTEM_ATTR_METRIC_NAMES: list(metric_names)} if metric_names else {}
        for table, attrs in ((_STUDY_ATTRS, user_attrs), (_STUDY_SYSTEM_ATTRS, system_attrs)):
            rows = [
                {"study_id": study_id, "key": key, "value_json": json.dumps(value)}
                for key, value in attrs.items()
            ]
            if rows:
                session.execute(sa.insert(table), rows)
        return study_id

    def study_attr_keys(self, session: Session, prefix: str) -> list[str]:
        """The keys of all studies' user attributes that begin with `prefix`."""
        key = _STUDY_ATTRS.c.key
        return list(session.scalars(sa.select(key).where(key.startswith(prefix, autoescape=True))))

    def study_attr(self, session: Session, key: str) -> Any:
        """The value of the first study's user attribute that has this key; None if no study has one."""
        columns = _STUDY_ATTRS.c
        query = sa.select(columns.value_json).where(columns.key == key).order_by(columns.study_id).limit(1)
        found = session.scalar(query)
        return None if found is None else json.loads(found)

    def add_trials(self, session: Session, study_id: int, trials: Sequence[FrozenTrial]) -> None:
        """Add trials to a study that has none, numbered as they are, with all that belongs to them."""
        insert = sa.insert(_TRIALS).returning(_TRIALS.c.trial_id, sort_by_parameter_order=True)
        for first in range(0, len(trials), MANY):
            block = trials[first : first + MANY]
            rows = [
                {
                    "study_id": study_id,
                    "number": trial.number,
                    "state": trial.state,
                    "datetime_start": trial.datetime_start,
                    "datetime_complete": trial.datetime_complete,
                }
                for trial in block
            ]
            ids = session.scalars(insert, rows).all()
            for table, make in _ROWS_OF.items():
                found = [row for i, trial in zip(ids, block, strict=True) for row in make(i, trial)]
                if found:
                    session.execute(sa.insert(table), found)

    def lock_study(self, session: Session, study_id: int) -> None:
        """Let no other transaction that does the same go on before this one ends: numbers are given under this lock.

        SQLite has locked the whole database already.
        """
        if not self.is_sqlite:
            session.execute(_LOCK_STUDY, {"study": study_id})

    def is_running(self, session: Session, trial_id: int, *, lock: bool = False) -> bool:
        """Whether the trial is running still: somebody may have ended it by hand, in the dashboard for instance.

        With `lock` it stays so until the transaction ends.
        """
        state = session.scalar(_STATE_LOCKED if lock else _STATE, {"trial": trial_id})
        return bool(state == TrialState.RUNNING)

    def create_trial(
        self,
        session: Session,
        study_id: int,
        number: int,
        *,
        params: Mapping[str, Any],
        distributions: Mapping[str, BaseDistribution],
        attrs: Mapping[str, Any],
        state: TrialState = TrialState.RUNNING,
    ) -> int | None:
        """Create the running (or waiting) trial `number` with system attributes `attrs`. Needs the study's lock.

        Returns its id, or None if the next number is another one by now: numbers are given one after the other.
        """
        if self.next_number(session, study_id) != number:
            if number > 0:
                models.StudyModel.find_or_raise_by_id(study_id, session)  # it may have been deleted
            return None
        start = datetime.now() if state is TrialState.RUNNING else None
        trial = {"study_id": study_id, "number": number, "state": state, "datetime_start": start}
        new = session.execute(_NEW_TRIAL, trial)
        trial_id = cast("int", new.scalar_one())
        self.set_params(session, trial_id, params, distributions)
        self.set_attrs(session, SYSTEM_ATTRS, trial_id, attrs)
        return trial_id

    def next_number(self, session: Session, study_id: int) -> int:
        """The number that the study's next trial gets; it stays so under the study's lock."""
        last = session.scalar(_LAST_NUMBER, {"study": study_id})
        return 0 if last is None else last + 1

    def trial_id(self, session: Session, study_id: int, number: int) -> int | None:
        """The id of a trial; None if there is none of this number."""
        which = (_TRIALS.c.study_id == study_id, _TRIALS.c.number == number)
        found: int | None = session.scalar(sa.select(_TRIALS.c.trial_id).where(*which))
        return found

    def trial(self, session: Session, trial_id: int) -> FrozenTrial:
        """A trial with all that belongs to it.

        Raises:
            KeyError: there is none of this id.
        """
        found = self.trials(session, [trial_id])
        if not found:
            raise KeyError(trial_id)
        return found[0]

    def trials(self, session: Session, trial_ids: Sequence[int]) -> list[FrozenTrial]:
        """Trials of these ids, in the order of the ids; those that are not there are left out."""
        found: list[FrozenTrial] = []
        for first in range(0, len(trial_ids), MANY):
            these = _TRIALS.c.trial_id.in_(trial_ids[first : first + MANY])
            rows = session.execute(sa.select(_TRIALS).where(these).order_by(_TRIALS.c.trial_id)).all()
            found += _as_trials(session, rows)
        return found

    def number_with(self, session: Session, study_id: int, key: str) -> int | None:
        """The number of the study's first trial that has a system attribute; None if none has."""
        attrs = SYSTEM_ATTRS.c
        query = sa.select(_TRIALS.c.number).join(SYSTEM_ATTRS, attrs.trial_id == _TRIALS.c.trial_id)
        found: int | None = session.scalar(
            query.where(_TRIALS.c.study_id == study_id, attrs.key == key).limit(1)
        )
        return found

    def page(
        self,
        session: Session,
        study_id: int,
        *,
        after: int = -1,
        limit: int,
        states: Sequence[TrialState] = (),
    ) -> list[FrozenTrial]:
        """At most `limit` trials in the order of their numbers, after one, in any of `states` (none: all)."""
        query = sa.select(_TRIALS).where(_TRIALS.c.study_id == study_id, _TRIALS.c.number > after)
        if states:
            query = query.where(_TRIALS.c.state.in_(states))
        found = session.execute(query.order_by(_TRIALS.c.number).limit(limit)).all()
        return _as_trials(session, found)

    def latest(self, session: Session, study_id: int, limit: int, state: TrialState) -> list[FrozenTrial]:
        """The last `limit` trials in a state, in the order of their numbers."""
        query = sa.select(_TRIALS).where(_TRIALS.c.study_id == study_id, _TRIALS.c.state == state)
        found = session.execute(query.order_by(_TRIALS.c.number.desc()).limit(limit)).all()
        return _as_trials(session, found[::-1])

    def counts(self, session: Session, study_id: int | None = None) -> dict[TrialState, int]:
        """How many trials there are in each state that any is in: of a study, or of all."""
        query = sa.select(_TRIALS.c.state, sa.func.count().label("trials"))
        if study_id is not None:
            query = query.where(_TRIALS.c.study_id == study_id)
        return {row.state: row.trials for row in session.execute(query.group_by(_TRIALS.c.state))}

    def best(self, session: Session, study_id: int, direction: StudyDirection) -> FrozenTrial | None:
        """The first of the completed trials with the best value of a single objective; None if there is none."""
        is_least = direction == StudyDirection.MINIMIZE
        trials = models.TrialModel
        find = trials.find_min_value_trial_id if is_least else trials.find_max_value_trial_id
        try:
            trial_id = find(study_id, 0, session)
        except ValueError:  # Optuna's word for none
            return None
        return self.trial(session, trial_id)

    def move_trial(self, session: Session, trial_id: int, before: TrialState, after: TrialState) -> bool:
        """Change a trial's state between waiting and running; False if it was not in the state `before` any more."""
        start = datetime.now() if after is TrialState.RUNNING else None
        changed = session.execute(
            sa.update(_TRIALS)
            .where(_TRIALS.c.trial_id == trial_id, _TRIALS.c.state == before)
            .values(state=after, datetime_start=start)
        )
        return _count(changed) == 1

    def set_params(
        self,
        session: Session,
        trial_id: int,
        params: Mapping[str, Any],
        distributions: Mapping[str, BaseDistribution],
    ) -> None:
        """Give a trial that has none its parameters."""
        rows = _param_rows(trial_id, params, distributions)
        if rows:
            session.execute(_NEW_PARAMS, rows)

    def set_attrs(self, session: Session, table: sa.Table, trial_id: int, attrs: Mapping[str, Any]) -> None:
        """Set `USER_ATTRS` or `SYSTEM_ATTRS` of a trial, replacing those of the same keys."""
        if not attrs:
            return
        session.execute(self._set_attrs[table], _attr_rows(trial_id, attrs))

    def report_values(self, session: Session, trial_id: int, values: Mapping[int, float]) -> bool:
        """Add intermediate values by step; False, and nothing is certain, if there was one of these steps already."""
        rows = _report_rows(trial_id, values)
        return len(session.execute(self._report, rows).all()) == len(rows)

    def reports(self, session: Session, trial_id: int) -> dict[int, float]:
        """The intermediate values of a trial, by step."""
        columns = _REPORTS.c
        query = sa.select(columns.step, columns.intermediate_value, columns.intermediate_value_type)
        found = session.execute(query.where(columns.trial_id == trial_id).order_by(columns.step))
        return {step: _intermediate(stored, kind) for step, stored, kind in found}

    def forget_reports(self, session: Session, trial_id: int, *, after: int = -1) -> None:
        """Delete a trial's intermediate values after a step; by default all, as it is about to begin again."""
        session.execute(sa.delete(_REPORTS).where(_REPORTS.c.trial_id == trial_id, _REPORTS.c.step > after))

    def finish_trial(
        self,
        session: Session,
        trial_id: int,
        state: TrialState,
        values: Sequence[float] | None,
        user_attrs: Mapping[str, Any],
    ) -> bool:
        """End a running or waiting trial with its values, none of them NaN, and attributes.

        False, and nothing is written, if it has ended already.
        """
        assert not any(math.isnan(value) for value in values or ())  # Optuna could not read it back
        ended = {"trial": trial_id, "after": state, "now": datetime.now()}
        if session.scalar(_END_TRIAL, ended) is None:
            return False
        self.set_attrs(session, USER_ATTRS, trial_id, user_attrs)
        if values:
            session.execute(_NEW_VALUES, _value_rows(trial_id, values))
        return True

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        # what Optuna's cache asks for: trials after one, and some of those before; one statement a table, as plain rows
        which = (study_id, states, included_trial_ids, trial_id_greater_than)
        session = self.scoped_session()
        if session.in_transaction():
            return _read_trials(session, *which)
        return self._read_apart(*which)

    @patiently
    def _read_apart(
        self, study_id: int, states: Container[TrialState] | None, included: set[int], greater_than: int
    ) -> list[FrozenTrial]:
        with self.transaction(Mode.READ) as session:
            return _read_trials(session, study_id, states, included, greater_than)


def cached(database: Database) -> BaseStorage:
    """The database behind Optuna's cache of finished trials: what studies are opened on."""
    return optuna.storages.get_storage(database)


def safe_url(url: str) -> str:
    """The URL without its password, for messages."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except sa.exc.ArgumentError:
        return url


def explain(url: str, error: BaseException, what: str = "{} failed") -> StorageError:
    """An error of Optuna's or SQLAlchemy's in words: which database, and its own reason."""
    cause = _cause(error)
    kind = StorageUnavailableError if _is_transient(cause) else StorageError
    return kind(f"{what.format(safe_url(url))}: {reason(cause)}")


def reason(error: BaseException) -> str:
    """A database's own reason in one line, with what to do about it where that is known."""
    text = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
    for sign, advice in _ADVICE.items():
        if sign in text:
            return f"{text} ({advice})"
    return text


_ADVICE = {
    "database or disk is full": "make room, then run the same command again: nothing that was told is lost",
    "No space left on device": "make room, then run the same command again: nothing that was told is lost",
    "attempt to write a readonly database": "the file or its folder may not be written to",
    "unable to open database file": "the file or its folder may not be read or written to",
    "database is locked": "another process keeps it locked; end that, then run the same command again",
    "lock timeout": "another transaction keeps it locked; end that, then run the same command again",
    "statement timeout": f"it took longer than {2 * BUSY_SECONDS:.0f} s; is the server overloaded?",
    "No such file or directory": "is the server running, and the URL's host right?",
    "Connection refused": "is the server running, and the URL's host and port right?",
    "could not translate host name": "is the URL's host right?",
    "file is not a database": "it is some other kind of file",
    "disk I/O error": "the disk fails, or the file lies on a network drive, where SQLite does not work",
    "password authentication failed": "the URL's user or password is wrong",
    'role "': "make the user with: createuser NAME",
    '" does not exist': "make it with: createdb NAME",
    "no password supplied": "put the password into the URL or into ~/.pgpass",
    "remaining connection slots": "too many workers for the server's max_connections",
    "too many clients": "too many workers for the server's max_connections",
}

_FINAL = ("password authentication failed", "no password supplied", "no pg_hba.conf entry", "does not exist")
"""A server's reasons to turn a connection away that no second try changes."""

_TRANSIENT_STATES = ("08", "57P", "40001", "40P01", "53300", "55P03", "57014", "25P03", "25006")
"""PostgreSQL's codes (their beginnings) of what passes: connections lost, the server going down or coming up,
serialization failures, deadlocks, too many connections, locks and statements that took too long."""


def _cause(error: BaseException) -> BaseException:
    """The driver's error behind Optuna's and SQLAlchemy's."""
    while error.__cause__ is not None and not isinstance(error, sa.exc.DBAPIError):
        error = error.__cause__
    return error


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, sa.exc.TimeoutError):  # no connection became free
        return True
    if not isinstance(error, (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.InternalError)):
        return isinstance(error, sa.exc.DBAPIError) and error.connection_invalidated
    text = str(error.orig)
    if isinstance(error.orig, sqlite3.Error):
        return "locked" in text or "busy" in text
    state = getattr(error.orig, "sqlstate", None)
    if state is not None:
        return error.connection_invalidated or state.startswith(_TRANSIENT_STATES)
    return not any(sign in text for sign in _FINAL)  # no connection could be had


def _engine_settings(url: str) -> dict[str, Any]:
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return {"connect_args": {"factory": SqliteConnection, "timeout": BUSY_SECONDS}, **POOL}
    if parsed.get_backend_name() != "postgresql":
        return {"pool_pre_ping": True}
    milliseconds = int(BUSY_SECONDS * 1000)
    limits = {
        "statement_timeout": 2 * milliseconds,  # the longer one, as it counts the waiting for locks too
        "lock_timeout": milliseconds,
        "idle_in_transaction_session_timeout": milliseconds,
    }
    arguments = {
        "connect_timeout": 10,
        "options": " ".join(f"-c {name}={value}" for name, value in limits.items()),
        # a server that has vanished from the network is noticed as quickly
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 4,
        "tcp_user_timeout": milliseconds,
    }
    return {
        **POOL,
        "connect_args": {name: value for name, value in arguments.items() if name not in parsed.query},
    }


def _leave_transactions_to_us(log: _Log, connection: SqliteConnection, _record: Any) -> None:
    connection.isolation_level = None
    log.file = f"{connection.file}-wal" if connection.has_log and os.name == "posix" else None


def _note_return(_connection: Any, record: Any) -> None:
    record.info["returned"] = time.monotonic()


def _try_idle(dialect: sa.Dialect, connection: Any, record: Any, _proxy: Any) -> None:
    """See whether a connection that lay idle still lives; the pool makes a new one otherwise.

    The pool could do that at every use, but then each of the ledger's short transactions would wait for it.
    """
    if time.monotonic() - record.info.get("returned", math.inf) < IDLE_SECONDS:
        return
    try:
        dialect.do_ping(connection)
    except dialect.loaded_dbapi.Error as error:
        raise sa.exc.DisconnectionError from error


def _begin(connection: sa.Connection) -> None:
    options = connection.get_execution_options()
    mode = options.get(_MODE, Mode.DURABLE)
    if mode is Mode.READ:
        connection.exec_driver_sql("BEGIN")
        return
    # in WAL mode NORMAL does not wait for the disk, and loses no consistency
    synchronous = "NORMAL" if mode is Mode.RELAXED or options.get(_IS_SETTLED, False) else "FULL"
    if connection.info.get("synchronous") != synchronous:
        connection.exec_driver_sql(f"PRAGMA synchronous = {synchronous}")
        connection.info["synchronous"] = synchronous
    # SQLite itself sleeps for longer and longer between its attempts, up to 0.1 s, which costs workers that report
    # often more than their writing does: so look again at once, and leave only long waits to it
    driver = connection.connection.driver_connection
    assert isinstance(driver, SqliteConnection)
    if not driver.begins_soon():
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _param_rows(
    trial_id: int, params: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]
) -> list[dict[str, Any]]:
    return [
        {
            "trial_id": trial_id,
            "param_name": name,
            "param_value": distributions[name].to_internal_repr(value),
            "distribution_json": distribution_to_json(distributions[name]),
        }
        for name, value in params.items()
    ]


def _report_rows(trial_id: int, values: Mapping[int, float]) -> list[dict[str, Any]]:
    rows = []
    for step, value in values.items():
        stored, kind = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(value)
        row = {"trial_id": trial_id, "step": step, "intermediate_value": stored}
        rows.append({**row, "intermediate_value_type": kind})
    return rows


def _value_rows(trial_id: int, values: Sequence[float]) -> list[dict[str, Any]]:
    rows = []
    for objective, value in enumerate(values):
        stored, kind = models.TrialValueModel.value_to_stored_repr(value)
        row = {"trial_id": trial_id, "objective": objective, "value": stored, "value_type": kind}
        rows.append(row)
    return rows


def _attr_rows(trial_id: int, attrs: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"trial_id": trial_id, "key": k, "value_json": _json(v)} for k, v in attrs.items()]


_ROWS_OF: dict[sa.Table, Callable[[int, FrozenTrial], list[dict[str, Any]]]] = {
    _PARAMS: lambda i, trial: _param_rows(i, trial.params, trial.distributions),
    _VALUES: lambda i, trial: _value_rows(i, trial.values or []),
    _REPORTS: lambda i, trial: _report_rows(i, trial.intermediate_values),
    USER_ATTRS: lambda i, trial: _attr_rows(i, trial.user_attrs),
    SYSTEM_ATTRS: lambda i, trial: _attr_rows(i, trial.system_attrs),
}
"""What the tables besides Optuna's table of trials hold of a trial, given its id."""


def _json(value: Any) -> str:
    """A value as JSON, which knows neither NaN nor infinity: these become text. A dashboard could not read them."""
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(_without_nan(value), allow_nan=False)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    return [_without_nan(item) for item in value] if isinstance(value, (list, tuple)) else value


def _upsert(insert: Any) -> Any:
    """An INSERT of attributes that replaces those of the same keys."""
    columns = insert.table.c
    return insert.on_conflict_do_update(
        index_elements=[columns.trial_id, columns.key], set_={"value_json": insert.excluded.value_json}
    )


def _count(result: sa.Result[Any]) -> int:
    """How many rows a statement has changed."""
    assert isinstance(result, sa.CursorResult)
    return result.rowcount


def _read_trials(
    session: Session,
    study_id: int,
    states: Container[TrialState] | None,
    included: set[int],
    greater_than: int,
) -> list[FrozenTrial]:
    """Trials by id: those with an id above `greater_than` and those of `included`, in any of `states`."""
    # two statements: of one with an OR, SQLite makes a walk through the whole study
    these = sorted(trial_id for trial_id in included if trial_id <= greater_than)
    found: list[Any] = []
    for first in range(0, len(these), MANY):
        block = {"study": study_id, "these": these[first : first + MANY]}
        found += session.execute(_THESE_TRIALS, block)
    found += session.execute(_LATER_TRIALS, {"study": study_id, "after": greater_than})
    if not found and greater_than < 0:
        models.StudyModel.find_or_raise_by_id(study_id, session)
    chosen = [row for row in found if states is None or row.state in states]
    return _as_trials(session, chosen)


def _as_trials(session: Session, rows: Sequence[Any]) -> list[FrozenTrial]:
    """The trials of rows of Optuna's table of trials, with all that belongs to them."""
    details = _Details(session, [row.trial_id for row in rows])
    return [details.trial(row) for row in rows]


class _Details:
    """What the other tables hold of some trials, one statement each for as many as go into one."""

    def __init__(self, session: Session, trial_ids: list[int]) -> None:
        self._rows: dict[sa.Table, dict[int, list[Any]]] = {table: defaultdict(list) for table in _ALL_OF}
        for first in range(0, len(trial_ids), MANY):
            block = {"trials": trial_ids[first : first + MANY]}
            for table, query in _ALL_OF.items():
                for row in session.execute(query, block).all():  # one by one takes twice as long
                    self._rows[table][row.trial_id].append(row)

    def trial(self, row: Any) -> FrozenTrial:
        """The trial of a row of Optuna's table of trials."""
        trial_id = row.trial_id
        params = self._rows[_PARAMS][trial_id]
        distributions = {p.param_name: _distribution(p.distribution_json) for p in params}
        values = sorted(self._rows[_VALUES][trial_id], key=lambda value: value.objective)
        to_value = models.TrialValueModel.stored_repr_to_value
        return FrozenTrial(
            trial_id=trial_id,
            number=row.number,
            state=row.state,
            value=None,
            values=[to_value(v.value, v.value_type) for v in values] or None,
            datetime_start=row.datetime_start,
            datetime_complete=row.datetime_complete,
            params={
                p.param_name: distributions[p.param_name].to_external_repr(p.param_value) for p in params
            },
            distributions=distributions,
            user_attrs={a.key: json.loads(a.value_json) for a in self._rows[USER_ATTRS][trial_id]},
            system_attrs={a.key: json.loads(a.value_json) for a in self._rows[SYSTEM_ATTRS][trial_id]},
            intermediate_values={
                r.step: _intermediate(r.intermediate_value, r.intermediate_value_type)
                for r in self._rows[_REPORTS][trial_id]
            },
        )


@functools.lru_cache(maxsize=4096)
def _distribution(text: str) -> BaseDistribution:
    """A distribution from its JSON. Nothing changes one, so that trials may share it."""
    return json_to_distribution(text)


def _intermediate(stored: float | None, kind: Any) -> float:
    return models.TrialIntermediateValueModel.stored_repr_to_intermediate_value(stored, kind)
