"""optuna-dashboard behind the login, at its own paths: read by all, changed by operators, and only where that is safe.

The dashboard itself has no login, takes NaN for a value (which no later reader of the study survives), and renames and
deletes studies under the feet of their workers. So what would change something is let through only where it is known,
and only after its document was checked and written anew; everything else is done through the interface under /v1.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import optuna_dashboard
import sqlalchemy as sa
from a2wsgi import WSGIMiddleware
from optuna.storages._rdb import models
from optuna.trial import TrialState
from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tuner.service.identity import Identity, Role
from tuner.service.large_studies import Documents
from tuner.service.limits import check_json
from tuner.service.refusal import RefusedError
from tuner.service.threads import OwnThreads
from tuner.storage import Database, Mode, cached
from tuner.trial_run import RECORDS

__all__ = ["Dashboard"]

BODY_BYTES = 256 * 1024

THREADS = 6
"""So many of its answers are made at once, and as many documents of studies and of changes."""

_THREADS = OwnThreads("dashboard", THREADS)

STUDY = r"/api/studies/([0-9]{1,9})"

ARTIFACT_POLICY = "sandbox; default-src 'none'; frame-ancestors 'none'"

_log = logging.getLogger(__name__)

Check = Callable[[Database, list[int], dict[str, Any]], dict[str, Any]]
"""Looks at a document that is to change something; the same written anew, or `RefusedError`."""


class Dashboard:
    """The dashboard as an ASGI application; who asks stands in the scope.

    Args:
        database: what it shows.
        artifact_store: where artifacts lie, if any are shown.
    """

    def __init__(self, database: Database, *, artifact_store: Any = None) -> None:
        self._database = database
        bottle = _quiet(optuna_dashboard.wsgi(storage=cached(database), artifact_store=artifact_store))
        self._app: ASGIApp = WSGIMiddleware(bottle, workers=THREADS)  # type: ignore[assignment]
        self._documents = Documents(database)

    async def __call__(self, scope: Scope, receive: Receive, send: Send, who: Identity) -> None:
        """Answer `who`.

        Raises:
            RefusedError: 403 where the role or the study prefix forbids it, or another status where the document does.
        """
        if who.prefix:
            raise RefusedError(
                403,
                "forbidden",
                f"this token is for studies whose names begin with {who.prefix!r}; the dashboard shows all of them",
            )
        if not scope["query_string"].isascii():
            raise RefusedError(400, "malformed", "a query is ASCII; everything else is written with %")
        if scope["method"] not in ("GET", "HEAD"):
            scope, receive = await self._checked(scope, receive, who)
        elif scope["path"].startswith("/artifacts/"):
            send = _as_attachment(send)
        elif (found := re.fullmatch(STUDY, scope["path"])) is not None:
            status, body = await _THREADS.run(self._documents.get, int(found[1]), _after(scope))
            await Response(body, status, media_type="application/json")(scope, receive, send)
            return
        await self._app(_with_header(scope, "accept-encoding", "identity"), receive, send)

    async def _checked(self, scope: Scope, receive: Receive, who: Identity) -> tuple[Scope, Receive]:
        """A request that may change something, with its document written anew."""
        if who.role < Role.OPERATOR:
            raise RefusedError(403, "forbidden", "only an operator may change something in the dashboard")
        for method, path, check in WRITES:
            if method == scope["method"] and (found := re.fullmatch(path, scope["path"])) is not None:
                ids = [int(number) for number in found.groups()]
                document = _parse(scope, await _body(receive))
                written = await _THREADS.run(check, self._database, ids, document)
                return _with_body(scope, json.dumps(written, allow_nan=False).encode())
        raise RefusedError(
            403, "forbidden", "this is not done through the dashboard here, but through /v1 or `tuner`"
        )


# ------------------------------------------------------------------------------------------------------------- checks


def _tell(database: Database, ids: list[int], document: dict[str, Any]) -> dict[str, Any]:
    """A running trial ends: with a finite number for each objective, or as failed."""
    study_id, _ = _running(database, ids[0])
    state = document.get("state")
    if not isinstance(state, str) or state.lower() not in ("complete", "fail"):
        raise _invalid(f"state must be Complete or Fail; got {state!r}")
    if state.lower() == "fail":
        return {"state": "Fail"}
    values, wanted = document.get("values"), len(database.get_study_directions(study_id))
    if not isinstance(values, list) or len(values) != wanted or not all(map(_is_number, values)):
        raise _invalid(
            f"values must be as many finite numbers as there are objectives, {wanted}; got {values!r}"
        )
    return {"state": "Complete", "values": [float(value) for value in values]}


def _user_attrs(database: Database, ids: list[int], document: dict[str, Any]) -> dict[str, Any]:
    """User attributes of a running trial, but for those that we keep on record ourselves."""
    _running(database, ids[0])
    attrs = document.get("user_attrs")
    if not isinstance(attrs, dict) or not attrs:
        raise _invalid("user_attrs must be an object that holds something")
    for key in attrs:
        if not 0 < len(key) <= 128 or not key.isprintable() or key in RECORDS or key.startswith("tuner:"):
            raise _invalid(f"{key!r} cannot be set: too long, not printable, or kept by the service itself")
    return {"user_attrs": attrs}


def _study_note(database: Database, ids: list[int], document: dict[str, Any]) -> dict[str, Any]:
    with database.transaction(Mode.READ) as session:
        if session.get(models.StudyModel, ids[0]) is None:
            raise RefusedError(404, "not_found", f"no study has the id {ids[0]}")
    return _note(document)


def _trial_note(database: Database, ids: list[int], document: dict[str, Any]) -> dict[str, Any]:
    if _trial(database, ids[1])[0] != ids[0]:
        raise RefusedError(404, "not_found", f"study {ids[0]} has no trial with the id {ids[1]}")
    return _note(document)


def _note(document: dict[str, Any]) -> dict[str, Any]:
    version, body = document.get("version"), document.get("body")
    if type(version) is not int or not 0 <= version < 2**31 or not isinstance(body, str):
        raise _invalid("a note has a version, a whole number, and a body, a text")
    return {"version": version, "body": body}


WRITES: tuple[tuple[str, str, Check], ...] = (
    ("PUT", r"/api/studies/([0-9]{1,9})/note", _study_note),
    ("PUT", r"/api/studies/([0-9]{1,9})/([0-9]{1,9})/note", _trial_note),
    ("POST", r"/api/trials/([0-9]{1,9})/tell", _tell),
    ("POST", r"/api/trials/([0-9]{1,9})/user-attrs", _user_attrs),
)
"""What may be changed through the dashboard: its method and path, and what looks at it.

Left out: creating studies (they are made from definitions), renaming and deleting them (which changes the ids that
workers' leases hang on), artifacts and preferences (system attributes that a client chooses), migrations.
"""


def _running(database: Database, trial_id: int) -> tuple[int, TrialState]:
    study_id, state = _trial(database, trial_id)
    if state is not TrialState.RUNNING:
        raise RefusedError(409, "conflict", f"the trial does not run: it is {state.name.lower()}")
    return study_id, state


def _trial(database: Database, trial_id: int) -> tuple[int, TrialState]:
    """A trial's study and state."""
    query = sa.select(models.TrialModel.study_id, models.TrialModel.state)
    with database.transaction(Mode.READ) as session:
        row = session.execute(query.where(models.TrialModel.trial_id == trial_id)).first()
    if row is None:
        raise RefusedError(404, "not_found", f"no trial has the id {trial_id}")
    return row.study_id, row.state


def _is_number(value: Any) -> bool:
    """Whether it is a finite number, and neither a boolean nor a text (`float` would take "nan")."""
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:
        return False


def _invalid(detail: str) -> RefusedError:
    return RefusedError(422, "invalid", detail[:500])


# ---------------------------------------------------------------------------------------------------------- documents


async def _body(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RefusedError(400, "malformed", "the connection ended before the document")
        body += message.get("body", b"")
        if len(body) > BODY_BYTES:
            detail = f"a document of the dashboard has at most {BODY_BYTES:,} bytes"
            raise RefusedError(413, "too_large", detail, headers={"Connection": "close"})
        if not message.get("more_body", False):
            return bytes(body)


def _parse(scope: Scope, body: bytes) -> dict[str, Any]:
    """The JSON object of a request, as strict as bodies of `/v1`, where what it sets is shown."""
    kind = Headers(scope=scope).get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RefusedError(415, "unsupported_media_type", "the document must be application/json")
    check_json(body)
    document = json.loads(body)
    if not isinstance(document, dict):
        raise _invalid("the document must be an object")
    return document


def _with_body(scope: Scope, body: bytes) -> tuple[Scope, Receive]:
    """The request with another document."""

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    kept = [(k, v) for k, v in scope["headers"] if k not in (b"content-length", b"transfer-encoding")]
    return {**scope, "headers": [*kept, (b"content-length", str(len(body)).encode())]}, receive


def _with_header(scope: Scope, name: str, value: str) -> Scope:
    """The request with a header that the dashboard needs, where it has none."""
    if name in Headers(scope=scope):
        return scope
    return {**scope, "headers": [*scope["headers"], (name.encode(), value.encode())]}


def _after(scope: Scope) -> int:
    """How many trials are left out of a study's document, as the query says."""
    after = QueryParams(scope["query_string"]).get("after", "0")
    if not re.fullmatch("[0-9]{1,9}", after):
        raise RefusedError(400, "malformed", f"after is a number of trials; got {after[:50]!r}")
    return int(after)


def _as_attachment(send: Send) -> Send:
    """Artifacts are downloaded: one that is a web page must not run as ours."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["Content-Disposition"] = "attachment"
            headers["Content-Security-Policy"] = ARTIFACT_POLICY
        await send(message)

    return sending


class _Errors:
    """What a WSGI application writes about its failures goes to the log."""

    def write(self, text: str) -> None:
        if text.strip():
            _log.error("the dashboard failed: %s", text.strip())

    def flush(self) -> None:
        """Nothing is kept back."""


def _quiet(app: Callable[..., Iterable[bytes]]) -> Any:
    def quiet(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        environ["wsgi.errors"] = _Errors()
        return app(environ, lambda status, headers, exc_info=None: start_response(status, headers))

    return quiet
