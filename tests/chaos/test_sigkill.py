"""Workers and whole runs killed at random moments: every trial ends, the budget is exact, what was told is there.

Each worker writes down what it was acknowledged, after `tell` has returned, into a file of its own.
"""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from installed import install
from optuna.trial import TrialState

from tuner import StudyManager
from tuner.ledger import Ending, Spent

ROUNDS = 20
TRIALS = 300
KILLS = 3
"""So many a round: two of workers, one of the whole run. Most of a round's time is that of processes that start."""

PACKAGE = """
import os, time
from objectives.epoch import Epoch, Hyperparameter
from tuner.ask_tell import AskTell

class Quick:
    name, direction, description = "quick", "minimize", "for a test"
    hyperparameters = (Hyperparameter("x", 0.5),)

    def evaluate(self, params, *, seed, resume=None):
        for epoch in (1, 2, 3):
            time.sleep(0.002)
            yield Epoch(epoch, params["x"] / epoch)

quick = Quick()
tell = AskTell.tell

def tell_and_write_down(self, lease, state, values, *args, **more):
    ended = tell(self, lease, state, values, *args, **more)
    with open(f"told-{os.getpid()}", "a") as file:
        file.write(f'[{lease.number}, "{ended.name}", {values!r}, {lease.attempt}]\\n')
        file.flush()
        os.fsync(file.fileno())
    return ended

AskTell.tell = tell_and_write_down
"""

SCRIPT = """
import sys
from tuner import StudyDefinition, StudyManager
if __name__ == "__main__":
    definition = StudyDefinition.parse({
        "name": "s", "objective": "quick", "budget": {"trials": int(sys.argv[2])},
        "space": {"x": {"low": 0, "high": 1}}, "sampler": {"name": "random"},
    })
    with StudyManager(sys.argv[1]) as manager:
        manager.run(definition, workers=2)
"""


def _told(folder: Path) -> list[list[object]]:
    """What all workers were acknowledged; the end of a file may be cut in the middle of a line."""
    lines = [line for file in folder.glob("told-*") for line in file.read_text().splitlines(keepends=True)]
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _workers(run: subprocess.Popen[bytes]) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(run.pid).children(recursive=True)
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    return []


def _start(folder: Path, url: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "script.py", url, str(TRIALS)]
    with (folder / "errors").open("ab") as errors:
        return subprocess.Popen(command, cwd=folder, stderr=errors)


def _run_with_kills(folder: Path, url: str, chance: random.Random) -> int:
    """Run the study to its end, killing workers or the whole run on the way. How many were killed."""
    run, killed, seen = _start(folder, url), 0, 0
    until = time.monotonic() + 300
    try:
        while run.poll() is None:
            assert time.monotonic() < until, "the run hangs"
            if killed == KILLS or len(_told(folder)) == seen:  # it has to come on between two kills
                time.sleep(0.02)
                continue
            time.sleep(chance.uniform(0.0, 0.25))
            seen = len(_told(folder))
            workers = _workers(run)
            if killed % 3 == 2:
                run.kill()
                run.wait()
                run = _start(folder, url)
                killed += 1
            elif workers:
                with contextlib.suppress(psutil.NoSuchProcess):
                    chance.choice(workers).kill()
                    killed += 1
    finally:
        run.kill()
    assert run.wait() == 0, (folder / "errors").read_text()
    return killed


@pytest.mark.long
@pytest.mark.parametrize("seed", range(ROUNDS))
def test_kills_lose_nothing(request: pytest.FixtureRequest, tmp_path: Path, seed: int) -> None:
    url = request.getfixturevalue("postgresql_url" if seed % 2 else "sqlite_url")
    install(tmp_path, "quick", PACKAGE, SCRIPT)
    killed = _run_with_kills(tmp_path, url, random.Random(seed))
    assert killed == KILLS, "the run was over too soon"
    ask_tell = StudyManager(url).ask_tell("s")
    trials = ask_tell.study.get_trials(deepcopy=False)
    assert [trial.number for trial in trials] == list(range(TRIALS))
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.FAIL}
    completed = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    spent = ask_tell.spent()
    epochs = sum(len(trial.intermediate_values) for trial in trials)
    assert spent == Spent(TRIALS, TRIALS, epochs, spent.seconds)
    assert all(trial.intermediate_values.keys() == {1, 2, 3} for trial in completed)
    assert ask_tell.open_leases() == []

    for number, state, values, attempt in _told(tmp_path):
        trial = trials[number]  # type: ignore[call-overload]
        assert (trial.state.name, trial.values, trial.user_attrs.get("attempts", 1)) == (
            state,
            values,
            attempt,
        )
    for trial in trials:
        with ask_tell.ledger.transaction() as session:
            history = ask_tell.ledger.history(session, ask_tell.study._study_id, trial._trial_id)
        *before, last = [attempt["ending"] for attempt in history]
        assert set(before) <= {Ending.LOST, Ending.RELEASED}  # the latter where another was killed beside it
        assert last == (Ending.TOLD if trial.state is TrialState.COMPLETE else Ending.LOST)
        assert 1 + before.count(Ending.LOST) == trial.user_attrs.get("attempts", 1) <= 3
