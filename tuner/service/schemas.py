"""Bodies and answers of the API. Bodies are strict: no unknown key, no text or truth value where a number is meant.

Infinity and NaN, which JSON does not have, are written as the text "inf", "-inf" and "nan".
"""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from tuner.definition import MOST_OBJECTIVES
from tuner.space import Choice
from tuner.transfer import check_attributes

__all__ = [
    "Adjust",
    "Annotate",
    "Ask",
    "AskAny",
    "Asked",
    "AskedAny",
    "Best",
    "ComparisonBrief",
    "ComparisonView",
    "Comparisons",
    "Empty",
    "Ended",
    "Enqueue",
    "ExportedStudy",
    "Fenced",
    "Handed",
    "Importances",
    "Reply",
    "Report",
    "Studies",
    "StudyView",
    "Tell",
    "TrialView",
    "Trials",
    "as_number",
    "number_of",
]

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
LARGEST = 2**31 - 1
MOST_REPORTS = 1000
"""In one request."""
ATTRS_BYTES = 64 * 1024
ATTRS = 256
MOST_SECONDS = 1e9

Name = Annotated[str, Field(pattern=NAME)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Whole = Annotated[int, Field(ge=0, le=LARGEST)]
Seconds = Annotated[float, Field(ge=0, le=MOST_SECONDS, allow_inf_nan=False)]
Fence = Annotated[int, Field(ge=1, le=LARGEST, description="Of the lease, as the ask gave it.")]
RequestId = Annotated[str, Field(min_length=1, max_length=128)]
Infinite: TypeAlias = Literal["inf", "-inf"]
Written: TypeAlias = float | Literal["inf", "-inf", "nan"]
"""A number of an answer."""


def as_number(value: float) -> float | str:
    """A number as it is written in JSON."""
    return value if math.isfinite(value) else str(value)


def number_of(written: float | str) -> float:
    """The number that was written."""
    return float(written)


def _in_words(rule: str) -> WrapValidator:
    """What a value must be, instead of a line for each of several types."""

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise ValueError(f"{rule}; got {str(value)[:60]!r}") from None

    return WrapValidator(check)


_TOLD = 'must be a finite number, "inf" or "-inf" (a trial whose value is NaN has failed)'
_REPORTED = 'must be a finite number, "inf", "-inf" or "nan"'


ToldValue = Annotated[Finite | Infinite, _in_words(_TOLD)]


def _check_attrs(attrs: dict[str, JsonValue]) -> dict[str, JsonValue]:
    if len(attrs) > ATTRS:
        raise ValueError(f"there may be at most {ATTRS} attributes; got {len(attrs)}")
    if (size := len(json.dumps(attrs))) > ATTRS_BYTES:
        raise ValueError(f"attributes may take at most {ATTRS_BYTES} bytes; got {size}")
    check_attributes(attrs)
    return attrs


AttrName = Annotated[str, Field(min_length=1, max_length=200)]
Attrs = Annotated[dict[AttrName, JsonValue], AfterValidator(_check_attrs)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Empty(_Body):
    """Nothing."""


class Ask(_Body):
    """Who asks for trials."""

    client_id: Name = Field(description="Names the worker, for people.")
    request_id: RequestId | None = Field(
        default=None,
        description="Names this request: asked again with the same, the same trials are handed out.",
    )
    count: Annotated[int, Field(ge=1, le=32)] = 1


class AskAny(_Body):
    """Who asks for a trial of any study, and what it can train."""

    client_id: Name
    objectives: Annotated[list[Annotated[str, Field(max_length=512)]], Field(min_length=1, max_length=1024)]
    request_id: RequestId | None = None
    prefix: Annotated[str, Field(max_length=128)] = Field(
        default="", description="Of the names of the studies."
    )


class Fenced(_Body):
    """Under which lease."""

    fence: Fence


class ReportedValue(_Body):
    """A value after a step."""

    step: Whole
    value: Annotated[Finite | Literal["inf", "-inf", "nan"], _in_words(_REPORTED)]


class Report(Fenced):
    """Values by step, and what has passed since the last report."""

    values: Annotated[list[ReportedValue], Field(min_length=1, max_length=MOST_REPORTS)]
    seconds: Seconds = 0.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len({reported.step for reported in self.values}) < len(self.values):
            raise ValueError("a step may be there once")
        return self


class Tell(Fenced):
    """How a trial ended."""

    state: Literal["complete", "pruned", "fail"]
    value: Annotated[Finite | Infinite | None, _in_words(_TOLD)] = Field(
        default=None, description="Of a completed trial, or the last of a pruned one."
    )
    values: Annotated[list[ToldValue], Field(max_length=MOST_OBJECTIVES)] | None = Field(
        default=None,
        description="Instead of `value`: one for each objective, in their order. A pruned trial of several has none.",
    )
    attrs: Attrs = Field(default={}, description="User attributes to keep with it.")
    seconds: Seconds = 0.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        told = self.told
        if self.value is not None and self.values is not None:
            raise ValueError("a trial is told with value or values, not both")
        if self.state == "complete" and told is None:
            raise ValueError("a completed trial needs a value; one that has none has failed")
        if self.state == "fail" and told is not None:
            raise ValueError(
                f"a failed trial has no value; got {', '.join(map(str, told)) or 'an empty list'}"
            )
        return self

    @property
    def told(self) -> list[float] | None:
        """The numbers, one for each objective."""
        written = self.values if self.value is None else [self.value]
        return None if written is None else [number_of(value) for value in written]


class Annotate(Fenced):
    """User attributes of a running trial."""

    attrs: Attrs


class Adjust(_Body):
    """New values of hyperparameters, by name."""

    values: Annotated[
        dict[Annotated[str, Field(max_length=128)], Choice], Field(min_length=1, max_length=256)
    ]


class Enqueue(_Body):
    """A point chosen by hand."""

    params: Annotated[dict[Annotated[str, Field(max_length=128)], Choice], Field(max_length=256)] = Field(
        description="Any of the study's space; the sampler chooses the rest."
    )
    attrs: Attrs = {}


class TrialSeed(BaseModel):
    """Where a trial's randomness comes from: the same numbers as in a local run."""

    study: int
    trial: int


class Reported(BaseModel):
    """A value after a step."""

    step: int
    value: Written


class ObjectiveView(BaseModel):
    """One of several objectives."""

    name: str | None = Field(description="Null where nobody has named it.")
    direction: Literal["minimize", "maximize"]


class Handed(BaseModel):
    """A trial in the hands of its worker."""

    study: str
    number: int
    fence: int
    attempt: int = Field(description="Above 1 where the workers before were lost.")
    lease_seconds: float = Field(
        description="So long it is the worker's after the last that was heard of it."
    )
    params: dict[str, Choice]
    distributions: dict[str, dict[str, JsonValue]] = Field(description="Optuna's, by name of the parameter.")
    reports: list[Reported] = Field(
        description="What this attempt has reported: empty unless it was asked for again."
    )
    seed: TrialSeed
    objective: str | None
    direction: str
    objectives: list[ObjectiveView] = Field(description="Where there are several: a value is told for each.")
    fixed: dict[str, JsonValue] = Field(description="Further hyperparameters, to be passed on as they are.")
    segment: dict[str, JsonValue] | None = Field(
        default=None,
        description="Of population-based training: which trial's checkpoint is continued, and for how long.",
    )


State: TypeAlias = Literal["open", "paused", "stopped", "archived"]


class Asked(BaseModel):
    """Trials to run; none where the study is not open, or has none left."""

    trials: list[Handed]
    state: State
    is_finished: bool = Field(description="No trial will be handed out any more.")


class AskedAny(BaseModel):
    """A trial to run, if any study has one."""

    trial: Handed | None
    study: str | None


class Reply(BaseModel):
    """What a worker is told."""

    answer: Literal["continue", "prune", "stop", "adjust"]
    adjustment: dict[str, Choice] = Field(description="With adjust: new values by name.")
    by: str = Field(description="The person who wants it; empty where it was none.")


class Ended(BaseModel):
    """The state in which a trial ended."""

    state: Literal["complete", "pruned", "fail"]


TrialState: TypeAlias = Literal["running", "waiting", "complete", "pruned", "fail"]


class TrialView(BaseModel):
    """A trial. Times are in UTC."""

    number: int
    state: TrialState
    value: Written | None
    values: list[Written] | None = Field(description="One an objective.")
    params: dict[str, JsonValue]
    user_attrs: dict[str, JsonValue]
    reports: list[Reported]
    started: str | None
    ended: str | None
    failure: str | None = None
    checkpoint_epoch: int | None = Field(
        None,
        description="After this epoch the training was kept: whoever gets the trial next goes on from there.",
    )


class Trials(BaseModel):
    """A page of trials, by number."""

    trials: list[TrialView]
    next_page_token: str | None


class Best(BaseModel):
    """The best trial, or with several objectives the Pareto front: for each, no other is as good in all and better."""

    trials: list[TrialView]


class Importances(BaseModel):
    """By parameter, its share of what decides about the value; empty before there is enough to say."""

    importances: dict[str, float]
    trials: int = Field(description="From so many, the latest that were completed; at most 10,000.")


class Counts(BaseModel):
    """Trials by state."""

    running: int = 0
    waiting: int = 0
    complete: int = 0
    pruned: int = 0
    fail: int = 0


class BestValue(BaseModel):
    """The best trial in short."""

    number: int
    value: Written
    params: dict[str, JsonValue]


class SpentView(BaseModel):
    """What was used."""

    trials: int
    ended: int
    epochs: int
    seconds: float


class Amounts(BaseModel):
    """Of a budget; null where there is no limit."""

    trials: int | None
    epochs: int | None
    seconds: float | None


class StudyView(BaseModel):
    """A study."""

    name: str
    state: State = Field(description="What was last said of it; a study is open until somebody pauses it.")
    status: Literal["open", "paused", "stopped", "finished", "archived"] = Field(
        description="How it stands. It is finished when no trial will be handed out, as its budget is used up."
    )
    is_finished: bool = Field(description="No trial will be handed out any more, whatever its state.")
    objective: str | None
    direction: str
    sampler: str | None
    pruner: str | None
    counts: Counts
    best: BestValue | None = Field(description="Null with several objectives.")
    objectives: list[ObjectiveView] = Field(description="Empty where there is one.")
    front: int | None = Field(
        description="Of several objectives: how many trials are on the Pareto front, which `best` lists."
    )
    spent: SpentView
    budget: Amounts
    left: Amounts
    definition: dict[str, JsonValue] | None = Field(
        description="The document; null of a study that was made elsewhere."
    )


class Studies(BaseModel):
    """A page of studies, oldest first."""

    studies: list[StudyView]
    next_page_token: str | None


class ExportedStudy(BaseModel):
    """A study with all of its trials, numbered from 0 in their order: what an import takes."""

    format: str
    definition: dict[str, JsonValue]
    spent: dict[str, float]
    trials: list[dict[str, JsonValue]]


class ComparisonBrief(BaseModel):
    """A comparison in short."""

    name: str
    arms: list[str]
    seeds: int


class Comparisons(BaseModel):
    """A page of comparisons, by name."""

    comparisons: list[ComparisonBrief]
    next_page_token: str | None


class MemberView(BaseModel):
    """A study of a comparison: an arm with a seed."""

    study: str
    arm: str
    seed: int
    state: State
    trials: int = Field(description="That have ended.")
    is_finished: bool


class ComparisonView(ComparisonBrief):
    """What a comparison has found so far."""

    status: Literal["running", "finished"]
    members: list[MemberView]
    compared_seeds: list[int]
    verdict: str
    winner: str | None
    friedman_p: float | None
    ranking: list[dict[str, JsonValue]]
    definition: dict[str, JsonValue]
