"""The space: what the tables mean, and errors that name the rule and the value."""

from __future__ import annotations

import math
import time

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import ValidationError

from tuner.errors import DefinitionError
from tuner.samplers import GridSettings, SamplerContext
from tuner.samplers.grid import GridSampler, fit_levels
from tuner.space import Space


def space(**tables) -> Space:
    return Space.model_validate(tables)


def message(**tables) -> str:
    with pytest.raises(ValidationError) as error:
        space(**tables)
    return str(error.value)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"low": 0.0, "high": 1.0}, FloatDistribution(0.0, 1.0)),
        ({"low": 0.1, "high": 1.0, "scale": "log"}, FloatDistribution(0.1, 1.0, log=True)),
        ({"low": 0.9, "high": 0.99, "scale": "reverse_log"}, FloatDistribution(0.9, 0.99)),
        ({"low": 0.0, "high": 1.0, "step": 0.3}, FloatDistribution(0.0, 0.9, step=0.3)),
        ({"low": 1, "high": 8, "type": "int"}, IntDistribution(1, 8)),
        ({"low": 1, "high": 8, "type": "int", "scale": "log"}, IntDistribution(1, 8, log=True)),
        ({"low": 1, "high": 8, "type": "int", "step": 3}, IntDistribution(1, 7, step=3)),
        ({"choices": ["a", 2, True, None]}, CategoricalDistribution(("a", 2, True, None))),
    ],
)
def test_tables_mean_optuna_distributions(table, expected):
    assert space(x=table).distributions == {"x": expected}


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"low": 2.0, "high": 1.0}, ["low <= high", "low=2.0, high=1.0"]),
        ({"low": 0.0, "high": 1.0, "scale": "log"}, ["0 < low", "low=0.0"]),
        ({"low": 0.5, "high": 1.0, "scale": "reverse_log"}, ["high < 1", "high=1.0"]),
        ({"low": 0.1, "high": 1.0, "scale": "log", "step": 0.1}, ["step needs", "got scale='log'"]),
        ({"low": 0.0, "high": 1.0, "step": 2.0}, ["low + step <= high", "step=2.0"]),
        ({"low": 0, "high": 9, "type": "int", "scale": "log"}, ["low >= 1", "low=0"]),
        ({"low": 1, "high": 9, "type": "int", "scale": "log", "step": 2}, ["step = 1", "step=2"]),
        ({"low": 0, "high": 2**53 + 1, "type": "int"}, ["9007199254740992"]),
        ({"low": 0.0, "high": math.inf}, ["finite"]),
        ({"low": 0.0, "high": 1.0, "scale": "cubic"}, ["linear", "reverse_log", "cubic"]),
        ({"choices": []}, ["at least 1"]),
        ({"choices": ["a", "a"]}, ["differ", "'a'"]),
        ({"choices": ["a" * 513]}, ["512"]),
        ({"choices": [math.nan]}, ["finite", "nan"]),
        ({"low": 0.0, "high": 1.0, "prioritty": 1}, ["prioritty"]),
        ({"low": 0.0, "high": 1.0, "priority": 4}, ["1, 2 or 3"]),
        ({"low": 0.0, "high": 1.0, "when": {"y": 1}}, ["'y'", "before it"]),
        (3, ["a parameter is a table"]),
    ],
)
def test_errors_name_the_rule_and_the_value(table, words):
    text = message(x=table)
    for word in words:
        assert word in text


def test_names_that_databases_cannot_hold_are_refused():
    assert "string_pattern_mismatch" in message(**{"x\0": {"low": 0.0, "high": 1.0}})


def test_conditions_hold_for_the_values_before():
    conditional = space(
        optimizer={"choices": ["sgd", "momentum", "adam"]},
        momentum={"low": 0.0, "high": 0.9, "when": {"optimizer": ["momentum", "adam"]}},
        nesterov={"choices": [True, False], "when": {"momentum": 0.5}},
    )
    assert conditional.is_conditional
    assert not conditional["momentum"].is_active({"optimizer": "sgd"})
    assert conditional["momentum"].is_active({"optimizer": "adam"})
    assert not conditional["nesterov"].is_active({"optimizer": "adam"})
    assert conditional["nesterov"].is_active({"optimizer": "adam", "momentum": 0.5})


@given(
    st.integers(1, 40),
    st.sampled_from(
        [
            {"low": 1e-3, "high": 1.0, "scale": "log"},
            {"low": 0.9, "high": 0.999, "scale": "reverse_log"},
            {"low": 1, "high": 9, "type": "int"},
            {"low": 0.0, "high": 1.0, "step": 0.1},
            {"low": 0.9, "high": 0.99, "step": 0.01, "scale": "reverse_log"},
        ]
    ),
)
def test_levels_are_ascending_distinct_and_legal(count, table):
    axis = space(x=table)
    levels = axis["x"].levels(count)
    if axis["x"].scale_name == "linear":
        assert len(levels) == min(count, axis["x"].size or count)
    assert len(levels) <= count
    assert levels == sorted(set(levels))
    for level in levels:
        axis.check({"x": level})


def test_levels_lie_evenly_on_the_scale():
    assert space(x={"low": 1e-4, "high": 1.0, "scale": "log"})["x"].levels(4) == pytest.approx(
        [10**e for e in (-3.5, -2.5, -1.5, -0.5)]
    )
    assert space(x={"low": 0.9, "high": 0.99, "scale": "reverse_log"})["x"].levels(1) == pytest.approx(
        [1 - 10**-1.5]
    )


def test_levels_of_ordered_choices_stand_for_their_neighbours():
    sizes = [8, 16, 32, 64, 128, 256]
    assert space(x={"choices": sizes, "ordered": True})["x"].levels(3) == [16, 64, 256]
    assert space(x={"choices": sizes})["x"].levels(3) == sizes


def test_integers_on_a_reverse_log_scale_are_finest_at_the_upper_end():
    levels = space(x={"low": 1, "high": 64, "type": "int", "scale": "reverse_log"})["x"].levels(6)
    gaps = np.diff(levels)
    assert np.all(np.diff(gaps) < 0)


SIX = {f"x{i}": {"low": 0.0, "high": 1.0, "priority": 1 + i // 2} for i in range(6)}


@given(st.integers(1, 3000))
def test_fitted_levels_use_the_budget_and_favour_priorities(points):
    six = space(**SIX)
    counts = [len(levels) for levels in fit_levels(six, points).values()]
    assert math.prod(counts) <= points
    assert counts == sorted(counts, reverse=True)
    for i in range(6):  # no axis could have one more
        assert math.prod(counts) // counts[i] * (counts[i] + 1) > points


def test_a_grid_of_ten_to_the_twelve_is_refused_in_milliseconds():
    started = time.perf_counter()
    with pytest.raises(DefinitionError, match="1,000,000,000,000"):
        GridSampler({f"x{i}": range(100) for i in range(6)})
    wide = space(**{f"x{i}": {"choices": list(range(100))} for i in range(6)})
    with pytest.raises(DefinitionError, match="1,000,000,000,000 points; the budget is 60"):
        GridSettings().capacity(SamplerContext(wide, seed=0, trials=60))
    assert time.perf_counter() - started < 0.1


def test_levels_by_hand_must_be_complete_and_legal():
    two = space(x={"low": 0.0, "high": 1.0}, y={"choices": ["a", "b"]})
    context = SamplerContext(two, seed=0, trials=None)
    with pytest.raises(DefinitionError, match="y missing"):
        GridSettings(levels={"x": [0.5]}).build(context)
    with pytest.raises(DefinitionError, match=r"x must lie in \[0.0, 1.0\]; got 2.0"):
        GridSettings(levels={"x": [2.0], "y": ["a"]}).build(context)
    with pytest.raises(DefinitionError, match="y must be one of"):
        GridSettings(levels={"x": [0.5], "y": ["c"]}).build(context)
    with pytest.raises(DefinitionError, match=r"budget\.trials"):
        GridSettings().build(context)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"z": 1}, "'z' is not in the space; it has: x, n, c"),
        ({"x": 1.5}, r"x must lie in \[0.0, 1.0\]"),
        ({"x": True}, "x must be a number of type float; got True"),
        ({"n": 2.5}, "n must be a number of type int; got 2.5"),
        ({"n": 2}, r"n must lie in \[1, 7\] in steps of 3; got 2"),
        ({"c": 1}, r"c must be one of \[True, 'a'\]; got 1"),
    ],
)
def test_hand_chosen_points_are_checked(params, words):
    three = space(
        x={"low": 0.0, "high": 1.0},
        n={"low": 1, "high": 7, "step": 3, "type": "int"},
        c={"choices": [True, "a"]},
    )
    three.check({"x": 1, "n": 4, "c": "a"})
    with pytest.raises(DefinitionError, match=words):
        three.check(params)


def test_each_grid_point_is_visited_once_whatever_asks_in_parallel():
    """Eight processes' samplers take turns; each is its own object, as if restarted."""
    axes = {"x": [0.1, 0.2, 0.3], "n": [1, 2, 3, 4], "c": ["a", "b"]}
    study = optuna.create_study()
    order = np.random.default_rng(0).integers(8, size=24)
    samplers = [GridSampler(axes, seed=5) for _ in range(8)]
    distributions = {
        "x": FloatDistribution(0, 1),
        "n": IntDistribution(1, 4),
        "c": CategoricalDistribution(("a", "b")),
    }
    for worker in order:
        study.sampler = samplers[worker]
        study.ask(distributions)  # never told: all run at once
    points = [tuple(trial.params.values()) for trial in study.trials]
    assert len(set(points)) == len(points) == 24


def test_levels_for_a_million_trials_are_found_at_once() -> None:
    space = Space.model_validate({"x": {"low": 0, "high": 1}, "k": {"choices": ["a", "b", "c"]}})
    levels = fit_levels(space, 1_000_000)
    assert (len(levels["x"]), len(levels["k"])) == (333_333, 3)
