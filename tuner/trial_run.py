"""Drive one trial: ask, train, report after each epoch, stop where told to, tell.

What an objective raises is recorded on its trial (`failure`, `error_type`, `traceback` in its attributes) and reported
in the outcome; it never ends the study by itself.
"""

from __future__ import annotations

import contextlib
import math
import reprlib
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import TrialState

from objectives.epoch import Epoch, Objective
from tuner.adjustment import AdjustableTraining, AdjustmentRefusedError
from tuner.ask_tell import Answer, AskTell, Lease, Reply, Values, as_values, is_row, without_nan
from tuner.definition import OWN_VALUE, SPENT, StudyDefinition
from tuner.errors import (
    AccessDeniedError,
    DefinitionError,
    LeaseLostError,
    NotOfferedError,
    StorageError,
    TunerError,
)
from tuner.explain import near_miss
from tuner.heartbeat import heartbeat
from tuner.population import CheckpointGoneError, Task, drop_old_checkpoints, plan
from tuner.resumption import Keeper, Resumption, find_resumption
from tuner.samplers.population import ENDED, ENDED_WITH
from tuner.storage import explain, patiently
from tuner.termination import interruptible
from tuner.training import NoNumberError, TrainingError, planned_epochs
from tuner.worker_side import WorkerSide

__all__ = ["FAILURES_IN_A_ROW", "Failures", "Function", "Outcome", "closing_attrs", "run_leased", "run_trial"]

NOT_ITS_FAULT = (
    *(LeaseLostError, StorageError, AccessDeniedError, NotOfferedError),
    optuna.exceptions.StorageInternalError,
)
"""What a function may raise without having failed: it could not report, or its study is another."""

FAILURES_IN_A_ROW = 5
"""So many trials of a study in a row that end in an exception stop it: the next would too."""

Function: TypeAlias = Callable[[optuna.Trial], Values]
"""A plain Optuna objective: suggests, trains, reports if it likes, returns the value, or one for each objective."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a trial ended. `state` is None for one that was given back unfinished, or lost to another worker.

    `values` has one for each objective; it is None where the trial has none.
    """

    study: str
    number: int
    state: TrialState | None
    values: tuple[float, ...] | None = None
    epochs: int = 0
    failure: str | None = None
    is_error: bool = False
    """Whether it failed by an exception, rather than by numbers that diverged."""
    error: BaseException | None = field(default=None, compare=False, repr=False)
    """What the training raised; None where that was in another process."""

    @property
    def value(self) -> float | None:
        """That of a single objective."""
        return self.values[0] if self.values is not None and len(self.values) == 1 else None

    def __reduce__(self) -> tuple[Any, ...]:
        """Without the exception, which may not survive the way to another process."""
        told = (self.study, self.number, self.state, self.values, self.epochs, self.failure, self.is_error)
        return Outcome, told


@dataclass(slots=True)
class Failures:
    """Counts, by study, the trials in a row that ended in an exception."""

    _in_a_row: Counter[str] = field(default_factory=Counter)

    def count(self, outcome: Outcome) -> str | None:
        """Why the study is to stop, where there are too many by now. One that was given back has not ended."""
        if outcome.state is None:
            return None
        self._in_a_row[outcome.study] = self._in_a_row[outcome.study] + 1 if outcome.is_error else 0
        if self._in_a_row[outcome.study] < FAILURES_IN_A_ROW:
            return None
        return (
            f"{outcome.study}: stopped, as {FAILURES_IN_A_ROW} trials in a row failed; "
            f"the last (trial {outcome.number}) with {outcome.failure}"
        )


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
        return run_leased(
            ask_tell, lease, objective, stopping, on_begin=on_begin, on_epoch=on_epoch, attrs=origin
        )
    except optuna.exceptions.StorageInternalError as error:
        raise explain(ask_tell.url, error) from error


def run_leased(
    ask_tell: WorkerSide,
    lease: Lease,
    objective: Objective | Function,
    stopping: Callable[[], bool] = lambda: False,
    *,
    on_begin: Callable[[Lease], None] = lambda lease: None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    attrs: Mapping[str, Any] | None = None,
    keep_every: float | None = None,
) -> Outcome:
    """Run a trial that was asked for, of a study in a database or of one behind a service.

    Args:
        ask_tell: the study.
        lease: of the trial.
        objective: what to train.
        stopping: asked after each epoch; once true, the trial is given back for a later run to take up.
        on_begin: called with the trial before it is trained.
        on_epoch: called after each epoch that an objective of epochs has reported.
        attrs: user attributes that it begins with.
        keep_every: leave a checkpoint for the next attempt, should this one be lost, at most every so many seconds, and
            begin with the one that an earlier attempt has left. None: neither.
    """
    try:
        with heartbeat(ask_tell, lease):
            if attrs:
                ask_tell.set_attrs(lease, attrs)
            on_begin(lease)
            if isinstance(objective, Objective):
                keeper = Keeper(ask_tell, lease, keep_every)
                return _run_epochs(ask_tell, lease, objective, keeper, stopping=stopping, on_epoch=on_epoch)
            return _run_function(ask_tell, lease, objective, stopping)
    except LeaseLostError:
        return _outcome(ask_tell, lease, None)
    except BaseException:
        with contextlib.suppress(TunerError):
            ask_tell.release(lease)  # Ctrl-C, or a failing database: not the trial's fault
        raise


def _run_epochs(
    ask_tell: WorkerSide,
    lease: Lease,
    objective: Objective,
    keeper: Keeper,
    *,
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
    resumption = find_resumption(ask_tell, lease) if keeper.is_on else None
    checkpoints, epoch = task.checkpoints, task.epoch
    if resumption is not None:
        checkpoints, epoch = {**checkpoints, resumption.epoch: resumption.data}, resumption.epoch
    with AdjustableTraining(objective, params, task.seed, earlier, checkpoints, epoch=epoch) as training:
        run = _EpochRun(ask_tell, lease, task, training, keeper, stopping, on_epoch)
        outcome = run.to_the_end(resumption)
    if task.segment is not None and outcome.state is TrialState.COMPLETE:
        drop_old_checkpoints(ask_tell)
    return outcome


@dataclass(slots=True)
class _EpochRun:
    """A trial while it is trained, epoch by epoch."""

    ask_tell: WorkerSide
    lease: Lease
    task: Task
    training: AdjustableTraining
    keeper: Keeper
    stopping: Callable[[], bool]
    on_epoch: Callable[[Epoch], None]
    last: Epoch | None = None
    started: float = field(default_factory=time.perf_counter)
    earlier: float = 0.0
    """Seconds that an earlier attempt took as far as this one goes on from."""

    def to_the_end(self, resumption: Resumption | None) -> Outcome:
        """Train until the trial ends; what an earlier attempt has reported by its checkpoint is reported again."""
        outcome = None if resumption is None else self._resume(resumption)
        clock = self.started
        while outcome is None:
            try:
                with interruptible():
                    epoch = self.training.advance()
            except AdjustmentRefusedError as refusal:
                attrs = {**self.training.adjustments.attrs(), "refused": str(refusal)}
                self.ask_tell.set_attrs(self.lease, attrs)
                continue
            except TrainingError as error:
                return _fail(self.ask_tell, self.lease, error, self._attrs(), time.perf_counter() - clock)
            if epoch is None:
                return self._complete()
            self.task.require_checkpoint(self.training.objective, epoch)
            require_metrics(self.ask_tell.definition, self.training.objective, epoch)
            now = time.perf_counter()
            seconds, clock = now - clock, now
            self.keeper.spent(seconds)
            self.last = epoch
            reply = self.ask_tell.report(self.lease, epoch.number, epoch.value, seconds=seconds)
            self.on_epoch(epoch)
            outcome = self._heed(epoch, reply)
        return outcome

    def _resume(self, resumption: Resumption) -> Outcome | None:
        self.keeper.spent(resumption.seconds)
        self.last, self.earlier = resumption.last, resumption.seconds
        reply = self.ask_tell.report_many(self.lease, resumption.values, seconds=resumption.seconds)
        return self._heed(self.last, reply)

    def _heed(self, epoch: Epoch, reply: Reply) -> Outcome | None:
        """Do as the reply to a report says; how the trial ended, if it does."""
        if reply.answer is Answer.ADJUST:
            self._adjust(reply)
        elif reply.answer is not Answer.CONTINUE:
            return self._complete() if self._is_done_with_the_budget(epoch, reply) else self._end_early(reply)
        if self.task.ends_with(epoch):
            return self._complete()
        if self.stopping():
            self.keeper.keep(epoch)
            self.ask_tell.release(self.lease)
            return _outcome(self.ask_tell, self.lease, None)
        self.keeper.after(epoch)
        return None

    def _adjust(self, reply: Reply) -> None:
        """Do what another process wants. One that the objective cannot do is refused, and the trial goes on."""
        try:
            self.training.adjust(self.ask_tell, self.lease, reply.adjustment, reply.by)
        except DefinitionError as refusal:
            self.ask_tell.set_attrs(self.lease, {"refused": str(refusal)})

    def _is_done_with_the_budget(self, epoch: Epoch, reply: Reply) -> bool:
        """Whether the last epoch of the budget was the last one to be trained, too."""
        if reply.answer is not Answer.STOP or reply.by or epoch.number not in self.lease.values:
            return False
        return self.task.ends_with(epoch) or _has_ended(self.training)

    def _complete(self) -> Outcome:
        """The training has come to its end, or to that of its segment."""
        handed_on = self.task.hand_on(self.ask_tell, self.lease, self.training, self.last)
        attrs = self._attrs(**self.training.drop_unsent(self.training.epoch), **handed_on)
        # a segment of a training that had no further epoch has no value
        state = TrialState.PRUNED if self.last is None else TrialState.COMPLETE
        return _tell(self.ask_tell, self.lease, state, self._values(state, attrs), attrs)

    def _end_early(self, reply: Reply) -> Outcome:
        """End the trial before its last epoch, as a person, the pruner or the budget wants it."""
        state, told = TrialState.PRUNED, self._attrs(stopped="budget")
        if reply.by:
            stopped = f"stopped by {reply.by}"
            state = TrialState.COMPLETE
            told = self._attrs(stopped=f"by {reply.by}", **self.task.stopped(stopped))
        elif reply.answer is Answer.PRUNE:
            told = self._attrs(stopped="pruner")
        return _tell(self.ask_tell, self.lease, state, self._values(state, told), told)

    def _values(self, state: TrialState, attrs: Mapping[str, Any]) -> Values | None:
        """What the trial is worth after its last epoch; a pruned one of several objectives is worth nothing."""
        objectives = self.ask_tell.definition.objectives
        if self.last is None or not objectives:
            return None if self.last is None else self.lease.last_value
        if state is not TrialState.COMPLETE:
            return None
        spent = {name: float(attrs[name]) for name in SPENT}
        known = {**self.last.metrics, OWN_VALUE: self.last.value, **spent}
        return [known[objective.name] for objective in objectives]

    def _attrs(self, **more: Any) -> dict[str, Any]:
        return _attrs(self.lease, self.last, self.started - self.earlier, **more)


def require_metrics(definition: StudyDefinition, objective: Objective, epoch: Epoch) -> None:
    """Check that an epoch has all of several objectives.

    Raises:
        DefinitionError: it lacks one; the text says what it has.
    """
    known = list(dict.fromkeys([OWN_VALUE, *epoch.metrics, *SPENT]))
    for wanted in definition.objectives:
        if wanted.name not in known:
            raise DefinitionError(
                f"{definition.name}: objectives: epoch {epoch.number} of {objective.name!r} has no metric "
                f"{wanted.name!r}{near_miss(wanted.name, known)}; it has: {', '.join(known)}"
            )


def _earlier_attrs(ask_tell: WorkerSide, lease: Lease) -> dict[str, Any]:
    """What earlier attempts have left on the trial: a trial that was adjusted runs again as it was."""
    if lease.fence == 1:
        return {}
    return ask_tell.user_attrs(lease)


def _has_ended(training: AdjustableTraining) -> bool:
    """Whether a training has no further epoch. Where it does not say how many it has, one has to let it try."""
    planned = planned_epochs(training.objective, training.params)
    if planned is not None:
        return training.epoch >= planned
    try:
        with interruptible():
            return training.advance() is None
    except (TrainingError, AdjustmentRefusedError):
        return False


class _Interrupted(BaseException):
    """The run is stopping: a plain function is left by force, its trial given back."""


class _Reporting:
    """What a plain function's trial of a lease does otherwise than Optuna's: its writes count, and need the lease."""

    def __init__(self, ask_tell: WorkerSide, lease: Lease, stopping: Callable[[], bool]) -> None:
        self._worker_side, self._lease, self._stopping = ask_tell, lease, stopping
        self.reply = Reply(Answer.CONTINUE)
        self.clock = time.perf_counter()

    def set_user_attr(self, key: str, value: Any) -> None:
        self._worker_side.set_attrs(self._lease, {key: value})
        self.note_attr(key, value)

    def note_attr(self, key: str, value: Any) -> None:
        """Show an attribute that was set."""
        raise NotImplementedError

    def report(self, value: float, step: int) -> None:
        self._require_one_objective("report")
        if step in self._lease.values:
            return  # as Optuna: the first report of a step counts
        now = time.perf_counter()
        self.reply = self._worker_side.report(self._lease, step, value, seconds=now - self.clock)
        self.clock = now
        if self.reply.answer is Answer.ADJUST:
            self.set_user_attr("refused", "a plain function cannot be adjusted while it runs")
        self._leave_if_stopping()

    def should_prune(self) -> bool:
        self._require_one_objective("should_prune")
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

    def _require_one_objective(self, method: str) -> None:
        if objectives := self._worker_side.definition.objectives:
            names = ", ".join(objective.name for objective in objectives)
            raise NotImplementedError(
                f"trial.{method} is for one objective, as in Optuna; the study has {len(objectives)} ({names})"
            )


class _LeasedTrial(_Reporting, optuna.Trial):
    """Optuna's trial, whose writes are patient, counted in the budget, and refused once the lease is lost."""

    def __init__(self, ask_tell: AskTell, lease: Lease, stopping: Callable[[], bool]) -> None:
        _Reporting.__init__(self, ask_tell, lease, stopping)
        self._ask_tell = ask_tell
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
        optuna.Trial.__init__(self, study, self._lease.trial_id)

    @patiently
    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        self._ask_tell.require(self._lease)
        return super()._suggest(name, distribution)

    def note_attr(self, key: str, value: Any) -> None:
        self._cached_frozen_trial.user_attrs[key] = value


class _GivenTrial(_Reporting, optuna.trial.FixedTrial):
    """A trial whose parameters were all chosen when it was asked for, as a service does: it suggests what was given."""

    def __init__(self, ask_tell: WorkerSide, lease: Lease, stopping: Callable[[], bool]) -> None:
        _Reporting.__init__(self, ask_tell, lease, stopping)
        optuna.trial.FixedTrial.__init__(self, dict(lease.params), lease.number)
        self._suggested_params = self._params  # as Optuna's trial, it shows all from its beginning
        self._distributions = dict(lease.distributions)

    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        if name not in self._params:
            has = ", ".join(self._params) or "none"
            raise NotOfferedError(
                f"{name!r} is not among the parameters of this trial{near_miss(name, self._params)}; it has: {has}"
            )
        if distribution != self._distributions[name]:
            raise NotOfferedError(
                f"the study searches {name} in {self._distributions[name]}; the function suggests {distribution}"
            )
        return self._params[name]

    def note_attr(self, key: str, value: Any) -> None:
        self._user_attrs[key] = value


def _run_function(
    ask_tell: WorkerSide, lease: Lease, function: Function, stopping: Callable[[], bool]
) -> Outcome:
    started = time.perf_counter()
    trial: _LeasedTrial | _GivenTrial
    if isinstance(ask_tell, AskTell):  # in a database a function may suggest what no definition names
        trial = _LeasedTrial(ask_tell, lease, stopping)
    else:
        trial = _GivenTrial(ask_tell, lease, stopping)
    stopped: dict[str, str] = {}
    try:
        with interruptible():
            returned = function(cast("optuna.Trial", trial))
        values: Values | None = _numbers(ask_tell.definition, returned)
        state = TrialState.COMPLETE
    except _Interrupted:
        ask_tell.release(lease)
        return _outcome(ask_tell, lease, None)
    except optuna.TrialPruned:
        stopped, values = trial.stopped(), lease.last_value
        is_wanted = bool(trial.reply.by) and values is not None and not math.isnan(values)
        state = TrialState.COMPLETE if is_wanted else TrialState.PRUNED
    except NOT_ITS_FAULT:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a training raises is recorded
        attrs = _attrs(lease, None, started)
        return _fail(ask_tell, lease, TrainingError(error), attrs, time.perf_counter() - trial.clock)
    since = time.perf_counter() - trial.clock
    return _tell(ask_tell, lease, state, values, _attrs(lease, None, started, **stopped), seconds=since)


def _numbers(definition: StudyDefinition, returned: Any) -> Values:
    """What a function returned, a number for each objective; of several, any may be NaN."""
    if not definition.objectives:
        if math.isnan(value := _number(returned)):
            raise NoNumberError("the value is not a number")
        return value
    names = [objective.name for objective in definition.objectives]
    if not is_row(returned) or len(returned) != len(names):
        raise NoNumberError(
            f"the function returned {reprlib.repr(returned)}; the study has {len(names)} objectives "
            f"({', '.join(names)}), each with a number"
        )
    return [_number(value) for value in returned]


def _number(returned: Any) -> float:
    try:
        return float(returned)
    except (TypeError, ValueError, OverflowError):
        raise NoNumberError(f"the function returned {reprlib.repr(returned)}, which is no number") from None


def _tell(
    ask_tell: WorkerSide,
    lease: Lease,
    state: TrialState,
    values: Values | None,
    attrs: dict[str, Any],
    *,
    seconds: float = 0.0,
) -> Outcome:
    given = as_values(values)
    try:
        ended, given, attrs = without_nan(ask_tell.definition, state, given, attrs)
        ask_tell.tell(lease, ended, given, attrs, seconds=seconds)
    except (
        DefinitionError
    ) as error:  # a service takes no such attributes: given back, it would come again and again
        return _fail(ask_tell, lease, TrainingError(error), {}, seconds)
    reason = {"failure": attrs["failure"]} if ended is TrialState.FAIL else {}
    return _outcome(ask_tell, lease, ended, values=None if given is None else tuple(given), **reason)


def _fail(
    ask_tell: WorkerSide, lease: Lease, error: TrainingError, attrs: dict[str, Any], seconds: float
) -> Outcome:
    ask_tell.tell(lease, TrialState.FAIL, None, {**attrs, **error.attrs}, seconds=seconds)
    return _outcome(
        ask_tell, lease, TrialState.FAIL, failure=error.failure, is_error=error.is_error, error=error.cause
    )


def _outcome(ask_tell: WorkerSide, lease: Lease, state: TrialState | None, **told: Any) -> Outcome:
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
