"""What a person sees of a run: in a terminal, and in a pipe."""

from __future__ import annotations

import io
import logging
import threading
import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState
from rich.console import Console

import tuner.progress
from tuner import StudyDefinition
from tuner.manager import StudySummary
from tuner.progress import RunDisplay, fit
from tuner.runs import Working
from tuner.trial_run import Outcome


def definition(name: str) -> StudyDefinition:
    return StudyDefinition.parse({"name": name, "budget": {"trials": 4}})


def shown(monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> str:
    """All that was written in a run of two arms, three trials ended and two running."""
    monkeypatch.setattr(tuner.progress, "TERMINAL_SECONDS", 0.01)
    monkeypatch.setattr(tuner.progress, "PLAIN_SECONDS", 0.01)
    asked: list[Sequence[str]] = []

    def working(names: Sequence[str]) -> list[Working]:
        asked.append(names)
        return [Working("s.tpe", 12, 7), Working("s.grid", 3, 0)]

    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=100, emoji=False)
    members = [("tpe", definition("s.tpe")), ("grid", definition("s.grid"))]
    with RunDisplay(console, members, [], working) as display:
        display.on_outcome(Outcome("s.tpe", 0, TrialState.COMPLETE, values=(0.5,)))
        display.on_outcome(Outcome("s.tpe", 1, TrialState.COMPLETE, values=(0.25,)))
        display.on_outcome(Outcome("s.tpe", 2, None))  # given back: no end
        display.on_outcome(Outcome("s.grid", 0, TrialState.FAIL, failure="OSError: [disk]", is_error=True))
        logging.getLogger("tuner.runs").warning("a trial is left to %s", "another")
        while len(asked) < 3:
            time.sleep(0.01)
        time.sleep(0.2 if terminal else 0.0)  # the terminal is drawn ten times a second
    assert set(asked[0]) == {"s.tpe", "s.grid"}
    assert display.finished == 3
    return file.getvalue()


def test_a_pipe_gets_plain_lines_and_no_control_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, terminal=False)
    assert "\x1b" not in text
    assert "\r" not in text
    assert "s.grid trial 0 failed: OSError: [disk]" in text
    assert "a trial is left to another" in text
    assert "1 failed, 2 running: s.tpe #12 epoch 7, s.grid #3" in text
    assert "2/4" in text
    assert "best 0.25" in text


def test_a_terminal_shows_what_each_worker_does(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, terminal=True)
    assert "2 running: s.tpe #12 epoch 7, s.grid #3" in text
    assert "trials/s, 1 failed" in text


@given(st.lists(st.text("abc", min_size=1, max_size=8), max_size=40), st.integers(10, 120))
def test_the_line_of_workers_fits_and_tells_how_many_it_leaves_out(items: list[str], width: int) -> None:
    line = fit("9 running", items, width)
    assert len(line) <= width
    if ": " in line:
        listed, _, rest = line.removeprefix("9 running: ").partition(" … and ")
        left_out = int(rest.split()[0]) if rest else 0
        assert listed.split(", ") == items[: len(items) - left_out]


def summary(name: str, best: float) -> StudySummary:
    return StudySummary(name, None, None, "minimize", {"COMPLETE": 2}, 4, best, None, archived=False)


def test_a_resumed_run_shows_the_best_of_before() -> None:
    file = io.StringIO()
    members = [("tpe", definition("s.0")), ("tpe", definition("s.1"))]
    console = Console(file=file, force_terminal=False, width=100)
    before = [summary("s.0", 0.5), summary("s.1", 0.125), summary("another", 0.01)]
    with RunDisplay(console, members, before, lambda names: []) as display:
        display.on_outcome(Outcome("s.0", 2, TrialState.COMPLETE, values=(0.25,)))
    assert "best 0.125" in file.getvalue()
    assert "5/8" in file.getvalue()


def test_a_dumb_terminal_gets_plain_lines_while_the_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    text = shown(monkeypatch, terminal=True)
    assert "1 failed, 2 running: s.tpe #12 epoch 7, s.grid #3" in text.partition("/4")[0]
    assert "3 trials, " in text


def test_the_display_ends_though_the_database_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuner.progress, "PLAIN_SECONDS", 0.01)
    monkeypatch.setattr(tuner.progress, "LEAVE_SECONDS", 0.1)
    is_asked, answers = threading.Event(), threading.Event()

    def silent(names: Sequence[str]) -> list[Working]:
        is_asked.set()
        answers.wait()
        return []

    file = io.StringIO()
    console = Console(file=file, force_terminal=False, width=100)
    with RunDisplay(console, [("tpe", definition("s.0"))], [], silent) as display:
        assert is_asked.wait(10)
    assert "0/4" in file.getvalue()  # drawn to its end before there was an answer
    answers.set()
    display._watcher.join()


def test_ctrl_c_at_the_end_leaves_the_terminal_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    def press_ctrl_c(_timeout: float) -> None:
        raise KeyboardInterrupt

    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    display = RunDisplay(console, [("tpe", definition("s.0"))], [], lambda names: [])
    handlers = list(logging.getLogger("tuner").handlers)
    with pytest.raises(KeyboardInterrupt), display:
        monkeypatch.setattr(display._watcher, "join", press_ctrl_c)
    assert not display._bars.live.is_started
    assert logging.getLogger("tuner").handlers == handlers


@pytest.mark.parametrize("terminal", [True, False])
def test_the_ranking_so_far_is_shown(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    monkeypatch.setattr(tuner.progress, "PLAIN_SECONDS", 0.01)
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=100)
    asked = threading.Event()

    def working(names: Sequence[str]) -> list[Working]:
        if display._ranks:
            asked.set()
        return []

    with RunDisplay(console, [("a", definition("s.a")), ("b", definition("s.b"))], [], working) as display:
        display.on_outcome(Outcome("s.a", 0, TrialState.COMPLETE, values=(0.5,)))
        display.on_ranks({"a": 1.75, "b": 1.25})
        assert terminal or asked.wait(20)
        time.sleep(0.1)
    assert "best 0.5, mean rank 1.75" in file.getvalue()
    assert terminal or "mean ranks b 1.25, a 1.75" in file.getvalue()
