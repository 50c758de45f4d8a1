"""Errors as problem+json (RFC 9457): everything that goes wrong becomes one, here and nowhere else.

`errors.py` knows no HTTP; this is where its tree is mapped. What nobody expected is logged in full and answered without
details: they may hold what is not the client's to see.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import optuna
import sqlalchemy as sa
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.types import Scope

from tuner.errors import (
    ConflictError,
    DefinitionError,
    LeaseLostError,
    NotFoundError,
    StorageError,
    StorageUnavailableError,
    TunerError,
)
from tuner.explain import explain_all
from tuner.storage import explain

__all__ = [
    "PROBLEM",
    "RETRY_SECONDS",
    "AlreadyRequestedError",
    "Problem",
    "RefusedError",
    "answer_problems",
    "problem",
    "responses",
]

PROBLEM = "application/problem+json"

RETRY_SECONDS = 2
"""After so long a client may try again what found no database."""

MOST_ERRORS = 50

LONGEST = 2000
"""So many characters of a text that may repeat what a client sent."""

_log = logging.getLogger(__name__)

_SLUGS = {
    400: "malformed",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    409: "conflict",
    413: "too_large",
    415: "unsupported_media_type",
    422: "invalid",
    429: "too_many_requests",
    500: "internal",
    503: "storage_unavailable",
}


class AlreadyRequestedError(TunerError):
    """The request was handed a trial before, which is no longer its own: ask with another request id."""


class RefusedError(Exception):
    """A request that goes no further.

    Args:
        status: the HTTP status.
        slug: the kind of problem, for programs: `urn:tuner:` and this; None for the status's own.
        detail: the reason, for people; one line that they can act on.
        headers: more of the answer.
    """

    def __init__(
        self, status: int, slug: str | None, detail: str, *, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.slug, self.detail, self.headers = status, slug, detail, dict(headers or {})


class Mistake(BaseModel):
    """One thing that is wrong with a request: where, and what."""

    where: str = Field(description="The place in the body, as in `budget.trials`; or the parameter.")
    detail: str


class Problem(BaseModel):
    """What went wrong, as RFC 9457 has it."""

    type: str = Field(description="`urn:tuner:` and a word that programs can rely on.")
    title: str
    status: int
    detail: str
    request_id: str | None = None
    errors: list[Mistake] | None = None


def problem(
    status: int,
    detail: str,
    *,
    slug: str | None = None,
    scope: Scope | None = None,
    errors: Sequence[Mapping[str, str]] | None = None,
    headers: Mapping[str, str] | None = None,
    **more: str,
) -> JSONResponse:
    """The answer to what went wrong.

    Args:
        status: of HTTP.
        detail: one line (or one for each mistake) that a person can act on.
        slug: the kind, if not the status's own.
        scope: of the request, for its id.
        errors: `{"where": …, "detail": …}` for each mistake in a document.
        headers: further ones.
        more: further members of the document.
    """
    request_id = (scope or {}).get("state", {}).get("request_id")
    body = {
        "type": f"urn:tuner:{slug or _SLUGS.get(status, 'error')}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail[:LONGEST],
        **({} if request_id is None else {"request_id": str(request_id)}),
        **({} if errors is None else {"errors": list(errors)[:MOST_ERRORS]}),
        **more,
    }
    return JSONResponse(body, status, headers=dict(headers or {}), media_type=PROBLEM)


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problems that an endpoint may answer with, for its documentation; those that all have are among them."""
    common = (400, 401, 403, 413, 415, 422, 500, 503)
    content = {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": content}
        for status in sorted({*common, *statuses})
    }


def answer_problems(app: FastAPI) -> None:
    """Let an application answer with problems."""
    app.add_exception_handler(TunerError, _tuner_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(sa.exc.SQLAlchemyError, _database_error)
    app.add_exception_handler(optuna.exceptions.StorageInternalError, _database_error)


def of_error(error: BaseException, scope: Scope) -> JSONResponse:
    """The problem that an error of this package's is; of any other, one without details, and the log has them."""
    match error:
        case StorageUnavailableError():
            _log.warning("the database does not answer: %s", error)
            detail = "the database does not answer just now; try again"
            return problem(503, detail, scope=scope, headers={"Retry-After": str(RETRY_SECONDS)})
        case StorageError():
            return unexpected(error, scope)
        case AlreadyRequestedError():
            return problem(409, error.public, slug="already_requested", scope=scope)
        case LeaseLostError():
            return problem(409, error.public, slug="lease_lost", scope=scope)
        case ConflictError():
            return problem(409, error.public, scope=scope)
        case NotFoundError():
            return problem(404, error.public, scope=scope)
        case DefinitionError():
            return problem(422, error.public, scope=scope)
        case _:
            return unexpected(error, scope)


def unexpected(error: BaseException, scope: Scope) -> JSONResponse:
    """The answer to what nobody expected."""
    _log.error("%s %s failed", scope.get("method"), scope.get("path"), exc_info=error)
    return problem(500, "something went wrong here; the log of the service says what", scope=scope)


async def _tuner_error(request: Request, error: Exception) -> JSONResponse:
    return of_error(error, request.scope)


async def _database_error(request: Request, error: Exception) -> JSONResponse:
    return of_error(explain("the database", error), request.scope)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 405:  # Starlette names the methods of one route only
        headers["Allow"] = ", ".join(request.app.state.allowed(request.url.path))
    detail = str(error.detail)
    if error.status_code == 404 and detail == HTTPStatus.NOT_FOUND.phrase:  # Starlette's own
        detail = "there is nothing at this path; GET /v1/openapi.json says what there is"
    return problem(error.status_code, detail, scope=request.scope, headers=headers)


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    mistakes = [*_mistakes(error)]
    lines = [f"{m['where']}: {m['detail']}" if m["where"] else m["detail"] for m in mistakes]
    detail = "; ".join([*_elsewhere(request.url.path, error.body), *lines])
    return problem(422, detail, scope=request.scope, errors=mistakes)


def _elsewhere(path: str, body: Any) -> list[str]:
    """Where a document belongs that was sent to the wrong place."""
    is_comparison = isinstance(body, dict) and "comparison" in body
    if path == "/v1/studies" and is_comparison:
        return ["this document is a comparison's: POST it to /v1/comparisons"]
    if path == "/v1/comparisons" and isinstance(body, dict) and not is_comparison:
        return ["this document is a study's: POST it to /v1/studies"]
    return []


def _mistakes(error: RequestValidationError) -> list[dict[str, str]]:
    """What is wrong, a place each, in the words of definitions."""
    of_body = [e for e in error.errors() if e["loc"][:1] == ("body",)]
    others = [e for e in error.errors() if e["loc"][:1] != ("body",)]
    found = [{"where": ".".join(map(str, e["loc"][1:])), "detail": str(e["msg"])} for e in others]
    lines = explain_all(
        [{**e, "loc": e["loc"][1:]} for e in of_body],  # type: ignore[typeddict-item]  # as pydantic makes them
        error.body,
        lambda path, table: None,
    )
    for line in lines[:MOST_ERRORS]:
        where, is_split, detail = line.partition(": ")
        found.append({"where": where, "detail": detail} if is_split else {"where": "", "detail": line})
    return found[:MOST_ERRORS]
