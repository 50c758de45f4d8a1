"""The Gaussian process against scikit-learn's, closed forms and finite differences."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import integrate, stats
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from tuner.samplers.gaussian_process import (
    JITTER,
    MEAN_PRECISION,
    GaussianProcess,
    Hyperparameters,
    Prior,
    _axis_distances,
    _negative_log_posterior,
    fit,
    log_expected_improvement,
    matern52,
    warp,
)

AXIS = np.arange(3)
LENGTHS = np.array([0.3, 1.0, 2.5])


def points(n, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.uniform(size=(n, 3))
    return X, np.sin(6 * X[:, 0]) + X[:, 1] ** 2 + 0.1 * rng.normal(size=n)


def test_matern_is_scikit_learns():
    X, _ = points(20)
    r = np.linalg.norm((X[:, None] - X[None]) / LENGTHS, axis=-1)
    np.testing.assert_allclose(matern52(r**2), Matern(LENGTHS, nu=2.5)(X), rtol=1e-12)


def test_the_posterior_is_scikit_learns():
    """With the same amplitude, length scales and noise; the constant mean's prior adds to the kernel's constant."""
    X, y = points(40)
    Z, _ = points(15, seed=1)
    noise = 0.05
    ours = GaussianProcess.condition(X, AXIS, y, Hyperparameters(LENGTHS, noise))
    kernel = Matern(LENGTHS, nu=2.5) + WhiteKernel(noise + JITTER)
    theirs = GaussianProcessRegressor(kernel, optimizer=None, alpha=0.0).fit(X, y - ours.mean)
    mean, deviation = theirs.predict(Z, return_std=True)
    got_mean, got_deviation = ours.predict(Z)
    np.testing.assert_allclose(got_mean, mean + ours.mean, rtol=1e-8)
    np.testing.assert_allclose(got_deviation**2 / ours.amplitude, deviation**2 - noise - JITTER, rtol=1e-6)
    np.testing.assert_allclose(ours.predict_mean(Z), got_mean)


def test_the_mean_is_the_posterior_mean_of_a_constant():
    """As if 1/MEAN_PRECISION were added to the kernel: then the mean function's posterior is `mean`."""
    X, y = points(30)
    ours = GaussianProcess.condition(X, AXIS, y, Hyperparameters(LENGTHS, 0.1))
    kernel = ConstantKernel(1 / MEAN_PRECISION) + Matern(LENGTHS, nu=2.5) + WhiteKernel(0.1 + JITTER)
    theirs = GaussianProcessRegressor(kernel, optimizer=None, alpha=0.0).fit(X, y)
    Z, _ = points(10, seed=2)
    np.testing.assert_allclose(ours.predict_mean(Z), theirs.predict(Z), rtol=1e-7)


@pytest.mark.parametrize("seed", range(4))
def test_the_gradient_of_the_posterior_along_a_random_direction(seed):
    rng = np.random.default_rng(seed)
    X, y = points(25, seed)
    distances = _axis_distances(X, AXIS, 3)
    theta, along = rng.normal(size=(2, 4)) * [0.5, 0.5, 0.5, 2.0]

    def f(t):
        return _negative_log_posterior(theta + t * along, distances, y, np.zeros(4), np.ones(4))[0]

    gradient = _negative_log_posterior(theta, distances, y, np.zeros(4), np.ones(4))[1]
    h = 1e-5
    assert gradient @ along == pytest.approx((f(h) - f(-h)) / (2 * h), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("below", [0.0, 0.3, 3.0, 300.0])
def test_the_gradient_of_the_improvement(below):
    """Central differences, near the best value and far below it; two features share an axis."""
    X, y = points(40)
    axis = np.array([0, 1, 1])
    model = GaussianProcess.condition(X, axis, y, Hyperparameters(LENGTHS[:2], 0.01))
    best = float(model.predict_mean(X).min()) - below
    for point in points(5, seed=3)[0]:
        value, gradient = model.improvement_gradient(point, best)
        ends = np.concatenate([point + 1e-5 * np.eye(3), point - 1e-5 * np.eye(3), point[None]])
        found = log_expected_improvement(*model.predict(ends), best)
        assert value == pytest.approx(found[6], rel=1e-9)
        np.testing.assert_allclose(
            gradient, (found[:3] - found[3:6]) / 2e-5, rtol=1e-5, atol=1e-5 * abs(found[6])
        )


def test_fitting_finds_the_axes_that_matter():
    rng = np.random.default_rng(0)
    X = rng.uniform(size=(60, 4))
    y = np.sin(8 * X[:, 0]) + 0.01 * rng.normal(size=60)
    found = fit(X, np.arange(4), warp(y))
    assert 4 * found.lengths[0] < found.lengths[1:].min()
    assert found.noise < 0.05


def test_fitting_knows_noise_from_signal():
    rng = np.random.default_rng(0)
    X = rng.uniform(size=(80, 2))
    y = X[:, 0] + 0.5 * rng.normal(size=80)
    assert fit(X, np.arange(2), y).noise > 0.1
    assert fit(X, np.arange(2), X[:, 0]).noise < 0.01


def test_without_data_to_speak_of_the_prior_decides():
    X = np.array([[0.1, 0.2], [0.8, 0.9]])
    found = fit(X, np.arange(2), np.array([-1.0, 1.0]), Prior(length=-0.5, length_spread=0.01))
    np.testing.assert_allclose(found.lengths, np.exp(-0.5) * math.sqrt(2), rtol=0.02)


def test_one_hot_features_of_an_axis_share_its_length():
    """Two categorical axes, the second of no effect: distances are Hamming, one length scale each."""
    rng = np.random.default_rng(0)
    codes = rng.integers(3, size=(50, 2))
    X = np.concatenate([np.eye(3)[codes[:, 0]], np.eye(3)[codes[:, 1]]], axis=1) * math.sqrt(0.5)
    axis = np.array([0, 0, 0, 1, 1, 1])
    distances = _axis_distances(X, axis, 2).reshape(50, 50, 2)
    np.testing.assert_allclose(distances, codes[:, None] != codes[None], atol=1e-12)
    found = fit(X, axis, warp(codes[:, 0] + 0.01 * rng.normal(size=50)))
    assert found.lengths[0] < found.lengths[1]


def test_pending_points_keep_the_mean_and_shrink_the_deviation():
    X, y = points(20)
    model = GaussianProcess.condition(X, AXIS, y, Hyperparameters(LENGTHS, 1e-4))
    Z, _ = points(3, seed=5)
    pending = model.with_pending(Z)
    np.testing.assert_allclose(pending.predict(Z)[0], model.predict(Z)[0], rtol=1e-2, atol=1e-3)
    assert np.all(pending.predict(Z)[1] < 0.2 * model.predict(Z)[1])
    assert model.with_pending(np.empty((0, 3))) is model


@pytest.mark.parametrize("mean", [-3.0, -0.5, 0.0, 0.7, 2.0, 4.0])
@pytest.mark.parametrize("deviation", [0.3, 1.0, 2.0])
def test_expected_improvement_is_the_integral(mean, deviation):
    density = stats.norm(mean, deviation).pdf
    expected, _ = integrate.quad(
        lambda f: (0.2 - f) * density(f), min(mean, 0.2) - 12 * deviation, 0.2, epsabs=0
    )
    got = log_expected_improvement(np.array([mean]), np.array([deviation]), 0.2)[0]
    assert got == pytest.approx(math.log(expected), abs=1e-6)


def test_log_expected_improvement_far_in_the_tail():
    """log h(z) → −z²/2 − log √2π − 2 log |z| + log(1 − 3/z²), and it stays monotone where h itself underflows."""
    z = -np.logspace(1.5, 8, 60)
    got = log_expected_improvement(-z, np.ones_like(z), 0.0)
    near = z > -1e3
    asymptote = -(z**2) / 2 - math.log(math.sqrt(2 * math.pi)) - 2 * np.log(-z) + np.log1p(-3 / z**2)
    np.testing.assert_allclose(got[near], asymptote[near], atol=1e-3)
    assert np.all(np.diff(got) < 0)


@given(arrays(float, st.integers(2, 40), elements=st.floats(-1e6, 1e6) | st.just(np.inf)))
def test_warping_keeps_order_and_tames_the_bad_half(values):
    warped = warp(values)
    assert np.isfinite(warped).all()
    order = np.argsort(values, kind="stable")
    assert np.all(np.diff(warped[order]) >= -1e-9)
    assert abs(warped.mean()) < 1e-6
    for first, second in pairwise(order):
        if values[first] == values[second]:
            assert warped[first] == pytest.approx(warped[second], abs=1e-9)


def test_warping_leaves_the_better_half_as_it_is():
    values = np.array([1.0, 2.0, 4.0, 5.0, 1e9, np.inf])
    warped = warp(values)
    assert (warped[1] - warped[0]) / (warped[2] - warped[1]) == pytest.approx(0.5)
    assert warped.max() < 3
