"""Thirty-two at once want the same trial, and tell it different things: one gets it, one is believed."""

from __future__ import annotations

import multiprocessing
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

import pytest
import sqlalchemy as sa
from optuna.trial import TrialState

from tuner import StudyDefinition, StudyManager
from tuner.ask_tell import Answer, AskTell, Lease
from tuner.errors import ConflictError
from tuner.ledger import Spent

PROCESSES, THREADS = 4, 8
ROUNDS = 100
SPACE = {"x": {"low": 0.0, "high": 1.0}}


def _ask(ask_tell: AskTell, _who: int, _lease: None) -> Lease | None:
    return ask_tell.ask()


def _tell(ask_tell: AskTell, who: int, lease: Lease) -> int | None:
    try:
        ask_tell.tell(lease, TrialState.COMPLETE, float(who))
    except ConflictError:
        return None
    return who


def _work(ask_tell: AskTell, _who: int, epochs: int) -> list[tuple[int, float]]:
    """Trials of some epochs until the budget is used up; what was told."""
    told = []
    while (lease := ask_tell.ask()) is not None:
        for epoch in range(1, epochs + 1):
            if ask_tell.report(lease, epoch, epoch / 8).answer is Answer.STOP:
                break
        ask_tell.tell(lease, TrialState.COMPLETE, lease.params["x"])
        told.append((lease.number, lease.params["x"]))
    return told


DO = {"ask": _ask, "tell": _tell, "work": _work}


def _contend(number: int, tasks: Connection, start: Any) -> None:
    """A process: for each task, all threads of all processes do the same at once. An empty task is the end."""
    managers: dict[str, StudyManager] = {}
    here = threading.local()

    def one(thread: int, url: str, study: str, what: str, given: Any) -> Any:
        if getattr(here, "study", None) != study:
            here.study, here.ask_tell = study, managers[url].ask_tell(study)
        start.wait()
        return DO[what](here.ask_tell, number * THREADS + thread, given)

    with ThreadPoolExecutor(THREADS) as pool:
        while (task := tasks.recv()) is not None:
            if task[0] not in managers:
                managers[task[0]] = StudyManager(task[0])
            futures = [pool.submit(one, thread, *task) for thread in range(THREADS)]
            try:
                tasks.send([future.result() for future in futures])
            except BaseException as error:
                tasks.send(repr(error))
                raise
    for manager in managers.values():
        manager.close()


class Contenders:
    """Processes that wait for something to contend for."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.start = context.Barrier(PROCESSES * THREADS)
        self.tasks: list[Connection] = []
        self.processes = []
        for number in range(PROCESSES):
            ours, theirs = context.Pipe()
            process = context.Process(target=_contend, args=(number, theirs, self.start), daemon=True)
            process.start()
            self.tasks.append(ours)
            self.processes.append(process)

    def all(self, ask_tell: AskTell, url: str, what: str, given: Any = None) -> list[Any]:
        """What came out for each of the threads."""
        for task in self.tasks:
            task.send((url, ask_tell.definition.name, what, given))
        results = []
        for task in self.tasks:
            assert task.poll(300), "a process does not answer"
            found = task.recv()
            assert isinstance(found, list), found
            results += found
        return results


@pytest.fixture(scope="module")
def contenders() -> Iterator[Contenders]:
    running = Contenders()
    yield running
    for task in running.tasks:
        task.send(None)
    for process in running.processes:
        process.join(30)
        process.kill()


def begin(manager: StudyManager, **budget: int) -> AskTell:
    definition = {"name": f"s{uuid.uuid4().hex}", "space": SPACE, "budget": budget}
    manager.create(StudyDefinition.parse({**definition, "sampler": {"name": "random"}}))
    return manager.ask_tell(definition["name"])


@pytest.mark.long
def test_of_many_at_once_one_gets_each_trial_and_one_is_believed(url: str, contenders: Contenders) -> None:
    manager = StudyManager(url)
    for _ in range(ROUNDS):
        ask_tell = begin(manager, trials=3)
        lost = ask_tell.ask()
        assert lost is not None
        with ask_tell.ledger.transaction() as session:
            session.execute(sa.text("UPDATE tuner_leases SET expires_at = 0 WHERE ending IS NULL"))
        ask_tell.study.enqueue_trial({"x": 0.25})

        leases = [lease for lease in contenders.all(ask_tell, url, "ask") if lease is not None]
        assert sorted((lease.number, lease.attempt, lease.fence) for lease in leases) == [
            (0, 2, 2),  # the lost one
            (1, 1, 1),  # the enqueued one
            (2, 1, 1),  # a new one
        ]
        for lease in leases:
            told = contenders.all(ask_tell, url, "tell", lease)
            (believed,) = [who for who in told if who is not None]
            assert ask_tell.study.get_trials(deepcopy=False)[lease.number].value == float(believed)
        assert ask_tell.spent() == Spent(trials=3, ended=3, epochs=3)
        assert ask_tell.open_leases() == []


@pytest.mark.long
@pytest.mark.parametrize("budget", [{"epochs": 100}, {"trials": 50}])
def test_budgets_are_exact_whoever_works(url: str, contenders: Contenders, budget: dict[str, int]) -> None:
    ask_tell = begin(StudyManager(url), **budget)
    told = [each for some in contenders.all(ask_tell, url, "work", 3) for each in some]
    trials = ask_tell.study.get_trials(deepcopy=False)
    assert max(Counter(number for number, _ in told).values()) == 1
    assert dict(told) == {trial.number: trial.value for trial in trials}
    epochs = sum(len(trial.intermediate_values) for trial in trials)
    if "trials" in budget:
        assert ask_tell.spent() == Spent(trials=50, ended=50, epochs=150)
    else:  # one that came too late to report anything counts nothing beyond the budget
        assert ask_tell.spent() == Spent(trials=len(trials), ended=len(trials), epochs=100)
        assert epochs == 100
