"""What a run needs of an Executor, and what every Executor gets: exact budgets, prompt stops, one BLAS thread."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from command import Program, processes
from optuna.trial import TrialState
from threadpoolctl import threadpool_info, threadpool_limits

from objectives.epoch import Epoch, Epochs, Hyperparameter, Seed
from tuner import ComparisonDefinition, StudyDefinition, StudyManager, TunerError
from tuner.ask_tell import AskTell
from tuner.errors import DefinitionError
from tuner.executors import Where, _OwnProcesses
from tuner.ledger import Ledger, Owner
from tuner.runs import Runs
from tuner.tables import RunRow
from tuner.trial_run import Outcome


class FarAway(Executor):
    """As workers on other machines: all goes there and comes back as bytes; equal bytes are taken for the same task."""

    def __init__(self, workers: int) -> None:
        self._threads = ThreadPoolExecutor(workers)
        self._seen: dict[bytes, Future[Any]] = {}

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        sent = pickle.dumps((fn, args, kwargs))
        if sent not in self._seen:
            self._seen[sent] = self._threads.submit(self._there_and_back, sent)
        return self._seen[sent]

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._threads.shutdown(wait, cancel_futures=cancel_futures)

    @staticmethod
    def _there_and_back(sent: bytes) -> Any:
        fn, args, kwargs = pickle.loads(sent)
        try:
            return pickle.loads(pickle.dumps(fn(*args, **kwargs)))
        except Exception as error:  # noqa: BLE001 - any may have to travel
            raise pickle.loads(pickle.dumps(error)) from None


@pytest.fixture
def _workers_start_at_once() -> None:
    """Here they start as users' do."""


FOREIGN: dict[str, Callable[[int], Executor]] = {
    "a thread pool": ThreadPoolExecutor,
    "a process pool": processes,
    "far away": FarAway,
}


@pytest.fixture(params=["threads", "processes", *FOREIGN])
def where(request: pytest.FixtureRequest) -> Iterator[Where]:
    """Each kind of executor in turn, with two workers; those of our own making are still usable afterwards."""
    if request.param not in FOREIGN:
        yield request.param
        return
    with FOREIGN[request.param](2) as executor:
        yield executor
        assert executor.submit(os.getpid).result() > 0  # nobody shut it down


class Slope:
    """Some epochs, each of some length."""

    name, direction, description = "slope", "minimize", "for a test"
    hyperparameters = (Hyperparameter("x", 0.5), Hyperparameter("epochs", 3), Hyperparameter("sleep", 0.0))

    def evaluate(self, params: Mapping[str, Any], *, seed: Seed, resume: bytes | None = None) -> Epochs:
        for epoch in range(1, int(params["epochs"]) + 1):
            time.sleep(params["sleep"])
            yield Epoch(epoch, params["x"] / epoch)


class BlasThreads(Slope):
    """Tells how many threads BLAS has here."""

    def evaluate(self, params: Mapping[str, Any], *, seed: Seed, resume: bytes | None = None) -> Epochs:
        import scipy.linalg

        scipy.linalg.inv([[1.0]])  # as a sampler may: SciPy has a BLAS of its own
        yield Epoch(1, max(pool["num_threads"] for pool in threadpool_info()))


def slope(**more: Any) -> StudyDefinition:
    document = {
        "name": "s",
        "budget": {"trials": 8},
        "fixed": {"epochs": 3, "sleep": 0.0},
        "space": {"x": {"low": 0, "high": 1}},
        "sampler": {"name": "random"},
    }
    return StudyDefinition.parse({**document, **more})


def test_every_executor_meets_the_budget_exactly(sqlite_url: str, where: Where) -> None:
    outcomes: list[Outcome] = []
    with StudyManager(sqlite_url) as manager:
        finished = manager.run(slope(), Slope(), workers=2, executor=where, on_outcome=outcomes.append)
    assert [t.state for t in finished.trials] == [TrialState.COMPLETE] * 8
    assert {o.number: o.value for o in outcomes} == {t.number: t.value for t in finished.trials}
    assert len(outcomes) == 8


@pytest.mark.long
def test_every_worker_has_one_blas_thread_and_the_parent_gets_its_own_back(
    sqlite_url: str, where: Where
) -> None:
    with threadpool_limits(2):
        before = [pool["num_threads"] for pool in threadpool_info()]
        with StudyManager(sqlite_url) as manager:
            trials = manager.run(slope(), BlasThreads(), workers=2, executor=where).trials
        assert max(before) == 2
        assert [pool["num_threads"] for pool in threadpool_info()][: len(before)] == before
    assert [trial.value for trial in trials] == [1.0] * 8


@pytest.mark.long
def test_every_executor_gives_a_comparison_the_same_result(tmp_path: Any, where: Where) -> None:
    arms = [{"name": n, "sampler": {"name": n}} for n in ("random", "tpe")]
    document = {**slope().model_dump(exclude_unset=True), "comparison": {"seeds": 1, "arms": arms}}
    definition = ComparisonDefinition.parse(document)
    found = []
    for name, executor, workers in (("alone", "threads", 1), ("there", where, 2)):
        with StudyManager(f"sqlite:///{tmp_path}/{name}.db") as manager:
            result = manager.compare(definition, Slope(), workers=workers, executor=executor)
            found.append([(run.study, run.best.tolist(), run.best_params) for run in result.runs])
    assert found[0] == found[1]


def test_ctrl_c_gives_running_trials_back_from_every_executor(sqlite_url: str, where: Where) -> None:
    definition = slope(budget={"trials": 3}, fixed={"epochs": 20, "sleep": 0.05})
    outcomes: list[Outcome] = []

    def press_ctrl_c(outcome: Outcome) -> None:
        outcomes.append(outcome)
        raise KeyboardInterrupt

    with StudyManager(sqlite_url) as manager:
        with pytest.raises(KeyboardInterrupt):
            manager.run(definition, Slope(), workers=2, executor=where, on_outcome=press_ctrl_c)
        assert manager.working(["s"]) == []  # handed back: no lease is left to run out
        assert TrialState.RUNNING not in {t.state for t in manager.load("s").trials}
        finished = manager.run(definition, Slope(), workers=2, executor="threads")
    assert [t.state for t in finished.trials] == [TrialState.COMPLETE] * 3
    assert all(len(t.intermediate_values) == 20 for t in finished.trials)
    assert all("attempts" not in t.user_attrs for t in finished.trials)  # given back is not lost


@pytest.mark.long
def test_ctrl_c_in_the_midst_of_waiting_gives_running_trials_back(sqlite_url: str, where: Where) -> None:
    definition = slope(budget={"trials": 2}, fixed={"epochs": 100, "sleep": 0.05})

    def press_ctrl_c() -> None:
        while not any(working.epochs for working in manager.working(["s"])) and not over.wait(0.05):
            pass
        if not over.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    over, thread = threading.Event(), threading.Thread(target=press_ctrl_c)
    with StudyManager(sqlite_url) as manager:
        manager.create(definition)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            manager.run(definition, Slope(), workers=2, executor=where)
        over.set()
        thread.join()
        trials = manager.load("s").trials
        assert {t.state for t in trials} == {TrialState.WAITING}
        assert manager.ask_tell("s").open_leases() == []


def test_ctrl_c_is_heard_though_a_library_takes_it_for_its_own(sqlite_url: str) -> None:
    def swallow_ctrl_c(_outcome: Outcome) -> None:
        with contextlib.suppress(BaseException):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)

    with StudyManager(sqlite_url) as manager:
        with pytest.raises(KeyboardInterrupt):
            manager.run(slope(), Slope(), executor="threads", on_outcome=swallow_ctrl_c)
        ended = [t.state for t in manager.load("s").trials].count(TrialState.COMPLETE)
        assert 1 <= ended < 8
        assert manager.ask_tell("s").open_leases() == []


def test_a_task_is_known_though_ctrl_c_comes_while_it_is_submitted(sqlite_url: str) -> None:
    class Pressed(ThreadPoolExecutor):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            submitted.append(super().submit(fn, *args, **kwargs))
            if args:
                until = time.monotonic() + 20.0
                while not manager.ask_tell("s").open_leases() and time.monotonic() < until:
                    time.sleep(0.01)
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.1)
            return submitted[-1]

    submitted: list[Future[Any]] = []
    before = signal.getsignal(signal.SIGINT)
    with Pressed(2) as executor, StudyManager(sqlite_url) as manager:
        with pytest.raises(KeyboardInterrupt):
            manager.run(slope(fixed={"epochs": 3, "sleep": 1.0}), Slope(), workers=2, executor=executor)
        assert [future.done() for future in submitted] == [
            True,
            True,
        ]  # the greeting, and a trial that was given back
        assert [t.state for t in manager.load("s").trials] == [TrialState.WAITING]
    assert signal.getsignal(signal.SIGINT) is before


LONG_EPOCHS = """
import time
from objectives.epoch import Epoch, Hyperparameter
from tuner import StudyDefinition, StudyManager

class Long:
    name, direction, description = "long", "minimize", "for a test"
    hyperparameters = (Hyperparameter("x", 0.5),)

    def evaluate(self, params, *, seed, resume=None):
        yield Epoch(1, 1.0)
        time.sleep(300)
        yield Epoch(2, 1.0)

if __name__ == "__main__":
    definition = StudyDefinition.parse(
        {"name": "s", "budget": {"trials": 2}, "space": {"x": {"low": 0, "high": 1}}, "sampler": {"name": "random"}}
    )
    with StudyManager("sqlite:///s.db") as manager:
        manager.run(definition, Long(), workers=2, executor="processes")
"""


@pytest.mark.long
def test_a_second_ctrl_c_leaves_at_once_and_holds_nothing_against_the_trials(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(LONG_EPOCHS)
    process = Program(folder=tmp_path, script="script.py", session=True)
    try:
        with StudyManager(f"sqlite:///{tmp_path}/s.db") as manager:
            while process.poll() is None:
                time.sleep(0.1)
                if "s" in {s.name for s in manager.studies()} and [
                    w.epochs for w in manager.working(["s"])
                ] == [1, 1]:
                    break
            os.killpg(process.pid, signal.SIGINT)
            assert (
                "waiting for the epoch of 2 trials to end; Ctrl-C again leaves" in process.stderr.readline()
            )
            os.killpg(process.pid, signal.SIGINT)
            _, err = process.communicate(timeout=60)
            assert "left 2 trials within an epoch; they will run again from their start" in err
            assert manager.ask_tell("s").open_leases() == []
            assert [t.state for t in manager.load("s").trials] == [TrialState.WAITING] * 2
            lease = manager.ask_tell("s").ask()
            assert lease is not None
            assert lease.attempt == 1
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.close()


@pytest.mark.parametrize("to", [pytest.param("the parent", marks=pytest.mark.long), "the whole group"])
def test_sigterm_gives_trials_back_though_an_epoch_takes_long(tmp_path: Path, to: str) -> None:
    overdue = "import tuner.termination\ntuner.termination.GRACE_SECONDS = 0.2\n"
    (tmp_path / "script.py").write_text(overdue + LONG_EPOCHS)
    with (
        contextlib.closing(Program(folder=tmp_path, script="script.py", session=True)) as process,
        StudyManager(f"sqlite:///{tmp_path}/s.db") as manager,
    ):
        while process.poll() is None and [w.epochs for w in manager.working(["s"])] != [1, 1]:
            time.sleep(0.05)
        (os.killpg if to == "the whole group" else os.kill)(process.pid, signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 143, err
        assert "Traceback" not in err
        assert manager.ask_tell("s").open_leases() == []
        assert [t.state for t in manager.load("s").trials] == [TrialState.WAITING] * 2
        lease = manager.ask_tell("s").ask()
        assert lease is not None
        assert lease.attempt == 1


@pytest.mark.long
def test_a_worker_process_that_is_told_to_end_is_replaced(sqlite_url: str) -> None:
    """Whoever ends one process alone ends neither the run nor a trial."""
    outcomes: list[Outcome] = []
    told: list[int] = []

    def end_one(outcome: Outcome) -> None:
        outcomes.append(outcome)
        if not told and (held := manager.ask_tell("s").open_leases()):
            owner = Owner.parse(held[0].owner)
            assert owner is not None
            os.kill(owner.pid, signal.SIGTERM)
            told.append(owner.pid)

    definition = slope(fixed={"epochs": 5, "sleep": 0.05})
    with StudyManager(sqlite_url) as manager:
        trials = manager.run(definition, Slope(), workers=2, executor="processes", on_outcome=end_one).trials
    assert told
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 8
    assert all("attempts" not in t.user_attrs for t in trials)
    assert sorted(o.number for o in outcomes if o.state is not None) == list(range(8))


def test_what_nobody_works_on_any_more_is_not_shown_as_running(sqlite_url: str) -> None:
    with StudyManager(sqlite_url) as manager:
        study = manager.create(slope())
        here = manager.ask_tell("s")
        working, by_hand = here.ask(), here.ask()
        assert working is not None
        assert by_hand is not None
        assert elsewhere(manager, -1.0).ask() is not None  # expired
        study._storage.set_trial_state_values(by_hand.trial_id, TrialState.FAIL)
        assert [(w.study, w.number) for w in manager.working(["s", "none"])] == [("s", working.number)]


class Deadly(Slope):
    """Kills its worker."""

    def evaluate(self, params: Mapping[str, Any], *, seed: Seed, resume: bytes | None = None) -> Epochs:
        yield Epoch(1, 1.0)
        os.kill(os.getpid(), signal.SIGKILL)


def test_an_executor_of_ones_own_that_breaks_ends_the_run_in_words(sqlite_url: str) -> None:
    with StudyManager(sqlite_url) as manager:
        with (
            processes(2) as executor,
            pytest.raises(TunerError, match=r"the executor broke: .*goes on from there"),
        ):
            manager.run(slope(), Deadly(), workers=2, executor=executor)
        trials = manager.run(slope(), Slope(), workers=2).trials
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 8


def test_what_cannot_be_sent_to_workers_is_said_in_words(sqlite_url: str) -> None:
    with StudyManager(sqlite_url) as manager:
        with pytest.raises(TunerError, match=r"cannot be given a trial to run: .*must be picklable"):
            manager.run(slope(), lambda trial: 1.0, executor="processes")
        with ThreadPoolExecutor(1) as executor:
            pass
        with pytest.raises(TunerError, match="the executor takes no work: cannot schedule"):
            manager.run(slope(), Slope(), executor=executor)
        with pytest.raises(
            DefinitionError, match=r"dask://HOST:PORT or an Executor in Python; got 'cluster'"
        ):
            manager.run(slope(name="t"), Slope(), executor="cluster")
        assert [summary.name for summary in manager.studies()] == ["s"]


def test_a_worker_that_comes_late_to_a_run_that_is_over_does_nothing(sqlite_url: str) -> None:
    class Slow(ThreadPoolExecutor):
        """Does not begin with a task before its run is over."""

        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            def later() -> Any:
                over.wait()
                return fn(*args, **kwargs)

            late.append(super().submit(later if args else fn, *(() if args else args), **kwargs))
            if len(late) > 2:
                raise KeyboardInterrupt
            return late[-1]

    over, late = threading.Event(), []  # type: ignore[var-annotated]
    with Slow(2) as executor, StudyManager(sqlite_url) as manager:
        threading.Timer(0.5, over.set).start()
        with pytest.raises(KeyboardInterrupt):
            manager.run(slope(), Slope(), workers=2, executor=executor)
        assert [future.result() for future in late] == [None] * 3
        assert manager.load("s").trials == []


@pytest.mark.parametrize("budget", [{"trials": 100}, {"epochs": 300}], ids=["trials", "epochs"])
def test_32_workers_meet_the_budget_exactly(url: str, budget: dict[str, int]) -> None:
    outcomes: list[Outcome] = []
    definition = slope(budget=budget)
    with StudyManager(url) as manager:
        finished = manager.run(
            definition, Slope(), workers=32, executor="threads", on_outcome=outcomes.append
        )
        spent = manager.ask_tell("s").spent()
    assert [t.number for t in finished.trials] == list(range(len(finished.trials)))
    epochs = sum(len(t.intermediate_values) for t in finished.trials)
    assert (spent.trials, spent.ended) == (len(finished.trials), len(finished.trials))
    assert spent.epochs == epochs
    assert sorted(o.number for o in outcomes) == list(range(len(finished.trials)))
    if "trials" in budget:
        assert [t.state for t in finished.trials] == [TrialState.COMPLETE] * 100
    else:
        assert epochs == 300


def elsewhere(manager: StudyManager, lease_seconds: float) -> AskTell:
    """Ask and tell as a worker on another machine has them."""
    ledger = Ledger(manager._database, lease_seconds=lease_seconds)
    return AskTell(manager.open("s"), manager.definition("s"), ledger, owner="elsewhere/1/1.0")


def test_a_trial_that_was_lost_elsewhere_runs_again_before_the_run_ends(url: str) -> None:
    with StudyManager(url) as manager:
        manager.create(slope())
        lost = elsewhere(manager, 2.0).ask()
        assert lost is not None
        trials = manager.run(slope(), Slope(), workers=2).trials
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 8
    assert [t.number for t in trials if t.user_attrs.get("attempts") == 2] == [lost.number]


def test_a_trial_whose_worker_lives_elsewhere_is_left_to_it(
    sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with StudyManager(sqlite_url) as manager:
        manager.create(slope())
        other = elsewhere(manager, 60.0)
        lease = other.ask()
        assert lease is not None
        over = threading.Event()

        def beat() -> None:
            while not over.wait(0.1):
                other.heartbeat(lease)

        with contextlib.ExitStack() as stack:
            thread = threading.Thread(target=beat)
            thread.start()
            stack.callback(thread.join)
            stack.callback(over.set)
            trials = manager.run(slope(), Slope(), workers=2).trials
    assert [t.state.name for t in trials] == ["RUNNING", *["COMPLETE"] * 7]
    assert "s: a trial is left to process 1 on elsewhere, which works on it" in caplog.text


def test_a_trial_that_ends_elsewhere_meanwhile_is_waited_for(sqlite_url: str) -> None:
    with StudyManager(sqlite_url) as manager:
        manager.create(slope(budget={"trials": 1}))
        other = elsewhere(manager, 60.0)
        lease = other.ask()
        assert lease is not None
        telling = threading.Timer(1.0, other.tell, (lease, TrialState.COMPLETE, 0.5))
        telling.start()
        (trial,) = manager.run(slope(budget={"trials": 1}), Slope()).trials
        telling.join()
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.5)


def test_a_trial_that_was_ended_by_hand_is_not_waited_for(sqlite_url: str) -> None:
    with StudyManager(sqlite_url) as manager:
        study = manager.create(slope())
        lease = elsewhere(manager, 3600.0).ask()
        assert lease is not None
        study._storage.set_trial_state_values(lease.trial_id, TrialState.FAIL)
        trials = manager.run(slope(), Slope(), workers=2).trials
    assert [t.state.name for t in trials] == ["FAIL", *["COMPLETE"] * 7]


def test_a_run_that_was_killed_is_forgotten_by_the_next(sqlite_url: str) -> None:
    table = RunRow.__table__
    with StudyManager(sqlite_url) as manager:
        killed = Runs(manager._ledger).begin()
        with manager._ledger.transaction() as session:
            nobody = dataclasses.replace(Owner.here(), pid=2**22 + 1)  # no process has this id
            session.execute(sa.update(table).values(owner=str(nobody)))
        assert Runs(manager._ledger).goes_on(killed)
        manager.run(slope(), Slope())
        assert not Runs(manager._ledger).goes_on(killed)
        with manager._ledger.transaction() as session:
            assert session.execute(sa.select(table)).all() == []  # nor did that run leave a row


def test_a_worker_that_has_just_gone_keeps_no_other_from_being_told_to_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Process:
        def __init__(self, pid: int) -> None:
            self.pid = pid

        def is_alive(self) -> bool:
            return True  # the pool's own thread has taken its end up

    told: list[int] = []

    def kill(pid: int, number: int) -> None:
        if pid == 1:
            raise ProcessLookupError(pid)
        told.append(pid)

    with _OwnProcesses(1) as executor:
        monkeypatch.setattr(executor, "_processes", {pid: Process(pid) for pid in (1, 2)})
        monkeypatch.setattr(os, "kill", kill)
        executor.hurry()
        monkeypatch.undo()
    assert told == [2]
