"""Scales: round trips, laws at the ends, and the distribution that each registered sampler draws on each of them."""

from __future__ import annotations

import math

import numpy as np
import optuna
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from scipy import stats

from tuner.errors import DefinitionError
from tuner.samplers import SAMPLERS, SamplerContext, build_sampler
from tuner.scales import LinearScale, LogScale, ReverseLogScale, from_unit, make_scale, to_unit
from tuner.space import Space

UNITS = st.floats(0, 1)
FINITE = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def scales(draw):
    name = draw(st.sampled_from(["linear", "log", "reverse_log"]))
    bounds = {
        "linear": st.floats(-1e300, 1e300),
        "log": st.floats(1e-300, 1e300),
        "reverse_log": st.floats(-1e6, 1 - 1e-9),
    }
    low, high = sorted((draw(bounds[name]), draw(bounds[name])))
    assume(high > low and (name != "reverse_log" or 1 - low > 1 - high))
    return make_scale(name, low, high)


@given(scales(), UNITS)
def test_values_stay_in_the_range(scale, unit):
    assert scale.low <= scale.from_unit(unit) <= scale.high


@given(scales())
def test_the_ends_are_mapped_to_zero_and_one(scale):
    assert (scale.to_unit(scale.low), scale.to_unit(scale.high)) == (0, 1)
    assert scale.from_unit(0) == pytest.approx(scale.low, rel=1e-9, abs=1e-9 * (scale.high - scale.low))
    assert scale.from_unit(1) == pytest.approx(scale.high, rel=1e-9, abs=1e-9 * (scale.high - scale.low))


@given(scales(), UNITS, UNITS)
def test_scales_are_monotone(scale, first, second):
    first, second = sorted((first, second))
    assert scale.from_unit(first) <= scale.from_unit(second)


@given(scales(), FINITE)
def test_values_outside_go_to_the_nearer_end(scale, value):
    if value < scale.low:
        assert scale.to_unit(value) == 0
    if value > scale.high:
        assert scale.to_unit(value) == 1


@given(scales(), UNITS)
def test_round_trip_from_the_value(scale, unit):
    value = scale.from_unit(unit)
    again = scale.from_unit(scale.to_unit(value))
    spacing = max(abs(value), abs(1 - value), scale.high - scale.low)
    assert again == pytest.approx(value, rel=1e-9, abs=1e-12 * spacing)


@given(st.floats(1e-6, 0.5), st.floats(0.9, 1 - 1e-6), UNITS)
def test_reverse_log_is_the_log_scale_of_the_complement_turned_round(low, high, unit):
    scale = ReverseLogScale(low, high)
    expected = 1 - (1 - low) ** (1 - unit) * (1 - high) ** unit
    assert scale.from_unit(unit) == pytest.approx(expected, rel=1e-9)


def test_reverse_log_gives_each_averaging_length_its_share():
    # β = 0.9 averages over 10 steps, 0.99 over 100, 0.999 over 1000: half of the scale each
    assert ReverseLogScale(0.9, 0.999).from_unit(0.5) == pytest.approx(0.99)
    assert LogScale(1e-4, 1.0).from_unit(0.25) == pytest.approx(1e-3)
    assert LinearScale(-1.0, 3.0).from_unit(0.25) == 0.0


@pytest.mark.parametrize("name", ["linear", "log", "reverse_log"])
def test_a_single_point_is_a_legal_range(name):
    scale = make_scale(name, 0.5, 0.5)
    assert scale.from_unit(0.3) == 0.5
    assert scale.to_unit(0.5) == 0.0


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("linear", 1.0, 0.0),
        ("linear", -math.inf, 0.0),
        ("linear", 0.0, math.nan),
        ("log", 0.0, 1.0),
        ("log", -1.0, 1.0),
        ("log", 2.0, 1.0),
        ("reverse_log", 0.5, 1.0),
        ("reverse_log", 0.9, 0.5),
        ("reverse_log", -math.inf, 0.5),
    ],
)
def test_illegal_ranges_are_refused_with_rule_and_values(name, low, high):
    with pytest.raises(DefinitionError, match=rf"{name} scale needs .*low={low}, high={high}"):
        make_scale(name, low, high)


@st.composite
def distributions(draw):
    kind = draw(st.sampled_from(["float", "log", "step", "int", "int log", "int step", "categorical"]))
    low, width = draw(st.integers(1, 500)), draw(st.integers(1, 300))
    step = draw(st.integers(1, 7))
    match kind:
        case "float":
            return FloatDistribution(-low, width)
        case "log":
            return FloatDistribution(low / 1e4, low / 1e4 + width)
        case "step":
            return FloatDistribution(low / 10, low / 10 + width * 0.25, step=0.25)
        case "int":
            return IntDistribution(-low, width)
        case "int log":
            return IntDistribution(low, low + width, log=True)
        case "int step":
            return IntDistribution(-low, -low + width * step, step=step)
    return CategoricalDistribution(tuple(range(width)))


@given(distributions(), UNITS)
def test_from_unit_gives_legal_values_and_to_unit_brings_them_back(distribution, unit):
    value = from_unit(distribution, unit)
    assert distribution._contains(distribution.to_internal_repr(value))
    again = from_unit(distribution, to_unit(distribution, value))
    assert again == pytest.approx(value, rel=1e-9, abs=1e-12)
    if not isinstance(distribution, FloatDistribution):
        assert again == value


@pytest.mark.parametrize(
    "distribution",
    [
        IntDistribution(1, 5),
        IntDistribution(1, 100, log=True),
        IntDistribution(0, 30, step=10),
        FloatDistribution(0.0, 1.0, step=0.25),
        CategoricalDistribution(("a", "b", "c")),
    ],
    ids=str,
)
def test_uniform_units_give_what_the_random_sampler_draws(distribution):
    """Two-sample χ² of 4,000 draws each, a cell for each value (ten for the long log range)."""
    units = np.random.default_rng(0).uniform(size=4000)
    ours = [distribution.to_internal_repr(from_unit(distribution, u)) for u in units]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    sampler, trial = study.sampler, study.ask()
    theirs = [
        distribution.to_internal_repr(sampler.sample_independent(study, trial, "x", distribution))
        for _ in range(4000)
    ]
    edges = np.unique(np.quantile(ours + theirs, np.linspace(0, 1, 11)))
    if len(set(ours)) <= 10:
        edges = np.append(np.unique(ours), np.inf)
    counts = [np.histogram(values, bins=edges)[0] for values in (ours, theirs)]
    assert stats.chi2_contingency(counts).pvalue > 0.01


# each scale under each sampler --------------------------------------------------------------------------------

DRAWS = 256
SPACE = Space.model_validate(
    {
        "linear": {"low": -3.0, "high": 5.0},
        "log": {"low": 1e-4, "high": 1.0, "scale": "log"},
        "reverse_log": {"low": 0.9, "high": 0.999, "scale": "reverse_log"},
    }
)
UNDIRECTED = {
    "tpe": {"startup_trials": DRAWS},
    "gp": {"startup_trials": DRAWS},
    "cma-es": {"startup_trials": DRAWS},
    "coarse-to-fine": {"inside": "random", "stages": [DRAWS]},
}
"""Settings under which a sampler that learns has nothing to go by: it must draw uniformly on each scale."""


@pytest.fixture(scope="module")
def draws():
    """Unit places of `DRAWS` suggestions, by sampler and parameter."""
    found = {}
    for name, settings in SAMPLERS.items():
        if name == "gp":  # needs torch; its startup is the random sampler above
            continue
        chosen = settings.model_validate({"name": name, **UNDIRECTED.get(name, {})})
        sampler = build_sampler(chosen, SamplerContext(SPACE, seed=1, trials=DRAWS))
        study = optuna.create_study(sampler=sampler)
        for _ in range(DRAWS):
            trial = study.ask(SPACE.distributions)
            study.tell(trial, 0.0)
        found[name] = {
            p: [make_scale(p, SPACE[p].low, SPACE[p].high).to_unit(t.params[p]) for t in study.trials]
            for p in SPACE
        }
    return found


@pytest.mark.parametrize("parameter", list(SPACE))
@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"gp", "population-based"}))  # the latter copies
def test_each_sampler_draws_each_scale_uniformly(name, parameter, draws):
    """Kolmogorov–Smirnov against the uniform distribution; a grid's level i of m stands for the cell [i, i+1)/m."""
    units = np.array(draws[name][parameter])
    if name == "grid":
        m = len(set(units))
        assert m >= 4
        np.testing.assert_allclose(sorted(set(units)), (np.arange(m) + 0.5) / m, atol=1e-9)
        return
    assert stats.kstest(units, "uniform").pvalue > 0.01
