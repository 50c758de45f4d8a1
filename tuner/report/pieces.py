"""What a comparison's page has besides what all of our pages share: arms in their colours, places for plots."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from tuner.comparison import ComparisonResult
from tuner.comparison.figures import LIGHT, Figure, is_log
from tuner.markup import Html, tag
from tuner.statistics import Spread

__all__ = ["arm_label", "colour_class", "json_text", "plot_place", "strips"]


def arm_label(result: ComparisonResult, arm: str) -> Html:
    """Its name behind a dot in its colour."""
    return tag("span", tag("i", class_=f"dot {colour_class(result, arm)}"), arm, class_="arm")


def colour_class(result: ComparisonResult, arm: str) -> str:
    """The class of elements in its colour."""
    return f"arm{result.arms.index(arm) % len(LIGHT)}"


def strips(spreads: Sequence[Spread]) -> list[Html]:
    """A small picture of each spread, all on one scale: a bar from quartile to quartile, a dot at the median."""
    ends = [v for s in spreads for v in (s.low, s.median, s.high) if math.isfinite(v)]
    on_scale: Callable[[float], float] = math.log if is_log(ends) else float
    places = [on_scale(end) for end in ends] or [0.0]
    start, extent = min(places), max(places) - min(places) or 1.0
    return [_strip(spread, lambda value: 5 + 80 * (on_scale(value) - start) / extent) for spread in spreads]


def _strip(spread: Spread, place: Callable[[float], float]) -> Html:
    if not all(map(math.isfinite, (spread.low, spread.median, spread.high))):
        return Html("")
    low, median, high = (f"{place(value):.1f}" for value in (spread.low, spread.median, spread.high))
    bar = tag("line", x1=low, x2=high, y1="7", y2="7")
    dot = tag("circle", cx=median, cy="7", r="4")
    return tag("svg", bar, dot, class_="strip", width="90", height="14", aria_hidden="true")


def plot_place(name: str, figure: Figure, label: str, height: int) -> Html:
    """A place for a plot, followed by its figure, which the page's script draws there."""
    if not figure["data"]:
        return tag("p", "No run has a completed trial yet: nothing to draw.", class_="note")
    place = tag("div", id=name, class_="plot", role="img", aria_label=label, style=f"height: {height}px")
    return Html(f'{place}<script type="application/json">{json_text(figure)}</script>')


def json_text(document: Any) -> str:
    """JSON that can stand in a script element: nothing in it ends the element or begins another."""
    text = json.dumps(document, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
