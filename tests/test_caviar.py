"""Worker processes that die, and those that cannot even start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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
    levels = {"x": [0.1, 0.2, 0.4, 0.5, 0.6, 0.7]}
    definition = StudyDefinition.parse({
        "name": "d", "objective": "deadly", "budget": {"trials": 6},
        "space": {"x": {"low": 0, "high": 1}}, "sampler": {"name": "grid", "levels": levels},
    })
    with StudyManager("sqlite:///d.db") as manager:
        for trial in manager.run(definition, workers=2).trials:
            print(trial.params["x"], trial.state.name, trial.user_attrs.get("attempts", 1))
"""


@pytest.mark.slow
def test_trials_that_kill_their_workers_fail_and_all_others_complete(tmp_path: Path) -> None:
    (tmp_path / "deadly.py").write_text(PACKAGE)
    (tmp_path / "script.py").write_text(SCRIPT)
    folder = tmp_path / "deadly-1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: deadly\nVersion: 1\n")
    (folder / "entry_points.txt").write_text("[tuner.objectives]\ndeadly = deadly:deadly\n")
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    ended = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}
    assert {x: state for x, (state, _) in ended.items()} == {
        "0.1": "FAIL", "0.2": "FAIL", "0.4": "COMPLETE", "0.5": "COMPLETE", "0.6": "COMPLETE", "0.7": "COMPLETE"
    }  # fmt: skip
    assert all(int(attempts) <= 3 for _, attempts in ended.values())


def test_a_script_without_its_guard_is_told_so_at_once(tmp_path: Path) -> None:
    unguarded = SCRIPT.replace('if __name__ == "__main__":', "if True:").replace("deadly", "branin")
    (tmp_path / "script.py").write_text(unguarded.replace('{"x"', '{"x0"'))
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert "if __name__ == '__main__':" in done.stderr.splitlines()[-1]
