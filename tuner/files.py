"""Files that are there when they are complete, and never in the place of another."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tuner.errors import ConflictError, StorageError

__all__ = ["new_file"]


@contextmanager
def new_file(file: Path, what: str, mode: int = 0o600) -> Iterator[Path]:
    """An empty file beside `file`, which takes its name when the block ends, and goes where it does not end well.

    Args:
        file: the name; whoever takes it meanwhile keeps it.
        what: what it is, as "a backup".
        mode: who may do what with it, but for what the umask takes away; its owner alone.

    Raises:
        ConflictError: there is such a file.
        StorageError: it cannot be written.
    """
    there = ConflictError(f"{file} is there already; {what} goes into a new file")
    if file.exists():
        raise there
    part = file.with_name(f".{uuid.uuid4().hex}.part")
    try:
        part.touch(mode, exist_ok=False)
        try:
            yield part
            with part.open("rb") as written:
                os.fsync(written.fileno())
            _publish(part, file)
            _flush_names(file.parent)
        finally:
            for left in part.parent.glob(f"{part.name}*"):  # SQLite's logs, too
                left.unlink(missing_ok=True)
    except FileExistsError:
        raise there from None
    except OSError as error:
        raise StorageError(f"cannot write {file}: {error.strerror or error}") from None


def _publish(part: Path, file: Path) -> None:
    """Give a file its name, in one step, unless there is one of that name."""
    try:
        os.link(part, file)
    except FileExistsError:
        raise
    except OSError:  # no second name for a file is to be had there
        file.touch(0o600, exist_ok=False)
        try:
            part.replace(file)
        except OSError:
            file.unlink()
            raise


def _flush_names(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the system can; the file itself is there."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
