"""Test values: of which point, with which seeds, how often; and that arms are paired."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from objectives.digits import digits_few
from objectives.epoch import Epoch, Epochs, Hyperparameter, Seed
from tuner import ComparisonDefinition, StudyManager
from tuner.report.page import page
from tuner.retraining import FRESH
from tuner.statistics import Spread


class Recorded:
    """An objective that keeps test data apart and remembers what it was asked for."""

    name = "recorded"
    description = "for tests"
    direction = "minimize"
    hyperparameters = (Hyperparameter("x", 0.0),)

    def __init__(self, fails: int | None = None, *, always: bool = False) -> None:
        self.trained: list[tuple[Seed, float]] = []
        self.tested: list[tuple[Seed, dict[str, Any]]] = []
        self.fails, self.always = fails, always
        self.interrupted_at: int | None = None

    def evaluate(self, params: Mapping[str, Any], *, seed: Seed, resume: bytes | None = None) -> Epochs:
        noise = np.random.default_rng(seed).normal()
        self.trained.append((seed, float(noise)))
        for epoch in range(1, 4):
            yield Epoch(epoch, params["x"] ** 2 + 0.1 * noise)

    def test_metrics(self, params: Mapping[str, Any], *, seed: Seed) -> dict[str, float]:
        self.tested.append((seed, dict(params)))
        if self.always or len(self.tested) == self.fails:
            raise ArithmeticError("diverged")
        if len(self.tested) == self.interrupted_at:
            raise KeyboardInterrupt
        return {"test_loss": params["x"] ** 2 + 0.1 * float(np.random.default_rng(seed).normal())}


def definition(**more: Any) -> ComparisonDefinition:
    document = {
        "name": "t",
        "seed": 5,
        "budget": {"trials": 6},
        "space": {"x": {"low": -1.0, "high": 1.0}},
        "comparison": {
            "seeds": 2,
            "arms": [{"name": name, "sampler": {"name": name}} for name in ("random", "sobol")],
            **more,
        },
    }
    return ComparisonDefinition.parse(document)


def test_seed_k_gives_every_arm_the_same_luck_and_arms_take_turns(sqlite_url: str) -> None:
    objective = Recorded()
    with StudyManager(sqlite_url) as manager:
        manager.compare(definition(test_repeats=0), objective)
        starts = sorted(
            (trial.datetime_start, name.split(".")[1], int(name.rsplit("-", 1)[1]))
            for name in [m.definition.name for m in definition().members]
            for trial in manager.load(name).trials
        )
    met: dict[Seed, set[float]] = defaultdict(set)
    for seed, noise in objective.trained:
        met[seed].add(noise)
    assert Counter(seed for seed, _ in objective.trained) == {
        Seed(study, trial): 2 for study in (5, 6) for trial in range(6)
    }  # both arms met each
    assert all(len(noises) == 1 for noises in met.values())
    order = [(seed, arm) for _, arm, seed in starts]
    assert order == [(5, "random"), (5, "sobol"), (6, "random"), (6, "sobol")] * 6


def test_the_same_seed_splits_the_data_alike_for_every_arm_and_another_otherwise() -> None:
    first, again, other = (digits_few.splits(Seed(study, trial)) for study, trial in ((0, 0), (0, 7), (1, 0)))
    assert np.array_equal(first.dev.X, again.dev.X)
    assert not np.array_equal(first.dev.X, other.dev.X)


def test_the_best_point_is_trained_anew_with_fresh_seeds_that_arms_share(sqlite_url: str) -> None:
    objective = Recorded()
    with StudyManager(sqlite_url) as manager:
        result = manager.compare(definition(), objective)
        tested = Counter(seed for seed, _ in objective.tested)
        assert tested == {Seed(study, FRESH + k): 2 for study in (5, 6) for k in range(3)}
        for run in result.runs:
            assert run.test is not None
            best = manager.load(run.study).best_trial
            assert run.test.number == best.number
            noise = [np.random.default_rng(Seed(run.seed, FRESH + k)).normal() for k in range(3)]
            expected = best.params["x"] ** 2 + 0.1 * np.array(noise)
            assert run.test.metrics["test_loss"] == pytest.approx(expected.tolist())
            assert run.test.value == pytest.approx(expected.mean())
            assert manager.load(run.study).user_attrs["test_loss"] == pytest.approx(expected.mean(), abs=1e-6)
        again = manager.compare(definition(), objective)  # nothing is trained again
        assert len(objective.tested) == 12
        assert [run.test for run in again.runs] == [run.test for run in result.runs]
        manager.compare(definition().with_seeds(3), objective)  # only what is new
        assert len(objective.tested) == 18
        assert {seed.study for seed, _ in objective.tested[12:]} == {7}


def test_a_training_that_fails_on_the_way_counts_as_worst_and_stops_nothing(sqlite_url: str) -> None:
    with StudyManager(sqlite_url) as manager:
        result = manager.compare(definition(), Recorded(fails=2))
        failed = [run for run in result.runs if run.test is not None and np.isnan(run.test.value)]
        assert len(failed) == 1
        row = next(row for row in result.table() if row.arm == failed[0].arm)
        assert row.test is not None
        assert row.test.high == np.inf


def test_where_every_training_fails_the_arm_is_worst_and_not_without_a_test(sqlite_url: str) -> None:
    with StudyManager(sqlite_url) as manager:
        result = manager.compare(definition(), objective := Recorded(always=True))
        tried = len(objective.tested)
        assert tried > 0
        assert all(row.test == Spread(np.inf, np.inf, np.inf) for row in result.table())
        assert "2 of 2 failed" in page(result)
        manager.compare(definition(), objective)
        assert len(objective.tested) == tried  # it would fail again


def test_no_test_values_where_none_are_wanted_or_there_is_no_test_data(sqlite_url: str) -> None:
    with StudyManager(sqlite_url) as manager:
        result = manager.compare(definition(test_repeats=0), Recorded())
        assert all(run.test is None for run in result.runs)
        assert all(row.test is None for row in result.table())
        plain = ComparisonDefinition.parse({**definition().dump(), "name": "plain"})
        result = manager.compare(plain, lambda trial: trial.suggest_float("x", -1, 1) ** 2)
        assert all(run.test is None for run in result.runs)


def trained_digits(size: int, *samplers: Mapping[str, Any]) -> ComparisonDefinition:
    """An arm a sampler: `size` trials of `size` epochs each, on a registered objective."""
    document = {
        "name": "d",
        "objective": "digits-few",
        "budget": {"trials": size},
        "fixed": {"epochs": size},
        "space": {"learning_rate": {"low": 1e-3, "high": 0.1, "scale": "log"}},
        "comparison": {
            "seeds": 1,
            "arms": [{"name": arm, "sampler": sampler} for arm, sampler in zip("ab", samplers, strict=True)],
        },
    }
    return ComparisonDefinition.parse(document)


def test_a_registered_objective_is_tested_in_worker_processes(sqlite_url: str) -> None:
    definition = trained_digits(2, {"name": "random"}, {"name": "tpe"})
    with StudyManager(sqlite_url) as manager:
        result = manager.compare(definition)
    [run, _] = result.runs
    assert run.test is not None
    params = {"epochs": 2, **run.best_params}
    by_hand = [digits_few.test_metrics(params, seed=Seed(0, FRESH + k)) for k in range(3)]
    assert run.test.metrics["test_loss"] == tuple(metrics["test_loss"] for metrics in by_hand)
    assert run.test.metrics["test_error"] == tuple(metrics["test_error"] for metrics in by_hand)


def test_what_population_based_training_found_is_no_point_to_train_anew(sqlite_url: str) -> None:
    population = {"name": "population-based", "population": 2, "interval": 2}
    with StudyManager(sqlite_url) as manager:
        result = manager.compare(trained_digits(4, population, {"name": "random"}), executor="threads")
    assert [run.test is not None for run in result.runs] == [False, True]


def test_what_is_interrupted_while_it_is_measured_goes_on(tmp_path: Any) -> None:
    found = []
    for name, interrupted_at in (("undisturbed", None), ("interrupted", 5)):
        objective = Recorded()
        objective.interrupted_at = interrupted_at
        with StudyManager(f"sqlite:///{tmp_path}/{name}.db") as manager:
            if interrupted_at:
                with pytest.raises(KeyboardInterrupt):
                    manager.compare(definition(), objective)
                assert 1 <= sum("tuner:test" in manager.load(n).user_attrs for n in names()) < 4
            found.append(manager.compare(definition(), objective))
        assert len(objective.trained) == 24  # no trial ran twice
    assert [run.test for run in found[0].runs] == [run.test for run in found[1].runs]


def names() -> list[str]:
    return [member.definition.name for member in definition().members]
