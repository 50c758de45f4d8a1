"""Trials as optuna-dashboard writes them into its documents, from the rows of the database without a detour."""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import sqlalchemy as sa
from optuna.distributions import CategoricalDistribution, IntDistribution, json_to_distribution
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy.orm import Session

__all__ = ["Shape", "TrialText", "texts_after", "texts_of"]

BLOCK = 1000
"""So many trials are read at once: what is read of them is soon text, so that memory stays flat."""

ATTRIBUTE_LENGTH = 1024
"""Of an attribute that is neither a text nor a number so many characters are shown."""


class Shape(NamedTuple):
    """All of a trial that the rest of its study's document depends on, but for its values.

    Attributes:
        state: its state.
        distributions: its parameters' names and distributions, as the database has them.
        user_attrs: the names of its attributes, and whether each is a number.
        system_attrs: what the names of its system attributes begin with, up to the first colon.
        has_reports: whether it has any.
        values: how many.
    """

    state: TrialState
    distributions: tuple[tuple[str, str], ...]
    user_attrs: tuple[tuple[str, bool], ...]
    system_attrs: frozenset[str]
    has_reports: bool
    values: int


_INFINITE = {"INF_POS": '"inf"', "INF_NEG": '"-inf"', "NAN": '"nan"'}


@dataclass(slots=True)
class TrialText:
    """One trial.

    Attributes:
        trial_id: the database's id.
        text: its JSON.
        shape: its shape.
        values: one for each objective, if it has any.
    """

    trial_id: int
    text: str
    shape: Shape
    values: list[float]


def texts_after(session: Session, study_id: int, last: int) -> Iterator[TrialText]:
    """A study's trials with ids above `last`, by id."""
    later = _TRIAL_ROWS.where(_TRIALS.c.study_id == study_id).limit(BLOCK)
    while rows := session.execute(later.where(_TRIALS.c.trial_id > last)).all():
        yield from _texts(session, rows)
        last = rows[-1].trial_id


def texts_of(session: Session, trial_ids: Sequence[int]) -> Iterator[TrialText]:
    """Trials by id; those that are gone are left out."""
    for first in range(0, len(trial_ids), BLOCK):
        these = _TRIALS.c.trial_id.in_(trial_ids[first : first + BLOCK])
        yield from _texts(session, session.execute(_TRIAL_ROWS.where(these)).all())


def _texts(session: Session, trials: Sequence[Any]) -> Iterator[TrialText]:
    ids = [trial.trial_id for trial in trials]
    found: list[dict[int, list[Any]]] = []
    for query in _DETAIL_ROWS:
        by_trial: dict[int, list[Any]] = defaultdict(list)
        for row in session.execute(query, {"trials": ids}).all():
            by_trial[row[0]].append(row)
        found.append(by_trial)
    for trial in trials:
        yield _text(trial, [by_trial[trial.trial_id] for by_trial in found])


def _text(trial: Any, details: Sequence[list[Any]]) -> TrialText:
    """The text of a trial. Of its rows in the other tables the first entry is its id."""
    params, values, reports, user_attrs, system_attrs = details
    attrs = [_attr(key, json.loads(text)) for _, key, text in user_attrs]
    numbers = [_number(value, kind) for _, _, value, kind in values]
    fixed: dict[str, Any] = next(
        (json.loads(text) for _, key, text in system_attrs if key == "fixed_params"), {}
    )
    parts = [
        f'"trial_id": {trial.trial_id}, "study_id": {trial.study_id}, "number": {trial.number}',
        f'"state": "{trial.state.name.capitalize()}"',
        f'"params": [{", ".join([_param(name, text)(value) for _, name, value, text in params])}]',
        f'"fixed_params": {json.dumps([{"name": k, "param_external_value": str(v)} for k, v in fixed.items()])}',
        f'"user_attrs": [{", ".join([attr.text for attr in attrs])}]',
        '"note": {"version": 0, "body": ""}, "artifacts": [], "constraints": []',
        f'"intermediate_values": [{_reports(reports)}]',
    ]
    if values:
        parts.append(f'"values": [{", ".join(numbers)}]')
    if trial.datetime_start is not None:
        parts.append(f'"datetime_start": "{trial.datetime_start.isoformat()}"')
    if trial.datetime_complete is not None:
        parts.append(f'"datetime_complete": "{trial.datetime_complete.isoformat()}"')
    shape = Shape(
        trial.state,
        tuple([(name, text) for _, name, _, text in params]),
        tuple([(attr.key, attr.is_number) for attr in attrs]),
        frozenset([key.partition(":")[0] for _, key, _ in system_attrs]),
        bool(reports),
        len(values),
    )
    told = [float(number.strip('"')) for number in numbers]
    return TrialText(trial.trial_id, f"{{{', '.join(parts)}}}", shape, told)


@functools.lru_cache(maxsize=4096)
def _param(name: str, distribution_json: str) -> Callable[[float], str]:
    """What writes a parameter, given the number that the database has for its value."""
    distribution = json_to_distribution(distribution_json)
    described: dict[str, Any] = {"type": type(distribution).__name__}
    if isinstance(distribution, CategoricalDistribution):
        choices = distribution.choices
        described["choices"] = [{"pytype": str(type(choice)), "value": str(choice)} for choice in choices]
    else:
        described |= {key: getattr(distribution, key) for key in ("low", "high", "step", "log")}
    named, end = json.dumps(name), json.dumps(described)

    def written(internal: str, external: str, kind: type) -> str:
        return (
            f'{{"name": {named}, "param_internal_value": {internal}, "param_external_value": {external}, '
            f'"param_external_pytyp": "{kind}", "distribution": {end}}}'
        )

    if isinstance(distribution, CategoricalDistribution):
        texts = [
            written(json.dumps(distribution.to_internal_repr(choice)), json.dumps(str(choice)), type(choice))
            for choice in choices
        ]
        return lambda stored: texts[int(stored)]
    if isinstance(distribution, IntDistribution):
        return lambda stored: written(f"{int(stored)}.0", f'"{int(stored)}"', int)

    def of_number(stored: float) -> str:
        return written(number := repr(stored), f'"{number}"', float)

    return of_number


class _Attr(NamedTuple):
    key: str
    is_number: bool
    text: str


def _attr(key: str, value: Any) -> _Attr:
    if isinstance(value, str):
        shown = json.dumps(value)
    elif isinstance(value, int | float):
        shown = f'"{value}"'
    else:
        shown = json.dumps(json.dumps(value)[:ATTRIBUTE_LENGTH])
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return _Attr(key, is_number, f'{{"key": {_quoted(key)}, "value": {shown}}}')


_quoted = functools.lru_cache(maxsize=4096)(json.dumps)


def _reports(reports: Sequence[Any]) -> str:
    return ", ".join(
        [
            f'{{"step": {step}, "value": {value!r}}}'  # most of a long study's document: no call for each
            if kind == "FINITE"
            else f'{{"step": {step}, "value": {_number(value, kind)}}}'
            for _, step, value, kind in reports
        ]
    )


def _number(value: float | None, kind: str) -> str:
    return repr(value) if kind == "FINITE" else _INFINITE[kind]


# --------------------------------------------------------------------------------------------------------------- rows

_TRIALS = cast("sa.Table", models.TrialModel.__table__)

_TRIAL_ROWS = sa.select(_TRIALS).order_by(_TRIALS.c.trial_id)


def _details(model: Any, *columns: str, order: str | None = None) -> sa.Select[Any]:
    """What a table has of some trials: the trial's id and some columns, enumerations by name."""
    table = cast("sa.Table", model.__table__)
    chosen = [table.c[name] for name in ("trial_id", *columns)]
    plain = [sa.type_coerce(c, sa.String) if isinstance(c.type, sa.Enum) else c for c in chosen]
    ordered = table.c[order] if order else next(iter(table.primary_key))
    these = table.c.trial_id.in_(sa.bindparam("trials", expanding=True))
    return sa.select(*plain).where(these).order_by(ordered)


_DETAIL_ROWS = (
    _details(models.TrialParamModel, "param_name", "param_value", "distribution_json"),
    _details(models.TrialValueModel, "objective", "value", "value_type", order="objective"),
    _details(
        models.TrialIntermediateValueModel,
        "step",
        "intermediate_value",
        "intermediate_value_type",
        order="step",
    ),
    _details(models.TrialUserAttributeModel, "key", "value_json"),
    _details(models.TrialSystemAttributeModel, "key", "value_json"),
)
"""In the order of what `_text` takes."""
