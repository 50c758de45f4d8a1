"""What a comparison has found: arms over paired seeds, read back from the database and judged.

Nothing here runs trials; the manager does. Everything is computed from what the member studies hold, so that a
comparison that was interrupted and went on, or one that is still running, is read in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from tuner.definition import ComparisonDefinition
from tuner.errors import NotFoundError
from tuner.statistics import Spread, friedman_p, mean_ranks, pairwise_p, spread

__all__ = ["ArmRow", "ComparisonResult", "Curve", "Run", "read_comparison"]

Floats: TypeAlias = NDArray[np.float64]
Unit: TypeAlias = Literal["trials", "epochs"]

SIGNIFICANCE = 0.05
TEST = "Wilcoxon signed-rank, Holm over all pairs"


@dataclass(frozen=True, slots=True)
class Run:
    """One member study: an arm with a seed.

    `best` and `epochs` have one entry a finished trial, in the order of their numbers: the best value of a completed
    trial so far (the worst possible before the first), and the epochs spent so far, pruned trials included.
    """

    arm: str
    seed: int
    study: str
    best: Floats
    epochs: Floats
    completed: int
    pruned: int
    failed: int
    seconds: float
    best_params: dict[str, Any]
    best_number: int | None


@dataclass(frozen=True, slots=True)
class Curve:
    """An arm's best value so far against what was spent: median and quartiles over seeds, shapes (points,)."""

    spent: Floats
    median: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True, slots=True)
class ArmRow:
    """One line of the ranking. `epochs` and `seconds` are totals over the seeds; `p` is that of its
    difference from the first, None for the first itself and where there are fewer than two seeds."""

    arm: str
    mean_rank: float
    final: Spread
    best: float
    trials: int
    pruned: int
    failed: int
    epochs: int
    seconds: float
    p: float | None


@dataclass(frozen=True)
class ComparisonResult:
    """A comparison's runs, one an arm and seed, and what follows from them."""

    definition: ComparisonDefinition
    runs: tuple[Run, ...]

    @property
    def arms(self) -> list[str]:
        """The arms in the definition's order."""
        return [arm.name for arm in self.definition.comparison.arms]

    @cached_property
    def seeds(self) -> list[int]:
        """The seeds for which every arm has finished at least one trial: only those are compared."""
        begun = {(run.arm, run.seed) for run in self.runs if len(run.best)}
        return sorted({run.seed for run in self.runs if all((arm, run.seed) in begun for arm in self.arms)})

    @cached_property
    def finals(self) -> Floats:
        """The best value at the end, in the definition's direction: shape (arms, seeds)."""
        found = {(run.arm, run.seed): run.best[-1] for run in self.runs if len(run.best)}
        return np.array([[found[arm, seed] for seed in self.seeds] for arm in self.arms])

    @cached_property
    def ranking(self) -> list[str]:
        """The arms by mean rank over the seeds, the best first; ties by median, then in the definition's order."""
        return [row.arm for row in self.table()]

    def table(self) -> list[ArmRow]:
        """The ranking with its spreads. Empty before every arm has finished a trial for some seed."""
        if not self.seeds:
            return []
        losses = self._sign * self.finals
        ranks = mean_ranks(losses)
        order = sorted(range(len(self.arms)), key=lambda i: (ranks[i], np.median(losses[i])))
        p_values = self._against_first(losses[order])
        return [self._row(i, ranks[i], p) for i, p in zip(order, p_values, strict=True)]

    @cached_property
    def friedman_p(self) -> float | None:
        """Whether the arms differ at all; None where there is too little to say."""
        return friedman_p(self.finals) if self.seeds else None

    @property
    def winner(self) -> str | None:
        """The first arm, if it differs significantly from every other; None while that is undecided."""
        rows = self.table()
        decided = len(rows) > 1 and all(row.p is not None and row.p < SIGNIFICANCE for row in rows[1:])
        return rows[0].arm if decided else None

    @property
    def verdict(self) -> str:
        """The outcome in one or two sentences."""
        rows = self.table()
        if not rows:
            return "Nothing to compare yet: no seed has a finished trial in every arm."
        first, seeds = rows[0], len(self.seeds)
        over = f"over {seeds} seeds"
        if seeds == 1:
            return f"{first.arm} came first with one seed, which says nothing: differences between seeds are not known."
        if self.winner is not None:
            return f"{first.arm} is best {over} ({TEST}, p < {SIGNIFICANCE} against every other)."
        worse = [row.arm for row in rows[1:] if row.p is not None and row.p < SIGNIFICANCE]
        tied = [row.arm for row in rows if row.mean_rank == first.mean_rank]
        if len(tied) > 1:
            return f"{', '.join(tied)} share the best mean rank {over}; no winner."
        start = f"{first.arm} has the best mean rank {over}"
        if worse:
            return (
                f"{start} and beats {', '.join(worse)}; against the others the difference is not significant."
            )
        smallest = (
            2 * 0.5**seeds * math.comb(len(rows), 2)
        )  # all seeds one way, Holm's factor for the smallest
        hint = f"; {seeds} seeds are too few for any to be" if smallest >= SIGNIFICANCE else ""
        return f"{start}, but no difference is significant ({TEST}){hint}."

    def curve(self, arm: str, unit: Unit = "trials", points: int = 200) -> Curve:
        """The arm's anytime curve up to where its shortest run ends, on at most `points` points."""
        runs = [run for run in self.runs if run.arm == arm and run.seed in self.seeds]
        spent = [np.arange(1.0, len(run.best) + 1) if unit == "trials" else run.epochs for run in runs]
        end = min(s[-1] for s in spent)
        start = max(s[0] for s in spent)
        grid = np.unique(np.linspace(min(start, end), end, points).round())
        values = np.array([_at(grid, s, run.best) for s, run in zip(spent, runs, strict=True)])
        quantiles = [spread(column) for column in values.T]
        return Curve(
            grid,
            np.array([q.median for q in quantiles]),
            np.array([q.low for q in quantiles]),
            np.array([q.high for q in quantiles]),
        )

    def to_dict(self) -> dict[str, Any]:
        """The ranking and the verdict in plain types."""
        return {
            "name": self.definition.name,
            "seeds": self.seeds,
            "verdict": self.verdict,
            "winner": self.winner,
            "friedman_p": self.friedman_p,
            "ranking": [asdict(row) for row in self.table()],
        }

    @property
    def _sign(self) -> int:
        return 1 if self.definition.direction == "minimize" else -1

    def _against_first(self, losses: Floats) -> list[float | None]:
        if len(self.seeds) < 2:
            return [None] * len(losses)
        return [None, *pairwise_p(losses)[0, 1:].tolist()]

    def _row(self, index: int, rank: float, p: float | None) -> ArmRow:
        runs = [run for run in self.runs if run.arm == self.arms[index] and run.seed in self.seeds]
        finals = self.finals[index]
        return ArmRow(
            arm=self.arms[index],
            mean_rank=float(rank),
            final=spread(finals),
            best=float(finals.min() if self._sign > 0 else finals.max()),
            trials=sum(len(run.best) for run in runs),
            pruned=sum(run.pruned for run in runs),
            failed=sum(run.failed for run in runs),
            epochs=int(sum(run.epochs[-1] for run in runs)),
            seconds=sum(run.seconds for run in runs),
            p=p,
        )


def read_comparison(
    definition: ComparisonDefinition, load: Callable[[str], optuna.Study]
) -> ComparisonResult:
    """The result of a comparison from its member studies; members that are not begun yet are left out.

    Raises:
        NotFoundError: none of them is.
    """
    runs = []
    for member in definition.members:
        try:
            study = load(member.definition.name)
        except NotFoundError:
            continue
        trials = study.get_trials(deepcopy=False)
        runs.append(_read_run(member.arm, member.seed, member.definition.name, trials, definition.direction))
    if not runs:
        raise NotFoundError(f"comparison {definition.name!r} has not been begun in this database")
    return ComparisonResult(definition, tuple(runs))


def _read_run(arm: str, seed: int, study: str, trials: Sequence[FrozenTrial], direction: str) -> Run:
    finished = [trial for trial in trials if trial.state.is_finished()]
    sign = 1 if direction == "minimize" else -1
    losses = [
        sign * t.value if t.state == TrialState.COMPLETE and t.value is not None else np.inf for t in finished
    ]
    best = int(np.argmin(losses)) if losses and min(losses) < np.inf else None
    return Run(
        arm=arm,
        seed=seed,
        study=study,
        best=sign * np.minimum.accumulate(np.array(losses, dtype=float)),
        epochs=np.cumsum([float(len(trial.intermediate_values)) for trial in finished]),
        completed=sum(trial.state == TrialState.COMPLETE for trial in finished),
        pruned=sum(trial.state == TrialState.PRUNED for trial in finished),
        failed=sum(trial.state == TrialState.FAIL for trial in finished),
        seconds=sum(float(trial.user_attrs.get("training_seconds", 0.0)) for trial in finished),
        best_params={} if best is None else dict(finished[best].params),
        best_number=None if best is None else finished[best].number,
    )


def _at(grid: Floats, spent: Floats, best: Floats) -> Floats:
    """The step function `best` after `spent`, at each point of the grid; its first value before its first step."""
    last = np.searchsorted(spent, grid, side="right") - 1
    values: Floats = best[np.maximum(last, 0)]
    return values
