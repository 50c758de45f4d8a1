"""A real browser, a small finished comparison, and a stock optuna-dashboard on its database.

Where Chromium or Playwright is missing these tests are skipped with the reason; with REQUIRE_ALL=1 they fail instead.
CHROMIUM names another browser than the one on the path.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

import optuna
import pytest
from programs import CHROMIUM_FLAGS, find_chromium, find_dashboard, running_dashboard

from tuner import ComparisonDefinition, StudyManager
from tuner.comparison import ComparisonResult

DOCUMENT = {
    "name": "small",
    "objective": "digits",
    "budget": {"trials": 10},
    "fixed": {"optimizer": "adam", "epochs": 4},
    "space": {
        "learning_rate": {"low": 1e-3, "high": 1.0, "scale": "log", "priority": 1},
        "momentum": {"low": 0.5, "high": 0.999, "scale": "reverse_log"},
        "hidden_units": {"type": "int", "low": 8, "high": 32, "scale": "log"},
        "activation": {"choices": ["relu", "tanh"], "priority": 3},
    },
    "pruner": {"name": "median", "startup_trials": 4, "warmup_epochs": 1},
    "comparison": {
        "seeds": 3,
        "arms": [
            {"name": "random", "sampler": {"name": "random"}},
            {"name": "tpe", "sampler": {"name": "tpe", "startup_trials": 4}},
            {"name": "coarse-to-fine", "sampler": {"name": "coarse-to-fine"}},
        ],
    },
}


def missing(what: str) -> NoReturn:
    """Skip; or fail, where everything is required."""
    if os.environ.get("REQUIRE_ALL") == "1":
        pytest.fail(f"{what}; REQUIRE_ALL=1 forbids to skip")
    pytest.skip(what)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, driven by Playwright: whose event loop, while it runs, keeps other tests from running theirs."""
    try:
        from playwright.sync_api import sync_playwright

        path = find_chromium()
    except ImportError:
        missing("Playwright is not installed (pip install -e '.[test]')")
    except FileNotFoundError as error:
        missing(str(error))
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        yield chromium
        chromium.close()


@dataclass
class Seen:
    """A page, and what it did besides what it shows."""

    page: Any
    errors: list[str] = field(default_factory=list)
    """What it said in the console as an error or a warning."""
    requests: list[str] = field(default_factory=list)

    def close(self) -> None:
        """Close it and its context."""
        self.page.context.close()


@pytest.fixture(scope="module")
def open_page(browser: Any) -> Callable[..., Seen]:
    """Opens pages in contexts of their own; only requests under `allowed` get through."""

    def open_page(url: str, *, allowed: str, **settings: Any) -> Seen:
        context = browser.new_context(**settings)
        context.route(lambda wanted: not wanted.startswith(allowed), lambda route: route.abort())
        seen = Seen(context.new_page())
        seen.page.on("request", lambda request: seen.requests.append(request.url))
        seen.page.on("pageerror", lambda error: seen.errors.append(str(error)))
        seen.page.on(
            "console",
            lambda message: message.type in ("error", "warning") and seen.errors.append(message.text),
        )
        seen.page.goto(url)
        return seen

    return open_page


@dataclass
class Small:
    """A finished comparison and the database it is in."""

    result: ComparisonResult
    manager: StudyManager
    url: str


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """Three arms over three seeds on digits, with a momentum on a reverse-log scale."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = f"sqlite:///{tmp_path_factory.mktemp('small')}/tuner.db"
    manager = StudyManager(url)
    return Small(manager.compare(ComparisonDefinition.parse(DOCUMENT), executor="threads"), manager, url)


@pytest.fixture(scope="session")
def dashboard(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a stock optuna-dashboard on the database of `small`."""
    try:
        find_dashboard()
    except FileNotFoundError as error:
        missing(str(error))
    with running_dashboard(small.url, tmp_path_factory.mktemp("dashboard") / "log") as address:
        yield address
