"""Secrets come from files: what stands on a command line or in the environment, others of the machine may read."""

from __future__ import annotations

from pathlib import Path

from tuner.errors import DefinitionError

__all__ = ["read_secret"]

LONGEST = 10_000


def read_secret(path: Path, said: str) -> str:
    """The one line that a file holds, without the spaces around it.

    Args:
        path: the file.
        said: how it was named to us, as `--token-file`.

    Raises:
        DefinitionError: it cannot be read, or holds no such line.
    """
    try:
        text = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise DefinitionError(f"{said} {path}: {reason}") from None
    if not text or len(text) > LONGEST or not text.isprintable():
        raise DefinitionError(f"{said} {path}: a secret is one line of printable characters; this is none")
    return text
