"""The search space: named parameters, each with a scale, a priority and perhaps a condition.

The models here *are* the definition document's `[space.*]` tables: what TOML, HTTP and Python write is checked in
one place. `distribution` is what the database holds; scales the database does not know (reverse-log) are shown to
samplers through `tuner.samplers.view`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Annotated, Any, Literal, Self, TypeAlias

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic import BaseModel, ConfigDict, Discriminator, Field, RootModel, Tag, model_validator

from tuner.errors import DefinitionError
from tuner.explain import near_miss
from tuner.scales import ScaleName, from_reversed, from_unit, make_scale, reversed_distribution

__all__ = [
    "PARAMETER_TYPES",
    "CategoricalParameter",
    "Choice",
    "FloatParameter",
    "IntParameter",
    "Parameter",
    "Priority",
    "Space",
    "parameter_type",
]

Choice: TypeAlias = str | int | Annotated[float, Field(allow_inf_nan=False)] | bool | None
Priority: TypeAlias = Literal[1, 2, 3]

EXACT_INTEGER = 2**53
"""Databases keep parameters as doubles; beyond this an integer would lose digits."""

ParameterName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]{0,127}$")]


class _Parameter(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    priority: Priority = Field(
        default=2,
        description="In which tier it is worth tuning: 1 first (learning rate), 2 then, 3 last.",
    )
    when: dict[str, Choice | list[Choice]] = Field(
        default={},
        description="Active only if each parameter named here has the value (or one of the values) given.",
    )

    @property
    def middle(self) -> Any:
        """The value in the middle of the scale; of choices without order the first one."""
        return self.levels(1)[0]

    def levels(self, count: int) -> list[Any]:
        """At most `count` values that stand for all."""
        raise NotImplementedError

    def is_active(self, params: Mapping[str, Any]) -> bool:
        """Whether the conditions hold, given the values of the parameters before it."""
        return all(
            name in params and params[name] in (wanted if isinstance(wanted, list) else [wanted])
            for name, wanted in self.when.items()
        )


class FloatParameter(_Parameter):
    """A real number in [low, high]."""

    type: Literal["float"] = "float"
    low: Annotated[float, Field(allow_inf_nan=False, description="Lower end, included.")]
    high: Annotated[float, Field(allow_inf_nan=False, description="Upper end, included.")]
    scale_name: ScaleName = Field(
        default="linear",
        alias="scale",
        description="linear, log, or reverse_log (log-uniform in 1 − value).",
    )
    step: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        default=None, description="Only low + k·step are tried; not with a log scale."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_range(self.low, self.high)
        if self.step is not None:
            if self.scale_name == "log":
                raise DefinitionError(
                    f"step needs scale = 'linear' or 'reverse_log'; got scale={self.scale_name!r}"
                )
            if self.low + self.step > self.high:
                raise DefinitionError(
                    f"step needs low + step <= high; got low={self.low}, step={self.step}, high={self.high}"
                )
            if (self.high - self.low) / self.step > EXACT_INTEGER:
                raise DefinitionError(f"step makes more than 2^53 values; got step={self.step}")
        if not math.isfinite(self.high - self.low):
            raise DefinitionError(f"the range is too wide; got low={self.low}, high={self.high}")
        make_scale(self.scale_name, self.low, self.high)
        return self

    @property
    def size(self) -> int | None:
        """How many distinct values there are; None where they are a continuum."""
        if self.step is None:
            return None
        return int((_decimal(self.high) - _decimal(self.low)) // _decimal(self.step)) + 1

    @property
    def distribution(self) -> FloatDistribution:
        """What the database holds: the value itself; reverse-log parameters are linear there."""
        high = self.high
        if self.step is not None and self.size is not None:  # Optuna would cut the range with a warning
            high = float(_decimal(self.low) + _decimal(self.step) * (self.size - 1))
        return FloatDistribution(self.low, high, log=self.scale_name == "log", step=self.step)

    def levels(self, count: int) -> list[float]:
        """At most `count` values, at the middles of `count` equal cells of the scale, ascending."""
        return list(_levels(self.distribution, self.scale_name, count))


class IntParameter(_Parameter):
    """A whole number in [low, high]."""

    type: Literal["int"]
    low: Annotated[int, Field(ge=-EXACT_INTEGER, le=EXACT_INTEGER, description="Lower end, included.")]
    high: Annotated[int, Field(ge=-EXACT_INTEGER, le=EXACT_INTEGER, description="Upper end, included.")]
    scale_name: ScaleName = Field(
        default="linear",
        alias="scale",
        description="linear, log, or reverse_log (log-uniform in 1 + the steps below high).",
    )
    step: Annotated[int, Field(ge=1)] = Field(
        default=1, description="Only low + k·step are tried; 1 with a log scale."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_range(self.low, self.high)
        if self.scale_name == "log":
            if self.low < 1:
                raise DefinitionError(f"log scale of an integer needs low >= 1; got low={self.low}")
            if self.step != 1:
                raise DefinitionError(f"log scale of an integer needs step = 1; got step={self.step}")
        if self.low + self.step > self.high and self.step > 1:
            raise DefinitionError(
                f"step needs low + step <= high; got low={self.low}, step={self.step}, high={self.high}"
            )
        return self

    @property
    def size(self) -> int:
        """How many distinct values there are."""
        return (self.high - self.low) // self.step + 1

    @property
    def distribution(self) -> IntDistribution:
        """What the database holds."""
        high = self.low + self.step * (self.size - 1)
        return IntDistribution(self.low, high, log=self.scale_name == "log", step=self.step)

    def levels(self, count: int) -> list[int]:
        """At most `count` values, at the middles of `count` equal cells of the scale, ascending."""
        return list(_levels(self.distribution, self.scale_name, count))


class CategoricalParameter(_Parameter):
    """One of a list of choices, without order unless `ordered` says so."""

    choices: Annotated[list[Choice], Field(min_length=1, max_length=1024)] = Field(
        description="The values to choose from: strings, numbers, true, false."
    )
    type: Literal["categorical"] = "categorical"
    ordered: bool = Field(
        default=False,
        description="The choices are in order: samplers then see their places, and neighbours as near.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        seen: list[Choice] = []
        for choice in self.choices:
            if isinstance(choice, float) and not math.isfinite(choice):
                raise DefinitionError(f"choices must be finite; got {choice!r}")
            if isinstance(choice, str) and ("\0" in choice or len(choice) > 512):
                raise DefinitionError("a choice is at most 512 characters long and holds no NUL")
            if choice in seen:
                raise DefinitionError(f"choices must differ from each other; {choice!r} is there twice")
            seen.append(choice)
        return self

    @property
    def size(self) -> int:
        """How many choices there are."""
        return len(self.choices)

    @property
    def distribution(self) -> CategoricalDistribution:
        """What the database holds."""
        return CategoricalDistribution(tuple(self.choices))

    def levels(self, count: int) -> list[Choice]:
        """All choices; at most `count`, evenly spread, where they have an order along which some stand for others."""
        if not self.ordered:
            return list(self.choices)
        places = IntDistribution(0, len(self.choices) - 1)
        return [self.choices[i] for i in sorted({from_unit(places, unit) for unit in _cell_middles(count)})]


PARAMETER_TYPES: dict[str, type[BaseModel]] = {
    "float": FloatParameter,
    "int": IntParameter,
    "categorical": CategoricalParameter,
}


def parameter_type(table: Any) -> str | None:
    """Which model a `[space.*]` table means: by its `type`; else choices make it categorical, else float."""
    if isinstance(table, _Parameter):
        return str(table.type)  # type: ignore[attr-defined]  # each of the three has it
    if not isinstance(table, Mapping):
        return None
    kind = table.get("type", "categorical" if "choices" in table else "float")
    return kind if isinstance(kind, str) and kind in PARAMETER_TYPES else None


Parameter: TypeAlias = Annotated[
    Annotated[FloatParameter, Tag("float")]
    | Annotated[IntParameter, Tag("int")]
    | Annotated[CategoricalParameter, Tag("categorical")],
    Discriminator(
        parameter_type,
        custom_error_type="parameter_type",
        custom_error_message=(
            "a parameter is a table with type = 'float' (low, high), 'int' (low, high) "
            "or 'categorical' (choices)"
        ),
    ),
]


class Space(RootModel[dict[ParameterName, Parameter]]):
    """Parameters by name, in the order in which they are chosen: a condition names earlier ones only."""

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.root) > 256:
            raise DefinitionError(f"a space has at most 256 parameters; got {len(self.root)}")
        earlier: set[str] = set()
        for name, parameter in self.root.items():
            for other in parameter.when:
                if other not in earlier:
                    raise DefinitionError(
                        f"{name}.when names {other!r}, which is no parameter before it; "
                        f"earlier ones: {', '.join(sorted(earlier)) or 'none'}"
                    )
                known = self.root[other]
                wanted = parameter.when[other]
                for value in wanted if isinstance(wanted, list) else [wanted]:
                    if isinstance(known, CategoricalParameter) and value not in known.choices:
                        raise DefinitionError(
                            f"{name}.when wants {other} = {value!r}, which is none of its choices: {known.choices}"
                        )
            earlier.add(name)
        return self

    def __iter__(self) -> Iterator[str]:  # type: ignore[override]  # a mapping's, not a model's
        return iter(self.root)

    def __getitem__(self, name: str) -> FloatParameter | IntParameter | CategoricalParameter:
        return self.root[name]

    def __len__(self) -> int:
        return len(self.root)

    def items(self) -> Iterator[tuple[str, FloatParameter | IntParameter | CategoricalParameter]]:
        """Names and parameters, in order."""
        yield from self.root.items()

    @property
    def is_conditional(self) -> bool:
        """Whether some parameter is active only under a condition."""
        return any(parameter.when for parameter in self.root.values())

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """What the database holds, by name."""
        return {name: parameter.distribution for name, parameter in self.root.items()}

    def allows(self, name: str, value: Any) -> bool:
        """Whether the space has this parameter, and it may have this value."""
        try:
            self.check({name: value})
        except DefinitionError:
            return False
        return True

    def check(self, params: Mapping[str, Any]) -> None:
        """Check a hand-chosen point: known names, legal values; any subset of the parameters may be given.

        Raises:
            DefinitionError: the first rule that is broken, with the name and the value.
        """
        for name, value in params.items():
            if name not in self.root:
                raise DefinitionError(
                    f"{name!r} is not in the space{near_miss(name, self.root)}; it has: {', '.join(self.root)}"
                )
            _check_value(name, self.root[name], value)


def _check_value(
    name: str, parameter: FloatParameter | IntParameter | CategoricalParameter, value: Any
) -> None:
    if isinstance(parameter, CategoricalParameter):
        if not any(value == c and type(value) is type(c) for c in parameter.choices):
            raise DefinitionError(f"{name} must be one of {parameter.choices}; got {value!r}")
        return
    wanted = int if isinstance(parameter, IntParameter) else (int, float)
    if isinstance(value, bool) or not isinstance(value, wanted):
        raise DefinitionError(f"{name} must be a number of type {parameter.type}; got {value!r}")
    if not parameter.distribution._contains(float(value)):
        stepped = f" in steps of {parameter.step}" if parameter.step not in (None, 1) else ""
        raise DefinitionError(
            f"{name} must lie in [{parameter.low}, {parameter.high}]{stepped}; got {value!r}"
        )


def _decimal(value: float) -> Decimal:
    """The decimal number that `value` is written as: 3 × 0.3 = 0.9, which doubles do not know."""
    return Decimal(repr(value))


@lru_cache(maxsize=8)  # a million take seconds, and are asked for again whenever a definition is read
def _levels(
    distribution: FloatDistribution | IntDistribution, scale: ScaleName, count: int
) -> tuple[Any, ...]:
    if scale == "reverse_log":
        seen = reversed_distribution(distribution)
        return tuple(sorted({from_reversed(distribution, from_unit(seen, u)) for u in _cell_middles(count)}))
    return tuple(sorted({from_unit(distribution, unit) for unit in _cell_middles(count)}))


def _cell_middles(count: int) -> list[float]:
    return [(i + 0.5) / count for i in range(count)]


def _check_range(low: float, high: float) -> None:
    if low > high:
        raise DefinitionError(f"the range is empty: it needs low <= high; got low={low}, high={high}")
