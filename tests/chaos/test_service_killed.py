"""The service killed again and again under its clients: nothing acknowledged is lost, no trial is left behind."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from tuner import StudyDefinition, StudyManager
from tuner.client import Client
from tuner.trial_run import Outcome

KILLS = 20
TRIALS = 400
JOBS = 8

SERVE = """
import sys
from served import Served
served = Served(sys.argv[1], lease_seconds=120.0, port=int(sys.argv[2]))
served.start()
print("up", flush=True)
served.join()
"""

DEFINITION = StudyDefinition.parse(
    {
        "name": "bowl",
        "budget": {"trials": TRIALS},
        "space": {"x": {"low": -10.0, "high": 10.0}},
        "sampler": {"name": "random"},
        "pruner": {"name": "median"},
    }
)


def function(trial: optuna.Trial) -> float:
    x = trial.suggest_float("x", -10, 10)
    for step in range(1, 6):
        time.sleep(0.05)
        trial.report(x * x / step, step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return x * x


class Service:
    """The API in a process of its own."""

    def __init__(self, database: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._command = [sys.executable, "-c", SERVE, database, str(self.port)]
        here = str(Path(__file__).parents[1] / "service")
        self._environment = {**os.environ, "PYTHONPATH": here}

    def start(self) -> None:
        self.process = subprocess.Popen(
            self._command, env=self._environment, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "up\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.mark.long
def test_nothing_that_was_acknowledged_is_lost(sqlite_url: str) -> None:
    told: dict[int, Outcome] = {}

    def note(outcome: Outcome) -> None:
        if outcome.state is not None:  # else its holder found no service for as long as a lease lasts
            assert told.setdefault(outcome.number, outcome) is outcome, "it was told twice"

    service = Service(sqlite_url)
    service.start()
    try:
        with Client(f"http://127.0.0.1:{service.port}", "token-of-admin", timeout=5.0) as client:
            study = client.create(DEFINITION)
            work = threading.Thread(
                target=study.optimize, args=(function,), kwargs={"n_jobs": JOBS, "on_outcome": note}
            )
            work.start()
            chance = random.Random(0)
            for _ in range(KILLS):
                time.sleep(chance.uniform(0.2, 1.0))
                service.kill()
                service.start()
            work.join(300)
            assert not work.is_alive()
            status = study.status()
    finally:
        service.kill()
    with StudyManager(sqlite_url) as manager:
        ask_tell = manager.ask_tell("bowl")
        trials = manager.load("bowl").trials
        assert len(trials) == TRIALS
        failed = [trial.user_attrs for trial in trials if trial.state is TrialState.FAIL]
        assert not failed, failed[0]
        assert ask_tell.open_leases() == []
        for number, outcome in told.items():
            assert (trials[number].state, trials[number].value) == (outcome.state, outcome.value)
        assert sorted(told) == list(range(TRIALS)), "whoever held a trial last has heard of its end"
        assert status.spent["trials"] == status.spent["ended"] == TRIALS
        assert status.spent["epochs"] == sum(len(trial.intermediate_values) for trial in trials)
