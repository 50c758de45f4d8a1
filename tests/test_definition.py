"""The definition document: one document for TOML, JSON and Python; clear words for every mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tuner import ComparisonDefinition, StudyDefinition
from tuner.definition import find_definition, load_definition
from tuner.errors import DefinitionError, NotFoundError
from tuner.samplers import SAMPLERS

X = {"x": {"low": 0, "high": 1}}
ARMS = [{"name": "a"}, {"name": "b"}]

MISTAKES = [
    ({"name": "a b"}, "name: must match ^[A-Za-z0-9]", "'a b'"),
    ({}, "name: missing", ""),
    ({"name": "a", "sede": 1}, "sede: unknown key (did you mean 'seed'?); accepted: ", "budget"),
    ({"name": "a", "seed": -1}, "seed: input should be greater than or equal to 0", "-1"),
    ({"name": "a", "seed": "1"}, "seed: input should be a valid integer", "'1'"),
    ({"name": "a", "budget": {"trials": 0}}, "budget.trials: input should be greater than", "got 0"),
    ({"name": "a", "budget": {"trails": 9}}, "budget.trails: unknown key (did you mean 'trials'?)", "epochs"),
    (
        {"name": "a", "sampler": {"name": "tpee"}},
        "sampler.name: there is no 'tpee' (did you mean 'tpe'?)",
        "sobol",
    ),
    (
        {"name": "a", "pruner": {"name": "medium"}},
        "pruner.name: there is no 'medium' (did you mean 'median'?)",
        "none",
    ),
    ({"name": "a", "sampler": {}}, "sampler: needs a name", "{}"),
    (
        {"name": "a", "sampler": {"name": "tpe", "startup": 3}},
        "sampler.startup: unknown key",
        "startup_trials",
    ),
    ({"name": "a", "pruner": {"name": "percentile"}}, "pruner.percentile: missing", ""),
    (
        {"name": "a", "space": {"x": {"low": 3, "high": 1}}},
        "space.x: the range is empty",
        "low=3.0, high=1.0",
    ),
    (
        {"name": "a", "space": {"x": {"low": 0, "high": 1, "scale": "log"}}},
        "space.x: log scale needs 0 < low",
        "low=0",
    ),
    (
        {"name": "a", "space": {"x": {"low": 0, "high": 1, "scale": "reverse_log"}}},
        "space.x: reverse_log scale needs low <= high < 1",
        "high=1",
    ),
    (
        {"name": "a", "space": {"x": {"low": 0, "high": 1, "scale": "lgo"}}},
        "space.x.scale: input should be",
        "'lgo'",
    ),
    ({"name": "a", "space": {"x": {"low": 0}}}, "space.x.high: missing", ""),
    (
        {"name": "a", "space": {"x": {"low": 0, "high": 1, "hihg": 1}}},
        "space.x.hihg: unknown key (did you mean 'high'?)",
        "",
    ),
    ({"name": "a", "space": {"x": {"choices": []}}}, "space.x.choices: ", "got []"),
    ({"name": "a", "space": {"x": {"choices": ["u", "u"]}}}, "space.x: choices must differ", "'u'"),
    (
        {"name": "a", "space": {"x": {"type": "flaot"}}},
        "space.x: a parameter is a table with type",
        "'flaot'",
    ),
    ({"name": "a", "space": X, "fixed": {"x": 1}}, "'x' is both in fixed and in space", ""),
    (
        {"name": "a", "space": {"y": {"low": 0, "high": 1, "when": {"z": 1}}}},
        "space: y.when names 'z'",
        "none",
    ),
    (
        {"name": "a", "budget": {"trials": 9}, "sampler": {"name": "grid"}},
        "sampler 'grid' lays its points",
        "is empty",
    ),
    (
        {"name": "a", "space": X, "sampler": {"name": "grid", "levels": {"x": [0.5, 0.5]}}},
        "sampler.levels.x must differ",
        "0.5",
    ),
    (
        {"name": "a", "space": {"k": {"choices": ["u"]}, "y": {"low": 0, "high": 1, "when": {"k": "v"}}}},
        "space: y.when wants k = 'v', which is none of its choices",
        "['u']",
    ),
    (
        {"name": "a", "space": {"x": {"low": -1.7e308, "high": 1.7e308}}},
        "space.x: the range is too wide",
        "1.7e+308",
    ),
    (
        {"name": "a", "space": {"x": {"low": 0, "high": 1, "step": 1e-40}}},
        "space.x: step makes more than 2^53",
        "1e-40",
    ),
    ({"name": "a", "sampler": "tpe"}, "sampler: needs a table", "'tpe'"),
    (
        {"name": "a", "sampler": {"name": "coarse-to-fine", "inside": "random", "stages": [10, 0]}},
        "sampler.stages.1: input should be greater than or equal to 1",
        "got 0",
    ),
    (
        {"name": "a", "sampler": {"name": "coarse-to-fine", "inside": "random", "stages": []}},
        "sampler.stages: list should have at least 1 item",
        "got []",
    ),
    (
        {"name": "a", "sampler": {"name": "coarse-to-fine", "inside": "random", "stages": 10}},
        "sampler.stages: input should be 'by-priority' or a valid list",
        "got 10",
    ),
    ({"name": "a", "fixed": {"x": [1, float("nan")]}}, "fixed.x.1: input should be a finite number", "nan"),
    (
        {"name": "a", "pruner": {"name": "percentile", "percentile": 50.0, "foo": 1}},
        "pruner.foo: unknown key",
        "percentile",
    ),
    (
        {"name": "a", "pruner": {"name": "percentile", "percentile": 50.0, "startup_trials": -1}},
        "pruner.startup_trials: ",
        "got -1",
    ),
    (
        {"name": "a", "sampler": {"name": "tpe", "tpe": {"startup_trials": 5}}},
        "sampler.tpe: unknown key",
        "candidates",
    ),
    ({"name": "a", "fixed": {"x": float("nan")}}, "fixed.x: ", "nan"),
    ({"name": "a", "space": X, "sampler": {"name": "grid"}}, "a grid needs budget.trials", "sampler.levels"),
    ({"name": "a", "comparison": {"arms": ARMS[:1]}}, "comparison.arms: ", "at least 2"),
    ({"name": "a", "comparison": {"arms": ARMS[:1] * 2}}, "arms need different names", "'a'"),
    (
        {"name": "a", "comparison": {"arms": [*ARMS, {"name": "c", "smapler": {}}]}},
        "comparison.arms.2.smapler: unknown key (did you mean 'sampler'?)",
        "",
    ),
    (
        {"name": "a", "comparison": {"arms": [*ARMS, {"name": "c", "sampler": {"name": "grid", "n": 1}}]}},
        "comparison.arms.2.sampler.n: unknown key",
        "levels",
    ),
    ({"name": "a", "objective": "digit"}, "objective: no objective is named 'digit'", "digits"),
    (
        {"name": "a", "objective": "digits", "direction": "maximize"},
        "direction: objective 'digits' is to minimize",
        "",
    ),
    (
        {"name": "a", "objective": "digits", "space": {"learning_rat": {"low": 1e-3, "high": 1}}},
        "space.learning_rat: objective 'digits' has no such hyperparameter (did you mean 'learning_rate'?)",
        "momentum",
    ),
    (
        {"name": "a", "objective": "digits", "fixed": {"optimizer": "adamm"}},
        "fixed.optimizer: optimizer must be one of",
        "'adamm'",
    ),
    (
        {"name": "a", "objective": "digits", "space": {"momentum": {"low": 0.5, "high": 2}}},
        "space.momentum: momentum must lie in",
        "2",
    ),
]


@pytest.mark.parametrize(("document", "says", "shows"), MISTAKES, ids=[says[:40] for _, says, _ in MISTAKES])
def test_a_mistake_is_one_line_with_source_key_rule_and_value(
    document: dict[str, Any], says: str, shows: str
) -> None:
    kind = ComparisonDefinition if "comparison" in document else StudyDefinition
    with pytest.raises(DefinitionError) as caught:
        kind.parse(document, "my.toml")
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"my.toml: {says}")
    assert shows in line


@pytest.mark.parametrize(
    ("document", "places"),
    [
        ({"name": "a", "sede": 1, "budget": {"trials": 0}}, ["sede", "budget.trials"]),
        (
            {"name": "a", "space": {"learning rate": {"low": 1, "high": 2, "scal": "log"}}},
            ["space.learning rate", "space.learning rate.scal"],
        ),
        ({"name": "a", "space": {"bad name": {"low": 1}}}, ["space.bad name", "space.bad name.high"]),
        (
            {"name": "a", "space": {"x": {"float": {"low": 0, "high": 1}}}},
            ["space.x.float", "space.x.low", "space.x.high"],
        ),
        (
            {"name": "a", "pruner": {"name": "percentile", "percentile": 200.0, "startup_trials": -1}},
            ["pruner.percentile", "pruner.startup_trials"],
        ),
        (
            {"name": "a", "sampler": {"name": "tpe", "startup_trials": -1, "tpe": {"startup_trials": 5}}},
            ["sampler.startup_trials", "sampler.tpe"],
        ),
    ],
)
def test_each_mistake_is_a_line(document: dict[str, Any], places: list[str]) -> None:
    with pytest.raises(DefinitionError) as caught:
        StudyDefinition.parse(document, "my.toml")
    lines = str(caught.value).splitlines()
    assert sorted(line.split(": ")[1] for line in lines) == sorted(places)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_what_is_dumped_parses_to_the_same(name: str) -> None:
    document = {
        "name": "a",
        "budget": {"trials": 20},
        "sampler": {"name": name},
        "pruner": {"name": "hyperband", "max_epochs": 9},
        "fixed": {"k": 3},
        "space": {
            "beta": {"low": 0.5, "high": 0.99, "scale": "reverse_log", "priority": 1},
            "units": {"type": "int", "low": 2, "high": 8, "scale": "log"},
            "kind": {"choices": ["a", 1, True]},
        },
        "comparison": {
            "seeds": 2,
            "arms": [*ARMS, {"name": "c", "sampler": {"name": "random"}, "pruner": {"name": "none"}}],
        },
    }
    if name == "grid":
        del document["space"]["kind"]["choices"][1]  # type: ignore[attr-defined]  # True == 1
    else:
        document["space"]["kind"]["choices"] = ["a", 1, False]  # type: ignore[index]
    definition = ComparisonDefinition.parse(document)
    through_json = json.loads(json.dumps(definition.dump()))
    assert ComparisonDefinition.parse(through_json) == definition
    assert definition.study.dump() == {k: v for k, v in definition.dump().items() if k != "comparison"}


def test_an_arm_replaces_or_adds_and_fixing_takes_out_of_the_space() -> None:
    definition = ComparisonDefinition.parse(
        {
            "name": "c",
            "seed": 5,
            "fixed": {"a": 1, "b": 2},
            "space": {"x": {"low": 0, "high": 1}, "y": {"low": 0, "high": 1}},
            "comparison": {
                "seeds": 2,
                "arms": [
                    {"name": "base"},
                    {"name": "other", "fixed": {"x": 0.5, "b": 3}, "sampler": {"name": "random"}},
                    {"name": "wider", "space": {"a": {"low": 0, "high": 9}, "y": {"low": -1, "high": 1}}},
                ],
            },
        }
    )
    names = [member.definition.name for member in definition.members]
    assert names[:3] == ["c.base.seed-5", "c.other.seed-5", "c.wider.seed-5"]
    assert [member.seed for member in definition.members] == [5, 5, 5, 6, 6, 6]
    base, other, wider = (member.definition for member in definition.members[:3])
    assert (base.fixed, list(base.space)) == ({"a": 1, "b": 2}, ["x", "y"])
    assert (other.fixed, list(other.space)) == ({"a": 1, "b": 3, "x": 0.5}, ["y"])
    assert other.sampler.name == "random"
    assert base.sampler.name == "tpe"
    assert (wider.fixed, list(wider.space)) == ({"b": 2}, ["x", "y", "a"])
    assert wider.space["y"].low == -1  # type: ignore[union-attr]


def test_load_reads_toml_and_json_and_a_study_out_of_a_comparison(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(
        'name = "c"\n[comparison]\nseeds = 1\n[[comparison.arms]]\nname = "a"\n[[comparison.arms]]\nname = "b"\n'
    )
    comparison = ComparisonDefinition.load(tmp_path / "c.toml")
    assert StudyDefinition.load(tmp_path / "c.toml") == comparison.study
    (tmp_path / "c.json").write_text(json.dumps(comparison.dump()))
    assert load_definition(tmp_path / "c.json") == comparison
    (tmp_path / "s.toml").write_text('name = "s"\n')
    with pytest.raises(DefinitionError, match=r"s\.toml: has no \[comparison\]"):
        ComparisonDefinition.load(tmp_path / "s.toml")


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no\.toml: there is no such file"):
        load_definition(tmp_path / "no.toml")
    (tmp_path / "bad.toml").write_text("name = \n")
    with pytest.raises(DefinitionError, match=r"bad\.toml: not valid TOML: .*line 1"):
        load_definition(tmp_path / "bad.toml")
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe4"\n')
    with pytest.raises(DefinitionError, match=r"latin\.toml: cannot be read"):
        load_definition(tmp_path / "latin.toml")


def test_a_name_is_looked_up_in_studies() -> None:
    assert find_definition("digits").name == "digits.toml"
    assert find_definition("some/where.toml") == Path("some/where.toml")
    with pytest.raises(NotFoundError, match=r"'digts' \(did you mean 'digits'\?\)"):
        find_definition("digts")


@pytest.mark.parametrize("path", sorted(Path("studies").glob("*.toml")), ids=lambda path: path.stem)
def test_every_study_that_is_shipped_loads(path: Path) -> None:
    assert load_definition(path).name == path.stem
