"""What importing us costs and what comes with it, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from installed import install

import tuner


def said(script: str, folder: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], set[str]]:
    """The modules that are there after a statement."""

    @cache
    def loaded(statement: str) -> set[str]:
        script = f"{statement}; import sys; print(*sys.modules)"
        return set(said(script, tmp_path_factory.mktemp("imports")).split())

    return loaded


@pytest.mark.parametrize(
    "slow", ["scipy.stats", "scipy.optimize", "sklearn", "alembic.script", "plotly.graph_objs"]
)
def test_what_only_some_need_is_not_imported(slow: str, loaded: Callable[[str], set[str]]) -> None:
    modules = loaded("from tuner import StudyManager")
    assert "tuner.manager" in modules
    assert slow not in modules


def test_all_that_the_package_names_is_there() -> None:
    assert set(tuner.__all__) == set(tuner._HOMES)
    for name, home in tuner._HOMES.items():
        assert getattr(tuner, name).__module__.startswith(f"tuner.{home}")
    with pytest.raises(AttributeError, match="'tuner' has no attribute 'Study'"):
        _ = tuner.Study


@pytest.mark.parametrize(
    "slow",
    [
        "scipy.stats",
        "scipy.optimize",
        "sklearn",
        "pandas",
        "matplotlib",
        "plotly.graph_objs",
        "fastapi",
        "httpx",
    ],
)
def test_the_command_line_starts_without_what_only_some_commands_need(
    slow: str, loaded: Callable[[str], set[str]]
) -> None:
    modules = loaded("import tuner.cli")
    assert "tuner.cli" in modules
    assert slow not in modules


def test_the_command_line_loads_few_modules(loaded: Callable[[str], set[str]]) -> None:
    """Some 900 by now, a millisecond each; scipy.stats alone would be 600 more."""
    assert len(loaded("import tuner.cli")) < 1100


def test_a_worker_process_of_a_command_imports_no_command_line(loaded: Callable[[str], set[str]]) -> None:
    assert {"tuner.cli", "typer"}.isdisjoint(loaded("import tuner.__main__"))  # as `multiprocessing` does


def test_garbage_is_collected_once_a_command_runs(tmp_path: Path) -> None:
    script = """
import gc, tuner.__main__, tuner.cli
tuner.cli.main = lambda: print(gc.isenabled(), gc.get_freeze_count() > 10_000)
tuner.__main__.main()
"""
    assert said(script, tmp_path) == "True True"


def test_one_thread_holds_for_all_that_a_sampler_loads_later(tmp_path: Path) -> None:
    script = """
from threadpoolctl import threadpool_info, threadpool_limits
threadpool_limits(2)
from tuner.executors import one_thread
one_thread()
import scipy.linalg, scipy.optimize, scipy.stats
print({pool["num_threads"] for pool in threadpool_info()}, len(threadpool_info()) > 1)
"""
    assert said(script, tmp_path) == "{1} True"


def test_an_objective_installed_meanwhile_is_found(tmp_path: Path) -> None:
    for folder in ("elsewhere", "packages"):
        (tmp_path / folder).mkdir()
    install(tmp_path / "elsewhere", "later", "from objectives.functions import branin as later", "")
    script = """
import importlib, os, sys
from tuner.catalogue import find_objective, objective_names
sys.path.append("packages")
assert "later" not in objective_names()
for name in os.listdir("elsewhere"):
    os.rename(f"elsewhere/{name}", f"packages/{name}")
importlib.invalidate_caches()
print(find_objective("later").name)
"""
    assert said(script, tmp_path) == "branin"
