"""Descents on landscapes: against the optimizers written out a start at a time, closed forms, what ends them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize

from objectives.datasets import random_stream
from objectives.descents import STEPS, TERRAINS, descents
from objectives.epoch import Seed
from objectives.functions import make_saddle
from objectives.network.checkpoint import CheckpointError

SEED = Seed(study=4)


def last(seed=SEED, **params):
    *_, epoch = descents.evaluate(params, seed=seed)
    return epoch


def starts(landscape, count):
    return TERRAINS[landscape].starts(count, random_stream(SEED.study, 0))


def sgd(g, state, t):
    return g


def momentum(g, state, t):
    state["v"] = 0.9 * state.get("v", 0) + 0.1 * g
    return state["v"]


def rmsprop(g, state, t):
    state["s"] = 0.9 * state.get("s", 0) + 0.1 * g**2
    return g / (np.sqrt(state["s"]) + 1e-8)


def adam(g, state, t):
    state["m"] = 0.9 * state.get("m", 0) + 0.1 * g
    state["v"] = 0.999 * state.get("v", 0) + 0.001 * g**2
    return (state["m"] / (1 - 0.9**t)) / (np.sqrt(state["v"] / (1 - 0.999**t)) + 1e-8)


@pytest.mark.parametrize("landscape", TERRAINS)
@pytest.mark.parametrize(
    ("optimizer", "update", "rate"),
    [("sgd", sgd, 0.5), ("momentum", momentum, 0.5), ("rmsprop", rmsprop, 0.02), ("adam", adam, 0.1)],
)
def test_steps_are_those_of_the_textbook_a_start_at_a_time(landscape, optimizer, update, rate):
    terrain, limit, taken = TERRAINS[landscape], 2 * STEPS, []
    for start in starts(landscape, 4):
        x, state, t = start, {}, 0
        with np.errstate(all="ignore"):
            while t < limit and not terrain.regret(x) <= terrain.level:
                t += 1
                x = x - rate * update(terrain.landscape.gradient(x), state, t)
            taken.append(t if terrain.regret(x) <= terrain.level else limit)
    beta_2 = {"beta_2": 0.9} if optimizer == "rmsprop" else {}
    found = last(
        landscape=landscape,
        optimizer=optimizer,
        learning_rate=rate,
        starts=4,
        epochs=2,
        momentum=0.9,
        **beta_2,
    )
    assert found.value == np.mean(taken)
    assert found.metrics["reached"] == np.mean(np.array(taken) < limit)


def test_beside_the_saddle_gradient_descent_grows_by_the_same_factor_each_step():
    """|x1| is multiplied by 1 + αc while it is small: so the time until 0.01 is a ratio of logarithms."""
    x = np.array([[1.0, 1e-6]])
    landscape, rate = make_saddle(0.25), 0.2
    for _ in range(100):
        x = x - rate * landscape.gradient(x)
    assert x[0, 1] == pytest.approx(1e-6 * 1.05**100, rel=1e-6)
    assert math.log(x[0, 1] / 1e-6) / math.log(1.05) == pytest.approx(100, rel=1e-6)


def test_a_flat_saddle_has_the_gradient_and_the_optimum_that_it_says():
    landscape = make_saddle(0.01, "flat")
    for x in np.random.default_rng(0).normal(size=(5, 2)):
        numeric = optimize.approx_fprime(x, landscape.value, 1e-7)
        assert landscape.gradient(x) == pytest.approx(numeric, abs=1e-6)
        found = optimize.minimize(landscape.value, x, jac=landscape.gradient, tol=1e-12)
        assert found.fun == pytest.approx(landscape.optimum.value, abs=1e-9)
    with pytest.raises(ValueError, match="steepness must be positive; got 0"):
        make_saddle(0.0)


@pytest.mark.parametrize("landscape", TERRAINS)
def test_starts_lie_where_they_should_and_above_the_level(landscape):
    terrain, points = TERRAINS[landscape], starts(landscape, 200)
    drawn = points
    if terrain.is_polar:
        drawn = np.stack(
            [np.hypot(*points.T), np.arctan2(points[:, 1], points[:, 0]) / (2 * np.pi) % 1], axis=-1
        )
    assert (drawn >= terrain.low).all()
    assert (drawn <= terrain.high).all()
    assert np.ptp(drawn, axis=0) == pytest.approx(np.subtract(terrain.high, terrain.low), rel=0.1)
    assert np.mean(terrain.regret(points) > terrain.level) > 0.99


def test_the_value_only_falls_and_what_is_not_through_counts_in_full():
    epochs = list(descents.evaluate({"landscape": "ravine", "optimizer": "adam"}, seed=SEED))
    values = [epoch.value for epoch in epochs]
    assert values == sorted(values, reverse=True)
    assert values[0] > values[-1]
    assert last(learning_rate=1e-8).value == 1000  # nobody moves
    assert last(learning_rate=1e-8).metrics["reached"] == 0


def test_what_overflows_is_never_through():
    found = last(landscape="ravine", learning_rate=100.0, epochs=2)
    assert (found.value, found.metrics["reached"], found.metrics["regret"]) == (200, 0, math.inf)


def test_who_arrives_with_the_last_step_is_through():
    params = {"landscape": "saddle", "optimizer": "sgd", "starts": 1}
    rates = np.geomspace(0.01, 0.2, 400)
    found = [last(**params, learning_rate=float(rate), epochs=3) for rate in rates]
    exact = [float(rate) for rate, epoch in zip(rates, found, strict=True) if epoch.value == STEPS]
    assert exact
    for rate in exact:
        epoch = last(**params, learning_rate=rate, epochs=1)
        assert (epoch.value, epoch.metrics["reached"]) == (STEPS, 1.0)


def test_it_ends_once_all_are_through():
    assert last(landscape="saddle", optimizer="adam", learning_rate=0.1).number == 1


def test_test_values_are_of_other_starts_and_every_rate_is_tried_from_the_same():
    params = {"landscape": "plateau", "learning_rate": 1.0}
    tests = [descents.test_metrics(params, seed=Seed(4, 10**9 + k))["test_steps"] for k in range(3)]
    assert len({*tests, last(**params).value}) == 4
    assert last(Seed(4, 0), **params).value == last(Seed(4, 7), **params).value
    assert last(Seed(5, 0), **params).value != last(Seed(4, 0), **params).value


def test_a_checkpoint_of_another_descent_is_refused():
    epochs = descents.evaluate({"learning_rate": 1e-3}, seed=SEED)
    checkpoint = next(epochs).checkpoint()
    for other in ({"optimizer": "adam"}, {"landscape": "ravine"}, {"starts": 3}):
        with pytest.raises(CheckpointError, match="of another descent"):
            next(descents.evaluate(other, seed=SEED, resume=checkpoint))
    with pytest.raises(ValueError, match="cannot be adjusted; got learning_rate"):
        epochs.send({"learning_rate": 1.0})
