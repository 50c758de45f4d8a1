"""Opening a database by its URL, with the settings under which Optuna's storage keeps its promises.

The tables are Optuna's own, unmodified: a stock optuna-dashboard and `optuna.load_study` open the result. `Database`
only changes *how* they are written: on SQLite every transaction takes the write lock at its start (the stock storage
hands one waiting trial to two askers otherwise), and several changes of one trial can share a transaction.
"""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import optuna
import sqlalchemy as sa
from filelock import FileLock, Timeout
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import URL, make_url
from sqlalchemy.orm import Session

from tuner.errors import StorageError

__all__ = [
    "DEFAULT_URL",
    "SYSTEM_ATTRS",
    "USER_ATTRS",
    "Database",
    "absolute",
    "cached",
    "exists",
    "open_storage",
    "safe_url",
]

DEFAULT_URL = "sqlite:///tuner.db"

BUSY_SECONDS = 30.0
"""How long a writer waits for another before it gives up."""

QUICK_SECONDS = 0.1
"""How long it looks again and again whether the other is ready, rather than go to sleep."""


# Optuna's tables: written in bulk here, where its own methods take several statements for every single value
_STUDIES = cast("sa.Table", models.StudyModel.__table__)
_DIRECTIONS = cast("sa.Table", models.StudyDirectionModel.__table__)
_STUDY_ATTRS = cast("sa.Table", models.StudyUserAttributeModel.__table__)
_TRIALS = cast("sa.Table", models.TrialModel.__table__)
_PARAMS = cast("sa.Table", models.TrialParamModel.__table__)
_VALUES = cast("sa.Table", models.TrialValueModel.__table__)
_REPORTS = cast("sa.Table", models.TrialIntermediateValueModel.__table__)
USER_ATTRS = cast("sa.Table", models.TrialUserAttributeModel.__table__)
SYSTEM_ATTRS = cast("sa.Table", models.TrialSystemAttributeModel.__table__)


class SqliteConnection(sqlite3.Connection):
    """A connection with our PRAGMAs; as a class, because event listeners do not survive pickling."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.execute("PRAGMA journal_mode = WAL")  # readers, such as the dashboard, do not block writers
        self.execute(
            "PRAGMA synchronous = NORMAL"
        )  # safe in WAL: a crash of the machine loses no consistency
        self.execute("PRAGMA foreign_keys = ON")

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
            self.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")


class Database(RDBStorage):
    """Optuna's storage on its unmodified schema, with transactions that hold together.

    Use `open_storage` to get one.
    """

    def __init__(self, url: str, *, skip_table_creation: bool = False) -> None:
        super().__init__(url, engine_kwargs=_engine_settings(url), skip_table_creation=skip_table_creation)
        self._prepare()

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        self._prepare()

    def _prepare(self) -> None:
        if self.engine.dialect.name == "sqlite":
            sa.event.listen(self.engine, "connect", _leave_transactions_to_us)
            sa.event.listen(self.engine, "begin", _begin_immediate)
            self.engine.dispose()  # connections made before know nothing of this

    def close(self) -> None:
        """Close all connections. Those of other threads close when their threads end."""
        self.scoped_session.remove()
        self.engine.dispose()

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A session whose changes are committed together at the end, or not at all.

        Raises:
            StorageError: the database does not answer, or refuses.
        """
        try:
            with _create_scoped_session(self.scoped_session) as session:
                yield session
        except (optuna.exceptions.StorageInternalError, sa.exc.SQLAlchemyError) as error:
            raise self.explain(error) from error

    def explain(self, error: Exception) -> StorageError:
        """The same in words: which database, and its own reason."""
        return StorageError(f"{safe_url(self.url)} failed: {_reason(error.__cause__ or error)}")

    def create_defined_study(
        self, name: str, direction: StudyDirection, user_attrs: Mapping[str, Any]
    ) -> None:
        """Create a study with its attributes in one transaction.

        Raises:
            DuplicatedStudyError: there is one of this name.
            StorageError: the database does not answer, or refuses.
        """
        try:
            with self.transaction() as session:
                insert = sa.insert(_STUDIES).values(study_name=name).returning(_STUDIES.c.study_id)
                study_id = session.execute(insert).scalar_one()
                directions = sa.insert(_DIRECTIONS)
                session.execute(directions.values(study_id=study_id, objective=0, direction=direction))
                rows = [
                    {"study_id": study_id, "key": key, "value_json": json.dumps(value)}
                    for key, value in user_attrs.items()
                ]
                session.execute(sa.insert(_STUDY_ATTRS), rows)
        except StorageError as error:
            if isinstance(error.__cause__, sa.exc.IntegrityError):
                raise optuna.exceptions.DuplicatedStudyError(name) from error
            raise

    def lock_study(self, session: Session, study_id: int) -> None:
        """Let no other transaction that does the same go on before this one ends.

        Numbers are given and budgets counted under this lock. SQLite has locked the whole database already.
        """
        if self.engine.dialect.name != "sqlite":
            lock = sa.select(_STUDIES.c.study_id).where(_STUDIES.c.study_id == study_id).with_for_update()
            session.execute(lock)

    def is_running(self, session: Session, trial_id: int) -> bool:
        """Whether the trial is running still: somebody may have ended it by hand, in the dashboard for instance."""
        state = sa.select(_TRIALS.c.state).where(_TRIALS.c.trial_id == trial_id)
        return bool(session.execute(state).scalar_one() == TrialState.RUNNING)

    def create_trial(self, session: Session, study_id: int, number: int, template: FrozenTrial) -> int | None:
        """Create trial `number` with the state, parameters and system attributes of `template`.

        Needs the study's lock. Returns its id, or None if the next number is another one by now: numbers are given
        one after the other.
        """
        count = sa.select(sa.func.count()).select_from(_TRIALS).where(_TRIALS.c.study_id == study_id)
        if session.scalar(count) != number:
            return None
        insert = sa.insert(_TRIALS).values(
            study_id=study_id, number=number, state=template.state, datetime_start=datetime.now()
        )
        trial_id = cast("int", session.execute(insert.returning(_TRIALS.c.trial_id)).scalar_one())
        self.set_params(session, trial_id, template.params, template.distributions)
        self.set_attrs(session, SYSTEM_ATTRS, trial_id, template.system_attrs)
        return trial_id

    def claim_trial(self, session: Session, trial_id: int) -> bool:
        """Set a waiting trial running; False if it was not waiting any more."""
        changed = session.execute(
            sa.update(_TRIALS)
            .where(_TRIALS.c.trial_id == trial_id, _TRIALS.c.state == TrialState.WAITING)
            .values(state=TrialState.RUNNING, datetime_start=datetime.now())
        )
        assert isinstance(changed, sa.CursorResult)
        return changed.rowcount == 1

    def set_params(
        self,
        session: Session,
        trial_id: int,
        params: Mapping[str, Any],
        distributions: Mapping[str, BaseDistribution],
    ) -> None:
        """Give a trial that has none its parameters."""
        rows = [
            {
                "trial_id": trial_id,
                "param_name": name,
                "param_value": distributions[name].to_internal_repr(value),
                "distribution_json": distribution_to_json(distributions[name]),
            }
            for name, value in params.items()
        ]
        if rows:
            session.execute(sa.insert(_PARAMS), rows)

    def set_attrs(self, session: Session, table: sa.Table, trial_id: int, attrs: Mapping[str, Any]) -> None:
        """Set `USER_ATTRS` or `SYSTEM_ATTRS` of a trial, replacing those of the same keys."""
        if not attrs:
            return
        session.execute(sa.delete(table).where(table.c.trial_id == trial_id, table.c.key.in_(list(attrs))))
        rows = [{"trial_id": trial_id, "key": k, "value_json": json.dumps(v)} for k, v in attrs.items()]
        session.execute(sa.insert(table), rows)

    def report_value(self, session: Session, trial_id: int, step: int, value: float) -> None:
        """Add the intermediate value of a step that has none."""
        stored, kind = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(value)
        session.execute(
            sa.insert(_REPORTS).values(
                trial_id=trial_id, step=step, intermediate_value=stored, intermediate_value_type=kind
            )
        )

    def forget_reports(self, session: Session, trial_id: int) -> None:
        """Delete all intermediate values of a trial that is about to run again from its first epoch."""
        session.execute(sa.delete(_REPORTS).where(_REPORTS.c.trial_id == trial_id))

    def finish_trial(
        self,
        session: Session,
        trial_id: int,
        state: TrialState,
        values: Sequence[float] | None,
        user_attrs: Mapping[str, Any],
    ) -> None:
        """End a running trial with its values, none of them NaN, and attributes."""
        assert not any(math.isnan(value) for value in values or ())  # Optuna could not read it back
        self.set_attrs(session, USER_ATTRS, trial_id, user_attrs)
        for objective, value in enumerate(values or ()):
            stored, kind = models.TrialValueModel.value_to_stored_repr(value)
            session.execute(
                sa.insert(_VALUES).values(
                    trial_id=trial_id, objective=objective, value=stored, value_type=kind
                )
            )
        session.execute(
            sa.update(_TRIALS)
            .where(_TRIALS.c.trial_id == trial_id)
            .values(state=state, datetime_complete=datetime.now())
        )


def open_storage(url: str, *metadata: sa.MetaData) -> Database:
    """Open the database at `url`; where it is empty, create Optuna's tables and those of `metadata` under a lock.

    Raises:
        StorageError: it cannot be opened; the text says which database and why.
    """
    parsed = _parse(url)
    name = safe_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        folder = Path(parsed.database).resolve().parent
        if not folder.is_dir():
            raise StorageError(f"cannot open {name}: the folder {folder} does not exist")
    try:
        if not _is_complete(parsed, metadata):
            with _creation_lock(parsed):
                _create(parsed, metadata)
        return Database(parsed.render_as_string(hide_password=False), skip_table_creation=True)
    except ImportError as error:
        raise StorageError(
            f"cannot open {name}: its driver is not installed ({error}); "
            "for PostgreSQL: pip install 'tuner[postgresql]'"
        ) from None
    except optuna.exceptions.StorageInternalError as error:
        raise StorageError(f"cannot open {name}: {_reason(error.__cause__ or error)}") from error
    except sa.exc.SQLAlchemyError as error:
        raise StorageError(f"cannot open {name}: {_reason(error)}") from error
    except (OSError, Timeout) as error:
        raise StorageError(f"cannot open {name}: {error}") from error
    except RuntimeError as error:  # Optuna's word for a schema of another version
        raise StorageError(f"cannot use {name}: {error}") from error


def cached(database: Database) -> BaseStorage:
    """The database behind Optuna's cache of finished trials: what studies are opened on."""
    return optuna.storages.get_storage(database)


def exists(url: str) -> bool:
    """Whether there is anything to open; of a server one only knows by asking it, so True.

    Raises:
        StorageError: `url` is no URL of a database.
    """
    parsed = _parse(url)
    return parsed.get_backend_name() != "sqlite" or Path(parsed.database or "").exists()


def absolute(url: str) -> str:
    """The URL as it reads in any folder of this machine: the path of an SQLite file is made absolute.

    Raises:
        StorageError: `url` is no URL of a database.
    """
    parsed = _parse(url)
    if parsed.get_backend_name() == "sqlite":
        parsed = parsed.set(database=str(Path(parsed.database or "").resolve()))
    return parsed.render_as_string(hide_password=False)


def safe_url(url: str) -> str:
    """The URL without its password, for messages."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except sa.exc.ArgumentError:
        return url


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except sa.exc.ArgumentError:
        raise StorageError(
            f"{url!r} is no database URL; it looks like sqlite:///tuner.db or postgresql://user@host/name"
        ) from None
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise StorageError(f"{url!r} lives in one process only; give a file, as in sqlite:///tuner.db")
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    return parsed


def _engine_settings(url: str) -> dict[str, Any]:
    if make_url(url).get_backend_name() == "sqlite":
        return {"connect_args": {"factory": SqliteConnection, "timeout": BUSY_SECONDS}}
    return {"pool_pre_ping": True, "connect_args": {"connect_timeout": int(BUSY_SECONDS)}}


def _leave_transactions_to_us(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None


def _begin_immediate(connection: sa.Connection) -> None:
    """Begin a transaction that may write, as soon as the one before it has ended.

    SQLite itself sleeps for longer and longer between its attempts, up to 0.1 s, which costs workers that report often
    more than their writing does. Ours sleeps for a fraction of a millisecond, and leaves the rest to SQLite's.
    """
    driver = connection.connection.driver_connection
    assert isinstance(driver, SqliteConnection)
    if not driver.begins_soon():
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _is_complete(url: URL, metadata: Sequence[sa.MetaData]) -> bool:
    """Whether all tables are there; Optuna stamps its version last, so that one counts too."""
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        return False
    engine = sa.create_engine(url)
    try:
        with engine.connect() as connection:
            there = set(sa.inspect(connection).get_table_names())
            wanted = {table for tables in metadata for table in tables.tables} | {"alembic_version"}
            if not wanted <= there:
                return False
            return connection.execute(sa.text("SELECT version_num FROM alembic_version")).first() is not None
    finally:
        engine.dispose()


def _create(url: URL, metadata: Sequence[sa.MetaData]) -> None:
    database = Database(url.render_as_string(hide_password=False))
    for tables in metadata:
        tables.create_all(database.engine)
    database.engine.dispose()


@contextmanager
def _creation_lock(url: URL) -> Iterator[None]:
    """Held while tables are created: two processes doing it at once would crash each other."""
    lock: AbstractContextManager[Any] = nullcontext()
    if url.get_backend_name() == "sqlite":
        digest = hashlib.sha256(str(Path(url.database or "").resolve()).encode()).hexdigest()[:16]
        path = Path(tempfile.gettempdir()) / f"tuner-{digest}.lock"
        lock = FileLock(path, timeout=BUSY_SECONDS, mode=0o666)  # another user may be the next
    elif url.get_backend_name() == "postgresql":
        lock = _advisory_lock(url)
    with lock:
        yield


@contextmanager
def _advisory_lock(url: URL) -> Iterator[None]:
    engine = sa.create_engine(url)
    try:
        with engine.connect() as connection:  # closing the connection gives the lock back
            connection.execute(sa.text("SELECT pg_advisory_lock(7461)"))
            yield
    finally:
        engine.dispose()


def _reason(error: BaseException) -> str:
    return str(getattr(error, "orig", None) or error).strip().splitlines()[0]
