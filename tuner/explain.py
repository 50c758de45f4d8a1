"""What is wrong with a document, a line a mistake: the key, the rule, the value, and what would be accepted."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from pydantic import BaseModel
from pydantic_core import ErrorDetails

__all__ = ["explain_all", "near_miss"]

Path: TypeAlias = list[str | int]
ModelOf: TypeAlias = Callable[[Sequence[str | int], Mapping[str, Any]], type[BaseModel] | None]
"""The model of the table at a path of the document, given the path and the table."""


def near_miss(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` where a known word is near, else nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def explain_all(errors: Iterable[ErrorDetails], document: Any, model_of: ModelOf) -> list[str]:
    """Pydantic's validation errors, a line for each place that has one.

    Where a value may be of several kinds, each complains: who got further inside knows better what is wrong.
    """
    by_place: dict[tuple[str | int, ...], str] = {}
    for error in errors:
        path, table = _locate(error, document)
        by_place.setdefault(tuple(path), _explain(error, path, table, model_of))
    surrounding = {place[:i] for place in by_place for i in range(1, len(place))}
    return [line for place, line in by_place.items() if place not in surrounding]


def _explain(error: ErrorDetails, path: Path, table: Mapping[str, Any], model_of: ModelOf) -> str:
    where = ".".join(map(str, path))
    rule = _RULES.get(error["type"])
    if rule is not None:
        return f"{where}{rule(error)}".removeprefix(": ")
    if error["type"] == "extra_forbidden":
        return f"{where}: {_unknown_key(str(path[-1]), model_of(path[:-1], table))}"
    message = error["msg"]
    return f"{where}: {message[0].lower()}{message[1:]}; got {_shown(error)}".removeprefix(": ")


def _unknown_key(key: str, model: type[BaseModel] | None) -> str:
    if model is None:
        return "unknown key"
    keys = sorted(field.alias or name for name, field in model.model_fields.items())
    return f"unknown key{near_miss(key, keys)}; accepted: {', '.join(keys)}"


def _unknown_tag(error: ErrorDetails) -> str:
    names = error["ctx"]["expected_tags"].replace("'", "")
    tag = str(error["ctx"]["tag"])
    return f".name: there is no {tag!r}{near_miss(tag, names.split(', '))}; accepted: {names}"


_RULES: dict[str, Callable[[ErrorDetails], str]] = {
    "model_attributes_type": lambda error: f': needs a table, as in {{ name = "..." }}; got {_shown(error)}',
    "model_type": lambda error: f": needs a table of keys; got {_shown(error)}",
    "missing": lambda error: ": missing; it is required",
    "union_tag_invalid": _unknown_tag,
    "union_tag_not_found": lambda error: f': needs a name, as in {{ name = "..." }}; got {_shown(error)}',
    "value_error": lambda error: f": {error['ctx']['error']}",
    "string_pattern_mismatch": lambda error: f": must match {error['ctx']['pattern']}; got {_shown(error)}",
}


def _shown(error: ErrorDetails) -> str:
    value = repr(error["input"])
    return value if len(value) <= 60 else value[:57] + "..."


def _locate(error: ErrorDetails, document: Any) -> tuple[Path, Mapping[str, Any]]:
    """The error's path without pydantic's union tags, and the innermost table around it."""
    path: Path = []
    table: Mapping[str, Any] = {}
    node = document
    for i, key in enumerate(error["loc"]):
        if isinstance(node, Mapping):
            table = node
        if (isinstance(node, Mapping) and key in node) or (isinstance(node, list) and isinstance(key, int)):
            node = node[key]  # type: ignore[index]  # a list has a whole number, by the line above
            path.append(key)
        elif i == len(error["loc"]) - 1 and error["type"] == "missing":
            path.append(key)
    return path, table
