"""Backups of one kind of database restored into either, and studies carried between them: nothing is lost."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

import pytest
import sqlalchemy as sa
from command import Tuner
from optuna.storages._rdb import models
from optuna.trial import TrialState
from postgresql import Server

from tuner import StudyDefinition, StudyManager, TunerError
from tuner.backup import backup, restore
from tuner.cli import export_
from tuner.errors import ConflictError, NotFoundError, StorageError
from tuner.schema import HEAD, StorageInfo, info, make, open_storage, upgrade
from tuner.service.auth import Tokens
from tuner.service.identity import Role
from tuner.tables import metadata

DEFINITION: dict[str, Any] = {
    "name": "kept",
    "space": {
        "x": {"low": 1e-7, "high": 1.0, "scale": "log"},
        "momentum": {"low": 0.5, "high": 0.999, "scale": "reverse_log"},
        "units": {"type": "int", "low": 1, "high": 64},
        "activation": {"choices": ["relu", "tänh", True, None, 0.1]},
    },
    "sampler": {"name": "random"},
    "budget": {"trials": 50},
}


@pytest.fixture(params=["sqlite", "postgresql"])
def other(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Another database of each kind in which there is nothing yet."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/other.db"
    else:
        server: Server = request.getfixturevalue("postgresql_server")
        with server.database(f"other of {request.node.nodeid}") as url:
            yield url


def fill(url: str) -> str:
    """A database with one of everything; the text of its token."""
    with StudyManager(url) as manager:
        manager.create(StudyDefinition.parse(DEFINITION))
        ask_tell = manager.ask_tell("kept")
        for value in (0.1 + 0.2, float("inf"), float("-inf"), -5e-324, 1.7976931348623157e308):
            lease = ask_tell.ask()
            assert lease is not None
            ask_tell.report_many(lease, {1: 3.0, 2: float("inf"), 3: 0.1}, seconds=0.1)
            ask_tell.tell(
                lease, TrialState.COMPLETE, value, {"note": "ünïcode \U0001f43c", "nested": [1, {"a": None}]}
            )
        pruned, failed, given_back, running = (ask_tell.ask() for _ in range(4))
        assert pruned is not None and failed is not None and given_back is not None and running is not None  # noqa: PT018
        ask_tell.report_many(pruned, {1: 2.0, 2: float("nan")})
        ask_tell.tell(pruned, TrialState.PRUNED, 2.5)
        ask_tell.tell(failed, TrialState.FAIL, None, {"failure": "on purpose"})
        ask_tell.save_checkpoint(given_back, 1, bytes(range(256)))
        ask_tell.release(given_back)
        ask_tell.report(running, 1, 0.5)
        manager.stop("kept", running.number)
        ask_tell.enqueue({"units": 7}, {})
        manager.create(StudyDefinition.parse({**DEFINITION, "name": "empty"}))
        manager.archive("empty")
        with closing(Tokens(manager.ledger.database)) as tokens:
            return tokens.create("ann", Role.OPERATOR, prefix="k", expires_in=1e6)[0]


def rows(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """All that a database holds, by table, but for what says how its tables are."""
    engine = sa.create_engine(url)
    tables = [*models.BaseModel.metadata.sorted_tables, *metadata.sorted_tables]
    try:
        with engine.connect() as connection:
            return {
                table.name: sorted((tuple(row) for row in connection.execute(sa.select(table))), key=repr)
                for table in tables
                if table.name != "version_info"
            }
    finally:
        engine.dispose()


def test_all_comes_back_in_either_kind(url: str, other: str, tmp_path: Path) -> None:
    token = fill(url)
    file = tmp_path / "backup.db"
    backup(url, file)
    assert restore(other, file) == HEAD
    before = rows(url)
    assert rows(other) == before
    assert {name for name, found in before.items() if not found} == {
        "study_system_attributes", "trial_heartbeats", "tuner_runs",
    }  # fmt: skip
    with StudyManager(other) as manager:  # and goes on from there: ids are not given out twice
        lease = manager.ask_tell("kept").ask()
        assert lease is not None
        manager.create(StudyDefinition.parse({**DEFINITION, "name": "new"}))
        manager.stop("kept", lease.number)
        with closing(Tokens(manager.ledger.database)) as tokens:
            assert tokens.verify(token) is not None


def test_backup_is_a_database(url: str, tmp_path: Path) -> None:
    fill(url)
    file = tmp_path / "backup.db"
    backup(url, file)
    with StudyManager(f"sqlite:///{file}") as manager:
        assert [summary.name for summary in manager.studies()] == ["kept"]
    assert not list(tmp_path.glob("*.part*"))


def test_backup_is_of_one_moment(url: str, tmp_path: Path) -> None:
    """While trials end, each backup has as many ended trials as its books say."""
    with StudyManager(url) as manager:
        manager.create(StudyDefinition.parse({**DEFINITION, "budget": {"trials": 500}}))
        ask_tell, stop = manager.ask_tell("kept"), threading.Event()

        def work() -> None:
            while not stop.is_set() and (lease := ask_tell.ask()) is not None:
                ask_tell.tell(lease, TrialState.COMPLETE, 1.0)

        worker = threading.Thread(target=work)
        worker.start()
        counts = []
        try:
            for number in range(5):
                file = tmp_path / f"{number}.db"
                backup(url, file)
                with closing(sqlite3.connect(file)) as connection:
                    [[books]] = connection.execute("SELECT ended FROM tuner_spent").fetchall() or [[0]]
                    [[ended]] = connection.execute("SELECT COUNT(*) FROM trials WHERE state = 'COMPLETE'")
                counts.append((books, ended))
        finally:
            stop.set()
            worker.join()
    assert [books for books, _ in counts] == [ended for _, ended in counts]
    assert counts[-1][0] > 0


@pytest.mark.parametrize("version", ["0001", "0002"])
def test_backup_of_an_older_version(empty_url: str, version: str, other: str, tmp_path: Path) -> None:
    url = empty_url
    make(url, version)
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO studies (study_name) VALUES ('old')"))
        columns = "study_id, trials, ended, epochs, seconds"
        connection.execute(sa.text(f"INSERT INTO tuner_spent ({columns}) VALUES (1, 7, 5, 3, 0.5)"))
    engine.dispose()
    file = tmp_path / "backup.db"
    backup(url, file)
    assert info(f"sqlite:///{file}").version == version
    assert restore(other, file) == version
    assert info(other).version == HEAD
    assert rows(other)["tuner_spent"] == [(1, 7, 5, 3, 0.5, "open")]


def test_rows_of_deleted_studies_are_left_behind(
    sqlite_url: str, postgresql_url: str, tmp_path: Path
) -> None:
    """A stock dashboard deletes a study from SQLite without our tables' rows; PostgreSQL would not take those."""
    fill(sqlite_url)
    with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))) as connection, connection:
        [[gone]] = connection.execute("SELECT study_id FROM studies WHERE study_name = 'empty'").fetchall()
        connection.execute("INSERT INTO tuner_checkpoints VALUES (?, 9999, 1, x'00')", [gone])
    backup(sqlite_url, tmp_path / "backup.db")
    restore(postgresql_url, tmp_path / "backup.db")
    found = rows(sqlite_url)
    found["tuner_checkpoints"] = [row for row in found["tuner_checkpoints"] if row[1] != 9999]
    assert rows(postgresql_url) == found


def _empty(folder: Path) -> Path:
    return folder / "nothing.db"


def _text(folder: Path) -> Path:
    (folder / "text").write_text("no database" * 1000)
    return folder / "text"


def _foreign(folder: Path) -> Path:
    with closing(sqlite3.connect(folder / "foreign.db")) as connection, connection:
        connection.execute("CREATE TABLE t (x)")
    return folder / "foreign.db"


def _damaged(folder: Path) -> Path:
    fill(f"sqlite:///{folder}/whole.db")
    backup(f"sqlite:///{folder}/whole.db", folder / "damaged.db")
    with (folder / "damaged.db").open("r+b") as file:
        file.seek(20_000)
        file.write(b"\xff" * 30_000)
    return folder / "damaged.db"


@pytest.mark.parametrize(
    ("make_file", "error", "text"),
    [
        (_empty, NotFoundError, "there is no file"),
        (_text, StorageError, "is no backup: file is not a database"),
        (_foreign, StorageError, "it has no tables of this program"),
        (_damaged, StorageError, "damaged"),
    ],
)
def test_what_is_no_backup_changes_nothing(
    url: str, tmp_path: Path, make_file: Callable[[Path], Path], error: type[TunerError], text: str
) -> None:
    open_storage(url).close()
    before = rows(url)
    with pytest.raises(error, match=text):
        restore(url, make_file(tmp_path))
    assert rows(url) == before


def test_a_backup_in_use_is_not_called_none(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(sqlite_url)
    backup(sqlite_url, tmp_path / "backup.db")
    with closing(sqlite3.connect(tmp_path / "backup.db")) as other:
        other.execute("BEGIN EXCLUSIVE")
        monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, timeout=0))
        with pytest.raises(StorageError, match=r"cannot read .*backup\.db: database is locked"):
            restore(f"sqlite:///{tmp_path}/new.db", tmp_path / "backup.db")


def test_nothing_is_overwritten(url: str, tmp_path: Path) -> None:
    fill(url)
    before, file = rows(url), tmp_path / "backup.db"
    backup(url, file)
    content = file.read_bytes()
    with pytest.raises(ConflictError, match=r"backup\.db is there already"):
        backup(url, file)
    assert file.read_bytes() == content
    with pytest.raises(
        ConflictError, match="holds 2 studies; a backup goes back into a database without any"
    ):
        restore(url, file)
    assert rows(url) == before


def test_a_study_made_while_a_restore_begins_stays(
    sqlite_url: str, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever makes it after it was seen that there are none."""
    fill(sqlite_url)
    backup(sqlite_url, tmp_path / "backup.db")

    def seen(url: str) -> StorageInfo:
        found = info(url)
        if url == other:
            with StudyManager(url) as manager:
                manager.create(StudyDefinition.parse({**DEFINITION, "name": "mine"}))
        return found

    monkeypatch.setattr("tuner.backup.info", seen)
    with pytest.raises(ConflictError, match="holds 1 study"):
        restore(other, tmp_path / "backup.db")
    with StudyManager(other) as manager:
        assert [summary.name for summary in manager.studies()] == ["mine"]


def test_nobody_makes_a_study_while_rows_are_restored(url: str, other: str, tmp_path: Path) -> None:
    """Who tries waits until all of it is there; who looks meanwhile sees nothing of it."""
    fill(url)
    backup(url, tmp_path / "backup.db")
    seen: list[int] = []
    makers: list[threading.Thread] = []

    def make_one() -> None:
        with StudyManager(other) as manager:
            manager.create(StudyDefinition.parse({**DEFINITION, "name": "later"}))

    def on_rows(table: str, _done: int, _total: int) -> None:
        if table == "trials":
            seen.append(info(other).studies)
            makers.append(threading.Thread(target=make_one))
            makers[-1].start()

    restore(other, tmp_path / "backup.db", on_rows)
    for maker in makers:
        maker.join()
    assert seen == [0]
    with StudyManager(other) as manager:
        assert {summary.name for summary in manager.studies(archived=True)} == {"kept", "empty", "later"}


def test_a_restore_that_is_interrupted_leaves_no_part(url: str, other: str, tmp_path: Path) -> None:
    fill(url)
    backup(url, tmp_path / "backup.db")
    open_storage(other).close()
    before = rows(other)

    def on_rows(table: str, _done: int, _total: int) -> None:
        if table == "tuner_leases":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore(other, tmp_path / "backup.db", on_rows)
    assert rows(other) == before
    restore(other, tmp_path / "backup.db")
    assert rows(other) == rows(url)


def test_what_others_have_put_into_sqlite_is_kept(sqlite_url: str, tmp_path: Path) -> None:
    fill(sqlite_url)
    with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))) as connection, connection:
        # SQLite takes whatever is put there
        columns = (
            "text VARCHAR(20), day DATE, at DATETIME, cost DECIMAL(9, 2), is_so BOOLEAN, what JSON, data BLOB"
        )
        connection.execute(f"CREATE TABLE notes (note_id INTEGER PRIMARY KEY, {columns})")
        connection.execute(
            "INSERT INTO notes VALUES (3, 7, 'monday', 1790000000, 'much', 'maybe', '{', 'none')"
        )
        connection.execute("INSERT INTO notes (text, cost, is_so, data) VALUES ('of mine', 0.1, 1, x'00ff')")
        kept = connection.execute("SELECT * FROM notes").fetchall()
    backup(sqlite_url, tmp_path / "backup.db")
    restore(f"sqlite:///{tmp_path}/new.db", tmp_path / "backup.db")
    with closing(sqlite3.connect(tmp_path / "new.db")) as connection:
        assert connection.execute("SELECT * FROM notes").fetchall() == kept


@pytest.mark.parametrize("is_writable", [True, False])
def test_an_older_backup_is_not_copied_into_memory(
    tmp_path: Path, is_writable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container's /tmp is a part of its memory: the copy is made beside the backup, or beside the database."""
    (tmp_path / "backups").mkdir()
    (tmp_path / "data").mkdir()
    file = tmp_path / "backups/old.db"
    make(f"sqlite:///{file}", "0001")
    before, upgraded = file.read_bytes(), []

    def note(url: str) -> tuple[str | None, str]:
        upgraded.append(Path(url.removeprefix("sqlite:///")))
        return upgrade(url)

    def access(path: Path, mode: int) -> bool:
        return os.access(path, mode) and (is_writable or path != file.parent)

    monkeypatch.setattr("tuner.backup.upgrade", note)
    monkeypatch.setattr("tuner.backup.os", SimpleNamespace(access=access, W_OK=os.W_OK))
    restore(f"sqlite:///{tmp_path}/data/new.db", file)
    [copy] = upgraded
    assert copy.parent.parent == (file.parent if is_writable else tmp_path / "data")
    assert not copy.parent.exists()
    assert file.read_bytes() == before


def test_an_export_that_is_interrupted_leaves_nothing(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(sqlite_url)
    stopped: list[bool] = []

    def stops(_document: Any, file: TextIO, **_: Any) -> None:
        file.write("{")
        stopped.append(True)
        raise KeyboardInterrupt

    monkeypatch.setattr(json, "dump", stops)
    with pytest.raises(KeyboardInterrupt):
        export_("kept", tmp_path / "kept.json", sqlite_url)
    assert stopped == [True]
    assert not list(tmp_path.glob("*kept*")) + list(tmp_path.glob("*.part"))


def test_checkpoints_are_copied_one_at_a_time(postgresql_url: str, tmp_path: Path) -> None:
    """A thousand of them may be more than the memory."""
    fill(postgresql_url)
    with StudyManager(postgresql_url) as manager:
        ask_tell = manager.ask_tell("kept")
        for number in range(3):
            lease = ask_tell.ask()
            assert lease is not None
            ask_tell.save_checkpoint(lease, 1, bytes([number]))
    heard: list[tuple[str, int, int]] = []
    backup(postgresql_url, tmp_path / "backup.db", lambda *progress: heard.append(progress))
    kept = [done for table, done, _ in heard if table == "tuner_checkpoints"]
    assert kept == list(range(1, len(kept) + 1))
    assert len(kept) >= 3


@pytest.mark.parametrize("place", ["no/such/folder/x.db", "text/x.db"])
def test_where_nothing_can_be_written_is_named(url: str, tmp_path: Path, place: str) -> None:
    fill(url)
    (tmp_path / "text").touch()
    with pytest.raises(StorageError, match=rf"cannot write .*{place}: N"):
        backup(url, tmp_path / place)


def test_backup_is_its_owners_alone(url: str, tmp_path: Path) -> None:
    fill(url)
    backup(url, tmp_path / "backup.db")
    assert (tmp_path / "backup.db").stat().st_mode & 0o777 == 0o600


def test_tokens_make_way(url: str, tmp_path: Path) -> None:
    """A service that was started on the new database has made a token of its own."""
    old = fill(url)
    backup(url, tmp_path / "backup.db")
    new_url = f"sqlite:///{tmp_path}/new.db"
    database = open_storage(new_url)
    with closing(Tokens(database)) as tokens:
        first = tokens.create_first()
        assert first is not None
        restore(new_url, tmp_path / "backup.db")
        assert tokens.verify(old) is not None
        assert tokens.verify(first) is None
    database.close()


def test_study_carried_over(url: str, other: str, tmp_path: Path, tuner: Tuner) -> None:
    fill(url)
    assert tuner("export", "kept", "kept.json", "--storage", url)[0] == 0
    code, said, _ = tuner("import", "kept.json", "--storage", other)
    assert (code, "kept is in " in said, "(10 trials)" in said) == (0, True, True)
    assert tuner("export", "kept", "again.json", "--storage", other)[0] == 0
    before, after = (json.loads((tmp_path / name).read_text()) for name in ("kept.json", "again.json"))
    for trial in before["trials"]:
        if trial["state"] == "running":  # it runs again, from its beginning
            trial |= {"state": "waiting", "reports": [], "started": None}
        if trial["state"] == "waiting":
            trial |= {"reports": [], "started": None}
    assert [trial["state"] for trial in after["trials"]].count("waiting") == 3
    assert after == before


def test_commands(tuner: Tuner, tmp_path: Path) -> None:
    fill("sqlite:///tuner.db")
    assert tuner("storage", "backup", "monday.db")[1] == "sqlite:///tuner.db is in monday.db (2 studies)\n"
    assert tuner("storage", "backup", "monday.db")[0] == 2
    code, said, _ = tuner("storage", "restore", "monday.db", "--storage", "sqlite:///new.db")
    assert (code, said) == (0, "sqlite:///new.db holds 2 studies\n")
    assert "holds 2 studies" in tuner("storage", "restore", "monday.db")[2]
    assert "there is no database" in tuner("storage", "backup", "x.db", "--storage", "sqlite:///no.db")[2]
    tuner("export", "kept", "kept.json")
    assert "is there already" in tuner("export", "kept", "kept.json")[2]
    assert "there is a study 'kept' already" in tuner("import", "kept.json")[2]
    (tmp_path / "bad.json").write_text(
        '{"format": "tuner-study-1", "definition": {"name": "a"}, "trials": [{"state": "odd"}]}'
    )
    code, _, said = tuner("import", "bad.json", "--storage", "sqlite:///new.db")
    assert code == 2
    assert "bad.json: trials.0.state" in said
