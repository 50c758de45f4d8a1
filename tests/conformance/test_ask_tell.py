"""Ask, report, tell: leases, budgets and take-overs, on SQLite and PostgreSQL alike."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import numpy as np
import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import TrialState

from tuner import StudyDefinition, StudyManager
from tuner.ask_tell import Answer, AskTell, Lease
from tuner.errors import LeaseLostError
from tuner.ledger import Owner, Spent
from tuner.trial_run import run_trial

SPACE = {
    "learning_rate": {"low": 1e-4, "high": 1.0, "scale": "log"},
    "momentum": {"low": 0.5, "high": 0.999, "scale": "reverse_log"},
    "units": {"type": "int", "low": 4, "high": 64},
    "activation": {"choices": ["relu", "tanh"]},
}


def definition(**more: Any) -> StudyDefinition:
    return StudyDefinition.parse({"name": "s", "space": SPACE, "sampler": {"name": "random"}, **more})


def begin(url: str, **more: Any) -> AskTell:
    manager = StudyManager(url)
    manager.create(definition(**more))
    return manager.ask_tell("s")


def must(lease: Lease | None) -> Lease:
    assert lease is not None
    return lease


def complete(ask_tell: AskTell, value: float = 1.0) -> int:
    lease = must(ask_tell.ask())
    ask_tell.report(lease, 1, value)
    ask_tell.tell(lease, TrialState.COMPLETE, value)
    return lease.number


def test_a_trial_from_ask_to_tell_is_what_optuna_reads(url: str) -> None:
    ask_tell = begin(url)
    lease = must(ask_tell.ask())
    (running,) = optuna.load_study(study_name="s", storage=StudyManager(url)._storage).trials
    assert (running.state, running.params) == (TrialState.RUNNING, lease.params)
    assert running.distributions == ask_tell.definition.space.distributions
    assert ask_tell.report(lease, 1, 0.5) is Answer.CONTINUE
    assert ask_tell.report(lease, 2, float("inf")) is Answer.CONTINUE
    ask_tell.tell(lease, TrialState.COMPLETE, 0.25, {"dev_error": 0.1, "note": "ü"})
    (trial,) = ask_tell.study.trials
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.25)
    assert trial.intermediate_values == {1: 0.5, 2: float("inf")}
    assert trial.user_attrs == {"dev_error": 0.1, "note": "ü"}
    assert trial.datetime_start is not None
    assert trial.datetime_complete is not None
    assert trial.datetime_start <= trial.datetime_complete


def test_the_database_opens_with_bare_optuna(sqlite_url: str) -> None:
    ask_tell = begin(sqlite_url)
    complete(ask_tell)
    script = f"import optuna; print(optuna.load_study(study_name='s', storage={sqlite_url!r}).best_value)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "1.0\n"


def test_the_budget_of_trials_is_exact(url: str) -> None:
    ask_tell = begin(url, budget={"trials": 3})
    leases = [must(ask_tell.ask()) for _ in range(3)]
    assert ask_tell.ask() is None
    for lease in leases:
        ask_tell.tell(lease, TrialState.COMPLETE, 0.0)
    assert ask_tell.ask() is None
    assert ask_tell.spent() == Spent(trials=3, ended=3, epochs=3)  # a trial without a report counts as one


def test_the_budget_of_epochs_is_exact_over_trials_that_run_at_once(url: str) -> None:
    ask_tell = begin(url, budget={"epochs": 5})
    first, second = must(ask_tell.ask()), must(ask_tell.ask())
    answers = [ask_tell.report(lease, epoch, 1.0) for epoch in (1, 2) for lease in (first, second)]
    assert answers == [Answer.CONTINUE] * 4
    assert ask_tell.report(first, 3, 1.0) is Answer.STOP
    assert ask_tell.report(second, 3, 1.0) is Answer.STOP
    assert ask_tell.ask() is None
    assert ask_tell.spent().epochs == 5
    assert sum(len(trial.intermediate_values) for trial in ask_tell.study.trials) == 5


def test_the_budget_of_seconds_ends_asks_and_running_trials(url: str) -> None:
    ask_tell = begin(url, budget={"seconds": 10.0})
    lease = must(ask_tell.ask())
    assert ask_tell.report(lease, 1, 1.0, seconds=6.0) is Answer.CONTINUE
    assert ask_tell.report(lease, 2, 1.0, seconds=6.0) is Answer.STOP
    assert ask_tell.ask() is None


def test_a_lost_trial_runs_again_as_the_same_trial_and_what_it_spent_is_given_back(url: str) -> None:
    ask_tell = begin(url, budget={"trials": 1, "epochs": 3})
    lost = must(ask_tell.ask())
    ask_tell.report(lost, 1, 0.3)
    ask_tell.report(lost, 2, 0.2)
    assert StudyManager(url).ask_tell("s").ask() is None  # its worker lives
    expire(ask_tell)
    again = must(StudyManager(url).ask_tell("s").ask())
    assert (again.number, again.params, again.attempt) == (lost.number, lost.params, 2)
    assert ask_tell.spent() == Spent(trials=1)
    assert ask_tell.study.trials[0].intermediate_values == {}
    for action in (
        lambda: ask_tell.report(lost, 3, 0.1),
        lambda: ask_tell.heartbeat(lost),
        lambda: ask_tell.tell(lost, TrialState.COMPLETE, 0.1),
        lambda: ask_tell.release(lost),
    ):
        with pytest.raises(LeaseLostError, match="is lost"):
            action()
    assert ask_tell.study.trials[0].state == TrialState.RUNNING
    for epoch in (1, 2):
        assert ask_tell.report(again, epoch, 0.4) is Answer.CONTINUE
    ask_tell.tell(again, TrialState.COMPLETE, 0.4)
    with pytest.raises(LeaseLostError):
        ask_tell.tell(again, TrialState.COMPLETE, 0.5)
    assert ask_tell.study.trials[0].value == 0.4


def test_a_worker_that_is_gone_from_this_host_loses_its_trial_at_once(url: str) -> None:
    ask_tell = begin(url)
    here = Owner.here()
    assert not here.is_gone()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    ask_tell.owner = str(Owner(here.host, gone.pid, 1.0))
    lost = must(ask_tell.ask())
    ask_tell.owner = str(Owner("elsewhere", gone.pid, 1.0))
    elsewhere = must(ask_tell.ask())
    assert elsewhere.number == lost.number
    ask_tell.owner = str(here)
    assert must(ask_tell.ask()).number == 1  # nobody knows of a process elsewhere; its lease has to run out


def test_a_trial_that_is_lost_again_and_again_fails_with_the_reason(url: str) -> None:
    ask_tell = begin(url, budget={"trials": 1})
    for attempt in (1, 2, 3):
        assert must(ask_tell.ask()).attempt == attempt
        expire(ask_tell)
    assert ask_tell.ask() is None
    (trial,) = ask_tell.study.trials
    assert trial.state == TrialState.FAIL
    assert "lost 3 times" in trial.user_attrs["failure"]


def test_a_released_trial_is_handed_out_again_and_no_attempt_is_counted(url: str) -> None:
    ask_tell = begin(url)
    lease = must(ask_tell.ask())
    for _ in range(5):
        ask_tell.release(lease)
        again = must(ask_tell.ask())
        assert (again.number, again.attempt) == (0, 1)
        lease = again


def test_an_enqueued_point_comes_before_new_ones_and_is_completed_by_the_sampler(url: str) -> None:
    ask_tell = begin(url, budget={"trials": 2})
    ask_tell.study.enqueue_trial({"learning_rate": 0.01, "units": 7})
    lease = must(ask_tell.ask())
    assert lease.params["learning_rate"] == 0.01
    assert lease.params["units"] == 7
    assert set(lease.params) == set(SPACE)
    ask_tell.tell(lease, TrialState.COMPLETE, 1.0)
    assert ask_tell.study.trials[0].params == lease.params
    assert must(ask_tell.ask()).number == 1
    assert ask_tell.ask() is None


@pytest.mark.parametrize(
    ("point", "says"),
    [({"units": 1000}, "units must lie in [4, 64]; got 1000"), ({"unit": 5}, "'unit' is not in the space")],
)
def test_an_enqueued_point_outside_the_space_fails_with_the_reason_and_blocks_nothing(
    url: str, point: dict[str, Any], says: str
) -> None:
    ask_tell = begin(url, budget={"trials": 1})
    ask_tell.study.enqueue_trial(point)
    assert must(ask_tell.ask()).number == 1
    refused = ask_tell.study.trials[0]
    assert refused.state == TrialState.FAIL
    assert says in refused.user_attrs["failure"]


def test_nan_is_no_value(url: str) -> None:
    ask_tell = begin(url)
    lease = must(ask_tell.ask())
    ask_tell.report(lease, 1, float("nan"))
    with pytest.raises(ValueError, match="needs a number"):
        ask_tell.tell(lease, TrialState.COMPLETE, float("nan"))
    ask_tell.tell(lease, TrialState.PRUNED, lease.last_value)
    (trial,) = ask_tell.study.trials  # the study can be read still
    assert (trial.state, trial.value) == (TrialState.PRUNED, None)


def test_a_trial_ended_by_hand_stays_as_it_was_ended(url: str) -> None:
    ask_tell = begin(url, budget={"trials": 2})
    lease = must(ask_tell.ask())
    ask_tell.report(lease, 1, 0.3)
    ask_tell.study.tell(0, 0.2)
    for action in (
        lambda: ask_tell.report(lease, 2, 0.1),
        lambda: ask_tell.tell(lease, TrialState.COMPLETE, 0.1, {"late": True}),
    ):
        with pytest.raises(LeaseLostError, match="ended already"):
            action()
    expire(ask_tell)
    assert must(ask_tell.ask()).number == 1  # not the ended one again
    ended = ask_tell.study.trials[0]
    assert (ended.value, ended.intermediate_values, ended.user_attrs) == (0.2, {1: 0.3}, {})


@pytest.mark.parametrize("epoch", [-1, 2**31, "a", 1.5])
def test_an_epoch_that_is_no_number_of_an_epoch_is_refused(sqlite_url: str, epoch: Any) -> None:
    ask_tell = begin(sqlite_url)
    lease = must(ask_tell.ask())
    with pytest.raises((ValueError, TypeError)):
        ask_tell.report(lease, epoch, 1.0)
    ask_tell.report(lease, np.int64(3), np.float32(0.5))  # type: ignore[arg-type]
    assert ask_tell.study.trials[0].intermediate_values == {3: 0.5}


def test_a_released_lease_is_worth_nothing(url: str) -> None:
    ask_tell = begin(url)
    lease = must(ask_tell.ask())
    ask_tell.release(lease)
    with pytest.raises(LeaseLostError):
        ask_tell.heartbeat(lease)
    with pytest.raises(LeaseLostError):
        ask_tell.tell(lease, TrialState.COMPLETE, 1.0)
    assert must(ask_tell.ask()).number == 0


def test_a_process_id_that_is_used_again_is_another_process() -> None:
    here = Owner.here()
    assert Owner(here.host, here.pid, here.started + 1).is_gone()
    assert not Owner(here.host + "x", here.pid, here.started + 1).is_gone()
    assert Owner.parse(str(here)) == here


def test_a_heartbeat_keeps_the_lease_through_a_long_epoch(sqlite_url: str) -> None:
    ask_tell = begin(sqlite_url, budget={"trials": 2})
    ask_tell.ledger.lease_seconds = 0.6
    stolen: list[Lease | None] = []

    def slow(trial: optuna.Trial) -> float:
        time.sleep(1.5)
        stolen.append(ask_tell_of_another.ask())
        return 1.0

    ask_tell_of_another = StudyManager(sqlite_url).ask_tell("s")
    outcome = run_trial(ask_tell, slow)
    assert outcome is not None
    assert outcome.state == TrialState.COMPLETE
    assert must(stolen[0]).number == 1  # a new trial, not the slow one


def test_the_pruner_sees_trials_that_end_meanwhile(sqlite_url: str) -> None:
    ask_tell = begin(sqlite_url, pruner={"name": "median", "startup_trials": 1})
    other = StudyManager(sqlite_url).ask_tell("s")
    slow, quick = must(ask_tell.ask()), must(other.ask())
    assert ask_tell.report(slow, 1, 5.0) is Answer.CONTINUE
    for epoch in (1, 2):
        other.report(quick, epoch, 1.0)
    other.tell(quick, TrialState.COMPLETE, 1.0)
    assert ask_tell.report(slow, 2, 5.0) is Answer.PRUNE


@pytest.mark.parametrize("budget", [{"epochs": 41}, {"trials": 17}])
def test_a_budget_is_exact_whoever_spends_it_at_once(url: str, budget: dict[str, int]) -> None:
    ask_tell = begin(url, budget=budget)
    for _ in range(5):
        ask_tell.study.enqueue_trial({"units": 9})

    def work() -> None:
        own = StudyManager(url).ask_tell("s")
        while (lease := own.ask()) is not None:
            for epoch in (1, 2, 3):
                if own.report(lease, epoch, 1.0) is Answer.STOP:
                    break
            own.tell(lease, TrialState.COMPLETE, 1.0)

    with ThreadPoolExecutor(6) as pool:
        for future in [pool.submit(work) for _ in range(6)]:
            future.result()
    trials = [t for t in ask_tell.study.trials if t.state == TrialState.COMPLETE]
    if "epochs" in budget:
        assert sum(len(trial.intermediate_values) for trial in trials) == 41
    else:
        assert len(trials) == 17


@pytest.mark.parametrize("sampler", ["random", "sobol", "tpe", "cma-es", "coarse-to-fine"])
def test_what_is_asked_does_not_depend_on_restarts(sampler: str, tmp_path: Any) -> None:
    def params(restart: bool) -> list[dict[str, Any]]:
        url = f"sqlite:///{tmp_path}/{restart}.db"
        ask_tell = begin(url, sampler={"name": sampler}, seed=3)
        asked = []
        for i in range(25):
            if restart:
                ask_tell = StudyManager(url).ask_tell("s")
            lease = must(ask_tell.ask())
            asked.append(lease.params)
            ask_tell.tell(lease, TrialState.COMPLETE, (lease.params["momentum"] - 0.9) ** 2 + i / 1e6)
        return asked

    assert params(restart=True) == params(restart=False)


def test_a_failing_transaction_leaves_nothing_behind(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask_tell = begin(sqlite_url)

    def fail(*_: Any) -> int:
        raise RuntimeError("the lights went out")

    monkeypatch.setattr(ask_tell.ledger, "grant", fail)
    with pytest.raises(RuntimeError, match="lights"):
        ask_tell.ask()
    assert ask_tell.study.trials == []


def test_commits_per_trial(sqlite_url: str) -> None:
    ask_tell = begin(sqlite_url)
    complete(ask_tell)
    commits: Counter[str] = Counter()
    doing = "ask"
    sa.event.listen(ask_tell.ledger.database.engine, "commit", lambda _: commits.update([doing]))
    lease = must(ask_tell.ask())
    doing = "report"
    for epoch in range(1, 11):
        ask_tell.report(lease, epoch, 1.0)
    doing = "tell"
    ask_tell.tell(lease, TrialState.COMPLETE, 1.0, {"a": 1, "b": 2})
    # besides the ledger's own transaction and the trial's, an ask reads the study's trials, which Optuna commits too
    assert commits == {"ask": 3, "report": 10, "tell": 1}


def _ask_some(url: str, rounds: int) -> list[int]:
    ask_tell = StudyManager(url).ask_tell("s")
    numbers = []
    for _ in range(rounds):
        lease = ask_tell.ask()
        if lease is None:
            break
        ask_tell.report(lease, 1, float(lease.number))
        ask_tell.tell(lease, TrialState.COMPLETE, float(lease.number))
        numbers.append(lease.number)
    return numbers


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_many_askers_get_each_trial_once_and_the_budget_exactly(url: str, kind: str) -> None:
    grid = {
        "name": "grid",
        "levels": {"learning_rate": [0.1, 0.2], "momentum": [0.6], "units": [4, 5, 6, 7, 8]},
    }
    grid["levels"]["activation"] = ["relu", "tanh"]  # type: ignore[index]
    ask_tell = begin(url, budget={"trials": 20}, sampler=grid)
    spawn = multiprocessing.get_context("spawn")
    pool = ThreadPoolExecutor(4) if kind == "threads" else ProcessPoolExecutor(4, mp_context=spawn)
    with pool:
        numbers = [
            n for future in [pool.submit(_ask_some, url, 20) for _ in range(4)] for n in future.result()
        ]
    assert sorted(numbers) == list(range(20))
    trials = ask_tell.study.trials
    assert len({tuple(trial.params.values()) for trial in trials}) == 20  # every point of the grid, once


@pytest.mark.parametrize("kind", ["median", "successive-halving", "hyperband"])
def test_pruning_decisions_are_bare_optunas(sqlite_url: str, kind: str) -> None:
    settings: dict[str, Any] = {"name": kind}
    if kind == "hyperband":
        settings |= {"max_epochs": 9}
    ask_tell = begin(sqlite_url, pruner=settings, sampler={"name": "random"})
    bare = optuna.create_study(study_name="s", pruner=ask_tell.definition.pruner.build())

    def curve(number: int, epoch: int) -> float:
        return (number * 7919 % 13) + 10 / epoch + (number * epoch % 3)

    for number in range(30):
        lease, trial = must(ask_tell.ask()), bare.ask()
        ours = theirs = None
        for epoch in range(1, 10):
            if ours is None and ask_tell.report(lease, epoch, curve(number, epoch)) is Answer.PRUNE:
                ours = epoch
            if theirs is None:
                trial.report(curve(number, epoch), epoch)
                theirs = epoch if trial.should_prune() else None
        assert ours == theirs
        ask_tell.tell(
            lease, TrialState.PRUNED if ours else TrialState.COMPLETE, lease.last_value if not ours else None
        )
        bare.tell(trial, None if theirs else curve(number, 9), state=TrialState.PRUNED if theirs else None)
    assert any(trial.state == TrialState.PRUNED for trial in bare.trials)


def expire(ask_tell: AskTell) -> None:
    """Let all leases run out, as time would."""
    with ask_tell.ledger.transaction() as session:
        session.execute(sa.text("UPDATE tuner_leases SET expires_at = 0"))
