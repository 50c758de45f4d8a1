"""How much each parameter mattered, by Optuna's evaluators, from trials.

Sources: PED-ANOVA is Watanabe, Bansal and Hutter, "PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in
Arbitrary Subspaces", IJCAI (2023): which parameters tell the best tenth from all. fANOVA is Hutter, Hoos and
Leyton-Brown, "An Efficient Approach for Assessing Hyperparameter Importance", ICML (2014): how much of the value's
variance each explains by itself, in a random forest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial

from tuner.comparison.runs import Floats
from tuner.scales import reversed_distribution, to_reversed, to_unit
from tuner.space import CategoricalParameter, FloatParameter, IntParameter, Space

if TYPE_CHECKING:
    from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator

__all__ = ["METHODS", "Method", "Points", "importance_shares", "unit_points"]

Method: TypeAlias = Literal["PED-ANOVA", "fANOVA"]

METHODS: tuple[Method, ...] = ("PED-ANOVA", "fANOVA")

TREES, DEPTH = 16, 6
"""Of fANOVA's forest: main effects of a few hundred trials need no more; Optuna's 64 deep trees take 50 times that."""

Points: TypeAlias = Sequence[Mapping[str, Any]]
"""Parameters of trials, by name."""


def unit_points(space: Space, trials: Sequence[FrozenTrial]) -> tuple[Points, dict[str, BaseDistribution]]:
    """Each trial's place on the scales of a space, in [0, 1], and what the places are distributed like.

    Evaluators believe that what they see is uniform; on a reverse-log scale the value itself is not.
    """
    distributions: dict[str, BaseDistribution] = {
        name: parameter.distribution
        if isinstance(parameter, CategoricalParameter)
        else FloatDistribution(0.0, 1.0)
        for name, parameter in space.items()
    }
    points = [{name: _place(space[name], trial.params[name]) for name in space} for trial in trials]
    return points, distributions


def importance_shares(
    points: Points,
    distributions: Mapping[str, BaseDistribution],
    losses: Floats,
    method: Method = "PED-ANOVA",
) -> Floats:
    """What share of the importance each parameter has, in the order of `distributions`; all 0 where none has any.

    Args:
        points: n of them, each with all of the parameters.
        distributions: of the parameters.
        losses: shape (n,), lower is better.
        method: which evaluator.
    """
    names = list(distributions)
    with _quiet():
        study = optuna.create_study()
    study.add_trials(
        [
            optuna.trial.create_trial(
                value=float(loss), params=dict(point), distributions=dict(distributions)
            )
            for point, loss in zip(points, losses, strict=True)
        ]
    )
    found = _evaluator(method).evaluate(study, params=names)
    shares = np.array([float(found[name]) for name in names])
    return shares / (shares.sum() or 1.0)


def _evaluator(method: Method) -> PedAnovaImportanceEvaluator | FanovaImportanceEvaluator:
    from optuna.importance import (  # noqa: PLC0415 - they bring scikit-learn: a second
        FanovaImportanceEvaluator,
        PedAnovaImportanceEvaluator,
    )

    if method == "PED-ANOVA":
        return PedAnovaImportanceEvaluator()
    return FanovaImportanceEvaluator(n_trees=TREES, max_depth=DEPTH, seed=0)


def _place(parameter: FloatParameter | IntParameter | CategoricalParameter, value: Any) -> Any:
    if isinstance(parameter, CategoricalParameter):
        return value
    distribution = parameter.distribution
    if parameter.scale_name == "reverse_log":
        return 1 - to_unit(reversed_distribution(distribution), to_reversed(distribution, value))
    return to_unit(distribution, value)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's news that a study was created in memory."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
