"""Claims put to the test: found, judged, and written where they belong."""

from __future__ import annotations

import importlib.util
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from command import STUDY, Tuner
from optuna.trial import create_trial

from tuner import ComparisonDefinition
from tuner.comparison import ComparisonResult, Run, TestValues
from tuner.comparison.runs import read_run
from tuner.definition import studies_folders
from tuner.errors import DefinitionError, NotFoundError
from tuner.evidence import find, find_claims, judged, missing, write_paragraph

DOCUMENT = "# Mine\n\n<!-- evidence: written by `make evidence` -->\n<!-- end of evidence -->\n\nmine, too\n"


def claimed(
    finals: dict[str, list[float]], expected: list[str | list[str]], **comparison: Any
) -> ComparisonResult:
    seeds = len(next(iter(finals.values())))
    document = {
        "name": "c",
        "budget": {"trials": 1},
        "comparison": {
            "claim": "it is so",
            "expected": expected,
            "seeds": seeds,
            "arms": [{"name": arm} for arm in finals],
            **comparison,
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


def test_a_group_stands_for_each_of_its_members() -> None:
    rng = np.random.default_rng(0)
    a, noise = rng.normal(size=12), rng.normal(size=12) / 10
    finals = {"a": list(a), "b": list(a + 2 + noise), "c": list(a + noise)}
    assert judged(claimed(finals, [["a", "c"], "b"])) == "holds"
    assert judged(claimed(finals, ["a", ["b", "c"]])) == judged(claimed(finals, ["a", "b", "c"]))
    assert (
        judged(claimed(finals, [["a", "b"], "c"]))
        == "a: not shown: no significant difference; b: does not hold: c is better than b"
    )
    told = find(claimed(finals, [["a", "c"], "b"])).lines
    assert {line.split(":")[0] for line in told if " − " in line} == {"- a − b", "- c − b"}


def test_what_does_not_matter_is_equivalent() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=12)
    finals = {"a": list(a), "b": list(a + 1e-6)}
    assert judged(claimed(finals, ["a", "b"])) == "holds"
    assert judged(claimed(finals, ["a", "b"], matters=0.01)) == "does not hold: equivalent within 0.01"
    verdict = claimed(finals, ["a", "b"], matters=0.01).verdict
    assert verdict.startswith("a is best over 12 seeds")
    assert verdict.endswith(". Equivalent within 0.01: a and b.")
    assert judged(claimed(finals, ["a", "b"], matters=1e-7)) == "holds"
    assert "quivalent" not in claimed(finals, ["a", "b"], matters=1e-7).verdict
    few = {arm: values[:5] for arm, values in finals.items()}
    assert not claimed(few, ["a", "b"], matters=0.01).are_equivalent("a", "b")


@pytest.mark.parametrize(
    ("expected", "says"),
    [
        ([["a", "x"], "b"], "there is no 'x' among a, b"),
        ([["a", "b"]], "got a, b"),
        ([["a"], []], "two or more different arms; got a"),
        ([["a", "b"], "b"], "got a, b, b"),
        (["a", "x"], "there is no 'x' among a, b"),
        (["a"], "two or more different arms; got a"),
        (["a", "a"], "got a, a"),
    ],
)
def test_what_is_expected_are_arms(expected: list[str | list[str]], says: str) -> None:
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
    single = claim.replace("[space.x1]\nlow = 0\nhigh = 15\n", "").replace(
        "seeds = 2", 'seeds = 2\nfinding = "importance"'
    )
    (tmp_path / "04-e.toml").write_text(single)
    with pytest.raises(DefinitionError, match="importance needs two or more parameters"):
        find_claims(tmp_path, ["04"])


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


def test_a_claim_whose_sampler_is_not_installed_is_left_out_with_the_reason(
    tuner: Tuner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "claims").mkdir()
    claim = STUDY.replace("seeds = 2", 'seeds = 2\nclaim = "it is so"').replace('"sobol"', '"gp"')
    (tmp_path / "claims" / "05-gp.toml").write_text(claim)
    (tmp_path / "notes.md").write_text(DOCUMENT)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else found(name))
    code, out, _ = tuner("evidence", "--claims", "claims", "--document", "notes.md", "--workers", "1")
    assert (code, out) == (
        0,
        "05-gp: left out: sampler 'gp' needs PyTorch, which is not installed: pip install 'tuner[gp]'\n",
    )
    assert (tmp_path / "notes.md").read_text() == DOCUMENT
    assert missing(ComparisonDefinition.load(tmp_path / "small.toml")) is None


# ------------------------------------------------------------------------------------------------------- what is judged


def with_values(judge: str, values: dict[str, list[Any]], **comparison: Any) -> ComparisonResult:
    """Two arms whose dev values are alike, judged otherwise; `values` changes each run."""
    result = claimed({arm: [1.0] * len(runs) for arm, runs in values.items()}, [], judge=judge, **comparison)
    runs = [replace(run, **values[run.arm][run.seed]) for run in result.runs]
    return replace(result, runs=tuple(runs))


def test_arms_can_be_judged_by_their_test_values() -> None:
    def tested(value: float) -> dict[str, Any]:
        return {"test": TestValues(0, {"test_loss": (value, value)})}

    values = {"a": [tested(0.2), tested(math.nan), {"test": None}], "b": [tested(0.1), tested(5), tested(5)]}
    result = with_values("test", values)
    assert result.seeds == [0, 1]
    assert result.finals.tolist() == [[0.2, math.inf], [0.1, 5]]
    assert result.ranking == ["b", "a"]
    assert result.judged_by == "test value"
    nothing = {"best_number": None, "test": None}
    assert with_values("test", {"a": [nothing], "b": [tested(1)]}).finals.tolist() == [[math.inf], [1.0]]
    begun = with_values("test", {"a": [{}], "b": [{}]})
    assert begun.verdict == "Nothing to compare yet: no seed has a test value in every arm."


def test_arms_can_be_judged_by_when_they_reach_a_target() -> None:
    def run(*best: float) -> dict[str, Any]:
        return {"best": np.array(best), "epochs": np.arange(1.0, len(best) + 1)}

    values = {"a": [run(3, 2, 1), run(3, 3, 3)], "b": [run(3, 1, 1), run(1, 1, 1)]}
    result = with_values("time-to-target", values, targets=[1.5, 0.5])
    assert result.finals.tolist() == [[3, math.inf], [2, 1]]
    assert result.ranking == ["b", "a"]
    assert result.judged_by == "trials until 1.5"
    document = result.definition.dump() | {"direction": "maximize"}
    upwards = ComparisonResult(ComparisonDefinition.parse(document), result.runs)
    assert upwards.lower_wins
    assert upwards.finals.tolist() == [[1, 1], [1, math.inf]]


def test_arms_can_be_judged_by_a_metric_of_the_best_trial_or_the_spread_of_all() -> None:
    def trials(number: int, *values: float, **metrics: float) -> dict[str, Any]:
        made = []
        for place, value in enumerate(values):
            trial = create_trial(value=value, user_attrs=metrics if place == number else {"gap": 99.0})
            trial.number = place
            made.append(trial)
        return {"trials": tuple(made), "best_number": number}

    values = {
        "a": [trials(1, 5, 1, gap=0.5), trials(0, 1, 1, last_gap=0.3, gap=7)],
        "b": [trials(0, 1, 4, 2, gap=0.1), trials(0, 1, gap=0.2)],
    }
    result = with_values("metric", values, metric="gap")
    assert result.finals.tolist() == [[0.5, 0.3], [0.1, 0.2]]  # last_gap: gap is a parameter's name there
    assert find(result).lines[0] == "| arm | mean rank | gap: median [quartiles] | epochs |"
    spread = with_values("spread", values)
    assert spread.seeds == [0]  # one trial has no spread
    assert spread.finals.tolist() == [[4], [3]]
    failed = with_values("spread", {"a": [{**trials(0, 1, 2), "failed": 1}], "b": [trials(0, 1, 2)]})
    assert failed.finals.tolist() == [[math.inf], [1]]
    lost = with_values("spread", {"a": [trials(0, math.inf, math.inf)], "b": [trials(0, 1, math.inf)]})
    assert lost.finals.tolist() == [[math.inf], [math.inf]]
    unknown = with_values("metric", values, metric="no_such")
    assert unknown.verdict == "Nothing to compare yet: no seed has the metric no_such in every arm."


@pytest.mark.parametrize(
    ("comparison", "says"),
    [
        ({"judge": "test", "test_repeats": 0}, "needs test_repeats of 1 or more; got 0"),
        ({"judge": "time-to-target"}, "'time-to-target' needs targets; there are none"),
        ({"judge": "metric"}, "metric goes with judge 'metric'; got judge 'metric' and metric ''"),
        ({"metric": "gap"}, "got judge 'dev' and metric 'gap'"),
        ({"finding": "agreement"}, "reference goes with finding 'agreement'"),
        ({"finding": "agreement", "reference": "x"}, "reference names an arm; there is no 'x' among a, b"),
        ({"finding": "interaction"}, "needs two pairs of arms or more; got 2 arms"),
        ({"judge": "best"}, "judge"),
    ],
)
def test_what_decides_must_be_complete(comparison: dict[str, Any], says: str) -> None:
    with pytest.raises(DefinitionError, match=says):
        claimed({"a": [1.0], "b": [2.0]}, [], **comparison)


def test_test_values_need_an_objective_and_a_sampler_that_have_them() -> None:
    document = {
        "name": "c",
        "objective": "branin",
        "space": {"x0": {"low": -5.0, "high": 10.0}},
        "comparison": {"judge": "test", "arms": [{"name": "a"}, {"name": "b"}]},
    }
    with pytest.raises(DefinitionError, match="judge 'test' needs test data; objective 'branin' has none"):
        ComparisonDefinition.parse(document)
    document |= {
        "objective": "digits",
        "space": {"learning_rate": {"low": 0.01, "high": 1.0}},
        "sampler": {"name": "population-based"},
        "budget": {"epochs": 100},
    }
    with pytest.raises(DefinitionError, match="judge 'test' cannot judge arm 'a'"):
        ComparisonDefinition.parse(document)


def test_a_metric_is_kept_apart_from_what_a_run_records_itself() -> None:
    study = optuna.create_study()
    study.add_trial(create_trial(value=1.0))
    metrics = {"trial": 0.5, "seed": 7.0, "epochs": 2.0, "arm": 1.0, "test_loss": 3.0}
    study.set_user_attr("tuner:test", {"trial": 0, "metrics": [metrics]})
    run = read_run("a", 0, study)
    assert run.test is not None
    assert run.test.value == 0.5  # the first metric still is the value's counterpart
    assert set(run.test.metrics) == {
        "metric_trial",
        "metric_seed",
        "metric_epochs",
        "metric_arm",
        "test_loss",
    }
    result = ComparisonResult(claimed({"a": [1.0], "b": [1.0]}, []).definition, (run,))
    (document,) = json.loads(result.to_json())["runs"]
    assert document["test"]["trial"] == 0
    assert document["test"]["metric_trial"] == [0.5]


def test_a_claim_about_importance_is_judged_from_the_trials_of_its_comparison(
    tuner: Tuner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuner.comparison.findings.RESAMPLES", 2)
    monkeypatch.setattr("tuner.comparison.importance.TREES", 2)
    (tmp_path / "claims").mkdir()
    claim = STUDY.replace("seeds = 2", 'seeds = 2\nclaim = "x0 matters most"\nfinding = "importance"')
    claim = claim.replace("high = 10", "high = 10\npriority = 1").replace('"sobol"}', '"random"}')
    (tmp_path / "claims" / "06-x0.toml").write_text(claim)
    (tmp_path / "notes.md").write_text(DOCUMENT)
    code, out, _ = tuner("evidence", "--claims", "claims", "--document", "notes.md", "--workers", "1")
    assert code == 0
    text = (tmp_path / "notes.md").read_text()
    verdict = out.removeprefix("06-x0: ").strip()
    assert f"**x0 matters most** — *{verdict}.*\n" in text
    assert "| parameter | share of importance, PED-ANOVA | share of importance, fANOVA |" in text
    assert "- Tier 1 − tier 2, mean share of a parameter: PED-ANOVA" in text
    assert "`tuner evidence 06-x0`" in text
    assert "mean rank" not in text
