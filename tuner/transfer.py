"""A study as one document: its definition and all of its trials, to be carried to another database.

What comes back is checked as if a stranger had written it: points must lie in the space, numbers must be numbers, and
system attributes, which some samplers unpickle, do not travel.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, TypeAlias

from optuna.distributions import (
    BaseDistribution,
    check_distribution_compatibility,
    distribution_to_json,
    json_to_distribution,
)
from optuna.trial import FrozenTrial, TrialState
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from tuner.definition import MOST_OBJECTIVES, StudyDefinition
from tuner.errors import DefinitionError
from tuner.ledger import Spent
from tuner.samplers import ENDED_WITH
from tuner.space import EXACT_INTEGER, Choice

__all__ = [
    "FORMAT",
    "SpentDocument",
    "StudyDocument",
    "TrialDocument",
    "check_attributes",
    "dump",
    "read_document",
    "trials_of",
]

FORMAT = "tuner-study-1"

LARGEST = 2**31 - 1
MOST_TRIALS = 100_000
MOST_ATTRS = 1000
MOST_MISTAKES = 10

Text = Annotated[str, Field(min_length=1, max_length=512)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Infinite: TypeAlias = Literal["inf", "-inf"]


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ReportDocument(_Document):
    """A value after a step."""

    step: Annotated[int, Field(ge=0, le=LARGEST)]
    value: Finite | Literal["inf", "-inf", "nan"]


class TrialDocument(_Document):
    """A trial. One that was running is to run again where it is carried to."""

    state: Literal["running", "waiting", "complete", "pruned", "fail"]
    value: Finite | Infinite | None = None
    values: Annotated[list[Finite | Infinite], Field(max_length=MOST_OBJECTIVES)] | None = Field(
        default=None, description="Instead of `value`, with several objectives: one for each."
    )
    params: dict[Text, Choice] = {}
    distributions: dict[Text, dict[str, JsonValue]] = Field(default={}, description="Optuna's, by parameter.")
    fixed_params: dict[Text, Choice] = Field(
        default={}, description="Of a waiting trial: what it is to begin with."
    )
    user_attrs: Annotated[dict[Text, JsonValue], Field(max_length=MOST_ATTRS)] = {}
    reports: list[ReportDocument] = []
    started: Annotated[str, Field(max_length=40, description="ISO 8601, without a zone.")] | None = None
    ended: Annotated[str, Field(max_length=40)] | None = None


class SpentDocument(_Document):
    """What a study has used; how many trials, they tell themselves."""

    epochs: Annotated[int, Field(ge=0, le=LARGEST)] = 0
    seconds: Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)] = 0.0


class StudyDocument(_Document):
    """A study with all of its trials, numbered from 0 in their order."""

    format: Literal["tuner-study-1"]
    definition: StudyDefinition
    spent: SpentDocument = SpentDocument()
    trials: Annotated[list[TrialDocument], Field(max_length=MOST_TRIALS)] = []


def dump(definition: StudyDefinition, trials: Sequence[FrozenTrial], spent: Spent) -> dict[str, Any]:
    """The document of a study, in plain types."""
    return {
        "format": FORMAT,
        "definition": definition.dump(full=True),
        "spent": {"epochs": spent.epochs, "seconds": spent.seconds},
        "trials": [_dump_trial(trial, is_single=not definition.objectives) for trial in trials],
    }


def read_document(text: bytes) -> StudyDocument:
    """The document that a file or a request holds, as JSON.

    Raises:
        DefinitionError: it is none; a line for each mistake, with its place.
    """
    try:
        return StudyDocument.model_validate_json(text)
    except ValidationError as error:
        mistakes = error.errors()[:MOST_MISTAKES]
        lines = (f"{'.'.join(map(str, m['loc']))}: {m['msg']}".removeprefix(": ") for m in mistakes)
        raise DefinitionError("\n".join(lines)) from None


def trials_of(document: StudyDocument) -> list[FrozenTrial]:
    """The trials of a document, as Optuna has them; ids are left open.

    Raises:
        DefinitionError: one breaks a rule; the text names the trial, the rule and the value.
    """
    known = dict(document.definition.space.distributions)
    is_open = (
        not known
    )  # the objective suggests as it goes: what the first trials have is what others must fit
    found = []
    for number, trial in enumerate(document.trials):
        try:
            found.append(_read_trial(document.definition, number, trial, known, is_open=is_open))
        except ValueError as error:  # of our own and of Optuna's
            raise DefinitionError(f"trials.{number}: {error}") from None
    return found


def check_attributes(attrs: Mapping[str, Any]) -> None:
    """Check the user attributes of a trial that are read again by this package.

    Raises:
        DefinitionError: one is not of its kind.
    """
    for name, (kind, is_one) in _KINDS.items():
        if name in attrs and not is_one(attrs[name]):
            raise DefinitionError(f"attribute {name!r} must be {kind}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_adjustment(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("epoch"), int)
        and isinstance(entry.get("name"), str)
        and {"old", "new", "by", "at"} <= entry.keys()
    )


_KINDS: dict[str, tuple[str, Any]] = {
    "training_seconds": ("a number", _is_number),
    "adjustments": (
        "a list of adjustments",
        lambda value: isinstance(value, list) and all(map(_is_adjustment, value)),
    ),
    ENDED_WITH: (
        "numbers by hyperparameter",
        lambda value: isinstance(value, dict) and all(map(_is_number, value.values())),
    ),
}


def _dump_trial(trial: FrozenTrial, *, is_single: bool) -> dict[str, Any]:
    values = None if trial.values is None else [_written(value) for value in trial.values]
    fixed = trial.system_attrs.get("fixed_params", {}) if trial.state is TrialState.WAITING else {}
    return {
        "state": trial.state.name.lower(),
        **({"value": values[0] if values else None} if is_single else {"values": values}),
        "params": trial.params,
        "distributions": {n: json.loads(distribution_to_json(d)) for n, d in trial.distributions.items()},
        "fixed_params": fixed,
        "user_attrs": trial.user_attrs,
        "reports": [{"step": s, "value": _written(v)} for s, v in sorted(trial.intermediate_values.items())],
        "started": None if trial.datetime_start is None else trial.datetime_start.isoformat(),
        "ended": None if trial.datetime_complete is None else trial.datetime_complete.isoformat(),
    }


def _written(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _read_trial(
    definition: StudyDefinition,
    number: int,
    document: TrialDocument,
    known: dict[str, BaseDistribution],
    *,
    is_open: bool,
) -> FrozenTrial:
    state = TrialState[document.state.upper()]
    if state is TrialState.RUNNING:
        state = TrialState.WAITING
    has_ended = state.is_finished()
    told = _read_values(definition, document, state)
    values = {report.step: float(report.value) for report in document.reports}
    if values and definition.objectives and state is TrialState.PRUNED:
        raise DefinitionError("reports: a pruned trial of several objectives has none")
    if len(values) < len(document.reports):
        raise DefinitionError("reports: a step may be there once")
    if len(definition.space):
        definition.space.check(document.fixed_params)
        definition.space.check(document.params)
    check_attributes(document.user_attrs)
    distributions = _distributions(document, known, is_open=is_open)
    return FrozenTrial(
        trial_id=-1,
        number=number,
        state=state,
        value=None,
        values=told,
        datetime_start=_time(document.started) if has_ended else None,
        datetime_complete=_time(document.ended) if has_ended else None,
        params=dict(document.params),
        distributions=distributions,
        user_attrs=dict(document.user_attrs),
        system_attrs={"fixed_params": dict(document.fixed_params)} if document.fixed_params else {},
        intermediate_values=values if has_ended else {},
    )


def _read_values(
    definition: StudyDefinition, document: TrialDocument, state: TrialState
) -> list[float] | None:
    """What a trial ended with, one for each objective."""
    written = document.values if document.value is None else [document.value]
    if written is None:
        if state is TrialState.COMPLETE:
            raise DefinitionError("a completed trial needs a value")
        return None
    if document.value is not None and document.values is not None:
        raise DefinitionError("a trial has value or values, not both")
    if state not in (TrialState.COMPLETE, TrialState.PRUNED):
        raise DefinitionError(f"a trial that is {document.state} has no value; got {_listed(written)}")
    if definition.objectives and state is TrialState.PRUNED:
        raise DefinitionError(f"a pruned trial of several objectives has no values; got {_listed(written)}")
    if len(written) != (wanted := len(definition.directions)):
        raise DefinitionError(f"a trial has a value for each objective, {wanted}; got {_listed(written)}")
    return [float(value) for value in written]


def _listed(written: Sequence[float | str]) -> str:
    return ", ".join(map(str, written)) or "none"


def _distributions(
    document: TrialDocument, known: dict[str, BaseDistribution], *, is_open: bool
) -> dict[str, BaseDistribution]:
    if document.params.keys() != document.distributions.keys():
        raise DefinitionError("each parameter needs its distribution, and the other way round")
    found = {name: _distribution(name, given) for name, given in document.distributions.items()}
    for name, distribution in found.items():
        if is_open:
            check_distribution_compatibility(known.setdefault(name, distribution), distribution)
        elif distribution != known[name]:
            raise DefinitionError(f"the distribution of {name!r} is not that of the space")
        value = document.params[name]
        if not _holds(distribution, value):
            raise DefinitionError(f"{name} = {value!r} is not in its distribution")
    return found


def _distribution(name: str, given: Mapping[str, JsonValue]) -> BaseDistribution:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Optuna would cut a range, and say so
            return json_to_distribution(json.dumps(given))
    except Exception as error:  # noqa: BLE001 - Optuna raises whatever its constructors do
        raise DefinitionError(f"the distribution of {name!r} is none of Optuna's: {error}") from None


def _holds(distribution: BaseDistribution, value: Choice) -> bool:
    if isinstance(value, int) and abs(value) > EXACT_INTEGER:
        return False
    try:
        return distribution._contains(distribution.to_internal_repr(value))
    except (TypeError, ValueError, OverflowError):
        return False


def _time(text: str | None) -> datetime | None:
    if text is None:
        return None
    found = datetime.fromisoformat(text)
    if found.tzinfo is not None:
        raise DefinitionError(f"a time is without a zone; got {text!r}")
    return found
