"""The report in a real browser: from a file, without a network, on a desktop and a phone, in light and dark."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

import pytest

from tuner.comparison.figures import DARK, LIGHT
from tuner.report import write_report

pytestmark = pytest.mark.browser

CURVES = ("best-by-trials", "best-by-epochs")

PLOTS = (*CURVES, "mean-ranks", "differences", "final-values", "savings", "boxes-0", "learning")

DEVICES = {
    "desktop": {"viewport": {"width": 1200, "height": 900}},
    "phone": {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True},
}
PALETTES = {"light": LIGHT, "dark": DARK}
SHORT = {("desktop", "light"), ("phone", "dark")}
"""The views that the short tests look at."""


@pytest.fixture(scope="module")
def report(small, tmp_path_factory):
    return write_report(small.result, tmp_path_factory.mktemp("report"))


@dataclass
class View:
    """The report as it is seen on a device in a colour scheme."""

    device: str
    scheme: str
    seen: object

    @property
    def page(self):
        return self.seen.page

    @property
    def arms(self):
        """The colours that the three arms should have, as (red, green, blue)."""
        return {rgb(colour) for colour in PALETTES[self.scheme][:3]}


def view_report(open_page, report, device, scheme):
    settings = {**DEVICES[device], "color_scheme": scheme, "offline": True}
    seen = open_page(report.as_uri(), allowed=report.as_uri(), **settings)
    seen.page.wait_for_selector("#final-values path.point")
    return View(device, scheme, seen)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(view, marks=[] if view in SHORT else pytest.mark.long)
        for view in itertools.product(DEVICES, PALETTES)
    ],
    ids="-".join,
)
def view(request, open_page, report):
    """To look at only."""
    view = view_report(open_page, report, *request.param)
    yield view
    view.seen.close()


@pytest.fixture
def desktop(open_page, report):
    """To do something with."""
    view = view_report(open_page, report, "desktop", "light")
    yield view
    view.seen.close()


def rgb(colour):
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def colours(page, selector, property_):
    """The colours of all elements that `selector` finds, as (red, green, blue)."""
    found = page.eval_on_selector_all(
        selector, f"elements => elements.map(e => getComputedStyle(e).getPropertyValue('{property_}'))"
    )
    return [tuple(int(float(part)) for part in re.findall(r"[\d.]+", text)[:3]) for text in found]


def eventually(page, condition):
    """Wait until `condition()` holds. In Python: the page's policy forbids Playwright to evaluate text there."""
    for _ in range(50):
        if condition():
            return
        page.wait_for_timeout(100)
    assert condition()


def test_draws_every_plot_without_network_or_errors(view, report, small):
    assert view.seen.errors == []
    assert view.seen.requests == [report.as_uri()]
    for name in PLOTS:
        assert view.page.locator(f"#{name} svg.main-svg").count() > 0
        box = view.page.locator(f"#{name}").bounding_box()
        assert box["width"] > 250
        assert box["height"] > 200
    for name in CURVES:  # a median line an arm, and the runs of its three seeds
        drawn = view.page.eval_on_selector_all(
            f"#{name} .scatterlayer path.js-line",
            "lines => lines.filter(l => l.getTotalLength() > 50).length",
        )
        assert drawn >= 2 * len(small.result.arms)
        assert view.page.locator(f"#{name} .scatterlayer path.js-fill").count() == 0  # bands need five seeds
    assert view.page.locator("#final-values path.point").count() == small.result.finals.size
    assert view.page.locator("#final-values path.box").count() == len(small.result.arms)


def test_fits_the_screen(view):
    sizes = view.page.evaluate(
        "[document.documentElement.scrollWidth, window.innerWidth, document.body.scrollWidth]"
    )
    assert sizes == [DEVICES[view.device]["viewport"]["width"]] * 3
    wide = view.page.eval_on_selector_all(
        "main *",
        "all => all.filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML)",
    )
    assert wide == []


def test_page_and_plots_have_the_colours_of_the_scheme(view):
    [background] = colours(view.page, "body", "background-color")
    assert min(background) > 250 if view.scheme == "light" else max(background) < 40
    assert set(colours(view.page, ".dot", "background-color")) == view.arms
    for name in CURVES:
        assert set(colours(view.page, f"#{name} .legendlines path.js-line", "stroke")) == view.arms
    assert set(colours(view.page, "#final-values path.point", "fill")) == view.arms
    assert set(colours(view.page, "#mean-ranks .errorbar path.xerror", "stroke")) == view.arms
    texts = colours(view.page, ".plot .xtick text, .plot .legendtext, .plot .xtitle", "fill")
    assert len(texts) > 10
    for text in texts:
        assert abs(sum(text) - sum(background)) > 250  # it can be read


def test_tables_are_cards_on_a_phone_only(view):
    assert view.page.locator("thead").first.is_visible() == (view.device == "desktop")


def test_plots_follow_when_the_scheme_changes(desktop):
    lines = "#best-by-trials .legendlines path.js-line"
    desktop.page.emulate_media(color_scheme="dark")
    desktop.scheme = "dark"
    eventually(desktop.page, lambda: set(colours(desktop.page, lines, "stroke")) == desktop.arms)
    assert desktop.seen.errors == []


def test_the_legend_switches_an_arm_with_its_runs(desktop, small):
    traces = desktop.page.locator("#best-by-trials .scatterlayer g.trace")
    arms = len(small.result.arms)
    assert traces.count() == 2 * arms
    desktop.page.locator("#best-by-trials .legendtoggle").first.click()
    eventually(desktop.page, lambda: traces.count() == 2 * arms - 2)


def test_the_policy_stops_what_is_not_the_pages_own(desktop):
    desktop.page.evaluate(
        """() => {
          const script = document.createElement("script");
          script.textContent = "window.broken = true";
          document.body.append(script);
          const image = document.createElement("img");
          image.src = "https://example.org/pixel.png";
          document.body.append(image);
        }"""
    )
    blocked = "Content Security Policy"
    eventually(desktop.page, lambda: len([e for e in desktop.seen.errors if blocked in e]) == 2)
    assert desktop.page.evaluate("window.broken") is None


@pytest.mark.long
def test_a_page_of_a_running_comparison_looks_for_a_newer_one(open_page, small, tmp_path):
    path = write_report(small.result, tmp_path, refresh=1.0)
    seen = open_page(path.as_uri(), allowed=path.as_uri(), offline=True)
    seen.page.wait_for_selector("#final-values path.point")
    changed = path.read_text().replace("<h1>small</h1>", "<h1>newer</h1>").replace(' data-refresh="1"', "")
    path.write_text(changed)
    eventually(seen.page, lambda: seen.page.locator("h1").inner_text() == "newer")
    assert seen.errors == []
    seen.close()
