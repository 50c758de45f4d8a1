"""The API as one ASGI application. It knows no tokens: whoever is in front says who asks (`identity.identify`)."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from functools import partial
from importlib.metadata import version
from typing import Any

import anyio
import sqlalchemy as sa
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from tuner.errors import StorageError
from tuner.manager import StudyManager
from tuner.schema import HEAD, VERSION_TABLE
from tuner.service import comparisons, studies, trials
from tuner.service.desk import Desk
from tuner.service.identity import Role, identity, needs
from tuner.service.limits import Guard, Limits
from tuner.service.metrics import Metrics
from tuner.service.paths import allowed
from tuner.service.problems import Problem, answer_problems
from tuner.storage import Mode, patience

__all__ = ["api", "healthy", "ready"]

READY_SECONDS = 1.0

OPENAPI, METRICS = OWN_PAGES = ("/v1/openapi.json", "/metrics")

_log = logging.getLogger(__name__)


def api(manager: StudyManager, *, reap_seconds: float = 5.0, answer_seconds: float = 3.0) -> FastAPI:
    """The application with all of `/v1`, and `/metrics`.

    Its lifespan must be run (by uvicorn, or by the application around it): it ends the leases of lost workers.

    Args:
        manager: of the database; its `lease_seconds` are those of the trials handed out here.
        reap_seconds: how often it looks for lost workers.
        answer_seconds: for how long a request waits for a database that does not answer.
    """
    metrics, front_desk = Metrics(manager), Desk(manager)
    app = FastAPI(
        title="tuner",
        version=version("tuner"),
        summary="Hyperparameter tuning: ask, report, tell.",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=partial(_lifespan, desk=front_desk, seconds=reap_seconds),
        generate_unique_id_function=_operation,
    )
    app.state.desk, app.state.allowed = front_desk, partial(_allowed, app)
    app.state.metrics = metrics  # whoever is in front counts what it answers itself, too
    answer_problems(app)
    for router in (comparisons.router, studies.router, trials.router):
        app.include_router(router)
    _add_own_pages(app, metrics)
    # the last is the outermost
    app.add_middleware(Limits)
    app.add_middleware(Guard, is_ready=lambda: ready(manager) is None, seconds=answer_seconds)
    return app


def healthy() -> dict[str, str]:
    """What `/healthz` answers: that the process does. Touches nothing."""
    return {"status": "ok"}


def ready(manager: StudyManager) -> str | None:
    """Why the service cannot serve just now; None if it can. Takes a second where the database does not answer.

    It may take longer where the database accepts a connection and then is silent: call it in a thread, and leave that.
    """
    try:
        with patience(READY_SECONDS), manager.ledger.transaction(Mode.READ) as session:
            found = session.scalar(sa.text(f"SELECT version_num FROM {VERSION_TABLE}"))
    except StorageError as error:
        return str(error)
    return None if found == HEAD else f"its tables are of version {found}; needed is {HEAD}"


@contextlib.asynccontextmanager
async def _lifespan(_app: FastAPI, *, desk: Desk, seconds: float) -> AsyncIterator[None]:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_reap, desk, seconds)
        yield
        tasks.cancel_scope.cancel()


async def _reap(desk: Desk, seconds: float) -> None:
    """End the leases of lost workers, again and again: a service has no trials of its own whose heartbeats would."""
    own_thread = anyio.CapacityLimiter(1)
    while True:
        await anyio.sleep(seconds)
        try:
            with patience(seconds):
                await anyio.to_thread.run_sync(desk.reap, limiter=own_thread, abandon_on_cancel=True)
        except StorageError as error:
            _log.warning("could not look for lost workers: %s", error)
        except Exception:  # noqa: BLE001 - the next look may go better
            _log.exception("looking for lost workers failed")


def _allowed(app: FastAPI, path: str) -> list[str]:
    paths: dict[str, dict[str, Any]] = {**document(app)["paths"], **{own: {"get": {}} for own in OWN_PAGES}}
    return allowed(((m.upper(), template) for template, methods in paths.items() for m in methods), path)


def _operation(route: APIRoute) -> str:
    return route.name


def _add_own_pages(app: FastAPI, metrics: Metrics) -> None:
    looks = [Depends(needs(Role.VIEWER))]

    @app.get(OPENAPI, dependencies=looks, include_in_schema=False)
    def openapi() -> dict[str, Any]:
        """What this API is."""
        return document(app)

    @app.get(METRICS, dependencies=looks, include_in_schema=False)
    def shown_metrics(request: Request) -> Response:
        """Counters and gauges, as Prometheus reads them. They are of all studies."""
        if prefix := identity(request).prefix:
            raise HTTPException(
                403, f"metrics are of all studies; this token is for those whose names begin with {prefix!r}"
            )
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document."""
    if app.openapi_schema is None:
        made = get_openapi(
            title=app.title,
            version=app.version,
            summary=app.summary,
            routes=app.routes,
            openapi_version="3.1.0",
        )
        schemas = made["components"]["schemas"]
        problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(problem.pop("$defs", {}))
        schemas["Problem"] = problem
        made["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        made["security"] = [{"token": []}]
        app.openapi_schema = made
    return app.openapi_schema
