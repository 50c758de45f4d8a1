"""Numbers, settings and parameters in words, as pages and terminals show them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, TypeAlias

from tuner.catalogue import find_objective
from tuner.definition import Arm, Budget
from tuner.errors import TunerError
from tuner.space import CategoricalParameter, FloatParameter, IntParameter, Space
from tuner.statistics import Estimate, Spread
from tuner.words import plural

__all__ = [
    "NONE",
    "assignments",
    "budget_text",
    "component",
    "count",
    "equals",
    "estimate_text",
    "number",
    "objective_text",
    "overrides",
    "p_value",
    "parameter_value",
    "range_text",
    "scale_text",
    "spread_text",
    "value_text",
]

AnyParameter: TypeAlias = FloatParameter | IntParameter | CategoricalParameter

NONE = "–"
"""What stands where there is nothing to say."""


def number(value: float, digits: int = 4) -> str:
    """With so many significant digits, zeros at the end included, so that columns line up."""
    if not math.isfinite(value):
        return NONE
    if 10 ** (digits - 1) <= abs(value) < 10**7:
        return f"{value:,.0f}".replace("-", "−")
    return f"{value:#.{digits}g}".removesuffix(".").replace("-", "−")


def count(value: float) -> str:
    """A whole number with separators."""
    return f"{value:,.0f}"


def spread_text(spread: Spread, digits: int = 4) -> str:
    """Median and quartiles."""
    return f"{number(spread.median, digits)} [{number(spread.low, 3)}, {number(spread.high, 3)}]"


def p_value(p: float | None) -> str:
    """Two digits are enough, but for what they would round to 0.05."""
    if p is None or not math.isfinite(p):
        return NONE
    if p < 0.001:
        return "< 0.001"
    return f"{p:.2g}" if f"{p:.2g}" != "0.05" else f"{p:.4f}"


def equals(p: float) -> str:
    """As it stands behind the letter p."""
    shown = p_value(p)
    return shown if shown.startswith("<") else f"= {shown}"


def value_text(value: Any) -> str:
    """A setting or parameter as text."""
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", "−")
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def estimate_text(estimate: Estimate) -> str:
    """A value with its 95% interval, where there is one."""
    if estimate.low is None or estimate.high is None:
        return number(estimate.value, 3)
    low, high = (number(end, 2) for end in (estimate.low, estimate.high))
    return f"{number(estimate.value, 3)} [{low}, {high}]"


def objective_text(name: str | None) -> str:
    """Its name and what it says of itself."""
    if name is None:
        return "given in Python"
    try:
        return f"{name}: {find_objective(name).description}"
    except (TunerError, ImportError):
        return name  # a report can be written where the objective is not installed


def budget_text(budget: Budget) -> str:
    """The amounts, as alternatives."""
    amounts = [(budget.trials, "trial"), (budget.epochs, "epoch"), (budget.seconds, "second")]
    return " or ".join(plural(n, unit) for n, unit in amounts if n is not None) or "none"


def component(settings: Any) -> str:
    """A sampler or pruner with what is not its default."""
    given = settings.model_dump(mode="json", exclude_defaults=True)
    given.pop("name", None)
    return f"{settings.name} ({assignments(given)})" if given else str(settings.name)


def overrides(arm: Arm) -> str:
    """What an arm gives besides sampler and pruner."""
    given = arm.model_dump(
        mode="json",
        by_alias=True,
        exclude_defaults=True,
        exclude={"name", "sampler", "pruner", "fixed", "space"},
    )
    space = [f"{name} in {range_text(parameter)}" for name, parameter in arm.space.items()]
    return ", ".join([part for part in (assignments(given), assignments(arm.fixed)) if part] + space)


def assignments(values: Mapping[str, Any]) -> str:
    """name = value, in a row."""
    return ", ".join(f"{name} = {value_text(value)}" for name, value in values.items())


def range_text(parameter: AnyParameter) -> str:
    """The values that a parameter can have."""
    if isinstance(parameter, CategoricalParameter):
        return ", ".join(map(value_text, parameter.choices))
    step = f" in steps of {parameter.step:g}" if parameter.step not in (None, 1) else ""
    return f"[{parameter.low:g}, {parameter.high:g}]{step}"


def scale_text(parameter: AnyParameter) -> str:
    """The scale on which it is searched."""
    if isinstance(parameter, CategoricalParameter):
        return NONE
    return (
        "reverse log (1 − value is log-uniform)"
        if parameter.scale_name == "reverse_log"
        else parameter.scale_name
    )


def parameter_value(params: Mapping[str, Any], name: str, space: Space) -> str:
    """A parameter's value; on a reverse-log scale with three digits of what is missing to 1."""
    if name not in params:
        return NONE
    parameter = space.root.get(name)
    if isinstance(parameter, FloatParameter) and parameter.scale_name == "reverse_log" and params[name] < 1:
        return f"{params[name]:.{max(2 - math.floor(math.log10(1 - params[name])), 0)}f}"  # 3 digits of 1 − value
    return value_text(params[name])
