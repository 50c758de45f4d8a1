"""Values that a person types and reads: `learning_rate=0.01 activation=relu`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

from tuner.errors import DefinitionError
from tuner.space import CategoricalParameter, Space

__all__ = ["parse_assignments", "parse_value", "show_value"]


def parse_assignments(words: Iterable[str], space: Space | None = None) -> dict[str, Any]:
    """Values by name, from words `name=value`. Where the space has choices, a word means the choice that it spells.

    Raises:
        DefinitionError: a word has no `=`, no name or no value, or a name comes twice.
    """
    values: dict[str, Any] = {}
    for word in words:
        name, sign, text = (part.strip() for part in word.partition("="))
        if not (name and sign and text):
            raise DefinitionError(f"values are given as name=value, as in learning_rate=0.01; got {word!r}")
        if name in values:
            raise DefinitionError(f"{name} is given twice: {values[name]} and {text}")
        values[name] = _in_space(name, text, space)
    return values


def parse_value(text: str) -> bool | int | float | str:
    """The number or the truth value that a text spells, else the text itself."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return {"true": True, "false": False}.get(text.lower(), text)


def _in_space(name: str, text: str, space: Space | None) -> Any:
    parameter = space[name] if space is not None and name in space else None
    if isinstance(parameter, CategoricalParameter):
        for choice in parameter.choices:
            if str(choice) == text or (type(choice) is type(value := parse_value(text)) and choice == value):
                return choice
    return parse_value(text)


def show_value(value: Any) -> str:
    """A value as a person reads it: numbers to four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
