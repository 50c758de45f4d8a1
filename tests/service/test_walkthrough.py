"""docs/service.md as it stands: with curl alone, and from Python."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from postgresql import absent
from served import Served

from tuner import StudyManager

TEXT = (Path(__file__).parents[2] / "docs" / "service.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_the_walk_with_curl_alone(tmp_path: Path, sqlite_url: str) -> None:
    if shutil.which("curl") is None:
        absent("curl is not installed")
    with Served(sqlite_url) as served:
        environment = {**os.environ, "URL": served.url, "TOKEN": "token-of-operator", "no_proxy": "127.0.0.1"}
        shell = ["sh", "-eu", "-c", "\n".join(blocks("sh"))]
        done = subprocess.run(
            shell, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        study, best = answers[-1], answers[-2]["trials"][0]
        assert answers[0]["name"] == "parabola"
        assert answers[1]["trials"][0]["fence"] == 1
        assert [answer["answer"] for answer in answers[2:4]] == ["continue", "continue"]
        assert answers[4] == {"state": "complete"}
        assert answers[5]["state"] == "waiting"
        assert study["spent"]["ended"] == 8
        assert study["counts"]["running"] == study["counts"]["waiting"] == 0
        trials = StudyManager(sqlite_url).load("parabola").trials
        assert trials[1].params["x"] == 2.5
        assert best["number"] == study["best"]["number"]
        for trial in trials[1:]:
            expected = (trial.params["x"] - 2) ** 2 + 1 / trial.params["units"]
            assert trial.intermediate_values[1] == pytest.approx(expected, rel=1e-5)
    assert (tmp_path / "header").stat().st_mode & 0o077 == 0


def test_the_example_in_python(tmp_path: Path, sqlite_url: str) -> None:
    (code,) = blocks("python")
    with Served(sqlite_url) as served:
        given = f"url, token = {served.url!r}, 'token-of-operator'\n"
        done = subprocess.run(
            [sys.executable, "-c", given + code], check=False, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert served.manager.ask_tell("bowl-remote").spent().ended == 40
