"""The studies that this process has open, and the leases that go through it.

A study is opened once: its sampler and what it keeps of finished trials are used for every ask. A lease may have been
granted by another process, or by this one before it was started again: then it is read from the database once.
"""

from __future__ import annotations

import hashlib
import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, TypeVar, cast

from fastapi import Depends, Request

from tuner.ask_tell import AskTell, Lease
from tuner.errors import NotFoundError, TunerError
from tuner.manager import StudyManager, definition_of
from tuner.service.identity import Identity
from tuner.storage import in_turn

__all__ = ["Desk", "DeskOf", "command_key", "desk", "owner", "request_digest"]

STUDIES = 256
"""So many are kept open."""

LEASES = 4096
"""So many of a study are remembered."""

CHECK_SECONDS = 5.0
"""So long a study is believed to be the same: another program may have deleted it and made one of the same name."""

FINISHED = 100_000
FINISHED_SECONDS = 60.0
"""So long a finished study is not asked again by workers that take any; its id may be another study's one day."""

T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Open:
    ask_tell: AskTell
    checked: float
    leases: OrderedDict[tuple[int, int], Lease] = field(default_factory=OrderedDict)


class Desk:
    """Where requests find their studies and leases. Threads may share it.

    Args:
        manager: of the database.
    """

    def __init__(self, manager: StudyManager) -> None:
        self.manager = manager
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._finished: OrderedDict[tuple[int, str], float] = OrderedDict()
        self._lock = threading.Lock()

    def study(self, name: str) -> AskTell:
        """Ask and tell for a study.

        Raises:
            NotFoundError: there is no such study, or it was not made from a definition.
        """
        return self._opened(name).ask_tell

    def lease(self, study: str, number: int, fence: int) -> tuple[AskTell, Lease]:
        """A lease that a client holds, or believes to.

        Raises:
            NotFoundError: there is no such study or trial.
            LeaseLostError: there never was such a lease.
        """
        opened = self._opened(study)
        with self._lock:
            lease = opened.leases.get((number, fence))
        if lease is None:
            lease = opened.ask_tell.lease(number, fence)
            self._remember(opened, lease)
        return opened.ask_tell, lease

    def remember(self, study: str, lease: Lease) -> None:
        """Keep a lease that was just granted."""
        self._remember(self._opened(study), lease)

    def forget(self, study: str, lease: Lease) -> None:
        """Keep a lease no longer: it has ended."""
        with self._lock:
            if (opened := self._open.get(study)) is not None:
                opened.leases.pop((lease.number, lease.fence), None)

    def asking(self, name: str, ask: Callable[[AskTell], T]) -> T:
        """What `ask` returns for a study; once more, opened anew, where it turns out to be another by now."""
        try:
            return ask(self.study(name))
        except NotFoundError:
            with self._lock:
                self._open.pop(name, None)
            return ask(self.study(name))

    def note_finished(self, study_id: int, name: str) -> None:
        """Remember that a study will hand out no trial any more."""
        with self._lock:
            self._finished[study_id, name] = time.monotonic()
            while len(self._finished) > FINISHED:
                self._finished.popitem(last=False)

    def is_finished(self, study_id: int, name: str) -> bool:
        """Whether that was noted lately."""
        with self._lock:
            return time.monotonic() - self._finished.get((study_id, name), -math.inf) < FINISHED_SECONDS

    def reap(self) -> int:
        """Let the trials of silent workers wait for others; how many there were."""
        ended = 0
        for name in self.manager.overdue():
            try:
                ended += self.study(name).reap()
            except TunerError as error:  # of one study; the others go on
                _log.warning("%s: could not end the leases of lost workers: %s", name, error)
        return ended

    def _opened(self, name: str) -> _Open:
        if (opened := self._fresh(name)) is not None:
            return opened
        with in_turn("open", id(self), name):  # all but the first find it open
            return self._fresh(name) or self._checked(name)

    def _fresh(self, name: str) -> _Open | None:
        """A study that was opened or checked lately; None where it was not."""
        with self._lock:
            opened = self._open.get(name)
            if opened is None or time.monotonic() - opened.checked >= CHECK_SECONDS:
                return None
            self._open.move_to_end(name)
            return opened

    def _checked(self, name: str) -> _Open:
        """A study that is the same still, or opened anew."""
        with self._lock:
            opened = self._open.get(name)
        now = time.monotonic()
        if opened is not None and self._is_same(name, opened.ask_tell):
            opened.checked = now
            return opened
        fresh = _Open(self.manager.ask_tell(name, shared=True), now)
        with self._lock:
            self._open[name] = fresh
            while len(self._open) > STUDIES:
                self._open.popitem(last=False)
        return fresh

    def _is_same(self, name: str, ask_tell: AskTell) -> bool:
        there = self.manager.load(name)
        return there._study_id == ask_tell.study._study_id and definition_of(there) == ask_tell.definition

    def _remember(self, opened: _Open, lease: Lease) -> None:
        with self._lock:
            opened.leases[lease.number, lease.fence] = lease
            while len(opened.leases) > LEASES:
                opened.leases.popitem(last=False)


async def desk(request: Request) -> Desk:  # asynchronous: for others FastAPI takes a thread
    """The desk of the application."""
    return cast("Desk", request.app.state.desk)


DeskOf = Annotated[Desk, Depends(desk)]


def owner(who: Identity, client_id: str) -> str:
    """Who has a lease. With one slash it never reads as a process of some host, which could be looked up as gone."""
    return f"http:{who.name.replace('/', '_')}/{client_id}"[:255]


def command_key(who: Identity, key: str | None, *command: str | int) -> str | None:
    """The key of a command that a client has named; None if it has not."""
    if key is None:
        return None
    named = "\0".join(map(str, (who.name, key, *command)))
    return hashlib.sha256(named.encode()).hexdigest()[:32]


def request_digest(who: Identity, client_id: str, *request: str | int) -> str:
    """The id of a client's request: apart from those of others, and of the ledger's length."""
    named = "\0".join(map(str, (who.name, client_id, *request)))
    return f"http:{hashlib.sha256(named.encode()).hexdigest()}"
