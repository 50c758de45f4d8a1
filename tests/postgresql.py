"""A PostgreSQL server of one's own, on a socket in a temporary folder."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import psycopg

__all__ = ["Server", "absent", "server", "server_programs"]


REQUIRE_ALL = os.environ.get("REQUIRE_ALL") == "1"


def absent(reason: str) -> None:
    """Skip the test, or fail it where everything has to be there."""
    if REQUIRE_ALL:
        pytest.fail(f"REQUIRE_ALL=1, but {reason}")
    pytest.skip(reason)


def server_programs() -> Path | None:
    """The folder of the server's programs; None where they are not installed."""
    installed = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)  # Debian keeps them off the path
    found = shutil.which("initdb")
    return installed or (Path(found).parent if found else None)


class Server:
    """A server in `folder`, to be started, stopped as a crash would, and started again."""

    def __init__(self, programs: Path, folder: str, *, durable: bool = False) -> None:
        self.folder = folder
        self.url = f"postgresql+psycopg://tuner@/{{database}}?host={folder}"
        self._programs, self._durable = programs, durable
        self._prefix: list[str] = []
        if os.getuid() == 0:  # the server refuses to run as root
            user = pwd.getpwnam("postgres")
            shutil.chown(folder, user.pw_name)
            self._prefix = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        self._run("initdb", "-U", "tuner", "--auth=trust", "--no-sync")

    def start(self) -> None:
        """Start, and wait until it answers."""
        options = f"-c listen_addresses='' -c unix_socket_directories={self.folder}"
        if not self._durable:
            options += " -c fsync=off"
        self._run("pg_ctl", "-w", "-l", f"{self.folder}/log", "-o", options, "start")

    def stop(self) -> None:
        """Stop at once, as a crash would: connections are cut, nothing is written out."""
        self._run("pg_ctl", "-m", "immediate", "stop")

    def connect(self) -> psycopg.Connection[Any]:
        """A connection that commits each statement."""
        import psycopg

        return psycopg.connect(user="tuner", host=self.folder, dbname="postgres", autocommit=True)

    @contextmanager
    def database(self, test: str, template: str = "template1") -> Iterator[str]:
        """The address of a test's own database, which is gone afterwards."""
        name = f"t{abs(hash(test)):x}"
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        yield self.url.format(database=name)
        with self.connect() as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def require_password(self) -> None:
        """From now on, let nobody in without the password."""
        Path(self.folder, "data", "pg_hba.conf").write_text("local all all scram-sha-256\n")
        self._run("pg_ctl", "reload")
        # what was reloaded counts once the server has looked at it
        while subprocess.run(
            [self._programs / "psql", "-w", "-U", "tuner", "-h", self.folder, "-c", "", "postgres"],
            env={}, check=False, capture_output=True,
        ).returncode == 0:  # fmt: skip
            time.sleep(0.05)

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self._prefix, str(self._programs / program), "-D", f"{self.folder}/data", *arguments]
        subprocess.run(command, check=True, capture_output=True, cwd=self.folder)


@contextmanager
def server(*, durable: bool = False) -> Iterator[Server]:
    """A running server; `durable` keeps each commit through a power cut, as servers come.

    Raises:
        FileNotFoundError: the server's programs are not installed.
    """
    programs = server_programs()
    if programs is None:
        raise FileNotFoundError("PostgreSQL's server programs are not installed")
    # not a test's own folder, which only its owner may enter
    with tempfile.TemporaryDirectory(prefix="postgresql-") as folder:
        running = Server(programs, folder, durable=durable)
        running.start()
        try:
            yield running
        finally:
            running.stop()
