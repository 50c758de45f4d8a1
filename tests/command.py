"""The command line, in the process of the test."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

__all__ = ["STUDY", "Tuner"]

Tuner: TypeAlias = Callable[..., tuple[int, str, str]]
"""What the fixture `tuner` gives: runs a command; its exit code, standard output and error."""

STUDY = """
name = "small"
objective = "branin"
budget = {trials = 6}
fixed = {epochs = 3}
[space.x0]
low = -5
high = 10
[space.x1]
low = 0
high = 15
[comparison]
seeds = 2
arms = [{name = "random", sampler = {name = "random"}}, {name = "sobol", sampler = {name = "sobol"}}]
"""
"""A comparison that takes a second."""
