"""The report of a comparison: one HTML page that needs nothing else, and the ranking for the terminal.

The page is a sequence of sections, each a function from the result to HTML; plots are Plotly figures as plain
dictionaries (`plotly.graph_objects.Figure(figure)` takes them as they are), drawn by the page in the reader's colours.
Whatever comes from a definition or a trial is text until `tag` has escaped it.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import os
import platform
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import Any, TypeAlias

import numpy as np
from plotly.offline import get_plotlyjs
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from tuner.catalogue import find_objective
from tuner.comparison import TEST, ComparisonResult, Run, Unit
from tuner.definition import Arm, Budget, Member
from tuner.errors import TunerError
from tuner.markup import STYLE as BASE_STYLE
from tuner.markup import Html, data_table, facts_list, tag, titled
from tuner.space import CategoricalParameter, FloatParameter, IntParameter, Space
from tuner.statistics import Spread

__all__ = ["curves_figure", "finals_figure", "finite", "page", "terminal_table", "write_report"]

Figure: TypeAlias = dict[str, Any]
Section: TypeAlias = Callable[[ComparisonResult], "Html | None"]
AnyParameter: TypeAlias = FloatParameter | IntParameter | CategoricalParameter

LIGHT = ("#0072b2", "#d55e00", "#009e73", "#b5609a", "#c98a00", "#3a9bd0", "#6b6b6b", "#7a6f00")
DARK = ("#4ba6e0", "#f5874a", "#2fc39b", "#e29cc8", "#f0b432", "#93d1f5", "#b8b8b8", "#d9cf4a")
"""A colour an arm, told apart by the colour-blind: Okabe and Ito's, with contrast for a light and a dark page."""

BOX_OPACITY = 0.16
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "triangle-down", "star")

NONE = "–"
"""What stands where there is nothing to say."""


# ---------------------------------------------------------------------------------------------------- what is offered


def write_report(result: ComparisonResult, folder: Path) -> Path:
    """Write `index.html` and `results.json` into `folder`, which is created where it is missing.

    Each file is replaced as a whole: whoever reads it meanwhile sees the old one or the new one.

    Returns:
        The page's path.

    Raises:
        OSError: the folder or a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results = json.dumps(finite(result.to_dict()), indent=2, allow_nan=False)
    _replace(folder / "results.json", results + "\n")
    return _replace(folder / "index.html", page(result))


def page(result: ComparisonResult) -> str:
    """The report as one HTML document: no network, no other file."""
    sections = [section(result) for section in SECTIONS]
    scripts = (get_plotlyjs(), DRAW)
    return PAGE.substitute(
        policy=_policy(scripts),
        title=html.escape(f"{result.definition.name}: comparison"),
        style=BASE_STYLE + STYLE.substitute(light=_colour_variables(LIGHT), dark=_colour_variables(DARK)),
        body="\n".join(section for section in sections if section is not None),
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )


def terminal_table(result: ComparisonResult) -> Table:
    """The ranking for a terminal."""
    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False, header_style="bold")
    table.add_column("arm", no_wrap=True)
    titles = ("mean\nrank", "median [q1, q3]", "best", "p", "trials\n(pruned)", "epochs", "seconds")
    for title in titles:
        table.add_column(Text(title), justify="right", no_wrap=True, vertical="bottom")
    rows = result.table()
    for row in rows:
        table.add_row(
            Text(row.arm),
            f"{row.mean_rank:.2f}",
            _spread(row.final, 3),
            _number(row.best, 3),
            _p_value(row.p),
            f"{_count(row.trials)} ({_count(row.pruned)})",
            _count(row.epochs),
            _count(row.seconds),
        )
    return table


# ----------------------------------------------------------------------------------------------------------- sections


def _head(result: ComparisonResult) -> Html:
    definition = result.definition
    facts = {
        "Objective": _objective(definition.objective),
        "Goal": definition.direction,
        "Arms": str(len(result.arms)),
        "Seeds": f"{definition.comparison.seeds}, paired",
        "Budget": _budget(definition.budget),
    }
    return tag(
        "header",
        tag("p", "Comparison", class_="eyebrow"),
        tag("h1", definition.name),
        _unfinished(result) or "",
        tag("p", result.verdict, class_="verdict"),
        facts_list(facts),
    )


def _unfinished(result: ComparisonResult) -> Html | None:
    """What is missing, where something is."""
    members = result.definition.members
    runs = {(run.arm, run.seed): run for run in result.runs}
    done = sum(_is_done(member, runs.get((member.arm, member.seed))) for member in members)
    if done == len(members):
        return None
    absent = len(members) - len(runs)
    begun = f", {absent} {'has' if absent == 1 else 'have'} not begun" if absent else ""
    return tag(
        "p",
        tag("strong", "Unfinished. "),
        f"{done} of {len(members)} runs have used up their budget{begun}. "
        f"What follows is what there is so far; it may still change.",
        class_="notice",
    )


def _ranking(result: ComparisonResult) -> Html | None:
    rows = result.table()
    if not rows:
        return None
    titles = ("mean rank", "median [quartiles]", "", "best", "p", "trials", "pruned", "failed")
    strips = _strips([row.final for row in rows])
    lines = [
        [
            _arm(result, row.arm),
            f"{row.mean_rank:.2f}",
            _spread(row.final),
            tag("span", strip, class_=_colour_class(result, row.arm)),
            _number(row.best),
            _p_value(row.p),
            *map(_count, (row.trials, row.pruned, row.failed, row.epochs)),
            _saved(result, row.arm),
            _count(row.seconds),
        ]
        for row, strip in zip(rows, strips, strict=True)
    ]
    friedman = "" if result.friedman_p is None else f" Whether arms differ at all: {_friedman(result)}."
    note = (
        f"Best value of each run at its end, over {_plural(len(result.seeds), 'seed')}; the first has the lowest mean "
        f"rank. p: difference from the first ({TEST}).{friedman} Saved: epochs that pruning did not spend, of those "
        "that full trainings would have. Counts and seconds of training are totals over seeds."
    )
    return titled(
        "Ranking",
        data_table(("arm", *titles, "epochs", "saved", "seconds"), lines),
        tag("p", note, class_="note"),
    )


def _anytime(result: ComparisonResult) -> Html | None:
    if not result.seeds:
        return None
    units: list[Unit] = ["trials"]
    if any(not np.array_equal(run.epochs, np.arange(1, len(run.best) + 1)) for run in result.runs) and all(
        run.epochs[-1] > 0 for run in result.runs if len(run.best)
    ):
        units.append("epochs")
    many = len(result.arms) > 6
    height = 360 + 24 * math.ceil(len(result.arms) / 3) if many else 380  # the legend takes its share
    plots = [_plot(f"best-by-{unit}", curves_figure(result, unit), f"by {unit}", height) for unit in units]
    pruned = " (epochs of pruned trials count)" if "epochs" in units else ""
    caption = (
        f"Best value so far against {' and '.join(units)} spent{pruned}: median over seeds and, shaded, the quartiles. "
        "A curve begins where enough seeds have a completed trial and ends where the arm's shortest run does; bands "
        "beyond the worst median are cut off. The legend switches arms off and on."
    )
    return titled(
        "Best value so far",
        tag("div", *plots, class_="plots wide" if many else "plots"),
        tag("p", caption, class_="note"),
    )


def _finals(result: ComparisonResult) -> Html | None:
    if not result.seeds:
        return None
    missing = int((~np.isfinite(result.finals)).sum())
    plot = _plot("final-values", finals_figure(result), "final values", 110 + 52 * len(result.arms))
    caption = (
        "The best value of every run at its end, the better to the "
        f"{'left' if result.definition.direction == 'minimize' else 'right'}. Thin lines join the same seed in "
        "different arms, which met the same data, initial weights and noise; boxes are quartiles and median."
    )
    left_out = f" Not drawn: {_plural(missing, 'run')} without a completed trial." if missing else ""
    return titled("Final values", plot, tag("p", caption + left_out, class_="note"))


def _configurations(result: ComparisonResult) -> Html | None:
    best = {arm: run for arm in result.ranking if (run := _best_run(result, arm)) is not None}
    if not best:
        return None
    spaces = {member.arm: member.definition.space for member in result.definition.members}
    names = list(dict.fromkeys(name for run in best.values() for name in _ordered(run, spaces[run.arm])))
    lines = [
        [
            _arm(result, arm),
            _number(run.best[-1]),
            *(_parameter_value(run.best_params, name, spaces[arm]) for name in names),
            tag("span", run.study, class_="quiet"),
            _count(run.best_number or 0),
        ]
        for arm, run in best.items()
    ]
    note = "The best trial of each arm over all seeds; study and trial number are those of the database."
    table = data_table(("arm", "value", *names, "study", "trial"), lines)
    return titled("Best configurations", table, tag("p", note, class_="note"))


def _method(result: ComparisonResult) -> Html:
    definition = result.definition
    seeds = definition.comparison.seeds
    first, last = definition.seed, definition.seed + seeds - 1
    facts = {
        "Seeds": f"{first}–{last}: each gives every arm the same split of the data, initial weights and noise"
        if seeds > 1
        else str(first),
        "Budget": f"{_budget(definition.budget)} for each arm and seed; arms take turns",
        "Fixed": _assignments(definition.fixed) or NONE,
        "Tests": f"{TEST}; {_friedman(result)}; medians and quartiles are median-unbiased",
        "Versions": ", ".join(f"{name} {version(name)}" for name in ("tuner", "optuna", "numpy", "scipy")),
        "Python": f"{platform.python_version()} on {platform.system()}, {platform.machine()}",
        "Date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    }
    document = json.dumps(finite(definition.dump()), indent=2, ensure_ascii=False)
    return titled(
        "How it was done",
        tag("h3", "Arms"),
        _arms_table(result),
        tag("h3", "Space"),
        _space_table(definition.space) if len(definition.space) else tag("p", "Suggested by the objective."),
        tag("h3", "Conditions"),
        facts_list(facts),
        tag("details", tag("summary", "The definition"), tag("pre", document)),
    )


SECTIONS: tuple[Section, ...] = (_head, _ranking, _anytime, _finals, _configurations, _method)
"""The page from top to bottom. A section returns None where there is nothing for it to show."""


# ------------------------------------------------------------------------------------------------------------ figures


def curves_figure(result: ComparisonResult, unit: Unit = "trials") -> Figure:
    """The anytime curves of all arms as a Plotly figure: median lines with quartile bands.

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
    colour, opacity = LIGHT[index % len(LIGHT)], max(0.05, min(0.2, 0.6 / len(result.arms)))
    common = {"x": x, "type": "scatter", "mode": "lines", "legendgroup": arm}
    common["meta"] = {**_meta(index), "opacity": opacity}
    hidden = {**common, "showlegend": False, "hoverinfo": "skip"}
    edge = {"shape": "hv", "width": 0, "color": colour}
    return [
        {**hidden, "y": low, "line": edge},
        {**hidden, "y": high, "line": edge, "fill": "tonexty", "fillcolor": _shade(colour, opacity)},
        {
            **common,
            "y": median,
            "name": html.escape(arm),
            "line": {"shape": "hv", "width": 2, "color": colour, "dash": DASHES[index // len(LIGHT) % 4]},
            "customdata": [list(pair) for pair in zip(low, high, strict=True)],
            "hovertemplate": "%{y:.4g} [%{customdata[0]:.4g}, %{customdata[1]:.4g}]",
        },
    ]


def finals_figure(result: ComparisonResult) -> Figure:
    """The best values of all runs at their ends as a Plotly figure: the same seed joined across arms."""
    order = [(result.arms.index(arm), arm) for arm in result.ranking]
    boxes = [_box_trace(i, arm, result.finals[i]) for i, arm in order if np.isfinite(result.finals[i]).any()]
    points = [_points_trace(i, arm, result.finals[i], result.seeds) for i, arm in order]
    names = [html.escape(arm) for _, arm in order]
    finite = result.finals[np.isfinite(result.finals)].tolist()
    scale = _axis(min(finite), max(finite), log=_is_log(finite)) if finite else {}
    rows = {"categoryorder": "array", "categoryarray": names[::-1], "automargin": True, "showgrid": False}
    return {
        "data": [_pairs_trace(names, result.finals[[i for i, _ in order]]), *boxes, *points],
        "layout": {
            "xaxis": {"title": {"text": "best value at the end"}, **scale},
            "yaxis": {"type": "category", "range": [-0.6, len(order) - 0.4], **rows},
            "showlegend": False,
            "hovermode": "closest",
        },
    }


def _pairs_trace(names: Sequence[str], finals: np.ndarray[Any, Any]) -> Figure:
    """One line a seed through all arms, top to bottom; None breaks it, between seeds and where a value is infinite."""
    x: list[float | None] = []
    for values in finals.T.tolist():
        x += [*(value if math.isfinite(value) else None for value in values), None]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": x,
        "y": [*names, None] * finals.shape[1],
        "line": {"width": 1, "color": "#9a9a9a"},
        "opacity": 0.45,
        "hoverinfo": "skip",
        "meta": {"colour": "--soft"},
    }


def _box_trace(index: int, arm: str, values: np.ndarray[Any, Any]) -> Figure:
    low, median, high = np.quantile(values[np.isfinite(values)], [0.25, 0.5, 0.75], method="median_unbiased")
    colour = LIGHT[index % len(LIGHT)]
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
        "line": {"width": 1.5, "color": colour},
        "fillcolor": _shade(colour, BOX_OPACITY),
        "hoverinfo": "skip",
        "meta": _meta(index),
    }


def _points_trace(index: int, arm: str, values: np.ndarray[Any, Any], seeds: Sequence[int]) -> Figure:
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
            "color": LIGHT[index % len(LIGHT)],
            "symbol": SYMBOLS[index % len(SYMBOLS)],
            "opacity": 0.85,
        },
        "meta": _meta(index),
    }


def _curve_axis(result: ComparisonResult, traces: Sequence[Figure]) -> Figure:
    """From the best quartile to the worst median: what only the first trials of some seeds reached is cut off."""
    drawn = [value for trace in traces for value in trace["y"]]
    if not drawn:
        return {}
    medians = [value for trace in traces if "name" in trace for value in trace["y"]]
    if result.definition.direction == "minimize":
        return _axis(min(drawn), max(medians), log=_is_log(drawn))
    return _axis(min(medians), max(drawn), log=_is_log(drawn))


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


def _is_log(values: Sequence[float]) -> bool:
    """Whether values are positive and span more than a decade."""
    return len(values) > 0 and min(values) > 0 and max(values) > 10 * min(values)


def _meta(index: int) -> dict[str, Any]:
    """What the page needs to draw a trace of this arm in its own colours."""
    return {"colour": f"--arm{index % len(LIGHT)}", "opacity": BOX_OPACITY}


def _shade(colour: str, opacity: float) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {opacity:g})"


# --------------------------------------------------------------------------------------------- what the sections need


def _is_done(member: Member, run: Run | None) -> bool:
    """Whether a run has used up its budget."""
    if run is None or not len(run.best):
        return False
    budget, limit = member.definition.budget, member.definition.trials
    return (
        (limit is not None and len(run.best) >= limit)
        or (budget.epochs is not None and run.epochs[-1] >= budget.epochs)
        or (budget.seconds is not None and run.seconds >= 0.999 * budget.seconds)  # they are rounded
    )


def _saved(result: ComparisonResult, arm: str) -> str:
    """The share of epochs that pruning saved, where all completed trials took equally many.

    A failed trial, and the one at which a budget of epochs or seconds ends, may be short without having been pruned:
    the share is then a lower bound.
    """
    runs = [run for run in result.runs if run.arm == arm and run.seed in result.seeds]
    lengths = np.concatenate([np.diff(run.epochs, prepend=0.0) for run in runs])
    full = lengths.max()
    if (
        full == 0
        or not sum(run.pruned for run in runs)
        or np.sum(lengths == full) < sum(run.completed for run in runs)
    ):
        return NONE
    budget = next(m.definition.budget for m in result.definition.members if m.arm == arm)
    cut = len(runs) if budget.epochs is not None or budget.seconds is not None else 0
    unclear = sum(run.failed for run in runs) + cut
    saved = 100 * (1 - lengths.mean() / full - unclear / len(lengths))
    if not unclear:
        return f"{saved:.0f}%"
    return f"≥ {math.floor(saved + 1e-9)}%" if saved >= 1 else NONE


def _best_run(result: ComparisonResult, arm: str) -> Run | None:
    """The arm's run with the best completed trial; the first of equals."""
    sign = 1 if result.definition.direction == "minimize" else -1
    runs = [r for r in result.runs if r.arm == arm and r.seed in result.seeds and r.best_number is not None]
    return min(runs, key=lambda run: (sign * run.best[-1], run.seed), default=None)


def _ordered(run: Run, space: Space) -> list[str]:
    """The names of the best trial's parameters, in the order of the space."""
    return sorted(
        run.best_params, key=lambda name: list(space).index(name) if name in space.root else len(space)
    )


def _friedman(result: ComparisonResult) -> str:
    return "no Friedman test" if result.friedman_p is None else f"Friedman p {_equals(result.friedman_p)}"


def _objective(name: str | None) -> str:
    if name is None:
        return "given in Python"
    try:
        return f"{name}: {find_objective(name).description}"
    except (TunerError, ImportError):
        return name  # a report can be written where the objective is not installed


def _budget(budget: Budget) -> str:
    amounts = [(budget.trials, "trial"), (budget.epochs, "epoch"), (budget.seconds, "second")]
    return " or ".join(_plural(n, unit) for n, unit in amounts if n is not None) or "none"


def _arms_table(result: ComparisonResult) -> Html:
    base = result.definition
    lines = [
        [
            _arm(result, arm.name),
            _component(arm.sampler or base.sampler),
            _component(arm.pruner or base.pruner),
            _overrides(arm) or NONE,
        ]
        for arm in base.comparison.arms
    ]
    width = 4 if any(line[3] != NONE for line in lines) else 3
    titles = ("arm", "sampler", "pruner", "what else differs")
    return data_table(titles[:width], [line[:width] for line in lines], numbers=False)


def _component(settings: Any) -> str:
    """A sampler or pruner with what is not its default."""
    given = settings.model_dump(mode="json", exclude_defaults=True)
    given.pop("name", None)
    return f"{settings.name} ({_assignments(given)})" if given else str(settings.name)


def _overrides(arm: Arm) -> str:
    given = arm.model_dump(
        mode="json",
        by_alias=True,
        exclude_defaults=True,
        exclude={"name", "sampler", "pruner", "fixed", "space"},
    )
    space = [f"{name} in {_range(parameter)}" for name, parameter in arm.space.items()]
    return ", ".join([part for part in (_assignments(given), _assignments(arm.fixed)) if part] + space)


def _assignments(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {_value(value)}" for name, value in values.items())


def _space_table(space: Space) -> Html:
    lines = [
        [name, parameter.type, _range(parameter), _scale(parameter), str(parameter.priority)]
        + ([_assignments(parameter.when) or NONE] if space.is_conditional else [])
        for name, parameter in space.items()
    ]
    when = ("active when",) if space.is_conditional else ()
    return data_table(("parameter", "type", "values", "scale", "priority", *when), lines, numbers=False)


def _range(parameter: AnyParameter) -> str:
    if isinstance(parameter, CategoricalParameter):
        return ", ".join(map(_value, parameter.choices))
    step = f" in steps of {parameter.step:g}" if parameter.step not in (None, 1) else ""
    return f"[{parameter.low:g}, {parameter.high:g}]{step}"


def _scale(parameter: AnyParameter) -> str:
    if isinstance(parameter, CategoricalParameter):
        return NONE
    return (
        "reverse log (1 − value is log-uniform)"
        if parameter.scale_name == "reverse_log"
        else parameter.scale_name
    )


def _parameter_value(params: Mapping[str, Any], name: str, space: Space) -> str:
    if name not in params:
        return NONE
    parameter = space.root.get(name)
    if isinstance(parameter, FloatParameter) and parameter.scale_name == "reverse_log" and params[name] < 1:
        return f"{params[name]:.{max(2 - math.floor(math.log10(1 - params[name])), 0)}f}"  # 3 digits of 1 − value
    return _value(params[name])


# ------------------------------------------------------------------------------------------------------------ numbers


def _number(value: float, digits: int = 4) -> str:
    """With so many significant digits, zeros at the end included, so that columns line up."""
    if not math.isfinite(value):
        return NONE
    if 10 ** (digits - 1) <= abs(value) < 10**7:
        return f"{value:,.0f}".replace("-", "−")
    return f"{value:#.{digits}g}".removesuffix(".").replace("-", "−")


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _spread(spread: Spread, digits: int = 4) -> str:
    return f"{_number(spread.median, digits)} [{_number(spread.low, 3)}, {_number(spread.high, 3)}]"


def _p_value(p: float | None) -> str:
    if p is None or not math.isfinite(p):
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def _equals(p: float) -> str:
    shown = _p_value(p)
    return shown if shown.startswith("<") else f"= {shown}"


def _value(value: Any) -> str:
    """A setting or parameter as text."""
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", "−")
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _plural(count: float, noun: str) -> str:
    return f"{count:,g} {noun}{'' if count == 1 else 's'}"


def finite(value: Any) -> Any:
    """The same document with null for numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --------------------------------------------------------------------------------------------------- pieces of the page


def _arm(result: ComparisonResult, arm: str) -> Html:
    return tag("span", tag("i", class_=f"dot {_colour_class(result, arm)}"), arm, class_="arm")


def _colour_class(result: ComparisonResult, arm: str) -> str:
    return f"arm{result.arms.index(arm) % len(LIGHT)}"


def _strips(spreads: Sequence[Spread]) -> list[Html]:
    """A small picture of each spread, all on one scale: a bar from quartile to quartile, a dot at the median."""
    ends = [v for s in spreads for v in (s.low, s.median, s.high) if math.isfinite(v)]
    on_scale: Callable[[float], float] = math.log if _is_log(ends) else float
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


def _plot(name: str, figure: Figure, label: str, height: int) -> Html:
    """A place for a plot, followed by its figure, which the page's script draws there."""
    if not figure["data"]:
        return tag("p", "No run has a completed trial yet: nothing to draw.", class_="note")
    place = tag("div", id=name, class_="plot", role="img", aria_label=label, style=f"height: {height}px")
    return Html(f'{place}<script type="application/json">{_json(figure)}</script>')


def _json(document: Any) -> str:
    """JSON that can stand in a script element: nothing in it ends the element or begins another."""
    text = json.dumps(document, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _colour_variables(colours: Sequence[str]) -> str:
    return " ".join(f"--arm{i}: {colour};" for i, colour in enumerate(colours))


def _policy(scripts: Sequence[str]) -> str:
    """A content security policy under which nothing is loaded, and no script runs but these."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _replace(path: Path, text: str) -> Path:
    """Write a file beside `path`, then put it in its place."""
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        draft.write_text(text, encoding="utf-8", newline="\n")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return path


PAGE = Template(
    """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="$policy">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
$body
<noscript><p class="notice">The plots need JavaScript; the tables hold all their numbers.</p></noscript>
</main>
$scripts
</body>
</html>
"""
)

STYLE = Template(
    """
:root { $light }
@media (prefers-color-scheme: dark) { :root { $dark } }
.verdict { margin: 0 0 1.75rem; max-width: 44rem; font-size: clamp(1.1rem, 3vw, 1.3rem); line-height: 1.45; }
.arm { white-space: nowrap; }
.dot { display: inline-block; width: .62em; height: .62em; margin-right: .5em; border-radius: 50%; }
.strip { vertical-align: middle; stroke: currentColor; fill: currentColor; }
.strip line { stroke-width: 5; stroke-opacity: .35; stroke-linecap: round; }
.strip circle { stroke: none; }
.dot { background: currentColor; }
.arm0 { color: var(--arm0); } .arm1 { color: var(--arm1); } .arm2 { color: var(--arm2); } .arm3 { color: var(--arm3); }
.arm4 { color: var(--arm4); } .arm5 { color: var(--arm5); } .arm6 { color: var(--arm6); } .arm7 { color: var(--arm7); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1.5rem; }
.plots.wide { grid-template-columns: 1fr; }
.plot { min-width: 0; width: 100%; }
@media (max-width: 46rem) {
  tbody td[data-label^="median"] { grid-column: span 2; }
}
@media print { section { break-inside: avoid; } details { display: none; } }
"""
)

DRAW = """
"use strict";
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const touch = matchMedia("(pointer: coarse)");
  const read = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const shade = (hex, opacity) => `rgba(${[1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16))}, ${opacity})`;
  const figures = [...document.querySelectorAll(".plot")].map(
    place => [place, place.nextElementSibling.textContent]);

  function coloured(trace) {
    const colour = read(trace.meta.colour);
    if (trace.line) trace.line.color = colour;
    if (trace.marker) trace.marker.color = colour;
    if (trace.fillcolor) trace.fillcolor = shade(colour, trace.meta.opacity);
    return trace;
  }

  function axis(given) {
    const line = read("--line"), soft = read("--soft");
    const title = {...given.title, font: {color: soft}, standoff: 8};
    return {automargin: true, gridcolor: line, linecolor: line, zeroline: false, tickfont: {color: soft},
            fixedrange: touch.matches, ...given, title};
  }

  function dressed(layout) {
    const ink = read("--ink"), paper = read("--paper"), line = read("--line");
    return {
      ...layout,
      xaxis: axis(layout.xaxis), yaxis: axis(layout.yaxis),
      font: {family: "system-ui, sans-serif", size: 13, color: ink},
      hoverlabel: {bgcolor: paper, bordercolor: line, font: {color: ink}},
      paper_bgcolor: "rgba(0, 0, 0, 0)", plot_bgcolor: "rgba(0, 0, 0, 0)",
      modebar: {bgcolor: "rgba(0, 0, 0, 0)", color: line, activecolor: ink},
      margin: {l: 8, r: 12, t: 12, b: 8}, uirevision: "kept",
      dragmode: touch.matches ? false : "zoom",
    };
  }

  const config = {
    responsive: true, displaylogo: false, displayModeBar: touch.matches ? false : "hover",
    modeBarButtons: [["toImage", "resetScale2d"]], plotlyServerURL: "",
  };

  function draw() {
    for (const [place, text] of figures) {
      const figure = JSON.parse(text);
      Plotly.react(place, figure.data.map(coloured), dressed(figure.layout), config);
    }
  }

  dark.addEventListener("change", draw);
  draw();
})();
"""
