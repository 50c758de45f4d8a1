"""Ask, report, tell: leases, budgets and take-overs, on SQLite and PostgreSQL alike."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from typing import Any

import numpy as np
import optuna
import pytest
import sqlalchemy as sa
from command import processes
from optuna.distributions import distribution_to_json
from optuna.trial import TrialState

from tuner import StudyDefinition, StudyManager
from tuner.ask_tell import Answer, AskTell, Lease, Reply
from tuner.errors import ConflictError, DefinitionError, LeaseLostError, NotFoundError
from tuner.heartbeat import heartbeat
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
    assert ask_tell.report(lease, 1, 0.5).answer is Answer.CONTINUE
    assert ask_tell.report(lease, 2, float("inf")).answer is Answer.CONTINUE
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
    assert answers == [Reply(Answer.CONTINUE)] * 4
    assert ask_tell.report(first, 3, 1.0).answer is Answer.STOP
    assert ask_tell.report(second, 3, 1.0).answer is Answer.STOP
    assert ask_tell.ask() is None
    assert ask_tell.spent().epochs == 5
    assert sum(len(trial.intermediate_values) for trial in ask_tell.study.trials) == 5


def test_a_trial_that_reported_nothing_counts_only_where_the_budget_has_room(url: str) -> None:
    ask_tell = begin(url, budget={"epochs": 2})
    first, second, third = (must(ask_tell.ask()) for _ in range(3))
    ask_tell.tell(first, TrialState.COMPLETE, 1.0)
    ask_tell.rewind(second, 0)
    ask_tell.report(second, 1, 1.0)
    ask_tell.rewind(second, 0)
    assert ask_tell.report(third, 1, 1.0).answer is Answer.STOP
    for lease in (second, third):
        ask_tell.tell(lease, TrialState.PRUNED, None)
    assert ask_tell.spent() == Spent(trials=3, ended=3, epochs=2)


@pytest.mark.parametrize("seconds", [-1.0, float("inf"), float("nan")])
def test_seconds_that_are_none_are_refused(url: str, seconds: float) -> None:
    ask_tell = begin(url)
    lease = must(ask_tell.ask())
    for action in (
        lambda: ask_tell.report(lease, 1, 1.0, seconds=seconds),
        lambda: ask_tell.tell(lease, TrialState.COMPLETE, 1.0, seconds=seconds),
    ):
        with pytest.raises(ValueError, match="seconds must be finite"):
            action()
    assert ask_tell.spent() == Spent(trials=1)


def test_who_is_heard_of_again_keeps_the_trial_and_its_books(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask_tell = begin(url, budget={"epochs": 9})
    slow = must(ask_tell.ask())
    expire(ask_tell)
    other = StudyManager(url).ask_tell("s")
    end_lost = other._end_lost

    def after_a_report(lost: Any) -> int:
        ask_tell.report(slow, 1, 0.5)  # just between another's look and its deed
        return end_lost(lost)

    monkeypatch.setattr(other, "_end_lost", after_a_report)
    assert must(other.ask()).number == 1
    ask_tell.tell(slow, TrialState.COMPLETE, 0.5)
    assert ask_tell.spent() == Spent(trials=2, ended=1, epochs=1)


def test_a_release_may_be_repeated(url: str) -> None:
    ask_tell = begin(url)
    lease = must(ask_tell.ask())
    for _ in range(2):
        ask_tell.release(lease)
    assert must(ask_tell.ask()).number == 0
    ask_tell.release(lease)  # an answer that was heard late
    assert len(ask_tell.open_leases()) == 1


def test_the_budget_of_seconds_ends_asks_and_running_trials(url: str) -> None:
    ask_tell = begin(url, budget={"seconds": 10.0})
    lease = must(ask_tell.ask())
    assert ask_tell.report(lease, 1, 1.0, seconds=6.0).answer is Answer.CONTINUE
    assert ask_tell.report(lease, 2, 1.0, seconds=6.0).answer is Answer.STOP
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
        assert ask_tell.report(again, epoch, 0.4).answer is Answer.CONTINUE
    ask_tell.tell(again, TrialState.COMPLETE, 0.4)
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
    assert ask_tell.tell(lease, TrialState.COMPLETE, float("nan"), {"epochs": 1}) is TrialState.FAIL
    pruned = must(ask_tell.ask())
    ask_tell.tell(pruned, TrialState.PRUNED, float("nan"))
    with pytest.raises(ValueError, match="needs a number"):
        ask_tell.tell(must(ask_tell.ask()), TrialState.COMPLETE, None)
    failed, stopped, _ = ask_tell.study.trials  # the study can be read still
    assert failed.state is TrialState.FAIL
    assert failed.user_attrs == {"failure": "the value is not a number", "epochs": 1}
    assert (stopped.state, stopped.value) == (TrialState.PRUNED, None)


@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
def test_infinity_is_a_value(url: str, value: float) -> None:
    ask_tell = begin(url)
    assert ask_tell.tell(must(ask_tell.ask()), TrialState.COMPLETE, value) is TrialState.COMPLETE
    assert ask_tell.study.trials[0].value == value


def test_the_same_request_is_handed_the_same_trial_also_by_another_process(url: str) -> None:
    ask_tell = begin(url, budget={"trials": 2})
    lease = must(ask_tell.ask("first"))
    ask_tell.report(lease, 1, 0.5)
    again = must(StudyManager(url).ask_tell("s").ask("first"))
    assert again == lease
    assert must(ask_tell.ask("second")).number == 1
    assert ask_tell.ask("third") is None
    assert ask_tell.spent().trials == 2
    ask_tell.tell(again, TrialState.COMPLETE, 0.5)
    assert must(ask_tell.ask("first")) == lease  # for whoever has not heard that it has ended
    for bad in ("", "x" * 129, "a\0"):
        with pytest.raises(DefinitionError, match="request id"):
            ask_tell.ask(bad)


def test_one_request_from_many_at_once_is_one_trial(url: str) -> None:
    begin(url)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(lambda: StudyManager(url).ask_tell("s").ask("same")) for _ in range(8)]
        assert {must(future.result()).number for future in asked} == {0}


def test_what_is_told_again_is_answered_again_and_something_else_is_a_conflict(url: str) -> None:
    ask_tell = begin(url)
    lease = must(ask_tell.ask())
    ask_tell.report(lease, 1, 0.5)
    for _ in range(3):
        assert ask_tell.tell(lease, TrialState.COMPLETE, 0.1 + 0.2) is TrialState.COMPLETE
    for state, value in ((TrialState.COMPLETE, 0.3), (TrialState.PRUNED, 0.1 + 0.2), (TrialState.FAIL, None)):
        with pytest.raises(ConflictError, match="was told"):
            ask_tell.tell(lease, state, value)
    assert ask_tell.study.trials[0].value == 0.1 + 0.2
    assert ask_tell.spent() == Spent(trials=1, ended=1, epochs=1)


def test_what_is_reported_again_counts_once_and_another_value_is_a_conflict(url: str) -> None:
    ask_tell = begin(url, budget={"epochs": 3})
    lease = must(ask_tell.ask())
    forgetful = replace(lease, values={})
    for _ in range(2):
        assert ask_tell.report(lease, 1, 0.5, seconds=1.0) == Reply(Answer.CONTINUE)
    assert ask_tell.report(forgetful, 1, 0.5, seconds=1.0) == Reply(Answer.CONTINUE)
    assert ask_tell.spent() == Spent(trials=1, epochs=1, seconds=1.0)
    with pytest.raises(ConflictError, match=r"0.5 was reported for epoch 1 before; now 0.25"):
        ask_tell.report(forgetful, 1, 0.25)
    ask_tell.report(lease, 2, float("nan"))
    assert ask_tell.report(forgetful, 2, float("nan")).answer is Answer.CONTINUE
    assert ask_tell.report(lease, 3, 0.1).answer is Answer.STOP
    assert ask_tell.report(replace(lease, values={}), 3, 0.1).answer is Answer.STOP
    assert ask_tell.spent().epochs == 3


def test_reports_that_come_together_are_one_transaction_and_the_budget_takes_what_it_has_room_for(
    url: str,
) -> None:
    ask_tell = begin(url, budget={"epochs": 12})
    lease = must(ask_tell.ask())
    commits: Counter[str] = Counter()
    sa.event.listen(ask_tell.ledger.database.engine, "commit", lambda _: commits.update(["all"]))
    assert ask_tell.report_many(lease, {epoch: 1 / epoch for epoch in range(1, 11)}).answer is Answer.CONTINUE
    assert commits == {"all": 1}
    overlap = {epoch: 1 / epoch for epoch in range(9, 20)}
    assert ask_tell.report_many(lease, overlap, seconds=2.0).answer is Answer.STOP
    assert lease.values == {epoch: 1 / epoch for epoch in range(1, 13)}
    assert ask_tell.study.trials[0].intermediate_values == lease.values
    assert ask_tell.spent() == Spent(trials=1, epochs=12, seconds=2.0)
    with pytest.raises(ValueError, match="at least one epoch"):
        ask_tell.report_many(lease, {})


def test_a_chosen_point_is_begun_at_once_and_completed_by_the_sampler(url: str) -> None:
    ask_tell = begin(url, budget={"trials": 2})
    lease = must(ask_tell.ask(params={"learning_rate": 0.01, "units": 7}))
    assert (lease.params["learning_rate"], lease.params["units"]) == (0.01, 7)
    assert set(lease.params) == set(SPACE)
    with pytest.raises(DefinitionError, match="units must lie in"):
        ask_tell.ask(params={"units": 1000})
    assert ask_tell.ask(params={"units": 8}) is not None
    assert ask_tell.ask(params={"units": 9}) is None


def test_a_person_adjusts_and_stops_a_running_trial_from_another_process(url: str) -> None:
    ask_tell = begin(url)
    lease = must(ask_tell.ask())
    other = StudyManager(url).ask_tell("s")
    other.adjust(0, {"learning_rate": 0.1, "momentum": 0.8}, by="ada")
    other.adjust(0, {"learning_rate": 0.2}, by="grace")
    wanted = Reply(Answer.ADJUST, {"learning_rate": 0.2, "momentum": 0.8}, by="ada, grace")
    assert ask_tell.heartbeat(lease) == wanted
    assert ask_tell.report(lease, 1, 0.5) == wanted
    assert ask_tell.report(replace(lease, values={}), 1, 0.5) == wanted  # the answer was not heard
    assert ask_tell.heartbeat(lease) == ask_tell.report(lease, 2, 0.4) == Reply(Answer.CONTINUE)
    other.stop(0)
    assert ask_tell.report(lease, 3, 0.3).answer is Answer.STOP
    ask_tell.tell(lease, TrialState.COMPLETE, 0.3)
    with pytest.raises(ConflictError, match="nobody is running trial 0, so nobody can stop it"):
        other.stop(0)
    with pytest.raises(NotFoundError, match="has no trial 7"):
        other.adjust(7, {"learning_rate": 0.1})
    with pytest.raises(DefinitionError, match="at least one"):
        other.adjust(0, {})


def test_a_command_waits_for_whoever_takes_the_trial_over(url: str) -> None:
    ask_tell = begin(url)
    lost = must(ask_tell.ask())
    ask_tell.adjust(lost.number, {"learning_rate": 0.1})
    expire(ask_tell)
    again = must(ask_tell.ask())
    assert ask_tell.report(again, 1, 0.5).answer is Answer.ADJUST


def test_attributes_rewinding_and_checkpoints_need_the_lease(url: str) -> None:
    ask_tell = begin(url)
    lease = must(ask_tell.ask())
    ask_tell.report_many(lease, {1: 0.5, 2: 0.4, 3: 0.9})
    ask_tell.save_checkpoint(lease, 1, b"one")
    ask_tell.save_checkpoint(lease, 2, b"two" * 100_000)
    ask_tell.set_attrs(lease, {"note": "a", "other": 1})
    ask_tell.set_attrs(lease, {"note": "b"})
    ask_tell.rewind(lease, 2)
    assert lease.values == {1: 0.5, 2: 0.4}
    assert ask_tell.checkpoint(0) == (2, b"two" * 100_000)
    (trial,) = ask_tell.study.trials
    assert (trial.intermediate_values, trial.user_attrs) == (lease.values, {"note": "b", "other": 1})
    assert ask_tell.spent().epochs == 3
    ask_tell.report(lease, 3, 0.3)  # another way
    ask_tell.tell(lease, TrialState.COMPLETE, 0.3)
    for action in (
        lambda: ask_tell.set_attrs(lease, {"note": "c"}),
        lambda: ask_tell.rewind(lease, 1),
        lambda: ask_tell.save_checkpoint(lease, 3, b"three"),
    ):
        with pytest.raises(LeaseLostError):
            action()
    assert ask_tell.checkpoint(0) is None, "it was for the next attempt, and there is none"


def test_the_attempts_at_a_trial_are_kept(url: str) -> None:
    ask_tell = begin(url)
    first = must(ask_tell.ask())
    expire(ask_tell)
    assert ask_tell.reap() == 1
    assert ask_tell.study.trials[0].state is TrialState.WAITING  # and not running for ever
    assert ask_tell.open_leases() == []
    second = must(ask_tell.ask())
    ask_tell.release(second)
    third = must(ask_tell.ask())
    ask_tell.tell(third, TrialState.COMPLETE, 1.0)
    with ask_tell.ledger.transaction() as session:
        attempts = ask_tell.ledger.history(session, ask_tell.study._study_id, first.trial_id)
    assert [attempt["ending"] for attempt in attempts] == ["lost", "released", "told"]
    assert (first.fence, second.fence, third.fence) == (1, 2, 3)
    assert (first.attempt, second.attempt, third.attempt) == (1, 2, 2)


def test_trials_of_others_are_left_alone(url: str) -> None:
    ask_tell = begin(url)
    by_hand = ask_tell.study.ask()  # as study.optimize does
    assert must(ask_tell.ask()).number == 1
    expire(ask_tell)
    ask_tell.reap()
    assert ask_tell.study.trials[0].state is TrialState.RUNNING
    ask_tell.study.tell(by_hand, 0.5)
    assert ask_tell.study.trials[0].value == 0.5


def test_a_new_study_does_not_inherit_the_books_of_a_deleted_one(sqlite_url: str) -> None:
    ask_tell = begin(sqlite_url, budget={"trials": 1})
    lost = must(ask_tell.ask("a"))
    optuna.delete_study(
        study_name="s", storage=sqlite_url
    )  # as a stock dashboard does: SQLite keeps our rows
    ask_tell = begin(sqlite_url, budget={"trials": 1})
    assert ask_tell.spent() == Spent()
    lease = must(ask_tell.ask("a"))
    assert lease.trial_id == lost.trial_id
    ask_tell.tell(lease, TrialState.COMPLETE, 1.0)
    assert ask_tell.ask() is None


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
    ask_tell.ledger.lease_seconds = 3.0
    stolen: list[Lease | None] = []

    def slow(trial: optuna.Trial) -> float:
        time.sleep(4.0)
        stolen.append(ask_tell_of_another.ask())
        return 1.0

    ask_tell_of_another = StudyManager(sqlite_url).ask_tell("s")
    outcome = run_trial(ask_tell, slow)
    assert outcome is not None
    assert outcome.state == TrialState.COMPLETE
    assert must(stolen[0]).number == 1  # a new trial, not the slow one


def test_a_heartbeat_ends_the_leases_of_lost_workers_too(sqlite_url: str) -> None:
    ask_tell = begin(sqlite_url)
    lost = must(ask_tell.ask("of a worker that is silent"))
    worker = StudyManager(sqlite_url).ask_tell("s")
    worker.ledger.lease_seconds = 0.3

    def patient(trial: optuna.Trial) -> float:
        expire(ask_tell)
        until = time.monotonic() + 20.0
        while ask_tell.study.trials[lost.number].state is TrialState.RUNNING and time.monotonic() < until:
            time.sleep(0.05)
        return 1.0

    outcome = run_trial(worker, patient, params={"units": 5})  # a new trial, not the lost one
    assert outcome is not None
    assert outcome.number == 1
    assert ask_tell.study.trials[lost.number].state is TrialState.WAITING


def test_a_lost_lease_is_beaten_for_no_more_and_a_beat_that_breaks_stops_no_other(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask_tell = begin(sqlite_url)
    ask_tell.ledger.lease_seconds = 0.3
    lost, kept = must(ask_tell.ask()), must(ask_tell.ask())
    ask_tell.release(lost)
    beats: Counter[int] = Counter()
    beat = AskTell.heartbeat

    def counted(self: AskTell, lease: Lease) -> Reply:
        beats[lease.number] += 1
        if lease.number == kept.number and beats[kept.number] == 1:
            raise PermissionError("no beat can know all that goes wrong")
        return beat(self, lease)

    monkeypatch.setattr(AskTell, "heartbeat", counted)
    with heartbeat(ask_tell, lost), heartbeat(ask_tell, kept):
        until = time.monotonic() + 20.0
        while beats[kept.number] < 5 and time.monotonic() < until:
            time.sleep(0.02)
    assert beats[lost.number] == 1
    assert beats[kept.number] >= 5


def test_a_request_of_a_process_that_is_gone_goes_on_in_another(url: str) -> None:
    ask_tell = begin(url)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    ask_tell.owner = str(Owner(Owner.here().host, gone.pid, 1.0))
    first = must(ask_tell.ask("r"))
    again = StudyManager(url).ask_tell("s")
    lease = must(again.ask("r"))
    assert lease == first
    assert again.reap() == 0  # it is this process's now
    again.report(lease, 1, 0.5)
    again.release(lease)
    with pytest.raises(LeaseLostError, match="no longer its own: it was released"):
        again.ask("r")


def test_a_stop_that_a_lost_worker_heard_reaches_its_successor(url: str) -> None:
    ask_tell = begin(url)
    lost = must(ask_tell.ask())
    ask_tell.stop(lost.number, by="ada")
    assert ask_tell.report(lost, 1, 0.5).answer is Answer.STOP
    expire(ask_tell)
    assert ask_tell.report(must(ask_tell.ask()), 1, 0.5) == Reply(Answer.STOP, by="ada")


def test_a_trial_ended_by_hand_just_before_its_lease_is_given_up_keeps_what_it_has(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask_tell = begin(url)
    lease = must(ask_tell.ask())
    ask_tell.report_many(lease, {1: 0.5, 2: 0.4})
    expire(ask_tell)
    held = ask_tell.ledger.held

    def and_then_by_hand(*args: Any) -> Any:
        found = held(*args)
        if "postgresql" in url:  # SQLite has locked the whole database by now
            StudyManager(url).open("s").tell(0, 0.1)
        return found

    if "sqlite" in url:
        ask_tell.study.tell(0, 0.1)
    monkeypatch.setattr(ask_tell.ledger, "held", and_then_by_hand)
    ask_tell.reap()
    (trial,) = ask_tell.study.trials
    assert (trial.state, trial.intermediate_values) == (TrialState.COMPLETE, {1: 0.5, 2: 0.4})
    assert ask_tell.spent() == Spent(trials=1, ended=1, epochs=2)


def test_claims_and_new_trials_never_wait_for_each_other_in_a_circle(postgresql_url: str) -> None:
    begin(postgresql_url)

    def give_back(rounds: int) -> None:
        ask_tell = StudyManager(postgresql_url).ask_tell("s")
        for _ in range(rounds):
            lease = must(ask_tell.ask())
            with contextlib.suppress(LeaseLostError):
                ask_tell.release(lease)

    def begin_new(rounds: int) -> None:
        ask_tell = StudyManager(postgresql_url).ask_tell("s")
        for _ in range(rounds):
            ask_tell.tell(must(ask_tell.ask(params={"units": 5})), TrialState.COMPLETE, 1.0)

    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(task, 12) for task in (give_back, begin_new) * 3]:
            done.result()
    with StudyManager(postgresql_url).ask_tell("s").ledger.transaction() as session:
        text = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        assert session.scalar(sa.text(text)) == 0


def test_more_threads_than_a_pool_has_connections(url: str) -> None:
    ask_tell = begin(url, budget={"trials": 60}, pruner={"name": "median", "startup_trials": 1})

    def work() -> None:
        own = AskTell(ask_tell.study, ask_tell.definition, ask_tell.ledger)
        while (lease := own.ask()) is not None:
            own.report(lease, 1, 1.0)
            own.tell(lease, TrialState.COMPLETE, 1.0)

    with ThreadPoolExecutor(32) as pool:
        for done in [pool.submit(work) for _ in range(32)]:
            done.result()
    assert ask_tell.spent() == Spent(trials=60, ended=60, epochs=60)


def test_threads_of_one_process_choose_nothing_in_vain(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(url, budget={"trials": 40})
    chosen: Counter[int] = Counter()
    choose = AskTell._choose

    def counted(self: AskTell, number: int, given: Any) -> Any:
        chosen[number] += 1
        return choose(self, number, given)

    monkeypatch.setattr(AskTell, "_choose", counted)

    def work() -> None:
        ask_tell = StudyManager(url).ask_tell("s")
        while (lease := ask_tell.ask()) is not None:
            ask_tell.tell(lease, TrialState.COMPLETE, 1.0)

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(work) for _ in range(8)]:
            done.result()
    assert chosen == Counter(range(40))  # each number once: no choice was thrown away for a quicker thread's


def test_an_ask_for_a_deleted_study_says_so(url: str) -> None:
    ask_tell = begin(url)
    complete(ask_tell)
    ask_tell.study.get_trials()
    optuna.delete_study(study_name="s", storage=StudyManager(url)._storage)
    with pytest.raises(NotFoundError, match="not there any more"):
        ask_tell.ask()


def test_waiting_trials_beyond_the_budget_cost_an_ask_nothing(sqlite_url: str) -> None:
    ask_tell = begin(sqlite_url, budget={"trials": 1})
    lost = must(ask_tell.ask())
    for _ in range(20):
        ask_tell.study.enqueue_trial({"units": 7})
    commits: Counter[str] = Counter()
    sa.event.listen(ask_tell.ledger.database.engine, "commit", lambda _: commits.update(["all"]))
    assert ask_tell.ask() is None
    assert commits == {"all": 1}
    ask_tell.release(lost)
    assert must(ask_tell.ask()).number == lost.number  # it is in the budget already


def test_a_waiting_trial_with_parameters_of_somebody_is_checked_and_completed(url: str) -> None:
    ask_tell = begin(url)
    space = ask_tell.definition.space.distributions
    waiting = {
        "state": TrialState.WAITING,
        "params": {"units": 7},
        "distributions": {"units": space["units"]},
    }
    ask_tell.study.add_trial(optuna.trial.create_trial(**waiting))  # type: ignore[arg-type]
    wide = {"units": optuna.distributions.IntDistribution(1, 1000)}
    far = {"state": TrialState.WAITING, "params": {"units": 900}, "distributions": wide}
    ask_tell.study.add_trial(optuna.trial.create_trial(**far))  # type: ignore[arg-type]
    lease = must(ask_tell.ask())
    assert lease.params["units"] == 7
    assert ask_tell.study.trials[0].params == lease.params
    assert set(lease.params) == set(SPACE)
    assert must(ask_tell.ask()).number == 2
    assert "units must lie in" in ask_tell.study.trials[1].user_attrs["failure"]


def test_attributes_hold_no_nan_that_a_dashboard_could_not_read(url: str) -> None:
    ask_tell = begin(url)
    lease = must(ask_tell.ask())
    ask_tell.tell(lease, TrialState.COMPLETE, 1.0, {"a": float("nan"), "b": [1.0, float("-inf")], "c": 2.0})
    assert ask_tell.study.trials[0].user_attrs == {"a": "nan", "b": [1.0, "-inf"], "c": 2.0}


def test_the_pruner_sees_trials_that_end_meanwhile(sqlite_url: str) -> None:
    ask_tell = begin(sqlite_url, pruner={"name": "median", "startup_trials": 1})
    other = StudyManager(sqlite_url).ask_tell("s")
    slow, quick = must(ask_tell.ask()), must(other.ask())
    assert ask_tell.report(slow, 1, 5.0).answer is Answer.CONTINUE
    for epoch in (1, 2):
        other.report(quick, epoch, 1.0)
    other.tell(quick, TrialState.COMPLETE, 1.0)
    assert ask_tell.report(slow, 2, 5.0).answer is Answer.PRUNE


@pytest.mark.parametrize("budget", [{"epochs": 41}, {"trials": 17}])
def test_a_budget_is_exact_whoever_spends_it_at_once(url: str, budget: dict[str, int]) -> None:
    ask_tell = begin(url, budget=budget)
    for _ in range(5):
        ask_tell.study.enqueue_trial({"units": 9})

    def work() -> None:
        own = StudyManager(url).ask_tell("s")
        while (lease := own.ask()) is not None:
            for epoch in (1, 2, 3):
                if own.report(lease, epoch, 1.0).answer is Answer.STOP:
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


@pytest.mark.parametrize(
    "sampler",
    [
        "random",
        *(pytest.param(s, marks=pytest.mark.long) for s in ("sobol", "tpe", "cma-es")),
        "coarse-to-fine",
    ],
)
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

    def fail(*_: Any, **__: Any) -> int:
        raise RuntimeError("the lights went out")

    monkeypatch.setattr(ask_tell.ledger, "grant", fail)
    with pytest.raises(RuntimeError, match="lights"):
        ask_tell.ask()
    assert ask_tell.study.trials == []


def _statements(ask_tell: AskTell) -> dict[str, Counter[str]]:
    """What one trial with ten reports costs, by step: statements, commits, rows read."""
    counts: dict[str, Counter[str]] = {step: Counter() for step in ("ask", "report", "together", "tell")}
    doing = "ask"
    engine = ask_tell.ledger.database.engine

    def statement(_c: Any, _cursor: Any, text: str, *_: Any) -> None:
        counts[doing][text.split(maxsplit=1)[0]] += not text.startswith(("PRAGMA", "BEGIN"))

    def commit(_: Any) -> None:
        counts[doing]["commits"] += 1

    sa.event.listen(engine, "before_cursor_execute", statement)
    sa.event.listen(engine, "commit", commit)
    lease = must(ask_tell.ask())
    doing = "report"
    for epoch in range(1, 11):
        ask_tell.report(lease, epoch, 1.0)
    doing = "together"
    ask_tell.report_many(lease, dict.fromkeys(range(11, 21), 1.0))
    doing = "tell"
    ask_tell.tell(lease, TrialState.COMPLETE, 1.0, {"a": 1, "b": 2})
    sa.event.remove(engine, "before_cursor_execute", statement)
    sa.event.remove(engine, "commit", commit)
    return counts


SIX = {f"x{i}": {"low": 0.0, "high": 1.0} for i in range(6)}


def test_commits_per_trial(url: str) -> None:
    ask_tell = begin(url, space=SIX, pruner={"name": "median"})
    complete(ask_tell)
    counts = {step: count["commits"] for step, count in _statements(ask_tell).items()}
    assert counts == {"ask": 2, "report": 10, "together": 1, "tell": 1}


def _fill(ask_tell: AskTell, trials: int) -> None:
    """Finished trials with parameters, values and reports, as Optuna writes them, but all at once."""
    models = optuna.storages._rdb.models
    study_id, now = ask_tell.study._study_id, datetime.now()
    space = {n: distribution_to_json(d) for n, d in ask_tell.definition.space.distributions.items()}
    trial = {
        "study_id": study_id,
        "state": TrialState.COMPLETE,
        "datetime_start": now,
        "datetime_complete": now,
    }
    finite = {
        "value_type": models.TrialValueModel.TrialValueType.FINITE,
        "intermediate_value_type": models.TrialIntermediateValueModel.TrialIntermediateValueType.FINITE,
    }
    with ask_tell.ledger.transaction() as session:
        session.execute(sa.insert(models.TrialModel), [{**trial, "number": n} for n in range(trials)])
        ids = session.scalars(sa.select(models.TrialModel.trial_id).filter_by(study_id=study_id)).all()
        params = [
            {"trial_id": i, "param_name": n, "param_value": 0.5, "distribution_json": d}
            for i in ids
            for n, d in space.items()
        ]
        session.execute(sa.insert(models.TrialParamModel), params)
        value = {"objective": 0, "value": 1.0, "value_type": finite["value_type"]}
        session.execute(sa.insert(models.TrialValueModel), [{"trial_id": i, **value} for i in ids])
        kind = finite["intermediate_value_type"]
        report = {"intermediate_value": 1.0, "intermediate_value_type": kind}
        reports = [{"trial_id": i, "step": step, **report} for i in ids for step in (1, 2)]
        session.execute(sa.insert(models.TrialIntermediateValueModel), reports)


@pytest.mark.slow
def test_the_cost_of_a_trial_does_not_grow_with_the_study(url: str) -> None:
    costs = []
    for trials in (100, 5000):
        name = f"s{trials}"
        manager = StudyManager(url)
        manager.create(StudyDefinition.parse({**definition(space=SIX).dump(), "name": name}))
        ask_tell = manager.ask_tell(name)
        _fill(ask_tell, trials)
        complete(ask_tell)  # a worker reads the history once, when it begins
        costs.append((_statements(ask_tell), _work(ask_tell)))
    (few, little), (many, much) = costs
    assert few == many
    assert much <= 1.1 * little


def _work(ask_tell: AskTell) -> int:
    """Rows that the driver returned, and in SQLite the steps of its virtual machine, for a whole trial."""
    engine, rows, steps = ask_tell.ledger.database.engine, 0, 0

    def fetched(_c: Any, cursor: Any, *_: Any) -> None:
        nonlocal rows
        rows += max(0, cursor.rowcount)

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    def watch(connection: Any, *_: Any) -> None:
        if hasattr(connection, "set_progress_handler"):
            connection.set_progress_handler(step, 1)

    sa.event.listen(engine, "after_cursor_execute", fetched)
    sa.event.listen(engine, "checkout", watch)
    complete(ask_tell)
    sa.event.remove(engine, "after_cursor_execute", fetched)
    sa.event.remove(engine, "checkout", watch)
    return rows + steps


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


@pytest.mark.parametrize("kind", ["threads", pytest.param("processes", marks=pytest.mark.long)])
def test_many_askers_get_each_trial_once_and_the_budget_exactly(url: str, kind: str) -> None:
    grid = {
        "name": "grid",
        "levels": {"learning_rate": [0.1, 0.2], "momentum": [0.6], "units": [4, 5, 6, 7, 8]},
    }
    grid["levels"]["activation"] = ["relu", "tanh"]  # type: ignore[index]
    ask_tell = begin(url, budget={"trials": 20}, sampler=grid)
    with ThreadPoolExecutor(4) if kind == "threads" else processes(4) as pool:
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
            if ours is None and ask_tell.report(lease, epoch, curve(number, epoch)).answer is Answer.PRUNE:
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
