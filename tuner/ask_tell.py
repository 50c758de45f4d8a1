"""Ask, report, tell: the one path on which trials come to be, run and end, for local runs and the service alike.

An ask hands out, in this order: what the same request was given before, a waiting trial (one whose worker was lost, to
run again from its start; one that was given back; one that a person enqueued), a new one if the budget allows. Each
comes with a lease; only its holder can report and tell. A trial begins with all its parameters in one transaction, and
ends in one. Whatever is called again, because nobody heard the answer, is answered as before and counted once; so all
of it is tried again while the database does not answer.
"""

from __future__ import annotations

import contextlib
import math
import operator
import threading
import uuid
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, TypeAlias, TypeGuard, cast

import optuna
import sqlalchemy as sa
from optuna.distributions import BaseDistribution, _get_single_value
from optuna.pruners import HyperbandPruner, NopPruner, SuccessiveHalvingPruner, _filter_study
from optuna.storages._rdb.models import NOT_FOUND_MSG
from optuna.trial import FrozenTrial, TrialState
from optuna.trial._trial import _LazyTrialSystemAttrs
from sqlalchemy.orm import Session

from tuner.definition import StudyDefinition
from tuner.errors import ConflictError, DefinitionError, LeaseLostError, NotFoundError, StorageError
from tuner.ledger import ENDED_BY_HAND, Command, Ending, HeldLease, Ledger, Owner, Spent, StudyState
from tuner.samplers import HeldWrites, PopulationSettings, Segment, StudyView, build_sampler, segment_of
from tuner.storage import SYSTEM_ATTRS, USER_ATTRS, Mode, in_turn, patiently
from tuner.words import plural

__all__ = [
    "Answer",
    "AskTell",
    "Lease",
    "Reply",
    "Values",
    "as_values",
    "check_values",
    "has_budget",
    "is_row",
    "known_params",
    "without_nan",
]

ENQUEUED = "tuner:enqueued:"
"""Begins the system attribute that names the request by which a trial was enqueued."""

Values: TypeAlias = float | Sequence[float]
"""What a trial is told: a number, or with several objectives one for each, in their order."""

UNBORN = -1
"""The id of a trial that is not in the database yet."""


class Answer(StrEnum):
    """What a worker is told after a report."""

    CONTINUE = "continue"
    PRUNE = "prune"
    STOP = "stop"
    """End the trial here: the study's budget is used up, or a person wants it."""
    ADJUST = "adjust"
    """Go on with other hyperparameters."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a worker is told after a report, and by whom where it was a person."""

    answer: Answer
    adjustment: Mapping[str, Any] = field(default_factory=dict)
    """With ADJUST, the new values by name."""
    by: str = ""
    """Empty where it was not a person."""


@dataclass(slots=True)
class Lease:
    """A trial in the hands of its worker, from ask to tell. `values` holds what this attempt reported, by epoch."""

    trial_id: int
    number: int
    params: dict[str, Any]
    distributions: dict[str, BaseDistribution]
    fence: int
    attempt: int = 1
    values: dict[int, float] = field(default_factory=dict)
    may_have_checkpoint: bool = field(default=False, compare=False)
    """Whether this attempt or an earlier one may have left a checkpoint."""

    @property
    def last_value(self) -> float | None:
        """What was reported last; None before the first report."""
        return self.values[max(self.values)] if self.values else None


class AskTell:
    """Ask and tell for one study.

    All methods try again while the database does not answer, and raise StorageUnavailableError if that lasts.

    Args:
        study: opened on the ledger's database, with the definition's sampler and pruner.
        definition: what the study is.
        ledger: of the same database.
        owner: who asks; by default this process.
        max_attempts: how often a trial whose worker is lost is tried before it fails.
        shared: what is reported for one trial may come in through several of these, in other processes: so a pruner is
            given what the database holds.
    """

    def __init__(
        self,
        study: optuna.Study,
        definition: StudyDefinition,
        ledger: Ledger,
        *,
        owner: str | None = None,
        max_attempts: int = 3,
        shared: bool = False,
    ) -> None:
        self.study = study
        self.definition = definition
        self.ledger = ledger
        self.owner = owner or str(Owner.here())
        self.max_attempts = max_attempts
        self.shared = shared
        self._trial_limit = definition.trials
        # a choice made for a number that another takes meanwhile is made in vain: so threads choose one after the other
        self._asking = in_turn("ask", self.url, study._study_id)
        # samplers and pruners keep what they saw, for one thread at a time; no tell waits for the model of an ask
        self._ending = build_sampler(definition.sampler, definition.context) if shared else study.sampler
        self._judging = threading.Lock()
        self._seen = threading.local()  # trials are cached by thread, so is how many had ended then

    @property
    def url(self) -> str:
        """The database's."""
        return self.ledger.database.url

    @property
    def lease_seconds(self) -> float:
        """How long a lease lasts that is not renewed."""
        return self.ledger.lease_seconds

    def ask(
        self,
        request_id: str | None = None,
        *,
        params: Mapping[str, Any] | None = None,
        owner: str | None = None,
        alone: bool = False,
    ) -> Lease | None:
        """A trial to run, or None if the budget allows no more, or the study is not open (`seen_state` says that).

        Args:
            request_id: 1 to 128 characters that name this request: asked again with the same, also after a crash,
                the same trial is handed out. By default each call is another request.
            params: begin a new trial at this point; what it leaves open, be it all, the sampler chooses.
            owner: who asks, if not the owner of all that is asked here.
            alone: None, too, while another trial of the study is in somebody's hands: so that each is chosen in the
                light of all before it, whatever the number of workers.

        Raises:
            DefinitionError: `params` is not in the study's space, or the request id is none.
            LeaseLostError: the request was handed a trial before, which was lost or given back: ask with another.
            NotFoundError: the study was deleted.
        """
        if request_id is not None and not (0 < len(request_id) <= 128 and "\0" not in request_id):
            raise DefinitionError(
                f"a request id has 1 to 128 characters, none of them NUL; got {request_id!r}"
            )
        if params is not None:
            self.definition.space.check(params)
        try:
            who = (request_id or uuid.uuid4().hex, owner or self.owner)
            request = _Request(*who, is_new=request_id is None, is_alone=alone)
            return self._ask(request, params)
        except KeyError as error:
            if error.args != (NOT_FOUND_MSG,):
                raise
            raise NotFoundError(f"study {self.study.study_name!r} is not there any more") from None

    @patiently
    def _ask(self, request: _Request, chosen: Mapping[str, Any] | None) -> Lease | None:
        with self.ledger.database.settled(), self._asking:
            return self._ask_in_turn(request, chosen)

    def _ask_in_turn(self, request: _Request, chosen: Mapping[str, Any] | None) -> Lease | None:
        while True:
            self._forget_trials()  # read anew once an ask, as Optuna does
            with self.ledger.transaction(Mode.READ) as session:
                granted = None
                if not request.is_new:
                    granted = self.ledger.granted_to(session, self._study_id, request.id)
                leases = self.ledger.open_leases(session, self._study_id)
                spent = self.ledger.spent(session, self._study_id)
                trials = self._trials()
                waiting = [trial for trial in trials if trial.state == TrialState.WAITING]
                begun = self.ledger.begun(session, self._study_id, [t._trial_id for t in waiting])
            self._seen.state = spent.state
            if granted is not None:
                return self._as_granted(request.owner, *granted)
            lost = [lease for lease in leases if lease.is_lost]
            if lost:
                self._end_lost(lost)
                continue
            if spent.state is not StudyState.OPEN or (request.is_alone and leases):
                return None
            request.is_new = False
            self._seen.ended = spent.ended
            allows = self._allows_trial(spent)
            try:
                for trial in waiting if chosen is None else ():
                    has_run = trial._trial_id in begun
                    if (has_run or allows) and (lease := self._claim(trial, request, has_run)) is not None:
                        return lease
                return self._begin(len(trials), request, chosen or {}, spent.ended) if allows else None
            except _TakenError:
                continue  # another was quicker: look again

    @property
    def seen_state(self) -> StudyState:
        """The state of the study as this thread's last ask has seen it."""
        return getattr(self._seen, "state", StudyState.OPEN)

    @patiently
    def lease(self, number: int, fence: int) -> Lease:
        """A lease that was granted before, perhaps by another process, as far as its trial has come.

        It may have ended: what is told under it says so, or is answered as before.

        Raises:
            NotFoundError: there is no such trial.
            LeaseLostError: there never was such a lease on it.
        """
        database = self.ledger.database
        with self.ledger.transaction(Mode.READ) as session:
            trial_id = database.trial_id(session, self._study_id, number)
            if trial_id is None:
                raise self._no_trial(number)
            attempt = self.ledger.attempt(session, self._study_id, trial_id, fence)
            if attempt is None:
                raise LeaseLostError(f"trial {number} of {self.study.study_name} never had a lease {fence}")
            trial = database.trial(session, trial_id)
        return Lease(
            *(trial_id, number, trial.params, trial.distributions, fence, attempt),
            values=dict(trial.intermediate_values),
            may_have_checkpoint=True,
        )

    @patiently
    def enqueue(
        self,
        params: Mapping[str, Any],
        attrs: Mapping[str, Any] | None = None,
        *,
        request_id: str | None = None,
    ) -> int:
        """Let a point chosen by hand be the next to run; the number of its trial, which waits.

        Args:
            params: any of the study's space; the sampler chooses the rest when the trial begins.
            attrs: user attributes of the trial.
            request_id: names this request: enqueued again with the same, it is the same trial.

        Raises:
            DefinitionError: `params` is not in the study's space.
            ConflictError: the budget leaves no room for it, or this request enqueued another point before.
        """
        self.definition.space.check(params)
        database = self.ledger.database
        asked = {} if request_id is None else {f"{ENQUEUED}{request_id}": True}
        with self.ledger.transaction() as session:
            database.lock_study(session, self._study_id)
            for key in asked:
                if (before := database.number_with(session, self._study_id, key)) is not None:
                    self._check_same_point(session, before, params)
                    return before
            self._check_room(session)
            number = database.next_number(session, self._study_id)
            trial_id = database.create_trial(
                *(session, self._study_id, number),
                params={},
                distributions={},
                attrs={"fixed_params": dict(params), **asked},
                state=TrialState.WAITING,
            )
            assert trial_id is not None  # under the lock
            database.set_attrs(session, USER_ATTRS, trial_id, attrs or {})
        return number

    def _check_room(self, session: Session) -> None:
        spent = self.ledger.spent(session, self._study_id)
        waiting = self.ledger.not_begun(session, self._study_id)
        if not self._has_budget(replace(spent, trials=spent.trials + waiting)):
            waits = f", {waiting} more wait" if waiting else ""
            raise ConflictError(
                f"the budget of {self.definition.name} has no room for another trial: {spent.trials} have "
                f"begun{waits}; this one would never run"
            )

    def _check_same_point(self, session: Session, number: int, params: Mapping[str, Any]) -> None:
        """See that what is enqueued again is what trial `number` was.

        Raises:
            ConflictError: it is not.
        """
        trial_id = self.ledger.database.trial_id(session, self._study_id, number)
        assert trial_id is not None
        before = self.ledger.database.trial(session, trial_id).system_attrs["fixed_params"]
        if before != dict(params):
            raise ConflictError(
                f"this request enqueued {before} before, as trial {number}; now {dict(params)}"
            )

    @patiently
    def is_finished(self) -> bool:
        """Whether no trial will be handed out any more: the budget is used up, and all that was begun has ended."""
        with self.ledger.transaction(Mode.READ) as session:
            if self._has_budget(self.ledger.spent(session, self._study_id)):
                return False
            return not self.ledger.is_unfinished(session, self._study_id)

    @patiently
    def report(self, lease: Lease, epoch: int, value: float, *, seconds: float = 0.0) -> Reply:
        """Record the value after an epoch, renew the lease, and say whether to go on; see `report_many`."""
        return self._report(lease, {epoch: value}, seconds)

    @patiently
    def report_many(self, lease: Lease, values: Mapping[int, float], *, seconds: float = 0.0) -> Reply:
        """Record values by epoch in one transaction, renew the lease, and say whether to go on.

        What was reported before is answered again and counted once. Epochs beyond the budget are not recorded. With
        several objectives it is a record of how the training goes, one number an epoch, and nobody prunes by it.

        Args:
            lease: of the trial.
            values: at least one; the pruner is asked about the last.
            seconds: what has passed since the last report.

        Raises:
            LeaseLostError: another has the trial now, or it was ended by hand.
            ConflictError: another value was reported for one of these epochs before.
            ValueError: an epoch is no whole number from 0 to 2³¹ − 1, or there is none; `seconds` are negative, or no
                finite number.
        """
        return self._report(lease, values, seconds)

    def heartbeat(self, lease: Lease) -> Reply:
        """Renew the lease without news. Says STOP or ADJUST if the next report will.

        Not tried again: the next one comes soon.

        Raises:
            LeaseLostError: another has the trial now.
        """
        with self.ledger.transaction(Mode.RELAXED) as session:
            commands = self.ledger.renew(session, self._study_id, lease.trial_id, lease.fence)
            if not commands:
                return Reply(Answer.CONTINUE)
            waiting = self.ledger.waiting(session, self._study_id, lease.trial_id)
        return _reply(waiting) or Reply(Answer.CONTINUE)

    @patiently
    def tell(
        self,
        lease: Lease,
        state: TrialState,
        values: Values | None,
        attrs: Mapping[str, Any] | None = None,
        *,
        seconds: float = 0.0,
    ) -> TrialState:
        """End the trial with its value and attributes, in one transaction; the state that it ended in.

        The same told again is answered as before. A trial that reported nothing counts as one epoch, if the budget has
        one left, so that every trial brings it nearer to its end. ±inf is a value as any other. NaN is none: a trial
        that is completed with it has failed, with the reason in its attribute `failure`; a pruned one keeps no value.

        Args:
            lease: of the trial.
            state: COMPLETE, PRUNED or FAIL.
            values: of a completed trial, or the last of a pruned one. With several objectives one for each, in their
                order, and none of a pruned trial.
            attrs: user attributes to keep with it.
            seconds: what has passed since the last report.

        Raises:
            LeaseLostError: another has the trial now, or it was ended by hand; nothing is written over.
            ConflictError: something else was told before.
            DefinitionError: there are as many values as the study has not objectives.
            ValueError: a trial is to be completed without a value; `seconds` are negative, or no finite number.
        """
        _check_seconds(seconds)
        given = as_values(values)
        check_values(self.definition, lease, state, given)
        state, given, attrs = without_nan(self.definition, state, given, attrs or {})
        told = {"state": state.name, "values": None if given is None else [repr(v) for v in given]}
        trial = self._frozen(lease)
        with self._judging:
            self._ending.after_trial(_filter_study(self.study, trial), trial, state, given)
        with self.ledger.database.settled():
            self._end(lease, state, given, attrs, told=told, seconds=seconds)
        return state

    def _end(
        self,
        lease: Lease,
        state: TrialState,
        values: Sequence[float] | None,
        attrs: Mapping[str, Any],
        *,
        told: Mapping[str, Any],
        seconds: float,
    ) -> None:
        """End a trial with what was told, unless that was told before.

        Raises:
            LeaseLostError: its lease ended in another way.
            ConflictError: something else was told before.
        """
        key = (self._study_id, lease.trial_id, lease.fence)
        try:
            with self.ledger.transaction() as session:
                epochs = 0 if lease.values else self._least_epochs(session, lease)
                self.ledger.spend(session, self._study_id, ended=1, epochs=epochs, seconds=seconds)
                self.ledger.end(session, *key, Ending.TOLD, told=told, epochs=epochs, seconds=seconds)
                if not self.ledger.database.finish_trial(session, lease.trial_id, state, values, attrs):
                    raise LeaseLostError(f"trial {lease.number}: {ENDED_BY_HAND}")
                if state is TrialState.PRUNED and self.definition.objectives:
                    # Optuna has no reports with several objectives, and its TPE does not expect them there
                    self.ledger.database.forget_reports(session, lease.trial_id)
                if lease.may_have_checkpoint:
                    self._drop_own_checkpoint(session, lease.trial_id)
        except LeaseLostError:
            with self.ledger.transaction(Mode.READ) as session:
                if not self.ledger.was_told(session, *key, told):
                    raise

    @patiently
    def release(self, lease: Lease) -> None:
        """Give the trial back unfinished: the next ask hands it out again, and no attempt is held against it.

        The same lease given back again is answered as before.

        Raises:
            LeaseLostError: the lease ended in another way.
        """
        with self.ledger.database.settled():
            try:
                with self.ledger.transaction() as session:
                    self._let_go(session, self._held(session, lease), Ending.RELEASED)
            except LeaseLostError:
                with self.ledger.transaction(Mode.READ) as session:
                    ending = self.ledger.ending(session, self._study_id, lease.trial_id, lease.fence)
                if ending is not Ending.RELEASED:
                    raise

    def reap(self, *, forgive: bool = False) -> int:
        """End the leases whose owners are gone or silent, so that no trial stays RUNNING; how many there were.

        The next asks hand their trials out. Every ask does this first, and so does the heartbeat of every trial. Not
        tried again: the next one comes soon.

        Args:
            forgive: hold no attempt against trials whose workers are gone from this host: it was not by them.
        """
        with self.ledger.transaction(Mode.READ) as session:
            leases = self.ledger.open_leases(session, self._study_id)
        forgiven = [lease for lease in leases if forgive and lease.is_gone]
        lost = [lease for lease in leases if lease.is_lost and lease not in forgiven]
        return self._end_lost(forgiven, Ending.RELEASED) + self._end_lost(lost)

    @patiently
    def open_leases(self) -> list[HeldLease]:
        """Who works on which trial at the moment."""
        with self.ledger.transaction(Mode.READ) as session:
            return self.ledger.open_leases(session, self._study_id)

    @patiently
    def spent(self) -> Spent:
        """What the study has used so far."""
        with self.ledger.transaction(Mode.READ) as session:
            return self.ledger.spent(session, self._study_id)

    def adjust(
        self, number: int, values: Mapping[str, Any], *, by: str = "hand", key: str | None = None
    ) -> None:
        """Let a running trial, wherever it runs, go on with other hyperparameters after its next report.

        Args:
            number: of the trial.
            values: new values by name; whether the objective can adjust these, the caller has to know.
            by: who wants it.
            key: 32 characters that name this command: given again with the same, it is the same.

        Raises:
            NotFoundError: there is no such trial.
            ConflictError: it is not running under a lease.
            DefinitionError: there is nothing to adjust.
        """
        if not values:
            raise DefinitionError("an adjustment needs at least one hyperparameter; got none")
        self._command(number, Command("adjust", dict(values), by, key or uuid.uuid4().hex))

    def stop(self, number: int, *, by: str = "hand", key: str | None = None) -> None:
        """Let a running trial, wherever it runs, end with its next report; arguments and errors as in `adjust`."""
        self._command(number, Command("stop", {}, by, key or uuid.uuid4().hex))

    @patiently
    def require(self, lease: Lease) -> None:
        """See that the lease is open still.

        Raises:
            LeaseLostError: another has the trial now.
        """
        with self.ledger.transaction(Mode.READ) as session:
            self.ledger.require_open(session, self._study_id, lease.trial_id, lease.fence)

    @patiently
    def user_attrs(self, lease: Lease) -> dict[str, Any]:
        """The user attributes of a trial, earlier attempts' included."""
        return dict(self.study._storage.get_trial(lease.trial_id).user_attrs)

    @patiently
    def segment(self, lease: Lease) -> Segment | None:
        """The trial's place in its population; None where it is a whole training."""
        return segment_of(self.study._storage.get_trial(lease.trial_id).system_attrs)

    @patiently
    def set_attrs(self, lease: Lease, attrs: Mapping[str, Any]) -> None:
        """Set user attributes of a running trial.

        Raises:
            LeaseLostError: another has the trial now, or it was ended by hand.
        """
        with self._leased(lease) as session:
            self.ledger.database.set_attrs(session, USER_ATTRS, lease.trial_id, attrs)

    @patiently
    def rewind(self, lease: Lease, epoch: int, attrs: Mapping[str, Any] | None = None) -> None:
        """Forget what was reported after `epoch`: the training goes on from there. What was spent stays spent.

        Args:
            lease: of the trial.
            epoch: the last that stays.
            attrs: user attributes to set with it, in one transaction.

        Raises:
            LeaseLostError: another has the trial now, or it was ended by hand.
        """
        with self._leased(lease) as session:
            self.ledger.database.forget_reports(session, lease.trial_id, after=epoch)
            self.ledger.database.set_attrs(session, USER_ATTRS, lease.trial_id, attrs or {})
        lease.values = {e: value for e, value in lease.values.items() if e <= epoch}

    @patiently
    def save_checkpoint(self, lease: Lease, epoch: int, data: bytes) -> None:
        """Keep the training's state after `epoch`, instead of an earlier one.

        It is for the trial's next attempt, and deleted with the trial's end; a population's is for other trials, and
        stays until `drop_checkpoints`.

        Raises:
            LeaseLostError: another has the trial now, or it was ended by hand.
        """
        lease.may_have_checkpoint = True
        with self._leased(lease) as session:
            self.ledger.save_checkpoint(session, self._study_id, lease.trial_id, epoch, data)

    @patiently
    def checkpoint(self, number: int) -> tuple[int, bytes] | None:
        """Epoch and state of the last checkpoint of trial `number`; None if there is none.

        Raises:
            NotFoundError: there is no such trial.
        """
        with self.ledger.transaction(Mode.READ) as session:
            return self.ledger.checkpoint(session, self._study_id, self._trial(number)._trial_id)

    @patiently
    def drop_checkpoints(self, needed: Callable[[Sequence[FrozenTrial]], Container[int]]) -> None:
        """Delete checkpoints of ended trials.

        Args:
            needed: the numbers of those to keep, given the study's trials. No trial begins before it is done.
        """
        with self.ledger.transaction() as session:
            self.ledger.database.lock_study(session, self._study_id)
            self._forget_trials()
            trials = self._trials()
            kept = needed(trials)
            ended = {t._trial_id for t in trials if t.state.is_finished() and t.number not in kept}
            for trial_id in self.ledger.checkpointed(session, self._study_id):
                if trial_id in ended:
                    self.ledger.drop_checkpoint(session, self._study_id, trial_id)

    @contextmanager
    def _leased(self, lease: Lease) -> Iterator[Session]:
        """A transaction under a lease, which it renews."""
        with self.ledger.transaction() as session:
            self.ledger.renew(session, self._study_id, lease.trial_id, lease.fence)
            yield session

    def _held(self, session: Session, lease: Lease | HeldLease) -> HeldLease:
        """The lease as the ledger has it. The books are locked first: until the end, nothing more is spent under it.

        Raises:
            LeaseLostError: it has ended.
        """
        self.ledger.spend(session, self._study_id)
        return self.ledger.held(session, self._study_id, lease.trial_id, lease.fence)

    def _least_epochs(self, session: Session, lease: Lease) -> int:
        """What the end of a trial counts as: an epoch where nothing was reported and the budget has room, or none."""
        spent = self.ledger.spend(session, self._study_id)
        held = self.ledger.held(session, self._study_id, lease.trial_id, lease.fence)
        return int(held.epochs == 0 and self._room(spent) > 0)

    @property
    def _study_id(self) -> int:
        return self.study._study_id

    def _is_exhausted(self, spent: Spent) -> bool:
        return _is_exhausted(self.definition, spent)

    def _allows_trial(self, spent: Spent) -> bool:
        return spent.state is StudyState.OPEN and self._has_budget(spent)

    def _has_budget(self, spent: Spent) -> bool:
        return has_budget(self.definition, spent, self._trial_limit)

    def _as_granted(
        self, owner: str, trial_id: int, fence: int, attempt: int, ending: Ending | None
    ) -> Lease:
        """The lease that a request was granted before, as far as it has come.

        It is this owner's from now on: the one who asked before may be gone.
        """
        if ending in (Ending.LOST, Ending.RELEASED):
            raise LeaseLostError(f"the trial of this request is no longer its own: it was {ending.value}")
        if ending is None:
            with self.ledger.transaction() as session:
                self.ledger.adopt(session, self._study_id, trial_id, fence, owner)
        trial = self.ledger.database.get_trial(trial_id)
        values = dict(trial.intermediate_values)
        return Lease(
            *(trial_id, trial.number, trial.params, trial.distributions, fence, attempt, values),
            may_have_checkpoint=True,
        )

    def _drop_own_checkpoint(self, session: Session, trial_id: int) -> None:
        """Forget the checkpoint that a trial left for its own next attempt. Those of a population are for others."""
        if not isinstance(self.definition.sampler, PopulationSettings):
            self.ledger.drop_checkpoint(session, self._study_id, trial_id)

    def _end_lost(self, lost: list[HeldLease], ending: Ending = Ending.LOST) -> int:
        """Let the trials of lost leases wait for others, those on their last attempt fail.

        Its holder may be heard of again since a lease was seen as lost: so each is looked at anew, under the lock.
        """
        ended = 0
        for lease in lost:
            with contextlib.suppress(LeaseLostError), self.ledger.transaction() as session:
                held = self._held(session, lease)
                if held.is_lost:
                    self._let_go(session, held, ending)
                    ended += 1
        return ended

    def _let_go(self, session: Session, lease: HeldLease, ending: Ending) -> None:
        """End a lease without a result; what the attempt spent is given back, as it runs again from its start.

        Raises:
            LeaseLostError: it has ended already.
        """
        database, key = self.ledger.database, (self._study_id, lease.trial_id, lease.fence)
        if not database.is_running(session, lease.trial_id, lock=True):  # ended by hand, then left alone
            self.ledger.spend(session, self._study_id, ended=1)
            self.ledger.end(session, *key, Ending.BY_HAND)
        elif ending is Ending.LOST and lease.attempt >= self.max_attempts:
            self.ledger.spend(session, self._study_id, ended=1)
            self.ledger.end(session, *key, ending)
            attempts = self.ledger.history(session, self._study_id, lease.trial_id)
            reason = f"its worker was lost {plural(lease.attempt, 'time')}, last {lease.owner}"
            attrs = {"failure": reason, "attempts": lease.attempt, "attempt_history": attempts}
            database.finish_trial(session, lease.trial_id, TrialState.FAIL, None, attrs)
            self._drop_own_checkpoint(session, lease.trial_id)
        else:
            self.ledger.spend(session, self._study_id, epochs=-lease.epochs, seconds=-lease.seconds)
            self.ledger.end(session, *key, ending)
            database.forget_reports(session, lease.trial_id)
            database.move_trial(session, lease.trial_id, TrialState.RUNNING, TrialState.WAITING)

    def _claim(self, trial: FrozenTrial, request: _Request, has_run: bool) -> Lease | None:
        """A lease on a waiting trial; None if it was ended as impossible, or the budget does not allow it.

        One that has run before runs again with its parameters. Those of another are checked, and completed by the
        sampler.

        Raises:
            _TakenError: another was quicker.
        """
        database, trial_id = self.ledger.database, trial._trial_id
        params, distributions = trial.params, trial.distributions
        attrs: dict[str, Any] = {}
        if not has_run:
            given = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
            try:
                if len(self.definition.space):
                    self.definition.space.check(given)
            except DefinitionError as error:
                failure = {"failure": f"enqueued outside the space: {error}"}
                with self.ledger.transaction() as session:
                    database.finish_trial(session, trial_id, TrialState.FAIL, None, failure)
                return None
            params, distributions, attrs = self._choose(trial.number, given)
        with self._taking() as session:
            last = self.ledger.last_lease(session, self._study_id, trial_id)
            spent = self.ledger.spend(session, self._study_id, trials=0 if last else 1)
            if spent.state is not StudyState.OPEN or (last is None and not self._allowed(spent)):
                session.rollback()
                return None
            if not database.move_trial(session, trial_id, TrialState.WAITING, TrialState.RUNNING):
                raise _TakenError
            chosen = {name: value for name, value in params.items() if name not in trial.params}
            database.set_params(session, trial_id, chosen, distributions)
            database.set_attrs(session, SYSTEM_ATTRS, trial_id, attrs)
            lease = Lease(trial_id, trial.number, params, distributions, fence=1)
            if last is not None:
                fence, attempt, ending = last
                if ending is None:  # begun, and ended by a later look, since this transaction began
                    raise _TakenError
                lease.fence, lease.attempt = fence + 1, attempt + (ending is Ending.LOST)
                lease.may_have_checkpoint = True
            self._grant(session, lease, request)
        return lease

    def _begin(self, number: int, request: _Request, given: Mapping[str, Any], ended: int) -> Lease | None:
        """A lease on a new trial; None if others have used up the budget meanwhile.

        What a sampler chooses depends on the trial's number, so the number must be known before the trial exists: if
        another asker takes it meanwhile, the choice is made again for the next one. So it is where the trial is to
        continue another and more than `ended` trials have ended by now: the other's checkpoint may be gone.

        Raises:
            _TakenError: another has taken the number, or the choice is out of date.
        """
        params, distributions, attrs = self._choose(number, given)
        with self._taking() as session:
            database = self.ledger.database
            database.lock_study(session, self._study_id)
            trial_id = database.create_trial(
                session, self._study_id, number, params=params, distributions=distributions, attrs=attrs
            )
            if trial_id is None:
                raise _TakenError
            spent = self.ledger.spend(session, self._study_id, trials=1)
            if not self._allowed(spent):
                session.rollback()
                return None
            segment = segment_of(attrs)
            if segment is not None and segment.parent is not None and spent.ended != ended:
                raise _TakenError
            lease = Lease(trial_id, number, params, distributions, fence=1)
            self._grant(session, lease, request)
        return lease

    @contextmanager
    def _taking(self) -> Iterator[Session]:
        """A transaction that takes a trial; the same request in another thread or process may have been quicker."""
        try:
            with self.ledger.transaction() as session:
                yield session
        except StorageError as error:
            if isinstance(error.__cause__, sa.exc.IntegrityError):
                raise _TakenError from error
            raise

    def _allowed(self, spent: Spent) -> bool:
        """Whether a trial that `spent` counts already may begin."""
        return self._allows_trial(replace(spent, trials=spent.trials - 1))

    def _grant(self, session: Session, lease: Lease, request: _Request) -> None:
        self.ledger.grant(
            session,
            self._study_id,
            lease.trial_id,
            request.owner,
            request.id,
            fence=lease.fence,
            attempt=lease.attempt,
        )

    def _report(self, lease: Lease, values: Mapping[int, float], seconds: float) -> Reply:
        _check_seconds(seconds)
        values = {_checked(epoch): float(value) for epoch, value in sorted(values.items())}
        if not values:
            raise ValueError("a report needs at least one epoch")
        known: dict[int, float] | None = None
        while True:
            try:
                new, reply = self._record(lease, values, known, seconds)
                break
            except _LookFirstError:
                known = self._known(lease, values)
        lease.values |= (known or {}) | new
        if reply.answer is Answer.CONTINUE and self._should_prune(lease):
            return Reply(Answer.PRUNE)
        return reply

    def _known(self, lease: Lease, values: Mapping[int, float]) -> dict[int, float]:
        """Those of the values that were reported before.

        Raises:
            ConflictError: as other values.
        """
        with self.ledger.transaction(Mode.READ) as session:
            before = self.ledger.database.reports(session, lease.trial_id)
        known = {epoch: before[epoch] for epoch in values if epoch in before}
        for epoch, value in known.items():
            if value != values[epoch] and not (math.isnan(value) and math.isnan(values[epoch])):
                raise ConflictError(
                    f"trial {lease.number}: {value} was reported for epoch {epoch} before; now {values[epoch]}"
                )
        return known

    def _record(
        self, lease: Lease, values: Mapping[int, float], known: Mapping[int, float] | None, seconds: float
    ) -> tuple[dict[int, float], Reply]:
        """Record values; those that are new and within the budget, and the reply.

        Args:
            lease: of the trial.
            values: by epoch.
            known: which of them were reported before; None before that was looked up.
            seconds: counted if any is new.

        Raises:
            _LookFirstError: some were reported before, or not all are within the budget; nothing is recorded.
        """
        database, key = self.ledger.database, (self._study_id, lease.trial_id, lease.fence)
        new, last = dict(values), max(values)
        # a worker outlives its database's crash only where that is a server: there, what it was told must last
        mode = Mode.RELAXED if database.is_sqlite else Mode.DURABLE
        with self.ledger.transaction(mode) as session:
            if known is not None:
                room = self._room(self.ledger.spend(session, self._study_id))
                new = {epoch: value for epoch, value in values.items() if epoch not in known}
                new = dict(list(new.items())[: int(min(room, len(new)))])
                seconds = seconds if new else 0.0
            spent = self.ledger.spend(session, self._study_id, epochs=len(new), seconds=seconds)
            before = replace(spent, epochs=spent.epochs - len(new), seconds=spent.seconds - seconds)
            if known is None and self._room(before) < len(new):
                raise _LookFirstError
            commands = self.ledger.renew(session, *key, epochs=len(new), seconds=seconds)
            if new and not database.report_values(session, lease.trial_id, new):
                raise _LookFirstError
            if self._is_exhausted(spent):
                return new, Reply(Answer.STOP)
            delivered: list[Command] = []
            if commands:
                delivered = self.ledger.deliver(session, *key, last)
            elif not new:
                delivered = self.ledger.delivered(session, *key, last)
            if self._is_judged and self.shared:  # some of it may have been reported through another process
                lease.values = database.reports(session, lease.trial_id)
        self._notice(spent)
        return new, _reply(delivered) or Reply(Answer.CONTINUE)

    def _room(self, spent: Spent) -> float:
        """For how many more epochs the budget has room."""
        if self._is_exhausted(spent):
            return 0
        budget = self.definition.budget.epochs
        return math.inf if budget is None else budget - spent.epochs

    @patiently
    def _command(self, number: int, command: Command) -> None:
        trial_id = self._trial(number)._trial_id
        with self.ledger.transaction() as session:
            if not self.ledger.command(session, self._study_id, trial_id, command):
                session.rollback()
                raise ConflictError(
                    f"{self.study.study_name}: nobody is running trial {number}, so nobody can {command.kind} it"
                )

    def _trial(self, number: int) -> FrozenTrial:
        for trial in self.study.get_trials(deepcopy=False):
            if trial.number == number:
                return trial
        raise self._no_trial(number)

    def _no_trial(self, number: int) -> NotFoundError:
        return NotFoundError(f"{self.study.study_name} has no trial {number}")

    def _choose(
        self, number: int, given: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, BaseDistribution], dict[str, Any]]:
        """Parameters, distributions and the sampler's own attributes for a trial that is not stored yet."""
        if not len(self.definition.space):  # the objective suggests as it goes
            return {}, {}, {}
        held = HeldWrites(UNBORN, {"fixed_params": dict(given)} if given else {})  # as Optuna says it
        trial = _running_trial(UNBORN, number, {}, {}, held.system_attrs)
        study = StudyView(_filter_study(self.study, trial), held=held)
        sampler = self.study.sampler
        sampler.before_trial(study, trial)
        relative = sampler.sample_relative(study, trial, sampler.infer_relative_search_space(study, trial))
        params: dict[str, Any] = {}
        distributions: dict[str, BaseDistribution] = {}
        for name, parameter in self.definition.space.items():
            if not parameter.is_active(params):
                continue
            distribution = parameter.distribution
            if name in given:
                value = given[name]
            elif distribution.single():
                value = _get_single_value(distribution)
            elif name in relative and distribution._contains(distribution.to_internal_repr(relative[name])):
                value = relative[name]
            else:
                value = sampler.sample_independent(study, trial, name, distribution)
            params[name], distributions[name] = value, distribution
            trial.params, trial.distributions = dict(params), dict(distributions)
        return params, distributions, held.system_attrs

    @property
    def _is_judged(self) -> bool:
        return not isinstance(self.study.pruner, NopPruner)

    def _should_prune(self, lease: Lease) -> bool:
        if not self._is_judged:
            return False
        pruner = self.study.pruner
        reads_running = isinstance(pruner, (SuccessiveHalvingPruner, HyperbandPruner))
        study = self.study if reads_running else StudyView(self.study, remembering=True)
        with self._judging:
            return pruner.prune(study, self._frozen(lease))

    def _trials(self) -> list[FrozenTrial]:
        return self.study._get_trials(deepcopy=False, use_cache=True)

    def _forget_trials(self) -> None:
        """Let the next look at the trials read them from the database."""
        self.study._thread_local.cached_all_trials = None

    def _notice(self, spent: Spent) -> None:
        """Forget the trials if others have ended since they were read."""
        if spent.ended != getattr(self._seen, "ended", -1):
            self._seen.ended = spent.ended
            self._forget_trials()

    def _frozen(self, lease: Lease) -> FrozenTrial:
        attrs = cast("dict[str, Any]", _LazyTrialSystemAttrs(lease.trial_id, self.study._storage))
        trial = _running_trial(lease.trial_id, lease.number, lease.params, lease.distributions, attrs)
        trial.intermediate_values = dict(lease.values)
        return trial


def has_budget(definition: StudyDefinition, spent: Spent, trial_limit: int | None) -> bool:
    """Whether a study that has `spent` may begin another trial; `trial_limit` is the definition's `trials`."""
    return not _is_exhausted(definition, spent) and (trial_limit is None or spent.trials < trial_limit)


def _is_exhausted(definition: StudyDefinition, spent: Spent) -> bool:
    budget = definition.budget
    return (budget.epochs is not None and spent.epochs >= budget.epochs) or (
        budget.seconds is not None and spent.seconds >= budget.seconds
    )


def known_params(trial: FrozenTrial) -> dict[str, Any]:
    """The parameters of a trial; of one that waits, those by which it was enqueued."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def as_values(values: Values | None) -> list[float] | None:
    """What is told as a list, a number for each objective."""
    if values is None:
        return None
    row: Sequence[Any] = values if is_row(values) else [values]
    return [float(value) for value in row]


def is_row(values: Any) -> TypeGuard[Sequence[Any]]:
    """Whether they are values in an order: a sequence or an array, but no text, and no set."""
    is_sequence = isinstance(values, Sequence) and not isinstance(values, str | bytes)
    return is_sequence or getattr(values, "ndim", 0) == 1


def check_values(
    definition: StudyDefinition, lease: Lease, state: TrialState, values: Sequence[float] | None
) -> None:
    """Check what a trial is to end with.

    Raises:
        DefinitionError: there are more or fewer values than objectives, or a pruned trial of several has any.
        ValueError: a completed trial has no value.
    """
    if values is None:
        if state is TrialState.COMPLETE:
            raise ValueError(f"a completed trial needs a number as its value; trial {lease.number} has none")
        return
    wanted = len(definition.directions)
    if state is TrialState.PRUNED and wanted > 1:
        raise DefinitionError(
            f"a pruned trial of several objectives has no values, as in Optuna; got {_listed(values)}"
        )
    if len(values) != wanted:
        named = f" ({', '.join(o.name for o in definition.objectives)})" if definition.objectives else ""
        objectives = "1 objective" if wanted == 1 else f"{wanted} objectives"
        raise DefinitionError(
            f"a value for each objective, and {definition.name} has {objectives}{named}; got {_listed(values)}"
        )


def without_nan(
    definition: StudyDefinition, state: TrialState, values: list[float] | None, attrs: Mapping[str, Any]
) -> tuple[TrialState, list[float] | None, dict[str, Any]]:
    """What a trial is told as of whose values one may be NaN, which is none; see `AskTell.tell`."""
    missing = [place for place, value in enumerate(values or ()) if math.isnan(value)]
    if not missing:
        return state, values, dict(attrs)
    if state is not TrialState.COMPLETE:
        return state, None, dict(attrs)
    names = [o.name for o in definition.objectives] or ["the value"]
    verb = "is not a number" if len(missing) == 1 else "are not numbers"
    return TrialState.FAIL, None, {"failure": f"{', '.join(names[i] for i in missing)} {verb}", **attrs}


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values) or "none"


@dataclass(slots=True)
class _Request:
    """What asks for a trial. `is_new`: nothing can have been granted to it yet."""

    id: str
    owner: str
    is_new: bool
    is_alone: bool


class _TakenError(Exception):
    """Another asker has taken the trial or its number."""


class _LookFirstError(Exception):
    """What was reported before has to be known first."""


def _check_seconds(seconds: float) -> None:
    if not 0 <= seconds < math.inf:
        raise ValueError(f"seconds must be finite and at least 0; got {seconds}")


def _checked(epoch: int) -> int:
    epoch = operator.index(epoch)
    if not 0 <= epoch < 2**31:
        raise ValueError(f"an epoch's number lies in 0 … 2147483647; got {epoch}")
    return epoch


def _reply(commands: Sequence[Command]) -> Reply | None:
    """What several commands come to: any stop stops, of two adjustments of one hyperparameter the later counts."""
    by = ", ".join(dict.fromkeys(command.by for command in commands if command.by))
    if any(command.kind == "stop" for command in commands):
        return Reply(Answer.STOP, by=by)
    adjustment = {name: value for command in commands for name, value in command.values.items()}
    return Reply(Answer.ADJUST, adjustment, by) if adjustment else None


def _running_trial(
    trial_id: int,
    number: int,
    params: dict[str, Any],
    distributions: dict[str, BaseDistribution],
    system_attrs: dict[str, Any],
) -> FrozenTrial:
    return FrozenTrial(
        number=number,
        state=TrialState.RUNNING,
        value=None,
        datetime_start=datetime.now(),
        datetime_complete=None,
        params=params,
        distributions=distributions,
        user_attrs={},
        system_attrs=system_attrs,
        intermediate_values={},
        trial_id=trial_id,
    )
