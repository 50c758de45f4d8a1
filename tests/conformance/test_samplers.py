"""What every sampler must do: Optuna's own suite, and what the registry promises of each. A new one needs no line."""

from __future__ import annotations

import warnings

import numpy as np
import optuna
import pytest
from optuna.samplers import (
    CmaEsSampler,
    NSGAIISampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
    SingleOnlySamplerTestCase,
)
from scipy.stats import qmc

from tuner.definition import StudyDefinition
from tuner.errors import DefinitionError
from tuner.samplers import (
    SAMPLERS,
    CoarseToFineSampler,
    GridSampler,
    PopulationSampler,
    SamplerContext,
    SobolSampler,
    ViewSampler,
    able,
    build_sampler,
)
from tuner.samplers.axes import Axes
from tuner.scales import to_unit
from tuner.space import Space

# Optuna's suite ----------------------------------------------------------------------------------------------


class TestGrid(BasicSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self):
        return lambda: GridSampler({})


class TestSobol(BasicSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self):
        return lambda: SobolSampler(["x", "y"], seed=0)


class TestPopulation(BasicSamplerTestCase, SingleOnlySamplerTestCase):
    @pytest.fixture
    def sampler(self):
        return lambda: PopulationSampler(seed=0, population=3)


class TestCoarseToFine(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self):
        return lambda: CoarseToFineSampler(seed=0)


class TestCoarseToFineAtRandom(BasicSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self):
        return lambda: CoarseToFineSampler(inside="random", seed=0)


class TestCoarseToFineSobol(BasicSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self):
        return lambda: CoarseToFineSampler(inside="sobol", seed=0)


class TestCoarseToFineInStages(BasicSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self):
        return lambda: CoarseToFineSampler(stages=(4, 3), seed=0)


class TestCoarseToFineInStagesOverTPE(
    BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase
):
    @pytest.fixture
    def sampler(self):
        inside = TPESampler(n_startup_trials=0, multivariate=True)
        return lambda: CoarseToFineSampler(inside=inside, stages=(4, 3), seed=0)


class TestCoarseToFineOverTPE(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self):
        return lambda: CoarseToFineSampler(inside=TPESampler(n_startup_trials=0, multivariate=True), seed=0)


WARPED = {"x", "y", "z"}
"""The parameters of Optuna's suite, all seen through the reverse-log lens (where their range allows)."""


def viewed(inner) -> ViewSampler:
    return ViewSampler(inner, reverse_log=WARPED, seed=3)


class TestRandomViewed(BasicSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self):
        return lambda: viewed(RandomSampler())


class TestTPEViewed(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self):
        return lambda: viewed(TPESampler(n_startup_trials=0, multivariate=True))


class TestTPEUnivariateViewed(BasicSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self):
        return lambda: viewed(TPESampler(n_startup_trials=0, multivariate=False))


class TestCmaEsViewed(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    @pytest.fixture
    def sampler(self):
        return lambda: viewed(CmaEsSampler(n_startup_trials=0, warn_independent_sampling=False))


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")  # Optuna marks it so
class TestQMCViewed(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self):
        return lambda: viewed(
            QMCSampler(warn_independent_sampling=False, warn_asynchronous_seeding=False, seed=0)
        )


class TestNSGAIIViewed(BasicSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self):
        return lambda: viewed(NSGAIISampler(population_size=4))


class TestCoarseToFineViewed(BasicSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self):
        return lambda: viewed(CoarseToFineSampler(seed=0, stages=(4, 3)))


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")  # Optuna marks it so
@pytest.mark.slow
class TestGPViewed(BasicSamplerTestCase, RelativeSamplerTestCase):
    @pytest.fixture
    def sampler(self):
        pytest.importorskip("torch")
        return lambda: viewed(optuna.samplers.GPSampler(n_startup_trials=0, deterministic_objective=True))


# the registry -------------------------------------------------------------------------------------------------

SPACE = Space.model_validate(
    {
        "rate": {"low": 1e-4, "high": 1.0, "scale": "log", "priority": 1},
        "decay": {"low": 0.9, "high": 0.999, "scale": "reverse_log"},
        "units": {"low": 4, "high": 64, "type": "int", "scale": "log"},
        "layers": {"low": 1, "high": 4, "type": "int"},
        "activation": {"choices": ["relu", "tanh"]},
    }
)
QUICK = {
    "tpe": {"startup_trials": 4},
    "gp": {"startup_trials": 4},
    "population-based": {"population": 4},
}
"""Settings under which a sampler begins to learn early."""


def asks(name):
    """How many trials show it: seconds each for the GP of Optuna."""
    return 7 if name == "gp" else 24


def slow_if_gp(name):
    return pytest.param(name, marks=pytest.mark.slow) if name == "gp" else name


def settings(name, **options):
    if name == "gp":
        pytest.importorskip("torch")
    return SAMPLERS[name].model_validate({"name": name, **QUICK.get(name, {}), **options})


def fresh(name, *, seed=0, trials=24, space=SPACE, **options):
    return build_sampler(settings(name, **options), SamplerContext(space, seed, trials))


def loss(params):
    """Smooth, with its optimum inside the range on every axis."""
    return (
        (np.log10(params["rate"]) + 2) ** 2
        + (np.log10(1 - params["decay"]) + 2) ** 2
        + (np.log2(params["units"]) - 4) ** 2 / 4
        + (params["activation"] == "tanh") / 2
        + params["layers"] / 10
    )


def run(study, trials):
    for _ in range(trials):
        trial = study.ask(SPACE.distributions)
        study.tell(trial, loss(trial.params))
    return [trial.params for trial in study.trials]


@pytest.fixture(params=sorted(SAMPLERS))
def name(request):
    return request.param


def test_suggestions_are_legal_and_on_the_database_side_of_the_view(name):
    study = optuna.create_study(sampler=fresh(name))
    for params in run(study, asks(name)):
        SPACE.check(params)
    assert all(trial.distributions == SPACE.distributions for trial in study.trials)


def test_a_restart_between_any_two_trials_changes_nothing(name):
    """Once with one process, once with all objects made anew before each trial, on the same storage."""
    whole = run(optuna.create_study(sampler=fresh(name)), asks(name))
    storage = optuna.storages.InMemoryStorage()
    optuna.create_study(storage=storage, study_name="again")
    for _ in range(asks(name)):
        study = optuna.load_study(storage=storage, study_name="again", sampler=fresh(name))
        run(study, 1)
    assert [trial.params for trial in study.trials] == whole


def test_another_seed_gives_other_suggestions(name):
    first, second = (run(optuna.create_study(sampler=fresh(name, seed=seed)), 6) for seed in (0, 1))
    assert first != second


def test_reverse_log_works_under_every_sampler(name):
    """The sampler must see log-uniform 1 − β: half of what is drawn without direction lies on either side of 0.99."""
    undirected = {
        "tpe": {"startup_trials": 128},
        "gp": {"startup_trials": 128},
        "cma-es": {"startup_trials": 128},
        "coarse-to-fine": {"inside": "random", "stages": [128]},
        "population-based": {"population": 128},
    }
    space = Space.model_validate({"decay": {"low": 0.9, "high": 0.999, "scale": "reverse_log"}})
    sampler = fresh(name, trials=128, space=space, **undirected.get(name, {}))
    study = optuna.create_study(sampler=sampler)
    for _ in range(128):
        trial = study.ask(space.distributions)
        study.tell(trial, 0.0)
    below = sum(trial.params["decay"] < 0.99 for trial in study.trials)
    assert 46 <= below <= 82  # ±3.2 standard deviations of the binomial
    assert study.trials[0].distributions == {"decay": optuna.distributions.FloatDistribution(0.9, 0.999)}


@pytest.mark.parametrize("name", ["tpe", "cma-es", "coarse-to-fine"])
def test_samplers_that_learn_find_the_best_decay_on_the_reverse_log_scale(name):
    """The optimum 1 − β = 10⁻⁴ is a thousandth of the linear range; random search misses it by a decade."""
    space = Space.model_validate({"decay": {"low": 0.0, "high": 0.99999, "scale": "reverse_log"}})
    study = optuna.create_study(sampler=fresh(name, trials=60, space=space))
    for _ in range(60):
        trial = study.ask(space.distributions)
        study.tell(trial, (np.log10(1 - trial.params["decay"]) + 4) ** 2)
    assert study.best_value < 0.01


def test_coarse_to_fine_works_alone():
    study = optuna.create_study(sampler=CoarseToFineSampler(seed=0))
    study.optimize(lambda trial: trial.suggest_float("x", -5, 5) ** 2 + trial.suggest_int("k", 0, 3), 60)
    assert study.best_value < 0.05


def test_optuna_defaults_that_warn_stay_quiet():
    """`filterwarnings = error` would raise in any of these."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for registered in sorted(set(SAMPLERS) - {"gp"}):
            run(optuna.create_study(sampler=fresh(registered)), 3)


# Sobol and grid -----------------------------------------------------------------------------------------------


def test_sobol_points_are_scipys_sequence_by_trial_number():
    sampler = SobolSampler(["a", "b", "c"], seed=7)
    engine = qmc.Sobol(3, scramble=True, rng=np.random.default_rng(7))
    expected = engine.random_base2(9)
    np.testing.assert_array_equal([sampler.point(n) for n in range(500)], expected[:500])


def test_sobol_suggestions_are_a_pure_function_of_seed_and_number():
    """Asked in any order, by any number of objects, with any history."""
    distributions = SPACE.distributions
    study = optuna.create_study(sampler=SobolSampler(list(SPACE), seed=2))
    trials = [study.ask(distributions) for _ in range(40)]
    for trial in reversed(trials):
        fresh_sampler = SobolSampler(list(SPACE), seed=2)
        for i, (parameter, distribution) in enumerate(distributions.items()):
            unit = fresh_sampler.point(trial.number)[i]
            value = trial.params[parameter]
            assert fresh_sampler.sample_independent(study, trial, parameter, distribution) == value
            if isinstance(distribution, optuna.distributions.FloatDistribution):
                assert to_unit(distribution, value) == pytest.approx(unit, abs=1e-9)


def test_a_grid_covers_its_points_exactly_and_ends_the_study():
    space = Space.model_validate({"n": {"low": 1, "high": 5, "type": "int"}, "c": {"choices": ["a", "b"]}})
    study = optuna.create_study(sampler=fresh("grid", space=space, trials=10))
    study.optimize(
        lambda trial: trial.suggest_int("n", 1, 5) + len(trial.suggest_categorical("c", ["a", "b"]))
    )
    assert {(t.params["n"], t.params["c"]) for t in study.trials} == {
        (n, c) for n in range(1, 6) for c in "ab"
    }
    assert len(study.trials) == 10


# what each can do ---------------------------------------------------------------------------------------------


def test_capabilities_are_declared():
    assert able("conditions") == ["random", "sobol", "tpe", "gp", "coarse-to-fine", "population-based"]
    assert able("several_objectives") == ["grid", "random", "sobol", "tpe", "gp", "coarse-to-fine"]
    assert able("by_priority") == [n for n in SAMPLERS if n not in ("grid", "population-based")]
    assert able("parallel") == list(SAMPLERS)


def test_several_objectives_work_where_they_are_declared(name):
    """Accuracy against seconds: both get better than the first look."""
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=fresh(name))
    if name not in able("several_objectives"):
        with pytest.raises(ValueError, match="multi-objective"):
            study.ask(SPACE.distributions)
        return
    for _ in range(asks(name)):
        trial = study.ask(SPACE.distributions)
        study.tell(trial, [loss(trial.params), trial.params["units"] * trial.params["layers"]])
    assert len(study.best_trials) >= 2


CONDITIONAL = Space.model_validate(
    {
        "optimizer": {"choices": ["sgd", "momentum"]},
        "decay": {"low": 0.5, "high": 0.99, "scale": "reverse_log", "when": {"optimizer": "momentum"}},
        "rate": {"low": 1e-3, "high": 1.0, "scale": "log"},
    }
)


@pytest.mark.parametrize("name", [slow_if_gp(n) for n in able("conditions")])
def test_conditions_work_where_they_are_declared(name):
    study = optuna.create_study(sampler=fresh(name, space=CONDITIONAL))
    for _ in range(30):
        trial = study.ask()
        for parameter, definition in CONDITIONAL.items():
            if definition.is_active(trial.params):
                trial._suggest(parameter, definition.distribution)
        study.tell(trial, abs(np.log10(trial.params["rate"]) + 2) + trial.params.get("decay", 1.0))
    assert all(("decay" in t.params) == (t.params["optimizer"] == "momentum") for t in study.trials)
    assert {t.params["optimizer"] for t in study.trials} == {"sgd", "momentum"}


def define(**keys):
    document = {"name": "x", "space": {"rate": {"low": 0.1, "high": 1.0}}, "budget": {"trials": 9}, **keys}
    return StudyDefinition.parse(document)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (
            {
                "sampler": {"name": "cma-es"},
                "space": {
                    "kind": {"choices": ["a", "b"]},
                    "rate": {"low": 0.1, "high": 1.0, "when": {"kind": "a"}},
                },
            },
            "'cma-es' cannot cope with .* these can: random, sobol, tpe, gp, coarse-to-fine, population-based",
        ),
        (
            {"sampler": {"name": "grid", "stages": "by-priority"}},
            "'grid' cannot tune by priority .* these can: random, sobol, tpe",
        ),
        ({"sampler": {"name": "coarse-to-fine", "box": "stages", "inside": "sobol"}}, "inside='sobol'"),
        ({"sampler": {"name": "tpe", "stages": "by-size"}}, "stages"),
    ],
)
def test_what_a_sampler_cannot_do_is_refused_with_those_that_can(keys, words):
    with pytest.raises(DefinitionError, match=words):
        define(**keys)


def test_stages_are_lengths_or_by_priority():
    assert define(
        sampler={"name": "coarse-to-fine", "stages": [5, 4], "inside": "random"}
    ).sampler.stages == [5, 4]
    assert define(sampler={"name": "coarse-to-fine", "stages": "by-priority"}).sampler.stages == "by-priority"


# the grid ends first, and a segment of a population keeps its point on purpose (test_population.py holds that no two
# workers get the same segment)
@pytest.mark.parametrize("name", [slow_if_gp(n) for n in SAMPLERS if n not in ("grid", "population-based")])
def test_eight_workers_on_a_quadratic_never_get_the_same_point(name):
    space = Space.model_validate({"x": {"low": -1.0, "high": 1.0}, "y": {"low": -1.0, "high": 1.0}})
    study = optuna.create_study(sampler=fresh(name, space=space, trials=None))
    rng, running = np.random.default_rng(0), []
    for _ in range(40):
        running.append(study.ask(space.distributions))
        if len(running) == 8:
            trial = running.pop(rng.integers(8))
            study.tell(trial, trial.params["x"] ** 2 + trial.params["y"] ** 2)
    points = [tuple(trial.params.values()) for trial in study.trials]
    assert len(set(points)) == len(points)


def test_an_ask_does_not_touch_a_long_history_again():
    """After the first ask, a tenfold history costs the zoom no more lens or axis work: what is new is counted."""
    study = optuna.create_study(sampler=fresh("coarse-to-fine", trials=None))
    random = optuna.create_study(sampler=RandomSampler(0))
    run(random, 600)
    study.add_trials(random.get_trials(deepcopy=False))
    run(study, 1)
    seen = []
    original = Axes.row

    def counting(self, params):
        seen.append(params)
        return original(self, params)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Axes, "row", counting)
        run(study, 3)
    assert len(seen) <= 12
