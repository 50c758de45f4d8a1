"""Our own pages: the log-in, and what goes on. Made here as they are asked for; they have no scripts."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from urllib.parse import parse_qs, urlsplit

from optuna.study._frozen import FrozenStudy
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import Receive, Scope, Send

from tuner.definition import ComparisonDefinition
from tuner.ledger import ARCHIVED
from tuner.manager import StudyManager
from tuner.markup import STYLE, Html, data_table, tag, titled
from tuner.runs import Working
from tuner.service.auth import LOGIN_SECONDS, Attempts, Tokens
from tuner.service.front import Threads, cookie_name, is_secure, login_of
from tuner.service.identity import Identity, identity
from tuner.service.refusal import PAGE_POLICY, STYLE_PATH, RefusedError, document
from tuner.service.schemas import StudyView
from tuner.service.studies import study_views

__all__ = ["Pages"]

FORM_BYTES = 4096

FORM_SECONDS = 20.0
"""So long a form is waited for."""

SECONDS = 20.0
"""So long a page is waited for."""

SHOWN = 200
"""So many studies, the newest."""

STUDY_COLUMNS = (
    "study",
    "state",
    "objective",
    "sampler",
    "trials",
    "running",
    "waiting",
    "pruned",
    "failed",
    "best",
)

Page = Callable[[Request], Awaitable[Response]]


class Pages:
    """Our pages as an ASGI application.

    Args:
        manager: whose studies are shown.
        tokens: who may log in.
        attempts: how often that may be tried.
    """

    def __init__(self, manager: StudyManager, tokens: Tokens, attempts: Attempts | None = None) -> None:
        self._manager, self._tokens = manager, tokens
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
        manager = self._manager
        found = [
            study
            for study in reversed(manager.all_studies())
            if who.sees(study.study_name) and not study.user_attrs.get(ARCHIVED)
        ]
        # a token for some studies may not see the dashboard
        ids = {} if who.prefix else {study.study_name: study._study_id for study in found}
        compared = [manager.comparison(name) for name in manager.comparison_names() if who.sees(name)]
        members = {member.definition.name for definition in compared for member in definition.members}
        alone = [study for study in found if study.study_name not in members]
        in_one = [study for study in found if study.study_name in members]
        body = tag(
            "main",
            _head(who),
            tag("section", self._studies(alone, ids), class_="studies"),
            self._comparisons(compared, in_one, ids),
            _working(manager.working([study.study_name for study in found]), ids),
        )
        return document("tuner: studies", body)

    def _studies(self, studies: Sequence[FrozenStudy], ids: Mapping[str, int]) -> Html:
        if not studies:
            return tag("p", "None, but for those of comparisons." if ids else "None yet.", class_="quiet")
        lines = [_study(view, ids) for view in study_views(self._manager, studies[:SHOWN])]
        older = f"The newest {SHOWN} of {len(studies):,}; the others are listed by GET /v1/studies."
        note = tag("p", older, class_="note") if len(studies) > SHOWN else ""
        return Html(data_table(STUDY_COLUMNS, lines) + note)

    def _comparisons(
        self,
        compared: Sequence[ComparisonDefinition],
        members: Sequence[FrozenStudy],
        ids: Mapping[str, int],
    ) -> Html:
        if not compared:
            return Html("")
        lines = []
        for definition in compared:
            done = sum(is_finished for _, is_finished in self._manager.progress(definition))
            report = tag("a", definition.name, href=f"/v1/comparisons/{definition.name}/report")
            arms = ", ".join(arm.name for arm in definition.comparison.arms)
            seeds = str(definition.comparison.seeds)
            lines.append([report, arms, seeds, f"{done} of {len(definition.members)}"])
        titles = ("comparison", "arms", "seeds", "studies finished")
        summary = tag("summary", f"Their studies ({len(members):,})")
        return titled(
            "Comparisons",
            data_table(titles, lines, numbers=False),
            tag("details", summary, self._studies(members, ids), class_="studies") if members else "",
        )


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


def _study(view: StudyView, ids: Mapping[str, int]) -> list[str]:
    counts = view.counts
    ended = counts.complete + counts.pruned + counts.fail
    best = "–" if view.best is None else f"{float(view.best.value):.5g}".replace("-", "−")
    best = f"front of {view.front:,}" if view.front else best
    return [
        _link(view.name, ids),
        tag("span", view.status, class_="" if view.status in ("open", "finished") else "notable"),
        view.objective or "–",
        view.sampler or "–",
        f"{ended:,}" + ("" if view.budget.trials is None else f" of {view.budget.trials:,}"),
        *(f"{count:,}" for count in (counts.running, counts.waiting, counts.pruned, counts.fail)),
        best,
    ]


def _working(working: list[Working], ids: Mapping[str, int]) -> Html:
    if not working:
        return titled("Running", tag("p", "No worker has a trial in hand.", class_="quiet"))
    lines = [[_link(one.study, ids), str(one.number), str(one.epochs), one.owner] for one in working]
    return titled("Running", data_table(("study", "trial", "epochs", "worker"), lines, numbers=False))


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
    close = {"Connection": "close"}  # what is still on its way is not read
    body = bytearray()
    try:
        async with asyncio.timeout(FORM_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > FORM_BYTES:
                    raise RefusedError(
                        413, "too_large", f"the form has at most {FORM_BYTES} bytes", headers=close
                    )
    except TimeoutError:
        raise RefusedError(
            408, "timeout", f"the form did not come within {FORM_SECONDS:g} s", headers=close
        ) from None
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
.studies .numbers :is(td, thead th):nth-child(-n+4) { text-align: left; }
details .scroll { margin-top: .75rem; }
.notable { color: var(--warn); }
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
@media (max-width: 46rem) { nav form { margin-left: auto; } nav .who { order: 1; width: 100%; margin: 0; } }
"""
