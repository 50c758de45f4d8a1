"""What a stock optuna-dashboard finds of a comparison: notes, figures, attributes."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from optuna_dashboard import get_note, save_note
from optuna_dashboard._custom_plot_data import get_plotly_graph_objects

from tuner import ComparisonDefinition, StudyManager
from tuner.comparison import ComparisonResult, Run, TestValues
from tuner.noticeboard import _attrs

DOCUMENT = {
    "name": "board",
    "objective": "branin",
    "budget": {"trials": 5},
    "space": {"x0": {"low": -5.0, "high": 10.0}, "x1": {"low": 0.0, "high": 15.0}},
    "comparison": {
        "seeds": 2,
        "arms": [{"name": name, "sampler": {"name": name}} for name in ("random", "sobol")],
    },
}


@pytest.fixture
def manager(sqlite_url: str) -> StudyManager:
    return StudyManager(sqlite_url)


def compared(manager: StudyManager, seeds: int = 2) -> ComparisonResult:
    return manager.compare(ComparisonDefinition.parse(DOCUMENT).with_seeds(seeds), executor="threads")


def test_each_study_has_a_note_with_the_verdict_and_links_to_its_siblings(manager: StudyManager) -> None:
    result = compared(manager)
    ids = {study.study_name: study._study_id for study in manager.all_studies()}
    for run in result.runs:
        note = get_note(manager.load(run.study))
        assert result.verdict in note
        assert f"arm **{run.arm}** with seed {run.seed}" in note
        linked = {int(number) for number in re.findall(r"\(/dashboard/studies/(\d+)\)", note)}
        siblings = {o.study for o in result.runs if (o.arm == run.arm) != (o.seed == run.seed)}
        assert linked == {ids[name] for name in siblings}


def test_what_a_person_wrote_stays(manager: StudyManager) -> None:
    result = compared(manager)
    study = manager.load(result.runs[0].study)
    save_note(study, get_note(study) + "\n\nmine")
    manager.post(result)
    assert get_note(study).endswith("\n\nmine")
    assert get_note(study).count("### Comparison") == 1
    save_note(study, "mine alone")
    manager.post(result)
    assert get_note(study).startswith("### Comparison board")
    assert get_note(study).endswith("mine alone")


def test_figures_and_attributes_are_there_and_are_not_written_twice(manager: StudyManager) -> None:
    result = compared(manager)
    study = manager.load(result.runs[0].study)
    before = study._storage.get_study_system_attrs(study._study_id)
    figures = get_plotly_graph_objects(before)
    assert set(figures) == {f"comparison-{name}" for name in ("curves", "finals", "ranks", "differences")}
    drawn = json.loads(figures["comparison-curves"])
    assert {trace["name"] for trace in drawn["data"] if "name" in trace} == {"random", "sobol"}
    attrs = study.user_attrs
    assert (attrs["arm"], attrs["seed"]) == (result.runs[0].arm, 0)
    assert attrs["epochs"] == result.runs[0].epochs[-1]
    manager.post(result)
    assert study._storage.get_study_system_attrs(study._study_id) == before  # the note's version, too
    compared(manager, seeds=3)
    assert study._storage.get_study_system_attrs(study._study_id) != before


def test_small_test_values_are_not_rounded_to_0() -> None:
    test = TestValues(0, {"test_loss": (1.23456789e-9,), "test_error": (0.125,)})
    run = Run("a", 0, "c.a.seed-0", np.ones(1), np.ones(1), 1, 0, 0, 1.0, {}, 0, test=test)
    attrs = _attrs(run)
    assert (attrs["test_loss"], attrs["test_error"]) == (1.23457e-9, 0.125)


def test_figures_are_drawn_though_another_thread_is_importing_pandas() -> None:
    script = """
import sys, threading, time
from tuner.comparison.figures import graph_objects

class Slowly:
    def find_spec(self, name, path=None, target=None):
        if name == "pandas.core":
            begun.set()
            time.sleep(0.5)

begun = threading.Event()
sys.meta_path.insert(0, Slowly())
threading.Thread(target=lambda: __import__("pandas")).start()
begun.wait(30)
print(graph_objects().Figure({"data": [{"type": "scatter", "hoverinfo": "text"}]}).data[0].hoverinfo)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "text\n", done.stderr
