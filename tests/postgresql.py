"""A PostgreSQL server of one's own, on a socket in a temporary folder."""

from __future__ import annotations

import itertools
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

__all__ = ["Databases", "Server", "absent", "server", "server_programs"]


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

    def connect(self, database: str = "postgres") -> psycopg.Connection[Any]:
        """A connection that commits each statement."""
        import psycopg

        return psycopg.connect(user="tuner", host=self.folder, dbname=database, autocommit=True)

    @contextmanager
    def database(self, test: str) -> Iterator[str]:
        """The address of a test's own database, which is gone afterwards."""
        name = f"t{abs(hash(test)):x}"
        self.create(name)
        yield self.url.format(database=name)
        self.drop(name)

    def create(self, name: str, template: str = "template1") -> None:
        """Make a database as a copy of another."""
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")

    def drop(self, name: str) -> None:
        """Remove a database, whoever is connected to it."""
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


class Databases:
    """Fresh databases with tables, copies of `template`.

    One that a test has left is emptied for the next, which costs a tenth of what a copy does, unless it has grown, or
    its tables are no longer what they were: then it is dropped. It gets another name each time: what a test has left
    running would find its way back to the name, and work on in the midst of the next one.
    """

    def __init__(self, server: Server, template: str) -> None:
        self._server, self._template = server, template
        self._free: list[str] = []
        self._names = (f"fresh_{number}" for number in itertools.count(1))
        self._connection = server.connect()
        with server.connect(template) as connection:
            tables = {
                table: connection.execute(f"TABLE {table}").fetchall() for (table,) in _tables(connection)
            }
            self._kept = {table: rows for table, rows in tables.items() if rows}
            self._emptied = sorted(tables.keys() - self._kept.keys())
            self._shape = connection.execute(SHAPE).fetchall()

    def close(self) -> None:
        """End the connection by which databases are renamed."""
        self._connection.close()

    @contextmanager
    def fresh(self) -> Iterator[str]:
        """The address of a test's own database."""
        if self._free:
            name = self._free.pop()
        else:
            self._server.create(name := next(self._names), self._template)
        yield self._server.url.format(database=name)
        if self._rename(name, later := next(self._names)):
            name = later
            if self._is_as_before(name):
                self._free.append(name)
                return
        self._server.drop(name)

    def _rename(self, name: str, to: str) -> bool:
        """Cut the connections to a database, and rename it; whether nobody was quick enough to come back."""
        import psycopg

        self._connection.execute(DISCONNECT, [name])
        try:
            self._connection.execute(f"ALTER DATABASE {name} RENAME TO {to}")
        except psycopg.errors.ObjectInUse:
            return False
        return True

    def _is_as_before(self, name: str) -> bool:
        """Empty its tables, and see whether that is all there is to do."""
        with self._server.connect(name) as connection:
            if connection.execute(SHAPE).fetchall() != self._shape or connection.execute(
                IS_LARGE
            ).fetchone() == (True,):
                return False
            with connection.transaction():
                connection.execute("SET LOCAL session_replication_role = replica")  # in whatever order
                for table in self._emptied:
                    connection.execute(f"DELETE FROM {table}")
                connection.execute(RESTART)
            return all(
                connection.execute(f"TABLE {table}").fetchall() == rows for table, rows in self._kept.items()
            )


def _tables(connection: psycopg.Connection[Any]) -> list[tuple[str]]:
    return connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()


DISCONNECT = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s"

SHAPE = """
SELECT nspname, relname, relkind::text, attname, atttypid, attnotnull
FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace LEFT JOIN pg_attribute ON attrelid = pg_class.oid
WHERE nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') AND NOT coalesce(attisdropped, false)
UNION ALL
SELECT conrelid::regclass::text, conname, contype::text, pg_get_constraintdef(oid), 0, true
FROM pg_constraint WHERE connamespace = 'public'::regnamespace
UNION ALL
SELECT tgrelid::regclass::text, tgname, '', '', 0, true FROM pg_trigger WHERE NOT tgisinternal
ORDER BY 1, 2, 3, 4
"""
"""Tables, columns, indexes, sequences, constraints and triggers."""

RESTART = (
    "SELECT setval(c.oid, 1, false) FROM pg_class c WHERE relkind = 'S' AND pg_sequence_last_value(c.oid) > 0"
)

IS_LARGE = """
SELECT sum(pg_relation_size(oid)) > 4e6 FROM pg_class WHERE relnamespace = 'public'::regnamespace
"""


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
