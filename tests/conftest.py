"""What all tests share: a quiet Optuna, a database of each kind."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import settings

import tuner.manager
from tuner.storage import Database, open_storage

# the same examples at every run, however busy the machine; HYPOTHESIS_PROFILE=explore looks for new ones
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

REQUIRE_ALL = os.environ.get("REQUIRE_ALL") == "1"


def absent(reason: str) -> None:
    """Skip the test, or fail it where everything has to be there."""
    if REQUIRE_ALL:
        pytest.fail(f"REQUIRE_ALL=1, but {reason}")
    pytest.skip(reason)


@pytest.fixture(autouse=True)
def _quiet_optuna() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(autouse=True)
def _close_databases(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close what a test's managers opened, as programs do at their end."""
    opened: list[Database] = []

    def open_and_note(url: str, *metadata: Any) -> Database:
        opened.append(open_storage(url, *metadata))
        return opened[-1]

    monkeypatch.setattr(tuner.manager, "open_storage", open_and_note)
    yield
    for database in opened:
        database.close()


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/tuner.db"


def _server_programs() -> Path | None:
    installed = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)  # Debian keeps them off the path
    found = shutil.which("initdb")
    return installed or (Path(found).parent if found else None)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """A server of its own on a socket in a temporary folder; yields a URL with `{database}` left open."""
    programs = _server_programs()
    if programs is None:
        absent("PostgreSQL's server programs are not installed")
        return
    # not pytest's own folder, which only its owner may enter: the server refuses to run as root
    with tempfile.TemporaryDirectory(prefix="postgresql-") as folder:
        prefix: list[str] = []
        if os.getuid() == 0:
            user = pwd.getpwnam("postgres")
            shutil.chown(folder, user.pw_name)
            prefix = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]

        def run(program: str, *arguments: str) -> None:
            command = [*prefix, str(programs / program), "-D", f"{folder}/data", *arguments]
            subprocess.run(command, check=True, capture_output=True, cwd=folder)

        run("initdb", "-U", "tuner", "--auth=trust", "--no-sync")
        options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
        run("pg_ctl", "-w", "-l", f"{folder}/log", "-o", options, "start")
        try:
            yield f"postgresql+psycopg://tuner@/{{database}}?host={folder}"
        finally:
            run("pg_ctl", "-m", "immediate", "stop")


@pytest.fixture
def postgresql_url(postgresql_server: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """A fresh database on the server."""
    import psycopg

    name = f"t{abs(hash(request.node.nodeid)):x}"
    host = postgresql_server.split("host=")[1]
    with psycopg.connect(user="tuner", host=host, dbname="postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield postgresql_server.format(database=name)
    with psycopg.connect(user="tuner", host=host, dbname="postgres", autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    """A fresh database of each kind."""
    return str(request.getfixturevalue(f"{request.param}_url"))
