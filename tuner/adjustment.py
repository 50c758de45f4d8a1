"""Adjusting a training while it runs: what may be changed, and the record of what was.

An adjustment is made after an epoch and takes effect in the next one. All of a trial's adjustments stand in its
attribute `adjustments`, so that whoever trains it again, sending each after its epoch, gets the same numbers.
"""

from __future__ import annotations

import contextlib
import getpass
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from objectives.epoch import Hyperparameter, Objective
from tuner.ask_tell import AskTell, Lease
from tuner.errors import DefinitionError
from tuner.explain import near_miss

__all__ = ["ADJUSTMENTS", "Adjustments", "adjustable", "check_adjustment", "login"]

ADJUSTMENTS = "adjustments"
"""The trial's attribute: a list of `{"epoch": e, "name": n, "old": a, "new": b, "by": who, "at": time}`."""


def adjustable(objective: Objective) -> dict[str, Hyperparameter]:
    """The hyperparameters that may be changed while the objective trains, by name."""
    return {h.name: h for h in objective.hyperparameters if h.adjustable}


def check_adjustment(objective: Objective, values: Mapping[str, Any]) -> dict[str, Any]:
    """The new values in plain types, if the objective takes them while it trains.

    Raises:
        DefinitionError: a name that cannot be adjusted, or a value that is not legal.
    """
    known = adjustable(objective)
    if not known:
        raise DefinitionError(f"objective {objective.name!r} has no hyperparameter that can be adjusted")
    checked = {}
    for name, given in values.items():
        if name not in known:
            raise DefinitionError(
                f"{name!r} cannot be adjusted while {objective.name!r} trains{near_miss(name, known)}; "
                f"can: {', '.join(sorted(known))}"
            )
        value = given.item() if hasattr(given, "item") else given  # NumPy's numbers are no JSON
        try:
            known[name].check(value)
        except ValueError as error:
            raise DefinitionError(str(error)) from None
        checked[name] = value
    return checked


def login() -> str:
    """The person at this machine, for the record; empty where it has no name, as in some containers."""
    with contextlib.suppress(OSError, KeyError):
        return getpass.getuser()
    return ""


@dataclass
class Adjustments:
    """The adjustments of a trial: `record` as it stands on the trial, `start` the values that it began with."""

    start: Mapping[str, Any]
    record: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def begin(cls, objective: Objective, params: Mapping[str, Any], attrs: Mapping[str, Any]) -> Adjustments:
        """Those of a trial with these parameters (fixed ones included) and user attributes."""
        start = {name: params.get(name, h.default) for name, h in adjustable(objective).items()}
        return cls(start, [dict(entry) for entry in attrs.get(ADJUSTMENTS, [])])

    def values(self, epoch: int) -> dict[str, Any]:
        """The adjustable hyperparameters by name, as they are for the epoch after `epoch`."""
        made = (entry for entry in self.record if entry["epoch"] <= epoch)
        return {**self.start, **{entry["name"]: entry["new"] for entry in made}}

    def due(self, epoch: int) -> dict[str, Any]:
        """What is to be sent into the training after `epoch`; after epoch 0, before it starts."""
        return {entry["name"]: entry["new"] for entry in self.record if entry["epoch"] == epoch}

    def add(self, epoch: int, values: Mapping[str, Any], by: str) -> list[dict[str, Any]]:
        """Note new values, checked ones, made by `by` after `epoch`. Returns the new entries."""
        before, at = self.values(epoch), datetime.now().isoformat(timespec="seconds")
        made = [
            {"epoch": epoch, "name": name, "old": before.get(name), "new": value, "by": by, "at": at}
            for name, value in values.items()
        ]
        self.record = sorted([*self.record, *made], key=lambda entry: entry["epoch"])  # a stable order
        return made

    def undo(self, epoch: int) -> list[dict[str, Any]]:
        """Forget what was made after `epoch` or later; returns it."""
        undone = [entry for entry in self.record if entry["epoch"] >= epoch]
        self.record = [entry for entry in self.record if entry["epoch"] < epoch]
        return undone

    def save(self, ask_tell: AskTell, lease: Lease) -> None:
        """Write the record onto the running trial.

        Raises:
            LeaseLostError: another has the trial now.
        """
        ask_tell.set_attrs(lease, {ADJUSTMENTS: self.record})
