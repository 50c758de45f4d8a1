"""Endpoints that make their whole answer in one thread."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import Response
from fastapi.routing import APIRoute
from pydantic import BaseModel

from tuner.service.threads import OwnThreads

__all__ = ["Route", "takes_long"]

F = TypeVar("F", bound=Callable[..., Any])

_LONG = OwnThreads("long", 16)

_long: set[Callable[..., Any]] = set()


def takes_long(endpoint: F) -> F:
    """Let an endpoint have threads of its own: however many requests wait for it, others are answered."""
    _long.add(endpoint)
    return endpoint


class Route(APIRoute):
    """A route whose endpoint returns a model, which is written in the endpoint's own thread.

    FastAPI would hand it to another thread, to be checked once more against its own class, and write it in the event
    loop. An endpoint that changes the status or the headers of FastAPI's own answer cannot have such a route.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        status = options.get("status_code") or 200

        @functools.wraps(endpoint)  # its annotations say what the documentation shows
        def answered(*args: Any, **kwargs: Any) -> Any:
            found = endpoint(*args, **kwargs)
            if not isinstance(found, BaseModel):
                return found
            return Response(found.model_dump_json(), status, media_type="application/json")

        @functools.wraps(endpoint)
        async def answered_apart(*args: Any, **kwargs: Any) -> Any:
            return await _LONG.run(functools.partial(answered, *args, **kwargs))

        super().__init__(path, answered_apart if endpoint in _long else answered, **options)
