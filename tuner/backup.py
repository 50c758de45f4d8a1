"""All of a database in one file, and back again into an empty database of either kind.

The file is an SQLite database like any other: `tuner studies --storage sqlite:///FILE` and a stock optuna-dashboard
open it, and a backup of PostgreSQL restored into SQLite, or the other way round, is how a database moves. That is why
PostgreSQL's own pg_dump is not used: its files go back into PostgreSQL only, and it needs client programs of the
server's version wherever a backup is made. Who has a server with backups of its own needs none of this.

What is copied is what the database held at one moment, while studies go on. Ids stay, so that leases, checkpoints and
tokens stay with what they belong to.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from tuner.errors import ConflictError, NotFoundError, StorageError
from tuner.files import new_file
from tuner.schema import absolute, exists, info, make, open_storage, upgrade
from tuner.storage import explain, safe_url
from tuner.tables import metadata
from tuner.words import plural

__all__ = ["backup", "restore"]

OnRows = Callable[[str, int, int], None]
"""Hears of each block: the table's name, how many of its rows are copied, and how many there are."""

BLOCK = 1000
"""So many rows are copied at once; of a table with bytes, such as checkpoints, one: each may take a good part of the
memory."""

_NOT_COPIED = {"alembic_version", "tuner_alembic_version", "version_info"}
"""They say how the tables of a database are, whatever is in them."""


def backup(url: str, file: Path, on_rows: OnRows = lambda table, done, total: None) -> None:
    """Write all that the database at `url` holds into a new file. It may be in use, and of an older version.

    Args:
        url: the database.
        file: where it goes; it appears when it is complete.
        on_rows: hears how it gets on, where rows are copied one by one, from a server.

    Raises:
        ConflictError: there is such a file already.
        NotFoundError: there is no such database.
        StorageError: it cannot be read, or the file cannot be written.
    """
    if not exists(url) or info(url).version is None:
        raise NotFoundError(f"there is no database {safe_url(url)} to back up")
    with new_file(file, "a backup") as part, _explained(url):
        if _is_sqlite(url):
            _copy_file(_path(url), part)
        else:
            _read_server(url, part, on_rows)
        _as_one_file(part)


def restore(url: str, file: Path, on_rows: OnRows = lambda table, done, total: None) -> str:
    """Put a backup into a database without studies, all of it or nothing; the version that its tables were of.

    Tables of an older version are brought up to date on the way. The database's own tokens make way for the backup's.

    Raises:
        ConflictError: the database holds studies.
        NotFoundError: there is no such file.
        StorageError: the file is no backup, is damaged or newer than this program, or the database cannot be written.
    """
    before = _checked(file)
    open_storage(url).close()  # makes the tables where there are none
    there = info(url)
    if there.studies > 0:
        raise _holds_studies(url, there.studies)
    is_current = (before, info(_url(file)).optunas_version) == (there.version, there.optunas_version)
    with _upgraded(file, url) if not is_current else nullcontext(file) as source, _explained(url):
        _write_rows(url, source, on_rows)
    return before


# -------------------------------------------------------------------------------------------------------------- SQLite


def _copy_file(source: Path, target: Path) -> None:
    """Copy a database in use, in one go, under SQLite's own locks (its online backup)."""
    there = f"{source.resolve().as_uri()}?mode=ro"  # nothing is written beside it, where nothing may be
    with (
        closing(sqlite3.connect(there, uri=True)) as reading,
        closing(sqlite3.connect(target, timeout=30)) as writing,
    ):
        reading.backup(writing)


def _as_one_file(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")


def _checked(file: Path) -> str:
    """The version of a backup's tables."""
    if not file.is_file():
        raise NotFoundError(f"there is no file {file}")
    try:
        with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            [[verdict]] = connection.execute("PRAGMA quick_check(1)")
    except sqlite3.OperationalError as error:  # in use, or where SQLite may not write
        raise StorageError(f"cannot read {file}: {error}") from None
    except sqlite3.DatabaseError as error:
        raise StorageError(f"{file} is no backup: {error}") from None
    if verdict != "ok":
        raise StorageError(f"{file} is damaged: {verdict}")
    if (version := info(_url(file)).version) is None:
        raise StorageError(f"{file} is no backup: it has no tables of this program")
    return version


@contextmanager
def _upgraded(file: Path, url: str) -> Iterator[Path]:
    """A copy of a backup, brought up to date; the backup stays as it is.

    It lies beside the backup, or beside the database that is restored: the folder for what is temporary is a part of
    the memory in a container.
    """
    folders = [file.resolve().parent, *([_path(url).parent] if _is_sqlite(url) else [])]
    roomy = next((folder for folder in folders if os.access(folder, os.W_OK)), None)
    with tempfile.TemporaryDirectory(prefix=".tuner-restore-", dir=roomy) as folder:
        copy = Path(folder, "backup.db")
        with _explained(_url(file)):
            _copy_file(file, copy)
        upgrade(_url(copy))
        yield copy


# --------------------------------------------------------------------------------------------------------------- rows


_AS_IS = sa.types.NullType()


def _read_server(url: str, part: Path, on_rows: OnRows) -> None:
    """Copy a server's rows, as they are at one moment, into new tables of the same version."""
    found = info(url)
    assert found.version is not None
    make(_url(part), found.version)
    if (own := info(_url(part)).optunas_version) != found.optunas_version:
        raise StorageError(
            f"{safe_url(url)}: Optuna's tables are of version {found.optunas_version}, and a backup's would be of "
            f"{own}; back up with the version of this program that wrote them, or with pg_dump"
        )
    server, backed_up = sa.create_engine(absolute(url)), sa.create_engine(_url(part))
    try:
        with (
            server.connect().execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True, stream_results=True
            ) as reading,
            backed_up.begin() as writing,
        ):
            for table in _tables(backed_up):
                _copy_rows(table, reading, sa.select(table), writing, sa.insert(table), on_rows)
    finally:
        server.dispose()
        backed_up.dispose()


def _write_rows(url: str, source: Path, on_rows: OnRows) -> None:
    """Copy a backup's rows into tables of the same version, which hold no studies, in one transaction."""
    database, backed_up = open_storage(url), sa.create_engine(_url(source))
    # of a server, one without the storage's limits: much at once may take it long
    target = database.engine if database.is_sqlite else sa.create_engine(absolute(url))
    try:
        with backed_up.connect() as reading, target.begin() as writing:
            tables = _tables(backed_up)
            _require_no_studies(url, writing)
            if database.is_sqlite:  # what others have put into the database stays in it
                tables[0].metadata.create_all(writing, tables)
            for table in reversed(tables):
                writing.execute(sa.delete(table))
            for table in tables:
                select, insert = _of_what_is_there(table), _insert(table, sa.String)
                if database.is_sqlite:
                    select, insert = _as_stored(select), _insert(table, sa.types.TypeEngine)
                _copy_rows(table, reading, select, writing, insert, on_rows)
                if not database.is_sqlite:
                    _count_on(writing, table)
    finally:
        target.dispose()
        database.close()
        backed_up.dispose()


def _require_no_studies(url: str, writing: sa.Connection) -> None:
    """Let nobody make a study until this transaction ends, and see that nobody has: its rows would be deleted."""
    if not _is_sqlite(url):  # there, a transaction that writes is alone from its beginning
        writing.execute(sa.text("LOCK TABLE studies IN EXCLUSIVE MODE"))
    if count := writing.scalar(sa.text("SELECT COUNT(*) FROM studies")):
        raise _holds_studies(url, count)


def _holds_studies(url: str, count: int) -> ConflictError:
    return ConflictError(
        f"{safe_url(url)} holds {plural(count, 'study')}; a backup goes back into a database without any"
    )


def _tables(engine: sa.Engine) -> list[sa.Table]:
    """The tables of an SQLite file, those that others refer to first."""
    found = sa.MetaData()
    found.reflect(engine)
    return [table for table in found.sorted_tables if table.name not in _NOT_COPIED]


def _copy_rows(  # noqa: PLR0917 - whence and whither
    table: sa.Table,
    reading: sa.Connection,
    select: sa.Select[Any],
    writing: sa.Connection,
    insert: sa.Insert,
    on_rows: OnRows,
) -> None:
    total = reading.scalar(sa.select(sa.func.count()).select_from(select.subquery())) or 0
    done = 0
    size = 1 if any(isinstance(column.type, sa.LargeBinary) for column in table.c) else BLOCK
    rows = reading.execute(select, execution_options={"yield_per": size})
    for block in rows.mappings().partitions():
        writing.execute(insert, [dict(row) for row in block])
        done += len(block)
        on_rows(table.name, done, total)


def _insert(table: sa.Table, untyped: type[sa.types.TypeEngine[Any]]) -> sa.Insert:
    """Rows go into a table, values for columns of some types as they are.

    Texts, where PostgreSQL then takes them for its enumerations; all, into SQLite.
    """
    columns = (sa.column(c.name, _AS_IS if isinstance(c.type, untyped) else c.type) for c in table.c)
    return sa.insert(sa.table(table.name, *columns))


def _as_stored(select: sa.Select[Any]) -> sa.Select[Any]:
    """Rows with values as SQLite has them: it takes any for a column, also what is no date where others keep dates."""
    stored: list[sa.Label[Any]] = [sa.type_coerce(c, _AS_IS).label(c.name) for c in select.selected_columns]
    return select.with_only_columns(*stored)


def _of_what_is_there(table: sa.Table) -> sa.Select[Any]:
    """The rows of a table without those of deleted studies, which a stock dashboard leaves behind in SQLite."""
    select = sa.select(table)
    if table.name in metadata.tables:
        for key in table.foreign_keys:
            select = select.where(key.parent.in_(sa.select(key.column)))
    return select


def _count_on(writing: sa.Connection, table: sa.Table) -> None:
    """Let the server give out ids after those that were copied."""
    for column in table.primary_key.columns:
        if isinstance(column.type, sa.Integer):
            last = sa.select(sa.func.max(column)).scalar_subquery()
            writing.execute(
                sa.select(sa.func.setval(sa.func.pg_get_serial_sequence(table.name, column.name), last))
            )


# --------------------------------------------------------------------------------------------------------------- places


def _is_sqlite(url: str) -> bool:
    return make_url(url).get_backend_name() == "sqlite"


def _path(url: str) -> Path:
    return Path((make_url(absolute(url)).database or "").removeprefix("file:"))


def _url(file: Path) -> str:
    return f"sqlite:///{file.resolve()}"


@contextmanager
def _explained(url: str) -> Iterator[None]:
    try:
        yield
    except sa.exc.SQLAlchemyError as error:
        raise explain(url, error) from error
    except sqlite3.Error as error:
        raise StorageError(f"{safe_url(url)} failed: {error}") from error
