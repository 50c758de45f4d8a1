"""The service's front with a stand-in for its API behind, and who knocks at it."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any

import httpx
from fastapi import Depends, FastAPI, Request
from fastapi.responses import HTMLResponse
from starlette.types import ASGIApp

from tuner import StudyDefinition, StudyManager
from tuner.logs import OneLine
from tuner.service.app import ready
from tuner.service.auth import Attempts, Tokens
from tuner.service.dashboard import Dashboard
from tuner.service.front import Readiness, front
from tuner.service.identity import Identity, Role, needs
from tuner.service.pages import Pages

__all__ = ["Knocker", "Service", "log_lines", "some_trials", "stand_in"]

HOSTS = ("localhost", "127.0.0.1", "::1")


def stand_in() -> FastAPI:
    """An application with an endpoint of each kind, and the framework's own pages."""
    app = FastAPI(docs_url="/v1/docs", openapi_url="/v1/openapi.json")

    @app.get("/v1/who")
    def who(who: Annotated[Identity, Depends(needs(Role.VIEWER))]) -> dict[str, Any]:
        return {"name": who.name, "role": who.role.name, "prefix": who.prefix}

    @app.post("/v1/studies")
    async def create(
        request: Request, who: Annotated[Identity, Depends(needs(Role.OPERATOR))]
    ) -> dict[str, Any]:
        return {"body": (await request.body()).decode(), "by": who.name}

    @app.get("/v1/report")
    def report() -> HTMLResponse:
        return HTMLResponse("<p>", headers={"Access-Control-Allow-Origin": "*"})

    @app.get("/metrics")
    def metrics() -> str:
        return ""

    @app.get("/v1/failure")
    def failure() -> None:
        raise ZeroDivisionError("not foreseen\nat all")

    return app


class Knocker:
    """A client without cookies of its own, unless it keeps them."""

    def __init__(self, app: ASGIApp, runner: asyncio.Runner, **settings: Any) -> None:
        address = settings.pop("address", "10.0.0.9")
        transport = httpx.ASGITransport(app, client=(address, 4000))
        base = settings.pop("base_url", "http://localhost:8080")
        self._client = httpx.AsyncClient(transport=transport, base_url=base, **settings)
        self._runner = runner

    def __call__(self, method: str, path: str, **settings: Any) -> httpx.Response:
        return self._runner.run(self._client.request(method, path, **settings))

    @property
    def cookies(self) -> httpx.Cookies:
        return self._client.cookies


class Service:
    """A front, its database and its tokens."""

    def __init__(self, url: str, *, api: ASGIApp | None = None, artifact_store: Any = None) -> None:
        self.manager = StudyManager(url)
        self.database = self.manager.ledger.database
        self.tokens = Tokens(self.database)
        self.attempts = Attempts()
        self.app = front(
            api=api or stand_in(),
            pages=Pages(self.manager, self.tokens, self.attempts),
            dashboard=Dashboard(self.database, artifact_store=artifact_store),
            tokens=self.tokens,
            is_ready=Readiness(partial(ready, self.manager)),
            hosts=HOSTS,
        )
        self.runner = asyncio.Runner()
        self._texts: dict[Any, str] = {}

    def token(self, role: Role, prefix: str = "") -> str:
        if (role, prefix) not in self._texts:
            self._texts[role, prefix] = self.tokens.create(role.name.lower(), role, prefix=prefix)[0]
        return self._texts[role, prefix]

    def anybody(self, **settings: Any) -> Knocker:
        """Who shows no token."""
        return Knocker(self.app, self.runner, **settings)

    def holder(self, role: Role, prefix: str = "", **settings: Any) -> Knocker:
        """Who has a token of a role."""
        headers = {"Authorization": f"Bearer {self.token(role, prefix)}", **settings.pop("headers", {})}
        return Knocker(self.app, self.runner, headers=headers, **settings)

    def browser(self, role: Role, **settings: Any) -> Knocker:
        """Who has logged in."""
        knocker = Knocker(self.app, self.runner, **settings)
        answer = knocker("POST", "/login", data={"token": self.token(role)})
        assert answer.status_code == 303, answer.text
        return knocker

    def close(self) -> None:
        self.tokens.close()
        self.runner.close()
        self.manager.close()


def some_trials(manager: StudyManager, name: str = "small", trials: int = 3) -> None:
    """A study with a few trials, the last of them running."""
    space = {"x": {"low": 0.0, "high": 1.0}}
    definition = {"name": name, "space": space, "sampler": {"name": "random"}, "budget": {"trials": 10}}
    manager.create(StudyDefinition.parse(definition))
    ask_tell = manager.ask_tell(name)
    from optuna.trial import TrialState

    for i in range(trials):
        lease = ask_tell.ask()
        assert lease is not None
        ask_tell.report(lease, 1, 0.5)
        if i < trials - 1:
            ask_tell.tell(lease, TrialState.COMPLETE, lease.params["x"])


@contextmanager
def log_lines(level: int = logging.DEBUG) -> Iterator[list[str]]:
    """What the service writes into its log: a list of lines, filled at the end."""
    stream, lines = io.StringIO(), []
    handler = logging.StreamHandler(stream)
    handler.setFormatter(OneLine())
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(level)
    try:
        yield lines
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
        lines += stream.getvalue().splitlines()
        assert all(isinstance(json.loads(line), dict) for line in lines)
