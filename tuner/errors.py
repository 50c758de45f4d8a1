"""The exception tree. It knows no HTTP and no exit codes: the service and the command line map it once."""

from __future__ import annotations

__all__ = [
    "AccessDeniedError",
    "ConflictError",
    "DefinitionError",
    "LeaseLostError",
    "MissingDependencyError",
    "NotFoundError",
    "NotOfferedError",
    "ServiceUnavailableError",
    "StorageError",
    "StorageUnavailableError",
    "TunerError",
]


class TunerError(Exception):
    """Anything this package raises on purpose. Its text is one line that a person can act on.

    Args:
        text: the line.
        local: what else is said to who has the database: where it lies, what there is besides. It follows the text.
    """

    def __init__(self, text: str = "", *, local: str = "") -> None:
        super().__init__(f"{text}{local}")
        self.public = text
        """What may be said to anybody who may ask."""


class DefinitionError(TunerError, ValueError):
    """A definition breaks a rule; the text names the key, the rule and the value."""


class MissingDependencyError(DefinitionError):
    """A definition asks for something whose optional dependency is not installed."""


class NotOfferedError(DefinitionError):
    """A function suggests what its study does not search, or not so: no trial is at fault."""


class NotFoundError(TunerError, LookupError):
    """No study, definition file or objective has this name."""


class ConflictError(TunerError):
    """What is asked for contradicts what is stored already, for instance the same name with another content."""


class LeaseLostError(TunerError):
    """The trial is no longer this owner's: its lease expired and another took it over, or it has ended."""


class StorageError(TunerError):
    """The database cannot be opened or used; the text says which and why."""


class StorageUnavailableError(StorageError):
    """The database does not answer just now: it is gone, restarting, or kept busy. Another try may go through."""


class ServiceUnavailableError(StorageUnavailableError):
    """The service, or the database behind it, does not answer just now. Another try may go through."""


class AccessDeniedError(TunerError):
    """The service does not know this token, or the token may not do this."""
