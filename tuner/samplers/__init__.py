"""The samplers by name. Each entry is its own settings model: what TOML, HTTP and Python write as `sampler`.

Adding one means a settings class here and its name in `AnySampler`; the conformance suites find it there.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias, get_args

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from tuner.errors import DefinitionError, MissingDependencyError
from tuner.explain import near_miss
from tuner.samplers.coarse_to_fine import CoarseToFineSampler, Inside, explain_trial, stage_lengths
from tuner.samplers.grid import GridSampler, fit_levels
from tuner.samplers.local_gp import BOXES, ZoomOptions
from tuner.samplers.population import ENDED, ENDED_WITH, Generations, PopulationSampler, Segment, segment_of
from tuner.samplers.sobol import SobolSampler
from tuner.samplers.tiers import TierSampler, tier_lengths
from tuner.samplers.view import (
    BoxLens,
    HeldWrites,
    Lens,
    LensSampler,
    OrderedLens,
    ReverseLogLens,
    SeenTrials,
    StudyView,
    ViewSampler,
)
from tuner.space import CategoricalParameter, Space

__all__ = [
    "BOXES",
    "ENDED",
    "ENDED_WITH",
    "SAMPLERS",
    "AnySampler",
    "BoxLens",
    "CoarseToFineSampler",
    "Generations",
    "GridSampler",
    "HeldWrites",
    "Lens",
    "LensSampler",
    "OrderedLens",
    "PopulationSampler",
    "PopulationSettings",
    "ReverseLogLens",
    "SamplerContext",
    "SeenTrials",
    "Segment",
    "SobolSampler",
    "StudyView",
    "TierSampler",
    "ViewSampler",
    "ZoomOptions",
    "able",
    "build_sampler",
    "explain_trial",
    "segment_of",
]


@dataclass(frozen=True, slots=True)
class SamplerContext:
    """What a sampler may know of its study before the first trial.

    `trials` is the budget, None if unlimited; `defaults` are the objective's, where the space has them. `adjustable`
    are the hyperparameters that the objective can change while it trains; None where no objective is named.
    """

    space: Space
    seed: int
    trials: int | None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    adjustable: Collection[str] | None = None


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @model_serializer(mode="wrap")
    def _with_name(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # the name tells which settings these are, so it stays even where defaults are left out
        return {"name": type(self).model_fields["name"].default, **write(self)}

    conditions: ClassVar[bool] = True
    """Whether it copes with parameters that are active only under a condition."""
    several_objectives: ClassVar[bool] = False
    """Whether it copes with more than one objective."""
    by_priority: ClassVar[bool] = True
    """Whether it can tune tier by tier."""
    parallel: ClassVar[bool] = True
    """Whether it takes running trials into account, or needs not: workers never get the same work."""

    stages: Literal["by-priority"] | None = Field(
        default=None,
        description="by-priority: tune priority 1 first with the others at their defaults, then free 2, then 3.",
    )

    def build(self, context: SamplerContext) -> BaseSampler:
        """The sampler, blind to reverse-log scales; `build_sampler` puts it behind the view."""
        raise NotImplementedError

    def capacity(self, context: SamplerContext) -> int | None:
        """How many trials it has points for; None without end."""
        return None


class GridSettings(_Settings):
    """Every point of a grid once, in shuffled order."""

    conditions: ClassVar[bool] = False
    by_priority: ClassVar[bool] = False
    several_objectives: ClassVar[bool] = True
    name: Literal["grid"] = "grid"
    levels: dict[str, Annotated[list[str | int | float | bool | None], Field(max_length=1024)]] | None = (
        Field(
            default=None,
            description="Values by parameter; by default as many as the budget of trials allows, evenly on each scale.",
        )
    )

    def build(self, context: SamplerContext) -> GridSampler:
        """The grid.

        Raises:
            DefinitionError: levels that the space does not allow, or no budget to fit them to.
        """
        return GridSampler(self._levels(context), seed=context.seed)

    def capacity(self, context: SamplerContext) -> int:
        """The number of points."""
        return self.build(context).capacity

    def _levels(self, context: SamplerContext) -> dict[str, list[Any]]:
        _require_space(self.name, context)
        if self.levels is None:
            if context.trials is None:
                raise DefinitionError("a grid needs budget.trials to fit its levels to, or sampler.levels")
            return fit_levels(context.space, context.trials)
        missing = [name for name in context.space if name not in self.levels]
        if missing:
            raise DefinitionError(f"sampler.levels must name every parameter; {', '.join(missing)} missing")
        for name, values in self.levels.items():
            for i, value in enumerate(values):
                context.space.check({name: value})
                if value in values[:i]:
                    raise DefinitionError(
                        f"sampler.levels.{name} must differ from each other; {value!r} is there twice"
                    )
        return {name: list(values) for name, values in self.levels.items()}


def _require_space(name: str, context: SamplerContext) -> None:
    if not len(context.space):
        raise DefinitionError(f"sampler {name!r} lays its points over the space, and the space is empty")


class RandomSettings(_Settings):
    """Independent uniform draws on each parameter's scale."""

    several_objectives: ClassVar[bool] = True
    name: Literal["random"] = "random"

    def build(self, context: SamplerContext) -> BaseSampler:
        """Optuna's random sampler."""
        return optuna.samplers.RandomSampler(context.seed)


class SobolSettings(_Settings):
    """Scrambled Sobol points: uniform draws that keep away from each other."""

    several_objectives: ClassVar[bool] = True
    name: Literal["sobol"] = "sobol"

    def build(self, context: SamplerContext) -> BaseSampler:
        """The sequence with a dimension for each parameter of the space.

        Raises:
            DefinitionError: the space is empty.
        """
        _require_space(self.name, context)
        return SobolSampler(list(context.space), seed=context.seed)


class TPESettings(_Settings):
    """Tree-structured Parzen estimator (Bergstra et al. 2011), Optuna's default."""

    several_objectives: ClassVar[bool] = True
    name: Literal["tpe"] = "tpe"
    startup_trials: Annotated[int, Field(ge=0)] = Field(
        default=10, description="Random trials before the model."
    )
    candidates: Annotated[int, Field(ge=1, le=100_000)] = Field(
        default=24, description="Candidates per choice, of which the best expected one is taken."
    )
    multivariate: bool | None = Field(
        default=None, description="Model parameters jointly; null leaves it to Optuna."
    )

    def build(self, context: SamplerContext) -> BaseSampler:
        """Optuna's TPE."""
        return optuna.samplers.TPESampler(
            n_startup_trials=self.startup_trials,
            n_ei_candidates=self.candidates,
            multivariate=self.multivariate,
            seed=context.seed,
        )


class _ColdGPSampler(optuna.samplers.GPSampler):
    """Optuna's, fitted from the same start in each trial: what it fitted before, a restarted process cannot know."""

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._gprs_cache_list = None
        self._constraints_gprs_cache_list = None
        super().before_trial(study, trial)


class GPSettings(_Settings):
    """Gaussian process with expected improvement, Optuna's; for expensive trainings. Needs PyTorch."""

    several_objectives: ClassVar[bool] = True
    name: Literal["gp"] = "gp"
    startup_trials: Annotated[int, Field(ge=1)] = Field(
        default=10, description="Random trials before the model."
    )

    def build(self, context: SamplerContext) -> BaseSampler:
        """Optuna's GP.

        Raises:
            MissingDependencyError: PyTorch is not installed.
        """
        if importlib.util.find_spec("torch") is None:
            raise MissingDependencyError(
                "sampler 'gp' needs PyTorch, which is not installed: pip install 'tuner[gp]'"
            )
        return _ColdGPSampler(
            n_startup_trials=self.startup_trials, seed=context.seed, warn_independent_sampling=False
        )


class CmaEsSettings(_Settings):
    """Covariance matrix adaptation (Hansen), for continuous spaces; categorical parameters are drawn at random."""

    conditions: ClassVar[bool] = False
    name: Literal["cma-es"] = "cma-es"
    startup_trials: Annotated[int, Field(ge=1)] = Field(
        default=1, description="Random trials before the first generation."
    )
    population: Annotated[int, Field(ge=3, le=10_000)] | None = Field(
        default=None, description="Trials a generation; by default 4 + 3 log(parameters)."
    )

    def build(self, context: SamplerContext) -> BaseSampler:
        """Optuna's CMA-ES."""
        return optuna.samplers.CmaEsSampler(
            n_startup_trials=self.startup_trials,
            popsize=self.population,
            seed=context.seed,
            warn_independent_sampling=False,
        )


Lengths: TypeAlias = Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]


class CoarseToFineSettings(_Settings):
    """The whole range first, then inside a box around the best point that narrows with success."""

    several_objectives: ClassVar[bool] = True
    name: Literal["coarse-to-fine"] = "coarse-to-fine"
    inside: Inside = Field(
        default="local-gp", description="Who chooses inside the box: a Gaussian process, chance, or TPE."
    )
    box: Literal["adaptive", "stages"] = Field(
        default="adaptive",
        description="adaptive follows success and failure; stages are the course's own: the best points span it.",
    )
    stages: Literal["by-priority"] | Lengths | None = Field(  # type: ignore[assignment]  # wider than for the others
        default=None,
        description="Lengths in trials, the last one repeating, for box = 'stages' (by default 50, 30 and 20% of the "
        "budget); or by-priority, as for any sampler.",
    )
    best: Annotated[int, Field(ge=2)] = Field(
        default=5, description="With stages: how many of the best points span the box."
    )
    padding: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=0.25,
        description="With stages: how far the box reaches beyond them, in shares of their extent.",
    )
    everywhere: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.4, description="Share of the trials that look at the whole space; not with stages."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self._has_stages and self.inside in ("local-gp", "sobol"):
            raise DefinitionError(f"stages need inside = 'random' or 'tpe'; got inside={self.inside!r}")
        return self

    def build(self, context: SamplerContext) -> BaseSampler:
        """The zoom."""
        if not self._has_stages:
            options = ZoomOptions(everywhere=self.everywhere)
            return CoarseToFineSampler(inside=self.inside, seed=context.seed, options=options)
        default = stage_lengths(context.trials) if context.trials else (20, 12, 8)
        return CoarseToFineSampler(
            inside=self.inside,
            stages=self.stages if isinstance(self.stages, list) else default,
            best=self.best,
            padding=self.padding,
            seed=context.seed,
        )

    @property
    def _has_stages(self) -> bool:
        return self.box == "stages" or isinstance(self.stages, list)


class PopulationSettings(_Settings):
    """Population-based training (Jaderberg et al. 2017): trials are segments of trainings; bad ones copy good ones."""

    by_priority: ClassVar[bool] = False
    name: Literal["population-based"] = "population-based"
    population: Annotated[int, Field(ge=2, le=10_000)] = Field(
        default=8, description="Trainings that go on side by side; each begins at a random point."
    )
    interval: Annotated[int, Field(ge=1)] = Field(
        default=5, description="Epochs of a trial: after so many a training may copy another."
    )
    quantile: Annotated[float, Field(gt=0, le=0.5)] = Field(
        default=0.25, description="Share of a generation that is left, and share that is copied."
    )
    step: Annotated[float, Field(gt=0, le=0.5)] = Field(
        default=0.1, description="How far an explored parameter moves, as a share of its range on its scale."
    )
    resample: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.25, description="Probability that it is drawn anew instead."
    )
    explore: Annotated[list[str], Field(min_length=1)] | None = Field(
        default=None,
        description="Parameters that change while a network trains; by default all that the objective can adjust.",
    )

    def build(self, context: SamplerContext) -> PopulationSampler:
        """The population.

        Raises:
            DefinitionError: there is nothing to explore, or what is to be explored cannot be.
        """
        return PopulationSampler(
            explore=self.explored(context),
            lenses=_lenses(context.space),
            population=self.population,
            quantile=self.quantile,
            step=self.step,
            resample=self.resample,
            seed=context.seed,
        )

    def capacity(self, context: SamplerContext) -> None:
        """Without end; checks what is explored."""
        self.explored(context)

    def explored(self, context: SamplerContext) -> list[str]:
        """The parameters that are explored.

        Raises:
            DefinitionError: there is none, or one that cannot be.
        """
        space, can = context.space, context.adjustable
        conditions = {name for _, parameter in space.items() for name in parameter.when}
        it_can = f"it can: {', '.join(sorted(can or ())) or 'nothing'}"
        for name in self.explore or ():
            if name not in space:
                raise DefinitionError(
                    f"sampler.explore: {name!r} is not in the space{near_miss(name, space)}; "
                    f"it has: {', '.join(space)}"
                )
            if name in conditions:
                raise DefinitionError(
                    f"sampler.explore: {name!r} decides which parameters there are (when), "
                    "so it cannot change while a network trains"
                )
            if can is not None and name not in can:
                raise DefinitionError(
                    f"sampler.explore: the objective cannot adjust {name!r} while it trains; {it_can}"
                )
        names = self.explore or [n for n in space if n not in conditions and (can is None or n in can)]
        if not names:
            raise DefinitionError(
                f"sampler {self.name!r} needs a parameter in the space that the objective can adjust while it "
                f"trains; {it_can}"
            )
        return names


AnySampler: TypeAlias = Annotated[
    GridSettings
    | RandomSettings
    | SobolSettings
    | TPESettings
    | GPSettings
    | CmaEsSettings
    | CoarseToFineSettings
    | PopulationSettings,
    Field(discriminator="name"),
]

SAMPLERS: dict[str, type[_Settings]] = {
    settings.model_fields["name"].default: settings for settings in get_args(get_args(AnySampler)[0])
}


def able(capability: Literal["conditions", "several_objectives", "by_priority", "parallel"]) -> list[str]:
    """The names of the samplers that declare a capability."""
    return [name for name, settings in SAMPLERS.items() if getattr(settings, capability)]


def build_sampler(settings: AnySampler, context: SamplerContext) -> LensSampler:
    """The sampler of these settings, on the scales of the space, repeatable from the seed.

    Raises:
        DefinitionError: the settings do not go with the space or the budget.
    """
    viewed = _viewed(settings, context)
    if settings.stages != "by-priority":
        return viewed
    priorities = {name: parameter.priority for name, parameter in context.space.items()}
    middles = {name: parameter.middle for name, parameter in context.space.items()}
    lengths = tier_lengths(context.trials, len(set(priorities.values())))
    return TierSampler(
        viewed, priorities=priorities, defaults=middles | dict(context.defaults), lengths=lengths
    )


def _viewed(settings: AnySampler, context: SamplerContext) -> ViewSampler:
    inner = settings.build(context)
    if isinstance(
        inner, (GridSampler, PopulationSampler)
    ):  # they choose values, having laid out the scales themselves
        return ViewSampler(inner, seed=context.seed)
    lenses = _lenses(context.space)
    reverse_log = {name for name, lens in lenses.items() if isinstance(lens, ReverseLogLens)}
    return ViewSampler(inner, reverse_log=reverse_log, ordered=lenses.keys() - reverse_log, seed=context.seed)


def _lenses(space: Space) -> dict[str, Lens]:
    """The scales that Optuna does not know, by parameter."""
    lenses: dict[str, Lens] = {}
    for name, parameter in space.items():
        if isinstance(parameter, CategoricalParameter):
            if parameter.ordered:
                lenses[name] = OrderedLens()
        elif parameter.scale_name == "reverse_log":
            lenses[name] = ReverseLogLens()
    return lenses
