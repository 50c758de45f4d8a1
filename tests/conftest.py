"""What all tests share: a quiet Optuna, a database of each kind."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import optuna
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from command import STUDY, ForkedWorkers, Tuner
from hypothesis import settings
from postgresql import Databases, Server, absent, server, server_programs

from tuner.cli import main
from tuner.schema import open_storage
from tuner.storage import Database

FULL = os.environ.get("CHAOS") == "full"

# the same examples at every run, however busy the machine; HYPOTHESIS_PROFILE=explore looks for new ones
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=100 if FULL else 30)
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def pytest_configure() -> None:
    """Hear Ctrl-C though a shell has started the tests with `&`: tests press it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long tests out, so that `make test` stays within minutes; CHAOS=full, or naming one, runs them.

    Those with containers run by themselves only: `make test-docker`, or naming their folder.
    """
    if not any("tests/docker" in argument for argument in config.args):
        _leave_out("docker", config, items)
    if FULL or any("::" in argument for argument in config.args):
        return
    _leave_out("long", config, items)


def _leave_out(mark: str, config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [item for item in items if item.get_closest_marker(mark)]
    items[:] = [item for item in items if item not in set(left_out)]
    config.hook.pytest_deselected(items=left_out)


gc.disable()  # what is imported from here on stays: looking through it again and again takes as long as importing it


def pytest_collection_finish() -> None:
    """What is there by now stays to the end: looking through it at every garbage collection takes 0.3 s."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True, scope="session")
def _migrations_are_read_once() -> Iterator[None]:
    """Alembic runs the files of all of Optuna's migrations several times for each database that is made: 0.05 s."""
    read, known = ScriptDirectory.from_config, dict[str | None, ScriptDirectory]()

    def read_once(config: Config) -> ScriptDirectory:
        folder = config.get_main_option("script_location")
        if folder not in known:
            known[folder] = read(config)
        return known[folder]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptDirectory, "from_config", read_once)
        yield


@pytest.fixture(autouse=True)
def _quiet_optuna() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(autouse=True)
def _workers_start_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare worker processes of this process their imports, 1.6 s each; where their start matters, override this."""
    monkeypatch.setattr("tuner.executors._OwnProcesses", ForkedWorkers)


@pytest.fixture(autouse=True)
def _close_databases(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close what a test's managers opened, as programs do at their end."""
    opened: list[Database] = []

    def open_and_note(url: str) -> Database:
        opened.append(open_storage(url))
        return opened[-1]

    monkeypatch.setattr("tuner.manager.open_storage", open_and_note)
    yield
    for database in opened:
        database.close()


@pytest.fixture
def tuner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tuner:
    """Runs the command line in a folder of the test's own, with small.toml in it."""
    (tmp_path / "small.toml").write_text(STUDY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tuner", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with its tables: a copy of it is there in a millisecond, making one takes 0.1 s."""
    file = tmp_path_factory.mktemp("template") / "tuner.db"
    open_storage(f"sqlite:///{file}").close()
    return file


@pytest.fixture
def sqlite_url(tmp_path: Path, sqlite_template: Path) -> str:
    """A fresh database with its tables."""
    shutil.copy(sqlite_template, tmp_path / "tuner.db")
    return f"sqlite:///{tmp_path}/tuner.db"


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[Server]:
    """A server of its own on a socket in a temporary folder."""
    if server_programs() is None:
        absent("PostgreSQL's server programs are not installed")
    with server() as running:
        yield running


@pytest.fixture(scope="session")
def postgresql_databases(postgresql_server: Server) -> Iterator[Databases]:
    """Databases with their tables, on the server."""
    postgresql_server.create("with_tables")
    open_storage(postgresql_server.url.format(database="with_tables")).close()
    with closing(Databases(postgresql_server, "with_tables")) as databases:
        yield databases


@pytest.fixture
def postgresql_url(postgresql_databases: Databases) -> Iterator[str]:
    """A fresh database on the server, with its tables."""
    with postgresql_databases.fresh() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database of each kind in which there is nothing yet."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/tuner.db"
    else:
        with request.getfixturevalue("postgresql_server").database(request.node.nodeid) as url:
            yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    """A fresh database of each kind, with its tables."""
    return str(request.getfixturevalue(f"{request.param}_url"))
