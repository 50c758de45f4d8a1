"""The outermost application: nobody gets past it who has not shown a token, whatever lies behind.

From outside in, each a small ASGI application around the next: a request id, a line in the log and the headers that
all answers have (`Reception`); the names under which the service is reached (`Hosts`); who asks (`Authentication`);
that a browser's own page asks, where a cookie speaks for it (`SameOrigin`); and then what is asked for (`Dispatch`).
What is let through without a token is listed in `PUBLIC`, and nothing else is.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, Protocol, TypeVar
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request, cookie_parser
from starlette.responses import JSONResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tuner.errors import StorageError, StorageUnavailableError
from tuner.logs import redact, request_id
from tuner.service.auth import Tokens
from tuner.service.identity import Identity, identify, identity
from tuner.service.paths import is_dashboards
from tuner.service.refusal import STYLE_PATH, RefusedError, refusal, wants_page

__all__ = ["PUBLIC", "Readiness", "Threads", "cookie_name", "front", "is_secure"]

PUBLIC = frozenset({"/healthz", "/readyz", "/login", STYLE_PATH})
"""What needs no token."""

PROBES = frozenset({"/healthz", "/readyz"})
"""What is asked by who knows no name of ours, only an address."""

PAGES = frozenset({"/", "/login", "/logout", STYLE_PATH})

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})

LOOKUP_SECONDS = 5.0
"""So long a token is looked up, at most."""

READY_SECONDS = 1.0

RETRY_SECONDS = 5

YEAR = 365 * 24 * 3600

_log = logging.getLogger("tuner.service")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::[0-9]{1,5})?")

_HTML_POLICY = b"object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_DATA_POLICY = b"default-src 'none'; frame-ancestors 'none'"

P = ParamSpec("P")
R = TypeVar("R")


class _OfIdentity(Protocol):
    async def __call__(self, scope: Scope, receive: Receive, send: Send, who: Identity) -> None: ...


def front(
    *,
    api: ASGIApp,
    pages: ASGIApp,
    dashboard: _OfIdentity,
    tokens: Tokens,
    is_ready: Readiness,
    hosts: Collection[str],
) -> ASGIApp:
    """The whole service as one ASGI application.

    Args:
        api: everything that is not of the others.
        pages: our own pages, with the log-in.
        dashboard: what answers under the dashboard's paths.
        tokens: who is let in.
        is_ready: what /readyz answers.
        hosts: the names and addresses, without ports, under which the service is reached.
    """
    inside = Dispatch(api=api, pages=pages, dashboard=dashboard, is_ready=is_ready)
    return Reception(Hosts(Authentication(SameOrigin(inside), tokens), hosts))


class Threads:
    """Runs what waits for the database beside the event loop: few at once, and each for a limited time."""

    def __init__(self, name: str, count: int, seconds: float) -> None:
        self._pool, self._seconds = ThreadPoolExecutor(count, thread_name_prefix=name), seconds

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call it, and wait for what it returns.

        Raises:
            StorageUnavailableError: that takes too long.
        """
        future = self._pool.submit(function, *args, **kwargs)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self._seconds)
        except TimeoutError:
            raise StorageUnavailableError(f"the database did not answer within {self._seconds:g} s") from None


# ---------------------------------------------------------------------------------------------------------- reception


class Reception:
    """Gives each request its id, each answer its headers, and the log its line. Nothing that is raised gets further."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:  # nothing here speaks WebSocket
            await send({"type": "websocket.close", "code": 1008})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        own = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = own
        token, started = request_id.set(own), time.perf_counter()
        answer = _Answer(scope, send, own)
        try:
            try:
                await self._app(scope, receive, answer)
            except RefusedError as refused:
                await answer.refuse(receive, refused)
            except StorageUnavailableError as error:
                _log.warning("the database does not answer: %s", error)
                detail = "the database does not answer just now; try again"
                headers = {"Retry-After": str(RETRY_SECONDS)}
                await answer.refuse(
                    receive, RefusedError(503, "storage_unavailable", detail, headers=headers)
                )
            except Exception:  # noqa: BLE001 - whatever it is, it is answered and logged
                _log.exception("%s %s failed", scope["method"], scope["path"])
                detail = f"something went wrong here; it is in the log under {own}"
                await answer.refuse(receive, RefusedError(500, "internal", detail))
            finally:
                self._note(scope, answer, time.perf_counter() - started)
        finally:
            request_id.reset(token)

    def _note(self, scope: Scope, answer: _Answer, seconds: float) -> None:
        fields = {
            "method": scope["method"],
            "path": scope["path"],
            "status": answer.status,
            "bytes": answer.size,
            "milliseconds": round(1000 * seconds, 1),
            "client": (scope.get("client") or ("",))[0],
            "who": scope["state"].get("tuner_who"),
        }
        level = logging.DEBUG if scope["path"] in PROBES and answer.status == 200 else logging.INFO
        _log.log(level, "request", extra={"fields": fields})


class _Answer:
    """Sends on what is answered, with the headers of all answers; knows its status and size."""

    def __init__(self, scope: Scope, send: Send, own_id: str) -> None:
        self._scope, self._send, self._own_id = scope, send, own_id
        self.status, self.size, self._is_whole = 0, 0, False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = _dress(message.get("headers", []), self._scope)
            headers.append((b"x-request-id", self._own_id.encode("ascii")))
            message = {**message, "headers": headers}
        elif message["type"] == "http.response.body":
            self.size += len(message.get("body", b""))
            self._is_whole = not message.get("more_body", False)
        await self._send(message)

    async def refuse(self, receive: Receive, refused: RefusedError) -> None:
        """Say no, unless it was said already; where an answer has begun, it can only be cut off."""
        if self._is_whole:
            return
        if self.status:
            raise ConnectionError("the answer broke off") from refused
        await refusal(self._scope, refused)(self._scope, receive, self)


def _request_id(scope: Scope) -> str:
    """The one that the client gave, if it is harmless in a log; a new one otherwise."""
    given = Headers(scope=scope).get("x-request-id", "")
    if _REQUEST_ID.fullmatch(given) is not None and redact(given) == given:
        return given
    return uuid.uuid4().hex


_DRESS = {
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
}
"""Headers of all answers."""


def _dress(given: list[tuple[bytes, bytes]], scope: Scope) -> list[tuple[bytes, bytes]]:
    """An answer's headers with those that all have: nothing is framed, guessed, shared with others, or kept by proxies.

    Names are in small letters, as ASGI wants them.
    """
    headers = [(name, value) for name, value in given if not name.startswith(b"access-control-")]
    found = dict(headers)
    kind, policy = found.get(b"content-type", b""), found.get(b"content-security-policy")
    own = dict(_DRESS)
    if policy is None:
        own[b"content-security-policy"] = _HTML_POLICY if kind.startswith(b"text/html") else _DATA_POLICY
    elif b"frame-ancestors" not in policy:
        own[b"content-security-policy"] = policy.rstrip(b"; ") + b"; base-uri 'self'; frame-ancestors 'none'"
    if b"cache-control" not in found:
        is_static = scope["path"].startswith("/static/") or scope["path"] in (STYLE_PATH, "/favicon.ico")
        own[b"cache-control"] = b"private, max-age=3600" if is_static else b"no-store"
    if is_secure(scope):
        own[b"strict-transport-security"] = b"max-age=%d" % YEAR
    return [*((name, value) for name, value in headers if name not in own), *own.items()]


def is_secure(scope: Scope) -> bool:
    """Whether the client's connection is encrypted: with us, or with a proxy that says so."""
    return scope.get("scheme") == "https"


# -------------------------------------------------------------------------------------------------------------- doors


class Hosts:
    """Lets in only requests to one of our names: a page elsewhere may have pointed a name of its own at us."""

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app, self._hosts = app, frozenset(host.strip("[]").lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in PROBES:
            given = Headers(scope=scope).getlist("host")
            found = _HOST.fullmatch(given[0]) if len(given) == 1 else None
            if found is None:
                raise RefusedError(400, "malformed", "a request has one Host header, a name or an address")
            if found[1].strip("[]").lower() not in self._hosts:
                raise RefusedError(
                    421,
                    "misdirected",
                    f"{found[1]} is none of this service's names; `--allowed-host` adds one",
                )
        await self._app(scope, receive, send)


class Authentication:
    """Finds out who asks, by a token in the header or a log-in in the cookie; without one, only `PUBLIC` is there."""

    def __init__(self, app: ASGIApp, tokens: Tokens) -> None:
        self._app, self._tokens = app, tokens
        self._threads = Threads("authentication", 4, LOOKUP_SECONDS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in PUBLIC:
            who, shown = await self._who(scope)
            if isinstance(who, str):
                await self._turn_away(scope, receive, send, who)
                return
            identify(scope, who, shown)
            scope["state"]["tuner_who"] = who.name
        await self._app(scope, receive, send)

    async def _who(self, scope: Scope) -> tuple[Identity | str, str]:
        """Who asks, or why that is nobody; and the token or log-in that says so."""
        headers = Headers(scope=scope)
        if given := headers.getlist("authorization"):
            kind, _, rest = given[0].partition(" ")
            if len(given) != 1 or kind.lower() != "bearer":
                return (
                    "the header Authorization must be there once, and read: Bearer, a space, and a token",
                    "",
                )
            text = rest.strip()
            found = await self._look_up(self._tokens.verify, text)
            return (found, text) if found else (await self._threads.run(self._why_not, text), text)
        if login := login_of(scope):
            scope["state"]["by_cookie"] = True
            who = await self._look_up(self._tokens.verify_login, login)
            return who or "this log-in is over; log in again", login
        return "a token is needed, in the header Authorization: Bearer …", ""

    async def _look_up(self, verify: Callable[[str], Identity | None], text: str) -> Identity | None:
        return self._tokens.remembered(text) or await self._threads.run(verify, text)

    def _why_not(self, text: str) -> str:
        expired = self._tokens.expired(text)
        if expired is not None:
            return f"this token expired at {expired:%Y-%m-%d %H:%M} UTC"
        return "this token is not known here, or was revoked"

    async def _turn_away(self, scope: Scope, receive: Receive, send: Send, why: str) -> None:
        if wants_page(scope) and "authorization" not in Headers(scope=scope):
            query = scope["query_string"].decode("latin-1")
            wanted = scope["path"] + (f"?{query}" if query else "")
            where = "/login" if wanted == "/" else f"/login?next={quote(wanted)}"
            await RedirectResponse(where, 303)(scope, receive, send)
            return
        raise RefusedError(401, "unauthorized", why, headers={"WWW-Authenticate": 'Bearer realm="tuner"'})


class SameOrigin:
    """Where a cookie speaks for a browser, lets it change something only if a page of ours made it ask."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in SAFE:
            headers, by_cookie = Headers(scope=scope), scope["state"].get("by_cookie", False)
            if (by_cookie or scope["path"] == "/login") and not _is_own(scope, headers, by_cookie=by_cookie):
                raise RefusedError(
                    403, "cross_origin", "a browser may change this only from a page of this service"
                )
        await self._app(scope, receive, send)


def _is_own(scope: Scope, headers: Headers, *, by_cookie: bool) -> bool:
    """Whether a page of ours asks, by what the browser says; a program that says nothing may try to log in."""
    origin = headers.get("origin")
    if origin is None:
        site = headers.get("sec-fetch-site")
        return site == "same-origin" if site is not None else not by_cookie
    try:
        found = urlsplit(origin)
    except ValueError:
        return False
    schemes = (
        ("https",) if is_secure(scope) else ("http", "https")
    )  # a proxy may keep to itself that it is https
    return found.scheme in schemes and found.netloc.lower() == headers.get("host", "").lower()


def cookie_name(scope: Scope) -> str:
    """The log-in's cookie; under TLS one that no other site of the domain can set."""
    return "__Host-tuner_login" if is_secure(scope) else "tuner_login"


def login_of(scope: Scope) -> str | None:
    """The log-in that the browser's cookie holds."""
    given = "; ".join(Headers(scope=scope).getlist("cookie"))
    return cookie_parser(given).get(cookie_name(scope))


# ----------------------------------------------------------------------------------------------------------- dispatch


class Readiness:
    """Whether the service can serve; looked at once a second at most, and waited for as long.

    Args:
        look: why it cannot, None where it can; it may wait for the database.
        clock: in seconds.
    """

    def __init__(
        self, look: Callable[[], str | None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._look, self._clock = look, clock
        self._threads = Threads("readiness", 1, READY_SECONDS)
        self._looking: asyncio.Task[str | None] | None = None
        self._until = 0.0
        self._last: str | None = None

    async def __call__(self) -> str | None:
        """Why it cannot; None where it can."""
        if self._looking is None and self._clock() < self._until:
            return self._last
        if self._looking is None:
            self._looking = asyncio.create_task(self._answer())
            self._looking.add_done_callback(self._seen)
        return await asyncio.shield(self._looking)

    def _seen(self, looked: asyncio.Task[str | None]) -> None:
        self._looking = None
        if not looked.cancelled():
            self._last, self._until = looked.result(), self._clock() + READY_SECONDS

    async def _answer(self) -> str | None:
        try:
            reason = await self._threads.run(self._look)
        except StorageError as error:
            reason = str(error)
        if reason is not None:
            _log.warning("not ready: %s", reason)
        return reason


def _is_interface(path: str) -> bool:
    """Whether a path is that of programs, which want no pages."""
    return path == "/metrics" or path.startswith("/v1/")


class Dispatch:
    """Hands a request to whom its path belongs. Who asks is known by now."""

    def __init__(self, *, api: ASGIApp, pages: ASGIApp, dashboard: _OfIdentity, is_ready: Readiness) -> None:
        self._api, self._pages, self._dashboard, self._is_ready = api, pages, dashboard, is_ready

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] == "http" and path in PROBES:
            await self._probe(scope, receive, send)
        elif scope["type"] == "http" and path in PAGES:
            await self._pages(scope, receive, send)
        elif scope["type"] == "http" and is_dashboards(path):
            await self._dashboard(scope, receive, send, identity(Request(scope)))
        elif scope["type"] == "http" and wants_page(scope) and not _is_interface(path):
            raise RefusedError(404, "not_found", "there is no such page")
        else:
            await self._api(scope, receive, send)

    async def _probe(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            raise RefusedError(
                405, "method_not_allowed", "this is only looked at", headers={"Allow": "GET, HEAD"}
            )
        reason = await self._is_ready() if scope["path"] == "/readyz" else None
        if reason is not None:  # which is in the log: it names the database
            raise RefusedError(
                503,
                "not_ready",
                "the database cannot be used just now",
                headers={"Retry-After": str(RETRY_SECONDS)},
            )
        await JSONResponse({"status": "ok"})(scope, receive, send)
