"""A comparison drawn: Plotly figures as plain dictionaries, which `plotly.graph_objects.Figure` takes as they are.

Each trace says in its `meta` in which of the arms' colours it is drawn, so that a page can use colours of its own.
Names of arms and parameters are escaped: Plotly reads some markup.
"""

from __future__ import annotations

import contextlib
import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from tuner.comparison.result import ComparisonResult, Pair
from tuner.comparison.runs import Floats, Run, Unit

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = [
    "BAND_SEEDS",
    "BOX_OPACITY",
    "DARK",
    "DASHES",
    "LIGHT",
    "Figure",
    "boxes_figure",
    "curves_figure",
    "differences_figure",
    "finals_figure",
    "graph_objects",
    "importance_figure",
    "is_log",
    "learning_figure",
    "plot",
    "ranks_figure",
    "savings_figure",
    "shown_pairs",
]

Figure: TypeAlias = dict[str, Any]

LIGHT = ("#0072b2", "#d55e00", "#009e73", "#b5609a", "#c98a00", "#3a9bd0", "#6b6b6b", "#7a6f00")
DARK = ("#4ba6e0", "#f5874a", "#2fc39b", "#e29cc8", "#f0b432", "#93d1f5", "#b8b8b8", "#d9cf4a")
"""A colour an arm, told apart by the colour-blind: Okabe and Ito's, with contrast for a light and a dark page."""

BOX_OPACITY = 0.16
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "triangle-down", "star")

BAND_SEEDS = 5
"""From so many seeds on quartiles are drawn; of fewer the runs themselves."""

ALL_PAIRS = 6
"""Up to so many pairs are all drawn; of more only those with the first arm."""


def plot(result: ComparisonResult, kind: str, unit: Unit) -> go.Figure:
    """The figure as an object of Plotly's.

    Raises:
        ValueError: there is no such kind.
    """
    kinds: dict[str, Callable[[], Figure]] = {
        "curves": lambda: curves_figure(result, unit),
        "finals": lambda: finals_figure(result),
        "ranks": lambda: ranks_figure(result),
        "differences": lambda: differences_figure(result),
    }
    if kind not in kinds:
        raise ValueError(f"kind must be one of {', '.join(kinds)}; got {kind!r}")
    return graph_objects().Figure(kinds[kind]())


def graph_objects() -> Any:
    """The module `plotly.graph_objects`.

    Plotly looks for pandas among the modules that are there, and breaks over one that another thread is just importing,
    as scikit-learn does for importances: so it is imported before, where it is installed.
    """
    with contextlib.suppress(ImportError):
        import pandas  # noqa: F401, PLC0415
    import plotly.graph_objects as go  # noqa: PLC0415 - half a second

    return go


def curves_figure(result: ComparisonResult, unit: Unit = "trials") -> Figure:
    """The anytime curves of all arms: median lines with quartile bands; with few seeds, each seed's run instead.

    Points where a quartile is infinite, since too few runs have a completed trial yet, are left out.
    """
    traces = [trace for arm in result.ranking for trace in _curve_traces(result, arm, unit)]
    return {
        "data": traces,
        "layout": {
            "xaxis": {"title": {"text": unit}, "rangemode": "tozero"},
            "yaxis": {"title": {"text": "best value so far"}, **_curve_axis(result, traces)},
            "hovermode": "x unified",
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        },
    }


def _curve_traces(result: ComparisonResult, arm: str, unit: Unit) -> list[Figure]:
    curve = result.curve(arm, unit)
    drawn = np.isfinite(curve.median) & np.isfinite(curve.low) & np.isfinite(curve.high)
    if not drawn.any():
        return []
    x, median, low, high = (
        part[drawn].tolist() for part in (curve.spent, curve.median, curve.low, curve.high)
    )
    index = result.arms.index(arm)
    colour, opacity = _colour(index), max(0.05, min(0.2, 0.6 / len(result.arms)))
    dash = DASHES[index // len(LIGHT) % 4]
    common = {
        "type": "scatter",
        "mode": "lines",
        "legendgroup": arm,
        "meta": {**_meta(index), "opacity": opacity},
    }
    hidden = {**common, "showlegend": False, "hoverinfo": "skip"}
    edge = {"shape": "hv", "width": 0, "color": colour}
    if len(curve.runs) < BAND_SEEDS:
        line = {"shape": "hv", "width": 1, "color": colour, "dash": dash}
        around = [{**hidden, **_joined(curve.spent, curve.runs), "line": line, "opacity": 0.55}]
    else:
        band = {"line": edge, "fill": "tonexty", "fillcolor": _shade(colour, opacity)}
        around = [{**hidden, "x": x, "y": low, "line": edge}, {**hidden, "x": x, "y": high, **band}]
    return [
        *around,
        {
            **common,
            "x": x,
            "y": median,
            "name": html.escape(arm),
            "line": {"shape": "hv", "width": 2.5, "color": colour, "dash": dash},
            "customdata": [list(pair) for pair in zip(low, high, strict=True)],
            "hovertemplate": "%{y:.4g} [%{customdata[0]:.4g}, %{customdata[1]:.4g}]",
        },
    ]


def _joined(x: Floats, rows: Floats) -> dict[str, list[float | None]]:
    """Several lines as one trace: None breaks it, between two and where a value is infinite."""
    ys: list[float | None] = []
    for row in rows.tolist():
        ys += [*(value if math.isfinite(value) else None for value in row), None]
    return {"x": [*x.tolist(), None] * len(rows), "y": ys}


def finals_figure(result: ComparisonResult) -> Figure:
    """The best values of all runs at their ends: the same seed joined across arms."""
    order = [(result.arms.index(arm), arm) for arm in result.ranking]
    boxes = [_box_trace(i, arm, result.finals[i]) for i, arm in order if np.isfinite(result.finals[i]).any()]
    points = [_points_trace(i, arm, result.finals[i], result.seeds) for i, arm in order]
    names = [html.escape(arm) for _, arm in order]
    finite = result.finals[np.isfinite(result.finals)].tolist()
    scale = _axis(min(finite), max(finite), log=is_log(finite)) if finite else {}
    return {
        "data": [_pairs_trace(names, result.finals[[i for i, _ in order]]), *boxes, *points],
        "layout": {
            "xaxis": {"title": {"text": f"{result.judged_by} at the end"}, **scale},
            "yaxis": _rows_axis(names),
            "showlegend": False,
            "hovermode": "closest",
        },
    }


def _pairs_trace(names: Sequence[str], finals: Floats) -> Figure:
    """One line a seed through all arms, top to bottom."""
    lines = _joined(np.arange(float(len(names))), finals.T)
    return {
        "type": "scatter",
        "mode": "lines",
        "x": lines["y"],
        "y": [*names, None] * finals.shape[1],
        "line": {"width": 1, "color": "#9a9a9a"},
        "opacity": 0.45,
        "hoverinfo": "skip",
        "meta": {"colour": "--soft"},
    }


def _box_trace(index: int, arm: str, values: Floats) -> Figure:
    low, median, high = np.quantile(values[np.isfinite(values)], [0.25, 0.5, 0.75], method="median_unbiased")
    return {
        "type": "box",
        "orientation": "h",
        "y": [html.escape(arm)],
        "q1": [float(low)],
        "median": [float(median)],
        "q3": [float(high)],
        "lowerfence": [float(low)],
        "upperfence": [float(high)],
        "width": 0.5,
        "line": {"width": 1.5, "color": _colour(index)},
        "fillcolor": _shade(_colour(index), BOX_OPACITY),
        "hoverinfo": "skip",
        "meta": _meta(index),
    }


def _points_trace(index: int, arm: str, values: Floats, seeds: Sequence[int]) -> Figure:
    shown = [(float(v), seed) for v, seed in zip(values, seeds, strict=True) if math.isfinite(v)]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [value for value, _ in shown],
        "y": [html.escape(arm)] * len(shown),
        "name": html.escape(arm),
        "customdata": [seed for _, seed in shown],
        "hovertemplate": "%{x:.4g} (seed %{customdata})",
        "marker": {
            "size": 8,
            "color": _colour(index),
            "symbol": SYMBOLS[index % len(SYMBOLS)],
            "opacity": 0.85,
        },
        "meta": _meta(index),
    }


def ranks_figure(result: ComparisonResult) -> Figure:
    """Mean ranks, each with Nemenyi's critical difference around it: arms whose bars do not meet differ."""
    rows = result.table()
    half = (result.critical_difference or 0.0) / 2
    traces = [_rank_trace(result.arms.index(row.arm), row.arm, row.mean_rank, half) for row in rows]
    names = [html.escape(row.arm) for row in rows]
    ends = [row.mean_rank for row in rows] or [1.0]
    reach = [min(1.0, min(ends) - half) - 0.1, max(float(len(result.arms)), max(ends) + half) + 0.1]
    return {
        "data": traces,
        "layout": {
            "xaxis": {"title": {"text": "mean rank"}, "type": "linear", "range": reach, "dtick": 1},
            "yaxis": _rows_axis(names),
            "showlegend": False,
            "hovermode": "closest",
        },
    }


def _rank_trace(index: int, arm: str, rank: float, half: float) -> Figure:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [rank],
        "y": [html.escape(arm)],
        "name": html.escape(arm),
        "error_x": {"type": "data", "array": [half], "color": _colour(index), "thickness": 6, "width": 0},
        "marker": {"size": 13, "color": _colour(index)},
        "hovertemplate": f"mean rank %{{x:.2f}} ± {half:.2f}",
        "meta": _meta(index),
    }


def shown_pairs(result: ComparisonResult) -> list[Pair]:
    """The pairs that are drawn: all where there are few, else those with the first arm."""
    pairs = result.pairs
    return pairs if len(pairs) <= ALL_PAIRS else [pair for pair in pairs if pair.first == result.ranking[0]]


def differences_figure(result: ComparisonResult) -> Figure:
    """Paired differences of the final values: each seed's, their median and its 95% interval, for each pair of arms."""
    pairs = shown_pairs(result)
    names = [f"{html.escape(pair.first)} − {html.escape(pair.second)}" for pair in pairs]
    traces = [_seeds_trace(result, pair, name) for pair, name in zip(pairs, names, strict=True)]
    traces += [_interval_trace(result, pair, name) for pair, name in zip(pairs, names, strict=True)]
    zero = {"type": "line", "x0": 0, "x1": 0, "y0": 0, "y1": 1, "yref": "paper"}
    shown = [v for trace in traces for v in (*trace["x"], *trace.get("customdata", [[]])[0]) if v is not None]
    return {
        "data": traces,
        "layout": {
            "xaxis": {
                "title": {"text": "difference"},
                **_axis(min([0.0, *shown]), max([0.0, *shown]), log=False),
            },
            "yaxis": _rows_axis(names),
            "shapes": [{**zero, "line": {"width": 1.5, "color": "#9a9a9a"}}],
            "showlegend": False,
            "hovermode": "closest",
        },
    }


def _seeds_trace(result: ComparisonResult, pair: Pair, name: str) -> Figure:
    first, second = (result.finals[result.arms.index(arm)] for arm in (pair.first, pair.second))
    found = [
        float(a - b) for a, b in zip(first, second, strict=True) if math.isfinite(a) and math.isfinite(b)
    ]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": found,
        "y": [name] * len(found),
        "marker": {"size": 11, "symbol": "line-ns-open", "color": "#9a9a9a", "line": {"width": 1.2}},
        "opacity": 0.7,
        "hoverinfo": "skip",
        "meta": {"colour": "--soft"},
    }


def _interval_trace(result: ComparisonResult, pair: Pair, name: str) -> Figure:
    estimate, index = pair.difference, result.arms.index(pair.first)
    if not math.isfinite(estimate.value):
        return {"type": "scatter", "mode": "markers", "x": [], "y": [], "meta": _meta(index)}
    ends = [v for v in (estimate.low, estimate.high) if v is not None and math.isfinite(v)]
    low, high = (min(ends), max(ends)) if len(ends) == 2 else (estimate.value, estimate.value)
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [estimate.value],
        "y": [name],
        "customdata": [[low, high]],
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [high - estimate.value],
            "arrayminus": [estimate.value - low],
            "color": _colour(index),
            "thickness": 3,
            "width": 0,
        },
        "marker": {"size": 10, "color": _colour(index)},
        "hovertemplate": f"%{{x:.4g}} [%{{customdata[0]:.4g}}, %{{customdata[1]:.4g}}], p = {pair.p:.2g}",
        "meta": _meta(index),
    }


def savings_figure(result: ComparisonResult) -> Figure:
    """Epochs by what became of their trials, a bar an arm."""
    names = [html.escape(arm) for arm in result.ranking]
    kinds = (("COMPLETE", "completed", 0.85), ("PRUNED", "pruned", 0.45), ("FAIL", "failed", 0.2))
    traces = []
    for state, word, opacity in kinds:
        epochs = [
            sum(
                len(t.intermediate_values)
                for run in result.runs_of(arm)
                for t in run.trials
                if t.state.name == state
            )
            for arm in result.ranking
        ]
        if any(epochs):
            trace = {
                "type": "bar",
                "orientation": "h",
                "x": epochs,
                "y": names,
                "name": word,
                "opacity": opacity,
            }
            trace["marker"] = {"color": "#6b6b6b"}
            traces.append(
                {**trace, "hovertemplate": f"%{{x:,}} epochs of {word} trials", "meta": {"colour": "--soft"}}
            )
    return {
        "data": traces,
        "layout": {
            "barmode": "stack",
            "bargap": 0.45,
            "xaxis": {"title": {"text": "epochs, all seeds"}, "rangemode": "tozero"},
            "yaxis": _rows_axis(names),
            "hovermode": "closest",
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "traceorder": "normal"},
        },
    }


def importance_figure(shares: Mapping[str, Sequence[float]], priorities: Mapping[str, int]) -> Figure:
    """Shares of importance over seeds, a row a parameter, the one stated to matter most on top."""
    order = sorted(shares, key=lambda name: (priorities.get(name, 9), -float(np.median(shares[name]))))
    names = [f"{html.escape(name)} ({priorities.get(name, '–')})" for name in order]
    traces = []
    largest = max(float(np.quantile(shares[name], 0.75)) for name in order)
    for name, label in zip(order, names, strict=True):
        low, median, high = np.quantile(shares[name], [0.25, 0.5, 0.75])
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [float(median)],
                "y": [label],
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": [float(high - median)],
                    "arrayminus": [float(median - low)],
                    "color": LIGHT[0],
                    "thickness": 5,
                    "width": 0,
                },
                "marker": {"size": 11, "color": LIGHT[0]},
                "hovertemplate": "%{x:.0%}",
                "meta": {"colour": "--arm0"},
            }
        )
    return {
        "data": traces,
        "layout": {
            "xaxis": {
                "title": {"text": "share of the importance"},
                "range": [-0.03, min(1.03, 1.05 * largest)],
                "tickformat": ".0%",
            },
            "yaxis": _rows_axis(names),
            "showlegend": False,
            "hovermode": "closest",
        },
    }


def boxes_figure(
    run: Run, name: str, scale: str, boxes: Iterable[tuple[int, float, float]], *, index: int
) -> Figure:
    """One parameter over the trials of a run: where coarse-to-fine looked, and the box in which it did.

    Args:
        run: of the arm.
        name: of a numeric parameter.
        scale: linear, log or reverse_log; on the last 1 − value is drawn.
        boxes: trial number, lower and upper end, for each trial in a box.
        index: of the arm, for its colour.
    """
    place: Callable[[float], float] = (lambda value: 1 - value) if scale == "reverse_log" else float
    found = [(t.number, place(t.params[name]), t.state.name) for t in run.trials if name in t.params]
    last = run.trials[-1].number if run.trials else 0
    x, low, high = _box_steps([(number, place(low), place(high)) for number, low, high in boxes], last)
    band = {
        "type": "scatter",
        "mode": "lines",
        "x": x,
        "hoverinfo": "skip",
        "showlegend": False,
        "meta": _meta(index),
    }
    edge = {"width": 0, "color": _colour(index)}
    points = {
        "type": "scatter",
        "mode": "markers",
        "x": [number for number, _, _ in found],
        "y": [value for _, value, _ in found],
        "marker": {
            "size": 6,
            "color": _colour(index),
            "symbol": ["circle" if state == "COMPLETE" else "circle-open" for _, _, state in found],
        },
        "hovertemplate": "trial %{x}: %{y:.4g}",
        "showlegend": False,
        "meta": _meta(index),
    }
    best = [] if run.best_number is None or name not in run.best_params else [run.best_number]
    star = {
        **points,
        "x": best,
        "y": [place(run.best_params[name]) for _ in best],
        "marker": {"size": 15, "symbol": "star-open", "color": _colour(index), "line": {"width": 2}},
        "hovertemplate": "the best: %{y:.4g}",
    }
    title = f"1 − {name}" if scale == "reverse_log" else name
    shown = [*low, *high, *(value for _, value, _ in found)]
    y = _axis(min(shown), max(shown), log=scale != "linear" and min(shown) > 0) if shown else {}
    if scale == "reverse_log" and shown:
        y["range"] = y["range"][::-1]
    y["title"] = {"text": html.escape(title)}
    return {
        "data": [
            {**band, "y": low, "line": edge},
            {
                **band,
                "y": high,
                "line": edge,
                "fill": "tonexty",
                "fillcolor": _shade(_colour(index), BOX_OPACITY),
            },
            points,
            star,
        ],
        "layout": {"xaxis": {"title": {"text": "trial"}}, "yaxis": y, "hovermode": "closest"},
    }


def _box_steps(
    boxes: Sequence[tuple[int, float, float]], last: int
) -> tuple[list[float], list[float], list[float]]:
    """The boxes as steps; each holds until the next one, the last one to the `last` trial."""
    x, low, high = [], [], []
    for i, (number, one, other) in enumerate(boxes):
        end = boxes[i + 1][0] if i + 1 < len(boxes) else last + 1
        x += [number - 0.5, end - 0.5]
        low += [min(one, other)] * 2
        high += [max(one, other)] * 2
    return x, low, high


def learning_figure(result: ComparisonResult, best: Mapping[str, Mapping[int, float]]) -> Figure:
    """The values by epoch of each arm's best trial."""
    traces: list[Figure] = []
    for arm, curve in best.items():
        index = result.arms.index(arm)
        epochs = sorted(epoch for epoch in curve if math.isfinite(curve[epoch]))
        line = {"width": 2, "color": _colour(index), "dash": DASHES[index // len(LIGHT) % 4]}
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": epochs,
                "y": [curve[epoch] for epoch in epochs],
                "name": html.escape(arm),
                "line": line,
                "hovertemplate": "%{y:.4g}",
                "meta": _meta(index),
            }
        )
    values = [value for trace in traces for value in trace["y"]]
    longest = max((len(trace["x"]) for trace in traces), default=1)
    scale = _axis(min(values), max(values), log=is_log(values)) if values else {}
    return {
        "data": traces,
        "layout": {
            "xaxis": {"title": {"text": "epoch"}, "rangemode": "tozero", "nticks": min(10, longest + 1)},
            "yaxis": {"title": {"text": "value"}, **scale},
            "hovermode": "x unified",
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        },
    }


def _rows_axis(names: Sequence[str]) -> Figure:
    """Names from top to bottom."""
    rows = {
        "categoryorder": "array",
        "categoryarray": list(names)[::-1],
        "automargin": True,
        "showgrid": False,
    }
    return {"type": "category", "range": [-0.6, len(names) - 0.4], **rows}


def _curve_axis(result: ComparisonResult, traces: Sequence[Figure]) -> Figure:
    """From the best that is drawn to the worst median: what only the first trials of some seeds reached is cut off."""
    drawn = [value for trace in traces for value in trace["y"] if value is not None]
    if not drawn:
        return {}
    medians = [value for trace in traces if "name" in trace for value in trace["y"]]
    if result.minimize:
        return _axis(min(drawn), max(medians), log=is_log(drawn))
    return _axis(min(medians), max(drawn), log=is_log(drawn))


def _axis(low: float, high: float, *, log: bool) -> Figure:
    if not log:
        margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.05
        return {"type": "linear", "range": [low - margin, high + margin]}
    first, last = math.log10(low), math.log10(high)
    margin = 0.06 * (last - first) or 0.05
    ticks = _log_ticks(first - margin, last + margin)
    labels = {"tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
    return {"type": "log", "range": [first - margin, last + margin], **labels}


def _log_ticks(first: float, last: float) -> list[float]:
    """Round numbers from 10^first to 10^last: 1, 2, 5 in each decade, or fewer where there are many decades."""
    digits = (1, 2, 5) if last - first < 3 else (1,)
    every = max(1, round((last - first) / 8))
    decades = [d for d in range(math.floor(first), math.ceil(last) + 1) if d % every == 0]
    ticks = [float(f"{digit}e{decade}") for decade in decades for digit in digits]
    return [tick for tick in ticks if first <= math.log10(tick) <= last]


def is_log(values: Sequence[float]) -> bool:
    """Whether values are positive and span more than a decade."""
    return len(values) > 0 and min(values) > 0 and max(values) > 10 * min(values)


def _colour(index: int) -> str:
    return LIGHT[index % len(LIGHT)]


def _meta(index: int) -> dict[str, Any]:
    """What a page needs to draw a trace of this arm in its own colours."""
    return {"colour": f"--arm{index % len(LIGHT)}", "opacity": BOX_OPACITY}


def _shade(colour: str, opacity: float) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {opacity:g})"
