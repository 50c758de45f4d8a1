"""Several objectives seen as one: what the function promises, and that coarse-to-fine finds fronts with it."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna._hypervolume import compute_hypervolume
from optuna.samplers import RandomSampler, TPESampler
from scipy.stats import kstest, rankdata

from tuner.pareto import on_front
from tuner.samplers import BOXES, CoarseToFineSampler
from tuner.samplers.scalarization import RHO, draw_weights, scalarize

NUMBERS = st.integers(-3, 3).map(float) | st.sampled_from([math.inf, -math.inf]) | st.floats(-1e300, 1e300)


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Values with ties, and positive weights."""
    k = draw(st.integers(2, 4))
    rows = draw(st.lists(st.lists(NUMBERS, min_size=k, max_size=k), min_size=1, max_size=15))
    return np.array(rows), draw_weights(draw(st.integers(0, 2**32 - 1)), draw(st.integers(0, 1000)), k)


def test_it_is_the_papers_function_of_ranks():
    values, weights = np.array([[1.0, 40.0], [3.0, 10.0], [2.0, 10.0]]), np.array([0.25, 0.75])
    y = np.array([[0.0, 1.0], [1.0, 0.25], [0.5, 0.25]])  # the second and third share ranks 0 and 1 of 2
    expected = [max(0.25 * a, 0.75 * b) + RHO * (0.25 * a + 0.75 * b) for a, b in y]
    np.testing.assert_allclose(scalarize(values, weights), expected, rtol=1e-12)


@given(cases())
def test_who_dominates_has_the_smaller_value_and_the_least_is_on_the_front(case):
    values, weights = case
    s = scalarize(values, weights)
    for i, a in enumerate(values):
        for j, b in enumerate(values):
            if np.all(a <= b) and np.any(a < b):
                assert s[i] < s[j]
    assert on_front(values.tolist(), ["minimize"] * values.shape[1])[int(np.argmin(s))]


@given(cases())
def test_ranks_are_scipys_and_units_do_not_matter(case):
    values, weights = case
    ranks = np.stack([rankdata(column) - 1 for column in values.T], axis=1) / max(1, len(values) - 1)
    expected = (ranks * weights).max(axis=1) + RHO * (ranks * weights).sum(axis=1)
    np.testing.assert_allclose(scalarize(values, weights), expected, rtol=1e-12)
    others = np.argsort(np.argsort(np.unique(values)))  # any values in the same order
    np.testing.assert_array_equal(
        scalarize(others[np.searchsorted(np.unique(values), values)] ** 3.0, weights),
        scalarize(values, weights),
    )


def test_weights_are_uniform_on_the_simplex_and_repeatable():
    drawn = np.array([draw_weights(3, number, 3) for number in range(2000)])
    np.testing.assert_allclose(drawn.sum(axis=1), 1.0)
    for column in drawn.T:  # each weight of three is Beta(1, 2)
        assert kstest(column, "beta", args=(1, 2)).pvalue > 0.01
    np.testing.assert_array_equal(drawn[7], draw_weights(3, 7, 3))
    assert not np.array_equal(drawn[7], draw_weights(4, 7, 3))


def zdt1(x: list[float]) -> tuple[float, float]:
    """Convex front at x₂ = … = 0 (Zitzler, Deb, Thiele 2000)."""
    g = 1 + 9 * float(np.mean(x[1:]))
    return x[0], g * (1 - math.sqrt(x[0] / g))


def zdt2(x: list[float]) -> tuple[float, float]:
    """The same with a concave front, of which weighted sums find the ends alone."""
    g = 1 + 9 * float(np.mean(x[1:]))
    return x[0], g * (1 - (x[0] / g) ** 2)


def hypervolume(
    function: Callable[[list[float]], tuple[float, float]], sampler: optuna.samplers.BaseSampler
) -> float:
    """What 50 trials dominate of the square up to (11, 11)."""
    study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler)
    study.optimize(lambda t: function([t.suggest_float(f"x{i}", 0, 1) for i in range(4)]), n_trials=50)
    assert BOXES not in study.user_attrs  # they would be of one trial's weights
    front = np.array([trial.values for trial in study.best_trials])
    return float(compute_hypervolume(front, np.array([11.0, 11.0])))


@pytest.mark.parametrize("function", [zdt1, zdt2])
def test_coarse_to_fine_finds_the_front(function):
    """What can be dominated at all is 120.67 and 120.33; in the median chance finds 109 and 98, TPE 114 and 103."""
    found = [hypervolume(function, CoarseToFineSampler(seed=seed)) for seed in range(3)]
    for other in (RandomSampler, TPESampler):
        assert min(found) > max(hypervolume(function, other(seed=seed)) for seed in range(3))
    assert np.median(found) > 119


def test_without_a_seed_each_trial_has_a_point_of_its_own():
    for inside in ("local-gp", "tpe", RandomSampler(0)):
        study = optuna.create_study(
            directions=["minimize", "maximize"], sampler=CoarseToFineSampler(inside=inside)
        )
        study.optimize(lambda t: (t.suggest_float("x", 0, 1), t.suggest_float("y", 0, 1)), n_trials=20)
        assert len({tuple(trial.params.values()) for trial in study.trials}) == 20
