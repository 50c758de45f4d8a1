"""Limits, before anything is parsed or believed: the size of a body, and JSON that is JSON.

Python's parser reads NaN, Infinity and 1e999, keys that are there twice, text that no database takes; and FastAPI reads
a body whole before it looks at it. So this stands in front: no more than the limit is ever kept in memory, and what
goes through is what RFC 8259 says.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tuner.service.problems import RETRY_SECONDS, RefusedError, of_error, problem
from tuner.service.threads import OwnThreads
from tuner.storage import patience

__all__ = ["BODY_BYTES", "INLINE_BYTES", "LARGE_BYTES", "Guard", "Limits", "check_json"]

BODY_BYTES = 2**20
LARGE_BYTES = 16 * 2**20
"""Of a checkpoint, and of a study that is imported."""

INLINE_BYTES = 64 * 2**10
"""A body of so many is checked within milliseconds."""

PROBE_SECONDS = 1.0
"""Within so long a database shows that it is there, where an answer takes long."""

DEPTH = 32
KEYS = 20_000
LARGE_KEYS = 1_000_000
LONGEST_NUMBER = 400
"""Characters; the longest double has fewer."""

JSON = "application/json"
BYTES = "application/octet-stream"

_PROBES, _CHECKS = OwnThreads("probes", 8), OwnThreads("checks", 2)

_log = logging.getLogger(__name__)


class Limits:
    """ASGI middleware: lets through bodies that are small enough, of the right type, and strict JSON.

    Args:
        app: the application.
        read_seconds: for how long a body is waited for.
    """

    def __init__(self, app: ASGIApp, *, read_seconds: float = 60.0) -> None:
        self.app, self.read_seconds = app, read_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102 - as ASGI says
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            with anyio.fail_after(self.read_seconds):
                body = await _read(scope, receive, _limit(scope["path"]))
            if body and scope["method"] in ("POST", "PUT", "PATCH"):
                await _checked(scope, body)
        except TimeoutError:
            late = f"the body did not come within {self.read_seconds:g} seconds"
            answer = problem(408, late, scope=scope, headers={"Connection": "close"})
            await answer(scope, receive, send)
            return
        except RefusedError as refused:
            # what is still on its way is not read: the connection ends
            headers = {"Connection": "close"} if refused.status == 413 else {}
            answer = problem(refused.status, refused.detail, scope=scope, headers=headers)
            await answer(scope, receive, send)
            return
        await self.app(scope, _again(body, receive), send)


class Guard:
    """ASGI middleware, outermost: every request is answered, and soon, whatever happens behind it.

    What is raised becomes an answer without details. Where there is no answer within `seconds`, and the database does
    not answer either, the client is told to try again; what it asked for may still be done, and is then what the same
    request gets. A long calculation (some samplers take seconds) is waited for.

    Args:
        app: the application.
        is_ready: whether the database answers; blocking, with a limit of its own.
        seconds: for how long, too, a database is waited for behind it.
    """

    def __init__(self, app: ASGIApp, *, is_ready: Callable[[], bool], seconds: float = 3.0) -> None:
        self.app, self._is_ready, self._seconds = app, is_ready, seconds
        self._late: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102 - as ASGI says
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = _Answer(send)
        with patience(self._seconds):
            task = asyncio.ensure_future(self._run(scope, receive, answer))
        try:
            while not (await asyncio.wait({task}, timeout=self._seconds))[0]:
                if answer.has_begun or await self._database_answers():
                    continue
                if not answer.has_begun:  # nor meanwhile
                    answer.is_closed = True
                    break
        except asyncio.CancelledError:
            task.cancel()
            raise
        if task.done():
            task.result()
            return
        self._late.add(task)  # else nothing would keep it
        task.add_done_callback(self._late.discard)
        headers = {"Retry-After": str(RETRY_SECONDS)}
        late = problem(503, "the database does not answer just now; try again", scope=scope, headers=headers)
        await late(scope, receive, send)

    async def _run(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        try:
            await self.app(scope, receive, answer)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is answered
            failed = of_error(error, scope)
            if not answer.has_begun:
                await failed(scope, receive, answer)

    async def _database_answers(self) -> bool:
        # threads of its own: those of requests may all be waiting for the database
        with anyio.move_on_after(PROBE_SECONDS):
            return await _PROBES.run(self._is_ready, is_left=True)
        return False


class _Answer:
    """Passes an answer on, until another was given instead."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.has_begun = self.is_closed = False

    async def __call__(self, message: Message) -> None:
        if not self.is_closed:
            self.has_begun = True
            await self._send(message)


def check_json(body: bytes, *, keys: int = KEYS) -> None:
    """See that a body is JSON of bounded depth and number of keys, with numbers and text that every database takes.

    Raises:
        RefusedError: it is not.
    """
    try:
        document = json.loads(
            body.decode(),
            parse_float=_float,
            parse_int=_int,
            parse_constant=_constant,
            object_pairs_hook=_object,
        )
    except UnicodeDecodeError:
        raise RefusedError(400, None, "the body is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise RefusedError(400, None, f"the body is not JSON: {error}") from None
    except RecursionError:
        raise RefusedError(422, None, f"the body is nested deeper than {DEPTH} levels") from None
    count = 0
    for depth, node in _nodes(document):
        if depth > DEPTH:
            raise RefusedError(422, None, f"the body is nested deeper than {DEPTH} levels")
        if isinstance(node, dict):
            count += len(node)
            for key in node:
                _text(key)
        elif isinstance(node, str):
            _text(node)
        if count > keys:
            raise RefusedError(422, None, f"the body has more than {keys} keys")


def _nodes(document: Any) -> Iterator[tuple[int, Any]]:
    """All parts of a document, each with its depth; no deeper than one level beyond what is allowed."""
    waiting = [(0, document)]
    while waiting:
        depth, node = waiting.pop()
        yield depth, node
        children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        waiting += [(depth + 1, child) for child in children]


def _text(text: str) -> None:
    if "\0" in text:
        raise RefusedError(422, None, "text may hold no NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RefusedError(422, None, "text may hold no half of a surrogate pair") from None


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise RefusedError(422, None, f"a number must be finite; got {text[:40]}")
    return value


def _int(text: str) -> int:
    if len(text) > LONGEST_NUMBER or not math.isfinite(float(text)):
        raise RefusedError(422, None, f"a number must be finite; got one of {len(text)} digits")
    return int(text)


def _constant(text: str) -> NoReturn:
    detail = f'{text} is not JSON; where such a value is allowed, it is the text "inf", "-inf" or "nan"'
    raise RefusedError(422, None, detail)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1) if len(pairs) < 1000 else "one"
        raise RefusedError(422, None, f"a key may be there once; {twice[:80]!r} is there twice")
    return found


def _is_checkpoint(path: str) -> bool:
    return path.endswith("/checkpoint")


def _limit(path: str) -> int:
    return LARGE_BYTES if _is_checkpoint(path) or path.endswith(":import") else BODY_BYTES


async def _read(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The body, if it is within the limit; one that is not is never kept whole."""
    too_large = RefusedError(413, None, f"a body here has at most {limit} bytes")
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and (len(value) > 18 or int(value) > limit):
            raise too_large
    chunks, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RefusedError(400, None, "the connection ended before the body")
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise too_large
        chunks.append(chunk)
        if not message.get("more_body", False):
            break
    return b"".join(chunks)


async def _checked(scope: Scope, body: bytes) -> None:
    """Check a body: a large one takes seconds, and so is left to a thread, as others are to be answered meanwhile."""
    if len(body) <= INLINE_BYTES:
        _check(scope, body)
    else:
        await _CHECKS.run(_check, scope, body)


def _check(scope: Scope, body: bytes) -> None:
    wanted = BYTES if _is_checkpoint(scope["path"]) else JSON
    given = dict(scope["headers"]).get(b"content-type", b"").decode("latin-1")
    kind = given.partition(";")[0].strip().lower()
    if kind != wanted:
        raise RefusedError(415, None, f"the body must be {wanted}; got {given[:80] or 'no Content-Type'!r}")
    if wanted == JSON:
        check_json(body, keys=LARGE_KEYS if scope["path"].endswith(":import") else KEYS)


def _again(body: bytes, receive: Receive) -> Receive:
    """The same body once more, for whoever comes after."""
    was_given = False

    async def again() -> Message:
        nonlocal was_given
        if was_given:
            return await receive()
        was_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
