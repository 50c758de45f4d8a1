"""What goes wrong with a database is told in one line: which database, its reason, what to do; and nothing is lost."""

from __future__ import annotations

import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from optuna.trial import TrialState
from postgresql import Server, absent, server, server_programs

import tuner.cli
import tuner.schema
import tuner.storage
from tuner import StudyDefinition, StudyManager
from tuner.ask_tell import AskTell
from tuner.errors import StorageError, StorageUnavailableError
from tuner.schema import open_storage
from tuner.storage import Database, SqliteConnection, patiently

DEFINITION = {"name": "s", "space": {"x": {"low": 0.0, "high": 1.0}}, "budget": {"trials": 2}}


def begin(url: str) -> AskTell:
    manager = StudyManager(url)
    manager.create(StudyDefinition.parse(DEFINITION))
    return manager.ask_tell("s")


def said(error: pytest.ExceptionInfo[StorageError], *parts: str, secret: str = "s3cret") -> None:
    text = str(error.value)
    assert "\n" not in text
    assert secret not in text
    for part in parts:
        assert part in text


@pytest.fixture
def failing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs a command that fails; its one line."""

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["tuner", *arguments])
        with pytest.raises(SystemExit) as ended:
            tuner.cli.main()
        assert ended.value.code == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        return line

    return run


def test_a_full_disk_in_mid_run_loses_nothing(sqlite_url: str) -> None:
    ask_tell = begin(sqlite_url)
    first, second = ask_tell.ask(), ask_tell.ask()
    assert first is not None
    assert second is not None
    ask_tell.tell(first, TrialState.COMPLETE, 0.5)
    is_full = True

    def limit(connection: Any, *_: Any) -> None:
        connection.execute(f"PRAGMA max_page_count = {1 if is_full else 2**30}")  # no fewer than there are

    engine = ask_tell.ledger.database.engine
    sa.event.listen(engine, "checkout", limit)
    for _ in range(2):
        with pytest.raises(StorageError) as full:
            ask_tell.tell(second, TrialState.COMPLETE, 0.25, {"large": "x" * 2**20})
        said(full, "tuner.db failed: database or disk is full", "make room")
        assert not isinstance(full.value, StorageUnavailableError)
    assert [trial.state.name for trial in ask_tell.study.trials] == ["COMPLETE", "RUNNING"]
    is_full = False
    ask_tell.tell(second, TrialState.COMPLETE, 0.25, {"large": "x" * 2**20})
    sa.event.remove(engine, "checkout", limit)
    assert [trial.value for trial in ask_tell.study.trials] == [0.5, 0.25]
    assert ask_tell.spent().ended == 2


@pytest.mark.parametrize("pages", [1, 8, 20])
def test_a_full_disk_at_creation_is_no_half_made_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pages: int
) -> None:
    url = f"sqlite:///{tmp_path}/new.db"

    class Small(SqliteConnection):
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **more)
            self.execute(f"PRAGMA max_page_count = {pages}")

    with monkeypatch.context() as full_disk:
        full_disk.setattr(tuner.storage, "SqliteConnection", Small)
        with pytest.raises(StorageError) as full:
            open_storage(url)
    said(full, "cannot open sqlite:///", "database or disk is full", "make room")
    assert begin(url).ask() is not None


def test_a_database_that_may_only_be_read(sqlite_url: str, failing: Callable[..., str]) -> None:
    begin(sqlite_url).ask()
    read_only = f"sqlite:///file:{sqlite_url.removeprefix('sqlite:///')}?mode=ro&uri=true"
    manager = StudyManager(read_only)
    assert len(manager.load("s").trials) == 1
    with pytest.raises(StorageError) as refused:
        manager.ask_tell("s").ask()
    said(refused, "attempt to write a readonly database", "may not be written to")
    assert not isinstance(refused.value, StorageUnavailableError)
    line = failing("archive", "s", "--storage", read_only)
    assert "attempt to write a readonly database" in line


def test_a_file_that_is_no_database(tmp_path: Path, failing: Callable[..., str]) -> None:
    (tmp_path / "notes.db").write_text("not a database at all, but long enough to look like a file\n" * 50)
    url = f"sqlite:///{tmp_path}/notes.db"
    with pytest.raises(StorageError) as refused:
        open_storage(url)
    said(refused, f"cannot open {url}: file is not a database", "some other kind of file")
    line = failing("studies", "--storage", url)
    assert "file is not a database" in line


@pytest.fixture(scope="module")
def guarded() -> Iterator[Server]:
    """A server that asks for a password."""
    if server_programs() is None:
        absent("PostgreSQL's server programs are not installed")
    with server() as running:
        with psycopg.connect(
            user="tuner", host=running.folder, dbname="postgres", autocommit=True
        ) as connection:
            connection.execute("ALTER USER tuner PASSWORD 's3cret'")
        running.require_password()
        yield running


@pytest.fixture
def _no_password_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGPASSWORD", raising=False)
    monkeypatch.setenv("PGPASSFILE", "/nowhere")


@pytest.mark.usefixtures("_no_password_of_ones_own")
@pytest.mark.parametrize(
    ("password", "database", "parts"),
    [
        (
            ":s3cretwrong",
            "postgres",
            ("password authentication failed", "the URL's user or password is wrong"),
        ),
        ("", "postgres", ("no password supplied", "put the password into the URL")),
        (":s3cret", "absent", ('database "absent" does not exist', "createdb")),
    ],
)
def test_a_server_that_turns_one_away(
    guarded: Server,
    failing: Callable[..., str],
    password: str,
    database: str,
    parts: tuple[str, ...],
) -> None:
    url = guarded.url.format(database=database).replace("tuner@", f"tuner{password}@")
    with pytest.raises(StorageError) as refused:
        open_storage(url)
    said(refused, "cannot open postgresql+psycopg://tuner", *parts)
    assert not isinstance(refused.value, StorageUnavailableError)  # no second try helps
    line = failing("studies", "--storage", url)
    assert parts[0] in line
    assert "s3cret" not in line


def test_the_right_password_opens(guarded: Server) -> None:
    open_storage(guarded.url.format(database="postgres").replace("tuner@", "tuner:s3cret@")).close()


def test_a_server_that_is_gone_at_open(tmp_path: Path, failing: Callable[..., str]) -> None:
    url = f"postgresql://tuner:s3cret@/postgres?host={tmp_path}"
    with pytest.raises(StorageUnavailableError) as gone:
        open_storage(url)
    said(gone, "cannot open postgresql", "is the server running")
    assert "is the server running" in failing("studies", "--storage", url)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuner.storage, "BUSY_SECONDS", 0.2)
    monkeypatch.setattr(tuner.storage, "PATIENCE", 0.5)


@pytest.mark.usefixtures("impatient")
def test_a_lock_that_another_holds_on_sqlite(sqlite_url: str) -> None:
    ask_tell = begin(sqlite_url)
    other = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageUnavailableError) as locked:
        ask_tell.ask()
    said(locked, "tuner.db failed: database is locked", "another process", "tried again for")
    other.execute("ROLLBACK")
    other.close()
    lease = ask_tell.ask()
    assert lease is not None
    assert lease.number == 0


@pytest.mark.usefixtures("impatient")
def test_a_lock_that_another_holds_on_postgresql(postgresql_url: str) -> None:
    ask_tell = begin(postgresql_url)
    other = sa.create_engine(postgresql_url)
    with other.begin() as connection:
        connection.execute(sa.text("LOCK TABLE tuner_spent IN ACCESS EXCLUSIVE MODE"))
        with pytest.raises(StorageUnavailableError) as locked:
            ask_tell.ask()
    other.dispose()
    said(locked, "canceling statement due to lock timeout", "another transaction", "tried again for")
    assert ask_tell.ask() is not None
    with pytest.raises(StorageUnavailableError) as slow, ask_tell.ledger.transaction() as session:
        session.execute(sa.text("SELECT pg_sleep(5)"))
    said(slow, "canceling statement due to statement timeout", "took longer")


class _Trying:
    """Something that is tried again."""

    def __init__(self, database: Database) -> None:
        self.database, self.url, self.tries = database, database.url, 0
        self.met = threading.Barrier(2)

    @patiently
    def add(self, first: int, second: int) -> None:
        """Lock two rows in this order, the first time when another has locked the other one."""
        self.tries += 1
        with self.database.transaction() as session:
            more = sa.text("UPDATE numbers SET n = n + 1 WHERE id = :id")
            session.execute(more, {"id": first})
            if not self.met.broken and self.tries <= 2:
                self.met.wait(20)
            session.execute(more, {"id": second})

    @patiently
    def add_serially(self, meanwhile: sa.Engine) -> None:
        """Add to a row that, the first time, another changes since it was read."""
        self.tries += 1
        with self.database.transaction() as session:
            session.execute(sa.text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
            session.execute(sa.text("SELECT n FROM numbers"))
            if self.tries == 1:
                with meanwhile.begin() as other:
                    other.execute(sa.text("UPDATE numbers SET n = n + 10"))
            session.execute(sa.text("UPDATE numbers SET n = n + 1"))


def test_deadlocks_and_serialization_failures_are_tried_again(postgresql_url: str) -> None:
    database, other = open_storage(postgresql_url), sa.create_engine(postgresql_url)
    with database.transaction() as session:
        session.execute(sa.text("CREATE TABLE numbers (id int, n int)"))
        session.execute(sa.text("INSERT INTO numbers VALUES (1, 0), (2, 0)"))
    both = _Trying(database)
    threads = [threading.Thread(target=both.add, args=order) for order in ((1, 2), (2, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert both.tries == 3  # one of the two was the deadlock's victim
    alone = _Trying(database)
    alone.add_serially(other)
    assert alone.tries == 2
    with database.transaction() as session:
        assert session.scalars(sa.text("SELECT n FROM numbers")).all() == [13, 13]
    other.dispose()
    database.close()
