"""What a study's trials say, as arrays that grow with it: an ask costs what is new, not what there is."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tuner.samplers.axes import Axes
from tuner.samplers.gaussian_process import Floats

__all__ = ["ActivityRules", "History", "TargetsThen"]

WORST = np.inf
"""What a failed trial counts as: where a training diverges, it is not good to look again."""


class History:
    """The trials of one study, a row each in the order of their numbers; `update` before use.

    Attributes:
        axes: of all parameters seen so far.
        numbers: the trials' numbers, shape (n,).
        rows: places on the axes, shape (n, axes), see `Axes`.
        values: what to minimize; shape (n,). Failed trials are infinitely bad, pruned ones have their last report.
        finished, pruned, ended: boolean, shape (n,); what has ended without parameters is not `finished`.
    """

    def __init__(self) -> None:
        self._study: tuple[int, str] | None = None
        self._is_partial = False
        self._reset({})

    def _reset(self, distributions: dict[str, BaseDistribution]) -> None:
        self.distributions = distributions
        self.axes = Axes({n: d for n, d in distributions.items() if not d.single()})
        self._seen = 0
        self._open: list[int] = []
        self._numbers = np.zeros(64, dtype=np.intp)
        self._rows = np.full((64, len(self.axes)), np.nan)
        self._values = np.full(64, np.nan)
        self._finished = np.zeros(64, dtype=np.bool_)
        self._pruned = np.zeros(64, dtype=np.bool_)
        self._ended = np.zeros(64, dtype=np.bool_)
        self._keys: set[bytes] = set()
        self._earliest_change = 0

    def __len__(self) -> int:
        return self._seen

    @property
    def rows(self) -> Floats:
        """See the class."""
        return self._rows[: self._seen]

    @property
    def numbers(self) -> NDArray[np.intp]:
        """See the class."""
        return self._numbers[: self._seen]

    @property
    def values(self) -> Floats:
        """See the class."""
        return self._values[: self._seen]

    @property
    def finished(self) -> NDArray[np.bool_]:
        """See the class."""
        return self._finished[: self._seen]

    @property
    def ended(self) -> NDArray[np.bool_]:
        """See the class."""
        return self._ended[: self._seen]

    def contains(self, rows: Floats) -> NDArray[np.bool_]:
        """Which of the rows (m, axes) have been tried, or are being tried."""
        return np.array([key in self._keys for key in _keys(rows)])

    @property
    def pruned(self) -> NDArray[np.bool_]:
        """See the class."""
        return self._pruned[: self._seen]

    def update(self, study: optuna.Study) -> None:
        """Take in what is new."""
        identity = (study._study_id, study.study_name)
        trials = study._get_trials(deepcopy=False, use_cache=True)
        if identity != self._study or len(trials) < self._seen:
            self._study, self._is_partial = identity, False
            self._reset({})
        sign = 1.0 if study.direction == StudyDirection.MINIMIZE else -1.0
        news = [*self._open, *range(self._seen, len(trials))]
        if self._is_partial or (trials and trials[-1].number != len(trials) - 1):
            self._reset({})  # some are hidden, by a Hyperband bracket for instance: which ones may change
            self._is_partial = True
            news = list(range(len(trials)))
        distributions = _merged(self.distributions, [trials[i] for i in news])
        if distributions != self.distributions:  # another parameter, or another range: all rows change
            self._reset(distributions)
            news = list(range(len(trials)))
        self._grow(len(trials))
        self._open = [i for i in news if not self._take(i, trials[i], sign)]
        self._earliest_change = min([self._earliest_change, *(trials[i].number for i in news)])

    def take_changes(self) -> int:
        """Trials below this number are as they were when this was last asked."""
        earliest = self._earliest_change
        self._earliest_change = int(self.numbers[-1]) + 1 if self._seen else 0
        return earliest

    def running(self, apart_from: int) -> Floats:
        """Rows of trials that are being evaluated, without that of a number; at most the 64 newest."""
        is_running = ~self.ended & ~np.isnan(self.rows).all(axis=1)
        is_running &= self.numbers != apart_from
        return self.rows[np.flatnonzero(is_running)[-64:]]

    def _grow(self, size: int) -> None:
        while size > len(self._values):
            self._rows = np.concatenate([self._rows, np.full_like(self._rows, np.nan)])
            self._numbers = np.concatenate([self._numbers, np.zeros_like(self._numbers)])
            self._values = np.concatenate([self._values, np.full_like(self._values, np.nan)])
            self._finished = np.concatenate([self._finished, np.zeros_like(self._finished)])
            self._pruned = np.concatenate([self._pruned, np.zeros_like(self._pruned)])
            self._ended = np.concatenate([self._ended, np.zeros_like(self._ended)])
        self._seen = size

    def _take(self, index: int, trial: FrozenTrial, sign: float) -> bool:
        """Take in one trial; whether it is finished."""
        self._numbers[index] = trial.number
        if trial.params:
            self._rows[index] = self.axes.row(trial.params)
            self._keys.update(_keys(self._rows[index : index + 1]))
        if not trial.state.is_finished():
            return False
        self._ended[index] = True
        value = _value(trial)
        if value is not None and trial.params:
            self._values[index] = WORST if np.isnan(value) else sign * value
            self._finished[index] = True
            self._pruned[index] = trial.state == TrialState.PRUNED
        return True


def _keys(rows: Floats) -> list[bytes]:
    """What tells rows apart, whatever the last digit."""
    return [row.tobytes() for row in np.where(np.isnan(rows), -1.0, rows).round(12)]


def _value(trial: FrozenTrial) -> float | None:
    """What the trial says of its point; None if nothing."""
    if trial.state == TrialState.COMPLETE:
        return trial.value
    if trial.state == TrialState.FAIL:
        return np.nan
    if trial.state == TrialState.PRUNED and trial.intermediate_values:
        return trial.intermediate_values[max(trial.intermediate_values)]
    return np.nan if trial.state == TrialState.PRUNED else None


def _merged(known: dict[str, BaseDistribution], trials: Sequence[FrozenTrial]) -> dict[str, BaseDistribution]:
    """The newest distribution of each parameter, in order of first appearance."""
    merged = known
    for trial in trials:
        for name, distribution in trial.distributions.items():
            if merged.get(name) != distribution:
                merged = merged | {name: distribution}
    return merged


class ActivityRules:
    """Which parameters are active where, learnt from the trials: "momentum only if optimizer = sgd".

    For each axis that some rows lack, the categorical axis by whose choice its presence can be told. A sampler that
    is not told of conditions needs them, or else it would tell points apart that are the same.
    """

    def __init__(self, axes: Axes, rows: Floats) -> None:
        present = ~np.isnan(rows)
        self._rules: list[tuple[int, int, NDArray[np.bool_]]] = []
        for target in np.flatnonzero(~present.all(axis=0)):
            for source in axes.categorical:
                if source == target:
                    continue
                choice = np.where(present[:, source], np.nan_to_num(rows[:, source]), axes.choices[source])
                total = np.bincount(choice.astype(np.intp), minlength=axes.choices[source] + 1)
                count = np.bincount(
                    choice.astype(np.intp), weights=present[:, target], minlength=axes.choices[source] + 1
                )
                if np.all((count == 0) | (count == total)) and 0 < count.sum() < total.sum():
                    self._rules.append((int(target), int(source), (count > 0) | (total == 0)))
                    break

    def apply(self, rows: Floats) -> Floats:
        """Inactive places set to NaN, in place; shape (m, axes) in and out."""
        for _ in range(2 if len(self._rules) > 1 else 1):  # a condition may hang on another
            for target, source, active in self._rules:
                missing = np.isnan(rows[:, source])
                choice = np.where(missing, len(active) - 1, np.nan_to_num(rows[:, source])).astype(np.intp)
                rows[~active[choice], target] = np.nan
        return rows


class TargetsThen:
    """What trials were worth when they ended: values to minimize, but a pruned one's at least the median so far.

    Nothing that comes later changes them. Each update costs what is new since the last one: as in `BoxLength`, what is
    known is taken back as far as a trial ended out of turn.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Start from nothing."""
        self._numbers: list[int] = []
        self._targets: list[float] = []
        self._whole: list[float] = []  # the values of those that were not pruned, ascending
        self._pruned: list[bool] = []

    def update(
        self, numbers: NDArray[np.intp], values: Floats, pruned: NDArray[np.bool_], *, unchanged: int
    ) -> Floats:
        """The targets of the trials `numbers`, ascending; all of shape (n,).

        Args:
            numbers: of the finished trials.
            values: to be minimized.
            pruned: which of them were pruned.
            unchanged: trials below this number are as in the last call.
        """
        keep = bisect.bisect_left(self._numbers, unchanged)
        for value, was_pruned in zip(self._targets[keep:], self._pruned[keep:], strict=True):
            if not was_pruned:
                del self._whole[bisect.bisect_left(self._whole, value)]
        del self._numbers[keep:], self._targets[keep:], self._pruned[keep:]
        for number, value, is_pruned in zip(
            numbers[keep:].tolist(), values[keep:].tolist(), pruned[keep:].tolist(), strict=True
        ):
            target = max(value, self._median()) if is_pruned and self._whole else value
            if not is_pruned:
                bisect.insort(self._whole, value)
            self._numbers.append(number)
            self._targets.append(target)
            self._pruned.append(is_pruned)
        return np.array(self._targets)

    def _median(self) -> float:
        whole = self._whole
        return (whole[(len(whole) - 1) // 2] + whole[len(whole) // 2]) / 2
