"""The service in a real browser: log in, the list, a study in the dashboard, log out; on a phone and in the dark."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from optuna.trial import TrialState

from tuner import ComparisonDefinition, StudyDefinition, StudyManager
from tuner.service.auth import Tokens
from tuner.service.identity import Role
from tuner.service.serve import Settings, service

pytestmark = pytest.mark.browser

DEFINITION: dict[str, Any] = {
    "name": "landscape",
    "space": {"x": {"low": 0.0, "high": 1.0}, "y": {"low": 0.0, "high": 1.0}},
    "sampler": {"name": "random"},
    "budget": {"trials": 20},
}

COMPARISON: dict[str, Any] = {
    "name": "samplers",
    "objective": "branin",
    "fixed": {"epochs": 2},
    "space": {"x0": {"low": -5, "high": 10}, "x1": {"low": 0, "high": 15}},
    "budget": {"trials": 4},
    "comparison": {
        "seeds": 2,
        "arms": [
            {"name": "random", "sampler": {"name": "random"}},
            {"name": "sobol", "sampler": {"name": "sobol"}},
        ],
    },
}

UNAUTHORIZED = "Failed to load resource: the server responded with a status of 401 (Unauthorized)"


@dataclass
class Served:
    """A running service."""

    url: str
    manager: StudyManager
    tokens: Tokens


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service in a thread, with a study of ten completed trials and one that runs, and a paused one."""
    with contextlib.ExitStack() as stack:
        url = f"sqlite:///{tmp_path_factory.mktemp('served')}/tuner.db"
        manager = stack.enter_context(StudyManager(url))
        tokens = stack.enter_context(contextlib.closing(Tokens(manager.ledger.database)))
        _some_trials(manager)
        manager.create(StudyDefinition.parse({**DEFINITION, "name": "team-a.later"}))
        manager.pause("team-a.later")
        manager.compare(ComparisonDefinition.parse(COMPARISON), executor="threads")
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        config = uvicorn.Config(
            service(manager, tokens, Settings()), log_config=None, lifespan="on", ws="none"
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=lambda: server.run(sockets=[listening]))
        thread.start()
        yield Served(f"http://127.0.0.1:{listening.getsockname()[1]}", manager, tokens)
        server.should_exit = True
        thread.join()


def _some_trials(manager: StudyManager) -> None:
    manager.create(StudyDefinition.parse(DEFINITION))
    ask_tell = manager.ask_tell("landscape")
    for i in range(11):
        lease = ask_tell.ask()
        assert lease is not None
        value = (lease.params["x"] - 0.3) ** 2 + 0.1 * lease.params["y"]
        ask_tell.report(lease, 1, value)
        if i < 10:
            ask_tell.tell(lease, TrialState.COMPLETE, value)


@pytest.fixture
def visit(open_page: Callable[..., Any], served: Served) -> Iterator[Callable[..., Any]]:
    """Opens a page of the service; where a role is given, after logging in by hand."""
    opened: list[Any] = []

    def visit(path: str, role: Role | None = None, prefix: str = "", **settings: Any) -> Any:
        settings.setdefault("viewport", {"width": 1200, "height": 800})
        seen = open_page(f"{served.url}{path}", allowed=served.url, **settings)
        opened.append(seen)
        if role is not None:
            seen.page.get_by_label("Token").fill(served.tokens.create("ann", role, prefix=prefix)[0])
            seen.page.get_by_role("button", name="Log in").click()
            seen.page.wait_for_url(lambda url: "/login" not in url)
        return seen

    yield visit
    for seen in opened:
        seen.close()


def picture(page: Any, name: str) -> None:
    """Keep a picture for people, where PICTURES names a folder."""
    if folder := os.environ.get("PICTURES"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


def test_log_in_list_study_and_log_out(visit: Callable[..., Any], served: Served) -> None:
    seen = visit("/")
    page = seen.page
    page.wait_for_url("**/login")
    page.get_by_label("Token").fill("no token at all")
    page.keyboard.press("Enter")
    page.get_by_role("alert").wait_for()
    picture(page, "service-log-in")
    assert seen.errors == [UNAUTHORIZED]
    token, info = served.tokens.create("ann", Role.OPERATOR)
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("heading", name="Studies").wait_for()
    picture(page, "service-studies")
    row = page.get_by_role("row").filter(has_text="landscape").first.inner_text().split()
    best = served.manager.load("landscape").best_value
    assert row == ["landscape", "open", "–", "random", "10", "of", "20", "1", "0", "0", "0", f"{best:.5g}"]
    assert page.get_by_text("ann (operator)").count() == 1
    [cookie] = page.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["secure"]) == (True, "Strict", False)
    assert page.evaluate("document.cookie") == ""

    page.get_by_role("link", name="landscape").first.click()
    page.wait_for_selector("#plot-history .scatterlayer path.point")
    assert page.locator("#plot-history .scatterlayer path.point").count() == 10
    picture(page, "service-dashboard")
    page.goto(f"{served.url}/dashboard")
    page.get_by_text("team-a.later").wait_for()

    page.goto(f"{served.url}/")
    page.get_by_role("button", name="Log out").click()
    page.wait_for_url("**/login")
    assert page.context.cookies() == []
    page.goto(f"{served.url}/dashboard/studies/1")
    page.wait_for_url("**/login?next=/dashboard/studies/1")
    assert seen.errors == [UNAUTHORIZED]
    outside = [url for url in seen.requests if not url.startswith((served.url, "data:", "blob:"))]
    assert outside == []
    assert served.tokens.verify(token) is not None
    assert info.revoked is None


def test_a_comparisons_report_is_a_click_away(visit: Callable[..., Any]) -> None:
    seen = visit("/", Role.VIEWER)
    page = seen.page
    row = page.get_by_role("row").filter(has_text="samplers").first.inner_text().split()
    assert row == ["samplers", "random,", "sobol", "2", "4", "of", "4"]
    assert not page.get_by_text("samplers.sobol.seed-1").is_visible()
    page.get_by_text("Their studies (4)").click()
    assert page.get_by_text("samplers.sobol.seed-1").is_visible()
    picture(page, "service-comparisons")
    page.get_by_role("link", name="samplers", exact=True).click()
    page.wait_for_selector("#best-by-trials .scatterlayer path.js-line")
    assert page.url.endswith("/v1/comparisons/samplers/report")
    picture(page, "service-report")
    assert seen.errors == []


def test_after_the_log_in_one_is_where_one_wanted_to_be(visit: Callable[..., Any]) -> None:
    seen = visit("/dashboard/studies/1", Role.VIEWER)
    assert seen.page.url.endswith("/dashboard/studies/1")
    seen.page.wait_for_selector("#plot-history .scatterlayer path.point")
    assert seen.errors == []


NOTE = """() => fetch("/api/studies/1/note", {
  method: "PUT", headers: {"Content-Type": "application/json"}, body: '{"version": 1, "body": "looks convex"}',
}).then(async answer => [answer.status, await answer.text()])"""


def test_a_viewer_is_told_why_the_dashboard_saves_nothing(visit: Callable[..., Any]) -> None:
    status, text = visit("/dashboard/studies/1", Role.VIEWER).page.evaluate(NOTE)
    assert status == 403
    assert "only an operator" in json.loads(text)["reason"]


def test_an_operator_writes_a_note_in_the_dashboard(visit: Callable[..., Any], served: Served) -> None:
    page = visit("/dashboard/studies/1", Role.OPERATOR).page
    assert page.evaluate(NOTE)[0] == 204  # the browser itself says that it is a page of ours
    attrs = served.manager.ledger.database.get_study_system_attrs(1)
    assert attrs["dashboard:note_str:0"] == "looks convex"
    page.goto(f"{served.url}/dashboard/studies/1/note")
    page.get_by_text("looks convex").wait_for()


def test_a_token_for_some_studies_sees_them_and_no_dashboard(
    visit: Callable[..., Any], served: Served
) -> None:
    seen = visit("/", Role.VIEWER, prefix="team-a.")
    assert seen.page.get_by_text("team-a.later").count() == 1
    assert seen.page.get_by_text("landscape").count() == 0
    assert seen.page.get_by_role("link").count() == 0
    seen.page.goto(f"{served.url}/dashboard")
    seen.page.get_by_role("heading", name="Forbidden").wait_for()
    picture(seen.page, "service-forbidden")


@pytest.mark.parametrize("scheme", [pytest.param("light", marks=pytest.mark.long), "dark"])
def test_on_a_phone(visit: Callable[..., Any], scheme: str) -> None:
    phone = {"width": 375, "height": 700}
    seen = visit("/login", viewport=phone, color_scheme=scheme)
    assert _fits(seen.page)
    seen = visit("/", Role.VIEWER, viewport=phone, color_scheme=scheme)
    picture(seen.page, f"service-phone-{scheme}")
    assert _fits(seen.page)
    colours = seen.page.evaluate(
        "() => ['color', 'backgroundColor'].map(name => getComputedStyle(document.body)[name])"
    )
    lightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours]
    assert (lightness[0] < lightness[1]) == (scheme == "light")
    assert abs(lightness[0] - lightness[1]) > 400
    assert seen.errors == []


def test_without_scripts(visit: Callable[..., Any]) -> None:
    seen = visit("/", Role.VIEWER, java_script_enabled=False)
    assert seen.page.get_by_role("link", name="landscape").count() == 2
    seen.page.get_by_role("button", name="Log out").click()
    seen.page.wait_for_url("**/login")


def test_no_other_page_frames_it(visit: Callable[..., Any], served: Served) -> None:
    seen = visit("/login")
    seen.page.goto("about:blank")
    seen.page.set_content(f'<iframe src="{served.url}/login"></iframe>')
    for _ in range(200):
        if seen.page.frames[-1].url.startswith("chrome-error:"):
            return
        seen.page.wait_for_timeout(50)
    raise AssertionError(seen.page.frames[-1].url)


def _fits(page: Any) -> bool:
    """Whether nothing is wider than the screen."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))
