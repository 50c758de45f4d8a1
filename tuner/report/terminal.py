"""The ranking for a terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from tuner.comparison import ComparisonResult, ProblemsResult
from tuner.comparison.figures import shown_pairs
from tuner.report.wording import count, estimate_text, number, p_value, spread_text

__all__ = ["pairs_table", "problems_table", "terminal_table"]


def terminal_table(result: ComparisonResult) -> Table:
    """The arms by rank; at most 80 columns wide, where names are short."""
    rows = result.table()
    titles = ["mean\nrank", "median [q1, q3]", "best", "p", "trials\n(pruned)", "epochs", "seconds"]
    has_test = any(row.test is not None for row in rows)
    table = _table("arm", [*titles[:3], *(["test"] if has_test else []), *titles[3:]])
    for row in rows:
        table.add_row(
            Text(row.arm),
            f"{row.mean_rank:.2f}",
            spread_text(row.final, 3),
            number(row.best, 3),
            *([number(row.test.median, 3) if row.test else ""] if has_test else []),
            p_value(row.p),
            f"{count(row.trials)} ({count(row.pruned)})",
            count(row.epochs),
            count(row.seconds),
        )
    return table


def pairs_table(result: ComparisonResult) -> Table:
    """Paired differences between arms: of all pairs, or of those with the first arm where there are many."""
    table = _table("pair", ["median difference", "P(first better)", "Â", "p", "seeds to\nsettle it"])
    for pair in shown_pairs(result):
        needed = (
            "settled" if pair.is_settled else "–" if pair.seeds_needed is None else count(pair.seeds_needed)
        )
        table.add_row(
            Text(f"{pair.first} − {pair.second}"),
            estimate_text(pair.difference),
            estimate_text(pair.wins),
            f"{pair.effect:.2f}",
            p_value(pair.p),
            needed,
        )
    return table


def problems_table(result: ProblemsResult) -> Table:
    """The arms over several problems: mean ranks over the seeds of each, and over the problems."""
    table = _table("arm", ["mean\nrank", *result.problems, "p"])
    for row in result.table():
        ranks = [f"{rank:.2f}" for rank in row.ranks]
        table.add_row(Text(row.arm), f"{row.mean_rank:.2f}", *ranks, p_value(row.p))
    return table


def _table(first: str, titles: list[str]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False, header_style="bold")
    table.add_column(first, no_wrap=True)
    for title in titles:
        table.add_column(Text(title), justify="right", no_wrap=True, vertical="bottom")
    return table
