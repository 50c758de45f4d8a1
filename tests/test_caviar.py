"""Worker processes that die, and those that cannot even start."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from command import run
from installed import install

PACKAGE = '''
import os, signal, time
from objectives.epoch import Epoch, Hyperparameter

class Deadly:
    """Kills its worker where x is small; the others take their time, so that they run beside it."""
    name, direction, description = "deadly", "minimize", "for a test"
    hyperparameters = (Hyperparameter("x", 0.5),)

    def evaluate(self, params, *, seed, resume=None):
        for epoch in (1, 2):
            time.sleep(0.1)
            if params["x"] < 0.3:
                os.kill(os.getpid(), signal.SIGKILL)
            yield Epoch(epoch, params["x"])

deadly = Deadly()
'''

SCRIPT = """
from tuner import StudyDefinition, StudyManager
if __name__ == "__main__":
    levels = {"x": [0.2, 0.4, 0.5, 0.6]}
    definition = StudyDefinition.parse({
        "name": "d", "objective": "deadly", "budget": {"trials": 4},
        "space": {"x": {"low": 0, "high": 1}}, "sampler": {"name": "grid", "levels": levels},
    })
    told = []
    with StudyManager("sqlite:///d.db") as manager:
        for trial in manager.run(definition, workers=2, on_outcome=told.append).trials:
            print(trial.params["x"], trial.state.name, trial.user_attrs.get("attempts", 1))
    for outcome in told:
        print("told", outcome.number, outcome.state.name, outcome.failure)
"""


def run_script(folder: Path) -> subprocess.CompletedProcess[str]:
    return run(folder=folder, script="script.py", timeout=240)


@pytest.mark.long
@pytest.mark.slow
def test_trials_that_kill_their_workers_fail_and_all_others_complete(tmp_path: Path) -> None:
    install(tmp_path, "deadly", PACKAGE, SCRIPT)
    done = run_script(tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    ended = {line.split()[0]: line.split()[1:] for line in lines if not line.startswith("told")}
    assert {x: state for x, (state, _) in ended.items()} == {
        "0.2": "FAIL", "0.4": "COMPLETE", "0.5": "COMPLETE", "0.6": "COMPLETE"
    }  # fmt: skip
    assert {attempts for state, attempts in ended.values() if state == "FAIL"} == {"3"}
    told = [line for line in lines if line.startswith("told")]
    assert len(told) == 4  # each trial once, also the one of which no worker can tell
    (lost,) = [line for line in told if "FAIL" in line]
    assert re.search(r"FAIL its worker was lost 3 times, last process \d+ on ", lost)


INNOCENT = """
import os, signal
from objectives.epoch import Epoch, Hyperparameter
from pathlib import Path
import time

class Meek:
    \"\"\"Is killed now and then from outside, once two trials run.\"\"\"
    name, direction, description = "deadly", "minimize", "for a test"
    hyperparameters = (Hyperparameter("x", 0.5),)

    def evaluate(self, params, *, seed, resume=None):
        me = Path(f"running-{os.getpid()}")
        me.touch()
        deaths = len(list(Path().glob("death-*")))
        for epoch in (1, 2):
            time.sleep(0.1)
            until = time.monotonic() + (5.0 if deaths < 2 and epoch == 2 else 0.0)  # the other one may be starting
            while not (others := [p for p in Path().glob("running-*") if p != me]) and time.monotonic() < until:
                time.sleep(0.05)
            if deaths < 2 and others and epoch == 2:
                try:
                    Path(f"death-{deaths}").touch(exist_ok=False)
                except FileExistsError:
                    pass
                else:
                    for p in others:
                        p.unlink(missing_ok=True)
                    me.unlink()
                    os.kill(os.getpid(), signal.SIGKILL)
            yield Epoch(epoch, params["x"])
        me.unlink(missing_ok=True)

deadly = Meek()
"""


@pytest.mark.long
def test_no_attempt_is_held_against_trials_that_ran_beside_a_killed_worker(tmp_path: Path) -> None:
    install(tmp_path, "deadly", INNOCENT, SCRIPT)
    done = run_script(tmp_path)
    assert done.returncode == 0, done.stderr
    ended = [line.split()[1:] for line in done.stdout.splitlines() if not line.startswith("told")]
    assert len(list(tmp_path.glob("death-*"))) == 2
    assert [state for state, _ in ended] == ["COMPLETE"] * 4
    # where a worker asks before its pool is broken, it may count the attempt of the killed one; never the others'
    assert sum(int(attempts) - 1 for _, attempts in ended) <= 2


START_SCRIPT = """
import os, signal
from pathlib import Path
if __name__ == "__mp_main__":  # a worker process imports this before it greets
    dead = len(list(Path().glob("born-dead-*")))
    if dead < DEATHS:
        Path(f"born-dead-{dead}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.long
@pytest.mark.slow
def test_a_worker_killed_while_it_starts_is_replaced(tmp_path: Path) -> None:
    script = START_SCRIPT.replace("DEATHS", "2") + SCRIPT.replace("workers=2", "workers=1").replace(
        "deadly", "branin"
    )
    (tmp_path / "script.py").write_text(
        script.replace('{"x"', '{"x0"').replace('params["x"]', 'params["x0"]')
    )
    done = run_script(tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("born-dead-*"))) == 2
    assert [line.split()[1] for line in done.stdout.splitlines() if not line.startswith("told")] == [
        "COMPLETE"
    ] * 4


@pytest.mark.slow
def test_workers_that_are_always_killed_while_they_start_end_the_run(tmp_path: Path) -> None:
    script = START_SCRIPT.replace("DEATHS", "99") + SCRIPT.replace("deadly", "branin").replace(
        '{"x"', '{"x0"'
    )
    (tmp_path / "script.py").write_text(script)
    done = run_script(tmp_path)
    assert done.returncode == 1
    assert "worker processes cannot start" in done.stderr.splitlines()[-1]


@pytest.mark.long
def test_a_script_without_its_guard_is_told_so_at_once(tmp_path: Path) -> None:
    unguarded = SCRIPT.replace('if __name__ == "__main__":', "if True:").replace("deadly", "branin")
    unguarded = unguarded.replace("workers=2", "workers=1")
    (tmp_path / "script.py").write_text(unguarded.replace('{"x"', '{"x0"'))
    done = run_script(tmp_path)
    assert done.returncode == 1
    assert "if __name__ == '__main__':" in done.stderr.splitlines()[-1]
