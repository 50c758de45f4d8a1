"""Opening a database: settings, creation by many at once, errors in words."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import pickle
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from command import processes
from optuna.study import StudyDirection
from optuna.trial import TrialState

from tuner.errors import StorageError
from tuner.schema import open_storage
from tuner.storage import Database, Mode, cached, in_turn, safe_url
from tuner.tables import metadata

STARTS, ROUNDS = 8, 4 if os.environ.get("CHAOS") == "full" else 1


def _open_and_create(urls: list[str], number: int, barrier: Any, done: Any) -> None:
    """In each round, at the same moment as all others, open a database that is not there yet, and use it."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        for url in urls:
            barrier.wait(120)
            database = open_storage(url)
            optuna.create_study(study_name=f"s{number}", storage=cached(database))
            database.close()
        done.put("ok")
    except BaseException as error:
        barrier.abort()
        done.put(repr(error))
        raise


@contextmanager
def _fresh(url: str) -> Iterator[list[str]]:
    """Databases for some rounds, beside that of `url`."""
    parsed = sa.make_url(url)
    names = [f"{parsed.database}_{n}" for n in range(ROUNDS)]
    urls = [parsed.set(database=name).render_as_string(hide_password=False) for name in names]
    if parsed.get_backend_name() == "sqlite":
        yield urls
        return
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for name in names:
            connection.execute(sa.text(f"CREATE DATABASE {name}"))
        yield urls
        for name in names:
            connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
    engine.dispose()


@pytest.mark.long
def test_many_first_starts_at_once(url: str) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, done = context.Barrier(STARTS), context.SimpleQueue()
    with _fresh(url) as urls:
        started = [
            context.Process(target=_open_and_create, args=(urls, number, barrier, done))
            for number in range(STARTS)
        ]
        for process in started:
            process.start()
        assert [done.get() for _ in started] == ["ok"] * STARTS
        for process in started:
            process.join()
        for each in urls:
            database = open_storage(each)
            assert {s.study_name for s in database.get_all_studies()} == {f"s{n}" for n in range(STARTS)}
            database.close()


def test_the_schema_is_optunas_own_and_our_own_tables_beside_it(url: str) -> None:
    database = open_storage(url)
    there = set(sa.inspect(database.engine).get_table_names())
    optunas = set(optuna.storages._rdb.models.BaseModel.metadata.tables)
    assert there == optunas | {"alembic_version", "tuner_alembic_version", *metadata.tables}
    assert database.get_current_version() == database.get_head_version()
    database.close()


def test_sqlite_settings_hold_after_pickling(sqlite_url: str) -> None:
    first = open_storage(sqlite_url)
    for database in (first, pickle.loads(pickle.dumps(first))):
        assert isinstance(database, Database)
        with database.engine.connect() as connection:
            pragma = {
                name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
                for name in ("journal_mode", "busy_timeout", "foreign_keys", "synchronous")
            }
            full = 2
            assert pragma == {
                "journal_mode": "wal",
                "busy_timeout": 30_000,
                "foreign_keys": 1,
                "synchronous": full,
            }
            assert connection.connection.in_transaction  # BEGIN IMMEDIATE has been said
        database.close()


def test_turns_are_taken_one_by_one_and_never_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    turn, entered, may_leave = in_turn("write", "here"), threading.Event(), threading.Event()
    assert in_turn("write", "here") is turn
    assert in_turn("write", "there") is not turn

    def hold() -> None:
        with turn, turn:  # again by the same thread
            entered.set()
            may_leave.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    assert entered.wait(30)
    assert not turn._lock.acquire(blocking=False)
    monkeypatch.setattr("tuner.storage.BUSY_SECONDS", 0.05)
    with turn:  # the other is taking too long
        assert holder.is_alive()
    assert not turn._lock.acquire(blocking=False)  # and has it still
    may_leave.set()
    holder.join()
    assert turn._lock.acquire(blocking=False)


IN_A_FORK = """
import os, threading
from tuner import storage
storage.BUSY_SECONDS = 1.0
turn, entered = storage.in_turn("write", "here"), threading.Event()
def hold():
    with turn:
        entered.set()
        threading.Event().wait()
threading.Thread(target=hold, daemon=True).start()
entered.wait()
if (child := os.fork()) == 0:
    with turn, storage.in_turn("write", "here"):
        os._exit(0 if turn._held.held == [True, True] else 1)
os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no forks")
def test_what_a_thread_held_is_free_in_a_fork() -> None:
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", IN_A_FORK], check=False, timeout=60)
    assert ended.returncode == 0


def _claim(url: str) -> int:
    database = open_storage(url)
    (waiting,) = database.get_all_trials(1, states=(TrialState.WAITING,)) or [None]
    claimed = waiting is not None and database.set_trial_state_values(waiting._trial_id, TrialState.RUNNING)
    database.close()
    return int(claimed)


def test_a_waiting_trial_is_claimed_once(sqlite_url: str) -> None:
    database = open_storage(sqlite_url)
    study = optuna.create_study(storage=cached(database))
    with processes(4) as pool:
        for _ in range(5):
            study.enqueue_trial({})
            assert sum(pool.map(_claim, [sqlite_url] * 4)) == 1
    database.close()


def test_passwords_are_not_shown() -> None:
    url = "postgresql+psycopg://tuner:secret@127.0.0.1:1/x?connect_timeout=1"
    assert "secret" not in safe_url(url)
    with pytest.raises(StorageError, match="cannot open postgresql") as caught:
        open_storage(url)
    assert "secret" not in str(caught.value)
    with pytest.raises(StorageError, match="its driver is not installed"):
        open_storage("mysql+pymysql://u@h/d")


def _connected(url: str) -> Database:
    """A database that has been used: before, it does not know yet whether the file has a log, and is more careful."""
    database = open_storage(url)
    with database.transaction(Mode.READ):
        return database


class _Entries:
    """A turn that tells when so many have come to it."""

    def __init__(self, turn: object, wanted: int) -> None:
        self._turn, self._wanted, self._came = turn, wanted, 0
        self._lock, self.all_came = threading.Lock(), threading.Event()

    def __enter__(self) -> None:
        with self._lock:
            self._came += 1
            if self._came == self._wanted:
                self.all_came.set()
        self._turn.__enter__()  # type: ignore[attr-defined]

    def __exit__(self, *error: object) -> None:
        self._turn.__exit__(*error)  # type: ignore[attr-defined]


def test_a_durable_transaction_is_on_the_disk_when_it_ends_and_holds_no_lock_meanwhile(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, synced = _connected(sqlite_url), []
    file = sqlite_url.removeprefix("sqlite:///")

    def sync(log: str) -> None:
        with contextlib.closing(sqlite3.connect(file, timeout=0, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")  # nobody has the lock
            synced.append((log, [name for (name,) in other.execute("SELECT study_name FROM studies")]))

    monkeypatch.setattr("tuner.storage._sync", sync)

    def create(name: str, mode: Mode = Mode.DURABLE) -> None:
        with database.transaction(mode) as session:
            database.create_study(session, name, [StudyDirection.MINIMIZE], {"a": 1})

    create("a")
    assert synced == [(f"{file}-wal", ["a"])]
    create("b", Mode.RELAXED)
    assert len(synced) == 1
    with database.settled():
        create("c")
        with database.settled():
            create("d")
        assert len(synced) == 1
    assert synced[1:] == [(f"{file}-wal", ["a", "b", "c", "d"])]
    with database.settled(), database.transaction(Mode.READ):
        pass  # what it has read may be what another has just written
    assert len(synced) == 3
    database.close()


def test_threads_wait_for_the_disk_together(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    database = _connected(sqlite_url)
    log, synced = database._log, []
    turn = log._turn = _Entries(log._turn, 6)  # type: ignore[assignment]

    def sync(_file: str) -> None:
        synced.append(1)
        assert turn.all_came.wait(30)

    monkeypatch.setattr("tuner.storage._sync", sync)

    def create(name: str) -> None:
        with database.transaction() as session:
            database.create_study(session, name, [StudyDirection.MINIMIZE], {"a": 1})

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(create, "abcdef"))
    assert len(synced) == 2, "the first for itself, the second for all that came meanwhile"
    database.close()


def test_a_log_that_cannot_be_written_is_no_durable_transaction(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = _connected(sqlite_url)

    def sync(_file: str) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("tuner.storage._sync", sync)
    with (
        pytest.raises(StorageError, match=r"cannot be written to: Input/output error"),
        database.transaction(),
    ):
        pass
    database.close()
