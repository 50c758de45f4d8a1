"""The figures of a comparison as PNG files, for papers.

Drawn by Matplotlib from the same dictionaries that Plotly draws on the page: Plotly's own way to a picture file is a
whole Chrome that has to be there. Only what our figures use of Plotly is understood.
"""

from __future__ import annotations

import html
import math
from pathlib import Path
from typing import Any

from tuner.comparison import ComparisonResult
from tuner.comparison.figures import (
    Figure,
    curves_figure,
    differences_figure,
    finals_figure,
    ranks_figure,
    savings_figure,
)
from tuner.errors import MissingDependencyError

__all__ = ["write_pngs"]

DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}
MARKERS = {
    "circle": "o",
    "square": "s",
    "diamond": "D",
    "triangle-up": "^",
    "cross": "P",
    "x": "X",
    "triangle-down": "v",
    "star": "*",
    "line-ns-open": "|",
}
DPI = 200
INCH = 0.42
"""Height of a row."""


def write_pngs(result: ComparisonResult, folder: Path) -> list[Path]:
    """Write a PNG file for each figure that there is something to draw in.

    Returns:
        The files' paths.

    Raises:
        MissingDependencyError: Matplotlib is not installed.
        OSError: the folder or a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure, rows in _figures(result):
        if figure["data"]:
            size = (6.0, 3.7) if rows is None else (6.0, 1.1 + INCH * rows)
            paths.append(_draw(figure, folder / f"{result.definition.name}-{name}.png", size))
    return paths


def _figures(result: ComparisonResult) -> list[tuple[str, Figure, int | None]]:
    """Name, figure and number of rows of those that have rows."""
    if not result.seeds:
        return []
    arms = len(result.arms)
    found: list[tuple[str, Figure, int | None]] = [
        ("by-trials", curves_figure(result, "trials"), None),
        ("by-epochs", curves_figure(result, "epochs"), None),
        ("finals", finals_figure(result), arms),
    ]
    if result.pairs:
        gaps = differences_figure(result)
        found.append(("ranks", ranks_figure(result), arms))
        found.append(("differences", gaps, len(gaps["layout"]["yaxis"]["categoryarray"])))
    if any(row.pruned for row in result.table()):
        found.append(("savings", savings_figure(result), arms))
    return found


def _draw(figure: Figure, path: Path, size: tuple[float, float]) -> Path:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - an extra
        from matplotlib.figure import Figure as Canvas  # noqa: PLC0415
    except ModuleNotFoundError:
        raise MissingDependencyError("PNG files need Matplotlib: pip install 'tuner[png]'") from None
    canvas = Canvas(figsize=size, dpi=DPI, layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.subplots()
    layout = figure["layout"]
    rows = {name: i for i, name in enumerate(layout["yaxis"].get("categoryarray", []))}
    _axis(axes, "x", layout["xaxis"])
    _axis(axes, "y", layout["yaxis"])
    before: Figure | None = None
    offsets = dict.fromkeys(rows, 0.0)
    for trace in figure["data"]:
        _trace(axes, trace, before, rows, offsets)
        before = trace
    for shape in layout.get("shapes", []):
        axes.axvline(shape["x0"], color=shape["line"]["color"], linewidth=1, zorder=0)
    if rows:
        axes.set_yticks(list(rows.values()), [html.unescape(name) for name in rows])
        axes.set_ylim(-0.6, len(rows) - 0.4)
    if layout.get("showlegend", True):
        axes.legend(frameon=False, fontsize="small", ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x" if rows else "y", color="#dfe1e4", linewidth=0.6)
    axes.set_axisbelow(True)
    canvas.savefig(path)
    return path


def _axis(axes: Any, which: str, given: Figure) -> None:
    if "title" in given:
        getattr(axes, f"set_{which}label")(html.unescape(given["title"]["text"]))
    kind = given.get("type", "linear")
    if kind == "log":
        getattr(axes, f"set_{which}scale")("log")
        getattr(axes, f"set_{which}lim")(*(10**end for end in given["range"]))
        getattr(axes, f"set_{which}ticks")(given["tickvals"], given["ticktext"])
        getattr(axes, f"{which}axis").minorticks_off()
    elif kind == "linear":
        getattr(axes, f"{which}axis").get_major_locator().set_params(nbins=6)
        if "range" in given:
            getattr(axes, f"set_{which}lim")(*given["range"])


def _trace(
    axes: Any, trace: Figure, before: Figure | None, rows: dict[str, int], offsets: dict[str, float]
) -> None:
    label = html.unescape(trace["name"]) if "name" in trace else None
    if trace["type"] == "box":
        _box(axes, trace, rows[trace["y"][0]])
    elif trace["type"] == "bar":
        _bars(axes, trace, rows, offsets, label)
    elif trace["mode"] == "markers":
        _markers(axes, trace, rows, label)
    else:
        _lines(axes, trace, before, rows, label)


def _box(axes: Any, trace: Figure, row: int) -> None:
    colour, low, median, high = trace["line"]["color"], trace["q1"][0], trace["median"][0], trace["q3"][0]
    axes.barh(row, high - low, left=low, height=0.5, color=colour, alpha=0.16)
    axes.plot([median, median], [row - 0.25, row + 0.25], color=colour, linewidth=1.5)


def _bars(
    axes: Any, trace: Figure, rows: dict[str, int], offsets: dict[str, float], label: str | None
) -> None:
    for name, width in zip(trace["y"], trace["x"], strict=True):
        colour = trace["marker"]["color"]
        axes.barh(
            rows[name],
            width,
            left=offsets[name],
            height=0.5,
            color=colour,
            alpha=trace["opacity"],
            label=label,
        )
        offsets[name] += width
        label = None  # once in the legend


def _markers(axes: Any, trace: Figure, rows: dict[str, int], label: str | None) -> None:
    y = [rows[name] for name in trace["y"]]
    marker, bars = trace["marker"], trace.get("error_x")
    if bars is not None and trace["x"]:
        minus = bars.get("arrayminus", bars["array"])
        axes.errorbar(
            trace["x"],
            y,
            xerr=[minus, bars["array"]],
            fmt="none",
            ecolor=bars["color"],
            elinewidth=3,
            alpha=0.55,
        )
    symbol = MARKERS[marker.get("symbol", "circle")]
    size, alpha = (marker["size"] * 0.62) ** 2, trace.get("opacity", marker.get("opacity", 1))
    axes.scatter(
        trace["x"],
        y,
        s=size,
        c=marker["color"],
        marker=symbol,
        alpha=alpha,
        label=label,
        linewidths=0.8,
        zorder=3,
    )


def _lines(axes: Any, trace: Figure, before: Figure | None, rows: dict[str, int], label: str | None) -> None:
    x = [math.nan if value is None else value for value in trace["x"]]
    y = [math.nan if value is None else rows.get(value, value) for value in trace["y"]]
    line = trace["line"]
    if trace.get("fill") == "tonexty" and before is not None:
        opacity = trace["meta"]["opacity"]
        axes.fill_between(x, before["y"], y, step="post", color=line["color"], alpha=opacity, linewidth=0)
    if line["width"]:
        axes.plot(
            x,
            y,
            color=line["color"],
            linewidth=0.8 * line["width"],
            linestyle=DASHES[line.get("dash", "solid")],
            alpha=trace.get("opacity", 1),
            drawstyle="steps-post" if line.get("shape") == "hv" else "default",
            label=label if trace.get("showlegend", True) else None,
        )
