"""Drive one trial: ask, train, report after each epoch, stop where told to, tell.

What an objective raises is recorded on its trial (`failure`, `traceback` in its attributes) and reported in the
outcome; it never ends the study by itself.
"""

from __future__ import annotations

import contextlib
import logging
import math
import operator
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import optuna
from optuna.trial import TrialState

from objectives.epoch import Diverged, Epoch, Objective, Seed
from tuner.ask_tell import Answer, AskTell, Lease
from tuner.errors import LeaseLostError, StorageError, TunerError
from tuner.storage import explain

__all__ = ["Function", "Outcome", "run_trial"]

_log = logging.getLogger(__name__)

Function: TypeAlias = Callable[[optuna.Trial], float]
"""A plain Optuna objective: suggests, trains, reports if it likes, returns the value."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a trial ended. `state` is None for one that was given back unfinished, or lost to another worker."""

    study: str
    number: int
    state: TrialState | None
    value: float | None = None
    epochs: int = 0
    failure: str | None = None
    is_error: bool = False
    """Whether it failed by an exception, rather than by numbers that diverged."""


def run_trial(
    ask_tell: AskTell, objective: Objective | Function, stopping: Callable[[], bool] = lambda: False
) -> Outcome | None:
    """Run the next trial of a study. None if its budget allows no more.

    Args:
        ask_tell: the study.
        objective: what to train.
        stopping: asked after each epoch; once true, the trial is given back for a later run to take up.
    """
    try:
        lease = ask_tell.ask()
        return None if lease is None else _run_leased(ask_tell, lease, objective, stopping)
    except optuna.exceptions.StorageInternalError as error:
        raise explain(ask_tell.url, error) from error


def _run_leased(
    ask_tell: AskTell, lease: Lease, objective: Objective | Function, stopping: Callable[[], bool]
) -> Outcome:
    try:
        with _heartbeat(ask_tell, lease):
            if isinstance(objective, Objective):
                return _run_epochs(ask_tell, lease, objective, stopping)
            return _run_function(ask_tell, lease, objective, stopping)
    except LeaseLostError:
        return _outcome(ask_tell, lease, None)
    except BaseException:
        with contextlib.suppress(TunerError):
            ask_tell.release(lease)  # Ctrl-C, or a failing database: not the trial's fault
        raise


class _TrainingError(Exception):
    """What an objective raised, apart from what our own code around it may raise."""

    def __init__(self, cause: Exception | SystemExit) -> None:
        super().__init__(cause)
        self.cause = cause


def _epochs(objective: Objective, params: dict[str, Any], seed: Seed) -> Generator[Epoch, None, None]:
    """The objective's epochs; whatever it raises, or does against the contract, as `_TrainingError`."""
    last = 0
    try:
        with contextlib.closing(objective.evaluate(params, seed=seed)) as epochs:
            for epoch in epochs:
                yield _checked(epoch, last)
                last = epoch.number
        if last == 0:
            raise ValueError(f"objective {objective.name!r} yielded no epoch")
    except (Exception, SystemExit) as error:
        raise _TrainingError(error) from error


def _checked(epoch: Epoch, last: int) -> Epoch:
    """The epoch in plain numbers, if it keeps to the contract."""
    number, value = operator.index(epoch.number), float(epoch.value)
    if not last < number < 2**31:
        raise ValueError(f"epoch numbers must grow from 1; got {number} after {last}")
    if math.isnan(value):
        raise Diverged(number, "the value is not a number")
    metrics = {}
    for name, metric in epoch.metrics.items():
        if not isinstance(name, str) or not 0 < len(name) <= 200 or "\0" in name:
            raise ValueError(f"a metric's name is 1 to 200 characters without NUL; got {name!r}")
        metrics[name] = float(metric)
    return Epoch(number, value, metrics, epoch.checkpoint)


def _run_epochs(
    ask_tell: AskTell, lease: Lease, objective: Objective, stopping: Callable[[], bool]
) -> Outcome:
    definition = ask_tell.definition
    last: Epoch | None = None
    started = clock = time.perf_counter()
    epochs = _epochs(objective, {**definition.fixed, **lease.params}, Seed(definition.seed, lease.number))
    with _closing(epochs):
        while True:
            try:
                epoch = next(epochs, None)
            except _TrainingError as error:
                attrs = _attrs(lease, last, started)
                return _fail(ask_tell, lease, error.cause, attrs, time.perf_counter() - clock)
            if epoch is None:
                break
            last, now = epoch, time.perf_counter()
            answer = ask_tell.report(lease, epoch.number, epoch.value, seconds=now - clock).answer
            clock = now
            if answer is Answer.STOP and epoch.number in lease.values and _has_ended(epochs):
                break  # the last epoch of the budget was the training's last, too
            if answer is not Answer.CONTINUE:
                stopped = "pruner" if answer is Answer.PRUNE else "budget"
                attrs = _attrs(lease, last, started, stopped=stopped)
                return _tell(ask_tell, lease, TrialState.PRUNED, lease.last_value, attrs)
            if stopping():
                ask_tell.release(lease)
                return _outcome(ask_tell, lease, None)
    return _tell(ask_tell, lease, TrialState.COMPLETE, lease.last_value, _attrs(lease, last, started))


def _has_ended(epochs: Generator[Epoch, None, None]) -> bool:
    """Whether a training has no further epoch. The only way to know is to let it try."""
    try:
        return next(epochs, None) is None
    except _TrainingError:
        return False


@contextlib.contextmanager
def _closing(epochs: Generator[Epoch, None, None]) -> Iterator[None]:
    """Close a training at the end. What it raises then is logged: its trial has been told."""
    try:
        yield
    finally:
        try:
            epochs.close()
        except _TrainingError as error:
            _log.warning("a training raised while it was closed", exc_info=error.cause)


class _Interrupted(BaseException):
    """The run is stopping: a plain function is left by force, its trial given back."""


class _LeasedTrial(optuna.Trial):
    """Optuna's trial, whose reports go through the ledger: counted in the budget, refused once the lease is lost."""

    def __init__(self, ask_tell: AskTell, lease: Lease, stopping: Callable[[], bool]) -> None:
        ask_tell.study.get_trials(
            deepcopy=False
        )  # Optuna's cache must have met a trial before it is written to
        super().__init__(ask_tell.study, lease.trial_id)
        self._ask_tell, self._lease, self._stopping = ask_tell, lease, stopping
        self._answer, self.clock = Answer.CONTINUE, time.perf_counter()

    def report(self, value: float, step: int) -> None:
        if step in self._lease.values:
            return  # as Optuna: the first report of a step counts
        now = time.perf_counter()
        self._answer = self._ask_tell.report(self._lease, step, value, seconds=now - self.clock).answer
        self.clock = now
        self._leave_if_stopping()

    def should_prune(self) -> bool:
        self._leave_if_stopping()
        return self._answer is not Answer.CONTINUE

    def _leave_if_stopping(self) -> None:
        if self._stopping():
            raise _Interrupted


def _run_function(
    ask_tell: AskTell, lease: Lease, function: Function, stopping: Callable[[], bool]
) -> Outcome:
    started = time.perf_counter()
    trial = _LeasedTrial(ask_tell, lease, stopping)
    try:
        value = float(function(trial))
        if math.isnan(value):
            raise Diverged(max(1, len(lease.values)), "the value is not a number")
        state = TrialState.COMPLETE
    except _Interrupted:
        ask_tell.release(lease)
        return _outcome(ask_tell, lease, None)
    except optuna.TrialPruned:
        state = TrialState.PRUNED
    except (LeaseLostError, StorageError, optuna.exceptions.StorageInternalError):
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a training raises is recorded
        attrs = _attrs(lease, None, started)
        return _fail(ask_tell, lease, error, attrs, time.perf_counter() - trial.clock)
    told = value if state is TrialState.COMPLETE else lease.last_value
    since = time.perf_counter() - trial.clock
    return _tell(ask_tell, lease, state, told, _attrs(lease, None, started), seconds=since)


def _tell(
    ask_tell: AskTell,
    lease: Lease,
    state: TrialState,
    value: float | None,
    attrs: dict[str, Any],
    *,
    seconds: float = 0.0,
) -> Outcome:
    ask_tell.tell(lease, state, value, attrs, seconds=seconds)
    return _outcome(ask_tell, lease, state, value=value)


def _fail(
    ask_tell: AskTell,
    lease: Lease,
    error: Exception | SystemExit,
    attrs: dict[str, Any],
    seconds: float,
) -> Outcome:
    is_error = not isinstance(error, Diverged)
    failure = f"{type(error).__name__}: {error}" if is_error else str(error)
    attrs |= {"failure": failure}
    if is_error:
        attrs |= {"traceback": "".join(traceback.format_exception(error))}
    ask_tell.tell(lease, TrialState.FAIL, None, attrs, seconds=seconds)
    return _outcome(ask_tell, lease, TrialState.FAIL, failure=failure, is_error=is_error)


def _outcome(ask_tell: AskTell, lease: Lease, state: TrialState | None, **told: Any) -> Outcome:
    return Outcome(ask_tell.definition.name, lease.number, state, epochs=len(lease.values), **told)


def _attrs(lease: Lease, last: Epoch | None, started: float, **more: Any) -> dict[str, Any]:
    """What is kept on the trial besides its value: the last epoch's metrics, and what it cost.

    A metric that is named as a parameter (the learning rate after its decay) gets `last_` before its name.
    """
    reached = {} if last is None else {k: float(v) for k, v in last.metrics.items() if math.isfinite(v)}
    metrics = {f"last_{k}" if k in lease.params else k: v for k, v in reached.items()}
    spent = {"epochs": len(lease.values), "training_seconds": round(time.perf_counter() - started, 3)}
    attempts = {"attempts": lease.attempt} if lease.attempt > 1 else {}
    return {**metrics, **spent, **attempts, **more}


@contextlib.contextmanager
def _heartbeat(ask_tell: AskTell, lease: Lease) -> Iterator[None]:
    """Renew the lease three times in its life, from a thread, for as long as the training takes."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(ask_tell.ledger.lease_seconds / 3):
            try:
                ask_tell.heartbeat(lease)
            except LeaseLostError:
                return  # the next report or tell says so
            except StorageError:
                continue  # the database may be back before the lease runs out

    thread = threading.Thread(target=beat, name=f"heartbeat of trial {lease.number}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
