"""Manual search: a point of one's own choice is an ordinary trial of its study, which samplers learn from."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from command import Tuner
from optuna.trial import TrialState

from objectives.epoch import Diverged, Epoch, Epochs
from tuner import StudyDefinition, StudyManager, TunerError
from tuner.assignment import parse_assignments, parse_value
from tuner.catalogue import find_objective
from tuner.errors import DefinitionError
from tuner.space import Space

BOWL = {
    "name": "b",
    "objective": "branin",
    "fixed": {"epochs": 3},
    "space": {"x0": {"low": -5, "high": 10}, "x1": {"low": 0, "high": 15}},
}
OPTIMUM = {"x0": 3.141592653589793, "x1": 2.275}


def bowl(**more: Any) -> StudyDefinition:
    return StudyDefinition.parse({**BOWL, **more})


def test_a_point_is_an_ordinary_finished_trial_with_its_origin(sqlite_url: str) -> None:
    began: list[Mapping[str, Any]] = []
    epochs: list[Epoch] = []
    manager = StudyManager(sqlite_url)
    trial = manager.try_point(bowl(), OPTIMUM, on_begin=began.append, on_epoch=epochs.append)
    assert (trial.state, trial.params) == (TrialState.COMPLETE, OPTIMUM)
    assert trial.value == pytest.approx(0.397887, abs=1e-5)
    assert trial.user_attrs["origin"] == "manual"
    assert began == [OPTIMUM]
    assert [epoch.value for epoch in epochs] == list(trial.intermediate_values.values())
    assert manager.open("b").best_trial.number == 0


def test_what_is_not_given_is_chosen_by_the_sampler(sqlite_url: str) -> None:
    manager = StudyManager(sqlite_url)
    sobol = bowl(sampler={"name": "sobol"})
    trials = [manager.try_point(sobol, {"x0": 1.0}) for _ in range(3)]
    assert [trial.params["x0"] for trial in trials] == [1.0] * 3
    assert len({trial.params["x1"] for trial in trials}) == 3


@pytest.mark.parametrize(
    "sampler",
    [
        {"name": "tpe", "startup_trials": 3},
        {"name": "coarse-to-fine"},
        {"name": "coarse-to-fine", "inside": "random"},
    ],
    ids=str,
)
def test_samplers_learn_from_a_point(tmp_path: Path, sampler: dict[str, Any]) -> None:
    """Two studies differ in where one point was tried by hand: so do the trials that follow."""
    following = []
    for folder, point in (("a", OPTIMUM), ("b", {"x0": -4.0, "x1": 1.0})):
        (tmp_path / folder).mkdir()
        manager = StudyManager(f"sqlite:///{tmp_path / folder}/tuner.db")
        definition = bowl(sampler=sampler, budget={"trials": 16})
        for x1 in (0.5, 7.0, 14.0):
            manager.try_point(definition, {"x0": 9.0, "x1": x1})
        manager.try_point(definition, point)
        trials = manager.run(definition, executor="threads").trials
        assert len(trials) == 16
        following.append([trial.params for trial in trials[4:]])
    assert following[0] != following[1]


def test_a_point_counts_in_the_budget_and_is_refused_when_that_is_used_up(sqlite_url: str) -> None:
    manager = StudyManager(sqlite_url)
    definition = bowl(budget={"trials": 2})
    manager.try_point(definition, OPTIMUM)
    manager.run(definition, executor="threads")
    with pytest.raises(TunerError, match="the budget of b is used up: no trial can be begun"):
        manager.try_point("b", OPTIMUM)
    assert len(manager.load("b").trials) == 2


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ({"xx0": 1.0}, r"'xx0' is not in the space \(did you mean 'x0'\?\); it has: x0, x1"),
        ({"x0": 11.0}, r"x0 must lie in \[-5.0, 10.0\]; got 11.0"),
        ({"x0": "high"}, "x0 must be a number of type float; got 'high'"),
        ({"x0": float("nan")}, "x0 must lie in"),
    ],
)
def test_a_point_outside_the_space_is_refused(sqlite_url: str, point: dict[str, Any], message: str) -> None:
    manager = StudyManager(sqlite_url)
    with pytest.raises(DefinitionError, match=message):
        manager.try_point(bowl(), point)
    assert manager.studies() == []  # nor is its study begun


def test_values_are_read_as_they_are_written() -> None:
    written = {
        "64": 64,
        "-1": -1,
        "1e-3": 0.001,
        ".5": 0.5,
        "true": True,
        "relu": "relu",
        "inf": float("inf"),
    }
    assert {text: parse_value(text) for text in written} == written
    assert type(parse_value("1.0")) is float
    space = Space.model_validate(
        {"a": {"choices": ["1", "x"]}, "b": {"choices": [1, 2]}, "c": {"choices": [True]}}
    )
    assert parse_assignments(["a=1", "b=1", "c=true", "d=1"], space) == {"a": "1", "b": 1, "c": True, "d": 1}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["learning_rate"], "values are given as name=value, as in learning_rate=0.01; got 'learning_rate'"),
        (["=1"], "got '=1'"),
        (["x="], "got 'x='"),
        (["x=1", "x=2"], "x is given twice: 1 and 2"),
    ],
)
def test_bad_assignments_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(DefinitionError, match=re.escape(message)):
        parse_assignments(words)


def test_try_prints_the_whole_point_the_value_and_how_it_stands(tuner: Tuner) -> None:
    code, out, err = tuner("try", "small.toml", "x0=3.1416", "x1=2.275")
    assert code == 0, err
    assert "small, the point: x0=3.1416 x1=2.275" in out
    assert "chosen by the sampler" not in out
    assert "trial 0: value 0.39789, the first of its study" in out
    assert "3/3" in err
    code, out, _ = tuner("try", "small", "x1=15", "x0=-5")
    assert "trial 1: value 17.508, place 2 of 2; the best was 0.39789 in trial 0" in out
    code, out, _ = tuner("try", "small", "x1=3")
    assert "chosen by the sampler: x0=" in out
    code, out, _ = tuner("trials", "small", "--format", "json")
    assert [trial["attributes"]["origin"] for trial in json.loads(out)] == ["manual"] * 3


def test_try_refuses_in_one_line(tuner: Tuner, tmp_path: Path) -> None:
    for arguments, message in (
        (("smal.toml",), "error: smal.toml: there is no such file"),
        (("digitz",), "error: no definition is named 'digitz' (did you mean 'digits'?)"),
    ):
        code, out, err = tuner("try", *arguments)
        assert (code, out) == (2, "")
        assert err.startswith(message)
    assert not (tmp_path / "tuner.db").exists()  # a mistyped name makes no database
    for argument, message in (
        ("x=1", "error: 'x' is not in the space"),
        ("x0=99", "error: x0 must lie in [-5.0, 10.0]; got 99"),
        ("x0", "error: values are given as name=value"),
    ):
        code, out, err = tuner("try", "small.toml", argument)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert err.startswith(message)
    for _ in range(6):
        assert tuner("try", "small.toml", "x0=1")[0] == 0
    code, _, err = tuner("try", "small.toml", "x0=1")
    assert (code, err) == (1, "error: the budget of small is used up: no trial can be begun\n")


def test_panda_names_the_extra_where_textual_is_missing(sqlite_url: str) -> None:
    script = (
        "import sys; sys.modules['textual'] = None\n"
        f"sys.argv = ['tuner', 'panda', 'digits', '--storage', {sqlite_url!r}]\n"
        "from tuner.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: tuner panda needs textual: pip install 'tuner[panda]'\n"


def test_try_says_how_a_trial_stands_in_plain_words(tuner: Tuner, monkeypatch: pytest.MonkeyPatch) -> None:
    tuner("try", "small.toml", "x0=3", "x1=2")
    _, out, _ = tuner("try", "small.toml", "x0=3", "x1=2")
    assert re.search(r"trial 1: value [\d.]+, as good as the best so far, trial 0\n", out)

    def stop(interrupted: int) -> Callable[..., Epochs]:
        def evaluate(*_: Any, **__: Any) -> Epochs:
            yield Epoch(1, 0.5)
            raise KeyboardInterrupt if interrupted else Diverged(2, "the loss is infinite")

        return evaluate

    monkeypatch.setattr(type(find_objective("branin")), "evaluate", stop(0))
    code, out, _ = tuner("try", "small.toml", "x0=3", "x1=2")
    assert code == 1
    assert re.search(r"trial 2 ended early \(diverged in epoch 2.*\) after 1 epoch, at 0\.5\n", out)
    monkeypatch.setattr(type(find_objective("branin")), "evaluate", stop(1))
    code, _, err = tuner("try", "small.toml", "x0=3", "x1=2")
    assert code == 130
    assert "The trial was given back" in err
