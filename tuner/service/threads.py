"""Threads for one thing only: what takes long there keeps nothing else waiting."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import anyio
import anyio.lowlevel
import anyio.to_thread

__all__ = ["OwnThreads"]

R = TypeVar("R")
Ts = TypeVarTuple("Ts")


class OwnThreads:
    """At most so many threads at once, in each event loop.

    Args:
        name: of what they are for.
        most: how many.
    """

    def __init__(self, name: str, most: int) -> None:
        self._most = most
        self._limiter: anyio.lowlevel.RunVar[anyio.CapacityLimiter] = anyio.lowlevel.RunVar(f"tuner_{name}")

    async def run(self, function: Callable[[*Ts], R], *args: *Ts, is_left: bool = False) -> R:
        """What it returns; with `is_left`, whoever is cancelled meanwhile does not wait for its end."""
        try:
            limiter = self._limiter.get()
        except LookupError:
            limiter = anyio.CapacityLimiter(self._most)
            self._limiter.set(limiter)
        return await anyio.to_thread.run_sync(function, *args, abandon_on_cancel=is_left, limiter=limiter)
