"""Adjusting a training while it runs: what may be changed, and the record of what was.

An adjustment is made after an epoch and takes effect in the next one. All of a trial's adjustments stand in its
attribute `adjustments`, so that whoever trains it again, sending each after its epoch, gets the same numbers.
"""

from __future__ import annotations

import contextlib
import getpass
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Self

from objectives.epoch import Epoch, Hyperparameter, Objective, Seed
from tuner.ask_tell import Lease
from tuner.errors import DefinitionError
from tuner.explain import near_miss
from tuner.training import Training, TrainingError
from tuner.worker_side import WorkerSide

__all__ = [
    "ADJUSTMENTS",
    "AdjustableTraining",
    "AdjustmentRefusedError",
    "Adjustments",
    "adjustable",
    "check_adjustment",
    "login",
]

ADJUSTMENTS = "adjustments"
"""The trial's attribute: a list of `{"epoch": e, "name": n, "old": a, "new": b, "by": who, "at": time}`."""


class AdjustmentRefusedError(DefinitionError):
    """A training refused values that are legal by themselves; the text is its reason."""


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


@dataclass(frozen=True)
class Adjustments:
    """The adjustments of a trial: `record` as it stands on the trial, `start` the values that it began with.

    The record is in the order of the epochs, and each entry's `old` is what those before it have left: an entry made or
    taken back before others gives them another `old`. Where one is made after the same epoch as another, it is later.
    """

    start: Mapping[str, Any]
    record: list[dict[str, Any]] = field(default_factory=list)
    _was_used: bool = False

    @classmethod
    def begin(cls, objective: Objective, params: Mapping[str, Any], attrs: Mapping[str, Any]) -> Adjustments:
        """Those of a trial with these parameters (fixed ones included) and user attributes."""
        start = {name: params.get(name, h.default) for name, h in adjustable(objective).items()}
        return cls(start, [dict(entry) for entry in attrs.get(ADJUSTMENTS, [])], ADJUSTMENTS in attrs)

    def values(self, epoch: int) -> dict[str, Any]:
        """The adjustable hyperparameters by name, as they are for the epoch after `epoch`."""
        made = (entry for entry in self.record if entry["epoch"] <= epoch)
        return {**self.start, **{entry["name"]: entry["new"] for entry in made}}

    def due(self, epoch: int) -> dict[str, Any]:
        """What is to be sent into the training after `epoch`; after epoch 0, before it starts."""
        return {entry["name"]: entry["new"] for entry in self.made(epoch)}

    def made(self, epoch: int) -> list[dict[str, Any]]:
        """The entries made after `epoch`."""
        return [entry for entry in self.record if entry["epoch"] == epoch]

    def add(self, epoch: int, values: Mapping[str, Any], by: str) -> tuple[Adjustments, list[dict[str, Any]]]:
        """With new values, checked ones, made by `by` after `epoch`; and the new entries."""
        at = datetime.now().isoformat(timespec="seconds")
        made = [
            {"epoch": epoch, "name": name, "old": None, "new": value, "by": by, "at": at}
            for name, value in values.items()
        ]
        added = replace(self._with([*self.record, *made]), _was_used=True)
        return added, added.made(epoch)[-len(made) :] if made else []

    def undo(self, epoch: int) -> tuple[Adjustments, list[dict[str, Any]]]:
        """Without what was made after `epoch` or later; and that."""
        undone = [entry for entry in self.record if entry["epoch"] >= epoch]
        return self._with([entry for entry in self.record if entry["epoch"] < epoch]), undone

    def refuse(self, epoch: int) -> tuple[Adjustments, list[dict[str, Any]]]:
        """Without what was made after `epoch`, which the training has not taken; and that."""
        return self._with([entry for entry in self.record if entry["epoch"] != epoch]), self.made(epoch)

    def _with(self, record: list[dict[str, Any]]) -> Adjustments:
        values, linked = dict(self.start), []
        for entry in sorted(record, key=lambda entry: entry["epoch"]):  # a stable order
            linked.append({**entry, "old": values.get(entry["name"])})
            values[entry["name"]] = entry["new"]
        return replace(self, record=linked)

    def attrs(self) -> dict[str, Any]:
        """The record as an attribute of the trial; none where there never was an adjustment."""
        return {ADJUSTMENTS: self.record} if self._was_used else {}


class AdjustableTraining:
    """A training and its adjustments: each goes in after its epoch.

    It survives an adjustment that only the training itself can refuse, if it gives checkpoints; and it can be rewound.
    Close it at the end, for instance with `with`.

    Args:
        objective: what to train.
        params: the hyperparameters that the trial begins with, fixed ones included.
        seed: of the study and the trial.
        attrs: the trial's user attributes; adjustments of an earlier attempt are made again after their epochs.
        checkpoints: by epoch; to be filled by the caller who wants to rewind.
        epoch: the epoch after which it begins, whose checkpoint is among them; 0: at its start.
    """

    def __init__(
        self,
        objective: Objective,
        params: Mapping[str, Any],
        seed: Seed,
        attrs: Mapping[str, Any],
        checkpoints: MutableMapping[int, bytes] | None = None,
        *,
        epoch: int = 0,
    ) -> None:
        self.objective, self.params, self.seed = objective, params, seed
        self.adjustments = Adjustments.begin(objective, params, attrs)
        self.checkpoints: MutableMapping[int, bytes] = {} if checkpoints is None else checkpoints
        self.epoch = epoch
        self._training: Training | None = None
        self._checkpoint: Callable[[], bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def advance(self) -> Epoch | None:
        """Train one epoch, with what was adjusted; None at the end of the training.

        Raises:
            AdjustmentRefusedError: the training refused what was adjusted after the last epoch. All of that is taken
                back, as it was sent at once; what is recorded for later epochs stays, and all else is as it was.
            TrainingError: the objective raised, or broke its contract; the training is over, or to be rewound.
        """
        due = self.adjustments.due(self.epoch)
        if due and self._checkpoint is not None and self.epoch not in self.checkpoints:
            self.checkpoints[self.epoch] = self._checkpoint()
        try:
            epoch = self._trained().advance(self._sent(self.epoch))
        except TrainingError as error:
            if not (due and isinstance(error.cause, ValueError) and (self.epoch == 0 or self.checkpoints)):
                raise
            kept, refused = self.adjustments.refuse(self.epoch)
            self._go_back(self.epoch, kept)
            names = ", ".join(f"{entry['name']} {entry['new']}" for entry in refused)
            raise AdjustmentRefusedError(f"refused: {error.cause}; taken back: {names}") from None
        if epoch is not None:
            self.epoch, self._checkpoint = epoch.number, epoch.checkpoint
        return epoch

    def adjust(
        self, ask_tell: WorkerSide, lease: Lease, values: Mapping[str, Any], by: str
    ) -> list[dict[str, Any]]:
        """Change hyperparameters from the next epoch on, once that is written onto the trial. Returns the new entries.

        Raises:
            DefinitionError: one cannot be adjusted, or its value is not legal; nothing is changed.
            LeaseLostError: another has the trial now; nothing is changed.
            StorageError: the database failed; nothing is changed.
        """
        adjusted, made = self.adjustments.add(self.epoch, check_adjustment(self.objective, values), by)
        ask_tell.set_attrs(lease, adjusted.attrs())
        self.adjustments = adjusted
        return made

    def rewind(self, epoch: int) -> None:
        """Go back to where the training stood after `epoch`, without the adjustments made there or later."""
        kept, _ = self.adjustments.undo(epoch)
        self._go_back(epoch, kept)

    def drop_unsent(self, epoch: int) -> dict[str, Any]:
        """The record as an attribute, without what was adjusted after the last epoch that counts."""
        kept, _ = self.adjustments.undo(epoch)
        return kept.attrs()

    def close(self) -> None:
        """End the training."""
        if self._training is not None:
            self._training.close()
            self._training = None

    def _go_back(self, epoch: int, adjustments: Adjustments) -> None:
        self.close()
        self.epoch, self._checkpoint, self.adjustments = epoch, None, adjustments
        for later in [e for e in self.checkpoints if e > epoch]:
            del self.checkpoints[later]

    def _trained(self) -> Training:
        """The training as it stands after `epoch`: the one that runs, or another from a checkpoint.

        A resumed training can be adjusted only after its next epoch. So where something is due, the checkpoint before
        it is taken and the epochs between are trained again, to the same numbers.
        """
        if self._training is None:
            start = max((e for e in self.checkpoints if e <= self.epoch and not self._sent(e)), default=0)
            resume = self.checkpoints[start] if start else None
            # a checkpoint goes on with what its parameters give: what was adjusted until then
            params = {**self.params, **(self.adjustments.values(start) if start else self.adjustments.due(0))}
            self._training = Training(self.objective, params, self.seed, resume=resume, epoch=start)
            while self._training.epoch < self.epoch:
                if self._training.advance(self._sent(self._training.epoch)) is None:
                    break
        return self._training

    def _sent(self, epoch: int) -> dict[str, Any]:
        """What is sent into the training after `epoch`. What was adjusted before the first is in its parameters."""
        return self.adjustments.due(epoch) if epoch else {}
