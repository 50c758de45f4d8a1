"""Landscapes against closed forms, SciPy, published values, and the contract of an objective."""

import doctest
import itertools
import json
import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import minimize, rosen, rosen_der

from objectives import functions
from objectives.epoch import Epoch, Objective, Seed
from objectives.functions import (
    RATE,
    Landscape,
    Optimum,
    ackley,
    branin,
    make_ackley,
    make_noisy_quadratic,
    make_rastrigin,
    make_rosenbrock,
    narrow_well,
    noisy_quadratic,
    plateau,
    rastrigin,
    rosenbrock,
    saddle,
)

REGISTERED = [branin, rosenbrock, rastrigin, ackley, saddle, plateau, noisy_quadratic, narrow_well]
FACTORIES = [make_rosenbrock, make_rastrigin, make_ackley, make_noisy_quadratic]
LANDSCAPES = REGISTERED + [make(d) for make in FACTORIES for d in (2, 8)]
SEED = Seed(study=3, trial=5)

every = pytest.mark.parametrize("landscape", LANDSCAPES, ids=lambda f: f"{f.name}-{f.dimension}")
registered = pytest.mark.parametrize("landscape", REGISTERED, ids=lambda f: f.name)


def bounds_of(landscape):
    return np.array(landscape.bounds).T


def sample(landscape, count, seed=0):
    """Points uniform in the legal range, shape (count, d)."""
    low, high = bounds_of(landscape)
    return np.random.default_rng(seed).uniform(low, high, size=(count, landscape.dimension))


def params_at(x, **more):
    return {f"x{i}": float(xi) for i, xi in enumerate(x)} | more


def observe(landscape, params=None, seed=SEED, resume=None):
    return list(landscape.evaluate(params or {}, seed=seed, resume=resume))


def values(epochs):
    return [epoch.value for epoch in epochs]


def hessian(landscape, x, step=1e-5):
    """By central differences of the gradient, shape (d, d)."""
    steps = step * np.eye(landscape.dimension)
    return (landscape.gradient(x + steps) - landscape.gradient(x - steps)) / (2 * step)


def descend(landscape, x, **options):
    """SciPy's result of descending from x inside the bounds."""
    return minimize(
        landscape.value,
        x,
        jac=landscape.gradient,
        method="L-BFGS-B",
        bounds=landscape.bounds,
        options=options,
    )


# The optimum


@every
def test_the_optimum_has_its_value(landscape):
    values_there = landscape.value(landscape.optimum.points)
    np.testing.assert_allclose(values_there, landscape.optimum.value, rtol=0, atol=1e-14)


@every
def test_the_gradient_vanishes_at_the_optimum(landscape):
    np.testing.assert_allclose(landscape.gradient(landscape.optimum.points), 0, atol=1e-13)


@every
def test_nothing_is_lower_on_a_dense_sample(landscape):
    assert landscape.value(sample(landscape, 200_000)).min() >= landscape.optimum.value


@every
def test_nothing_is_lower_close_to_the_optimum(landscape):
    rng = np.random.default_rng(1)
    for radius, x in itertools.product([1e-6, 1e-3, 0.1], np.array(landscape.optimum.points)):
        near = x + radius * rng.normal(size=(1000, landscape.dimension))
        assert landscape.value(near).min() >= landscape.optimum.value - 1e-14


@registered
def test_nothing_lower_is_found_by_descent_from_random_points(landscape):
    found = [descend(landscape, x).fun for x in sample(landscape, 40, seed=2)]
    assert min(found) >= landscape.optimum.value - 1e-12


@pytest.mark.parametrize(
    "landscape",
    [branin, saddle, pytest.param(rosenbrock, marks=pytest.mark.long), noisy_quadratic],
    ids=lambda f: f.name,
)
def test_descent_finds_all_minima_and_no_others_where_all_are_global(landscape):
    low, high = bounds_of(landscape)
    ends = np.array([descend(landscape, x, gtol=1e-8, ftol=0).x for x in sample(landscape, 60, seed=6)])
    inside = ends[np.all((low < ends) & (ends < high), axis=-1)]
    points = np.array(landscape.optimum.points)
    distances = np.linalg.norm(inside[:, np.newaxis] - points, axis=-1)
    assert distances.min(axis=-1).max() < 1e-5
    assert set(distances.argmin(axis=-1)) == set(range(len(points)))


@every
def test_the_optimum_is_on_no_coarse_grid(landscape):
    """Neither the centre nor a level of a grid of up to 12 levels a dimension may give the optimum away."""
    low, high = bounds_of(landscape)
    for levels, point in itertools.product(range(2, 13), landscape.optimum.points):
        off = np.abs(np.linspace(low, high, levels) - point) / (high - low)
        assert off.min(axis=0).max() > 2e-3


@every
def test_the_default_leaves_something_to_find(landscape):
    assert landscape.value(landscape.start) - landscape.optimum.value > 0.5


# The gradient


@every
def test_the_gradient_along_random_directions(landscape):
    rng = np.random.default_rng(4)
    x = sample(landscape, 500, seed=3)
    along = rng.normal(size=x.shape)
    along /= np.linalg.norm(along, axis=-1, keepdims=True)
    h = 1e-3 * (np.abs(x).max(axis=-1, keepdims=True) ** 0.25)

    def difference(h):
        return (landscape.value(x + h * along) - landscape.value(x - h * along)) / (2 * h[..., 0])

    expected = (4 * difference(h / 2) - difference(h)) / 3  # Richardson: the error is O(h⁴)
    actual = (landscape.gradient(x) * along).sum(axis=-1)
    scale = np.abs(landscape.gradient(x)).max()
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-8 * scale)


@every
def test_points_may_have_any_leading_shape(landscape):
    x = sample(landscape, 24).reshape(2, 3, 4, landscape.dimension)
    assert landscape.value(x).shape == (2, 3, 4)
    assert landscape.gradient(x).shape == x.shape
    for index in [(0, 0, 0), (1, 2, 3)]:
        np.testing.assert_array_equal(landscape.value(x[index]), landscape.value(x)[index])
        np.testing.assert_array_equal(landscape.gradient(x[index]), landscape.gradient(x)[index])


@pytest.mark.parametrize("shape", [(), (3,), (2, 1)])
def test_points_of_another_dimension_are_refused(shape):
    for of in (branin.value, branin.gradient):
        with pytest.raises(ValueError, match=r"branin needs points of shape \(\.\.\., 2\); got"):
            of(np.zeros(shape))


# Oracles


@pytest.mark.parametrize("dimension", [2, 3, 4, 10])
def test_rosenbrock_is_scipys(dimension):
    landscape = make_rosenbrock(dimension)
    x = sample(landscape, 50)
    np.testing.assert_allclose(landscape.value(x), rosen(x.T), rtol=1e-13)
    expected = np.array([rosen_der(xi) for xi in x])
    np.testing.assert_allclose(landscape.gradient(x), expected, rtol=1e-12, atol=1e-10)


def test_rosenbrock_has_its_second_minimum_from_four_dimensions_on():
    """Shang and Qiu (2006)."""
    near = {d: minimize(rosen, [-1] + [1] * (d - 1), jac=rosen_der, method="BFGS").x for d in (3, 4, 5)}
    assert near[3] == pytest.approx([1, 1, 1], abs=1e-4)
    for d in (4, 5):
        landscape = make_rosenbrock(d)
        assert np.linalg.norm(landscape.gradient(near[d])) < 1e-3
        assert np.linalg.eigvalsh(hessian(landscape, near[d])).min() > 0
        assert landscape.value(near[d]) > 3


def test_branin_table():
    """Every other column of two rows of https://github.com/trentmc/branin, branin.arff, to four decimals."""
    expected = [
        [308.1291, 135.3867, 69.1343, 27.2812, 5.1273, 19.3524, 12.1309, 10.9609],  # x1 = 0
        [272.4470, 111.6735, 54.8479, 19.8791, 2.0674, 18.0925, 10.1286, 5.6739],  # x1 = 15/14
    ]
    x0, x1 = np.meshgrid(np.linspace(-5, 10, 8), [0, 15 / 14])
    np.testing.assert_allclose(branin.value(np.stack([x0, x1], axis=-1)), expected, atol=5.1e-5)


@pytest.mark.parametrize("dimension", [1, 3, 6])
def test_rastrigin_is_the_textbooks(dimension):
    x = sample(make_rastrigin(dimension), 20)
    expected = [10 * dimension + sum(c**2 - 10 * math.cos(2 * math.pi * c) for c in point) for point in x]
    np.testing.assert_allclose(make_rastrigin(dimension).value(x), expected, rtol=1e-12)


def test_rastrigin_on_whole_and_half_coordinates():
    assert rastrigin.value([1, -2, 3]) == pytest.approx(1 + 4 + 9, rel=1e-14)
    assert rastrigin.value([0.5, 0.5, 0.5]) == pytest.approx(0.75 + 60, rel=1e-14)


@pytest.mark.parametrize("dimension", [1, 3, 6])
def test_ackley_is_the_textbooks(dimension):
    x = sample(make_ackley(dimension), 20)
    expected = [
        -20 * math.exp(-0.2 * math.sqrt(sum(c**2 for c in point) / dimension))
        - math.exp(sum(math.cos(2 * math.pi * c) for c in point) / dimension)
        + 20
        + math.e
        for point in x
    ]
    np.testing.assert_allclose(make_ackley(dimension).value(x), expected, rtol=1e-13)


def test_ackley_is_a_cone_at_its_optimum():
    """Slope 20 · 0.2 / √d in every direction: the gradient does not fade on the way to the optimum."""
    along = np.random.default_rng(0).normal(size=(10, 5))
    along /= np.linalg.norm(along, axis=-1, keepdims=True)
    np.testing.assert_allclose(np.linalg.norm(ackley.gradient(1e-9 * along), axis=-1), 4 / 5**0.5, rtol=1e-6)


# What the claims about optimizers rest on


def test_the_saddle_is_strict():
    np.testing.assert_array_equal(saddle.gradient([0, 0]), 0)
    np.testing.assert_allclose(hessian(saddle, np.zeros(2)), np.diag([1, -1]), atol=1e-9)
    for point in saddle.optimum.points:
        np.testing.assert_allclose(hessian(saddle, np.array(point)), np.diag([1, 2]), atol=1e-8)


def test_gradient_descent_is_caught_on_the_line_into_the_saddle_and_escapes_beside_it():
    x = np.array([[1.0, 0.0], [1.0, 1e-8], [1.0, -1e-8]])
    for _ in range(400):
        x = x - 0.1 * saddle.gradient(x)
    np.testing.assert_allclose(x, [[0, 0], [0, 1], [0, -1]], atol=1e-9)


def test_the_gradient_of_the_plateau_is_exponentially_small():
    x = sample(plateau, 100_000)
    r = np.linalg.norm(x, axis=-1)
    slope = np.linalg.norm(plateau.gradient(x), axis=-1)
    np.testing.assert_allclose(slope, r * np.exp(-(r**2) / 2), rtol=1e-10)
    assert slope[r > 5].max() < 2e-5
    assert np.linalg.norm(plateau.gradient(plateau.start)) < 2e-15
    below = 2 * np.pi * np.log(10) / 13.09**2  # the disk where exp(−r²/2) > 0.1
    assert (plateau.value(x) > 0.9).mean() == pytest.approx(1 - below, abs=0.003)


def test_gradient_descent_stands_still_on_the_plateau_and_arrives_from_its_edge():
    x = np.array([[6.0, 6.0], [1.5, 1.0]])
    for _ in range(500):
        x = x - 0.1 * plateau.gradient(x)
    np.testing.assert_allclose(x, [[6, 6], [0, 0]], atol=1e-12)


def test_the_narrow_well_is_hidden_from_the_bowl():
    x = sample(narrow_well, 400_000)
    assert (narrow_well.value(x) < 0).mean() == pytest.approx(0.0064, abs=0.0005)
    assert narrow_well.value([0, 0]) == pytest.approx(0, abs=1e-40)
    np.testing.assert_allclose(narrow_well.gradient([0, 0]), 0, atol=1e-39)
    assert np.linalg.eigvalsh(hessian(narrow_well, np.zeros(2))).min() > 0
    assert np.linalg.eigvalsh(hessian(narrow_well, np.array(narrow_well.optimum.points[0]))).min() > 0


def test_descent_is_misled_by_the_bowl():
    ends = [descend(narrow_well, x) for x in sample(narrow_well, 100, seed=5)]
    in_the_bowl = sum(math.dist(end.x, (0, 0)) < 1e-3 for end in ends)
    assert 90 <= in_the_bowl < 100


def test_the_curvatures_of_the_noisy_quadratic():
    np.testing.assert_allclose(
        hessian(noisy_quadratic, np.ones(4)), np.diag([1, 1 / 2, 1 / 3, 1 / 4]), atol=1e-9
    )


# Noise


def noise_of(trials, study=0, **params):
    seeds = [Seed(study, trial) for trial in range(trials)]
    exact = float(noisy_quadratic.value(noisy_quadratic.start))
    return np.array([observe(noisy_quadratic, params, seed)[-1].value - exact for seed in seeds])


def test_noise_is_gaussian_with_the_given_standard_deviation():
    noise = noise_of(2000, noise=0.3)
    assert stats.kstest(noise, "norm", args=(0, 0.3)).pvalue > 0.01
    chi_square = (noise**2).sum() / 0.3**2
    assert 0.005 < stats.chi2.cdf(chi_square, df=2000) < 0.995
    assert np.unique(noise).size == 2000


def test_noise_is_independent_between_studies_and_between_epochs():
    studies = np.array([noise_of(500, study) for study in range(4)])
    assert np.abs(np.corrcoef(studies) - np.eye(4)).max() < 0.15
    curve = [e.value for e in observe(noisy_quadratic, {"epochs": 2000})]
    late = np.array(curve[200:]) - noisy_quadratic.value(noisy_quadratic.start)  # the offset is past: 0.8²⁰⁰
    assert stats.kstest(late, "norm").pvalue > 0.01
    assert abs(np.corrcoef(late[:-1], late[1:])[0, 1]) < 0.1


def test_noise_is_the_first_normal_of_the_seed():
    exact = float(noisy_quadratic.value(noisy_quadratic.start))
    (epoch,) = observe(noisy_quadratic, {"noise": 2.0})
    assert epoch.value == exact + 2.0 * np.random.default_rng(SEED).standard_normal()
    assert epoch.metrics["regret"] == exact


def test_noise_is_the_same_for_the_same_study_and_trial():
    assert values(observe(noisy_quadratic)) == values(observe(noisy_quadratic))
    others = [Seed(3, 6), Seed(4, 5), Seed(5, 3)]
    assert len({observe(noisy_quadratic, seed=seed)[0].value for seed in [SEED, *others]}) == 4


def test_noise_does_not_depend_on_the_point():
    here, there = ({f"x{i}": x for i in range(4)} for x in (1.0, -2.0))
    shift = observe(noisy_quadratic, here)[0].value - observe(noisy_quadratic, there)[0].value
    assert shift == pytest.approx(noisy_quadratic.value([1] * 4) - noisy_quadratic.value([-2] * 4))


# The contract


@every
def test_is_an_objective(landscape):
    assert isinstance(landscape, Objective)
    assert landscape.direction == "minimize"
    names = [h.name for h in landscape.hyperparameters]
    assert names == [*(f"x{i}" for i in range(landscape.dimension)), "epochs", "noise"]
    for hyperparameter in landscape.hyperparameters:
        hyperparameter.check(hyperparameter.default)
        assert not hyperparameter.adjustable
    assert landscape.description
    assert landscape.reference


def test_registered_names():
    names = [landscape.name for landscape in REGISTERED]
    assert names[:4] == ["branin", "rosenbrock", "rastrigin", "ackley"]
    assert names[4:] == ["saddle", "plateau", "noisy-quadratic", "narrow-well"]


@every
def test_one_epoch_by_default(landscape):
    x = sample(landscape, 1)[0]
    (epoch,) = observe(landscape, params_at(x, noise=0.0))
    assert isinstance(epoch, Epoch)
    assert epoch.number == 1
    assert type(epoch.value) is float
    assert epoch.value == landscape.value(x)
    assert epoch.metrics["regret"] == landscape.value(x) - landscape.optimum.value


@registered
def test_the_default_parameters_are_the_start(landscape):
    (epoch,) = observe(landscape, {"noise": 0.0})
    assert epoch.value == landscape.value(landscape.start)


@registered
def test_a_learning_curve_decays_to_exactly_the_value(landscape):
    x = sample(landscape, 1)[0]
    epochs = observe(landscape, params_at(x, epochs=12, noise=0.0))
    f = landscape.value(x)
    assert [e.number for e in epochs] == list(range(1, 13))
    assert epochs[-1].value == f
    offsets = np.array(values(epochs)) - f
    assert np.all(np.diff(offsets) < 0)
    np.testing.assert_allclose(np.diff(offsets)[1:] / np.diff(offsets)[:-1], RATE, rtol=1e-6)
    begin = offsets[0] / (RATE - RATE**12) / (landscape.value(landscape.start) - landscape.optimum.value)
    assert 0.5 <= begin <= 1.5


def test_learning_curves_of_different_trials_cross():
    good, bad = params_at((0.5, 0.5), epochs=20), params_at((1.0, 1.0), epochs=20)
    pairs = [
        (values(observe(saddle, good, Seed(0, 2 * k))), values(observe(saddle, bad, Seed(0, 2 * k + 1))))
        for k in range(50)
    ]
    wrong_at_first = sum(g[0] > b[0] for g, b in pairs)
    assert 5 < wrong_at_first < 45
    assert len({(g[-1], b[-1]) for g, b in pairs}) == 1


def test_the_offset_differs_between_trials_and_repeats_for_the_same():
    first = [observe(branin, {"epochs": 5}, Seed(0, trial))[0].value for trial in range(1000)]
    again = [observe(branin, {"epochs": 5}, Seed(0, trial))[0].value for trial in range(1000)]
    assert first == again
    scale = (branin.value(branin.start) - branin.optimum.value) * (RATE - RATE**5)
    offsets = (np.array(first) - branin.value(branin.start)) / scale
    assert stats.kstest(offsets, "uniform", args=(0.5, 1)).pvalue > 0.01


@registered
@settings(deadline=None, max_examples=50)
@given(st.data())
def test_resuming_gives_the_rest_of_the_curve(landscape, data):
    n = data.draw(st.integers(1, 30))
    done = data.draw(st.integers(1, n))
    seed = Seed(data.draw(st.integers(0, 2**63)), data.draw(st.integers(0, 2**31)))
    params = {"epochs": n, "noise": 0.7}
    run = landscape.evaluate(params, seed=seed)
    checkpoints = [epoch.checkpoint() for epoch in itertools.islice(run, done)]
    rest = observe(landscape, params, seed, resume=checkpoints[-1])
    whole = observe(landscape, params, seed)
    assert [(e.number, e.value) for e in rest] == [(e.number, e.value) for e in whole[done:]]


def test_a_checkpoint_is_json():
    epoch = next(branin.evaluate({}, seed=SEED))
    assert json.loads(epoch.checkpoint()) == {"objective": "branin", "epochs_done": 1}


def test_a_checkpoint_continues_with_other_parameters_and_more_epochs():
    first = next(branin.evaluate({"epochs": 3}, seed=SEED))
    changed = params_at((1.0, 2.0), epochs=9)
    rest = observe(branin, changed, Seed(8, 8), resume=first.checkpoint())
    assert values(rest) == values(observe(branin, changed, Seed(8, 8)))[1:]


@pytest.mark.parametrize(
    ("checkpoint", "complaint"),
    [
        (b"\x80\x04.", "a checkpoint of branin is JSON"),
        (b"", "a checkpoint of branin is JSON"),
        (b"[]", "cannot resume"),
        (b'{"objective": "ackley", "epochs_done": 1}', "branin cannot resume .* 'ackley'"),
        (b'{"objective": "branin", "epochs_done": 5}', "cannot resume a run of 4 epochs"),
        (b'{"objective": "branin", "epochs_done": 0}', "cannot resume"),
        (b'{"objective": "branin", "epochs_done": 1.5}', "cannot resume"),
    ],
)
def test_a_foreign_checkpoint_is_refused(checkpoint, complaint):
    with pytest.raises(ValueError, match=complaint):
        branin.evaluate({"epochs": 4}, seed=SEED, resume=checkpoint)


@pytest.mark.parametrize(
    ("params", "complaint"),
    [
        ({"x2": 1.0}, "unknown hyperparameter 'x2'"),
        ({"epoch": 3}, "did you mean 'epochs'"),
        ({"x0": 10.5}, r"x0 must lie in \[-5, 10\]; got 10.5"),
        ({"x1": -0.1}, r"x1 must lie in \[0, 15\]"),
        ({"x0": math.nan}, "x0 must lie in"),
        ({"x0": math.inf}, "x0 must lie in"),
        ({"x0": "1"}, "x0 must be a number"),
        ({"epochs": 0}, "epochs must lie in"),
        ({"epochs": 2.0}, "epochs must be a whole number; got 2.0"),
        ({"epochs": True}, "epochs must be a whole number"),
        ({"noise": -1.0}, "noise must lie in"),
        ({"noise": math.nan}, "noise must lie in"),
    ],
)
def test_illegal_parameters_are_refused_before_the_first_epoch(params, complaint):
    with pytest.raises(ValueError, match=complaint):
        branin.evaluate(params, seed=SEED)


@registered
def test_the_ends_of_the_range_are_legal(landscape):
    for x in bounds_of(landscape):
        assert observe(landscape, params_at(x, noise=0.0))[0].value == landscape.value(x)


@pytest.mark.parametrize("last", [False, True])
def test_an_adjustment_is_refused_by_name(last):
    run = branin.evaluate({"epochs": 1 if last else 3}, seed=SEED)
    next(run)
    with pytest.raises(ValueError, match="branin cannot adjust 'learning_rate', 'x0': nothing is adjustable"):
        run.send({"learning_rate": 0.1, "x0": 2.0})


def test_sending_nothing_goes_on():
    run = branin.evaluate({"epochs": 3}, seed=SEED)
    next(run)
    assert run.send(None).number == 2
    assert run.send({}).number == 3


def test_closing_ends_the_run():
    run = branin.evaluate({"epochs": 3}, seed=SEED)
    next(run)
    run.close()
    assert list(run) == []


@registered
def test_landscapes_and_epochs_are_pickled_for_other_processes(landscape):
    copy = pickle.loads(pickle.dumps(landscape))
    assert copy == landscape
    epoch = pickle.loads(pickle.dumps(observe(copy)[0]))
    assert epoch.checkpoint() == observe(landscape)[0].checkpoint()


# The module


@pytest.mark.parametrize("make", FACTORIES)
def test_factories_set_dimension_and_name(make):
    landscape = make(7, name="mine")
    assert (landscape.name, landscape.dimension) == ("mine", 7)
    with pytest.raises(ValueError, match="dimension must be at least"):
        make(0)


def test_a_landscape_checks_itself():
    def flat(bounds, start, point):
        return Landscape("flat", "", "", np.sum, np.zeros_like, Optimum(0.0, (point,)), bounds, start)

    flat(((0, 1),), (0.5,), (0.0,))
    with pytest.raises(ValueError, match="has 1 bounds but a point"):
        flat(((0, 1),), (0.5, 0.5), (0.0,))
    with pytest.raises(ValueError, match=r"outside its bounds .*: \(2.0,\)"):
        flat(((0, 1),), (0.5,), (2.0,))


def test_the_export_list_is_sorted_and_true():
    upper, lower = ([n for n in functions.__all__ if n[0].isupper() is up] for up in (True, False))
    assert lower == sorted(lower)
    assert functions.__all__ == [*upper, *lower]
    public = {n for n, v in vars(functions).items() if isinstance(v, Landscape) or n.startswith("make_")}
    assert public == set(functions.__all__) - {"Landscape", "Optimum", "RATE"}


def test_the_examples_in_the_documentation_run():
    result = doctest.testmod(functions)
    assert result.attempted > 0
    assert result.failed == 0
