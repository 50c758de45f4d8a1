"""Running the segments of population-based training, and reading what came of them.

The sampler (`tuner.samplers.population`) says which trial's network a trial goes on with; here that network is fetched
and, after the segment's last epoch, kept for others. A segment that is run again, because its worker was lost or left,
begins with the same network and gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import FrozenTrial

from objectives.epoch import Epoch, Objective, Seed
from tuner.adjustment import ADJUSTMENTS, AdjustableTraining
from tuner.ask_tell import Lease
from tuner.assignment import show_value
from tuner.definition import StudyDefinition
from tuner.errors import DefinitionError, NotFoundError
from tuner.samplers import ENDED, ENDED_WITH, Generations, PopulationSettings, Segment, segment_of
from tuner.training import planned_epochs
from tuner.worker_side import WorkerSide

__all__ = [
    "CheckpointGoneError",
    "Stretch",
    "Task",
    "drop_old_checkpoints",
    "lineage",
    "plan",
    "require_whole_trainings",
    "schedule",
]


class CheckpointGoneError(Exception):
    """The network that a segment continues is not there any more; the text says whose."""


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker is to do for a trial: a whole training, or with `segment` a part of one.

    `epoch` is the epoch after which it begins, with `checkpoint`; `last` the one after which it ends (None: where the
    training does). `planned` is how many epochs the whole training has, if that is known.
    """

    seed: Seed
    segment: Segment | None = None
    epoch: int = 0
    checkpoint: bytes | None = None
    last: int | None = None
    planned: int | None = None

    @property
    def checkpoints(self) -> dict[int, bytes]:
        """What to begin with, by epoch."""
        return {} if self.checkpoint is None else {self.epoch: self.checkpoint}

    @property
    def attrs(self) -> dict[str, Any]:
        """The lineage, for people: user attributes of the trial. Empty for a whole training."""
        if self.segment is None:
            return {}
        shown = {"generation": self.segment.generation, "member": self.segment.member}
        if self.segment.parent is not None:
            shown["parent"] = self.segment.parent
        changes = {
            name: f"{show_value(old)} → {show_value(new)}"
            for name, (old, new) in self.segment.changes.items()
        }
        return {**shown, **({"explored": changes} if changes else {})}

    def ends_with(self, epoch: Epoch) -> bool:
        """Whether this was the segment's last epoch."""
        return self.last is not None and epoch.number >= self.last

    def require_checkpoint(self, objective: Objective, epoch: Epoch) -> None:
        """Check that there is a network to hand on.

        Raises:
            DefinitionError: the objective gives no checkpoints.
        """
        if self.segment is not None and epoch.checkpoint is None:
            raise DefinitionError(
                f"sampler 'population-based' needs checkpoints, and objective {objective.name!r} gives none "
                f"(Epoch.checkpoint is None after epoch {epoch.number})"
            )

    def stopped(self, why: str) -> dict[str, Any]:
        """Attributes of a trial that is complete before the task is done: the training does not go on."""
        return {} if self.segment is None else {ENDED: why}

    def hand_on(
        self, ask_tell: WorkerSide, lease: Lease, training: AdjustableTraining, last: Epoch | None
    ) -> dict[str, Any]:
        """Keep the network after the last epoch. Returns attributes for the trial: what the sampler has to know.

        Args:
            ask_tell: the study.
            lease: of the trial.
            training: paused after the segment's last epoch, or at its end.
            last: the segment's last epoch; None if there was none, as the training had ended before.
        """
        if self.segment is None:
            return {}
        if last is None or not self.ends_with(last):
            return {ENDED: f"the training ended with epoch {training.epoch}"}
        assert last.checkpoint is not None
        values = training.adjustments.values(last.number - 1)  # what its last epoch was trained with
        adjusted = {name: values[name] for name in lease.params if name in values}
        ended_with = {ENDED_WITH: adjusted} if any(adjusted[n] != lease.params[n] for n in adjusted) else {}
        ask_tell.save_checkpoint(lease, last.number, last.checkpoint())
        if self.planned is not None and last.number >= self.planned:
            return {**ended_with, ENDED: f"all {self.planned} epochs are trained"}
        return ended_with


def plan(ask_tell: WorkerSide, lease: Lease, objective: Objective) -> Task:
    """What to do for a trial.

    Raises:
        CheckpointGoneError: it continues a trial whose checkpoint is gone.
    """
    definition, sampler = ask_tell.definition, ask_tell.definition.sampler
    whole = Task(Seed(definition.seed, lease.number))
    if not isinstance(sampler, PopulationSettings):
        return whole
    segment = ask_tell.segment(lease)
    if segment is None:  # added by hand, past the sampler
        return whole
    epoch, checkpoint = 0, None
    if segment.parent is not None:
        found = ask_tell.checkpoint(segment.parent)
        if found is None:
            raise CheckpointGoneError(
                f"the checkpoint of trial {segment.parent}, which trial {lease.number} continues, is gone"
            )
        epoch, checkpoint = found
    planned = planned_epochs(objective, {**definition.fixed, **lease.params})
    ends = segment.generation * sampler.interval
    last = ends if planned is None else min(ends, planned)
    # the randomness of a network is that of the trial in which it was born, as if it had been trained in one go
    return Task(Seed(definition.seed, segment.born), segment, epoch, checkpoint, last, planned)


def drop_old_checkpoints(ask_tell: WorkerSide) -> None:
    """Delete the checkpoints that nobody can continue any more, all but the best trial's."""
    sampler, minimize = ask_tell.definition.sampler, ask_tell.definition.direction == "minimize"
    assert isinstance(sampler, PopulationSettings)

    def needed(trials: Sequence[FrozenTrial]) -> set[int]:
        return Generations(
            trials, minimize=minimize, quantile=sampler.quantile, population=sampler.population
        ).needed()

    ask_tell.drop_checkpoints(needed)


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of a training in which its hyperparameters stayed the same.

    `first` and `last` are its epochs, `number` the trial that trained it, `params` the tuned hyperparameters (with what
    a person adjusted), `changes` what became different with its first epoch, as `name: (old, new)`, and `value` the
    value after its last epoch.
    """

    first: int
    last: int
    number: int
    generation: int
    member: int
    params: Mapping[str, Any]
    changes: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    value: float | None = None


def lineage(trials: Sequence[FrozenTrial], number: int) -> list[Stretch]:
    """How the network of a trial was trained, from its first epoch: what population-based training really finds.

    Args:
        trials: of the study.
        number: of the trial.

    Raises:
        NotFoundError: there is no such trial, or it is no segment of a population.
    """
    by_number = {trial.number: trial for trial in trials}
    path: list[tuple[FrozenTrial, Segment]] = []
    following: int | None = number
    while following is not None:
        trial = by_number.get(following)
        segment = None if trial is None else segment_of(trial.system_attrs)
        if trial is None or segment is None:
            missing = "there is no such trial" if trial is None else "no trial of population-based training"
            raise NotFoundError(f"trial {following} has no lineage: {missing}")
        path.append((trial, segment))
        following = segment.parent
    stretches: list[Stretch] = []
    for trial, segment in reversed(path):
        before = stretches[-1].params if stretches else {}
        stretches += _stretches(trial, segment, before)
    return stretches


def schedule(stretches: Sequence[Stretch]) -> dict[int, dict[str, Any]]:
    """A lineage as the hyperparameters of each epoch."""
    return {n: dict(stretch.params) for stretch in stretches for n in range(stretch.first, stretch.last + 1)}


def _stretches(trial: FrozenTrial, segment: Segment, before: Mapping[str, Any]) -> list[Stretch]:
    """One for a segment, more where a person adjusted it meanwhile."""
    values = trial.intermediate_values
    if not values:
        return []
    adjusted: dict[int, dict[str, Any]] = {}
    for entry in trial.user_attrs.get(ADJUSTMENTS, []):
        adjusted.setdefault(entry["epoch"] + 1, {})[entry["name"]] = entry["new"]
    firsts = sorted({min(values), *(epoch for epoch in adjusted if min(values) < epoch <= max(values))})
    stretches, params = [], dict(trial.params)
    for first, after in zip(firsts, [*firsts[1:], max(values) + 1], strict=True):
        params = {**params, **adjusted.get(first, {})}
        changes = {n: (before[n], new) for n, new in params.items() if before and before.get(n, new) != new}
        whose = (trial.number, segment.generation, segment.member)
        stretches.append(Stretch(first, after - 1, *whose, params, changes, values[after - 1]))
        before = params
    return stretches


def require_whole_trainings(definition: StudyDefinition, what: str) -> None:
    """Check that a study's trials are whole trainings.

    Raises:
        DefinitionError: they are segments.
    """
    if isinstance(definition.sampler, PopulationSettings):
        raise DefinitionError(
            f"{definition.name}: {what} needs trials that are whole trainings; with sampler 'population-based' "
            "they are segments of several"
        )
