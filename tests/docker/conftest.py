"""An engine, the images, and the service as `docker compose up` starts it, for the tests of this folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine import NAME, ROOT, Engine, FailedError, NoEngineError, engine, images
from postgresql import absent
from stack import Stack


@pytest.fixture(scope="session")
def built() -> dict[str, str]:
    """The names of the images."""
    try:
        return images()
    except NoEngineError as error:
        absent(str(error))
        raise AssertionError from None


@pytest.fixture(scope="session")
def docker(built: dict[str, str]) -> Iterator[Engine]:
    """The engine that runs containers; this thread is where their ports are."""
    with engine() as running, running.inside():
        _remove_all(running)
        yield running
        _remove_all(running)


@pytest.fixture(scope="session")
def image(docker: Engine, built: dict[str, str]) -> str:
    """The image with the test's objective in it, made as docker/README.md says."""
    return built["walk"]


@pytest.fixture(scope="session")
def stack(
    docker: Engine, image: str, built: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """The whole service with three workers, of the repository's own files."""
    folder = tmp_path_factory.mktemp("docker")
    for file in ("compose.yaml", "secrets.sh"):
        shutil.copy(ROOT / "docker" / file, folder)
    subprocess.run([folder / "secrets.sh"], check=True, capture_output=True)
    running = Stack(docker, folder, image, built["postgres"])
    try:
        running.up("--scale", "worker=3")
        yield running
    finally:
        if os.environ.get("KEEP_LOGS"):
            Path(os.environ["KEEP_LOGS"]).write_text(running.compose("logs", "--no-color"))
        running.close()


def _remove_all(running: Engine) -> None:
    """What an earlier run that was killed has left behind."""
    mine = f"name={NAME}-"
    for what, listed in (
        ("container", ("ps", "--all")),
        ("network", ("network", "ls")),
        ("volume", ("volume", "ls")),
    ):
        found = running(*listed, "--quiet", "--filter", mine).split()
        with contextlib.suppress(FailedError):
            if found:
                running(what, "rm", *(["--force"] if what != "network" else []), *found)
