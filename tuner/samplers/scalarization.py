"""Several objectives seen as one, another one in each trial: so that a sampler of one finds a Pareto front.

Source: Knowles, "ParEGO" (2006). Before each trial weights λ are drawn, and what the sampler minimizes is the augmented
Tchebycheff function of the normalised values y (eq. 2):

    s(y) = max_j λ_j y_j + ρ Σ_j λ_j y_j,  ρ = 0.05

Whoever has the least s for some weights is on the Pareto front, and any point of it, be the front convex or not, is
near that for others. Two things are otherwise than in the paper. Normalised values are ranks among the completed
trials, so that neither infinities nor the units of an objective (a loss, or its logarithm) change anything. And the
weights are drawn uniformly instead of from a lattice.
"""

from __future__ import annotations

import copy
from collections.abc import Container

import numpy as np
import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tuner.samplers.gaussian_process import Floats
from tuner.samplers.view import StudyView

__all__ = ["ScalarView", "draw_weights", "scalarize"]

RHO = 0.05
"""ρ: how much the sum counts beside the maximum."""

OWN_STREAM = 0x5CA1A
"""Keeps the weights' randomness apart from that by which a sampler chooses with the same seed and number."""


def draw_weights(seed: int, number: int, objectives: int) -> Floats:
    """λ for trial `number`: uniform on the simplex, shape (objectives,)."""
    rng = np.random.default_rng((seed, number, OWN_STREAM))
    return rng.dirichlet(np.ones(objectives))


def scalarize(values: Floats, weights: Floats) -> Floats:
    """s of each row of `values` (n, k), which are to be minimized, by their ranks; shape (n,).

    A row that dominates another has the smaller s, where no weight is 0.
    """
    ranks = np.stack([_ranks(column) for column in values.T], axis=1) * weights
    s: Floats = ranks.max(axis=1) + RHO * ranks.sum(axis=1)
    return s


def _ranks(column: Floats) -> Floats:
    """From 0 for the least value to at most 1; equal values share the mean of their ranks."""
    _, places, counts = np.unique(column, return_inverse=True, return_counts=True)
    means = np.cumsum(counts) - (counts + 1) / 2
    ranks: Floats = means[places] / max(1, len(column) - 1)
    return ranks


class ScalarView(StudyView):
    """A study with several objectives as one that minimizes s: its trials as they are now, with one value each.

    Args:
        study: what is viewed; may be a view itself.
        weights: λ, shape (objectives,).
    """

    keeps_notes = False  # they would be of one trial's weights

    def __init__(self, study: optuna.Study, weights: Floats) -> None:
        super().__init__(study)
        self._directions = [StudyDirection.MINIMIZE]
        self._trials = _scalarized(study, weights)

    def _get_trials(
        self,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
        use_cache: bool = False,
    ) -> list[FrozenTrial]:
        trials = [trial for trial in self._trials if states is None or trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials


def _scalarized(study: optuna.Study, weights: Floats) -> list[FrozenTrial]:
    """The trials of a study; copies of the completed ones, with s as their value."""
    trials = study._get_trials(deepcopy=False, use_cache=True)
    complete = [i for i, trial in enumerate(trials) if trial.state == TrialState.COMPLETE]
    if not complete:
        return trials
    signs = np.array([1.0 if way == StudyDirection.MINIMIZE else -1.0 for way in study.directions])
    values = scalarize(np.array([trials[i].values for i in complete]) * signs, weights)
    seen = list(trials)
    for i, value in zip(complete, values, strict=True):
        seen[i] = copy.copy(trials[i])
        seen[i].values = [float(value)]
    return seen
