"""One run of a comparison, an arm with a seed: its trials, what was best after each, what it spent, its test values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

__all__ = ["TEST_VALUES", "Curve", "Run", "TestValues", "Unit", "best_at", "read_run"]

Floats: TypeAlias = NDArray[np.float64]
Unit: TypeAlias = Literal["trials", "epochs", "seconds"]

TAKEN = frozenset({"arm", "seed", "study", "trial", "epochs", "seconds"})
"""Names that a run's own records have: a metric of that name gets `metric_` before it."""

TEST_VALUES = "tuner:test"
"""The attribute of a member study that holds its incumbent's test values."""


@dataclass(frozen=True, slots=True)
class TestValues:
    """What the incumbent was worth on data that no tuning has seen: metrics by name, one value a fresh training.

    The first metric is the test data's counterpart of the value that was tuned. A training that failed has NaN in each;
    where all failed, nobody knows what the metrics are, and there are none.
    """

    __test__ = False  # no test of pytest's

    number: int
    metrics: Mapping[str, tuple[float, ...]]

    @property
    def value(self) -> float:
        """The mean of the first metric over all trainings; NaN if one failed."""
        return self.mean(next(iter(self.metrics), ""))

    def mean(self, metric: str) -> float:
        """Of one metric over all trainings; NaN if one failed."""
        return float(np.mean(self.metrics[metric])) if metric in self.metrics else math.nan


@dataclass(frozen=True, slots=True)
class Run:
    """One member study: an arm with a seed.

    `best`, `epochs` and `clock` have one entry a finished trial, in the order of their numbers: the best value of a
    completed trial so far (the worst possible before the first), and the epochs and seconds of training spent so far,
    pruned trials included.
    """

    arm: str
    seed: int
    study: str
    best: Floats
    epochs: Floats
    completed: int
    pruned: int
    failed: int
    seconds: float
    best_params: dict[str, Any]
    best_number: int | None
    clock: Floats | None = None
    test: TestValues | None = None
    trials: tuple[FrozenTrial, ...] = ()

    def spent(self, unit: Unit) -> Floats:
        """What had been spent after each finished trial."""
        if unit == "epochs":
            return self.epochs
        if unit == "seconds":
            return np.linspace(0, self.seconds, len(self.best) + 1)[1:] if self.clock is None else self.clock
        return np.arange(1.0, len(self.best) + 1)

    @property
    def tested(self) -> float | None:
        """The test value, NaN if a training for it failed; None while it is not known."""
        return None if self.test is None else self.test.value

    def metric(self, name: str) -> float | None:
        """A metric of the best trial's last epoch; None where it has none of that name."""
        found = [trial.user_attrs for trial in self.trials if trial.number == self.best_number]
        value = found[0].get(f"last_{name}", found[0].get(name)) if found else None
        return float(value) if isinstance(value, (int, float)) else None

    @property
    def spread(self) -> float | None:
        """The worst minus the best value of the completed trials, infinite if one failed or is infinite itself; None
        with fewer than two.
        """
        values = [t.value for t in self.trials if t.state == TrialState.COMPLETE and t.value is not None]
        if self.failed or not all(map(math.isfinite, values)):
            return math.inf
        return max(values) - min(values) if len(values) > 1 else None

    def spent_until(self, target: float, unit: Unit, *, minimize: bool) -> float:
        """What had been spent when the best value first reached the target; infinite where it never did."""
        reached = self.best <= target if minimize else self.best >= target
        return float(self.spent(unit)[np.argmax(reached)]) if reached.any() else math.inf


@dataclass(frozen=True, slots=True)
class Curve:
    """An arm's best value so far against what was spent: median and quartiles over seeds, shapes (points,).

    `runs` has the values of each seed, shape (seeds, points).
    """

    spent: Floats
    median: Floats
    low: Floats
    high: Floats
    runs: Floats


def best_at(grid: Floats, spent: Floats, best: Floats, worst: float) -> Floats:
    """The step function `best` after `spent`, at each point of the grid; `worst` before its first step."""
    last = np.searchsorted(spent, grid, side="right") - 1
    return np.where(last < 0, worst, best[np.maximum(last, 0)])


def read_run(arm: str, seed: int, study: optuna.Study) -> Run:
    """A run from its study."""
    trials = study.get_trials(deepcopy=False)
    finished = [trial for trial in trials if trial.state.is_finished()]
    sign = 1 if study.direction == StudyDirection.MINIMIZE else -1
    losses = [
        sign * t.value if t.state == TrialState.COMPLETE and t.value is not None else np.inf for t in finished
    ]
    best = int(np.argmin(losses)) if losses and min(losses) < np.inf else None
    seconds = np.array([float(trial.user_attrs.get("training_seconds", 0.0)) for trial in finished])
    number = None if best is None else finished[best].number
    return Run(
        arm=arm,
        seed=seed,
        study=study.study_name,
        best=sign * np.minimum.accumulate(np.array(losses, dtype=float)),
        epochs=np.cumsum([float(len(trial.intermediate_values)) for trial in finished]),
        completed=sum(trial.state == TrialState.COMPLETE for trial in finished),
        pruned=sum(trial.state == TrialState.PRUNED for trial in finished),
        failed=sum(trial.state == TrialState.FAIL for trial in finished),
        seconds=float(seconds.sum()),
        best_params={} if best is None else dict(finished[best].params),
        best_number=number,
        clock=np.cumsum(seconds),
        test=_read_test(study.user_attrs.get(TEST_VALUES), number),
        trials=tuple(finished),
    )


def _read_test(document: Mapping[str, Any] | None, number: int | None) -> TestValues | None:
    """The test values, if they are those of the trial that is best now."""
    if document is None or document["trial"] != number:
        return None
    names: list[str] = next((list(metrics) for metrics in document["metrics"] if metrics), [])
    shown = {name: f"metric_{name}" if name in TAKEN else name for name in names}
    return TestValues(
        document["trial"],
        {shown[name]: tuple(_number(metrics, name) for metrics in document["metrics"]) for name in names},
    )


def _number(metrics: Mapping[str, float | None] | None, name: str) -> float:
    value = None if metrics is None else metrics[name]
    return math.nan if value is None else float(value)
