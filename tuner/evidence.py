"""Claims put to the test: a folder of comparisons, run one after the other, and what came out written into a document.

A claim's definition says in `[comparison]` what is claimed (`claim`) and which arm should beat which (`expected`). What
came out stands in the document between two marks, one pair a claim, and is written anew whenever the claim is run;
what stands outside the marks is a person's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from tuner.comparison import ComparisonResult, Pair
from tuner.definition import ComparisonDefinition
from tuner.errors import DefinitionError, NotFoundError
from tuner.report.page import replace_file
from tuner.report.wording import budget_text, count, estimate_text, number, p_value, spread_text

__all__ = ["find_claims", "judged", "paragraph", "write_paragraph"]

BEGIN = "<!-- evidence: written by `make evidence` -->"
END = "<!-- end of evidence -->"


def find_claims(folder: Path, only: Sequence[str] = ()) -> dict[str, ComparisonDefinition]:
    """The claims in a folder by the names of their files, sorted; only those whose names begin as given.

    Raises:
        NotFoundError: there is none.
        DefinitionError: one is no comparison with a claim.
    """
    paths = sorted(folder.glob("*.toml"))
    wanted = [path for path in paths if not only or any(path.stem.startswith(start) for start in only)]
    if not wanted:
        known = ", ".join(path.stem for path in paths) or "none"
        raise NotFoundError(f"{folder} has no such claim; there are: {known}")
    found = {path.stem: ComparisonDefinition.load(path) for path in wanted}
    for name, definition in found.items():
        if not definition.comparison.claim:
            raise DefinitionError(f"{folder / name}.toml: comparison.claim: says nothing of what is claimed")
    return found


def judged(result: ComparisonResult) -> str:
    """What became of a claim: it holds where the expected arm beats all that it should beat."""
    expected = result.definition.comparison.expected
    if not expected:
        return "judge by the numbers"
    best, *others = expected
    if all(result.beats(best, other) for other in others):
        return "holds"
    against = [other for other in others if result.beats(other, best)]
    if against:
        return (
            f"does not hold: {', '.join(against)} {'is' if len(against) == 1 else 'are'} better than {best}"
        )
    beaten = [other for other in others if result.beats(best, other)]
    return f"holds against {', '.join(beaten)} only" if beaten else "not shown: no significant difference"


def paragraph(name: str, result: ComparisonResult, folder: Path) -> str:
    """What came out of a claim, in Markdown."""
    definition = result.definition
    versions = ", ".join(f"{package} {version(package)}" for package in ("tuner", "optuna", "numpy"))
    lines = [
        f"**{definition.comparison.claim}** — *{judged(result)}.* {result.verdict}",
        "",
        "| arm | mean rank | best dev value: median [quartiles] | on test data | epochs |",
        "|---|---|---|---|---|",
        *(
            f"| {row.arm} | {row.mean_rank:.2f} | {spread_text(row.final)} "
            f"| {spread_text(row.test) if row.test else ''} | {count(row.epochs)} |"
            for row in result.table()
        ),
        "",
        *(f"- {_pair(pair)}" for pair in _told(result)),
        *(f"- {warning}" for warning in result.warnings),
        "",
        f"{definition.objective}, {len(result.seeds)} seeds, {budget_text(definition.budget)} for each arm and seed; "
        f"{datetime.now(UTC):%Y-%m-%d}, {versions}: `tuner compare {folder / name}.toml`.",
    ]
    return "\n".join(lines)


def write_paragraph(document: Path, name: str, text: str) -> None:
    """Put what came out of a claim into its place in a document, claims in the order of their names.

    Raises:
        DefinitionError: the document has no such places.
    """
    try:
        before, rest = document.read_text(encoding="utf-8").split(BEGIN)
        inside, after = rest.split(END)
    except (OSError, ValueError):
        raise DefinitionError(f"{document}: needs the lines {BEGIN} and {END}, once each") from None
    parts = dict(re.findall(r"<!-- claim (.+?) -->\n(.*?)\n<!-- end of claim -->", inside, re.DOTALL))
    parts[name] = text
    blocks = [f"<!-- claim {key} -->\n{parts[key]}\n<!-- end of claim -->\n" for key in sorted(parts)]
    replace_file(document, f"{before}{BEGIN}\n" + "\n".join(blocks) + f"{END}{after}")


def _told(result: ComparisonResult) -> list[Pair]:
    """The pairs that the claim is about; all of them where it names none."""
    expected = result.definition.comparison.expected
    if not expected:
        return result.pairs
    best, others = expected[0], set(expected[1:])
    return [
        pair
        for pair in result.pairs
        if best in (pair.first, pair.second) and others & {pair.first, pair.second}
    ]


def _pair(pair: Pair) -> str:
    return (
        f"{pair.first} − {pair.second}: median difference {estimate_text(pair.difference)}; P({pair.first} better) "
        f"{estimate_text(pair.wins)}, Â {number(pair.effect, 2)}, p {p_value(pair.p)}"
    )
