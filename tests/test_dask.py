"""A real Dask cluster: a scheduler and workers as processes of their own, some of which die."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import distributed
import pytest
from command import Program, run
from optuna.trial import TrialState

import tuner.executors
from objectives.epoch import Epoch, Epochs, Hyperparameter, Seed
from tuner import StudyDefinition, StudyManager, TunerError
from tuner.errors import DefinitionError, MissingDependencyError
from tuner.ledger import Owner
from tuner.trial_run import Outcome

DASK = str(Path(sys.executable).with_name("dask"))

Workers = Callable[..., contextlib.AbstractContextManager[list["subprocess.Popen[bytes]"]]]


@contextlib.contextmanager
def running(commands: list[list[str]], folder: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Programs that run meanwhile, their output in files of the folder."""
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}  # workers import the objectives below
    with contextlib.ExitStack() as stack:
        processes = []
        for number, command in enumerate(commands):
            log = stack.enter_context((folder / f"{command[1]}-{number}.log").open("wb"))
            processes.append(
                subprocess.Popen(
                    command, cwd=folder, stdout=log, stderr=log, env=here, start_new_session=True
                )
            )
        try:
            yield processes
        finally:
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a scheduler, HOST:PORT."""
    folder = tmp_path_factory.mktemp("dask")
    file = folder / "scheduler.json"
    options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
    with running([[DASK, "scheduler", *options]], folder):
        while not file.exists():
            time.sleep(0.05)
        yield json.loads(file.read_text())["address"].removeprefix("tcp://")


@pytest.fixture
def workers(scheduler: str, tmp_path: Path) -> Workers:
    """Starts so many worker processes of one thread each, and waits until they are there."""

    @contextlib.contextmanager
    def start(number: int, *options: str) -> Iterator[list[subprocess.Popen[bytes]]]:
        command = [DASK, "worker", f"tcp://{scheduler}", "--nthreads", "1", "--no-dashboard", *options]
        with running([[*command, "--local-directory", str(tmp_path)]] * number, tmp_path) as processes:
            with distributed.Client(f"tcp://{scheduler}", set_as_default=False) as client:
                client.wait_for_workers(number, timeout=60)
            yield processes

    return start


def digits(**more: Any) -> StudyDefinition:
    document = {
        "name": "d",
        "objective": "digits",
        "budget": {"trials": 24},
        "fixed": {"epochs": 10},
        "space": {"learning_rate": {"low": 1e-4, "high": 1.0, "scale": "log"}},
        "pruner": {"name": "median"},
    }
    return StudyDefinition.parse({**document, **more})


def leases(manager: StudyManager, name: str = "d") -> list[tuple[int, int]]:
    """Trial ids and the process ids that hold them."""
    ask_tell = manager.ask_tell(name)
    with ask_tell.ledger.transaction() as session:
        rows = ask_tell.ledger.open_leases(session, ask_tell.study._study_id)
    owners = [(row.trial_id, Owner.parse(row.owner)) for row in rows]
    return [(trial_id, owner.pid) for trial_id, owner in owners if owner is not None]


@pytest.mark.long
def test_a_worker_killed_in_mid_run_loses_nothing(url: str, scheduler: str, workers: Workers) -> None:
    outcomes: list[Outcome] = []
    killed: list[int] = []
    with StudyManager(url) as manager, workers(2, "--no-nanny"):

        def kill_one(outcome: Outcome) -> None:
            outcomes.append(outcome)
            if len(outcomes) >= 8 and not killed and (held := leases(manager)):
                trial_id, pid = held[0]
                os.kill(pid, signal.SIGKILL)
                killed.append(trial_id)

        finished = manager.run(digits(), workers=2, executor=f"dask://{scheduler}", on_outcome=kill_one)
        assert leases(manager) == []
        assert manager.ask_tell("d").spent().trials == 24
        assert manager.ask_tell("d").spent().ended == 24
    assert killed
    assert [t.number for t in finished.trials] == list(range(24))
    assert {t.state for t in finished.trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    told = {outcome.number: outcome for outcome in outcomes if outcome.state is not None}
    assert len(told) == len([o for o in outcomes if o.state is not None])  # none was counted twice
    assert (
        len(told) >= 22
    )  # Dask keeps what a task returned on its worker: the news died with it, the results did not
    for number, outcome in told.items():
        trial = finished.trials[number]
        assert outcome.state is trial.state
        assert outcome.epochs == len(trial.intermediate_values)
        assert trial.state is not TrialState.COMPLETE or outcome.value == trial.value


class Deadly:
    """Kills its worker where x is small; the others take their time, so that they run beside it."""

    name, direction, description = "deadly", "minimize", "for a test"
    hyperparameters = (Hyperparameter("x", 0.5),)

    def evaluate(self, params: Mapping[str, Any], *, seed: Seed, resume: bytes | None = None) -> Epochs:
        for epoch in (1, 2, 3):
            time.sleep(0.1)
            if params["x"] < 0.15:
                os.kill(os.getpid(), signal.SIGKILL)
            yield Epoch(epoch, params["x"])


def deadly(levels: list[float]) -> StudyDefinition:
    return StudyDefinition.parse(
        {
            "name": "d",
            "budget": {"trials": len(levels)},
            "space": {"x": {"low": 0, "high": 1}},
            "sampler": {"name": "grid", "levels": {"x": levels}},
        }
    )


@pytest.mark.long
def test_a_trial_that_kills_one_worker_after_the_other_fails_and_the_others_complete(
    sqlite_url: str, scheduler: str, workers: Workers
) -> None:
    levels = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    with StudyManager(sqlite_url) as manager, workers(2, "--nanny"):
        trials = manager.run(deadly(levels), Deadly(), workers=4, executor=f"dask://{scheduler}").trials
    ended = {trial.params["x"]: trial.state.name for trial in trials}
    assert ended == {0.1: "FAIL", **dict.fromkeys(levels[1:], "COMPLETE")}


@pytest.mark.long
def test_a_cluster_whose_workers_all_die_ends_the_run_in_words(
    sqlite_url: str, scheduler: str, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuner.executors, "EMPTY_SECONDS", 1.0)
    monkeypatch.setattr(tuner.executors, "CHECK_SECONDS", 0.2)
    monkeypatch.setattr(tuner.executors, "LEAVE_SECONDS", 0.2)
    with (
        StudyManager(sqlite_url) as manager,
        workers(1, "--no-nanny"),
        pytest.raises(TunerError, match=r"has had no workers for 1 s .*goes on once there are some"),
    ):
        manager.run(deadly([0.1, 0.2]), Deadly(), executor=f"dask://{scheduler}")


@pytest.mark.slow
@pytest.mark.long
def test_fewer_slots_than_workers_wait_in_line(sqlite_url: str, scheduler: str, workers: Workers) -> None:
    with StudyManager(sqlite_url) as manager, workers(1):
        where = f"dask://{scheduler}"
        trials = manager.run(
            deadly([0.2, 0.3, 0.4, 0.5, 0.6, 0.7]), Deadly(), workers=4, executor=where
        ).trials
    assert [t.state.name for t in trials] == ["COMPLETE"] * 6
    for before, after in itertools.pairwise(trials):
        assert before.datetime_complete is not None
        assert after.datetime_start is not None
        assert before.datetime_complete <= after.datetime_start


@pytest.mark.long
def test_ctrl_c_gives_trials_back_on_dask_too(tmp_path: Path, scheduler: str, workers: Workers) -> None:
    (tmp_path / "d.toml").write_text(TOML)
    command = ["run", "d.toml", "--workers", "2", "--executor", f"dask://{scheduler}"]
    with StudyManager(f"sqlite:///{tmp_path}/tuner.db") as manager, workers(2):
        process = Program(*command, folder=tmp_path)
        while not manager.studies() or not any(w.epochs for w in manager.working(["d"])):
            time.sleep(0.05)
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        assert "Traceback" not in err
        assert leases(manager) == []
        given_back = [t for t in manager.load("d").trials if t.state is TrialState.WAITING]
        assert given_back  # handed back, not merely left
        done = run(*command, folder=tmp_path, timeout=240)
        assert done.returncode == 0, done.stderr
        assert [t.state for t in manager.load("d").trials] == [TrialState.COMPLETE] * 4


TOML = """
name = "d"
objective = "digits"
budget = {trials = 4}
fixed = {epochs = 200}
[space.learning_rate]
low = 1e-4
high = 1.0
scale = "log"
"""


def test_without_dask_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, sqlite_url: str) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        StudyManager(sqlite_url) as manager,
        pytest.raises(MissingDependencyError, match=r"pip install 'tuner\[dask\]'"),
    ):
        manager.run(digits(), executor="dask://127.0.0.1:8786")


@pytest.mark.parametrize(
    "where", ["dask://", "dask://host", "dask://host:x", "dask://host:99999", "dask:8786"]
)
def test_a_schedulers_address_has_host_and_port(where: str, sqlite_url: str) -> None:
    with StudyManager(sqlite_url) as manager:
        with pytest.raises(DefinitionError, match="given as dask://HOST:PORT; got 'dask:"):
            manager.run(digits(), executor=where)
        assert manager.studies() == []


def test_where_no_scheduler_is_a_run_ends_in_words(monkeypatch: pytest.MonkeyPatch, sqlite_url: str) -> None:
    monkeypatch.setattr(tuner.executors, "CONNECT_SECONDS", 0.5)
    with (
        StudyManager(sqlite_url) as manager,
        pytest.raises(TunerError, match=r"no Dask scheduler answers at 127\.0\.0\.1:1 within"),
    ):
        manager.run(digits(), executor="dask://127.0.0.1:1")
