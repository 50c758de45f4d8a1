"""A worker: runs the registered objectives for a service, from anywhere, with nothing but a token.

Each task of the pool asks for one trial, runs it and comes back; while there is none, one task after the other asks,
ever more rarely. The database is never seen here. A stop (Ctrl-C, SIGTERM) reaches the workers of this machine through
a file, and those of a Dask cluster through Dask: they look after each epoch, and give their trials back. Workers that
an executor of the user's own has on other machines finish them.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from tuner import logs
from tuner.ask_tell import Lease
from tuner.catalogue import find_objective, objective_names
from tuner.client.client import KEEP_SECONDS, LONGEST_WAIT, Waiting
from tuner.client.documents import WorkerTrial, read
from tuner.client.http import PATIENCE, TIMEOUT, Transport
from tuner.client.remote import RemoteAskTell, this_process
from tuner.definition import ComparisonDefinition
from tuner.errors import DefinitionError, LeaseLostError, NotFoundError, ServiceUnavailableError, TunerError
from tuner.executors import (
    CHECK_SECONDS,
    Losses,
    Pool,
    Where,
    WorkerLostError,
    ended_first,
    find_executor,
    one_thread,
    result_of,
    submit,
    submit_greeting,
)
from tuner.termination import Terminated, interruptions_held, is_ending, pause, terminations_raised, wait_for
from tuner.trial_run import Failures, Outcome, run_leased
from tuner.words import plural

__all__ = ["WorkerSettings", "work"]

_log = logging.getLogger(__name__)

LOOK_SECONDS = 0.2
"""How often a worker looks, at most, whether it is to stop."""

LOOK_TIMEOUT = 2.0
"""So long it takes at most to see whether the service is there: Ctrl-C and SIGTERM wait for it."""

PROBE_SECONDS = 1.0
"""A task that asks while there was nothing, and is not back after so many seconds, has found a trial."""

OVER = ("stopped", "archived")
"""States of a study that hands out no trial any more."""

SHOWN = 4
"""So many objectives are named to people."""

JOBS_KEPT = 4
"""Of so many jobs a process keeps the connection: those of a cluster serve one after the other."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Whom a worker serves.

    `study` is the one whose trials it runs, or a comparison, all of whose studies it runs; None: all whose objectives
    it has. `keep_seconds` is how often, at most, it uploads a checkpoint for the next attempt at a trial. With a
    `log_level`, the processes that run trials log their calls as `tuner.logs` has it. The rest is as in
    `tuner.client.Client`.
    """

    url: str
    token: str = field(repr=False)
    study: str | None = None
    patience: float = PATIENCE
    allow_http: bool = False
    ca_file: str | None = None
    keep_seconds: float = KEEP_SECONDS
    log_level: str | None = None

    def __post_init__(self) -> None:
        if self.log_level is not None:
            logs.check_level(self.log_level)

    def transport(self, *, patience: float | None = None, timeout: float = TIMEOUT) -> Transport:
        """A way to the service; with another patience, if one is given."""
        patience = self.patience if patience is None else patience
        return Transport(
            self.url,
            self.token,
            patience=patience,
            timeout=timeout,
            allow_http=self.allow_http,
            ca_file=self.ca_file,
        )


def work(
    settings: WorkerSettings,
    *,
    workers: int = 1,
    executor: Where = "processes",
    idle: float | None = None,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
    on_news: Callable[[str], None] = lambda line: None,
    on_look: Callable[[], None] = lambda: None,
) -> None:
    """Run trials for a service: with a study until that is finished, else for as long as there is no other reason.

    Args:
        settings: whom it serves.
        workers: how many trials run at once.
        executor: where, see `tuner.executors`.
        idle: end after so many seconds without any trial; None: wait for further ones for ever.
        on_outcome: called in this thread with each trial's end.
        on_news: called in this thread with a line on what is served, and on what is waited for.
        on_look: called in this thread every few seconds, whatever the trials do: a sign of life.

    Raises:
        AccessDeniedError: the token is unknown, or is not for workers.
        NotFoundError: there is no such study or comparison, or no objective of it is installed here.
        DefinitionError: there is no such executor, or the study names no objective.
        TunerError: too many trials failed in a row, or worker processes keep dying.
        KeyboardInterrupt: passed on, after the running trials were given back.
        SystemExit: after SIGTERM, likewise, where the program does nothing else about it.
    """
    if workers < 1:
        raise DefinitionError(f"workers must be at least 1; got {workers}")
    open_pool = find_executor(executor, is_gentle=True)
    objectives = _loadable(on_news)
    with (
        terminations_raised(),
        _Watch(settings, on_news) as watch,
        tempfile.TemporaryDirectory(prefix="tuner-worker-") as folder,
        one_thread(),
    ):
        watch.look()
        with settings.transport() as transport:  # mistakes show before any worker starts
            what, is_comparison = _served(transport, settings.study, objectives)
        watch.look()
        on_news(f"working for {settings.url}: {what}; {workers} at once, in {_name(executor)}")
        job = _Job(settings, objectives, Path(folder, "stop"), is_comparison)
        loop = _Loop(job, workers, idle, watch, on_outcome, on_news, on_look)
        try:
            while loop.goes_on:
                with open_pool(workers) as pool, interruptions_held():
                    loop.run_in(pool)
        finally:
            _disconnect(job)


def _served(transport: Transport, name: str | None, objectives: tuple[str, ...]) -> tuple[str, bool]:
    """What is served, for people, and whether it is a comparison.

    Raises:
        NotFoundError: there is no study or comparison of this name, or what it trains is not installed.
        DefinitionError: the study names no objective.
    """
    if name is None:
        transport.get("/v1/studies", page_size=1)
        shown = ", ".join(objectives[:SHOWN])
        more = f" and {len(objectives) - SHOWN} more" if len(objectives) > SHOWN else ""
        return f"any open study of the objectives {shown}{more}", False
    try:
        objective = _objective_of(RemoteAskTell(transport, name))
        find_objective(objective)
        return f"study {name} (objective {objective})", False
    except NotFoundError as error:
        comparison = _comparison(transport, name)
        if comparison is None:
            raise NotFoundError(f"{error}; nor is a comparison") from None
    definition = ComparisonDefinition.parse(comparison["definition"])
    for member in definition.members:
        find_objective(member.definition.objective or "")
    return f"comparison {name} ({len(definition.members)} studies)", True


def _comparison(transport: Transport, name: str) -> dict[str, Any] | None:
    """How far a comparison is; None if there is none."""
    try:
        answer: dict[str, Any] = transport.get(f"/v1/comparisons/{quote(name, safe='')}")
    except NotFoundError:
        return None
    return answer


def _name(executor: Where) -> str:
    return executor if isinstance(executor, str) else type(executor).__name__


class _Watch:
    """Says once that the service does not answer, and once that it does again, whatever the workers do meanwhile."""

    def __init__(self, settings: WorkerSettings, on_news: Callable[[str], None]) -> None:
        self._url, self._on_news = settings.url, on_news
        self._transport = settings.transport(patience=0.0, timeout=LOOK_TIMEOUT)
        self._look_at = float("-inf")
        self.is_away = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._transport.close()

    def look(self) -> None:
        """Ask the service whether it is there, not more often than every `CHECK_SECONDS` while it is."""
        if not self.is_away and time.monotonic() < self._look_at:
            return
        was_away, self.is_away = self.is_away, False
        try:
            self._transport.get("/v1/studies", page_size=1)
        except ServiceUnavailableError as error:
            self.is_away = True
            if not was_away:
                self._on_news(f"{error}; trying again every few seconds")
        except TunerError:
            pass  # it is there; whoever works hears what is wrong
        if was_away and not self.is_away:
            self._on_news(f"{self._url} is back")
        self._look_at = time.monotonic() + CHECK_SECONDS


def _loadable(on_news: Callable[[str], None]) -> tuple[str, ...]:
    """The installed objectives that can be loaded here."""
    found = []
    for name in objective_names():
        try:
            find_objective(name)
            found.append(name)
        except TunerError as error:
            on_news(str(error))
    if not found:
        raise NotFoundError("no objective is installed here, so there is nothing that could be run")
    return tuple(found)


@dataclass(frozen=True)
class _Job:
    """What every task carries."""

    settings: WorkerSettings
    objectives: tuple[str, ...]
    stop_file: Path
    is_comparison: bool = False
    job_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def stop(self, pool: Pool) -> None:
        """Let the workers give their trials back."""
        with contextlib.suppress(OSError):
            self.stop_file.touch()
        pool.run_on_all(functools.partial(_stop_here, self.job_id))

    @property
    def is_stopping(self) -> bool:
        """Whether they are to."""
        return self.job_id in _stopped or self.stop_file.exists()


_stopped: set[str] = set()
"""The ids of jobs whose stop has reached this process through the executor."""


def _stop_here(job_id: str) -> None:
    _stopped.add(job_id)


@dataclass(frozen=True, slots=True)
class _Turn:
    """What a task comes back with. `news` is why there was no trial, where that may change."""

    outcome: Outcome | None = None
    news: str = ""
    is_finished: bool = False
    is_away: bool = False
    """Whether the service did not answer."""


class _Connection:
    """What a worker process keeps between two trials: its way to the service, and the studies that it has seen."""

    def __init__(self, job: _Job) -> None:
        self._job, self._transport = job, job.settings.transport()
        if job.settings.log_level is not None:
            logs.configure(job.settings.log_level)
        self._studies: dict[str, RemoteAskTell] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the way to the service."""
        self._transport.close()

    def take_turn(self) -> _Turn:
        """Ask for a trial and run it."""
        try:
            handed = self._ask()
            if handed is None:
                return self._nothing()
        except ServiceUnavailableError:
            return _Turn(is_away=True)
        except LeaseLostError:  # it was lost while its answer was: the next ask is another request
            return _Turn()
        side, lease = handed
        looking = _Throttled(lambda: self._job.is_stopping)
        if looking():
            side.release(lease)
            return _Turn()
        try:
            objective = find_objective(_objective_of(side))
        except TunerError:
            side.release(lease)
            raise
        one_thread()
        keep_every = self._job.settings.keep_seconds
        try:
            return _Turn(
                run_leased(side, lease, objective, lambda: is_ending() or looking(), keep_every=keep_every)
            )
        except ServiceUnavailableError as error:
            return _Turn(news=f"{side.definition.name} trial {lease.number} was left: {error}")

    def _ask(self) -> tuple[RemoteAskTell, Lease] | None:
        only = self._job.settings.study
        if only is not None and not self._job.is_comparison:
            side = self._study(only)
            lease = side.ask()
            return None if lease is None else (side, lease)
        body = {
            "client_id": this_process(),
            "objectives": self._job.objectives,
            "request_id": uuid.uuid4().hex,
            "prefix": "" if only is None else f"{only}.",
        }
        asked: WorkerTrial = read(WorkerTrial, self._transport.post("/v1/trials:ask", body))
        if asked.trial is None:
            return None
        side = self._study(asked.trial.study)
        return side, side.take(asked.trial)

    def _nothing(self) -> _Turn:
        if (only := self._job.settings.study) is None:
            return _Turn(news="no open study has a trial for the objectives installed here")
        if self._job.is_comparison:
            members = (_comparison(self._transport, only) or {"members": []})["members"]
            is_over = all(member["is_finished"] or member["state"] in OVER for member in members)
            return _Turn(news=f"{only} has no trial to run now", is_finished=is_over)
        side = self._study(only)
        is_over = side.is_finished or side.state in OVER
        return _Turn(news=f"{only} is {side.state}, and has no trial to run now", is_finished=is_over)

    def _study(self, name: str) -> RemoteAskTell:
        with self._lock:
            if name not in self._studies:
                self._studies[name] = RemoteAskTell(self._transport, name)
            return self._studies[name]


_connections: dict[tuple[_Job, int], _Connection] = {}
"""Of this process, by job; under another id after a fork, as what is open cannot be shared."""

_connecting = threading.Lock()


def _connection(job: _Job) -> _Connection:
    with _connecting:
        key = (job, os.getpid())
        connection = _connections.pop(key, None) or _Connection(job)
        _connections[key] = connection  # the latest stands last
        while len(_connections) > JOBS_KEPT:
            _connections.pop(next(iter(_connections))).close()
        return connection


def _disconnect(job: _Job) -> None:
    """Close what tasks of this process have opened."""
    with _connecting:
        if (connection := _connections.pop((job, os.getpid()), None)) is not None:
            connection.close()


def _take_turn(job: _Job, _task: int) -> _Turn:
    """The task that is submitted. Its number makes it differ from all others, for executors that remember results."""
    if job.is_stopping:
        return _Turn()
    try:
        return _connection(job).take_turn()
    except TunerError:
        raise
    except Exception as error:  # noqa: BLE001
        # as text: whatever this is, it may not survive the way to another process
        raise TunerError(f"a worker failed: {''.join(traceback.format_exception(error))}") from None


class _Throttled:
    """Asks a question not more often than every `LOOK_SECONDS`; once the answer was yes, it stays so."""

    def __init__(self, question: Callable[[], bool]) -> None:
        self._question, self._answer, self._asked = question, False, float("-inf")

    def __call__(self) -> bool:
        now = time.monotonic()
        if not self._answer and now - self._asked > LOOK_SECONDS:
            self._answer, self._asked = self._question(), now
        return self._answer


@dataclass(slots=True)
class _Loop:
    """Keeps pools busy, one after the other if they break, until there is nothing to do any more."""

    job: _Job
    workers: int
    idle: float | None
    watch: _Watch
    on_outcome: Callable[[Outcome], None]
    on_news: Callable[[str], None]
    on_look: Callable[[], None]
    goes_on: bool = True
    _running: dict[Future[Any], str] = field(default_factory=dict)
    _tasks: Iterator[int] = field(default_factory=functools.partial(iter, range(2**62)))
    _waiting: Waiting = field(default_factory=Waiting)
    _ask_at: float = 0.0
    _busy_at: float = field(default_factory=time.monotonic)
    _is_idle: bool = False
    _news: str = ""
    _deaths: Losses = field(default_factory=Losses)
    _failures: Failures = field(default_factory=Failures)

    def run_in(self, pool: Pool) -> None:
        """Run trials in a pool until there is nothing to do, or the pool breaks."""
        greeting = submit_greeting(pool)
        try:
            while self.goes_on:
                self.on_look()
                self._fill(pool)
                self._take_done(pool, greeting)
        except BrokenExecutor as error:
            if not pool.is_renewable:
                raise TunerError(f"the executor broke: {error}") from None
            self._deaths.count_start(greeting)
            ended = [future for future in self._running if future.done() and future.exception() is None]
            self._running.clear()
            for future in ended:
                self._take(future)
            self._count_loss()
        except BaseException as reason:
            self._stop(pool, in_a_hurry=isinstance(reason, Terminated))
            raise

    def _fill(self, pool: Pool) -> None:
        """Let tasks ask: all that there is room for; one at a time while there is nothing."""
        if (now := time.monotonic()) < self._ask_at:
            return
        wanted = len(self._running) + 1 if self._is_idle else self.workers
        while len(self._running) < min(wanted, self.workers):
            submit(pool, self._running, "trial", _take_turn, self.job, next(self._tasks))
        if self._is_idle:
            self._ask_at = now + PROBE_SECONDS

    def _take_done(self, pool: Pool, greeting: Future[None]) -> None:
        """Wait for news, and take up what tasks have come back with."""
        has_room = len(self._running) < self.workers
        patience = max(0.0, self._ask_at - time.monotonic()) if has_room else float("inf")
        if not self._running:
            pause(min(patience, LONGEST_WAIT))
            self.watch.look()
            return
        done = ended_first(pool, [*self._running, *([] if greeting.done() else [greeting])], patience)
        if not done or self.watch.is_away:
            self.watch.look()  # that the service is back is said before what comes from it
        for future in done:
            if future is greeting:
                continue  # else it broke with all others
            del self._running[future]
            self._take(future)
            self._deaths.started()

    def _take(self, future: Future[_Turn]) -> None:
        try:
            turn: _Turn = result_of(future)
        except WorkerLostError:
            self._count_loss()
            return
        if turn.outcome is None:
            self._wait_for_more(turn)
            return
        self._deaths.reset()
        self._is_idle, self._ask_at, self._news = False, 0.0, ""
        self._busy_at = time.monotonic()
        self._waiting.reset()
        self.on_outcome(turn.outcome)
        if (reason := self._failures.count(turn.outcome)) is not None:
            raise TunerError(f"{reason} (they count in the budget)")

    def _wait_for_more(self, turn: _Turn) -> None:
        """There was no trial: ask again later, or end."""
        now = time.monotonic()
        if turn.is_away:
            self.watch.look()
        elif turn.news and turn.news != self._news:
            self._news = turn.news
            self.on_news(f"waiting: {turn.news}")
        self._is_idle, self._ask_at = True, now + self._waiting.next()
        if not self._running and (
            turn.is_finished or (self.idle is not None and now - self._busy_at >= self.idle)
        ):
            self.goes_on = False

    def _count_loss(self) -> None:
        self._deaths.count()
        _log.warning(
            "a worker process died; what it did not give back will be run again once the lease has run out"
        )

    def _stop(self, pool: Pool, *, in_a_hurry: bool) -> None:
        """Let running trials be given back after their epoch; at another Ctrl-C leave them at once."""
        try:
            if in_a_hurry:
                pool.hurry()
            self.job.stop(pool)
            if running := sum(not future.done() for future in self._running):
                self.on_news(
                    f"waiting for the epoch of {plural(running, 'trial')} to end; Ctrl-C again leaves at once"
                )
            left = set(self._running) - wait_for(self._running, pool.patience)
        except KeyboardInterrupt:
            pool.leave()
            return
        for future in left:
            future.cancel()
        for future in self._running:
            if future.done() and not future.cancelled() and future.exception() is None:
                turn: _Turn = future.result()
                if turn.outcome is not None:
                    self.on_outcome(turn.outcome)


def _objective_of(side: RemoteAskTell) -> str:
    if side.definition.objective is None:
        raise DefinitionError(
            f"{side.definition.name}: names no objective, so that a worker cannot know what to train; "
            "run it with Client(…).study(…).optimize"
        )
    return side.definition.objective
