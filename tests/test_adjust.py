"""Adjusting and stopping a trial from another process than the one that runs it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import optuna
import pytest
from command import Tuner
from optuna.trial import FrozenTrial, TrialState
from test_panda import POINT, Curve, curve_study, few, made, trial_of

from objectives.digits import digits_few
from objectives.epoch import Epoch, Epochs, Objective, Seed
from tuner import StudyDefinition, StudyManager
from tuner.errors import ConflictError, DefinitionError, NotFoundError
from tuner.panda import replay
from tuner.trial_run import run_trial


@pytest.fixture
def manager(sqlite_url: str) -> StudyManager:
    return StudyManager(sqlite_url)


def run(
    manager: StudyManager,
    do: Mapping[int, Callable[[], Any]],
    *,
    study: str = "few",
    objective: Objective = digits_few,
) -> FrozenTrial:
    """Run the next trial, and do things after some of its epochs, as another process might."""

    def on_epoch(epoch: Epoch) -> None:
        do.get(epoch.number, lambda: None)()

    outcome = run_trial(manager.ask_tell(study), objective, on_epoch=on_epoch)
    assert outcome is not None
    return trial_of(manager, outcome.number, study)


def test_a_worker_takes_adjustments_and_records_them(manager: StudyManager, sqlite_url: str) -> None:
    manager.create(few())
    other = StudyManager(sqlite_url)
    trial = run(
        manager,
        {
            3: lambda: other.adjust("few", 0, {"learning_rate": 0.003, "batch_size": 20}, by="ada"),
            6: lambda: other.adjust("few", 0, {"dropout": 0.2}, by="grace"),
            11: lambda: other.adjust("few", 0, {"l2": 0.5}, by="late"),  # no epoch is left to see it
        },
    )
    assert trial.state == TrialState.COMPLETE
    start = trial.params["learning_rate"]
    assert made(trial) == [  # with the report that follows
        (4, "learning_rate", start, 0.003, "ada"),
        (4, "batch_size", 32, 20, "ada"),
        (7, "dropout", 0.0, 0.2, "grace"),
    ]
    assert replay(trial, digits_few, few()) == list(trial.intermediate_values.values())


def test_an_adjustment_that_the_training_refuses_does_not_end_it(manager: StudyManager) -> None:
    manager.create(few())
    trial = run(manager, {3: lambda: manager.adjust("few", 0, {"batch_size": 1})})
    assert (trial.state, len(trial.intermediate_values)) == (TrialState.COMPLETE, 12)
    assert trial.user_attrs["adjustments"] == []
    assert "batch normalisation needs batches of at least 2" in trial.user_attrs["refused"]
    undisturbed = few().fixed | trial.params
    expected = [epoch.value for epoch in digits_few.evaluate(undisturbed, seed=Seed(0, 0))]
    assert list(trial.intermediate_values.values()) == expected


def test_what_nobody_has_checked_is_refused_by_the_worker(manager: StudyManager) -> None:
    manager.create(few())
    trial = run(manager, {3: lambda: manager.ask_tell("few").adjust(0, {"hidden_units": 5})})
    assert trial.state == TrialState.COMPLETE
    assert "adjustments" not in trial.user_attrs
    assert trial.user_attrs["refused"].startswith("'hidden_units' cannot be adjusted")


def test_a_worker_is_stopped(manager: StudyManager) -> None:
    manager.create(few())
    trial = run(manager, {3: lambda: manager.stop("few", 0, by="ada")})
    assert (trial.state, trial.value) == (TrialState.COMPLETE, trial.intermediate_values[4])
    assert (len(trial.intermediate_values), trial.user_attrs["stopped"]) == (4, "by ada")


def test_a_session_is_adjusted_and_stopped_from_elsewhere(manager: StudyManager, sqlite_url: str) -> None:
    other = StudyManager(sqlite_url)
    with manager.panda(few(), POINT, by="ada") as session:
        session.step(2)
        other.adjust("few", 0, {"momentum": 0.5}, by="grace")
        session.step(2)
        assert session.current["momentum"] == 0.5
        assert session.log[-1].text == "momentum 0.9 → 0.5 (by grace)"
        other.stop("few", 0, by="grace")
        session.run()
        assert (session.is_over, session.epoch, session.stopped) == (True, 5, "by grace")
    trial = trial_of(manager)
    assert made(trial) == [(3, "momentum", 0.9, 0.5, "grace")]
    assert trial.state == TrialState.COMPLETE
    assert replay(trial, digits_few, few()) == list(trial.intermediate_values.values())


def test_a_lost_trial_runs_again_with_what_was_adjusted(manager: StudyManager) -> None:
    manager.create(few())
    ask_tell = manager.ask_tell("few")
    seen: list[float] = []
    leave = threading.Event()

    def on_epoch(epoch: Epoch) -> None:
        seen.append(epoch.value)
        if epoch.number == 3:
            manager.adjust("few", 0, {"learning_rate": 0.003})
        if epoch.number == 6:
            leave.set()

    run_trial(ask_tell, digits_few, leave.is_set, on_epoch=on_epoch)
    trial = run(manager, {})
    assert trial.number == 0
    assert list(trial.intermediate_values.values())[:6] == seen
    assert [entry[:2] for entry in made(trial)] == [(4, "learning_rate")]
    assert replay(trial, digits_few, few()) == list(trial.intermediate_values.values())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rat": 0.1}, r"'learning_rat' cannot be adjusted .* \(did you mean 'learning_rate'\?\)"),
        ({"learning_rate": 1e9}, "learning_rate must lie in"),
        ({"batch_size": 2.5}, "batch_size must be a whole number"),
        ({}, "at least one hyperparameter"),
    ],
)
def test_a_bad_adjustment_is_refused_before_it_is_recorded(
    manager: StudyManager, values: dict[str, Any], message: str
) -> None:
    manager.create(few())

    def bad() -> None:
        with pytest.raises(DefinitionError, match=message):
            manager.adjust("few", 0, values)

    trial = run(manager, {3: bad})
    assert "refused" not in trial.user_attrs


def test_what_does_not_run_cannot_be_adjusted(manager: StudyManager) -> None:
    manager.create(few())
    run(manager, {})
    with pytest.raises(ConflictError, match="nobody is running trial 0, so nobody can adjust it"):
        manager.adjust("few", 0, {"l2": 0.1})
    with pytest.raises(NotFoundError, match="few has no trial 7"):
        manager.stop("few", 7)
    manager.create(curve_study())
    with pytest.raises(DefinitionError, match="c: names no objective"):
        manager.adjust("c", 0, {"rate": 0.1})


def test_an_objective_in_python_is_adjusted_too(manager: StudyManager) -> None:
    manager.create(curve_study())
    trial = run(
        manager,
        {2: lambda: manager.ask_tell("c").adjust(0, {"rate": 0.1}, by="ada")},
        study="c",
        objective=Curve(),
    )
    assert made(trial) == [(3, "rate", 0.5, 0.1, "ada")]
    assert replay(trial, Curve(), curve_study()) == list(trial.intermediate_values.values())


def test_adjust_and_stop_on_the_command_line(
    tuner: Tuner,
    manager: StudyManager,
    sqlite_url: str,
) -> None:
    manager.create(few())
    said: list[tuple[int, str, str]] = []

    def say(*arguments: str) -> Callable[[], None]:
        return lambda: said.append(tuner(*arguments, "--storage", sqlite_url))

    trial = run(
        manager,
        {
            2: say("adjust", "few", "0", "learning_rate=0.003", "dropout=0.1"),
            4: say("adjust", "few", "0", "hidden_units=5"),
            6: say("stop", "few", "0"),
        },
    )
    assert [code for code, _, _ in said] == [0, 2, 0]
    assert "learning_rate=0.003 dropout=0.1, from its next report on" in said[0][1]
    assert said[1][2].startswith("error: 'hidden_units' cannot be adjusted while 'digits-few' trains; can:")
    assert len(said[1][2].splitlines()) == 1
    assert [(e["epoch"], e["name"]) for e in trial.user_attrs["adjustments"]] == [
        (3, "learning_rate"),
        (3, "dropout"),
    ]
    assert (trial.state, len(trial.intermediate_values)) == (TrialState.COMPLETE, 7)
    code, _, err = tuner("stop", "few", "0", "--storage", sqlite_url)
    assert (code, err) == (2, "error: few: nobody is running trial 0, so nobody can stop it\n")


class Stubborn(Curve):
    """Refuses every adjustment and gives no checkpoint to go back to."""

    def evaluate(self, params: Mapping[str, Any], *, seed: Seed, resume: bytes | None = None) -> Epochs:
        for epoch in super().evaluate(params, seed=seed):
            if (yield epoch):
                raise ValueError("no")


def test_a_refusal_without_a_checkpoint_fails_the_trial_with_its_reason(manager: StudyManager) -> None:
    manager.create(curve_study())
    trial = run(
        manager, {2: lambda: manager.ask_tell("c").adjust(0, {"rate": 0.1})}, study="c", objective=Stubborn()
    )
    assert (trial.state, trial.user_attrs["failure"]) == (TrialState.FAIL, "ValueError: no")


def test_a_plain_function_is_stopped_and_not_adjusted(sqlite_url: str) -> None:
    manager = StudyManager(sqlite_url)
    space = {"x": {"low": 0.0, "high": 1.0}}
    definition = StudyDefinition.parse({"name": "f", "space": space, "budget": {"trials": 3}})
    manager.create(definition)
    ask_tell = manager.ask_tell("f")

    def train(trial: optuna.Trial) -> float:
        for epoch in range(1, 6):
            if epoch == 2 and trial.number == 0:
                ask_tell.adjust(0, {"x": 0.1}, by="ada")
            if epoch == 2 and trial.number == 1:
                ask_tell.stop(1, by="ada")
            trial.report(1 / epoch, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        trial.set_user_attr("said", "done")
        return 0.0

    assert run_trial(ask_tell, train) is not None
    assert run_trial(ask_tell, train) is not None
    adjusted, stopped = ask_tell.study.trials
    assert (adjusted.state, adjusted.value, adjusted.user_attrs["said"]) == (TrialState.COMPLETE, 0.0, "done")
    assert "cannot be adjusted" in adjusted.user_attrs["refused"]
    assert (stopped.state, stopped.value) == (TrialState.COMPLETE, 0.5)
    assert stopped.user_attrs["stopped"] == "by ada"


def test_what_fails_between_ask_and_training_gives_the_trial_back(sqlite_url: str) -> None:
    manager = StudyManager(sqlite_url)
    manager.create(StudyDefinition.parse({"name": "f", "space": {"x": {"low": 0.0, "high": 1.0}}}))
    ask_tell = manager.ask_tell("f")

    def fail(_: object) -> None:
        raise RuntimeError("the terminal is gone")

    with pytest.raises(RuntimeError, match="terminal"):
        run_trial(ask_tell, lambda trial: 1.0, params={"x": 0.5}, on_begin=fail)
    assert ask_tell.open_leases() == []
    assert ask_tell.study.trials[0].state is TrialState.WAITING
