"""Logs: JSON, one record a line whatever is in it, with the request's id, and never a token.

A client names each of its calls (`X-Request-ID`), and the service logs it under that name: so the lines of both are
found together.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, TextIO

from tuner.errors import DefinitionError

__all__ = ["LEVELS", "OneLine", "check_level", "configure", "redact", "request_id"]

LEVELS = ("debug", "info", "warning", "error")

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Of the request that is being answered."""

_SECRET = re.compile(r"[0-9A-Fa-f]{40,}")
"""What a token's secret looks like, in a path, a header or a message of any library."""

_LONGEST = 20_000


def check_level(level: str) -> None:
    """See that it is one of `LEVELS`.

    Raises:
        DefinitionError: it is none.
    """
    if level not in LEVELS:
        raise DefinitionError(f"--log-level is one of {', '.join(LEVELS)}; got {level!r}")


def redact(text: str) -> str:
    """The text without what may be a token's secret."""
    return _SECRET.sub("[secret]", text)


class OneLine(logging.Formatter):
    """A record as one line of JSON. What `extra={"fields": {...}}` gives is added."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, in ASCII: no character of it begins another."""
        document: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage()[:_LONGEST],
        }
        if (found := request_id.get()) is not None:
            document["request_id"] = found
        document |= getattr(record, "fields", {})
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)[-_LONGEST:]
        return redact(json.dumps(document, default=str))


def configure(level: str, stream: TextIO | None = None) -> None:
    """Let all loggers of this process write such lines, to standard error unless told otherwise."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(OneLine())
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    logging.captureWarnings(True)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "optuna"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
    # of each call it would say, without its id, what our client says with it
    logging.getLogger("httpx").setLevel(max(logging.WARNING, logging.getLogger().level))
