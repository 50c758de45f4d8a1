"""Important parameters first: tier by tier, the others at their defaults.

Source: Ng, "Improving Deep Neural Networks", week 3, "Tuning process": learning rate first, then momentum, hidden units
and batch size, then layers and decay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from tuner.errors import DefinitionError
from tuner.samplers.view import BoxLens, Lens, LensSampler

__all__ = ["TierSampler", "tier_lengths"]


class TierSampler(LensSampler):
    """Any sampler, first on the parameters of the first tier, then on those of the first two, and so on.

    A parameter whose tier has not come yet has its default. The tier is a function of the trial's number; what was
    learnt in the tiers before stays in sight.

    Args:
        inner: the sampler that chooses.
        priorities: the tier of each parameter, 1 first; parameters without one belong to the first.
        defaults: the value of each parameter that waits.
        lengths: how many trials each tier but the last one has, by tier.

    Raises:
        DefinitionError: a parameter that waits has no default.
    """

    def __init__(
        self,
        inner: BaseSampler,
        *,
        priorities: Mapping[str, int],
        defaults: Mapping[str, Any],
        lengths: Sequence[int],
    ) -> None:
        super().__init__(inner)
        self._tiers = sorted(set(priorities.values()))
        self._priorities = dict(priorities)
        self._defaults = dict(defaults)
        self._lengths = list(lengths)
        for name, priority in priorities.items():
            if priority > self._tiers[0] and name not in defaults:
                raise DefinitionError(
                    f"stages by priority need a default of {name}, which waits for its tier"
                )

    def tier(self, number: int) -> int:
        """The last tier that is free in trial `number`."""
        end = 0
        for tier, length in zip(self._tiers, self._lengths, strict=False):
            end += length
            if number < end:
                return tier
        return self._tiers[-1]

    def lens_version(self, study: optuna.Study, trial: FrozenTrial) -> int:
        """The tier."""
        return self.tier(trial.number)

    def lens(
        self, study: optuna.Study, trial: FrozenTrial, name: str, outer: BaseDistribution
    ) -> Lens | None:
        """The default alone, where the parameter's tier has not come yet."""
        if self._priorities.get(name, 0) <= self.tier(trial.number):
            return None
        return BoxLens(_only(outer, self._defaults[name]))


def _only(outer: BaseDistribution, value: Any) -> BaseDistribution:
    """The distribution of the same kind that has this value alone."""
    if isinstance(outer, CategoricalDistribution):
        return CategoricalDistribution((value,))
    if isinstance(outer, IntDistribution):
        return IntDistribution(value, value, log=outer.log)
    assert isinstance(outer, FloatDistribution)
    return FloatDistribution(value, value, log=outer.log)


def tier_lengths(trials: int | None, tiers: int) -> list[int]:
    """How many trials each tier but the last one has: equal parts of the budget, 20 without one."""
    return [20 if trials is None else max(1, trials // tiers)] * (tiers - 1)
