"""The public names of the objectives' modules are sorted, there, documented, and nothing is missing."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

import objectives

MODULES = ["objectives", *(m.name for m in pkgutil.walk_packages(objectives.__path__, "objectives."))]


def in_order(name):
    """Constants, classes, functions, as ruff sorts them."""
    return 0 if name.isupper() else 1 if name[0].isupper() else 2, name


@pytest.mark.parametrize("name", MODULES)
def test_public_names_are_sorted_present_and_documented(name):
    module = importlib.import_module(name)
    exported = getattr(module, "__all__", [])
    assert module.__doc__
    assert list(exported) == sorted(exported, key=in_order)
    for public in exported:
        thing = getattr(module, public)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert thing.__doc__, f"{name}.{public} has no docstring"


@pytest.mark.parametrize("name", ["objectives.network", "objectives.network.classifier"])
def test_examples_in_docstrings_are_true(name):
    failed, attempted = doctest.testmod(importlib.import_module(name))
    assert attempted > 0
    assert failed == 0


def test_the_network_stands_alone():
    """Importing it brings neither Optuna, scikit-learn nor the rest of the objectives."""
    code = (
        "import sys, objectives.network, objectives.network.stack;"
        "print([m for m in sys.modules if m.split('.')[0] in ('optuna', 'sklearn', 'scipy', 'tuner', 'torch')"
        " or m.startswith('objectives.') and not m.startswith('objectives.network')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_the_objectives_loads_no_data():
    code = (
        "import sys, objectives.digits, objectives.synthetic, objectives.tabular, objectives.fashion_mnist;"
        "print('sklearn' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
