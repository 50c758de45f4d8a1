"""The objectives that are installed, by name.

Objectives are found in the entry-point group `tuner.objectives`: a package of your own adds some by declaring them in
its pyproject.toml. Only names travel in definitions and over HTTP; nothing a client sends is ever imported.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Collection
from importlib.metadata import EntryPoint, entry_points

from objectives.epoch import Objective
from tuner.errors import NotFoundError, TunerError
from tuner.explain import near_miss

__all__ = ["GROUP", "find_objective", "known_metrics", "missing_attributes", "objective_names"]

GROUP = "tuner.objectives"


def objective_names() -> list[str]:
    """The registered names, sorted."""
    return sorted(_entries())


def find_objective(name: str) -> Objective:
    """The objective registered under `name`.

    Raises:
        NotFoundError: there is none; the text lists those there are.
        TunerError: it is registered, but what is registered is no objective.
    """
    entries = _entries()
    if name not in entries:  # perhaps it was installed a moment ago
        _entries_on.cache_clear()
        entries = _entries()
    if name not in entries:
        hint = near_miss(name, entries)
        raise NotFoundError(
            f"no objective is named {name!r}{hint}; installed are: {', '.join(sorted(entries))}"
        )
    try:
        found = entries[name].load()
    except Exception as error:
        raise TunerError(
            f"objective {name!r} cannot be loaded from {entries[name].value}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(found, Objective):
        raise TunerError(
            f"{entries[name].value}, registered as objective {name!r}, is no objective: "
            f"it has no {missing_attributes(found)}"
        )
    return found


def missing_attributes(candidate: object) -> str:
    """What an object lacks to be an objective, in words."""
    wanted = ("name", "description", "direction", "hyperparameters", "evaluate")
    return ", ".join(attribute for attribute in wanted if not hasattr(candidate, attribute))


def known_metrics(objective: Objective) -> tuple[str, ...] | None:
    """The metrics that each epoch of an objective has; None where it does not say.

    What it calls `metrics` may be something else, as a method: then it does not say.
    """
    names = getattr(objective, "metrics", None)
    if not isinstance(names, Collection) or isinstance(names, str):
        return None
    return tuple(names) if all(isinstance(name, str) for name in names) else None


def _entries() -> dict[str, EntryPoint]:
    return _entries_on(tuple(sys.path))


@functools.lru_cache(maxsize=8)
def _entries_on(_path: tuple[str, ...]) -> dict[str, EntryPoint]:
    """Read once: that takes 7 ms, and every study that is opened asks."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}
