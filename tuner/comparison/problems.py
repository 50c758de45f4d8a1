"""Several comparisons of the same arms, each on a problem of its own: mean ranks over seeds, then over problems.

Seeds of one problem are not independent problems: so each problem counts once, with the mean ranks over its seeds, and
the tests are over problems (Demšar 2006). What holds on many seeds of one problem is that problem's result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tuner.comparison.result import SIGNIFICANCE, TEST, ComparisonResult
from tuner.comparison.runs import Floats
from tuner.definition import ComparisonDefinition
from tuner.errors import DefinitionError
from tuner.statistics import friedman_p, pairwise_p, signed_ranks

__all__ = ["ProblemRow", "ProblemsResult", "require_problems"]


@dataclass(frozen=True, slots=True)
class ProblemRow:
    """An arm over all problems. `ranks` are its mean ranks over the seeds of each; `p` that of its difference from the
    first arm over problems, None for the first and with fewer than two problems."""

    arm: str
    mean_rank: float
    ranks: tuple[float, ...]
    p: float | None


def require_problems(definitions: Sequence[ComparisonDefinition]) -> None:
    """See that these are comparisons of the same arms under different names.

    Raises:
        DefinitionError: they are not.
    """
    if len(definitions) < 2:
        raise DefinitionError(f"mean ranks over problems need two comparisons; got {len(definitions)}")
    arms = {definition.name: [arm.name for arm in definition.comparison.arms] for definition in definitions}
    if len(arms) < len(definitions):
        names = ", ".join(definition.name for definition in definitions)
        raise DefinitionError(f"problems need different names; got {names}")
    (first, wanted), *others = arms.items()
    for name, there in others:
        if set(there) != set(wanted):
            raise DefinitionError(
                f"problems need the same arms; {first} has {', '.join(wanted)}, {name} has {', '.join(there)}"
            )


@dataclass(frozen=True)
class ProblemsResult:
    """Comparisons of the same arms on several problems.

    Raises:
        DefinitionError: there are fewer than two, or they do not compare the same arms under different names.
    """

    results: tuple[ComparisonResult, ...]

    def __post_init__(self) -> None:
        require_problems([result.definition for result in self.results])

    @property
    def arms(self) -> list[str]:
        """The arms in the first definition's order."""
        return self.results[0].arms

    @property
    def problems(self) -> list[str]:
        """Their names: those that have something to compare."""
        return [result.definition.name for result in self._judged]

    @cached_property
    def ranks(self) -> Floats:
        """Mean ranks over the seeds of each problem; shape (arms, problems)."""
        found = [{row.arm: row.mean_rank for row in result.table()} for result in self._judged]
        return np.array([[ranks[arm] for ranks in found] for arm in self.arms])

    def table(self) -> list[ProblemRow]:
        """The arms by their mean rank over problems, the best first."""
        if not self._judged:
            return []
        means = self.ranks.mean(axis=1).round(9)  # thirds do not add up to the same in any order
        order = sorted(range(len(self.arms)), key=lambda i: means[i])
        return [
            ProblemRow(
                self.arms[i],
                float(means[i]),
                tuple(self.ranks[i].tolist()),
                None if self._p is None or i == order[0] else float(self._p[order[0], i]),
            )
            for i in order
        ]

    @cached_property
    def friedman_p(self) -> float | None:
        """Whether the arms differ at all over problems; None where there is too little to say."""
        return friedman_p(self.ranks) if self._judged else None

    @property
    def ranking(self) -> list[str]:
        """The arms, the best first."""
        return [row.arm for row in self.table()]

    @property
    def winner(self) -> str | None:
        """The first arm, if it differs significantly from every other over problems."""
        if self._p is None:
            return None
        first, *others = (self.arms.index(arm) for arm in self.ranking)
        decided = all(
            self._p[first, i] < SIGNIFICANCE and signed_ranks(self.ranks[first], self.ranks[i]) < 0
            for i in others
        )
        return self.arms[first] if decided else None

    @property
    def verdict(self) -> str:
        """The outcome in one or two sentences."""
        rows, n = self.table(), len(self._judged)
        if not rows:
            return "Nothing to compare yet."
        if self.winner is not None:
            return (
                f"{self.winner} is best over {n} problems ({TEST}, p < {SIGNIFICANCE} against every other)."
            )
        tied = [row.arm for row in rows if row.mean_rank == rows[0].mean_rank]
        if len(tied) > 1:
            return f"{', '.join(tied)} share the best mean rank over {n} problems; no winner."
        start = f"{rows[0].arm} has the best mean rank over {n} problems ({rows[0].mean_rank:.2f})"
        smallest = 2 * 0.5**n * math.comb(len(rows), 2)
        few = f"; {n} problems are too few for any to be" if smallest >= SIGNIFICANCE else ""
        return f"{start}, but not every difference is significant over problems ({TEST}){few}."

    def to_dict(self) -> dict[str, Any]:
        """Ranking and verdict in plain types."""
        return {
            "problems": self.problems,
            "verdict": self.verdict,
            "winner": self.winner,
            "friedman_p": self.friedman_p,
            "ranking": [
                {"arm": row.arm, "mean_rank": row.mean_rank, "p": row.p, "ranks": list(row.ranks)}
                for row in self.table()
            ],
        }

    @cached_property
    def _judged(self) -> list[ComparisonResult]:
        return [result for result in self.results if result.seeds]

    @cached_property
    def _p(self) -> Floats | None:
        return pairwise_p(self.ranks) if len(self._judged) > 1 else None
