"""Pictures of a finished comparison: its report and the stock dashboard on its database; and of `tuner panda`.

    python tests/browser/pictures.py --storage sqlite:///tuner.db --report report --out docs/images

writes report.png, dashboard.png and panda.png, each as sharp as its limit of size allows.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright
from programs import CHROMIUM_FLAGS, find_chromium, running_dashboard

from tuner import StudyDefinition, StudyManager
from tuner.panda import Session
from tuner.panda.app import PandaApp

LIMIT = 300_000
"""Bytes of a picture, at most."""

SHARPNESS = (2.0, 1.5, 1.25, 1.0)
"""Pixels of the picture for one of the page, the best first."""

PLAY = {
    12: ["run 12"],
    20: ["rewind 4", "learning_rate *0.1", "note overshoots: smaller steps from here", "run 20"],
    32: ["l2 0.001", "learning_rate /3", "run 32"],
}
"""What a person does in `tuner panda`, by the epoch that it leads to."""

Show = Callable[[Page], int]
"""Brings what is to be seen onto a page; returns the height in pixels to which it reaches."""


def main() -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--storage", default="sqlite:///tuner.db", help="the database's URL")
    parser.add_argument("--report", type=Path, default=Path("report"), help="the report's folder")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="where the pictures go")
    parser.add_argument(
        "--study", help="the study to show in the dashboard; by default the one with the best value"
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    study = options.study or best_study(options.storage)
    with tempfile.TemporaryDirectory() as folder:
        screen = panda(Path(folder))  # before Playwright, which runs an event loop of its own
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=CHROMIUM_FLAGS)
        show_report = report((options.report / "index.html").resolve().as_uri())
        take(browser, show_report, options.out / "report.png", width=1200)
        with running_dashboard(options.storage, Path(folder) / "log") as address:
            take(browser, dashboard(address, study), options.out / "dashboard.png", width=1280)
        take(browser, drawing(screen), options.out / "panda.png", width=1100)
        browser.close()


def take(browser: Browser, show: Show, path: Path, *, width: int) -> None:
    """Write a picture of what `show` shows: the sharpest that keeps the limit.

    Raises:
        RuntimeError: none does.
    """
    for scale in SHARPNESS:
        page = browser.new_page(viewport={"width": width, "height": 1600}, device_scale_factor=scale)
        height = show(page)
        page.mouse.move(0, 0)
        picture = page.screenshot(
            clip={"x": 0, "y": 0, "width": width, "height": height}, animations="disabled"
        )
        page.close()
        if len(picture) <= LIMIT:
            path.write_bytes(picture)
            print(f"{path}: {len(picture) // 1000} kB")
            return
    raise RuntimeError(f"{path}: {len(picture)} bytes at the least sharp; at most {LIMIT} are wanted")


def report(address: str) -> Show:
    """The report from its verdict to the end of the curves."""

    def show(page: Page) -> int:
        page.goto(address)
        page.wait_for_selector("#final-values path.point")
        return bottom(page, "section:has(#best-by-trials)", 40)

    return show


def dashboard(address: str, study: str) -> Show:
    """The dashboard's page of a study from the top to the end of its importances, values on a log scale."""

    def show(page: Page) -> int:
        number = number_of(page, address, study)
        page.goto(f"{address}/dashboard/studies/{number}")
        page.wait_for_selector("#graph-hyperparameter-importances .bars path")
        page.get_by_label("Log y scale").check()
        page.wait_for_timeout(1500)  # the dashboard draws its plots one after the other
        return bottom(page, ".MuiCard-root:has(#graph-hyperparameter-importances)", 16)

    return show


def drawing(svg: str) -> Show:
    """An SVG drawing over the whole width, in a font that is here and has Braille dots."""

    def show(page: Page) -> int:
        plain = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL).replace(
            "Fira Code", "DejaVu Sans Mono"
        )
        page.set_content(f"<body style='margin: 0'>{plain}</body>")
        return bottom(page, "svg", 0)

    return show


def panda(folder: Path) -> str:
    """The screen of `tuner panda` after a person has rewound and adjusted a training on digits, as SVG."""
    definition = StudyDefinition.load("studies/digits.toml")
    longer = definition.model_copy(update={"fixed": {**definition.fixed, "epochs": 40}})
    params = {
        "learning_rate": 0.2,
        "momentum": 0.9,
        "hidden_units": 32,
        "batch_size": 64,
        "activation": "relu",
    }

    async def play(session: Session) -> str:
        screen = PandaApp(session, pace=0)
        async with screen.run_test(size=(110, 34)) as pilot:
            for epoch, commands in PLAY.items():
                for command in commands:
                    screen.driver.do(command)
                while screen.view is None or screen.view.epoch != epoch:
                    await pilot.pause(0.05)
            await pilot.pause(0.5)
            return screen.export_screenshot()

    with StudyManager(f"sqlite:///{folder}/panda.db") as manager, manager.panda(longer, params) as session:
        return asyncio.run(play(session))


def number_of(page: Page, address: str, study: str) -> int:
    """The dashboard's number of a study.

    Raises:
        LookupError: it has no such study.
    """
    answer: dict[str, Any] = page.request.get(f"{address}/api/studies").json()
    for summary in answer["study_summaries"]:
        if summary["study_name"] == study:
            return int(summary["study_id"])
    raise LookupError(f"the database has no study {study!r}")


def bottom(page: Page, selector: str, margin: int) -> int:
    """Where an element ends, and a margin."""
    box = page.locator(selector).first.bounding_box()
    assert box is not None
    return round(box["y"] + box["height"]) + margin


def best_study(storage: str) -> str:
    """The study with the best value.

    Raises:
        LookupError: no study has any.
    """
    found = [s for s in StudyManager(storage).studies() if s.best_value is not None]
    if not found:
        raise LookupError(f"no study in {storage} has a completed trial")
    best = min if found[0].direction == "minimize" else max
    return best(found, key=lambda summary: summary.best_value).name


if __name__ == "__main__":
    main()
