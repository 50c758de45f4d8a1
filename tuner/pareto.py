"""The Pareto front: of several objectives, the trials that no other is at least as good as in all and better in one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from optuna.study import StudyDirection
from optuna.study._multi_objective import _get_pareto_front_trials_by_trials, _is_pareto_front
from optuna.trial import FrozenTrial

__all__ = ["front_of", "on_front"]


def front_of(trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection]) -> list[FrozenTrial]:
    """The trials on the front, in their order; those that are not complete, or break a constraint, are none.

    It is what `optuna.Study.best_trials` gives, without its copies. Of one objective it is all that are the best.
    """
    return _get_pareto_front_trials_by_trials(trials, directions, consider_constraint=True)


def on_front(values: Sequence[Sequence[float]], directions: Sequence[str]) -> list[bool]:
    """Which rows of `values` no other dominates; of equal rows all or none.

    Args:
        values: a row a trial, a column an objective; ±inf may be among them.
        directions: `minimize` or `maximize`, by column.
    """
    if not values:
        return []
    signs = np.array([1.0 if direction == "minimize" else -1.0 for direction in directions])
    front: list[bool] = _is_pareto_front(np.asarray(values) * signs, assume_unique_lexsorted=False).tolist()
    return front
