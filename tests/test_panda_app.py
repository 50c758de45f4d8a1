"""The terminal program, driven by its keys and its command line."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from command import Tuner
from optuna.trial import TrialState
from test_panda import POINT, Curve, curve_study, few, made, trial_of
from textual.events import Key
from textual.pilot import Pilot
from textual.widgets import Input
from textual_plotext import PlotextPlot

from objectives.epoch import Epoch, Epochs, Seed
from tuner import StudyManager
from tuner.panda.app import PandaApp
from tuner.panda.driver import Driver, View

SIZES = [(80, 24), (140, 40)]


@pytest.fixture
def manager(sqlite_url: str) -> StudyManager:
    return StudyManager(sqlite_url)


class Screen:
    """The program under test, seen and used as a person would."""

    def __init__(self, app: PandaApp, pilot: Pilot[None]) -> None:
        self.app, self.pilot = app, pilot

    async def until(self, condition: Callable[[View], bool]) -> View:
        for _ in range(3000):
            await self.pilot.pause(0.01)
            if self.app.view is not None and condition(self.app.view):
                return self.app.view
        raise AssertionError(f"it never came; the screen says {self.message!r}, {self.app.view}")

    async def command(self, text: str) -> None:
        await self.pilot.press("enter")
        self.app.query_one("#command", Input).value = text
        await self.pilot.press("enter", "escape")

    def paste(self, text: str) -> None:
        """All keys at once, as a terminal sends what is pasted or typed ahead."""
        for character in text:
            self.app.post_message(Key({" ": "space", "\r": "enter"}.get(character, character), character))

    async def refused(self, text: str) -> str:
        await self.command(text)
        for _ in range(500):
            await self.pilot.pause(0.01)
            if self.message:
                return self.message
        raise AssertionError(f"{text} was not refused")

    @property
    def message(self) -> str:
        return self.app.message


def use(
    manager: StudyManager,
    play: Callable[[Screen], Awaitable[None]],
    *,
    size: tuple[int, int] = (80, 24),
    study: Any = None,
    point: Any = POINT,
    objective: Any = None,
) -> None:
    async def run() -> None:
        app = PandaApp(session, pace=0)
        async with app.run_test(size=size) as pilot:
            screen = Screen(app, pilot)
            await screen.until(lambda view: True)
            await play(screen)
        assert app.driver.close(timeout=30)

    with manager.panda(study or few(), point, objective, by="ada") as session:
        with ThreadPoolExecutor(1) as pool:  # where Playwright's event loop does not run
            pool.submit(asyncio.run, run()).result()
        if session.failure is None:
            session.release()


@pytest.mark.parametrize("size", SIZES)
def test_a_training_is_watched_adjusted_rewound_and_stopped(
    manager: StudyManager, size: tuple[int, int]
) -> None:
    async def play(screen: Screen) -> None:
        await screen.pilot.press("n")
        await screen.until(lambda view: view.epoch == 1 and not view.is_running)
        await screen.command("step 3")
        await screen.until(lambda view: view.epoch == 4)
        await screen.command("learning_rate *0.3")
        view = await screen.until(lambda view: view.adjusted == (4,))
        assert view.current["learning_rate"] == pytest.approx(0.003)
        await screen.command("batch_size=20")
        await screen.until(lambda view: view.current["batch_size"] == 20)
        await screen.command("run 7")
        await screen.until(lambda view: view.epoch == 7)
        await screen.command("rewind 5")
        view = await screen.until(lambda view: view.epoch == 5)
        assert [sorted(branch) for branch in view.branches] == [[6, 7]]
        await screen.command("note try another way")
        await screen.until(lambda view: view.log[-1].text == "note: try another way")
        await screen.pilot.press("space")
        view = await screen.until(lambda view: view.is_finished)
        assert (view.epoch, view.is_running) == (12, False)
        await screen.pilot.press("s", "enter", "escape")
        view = await screen.until(lambda view: view.is_over)
        await screen.pilot.press("q")

    use(manager, play, size=size)
    trial = trial_of(manager)
    assert trial.state == TrialState.COMPLETE
    assert [entry[:2] for entry in made(trial)] == [(4, "learning_rate"), (4, "batch_size")]
    assert trial.user_attrs["notes"][0]["text"] == "try another way"


@pytest.mark.parametrize("size", SIZES)
def test_everything_there_is_to_know_is_on_the_screen(manager: StudyManager, size: tuple[int, int]) -> None:
    pictures: list[str] = []

    async def play(screen: Screen) -> None:
        await screen.command("run 9")
        await screen.until(lambda view: view.epoch == 9)
        await screen.command("momentum 0.95")
        await screen.until(lambda view: view.adjusted == (9,))
        await screen.pilot.pause(0.1)
        pictures.append(screen.app.export_screenshot().replace("&#160;", " "))

    use(manager, play, size=size, study=few(pruner={"name": "threshold", "upper": 1e-9}))
    wanted = (
        *("few · trial 0", "paused", "train loss", "dev loss", "learning_rate", "0.95", "(0.9)", "best"),
        *("gradient", "seconds", "would stop", "improving", "high variance", "momentum 0.9 → 0.95"),
        *("run/pause", "one epoch", "rewind", "help"),
    )
    for words in wanted:
        assert words in pictures[0], words
    assert any("⠀" < letter <= "⣿" for letter in pictures[0])  # curves are drawn in Braille dots


def test_refusals_are_one_line_and_change_nothing(manager: StudyManager) -> None:
    async def play(screen: Screen) -> None:
        await screen.command("step 2")
        await screen.until(lambda view: view.epoch == 2)
        refusals = {
            "learning_rat 0.1": "no command 'learning_rat' (did you mean 'learning_rate'?)",
            "learning_rate -1": "learning_rate must lie in [1e-08, 100]; got -1",
            "learning_rate": "learning_rate is 0.01; say its new value",
            "learning_rate *fast": "multiplied or divided by a number",
            "learning_rate fast": "learning_rate must be a number; got 'fast'",
            "rewind 7": "cannot rewind to epoch 7: trained are 1–2",
            "rewind": "rewind takes a whole number of epochs, 0 or more; got nothing",
            "rewind -1": "rewind takes a whole number of epochs, 0 or more; got -1",
            "step x": "step takes a whole number of epochs, 1 or more; got x",
            "step -3": "step takes a whole number of epochs, 1 or more; got -3",
            "run 0": "run goes on to a later epoch than 2; got 0",
            "run 2": "run goes on to a later epoch than 2; got 2",
            "note": "note takes a text",
            "=": "no command '='",
            "release it": "release stands alone; got release it",
            "stop now please": "stop stands alone; got stop now please",
            "learning_rate *true": "multiplied or divided by a number",
        }
        for command, why in refusals.items():
            message = await screen.refused(command)
            assert why in message
            assert "\n" not in message
        await screen.pilot.press("space")
        await screen.until(lambda view: view.is_finished)
        assert screen.message == ""
        assert "come to its end after epoch 12" in await screen.refused("run")

    use(manager, play)
    assert "adjustments" not in trial_of(manager).user_attrs


def test_keys_pause_help_and_type(manager: StudyManager) -> None:
    async def play(screen: Screen) -> None:
        pilot, app = screen.pilot, screen.app
        await pilot.press("question_mark")
        assert type(app.screen).__name__ == "Help"
        await pilot.press("x")
        assert type(app.screen).__name__ != "Help"
        await pilot.press("l", "1", "space", "0", ".", "5", "enter")
        await screen.until(lambda view: view.current["l1"] == 0.5)
        await pilot.press("escape", "r", "space", "0", "enter", "escape")
        await screen.until(lambda view: view.log[-1].text.startswith("rewound from epoch 0 to 0"))
        app.driver.pace = 3600.0  # the second epoch would come in an hour
        await pilot.press("space")
        await screen.until(lambda view: view.is_running and view.epoch == 1)
        await pilot.press("space")
        await screen.until(lambda view: not view.is_running)
        app.driver.pace = 0.0
        await pilot.press("n")
        await screen.until(lambda view: view.epoch == 2 and not view.is_running)

    use(manager, play)


def test_what_is_typed_ahead_goes_to_the_command_line_and_presses_no_key(manager: StudyManager) -> None:
    async def play(screen: Screen) -> None:
        screen.paste("momentum 0.7\r")
        await screen.until(lambda view: view.current["momentum"] == 0.7)
        await screen.pilot.press("escape")
        screen.paste("rewind 0\r")  # begins as a key does
        await screen.until(lambda view: view.log[-1].text.startswith("rewound from epoch 0 to 0"))
        await screen.pilot.press("escape")
        screen.paste("bogus snqr")  # each of these letters is a key elsewhere
        await screen.pilot.pause(0.3)
        assert screen.app.query_one("#command", Input).value == "bogus snqr"
        view = await screen.until(lambda view: True)
        assert (view.epoch, view.is_over) == (0, False)

    use(manager, play)


@pytest.mark.parametrize(("key", "state"), [("s", "COMPLETE"), ("a", "PRUNED"), ("b", "WAITING")])
def test_quitting_asks_what_becomes_of_the_trial(manager: StudyManager, key: str, state: str) -> None:
    async def play(screen: Screen) -> None:
        await screen.pilot.press("n")
        await screen.until(lambda view: view.epoch == 1)
        await screen.pilot.press("q", "escape", "q", key)

    use(manager, play)
    assert trial_of(manager).state.name == state
    if state == "WAITING":
        assert manager.ask_tell("few").ask().number == 0  # type: ignore[union-attr]


def test_the_screen_lives_while_an_epoch_trains_and_quitting_waits_for_it(manager: StudyManager) -> None:
    gate = threading.Event()

    class Slow(Curve):
        def evaluate(self, params: Mapping[str, Any], *, seed: Seed, resume: bytes | None = None) -> Epochs:
            for epoch in super().evaluate(params, seed=seed):
                gate.wait(60)
                yield epoch

    async def play(screen: Screen) -> None:
        await screen.pilot.press("space", "question_mark")
        assert type(screen.app.screen).__name__ == "Help"
        await screen.pilot.press("x", "q", "a")
        gate.set()

    use(manager, play, study=curve_study(), point={}, objective=Slow())
    trial = trial_of(manager, study="c")
    assert (trial.state, len(trial.intermediate_values)) == (TrialState.PRUNED, 1)


def test_a_failed_training_is_told_and_can_be_rewound(manager: StudyManager) -> None:
    async def play(screen: Screen) -> None:
        await screen.pilot.press("space")
        view = await screen.until(lambda view: "failed" in view.diagnosis)
        assert (view.epoch, view.is_running) == (3, False)
        assert "out of memory" in screen.message
        await screen.command("rewind 0")
        await screen.until(lambda view: view.epoch == 0)
        await screen.pilot.press("n")
        await screen.until(lambda view: view.epoch == 1)

    use(manager, play, study=curve_study(), point={}, objective=Curve(fails=4))


@pytest.mark.parametrize("lowest", [0.0, -1.0, 1e-5])
def test_all_curves_are_drawn_on_one_axis_also_where_one_touches_zero(
    manager: StudyManager, lowest: float
) -> None:
    class Exact(Curve):
        """The value falls by decades while the train loss reaches `lowest`."""

        def evaluate(self, params: Mapping[str, Any], *, seed: Seed, resume: bytes | None = None) -> Epochs:
            for epoch in range(1, 5):
                yield Epoch(
                    epoch, 10.0**-epoch, {"train_loss": 1.0 if epoch < 4 else lowest, "dev_loss": 1.0}
                )

    scales: list[str] = []

    async def play(screen: Screen) -> None:
        await screen.pilot.press("space")
        await screen.until(lambda view: view.is_finished)
        plot = screen.app.query_one("#curves", PlotextPlot)
        await screen.pilot.pause(0.1)
        scales.append(plot.plt.monitor.yscale[0])  # type: ignore[attr-defined]  # set by Plotext

    use(manager, play, study=curve_study(), point={}, objective=Exact())
    assert scales == ["log" if lowest > 0 else "linear"]


def test_a_failed_training_is_not_offered_to_be_completed_and_fails_its_trial(manager: StudyManager) -> None:
    async def play(screen: Screen) -> None:
        await screen.pilot.press("space")
        await screen.until(lambda view: view.failure is not None)
        await screen.pilot.press("q", "s")
        assert type(screen.app.screen).__name__ == "Leave"  # s chooses nothing
        await screen.pilot.press("f")

    use(manager, play, study=curve_study(), point={}, objective=Curve(fails=4))
    trial = trial_of(manager, study="c")
    assert (trial.state, trial.user_attrs["failure"]) == (TrialState.FAIL, "MemoryError: out of memory")


def test_a_driver_that_never_began_can_be_closed(manager: StudyManager) -> None:
    with manager.panda(few(), POINT) as session:
        assert Driver(session, lambda view: None, lambda text: None).close(timeout=1)
        session.abandon()


@pytest.fixture
def terminal(tuner: Tuner, monkeypatch: pytest.MonkeyPatch, sqlite_url: str) -> Tuner:
    """The command line as in a terminal, on the test's database; `without` one of its streams."""
    monkeypatch.setenv("OPTUNA_STORAGE", sqlite_url)

    def run(*arguments: str, without: str = "") -> tuple[int, str, str]:
        for stream in ("stdin", "stdout"):
            monkeypatch.setattr(getattr(sys, stream), "isatty", lambda stream=stream: stream != without)
        return tuner(*arguments)

    return run


@pytest.mark.parametrize("stream", ["stdin", "stdout"])
def test_without_a_terminal_nothing_is_begun(terminal: Tuner, manager: StudyManager, stream: str) -> None:
    manager.create(few())
    code, _, err = terminal("panda", "few", without=stream)
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("error: tuner panda needs a terminal")
    assert not manager.load("few").trials


def with_objective(monkeypatch: pytest.MonkeyPatch, objective: Curve) -> None:
    begin = StudyManager.panda
    monkeypatch.setattr(StudyManager, "panda", lambda self, name, point: begin(self, name, point, objective))


def test_ctrl_c_while_the_last_epoch_trains_gives_the_trial_back(
    terminal: Tuner, manager: StudyManager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gate, trains, threads = threading.Event(), threading.Event(), []

    class Slow(Curve):
        def evaluate(self, params: Mapping[str, Any], *, seed: Seed, resume: bytes | None = None) -> Epochs:
            trains.set()
            gate.wait(60)
            yield Epoch(1, 0.0)

    def run(self: PandaApp) -> None:
        self.driver.start()
        self.driver.do("step")
        assert trains.wait(60)
        threads.append(self.driver)
        main = threading.main_thread().ident
        threading.Timer(1.0, lambda: signal.pthread_kill(main, signal.SIGINT)).start()  # type: ignore[arg-type]

    manager.create(curve_study())
    with_objective(monkeypatch, Slow())
    monkeypatch.setattr(PandaApp, "run", run)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code, out, _ = terminal("panda", "c", "x=0.5")
    finally:
        signal.signal(signal.SIGINT, before)
        gate.set()
    assert code == 130
    assert "c trial 0 was given back" in out
    assert not caplog.records
    assert trial_of(manager, study="c").state == TrialState.WAITING
    assert threads[0].close(timeout=30)
    assert not trial_of(manager, study="c").intermediate_values


def test_the_program_leaves_a_failed_training_as_failed(
    terminal: Tuner, manager: StudyManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(self: PandaApp) -> None:
        self.driver.start()
        self.driver.do("run")
        while self.driver.session.failure is None:
            time.sleep(0.01)

    manager.create(curve_study())
    with_objective(monkeypatch, Curve(fails=4))
    monkeypatch.setattr(PandaApp, "run", run)
    _, out, err = terminal("panda", "c", "x=0.5")
    assert not err
    assert "c trial 0 ended as fail (MemoryError: out of memory) after 3 epochs" in out
    assert trial_of(manager, study="c").state == TrialState.FAIL


def test_steps_are_counted_whatever_the_epochs_are_called(manager: StudyManager) -> None:
    class Tens(Curve):
        def evaluate(self, params: Mapping[str, Any], *, seed: Seed, resume: bytes | None = None) -> Epochs:
            for epoch in range(10, 100, 10):
                yield Epoch(epoch, 0.0)

    async def play(screen: Screen) -> None:
        await screen.command("step 3")
        view = await screen.until(lambda view: view.epoch > 0 and not view.is_running)
        assert view.epoch == 30
        await screen.pilot.press("n")
        await screen.until(lambda view: view.epoch == 40 and not view.is_running)

    use(manager, play, study=curve_study(), point={}, objective=Tens())
