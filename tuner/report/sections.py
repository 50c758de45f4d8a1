"""The sections of a comparison's page, each a function from the result to HTML; None where it has nothing to show."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TypeAlias

import numpy as np

from tuner.comparison import TEST, ComparisonResult, Pair, Run, Unit
from tuner.comparison.export import finite
from tuner.comparison.figures import (
    BAND_SEEDS,
    boxes_figure,
    curves_figure,
    differences_figure,
    finals_figure,
    importance_figure,
    learning_figure,
    ranks_figure,
    savings_figure,
    shown_pairs,
)
from tuner.markup import Html, data_table, facts_list, tag, titled
from tuner.report.insight import best_run, diagnosis, importances, looked_in
from tuner.report.pieces import arm_label, colour_class, plot_place, strips
from tuner.report.wording import (
    NONE,
    assignments,
    budget_text,
    component,
    count,
    equals,
    estimate_text,
    number,
    objective_text,
    overrides,
    p_value,
    parameter_value,
    range_text,
    scale_text,
    spread_text,
)
from tuner.space import Space
from tuner.statistics import LEAST_SEEDS, spread
from tuner.words import plural

__all__ = ["SECTIONS"]

Section: TypeAlias = Callable[[ComparisonResult], "Html | None"]

MOST_BOXES = 4
"""So many parameters are drawn with coarse-to-fine's boxes, those of the highest priority."""


def _head(result: ComparisonResult) -> Html:
    definition = result.definition
    facts = {
        "Objective": objective_text(definition.objective),
        "Goal": definition.direction,
        "Arms": str(len(result.arms)),
        "Seeds": f"{definition.comparison.seeds}, paired",
        "Budget": budget_text(definition.budget),
    }
    return tag(
        "header",
        tag("p", "Comparison", class_="eyebrow"),
        tag("h1", definition.name),
        _unfinished(result) or "",
        tag("p", result.verdict, class_="verdict"),
        *(tag("p", warning, class_="notice") for warning in result.warnings),
        facts_list(facts),
    )


def _unfinished(result: ComparisonResult) -> Html | None:
    """What is missing, where something is."""
    members, unfinished = len(result.definition.members), result.unfinished
    if not unfinished:
        return None
    absent = members - len(result.runs)
    begun = f", {absent} {'has' if absent == 1 else 'have'} not begun" if absent else ""
    return tag(
        "p",
        tag("strong", "Unfinished. "),
        f"{members - unfinished} of {members} runs have used up their budget{begun}. "
        f"What follows is what there is so far; it may still change.",
        class_="notice",
    )


def _ranking(result: ComparisonResult) -> Html | None:
    rows = result.table()
    if not rows:
        return None
    titles = ("mean rank", "median [quartiles]", "", "best", "p", "trials", "pruned", "failed")
    pictures = strips([row.final for row in rows])
    lines = [
        [
            arm_label(result, row.arm),
            f"{row.mean_rank:.2f}",
            spread_text(row.final),
            tag("span", strip, class_=colour_class(result, row.arm)),
            number(row.best),
            p_value(row.p),
            *map(count, (row.trials, row.pruned, row.failed, row.epochs)),
            _saved(result, row.arm),
            count(row.seconds),
        ]
        for row, strip in zip(rows, pictures, strict=True)
    ]
    friedman = "" if result.friedman_p is None else f" Whether arms differ at all: {_friedman(result)}."
    note = (
        f"{_capital(result.judged_by)} of each run at its end, over {plural(len(result.seeds), 'seed')}; the "
        f"first has the lowest mean rank. p: difference from the first ({TEST}).{friedman} Saved: epochs that "
        "pruning did not spend, of those that full trainings would have. Counts and seconds of training are totals "
        "over seeds."
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
    plots = [
        plot_place(f"best-by-{unit}", curves_figure(result, unit), f"by {unit}", height) for unit in units
    ]
    around = ", shaded, the quartiles" if len(result.seeds) >= BAND_SEEDS else ", thin, each seed"
    pruned = " (epochs of pruned trials count)" if "epochs" in units else ""
    caption = (
        f"Best value so far against {' and '.join(units)} spent{pruned}: median over seeds and{around}. A curve begins "
        "where enough seeds have a completed trial and ends where the arm's shortest run does; what lies beyond the "
        "worst median is cut off. The legend switches arms off and on."
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
    plot = plot_place("final-values", finals_figure(result), "final values", 110 + 52 * len(result.arms))
    caption = (
        f"{_capital(result.judged_by)} of every run at its end, the better to the "
        f"{'left' if result.lower_wins else 'right'}. Thin lines join the same seed in "
        "different arms, which met the same data, initial weights and noise; boxes are quartiles and median."
    )
    is_dev = result.definition.comparison.judge == "dev"
    lacking = "without a completed trial" if is_dev else f"with a failed trial or no {result.judged_by}"
    left_out = f" Not drawn: {plural(missing, 'run')} {lacking}." if missing else ""
    return titled("Final values", plot, tag("p", caption + left_out, class_="note"))


def _configurations(result: ComparisonResult) -> Html | None:
    best = {arm: run for arm in result.ranking if (run := best_run(result, arm)) is not None}
    if not best:
        return None
    spaces = {member.arm: member.definition.space for member in result.definition.members}
    names = list(dict.fromkeys(name for run in best.values() for name in _ordered(run, spaces[run.arm])))
    lines = [
        [
            arm_label(result, arm),
            number(run.best[-1]),
            *(parameter_value(run.best_params, name, spaces[arm]) for name in names),
            tag("span", run.study, class_="quiet"),
            count(run.best_number or 0),
        ]
        for arm, run in best.items()
    ]
    note = "The best trial of each arm over all seeds; study and trial number are those of the database."
    table = data_table(("arm", "value", *names, "study", "trial"), lines)
    return titled("Best configurations", table, tag("p", note, class_="note"))


def _significance(result: ComparisonResult) -> Html | None:
    pairs = shown_pairs(result)
    if not pairs:
        return None
    seeds = len(result.seeds)
    all_pairs = (
        "" if len(pairs) == len(result.pairs) else f" Of {len(result.pairs)} pairs those with the first arm."
    )
    ranks = plot_place("mean-ranks", ranks_figure(result), "mean ranks", 130 + 44 * len(result.arms))
    gaps = plot_place("differences", differences_figure(result), "paired differences", 130 + 44 * len(pairs))
    side = "below" if result.lower_wins else "above"
    few = f" Intervals begin at {LEAST_SEEDS} seeds." if seeds < LEAST_SEEDS else ""
    caption = (
        "First: mean ranks; two arms differ by Nemenyi's test where their bars do not meet (critical difference "
        f"{number(result.critical_difference or 0, 3)}). Then, for each pair, the differences of the same seed "
        f"(ticks), their median and its 95% bootstrap interval; {side} 0 the first is better.{few}{all_pairs}"
    )
    titles = ("first − second", "median difference", "P(first better)", "Â", "p", "seeds to settle it")
    note = (
        "P: the probability that the first is better with the same seed, with Wilson's interval. Â (Vargha and "
        "Delaney): the same with any two seeds; 0.56 is called a small, 0.64 a medium, 0.71 a large effect. "
        f"p: {TEST}. Seeds to settle it: how many fresh ones give 80% power if those so far are typical "
        "(Lehmann's approximation), a rough guess. Whoever adds seeds after each look, until there is a difference, "
        "finds one where there is none."
    )
    return titled(
        "Who beats whom",
        tag("div", ranks, gaps, class_="plots"),
        tag("p", caption, class_="note"),
        data_table(titles, [_pair_line(result, pair) for pair in pairs]),
        tag("p", note, class_="note"),
    )


def _pair_line(result: ComparisonResult, pair: Pair) -> list[str]:
    names = tag("span", arm_label(result, pair.first), " − ", arm_label(result, pair.second))
    needed = "settled" if pair.is_settled else NONE if pair.seeds_needed is None else count(pair.seeds_needed)
    return [
        names,
        estimate_text(pair.difference),
        estimate_text(pair.wins),
        f"{pair.effect:.2f}",
        p_value(pair.p),
        f"> {count(10_000)}" if (pair.seeds_needed or 0) > 10_000 else needed,
    ]


def _tests(result: ComparisonResult) -> Html | None:
    rows = [row for row in result.table() if row.test is not None]
    runs = [run for run in result.runs if run.test is not None]
    if not rows:
        return None
    tests = [run.test for run in runs if run.test is not None]
    names = list(dict.fromkeys(name for test in tests for name in test.metrics)) or ["value"]
    repeats = max(
        (len(values) for test in tests for values in test.metrics.values()),
        default=result.definition.comparison.test_repeats,
    )
    lines = [
        [
            arm_label(result, row.arm),
            spread_text(spread(np.array([run.best[-1] for run in result.runs_of(row.arm)]))),
            *(_metric(result, row.arm, name) for name in names),
        ]
        for row in rows
    ]
    note = (
        f"Each run's best configuration, trained anew {plural(repeats, 'time')} with seeds that no trial had, and only "
        "then measured on the test data, which no tuning has seen: the mean of each run; median and quartiles over "
        "seeds. The dev value of the best of many trials flatters; this one does not."
    )
    table = data_table(("arm", "best dev value", *names), lines)
    return titled("On test data", table, tag("p", note, class_="note"))


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _metric(result: ComparisonResult, arm: str, name: str) -> str:
    values = [math.nan if run.test is None else run.test.mean(name) for run in result.runs_of(arm)]
    if any(map(math.isnan, values)):
        return f"{sum(map(math.isnan, values))} of {len(values)} failed"
    return spread_text(spread(np.array(values)))


def _targets(result: ComparisonResult) -> Html | None:
    rows = result.targets()
    if not rows:
        return None
    lines = [
        [
            tag("span", f"{number(row.target)}: ", arm_label(result, row.arm)),
            f"{row.reached} of {len(result.seeds)}",
            *(number(value, 3) for value in (row.trials, row.epochs, row.seconds)),
        ]
        for row in rows
    ]
    note = "Median over seeds of what was spent until the target was reached; – where fewer than half reached it."
    table = data_table(("target and arm", "seeds that reached it", "trials", "epochs", "seconds"), lines)
    return titled("Time to targets", table, tag("p", note, class_="note"))


def _savings(result: ComparisonResult) -> Html | None:
    if not any(row.pruned for row in result.table()) or not any(run.trials for run in result.runs):
        return None
    height = 130 + 40 * len(result.arms)
    plot = plot_place("savings", savings_figure(result), "epochs by what became of their trials", height)
    saved = [(arm, _saved(result, arm)) for arm in result.ranking]
    words = ", ".join(f"{arm} {share}" for arm, share in saved if share != NONE)
    caption = "Epochs spent on trials that came to their end, and on those that were stopped early."
    told = f" Saved, of what full trainings would have taken: {words}." if words else ""
    return titled("What pruning saved", plot, tag("p", caption + told, class_="note"))


def _importance(result: ComparisonResult) -> Html | None:
    shares = importances(result)
    if not shares:
        return None
    priorities = {name: parameter.priority for name, parameter in result.definition.space.items()}
    seeds = min(map(len, shares.values()))
    figure = importance_figure(shares, priorities)
    plot = plot_place("importance", figure, "importance of the parameters", 130 + 40 * len(shares))
    caption = (
        "How much each parameter decided about being among the best tenth of a seed's trials (PED-ANOVA): median and "
        f"quartiles over {plural(seeds, 'seed')}. In brackets the stated priority, in whose order they stand: where "
        "that is right, the shares fall from top to bottom."
    )
    return titled("What mattered", plot, tag("p", caption, class_="note"))


def _boxes(result: ComparisonResult) -> Html | None:
    for arm in result.ranking:
        run = best_run(result, arm)
        looked = [] if run is None else list(looked_in(result, run))[:MOST_BOXES]
        if run is None or not looked:
            continue
        index = result.arms.index(arm)
        plots = [
            plot_place(
                f"boxes-{i}", boxes_figure(run, one.name, one.scale, one.boxes, index=index), one.name, 280
            )
            for i, one in enumerate(looked)
        ]
        caption = (
            f"The run of {arm} with seed {run.seed}: shaded, the box in which it looked closer; points are trials "
            "(open: pruned or failed). Outside the box are those that looked everywhere, and some that changed a good "
            "point a little. The star is the best."
        )
        plots_ = tag("div", *plots, class_="plots")
        return titled("From coarse to fine", plots_, tag("p", caption, class_="note"))
    return None


def _learning(result: ComparisonResult) -> Html | None:
    runs = {arm: run for arm in result.ranking if (run := best_run(result, arm)) is not None and run.trials}
    curves = {
        arm: next(t.intermediate_values for t in run.trials if t.number == run.best_number)
        for arm, run in runs.items()
    }
    curves = {arm: curve for arm, curve in curves.items() if len(curve) > 1}
    if not curves:
        return None
    plot = plot_place("learning", learning_figure(result, curves), "learning curves", 360)
    said = tag(
        "dl",
        *(
            tag("div", tag("dt", arm_label(result, arm)), tag("dd", diagnosis(result, runs[arm])))
            for arm in curves
        ),
        class_="diagnoses",
    )
    note = "The value by epoch of each arm's best trial, and what its course says."
    return titled("How the best were trained", plot, said, tag("p", note, class_="note"))


def _method(result: ComparisonResult) -> Html:
    definition = result.definition
    seeds = definition.comparison.seeds
    first, last = definition.seed, definition.seed + seeds - 1
    facts = {
        "Seeds": f"{first}–{last}: each gives every arm the same split of the data, initial weights and noise"
        if seeds > 1
        else str(first),
        "Budget": f"{budget_text(definition.budget)} for each arm and seed; arms take turns",
        "Fixed": assignments(definition.fixed) or NONE,
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


def _saved(result: ComparisonResult, arm: str) -> str:
    """The share of epochs that pruning saved, where all completed trials took equally many.

    A failed trial, and the one at which a budget of epochs or seconds ends, may be short without having been pruned:
    the share is then a lower bound.
    """
    runs = result.runs_of(arm)
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


def _ordered(run: Run, space: Space) -> list[str]:
    """The names of the best trial's parameters, in the order of the space."""
    return sorted(
        run.best_params, key=lambda name: list(space).index(name) if name in space.root else len(space)
    )


def _friedman(result: ComparisonResult) -> str:
    return "no Friedman test" if result.friedman_p is None else f"Friedman p {equals(result.friedman_p)}"


def _arms_table(result: ComparisonResult) -> Html:
    base = result.definition
    lines = [
        [
            arm_label(result, arm.name),
            component(arm.sampler or base.sampler),
            component(arm.pruner or base.pruner),
            overrides(arm) or NONE,
        ]
        for arm in base.comparison.arms
    ]
    width = 4 if any(line[3] != NONE for line in lines) else 3
    titles = ("arm", "sampler", "pruner", "what else differs")
    return data_table(titles[:width], [line[:width] for line in lines], numbers=False)


def _space_table(space: Space) -> Html:
    lines = [
        [name, parameter.type, range_text(parameter), scale_text(parameter), str(parameter.priority)]
        + ([assignments(parameter.when) or NONE] if space.is_conditional else [])
        for name, parameter in space.items()
    ]
    when = ("active when",) if space.is_conditional else ()
    return data_table(("parameter", "type", "values", "scale", "priority", *when), lines, numbers=False)


SECTIONS: tuple[Section, ...] = (
    _head,
    _ranking,
    _anytime,
    _significance,
    _finals,
    _tests,
    _targets,
    _savings,
    _importance,
    _boxes,
    _configurations,
    _learning,
    _method,
)
"""The page from top to bottom."""
