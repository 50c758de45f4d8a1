"""What trials tell besides who won: what mattered, where coarse-to-fine looked, how trainings went."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from objectives.network.diagnosis import BiasVariance, course
from tuner.comparison import ComparisonResult, Run
from tuner.comparison.importance import importance_shares, unit_points
from tuner.samplers.local_gp import EXPLANATION
from tuner.space import CategoricalParameter

__all__ = ["LEAST_TRIALS", "best_run", "diagnosis", "importances", "looked_in"]

LEAST_TRIALS = 50
"""Completed trials of a seed below which importances are noise: the best tenth are then fewer than five."""


def best_run(result: ComparisonResult, arm: str) -> Run | None:
    """The arm's run with the best completed trial; the first of equals."""
    runs = [run for run in result.runs_of(arm) if run.best_number is not None]
    return min(runs, key=lambda run: (result.sign * run.best[-1], run.seed), default=None)


def importances(result: ComparisonResult) -> dict[str, list[float]]:
    """How much each parameter mattered for being among the best tenth (PED-ANOVA), a share a seed.

    From the completed trials of all arms that search the base's space, together for each seed. Empty where that has
    fewer than two parameters or no seed has enough trials.
    """
    space = result.definition.space
    if len(space) < 2 or space.is_conditional:
        return {}
    arms = [m.arm for m in result.definition.members if m.definition.space == space]
    shares: dict[str, list[float]] = {name: [] for name in space}
    for seed in result.seeds:
        runs = [run for run in result.runs if run.seed == seed and run.arm in arms]
        trials = [t for run in runs for t in run.trials if _counts(t, list(space))]
        if len(trials) >= LEAST_TRIALS:
            losses = np.array([result.sign * (trial.value or 0.0) for trial in trials])
            found = importance_shares(*unit_points(space, trials), losses)
            for name, share in zip(space, found.tolist(), strict=True):
                shares[name].append(share)
    return shares if all(shares.values()) else {}


def _counts(trial: FrozenTrial, names: Sequence[str]) -> bool:
    is_complete = trial.state == TrialState.COMPLETE and trial.value is not None
    return is_complete and bool(np.isfinite(trial.value or 0.0)) and set(names) <= set(trial.params)


@dataclass(frozen=True, slots=True)
class Looked:
    """Where a run looked for one parameter: its scale, and (trial, low, high) for each trial inside a box."""

    name: str
    scale: str
    boxes: list[tuple[int, float, float]]


def looked_in(result: ComparisonResult, run: Run) -> Iterator[Looked]:
    """The boxes of a coarse-to-fine run, a numeric parameter each, the important ones first; nothing of other runs."""
    notes = [(trial.number, trial.system_attrs.get(EXPLANATION, {})) for trial in run.trials]
    boxes = [(number, note["box"]) for number, note in notes if "box" in note]
    if not boxes:
        return
    space = next(
        m.definition.space for m in result.definition.members if (m.arm, m.seed) == (run.arm, run.seed)
    )
    for name, parameter in sorted(space.items(), key=lambda item: item[1].priority):
        if not isinstance(parameter, CategoricalParameter):
            ends = [(number, *map(float, box[name])) for number, box in boxes if name in box]
            yield Looked(name, parameter.scale_name, ends)  # type: ignore[arg-type]


def diagnosis(result: ComparisonResult, run: Run) -> str:
    """How the training of a run's best trial went, in words."""
    trial = next(t for t in run.trials if t.number == run.best_number)
    curve = [trial.intermediate_values[epoch] for epoch in sorted(trial.intermediate_values)]
    said = course(curve, minimize=result.minimize)
    attrs = trial.user_attrs
    if "train_error" in attrs and "dev_error" in attrs:
        said = f"{said}. {BiasVariance(attrs['train_error'], attrs['dev_error'])}"
    return said
