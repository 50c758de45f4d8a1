"""The stopping rules: options are checked, and decisions are bare Optuna's."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.pruners import (
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PatientPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
    ThresholdPruner,
    WilcoxonPruner,
)
from pydantic import TypeAdapter, ValidationError

from tuner.pruners import PRUNERS, AnyPruner

ANY = TypeAdapter(AnyPruner)

SAME = [
    ({"name": "none"}, NopPruner),
    ({"name": "median"}, MedianPruner),
    (
        {"name": "median", "startup_trials": 2, "warmup_epochs": 2, "interval_epochs": 3, "min_trials": 4},
        lambda: MedianPruner(n_startup_trials=2, n_warmup_steps=3, interval_steps=3, n_min_trials=4),
    ),
    ({"name": "percentile", "percentile": 25.0}, lambda: PercentilePruner(25.0)),
    ({"name": "successive-halving"}, lambda: SuccessiveHalvingPruner(min_resource=1)),
    (
        {"name": "successive-halving", "min_epochs": 2, "reduction_factor": 2, "min_early_stopping_rate": 1},
        lambda: SuccessiveHalvingPruner(min_resource=2, reduction_factor=2, min_early_stopping_rate=1),
    ),
    ({"name": "hyperband", "max_epochs": 12}, lambda: HyperbandPruner(max_resource=12)),
    (
        {"name": "threshold", "upper": 0.8, "warmup_epochs": 1},
        lambda: ThresholdPruner(upper=0.8, n_warmup_steps=2),
    ),
    ({"name": "patient", "patience": 1, "min_delta": 0.01}, lambda: PatientPruner(None, 1, 0.01)),
    ({"name": "wilcoxon", "p_threshold": 0.2}, lambda: WilcoxonPruner(p_threshold=0.2)),
]
"""A pruner as the definition says it, and as Optuna does; Optuna's warm-up counts from step 0, ours from epoch 1."""

pytestmark = pytest.mark.filterwarnings(
    "ignore::optuna.exceptions.ExperimentalWarning",  # bare Patient and Wilcoxon are so marked
    "ignore:.*(NaN|nan|All-NaN):UserWarning",  # the curves have some
    "ignore:All-NaN:RuntimeWarning",
)


def test_every_registered_pruner_is_compared():
    assert {options["name"] for options, _ in SAME} == set(PRUNERS)


def recorded_curves(trials: int, epochs: int = 12) -> np.ndarray:
    """Shape (trials, epochs): power laws with noise, some diverging, one in forty ending in NaN."""
    rng = np.random.default_rng(0)
    end, fall, rate = rng.uniform(0.05, 0.6, (3, trials, 1))
    curves = end + fall * np.arange(1, epochs + 1) ** (-2 * rate) + 0.02 * rng.normal(size=(trials, epochs))
    curves[::17] *= np.linspace(1, 3, epochs)
    curves[::40, epochs // 2 :] = np.nan
    return curves


def real_curves(trials: int, epochs: int = 12) -> np.ndarray | None:
    """TaskSet's learning curves, where the benchmark data are; shape (trials, epochs)."""
    file = Path(os.environ.get("TUNER_BENCHMARK_DATA", "")) / "taskset_rnn.npz"
    if not file.is_file():
        return None
    with np.load(file) as tables:
        name = next(key for key in tables.files if key.endswith("valid"))
        return tables[name][:trials, 1 : epochs + 1].astype(float)


def decisions(study: optuna.Study, curve: np.ndarray) -> list[bool]:
    """What the study's pruner says after each epoch, until it stops the trial."""
    trial = study.ask()
    said = []
    for epoch, value in enumerate(curve, start=1):
        trial.report(float(value), epoch)
        said.append(trial.should_prune())
        if said[-1]:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            return said
    if np.isnan(curve[-1]):
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    else:
        study.tell(trial, float(curve[-1]))
    return said


def compare(options, bare, curves):
    """Both on their own study of the same name (Hyperband's brackets hang on it); returns how many were stopped."""
    ours, theirs = (
        optuna.create_study(study_name="curves", pruner=pruner)
        for pruner in (ANY.validate_python(options).build(), bare())
    )
    stopped = 0
    for curve in curves:
        said = decisions(ours, curve)
        assert said == decisions(theirs, curve)
        stopped += said[-1]
    return stopped


@pytest.mark.parametrize(("options", "bare"), SAME, ids=[str(options) for options, _ in SAME])
def test_decisions_are_bare_optunas(options, bare):
    stopped = compare(options, bare, recorded_curves(100))
    assert (stopped > 0) == (options["name"] != "none")


@pytest.mark.slow
@pytest.mark.parametrize(("options", "bare"), SAME, ids=[str(options) for options, _ in SAME])
def test_decisions_are_bare_optunas_on_a_thousand_curves(options, bare):
    curves = real_curves(1000)
    compare(options, bare, recorded_curves(1000) if curves is None else curves)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "medain"}, "medain"),
        ({"name": "median", "startup": 3}, "startup"),
        ({"name": "median", "startup_trials": -1}, "greater than or equal to 0"),
        ({"name": "median", "startup_trials": True}, "valid integer"),
        ({"name": "percentile"}, "percentile"),
        ({"name": "percentile", "percentile": 101.0}, "less than or equal to 100"),
        ({"name": "hyperband"}, "max_epochs"),
        ({"name": "hyperband", "min_epochs": 9, "max_epochs": 3}, "min_epochs=9, max_epochs=3"),
        ({"name": "successive-halving", "reduction_factor": 1}, "greater than or equal to 2"),
        ({"name": "threshold"}, "lower, upper or both; got neither"),
        ({"name": "threshold", "lower": 2.0, "upper": 1.0}, "lower=2.0, upper=1.0"),
        ({"name": "threshold", "upper": float("nan")}, "finite"),
        ({"name": "patient", "patience": -1}, "greater than or equal to 0"),
        ({"name": "wilcoxon", "p_threshold": 2.0}, "less than or equal to 1"),
    ],
)
def test_options_are_checked(options, words):
    with pytest.raises(ValidationError, match=words):
        ANY.validate_python(options)


def test_building_is_quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for options, _ in SAME:
            ANY.validate_python(options).build()


def test_warmup_epochs_are_the_first_ones():
    """`warmup_epochs = 3` stops no trial in epochs 1, 2 and 3, and may in 4."""
    pruner = ANY.validate_python({"name": "median", "startup_trials": 1, "warmup_epochs": 3}).build()
    study = optuna.create_study(pruner=pruner)
    decisions(study, np.zeros(6))
    assert decisions(study, np.ones(6)) == [False, False, False, True]
