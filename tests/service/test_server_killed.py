"""The service killed again and again under eight clients: no acknowledged tell is lost, and the budget is exact."""

from __future__ import annotations

import contextlib
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from optuna.trial import TrialState
from test_serve import Running

from tuner import StudyManager
from tuner.client import Client
from tuner.errors import LeaseLostError

CLIENTS = 8


def test_a_killed_service_loses_nothing(url: str, tmp_path: Path) -> None:
    _kill_and_start_again(url, tmp_path, kills=1)


@pytest.mark.long
def test_a_service_killed_twenty_times_loses_nothing(url: str, tmp_path: Path) -> None:
    _kill_and_start_again(url, tmp_path, kills=20)


def _kill_and_start_again(url: str, folder: Path, *, kills: int) -> None:
    budget = 40 + 20 * kills
    service = Running("--storage", url, "--port", "0", folder=folder)
    chance, acknowledged, over = random.Random(kills), dict[int, float](), threading.Event()
    with Client(service.url, service.token) as client:
        client.create(
            {
                "name": "s",
                "budget": {"trials": budget},
                "space": {"x": {"low": 0.0, "high": 1.0}},
                "sampler": {"name": "random"},
            }
        )

    def work() -> None:
        with Client(service.url, service.token) as client:
            study = client.study("s")
            while (lease := study.ask()) is not None:
                over.wait(0.05)  # a short training
                with contextlib.suppress(LeaseLostError):
                    study.report(lease, 1, lease.params["x"])
                    study.tell(lease, lease.params["x"])
                    assert lease.number not in acknowledged
                    acknowledged[lease.number] = lease.params["x"]

    try:
        with ThreadPoolExecutor(CLIENTS) as pool:
            working = [pool.submit(work) for _ in range(CLIENTS)]
            for _ in range(kills):
                over.wait(chance.uniform(0.1, 0.6))
                assert len(acknowledged) < budget, "it ended before it could be killed so often"
                service.process.kill()
                service.process.wait()
                service = _again(service, url, folder)
            for done in working:
                done.result(timeout=300)
    finally:
        over.set()
        service.close()
    with StudyManager(url) as manager:
        trials, spent = manager.load("s").trials, manager.ask_tell("s").spent()
    assert [trial.number for trial in trials] == list(range(budget))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert {trial.number: trial.value for trial in trials} == acknowledged
    assert (spent.trials, spent.ended, spent.epochs) == (budget, budget, budget)


def _again(service: Running, url: str, folder: Path) -> Running:
    """The service once more, on the same port and with the same tokens."""
    service.close()
    again = Running("--storage", url, "--port", str(service.port), folder=folder)
    again.token = service.token
    return again
