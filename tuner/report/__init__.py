"""The report of a comparison: one HTML page that needs nothing else, files for other programs, tables for the terminal.

The page is a sequence of sections, each a function from the result to HTML; its plots are those of
`tuner.comparison.figures`, drawn by the page's script in the reader's colours. Whatever comes from a definition or a
trial is text until `tag` has escaped it.
"""

from tuner.comparison.export import finite
from tuner.report.page import page, write_problems, write_report
from tuner.report.png import write_pngs
from tuner.report.terminal import pairs_table, problems_table, terminal_table

__all__ = [
    "finite",
    "page",
    "pairs_table",
    "problems_table",
    "terminal_table",
    "write_pngs",
    "write_problems",
    "write_report",
]
