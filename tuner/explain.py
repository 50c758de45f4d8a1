"""What is wrong with a document, a line a mistake: the key, the rule, the value, and what would be accepted."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

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

    Where a value may be of several kinds, pydantic lets each of them complain. Those that got into the value know
    better than those that wanted another one; where none did, all are heard.
    """
    by_place: dict[tuple[str | int, ...], list[tuple[ErrorDetails, _Located]]] = {}
    for error in errors:
        located = _locate(error, document)
        by_place.setdefault(tuple(located.path), []).append((error, located))
    surrounding = {place[:i] for place in by_place for i in range(1, len(place))}
    lines = []
    for place, complaints in by_place.items():
        heard = [c for c in complaints if place not in surrounding or not c[1].of_a_kind]
        if heard:
            lines.append(_explain(_apt([error for error, _ in heard]), heard[0][1], model_of))
    return lines


def _apt(errors: Sequence[ErrorDetails]) -> Sequence[ErrorDetails]:
    """Of the complaints about one value those that do not want another kind of value, if there are any."""
    inner = [e for e in errors if e["type"] != "literal_error" and not e["type"].endswith("_type")]
    return inner or errors


def _explain(errors: Sequence[ErrorDetails], located: _Located, model_of: ModelOf) -> str:
    error, path = errors[0], located.path
    where = ".".join(map(str, path))
    rule = _RULES.get(error["type"])
    if rule is not None:
        return f"{where}{rule(error)}".removeprefix(": ")
    if error["type"] == "extra_forbidden":
        return f"{where}: {_unknown_key(str(path[-1]), model_of(path[:-1], located.table))}"
    others = [
        e["msg"].removeprefix("Input should be ")
        for e in errors[1:]
        if e["input"] is error["input"] and e["type"] not in _RULES
    ]
    wanted = " or ".join(dict.fromkeys([error["msg"][0].lower() + error["msg"][1:], *others]))
    return f"{where}: {wanted}; got {_shown(error)}".removeprefix(": ")


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


class _Located(NamedTuple):
    """Where in the document an error is: the keys that lead there, and the innermost table around it."""

    path: Path
    table: Mapping[str, Any]
    of_a_kind: bool
    """Whether one of several kinds complains about the value as a whole."""


def _locate(error: ErrorDetails, document: Any) -> _Located:
    """The place of an error, whose own path has pydantic's tags of kinds in between.

    A tag may be called like a key, as in `pruner.percentile.percentile`: the right reading ends at what was refused.
    """
    loc, is_missing = error["loc"], error["type"] == "missing"
    readings = list(_readings(loc, document, [], {}, is_missing=is_missing))
    refused = error["input"]
    fitting = [
        located
        for located, node in readings
        if node is refused or (type(node) is type(refused) and node == refused)
    ]
    return min(fitting, key=lambda located: located.of_a_kind, default=readings[0][0])


def _readings(
    loc: Sequence[str | int], node: Any, path: Path, table: Mapping[str, Any], *, is_missing: bool
) -> Iterator[tuple[_Located, Any]]:
    """What the rest of an error's path may mean from a node on, and the nodes where that ends."""
    if not loc:
        yield _Located(path, table, of_a_kind=False), node
        return
    key, rest = loc[0], loc[1:]
    table = node if isinstance(node, Mapping) else table
    if (isinstance(node, Mapping) and key in node) or (
        isinstance(node, list) and isinstance(key, int) and key < len(node)
    ):
        yield from _readings(rest, node[key], [*path, key], table, is_missing=is_missing)  # type: ignore[index]
    if is_missing and not rest:
        yield _Located([*path, key], table, of_a_kind=False), node
    elif rest:
        yield from _readings(rest, node, path, table, is_missing=is_missing)
    else:
        yield _Located(path, table, of_a_kind=key != "[key]"), node
