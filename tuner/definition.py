"""The definition document: one study, or a comparison of arms over seeds.

The same pydantic models are the TOML file in `studies/`, the JSON body over HTTP, and the object in Python. Unknown
keys are refused; every error names the key, the rule and the value.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from objectives.epoch import Hyperparameter, Objective
from tuner.catalogue import find_objective, known_metrics
from tuner.errors import DefinitionError, NotFoundError
from tuner.explain import explain_all, near_miss
from tuner.pruners import PRUNERS, AnyPruner, NoneSettings
from tuner.samplers import SAMPLERS, AnySampler, PopulationSettings, SamplerContext, TPESettings, able
from tuner.space import PARAMETER_TYPES, CategoricalParameter, Choice, Parameter, Space, parameter_type

__all__ = [
    "MOST_OBJECTIVES",
    "OWN_VALUE",
    "SPENT",
    "Arm",
    "Budget",
    "Comparison",
    "ComparisonDefinition",
    "Member",
    "NamedObjective",
    "StudyDefinition",
    "find_definition",
    "load_definition",
    "require_one_objective",
    "studies_folders",
]

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Seed: TypeAlias = Annotated[int, Field(ge=0, lt=2**32)]


MOST_SEEDS = 10_000

MOST_OBJECTIVES = 8
"""Of more, nearly every trial is on the front."""

OWN_VALUE = "value"
"""The name of an objective that is what the training calls its value, not one of its metrics."""

SPENT = ("epochs", "training_seconds")
"""Names of objectives that are what the trial has spent."""

Direction: TypeAlias = Literal["minimize", "maximize"]


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Budget(_Document):
    """What a study may spend. Any of the three; the first one used up ends the study."""

    trials: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Trials, however they end: completed, pruned or failed."
    )
    epochs: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Epochs over all trials, pruned ones included."
    )
    seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        default=None, description="Seconds of training over all trials, whatever ran at the same time."
    )


class NamedObjective(_Document):
    """One of several objectives: what is tuned, and what is good about it."""

    name: Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,128}$")] = Field(
        description="A metric of the training's epochs, of which the last counts; `value`, what it would tune alone; "
        "`epochs` or `training_seconds`, what it took. A plain function returns them in this order."
    )
    direction: Direction = Field(default="minimize", description="What is good about it.")


class StudyDefinition(_Document):
    """One study: what is tuned, over which space, by which sampler and pruner, within which budget."""

    name: Name = Field(description="Letters, digits, dot, dash, underscore; at most 128.")
    objective: str | None = Field(
        default=None,
        description="A registered objective (`tuner objectives` lists them); none for one given in Python.",
    )
    direction: Direction = Field(default="minimize", description="What is good about the value.")
    objectives: Annotated[list[NamedObjective], Field(max_length=MOST_OBJECTIVES)] = Field(
        default=[],
        description="Instead of one direction: two or more that are tuned at once, for their Pareto front, as "
        '`[{ name = "dev_error", direction = "minimize" }, { name = "parameters", direction = "minimize" }]`.',
    )
    seed: Seed = Field(default=0, description="All randomness derives from it and the trial's number.")
    budget: Budget = Field(default=Budget(), description="What the study may spend.")
    fixed: dict[str, Choice | list[Choice]] = Field(
        default={}, description="Hyperparameters passed to the objective as they are."
    )
    space: Space = Field(default=Space({}), description="The parameters to tune.")
    sampler: AnySampler = Field(default=TPESettings(), description="How points are chosen.")
    pruner: AnyPruner = Field(default=NoneSettings(), description="When a trial is stopped early.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in self.fixed:
            if name in self.space.root:
                raise DefinitionError(f"{name!r} is both in fixed and in space; it can be in one of them")
        if self.space.is_conditional and not self.sampler.conditions:
            raise DefinitionError(
                f"sampler {self.sampler.name!r} cannot cope with parameters under a condition (when); "
                f"these can: {', '.join(able('conditions'))}"
            )
        if self.sampler.stages == "by-priority" and not self.sampler.by_priority:
            raise DefinitionError(
                f"sampler {self.sampler.name!r} cannot tune by priority (stages); "
                f"these can: {', '.join(able('by_priority'))}"
            )
        if self.objectives:
            self._check_objectives()
        self.sampler.capacity(self.context)
        return self

    def _check_objectives(self) -> None:
        """What several objectives need, and what cannot be with them."""
        names = [objective.name for objective in self.objectives]
        if len(names) < 2:
            raise DefinitionError(
                f"objectives are two or more; got {names[0]!r} alone, and one is said by direction, without a name"
            )
        for name in names:
            if names.count(name) > 1:
                raise DefinitionError(f"objectives need different names; {name!r} is there twice")
        if self.direction != "minimize":
            raise DefinitionError(
                f"direction is that of one objective; of several each has its own: leave {self.direction!r} out"
            )
        if not isinstance(self.pruner, NoneSettings):
            raise DefinitionError(
                f"pruner {self.pruner.name!r} stops trials by one value, and there are {len(names)} objectives "
                f"({', '.join(names)}): leave the pruner out"
            )
        if not self.sampler.several_objectives:
            raise DefinitionError(
                f"sampler {self.sampler.name!r} cannot cope with several objectives ({', '.join(names)}); "
                f"these can: {', '.join(able('several_objectives'))}"
            )

    @property
    def directions(self) -> tuple[Direction, ...]:
        """What is good about each value that a trial is told with."""
        return tuple(objective.direction for objective in self.objectives) or (self.direction,)

    @property
    def context(self) -> SamplerContext:
        """What the sampler may know of the study."""
        known = self._hyperparameters()
        defaults = {h.name: h.default for h in known or () if self.space.allows(h.name, h.default)}
        adjustable = None if known is None else [h.name for h in known if h.adjustable]
        return SamplerContext(self.space, self.seed, self.budget.trials, defaults, adjustable)

    def _hyperparameters(self) -> tuple[Hyperparameter, ...] | None:
        """The objective's; None where it is not known by name."""
        try:
            return find_objective(self.objective).hyperparameters if self.objective else None
        except NotFoundError:  # `check_objective` says so, with the names there are
            return None

    @property
    def trials(self) -> int | None:
        """How many trials there can be: the budget's, or fewer where the sampler has fewer points."""
        limits = [self.budget.trials, self.sampler.capacity(self.context)]
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def study(self) -> StudyDefinition:
        """The study without a comparison around it."""
        return StudyDefinition.model_validate(
            {name: getattr(self, name) for name in StudyDefinition.model_fields}
        )

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The definition in a TOML or JSON file. As a plain study, a comparison's base is what is loaded.

        Raises:
            NotFoundError: there is no such file.
            DefinitionError: the file breaks a rule; the text names file, key, rule and value.
        """
        definition = load_definition(path)
        if cls is StudyDefinition:
            return cast("Self", definition.study)
        if not isinstance(definition, cls):
            raise DefinitionError(f"{path}: has no [comparison], so it defines no comparison but one study")
        return definition

    @classmethod
    def parse(cls, document: Mapping[str, Any], source: str = "definition") -> Self:
        """The definition in a document of plain dicts, lists and scalars, as read from TOML or JSON.

        Raises:
            DefinitionError: a line for each broken rule, with `source`, key, rule and value.
        """
        try:
            definition = cls.model_validate(document)
        except ValidationError as error:
            mistakes = explain_all(error.errors(include_url=False), document, _model_of)
            raise DefinitionError("\n".join(f"{source}: {mistake}" for mistake in mistakes)) from None
        try:
            definition.check_objective()
        except (DefinitionError, NotFoundError) as error:
            raise DefinitionError(f"{source}: {error}") from None
        return definition

    def dump(self, *, full: bool = False) -> dict[str, Any]:
        """The document: what `parse` reads, in plain types; defaults left out unless it is to be `full`."""
        dumped: dict[str, Any] = self.model_dump(mode="json", by_alias=True, exclude_defaults=not full)
        return dumped

    def check_objective(self) -> None:
        """Check names and values against what the named objective accepts, and the direction.

        Raises:
            NotFoundError: no objective of that name is installed.
            DefinitionError: it does not accept a name, a value or the direction.
        """
        if self.objective is None:
            return
        try:
            self.check_accepted_by(find_objective(self.objective))
        except NotFoundError as error:
            raise NotFoundError(f"objective: {error}") from None

    def check_accepted_by(self, objective: Objective) -> None:
        """Check names, values and direction against an objective.

        Raises:
            DefinitionError: it does not accept a name, a value or the direction.
        """
        _check_directions(objective, self)
        _check_accepted(objective, self.fixed, self.space)
        if isinstance(self.sampler, PopulationSettings):
            can = [h.name for h in objective.hyperparameters if h.adjustable]
            unable = [name for name in self.sampler.explored(self.context) if name not in can]
            if unable:
                raise DefinitionError(
                    f"sampler.explore: objective {objective.name!r} cannot adjust {', '.join(unable)} while it "
                    f"trains; name what it can: {', '.join(can) or 'nothing'}"
                )


class Arm(_Document):
    """One competitor. What it gives replaces the base's; `fixed` and `space` add to the base's, name by name.

    A name in the arm's `fixed` leaves the space, and the other way round.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,47}$")] = Field(
        description="Letters, digits, dash, underscore; at most 48."
    )
    objective: str | None = Field(default=None, description="Instead of the base's.")
    budget: Budget | None = Field(default=None, description="Instead of the base's.")
    fixed: dict[str, Choice | list[Choice]] = Field(default={}, description="Added to the base's.")
    space: dict[str, Parameter] = Field(default={}, description="Added to the base's.")
    sampler: AnySampler | None = Field(default=None, description="Instead of the base's.")
    pruner: AnyPruner | None = Field(default=None, description="Instead of the base's.")

    def apply(self, base: StudyDefinition, name: str, seed: int) -> StudyDefinition:
        """The arm's study with this name and seed."""
        fixed = {k: v for k, v in base.fixed.items() if k not in self.space} | self.fixed
        space = {k: v for k, v in base.space.items() if k not in self.fixed} | self.space
        return StudyDefinition(
            name=name,
            objective=self.objective or base.objective,
            direction=base.direction,
            seed=seed,
            budget=self.budget or base.budget,
            fixed=fixed,
            space=Space(space),
            sampler=self.sampler or base.sampler,
            pruner=self.pruner or base.pruner,
        )


class Comparison(_Document):
    """Arms over seeds, paired: seed k gives every arm the same split, initial weights and noise."""

    seeds: Annotated[int, Field(ge=1, le=MOST_SEEDS)] = Field(
        default=10, description="How many; seed k of n is the definition's seed + k."
    )
    arms: Annotated[list[Arm], Field(min_length=2, max_length=64)] = Field(description="The competitors.")
    targets: list[Annotated[float, Field(allow_inf_nan=False)]] = Field(
        default=[], description="Values of interest: when does each arm reach them?"
    )
    claim: str = Field(
        default="", description="What the comparison is to show, in a sentence; for `tuner evidence`."
    )
    expected: list[str | list[str]] = Field(
        default=[],
        description="By that claim: the arm that is better, then those that it is better than; a group of arms stands "
        "for each of its members.",
    )
    judge: Literal["dev", "test", "time-to-target", "spread", "metric"] = Field(
        default="dev",
        description="What decides: the best dev value, its test value, what was spent until the first target, the "
        "worst minus the best completed value (infinite if one failed), or a metric of the best trial.",
    )
    metric: str = Field(
        default="",
        description='Of the last epoch, as good or bad as `direction` says of the value; with `judge = "metric"`.',
    )
    matters: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        default=None,
        description="The smallest difference that matters: arms whose interval lies within it are equivalent.",
    )
    finding: Literal["ranking", "importance", "agreement", "interaction"] = Field(
        default="ranking",
        description="What the claim is about: which arm is better; which parameters matter; whether arms order the "
        "same points as the reference does; whether a difference of two arms shrinks from the first pair to the last.",
    )
    reference: str = Field(default="", description='The arm that is right; with `finding = "agreement"`.')
    test_repeats: Annotated[int, Field(ge=0, le=100)] = Field(
        default=3,
        description="At the end each run's best point is trained so often with fresh seeds, for its test value.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [arm.name for arm in self.arms]
        self._check_expected(names)
        if self.judge == "test" and not self.test_repeats:
            raise DefinitionError("judge 'test' needs test_repeats of 1 or more; got 0")
        if self.judge == "time-to-target" and not self.targets:
            raise DefinitionError("judge 'time-to-target' needs targets; there are none")
        if (self.judge == "metric") != bool(self.metric):
            raise DefinitionError(
                f"metric goes with judge 'metric'; got judge {self.judge!r} and metric {self.metric!r}"
            )
        if (self.finding == "agreement") != bool(self.reference):
            raise DefinitionError(
                f"reference goes with finding 'agreement'; got finding {self.finding!r} and reference "
                f"{self.reference!r}"
            )
        if self.reference and self.reference not in names:
            raise DefinitionError(
                f"reference names an arm; there is no {self.reference!r} among {', '.join(names)}"
            )
        if self.finding == "interaction" and (len(names) < 4 or len(names) % 2):
            raise DefinitionError(
                f"finding 'interaction' needs two pairs of arms or more; got {len(names)} arms"
            )
        return self

    def _check_expected(self, names: Sequence[str]) -> None:
        expected = [name for group in self.groups for name in group]
        for name in expected:
            if name not in names:
                raise DefinitionError(f"expected names arms; there is no {name!r} among {', '.join(names)}")
        if self.expected and (
            len(self.groups) < 2 or not all(self.groups) or len(set(expected)) < len(expected)
        ):
            raise DefinitionError(f"expected needs two or more different arms; got {', '.join(expected)}")

    @property
    def groups(self) -> list[list[str]]:
        """What is expected, an arm by itself as a group of one: each of the first group is better than all others."""
        return [[group] if isinstance(group, str) else group for group in self.expected]


class Member(_Document):
    """One study of a comparison: an arm with a seed."""

    arm: str
    seed: int
    definition: StudyDefinition


class ComparisonDefinition(StudyDefinition):
    """A comparison: the base study, and what is compared."""

    comparison: Comparison = Field(
        description="What is compared; without this table the file defines one study."
    )

    @model_validator(mode="after")
    def _check_arms(self) -> Self:
        if len(self.name) > 64:
            raise DefinitionError(
                f"the name of a comparison has at most 64 characters; {self.name!r} has {len(self.name)}"
            )
        if self.objectives:
            raise DefinitionError(
                f"a comparison judges its arms by one value; objectives names {len(self.objectives)} "
                f"({', '.join(o.name for o in self.objectives)}): leave it out, or leave the comparison out"
            )
        names = [arm.name for arm in self.comparison.arms]
        for name in names:
            if names.count(name) > 1:
                raise DefinitionError(f"arms need different names; {name!r} is there twice")
        for arm in self.comparison.arms:
            member = self._member(arm, self.seed)
            if self.comparison.judge == "test" and isinstance(member.sampler, PopulationSettings):
                raise DefinitionError(
                    f"judge 'test' cannot judge arm {arm.name!r}: what a training of a population learned from others "
                    "cannot be repeated from one point"
                )
        return self

    @property
    def members(self) -> list[Member]:
        """All studies, seed by seed, so that the arms are interleaved."""
        return [
            Member(arm=arm.name, seed=seed, definition=self._member(arm, seed))
            for seed in range(self.seed, self.seed + self.comparison.seeds)
            for arm in self.comparison.arms
        ]

    def with_seeds(self, seeds: int) -> ComparisonDefinition:
        """The same comparison over another number of seeds.

        Raises:
            DefinitionError: `seeds` is not in 1 … 10000.
        """
        if not 1 <= seeds <= MOST_SEEDS:
            raise DefinitionError(f"seeds must lie in 1 … {MOST_SEEDS}; got {seeds}")
        comparison = self.comparison.model_copy(update={"seeds": seeds})
        return self.model_copy(update={"comparison": comparison})

    def check_objective(self) -> None:
        """Check every arm, see `StudyDefinition.check_objective`."""
        super().check_objective()
        for i, arm in enumerate(self.comparison.arms):
            try:
                member = self._member(arm, self.seed)
                member.check_objective()
                if self.comparison.judge == "test" and not _has_test_data(member.objective):
                    raise DefinitionError(
                        f"judge 'test' needs test data; objective {member.objective!r} has none"
                    )
            except (DefinitionError, NotFoundError) as error:
                raise DefinitionError(f"comparison.arms.{i} ({arm.name}): {error}") from None

    def _member(self, arm: Arm, seed: int) -> StudyDefinition:
        try:
            return arm.apply(self, f"{self.name}.{arm.name}.seed-{seed}", seed)
        except ValidationError as error:
            first = explain_all(error.errors(), {}, _model_of)[0]
            raise DefinitionError(f"arm {arm.name!r}: {first}") from None


def require_one_objective(definition: StudyDefinition, what: str) -> None:
    """Check that a study has one objective.

    Raises:
        DefinitionError: it has several.
    """
    if names := [objective.name for objective in definition.objectives]:
        raise DefinitionError(
            f"{definition.name}: {what} needs one objective; the study has {len(names)} ({', '.join(names)})"
        )


def _has_test_data(objective: str | None) -> bool:
    """Whether an objective keeps test data apart; one given in Python may."""
    return objective is None or hasattr(find_objective(objective), "test_metrics")


def load_definition(path: str | Path) -> StudyDefinition | ComparisonDefinition:
    """The study or comparison in a TOML (or .json) file; see `StudyDefinition.load`."""
    path = Path(path)
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        raise NotFoundError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DefinitionError(f"{path}: cannot be read: {error}") from None
    try:
        document = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # the parsers' own errors, and what they let through
        raise DefinitionError(f"{path}: not valid {path.suffix[1:].upper() or 'TOML'}: {error}") from None
    if not isinstance(document, dict):
        raise DefinitionError(f"{path}: a definition is a table of keys; got {type(document).__name__}")
    kind = ComparisonDefinition if "comparison" in document else StudyDefinition
    return kind.parse(document, str(path))


def studies_folders() -> list[Path]:
    """Where definitions are looked up by name: `studies` here, then the one that is installed with the package."""
    installed = Path(__file__).resolve().parent.parent / "studies"
    return [folder for folder in (Path("studies"), installed) if folder.is_dir()]


def find_definition(study: str) -> Path:
    """The file that `study` means: a path, or the name of a definition in `studies/`.

    Raises:
        NotFoundError: neither; the text lists the names there are.
    """
    if study.endswith((".toml", ".json")) or "/" in study:
        return Path(study)
    folders = studies_folders()
    for folder in folders:
        if (folder / f"{study}.toml").is_file():
            return folder / f"{study}.toml"
    known = sorted({path.stem for folder in folders for path in folder.glob("*.toml")})
    raise NotFoundError(
        f"no definition is named {study!r}{near_miss(study, known)}; "
        f"give the path of a TOML file or one of: {', '.join(known) or '(studies/ is empty)'}"
    )


def _check_directions(objective: Objective, definition: StudyDefinition) -> None:
    """Check what is tuned against what the objective's epochs have."""
    own = definition.direction if not definition.objectives else None
    known = known_metrics(objective)
    for wanted in definition.objectives:
        if wanted.name == OWN_VALUE:
            own = wanted.direction
        elif wanted.name not in SPENT and known is not None and wanted.name not in known:
            names = [OWN_VALUE, *known, *SPENT]
            raise DefinitionError(
                f"objectives: objective {objective.name!r} has no metric {wanted.name!r}"
                f"{near_miss(wanted.name, names)}; it has: {', '.join(names)}"
            )
    if own is not None and own != objective.direction:
        raise DefinitionError(
            f"direction: objective {objective.name!r} is to {objective.direction}; got {own!r}"
        )


def _check_accepted(objective: Objective, fixed: Mapping[str, Choice | list[Choice]], space: Space) -> None:
    accepted = {h.name: h for h in objective.hyperparameters}
    for table, names in (("fixed", list(fixed)), ("space", list(space))):
        for name in names:
            if name not in accepted:
                raise DefinitionError(
                    f"{table}.{name}: objective {objective.name!r} has no such hyperparameter"
                    f"{near_miss(name, accepted)}; it accepts: {', '.join(sorted(accepted))}"
                )
    try:
        for name, value in fixed.items():
            table = f"fixed.{name}"
            accepted[name].check(value)
        for name, parameter in space.items():
            table = f"space.{name}"
            ends = (
                parameter.choices
                if isinstance(parameter, CategoricalParameter)
                else (parameter.low, parameter.high)
            )
            for value in ends:
                accepted[name].check(value)
    except ValueError as error:
        raise DefinitionError(f"{table}: {error}") from None


def _model_of(path: Sequence[str | int], table: Mapping[str, Any]) -> type[BaseModel] | None:
    """The model of the table at `path` of a document; None where there is no table of fixed keys."""
    match list(path):
        case ["comparison", "arms", int(), *rest]:
            return _table_model(rest, table, Arm)
        case ["comparison"]:
            return Comparison
        case rest:
            return _table_model(rest, table, ComparisonDefinition)


def _table_model(
    path: Sequence[str | int], table: Mapping[str, Any], whole: type[BaseModel]
) -> type[BaseModel] | None:
    match path:
        case []:
            return whole
        case ["budget"]:
            return Budget
        case ["objectives", int()]:
            return NamedObjective
        case ["sampler"]:
            return SAMPLERS.get(str(table.get("name")))
        case ["pruner"]:
            return PRUNERS.get(str(table.get("name")))
        case ["space", _]:
            return PARAMETER_TYPES.get(str(parameter_type(table)))
    return None
