"""What stands between a session and a screen: commands in words, and a thread that trains while the person looks."""

from __future__ import annotations

import contextlib
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from objectives.epoch import Epoch
from tuner.assignment import parse_value
from tuner.errors import DefinitionError
from tuner.explain import near_miss
from tuner.panda.session import Event, Session

__all__ = ["COMMANDS", "Driver", "View"]

COMMANDS = {
    "step": ("step [n]", "train n epochs, one if not said"),
    "run": ("run [epoch]", "train until this epoch, or to the end"),
    "pause": ("pause", "wait after this epoch"),
    "rewind": ("rewind n", "go back to where it stood after this epoch; 0: to the start"),
    "note": ("note text", "write a remark onto the trial"),
    "stop": ("stop", "end here: complete, with the last epoch's value"),
    "abandon": ("abandon", "give the trial up: pruned"),
    "release": ("release", "give the trial back, for a worker or a later session"),
}
"""The words of the command line besides hyperparameters: usage, and what they do."""

SHORT = {"n": "step", "r": "rewind", "s": "stop"}
"""The keys, as words of the command line."""


@dataclass(frozen=True)
class View:
    """What there is to see of a session at one moment."""

    study: str
    number: int
    epoch: int
    planned: int | None
    is_running: bool
    is_finished: bool
    is_over: bool
    stopped: str | None
    failure: str | None
    history: tuple[Epoch, ...]
    best: Epoch | None
    current: Mapping[str, Any]
    start: Mapping[str, Any]
    adjusted: tuple[int, ...]
    branches: tuple[Mapping[int, float], ...]
    log: tuple[Event, ...]
    would_prune: tuple[int, ...]
    diagnosis: str


@dataclass
class Driver:
    """Drives a session from a thread of its own. All that touches the session happens there, one thing at a time.

    Args:
        session: entered already.
        show: called from that thread with what there is to see, whenever it may have changed.
        say: called from that thread with a line for the person: what was refused or went wrong.
        pace: seconds that an epoch takes at least, so that a quick training can be followed.
    """

    session: Session
    show: Callable[[View], None]
    say: Callable[[str], None]
    pace: float = 0.0
    _until: float = 0.0
    _steps: int = 0
    _jobs: queue.SimpleQueue[Callable[[], None]] = field(default_factory=queue.SimpleQueue)
    _closing: bool = False

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._loop, name="panda", daemon=True)
        self._next_epoch = 0.0

    def start(self) -> None:
        """Begin to take commands. Nothing is trained before the person says so."""
        self._thread.start()

    def close(self, timeout: float | None = None) -> bool:
        """Carry out what was commanded, and no more; train no further than the epoch that trains.

        Returns whether that was done within `timeout` seconds.
        """
        self._pause()
        self._jobs.put(self._finish)
        if self._thread.ident is not None:  # it was started
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _pause(self) -> None:
        self._until, self._steps = 0.0, 0

    def _finish(self) -> None:
        self._closing = True

    @property
    def is_running(self) -> bool:
        """Whether the next epoch will be trained without being asked for."""
        session = self.session
        ended = session.is_over or session.is_finished or session.failure is not None
        return not ended and (self._steps > 0 or session.epoch < self._until)

    def toggle(self) -> None:
        """Pause, or run on."""
        if self.is_running:
            self._pause()  # at once, also while an epoch trains
            self._jobs.put(lambda: None)
        else:
            self.do("run")

    def do(self, text: str) -> None:
        """Carry out a command of the command line, after the epoch that trains now."""
        self._jobs.put(lambda: self._obey(text))

    def _loop(self) -> None:
        self.show(self._view())
        while not self._closing:
            try:
                self._turn()
            except Exception as error:  # noqa: BLE001 - whatever it is, the person must see it
                self._pause()
                self.say(str(error).splitlines()[0] if str(error) else type(error).__name__)
            if not self._closing:
                self.show(self._view())

    def _turn(self) -> None:
        """Carry out one command, or train one epoch."""
        with contextlib.suppress(queue.Empty):
            wait = max(0.0, self._next_epoch - time.monotonic()) if self.is_running else None
            self._jobs.get(timeout=wait)()
            return
        self._next_epoch = time.monotonic() + self.pace
        self.session.step()
        self._steps = max(0, self._steps - 1)

    def _obey(self, text: str) -> None:
        word, _, rest = text.strip().partition(" ")
        word, rest = SHORT.get(word, word), rest.strip()
        session = self.session
        match word:
            case "step" | "run":
                session.require_trainable()
                self._pause()
                self._next_epoch = 0.0  # the person has waited already
                if word == "step":
                    self._steps = _whole(rest or "1", word, 1)
                else:
                    self._until = self._goal(rest) if rest else math.inf
            case "rewind":
                session.rewind(_whole(rest, word))
                self._pause()
            case "note":
                if not rest:
                    raise DefinitionError("note takes a text, as in: note looks slow")
                session.note(rest)
            case "pause" | "stop" | "abandon" | "release":
                if rest:
                    raise DefinitionError(f"{word} stands alone; got {word} {rest}")
                getattr(session, word, self._pause)()
            case _:
                session.adjust(**self._adjustment(text))

    def _goal(self, text: str) -> int:
        epoch, reached = _whole(text, "run"), self.session.epoch
        if epoch <= reached:
            raise DefinitionError(
                f"run goes on to a later epoch than {reached}; got {epoch}. To go back: rewind {text}"
            )
        return epoch

    def _adjustment(self, text: str) -> dict[str, Any]:
        """`learning_rate 0.001`, `learning_rate=0.001`, or relative to what it is: `learning_rate *0.3`."""
        name, *given = text.replace("=", " ", 1).split(maxsplit=1) or [text]
        known = self.session.current
        if name not in known:
            names = [*known, *COMMANDS]
            raise DefinitionError(f"no command {name!r}{near_miss(name, names)}; ? shows all")
        if not given:
            raise DefinitionError(f"{name} is {known[name]}; say its new value, as in: {name} *0.3")
        value = given[0].replace(" ", "")
        if value[0] not in "*/":
            return {name: parse_value(value)}
        factor = parse_value(value[1:])
        if isinstance(factor, (bool, str)) or factor == 0:
            raise DefinitionError(
                f"{name} is multiplied or divided by a number, as in: {name} *0.3; got {value}"
            )
        product = known[name] * factor if value[0] == "*" else known[name] / factor
        return {name: round(product) if isinstance(known[name], int) else product}

    def _view(self) -> View:
        session = self.session
        return View(
            study=session.ask_tell.definition.name,
            number=session.number,
            epoch=session.epoch,
            planned=session.planned,
            is_running=self.is_running,
            is_finished=session.is_finished,
            is_over=session.is_over,
            stopped=session.stopped,
            failure=session.failure,
            history=session.history,
            best=session.best,
            current=session.current,
            start=session.adjustments.start,
            adjusted=tuple(sorted({entry["epoch"] for entry in session.adjustments.record})),
            branches=tuple({int(e): v for e, v in r["values"].items()} for r in session.rewinds),
            log=session.log,
            would_prune=session.would_prune,
            diagnosis=session.diagnosis,
        )


def _whole(text: str, word: str, least: int = 0) -> int:
    with contextlib.suppress(ValueError):
        if (number := int(text)) >= least:
            return number
    raise DefinitionError(f"{word} takes a whole number of epochs, {least} or more; got {text or 'nothing'}")
