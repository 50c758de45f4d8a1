"""A client in another language, generated from the OpenAPI document, finishes a study as one process does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import optuna
import pytest
from postgresql import absent
from served import Served

from tuner import StudyDefinition, StudyManager

HERE = Path(__file__).parent / "javascript"

DEFINITION = StudyDefinition.parse(
    {
        "name": "bowl",
        "budget": {"trials": 30},
        "space": {"x": {"low": -10.0, "high": 10.0}, "units": {"type": "int", "low": 1, "high": 8}},
        "sampler": {"name": "tpe", "startup_trials": 5},
        "pruner": {"name": "median", "startup_trials": 4, "warmup_epochs": 1},
    }
)


def function(trial: optuna.Trial) -> float:
    x, units = trial.suggest_float("x", -10, 10), trial.suggest_int("units", 1, 8)
    value = 0.0
    for step in range(1, 6):
        value = (x - 2) * (x - 2) + units / step
        trial.report(value, step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return value


TIMEOUT = 240.0
"""Seconds for one command: the registry may be slow, and so may a machine with much else to do."""

TRIES = 3
"""So often are packages fetched that do not arrive."""


def run(command: list[str], folder: Path, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, check=False, capture_output=True, text=True, timeout=TIMEOUT, **more
    )


def not_fetched(folder: Path) -> str:
    """Why the packages that the folder names did not arrive; nothing if they did."""
    why = ""
    for _ in range(TRIES):
        try:
            done = run(
                ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock"], folder
            )
        except subprocess.TimeoutExpired:
            why = f"not within {TIMEOUT:g} s"
            continue
        if done.returncode == 0:
            return ""
        why = done.stderr.strip()
    return why


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The script and what generates its client, installed."""
    if shutil.which("npm") is None:
        pytest.skip("Node and npm are not installed")  # not required: what Debian calls so may be too old
    folder = tmp_path / "javascript"
    shutil.copytree(HERE, folder)
    if why := not_fetched(folder):
        absent(f"npm's packages cannot be fetched here: {why}")
    return folder


@pytest.mark.long
def test_a_generated_client_finishes_a_study(project: Path, tmp_path: Path, sqlite_url: str) -> None:
    with StudyManager(f"sqlite:///{tmp_path}/local.db") as manager:
        local = manager.run(DEFINITION, function).trials
    with Served(sqlite_url) as served:
        served.manager.create(DEFINITION)
        token = {"Authorization": "Bearer token-of-worker"}
        document = httpx.get(f"{served.url}/v1/openapi.json", headers=token, trust_env=False)
        (project / "openapi.json").write_text(document.text)
        environment = {**os.environ, "URL": served.url, "TOKEN": "token-of-worker", "STUDY": "bowl"}
        for command in (["npm", "run", "generate"], ["npm", "run", "bundle"], ["node", "finish.mjs"]):
            done = run(command, project, env=environment)
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        finished, late = map(json.loads, done.stdout.splitlines())
        remote = served.manager.load("bowl").trials
    assert finished["spent"]["ended"] == 30
    assert late["type"] == "urn:tuner:conflict"
    assert {trial.state.name for trial in remote} == {"COMPLETE", "PRUNED"}
    for here, there in zip(local, remote, strict=True):
        assert (here.number, here.state, here.params) == (there.number, there.state, there.params)
        assert here.intermediate_values == there.intermediate_values
        assert here.value == there.value
        assert there.user_attrs["language"] == "JavaScript"
