"""A client of the API inside this process: real ASGI, no network; who asks is said, not found out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Self

import httpx
from anyio.from_thread import BlockingPortal, start_blocking_portal
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from tuner.manager import StudyManager
from tuner.service.app import api
from tuner.service.identity import Identity, Role, identify

__all__ = ["ADMIN", "Api", "As", "serving"]

ADMIN = Identity("admin", Role.ADMIN)


class As:
    """ASGI middleware in the place of the front: everybody is the same."""

    def __init__(self, app: ASGIApp, who: Identity | None = ADMIN) -> None:
        self.app, self.who = app, who

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.who is not None and scope["type"] == "http":
            identify(scope, self.who)
        await self.app(scope, receive, send)


class Api:
    """Calls an application from this thread. Answers are the JSON, or the response where `expect` is None."""

    def __init__(self, app: FastAPI, portal: BlockingPortal, who: Identity | None) -> None:
        self.app, self._portal = app, portal
        self._client = httpx.AsyncClient(
            transport=httpx.ASGITransport(As(app, who)), base_url="http://service", timeout=60
        )

    def call(self, method: str, path: str, **more: Any) -> httpx.Response:
        return self._portal.call(lambda: self._client.request(method, path, **more))

    def get(self, path: str, expect: int = 200, **params: Any) -> Any:
        return self._checked(self.call("GET", path, params=params), expect)

    def post(self, path: str, body: Any = None, expect: int = 200, **headers: str) -> Any:
        sent = {} if body is None else {"json": body}
        return self._checked(self.call("POST", path, headers=headers, **sent), expect)

    def raw(self, path: str, body: bytes, expect: int, **more: Any) -> Any:
        headers = {"content-type": "application/json", **more}
        return self._checked(self.call("POST", path, content=body, headers=headers), expect)

    def as_(self, who: Identity | None) -> Self:
        """The same application, for somebody else."""
        return type(self)(self.app, self._portal, who)

    def _checked(self, response: httpx.Response, expect: int) -> Any:
        assert response.status_code == expect, (response.status_code, response.text)
        if expect >= 400:
            assert response.headers["content-type"] == "application/problem+json"
            problem = response.json()
            assert problem["status"] == expect
            assert problem["type"].startswith("urn:tuner:")
            return problem
        return json.loads(response.text)


@contextmanager
def serving(
    url: str, *, who: Identity | None = ADMIN, lease_seconds: float = 120.0, **more: Any
) -> Iterator[Api]:
    """An application on a database, with its lifespan."""
    with ExitStack() as stack:
        manager = stack.enter_context(StudyManager(url, lease_seconds=lease_seconds))
        portal = stack.enter_context(start_blocking_portal())
        app = api(manager, **more)
        stack.enter_context(portal.wrap_async_context_manager(app.router.lifespan_context(app)))
        yield Api(app, portal, who)
