"""Heartbeats: leases are renewed in the background for as long as their trials run, by one thread a process."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tuner.ask_tell import Lease
from tuner.errors import LeaseLostError, StorageError
from tuner.worker_side import WorkerSide

__all__ = ["heartbeat"]

_log = logging.getLogger(__name__)

BEATS = 3
"""So many in the life of a lease: it survives one that is missed."""

IDLE_SECONDS = 10.0
"""So long the thread waits for further leases before it ends."""


@contextmanager
def heartbeat(ask_tell: WorkerSide, lease: Lease) -> Iterator[None]:
    """Renew the lease for as long as the block takes. Each beat also ends the leases of lost workers of the study."""
    kept = _Kept(ask_tell, lease)
    _heart.keep(kept)
    try:
        yield
    finally:
        _heart.drop(kept)


@dataclass(eq=False, slots=True)
class _Kept:
    """A lease that is kept alive. The lock is held while it is renewed."""

    ask_tell: WorkerSide
    lease: Lease
    due: float = 0.0
    is_over: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)
    pid: int = field(default_factory=os.getpid)

    def __post_init__(self) -> None:
        self.put_off()

    def put_off(self) -> None:
        self.due = time.monotonic() + self.ask_tell.lease_seconds / BEATS

    def beat(self) -> None:
        with self.lock:
            if self.is_over:
                return
            self.put_off()
            try:
                self.ask_tell.heartbeat(self.lease)
                self.ask_tell.reap()
            except LeaseLostError:
                self.is_over = True  # the next report or tell says so
            except StorageError:
                pass  # the database may be back before the lease runs out
            except Exception:  # noqa: BLE001 - other leases depend on this thread
                _log.exception("the heartbeat of trial %d failed", self.lease.number)


class _Heart:
    """The thread and what it keeps: it starts with the first lease, and ends a while after the last."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._kept: set[_Kept] = set()
        self._thread: threading.Thread | None = None
        self._wakes = 0.0

    def keep(self, kept: _Kept) -> None:
        with self._changed:
            self._kept.add(kept)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
                self._thread.start()
            elif kept.due < self._wakes:
                self._changed.notify()

    def drop(self, kept: _Kept) -> None:
        """Renew a lease no more. A beat that is under way ends first, so that none comes after the trial's end."""
        if kept.pid != os.getpid():  # a fork inside the block: the thread, and the lock, are the parent's
            return
        with self._changed:
            self._kept.discard(kept)
        with kept.lock:
            kept.is_over = True

    def _run(self) -> None:
        while (due := self._next_due()) is not None:
            for kept in due:
                kept.beat()

    def _next_due(self) -> list[_Kept] | None:
        """Wait until leases are to be renewed: which; none at all when there has been nothing to do for long."""
        with self._changed:
            while True:
                now = time.monotonic()
                self._kept = {kept for kept in self._kept if not kept.is_over}
                if due := [kept for kept in self._kept if kept.due <= now]:
                    return due
                self._wakes = min((kept.due for kept in self._kept), default=now + IDLE_SECONDS)
                was_idle = not self._kept
                if not self._changed.wait(self._wakes - now) and was_idle and not self._kept:
                    self._thread = None
                    return None


_heart = _Heart()


def _begin_anew() -> None:
    """After a fork: the thread stayed with the parent, and so did the trials."""
    global _heart  # noqa: PLW0603
    _heart = _Heart()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
