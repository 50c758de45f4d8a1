"""How the front says no: a problem document (RFC 9457), or a page for who looks with a browser."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, Response
from starlette.types import Scope

from tuner.markup import Html, tag
from tuner.service.paths import is_dashboards
from tuner.service.problems import RefusedError, problem

__all__ = ["PAGE_POLICY", "STYLE_PATH", "RefusedError", "document", "refusal", "wants_page"]

STYLE_PATH = "/style.css"

ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Cpath d='M1 2C4 14 7 14 8 14S12 14 15 5' fill='none' stroke='%230072b2' stroke-width='2'/%3E"
    "%3Ccircle cx='8' cy='14' r='2' fill='%23d55e00'/%3E%3C/svg%3E"
)
"""A curve and its minimum. In the page, as the dashboard's own icon needs a login."""

PAGE_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self' data:; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
"""The policy of our pages: they have no scripts."""


def refusal(scope: Scope, refused: RefusedError) -> Response:
    """The answer to a request that is refused."""
    title = HTTPStatus(refused.status).phrase
    if wants_page(scope):
        body = tag(
            "main",
            tag("p", str(refused.status), class_="eyebrow"),
            tag("h1", title),
            tag("p", f"{refused.detail[:1].upper()}{refused.detail[1:]}."),
            tag("p", tag("a", "To the studies", href="/")),
        )
        return HTMLResponse(document(title, body), refused.status, _page_headers(refused))
    # what optuna-dashboard's page shows
    shown: Any = {"reason": refused.detail} if is_dashboards(scope["path"]) else {}
    return problem(
        refused.status, refused.detail, slug=refused.slug, scope=scope, headers=refused.headers, **shown
    )


def wants_page(scope: Scope) -> bool:
    """Whether it is a browser that opens a page."""
    return scope["method"] in ("GET", "HEAD") and "text/html" in Headers(scope=scope).get("accept", "")


def document(title: str, body: Html) -> str:
    """A page as one HTML document."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("link", rel="stylesheet", href=STYLE_PATH),
        tag("link", rel="icon", href=ICON),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, tag('body', body), lang='en')}\n"


def _page_headers(refused: RefusedError) -> dict[str, str]:
    return {**refused.headers, "Content-Security-Policy": PAGE_POLICY}
