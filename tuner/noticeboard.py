"""What optuna-dashboard shows of a comparison: a note and figures on each member study, and attributes to sort by.

All of it lies in the places that optuna-dashboard reads: a stock one shows it. What stands there already is not written
again; what a person wrote below a note stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import optuna

from tuner.comparison import ComparisonResult, Run
from tuner.comparison.figures import (
    curves_figure,
    differences_figure,
    finals_figure,
    graph_objects,
    ranks_figure,
)

__all__ = ["post"]

END = "*Written by `tuner compare`. What you write below this line stays.*"
"""Ends our part of a note."""


def post(result: ComparisonResult, load: Callable[[str], optuna.Study]) -> None:
    """Put the result up on the member studies.

    Args:
        result: of the comparison.
        load: gives a study by name.
    """
    studies = {run.study: load(run.study) for run in result.runs}
    figures = _figures(result)
    for run in result.runs:
        study = studies[run.study]
        _set_attrs(study, _attrs(run))
        _set_note(study, _note(result, run, {name: s._study_id for name, s in studies.items()}))
        _set_figures(study, figures)


def _attrs(run: Run) -> dict[str, Any]:
    attrs: dict[str, Any] = {"arm": run.arm, "seed": run.seed}
    attrs |= {"epochs": int(run.epochs[-1]) if len(run.epochs) else 0, "seconds": round(run.seconds, 1)}
    if run.test is not None:
        attrs |= {name: float(f"{run.test.mean(name):.6g}") for name in run.test.metrics}
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in attrs.items()}


def _set_attrs(study: optuna.Study, attrs: Mapping[str, Any]) -> None:
    there = study.user_attrs
    for name, value in attrs.items():
        if name not in there or there[name] != value:
            study.set_user_attr(name, value)


def _set_note(study: optuna.Study, ours: str) -> None:
    from optuna_dashboard import get_note, save_note  # noqa: PLC0415 - half a second

    before = get_note(study)
    _, end, theirs = before.partition(END)
    kept = theirs if end else f"\n\n{before}" if before else ""
    if before != ours + kept:
        save_note(study, ours + kept)


def _set_figures(study: optuna.Study, figures: Mapping[str, Any]) -> None:
    from optuna_dashboard import save_plotly_graph_object  # noqa: PLC0415
    from optuna_dashboard._custom_plot_data import get_plotly_graph_objects  # noqa: PLC0415

    there = get_plotly_graph_objects(study._storage.get_study_system_attrs(study._study_id))
    for name, figure in figures.items():
        if there.get(name) != figure.to_json():
            save_plotly_graph_object(study, figure, graph_object_id=name)


def _figures(result: ComparisonResult) -> dict[str, Any]:
    """By the ids that the dashboard knows them under."""
    if not result.seeds:
        return {}
    go = graph_objects()
    drawn = {"curves": curves_figure(result, result.unit), "finals": finals_figure(result)}
    titles = {"curves": "Best value so far", "finals": "Final values"}
    if len(result.seeds) > 1:
        drawn |= {"ranks": ranks_figure(result), "differences": differences_figure(result)}
        titles |= {"ranks": "Mean ranks and critical difference", "differences": "Paired differences"}
    return {
        f"comparison-{name}": go.Figure(figure).update_layout(
            title=f"{result.definition.name}: {titles[name]}"
        )
        for name, figure in drawn.items()
    }


def _note(result: ComparisonResult, run: Run, ids: Mapping[str, int]) -> str:
    name = result.definition.name
    lines = [f"### Comparison {name}", "", f"**{_plain(result.verdict)}**", ""]
    best = "none yet" if run.best_number is None else f"{run.best[-1]:.5g} in trial {run.best_number}"
    lines += [f"This study is arm **{run.arm}** with seed {run.seed}; its best value: {best}.", ""]
    if run.test is not None:
        values = ", ".join(f"{metric} {run.test.mean(metric):.5g}" for metric in run.test.metrics)
        lines += [f"On test data, trained anew: {values or 'each training failed'}.", ""]
    lines += _ranking(result)
    same_seed = [other for other in result.runs if other.seed == run.seed and other.arm != run.arm]
    same_arm = [other for other in result.runs if other.arm == run.arm and other.seed != run.seed]
    lines += [f"With the same seed: {_links(same_seed, ids, lambda r: r.arm)}", ""] if same_seed else []
    lines += [f"With other seeds: {_links(same_arm, ids, lambda r: str(r.seed))}", ""] if same_arm else []
    return "\n".join([*lines, END])


def _ranking(result: ComparisonResult) -> list[str]:
    rows = [
        f"| {row.arm} | {row.mean_rank:.2f} | {row.final.median:.4g} [{row.final.low:.4g}, {row.final.high:.4g}] "
        f"| {'' if row.p is None else f'{row.p:.2g}'} | {row.epochs:,} |"
        for row in result.table()
    ]
    head = ["| arm | mean rank | median [quartiles] | p | epochs |", "|---|---|---|---|---|"]
    return [*head, *rows, ""] if rows else []


def _links(runs: list[Run], ids: Mapping[str, int], label: Callable[[Run], str]) -> str:
    return ", ".join(f"[{label(run)}](/dashboard/studies/{ids[run.study]})" for run in runs)


def _plain(text: str) -> str:
    """Text as Markdown that says the same."""
    return text.replace("*", "\\*").replace("_", "\\_").replace("<", "\\<")
