"""Our own pages: the log-in, and what goes on. Made here as they are asked for; they have no scripts."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import parse_qs, urlsplit

import sqlalchemy as sa
from optuna.storages._rdb import models
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import Receive, Scope, Send

from tuner.manager import StudyManager, StudySummary
from tuner.markup import STYLE, Html, data_table, tag, titled
from tuner.runs import Working
from tuner.service.auth import LOGIN_SECONDS, Attempts, Tokens
from tuner.service.front import Threads, cookie_name, is_secure, login_of
from tuner.service.identity import Identity, identity
from tuner.service.refusal import PAGE_POLICY, STYLE_PATH, RefusedError, document
from tuner.storage import Database, Mode

__all__ = ["Pages"]

FORM_BYTES = 4096

SECONDS = 20.0
"""So long a page is waited for."""

Page = Callable[[Request], Awaitable[Response]]


class Pages:
    """Our pages as an ASGI application.

    Args:
        manager: whose studies are shown.
        database: the manager's.
        tokens: who may log in.
        attempts: how often that may be tried.
    """

    def __init__(
        self, manager: StudyManager, database: Database, tokens: Tokens, attempts: Attempts | None = None
    ) -> None:
        self._manager, self._database, self._tokens = manager, database, tokens
        self._attempts = attempts or Attempts()
        self._threads = Threads("pages", 4, SECONDS)
        self._pages: Mapping[str, Mapping[str, Page]] = {
            "/": {"GET": self._overview},
            "/login": {"GET": self._form, "POST": self._log_in},
            "/logout": {"POST": self._log_out},
            STYLE_PATH: {"GET": self._style},
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with one of the pages."""
        methods = self._pages[scope["path"]]
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        if method not in methods:
            raise RefusedError(
                405,
                "method_not_allowed",
                f"{scope['path']} does not know {scope['method'][:20]}",
                headers={"Allow": ", ".join(methods)},
            )
        response = await methods[method](Request(scope, receive))
        await response(scope, receive, send)

    async def _style(self, _: Request) -> Response:
        return Response(STYLE + FORM_STYLE, media_type="text/css")

    # ---------------------------------------------------------------------------------------------------- the log-in

    async def _form(self, request: Request) -> Response:
        return _login_page(_local(request.query_params.get("next", "/")))

    async def _log_in(self, request: Request) -> Response:
        form = await _read_form(request)
        wanted, address = _local(form.get("next", "/")), _address(request)
        if seconds := self._attempts.begin(address):
            text = f"Too many tries. Wait {seconds:.0f} seconds, then try again."
            return _login_page(wanted, text, 429, {"Retry-After": f"{seconds + 1:.0f}"})
        login = await self._threads.run(self._tokens.log_in, form.get("token", "").strip())
        if login is None:
            return _login_page(wanted, "This is no token, or it is no longer good.", 401)
        self._attempts.succeeded(address)
        response = RedirectResponse(wanted, 303)
        response.set_cookie(
            cookie_name(request.scope),
            login,
            max_age=int(LOGIN_SECONDS),
            httponly=True,
            samesite="strict",
            secure=is_secure(request.scope),
        )
        return response

    async def _log_out(self, request: Request) -> Response:
        if (login := login_of(request.scope)) is not None:
            await self._threads.run(self._tokens.log_out, login)
        response = RedirectResponse("/login", 303)
        response.delete_cookie(
            cookie_name(request.scope), httponly=True, samesite="strict", secure=is_secure(request.scope)
        )
        return response

    # ---------------------------------------------------------------------------------------------------- what goes on

    async def _overview(self, request: Request) -> Response:
        who = identity(request)
        return _html(await self._threads.run(self._overview_page, who))

    def _overview_page(self, who: Identity) -> str:
        summaries = [study for study in self._manager.studies() if who.sees(study.name)]
        working = self._manager.working([study.name for study in summaries])
        ids = {} if who.prefix else self._study_ids()  # a token for some studies may not see the dashboard
        body = tag(
            "main",
            _head(who),
            _studies(summaries, ids),
            _working(working, ids),
        )
        return document("tuner: studies", body)

    def _study_ids(self) -> dict[str, int]:
        """The ids under which the dashboard shows the studies."""
        query = sa.select(models.StudyModel.study_name, models.StudyModel.study_id)
        with self._database.transaction(Mode.READ) as session:
            return {row.study_name: row.study_id for row in session.execute(query)}


def _head(who: Identity) -> Html:
    only = f", studies that begin with {who.prefix}" if who.prefix else ""
    links = [] if who.prefix else [tag("a", "Dashboard", href="/dashboard")]
    return tag(
        "header",
        tag(
            "nav",
            tag("span", "tuner", class_="eyebrow"),
            tag("span", *links),
            tag("span", f"{who.name} ({who.role.name.lower()}{only})", class_="quiet who"),
            tag("form", tag("button", "Log out", type="submit"), method="post", action="/logout"),
        ),
        tag("h1", "Studies"),
    )


def _studies(summaries: list[StudySummary], ids: Mapping[str, int]) -> Html:
    if not summaries:
        return tag("section", tag("p", "No studies yet.", class_="quiet"))
    titles = ("study", "objective", "sampler", "trials", "running", "pruned", "failed", "best")
    lines = [
        [
            _link(study.name, ids),
            study.objective or "–",
            study.sampler or "–",
            f"{study.finished} of {study.budget}" if study.budget else str(study.finished),
            *(str(study.trials.get(state, 0)) for state in ("RUNNING", "PRUNED", "FAIL")),
            "–" if study.best_value is None else f"{study.best_value:.5g}".replace("-", "−"),
        ]
        for study in reversed(summaries)
    ]
    return tag("section", data_table(titles, lines))


def _working(working: list[Working], ids: Mapping[str, int]) -> Html:
    if not working:
        return titled("Running", tag("p", "No worker has a trial in hand.", class_="quiet"))
    lines = [[_link(one.study, ids), str(one.number), str(one.epochs)] for one in working]
    return titled("Running", data_table(("study", "trial", "epochs"), lines))


def _link(study: str, ids: Mapping[str, int]) -> str:
    return tag("a", study, href=f"/dashboard/studies/{ids[study]}") if study in ids else study


def _login_page(
    wanted: str, problem: str | None = None, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    field = tag(
        "input",
        id="token",
        name="token",
        type="password",
        autocomplete="current-password",
        spellcheck="false",
        placeholder="tuner_…",
        required="",
        autofocus="",
        **({"aria_describedby": "problem", "aria_invalid": "true"} if problem else {}),
    )
    form = tag(
        "form",
        tag("input", type="hidden", name="next", value=wanted),
        tag("label", "Token", for_="token"),
        field,
        tag("button", "Log in", type="submit"),
        method="post",
        action="/login",
    )
    note = Html(
        "The service's first start printed a token for its administrator; "
        "<code>tuner token create</code> makes more."
    )
    body = tag(
        "main",
        tag("p", "tuner", class_="eyebrow"),
        tag("h1", "Log in"),
        tag("p", problem, class_="notice", id="problem", role="alert") if problem else "",
        form,
        tag("p", note, class_="note"),
        class_="login",
    )
    return _html(document("tuner: log in", body), status, headers)


def _html(text: str, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return HTMLResponse(text, status, {**(headers or {}), "Content-Security-Policy": PAGE_POLICY})


async def _read_form(request: Request) -> dict[str, str]:
    """The fields of a small form."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise RefusedError(
            415, "unsupported_media_type", "the form must be application/x-www-form-urlencoded"
        )
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > FORM_BYTES:
            raise RefusedError(413, "too_large", f"the form has at most {FORM_BYTES} bytes")
    try:
        found = parse_qs(body.decode(), max_num_fields=10)
    except ValueError:
        raise RefusedError(400, "malformed", "the form cannot be read") from None
    return {name: values[0] for name, values in found.items()}


def _local(target: str) -> str:
    """A path of ours to go on to; whatever else is asked for, `/`."""
    try:
        parsed = urlsplit(target)
    except ValueError:
        return "/"
    is_ours = re.fullmatch(r"/(?![/\\])[\x21-\x5b\x5d-\x7e]*", target) and not (
        parsed.scheme or parsed.netloc
    )
    return target if is_ours else "/"


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


FORM_STYLE = """
a { color: inherit; text-decoration-color: var(--soft); text-underline-offset: .2em; }
a:hover { text-decoration-color: currentColor; }
nav { display: flex; flex-wrap: wrap; align-items: center; gap: .5rem 1.25rem; margin-bottom: 2rem; font-size: .9rem; }
nav .who { margin-left: auto; }
nav form { margin: 0; }
header + section { margin-top: 1.5rem; }
button {
  padding: .4rem .9rem; border: 1px solid var(--line); border-radius: .4rem; background: var(--faint);
  color: var(--ink); font: inherit; cursor: pointer;
}
button:hover { border-color: var(--soft); }
:focus-visible { outline: 2px solid var(--soft); outline-offset: 2px; }
.login { max-width: 28rem; }
.login form { display: grid; gap: .5rem; }
.login input {
  width: 100%; padding: .6rem .75rem; border: 1px solid var(--soft); border-radius: .4rem; background: var(--paper);
  color: var(--ink); font: inherit;
}
.login button {
  margin-top: .5rem; padding: .6rem; background: var(--ink); color: var(--paper); border-color: var(--ink);
}
.login label { font-size: .9rem; font-weight: 600; }
@media (max-width: 46rem) { nav .who { margin-left: 0; } nav form { margin-left: auto; } }
"""
