"""The stopping rules by name. Each entry is its own settings model: what TOML, HTTP and Python write as `pruner`.

Steps are epoch numbers from 1, so that `warmup_epochs = 3` never stops a trial in its first three epochs.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal, Self, TypeAlias, get_args

import optuna
from optuna.pruners import BasePruner
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from tuner.errors import DefinitionError

__all__ = ["PRUNERS", "AnyPruner"]

LARGEST = 2**31 - 1
"""Of an epoch's number, and of what is counted in epochs or trials: powers of larger ones take for ever."""

Count = Annotated[int, Field(ge=0, le=LARGEST)]
Positive = Annotated[int, Field(ge=1, le=LARGEST)]
Factor = Annotated[int, Field(ge=2, le=LARGEST)]
Rungs = Annotated[int, Field(ge=0, le=64)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @model_serializer(mode="wrap")
    def _with_name(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # the name tells which settings these are, so it stays even where defaults are left out
        return {"name": type(self).model_fields["name"].default, **write(self)}

    def build(self) -> BasePruner:
        """Optuna's pruner with these settings."""
        raise NotImplementedError


class NoneSettings(_Settings):
    """Never stop a trial."""

    name: Literal["none"] = "none"

    def build(self) -> BasePruner:
        """See `_Settings.build`."""
        return optuna.pruners.NopPruner()


class PercentileSettings(_Settings):
    """Stop a trial whose best value so far is outside the best `percentile` of earlier ones at the same epoch."""

    name: Literal["percentile"] = "percentile"
    percentile: Annotated[float, Field(ge=0, le=100)] = Field(description="How many per cent are kept.")
    startup_trials: Count = Field(default=5, description="Trials that run to the end before any is stopped.")
    warmup_epochs: Count = Field(default=0, description="Epochs in which no trial is stopped.")
    interval_epochs: Positive = Field(default=1, description="Epochs between two looks.")
    min_trials: Positive = Field(default=1, description="Trials needed at an epoch for a comparison.")

    def build(self) -> BasePruner:
        """See `_Settings.build`."""
        return optuna.pruners.PercentilePruner(
            self.percentile,
            n_startup_trials=self.startup_trials,
            n_warmup_steps=self.warmup_epochs + 1,  # Optuna compares step < n_warmup_steps; ours count from 1
            interval_steps=self.interval_epochs,
            n_min_trials=self.min_trials,
        )


class MedianSettings(_Settings):
    """Stop a trial whose best value so far is worse than the median of earlier ones at the same epoch."""

    name: Literal["median"] = "median"
    startup_trials: Count = Field(default=5, description="Trials that run to the end before any is stopped.")
    warmup_epochs: Count = Field(default=0, description="Epochs in which no trial is stopped.")
    interval_epochs: Positive = Field(default=1, description="Epochs between two looks.")
    min_trials: Positive = Field(default=1, description="Trials needed at an epoch for a comparison.")

    def build(self) -> BasePruner:
        """See `_Settings.build`."""
        return optuna.pruners.MedianPruner(
            n_startup_trials=self.startup_trials,
            n_warmup_steps=self.warmup_epochs + 1,
            interval_steps=self.interval_epochs,
            n_min_trials=self.min_trials,
        )


class SuccessiveHalvingSettings(_Settings):
    """Asynchronous successive halving (Li et al. 2018): at each rung the best share goes on."""

    name: Literal["successive-halving"] = "successive-halving"
    min_epochs: Positive = Field(default=1, description="The first rung.")
    reduction_factor: Factor = Field(
        default=4, description="One in so many goes on, for so many times the epochs."
    )
    min_early_stopping_rate: Annotated[int, Field(ge=0, le=64)] = Field(
        default=0, description="Rungs left out at the bottom."
    )

    def build(self) -> BasePruner:
        """See `_Settings.build`."""
        return optuna.pruners.SuccessiveHalvingPruner(
            min_resource=self.min_epochs,
            reduction_factor=self.reduction_factor,
            min_early_stopping_rate=self.min_early_stopping_rate,
        )


class HyperbandSettings(_Settings):
    """Hyperband (Li et al. 2018): several successive halvings of different eagerness side by side."""

    name: Literal["hyperband"] = "hyperband"
    min_epochs: Positive = Field(default=1, description="The first rung of the most eager bracket.")
    max_epochs: Positive = Field(description="The epochs of a trial that is never stopped.")
    reduction_factor: Factor = Field(default=3, description="As in successive-halving.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_epochs < self.min_epochs:
            raise DefinitionError(
                f"hyperband needs min_epochs <= max_epochs; "
                f"got min_epochs={self.min_epochs}, max_epochs={self.max_epochs}"
            )
        return self

    def build(self) -> BasePruner:
        """See `_Settings.build`."""
        return optuna.pruners.HyperbandPruner(
            min_resource=self.min_epochs,
            max_resource=self.max_epochs,
            reduction_factor=self.reduction_factor,
        )


class ThresholdSettings(_Settings):
    """Stop a trial whose value leaves [lower, upper], or is NaN."""

    name: Literal["threshold"] = "threshold"
    lower: Finite | None = Field(default=None, description="Values below stop the trial.")
    upper: Finite | None = Field(default=None, description="Values above stop the trial.")
    warmup_epochs: Count = Field(default=0, description="Epochs in which no trial is stopped.")
    interval_epochs: Positive = Field(default=1, description="Epochs between two looks.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.lower is None and self.upper is None:
            raise DefinitionError("threshold needs lower, upper or both; got neither")
        if self.lower is not None and self.upper is not None and self.lower > self.upper:
            raise DefinitionError(
                f"threshold needs lower <= upper; got lower={self.lower}, upper={self.upper}"
            )
        return self

    def build(self) -> BasePruner:
        """See `_Settings.build`."""
        return optuna.pruners.ThresholdPruner(
            lower=self.lower,
            upper=self.upper,
            n_warmup_steps=self.warmup_epochs + 1,
            interval_steps=self.interval_epochs,
        )


class PatientSettings(_Settings):
    """Stop a trial that has not improved by `min_delta` for `patience` epochs, whatever the others do."""

    name: Literal["patient"] = "patient"
    patience: Count = Field(description="Epochs without improvement that are tolerated.")
    min_delta: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=0.0, description="What counts as an improvement."
    )

    def build(self) -> BasePruner:
        """See `_Settings.build`."""
        with _quiet():
            return optuna.pruners.PatientPruner(None, patience=self.patience, min_delta=self.min_delta)


class WilcoxonSettings(_Settings):
    """Stop a trial whose steps (for instance folds) are worse than the best trial's by a signed-rank test."""

    name: Literal["wilcoxon"] = "wilcoxon"
    p_threshold: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.1, description="Stop below this p-value."
    )
    startup_steps: Count = Field(default=2, description="Steps before any decision.")

    def build(self) -> BasePruner:
        """See `_Settings.build`."""
        with _quiet():
            return optuna.pruners.WilcoxonPruner(
                p_threshold=self.p_threshold, n_startup_steps=self.startup_steps
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's warning that a class is experimental: who chose it by name has no use for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


AnyPruner: TypeAlias = Annotated[
    NoneSettings
    | PercentileSettings
    | MedianSettings
    | SuccessiveHalvingSettings
    | HyperbandSettings
    | ThresholdSettings
    | PatientSettings
    | WilcoxonSettings,
    Field(discriminator="name"),
]

PRUNERS: dict[str, type[_Settings]] = {
    settings.model_fields["name"].default: settings for settings in get_args(get_args(AnyPruner)[0])
}
