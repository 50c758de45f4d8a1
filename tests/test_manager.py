"""The manager: one face for registered objectives, objectives in Python, and plain Optuna functions."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

import tuner
from objectives.epoch import Diverged, Epoch, Epochs, Hyperparameter, Seed
from tuner import ComparisonDefinition, StudyDefinition, StudyManager, TunerError
from tuner.ask_tell import Answer, Reply
from tuner.errors import ConflictError, DefinitionError, MissingDependencyError, NotFoundError, StorageError
from tuner.ledger import StudyState
from tuner.trial_run import Failures, Outcome, run_trial

BRANIN = {
    "name": "b",
    "objective": "branin",
    "budget": {"trials": 12},
    "fixed": {"epochs": 4},
    "space": {"x0": {"low": -5, "high": 10}, "x1": {"low": 0, "high": 15}},
    "sampler": {"name": "random"},
}


def study(**more: Any) -> StudyDefinition:
    return StudyDefinition.parse({**BRANIN, **more})


class Curve:
    """An objective whose trial number decides what happens."""

    name = "curve"
    description = "for tests"
    direction = "minimize"
    hyperparameters = (Hyperparameter("x", 0.0),)

    def __init__(self, what: Mapping[int, Any] | None = None) -> None:
        self.what = what or {}
        self.seeds: list[Seed] = []
        self.closed: list[int] = []

    def evaluate(self, params: Mapping[str, Any], *, seed: Seed, resume: bytes | None = None) -> Epochs:
        self.seeds.append(seed)
        try:
            for epoch in range(1, 5):
                happens = self.what.get(seed.trial)
                if isinstance(happens, BaseException):
                    raise happens
                value = params["x"] + 1 / epoch if happens is None else happens
                yield Epoch(epoch, value, {"dev_error": epoch / 10, "odd": float("nan"), "x": 7.0})
        finally:
            self.closed.append(seed.trial)


def curve_study(**more: Any) -> StudyDefinition:
    document = {
        "name": "c",
        "space": {"x": {"low": 0, "high": 1}},
        "budget": {"trials": 6},
        "sampler": {"name": "sobol"},
    }
    return StudyDefinition.parse({**document, **more})


def test_the_public_names_are_sorted_and_there() -> None:
    assert tuner.__all__ == sorted(tuner.__all__)
    for name in tuner.__all__:
        assert getattr(tuner, name).__doc__


def test_run_uses_worker_processes_for_a_registered_objective(sqlite_url: str) -> None:
    outcomes: list[Outcome] = []
    with StudyManager(sqlite_url) as manager:
        finished = manager.run(study(), workers=2, on_outcome=outcomes.append)
        assert type(finished) is optuna.Study
        assert [t.number for t in finished.trials] == list(range(12))
        assert all(t.state == TrialState.COMPLETE for t in finished.trials)
        assert all(list(t.intermediate_values) == [1, 2, 3, 4] for t in finished.trials)
        assert finished.best_value == min(outcome.value for outcome in outcomes if outcome.value is not None)
        assert sorted(outcome.number for outcome in outcomes) == list(range(12))
        best = finished.best_trial.user_attrs
        assert (best["epochs"], best["regret"]) == (
            4,
            pytest.approx(finished.best_value - 0.397887, abs=1e-5),
        )
        outcomes.clear()
        manager.run(study(), workers=2, on_outcome=outcomes.append)
        assert outcomes == []  # nothing left to do


def test_an_objective_of_epochs_given_in_python(sqlite_url: str) -> None:
    curve = Curve()
    with StudyManager(sqlite_url) as manager:
        finished = manager.run(curve_study(seed=7), curve, workers=1)
    assert curve.seeds == [Seed(7, number) for number in range(6)]
    for trial in finished.trials:
        assert trial.value == pytest.approx(trial.params["x"] + 0.25)
        assert trial.user_attrs["dev_error"] == 0.4
        assert "odd" not in trial.user_attrs  # NaN is no JSON
        assert trial.user_attrs["last_x"] == 7.0  # not to be taken for the parameter x


def test_what_a_training_raises_is_on_its_trial_and_the_study_goes_on(sqlite_url: str) -> None:
    curve = Curve(
        {1: ZeroDivisionError("by nothing"), 2: Diverged(3, "loss is inf"), 3: float("nan"), 4: float("inf")}
    )
    outcomes: list[Outcome] = []
    with StudyManager(sqlite_url) as manager:
        trials = manager.run(curve_study(), curve, on_outcome=outcomes.append).trials
    states = [t.state.name for t in trials]
    assert states == ["COMPLETE", "FAIL", "FAIL", "FAIL", "COMPLETE", "COMPLETE"]
    assert trials[1].user_attrs["failure"] == "ZeroDivisionError: by nothing"
    assert "evaluate" in trials[1].user_attrs["traceback"]
    assert trials[2].user_attrs["failure"] == "diverged in epoch 3: loss is inf"
    assert trials[3].user_attrs["failure"] == "diverged in epoch 1: the value is not a number"
    assert trials[4].value == float("inf")
    assert [outcome.is_error for outcome in outcomes] == [False, True, False, False, False, False]


def test_too_many_errors_in_a_row_stop_the_study_with_the_reason(sqlite_url: str) -> None:
    curve = Curve({number: KeyError("no such file") for number in range(99)})
    with StudyManager(sqlite_url) as manager:
        with pytest.raises(TunerError, match=r"c: stopped, as 5 trials in a row failed; .*no such file"):
            manager.run(curve_study(budget={"trials": 50}), curve)
        assert len(manager.load("c").trials) == 5


def test_a_trial_that_was_given_back_among_them_does_not_begin_the_count_anew() -> None:
    failures = Failures()
    failed = Outcome("s", 3, TrialState.FAIL, failure="KeyError", is_error=True)
    other, given_back = dataclasses.replace(failed, study="t"), Outcome("s", 4, None)
    assert [failures.count(o) for o in (failed, failed, other, given_back, failed, failed)] == [None] * 6
    assert (
        failures.count(failed) == "s: stopped, as 5 trials in a row failed; the last (trial 3) with KeyError"
    )
    assert failures.count(Outcome("s", 5, TrialState.FAIL, failure="diverged")) is None
    assert failures.count(failed) is None


class Odd(Curve):
    """Breaks the contract in the way that its trial's number says."""

    def evaluate(self, params: Mapping[str, Any], *, seed: Seed, resume: bytes | None = None) -> Epochs:
        if seed.trial == 0:
            return
        yield Epoch(1, 1.0)
        if seed.trial == 1:
            yield Epoch(1, 1.0)
        raise NotFoundError("no such file of mine")  # our own kind of error, but raised by a training


def test_a_training_that_breaks_the_contract_fails_in_words(sqlite_url: str) -> None:
    with StudyManager(sqlite_url) as manager:
        trials = manager.run(curve_study(budget={"trials": 3}), Odd()).trials
    assert [t.state.name for t in trials] == ["FAIL"] * 3
    assert [t.user_attrs["failure"] for t in trials] == [
        "ValueError: objective 'curve' yielded no epoch",
        "ValueError: epoch numbers must grow from 1; got 1 after 1",
        "NotFoundError: no such file of mine",
    ]


def test_a_pruned_training_is_closed_and_keeps_its_last_value(sqlite_url: str) -> None:
    curve = Curve({5: 100.0})
    pruner = {"name": "median", "startup_trials": 3, "warmup_epochs": 1}
    with StudyManager(sqlite_url) as manager:
        finished = manager.run(curve_study(pruner=pruner), curve)
    pruned = finished.trials[5]
    assert (pruned.state, pruned.value, list(pruned.intermediate_values)) == (
        TrialState.PRUNED,
        100.0,
        [1, 2],
    )
    assert pruned.user_attrs["stopped"] == "pruner"
    assert sorted(curve.closed) == list(range(6))


def test_a_plain_function_that_prunes_on_nan_leaves_a_readable_study(sqlite_url: str) -> None:
    def diverging(trial: optuna.Trial) -> float:
        trial.report(float("nan"), 0)
        raise optuna.TrialPruned

    with StudyManager(sqlite_url) as manager:
        trials = manager.run(curve_study(budget={"trials": 2}), diverging).trials
    assert [(t.state, t.value) for t in trials] == [(TrialState.PRUNED, None)] * 2


def test_trials_that_report_nothing_use_up_any_budget(sqlite_url: str) -> None:
    def silent(trial: optuna.Trial) -> float:
        time.sleep(0.02)
        return trial.suggest_float("x", 0, 1)

    with StudyManager(sqlite_url) as manager:
        assert len(manager.run(curve_study(budget={"epochs": 3}), silent).trials) == 3
        study = manager.run(curve_study(name="timed", budget={"seconds": 0.05}), silent)
        assert 1 <= len(study.trials) <= 3  # fewer than 3 where the machine takes its time
        assert manager.ask_tell("timed").spent().seconds >= 0.05
        diverging = Curve(dict.fromkeys(range(99), float("nan")))
        assert len(manager.run(curve_study(name="d", budget={"epochs": 3}), diverging).trials) == 3


def test_a_training_that_ends_with_the_budget_is_complete(sqlite_url: str) -> None:
    with StudyManager(sqlite_url) as manager:
        finished = manager.run(curve_study(budget={"epochs": 8}), Curve())
    assert [t.state for t in finished.trials] == [TrialState.COMPLETE] * 2


class Messy(Curve):
    """Exits, tells odd metrics, or fails while it is closed."""

    def evaluate(self, params: Mapping[str, Any], *, seed: Seed, resume: bytes | None = None) -> Epochs:
        if seed.trial == 0:
            raise SystemExit(0)
        metrics: dict[str, Any] = {"note": "a word"} if seed.trial == 1 else {}
        try:
            yield Epoch(1, 1.0, metrics)
            yield Epoch(2, 1.0)
        finally:
            raise OSError("cannot clean up")


def test_exits_odd_metrics_and_failing_clean_ups_stay_with_their_trial(
    sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    pruner = {"name": "threshold", "upper": 0.5}
    with StudyManager(sqlite_url) as manager:
        trials = manager.run(curve_study(budget={"trials": 3}, pruner=pruner), Messy()).trials
    assert [t.state.name for t in trials] == ["FAIL", "FAIL", "PRUNED"]
    assert trials[0].user_attrs["failure"] == "SystemExit: 0"
    assert "OSError" in trials[1].user_attrs["failure"] or "a word" in trials[1].user_attrs["failure"]
    assert "raised while it was closed" in caplog.text


def test_one_arm_that_always_fails_does_not_stop_the_others(sqlite_url: str) -> None:
    class HalfBroken(Curve):
        def evaluate(self, params: Mapping[str, Any], *, seed: Seed, resume: bytes | None = None) -> Epochs:
            if params["x"] > 2:
                raise RuntimeError("out of range")
            yield Epoch(1, params["x"])

    arms = [{"name": "fine"}, {"name": "broken", "space": {"x": {"low": 3, "high": 4}}}]
    document = {"name": "h", "space": {"x": {"low": 0, "high": 1}}, "budget": {"trials": 8}}
    definition = ComparisonDefinition.parse({**document, "comparison": {"seeds": 1, "arms": arms}})
    with StudyManager(sqlite_url) as manager:
        with pytest.raises(TunerError, match=r"h\.broken\.seed-0: stopped, .*out of range"):
            manager.compare(definition, HalfBroken())
        assert len(manager.load("h.fine.seed-0").trials) == 8
        assert len(manager.load("h.broken.seed-0").trials) == 5


def test_a_stopping_run_gives_a_plain_function_back(sqlite_url: str) -> None:
    with StudyManager(sqlite_url) as manager:
        manager.create(curve_study())
        ask_tell = manager.ask_tell("c")

        def patient(trial: optuna.Trial) -> float:
            trial.report(1.0, 0)
            return 1.0

        outcome = run_trial(ask_tell, patient, stopping=lambda: True)
        assert outcome is not None
        assert outcome.state is None
        lease = ask_tell.ask()
        assert lease is not None
        assert lease.number == 0


def test_a_budget_of_epochs_cuts_the_last_trial(sqlite_url: str) -> None:
    with StudyManager(sqlite_url) as manager:
        finished = manager.run(curve_study(budget={"epochs": 10}), Curve())
    assert [len(t.intermediate_values) for t in finished.trials] == [4, 4, 2]
    assert finished.trials[2].user_attrs["stopped"] == "budget"


def test_a_plain_optuna_objective_with_its_own_suggestions(sqlite_url: str) -> None:
    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", -1, 1)
        for step in range(5):
            trial.report(x**2 + 1 / (step + 1), step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return x**2

    definition = StudyDefinition.parse(
        {"name": "p", "budget": {"trials": 25}, "sampler": {"name": "tpe"}, "pruner": {"name": "median"}}
    )
    with StudyManager(sqlite_url) as manager:
        finished = manager.run(definition, objective)
        counts = {
            state: sum(t.state.name == state for t in finished.trials) for state in ("COMPLETE", "PRUNED")
        }
        assert counts["COMPLETE"] + counts["PRUNED"] == 25
        assert counts["PRUNED"] > 0
        assert finished.best_value < 0.1
        assert manager.ask_tell("p").spent().epochs == sum(
            len(t.intermediate_values) for t in finished.trials
        )


def test_a_plain_optuna_objective_gets_the_definitions_space(sqlite_url: str) -> None:
    with StudyManager(sqlite_url) as manager:
        finished = manager.run(curve_study(), lambda trial: trial.suggest_float("x", 0, 1), workers=2)
    assert len({t.params["x"] for t in finished.trials}) == 6


def test_compare_gives_the_same_whatever_the_number_of_workers(tmp_path: Any) -> None:
    arms = [{"name": n, "sampler": {"name": n}} for n in ("random", "tpe", "coarse-to-fine")]
    document = {**BRANIN, "budget": {"trials": 15}, "pruner": {"name": "median"}}
    definition = ComparisonDefinition.parse({**document, "comparison": {"seeds": 2, "arms": arms}})
    found = []
    for workers in (1, 2):
        with StudyManager(f"sqlite:///{tmp_path}/{workers}.db") as manager:
            result = manager.compare(definition, workers=workers)
            found.append(
                [(run.study, run.best.tolist(), run.epochs.tolist(), run.best_params) for run in result.runs]
            )
            names = [summary.name for summary in manager.studies()]
    assert found[0] == found[1]
    assert names == [f"b.{arm}.seed-{seed}" for seed in (0, 1) for arm in ("random", "tpe", "coarse-to-fine")]


def test_more_seeds_go_on_from_what_is_there(sqlite_url: str) -> None:
    arms = [{"name": n, "sampler": {"name": n}} for n in ("random", "sobol")]
    definition = ComparisonDefinition.parse({**BRANIN, "comparison": {"seeds": 1, "arms": arms}})
    outcomes: list[Outcome] = []
    with StudyManager(sqlite_url) as manager:
        manager.compare(definition, workers=2, executor="threads")
        result = manager.compare(
            definition.with_seeds(2), workers=2, executor="threads", on_outcome=outcomes.append
        )
    assert {outcome.study for outcome in outcomes} == {"b.random.seed-1", "b.sobol.seed-1"}
    assert result.seeds == [0, 1]


def test_the_same_name_with_another_definition_is_a_conflict(sqlite_url: str) -> None:
    with StudyManager(sqlite_url) as manager:
        manager.create(study())
        manager.create(study())
        with pytest.raises(ConflictError, match="'b' already, with another seed, budget"):
            manager.create(study(seed=1, budget={"trials": 99}))


def test_studies_lists_and_archive_hides(sqlite_url: str) -> None:
    with StudyManager(sqlite_url) as manager:
        manager.run(curve_study(budget={"trials": 2}), Curve({1: ValueError("x")}))
        optuna.create_study(study_name="stock", storage=sqlite_url)
        first, second = manager.studies()
        assert (first.name, first.sampler, first.trials, first.budget, first.finished) == (
            "c", "sobol", {"COMPLETE": 1, "FAIL": 1}, 2, 2
        )  # fmt: skip
        assert (second.name, second.sampler, second.best_value) == ("stock", None, None)
        manager.archive("c")
        assert [s.name for s in manager.studies()] == ["stock"]
        assert [s.name for s in manager.studies(archived=True)] == ["c", "stock"]
        manager.archive("c", undo=True)
        assert len(manager.studies()) == 2


def test_a_paused_study_begins_no_trial_until_it_is_resumed(url: str) -> None:
    with StudyManager(url) as manager:
        manager.create(curve_study())
        ask_tell = manager.ask_tell("c")
        first = ask_tell.ask("a")
        assert first is not None
        manager.pause("c")
        assert manager.state("c") is StudyState.PAUSED
        assert ask_tell.ask() is None
        assert ask_tell.seen_state is StudyState.PAUSED
        again = ask_tell.ask("a")  # what was handed out stays so
        assert again is not None
        assert again.number == first.number
        assert ask_tell.report(first, 1, 1.0).answer is Answer.CONTINUE
        ask_tell.release(first)
        assert ask_tell.ask() is None  # nor does one begin again
        assert not ask_tell.is_finished()
        with pytest.raises(TunerError, match="c is paused: it hands out no trials"):
            manager.run(curve_study(), Curve())
        manager.resume("c")
        manager.run(curve_study(), Curve())
        assert ask_tell.is_finished()
        assert ask_tell.spent().trials == 6
        manager.pause("c")
        manager.run(curve_study(), Curve())  # all is done: nothing is kept from running
        with pytest.raises(NotFoundError):
            manager.pause("nothing")


def test_a_run_whose_study_is_paused_meanwhile_ends_and_says_so(sqlite_url: str) -> None:
    with StudyManager(sqlite_url) as manager:
        outcomes: list[Outcome] = []

        def pause(outcome: Outcome) -> None:
            outcomes.append(outcome)
            manager.pause("c")

        with pytest.raises(TunerError, match=r"c is paused.*resume it, then run again"):
            manager.run(curve_study(), Curve(), on_outcome=pause)
        assert 1 <= len(outcomes) < 6


def test_a_study_that_is_stopped_ends_its_trials_with_their_next_report(url: str) -> None:
    with StudyManager(url) as manager:
        manager.create(curve_study())
        ask_tell = manager.ask_tell("c")
        leases = [ask_tell.ask() for _ in range(2)]
        manager.stop_study("c", by="anna")
        assert ask_tell.ask() is None
        for lease in leases:
            assert lease is not None
            assert ask_tell.report(lease, 1, 1.0) == Reply(Answer.STOP, by="anna")
        manager.resume("c")
        assert ask_tell.ask() is not None


def test_an_ask_that_wants_to_be_alone_waits_for_the_trial_before(url: str) -> None:
    with StudyManager(url) as manager:
        manager.create(curve_study())
        ask_tell = manager.ask_tell("c")
        with ThreadPoolExecutor(8) as pool:
            leases = list(pool.map(lambda _: manager.ask_tell("c").ask(alone=True), range(8)))
        (lease,) = [lease for lease in leases if lease is not None]
        ask_tell.tell(lease, TrialState.COMPLETE, 1.0)
        assert ask_tell.ask(alone=True) is not None
        assert ask_tell.ask(alone=True) is None


def test_open_returns_a_plain_study_that_optuna_can_drive(sqlite_url: str) -> None:
    with StudyManager(sqlite_url) as manager:
        manager.create(
            study(
                space={
                    "x0": {"low": -5, "high": 10},
                    "x1": {"low": 0.0, "high": 0.99, "scale": "reverse_log"},
                }
            )
        )
        opened = manager.open("b")
        opened.optimize(lambda t: t.suggest_float("x1", 0, 0.99), n_trials=200)
    above = sum(t.params["x1"] > 0.9 for t in opened.trials)
    assert (
        70 <= above <= 130
    )  # half of log-uniform 1 − β in [0.01, 1] lies below 0.1; uniform β would give 18


def test_many_create_the_same_study_at_once(url: str) -> None:
    managers = [StudyManager(url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(manager.create, study()) for manager in managers]:
            assert future.result().study_name == "b"
    assert managers[0].definition("b") == study()


def test_a_foreign_study_of_that_name_is_a_conflict(sqlite_url: str) -> None:
    optuna.create_study(study_name="b", storage=sqlite_url, directions=["minimize", "maximize"])
    with StudyManager(sqlite_url) as manager:
        assert manager.studies()[0].direction == "minimize, maximize"
        with pytest.raises(ConflictError, match="not made from a definition"):
            manager.create(study())


def test_clear_errors(sqlite_url: str, tmp_path: Any) -> None:
    with StudyManager(sqlite_url) as manager:
        with pytest.raises(NotFoundError, match="no study is named 'nix'"):
            manager.open("nix")
        with pytest.raises(DefinitionError, match="names no objective"):
            manager.run(curve_study())
        with pytest.raises(DefinitionError, match=r"Half is no objective: it has no description, direction"):
            manager.run(curve_study(), type("Half", (), {"name": "half", "evaluate": None})())
        with pytest.raises(DefinitionError, match="'curve' is to minimize; got 'maximize'"):
            manager.run(curve_study(direction="maximize"), Curve())
        with pytest.raises(DefinitionError, match="budget: give trials, epochs or seconds"):
            manager.run(curve_study(budget={}), Curve())
        with pytest.raises(DefinitionError, match="workers must be at least 1; got 0"):
            manager.run(curve_study(), Curve(), workers=0)
        with pytest.raises(DefinitionError, match="no such hyperparameter"):
            manager.create(StudyDefinition(name="x", objective="branin", fixed={"y": 1}))
        with pytest.raises(DefinitionError, match="workers"):
            manager.run(curve_study(name="z"), Curve(), workers=-1)
        assert manager.studies() == []  # all is checked before the first study is created
    with pytest.raises(StorageError, match=r"the folder .*/none does not exist"):
        StudyManager(f"sqlite:///{tmp_path}/none/x.db")
    with pytest.raises(StorageError, match="one process only"):
        StudyManager("sqlite://")
    with pytest.raises(StorageError, match="no database URL"):
        StudyManager("tuner.db")
    (tmp_path / "text.db").write_text("no database" * 100)
    with pytest.raises(StorageError, match="not a database"):
        StudyManager(f"sqlite:///{tmp_path}/text.db")


def test_gp_without_torch_says_what_to_install(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with StudyManager(sqlite_url) as manager, pytest.raises(MissingDependencyError, match=r"tuner\[gp\]"):
        manager.create(study(sampler={"name": "gp"}))
