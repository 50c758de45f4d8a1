"""A session: one trial in a person's hands, and the record of what the person did.

A session holds one leased trial of a study, from its first epoch to its end. Everything that the person does is on the
trial as soon as it is done: `adjustments`, `rewinds` and `notes` are attributes that the dashboard shows. What counts
is the path that survives: a rewind takes back the reports and adjustments after its epoch and keeps them in `rewinds`.

The surviving adjustments, sent again after their epochs, give the same numbers again: `replay` does that, and so does
whoever takes the trial up after its session was left or lost. Each is announced in the log when it is made again. A
person who then adjusts the same hyperparameter earlier changes what the later ones start from (`old`), not what they
set; a rewind takes them back.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
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
from tuner.adjustment import AdjustableTraining, AdjustmentRefusedError, Adjustments, login
from tuner.ask_tell import Answer, AskTell, Lease, Reply
from tuner.assignment import show_value
from tuner.definition import StudyDefinition, require_one_objective
from tuner.errors import DefinitionError, LeaseLostError, TunerError
from tuner.heartbeat import heartbeat
from tuner.population import require_whole_trainings
from tuner.training import TrainingError, planned_epochs
from tuner.trial_run import closing_attrs

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
        self._failed: TrainingError | None = None
        self._seconds = 0.0
        self._stack = contextlib.ExitStack()
        self._lease: Lease | None = None

    def __enter__(self) -> Self:
        """Lease the trial.

        Raises:
            TunerError: the study's budget is used up, or the session was used before.
            DefinitionError: the parameters are not in the space, the study's trials are no whole trainings, or it has
                several objectives.
        """
        if self._lease is not None:
            raise TunerError(f"this session has had its trial, {self.number}: begin another one")
        require_whole_trainings(self.ask_tell.definition, "a panda session")
        require_one_objective(self.ask_tell.definition, "a panda session")
        lease = self.ask_tell.ask(params=self.chosen)
        if lease is None:
            raise TunerError(
                f"the budget of {self.ask_tell.definition.name} is used up: no trial can be begun"
            )
        self._lease = lease
        with contextlib.ExitStack() as stack:  # should anything fail before the block begins
            stack.callback(self.release)
            stack.callback(self._stack.close)
            trial = self.ask_tell.study._storage.get_trial(lease.trial_id)
            self.params = {**self.ask_tell.definition.fixed, **lease.params}
            self.rewinds, self.notes = (list(trial.user_attrs.get(name, [])) for name in ("rewinds", "notes"))
            folder = self._stack.enter_context(TemporaryDirectory(prefix="panda-"))
            self._checkpoints = _Checkpoints(Path(folder))
            self._training = AdjustableTraining(
                self.objective,
                self.params,
                Seed(self.ask_tell.definition.seed, lease.number),
                trial.user_attrs,
                self._checkpoints,
            )
            self._stack.enter_context(heartbeat(self.ask_tell, lease))
            self._stack.enter_context(self._training)
            self.ask_tell.set_attrs(lease, {"origin": "panda"})
            self._announce()
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
        return self._training.adjustments.values(self.epoch)

    @property
    def adjustments(self) -> Adjustments:
        """Those of the path: the values it began with, and what was changed."""
        return self._training.adjustments

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
        self._adjust(values, self.by)

    def rewind(self, epoch: int) -> None:
        """Go back to where the training stood after an epoch (0: the start), to try another way from there.

        Reports and adjustments after it are taken back; `rewinds` on the trial keeps them.

        Raises:
            TunerError: this epoch is not trained, there are no checkpoints, the trial is over, or the database failed;
                nothing is changed.
        """
        self._require_open()
        trained = [e.number for e in self.history]
        if epoch != 0 and not self._checkpoints:
            raise TunerError(f"cannot rewind to epoch {epoch}: {self.objective.name} has given no checkpoint")
        if epoch not in (0, *trained):
            raise TunerError(f"cannot rewind to epoch {epoch}: trained are {_ranges(trained)}")
        kept, undone = self._training.adjustments.undo(epoch)
        lost = {str(e.number): e.value for e in self.history if e.number > epoch}
        record = {
            "from": self.epoch,
            "epoch": epoch,
            "values": lost,
            **self._signature(),
            "adjustments": undone,
        }
        if self.failure is not None:
            record["failure"] = self.failure
        rewinds = [*self.rewinds, record]
        with self._leased() as lease:  # first: where this fails, the training is still what the trial says
            self.ask_tell.rewind(lease, epoch, {"rewinds": rewinds, **kept.attrs()})
        self._training.rewind(epoch)
        self.rewinds = rewinds
        back = "".join(f"; {name} is {value!r} again" for name, value in _undone(undone, kept.values(epoch)))
        self._log(f"rewound from epoch {self.epoch} to {epoch}{back}")
        self.history = tuple(e for e in self.history if e.number <= epoch)
        self.would_prune = tuple(e for e in self.would_prune if e <= epoch)
        self._failed, self.is_finished = None, False

    def note(self, text: str) -> None:
        """Write a remark onto the trial, with the epoch and the time.

        Raises:
            TunerError: the trial is over.
        """
        self._require_open()
        notes = [*self.notes, {"epoch": self.epoch, "text": text, **self._signature()}]
        self._set_attrs({"notes": notes})
        self.notes = notes
        self._log(f"note: {text}")

    def stop(self) -> None:
        """End here: the trial is complete, with the value of its last epoch.

        Raises:
            TunerError: there was no epoch yet, the training has failed, or the trial is over.
        """
        self._require_trained()
        self._end(TrialState.COMPLETE, {} if self.is_finished else {"stopped": f"by {self.by or 'hand'}"})

    def abandon(self) -> None:
        """Give this trial up: it is pruned, by a person.

        Raises:
            TunerError: the trial is over.
        """
        self._require_open()
        self._end(TrialState.PRUNED, {"stopped": f"by {self.by or 'hand'}"})

    def release(self) -> None:
        """Give the trial back: whoever asks next runs it again from its start, with the adjustments made so far."""
        if not self.is_over:
            self.stopped = "given back"
            with contextlib.suppress(TunerError):
                self.ask_tell.release(self._held)

    # ---- the training

    def _advance(self) -> bool:
        """One more epoch; whether there was one.

        Raises:
            AdjustmentRefusedError: the training refused an adjustment.
            TunerError: the training failed.
        """
        self._require_healthy()
        if self.is_finished:
            return False
        started = time.perf_counter()
        try:
            epoch = self._training.advance()
        except AdjustmentRefusedError:
            self._set_attrs(self._training.adjustments.attrs())
            raise
        except TrainingError as error:
            self._failed = error
            self._log(f"the training failed: {error.failure}")
            hint = "rewind, and try another way" if self._checkpoints else "rewind to 0 to begin anew"
            raise TunerError(f"the training failed: {error.failure} ({hint})") from error.cause
        seconds = time.perf_counter() - started
        self._seconds += seconds
        if epoch is None:
            self.is_finished = True
            self._log("the training has come to its end")
            return False
        if epoch.checkpoint is not None:
            self._checkpoints[epoch.number] = epoch.checkpoint()
        with self._leased() as lease:
            reply = self.ask_tell.report(lease, epoch.number, epoch.value, seconds=seconds)
        if epoch.number in lease.values:
            self.history = (*self.history, Epoch(epoch.number, epoch.value, epoch.metrics))
        self._announce()
        self._heed(reply)
        return True

    # ---- what comes back, and what is written

    def _heed(self, reply: Reply) -> None:
        """Note what the pruner would do; do what another process wants; end where the budget does."""
        if reply.answer is Answer.PRUNE:
            if not self.would_prune:
                self._log("the pruner would stop here")
            self.would_prune = (*self.would_prune, self.epoch)
        elif reply.answer is Answer.ADJUST:
            try:
                self._adjust(reply.adjustment, reply.by)
            except DefinitionError as refusal:
                self._log(f"refused, from {reply.by or 'elsewhere'}: {refusal}")
        elif reply.answer is Answer.STOP and reply.by:
            self._log(f"stopped by {reply.by}")
            self._end(TrialState.COMPLETE, {"stopped": f"by {reply.by}"})
        elif reply.answer is Answer.STOP:
            self._end_of_budget()

    def _end_of_budget(self) -> None:
        """The budget is used up. If that was the training's last epoch too, the trial is complete."""
        with contextlib.suppress(TrainingError, AdjustmentRefusedError):
            self.is_finished = self._training.epoch == self.epoch and self._training.advance() is None
        self._log("the budget of the study is used up")
        if self.is_finished:
            self._end(TrialState.COMPLETE, {})
        else:
            self._end(TrialState.PRUNED, {"stopped": "budget"})

    def _adjust(self, values: Mapping[str, Any], by: str) -> None:
        with self._leased() as lease:
            entries = self._training.adjust(self.ask_tell, lease, values, by)
        for made in entries:
            who = f" (by {by or 'somebody else'})" if by != self.by else ""
            self._log(f"{made['name']} {show_value(made['old'])} → {show_value(made['new'])}{who}")

    def _announce(self) -> None:
        """Say what is made again after the epoch just reached: what an earlier attempt at this trial has recorded."""
        for made in self.adjustments.made(self._training.epoch):
            who = made["by"] or "somebody"
            self._log(
                f"{made['name']} {show_value(made['old'])} → {show_value(made['new'])} (again, as {who} made it)"
            )

    def _set_attrs(self, attrs: Mapping[str, Any]) -> None:
        if attrs:
            with self._leased() as lease:
                self.ask_tell.set_attrs(lease, attrs)

    def _end(self, state: TrialState, more: Mapping[str, Any]) -> None:
        """End the trial with the value of its last epoch; what no epoch has seen was not adjusted."""
        value = self.history[-1].value if self.history else None
        self._tell(state, value, {**more, **self._training.drop_unsent(self.epoch)})

    def _tell(self, state: TrialState, value: float | None, more: Mapping[str, Any]) -> None:
        last = self.history[-1] if self.history else None
        pruner = {"would_prune": list(self.would_prune)} if self.would_prune else {}
        with self._leased() as lease:
            attrs = closing_attrs(lease, last, self._seconds, **pruner, **more)
            self.state = self.ask_tell.tell(lease, state, value, attrs)
        self.stopped = str(more.get("stopped", "ended"))

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
        self._require_healthy()
        if self.is_finished:
            raise TunerError(f"the training has come to its end after epoch {self.epoch}; rewind first")

    def _require_healthy(self) -> None:
        if self.failure is not None:
            raise TunerError(f"the training has failed ({self.failure}); rewind first, or abandon it")

    def _require_trained(self) -> None:
        self._require_open()
        self._require_healthy()
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
    last = max(trial.intermediate_values, default=0)
    values = []
    seed = Seed(definition.seed, trial.number)
    with AdjustableTraining(objective, params, seed, trial.user_attrs) as training:
        while training.epoch < last and (epoch := training.advance()) is not None:
            values.append(epoch.value)
    return values


def _undone(undone: Sequence[Mapping[str, Any]], now: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The hyperparameters of adjustments that were taken back, with the values that they have now."""
    return [(name, now[name]) for name in dict.fromkeys(entry["name"] for entry in undone)]


class _Checkpoints(MutableMapping[int, bytes]):
    """Checkpoints by epoch in files, which thin out."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._epochs: set[int] = set()

    def __getitem__(self, epoch: int) -> bytes:
        if epoch not in self._epochs:
            raise KeyError(epoch)
        return self._path(epoch).read_bytes()

    def __setitem__(self, epoch: int, checkpoint: bytes) -> None:
        self._path(epoch).write_bytes(checkpoint)
        self._epochs.add(epoch)
        if len(self._epochs) > MOST_CHECKPOINTS:
            for older in sorted(self._epochs)[:-RECENT:2]:
                del self[older]

    def __delitem__(self, epoch: int) -> None:
        self._epochs.remove(epoch)
        self._path(epoch).unlink()

    def __iter__(self) -> Iterator[int]:
        return iter(self._epochs)

    def __len__(self) -> int:
        return len(self._epochs)

    def _path(self, epoch: int) -> Path:
        return self._folder / f"epoch-{epoch}"


def _ranges(numbers: Sequence[int]) -> str:
    """`1–5, 8` for 1, 2, 3, 4, 5, 8."""
    runs = [[n for _, n in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
