"""What a comparison has found: arms over paired seeds, read back from the database and judged.

`runs` reads a member study, `result` judges them all, `figures` draws them, `export` writes them down to be repeated,
`problems` puts several comparisons of the same arms together. Nothing here runs trials; the manager does. Everything is
computed from what the member studies hold, so that a comparison that was interrupted and went on, or one that is still
running, is read in the same way.
"""

from tuner.comparison.problems import ProblemRow, ProblemsResult, require_problems
from tuner.comparison.result import TEST, ArmRow, ComparisonResult, Pair, TargetRow, read_comparison
from tuner.comparison.runs import Curve, Run, TestValues, Unit

__all__ = [
    "TEST",
    "ArmRow",
    "ComparisonResult",
    "Curve",
    "Pair",
    "ProblemRow",
    "ProblemsResult",
    "Run",
    "TargetRow",
    "TestValues",
    "Unit",
    "read_comparison",
    "require_problems",
]
