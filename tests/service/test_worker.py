"""Workers of a service: the same values as a local run, whatever becomes of workers; and never a database."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import distributed
import pytest
from command import Program, Tuner
from installed import install
from optuna.trial import TrialState
from served import LossyProxy, Served, told

import tuner.cli
from tuner import ComparisonDefinition, StudyDefinition, StudyManager
from tuner.client import Client
from tuner.client.worker import WorkerSettings, work
from tuner.errors import AccessDeniedError, DefinitionError, NotFoundError, TunerError
from tuner.ledger import Spent
from tuner.trial_run import Outcome

TOKEN = "token-of-worker"

MODULE = """
import contextlib, json, os, time
from objectives.epoch import Diverged, Epoch, Hyperparameter

class Walk:
    name, direction, description = "walk", "minimize", "for a test"
    hyperparameters = (
        Hyperparameter("x", 0.5, adjustable=True), Hyperparameter("epochs", 6), Hyperparameter("pause", 0.0),
    )

    def evaluate(self, params, *, seed, resume=None):
        first, value = json.loads(resume) if resume else (0, 1.0 + seed.trial / 7)
        for epoch in range(first + 1, params.get("epochs", 6) + 1):
            time.sleep(params.get("pause", 0.0))
            value = value * 0.9 + params["x"] / 3
            if "KILL_ONCE" in os.environ and epoch == 3:
                with contextlib.suppress(FileExistsError):
                    os.close(os.open(os.environ["KILL_ONCE"], os.O_CREAT | os.O_EXCL))
                    os.kill(os.getpid(), 9)
            if value > 3.0:
                raise Diverged(epoch, "too far")
            if "WALKED" in os.environ:
                with open(os.environ["WALKED"], "a") as file:
                    print(seed.trial, epoch, os.getpid(), file=file)
            state = (epoch, value)
            adjustment = yield Epoch(
                epoch, value, {"error": value / 2}, checkpoint=lambda: json.dumps(state).encode()
            )
            params = {**params, **(adjustment or {})}

walk = Walk()
"""

SCRIPT = """
import sys
from tuner.client.worker import WorkerSettings, work
if __name__ == "__main__":
    opened = []
    sys.addaudithook(lambda event, args: opened.append(args) if event == "sqlite3.connect" else None)
    settings = WorkerSettings(sys.argv[1], "token-of-worker", keep_seconds=0.0)
    work(
        settings, executor=sys.argv[2], workers=2, idle=float(sys.argv[3]),
        on_outcome=lambda outcome: print(outcome.number, outcome.state and outcome.state.name, flush=True),
    )
    assert not opened, opened
    assert "psycopg" not in sys.modules
"""


@pytest.fixture(autouse=True)
def _walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The objective is installed, here and in processes that start."""
    install(tmp_path, "walk", MODULE, SCRIPT)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)
    yield
    sys.modules.pop("walk", None)


@pytest.fixture
def served(request: pytest.FixtureRequest, sqlite_url: str) -> Iterator[Served]:
    """A service whose leases outlast any stall of a busy machine, unless a test waits for their end."""
    with Served(sqlite_url, lease_seconds=getattr(request, "param", 120.0)) as running:
        yield running


leases_end_soon = pytest.mark.parametrize("served", [2.0], indirect=True, ids=[""])


def definition(name: str = "walks", **more: Any) -> StudyDefinition:
    document = {
        "name": name,
        "objective": "walk",
        "budget": {"trials": 12},
        "space": {"x": {"low": 0.0, "high": 1.0}},
        "pruner": {"name": "median", "startup_trials": 3, "warmup_epochs": 2},
        "sampler": {"name": "tpe", "startup_trials": 4},
    }
    return StudyDefinition.parse({**document, **more})


def local_trials(tmp_path: Path, wanted: StudyDefinition) -> list[Any]:
    with StudyManager(f"sqlite:///{tmp_path}/local.db") as manager:
        return [told(trial) for trial in manager.run(wanted).trials]


def settings(served: Served, **more: Any) -> WorkerSettings:
    return WorkerSettings(served.url, TOKEN, **more)


def start(tmp_path: Path, *arguments: str) -> Program:
    return Program(*arguments, folder=tmp_path, script="script.py")


def wait_for(condition: Any, what: str) -> None:
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError(what)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"budget": {"epochs": 40}},
        {
            "sampler": {"name": "population-based", "population": 3, "interval": 2},
            "pruner": {"name": "none"},
        },
    ],
    ids=["pruned", "budget of epochs", "population"],
)
def test_a_worker_gives_the_values_of_a_local_run(
    tmp_path: Path, served: Served, more: dict[str, Any]
) -> None:
    wanted = definition(**more)
    with Client(served.url, "token-of-admin") as client:
        client.create(wanted)
    outcomes: list[Outcome] = []
    work(settings(served, study="walks"), executor="threads", on_outcome=outcomes.append)
    remote = [told(trial) for trial in served.manager.load("walks").trials]
    assert remote == local_trials(tmp_path, wanted)
    assert [outcome.number for outcome in outcomes] == list(range(len(remote)))


@pytest.mark.long
@pytest.mark.slow
def test_processes_that_never_see_a_database_end_all_studies(tmp_path: Path, served: Served) -> None:
    for name in ("one", "two"):
        served.manager.create(definition(name))
    served.manager.create(definition("functions", objective=None))
    for executor in ("threads", "processes"):
        worker = start(tmp_path, served.url, executor, "0")
        told_of = "".join(worker.communicate(timeout=120))
        assert worker.returncode == 0, told_of
        if executor == "threads":
            assert len(told_of.splitlines()) == 24
            served.manager.create(definition("three"))
    for name in ("one", "two", "three"):
        spent = served.manager.ask_tell(name).spent()
        assert spent.trials == spent.ended == 12
    assert served.manager.ask_tell("functions").spent().trials == 0


@leases_end_soon
@pytest.mark.long
@pytest.mark.slow
def test_what_a_killed_worker_had_done_is_not_done_again(
    tmp_path: Path, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next attempt goes on from the uploaded checkpoint, and the trial is as if nothing had happened."""
    monkeypatch.setenv("WALKED", str(tmp_path / "walked"))
    wanted = definition(fixed={"pause": 0.05, "epochs": 30}, budget={"trials": 2}, pruner={"name": "none"})
    served.manager.create(wanted)
    first = start(tmp_path, served.url, "threads", "600")
    study = served.manager.load("walks")
    wait_for(lambda: any(len(t.intermediate_values) >= 5 for t in study.get_trials()), "nothing is reported")
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    second = start(tmp_path, served.url, "threads", "5")
    told_of = "".join(second.communicate(timeout=120))
    assert second.returncode == 0, told_of
    walked = [tuple(map(int, line.split())) for line in (tmp_path / "walked").read_text().splitlines()]
    by_second = [(trial, epoch) for trial, epoch, pid in walked if pid == second.pid]
    lost = {trial for trial, _, pid in walked if pid == first.pid}
    assert lost
    assert all((trial, 1) not in by_second for trial in lost), "it began at the start again"
    monkeypatch.delenv("WALKED")
    remote = [told(trial) for trial in served.manager.load("walks").trials]
    for here, there in zip(local_trials(tmp_path, wanted), remote, strict=True):
        attempts = {"attempts": 2} if here[0] in lost else {}
        assert (*here[:-1], {**here[-1], **attempts}) == there
    spent = served.manager.ask_tell("walks").spent()
    assert (spent.trials, spent.ended, spent.epochs) == (2, 2, 60)


def test_a_worker_runs_a_comparison_as_one_process_does(tmp_path: Path, served: Served) -> None:
    arms = [{"name": name, "sampler": {"name": name}} for name in ("random", "sobol")]
    wanted = ComparisonDefinition.parse(
        {
            "name": "duel",
            "objective": "walk",
            "budget": {"trials": 3},
            "space": {"x": {"low": 0.0, "high": 1.0}},
            "comparison": {"seeds": 2, "arms": arms},
        }
    )
    with Client(served.url, "token-of-operator") as client:
        assert client.compare(wanted)["status"] == "running"
        work(settings(served), executor="threads", workers=3, idle=0.0)
        found = client.comparison("duel")
        assert client.comparisons() == ["duel"]
        assert client.report("duel").startswith("<!DOCTYPE html>")
    assert found["status"] == "finished"
    with StudyManager(f"sqlite:///{tmp_path}/local.db") as manager:
        result = manager.compare(wanted)
        assert found["verdict"] == result.verdict
        for member in wanted.members:
            name = member.definition.name
            remote = [told(trial) for trial in served.manager.load(name).trials]
            assert remote == [told(trial) for trial in manager.load(name).trials]


def test_a_worker_of_a_comparison_ends_with_it(served: Served) -> None:
    arms = [{"name": name, "sampler": {"name": name}} for name in ("random", "sobol")]
    document = {
        "name": "duel",
        "objective": "walk",
        "budget": {"trials": 2},
        "space": {"x": {"low": 0.0, "high": 1.0}},
        "comparison": {"seeds": 2, "arms": arms},
    }
    served.manager.create(definition("another"))
    news: list[str] = []
    with Client(served.url, "token-of-operator") as client:
        client.compare(document)
        client.study("duel.sobol.seed-1").stop()
        work(settings(served, study="duel"), executor="threads", workers=2, on_news=news.append)
        ended = {member["study"]: member["trials"] for member in client.comparison("duel")["members"]}
    assert ended == {
        "duel.random.seed-0": 2, "duel.sobol.seed-0": 2, "duel.random.seed-1": 2, "duel.sobol.seed-1": 0
    }  # fmt: skip
    assert news[0] == f"working for {served.url}: comparison duel (4 studies); 2 at once, in threads"
    assert served.manager.ask_tell("another").spent().trials == 0


@pytest.mark.long
def test_a_dask_cluster_works_for_a_service(tmp_path: Path, served: Served) -> None:
    wanted = definition(budget={"trials": 6})
    served.manager.create(wanted)
    # any free port: the scheduler listens for HTTP even without a dashboard, on 8787 unless told otherwise
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    with distributed.LocalCluster(**options, local_directory=str(tmp_path)) as cluster:
        where = cluster.scheduler_address.replace("tcp://", "dask://")
        work(settings(served, study="walks"), executor=where)
    assert [told(trial) for trial in served.manager.load("walks").trials] == local_trials(tmp_path, wanted)


@pytest.mark.long
def test_a_stop_reaches_a_dask_cluster(tmp_path: Path, served: Served) -> None:
    served.manager.create(definition(fixed={"pause": 0.05, "epochs": 1000}, pruner={"name": "none"}))
    study, ask_tell = served.manager.load("walks"), served.manager.ask_tell("walks")

    def press_ctrl_c() -> None:
        wait_for(
            lambda: sum(bool(t.intermediate_values) for t in study.get_trials()) == 2, "no two trials run"
        )
        os.kill(os.getpid(), signal.SIGINT)

    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    with distributed.LocalCluster(**options, local_directory=str(tmp_path)) as cluster:
        threading.Thread(target=press_ctrl_c).start()
        where = cluster.scheduler_address.replace("tcp://", "dask://")
        news: list[str] = []
        with pytest.raises(KeyboardInterrupt):
            work(settings(served, study="walks"), executor=where, workers=2, on_news=news.append)
        assert ask_tell.open_leases() == []
        assert [trial.state for trial in study.get_trials()] == [TrialState.WAITING] * 2
        assert sum(line.startswith("waiting for the epoch of 2 trials") for line in news) == 1


@leases_end_soon
@pytest.mark.slow
def test_a_process_that_dies_is_replaced(
    tmp_path: Path, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = definition(budget={"trials": 4}, pruner={"name": "none"})
    served.manager.create(wanted)
    monkeypatch.setenv("KILL_ONCE", str(tmp_path / "killed"))
    outcomes: list[Outcome] = []
    # as each of these trials is quick, checkpoints are left after every epoch
    work(settings(served, study="walks", keep_seconds=0.0), on_outcome=outcomes.append)
    assert (tmp_path / "killed").exists()
    monkeypatch.delenv("KILL_ONCE")
    trials = served.manager.load("walks").trials
    assert [trial.user_attrs.get("attempts") for trial in trials].count(2) == 1
    values = {trial.number: trial.intermediate_values for trial in trials}
    with StudyManager(f"sqlite:///{tmp_path}/local.db") as manager:
        assert values == {trial.number: trial.intermediate_values for trial in manager.run(wanted).trials}
    assert len(outcomes) == 4


@pytest.mark.long
def test_a_network_that_swallows_answers_changes_no_trial(tmp_path: Path, served: Served) -> None:
    wanted = definition()
    served.manager.create(wanted)
    with LossyProxy(served.port, loses=0.2) as proxy:
        work(WorkerSettings(proxy.url, TOKEN, study="walks", keep_seconds=0.0), executor="threads")
        assert proxy.swallowed >= 10
    assert [told(trial) for trial in served.manager.load("walks").trials] == local_trials(tmp_path, wanted)
    assert served.manager.ask_tell("walks").open_leases() == []


def cli(served: Served, tmp_path: Path, *more: str) -> Program:
    (tmp_path / "token").write_text(TOKEN + "\n")
    command = ("worker", "--url", served.url, "--token-file", "token", *more)
    return Program(*command, folder=tmp_path, session=True)


@pytest.mark.parametrize(
    ("executor", "stop"),
    [
        ("threads", lambda worker: worker.terminate()),
        pytest.param("processes", lambda worker: worker.terminate(), marks=pytest.mark.long),
        ("processes", lambda worker: os.killpg(worker.pid, signal.SIGTERM)),
        pytest.param(
            *("processes", lambda worker: os.killpg(worker.pid, signal.SIGHUP)), marks=pytest.mark.long
        ),
    ],
    ids=["threads", "the parent", "the whole group", "a closed terminal"],
)
def test_the_command_stops_in_order(
    *, tmp_path: Path, served: Served, tuner: Tuner, executor: str, stop: Any
) -> None:
    served.manager.create(definition(fixed={"pause": 0.05, "epochs": 1000}, pruner={"name": "none"}))
    worker = cli(served, tmp_path, "--workers", "2", "--executor", executor)
    study = served.manager.load("walks")
    wait_for(lambda: sum(bool(t.intermediate_values) for t in study.get_trials()) == 2, "no two trials run")
    stop(worker)
    _, said = worker.communicate(timeout=60)
    assert worker.returncode == 130, said
    assert "walks trial 0 was given back" in said
    assert "Traceback" not in said
    assert "Stopped. 0 trials have ended here" in said
    trials = study.get_trials()
    assert [trial.state for trial in trials] == [TrialState.WAITING] * 2
    ask_tell = served.manager.ask_tell("walks")
    assert ask_tell.open_leases() == []
    kept = [ask_tell.checkpoint(trial.number) for trial in trials]
    assert all(checkpoint is not None and checkpoint[0] >= 1 for checkpoint in kept), "where they are is kept"
    shown = served.manager.checkpoints("walks")
    assert [checkpoint and checkpoint[0] for checkpoint in kept] == [shown[0], shown[1]]
    _, listed, _ = tuner("trials", "walks")
    lines = listed.splitlines()[1:]
    assert all(f"goes on after epoch {shown[number]}" in line for number, line in enumerate(lines))
    assert len(lines) == 2
    assert json.loads(tuner("trials", "walks", "--format", "json")[1])[1]["checkpoint_epoch"] == shown[1]
    with Client(served.url, TOKEN) as client:
        assert client.study("walks").trial(1).checkpoint_epoch == shown[1]
        assert [trial.checkpoint_epoch for trial in client.study("walks").trials("waiting")] == [
            shown[0],
            shown[1],
        ]
    again = ask_tell.ask()
    assert again is not None
    assert again.attempt == 1


OVERDUE = f"import tuner.termination\ntuner.termination.GRACE_SECONDS = 0.2\n{SCRIPT}"
"""Its processes leave a training that they should have ended, soon."""


@pytest.mark.parametrize("to", [pytest.param("the parent", marks=pytest.mark.long), "the whole group"])
def test_a_stop_does_not_wait_for_an_epoch_that_takes_long(tmp_path: Path, served: Served, to: str) -> None:
    served.manager.create(definition(fixed={"pause": 300.0}))
    (tmp_path / "script.py").write_text(OVERDUE)
    worker = Program(served.url, "processes", "600", folder=tmp_path, script="script.py", session=True)
    ask_tell = served.manager.ask_tell("walks")
    wait_for(lambda: len(ask_tell.open_leases()) == 2, "no two trials run")
    time.sleep(0.5)  # they train
    (os.killpg if to == "the whole group" else os.kill)(worker.pid, signal.SIGTERM)
    _, said = worker.communicate(timeout=60)
    assert worker.returncode == 143, said
    assert ask_tell.open_leases() == []
    assert [trial.state for trial in ask_tell.study.get_trials()] == [TrialState.WAITING] * 2
    again = ask_tell.ask()
    assert again is not None
    assert (again.number, again.attempt) == (0, 1), (
        "another has it at once, and no attempt is held against it"
    )


def test_the_command_ends_with_its_study(tmp_path: Path, served: Served) -> None:
    served.manager.create(definition(budget={"trials": 3}))
    worker = cli(served, tmp_path, "--study", "walks", "--executor", "threads")
    out, said = worker.communicate(timeout=60)
    assert (worker.returncode, out) == (0, ""), said
    banner = said.splitlines()[0]
    assert banner.startswith(f"working for {served.url}: study walks (objective walk); ")
    assert banner.endswith(" at once, in threads")
    assert "\x1b" not in said
    assert "walks trial 2: complete, value " in said
    assert said.endswith("3 trials have ended here\n")


@pytest.mark.parametrize("executor", ["threads", "processes"])
def test_the_command_logs_its_calls_and_shows_that_it_lives(
    tmp_path: Path, served: Served, executor: str
) -> None:
    served.manager.create(definition(budget={"trials": 2}))
    options = ("--study", "walks", "--executor", executor, "--log-level", "info", "--alive-file", "alive")
    worker = cli(served, tmp_path, *options)
    _, said = worker.communicate(timeout=60)
    assert worker.returncode == 0, said
    assert (tmp_path / "alive").exists()
    records = [json.loads(line) for line in said.splitlines()]
    assert records[-1]["message"] == "2 trials have ended here"
    calls = [record for record in records if record["message"] == "call"]
    assert sum(call["path"].endswith(":tell") for call in calls) == 2  # of the processes that run trials, too
    assert len({call["request_id"] for call in calls}) == len(calls)
    assert TOKEN not in said


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--log-level", "loud"], "--log-level is one of debug, info, warning, error; got 'loud'"),
        (["--study", "absent"], "no study is named 'absent'"),
        (["--token-file", "absent"], "--token-file absent: No such file"),
        (["--url", "http://tuner.example.com"], "in the clear"),
        (["--executor", "fibres"], "executor must be processes"),
    ],
)
def test_mistakes_of_the_command_are_one_line(
    *,
    tmp_path: Path,
    served: Served,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    reason: str,
) -> None:
    (tmp_path / "token").write_text(TOKEN)
    token_file = str(tmp_path / "token")
    monkeypatch.setattr(
        "sys.argv", ["tuner", "worker", "--url", served.url, "--token-file", token_file, *more]
    )
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        tuner.cli.main()
    said = capsys.readouterr().err
    assert ended.value.code == 2, said
    assert reason in said
    assert len(said.splitlines()) == 1


def test_whom_a_worker_cannot_serve(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    served.manager.create(definition("functions", objective=None))
    with pytest.raises(DefinitionError, match="names no objective"):
        work(settings(served, study="functions"), executor="threads")
    with pytest.raises(NotFoundError, match="absent"):
        work(settings(served, study="absent"), executor="threads")
    with pytest.raises(AccessDeniedError):
        work(WorkerSettings(served.url, "unknown"), executor="threads")
    with pytest.raises(DefinitionError, match="at least 1"):
        work(settings(served), workers=0)
    assert TOKEN not in repr(settings(served))
    monkeypatch.setattr("tuner.client.worker.objective_names", list)
    with pytest.raises(NotFoundError, match="no objective is installed"):
        work(settings(served), executor="threads")


def test_a_viewer_cannot_work(served: Served) -> None:
    served.manager.create(definition())
    with pytest.raises(AccessDeniedError, match="needs the role worker"):
        work(WorkerSettings(served.url, "token-of-viewer"), executor="threads")


def test_an_objective_that_always_fails_ends_the_worker(
    served: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    served.manager.create(definition())
    monkeypatch.setenv("WALKED", str(tmp_path / "no" / "such" / "folder"))
    with pytest.raises(TunerError, match=r"5 trials in a row failed; .* FileNotFoundError"):
        work(settings(served), executor="threads")
    assert served.manager.ask_tell("walks").spent().ended == 5


def test_a_person_adjusts_and_stops_what_a_worker_trains(tmp_path: Path, served: Served) -> None:
    served.manager.create(
        definition(fixed={"pause": 0.05, "epochs": 1000}, budget={"trials": 1}, pruner={"name": "none"})
    )
    worker = start(tmp_path, served.url, "threads", "0")
    with Client(served.url, "token-of-admin") as client:
        study = client.study("walks")
        wait_for(lambda: study.trials("running"), "no trial runs")
        study.adjust(0, {"x": 0.25})
        wait_for(lambda: "adjustments" in study.trial(0).user_attrs, "it is not adjusted")
        study.stop_trial(0)
        worker.communicate(timeout=60)
        trial = study.trial(0)
    assert trial.state == "complete"
    (made,) = trial.user_attrs["adjustments"]
    assert (made["name"], made["new"], made["by"]) == ("x", 0.25, "admin")
    assert trial.user_attrs["stopped"] == "by admin"


@pytest.mark.long
def test_a_worker_waits_out_a_service_that_is_away(tmp_path: Path, served: Served) -> None:
    served.manager.create(definition(fixed={"pause": 0.01, "epochs": 20}))
    worker = start(tmp_path, served.url, "threads", "3")
    study = served.manager.load("walks")
    wait_for(lambda: any(t.intermediate_values for t in study.get_trials()), "no trial runs")
    served.stop()
    time.sleep(1.0)
    served.start()
    told_of = "".join(worker.communicate(timeout=120))
    assert worker.returncode == 0, told_of
    spent = served.manager.ask_tell("walks").spent()
    reported = sum(len(t.intermediate_values) for t in served.manager.load("walks").trials)
    assert spent == Spent(trials=12, ended=12, epochs=reported, seconds=spent.seconds)


class EndedError(Exception):
    """Raised out of a worker's loop."""


@pytest.mark.long
def test_a_service_that_is_away_is_said_once_and_so_is_its_return(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuner.client.worker.CHECK_SECONDS", 0.1)
    monkeypatch.setattr("tuner.executors.CHECK_SECONDS", 0.1)
    news: list[str] = []

    def note(line: str) -> None:
        news.append(line)
        if "any open study" in line:
            served.stop()
        if "cannot be reached" in line:
            threading.Timer(1.0, served.start).start()
        if line.endswith("is back"):
            served.manager.create(definition(budget={"trials": 1}))

    def end(outcome: Outcome) -> None:
        raise EndedError

    with pytest.raises(EndedError):
        work(settings(served), executor="threads", idle=60.0, on_outcome=end, on_news=note)
    banner, away, back, *_ = news
    assert banner.startswith(f"working for {served.url}: any open study of the objectives ackley, ")
    assert away.startswith(f"{served.url} cannot be reached: ")
    assert away.endswith("; trying again every few seconds")
    assert back == f"{served.url} is back"
    assert sum("cannot be reached" in line for line in news) == 1
    assert served.manager.ask_tell("walks").spent().ended == 1


@pytest.mark.long  # tests/test_caviar.py has the same of a run
def test_a_script_without_its_guard_is_told_so_at_once(tmp_path: Path, served: Served) -> None:
    (tmp_path / "script.py").write_text(SCRIPT.replace('if __name__ == "__main__":', "if True:"))
    worker = start(tmp_path, served.url, "processes", "0")
    _, said = worker.communicate(timeout=60)
    assert worker.returncode == 1
    assert "worker processes cannot start. A script that runs studies must begin" in said.splitlines()[-1]
