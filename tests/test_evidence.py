"""Claims put to the test: found, judged, and written where they belong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command import STUDY, Tuner

from tuner import ComparisonDefinition
from tuner.comparison import ComparisonResult, Run
from tuner.definition import studies_folders
from tuner.errors import DefinitionError, NotFoundError
from tuner.evidence import find_claims, judged, write_paragraph

DOCUMENT = "# Mine\n\n<!-- evidence: written by `make evidence` -->\n<!-- end of evidence -->\n\nmine, too\n"


def claimed(finals: dict[str, list[float]], expected: list[str]) -> ComparisonResult:
    seeds = len(next(iter(finals.values())))
    document = {
        "name": "c",
        "budget": {"trials": 1},
        "comparison": {
            "claim": "it is so",
            "expected": expected,
            "seeds": seeds,
            "arms": [{"name": arm} for arm in finals],
        },
    }
    runs = [
        Run(arm, seed, f"c.{arm}", np.array([value]), np.array([1.0]), 1, 0, 0, 1.0, {}, 0)
        for arm, values in finals.items()
        for seed, value in enumerate(values)
    ]
    return ComparisonResult(ComparisonDefinition.parse(document), tuple(runs))


def test_a_claim_holds_only_where_the_arm_beats_all_that_it_should() -> None:
    rng = np.random.default_rng(0)
    a, noise = rng.normal(size=12), rng.normal(size=12) / 10
    finals = {"a": list(a), "b": list(a + 2 + noise), "c": list(a + noise)}
    assert judged(claimed(finals, ["a", "b"])) == "holds"
    assert judged(claimed(finals, ["b", "a"])) == "does not hold: a is better than b"
    assert judged(claimed(finals, ["b", "a", "c"])) == "does not hold: a, c are better than b"
    assert judged(claimed(finals, ["a", "c"])) == "not shown: no significant difference"
    assert judged(claimed(finals, ["a", "b", "c"])) == "holds against b only"
    assert judged(claimed(finals, [])) == "judge by the numbers"


@pytest.mark.parametrize(
    ("expected", "says"),
    [
        (["a", "x"], "there is no 'x' among a, b"),
        (["a"], "two or more different arms; got a"),
        (["a", "a"], "got a, a"),
    ],
)
def test_what_is_expected_are_arms(expected: list[str], says: str) -> None:
    with pytest.raises(DefinitionError, match=says):
        claimed({"a": [1.0], "b": [2.0]}, expected)


def test_each_claim_has_its_place_and_what_a_person_wrote_stays(tmp_path: Path) -> None:
    document = tmp_path / "README.md"
    document.write_text(DOCUMENT)
    write_paragraph(document, "02-b", "second")
    write_paragraph(document, "01-a", "first\n\n| with | a table |")
    write_paragraph(document, "03 c", "third")
    write_paragraph(document, "02-b", "second, anew")
    text = document.read_text()
    assert text.startswith("# Mine\n")
    assert text.endswith("<!-- end of evidence -->\n\nmine, too\n")
    assert text.index("first\n\n| with") < text.index("second, anew")
    assert "second\n" not in text
    assert "third\n" in text
    assert text.count("<!-- claim ") == 3
    (tmp_path / "other.md").write_text("no marks")
    with pytest.raises(DefinitionError, match="needs the lines"):
        write_paragraph(tmp_path / "other.md", "01-a", "text")


def test_claims_are_found_by_the_beginnings_of_their_names(tmp_path: Path) -> None:
    claim = STUDY.replace("seeds = 2", 'seeds = 2\nclaim = "it is so"')
    for name in ("01-a", "02-b", "10-c"):
        (tmp_path / f"{name}.toml").write_text(claim)
    assert list(find_claims(tmp_path)) == ["01-a", "02-b", "10-c"]
    assert list(find_claims(tmp_path, ["02", "1"])) == ["02-b", "10-c"]
    with pytest.raises(NotFoundError, match="there are: 01-a, 02-b, 10-c"):
        find_claims(tmp_path, ["7"])
    (tmp_path / "03-d.toml").write_text(STUDY)
    with pytest.raises(DefinitionError, match=r"03-d\.toml: comparison\.claim: says nothing"):
        find_claims(tmp_path)


def test_our_claims_are_definitions_that_can_be_run() -> None:
    claims = find_claims(studies_folders()[0] / "claims")
    assert len({definition.name for definition in claims.values()}) == len(claims) >= 15


def test_evidence_runs_claims_and_writes_what_came_out(tuner: Tuner, tmp_path: Path) -> None:
    (tmp_path / "claims").mkdir()
    claim = STUDY.replace(
        "seeds = 2", 'seeds = 2\nclaim = "Sobol beats random"\nexpected = ["sobol", "random"]'
    )
    (tmp_path / "claims" / "01-sobol.toml").write_text(claim)
    (tmp_path / "notes.md").write_text(DOCUMENT)
    options = ["--claims", "claims", "--document", "notes.md", "--workers", "1"]
    code, out, _ = tuner("evidence", *options)
    assert (code, out) == (0, "01-sobol: not shown: no significant difference\n")
    text = (tmp_path / "notes.md").read_text()
    assert "**Sobol beats random** — *not shown: no significant difference.*" in text
    assert "branin, 2 seeds, 6 trials for each arm and seed" in text
    assert "optuna 5" in text
    assert "`tuner compare claims/01-sobol.toml`" in text
    assert (tmp_path / "evidence" / "01-sobol" / "index.html").exists()
    assert (tmp_path / "evidence.db").exists()
    assert tuner("evidence", *options)[0] == 0  # there already: written anew, the same
    assert (tmp_path / "notes.md").read_text() == text
