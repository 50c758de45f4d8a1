"""The README of the objectives: its example is an objective, its table and its links are true."""

from __future__ import annotations

import importlib.metadata
import math
import re
from pathlib import Path

import pytest

import objectives
from objectives.epoch import Objective, Seed

FOLDER = Path(objectives.__file__).parent
README = (FOLDER / "README.md").read_text()


def test_the_example_is_an_objective():
    (source,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    exec(source, names)
    iris = names["iris"]
    assert isinstance(iris, Objective)
    assert sum(bool(line.strip()) for line in source.split("class Iris")[1].splitlines()) <= 20
    runs = [[e.value for e in iris.evaluate({"epochs": 3}, seed=Seed(0, 1))] for _ in range(2)]
    assert runs[0] == runs[1]
    assert len(runs[0]) == 3
    assert all(map(math.isfinite, runs[0]))
    with pytest.raises(ValueError, match="alfa"):
        next(iris.evaluate({"alfa": 1}, seed=Seed(0)))


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (FOLDER / target).exists(), target


def test_every_training_is_in_the_table():
    for entry in importlib.metadata.entry_points(group="tuner.objectives"):
        if not entry.value.startswith("objectives.functions:"):
            assert f"`{entry.name}`" in README, entry.name
