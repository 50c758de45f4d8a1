"""The terminal program: curves, diagnosis and hyperparameters of one trial, live, with keys and a command line.

Needs textual and textual-plotext: the extra `panda`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from string import ascii_letters
from typing import Any, ClassVar

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.events import Key
from textual.screen import ModalScreen
from textual.suggester import SuggestFromList
from textual.widgets import Footer, Input, Static
from textual_plotext import PlotextPlot

from tuner.assignment import show_value
from tuner.panda.driver import COMMANDS, Driver, View
from tuner.panda.session import Session

__all__ = ["PandaApp"]

RGB = tuple[int, int, int]
TRAIN: RGB = (88, 166, 255)
DEV: RGB = (255, 166, 87)
BEFORE: RGB = (110, 118, 129)
"""Colours of the curves: train, dev (or the value), and what was rewound."""

KEYS = (
    ("space", "run, or pause"),
    ("n", "train one epoch"),
    ("r 12", "rewind to where it stood after epoch 12"),
    ("s", "with Enter: stop; complete, with the last epoch's value"),
    ("q", "quit; asks what to do with the trial"),
    ("Enter", "the command line, as most letters do; Esc leaves it"),
)


class PandaApp(App[None]):
    """Shows a session and takes its commands. The session is entered before and left after."""

    CSS = """
    Screen { background: $surface; }
    #title { height: 1; background: $primary; color: $text; padding: 0 1; }
    #body { height: 1fr; min-height: 8; }
    #picture { width: 1fr; }
    #legend { height: 1; text-align: center; }
    #side { width: 31; padding: 0 1 0 2; }
    #values { height: auto; max-height: 50%; }
    #numbers { height: auto; margin-top: 1; }
    #diagnosis { height: 4; padding: 0 1; background: $panel; }
    #log { height: 3; padding: 0 1; color: $text-muted; }
    #line { height: 1; background: $boost; }
    #prompt { width: 3; padding: 0 1; color: $accent; text-style: bold; }
    #command { width: 1fr; background: $boost; }
    .-wide #side { width: 46; }
    .-tall #log { height: 8; }
    .-tall #diagnosis { height: auto; max-height: 6; padding: 1 2; }
    .-tall #side { padding: 1 2 0 3; }
    """
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (110, "-wide")]  # noqa: RUF012 - as Textual declares it
    VERTICAL_BREAKPOINTS = [(0, "-low"), (32, "-tall")]  # noqa: RUF012
    ENABLE_COMMAND_PALETTE = False
    TITLE = "tuner panda"
    AUTO_FOCUS = None
    # with priority, so that quick typing meets the command line it has just opened, and no further key
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "run_or_pause", "run/pause", priority=True),
        Binding("n", "command('step')", "one epoch", priority=True),
        Binding("r", "begin('r')", "rewind", priority=True),
        Binding("enter", "begin('')", "command", priority=True),
        Binding("s", "begin('s')", "stop", priority=True),
        Binding("q", "leave", "quit", priority=True),
        Binding("question_mark", "help", "help", key_display="?", priority=True),
        *(Binding(x, f"begin('{x}')", show=False, priority=True) for x in ascii_letters if x not in "nrsq"),
        Binding("escape", "blur", "back to the keys"),
        Binding("ctrl+c,ctrl+q", "release", show=False, priority=True),
    ]

    def __init__(self, session: Session, *, pace: float = 0.2) -> None:
        super().__init__()
        self.driver = Driver(session, self._from_driver_show, self._from_driver_say, pace)
        self.view: View | None = None
        self.message = ""
        self._latest: View | None = None

    def compose(self) -> ComposeResult:
        """The screen, top to bottom."""
        yield Static(id="title")
        with Horizontal(id="body"):
            with Vertical(id="picture"):
                yield Static(id="legend")
                yield PlotextPlot(id="curves")
            with Vertical(id="side"):
                yield Static(id="values")
                yield Static(id="numbers")
        yield Static(id="diagnosis")
        yield Static(id="log")
        names = [*self.driver.session.current, *COMMANDS]
        with Horizontal(id="line"):
            yield Static("›", id="prompt")
            yield Input(
                id="command",
                compact=True,
                placeholder=f"Enter, then: {names[0]} *0.3 · rewind 12 · note text · run 20",
                suggester=SuggestFromList([f"{name} " for name in names]),
                select_on_focus=False,
            )
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        """Begin, with the keys going to the program rather than to the command line."""
        self.theme = "tokyo-night"
        self.set_focus(None)
        self.driver.start()

    def on_unmount(self) -> None:
        """Take no more commands. The epoch that trains is waited for outside."""
        self.driver.close(timeout=0)

    # ---- keys and commands

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Keys are keys where nothing is being typed or asked; Esc is for the command line only."""
        if action not in ("run_or_pause", "command", "begin", "leave", "help", "blur"):
            return True
        typing = self.focused is not None
        return len(self.screen_stack) == 1 and typing == (action == "blur")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Carry out the command line."""
        text = event.value.strip()
        event.input.clear()
        if not text:
            self.set_focus(None)
        elif text in ("q", "quit", "?", "help"):
            self.action_leave() if text[0] == "q" else self.action_help()
        else:
            self.action_command(text)

    def action_run_or_pause(self) -> None:
        """Run or pause."""
        self._say("")
        self.driver.toggle()

    def action_command(self, text: str) -> None:
        """Carry out a command."""
        self._say("")
        self.driver.do(text)

    def action_begin(self, text: str) -> None:
        """Open the command line with a beginning."""
        command = self.query_one("#command", Input)
        command.value = text
        self.set_focus(command)
        command.cursor_position = len(text)

    def action_blur(self) -> None:
        """Leave the command line."""
        self.set_focus(None)

    def action_help(self) -> None:
        """Show keys and commands."""
        self.push_screen(Help())

    def action_leave(self) -> None:
        """Quit, after asking what becomes of a trial that has not ended."""
        if self.view is None or self.view.is_over:
            self.exit()
        else:
            self.push_screen(Leave(self.view), self._leave)

    def action_release(self) -> None:
        """Quit at once; the trial is given back."""
        self._leave("release")

    def _leave(self, command: str | None) -> None:
        if command:
            self.driver.do(command)
        if command is not None:
            self.exit()

    # ---- what comes from the driver's thread

    def _from_driver_show(self, view: View) -> None:
        drawn, self._latest = self._latest is None, view
        if drawn and self.is_running:  # else that is about to be drawn: epochs may be quicker than screens
            self.call_later(self._show_latest)

    def _show_latest(self) -> None:
        view, self._latest = self._latest, None
        if view is not None:
            self.show(view)

    def _from_driver_say(self, text: str) -> None:
        if self.is_running:
            self.call_later(self._say, text)

    def _say(self, text: str) -> None:
        self.message = text
        self._show_log()

    def _show_log(self) -> None:
        log = self.query_one("#log", Static)
        log.update(_log(self.view, self.message, max(log.size.height, 3)))

    def show(self, view: View) -> None:
        """Draw what there is to see."""
        self.view = view
        self.query_one("#title", Static).update(_title(view))
        self.query_one("#values", Static).update(_values(view))
        self.query_one("#numbers", Static).update(_numbers(view))
        self.query_one("#legend", Static).update(_legend(view))
        self.query_one("#diagnosis", Static).update(_diagnosis(view))
        self._show_log()
        self._draw(self.query_one("#curves", PlotextPlot), view)

    def _draw(self, plot: PlotextPlot, view: View) -> None:
        plt = plot.plt
        plt.clear_data()
        plt.clear_figure()
        curves = _curves(view)
        if _spans_decades([value for _, _, values, _ in curves for value in values]):
            plt.yscale("log")
        for epoch in view.adjusted:
            if 0 < epoch < view.epoch:
                plt.vline(epoch, BEFORE)
        for _, epochs, points, colour in curves:
            plt.plot(epochs, points, color=colour, marker="braille")
        last = max([view.planned or 0, view.epoch, 2])
        plt.xlim(1, last)
        plt.xticks(_ticks(last))
        plot.refresh()


class Help(ModalScreen[None]):
    """Keys and commands; any key closes it."""

    CSS = """
    Help { align: center middle; }
    Help Static { width: 76; height: auto; max-height: 22; padding: 0 2; background: $panel; border: round $primary; }
    """

    def compose(self) -> ComposeResult:
        """A table of each."""
        names = Table("key", "", box=None)
        for key, what in KEYS:
            names.add_row(f"[bold]{key}[/bold]", what)
        commands = Table("command", "", box=None)
        for usage, what in [("name value", "change it; name *0.3 and name /2: relative"), *COMMANDS.values()]:
            commands.add_row(f"[bold]{escape(usage)}[/bold]", what)
        yield Static(Group(names, commands))

    def on_key(self, event: Key) -> None:
        """Close."""
        event.stop()
        self.dismiss()


class Leave(ModalScreen[str | None]):
    """What shall become of the trial?"""

    CSS = """
    Leave { align: center middle; }
    Leave Static { width: 66; height: auto; padding: 1 2; background: $panel; border: round $warning; }
    """

    def __init__(self, view: View) -> None:
        super().__init__()
        self.seen = view
        self.choices = {"a": "abandon", "b": "release"}
        if view.failure is not None:
            self.choices["f"] = ""  # a session left with a failure fails its trial
        elif view.history:
            self.choices["s"] = "stop"

    def compose(self) -> ComposeResult:
        """The choices."""
        what = {"a": "abandon: pruned", "b": "back: a worker or a later session runs it again"}
        if self.seen.history:
            last = self.seen.history[-1]
            what["s"] = f"stop: complete, with its value {last.value:.4g}, of epoch {last.number}"
        what["f"] = f"failed: {self.seen.failure}"
        lines = [
            f"[bold]{key}[/bold]    {escape(what[key])}"
            for key in ("s", "f", "a", "b")
            if key in self.choices
        ]
        text = Text.from_markup(
            f"Trial {self.seen.number} has not ended. What shall become of it?\n\n"
            + "\n".join([*lines, "[bold]Esc[/bold]  stay"])
        )
        yield Static(text)

    def on_key(self, event: Key) -> None:
        """Choose."""
        event.stop()
        if event.key in self.choices:
            self.dismiss(self.choices[event.key])
        elif event.key == "escape":
            self.dismiss(None)


def _title(view: View) -> Table:
    state = (
        f"ended ({view.stopped})"
        if view.is_over
        else "at its end"
        if view.is_finished
        else "[bold]▶ running[/bold]"
        if view.is_running
        else "paused"
    )
    of = f" of {view.planned}" if view.planned else ""
    title = Table.grid(expand=True)
    title.add_column()
    title.add_column(justify="right")
    title.add_row(
        f"[bold]panda[/bold]  {escape(view.study)} · trial {view.number}",
        f"epoch [bold]{view.epoch}[/bold]{of}  {state}",
    )
    return title


def _values(view: View) -> Table:
    table = Table.grid(expand=True, padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True, overflow="ellipsis")
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", no_wrap=True, style="dim")
    for name, value in view.current.items():
        changed = value != view.start[name]
        shown = f"[bold yellow]{show_value(value)}[/]" if changed else show_value(value)
        table.add_row(name, shown, f"({show_value(view.start[name])})" if changed else "")
    return table


def _numbers(view: View) -> Table:
    table = Table.grid(expand=True, padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", no_wrap=True, style="dim")
    if not view.history or view.best is None:
        return table
    last = view.history[-1]
    table.add_row("last", f"[bold]{show_value(last.value)}[/bold]", f"at {last.number}")
    table.add_row("best", f"[bold green]{show_value(view.best.value)}[/]", f"at {view.best.number}")
    for name, label in METRICS.items():
        if name in last.metrics:
            table.add_row(label, f"{last.metrics[name]:.2g}", "")
    if view.would_prune:
        table.add_row("pruner", "[yellow]would stop[/]", f"at {view.would_prune[0]}")
    return table


METRICS = {
    "train_error": "train error",
    "dev_error": "dev error",
    "gradient_norm": "gradient",
    "seconds": "seconds",
}
"""The metrics that have a line of their own, where an objective has them."""


def _diagnosis(view: View) -> Text:
    text = Text(view.diagnosis)
    text.highlight_regex(r"improving|low bias and low variance|no plateau or saddle", "bold green")
    text.highlight_regex(r"just begun|plateau(?=[: ] *hardly| or saddle in)|oscillating", "bold yellow")
    text.highlight_regex(r"high (bias|variance)( and high variance)?", "bold yellow")
    text.highlight_regex(r"^failed|diverging|getting worse", "bold red")
    return text


def _log(view: View | None, message: str, height: int) -> Text:
    """The last that happened, and what was refused just now."""
    events = [Text(f"{event.epoch:>4}  {event.text}") for event in (view.log if view else ())]
    if not events and not message:
        return Text("space runs, n trains one epoch, ? shows all that can be done")
    lines = [*events, *([Text(message, "bold red")] if message else [])][-height:]
    text = Text("\n").join(lines)
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _curves(view: View) -> list[tuple[str, list[int], list[float], RGB]]:
    """Label, epochs, values and colour of each curve; what was rewound first, so that it lies behind."""
    path = {e.number: e.value for e in view.history}
    curves = []
    for branch in view.branches:
        fork = min(branch, default=0) - 1
        shared = [(fork, path[fork])] if fork in path else []
        curves.append(("rewound", *_points([*shared, *branch.items()]), BEFORE))
    if _all_have(view.history, "train_loss"):
        losses = [(e.number, e.metrics["train_loss"]) for e in view.history]
        curves.append(("train loss", *_points(losses), TRAIN))
    label = "dev loss" if _all_have(view.history, "dev_loss") else "value"
    curves.append((label, *_points((e.number, e.value) for e in view.history), DEV))
    return [curve for curve in curves if curve[1]]


def _legend(view: View) -> Text:
    colours = {name: colour for name, _, _, colour in reversed(_curves(view))}
    marks = [Text.assemble(("━ ", f"rgb{colour}".replace(" ", "")), name) for name, colour in colours.items()]
    adjusted = [Text.assemble(("│ ", "dim"), "adjusted")] if any(view.adjusted) else []
    return Text("  ").join([*marks, *adjusted])


def _spans_decades(values: Sequence[float]) -> bool:
    """Whether a logarithmic axis shows more: all curves share it, so none may touch 0."""
    return bool(values) and min(values) > 0 and max(values) / min(values) > 50


def _points(pairs: Iterable[tuple[int, float]]) -> tuple[list[int], list[float]]:
    finite = [(e, v) for e, v in sorted(pairs) if math.isfinite(v)]
    return [e for e, _ in finite], [v for _, v in finite]


def _all_have(epochs: Iterable[Any], metric: str) -> bool:
    return all(metric in epoch.metrics for epoch in epochs)


def _ticks(last: int) -> list[float]:
    """About six round epochs from 1 to the last."""
    step = next(s for e in range(9) for s in (10**e, 2 * 10**e, 5 * 10**e) if last / s <= 6)
    return sorted({1, *range(step, last + 1, step)})
