"""What the service answers, as objects. What a later service adds is ignored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from optuna.distributions import BaseDistribution, json_to_distribution
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, field_validator

from tuner.ask_tell import Answer, Lease, Reply
from tuner.errors import TunerError
from tuner.samplers import Segment, segment_of
from tuner.samplers.population import PLAN

__all__ = [
    "AskedTrials",
    "BestTrial",
    "HandedTrial",
    "ObjectiveStatus",
    "RemoteTrial",
    "ReplyDocument",
    "ReportedValue",
    "StudyStatus",
    "WorkerTrial",
    "read",
    "wire_number",
]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class ReportedValue(_Answer):
    """A value after a step. `inf`, `-inf` and `nan` travel as strings."""

    step: int
    value: float


class BestTrial(_Answer):
    """The best trial of a study, in short."""

    number: int
    value: float
    params: dict[str, Any]


class ObjectiveStatus(_Answer):
    """One of several objectives."""

    name: str | None
    direction: str


class StudyStatus(_Answer):
    """A study and how far it is.

    `state` is open, paused, stopped or archived, and `status` how it stands: open, paused, stopped, finished or
    archived; it `is_finished` when no trial will be handed out any more, whatever its state. `counts` are its trials by
    state: running, waiting, complete, pruned, fail. `spent`, `budget` and `left` are by trials, epochs and seconds;
    what is not limited is None. `definition` is the document that it was made from. With several `objectives` there is
    no `best`, and `front` is the number of trials on the Pareto front.
    """

    name: str
    state: str
    status: str = ""
    is_finished: bool = False
    objective: str | None = None
    direction: str | None = None
    sampler: str | None = None
    pruner: str | None = None
    counts: dict[str, int] = {}
    best: BestTrial | None = None
    objectives: list[ObjectiveStatus] = []
    front: int | None = None
    spent: dict[str, float | None] = {}
    budget: dict[str, float | None] | None = None
    left: dict[str, float | None] | None = None
    definition: dict[str, Any] | None = None


class RemoteTrial(_Answer):
    """A trial of a study. `state` is running, waiting, complete, pruned or fail; times are in UTC.

    `values` has one for each objective, `value` that of a single one.

    `checkpoint_epoch` is the epoch after which its training was kept for whoever gets it next, None where none was.
    """

    number: int
    state: str
    value: float | None = None
    values: list[float] | None = None
    params: dict[str, Any] = {}
    user_attrs: dict[str, Any] = {}
    reports: list[ReportedValue] = []
    started: datetime | None = None
    ended: datetime | None = None
    failure: str | None = None
    checkpoint_epoch: int | None = None


class HandedTrial(_Answer):
    """A trial that was handed out, with its lease."""

    study: str
    number: int
    fence: int
    attempt: int = 1
    params: dict[str, Any] = {}
    distributions: dict[str, BaseDistribution] = {}
    reports: list[ReportedValue] = []
    lease_seconds: float | None = None
    segment: dict[str, Any] | None = None

    model_config = ConfigDict(extra="ignore", frozen=True, arbitrary_types_allowed=True)

    @field_validator("distributions", mode="before")
    @classmethod
    def _read_distributions(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given or {}
        return {name: _distribution(document) for name, document in given.items()}

    @property
    def population_segment(self) -> Segment | None:
        """Its place in a population; None of a whole training."""
        return None if self.segment is None else segment_of({PLAN: self.segment})

    @property
    def lease(self) -> Lease:
        """As a worker holds it."""
        values = {report.step: report.value for report in self.reports}
        known = (self.number, dict(self.params), dict(self.distributions), self.fence, self.attempt, values)
        return Lease(self.number, *known)  # its id in the database does not matter here


class AskedTrials(_Answer):
    """The answer to an ask of one study. No trials: the study is not open, or has none left."""

    trials: list[HandedTrial] = []
    state: str = "open"
    is_finished: bool = False


class WorkerTrial(_Answer):
    """The answer to a worker's ask of any study."""

    trial: HandedTrial | None = None
    study: str | None = None


class ReplyDocument(_Answer):
    """The answer to a report or a heartbeat."""

    answer: Answer
    adjustment: dict[str, Any] | None = None
    by: str | None = None

    @property
    def reply(self) -> Reply:
        """As a worker hears it."""
        return Reply(self.answer, self.adjustment or {}, self.by or "")


def read(kind: Any, answer: Any) -> Any:
    """The answer as an object of this kind.

    Raises:
        TunerError: it is none.
    """
    try:
        return TypeAdapter(kind).validate_python(answer)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        name = getattr(kind, "__name__", str(kind))
        raise TunerError(
            f"the service's answer is no {name} ({where}: {first['msg']}): is it of another version?"
        ) from None


def wire_number(value: float) -> float | str:
    """A number as it travels: JSON has no infinity and no NaN."""
    number = float(value)
    if number != number:  # noqa: PLR0124 - only NaN is unequal to itself
        return "nan"
    return number if abs(number) != float("inf") else ("inf" if number > 0 else "-inf")


def _distribution(document: Any) -> BaseDistribution:
    text = document if isinstance(document, str) else json.dumps(document)
    try:
        return json_to_distribution(text)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{text[:200]} is no distribution ({error})") from None
