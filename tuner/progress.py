"""How a run gets on, for a person who watches: a bar for each arm, the rate, and what each worker does.

In a terminal the display is drawn in place. Anywhere else (a pipe, the log of a container, a dumb terminal) it is a
plain line now and then, and the bars once at the end.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Self

from optuna.trial import TrialState
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from tuner.definition import StudyDefinition
from tuner.errors import TunerError
from tuner.manager import StudySummary
from tuner.pareto import on_front
from tuner.runs import Working
from tuner.trial_run import Outcome
from tuner.words import plural

__all__ = ["RunDisplay", "fit"]

TERMINAL_SECONDS = 1.0
"""How often a terminal shows anew what the workers do."""

PLAIN_SECONDS = 30.0
"""How often anything else gets a line."""

LEAVE_SECONDS = 1.0
"""So long the end waits for the thread that reads what workers do: the database may not answer it for long."""

RATE_TRIALS = 100
"""Over so many of the last trials the rate is taken."""


class RunDisplay:
    """Shows how studies get on while it is entered; `on_outcome` tells it of each trial's end.

    Args:
        console: where to show it.
        members: the studies, each with the group whose bar it belongs to.
        summaries: what is in the database already.
        working: what workers do now in studies of these names; read in a thread of its own.
    """

    def __init__(
        self,
        console: Console,
        members: Sequence[tuple[str, StudyDefinition]],
        summaries: Sequence[StudySummary],
        working: Callable[[Sequence[str]], Sequence[Working]],
    ) -> None:
        self._working = working
        self._group_of = {definition.name: group for group, definition in members}
        self._directions = {group: definition.directions for group, definition in members}
        self._bars = _Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[best]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._bests: dict[str, list[Sequence[float]]] = {}
        self._ranks: dict[str, float] = {}
        for summary in summaries:
            if summary.name in self._group_of:
                known = summary.front if summary.best_value is None else [(summary.best_value,)]
                self._note_best(self._group_of[summary.name], *known)
        self._tasks = {group: self._add_bar(group, members, summaries) for group in self._directions}
        self._counts: Counter[str] = Counter()
        self._ended: deque[float] = deque(maxlen=RATE_TRIALS)
        self._notes = _Notes(self._bars)
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="progress", daemon=True)

    def __enter__(self) -> Self:
        logging.getLogger("tuner").addHandler(self._notes)
        self._bars.start()
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        try:
            self._watcher.join(LEAVE_SECONDS)
        finally:
            self._bars.footer = self._totals()
            self._bars.stop()
            logging.getLogger("tuner").removeHandler(self._notes)

    @property
    def finished(self) -> int:
        """How many trials have ended, those of earlier runs included."""
        return sum(int(task.completed) for task in self._bars.tasks)

    def on_outcome(self, outcome: Outcome) -> None:
        """A trial has ended."""
        if outcome.state is None:
            return
        self._ended.append(time.monotonic())
        self._counts[outcome.state.name] += 1
        group = self._group_of[outcome.study]
        if outcome.state is TrialState.COMPLETE and outcome.values is not None:
            self._note_best(group, outcome.values)
        self._bars.update(self._tasks[group], advance=1, best=self._best(group))
        if outcome.is_error:
            self._bars.say(f"{outcome.study} trial {outcome.number} failed: {outcome.failure}")

    def on_ranks(self, ranks: Mapping[str, float]) -> None:
        """The mean ranks of the groups so far."""
        self._ranks = dict(ranks)
        for group, task in self._tasks.items():
            self._bars.update(task, best=self._best(group))

    def _note_best(self, group: str, *values: Sequence[float]) -> None:
        """Keep what none is better than: the best value, or with several objectives the Pareto front."""
        known = [*self._bests.get(group, ()), *values]
        is_best = on_front(known, self._directions[group])
        best = [row for row, is_one in zip(known, is_best, strict=True) if is_one]
        self._bests[group] = best if len(self._directions[group]) > 1 else best[:1]

    def _best(self, group: str) -> str:
        best, parts = self._bests.get(group), []
        if best and len(self._directions[group]) > 1:
            parts.append(f"front of {len(best)}")
        elif best:
            parts.append(f"best {best[0][0]:.4g}")
        parts += [f"mean rank {self._ranks[group]:.2f}"] if group in self._ranks else []
        return ", ".join(parts)

    def _add_bar(
        self, group: str, members: Sequence[tuple[str, StudyDefinition]], summaries: Sequence[StudySummary]
    ) -> TaskID:
        mine = [definition for g, definition in members if g == group]
        limits = [definition.trials for definition in mine]
        total = None if None in limits else sum(limit or 0 for limit in limits)
        ended = {summary.name: summary.finished for summary in summaries}
        done = sum(ended.get(definition.name, 0) for definition in mine)
        return self._bars.add_task(group, total=total, completed=done, best=self._best(group))

    def _watch(self) -> None:
        """Show what the workers do until the run is over."""
        console = self._bars.console
        is_terminal = (
            console.is_terminal and not console.is_dumb_terminal
        )  # a dumb one cannot be drawn in place
        while not self._over.wait(TERMINAL_SECONDS if is_terminal else PLAIN_SECONDS):
            try:
                now = _describe(self._working(list(self._group_of)))
            except TunerError:  # the run itself says so if the database is gone
                continue
            if self._over.is_set():  # the answer took long
                return
            if is_terminal:
                self._bars.footer = [*self._totals(), fit(*now, console.width)]
            else:
                totals = [plural(self.finished, "trial"), *self._totals(), *self._standing()]
                self._bars.say(", ".join([*totals, fit(*now, 10_000)]))

    def _standing(self) -> list[str]:
        """The groups by their mean rank so far, where that is known."""
        ranks = sorted(self._ranks.items(), key=lambda item: item[1])
        return [f"mean ranks {', '.join(f'{group} {rank:.2f}' for group, rank in ranks)}"] if ranks else []

    def _totals(self) -> list[str]:
        """Rate, pruned and failed in a line; nothing before the first trial has ended."""
        parts = []
        if len(self._ended) > 1 and self._ended[-1] > self._ended[0]:
            parts.append(f"{(len(self._ended) - 1) / (self._ended[-1] - self._ended[0]):.3g} trials/s")
        words = {"PRUNED": "pruned", "FAIL": "failed"}
        parts += [f"{self._counts[state]} {word}" for state, word in words.items() if self._counts[state]]
        return [", ".join(parts)] if parts else []


class _Bars(Progress):
    """Progress bars with lines of text below them."""

    footer: Sequence[str] = ()

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        for line in self.footer:
            yield Text(line, style="dim", no_wrap=True, overflow="ellipsis")

    def say(self, line: str) -> None:
        """A line above the bars, as it is."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


class _Notes(logging.Handler):
    """What the library logs goes above the bars instead of through them."""

    def __init__(self, bars: _Bars) -> None:
        super().__init__(logging.WARNING)
        self._bars = bars

    def emit(self, record: logging.LogRecord) -> None:
        self._bars.say(self.format(record))


def _describe(working: Sequence[Working]) -> tuple[str, list[str]]:
    """How many trials run, and each of them in words."""
    trials = [f"{w.study} #{w.number}" + (f" epoch {w.epochs}" if w.epochs else "") for w in working]
    return f"{len(trials)} running", trials


def fit(head: str, items: Sequence[str], width: int) -> str:
    """`head: item, item, … and 3 more`: as many items as a line of `width` characters holds.

    Example:
        >>> fit("3 running", ["a #1", "b #2", "c #3"], 28)
        '3 running: a #1 … and 2 more'
    """
    for shown in range(len(items), 0, -1):
        more = f" … and {len(items) - shown} more" if shown < len(items) else ""
        if len(line := f"{head}: {', '.join(items[:shown])}{more}") <= width:
            return line
    return head
