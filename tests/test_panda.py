"""Panda: one trial, watched, adjusted, rewound and noted by a person, on the real network."""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState

from objectives.digits import digits_few
from objectives.epoch import Epoch, Epochs, Hyperparameter, Seed
from tuner import StudyDefinition, StudyManager, TunerError
from tuner.ask_tell import AskTell
from tuner.errors import DefinitionError, LeaseLostError, NotFoundError, StorageError
from tuner.panda import replay
from tuner.panda import session as session_module
from tuner.trial_run import run_trial

FEW = {
    "name": "few",
    "objective": "digits-few",
    "fixed": {"epochs": 12, "hidden_units": 16, "optimizer": "adam"},
    "space": {
        "learning_rate": {"low": 1e-4, "high": 1.0, "scale": "log"},
        "momentum": {"low": 0.5, "high": 0.999, "scale": "reverse_log"},
    },
    "sampler": {"name": "random"},
}
POINT = {"learning_rate": 0.01, "momentum": 0.9}


def few(**more: Any) -> StudyDefinition:
    return StudyDefinition.parse({**FEW, **more})


@pytest.fixture
def manager(sqlite_url: str) -> StudyManager:
    return StudyManager(sqlite_url)


def trial_of(manager: StudyManager, number: int = 0, study: str = "few") -> FrozenTrial:
    trial: FrozenTrial = manager.load(study).trials[number]
    return trial


def made(trial: FrozenTrial) -> list[tuple[int, str, Any, Any, str]]:
    return [(a["epoch"], a["name"], a["old"], a["new"], a["by"]) for a in trial.user_attrs["adjustments"]]


def test_a_watched_trial_is_an_ordinary_trial_of_its_study(manager: StudyManager) -> None:
    with manager.panda(few(), POINT, by="ada") as session:
        assert (session.epoch, session.planned, session.history) == (0, 12, ())
        first = session.step()
        assert first is not None
        session.run(until=4)
        running = trial_of(manager)
        assert (running.state, list(running.intermediate_values)) == (TrialState.RUNNING, [1, 2, 3, 4])
        session.run()
        assert session.is_finished
        assert session.step() == session.history[-1]  # nothing left to train
    trial = trial_of(manager)
    assert (trial.state, trial.params) == (TrialState.COMPLETE, POINT)
    assert list(trial.intermediate_values.values()) == [epoch.value for epoch in session.history]
    assert trial.value == session.history[-1].value
    assert trial.user_attrs["origin"] == "panda"
    assert trial.user_attrs["dev_error"] == session.history[-1].metrics["dev_error"]
    undisturbed = digits_few.evaluate({**FEW["fixed"], **POINT}, seed=Seed(0, 0))  # type: ignore[dict-item]
    assert [epoch.value for epoch in undisturbed] == [epoch.value for epoch in session.history]


def test_adjustments_are_on_the_trial_while_it_runs_and_replaying_them_gives_the_same_numbers(
    manager: StudyManager,
) -> None:
    with manager.panda(few(), POINT, by="ada") as session:
        session.step(3)
        session.adjust(learning_rate=0.003, l2=0.01)
        assert made(trial_of(manager)) == [
            (3, "learning_rate", 0.01, 0.003, "ada"),
            (3, "l2", 0.0, 0.01, "ada"),
        ]
        session.step(2)
        session.adjust(dropout=0.3)
        session.adjust(dropout=0.2, batch_size=10)
        session.step(2)
        session.adjust(momentum=0.97, dropout=0.0)
        session.run()
        assert session.current == {
            "learning_rate": 0.003,
            "momentum": 0.97,
            "batch_size": 10,
            "l2": 0.01,
            "l1": 0.0,
            "dropout": 0.0,
        }
    trial = trial_of(manager)
    assert replay(trial, digits_few, few()) == list(trial.intermediate_values.values())
    del trial.user_attrs["adjustments"][1]
    assert replay(trial, digits_few, few()) != list(trial.intermediate_values.values())


def test_a_rewind_takes_back_what_came_after_and_keeps_it_on_record(manager: StudyManager) -> None:
    with manager.panda(few(), POINT, by="ada") as session:
        session.step(4)
        session.adjust(learning_rate=0.05)
        session.step(3)
        before = {epoch.number: epoch.value for epoch in session.history}
        session.rewind(5)
        assert list(trial_of(manager).intermediate_values) == [1, 2, 3, 4, 5]
        assert session.step() is not None
        assert session.history[-1].value == before[6]  # nothing was changed: the same way again
        session.rewind(3)
        assert session.current["learning_rate"] == 0.01
        assert session.checkpoints == (1, 2, 3)
        session.adjust(learning_rate=0.002, batch_size=20)
        session.step(2)
        session.rewind(4)
        session.adjust(learning_rate=0.01, dropout=0.1)  # back to where it began
        session.run()
    trial = trial_of(manager)
    assert list(trial.intermediate_values) == list(range(1, 13))
    assert [entry[:2] for entry in made(trial)] == [
        (3, "learning_rate"),
        (3, "batch_size"),
        (4, "learning_rate"),
        (4, "dropout"),
    ]
    first, second, third = trial.user_attrs["rewinds"]
    assert (first["from"], first["epoch"], first["by"]) == (7, 5, "ada")
    assert first["values"] == {"6": before[6], "7": before[7]}
    assert [a["new"] for a in second["adjustments"]] == [0.05]
    assert (third["from"], third["epoch"]) == (5, 4)
    assert replay(trial, digits_few, few()) == list(trial.intermediate_values.values())


def test_before_the_first_epoch_an_adjustment_changes_what_it_begins_with(manager: StudyManager) -> None:
    with manager.panda(few(), POINT) as session:
        session.adjust(learning_rate=0.1)
        session.step(3)
        session.rewind(2)
        session.adjust(learning_rate=0.02)
        session.step(2)
        session.rewind(3)
        session.step()
    trial = trial_of(manager)
    assert replay(trial, digits_few, few()) == list(trial.intermediate_values.values())
    other = digits_few.evaluate({**FEW["fixed"], **POINT, "learning_rate": 0.1}, seed=Seed(0, 0))  # type: ignore[dict-item]
    assert next(other).value == trial.intermediate_values[1]


def test_checkpoints_thin_out_and_every_epoch_can_be_rewound_to_all_the_same(
    manager: StudyManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "MOST_CHECKPOINTS", 6)
    monkeypatch.setattr(session_module, "RECENT", 2)
    with manager.panda(few(), POINT) as session:
        session.step(2)
        session.adjust(learning_rate=0.03)
        session.run()
        values = [epoch.value for epoch in session.history]
        assert len(session.checkpoints) <= 6
        gone = [epoch for epoch in range(3, 12) if epoch not in session.checkpoints]
        assert gone
        for epoch in gone[::-1]:
            session.rewind(epoch)
            session.step()
            assert [epoch.value for epoch in session.history] == values[: epoch + 1]
        session.run()
    assert replay(trial_of(manager), digits_few, few()) == values


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("step"), st.integers(1, 4)),
        st.tuples(st.just("rewind"), st.integers(0, 12)),
        st.tuples(st.just("learning_rate"), st.sampled_from([0.001, 0.01, 0.05])),
        st.tuples(st.just("momentum"), st.sampled_from([0.5, 0.9])),
        st.tuples(st.just("dropout"), st.sampled_from([0.0, 0.4])),
        st.tuples(st.just("batch_size"), st.sampled_from([13, 32, 200])),
    ),
    max_size=12,
)


@settings(max_examples=25)
@given(actions=ACTIONS)
def test_whatever_the_person_does_replaying_it_gives_the_same_numbers(actions: list[tuple[str, Any]]) -> None:
    with TemporaryDirectory() as folder, StudyManager(f"sqlite:///{folder}/tuner.db") as manager:
        with manager.panda(few(), POINT) as session:
            for action, value in [*actions, ("step", 1)]:
                if action == "step":
                    session.step(value)
                elif action == "rewind":
                    session.rewind(min(value, session.epoch))
                elif not session.is_finished:
                    session.adjust(**{action: value})
        trial = trial_of(manager)
        reported = list(trial.intermediate_values.items())
        assert reported == [(epoch.number, epoch.value) for epoch in session.history]
        assert replay(trial, digits_few, few()) == [value for _, value in reported]
        assert trial.value == reported[-1][1]


def test_rewinding_to_the_start_begins_anew(manager: StudyManager) -> None:
    with manager.panda(few(), POINT) as session:
        session.step(2)
        values = [epoch.value for epoch in session.history]
        session.rewind(0)
        assert (session.epoch, trial_of(manager).intermediate_values) == (0, {})
        session.step(2)
        assert [epoch.value for epoch in session.history] == values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rat": 0.1}, r"cannot be adjusted .* \(did you mean 'learning_rate'\?\); can: batch_size"),
        ({"hidden_units": 32}, "'hidden_units' cannot be adjusted while 'digits-few' trains; can"),
        ({"learning_rate": -1.0}, r"learning_rate must lie in \[1e-08, 100\]; got -1.0"),
        ({"batch_size": 2.5}, "batch_size must be a whole number; got 2.5"),
        ({"momentum": float("nan")}, "momentum must lie in"),
    ],
)
def test_a_bad_adjustment_is_refused_before_it_is_sent(
    manager: StudyManager, values: dict[str, Any], message: str
) -> None:
    with manager.panda(few(), POINT) as session:
        session.step()
        with pytest.raises(DefinitionError, match=message):
            session.adjust(**values)
        assert "adjustments" not in trial_of(manager).user_attrs
        session.step()
    assert trial_of(manager).state == TrialState.COMPLETE


def test_an_adjustment_that_only_the_training_can_refuse_is_taken_back(manager: StudyManager) -> None:
    with manager.panda(few(), POINT) as session:
        session.step(2)
        session.adjust(batch_size=1)  # legal, but not with batch normalisation
        with pytest.raises(DefinitionError, match="refused: batch normalisation needs batches of at least 2"):
            session.step()
        assert session.current["batch_size"] == 32
        assert session.failure is None
        session.run()
    trial = trial_of(manager)
    assert trial.user_attrs["adjustments"] == []
    assert replay(trial, digits_few, few()) == list(trial.intermediate_values.values())


def test_a_training_that_diverges_can_be_rewound(manager: StudyManager) -> None:
    definition = few(fixed={**FEW["fixed"], "optimizer": "sgd", "batch_norm": False})  # type: ignore[dict-item]
    with manager.panda(definition, POINT) as session:
        session.step(3)
        session.adjust(learning_rate=100.0)
        with pytest.raises(TunerError, match=r"the training failed: diverged in epoch \d"):
            session.run()
        assert session.diagnosis.startswith("failed: diverged")
        with pytest.raises(TunerError, match="rewind first"):
            session.adjust(learning_rate=0.1)
        for action in (session.stop, session.step, session.run):
            with pytest.raises(TunerError, match="rewind first"):
                action()
        session.rewind(3)
        session.run()
    trial = trial_of(manager)
    assert trial.state == TrialState.COMPLETE
    assert "diverged" in trial.user_attrs["rewinds"][0]["failure"]
    assert replay(trial, digits_few, definition) == list(trial.intermediate_values.values())


def test_a_training_that_failed_and_was_not_rewound_fails_its_trial(manager: StudyManager) -> None:
    with (
        pytest.raises(TunerError, match="out of memory"),
        manager.panda(curve_study(), {}, Curve(3)) as session,
    ):
        session.run()
    trial = trial_of(manager, study="c")
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["failure"] == "MemoryError: out of memory"
    assert "evaluate" in trial.user_attrs["traceback"]


def test_notes_are_on_the_trial(manager: StudyManager) -> None:
    with manager.panda(few(), POINT, by="ada") as session:
        session.step()
        session.note("looks slow")
        (note,) = trial_of(manager).user_attrs["notes"]
        assert (note["epoch"], note["text"], note["by"]) == (1, "looks slow", "ada")
        assert note["at"].startswith("20")


def test_stop_ends_the_trial_with_the_value_of_its_last_epoch(manager: StudyManager) -> None:
    with manager.panda(few(), POINT, by="ada") as session:
        with pytest.raises(TunerError, match="there is no value yet"):
            session.stop()
        session.step(2)
        session.adjust(learning_rate=0.5)  # no epoch sees it
        session.stop()
        for action in (session.step, session.stop, lambda: session.adjust(l2=0.1), lambda: session.rewind(1)):
            with pytest.raises(TunerError, match="trial 0 is over"):
                action()
    trial = trial_of(manager)
    assert (trial.state, trial.value) == (TrialState.COMPLETE, trial.intermediate_values[2])
    assert trial.user_attrs["stopped"] == "by ada"
    assert trial.user_attrs["adjustments"] == []


def test_abandon_prunes_the_trial(manager: StudyManager) -> None:
    with manager.panda(few(), POINT) as session:
        session.step(2)
        session.abandon()
    trial = trial_of(manager)
    assert (trial.state, trial.value) == (TrialState.PRUNED, trial.intermediate_values[2])


def test_leaving_by_ctrl_c_gives_the_trial_back_and_a_worker_repeats_the_adjustments(
    manager: StudyManager,
) -> None:
    def leave() -> None:
        with manager.panda(few(), POINT, by="ada") as session:
            session.step(3)
            session.adjust(learning_rate=0.002, dropout=0.2)
            session.step(2)
            values.extend(epoch.value for epoch in session.history)
            raise KeyboardInterrupt

    values: list[float] = []
    with pytest.raises(KeyboardInterrupt):
        leave()
    assert trial_of(manager).state == TrialState.WAITING
    outcome = run_trial(manager.ask_tell("few"), digits_few)
    assert outcome is not None
    assert (outcome.number, outcome.state, outcome.epochs) == (0, TrialState.COMPLETE, 12)
    trial = trial_of(manager)
    assert list(trial.intermediate_values.values())[:5] == values
    assert replay(trial, digits_few, few()) == list(trial.intermediate_values.values())


def test_a_trial_that_was_given_back_can_be_taken_up_by_a_session(manager: StudyManager) -> None:
    with manager.panda(few(), POINT) as session:
        session.step(2)
        session.adjust(learning_rate=0.002)
        session.step(2)
        values = [epoch.value for epoch in session.history]
        session.release()
    with manager.panda("few") as again:
        assert (again.number, again.epoch, again.params) == (0, 0, {**FEW["fixed"], **POINT})  # type: ignore[dict-item]
        again.step(4)
        assert [epoch.value for epoch in again.history] == values
    assert len(manager.load("few").trials) == 1


def test_the_pruner_is_heard_but_does_not_end_a_watched_trial(manager: StudyManager) -> None:
    pruner = {"name": "threshold", "upper": 1e-9}
    with manager.panda(few(pruner=pruner), POINT) as session:
        session.step(3)
        assert list(session.would_prune) == [1, 2, 3]
        session.rewind(1)
        assert list(session.would_prune) == [1]
    assert trial_of(manager).state == TrialState.COMPLETE
    assert trial_of(manager).user_attrs["would_prune"] == [1]


def test_the_budget_stays_exact(manager: StudyManager) -> None:
    definition = few(budget={"trials": 1, "epochs": 5})
    with manager.panda(definition, POINT) as session:
        session.step(3)
        session.rewind(1)  # what was spent stays spent
        session.run()
        assert session.is_over
        assert session.epoch == 3
    trial = trial_of(manager)
    assert (trial.state, trial.user_attrs["stopped"]) == (TrialState.PRUNED, "budget")
    assert manager.ask_tell("few").spent().epochs == 5
    with pytest.raises(TunerError, match="the budget of few is used up"), manager.panda(definition, POINT):
        pass


def test_the_lease_lives_while_the_person_thinks(manager: StudyManager) -> None:
    session = manager.panda(few(), POINT)
    session.ask_tell.ledger.lease_seconds = 3.0
    with session:
        session.step()
        time.sleep(4.0)
        other = manager.ask_tell("few").ask()
        assert other is not None
        assert other.number == 1
        session.step()
    assert trial_of(manager).state == TrialState.COMPLETE


def test_a_trial_ended_by_hand_elsewhere_is_lost(manager: StudyManager) -> None:
    with manager.panda(few(), POINT) as session:
        session.step()
        manager.load("few").tell(0, 7.0)
        with pytest.raises(LeaseLostError):
            session.step()
    assert trial_of(manager).value == 7.0


class Curve:
    """No metrics, no checkpoints; raises in epoch `fails`."""

    name = "curve"
    description = "for tests"
    direction = "maximize"
    hyperparameters = (
        Hyperparameter("x", 0.0, low=0.0, high=1.0),
        Hyperparameter("rate", 0.5, adjustable=True),
    )

    def __init__(self, fails: int = 99) -> None:
        self.fails = fails

    def evaluate(self, params: Mapping[str, Any], *, seed: Seed, resume: bytes | None = None) -> Epochs:
        rate, left = params.get("rate", 0.5), 1.0
        for epoch in range(1, 11):
            if epoch == self.fails:
                raise MemoryError("out of memory")
            left *= rate
            adjustment = yield Epoch(epoch, params["x"] - left)
            rate = (adjustment or {}).get("rate", rate)


def curve_study(**more: Any) -> StudyDefinition:
    space = {"x": {"low": 0.0, "high": 1.0}}
    return StudyDefinition.parse({"name": "c", "direction": "maximize", "space": space, **more})


def test_an_objective_without_metrics_and_checkpoints(manager: StudyManager) -> None:
    with manager.panda(curve_study(), {"x": 1.0}, Curve()) as session:
        assert session.diagnosis == "just begun: no epoch yet"
        session.step(5)
        assert session.diagnosis == "improving: best in epoch 5"
        assert session.best == session.history[-1]
        assert session.planned is None
        with pytest.raises(TunerError, match="cannot rewind to epoch 3: curve has given no checkpoint"):
            session.rewind(3)
        session.adjust(rate=2.0)
        session.run()
        assert session.diagnosis.startswith("diverging")
    trial = trial_of(manager, study="c")
    assert replay(trial, Curve(), curve_study()) == list(trial.intermediate_values.values())


def test_the_diagnosis_speaks_of_bias_and_variance_where_the_metrics_tell(manager: StudyManager) -> None:
    with manager.panda(few(), POINT) as session:
        session.run()
        assert session.diagnosis.startswith("improving")
        assert "high variance" in session.diagnosis  # 200 examples


def test_what_cannot_be_watched_is_said(manager: StudyManager) -> None:
    with pytest.raises(
        NotFoundError, match=r"no such study in sqlite.*, and no definition is named 'digitz'"
    ):
        manager.panda("digitz")
    with pytest.raises(DefinitionError, match="c: names no objective"):
        manager.panda(curve_study())
    with pytest.raises(DefinitionError, match="must be an objective of epochs; function has no"):
        manager.panda(curve_study(), {}, lambda trial: 1.0)  # type: ignore[arg-type]
    with (
        pytest.raises(DefinitionError, match=r"learning_rate must lie in"),
        manager.panda(few(), {"learning_rate": 7.0}),
    ):
        pass
    assert "few" not in {study.name for study in manager.studies()}


@contextlib.contextmanager
def broken(ask_tell: AskTell, method: str) -> Iterator[None]:
    """A database that fails in this."""

    def fail(*_: Any, **__: Any) -> None:
        raise StorageError("the disk is full")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ask_tell, method, fail)
        with pytest.raises(StorageError, match="the disk is full"):
            yield


def test_where_the_database_fails_nothing_is_rewound(manager: StudyManager) -> None:
    with manager.panda(few(), POINT) as session:
        session.step(4)
        session.adjust(learning_rate=0.05)
        session.step(2)
        with broken(session.ask_tell, "rewind"):
            session.rewind(2)
        assert "rewinds" not in trial_of(manager).user_attrs
        assert (session.epoch, session.rewinds) == (6, [])
        assert session.current["learning_rate"] == 0.05
        session.run(until=8)
    trial = trial_of(manager)
    assert list(trial.intermediate_values) == list(range(1, 9))
    assert trial.value == session.history[-1].value
    assert replay(trial, digits_few, few()) == list(trial.intermediate_values.values())


def test_where_the_database_fails_nothing_is_adjusted_or_noted(manager: StudyManager) -> None:
    with manager.panda(few(), POINT) as session:
        session.step(2)
        with broken(session.ask_tell, "set_attrs"):
            session.adjust(learning_rate=0.05)
        with broken(session.ask_tell, "set_attrs"):
            session.note("lost")
        assert (session.current["learning_rate"], session.notes) == (0.01, [])
        assert session.adjustments.record == []
        session.step()
    trial = trial_of(manager)
    assert "adjustments" not in trial.user_attrs
    assert replay(trial, digits_few, few()) == list(trial.intermediate_values.values())


def given_back(manager: StudyManager) -> None:
    """Trial 0 with two adjustments of Ada's, which whoever takes it up will meet."""
    with manager.panda(few(), POINT, by="ada") as session:
        session.step(3)
        session.adjust(learning_rate=0.02)
        session.step(2)
        session.adjust(learning_rate=0.002, dropout=0.1)
        session.step()
        session.release()


def test_what_another_has_adjusted_is_announced_when_it_is_made_again(manager: StudyManager) -> None:
    given_back(manager)
    with manager.panda("few", by="grace") as session:
        session.step(2)
        session.adjust(learning_rate=0.1)
        session.step(4)
        said = [(event.epoch, event.text) for event in session.log]
    assert said == [
        (2, "learning_rate 0.01 → 0.1"),
        (3, "learning_rate 0.1 → 0.02 (again, as ada made it)"),
        (5, "learning_rate 0.02 → 0.002 (again, as ada made it)"),
        (5, "dropout 0 → 0.1 (again, as ada made it)"),
    ]
    trial = trial_of(manager)
    assert made(trial) == [
        (2, "learning_rate", 0.01, 0.1, "grace"),
        (3, "learning_rate", 0.1, 0.02, "ada"),
        (5, "learning_rate", 0.02, 0.002, "ada"),
        (5, "dropout", 0.0, 0.1, "ada"),
    ]
    assert replay(trial, digits_few, few()) == list(trial.intermediate_values.values())


def test_a_refused_adjustment_leaves_what_is_recorded_for_later_epochs(manager: StudyManager) -> None:
    given_back(manager)
    with manager.panda("few", by="grace") as session:
        session.step(3)
        session.adjust(batch_size=1)
        with pytest.raises(DefinitionError, match=r"taken back: learning_rate 0\.02, batch_size 1$"):
            session.step()
        session.run()
    trial = trial_of(manager)
    assert made(trial) == [
        (5, "learning_rate", 0.01, 0.002, "ada"),
        (5, "dropout", 0.0, 0.1, "ada"),
    ]
    assert replay(trial, digits_few, few()) == list(trial.intermediate_values.values())


def test_a_session_that_cannot_begin_leaves_nothing_behind(
    manager: StudyManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = threading.active_count()
    session = manager.panda(few(), POINT)
    with broken(session.ask_tell, "set_attrs"):
        session.__enter__()
    assert threading.active_count() == before
    assert not list(tmp_path.glob("panda-*"))
    assert trial_of(manager).state == TrialState.WAITING


def test_a_session_is_used_once(manager: StudyManager) -> None:
    with manager.panda(few(), POINT) as session:
        session.step()
        with pytest.raises(TunerError, match="this session has had its trial, 0"), session:
            pass
        session.step()
    with pytest.raises(TunerError, match="this session has had its trial, 0"), session:
        pass
    assert len(manager.load("few").trials) == 1


def test_a_metric_cannot_take_the_place_of_the_record(manager: StudyManager) -> None:
    class Metrics(Curve):
        def evaluate(self, params: Mapping[str, Any], *, seed: Seed, resume: bytes | None = None) -> Epochs:
            for epoch in super().evaluate(params, seed=seed):
                adjustment = yield Epoch(epoch.number, epoch.value, dict.fromkeys(named, 7.0))
                assert adjustment != {}

    named = ("adjustments", "notes", "rewinds", "origin", "failure", "stopped", "epochs", "x", "accuracy")
    with manager.panda(curve_study(), {"x": 0.5}, Metrics(), by="ada") as session:
        session.step(2)
        session.adjust(rate=0.1)
        session.note("fine")
        session.step(2)
    attrs = trial_of(manager, study="c").user_attrs
    assert [entry["new"] for entry in attrs["adjustments"]] == [0.1]
    assert [note["text"] for note in attrs["notes"]] == ["fine"]
    assert (attrs["origin"], attrs["stopped"], attrs["epochs"]) == ("panda", "by ada", 4)
    assert attrs["accuracy"] == 7.0
    assert all(attrs[f"last_{name}"] == 7.0 for name in named[:-1])
    assert not attrs.keys() & {"failure", "rewinds", "x"}
