"""A comparison while it runs: a report that is written anew now and then, and the ranking so far; and one repeated."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import optuna

from tuner.comparison import ComparisonResult
from tuner.comparison.export import differences
from tuner.definition import ComparisonDefinition
from tuner.errors import DefinitionError, TunerError
from tuner.manager import StudyManager
from tuner.report import write_report

__all__ = ["LiveReport", "require_unrepeated", "told_differences"]

_log = logging.getLogger(__name__)

REPORT_SECONDS = 10.0
"""How often the report is written anew, at most; less often where that takes long."""

SHARE = 0.05
"""Writing it takes this share of the time, at most."""

TOLD = 10
"""So many differences of a repeated comparison are told."""


class LiveReport:
    """Writes the report of a comparison anew while it is entered, whenever there is something new.

    Args:
        manager: of the database.
        definition: of the comparison.
        folder: of the report.
        on_ranks: called with the mean ranks so far, by arm; in a thread of its own.
        seconds: how often, at most.
    """

    def __init__(
        self,
        manager: StudyManager,
        definition: ComparisonDefinition,
        folder: Path,
        on_ranks: Callable[[Mapping[str, float]], None] = lambda ranks: None,
        *,
        seconds: float = REPORT_SECONDS,
    ) -> None:
        self._manager, self._definition, self._folder = manager, definition, folder
        self._on_ranks, self._seconds = on_ranks, seconds
        self._seen = -1
        self._over = threading.Event()
        self._writer = threading.Thread(target=self._watch, name="report", daemon=True)

    def __enter__(self) -> Self:
        self._writer.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._over.set()
        self._writer.join(self._seconds)
        if raised[0] is not None and self._seen >= 0 and not self._writer.is_alive():
            with contextlib.suppress(TunerError, OSError, optuna.exceptions.StorageInternalError):
                write_report(
                    self._manager.result(self._definition), self._folder
                )  # it will not be newer any more

    def _watch(self) -> None:
        pause = self._seconds
        while not self._over.wait(pause):
            started = time.monotonic()
            try:
                self._write()
            except (TunerError, optuna.exceptions.StorageInternalError):
                continue  # not begun yet; or the run itself says what is wrong
            except OSError as error:
                _log.warning("the report could not be written: %s", error)
            pause = max(self._seconds, (time.monotonic() - started) / SHARE)

    def _write(self) -> None:
        result = self._manager.result(self._definition)
        ended = sum(len(run.best) for run in result.runs)
        if ended == self._seen or not result.seeds or self._over.is_set():
            return
        self._seen = ended
        write_report(result, self._folder, refresh=self._seconds)
        self._on_ranks(result.rank_by_arm)


def require_unrepeated(manager: StudyManager, definition: ComparisonDefinition) -> None:
    """See that repeating a comparison in this database would run something.

    Raises:
        DefinitionError: it is finished there.
    """
    if all(is_finished for _, is_finished in manager.progress(definition)):
        raise DefinitionError(
            f"{definition.name} is finished in this database already, so nothing would be repeated; "
            "give another with --storage"
        )


def told_differences(
    before: Mapping[str, Any], result: ComparisonResult, after: Mapping[str, Any]
) -> list[str]:
    """How a repeated comparison differs from what it repeats, in lines; empty where all numbers are the same."""
    found = differences(before, after)
    if not found:
        return []
    lines = found[:TOLD]
    if len(found) > TOLD:
        lines.append(f"and {len(found) - TOLD} more")
    versions = before.get("made", {}).get("versions", {})
    changed = {
        name: (version, after["made"]["versions"].get(name, "none"))
        for name, version in versions.items()
        if after["made"]["versions"].get(name) != version
    }
    lines += [f"{name} was {old}, is {new}" for name, (old, new) in changed.items()]
    if result.definition.budget.seconds is not None:
        lines.append("the budget is in seconds, which no run spends alike")
    return lines
