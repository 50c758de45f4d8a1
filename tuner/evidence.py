"""Claims put to the test: a folder of comparisons, run one after the other, and what came out written into a document.

A claim's definition says in `[comparison]` what is claimed (`claim`) and which arm should beat which (`expected`). What
came out stands in the document between two marks, one pair a claim, and is written anew whenever the claim is run;
what stands outside the marks is a person's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from tuner.comparison import ComparisonResult, Pair
from tuner.comparison.findings import (
    Importance,
    Interaction,
    Tested,
    agreement,
    importance,
    interaction,
    paired,
    require_importance,
)
from tuner.definition import ComparisonDefinition
from tuner.errors import DefinitionError, MissingDependencyError, NotFoundError
from tuner.report.page import replace_file
from tuner.report.wording import budget_text, count, estimate_text, number, p_value, spread_text
from tuner.samplers import build_sampler
from tuner.statistics import spread

__all__ = ["Finding", "find", "find_claims", "judged", "missing", "paragraph", "write_paragraph"]

BEGIN = "<!-- evidence: written by `make evidence` -->"
END = "<!-- end of evidence -->"


def find_claims(folder: Path, only: Sequence[str] = ()) -> dict[str, ComparisonDefinition]:
    """The claims in a folder by the names of their files, sorted; only those whose names begin as given.

    Raises:
        NotFoundError: there is none.
        DefinitionError: one is no comparison with a claim, or cannot find what it is about.
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
        if definition.comparison.finding == "importance":
            require_importance(definition)
    return found


def missing(definition: ComparisonDefinition) -> str | None:
    """What a claim needs that is not installed, in words; None where all is there."""
    for member in definition.members[: len(definition.comparison.arms)]:
        try:
            build_sampler(member.definition.sampler, member.definition.context)
        except MissingDependencyError as error:
            return str(error)
    return None


@dataclass(frozen=True, slots=True)
class Finding:
    """What came out of a claim: what became of it, in a few words, and the lines that show it, in Markdown."""

    verdict: str
    lines: list[str]


def find(result: ComparisonResult, on_step: Callable[[int, int], None] = lambda done, of: None) -> Finding:
    """What came out of a claim's comparison.

    Args:
        result: of the comparison.
        on_step: told how far it is, where that takes long.
    """
    kind = result.definition.comparison.finding
    if not result.seeds:
        return Finding("nothing to judge yet", [])
    if kind == "importance":
        found = importance(result, on_step)
        return Finding(_importance_verdict(found), _importance_lines(found))
    lines = _ranking(result)
    if kind == "interaction":
        effects = interaction(result)
        return Finding(
            _interaction_verdict(effects), [*lines, *_interaction_lines(effects), *_cautions(result)]
        )
    lines += [f"- {_pair(pair)}" for pair in _told(result)]
    if kind == "agreement":
        lines += _agreement_lines(result)
    return Finding(judged(result), [*lines, *_cautions(result)])


def judged(result: ComparisonResult) -> str:
    """What became of a claim about arms: it holds where each expected arm beats all that it should beat."""
    groups = result.definition.comparison.groups
    if not groups:
        return "judge by the numbers"
    others = [arm for group in groups[1:] for arm in group]
    verdicts: dict[str, list[str]] = {}
    for best in groups[0]:
        verdicts.setdefault(_judged_alone(result, best, others), []).append(best)
    if len(verdicts) == 1:
        return next(iter(verdicts))
    return "; ".join(f"{', '.join(arms)}: {verdict}" for verdict, arms in verdicts.items())


def _judged_alone(result: ComparisonResult, best: str, others: Sequence[str]) -> str:
    equal = [other for other in others if result.are_equivalent(best, other)]
    if len(equal) == len(others):
        matters = result.definition.comparison.matters or 0.0
        return f"does not hold: equivalent within {matters:g}"
    if all(result.beats(best, other) for other in others):
        return "holds"
    against = [other for other in others if result.beats(other, best)]
    if against:
        return (
            f"does not hold: {', '.join(against)} {'is' if len(against) == 1 else 'are'} better than {best}"
        )
    beaten = [other for other in others if result.beats(best, other)]
    return f"holds against {', '.join(beaten)} only" if beaten else "not shown: no significant difference"


def paragraph(name: str, result: ComparisonResult, folder: Path, finding: Finding) -> str:
    """What came out of a claim, in Markdown."""
    definition = result.definition
    versions = ", ".join(f"{package} {version(package)}" for package in _packages(definition))
    said = f" {result.verdict}" if definition.comparison.finding in ("ranking", "agreement") else ""
    problems = {member.definition.objective or "" for member in definition.members}
    where, is_ranking = ", ".join(sorted(problems)), definition.comparison.finding == "ranking"
    command = f"tuner compare {folder / name}.toml" if is_ranking else f"tuner evidence {name}"
    lines = [
        f"**{definition.comparison.claim}** — *{finding.verdict}.*{said}",
        "",
        *finding.lines,
        "",
        f"{where}, {len(result.seeds)} seeds, {budget_text(definition.budget)} for each arm and seed; "
        f"{datetime.now(UTC):%Y-%m-%d}, {versions}: `{command}`.",
    ]
    return "\n".join(lines)


def _packages(definition: ComparisonDefinition) -> list[str]:
    """What the numbers depend on."""
    samplers = {member.definition.sampler.name for member in definition.members}
    return ["tuner", "optuna", "numpy", *(["torch"] if "gp" in samplers else [])]


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


def _ranking(result: ComparisonResult) -> list[str]:
    comparison = result.definition.comparison
    judged_by = "best dev value" if comparison.judge == "dev" else result.judged_by
    has_test = comparison.judge != "test" and any(row.test for row in result.table())
    lines = [
        f"| arm | mean rank | {judged_by}: median [quartiles] |{' on test data |' if has_test else ''} epochs |",
        f"|---|---|---|---|{'---|' if has_test else ''}",
    ]
    for row in result.table():
        test = f" {spread_text(row.test) if row.test else ''} |" if has_test else ""
        lines.append(
            f"| {row.arm} | {row.mean_rank:.2f} | {spread_text(row.final)} |{test} {count(row.epochs)} |"
        )
    return [*lines, ""]


def _cautions(result: ComparisonResult) -> list[str]:
    return [f"- {warning}" for warning in result.warnings]


def _told(result: ComparisonResult) -> list[Pair]:
    """The pairs that the claim is about; all of them where it names none."""
    groups = result.definition.comparison.groups
    if not groups:
        return result.pairs
    better, others = set(groups[0]), {arm for group in groups[1:] for arm in group}
    return [
        pair
        for pair in result.pairs
        if {pair.first, pair.second} & better and {pair.first, pair.second} & others
    ]


def _pair(pair: Pair) -> str:
    return (
        f"{pair.first} − {pair.second}: median difference {estimate_text(pair.difference)}; P({pair.first} better) "
        f"{estimate_text(pair.wins)}, Â {number(pair.effect, 2)}, p {p_value(pair.p)}"
    )


# ---------------------------------------------------------------------------------------------------------- importance


def _importance_verdict(found: Sequence[Importance]) -> str:
    """It holds where each tier has more than the next by every method, with intervals above 0.

    It does not where a method has an interval below 0; one that includes 0 shows nothing, either way.
    """
    if not found[0].steps:  # one tier: the claim says nothing of what is before what
        return "judge by the numbers"
    said, is_contradicted = [], False
    for first, second in found[0].steps:
        by = [one.method for one in found if (one.steps[first, second].low or 0.0) > 0]
        against = [one.method for one in found if (one.steps[first, second].high or 0.0) < 0]
        told = "by both" if len(by) == len(found) else f"by {by[0]} only" if by else "not shown"
        if against:
            is_contradicted = True
            told += f", the other way by {', '.join(against)}"
        said.append((f"tier {first} above tier {second} {told}", len(by) == len(found)))
    if all(holds for _, holds in said):
        return "holds"
    in_part = "holds in part" if any(holds for _, holds in said) else "not shown"
    begins = "does not hold" if is_contradicted else in_part
    return f"{begins}: {', '.join(text for text, _ in said)}"


def _importance_lines(found: Sequence[Importance]) -> list[str]:
    methods = [one.method for one in found]
    lines = [
        f"| parameter | {' | '.join(f'share of importance, {method}' for method in methods)} |",
        f"|---|{'---|' * len(methods)}",
    ]
    names = sorted(found[0].shares, key=lambda name: -sum(one.shares[name].value for one in found))
    lines += [
        f"| {name} | {' | '.join(estimate_text(one.shares[name]) for one in found)} |" for name in names
    ]
    lines.append("")
    for first, second in found[0].steps:
        steps = ", ".join(f"{one.method} {estimate_text(one.steps[first, second])}" for one in found)
        lines.append(f"- Tier {first} − tier {second}, mean share of a parameter: {steps}")
    for problem in found[0].orders:
        orders = [one.orders[problem] for one in found]
        said = "; ".join(
            f"{one.method}: {', '.join(order)} (τ {number(tau, 2)})"
            for one, (order, tau) in zip(found, orders, strict=True)
        )
        lines.append(f"- {problem}: {said}")
    return lines


# -------------------------------------------------------------------------------------------- agreement and interaction


def _agreement_lines(result: ComparisonResult) -> list[str]:
    found = agreement(result)
    reference = result.definition.comparison.reference
    lines = [
        f"- Rank correlation with {reference} over the same points: "
        + ", ".join(f"{one.arm} {spread_text(spread(one.correlations), 2)}" for one in found)
        + " (median [quartiles] over seeds)"
    ]
    rows = {one.arm: one.correlations for one in found}
    groups = result.definition.comparison.groups
    asked = [(a, b) for a in groups[0] for group in groups[1:] for b in group] if groups else []
    for first, second in asked:
        if first in rows and second in rows:
            tested = _tested(paired(rows[first], rows[second]))
            lines.append(f"- Of these, {first} − {second}: {tested}, not adjusted")
    return lines


def _interaction_verdict(found: Interaction) -> str:
    """It holds where there is an effect in the first pair, and it shrinks; it does not where either is the other way
    round. What is not significant shows nothing, either way.
    """
    first, *_ = found.effects.values()
    if not first.is_settled:
        return "not shown: no significant effect in the first pair"
    if not first.is_above:
        return "does not hold: the effect is the other way round in the first pair"
    if not found.shrinks.is_settled:
        return "not shown: an effect in the first pair, but no significant change to the last"
    return "holds" if found.shrinks.is_above else "does not hold: an effect in the first pair, and it grows"


def _interaction_lines(found: Interaction) -> list[str]:
    first, *others = (f"- {name}: {_tested(effect)}" for name, effect in found.effects.items())
    return [
        f"{first}, Holm over two questions",
        *(f"{other}, not adjusted" for other in others),
        f"- Of the first pair minus that of the last: {_tested(found.shrinks)}, Holm over two questions",
    ]


def _tested(found: Tested) -> str:
    return f"median {estimate_text(found.difference)}, p {p_value(found.p)}"
