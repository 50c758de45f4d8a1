"""Where no engine is to be had, the reason is said: the tests are skipped with it, or fail where all must be there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from engine import NoEngineError, _install, images

pytestmark = pytest.mark.docker

HERE = Path(__file__).parent


def test_without_root_there_is_none_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere.sock")
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    with pytest.raises(NoEngineError, match="no Docker engine runs, and only root can start one"):
        images()


def test_what_the_kernel_refuses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 0)
    monkeypatch.setattr("engine._NEEDS", {"file systems cannot be mounted": "echo not permitted >&2; false"})
    with pytest.raises(NoEngineError, match=r"file systems cannot be mounted \(not permitted\)"):
        _install()


@pytest.mark.parametrize(("require_all", "outcome"), [("", "1 skipped"), ("1", "1 error")])
def test_without_an_engine_tests_are_skipped_or_fail(
    require_all: str, outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a user without rights, in a process of its own."""
    started = (
        "import os, sys, pytest; os.getuid = lambda: 1000; "
        f"sys.exit(pytest.main(['-q', '-x', {str(HERE / 'test_containers.py')!r}, '-k', 'test_image_alone']))"
    )
    environment = {**os.environ, "DOCKER_HOST": "unix:///nowhere.sock", "REQUIRE_ALL": require_all}
    done = subprocess.run(
        [sys.executable, "-c", started], env=environment, capture_output=True, text=True, check=False
    )
    assert outcome in done.stdout
    assert "only root can start one" in done.stdout
    assert done.returncode == (1 if require_all else 0)
