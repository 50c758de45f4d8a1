"""Drive one trial: ask, train, report after each epoch, stop where told to, tell.

What an objective raises is recorded on its trial (`failure`, `error_type`, `traceback` in its attributes) and reported
in the outcome; it never ends the study by itself.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import TrialState

from objectives.epoch import Diverged, Epoch, Objective
from tuner.adjustment import AdjustableTraining, AdjustmentRefusedError
from tuner.ask_tell import Answer, AskTell, Lease, Reply
from tuner.errors import DefinitionError, LeaseLostError, StorageError, TunerError
from tuner.heartbeat import heartbeat
from tuner.population import CheckpointGoneError, Task, drop_old_checkpoints, plan
from tuner.samplers.population import ENDED, ENDED_WITH
from tuner.storage import explain, patiently
from tuner.training import TrainingError, planned_epochs

__all__ = ["Function", "Outcome", "closing_attrs", "run_trial"]

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
    ask_tell: AskTell,
    objective: Objective | Function,
    stopping: Callable[[], bool] = lambda: False,
    *,
    params: Mapping[str, Any] | None = None,
    on_begin: Callable[[Lease], None] = lambda lease: None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> Outcome | None:
    """Run the next trial of a study. None if its budget allows no more.

    Args:
        ask_tell: the study.
        objective: what to train.
        stopping: asked after each epoch; once true, the trial is given back for a later run to take up.
        params: chosen by hand, for a new trial; the sampler chooses the rest.
        on_begin: called with the trial before it is trained.
        on_epoch: called after each epoch that an objective of epochs has reported.

    Raises:
        DefinitionError: `params` is not in the space.
    """
    try:
        lease = ask_tell.ask(params=params)
        if lease is None:
            return None
        origin = {} if params is None else {"origin": "manual"}
        return _run_leased(ask_tell, lease, objective, stopping, on_epoch, on_begin=on_begin, attrs=origin)
    except optuna.exceptions.StorageInternalError as error:
        raise explain(ask_tell.url, error) from error


def _run_leased(
    ask_tell: AskTell,
    lease: Lease,
    objective: Objective | Function,
    stopping: Callable[[], bool],
    on_epoch: Callable[[Epoch], None],
    *,
    on_begin: Callable[[Lease], None],
    attrs: Mapping[str, Any],
) -> Outcome:
    try:
        with heartbeat(ask_tell, lease):
            if attrs:
                ask_tell.set_attrs(lease, attrs)
            on_begin(lease)
            if isinstance(objective, Objective):
                return _run_epochs(ask_tell, lease, objective, stopping, on_epoch)
            return _run_function(ask_tell, lease, objective, stopping)
    except LeaseLostError:
        return _outcome(ask_tell, lease, None)
    except BaseException:
        with contextlib.suppress(TunerError):
            ask_tell.release(lease)  # Ctrl-C, or a failing database: not the trial's fault
        raise


def _run_epochs(
    ask_tell: AskTell,
    lease: Lease,
    objective: Objective,
    stopping: Callable[[], bool],
    on_epoch: Callable[[Epoch], None],
) -> Outcome:
    started = time.perf_counter()
    try:
        task = plan(ask_tell, lease, objective)
    except CheckpointGoneError as error:
        return _fail(ask_tell, lease, TrainingError(error), _attrs(lease, None, started), 0.0)
    if task.attrs:
        ask_tell.set_attrs(lease, task.attrs)
    params, earlier = {**ask_tell.definition.fixed, **lease.params}, _earlier_attrs(ask_tell, lease)
    with AdjustableTraining(
        objective, params, task.seed, earlier, task.checkpoints, epoch=task.epoch
    ) as training:
        outcome = _train(ask_tell, lease, task, training, stopping=stopping, on_epoch=on_epoch)
    if task.segment is not None and outcome.state is TrialState.COMPLETE:
        drop_old_checkpoints(ask_tell)
    return outcome


def _train(
    ask_tell: AskTell,
    lease: Lease,
    task: Task,
    training: AdjustableTraining,
    *,
    stopping: Callable[[], bool],
    on_epoch: Callable[[Epoch], None],
) -> Outcome:
    last: Epoch | None = None
    started = clock = time.perf_counter()
    while True:
        try:
            epoch = training.advance()
        except AdjustmentRefusedError as refusal:
            ask_tell.set_attrs(lease, {**training.adjustments.attrs(), "refused": str(refusal)})
            continue
        except TrainingError as error:
            return _fail(ask_tell, lease, error, _attrs(lease, last, started), time.perf_counter() - clock)
        if epoch is None:
            break
        task.require_checkpoint(training.objective, epoch)
        last, now = epoch, time.perf_counter()
        reply = ask_tell.report(lease, epoch.number, epoch.value, seconds=now - clock)
        clock = now
        on_epoch(epoch)
        if reply.answer is Answer.ADJUST:
            _adjust(ask_tell, lease, training, reply)
        elif reply.answer is not Answer.CONTINUE:
            if _is_done_with_the_budget(lease, task, training, epoch, reply):
                break
            return _end_early(ask_tell, lease, task, reply, _attrs(lease, last, started))
        if task.ends_with(epoch):
            break
        if stopping():
            ask_tell.release(lease)
            return _outcome(ask_tell, lease, None)
    handed_on = task.hand_on(ask_tell, lease, training, last)
    attrs = _attrs(lease, last, started, **training.drop_unsent(training.epoch), **handed_on)
    if last is None:  # a segment of a training that had no further epoch
        return _tell(ask_tell, lease, TrialState.PRUNED, None, attrs)
    return _tell(ask_tell, lease, TrialState.COMPLETE, lease.last_value, attrs)


def _earlier_attrs(ask_tell: AskTell, lease: Lease) -> dict[str, Any]:
    """What earlier attempts have left on the trial: a trial that was adjusted runs again as it was."""
    if lease.fence == 1:
        return {}
    return ask_tell.user_attrs(lease)


def _adjust(ask_tell: AskTell, lease: Lease, training: AdjustableTraining, reply: Reply) -> None:
    """Do what another process wants. One that the objective cannot do is refused, and the trial goes on."""
    try:
        training.adjust(ask_tell, lease, reply.adjustment, reply.by)
    except DefinitionError as refusal:
        ask_tell.set_attrs(lease, {"refused": str(refusal)})


def _is_done_with_the_budget(
    lease: Lease, task: Task, training: AdjustableTraining, epoch: Epoch, reply: Reply
) -> bool:
    """Whether the last epoch of the budget was the last one to be trained, too."""
    if reply.answer is not Answer.STOP or reply.by or epoch.number not in lease.values:
        return False
    return task.ends_with(epoch) or _has_ended(training)


def _end_early(
    ask_tell: AskTell, lease: Lease, task: Task, reply: Reply, attrs: Mapping[str, Any]
) -> Outcome:
    """End a trial before its last epoch, as a person, the pruner or the budget wants it."""
    if reply.by:
        stopped = f"by {reply.by}"
        told = {**attrs, "stopped": stopped, **task.stopped(f"stopped {stopped}")}
        return _tell(ask_tell, lease, TrialState.COMPLETE, lease.last_value, told)
    stopped = "pruner" if reply.answer is Answer.PRUNE else "budget"
    return _tell(ask_tell, lease, TrialState.PRUNED, lease.last_value, {**attrs, "stopped": stopped})


def _has_ended(training: AdjustableTraining) -> bool:
    """Whether a training has no further epoch. Where it does not say how many it has, one has to let it try."""
    planned = planned_epochs(training.objective, training.params)
    if planned is not None:
        return training.epoch >= planned
    try:
        return training.advance() is None
    except (TrainingError, AdjustmentRefusedError):
        return False


class _Interrupted(BaseException):
    """The run is stopping: a plain function is left by force, its trial given back."""


class _LeasedTrial(optuna.Trial):
    """Optuna's trial, whose writes are patient, counted in the budget, and refused once the lease is lost."""

    def __init__(self, ask_tell: AskTell, lease: Lease, stopping: Callable[[], bool]) -> None:
        self._ask_tell, self._lease, self._stopping = ask_tell, lease, stopping
        self.reply = Reply(Answer.CONTINUE)
        self._begin()
        self.clock = time.perf_counter()

    @property
    def url(self) -> str:
        """The database's."""
        return self._ask_tell.url

    @patiently
    def _begin(self) -> None:
        study = self._ask_tell.study
        study.get_trials(deepcopy=False)  # Optuna's cache must have met a trial before it is written to
        super().__init__(study, self._lease.trial_id)

    @patiently
    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        self._ask_tell.require(self._lease)
        return super()._suggest(name, distribution)

    def set_user_attr(self, key: str, value: Any) -> None:
        self._ask_tell.set_attrs(self._lease, {key: value})
        self._cached_frozen_trial.user_attrs[key] = value

    def report(self, value: float, step: int) -> None:
        if step in self._lease.values:
            return  # as Optuna: the first report of a step counts
        now = time.perf_counter()
        self.reply = self._ask_tell.report(self._lease, step, value, seconds=now - self.clock)
        self.clock = now
        if self.reply.answer is Answer.ADJUST:
            self.set_user_attr("refused", "a plain function cannot be adjusted while it runs")
        self._leave_if_stopping()

    def should_prune(self) -> bool:
        self._leave_if_stopping()
        return self.reply.answer in (Answer.PRUNE, Answer.STOP)

    def stopped(self) -> dict[str, str]:
        """Who ended the trial, where it was not the function itself; an attribute of the trial."""
        if self.reply.answer is Answer.STOP:
            return {"stopped": f"by {self.reply.by}" if self.reply.by else "budget"}
        return {"stopped": "pruner"} if self.reply.answer is Answer.PRUNE else {}

    def _leave_if_stopping(self) -> None:
        if self._stopping():
            raise _Interrupted


def _run_function(
    ask_tell: AskTell, lease: Lease, function: Function, stopping: Callable[[], bool]
) -> Outcome:
    started = time.perf_counter()
    trial = _LeasedTrial(ask_tell, lease, stopping)
    stopped: dict[str, str] = {}
    try:
        value: float | None = float(function(trial))
        if value is not None and math.isnan(value):
            raise Diverged(max(1, len(lease.values)), "the value is not a number")
        state = TrialState.COMPLETE
    except _Interrupted:
        ask_tell.release(lease)
        return _outcome(ask_tell, lease, None)
    except optuna.TrialPruned:
        stopped, value = trial.stopped(), lease.last_value
        is_wanted = bool(trial.reply.by) and value is not None and not math.isnan(value)
        state = TrialState.COMPLETE if is_wanted else TrialState.PRUNED
    except (LeaseLostError, StorageError, optuna.exceptions.StorageInternalError):
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a training raises is recorded
        attrs = _attrs(lease, None, started)
        return _fail(ask_tell, lease, TrainingError(error), attrs, time.perf_counter() - trial.clock)
    since = time.perf_counter() - trial.clock
    return _tell(ask_tell, lease, state, value, _attrs(lease, None, started, **stopped), seconds=since)


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
    ask_tell: AskTell, lease: Lease, error: TrainingError, attrs: dict[str, Any], seconds: float
) -> Outcome:
    ask_tell.tell(lease, TrialState.FAIL, None, {**attrs, **error.attrs}, seconds=seconds)
    return _outcome(ask_tell, lease, TrialState.FAIL, failure=error.failure, is_error=error.is_error)


def _outcome(ask_tell: AskTell, lease: Lease, state: TrialState | None, **told: Any) -> Outcome:
    return Outcome(ask_tell.definition.name, lease.number, state, epochs=len(lease.values), **told)


def _attrs(lease: Lease, last: Epoch | None, started: float, **more: Any) -> dict[str, Any]:
    return closing_attrs(lease, last, time.perf_counter() - started, **more)


RECORDS = frozenset(
    {
        *("adjustments", "rewinds", "notes", "origin", "refused", "stopped", "would_prune"),
        *("failure", "error_type", "traceback", "attempts", "attempt_history", "epochs", "training_seconds"),
        *("generation", "member", "parent", "explored", ENDED, ENDED_WITH),
    }
)
"""A trial's attributes that tell how it came about and ended."""


def closing_attrs(lease: Lease, last: Epoch | None, seconds: float, **more: Any) -> dict[str, Any]:
    """What is kept on the trial besides its value: the last epoch's metrics, and what it cost.

    A metric that is named as a parameter (the learning rate after its decay) or as what we keep on record ourselves
    (`RECORDS`) gets `last_` before its name.
    """
    reached = {} if last is None else {k: float(v) for k, v in last.metrics.items() if math.isfinite(v)}
    metrics = {f"last_{k}" if k in lease.params or k in RECORDS else k: v for k, v in reached.items()}
    spent = {"epochs": len(lease.values), "training_seconds": round(seconds, 3)}
    attempts = {"attempts": lease.attempt} if lease.attempt > 1 else {}
    return {**metrics, **spent, **attempts, **more}
