"""The arms ranked and judged.

The rule of the verdict: an arm beats another where the Wilcoxon signed-rank test over paired seeds, adjusted by Holm's
method over all pairs of arms, gives p < 0.05 in its favour. The winner beats every other arm. So the probability that
the verdict claims any difference where there is none is at most 5%, whatever the number of arms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna

from tuner.comparison.runs import Curve, Floats, Run, Unit, best_at, read_run
from tuner.definition import ComparisonDefinition, Member
from tuner.errors import MissingDependencyError, NotFoundError
from tuner.statistics import (
    LEAST_SEEDS,
    Estimate,
    Spread,
    critical_difference,
    friedman_p,
    is_noisy,
    mean_ranks,
    median_difference,
    pairwise_p,
    seeds_needed,
    signed_ranks,
    spread,
    vargha_delaney,
    win_probability,
)

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

__all__ = ["SIGNIFICANCE", "TEST", "ArmRow", "ComparisonResult", "Pair", "TargetRow", "read_comparison"]

SIGNIFICANCE = 0.05
POWER = 0.8
TEST = "Wilcoxon signed-rank, Holm over all pairs"

MOST_SEEDS = 1000
"""What takes more seeds than so many is no difference that matters."""

UNEQUAL = 1.1
"""Epochs spent that differ by more than this factor are not equal."""


@dataclass(frozen=True, slots=True)
class ArmRow:
    """One line of the ranking. `epochs` and `seconds` are totals over the seeds; `p` is that of its
    difference from the first, None for the first itself and where there are fewer than two seeds.

    `test` is the spread of the test values over the seeds, None where not every seed has one; a run that has nothing to
    train anew, as no trial of it was completed, is worse than all others, and so is one where a training failed."""

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
    test: Spread | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """Two arms over the paired seeds; the better ranked one is the first.

    `difference` is the median of first − second, in the units of the value; `wins` the probability that the first is
    better with the same seed; `effect` Vargha and Delaney's Â, the probability with any seeds; `p` Holm's, over all
    pairs. `seeds_needed` would settle it if the seeds so far are typical; None where it is settled, nothing points
    either way, or there are fewer than six.
    """

    first: str
    second: str
    difference: Estimate
    wins: Estimate
    effect: float
    p: float
    is_settled: bool
    seeds_needed: int | None


@dataclass(frozen=True, slots=True)
class TargetRow:
    """What an arm had spent when its best value first reached a target: medians over seeds, infinite where fewer than
    half reached it."""

    target: float
    arm: str
    reached: int
    trials: float
    epochs: float
    seconds: float


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
        """The seeds for which every arm has what is judged, by default a finished trial: only those are compared."""
        judged = {(run.arm, run.seed) for run in self.runs if self._judged(run) is not None}
        return sorted({run.seed for run in self.runs if all((arm, run.seed) in judged for arm in self.arms)})

    @cached_property
    def finals(self) -> Floats:
        """What is judged, by default the best value at the end: shape (arms, seeds)."""
        return np.array([[self._judged(run) for run in self.runs_of(arm)] for arm in self.arms], dtype=float)

    @property
    def judged_by(self) -> str:
        """What is judged, in words."""
        comparison = self.definition.comparison
        if comparison.judge == "time-to-target":
            return f"{self.unit} until {comparison.targets[0]:g}"
        words = {"test": "test value", "spread": "worst minus best value", "metric": comparison.metric}
        return words.get(comparison.judge, "best value")

    @property
    def lower_wins(self) -> bool:
        """Whether lower is better in what is judged; of times and spreads it always is."""
        return self.minimize or self.definition.comparison.judge in ("time-to-target", "spread")

    def _judged(self, run: Run) -> float | None:
        """What a run is judged by; None while it has none."""
        comparison, worst = self.definition.comparison, self.sign * math.inf
        if not len(run.best):
            return None
        if comparison.judge == "time-to-target":
            return run.spent_until(comparison.targets[0], self.unit, minimize=self.minimize)
        if comparison.judge == "spread":
            return run.spread
        if comparison.judge == "dev":
            return float(run.best[-1])
        if run.best_number is None:
            return worst
        value = run.metric(comparison.metric) if comparison.judge == "metric" else run.tested
        return worst if value is not None and math.isnan(value) else value

    def runs_of(self, arm: str) -> list[Run]:
        """The arm's runs that are compared, by seed."""
        runs = {run.seed: run for run in self.runs if run.arm == arm}
        return [runs[seed] for seed in self.seeds]

    @property
    def minimize(self) -> bool:
        """Whether lower values are better."""
        return self.definition.direction == "minimize"

    @property
    def unit(self) -> Unit:
        """What the budget is counted in: epochs or seconds where it gives no trials."""
        budget = self.definition.budget
        if budget.trials is None and budget.epochs is not None:
            return "epochs"
        return "seconds" if budget.trials is None and budget.seconds is not None else "trials"

    @property
    def unfinished(self) -> int:
        """How many runs have not used up their budget."""
        runs = {(run.arm, run.seed): run for run in self.runs}
        return sum(not _is_done(m, runs.get((m.arm, m.seed))) for m in self.definition.members)

    # ---------------------------------------------------------------------------------------------------- the ranking

    @property
    def ranking(self) -> list[str]:
        """The arms by mean rank over the seeds, the best first; ties by median, then in the definition's order."""
        return [row.arm for row in self.table()]

    def table(self) -> list[ArmRow]:
        """The ranking with its spreads. Empty before every arm has finished a trial for some seed."""
        return list(self._table)

    @property
    def rank_by_arm(self) -> dict[str, float]:
        """Each arm's mean rank, the best first. Empty where the table is."""
        return {row.arm: row.mean_rank for row in self._table}

    @cached_property
    def _table(self) -> tuple[ArmRow, ...]:
        if not self.seeds:
            return ()
        ranks = mean_ranks(self._losses)
        order = sorted(range(len(self.arms)), key=lambda i: (ranks[i], np.median(self._losses[i])))
        first = order[0]
        return tuple(
            self._row(i, ranks[i], None if i == first or self._p is None else float(self._p[first, i]))
            for i in order
        )

    @cached_property
    def friedman_p(self) -> float | None:
        """Whether the arms differ at all; None where there is too little to say."""
        return friedman_p(self.finals) if self.seeds else None

    @cached_property
    def critical_difference(self) -> float | None:
        """Nemenyi's: mean ranks further apart differ significantly; None with fewer than two seeds."""
        return critical_difference(len(self.arms), len(self.seeds)) if len(self.seeds) > 1 else None

    def beats(self, arm: str, other: str) -> bool:
        """Whether the first arm is significantly better than the other."""
        if self._p is None:
            return False
        i, j = self.arms.index(arm), self.arms.index(other)
        is_better = signed_ranks(self._losses[i], self._losses[j]) < 0
        return bool(self._p[i, j] < SIGNIFICANCE) and is_better

    def are_equivalent(self, arm: str, other: str) -> bool:
        """Whether the interval of their difference lies within what matters; False where nothing says what does.

        As two one-sided tests at 2.5%, of each pair by itself: nothing is adjusted for other pairs.
        """
        matters = self.definition.comparison.matters
        if matters is None or len(self.seeds) < LEAST_SEEDS:
            return False
        found = median_difference(*(self.finals[self.arms.index(name)] for name in (arm, other)))
        assert found.low is not None
        assert found.high is not None
        return -matters < found.low <= found.high < matters

    @cached_property
    def winner(self) -> str | None:
        """The first arm, if it beats every other; None while that is undecided."""
        if not self.seeds:
            return None
        first, *others = self.ranking
        return first if all(self.beats(first, other) for other in others) else None

    @cached_property
    def pairs(self) -> list[Pair]:
        """All pairs of arms, by rank; empty with fewer than two seeds."""
        if self._p is None:
            return []
        return [self._pair(first, second) for first, second in combinations(self.ranking, 2)]

    # ------------------------------------------------------------------------------------------------------- in words

    @property
    def verdict(self) -> str:
        """The outcome in one to three sentences."""
        if self.definition.comparison.finding == "importance":
            return "The arms are problems, not competitors; `tuner evidence` tells which parameters matter."
        alike = [
            f"{first} and {second}"
            for first, second in combinations(self.ranking, 2)
            if self.are_equivalent(first, second)
        ]
        matters = self.definition.comparison.matters or 0.0
        return self._said + (f" Equivalent within {matters:g}: {', '.join(alike)}." if alike else "")

    @property
    def _said(self) -> str:
        rows = self.table()
        if not rows:
            needed = {"test": "a test value", "metric": f"the metric {self.judged_by}"}
            missing = needed.get(self.definition.comparison.judge, "a finished trial")
            return f"Nothing to compare yet: no seed has {missing} in every arm."
        first, seeds = rows[0].arm, len(self.seeds)
        over = f"over {seeds} seeds"
        if seeds == 1:
            return f"{first} came first with one seed, which says nothing: differences between seeds are not known."
        if self.winner is not None:
            test = f"{TEST}, p < {SIGNIFICANCE} against every other"
            return f"{first} is best {over}{self._lead(rows[1].arm)} ({test})."
        tied = [row.arm for row in rows if row.mean_rank == rows[0].mean_rank]
        if len(tied) > 1:
            return f"{', '.join(tied)} share the best mean rank {over}; no winner{self._beaten_by(self.ranking)}."
        start, elsewhere = f"{first} has the best mean rank {over}", self._beaten_by(self.ranking[1:])
        beaten = [row.arm for row in rows[1:] if self.beats(first, row.arm)]
        others = "; against the others the difference is not significant" if self._open(first) else ""
        if beaten:
            return f"{start} and beats {', '.join(beaten)}{others}{elsewhere}{self._outlook(first)}."
        if elsewhere:
            return f"{start}, but beats no other significantly{elsewhere} ({TEST}){self._outlook(first)}."
        smallest = 2 * 0.5**seeds * math.comb(len(rows), 2)  # all seeds one way, Holm's factor for it
        few = f"; {seeds} seeds are too few for any to be" if smallest >= SIGNIFICANCE else ""
        return f"{start}, but no difference is significant ({TEST}){few}{self._outlook(first)}."

    @property
    def warnings(self) -> list[str]:
        """What a reader should know before trusting the ranking, a sentence each."""
        if not self.seeds:
            return []
        found = []
        if is_noisy(self._losses):
            found.append(
                "Seeds differ by more than arms do: a single run says nothing about an arm here, only pairs of runs "
                "over many seeds do."
            )
        spent = {row.arm: row.epochs for row in self.table() if row.epochs}
        if self.unit == "trials" and spent and max(spent.values()) > UNEQUAL * min(spent.values()):
            most, least = (choose(spent, key=spent.__getitem__) for choose in (max, min))
            found.append(
                f"Budgets are equal in trials, not in epochs: {most} spent {spent[most]:,}, {least} {spent[least]:,}. "
                "The curves by epochs compare equal effort."
            )
        lost = [row.arm for row in self.table() if not math.isfinite(row.final.median)]
        if lost:
            has_none = "no completed trial"
            if self.definition.comparison.judge != "dev":
                has_none = f"a failed trial, or no {self.judged_by}"
            found.append(f"Half of the runs of {', '.join(lost)} or more have {has_none}.")
        return found

    # ------------------------------------------------------------------------------------------------------- any time

    def curve(self, arm: str, unit: Unit = "trials", points: int = 200) -> Curve:
        """The arm's anytime curve up to where its shortest run ends, on at most `points` points."""
        runs = self.runs_of(arm)
        spent = [run.spent(unit) for run in runs]
        end = min(s[-1] for s in spent)
        start = max(s[0] for s in spent)
        grid = np.linspace(min(start, end), end, points)
        if unit != "seconds":
            grid = np.unique(grid.round())
        return self._curve(arm, unit, grid)

    def anytime(self, unit: Unit | None = None, points: int = 10) -> dict[str, Curve]:
        """Each arm's best value so far at equal shares of the budget, up to where the shortest run of any arm ends.

        Args:
            unit: what is counted; by default what the budget is counted in.
            points: how many.
        """
        unit = unit or self.unit
        if not self.seeds:
            return {}
        end = min(run.spent(unit)[-1] for arm in self.arms for run in self.runs_of(arm))
        grid = np.linspace(0, end, points + 1)[1:]
        if unit != "seconds":
            grid = np.unique(np.maximum(1, np.floor(grid)))
        return {arm: self._curve(arm, unit, grid) for arm in self.arms}

    def targets(self) -> list[TargetRow]:
        """What each arm had spent when it reached each of the definition's targets."""
        return [
            self._target(arm, target)
            for target in self.definition.comparison.targets
            for arm in (self.ranking if self.seeds else [])
        ]

    # --------------------------------------------------------------------------------------------------- to other forms

    def to_dict(self) -> dict[str, Any]:
        """The ranking and the verdict in plain types."""
        return {
            "name": self.definition.name,
            "seeds": self.seeds,
            "verdict": self.verdict,
            "winner": self.winner,
            "warnings": self.warnings,
            "friedman_p": self.friedman_p,
            "critical_difference": self.critical_difference,
            "ranking": [asdict(row) for row in self.table()],
            "pairs": [asdict(pair) for pair in self.pairs],
        }

    def to_json(self) -> str:
        """All that was found, and all that is needed to find it again: `tuner compare --repeat` reads it."""
        from tuner.comparison.export import results_json  # noqa: PLC0415 - it writes results

        return results_json(self)

    def to_csv(self) -> str:
        """A line for each finished trial."""
        from tuner.comparison.export import results_csv  # noqa: PLC0415

        return results_csv(self)

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each finished trial.

        Raises:
            MissingDependencyError: pandas is not installed.
        """
        from tuner.comparison.export import trial_rows  # noqa: PLC0415

        try:
            import pandas as pd  # noqa: PLC0415 - an extra
        except ModuleNotFoundError:
            raise MissingDependencyError("to_dataframe needs pandas: pip install 'tuner[pandas]'") from None
        return pd.DataFrame(trial_rows(self))

    def plot(self, kind: str = "curves", unit: Unit | None = None) -> go.Figure:
        """A Plotly figure: `curves` (best value so far), `finals`, `ranks` or `differences`.

        Raises:
            ValueError: there is no such kind.
        """
        from tuner.comparison import figures  # noqa: PLC0415 - half a second

        return figures.plot(self, kind, unit or self.unit)

    # -------------------------------------------------------------------------------------------------------- the parts

    @property
    def sign(self) -> int:
        """What makes a loss of a value: 1 where lower is better, else −1."""
        return 1 if self.minimize else -1

    @cached_property
    def _losses(self) -> Floats:
        losses: Floats = (1 if self.lower_wins else -1) * self.finals
        return losses

    @cached_property
    def _p(self) -> Floats | None:
        return pairwise_p(self._losses) if len(self.seeds) > 1 else None

    def _curve(self, arm: str, unit: Unit, grid: Floats) -> Curve:
        worst = self.sign * math.inf
        values = np.array([best_at(grid, run.spent(unit), run.best, worst) for run in self.runs_of(arm)])
        quantiles = [spread(column) for column in values.T]
        median, low, high = (
            np.array([getattr(q, name) for q in quantiles]) for name in ("median", "low", "high")
        )
        return Curve(grid, median, low, high, values)

    def _pair(self, first: str, second: str) -> Pair:
        assert self._p is not None
        i, j = self.arms.index(first), self.arms.index(second)
        p = float(self._p[i, j])
        is_settled = p < SIGNIFICANCE
        return Pair(
            first=first,
            second=second,
            difference=median_difference(self.finals[i], self.finals[j]),
            wins=win_probability(self._losses[i], self._losses[j]),
            effect=vargha_delaney(self._losses[i], self._losses[j]),
            p=p,
            is_settled=is_settled,
            seeds_needed=None if is_settled else self._seeds_needed(first, second),
        )

    def _seeds_needed(self, first: str, second: str) -> int | None:
        """How many seeds would settle a pair that these did not; None where nothing can be said of it."""
        if len(self.seeds) < LEAST_SEEDS:
            return None
        i, j = self.arms.index(first), self.arms.index(second)
        hypotheses = math.comb(len(self.arms), 2)
        return seeds_needed(self._losses[i], self._losses[j], hypotheses=hypotheses, power=POWER)

    def _beaten_by(self, arms: Sequence[str]) -> str:
        """Whom these arms beat, by rank."""
        found = {arm: [other for other in self.ranking if self.beats(arm, other)] for arm in arms}
        return "".join(f"; {arm} beats {', '.join(beaten)}" for arm, beaten in found.items() if beaten)

    def _open(self, arm: str) -> list[str]:
        """The arms that it neither beats nor is beaten by, by rank."""
        others = [other for other in self.ranking if other != arm]
        return [other for other in others if not self.beats(arm, other) and not self.beats(other, arm)]

    def _lead(self, second: str) -> str:
        """By how much the first arm is ahead of the second: below 0 where it is behind in the median."""
        difference = self._pair(self.ranking[0], second).difference
        if not math.isfinite(difference.value):
            return ""
        interval, sign = "", 1 if self.lower_wins else -1
        if difference.low is not None and difference.high is not None:
            low, high = sorted(0.0 - sign * end for end in (difference.low, difference.high))
            interval = f" [95% interval {low:.3g}, {high:.3g}]".replace("-", "−")
            if low <= 0 <= high:
                interval += ", which includes 0,"
        lead = f"{0.0 - sign * difference.value:.3g}".replace("-", "−")
        return f", by {lead}{interval} in the median against {second}"

    def _outlook(self, first: str) -> str:
        """What would settle the first arm against the next with which it is undecided.

        Fresh seeds: who adds some after each look, until there is a difference, finds one where there is none (in 13
        of 100 comparisons after five looks).
        """
        open_ones = self._open(first)
        if len(self.seeds) < LEAST_SEEDS or not open_ones:
            return ""
        needed = self._seeds_needed(first, open_ones[0])
        if needed is None or needed > MOST_SEEDS:
            return f"; against {open_ones[0]} not even {MOST_SEEDS:,} seeds would settle it"
        return f"; about {needed} fresh seeds would settle it against {open_ones[0]}"

    def _target(self, arm: str, target: float) -> TargetRow:
        units: tuple[Unit, ...] = ("trials", "epochs", "seconds")
        runs = self.runs_of(arm)
        spent = {
            unit: np.array([run.spent_until(target, unit, minimize=self.minimize) for run in runs])
            for unit in units
        }
        medians = {unit: spread(values).median for unit, values in spent.items()}
        return TargetRow(target, arm, int(np.isfinite(spent["trials"]).sum()), **medians)

    def _row(self, index: int, rank: float, p: float | None) -> ArmRow:
        runs = self.runs_of(self.arms[index])
        finals = self.finals[index]
        return ArmRow(
            arm=self.arms[index],
            mean_rank=float(rank),
            final=spread(finals),
            best=float(finals.min() if self.lower_wins else finals.max()),
            trials=sum(len(run.best) for run in runs),
            pruned=sum(run.pruned for run in runs),
            failed=sum(run.failed for run in runs),
            epochs=int(sum(run.epochs[-1] for run in runs)),
            seconds=sum(run.seconds for run in runs),
            p=p,
            test=_test_spread(runs, self.sign),
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
        runs.append(read_run(member.arm, member.seed, study))
    if not runs:
        raise NotFoundError(f"comparison {definition.name!r} has not been begun in this database")
    return ComparisonResult(definition, tuple(runs))


def _test_spread(runs: Sequence[Run], sign: int) -> Spread | None:
    """Of the test values, failures as the worst; None where some are not known yet, or there are none at all."""
    tests = [run.test for run in runs if run.best_number is not None]
    known = [test.value for test in tests if test is not None]
    if not known or len(known) < len(tests):
        return None
    found = np.array(known + [math.nan] * (len(runs) - len(tests)))
    return spread(np.where(np.isnan(found), sign * math.inf, found))


def _is_done(member: Member, run: Run | None) -> bool:
    """Whether a run has used up its budget."""
    if run is None or not len(run.best):
        return False
    budget, limit = member.definition.budget, member.definition.trials
    return (
        (limit is not None and len(run.best) >= limit)
        or (budget.epochs is not None and run.epochs[-1] >= budget.epochs)
        or (budget.seconds is not None and run.seconds >= 0.999 * budget.seconds)  # they are rounded
    )
