"""Making the tables, knowing their version, and bringing them up to date.

Optuna's tables are made by Optuna; the ledger's (`tuner.tables`) have versions of their own, kept by Alembic in
`tuner_alembic_version` (Optuna's own are in `alembic_version`). All of this happens in one process at a time, under a
lock: two that make tables at once would crash each other.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
from filelock import FileLock, Timeout
from sqlalchemy.engine import URL, make_url

from tuner.errors import StorageError
from tuner.storage import BUSY_SECONDS, Database, explain, safe_url
from tuner.tables import metadata

__all__ = [
    "HEAD",
    "VERSIONS",
    "StorageInfo",
    "absolute",
    "exists",
    "info",
    "make",
    "open_storage",
    "upgrade",
    "with_password",
]

HEAD = "0003"
"""The version of `tuner.tables`."""

VERSIONS = ("0001", "0002", "0003")
"""All that there were; what is not among them is newer than this program."""

VERSION_TABLE = "tuner_alembic_version"
OPTUNAS_VERSION_TABLE = "alembic_version"
"""Optuna stamps it last, so that one who sees a version there sees all of its tables."""


_compatible: set[str] = set()
"""Versions of Optuna's tables that Optuna has accepted in this process: it reads all its migrations to tell, 50 ms."""


def open_storage(url: str) -> Database:
    """Open the database at `url`, making Optuna's and our tables where there are none.

    Raises:
        StorageError: it cannot be opened, or its tables are of another version; the text says which database and why.
    """
    parsed = _parse(url)
    name = safe_url(url)
    with _explained(name):
        version, optunas = _versions(parsed)
        if version is None:
            with _lock(parsed):
                _create(parsed)
            _, optunas = _versions(parsed)
        elif version not in VERSIONS:
            raise StorageError(
                f"cannot use {name}: a newer version of this program made its tables "
                f"(their version is {version}, known are up to {HEAD}); upgrade this program"
            )
        elif version != HEAD:
            raise StorageError(
                f"cannot use {name}: its tables are of an older version ({version}, needed is {HEAD}); "
                f"stop all workers, back the database up, then: tuner storage upgrade --storage {name}"
            )
        is_known = optunas in _compatible
        database = Database(_text(parsed), skip_table_creation=True, skip_compatibility_check=is_known)
        if optunas is not None:
            _compatible.add(optunas)
        return database


def upgrade(url: str) -> tuple[str | None, str]:
    """Bring the tables of the database at `url` up to date, Optuna's too; the versions of ours before and after.

    Raises:
        StorageError: it cannot be opened, a step failed (nothing of it is left behind), or its tables are newer.
    """
    parsed = _parse(url)
    with _explained(safe_url(url)), _lock(parsed):
        before, _ = _versions(parsed)
        if before is not None and before not in VERSIONS:
            raise StorageError(
                f"{safe_url(url)} is newer ({before}) than this program ({HEAD}); upgrade this program"
            )
        if before is None:
            _create(parsed)
            return before, HEAD
        database = Database(_text(parsed), skip_table_creation=True, skip_compatibility_check=True)
        try:
            if database.get_current_version() != database.get_head_version():
                database.upgrade()
            if before != HEAD:
                with database.engine.begin() as connection:
                    _alembic("upgrade", connection, "head")
        finally:
            database.close()
        return before, HEAD


@dataclass(frozen=True, slots=True)
class StorageInfo:
    """What is known of a database without opening it for use. Versions are None where there are no such tables."""

    url: str
    """Without its password."""
    kind: str
    version: str | None
    """Of our tables; `HEAD` is what this program needs."""
    optunas_version: str | None
    studies: int


def info(url: str) -> StorageInfo:
    """Look at the database at `url`, of whatever version its tables are. Nothing is made or changed.

    Raises:
        StorageError: it cannot be looked at.
    """
    parsed = _parse(url)
    name = safe_url(_text(parsed))
    with _explained(name):
        version, optunas = _versions(parsed)
        studies = 0
        engine = sa.create_engine(parsed)
        try:
            with engine.connect() as connection:
                if sa.inspect(connection).has_table("studies"):
                    studies = connection.scalar(sa.text("SELECT COUNT(*) FROM studies")) or 0
        finally:
            engine.dispose()
    return StorageInfo(name, parsed.get_backend_name(), version, optunas, studies)


def exists(url: str) -> bool:
    """Whether there is anything to open; of a server one only knows by asking it, so True.

    Raises:
        StorageError: `url` is no URL of a database.
    """
    parsed = _parse(url)
    return parsed.get_backend_name() != "sqlite" or _file(parsed).exists()


def absolute(url: str) -> str:
    """The URL as it reads in any folder of this machine: the path of an SQLite file is made absolute.

    Raises:
        StorageError: `url` is no URL of a database.
    """
    parsed = _parse(url)
    if parsed.get_backend_name() == "sqlite" and not (parsed.database or "").startswith("file:"):
        parsed = parsed.set(database=str(_file(parsed).resolve()))
    return _text(parsed)


def with_password(url: str, password: str) -> str:
    """The URL of a server with this password, unless it has one; SQLite needs none.

    Raises:
        StorageError: `url` is no URL of a database.
    """
    parsed = _parse(url)
    if parsed.get_backend_name() == "sqlite" or parsed.password is not None:
        return url
    return _text(make_url(url).set(password=password))


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


def _text(url: URL) -> str:
    return url.render_as_string(hide_password=False)


def _file(url: URL) -> Path:
    """A SQLite database's file; SQLite's own form is file:PATH."""
    return Path((url.database or "").removeprefix("file:"))


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """All that can go wrong while a database is opened, in words."""
    try:
        yield
    except ImportError as error:
        raise StorageError(
            f"cannot open {name}: its driver is not installed ({error}); "
            "for PostgreSQL: pip install 'tuner[postgresql]'"
        ) from None
    except (optuna.exceptions.StorageInternalError, sa.exc.SQLAlchemyError) as error:
        raise explain(name, error, "cannot open {}") from error
    except (OSError, Timeout) as error:
        raise StorageError(f"cannot open {name}: {error}") from error
    except RuntimeError as error:  # Optuna's word for a schema of another version
        raise StorageError(f"cannot use {name}: {error}") from error


def _versions(url: URL) -> tuple[str | None, str | None]:
    """The versions of our tables and of Optuna's; None where they are not. Ours never are without Optuna's."""
    if url.get_backend_name() == "sqlite":
        file = _file(url)
        if not file.resolve().parent.is_dir():
            raise StorageError(
                f"cannot open {safe_url(_text(url))}: the folder {file.resolve().parent} does not exist"
            )
        if not file.exists():
            return None, None
    engine = sa.create_engine(url)
    try:
        with engine.connect() as connection:
            there = set(sa.inspect(connection).get_table_names())
            optunas = _stamp(connection, OPTUNAS_VERSION_TABLE) if OPTUNAS_VERSION_TABLE in there else None
            if optunas is None:
                return None, None
            if VERSION_TABLE in there:
                return _stamp(connection, VERSION_TABLE), optunas
            return "0001" if "tuner_leases" in there else None, optunas  # from before versions were kept
    finally:
        engine.dispose()


def _stamp(connection: sa.Connection, table: str) -> str | None:
    version: str | None = connection.scalar(sa.text(f"SELECT version_num FROM {table}"))
    return version


def make(url: str, version: str) -> None:
    """Make the tables, ours of this version, in a database that has none.

    Raises:
        StorageError: it cannot be opened, or there is no such version.
    """
    parsed = _parse(url)
    with _explained(safe_url(url)), _lock(parsed):
        if version not in VERSIONS:
            raise StorageError(
                f"tables of version {version} are newer than this program ({HEAD}); upgrade this program"
            )
        database = Database(_text(parsed))
        try:
            with database.engine.begin() as connection:
                _alembic("upgrade", connection, version, is_new=True)
        finally:
            database.close()


def _create(url: URL) -> None:
    """Make all tables that are missing, unless another process was quicker."""
    version, optunas = _versions(url)
    if version is not None:
        return
    # makes Optuna's; those that are there already must be of a version that ours can stand beside
    database = Database(_text(url), skip_compatibility_check=optunas is None or optunas in _compatible)
    try:
        with database.engine.begin() as connection:
            metadata.create_all(connection)
            _alembic("stamp", connection, "head")
    finally:
        database.close()


def _alembic(command: str, connection: sa.Connection, revision: str, *, is_new: bool = False) -> None:
    """Run one of Alembic's commands inside the connection's transaction."""
    from alembic import command as commands  # noqa: PLC0415 - only where tables are made or changed
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes.update(connection=connection, version_table=VERSION_TABLE)
    if command == "upgrade" and not is_new and not sa.inspect(connection).has_table(VERSION_TABLE):
        commands.stamp(config, VERSIONS[0])
    getattr(commands, command)(config, revision)


@contextmanager
def _lock(url: URL) -> Iterator[None]:
    """Held while tables are made or changed."""
    lock: AbstractContextManager[Any] = nullcontext()
    if url.get_backend_name() == "sqlite":
        digest = hashlib.sha256(str(_file(url).resolve()).encode()).hexdigest()[:16]
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
