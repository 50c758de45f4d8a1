"""A session: one trial in a person's hands, and the record of what the person did.

A session holds one leased trial of a study, from its first epoch to its end. Everything that the person does is on the
trial as soon as it is done: `adjustments`, `rewinds` and `notes` are attributes that the dashboard shows. What counts
is the path that survives: a rewind takes back the reports and adjustments after its epoch and keeps them in `rewinds`.

The surviving adjustments, sent again after their epochs, give the same numbers again: `replay` does that, and so does
whoever takes the trial up after its session was left or lost.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

from optuna.trial import FrozenTrial, TrialState

from objectives.epoch import Epoch, Objective, Seed
from objectives.network.diagnosis import course, diagnose
from tuner.adjustment import Adjustments, check_adjustment, login
from tuner.ask_tell import Answer, AskTell, Lease, Reply
from tuner.definition import StudyDefinition
from tuner.errors import DefinitionError, LeaseLostError, TunerError
from tuner.training import Training, TrainingError, planned_epochs
from tuner.trial_run import heartbeat

__all__ = ["Event", "Session", "replay"]

DIAGNOSED = frozenset({"train_error", "dev_error", "train_loss", "gradient_norm"})
"""The metrics that tell bias from variance, and plateaus from progress."""

MOST_CHECKPOINTS = 60
"""So many are kept. Then every second of those before the last `RECENT` goes: what is between is trained again."""

RECENT = 20


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened after an epoch, in words."""

    epoch: int
    text: str


class Session:
    """One trial in a person's hands. Enter it with `with`; use it from one thread at a time.

    Leaving the block ends the trial: in order, as `stop` does; by Ctrl-C or an exception of your own, it is given back,
    and whoever asks next runs it again from its start with the adjustments made so far. A training that failed and was
    not rewound fails its trial. A heartbeat keeps the lease while the person thinks. To the study's sampler it is a
    trial at the parameters that it began with, whatever was adjusted later.

    Args:
        ask_tell: the study.
        objective: what to train.
        params: chosen by hand, any of the study's space; the sampler chooses the rest. None: what an ask gives, be it a
            trial that was given back or a new one.
        by: the person's name, for the record; by default the login.

    Example:
        >>> with manager.panda("digits", {"learning_rate": 0.1}) as session:
        ...     session.run(until=5)
        ...     session.adjust(learning_rate=0.01)
        ...     session.run()
        ...     print(session.diagnosis)
    """

    def __init__(
        self,
        ask_tell: AskTell,
        objective: Objective,
        params: Mapping[str, Any] | None = None,
        *,
        by: str | None = None,
    ) -> None:
        self.ask_tell, self.objective = ask_tell, objective
        self.chosen = None if params is None else dict(params)
        self.by = login() if by is None else by
        self.history: tuple[Epoch, ...] = ()
        self.rewinds: list[dict[str, Any]] = []
        self.notes: list[dict[str, Any]] = []
        self.log: tuple[Event, ...] = ()
        self.would_prune: tuple[int, ...] = ()
        self.is_finished = False
        self.state: TrialState | None = None
        self.stopped: str | None = None
        self._training: Training | None = None
        self._failed: TrainingError | None = None
        self._seconds = 0.0
        self._checkpoints: dict[int, Path] = {}
        self._stack = contextlib.ExitStack()
        self._lease: Lease | None = None

    def __enter__(self) -> Self:
        """Lease the trial.

        Raises:
            TunerError: the study's budget is used up.
            DefinitionError: the parameters are not in the space.
        """
        lease = self.ask_tell.ask(params=self.chosen)
        if lease is None:
            raise TunerError(
                f"the budget of {self.ask_tell.definition.name} is used up: no trial can be begun"
            )
        self._lease = lease
        trial = self.ask_tell.study._storage.get_trial(lease.trial_id)
        self.params = {**self.ask_tell.definition.fixed, **lease.params}
        self.adjustments = Adjustments.begin(self.objective, self.params, trial.user_attrs)
        self.rewinds, self.notes = (list(trial.user_attrs.get(name, [])) for name in ("rewinds", "notes"))
        with contextlib.ExitStack() as stack:
            stack.callback(self.release)  # should anything fail before the block begins
            self._folder = Path(self._stack.enter_context(TemporaryDirectory(prefix="panda-")))
            self._stack.enter_context(heartbeat(self.ask_tell, lease))
            self._stack.callback(self._close_training)
            self.ask_tell.set_attrs(lease, {"origin": "panda"})
            stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the trial, or give it back."""
        with self._stack:
            if self.is_over or self._lease is None:
                return
            if self._failed is not None:
                self._tell(TrialState.FAIL, None, self._failed.attrs)
            elif error is None and self.history:
                self.stop()
            else:
                self.release()

    @property
    def number(self) -> int:
        """The trial's number."""
        return self._held.number

    @property
    def epoch(self) -> int:
        """The last epoch of the path; 0 before the first."""
        return self.history[-1].number if self.history else 0

    @property
    def planned(self) -> int | None:
        """How many epochs the training has, where its hyperparameters say so."""
        return planned_epochs(self.objective, self.params)

    @property
    def current(self) -> dict[str, Any]:
        """The adjustable hyperparameters as they will be in the next epoch."""
        return self.adjustments.values(self.epoch)

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """The epochs from which `rewind` goes on at once; to others it trains again what is between."""
        return tuple(sorted(self._checkpoints))

    @property
    def best(self) -> Epoch | None:
        """The epoch with the best value; None before the first."""
        best = min if self.objective.direction == "minimize" else max
        return best(self.history, key=lambda epoch: epoch.value, default=None)

    @property
    def failure(self) -> str | None:
        """What the training failed with, until it is rewound."""
        return None if self._failed is None else self._failed.failure

    @property
    def is_over(self) -> bool:
        """Whether the trial has ended, or was given back."""
        return self.stopped is not None

    @property
    def diagnosis(self) -> str:
        """In words: how the curve goes; bias, variance and plateaus where the metrics tell them."""
        if self.failure is not None:
            return f"failed: {self.failure}"
        if not self.history:
            return "just begun: no epoch yet"
        minimize = self.objective.direction == "minimize"
        words = course([epoch.value for epoch in self.history], minimize=minimize)
        metrics = [epoch.metrics for epoch in self.history]
        if not all(metric.keys() >= DIAGNOSED for metric in metrics):
            return words
        reference = float(getattr(self.objective, "reference_error", 0.0))
        return f"{words}. {diagnose(metrics, reference_error=reference)}"

    def step(self, n: int = 1) -> Epoch | None:
        """Train so many epochs, or to the end of the training or the budget. The last epoch that there is.

        Raises:
            TunerError: the training failed (`rewind`, and try another way), or the trial is over.
            DefinitionError: the training refused an adjustment, which is taken back; nothing else has changed.
            LeaseLostError: another has the trial now, or it was ended by hand.
        """
        if n < 1:
            raise DefinitionError(f"a step is at least 1 epoch; got {n}")
        self._require_open()
        for _ in range(n):
            if self.is_over or not self._advance():
                break
        return self.history[-1] if self.history else None

    def run(self, until: int | None = None) -> Epoch | None:
        """Train until this epoch, or to the end. Errors are those of `step`."""
        self._require_open()
        while not self.is_over and (until is None or self.epoch < until) and self._advance():
            pass
        return self.history[-1] if self.history else None

    def adjust(self, **values: Any) -> None:
        """Change hyperparameters from the next epoch on.

        Raises:
            DefinitionError: one cannot be adjusted while it trains, or its value is not legal; nothing is changed.
            TunerError: the training has come to its end, or the trial is over.
        """
        self.require_trainable()
        self._adjust(check_adjustment(self.objective, values), self.by)

    def rewind(self, epoch: int) -> None:
        """Go back to where the training stood after an epoch (0: the start), to try another way from there.

        Reports and adjustments after it are taken back; `rewinds` on the trial keeps them.

        Raises:
            TunerError: this epoch is not trained, there are no checkpoints, or the trial is over.
        """
        self._require_open()
        trained = [e.number for e in self.history]
        if epoch != 0 and not self._checkpoints:
            raise TunerError(f"cannot rewind to epoch {epoch}: {self.objective.name} has given no checkpoint")
        if epoch not in (0, *trained):
            raise TunerError(f"cannot rewind to epoch {epoch}: trained are {_ranges(trained)}")
        self._log(f"rewound from epoch {self.epoch} to {epoch}")
        undone = self.adjustments.undo(epoch)
        lost = {str(e.number): e.value for e in self.history if e.number > epoch}
        record = {
            "from": self.epoch,
            "epoch": epoch,
            "values": lost,
            "adjustments": undone,
            **self._signature(),
        }
        if self.failure is not None:
            record["failure"] = self.failure
        self.rewinds = [*self.rewinds, record]
        with self._leased() as lease:
            self.ask_tell.rewind(lease, epoch)
            self.ask_tell.set_attrs(lease, {"rewinds": self.rewinds})
            self.adjustments.save(self.ask_tell, lease)
        self.history = tuple(e for e in self.history if e.number <= epoch)
        self.would_prune = tuple(e for e in self.would_prune if e <= epoch)
        for later in [e for e in self._checkpoints if e > epoch]:
            self._checkpoints.pop(later).unlink()
        self._restart()

    def note(self, text: str) -> None:
        """Write a remark onto the trial, with the epoch and the time.

        Raises:
            TunerError: the trial is over.
        """
        self._require_open()
        self._log(f"note: {text}")
        self.notes = [*self.notes, {"epoch": self.epoch, "text": text, **self._signature()}]
        with self._leased() as lease:
            self.ask_tell.set_attrs(lease, {"notes": self.notes})

    def stop(self) -> None:
        """End here: the trial is complete, with the value of its last epoch.

        Raises:
            TunerError: there was no epoch yet, the training has failed, or the trial is over.
        """
        self._require_trained()
        self._drop_unsent()
        more = {} if self.is_finished else {"stopped": "by hand"}
        self._tell(TrialState.COMPLETE, self.history[-1].value, more)

    def abandon(self) -> None:
        """Give this trial up: it is pruned, by a person.

        Raises:
            TunerError: the trial is over.
        """
        self._require_open()
        self._drop_unsent()
        value = self.history[-1].value if self.history else None
        self._tell(TrialState.PRUNED, value, {"stopped": "by hand"})

    def release(self) -> None:
        """Give the trial back: whoever asks next runs it again from its start, with the adjustments made so far."""
        if not self.is_over:
            self.stopped = "given back"
            with contextlib.suppress(TunerError):
                self.ask_tell.release(self._held)

    # ---- the training

    def _advance(self) -> bool:
        """One more epoch; whether there was one."""
        started = time.perf_counter()
        try:
            epoch = self._trained().advance(self._due(self.epoch))
        except TrainingError as error:
            self._failed_in(error)
        seconds = time.perf_counter() - started
        self._seconds += seconds
        if epoch is None:
            self.is_finished = True
            self._log("the training has come to its end")
            return False
        self._keep_checkpoint(epoch)
        with self._leased() as lease:
            reply = self.ask_tell.report(lease, epoch.number, epoch.value, seconds=seconds)
        if epoch.number in lease.values:
            self.history = (*self.history, Epoch(epoch.number, epoch.value, epoch.metrics))
        self._heed(reply)
        return True

    def _trained(self) -> Training:
        """The training as it stands after `epoch`: the one that runs, or another from a checkpoint.

        A resumed training can be adjusted only after its next epoch. So where something is due, the checkpoint before
        it is taken and the epochs between are trained again, to the same numbers.
        """
        if self._training is None:
            usable = [e for e in self._checkpoints if e <= self.epoch and not self._due(e)]
            start = max(usable, default=0)
            resume = self._checkpoints[start].read_bytes() if start else None
            params = {**self.params, **self.adjustments.due(0)}
            seed = Seed(self.ask_tell.definition.seed, self.number)
            self._training = Training(self.objective, params, seed, resume=resume, epoch=start)
            while self._training.epoch < self.epoch and self._training.advance(
                self._due(self._training.epoch)
            ):
                pass
        return self._training

    def _due(self, epoch: int) -> dict[str, Any]:
        """What is to be sent after `epoch`. What was adjusted before the first epoch is in its parameters."""
        return self.adjustments.due(epoch) if epoch else {}

    def _failed_in(self, error: TrainingError) -> None:
        """Take a refused adjustment back; or wait for a rewind.

        Raises:
            DefinitionError: an adjustment was refused.
            TunerError: the training failed.
        """
        refused = isinstance(error.cause, ValueError) and self.adjustments.due(self.epoch)
        if refused and (self.epoch == 0 or self._checkpoints):
            self._drop_unsent()
            self._restart()
            raise DefinitionError(f"refused: {error.cause}") from None
        self._failed = error
        self._log(f"the training failed: {error.failure}")
        hint = "rewind, and try another way" if self._checkpoints else "rewind to 0 to begin anew"
        raise TunerError(f"the training failed: {error.failure} ({hint})") from error.cause

    def _restart(self) -> None:
        """Let the next epoch be trained from a checkpoint."""
        self._close_training()
        self._failed, self.is_finished = None, False

    def _close_training(self) -> None:
        if self._training is not None:
            self._training.close()
            self._training = None

    def _keep_checkpoint(self, epoch: Epoch) -> None:
        if epoch.checkpoint is not None:
            path = self._folder / f"epoch-{epoch.number}"
            path.write_bytes(epoch.checkpoint())
            self._checkpoints[epoch.number] = path
        if len(self._checkpoints) > MOST_CHECKPOINTS:
            for older in self.checkpoints[:-RECENT:2]:
                self._checkpoints.pop(older).unlink()

    # ---- what comes back, and what is written

    def _heed(self, reply: Reply) -> None:
        if reply.answer is Answer.PRUNE:
            if not self.would_prune:
                self._log("the pruner would stop here")
            self.would_prune = (*self.would_prune, self.epoch)
        elif reply.answer is Answer.ADJUST:
            self._adjust(dict(reply.adjustment), "")
        elif reply.answer is Answer.STOP:
            self._end_of_budget()

    def _end_of_budget(self) -> None:
        """The budget is used up. If that was the training's last epoch too, the trial is complete."""
        with contextlib.suppress(TrainingError):
            if self._trained().epoch == self.epoch:
                self.is_finished = self._trained().advance(self._due(self.epoch)) is None
        self._drop_unsent()
        self._log("the budget of the study is used up")
        state = TrialState.COMPLETE if self.is_finished else TrialState.PRUNED
        self._tell(state, self._held.last_value, {} if self.is_finished else {"stopped": "budget"})

    def _adjust(self, values: Mapping[str, Any], by: str) -> None:
        for made in self.adjustments.add(self.epoch, values, by):
            who = f" (by {by or 'somebody else'})" if by != self.by else ""
            self._log(f"{made['name']} {_short(made['old'])} → {_short(made['new'])}{who}")
        with self._leased() as lease:
            self.adjustments.save(self.ask_tell, lease)

    def _drop_unsent(self) -> None:
        """Take back what was adjusted after the last epoch: no epoch has seen it."""
        if self.adjustments.undo(self.epoch):
            with self._leased() as lease:
                self.adjustments.save(self.ask_tell, lease)

    def _tell(self, state: TrialState, value: float | None, more: Mapping[str, Any]) -> None:
        metrics = self.history[-1].metrics if self.history else {}
        reached = {
            f"last_{name}" if name in self._held.params else name: metric
            for name, metric in metrics.items()
            if math.isfinite(metric)
        }
        spent = {"epochs": len(self.history), "training_seconds": round(self._seconds, 3)}
        pruner = {"would_prune": list(self.would_prune)} if self.would_prune else {}
        with self._leased() as lease:
            self.ask_tell.tell(lease, state, value, {**reached, **spent, **pruner, **more})
        self.state, self.stopped = state, str(more.get("stopped", "ended"))

    def _log(self, text: str) -> None:
        self.log = (*self.log, Event(self.epoch, text))

    @contextlib.contextmanager
    def _leased(self) -> Iterator[Lease]:
        """The lease to work under; a session that has lost it is over."""
        try:
            yield self._held
        except LeaseLostError:
            self.stopped = "its lease is lost"
            raise

    def _signature(self) -> dict[str, str]:
        return {"by": self.by, "at": datetime.now().isoformat(timespec="seconds")}

    # ---- what is allowed

    @property
    def _held(self) -> Lease:
        if self._lease is None:
            raise TunerError("a panda session is used inside `with`")
        return self._lease

    def _require_open(self) -> None:
        if self.is_over:
            raise TunerError(f"trial {self._held.number} is over ({self.stopped})")
        assert self._held

    def require_trainable(self) -> None:
        """Whether a further epoch can be trained.

        Raises:
            TunerError: the training has failed or come to its end, or the trial is over.
        """
        self._require_open()
        if self.failure is not None:
            raise TunerError("the training has failed; rewind first")
        if self.is_finished:
            raise TunerError(f"the training has come to its end after epoch {self.epoch}; rewind first")

    def _require_trained(self) -> None:
        self._require_open()
        if self.failure is not None:
            raise TunerError("the training has failed; rewind first, or abandon it")
        if not self.history:
            raise TunerError("there is no value yet: train at least one epoch, or abandon the trial")


def replay(trial: FrozenTrial, objective: Objective, definition: StudyDefinition) -> list[float]:
    """Train a trial again with the adjustments on record: the values of its epochs, bit for bit if the objective is
    repeatable.

    Args:
        trial: of the study; as far as it was reported is as far as it is trained.
        objective: what it trained.
        definition: of the study.

    Raises:
        TrainingError: the training failed, unlike the first time.
    """
    params = {**definition.fixed, **trial.params}
    adjustments = Adjustments.begin(objective, params, trial.user_attrs)
    last = max(trial.intermediate_values, default=0)
    values = []
    start = {**params, **adjustments.due(0)}
    with Training(objective, start, Seed(definition.seed, trial.number)) as training:
        while training.epoch < last:
            epoch = training.advance(adjustments.due(training.epoch) if training.epoch else None)
            if epoch is None:
                break
            values.append(epoch.value)
    return values


def _ranges(numbers: Sequence[int]) -> str:
    """`1–5, 8` for 1, 2, 3, 4, 5, 8."""
    runs = [[n for _, n in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
