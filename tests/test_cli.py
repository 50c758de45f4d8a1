"""The command line: exit codes, one clear line for bad input, output for people and for programs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sqlite3
import threading
import time
import urllib.request
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import optuna
import pytest
from command import STUDY, Program, Tuner, run
from optuna.trial import TrialState

from tuner.cli import app, storage_app
from tuner.definition import ComparisonDefinition

ONE_THREAD = ("--workers", "1", "--executor", "threads")
"""Spares what is not about worker processes their start."""


def test_compare_then_look_at_it(tuner: Tuner, tmp_path: Path) -> None:
    code, out, _ = tuner("compare", "small.toml", "--workers", "2", "--executor", "threads", "--out", "page")
    assert code == 0
    assert "best mean rank over 2 seeds" in out
    assert "page/index.html" in out
    assert "tuner dashboard" in out
    assert (tmp_path / "page" / "index.html").stat().st_size > 1_000_000  # plotly is in it
    assert (tmp_path / "tuner.db").exists()

    code, out, _ = tuner("studies", "--format", "json")
    listed = json.loads(out)
    assert [study["name"] for study in listed] == [
        f"small.{a}.seed-{s}" for s in (0, 1) for a in ("random", "sobol")
    ]
    assert listed[0]["trials"] == {"COMPLETE": 6}
    code, out, _ = tuner("studies")
    assert "small.sobol.seed-1" in out
    assert "6/6" in out

    code, out, _ = tuner("trials", "small.sobol.seed-0", "--format", "json")
    trials = json.loads(out)
    assert [trial["number"] for trial in trials] == list(range(6))
    code, out, _ = tuner("trials", "small.sobol.seed-0", "--last", "2")
    assert len(out.splitlines()) == 3
    code, out, _ = tuner("best", "small.sobol.seed-0", "--format", "json")
    assert json.loads(out)["value"] == min(trial["value"] for trial in trials)
    code, out, _ = tuner("best", "small.sobol.seed-0")
    assert "best value" in out
    assert "x1" in out

    code, out, _ = tuner("archive", "small.sobol.seed-0")
    assert (code, out.split(":")[0]) == (0, "small.sobol.seed-0 is archived")
    assert "small.sobol.seed-0" not in tuner("studies")[1]
    assert "small.sobol.seed-0" in tuner("studies", "--archived")[1]


def test_a_study_is_paused_and_resumed_wherever_it_runs(tuner: Tuner) -> None:
    assert tuner("try", "small.toml", "x0=1")[0] == 0
    states = []
    for verb in ("pause", "resume", "stop"):
        code, out, err = tuner(verb, "small")
        assert (code, err) == (0, "")
        (summary,) = json.loads(tuner("studies", "--format", "json")[1])
        assert out.startswith(f"small is {summary['state']}: ")
        states.append(summary["state"])
    assert states == ["paused", "open", "stopped"]
    assert re.search(r"small +stopped +branin", tuner("studies")[1])
    code, _, err = tuner("run", "small.toml", *ONE_THREAD)
    assert code == 1
    assert "small is stopped: it hands out no trials" in err
    assert err.endswith("then run again: tuner resume small)\n")
    assert tuner("resume", "small")[0] == 0
    assert tuner("run", "small.toml", *ONE_THREAD)[0] == 0
    for verb in ("pause", "resume", "stop", "archive"):
        code, _, err = tuner(verb, "smal")
        assert code == 2
        assert err.startswith("error: no study is named 'smal' in sqlite:///tuner.db (did you mean 'small'?)")


def test_a_comparison_is_repeated_from_its_results(tuner: Tuner, tmp_path: Path) -> None:
    assert tuner("compare", "small.toml", *ONE_THREAD, "--png", "figures")[0] == 0
    assert (tmp_path / "figures" / "small-finals.png").exists()
    code, out, _ = tuner("compare", "--repeat", "report/results.json", *ONE_THREAD)
    assert code == 0
    assert "All numbers are the same, to the last bit." in out
    assert (tmp_path / "repeat-small.db").exists()
    code, _, err = tuner("compare", "--repeat", "report/results.json")
    assert code == 2
    assert "small is finished in this database already" in err
    results = json.loads((tmp_path / "report" / "results.json").read_text())
    results["runs"][0]["best"][0] += 1e-9
    results["made"]["versions"]["numpy"] = "1.0"
    (tmp_path / "other.json").write_text(json.dumps(results))
    code, _, err = tuner("compare", "--repeat", "other.json", "--storage", "sqlite:///third.db", *ONE_THREAD)
    assert code == 1
    assert "runs[0].best[0]: " in err
    assert "numpy was 1.0, is " in err
    assert err.endswith("error: the numbers are not the same\n")


def test_several_studies_are_problems_for_the_same_arms(tuner: Tuner, tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text(STUDY.replace('"small"', '"other"').replace("branin", "ackley"))
    code, out, _ = tuner("compare", "small.toml", "other.toml", *ONE_THREAD, "--out", "both")
    assert code == 0
    assert "over 2 problems" in out
    for path in ("index.html", "results.json", "small/index.html", "other/results.json"):
        assert (tmp_path / "both" / path).exists()
    (tmp_path / "odd.toml").write_text(
        STUDY.replace('"small"', '"odd"').replace('name = "sobol", s', 'name = "x", s')
    )
    code, _, err = tuner("compare", "small.toml", "odd.toml")
    assert (code, err) == (
        2,
        "error: problems need the same arms; small has random, sobol, odd has random, x\n",
    )


def test_run_takes_the_storage_from_the_environment(
    tuner: Tuner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPTUNA_STORAGE", f"sqlite:///{tmp_path}/elsewhere.db")
    code, out, _ = tuner("run", "small.toml", "--workers", "1")
    assert code == 0
    assert "small: best value" in out
    assert (tmp_path / "elsewhere.db").exists()
    assert not (tmp_path / "tuner.db").exists()


def test_objectives_lists_hyperparameters_defaults_and_tiers(tuner: Tuner) -> None:
    code, out, _ = tuner("objectives", "--format", "json")
    by_name = {objective["name"]: objective for objective in json.loads(out)}
    assert code == 0
    assert {
        "digits",
        "branin",
        "rosenbrock",
        "rastrigin",
        "ackley",
        "saddle",
        "plateau",
        "noisy-quadratic",
    } <= set(by_name)
    hyper = {h["name"]: h for h in by_name["digits"]["hyperparameters"]}
    tiers = {
        name: hyper[name]["priority"]
        for name in ("learning_rate", "momentum", "hidden_units", "batch_size", "layers")
    }
    assert tiers == {"learning_rate": 1, "momentum": 2, "hidden_units": 2, "batch_size": 2, "layers": 3}
    rare = {
        name: (hyper[name]["default"], hyper[name]["priority"]) for name in ("momentum", "beta_2", "epsilon")
    }
    assert rare == {"momentum": (0.9, 2), "beta_2": (0.999, None), "epsilon": (1e-8, None)}
    assert "learning_rate=0.01" in tuner("objectives")[1]
    assert re.search(r"epsilon\s+-\s+1e-08", tuner("objectives", "digits")[1])


def test_one_broken_plugin_does_not_hide_the_others(tuner: Tuner, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = {e.name: e for e in entry_points(group="tuner.objectives")}
    entries |= {"gone": EntryPoint("gone", "no_such_module:x", "tuner.objectives")}
    entries |= {"plain": EntryPoint("plain", "json:dumps", "tuner.objectives")}
    monkeypatch.setattr("tuner.catalogue._entries", lambda: entries)
    code, out, err = tuner("objectives")
    assert code == 0
    assert "branin" in out
    assert "error: objective 'gone' cannot be loaded from no_such_module:x: ModuleNotFoundError" in err
    assert (
        "error: json:dumps, registered as objective 'plain', is no objective: it has no name, description"
        in err
    )
    assert tuner("objectives", "gone")[0] == 1


def test_looking_at_a_database_that_is_not_there_makes_none(tuner: Tuner, tmp_path: Path) -> None:
    for arguments in (["studies"], ["trials", "x"], ["best", "x"], ["archive", "x"], ["dashboard"]):
        code, _, err = tuner(*arguments, "--storage", "sqlite:///nope.db")
        assert code == 2
        assert (
            err == "error: there is no database sqlite:///nope.db; `tuner run`, `tuner compare` and "
            "`tuner serve` make one\n"
        )
    assert not (tmp_path / "nope.db").exists()


BAD = [
    (["run", "nowhere"], "no definition is named 'nowhere'"),
    (["run", "nowhere.toml"], "nowhere.toml: there is no such file"),
    (
        ["compare", "typo.toml"],
        "typo.toml: sampler.name: there is no 'tpee' (did you mean 'tpe'?); accepted: grid, random",
    ),
    (["compare", "single.toml"], "single.toml: has no [comparison]"),
    (["trials", "small"], "there is no database sqlite:///tuner.db"),
    (["compare", "small.toml", "--out", "small.toml"], "--out small.toml: File exists"),
    (["compare", "small.toml", "--seeds", "20000"], "seeds must lie in 1 … 10000; got 20000"),
    (["run", "deep.toml"], "deep.toml: not valid TOML"),
    (["compare"], "give studies to compare, or --repeat and a results.json"),
    (["compare", "small.toml", "--repeat", "x.json"], "give studies to compare, or --repeat"),
    (["compare", "--repeat", "x.json"], "x.json: there is no such file"),
    (
        ["objectives", "digit"],
        "no objective is named 'digit' (did you mean 'digits'?); installed are: ackley",
    ),
]


@pytest.mark.parametrize(("arguments", "says"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_input_is_one_clear_line_and_exit_code_2(
    tuner: Tuner, tmp_path: Path, arguments: list[str], says: str
) -> None:
    (tmp_path / "typo.toml").write_text(
        'name = "t"\nsampler = {name = "tpee"}\n' + STUDY.split("[space.x0]")[1].join(["[space.x0]", ""])
    )
    (tmp_path / "deep.toml").write_text("x = " + "9" * 5000)
    (tmp_path / "single.toml").write_text('name = "s"\n')
    code, _, err = tuner(*arguments)
    assert code == 2
    (line,) = err.splitlines()
    assert line.startswith(f"error: {says}")


def test_the_same_study_changed_is_refused_and_nothing_is_lost(tuner: Tuner, tmp_path: Path) -> None:
    tuner("run", "small.toml", *ONE_THREAD)
    (tmp_path / "small.toml").write_text(STUDY.replace("trials = 6", "trials = 9"))
    code, _, err = tuner("run", "small.toml")
    assert code == 2
    assert "there is a study 'small' already, with another budget" in err
    assert len(optuna.load_study(study_name="small", storage=f"sqlite:///{tmp_path}/tuner.db").trials) == 6


@pytest.mark.parametrize("storage", ["sqlite:////nowhere/x.db", "tuner.db"])
def test_a_database_that_cannot_be_opened_is_exit_code_1(tuner: Tuner, storage: str) -> None:
    code, _, err = tuner("run", "small.toml", "--storage", storage)
    assert code == 1
    assert err.startswith("error: ")


COMMANDS = [
    *(str(info.name or info.callback.__name__) for info in app.registered_commands if info.callback),
    *(
        f"storage {info.name or info.callback.__name__}"
        for info in storage_app.registered_commands
        if info.callback
    ),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(tuner: Tuner, command: str) -> None:
    code, out, _ = tuner(*command.split(), "--help")
    assert code == 0
    assert f"tuner {command}" in out.split("Example")[1]


DIGITS = """
name = "d"
objective = "digits"
budget = {trials = 9}
fixed = {epochs = 12}
pruner = {name = "median"}
[space.learning_rate]
low = 1e-4
high = 1.0
scale = "log"
[space.momentum]
low = 0.5
high = 0.999
scale = "reverse_log"
[comparison]
seeds = 2
[[comparison.arms]]
name = "random"
sampler = {name = "random"}
[[comparison.arms]]
name = "tpe"
sampler = {name = "tpe", startup_trials = 5}
[[comparison.arms]]
name = "coarse-to-fine"
sampler = {name = "coarse-to-fine"}
"""


def finished(database: Path) -> int:
    """How many trials have ended, read without touching the database."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            count = "SELECT count(*) FROM trials WHERE state IN ('COMPLETE', 'PRUNED', 'FAIL')"
            return int(connection.execute(count).fetchone()[0])
    except sqlite3.OperationalError:  # not there yet
        return 0


def contents(database: Path) -> list[Any]:
    """All that a comparison found, but for times."""
    names = [m.definition.name for m in ComparisonDefinition.load(database.parent / "d.toml").members]
    storage = optuna.storages.RDBStorage(f"sqlite:///{database}")
    studies = [optuna.load_study(study_name=name, storage=storage) for name in names]
    found = [
        (study.study_name, t.number, t.state, t.value, t.params, t.intermediate_values)
        for study in studies
        for t in study.trials
    ]
    storage.remove_session()
    storage.engine.dispose()
    return found


def repeatable(results: Path) -> bytes:
    """The bytes of a results.json before the part that tells when and where it was made, which is its last."""
    text = results.read_bytes()
    return text[: text.index(b'\n "made": {')]


def interrupt(process: Program, how: str) -> None:
    """Stop the command and wait for its end."""
    if how == "SIGKILL to the parent":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGINT if how == "Ctrl-C" else signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    if how == "Ctrl-C":
        assert process.returncode == 130
        assert "the same command goes on from there" in err
        assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.long
def test_what_is_interrupted_goes_on_and_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    found, reports = {}, {}
    for folder, interruptions in (
        ("undisturbed", {}),
        ("interrupted", {8: "SIGKILL to all", 20: "Ctrl-C", 32: "SIGKILL to the parent"}),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "d.toml").write_text(DIGITS)
        database = tmp_path / folder / "tuner.db"
        for ended, how in interruptions.items():
            process = Program("compare", "d.toml", "--workers", "2", folder=tmp_path / folder, session=True)
            while finished(database) < ended and process.poll() is None:
                time.sleep(0.02)
            assert process.poll() is None, "it ended before it could be interrupted"
            interrupt(process, how)
        process = Program("compare", "d.toml", "--workers", "2", folder=tmp_path / folder, session=True)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        found[folder] = contents(database)
        reports[folder] = repeatable(tmp_path / folder / "report" / "results.json")
    assert len(found["interrupted"]) == 6 * 9  # every arm and seed has its exact budget
    assert all(state in (TrialState.COMPLETE, TrialState.PRUNED) for _, _, state, *_ in found["interrupted"])
    assert found["interrupted"] == found["undisturbed"]  # the same numbers, whatever was interrupted
    assert reports["interrupted"] == reports["undisturbed"]
    assert b'"test_loss"' in reports["interrupted"]


def test_dashboard_serves_the_database(tmp_path: Path) -> None:
    optuna.create_study(study_name="there", storage=f"sqlite:///{tmp_path}/tuner.db")
    process = Program("dashboard", "--port", "0", folder=tmp_path, session=True)
    try:
        (late := threading.Timer(60.0, process.kill)).start()
        line = process.stdout.readline()  # which is there once it listens
        late.cancel()
        found = re.fullmatch(r"optuna-dashboard on (http://127\.0\.0\.1:(\d+)/) \(Ctrl-C ends it\)\n", line)
        assert found is not None, line
        with urllib.request.urlopen(f"{found[1]}api/studies") as answer:
            names = [study["study_name"] for study in json.load(answer)["study_summaries"]]
        assert names == ["there"]
        second = run("dashboard", "--port", found[2], folder=tmp_path)
        assert second.returncode == 1
        assert f"error: cannot listen on 127.0.0.1:{found[2]}" in second.stderr
        assert "Ctrl-C" not in second.stdout
    finally:
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert "Traceback" not in err
