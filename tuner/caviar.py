"""Caviar: many models at once. Worker loops on any `concurrent.futures.Executor`.

The parent decides which study is next and shows progress; a worker runs one trial of it and comes back. Studies take
turns, so that the arms of a comparison meet the machine's moods alike. Within a study at most `per_study` trials run at
once: one, and every choice sees all results before it, whatever the number of workers.

What is submitted carries all that it needs: which run it is for, and how to open a study. A worker keeps what it opened
for the next task of the same run. It learns that the run is over (Ctrl-C, an error) from the database, where it looks
after an epoch, and gives its trial back: so a stop reaches workers of every kind, wherever they are.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Future
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Protocol

from optuna.trial import FrozenTrial, TrialState

from objectives.epoch import Objective
from tuner.ask_tell import AskTell
from tuner.errors import StorageError, TunerError
from tuner.executors import (
    GOES_ON,
    Losses,
    OpenPool,
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
from tuner.ledger import Ledger
from tuner.runs import Runs, short
from tuner.storage import patiently
from tuner.termination import Terminated, interruptions_held, is_ending, terminations_raised, wait_for
from tuner.trial_run import Failures, Function, Outcome, run_trial
from tuner.words import plural

__all__ = ["OpenStudy", "run_studies"]

_log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
"""How often a worker looks, at most, whether its run goes on."""

RUNS_KEPT = 4
"""Of so many runs a worker's thread keeps the studies open: it may serve several in turn."""


class OpenStudy(Protocol):
    """How a worker opens a study by name; picklable for workers in other processes."""

    def __call__(self, name: str) -> tuple[AskTell, Objective | Function]:
        """The study to ask and tell, and what to train."""

    def ask_tell(self, name: str) -> AskTell:
        """The study alone, for the parent."""

    def close(self) -> None:
        """Close what was opened in this process; it is opened again when it is used again."""


@dataclass(frozen=True, slots=True)
class _Run:
    """What every task carries."""

    run_id: str
    open_study: OpenStudy


@dataclass(slots=True)
class _Worker:
    """What a worker's thread keeps of a run between two trials: opened studies, with their finished trials cached."""

    run: _Run
    is_over: bool = False
    _studies: dict[str, tuple[AskTell, Objective | Function]] = field(default_factory=dict)
    _looked: float = float("-inf")

    def run_next(self, name: str) -> Outcome | None:
        if name not in self._studies:
            self._studies[name] = self.run.open_study(name)
            one_thread()
        ask_tell, objective = self._studies[name]
        runs = Runs(ask_tell.ledger)
        if self._must_stop(runs):
            return None
        return run_trial(ask_tell, objective, stopping=lambda: is_ending() or self._must_stop(runs))

    def _must_stop(self, runs: Runs) -> bool:
        now = time.monotonic()
        if not self.is_over and now - self._looked > LOOK_SECONDS:
            self.is_over = not runs.goes_on(self.run.run_id)
            self._looked = now
        return self.is_over


_here = threading.local()
"""Holds the workers of this thread, by run."""


def _run_one(run: _Run, name: str, _task: int) -> Outcome | None:
    """The task that is submitted. Its number makes it differ from all others, for executors that remember results."""
    workers: dict[str, _Worker] = _here.__dict__.setdefault("workers", {})
    worker = workers.pop(run.run_id) if run.run_id in workers else _Worker(run)
    workers[run.run_id] = worker  # the latest stands last
    try:
        return worker.run_next(name)
    except TunerError:
        raise
    except Exception as error:  # noqa: BLE001
        # as text: whatever this is, it may not survive the way to another process
        raise TunerError(f"{name}: a worker failed: {''.join(traceback.format_exception(error))}") from None
    finally:
        if worker.is_over:
            workers.pop(run.run_id).run.open_study.close()
        while len(workers) > RUNS_KEPT:
            workers.pop(next(iter(workers))).run.open_study.close()


def run_studies(
    names: Sequence[str],
    open_study: OpenStudy,
    ledger: Ledger,
    *,
    workers: int = 1,
    per_study: int = 1,
    executor: Where = "processes",
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
) -> None:
    """Run studies until each has used up its budget.

    Args:
        names: the studies, in the order of their turns.
        open_study: opens one in a worker.
        ledger: of the same database.
        workers: how many trials run at once, at least 1; fewer where the executor has fewer workers.
        per_study: how many of them may be of the same study.
        executor: what the workers are; `tuner.executors` says what one of the user's own must do.
        on_outcome: called in this thread with each trial's end.

    Raises:
        DefinitionError: there is no such executor.
        TunerError: too many trials of a study failed in a row (the text has the last reason), or workers cannot start,
            keep dying or are not there.
        KeyboardInterrupt: passed on, after the running trials were given back.
        SystemExit: after SIGTERM, likewise, where the program does nothing else about it.
    """
    open_pool = find_executor(executor)
    turns, runs = _Turns(names, per_study), Runs(ledger)
    run = _Run(runs.begin(), open_study)
    try:
        # one thread here too, where threads may be the workers; taken back at the end
        with terminations_raised(), one_thread():
            pools = _Pools(run, runs, open_pool, on_outcome)
            pools.run(turns, workers)
            while left_behind := runs.settle(turns.unstopped):
                turns.reopen(left_behind)
                pools.run(turns, workers)
    finally:
        _end(runs, run)
        open_study.close()
    turns.raise_failures()


def _end(runs: Runs, run: _Run) -> None:
    try:
        runs.end(run.run_id)
    except StorageError as error:  # then the workers cannot go on either
        _log.warning("could not tell the workers to stop: %s", error)


class _PoolBrokenError(Exception):
    """A worker process died and took its pool with it.

    `studies` are those whose trials were running; `ended` is how many trials had ended in this pool before.
    """

    def __init__(self, studies: list[str], ended: int) -> None:
        super().__init__(studies, ended)
        self.studies, self.ended = studies, ended


@dataclass(frozen=True, slots=True)
class _LostTrials:
    """What becomes of trials whose worker processes have died."""

    open_study: OpenStudy
    url: str

    @patiently
    def forgive(self, studies: Iterable[str]) -> None:
        """Give the trials back as they are: whose fault it was is not certain, so no attempt is held against them."""
        for name in dict.fromkeys(studies):
            self.open_study.ask_tell(name).reap(forgive=True)

    @patiently
    def charge(self, studies: Iterable[str]) -> list[Outcome]:
        """Hold an attempt against each trial; those that fail, as it was their last."""
        failed = []
        for name in dict.fromkeys(studies):
            ask_tell = self.open_study.ask_tell(name)
            before = {trial.number for trial in _failed_by_loss(ask_tell)}
            ask_tell.reap()
            failed += [
                _lost_outcome(name, trial)
                for trial in _failed_by_loss(ask_tell)
                if trial.number not in before
            ]
        return failed


def _failed_by_loss(ask_tell: AskTell) -> list[FrozenTrial]:
    failed = ask_tell.study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    return [trial for trial in failed if "attempt_history" in trial.user_attrs]


def _lost_outcome(study: str, trial: FrozenTrial) -> Outcome:
    history = trial.user_attrs["attempt_history"]
    attempts = trial.user_attrs["attempts"]
    last = short(history[-1]["owner"])
    reason = f"its worker was lost {plural(attempts, 'time')}, last {last} (killed, or out of memory?)"
    return Outcome(study, trial.number, TrialState.FAIL, failure=reason, is_error=True)


@dataclass(slots=True)
class _Pools:
    """Runs studies in a pool of workers, and in a new one whenever one breaks."""

    run_: _Run
    runs: Runs
    open_pool: OpenPool
    on_outcome: Callable[[Outcome], None]
    _deaths: Losses = field(default_factory=Losses)
    _tasks: Iterator[int] = field(default_factory=count)

    def run(self, turns: _Turns, workers: int) -> None:
        """Run until no study has a turn left."""
        while True:
            try:
                self._run_pool(turns, workers)
                return
            except _PoolBrokenError as broken:
                self._lost_trials.forgive(broken.studies)
                self._deaths.count()
                turns.restart()
                self._run_alone(turns, broken.studies)

    def _run_alone(self, turns: _Turns, suspects: Sequence[str]) -> None:
        """Run as many trials of these studies one at a time.

        So a trial that kills its worker takes no other with it, and it is certain that it was this one. Lost trials are
        handed out before new ones.
        """
        alone, left = turns.only(suspects), len(suspects)
        while left > 0:
            try:
                self._run_pool(alone, 1, limit=left)
                return
            except _PoolBrokenError as broken:
                failed = self._lost_trials.charge(broken.studies)
                self._deaths.count()
                alone.restart()
                for outcome in failed:
                    self._deaths.reset()
                    alone.count(outcome)
                    self.on_outcome(outcome)
                left -= broken.ended + len(failed)

    def _run_pool(self, turns: _Turns, workers: int, *, limit: int | None = None) -> None:
        """Run in one pool until there is nothing to run, or `limit` trials have ended."""
        running: dict[Future[Any], str] = {}
        ended = 0
        with self.open_pool(workers) as pool, interruptions_held():
            try:
                greeting = submit_greeting(pool)
                while limit is None or ended < limit:
                    while len(running) < workers and (name := turns.next()) is not None:
                        submit(pool, running, name, _run_one, self.run_, name, next(self._tasks))
                    if not running:
                        return
                    for future in self._ended(pool, greeting, running):
                        ended += self._take(turns, running[future], future)
                        self._deaths.started()
                        del running[future]
            except BrokenExecutor as error:
                if not pool.is_renewable:
                    raise TunerError(f"the executor broke: {error} {GOES_ON}") from None
                self._deaths.count_start(greeting)
                for future in [future for future in running if future.exception() is None]:
                    ended += self._take(turns, running.pop(future), future)
                raise _PoolBrokenError(list(running.values()), ended) from None
            except BaseException as reason:
                self._stop(pool, running, in_a_hurry=isinstance(reason, Terminated))
                raise

    def _ended(
        self, pool: Pool, greeting: Future[None], running: Mapping[Future[Any], str]
    ) -> list[Future[Outcome | None]]:
        """Wait for news; the trials that have ended, possibly none."""
        done = ended_first(pool, [*running, *([] if greeting.done() else [greeting])])
        if greeting.done():
            with contextlib.suppress(WorkerLostError):  # that is counted where it took a trial with it
                result_of(greeting)
        return [future for future in running if future in done]

    def _stop(self, pool: Pool, running: Mapping[Future[Any], str], *, in_a_hurry: bool) -> None:
        """Let running trials be given back after their epoch; at another Ctrl-C leave them at once."""
        try:
            if in_a_hurry:
                pool.hurry()
            _end(self.runs, self.run_)
            _wait_for_last(pool, running)
        except KeyboardInterrupt:
            left = [name for future, name in running.items() if not future.done()]
            are_ended = pool.leave()
            if not left:
                return
            if are_ended:
                self._lost_trials.forgive(left)
                _log.warning(
                    "left %d trials within an epoch; they will run again from their start", len(left)
                )
            else:
                _log.warning("left %d trials; their workers give them back at the end of an epoch", len(left))

    @property
    def _lost_trials(self) -> _LostTrials:
        return _LostTrials(self.run_.open_study, self.runs.url)

    def _take(self, turns: _Turns, name: str, future: Future[Outcome | None]) -> bool:
        """Take up what a task came back with; True if it was a trial."""
        try:
            outcome = result_of(future)
        except WorkerLostError:
            self._deaths.count()
            turns.lost(name)
            return False
        turns.ended(name, outcome)
        if outcome is None:
            return False
        self._deaths.reset()
        self.on_outcome(outcome)
        return True


def _wait_for_last(pool: Pool, running: Collection[Future[Any]]) -> None:
    """Wait until running trials were given back; on workers that live on, for a while only."""
    if trials := sum(not future.done() for future in running):
        _log.warning(
            "waiting for the epoch of %s to end; Ctrl-C again leaves at once", plural(trials, "trial")
        )
    left = set(running) - wait_for(running, pool.patience)
    for future in left:
        future.cancel()
    if left:
        _log.warning("%d trials run still; their workers give them back at the end of an epoch", len(left))


class _Turns:
    """Whose turn it is: round and round among the studies that have budget and room."""

    def __init__(self, names: Sequence[str], per_study: int) -> None:
        self._waiting = deque(names)
        self._per_study = per_study
        self._running = dict.fromkeys(names, 0)
        self._failures = Failures()
        self._full: set[str] = set()
        self._stopped: dict[str, str] = {}

    def next(self) -> str | None:
        """The next study, or None where all are finished or full of running trials."""
        for _ in range(len(self._waiting)):
            name = self._waiting[0]
            self._waiting.rotate(-1)
            if name not in self._full and self._running[name] < self._per_study:
                self._running[name] += 1
                return name
        return None

    def ended(self, name: str, outcome: Outcome | None) -> None:
        """A trial of the study has ended, or there was none to run."""
        self._running[name] -= 1
        if outcome is None:
            self._full.add(name)
            return
        if outcome.state is None:  # given back, or its lease lost: there may be something to run again
            self._full.discard(name)
        self.count(outcome)

    def count(self, outcome: Outcome) -> None:
        """Count failures in a row: too many stop the study."""
        name = outcome.study
        if (reason := self._failures.count(outcome)) is not None:
            self._full.add(name)
            self._stopped[name] = (
                f"{reason} (traceback: tuner trials {name} --last 1 --format json; they count in the budget: "
                "begin afresh under another name)"
            )

    def lost(self, name: str) -> None:
        """A worker was lost with its trial, which is to run again."""
        self._running[name] -= 1
        self.reopen([name])

    def only(self, names: Sequence[str]) -> _Turns:
        """Turns of these studies alone, a trial of each at once. What becomes of them counts here too."""
        some = _Turns(names, 1)
        some._failures, some._full, some._stopped = self._failures, self._full, self._stopped
        return some

    def restart(self) -> None:
        """Nothing is running any more, and what was may have to run again."""
        self._running = dict.fromkeys(self._running, 0)
        self.reopen(self.unstopped)

    def reopen(self, names: Sequence[str]) -> None:
        """Ask these studies again, unless they were stopped."""
        self._full.difference_update(name for name in names if name not in self._stopped)

    @property
    def unstopped(self) -> list[str]:
        """The studies that did not fail too often in a row."""
        return [name for name in self._running if name not in self._stopped]

    def raise_failures(self) -> None:
        """Raise TunerError with a line for each study that was stopped."""
        if self._stopped:
            raise TunerError("\n".join(self._stopped.values()))
