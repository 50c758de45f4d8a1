"""Studies with several objectives: what may be said of them, how their trials end, and what their front is."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import sqlalchemy as sa
from command import Tuner
from hypothesis import given
from hypothesis import strategies as st
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from objectives.digits import digits
from objectives.epoch import Epoch, Hyperparameter, Seed
from tuner import ComparisonDefinition, StudyDefinition, StudyManager
from tuner.ask_tell import Answer, AskTell, Lease
from tuner.errors import ConflictError, DefinitionError, LeaseLostError, TunerError
from tuner.ledger import Spent
from tuner.pareto import front_of, on_front
from tuner.resumption import Resumption
from tuner.samplers import able
from tuner.transfer import read_document
from tuner.trial_run import Outcome, run_leased

BOTH = [{"name": "error", "direction": "minimize"}, {"name": "speed", "direction": "maximize"}]
SPACE = {
    "x": {"low": 0.0, "high": 1.0},
    "decay": {"low": 0.5, "high": 0.999, "scale": "reverse_log", "priority": 2},
    "units": {"type": "int", "low": 1, "high": 8, "priority": 2},
    "kind": {"choices": ["flat", "steep"], "priority": 3},
}


def definition(**more: Any) -> StudyDefinition:
    document = {"name": "s", "objectives": BOTH, "space": SPACE, "sampler": {"name": "random"}}
    return StudyDefinition.parse({**document, **more})


def begin(url: str, **more: Any) -> AskTell:
    manager = StudyManager(url)
    manager.create(definition(**more))
    return manager.ask_tell("s")


def must(lease: Lease | None) -> Lease:
    assert lease is not None
    return lease


def complete(ask_tell: AskTell, *values: float) -> int:
    lease = must(ask_tell.ask())
    assert ask_tell.tell(lease, TrialState.COMPLETE, values) is TrialState.COMPLETE
    return lease.number


# ----------------------------------------------------------------------------------------------------- the definition

DIGITS = {"name": "a", "objective": "digits", "objectives": [{"name": "dev_error"}, {"name": "parameters"}]}
MISTAKES = [
    ({"objectives": [{"name": "a"}]}, "objectives are two or more; got 'a' alone"),
    ({"objectives": "digits"}, "objectives: input should be a valid list; got 'digits'"),
    ({"objectives": [{"name": "a"}, {"name": "a"}]}, "objectives need different names; 'a' is there twice"),
    ({"objectives": [{"name": ""}, {"name": "a"}]}, "objectives.0.name: must match"),
    ({"objectives": [{"name": "a\nb"}, {"name": "a"}]}, "objectives.0.name: must match"),
    ({"objectives": [{"name": "a"}, {}]}, "objectives.1.name: missing"),
    ({"objectives": [{"name": "a", "dir": 1}, {"name": "b"}]}, "objectives.0.dir: unknown key"),
    ({"objectives": [{"name": "a", "direction": "up"}, {"name": "b"}]}, "objectives.0.direction: input should be"),
    ({"objectives": [{"name": str(i)} for i in range(9)]}, "objectives: list should have at most 8 items"),
    ({"direction": "maximize"}, "direction is that of one objective; of several each has its own: leave 'maximize'"),
    ({"pruner": {"name": "median"}}, "pruner 'median' stops trials by one value, and there are 2 objectives"),
    ({"sampler": {"name": "cma-es"}}, "sampler 'cma-es' cannot cope with several objectives (error, speed); these"),
    ({"sampler": {"name": "cma-es"}}, "these can: grid, random, sobol, tpe, gp, coarse-to-fine"),
    ({"sampler": {"name": "population-based"}}, "sampler 'population-based' cannot cope with several objectives"),
    (
        {"objective": "digits", "objectives": [{"name": "dev_eror"}, {"name": "parameters"}], "space": {}},
        "objective 'digits' has no metric 'dev_eror' (did you mean 'dev_error'?); it has: value, train_loss",
    ),
    (
        {**DIGITS, "objectives": [{"name": "value", "direction": "maximize"}, {"name": "epochs"}], "space": {}},
        "direction: objective 'digits' is to minimize; got 'maximize'",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "says"), MISTAKES)
def test_mistakes_are_named(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(DefinitionError) as raised:
        definition(**wrong)
    (line,) = str(raised.value).splitlines()
    assert says in line


def test_a_comparison_judges_one_value() -> None:
    document = {"name": "a", "objectives": BOTH, "comparison": {"arms": [{"name": "a"}, {"name": "b"}]}}
    with pytest.raises(
        DefinitionError, match=r"a comparison judges its arms by one value; objectives names 2 \("
    ):
        ComparisonDefinition.parse(document)


def test_one_objective_is_said_as_ever() -> None:
    one = StudyDefinition.parse({"name": "a", "direction": "maximize"})
    assert (one.directions, one.dump()) == (("maximize",), {"name": "a", "direction": "maximize"})


def test_the_document_comes_back_as_it_went() -> None:
    several = definition()
    assert several.directions == ("minimize", "maximize")
    assert StudyDefinition.parse(several.dump()) == several == StudyDefinition.parse(several.dump(full=True))
    assert StudyDefinition.parse(DIGITS).directions == ("minimize", "minimize")


# ---------------------------------------------------------------------------------------------------------- the front

NUMBERS = st.integers(-3, 3).map(float) | st.sampled_from([math.inf, -math.inf]) | st.floats(-1e300, 1e300)


@st.composite
def rows(draw: st.DrawFn) -> tuple[list[list[float]], list[str]]:
    """Values with ties, and directions."""
    width = draw(st.integers(1, 4))
    directions = draw(st.lists(st.sampled_from(["minimize", "maximize"]), min_size=width, max_size=width))
    values = draw(st.lists(st.lists(NUMBERS, min_size=width, max_size=width), max_size=14))
    return values, directions


def dominates(a: list[float], b: list[float], directions: list[str]) -> bool:
    """By the words of the definition."""
    better = [x < y if way == "minimize" else x > y for x, y, way in zip(a, b, directions, strict=True)]
    worse = [x > y if way == "minimize" else x < y for x, y, way in zip(a, b, directions, strict=True)]
    return any(better) and not any(worse)


@given(rows())
def test_the_front_is_what_nothing_dominates(case: tuple[list[list[float]], list[str]]) -> None:
    values, directions = case
    expected = [not any(dominates(other, row, directions) for other in values) for row in values]
    assert on_front(values, directions) == expected
    ended = [create_trial(values=row) for row in values]
    for number, trial in enumerate(ended):
        trial.number = number
    others = [create_trial(state=TrialState.PRUNED), create_trial(state=TrialState.FAIL)]
    found = front_of([*ended, *others], [StudyDirection[way.upper()] for way in directions])
    assert [trial.number for trial in found] == [i for i, is_one in enumerate(expected) if is_one]


# ------------------------------------------------------------------------------------------------------- ask and tell


def test_what_is_told_is_what_optuna_reads(url: str) -> None:
    ask_tell = begin(url)
    lease = must(ask_tell.ask())
    assert ask_tell.report(lease, 1, 0.5).answer is Answer.CONTINUE
    ask_tell.tell(lease, TrialState.COMPLETE, (0.25, math.inf), {"note": "ü"})
    with StudyManager(url) as manager:
        study = optuna.load_study(study_name="s", storage=manager._storage)
        assert study.directions == [StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE]
        assert study.metric_names == ["error", "speed"]
        (trial,) = study.trials
        assert (trial.state, trial.values) == (TrialState.COMPLETE, [0.25, math.inf])
        assert trial.intermediate_values == {1: 0.5}
        assert trial.user_attrs == {"note": "ü"}


def test_the_same_told_again_is_answered_as_before_and_another_is_a_conflict(url: str) -> None:
    ask_tell = begin(url)
    lease = must(ask_tell.ask())
    for _ in range(2):
        assert ask_tell.tell(lease, TrialState.COMPLETE, [1.0, 2.0]) is TrialState.COMPLETE
    for other in ([2.0, 1.0], [1.0, 2.5], [1.0, math.inf]):
        with pytest.raises(ConflictError):
            ask_tell.tell(lease, TrialState.COMPLETE, other)
    with pytest.raises(ConflictError):
        ask_tell.tell(lease, TrialState.PRUNED, None)
    assert ask_tell.study.trials[0].values == [1.0, 2.0]
    assert ask_tell.spent() == Spent(trials=1, ended=1, epochs=1)


def test_who_is_late_is_refused_and_the_trial_runs_again_as_itself(url: str) -> None:
    ask_tell = begin(url, budget={"trials": 1, "epochs": 3})
    late = must(ask_tell.ask())
    ask_tell.report(late, 1, 0.5)
    with ask_tell.ledger.transaction() as session:
        session.execute(sa.text("UPDATE tuner_leases SET expires_at = 0"))
    again = must(ask_tell.ask())
    assert (again.number, again.params, again.attempt, again.values) == (0, late.params, 2, {})
    with pytest.raises(LeaseLostError):
        ask_tell.tell(late, TrialState.COMPLETE, [1.0, 1.0])
    assert ask_tell.report(again, 1, 0.5).answer is Answer.CONTINUE
    ask_tell.tell(again, TrialState.COMPLETE, [2.0, 2.0])
    assert ask_tell.study.trials[0].values == [2.0, 2.0]
    assert ask_tell.spent() == Spent(trials=1, ended=1, epochs=1)
    assert ask_tell.ask() is None


@pytest.mark.parametrize("told", [0.5, [0.5], [], [0.5, 0.5, 0.5]])
def test_there_is_a_value_for_each_objective(sqlite_url: str, told: Any) -> None:
    ask_tell = begin(sqlite_url)
    lease = must(ask_tell.ask())
    with pytest.raises(DefinitionError, match=r"and s has 2 objectives \(error, speed\); got "):
        ask_tell.tell(lease, TrialState.COMPLETE, told)
    with pytest.raises(ValueError, match="needs a number"):
        ask_tell.tell(lease, TrialState.COMPLETE, None)
    ask_tell.tell(lease, TrialState.COMPLETE, [0.5, 0.5])


@pytest.mark.parametrize("row", [np.array([1.0, 2.0]), (np.float32(1), np.float64(2)), [1, 2]])
def test_values_are_any_row_of_numbers(sqlite_url: str, row: Any) -> None:
    ask_tell = begin(sqlite_url)
    lease = must(ask_tell.ask())
    for scalar in (np.array(1.0), np.float32(1)):
        with pytest.raises(DefinitionError, match=r"has 2 objectives .* got 1$"):
            ask_tell.tell(lease, TrialState.COMPLETE, scalar)
    assert ask_tell.tell(lease, TrialState.COMPLETE, row) is TrialState.COMPLETE
    assert ask_tell.study.trials[0].values == [1.0, 2.0]


@pytest.mark.parametrize("told", ["12", {1.0, 2.0}, {0.0: 1.0, 1.0: 2.0}])
def test_what_has_no_order_or_is_a_text_is_no_row_of_values(sqlite_url: str, told: Any) -> None:
    """A set's order is not the objectives', and the two digits of a text are not two numbers."""
    ask_tell = begin(sqlite_url)
    lease = must(ask_tell.ask())
    with pytest.raises((TypeError, DefinitionError)):
        ask_tell.tell(lease, TrialState.COMPLETE, told)
    assert ask_tell.study.trials[0].state is TrialState.RUNNING
    outcome = run_leased(ask_tell, lease, lambda trial: told)
    assert outcome.state is TrialState.FAIL
    assert "the study has 2 objectives (error, speed), each with a number" in (outcome.failure or "")


def test_one_objective_has_one_value(sqlite_url: str) -> None:
    ask_tell = begin(sqlite_url, objectives=[])
    lease = must(ask_tell.ask())
    with pytest.raises(DefinitionError, match="and s has 1 objective; got 1, 2"):
        ask_tell.tell(lease, TrialState.COMPLETE, [1.0, 2.0])
    ask_tell.tell(lease, TrialState.COMPLETE, [1.0])
    assert ask_tell.study.best_value == 1.0


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([math.nan, 1.0], "error is not a number"),
        ([1.0, math.nan], "speed is not a number"),
        ([math.nan, math.nan], "error, speed are not numbers"),
    ],
)
def test_nan_is_no_value(url: str, values: list[float], says: str) -> None:
    ask_tell = begin(url)
    lease = must(ask_tell.ask())
    for _ in range(2):
        assert ask_tell.tell(lease, TrialState.COMPLETE, values) is TrialState.FAIL
    (trial,) = ask_tell.study.trials
    assert (trial.state, trial.values, trial.user_attrs["failure"]) == (TrialState.FAIL, None, says)


def test_a_pruned_trial_has_no_values_and_the_sampler_goes_on(url: str) -> None:
    """Optuna's TPE asks for the direction of a study as soon as a pruned trial has a report."""
    ask_tell = begin(url, sampler={"name": "tpe", "startup_trials": 2})
    for number in range(4):
        complete(ask_tell, number, -number)
    lease = must(ask_tell.ask())
    ask_tell.report(lease, 1, 0.5)
    with pytest.raises(DefinitionError, match="a pruned trial of several objectives has no values"):
        ask_tell.tell(lease, TrialState.PRUNED, [0.5, 0.5])
    for _ in range(2):
        ask_tell.tell(lease, TrialState.PRUNED, None)
    for _ in range(3):
        complete(ask_tell, 1.0, 1.0)
    trial = ask_tell.study.trials[4]
    assert (trial.state, trial.values, trial.intermediate_values) == (TrialState.PRUNED, None, {})
    assert ask_tell.spent().epochs == 8  # its report counts still


def test_the_budget_is_exact(url: str) -> None:
    ask_tell = begin(url, budget={"trials": 3})
    for number in range(3):
        complete(ask_tell, number, number)
    assert ask_tell.ask() is None
    assert ask_tell.is_finished()
    assert ask_tell.spent() == Spent(trials=3, ended=3, epochs=3)


@pytest.mark.parametrize("name", [name for name in able("several_objectives") if name != "gp"])
def test_samplers_that_can_do(sqlite_url: str, name: str) -> None:
    """On all scales, also tier by tier, and a restart between any two trials changes nothing."""
    stages = {} if name == "grid" else {"stages": "by-priority"}
    settings = {"name": name, **stages, **({"startup_trials": 5} if name == "tpe" else {})}
    runs = []
    for study, is_restarted in (("one", False), ("other", True)):
        wanted = definition(name=study, sampler=settings, budget={"trials": 24}, seed=3)
        with StudyManager(sqlite_url) as manager:
            manager.create(wanted)
            ask_tell = manager.ask_tell(study)
            while (lease := ask_tell.ask()) is not None:
                values = [(lease.params["x"] - 0.3) ** 2, lease.params["units"] * lease.params["decay"]]
                ask_tell.tell(lease, TrialState.COMPLETE, values)
                ask_tell = manager.ask_tell(study) if is_restarted else ask_tell
            runs.append([(t.params, t.values) for t in manager.load(study).trials])
    assert len(runs[0]) == 24
    assert runs[0] == runs[1]


# -------------------------------------------------------------------------------------------------------- trainings


class Growth:
    """A training whose error falls while its size grows; `size` is there in each epoch, `late` in the last alone."""

    name, direction, description = "growth", "minimize", "for a test"
    hyperparameters = (Hyperparameter("x", 0.5), Hyperparameter("epochs", 4))

    def __init__(self) -> None:
        self.trained: list[int] = []

    def evaluate(
        self, params: Mapping[str, Any], *, seed: Any, resume: bytes | None = None
    ) -> Iterator[Epoch]:
        first = json.loads(resume) if resume else 0
        for epoch in range(first + 1, 5):
            self.trained.append(epoch)
            metrics = {"size": 10 * params["x"] * epoch, "value": 99.0, "sick": math.nan}
            state = json.dumps(epoch).encode()
            late = {"late": 1.0} if epoch == 4 else {}
            yield Epoch(epoch, (1 - params["x"]) / epoch, {**metrics, **late}, lambda state=state: state)


def growth(*names: str, **more: Any) -> StudyDefinition:
    document = {
        "name": "g",
        "objectives": [{"name": name} for name in names],
        "budget": {"trials": 6},
        "space": {"x": {"low": 0.0, "high": 1.0}},
        "sampler": {"name": "sobol"},
    }
    return StudyDefinition.parse({**document, **more})


def test_the_last_epochs_metrics_are_the_values(url: str) -> None:
    with StudyManager(url) as manager:
        study = manager.run(growth("size", "value", "epochs", "training_seconds"), Growth())
        assert len(study.trials) == 6
        for trial in study.trials:
            x, attrs = trial.params["x"], trial.user_attrs
            assert trial.values == [40 * x, (1 - x) / 4, 4.0, attrs["training_seconds"]]
            assert trial.intermediate_values == {epoch: (1 - x) / epoch for epoch in (1, 2, 3, 4)}
        assert study.metric_names == ["size", "value", "epochs", "training_seconds"]
        assert [t.number for t in manager.best("g")] == [t.number for t in study.best_trials]


def test_an_epoch_without_an_objective_ends_the_run_in_words(sqlite_url: str) -> None:
    with StudyManager(sqlite_url) as manager:
        with pytest.raises(TunerError, match="epoch 1 of 'growth' has no metric 'late'") as raised:
            manager.run(growth("size", "late"), Growth())
        assert "it has: value, size, sick, epochs, training_seconds" in str(raised.value)
        assert manager.load("g").trials[0].state is TrialState.WAITING  # not the trial's fault


def test_a_metric_that_is_no_number_fails_its_trial(sqlite_url: str) -> None:
    outcomes: list[Outcome] = []
    with StudyManager(sqlite_url) as manager:
        study = manager.run(
            growth("size", "sick", budget={"trials": 2}), Growth(), on_outcome=outcomes.append
        )
        assert [trial.state for trial in study.trials] == [TrialState.FAIL] * 2
        assert study.trials[0].user_attrs["failure"] == "sick is not a number"
        assert [(o.state, o.values, o.failure) for o in outcomes] == [
            (TrialState.FAIL, None, "sick is not a number")
        ] * 2


def test_a_trial_that_was_given_back_has_the_same_values(url: str) -> None:
    """Also where only its last epoch's checkpoint was left, and nothing is trained any more."""
    with StudyManager(url) as manager:
        manager.create(growth("size", "value"))
        for until, expected in ((2, [1, 2]), (4, [3, 4]), (5, [])):
            trained = _train_until(manager.ask_tell("g"), until)
            assert trained == expected
        (trial,) = manager.load("g").trials
        x = trial.params["x"]
        assert trial.values == [40 * x, (1 - x) / 4]
        assert manager.ask_tell("g").spent().epochs == 4


def _train_until(ask_tell: AskTell, until: int) -> list[int]:
    """Train the next trial until it is given back after an epoch; the epochs that were trained."""
    training = Growth()
    lease = must(ask_tell.ask())
    run_leased(ask_tell, lease, training, lambda: training.trained[-1:] >= [until], keep_every=0)
    return training.trained


def test_what_an_earlier_attempt_trained_counts_as_time(sqlite_url: str) -> None:
    with StudyManager(sqlite_url) as manager:
        manager.create(growth("size", "training_seconds"))
        ask_tell, training = manager.ask_tell("g"), Growth()
        lease = must(ask_tell.ask())
        ask_tell.report(lease, 1, 1.0)
        ask_tell.save_checkpoint(lease, 3, Resumption({1: 1.0, 2: 0.5, 3: 0.4}, 1000.0, b"3").pack())
        ask_tell.release(lease)
        outcome = run_leased(ask_tell, must(ask_tell.ask()), training, keep_every=0)
        assert training.trained == [4]
        assert outcome.values is not None
        assert 1000.0 <= outcome.values[1] < 1100.0


def test_at_the_budgets_end_a_half_trained_network_is_no_cheap_one(sqlite_url: str) -> None:
    with StudyManager(sqlite_url) as manager:
        study = manager.run(growth("value", "epochs", budget={"epochs": 10}), Growth())
        states = [(t.state, t.values and t.values[1]) for t in study.trials]
        assert states == [(TrialState.COMPLETE, 4.0), (TrialState.COMPLETE, 4.0), (TrialState.PRUNED, None)]
        assert study.trials[2].user_attrs["stopped"] == "budget"
        assert study.trials[2].user_attrs["epochs"] == 2


def test_a_person_may_stop_a_training_with_what_it_has_reached(sqlite_url: str) -> None:
    with StudyManager(sqlite_url) as manager:
        manager.create(growth("size", "value"))
        ask_tell = manager.ask_tell("g")
        lease = must(ask_tell.ask())
        ask_tell.stop(0, by="ann")
        outcome = run_leased(ask_tell, lease, Growth())
        assert (outcome.state, outcome.epochs) == (TrialState.COMPLETE, 1)
        assert outcome.values == (10 * lease.params["x"], 1 - lease.params["x"])


def test_a_plain_function_returns_a_value_for_each(url: str) -> None:
    def function(trial: optuna.Trial) -> Any:
        x = trial.suggest_float("x", 0, 1)
        answers: list[Any] = [(x, 1 - x), x, [x], "xy", (x, math.nan), (x, "no"), None, [x, math.inf]]
        if trial.number == 8:
            raise optuna.TrialPruned
        return answers[trial.number]

    with StudyManager(url) as manager:
        study = manager.run(definition(space={}, budget={"trials": 9}), function)
        states = [trial.state for trial in study.trials]
        assert states == [TrialState.COMPLETE, *[TrialState.FAIL] * 6, TrialState.COMPLETE, TrialState.PRUNED]
        assert study.trials[0].values == [study.trials[0].params["x"], 1 - study.trials[0].params["x"]]
        assert (
            "the study has 2 objectives (error, speed), each with a number"
            in study.trials[1].user_attrs["failure"]
        )
        assert study.trials[4].user_attrs["failure"] == "speed is not a number"
        assert study.trials[5].user_attrs["failure"] == "the function returned 'no', which is no number"
        assert study.trials[7].values[1] == math.inf


@pytest.mark.parametrize("verb", ["report", "should_prune"])
def test_nobody_prunes_by_one_of_several(sqlite_url: str, verb: str) -> None:
    def function(trial: optuna.Trial) -> tuple[float, float]:
        trial.suggest_float("x", 0, 1)
        if verb == "report":
            trial.report(1.0, 1)
        else:
            trial.should_prune()
        return 0.0, 0.0

    with StudyManager(sqlite_url) as manager:
        study = manager.run(definition(space={}, budget={"trials": 1}), function)
        failure = study.trials[0].user_attrs["failure"]
    assert failure == (
        f"NotImplementedError: trial.{verb} is for one objective, as in Optuna; the study has 2 (error, speed)"
    )


def test_a_run_by_several_workers_has_the_front_of_its_trials(url: str) -> None:
    with StudyManager(url) as manager:
        study = manager.run(
            growth("size", "value", budget={"trials": 12}), Growth(), workers=3, executor="threads"
        )
        assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 12
        (summary,) = manager.studies()
        assert summary.best_value is None
        assert sorted(map(list, summary.front)) == sorted(t.values for t in study.best_trials)
        assert len(summary.front) == 12  # each is smaller or better than any other


@pytest.mark.parametrize(
    "metrics", [lambda self: {}, property(lambda self: "size"), property(lambda self: [1])]
)
@pytest.mark.parametrize("names", [(), ("size", "value")])
def test_what_an_objective_calls_metrics_may_be_something_else(
    sqlite_url: str, metrics: Any, names: tuple[str, ...]
) -> None:
    """Also where one objective is tuned, for which nobody asks what metrics there are."""
    objective = type("Measured", (Growth,), {"metrics": metrics})()
    with StudyManager(sqlite_url) as manager:
        study = manager.run(growth(*names, budget={"trials": 1}), objective)
        assert study.trials[0].state is TrialState.COMPLETE


def test_trainings_have_the_metrics_that_they_name() -> None:
    *_, last = digits.evaluate({"epochs": 1, "hidden_units": 5, "layers": 2}, seed=Seed(0, 0))
    assert set(digits.metrics) <= last.metrics.keys()
    # weights, and γ and β of each hidden layer; with batch norm these have no biases but β
    assert last.metrics["parameters"] == (64 * 5 + 2 * 5) + (5 * 5 + 2 * 5) + (5 * 10 + 10)


# ------------------------------------------------------------------------------------------------ carried elsewhere


def test_a_study_comes_back_as_it_went(url: str, tmp_path: Path) -> None:
    ask_tell = begin(url)
    complete(ask_tell, 1.0, math.inf)
    lease = must(ask_tell.ask())
    ask_tell.report(lease, 1, 0.5)
    ask_tell.tell(lease, TrialState.PRUNED, None)
    ask_tell.tell(must(ask_tell.ask()), TrialState.FAIL, None)
    ask_tell.enqueue({"x": 0.5})
    with StudyManager(url) as here, StudyManager(f"sqlite:///{tmp_path}/there.db") as there:
        document = here.export_study("s")
        assert "value" not in document["trials"][0]
        there.import_study(read_document(json.dumps(document).encode()))
        assert there.export_study("s") == document
        study = there.load("s")
        assert (study.directions, study.metric_names) == (here.load("s").directions, ["error", "speed"])
        assert study.trials[0].values == [1.0, math.inf]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"values": None}, "trials.0: a completed trial needs a value"),
        ({"values": [1.0]}, "trials.0: a trial has a value for each objective, 2; got 1.0"),
        ({"value": 1.0, "values": None}, "trials.0: a trial has a value for each objective, 2; got 1.0"),
        ({"value": 1.0}, "trials.0: a trial has value or values, not both"),
        ({"state": "fail"}, "trials.0: a trial that is fail has no value; got 1.0, 2.0"),
        ({"state": "pruned"}, "trials.0: a pruned trial of several objectives has no values; got 1.0, 2.0"),
        (
            {"state": "pruned", "values": None, "reports": [{"step": 1, "value": 1.0}]},
            "trials.0: reports: a pruned trial of several objectives has none",
        ),
    ],
)
def test_a_document_that_breaks_a_rule_is_refused(sqlite_url: str, change: dict[str, Any], says: str) -> None:
    ask_tell = begin(sqlite_url)
    complete(ask_tell, 1.0, 2.0)
    with StudyManager(sqlite_url) as manager:
        document = manager.export_study("s")
        document["definition"]["name"] = "t"
        document["trials"][0] |= change
        with pytest.raises(DefinitionError) as raised:
            manager.import_study(read_document(json.dumps(document).encode()))
        assert str(raised.value) == says


# -------------------------------------------------------------------------------------------------- the command line

TRADEOFF = """
name = "tradeoff"
objective = "branin"
objectives = [{name = "regret"}, {name = "epochs"}]
budget = {trials = 8}
sampler = {name = "random"}
[space.x0]
low = -5
high = 10
[space.x1]
low = 0
high = 15
[space.epochs]
type = "int"
low = 1
high = 4
"""


def test_the_command_line_shows_the_front(tuner: Tuner, tmp_path: Path) -> None:
    (tmp_path / "tradeoff.toml").write_text(TRADEOFF)
    code, out, err = tuner("run", "tradeoff.toml", "--workers", "1", "--executor", "threads")
    assert code == 0, err
    trials = json.loads(tuner("trials", "tradeoff", "--format", "json")[1])
    expected = [
        a["number"]
        for a in trials
        if not any(dominates(b["value"], a["value"], ["minimize", "minimize"]) for b in trials)
    ]
    assert f"front of {len(expected)}" in err
    counted = "1 trial" if len(expected) == 1 else f"{len(expected)} trials"
    assert f"tradeoff: {counted} of 8 on the Pareto front" in out
    assert "regret (minimize)" in out
    shown = [int(line.split()[0]) for line in out.splitlines() if line.split()[0].isdigit()]
    assert sorted(shown) == expected
    errors = [trials[number]["value"][0] for number in shown]
    assert errors == sorted(errors)
    assert tuner("best", "tradeoff")[1].splitlines() == out.splitlines()[:-1]
    assert [t["number"] for t in json.loads(tuner("best", "tradeoff", "--format", "json")[1])] == expected
    (listed,) = json.loads(tuner("studies", "--format", "json")[1])
    assert (listed["best_value"], listed["direction"]) == (None, "minimize, minimize")
    assert len(listed["front"]) == len(expected)
    assert f"front of {len(expected)}" in tuner("studies")[1]
    assert all(len(row) == 2 for row in listed["front"])
    first = next(line for line in tuner("trials", "tradeoff")[1].splitlines() if line.split()[0] == "0")
    assert f"{trials[0]['value'][0]:.5g}, {trials[0]['value'][1]:.5g}" in first


def test_the_command_line_says_what_cannot_be(tuner: Tuner, tmp_path: Path) -> None:
    (tmp_path / "tradeoff.toml").write_text(TRADEOFF.replace("trials = 8", "trials = 9"))
    code, out, _ = tuner("try", "tradeoff.toml", "x0=1", "x1=1", "epochs=2")
    assert code == 0
    assert "trial 0: regret" in out
    assert "epochs 2; on the Pareto front, of 1 trial now" in out
    code, out, _ = tuner("try", "tradeoff.toml", "x0=1", "x1=1", "epochs=3")
    assert "not on the Pareto front, of 1 trial now" in out
    code, _, err = tuner("lineage", "tradeoff")
    assert (code, err) == (
        2,
        "error: tradeoff has several objectives, and no best trial: give a trial's number\n",
    )
    with StudyManager("sqlite:///tuner.db") as manager:
        with pytest.raises(DefinitionError, match="a panda session needs one objective; the study has 2"):
            manager.panda("tradeoff").__enter__()
        assert len(manager.load("tradeoff").trials) == 2
    (tmp_path / "c.toml").write_text(
        TRADEOFF + '[comparison]\narms = [{name = "a"}, {name = "b", sampler = {name = "sobol"}}]'
    )
    code, _, err = tuner("compare", "c.toml")
    assert code == 2
    assert err.startswith(
        "error: c.toml: a comparison judges its arms by one value; objectives names 2 (regret"
    )


def test_what_can_be_an_objective_is_listed(tuner: Tuner) -> None:
    out = " ".join(tuner("objectives", "wine")[1].split())
    assert "A study of several objectives can name: value, train_loss, dev_loss, " in out
    assert out.endswith("dev_macro_f1, epochs, training_seconds")
    (wine,) = json.loads(tuner("objectives", "wine", "--format", "json")[1])
    assert "dev_macro_f1" in wine["metrics"]


def test_a_stock_study_of_several_objectives_has_its_front_shown(tuner: Tuner, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/tuner.db"
    with StudyManager(url):
        pass
    storage = optuna.storages.RDBStorage(url)
    study = optuna.create_study(study_name="stock", storage=storage, directions=["minimize", "maximize"])
    study.optimize(lambda trial: (trial.suggest_float("x", 0, 1), trial.number % 2), n_trials=5)
    storage.scoped_session.remove()
    storage.engine.dispose()
    code, out, _ = tuner("best", "stock")
    assert code == 0
    assert "value 0 (minimize)" in out
    assert "value 1 (maximize)" in out
