"""Ask, report, tell: the one path on which trials come to be, run and end, for local runs and the service alike.

An ask hands out, in this order: a trial whose worker was lost (the same trial, to run again from its start), a waiting
trial that a person enqueued, a new one if the budget allows. Each comes with a lease; only its holder can report and
tell. A trial begins with all its parameters in one transaction, and ends in one.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, cast

import optuna
from optuna.distributions import BaseDistribution, _get_single_value
from optuna.pruners import HyperbandPruner, NopPruner, SuccessiveHalvingPruner, _filter_study
from optuna.trial import FrozenTrial, TrialState
from optuna.trial._trial import _LazyTrialSystemAttrs
from sqlalchemy.orm import Session

from tuner.definition import StudyDefinition
from tuner.errors import DefinitionError, LeaseLostError
from tuner.ledger import LeaseRow, Ledger, Owner, Spent
from tuner.samplers import HeldWrites, StudyView
from tuner.storage import SYSTEM_ATTRS

__all__ = ["Answer", "AskTell", "Lease"]

UNBORN = -1
"""The id of a trial that is not in the database yet."""


class Answer(StrEnum):
    """What a worker is told after a report."""

    CONTINUE = "continue"
    PRUNE = "prune"
    STOP = "stop"
    """The study's budget is used up: end the trial here."""


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

    @property
    def last_value(self) -> float | None:
        """What was reported last; None before the first report."""
        return self.values[max(self.values)] if self.values else None


class AskTell:
    """Ask and tell for one study.

    Args:
        study: opened on the ledger's database, with the definition's sampler and pruner.
        definition: what the study is.
        ledger: of the same database.
        owner: who asks; by default this process.
        max_attempts: how often a trial whose worker is lost is tried before it fails.
    """

    def __init__(
        self,
        study: optuna.Study,
        definition: StudyDefinition,
        ledger: Ledger,
        *,
        owner: str | None = None,
        max_attempts: int = 3,
    ) -> None:
        self.study = study
        self.definition = definition
        self.ledger = ledger
        self.owner = owner or str(Owner.here())
        self.max_attempts = max_attempts
        self._trial_limit = definition.trials
        self._ended = -1

    def ask(self) -> Lease | None:
        """A trial to run, or None if the budget allows no more."""
        self._forget_trials()  # read anew once an ask, as Optuna does
        with self._locked() as session:
            lost = self._take_over(session)
            spent = self.ledger.spent(session, self._study_id)
        if lost is not None:
            trial = self.ledger.database.get_trial(lost.trial_id)
            params, distributions = trial.params, trial.distributions
            return Lease(lost.trial_id, trial.number, params, distributions, lost.fence, lost.attempt)
        self._ended = spent.ended
        if not self._allows_trial(spent):
            return None
        return self._claim_waiting() or self._begin()

    def report(self, lease: Lease, epoch: int, value: float, *, seconds: float = 0.0) -> Answer:
        """Record the value after an epoch that was not reported yet, renew the lease, and say whether to go on.

        `seconds` is what has passed since the last report. An epoch beyond the budget is not recorded.

        Raises:
            LeaseLostError: another has the trial now, or it was ended by hand.
            ValueError: `epoch` is no whole number from 0 to 2³¹ − 1.
        """
        epoch, value = operator.index(epoch), float(value)
        if not 0 <= epoch < 2**31:
            raise ValueError(f"an epoch's number lies in 0 … 2147483647; got {epoch}")
        with self._locked() as session:
            self._require_running(session, lease)
            spent = self.ledger.spent(session, self._study_id)
            if self._is_exhausted(spent):
                return Answer.STOP
            self.ledger.renew(session, self._study_id, lease.trial_id, lease.fence, epochs=1, seconds=seconds)
            self.ledger.database.report_value(session, lease.trial_id, epoch, value)
        lease.values[epoch] = value
        if self._is_exhausted(replace(spent, epochs=spent.epochs + 1, seconds=spent.seconds + seconds)):
            return Answer.STOP
        self._notice(spent)
        return Answer.PRUNE if self._should_prune(lease) else Answer.CONTINUE

    def heartbeat(self, lease: Lease) -> None:
        """Renew the lease without news.

        Raises:
            LeaseLostError: another has the trial now.
        """
        with self.ledger.transaction() as session:
            self.ledger.renew(session, self._study_id, lease.trial_id, lease.fence)

    def tell(
        self,
        lease: Lease,
        state: TrialState,
        value: float | None,
        attrs: Mapping[str, Any] | None = None,
        *,
        seconds: float = 0.0,
    ) -> None:
        """End the trial with its value and attributes, in one transaction.

        `seconds` is what has passed since the last report. A trial that reported nothing counts as one epoch, so that
        every trial brings a budget nearer to its end. NaN is no value: a pruned trial is stored without.

        Raises:
            LeaseLostError: another has the trial now, or it was ended by hand; nothing is written over.
            ValueError: a trial is to be completed without a value, or with NaN.
        """
        value = None if value is None or math.isnan(value) else float(value)
        if state is TrialState.COMPLETE and value is None:
            raise ValueError(f"a completed trial needs a number as its value; trial {lease.number} has none")
        values = None if value is None else [value]
        trial = self._frozen(lease)
        self.study.sampler.after_trial(_filter_study(self.study, trial), trial, state, values)
        unreported = 0 if lease.values else 1
        with self._locked() as session:
            self._require_running(session, lease)
            self.ledger.end(
                session, self._study_id, lease.trial_id, lease.fence, epochs=unreported, seconds=seconds
            )
            self.ledger.database.finish_trial(session, lease.trial_id, state, values, attrs or {})

    def release(self, lease: Lease) -> None:
        """Give the trial back unfinished: the next ask hands it out again.

        Raises:
            LeaseLostError: another has the trial now.
        """
        with self.ledger.transaction() as session:
            self.ledger.expire(session, lease.trial_id, lease.fence)

    def spent(self) -> Spent:
        """What the study has used so far."""
        with self.ledger.transaction() as session:
            return self.ledger.spent(session, self._study_id)

    @contextmanager
    def _locked(self) -> Iterator[Session]:
        """A transaction that no other of this study runs beside."""
        with self.ledger.transaction() as session:
            self.ledger.database.lock_study(session, self._study_id)
            yield session

    def _require_running(self, session: Session, lease: Lease) -> None:
        if not self.ledger.database.is_running(session, lease.trial_id):
            raise LeaseLostError(f"trial {lease.number} has ended already, perhaps by hand")

    @property
    def _study_id(self) -> int:
        return self.study._study_id

    def _is_exhausted(self, spent: Spent) -> bool:
        budget = self.definition.budget
        return (budget.epochs is not None and spent.epochs >= budget.epochs) or (
            budget.seconds is not None and spent.seconds >= budget.seconds
        )

    def _allows_trial(self, spent: Spent) -> bool:
        return not self._is_exhausted(spent) and (
            self._trial_limit is None or spent.trials < self._trial_limit
        )

    def _take_over(self, session: Session) -> LeaseRow | None:
        """The lease on a trial whose worker is lost, now ours; None if there is none."""
        for row in self.ledger.open_leases(session, self._study_id):
            owner = Owner.parse(row.owner)
            if not (row.is_expired or (owner is not None and owner.is_gone())):
                continue
            if not self.ledger.database.is_running(session, row.trial_id):  # ended by hand, then left alone
                self.ledger.end(session, self._study_id, row.trial_id, row.fence)
                continue
            if row.attempt >= self.max_attempts:
                self._give_up(session, row)
                continue
            taken = self.ledger.take_over(session, self._study_id, row, self.owner)
            if taken is not None:
                self.ledger.database.forget_reports(session, row.trial_id)
                return taken
        return None

    def _give_up(self, session: Session, row: LeaseRow) -> None:
        reason = f"its worker was lost {row.attempt} times, last {row.owner}"
        self.ledger.end(session, self._study_id, row.trial_id, row.fence)
        self.ledger.database.finish_trial(
            session, row.trial_id, TrialState.FAIL, None, {"failure": reason, "attempts": row.attempt}
        )

    def _claim_waiting(self) -> Lease | None:
        for trial in self._trials():
            if trial.state != TrialState.WAITING:
                continue
            database = self.ledger.database
            given = trial.system_attrs.get("fixed_params", {})
            try:
                if len(self.definition.space):
                    self.definition.space.check(given)
            except DefinitionError as error:
                with self._locked() as session:
                    if database.claim_trial(session, trial._trial_id):
                        failure = {"failure": f"enqueued outside the space: {error}"}
                        database.finish_trial(session, trial._trial_id, TrialState.FAIL, None, failure)
                continue
            params, distributions, attrs = self._choose(trial.number, given)
            with self._locked() as session:
                if not self._allows_trial(self.ledger.spent(session, self._study_id)):
                    return None
                if not database.claim_trial(session, trial._trial_id):
                    continue  # another was quicker
                database.set_params(session, trial._trial_id, params, distributions)
                database.set_attrs(session, SYSTEM_ATTRS, trial._trial_id, attrs)
                fence = self.ledger.grant(session, self._study_id, trial._trial_id, self.owner)
            return Lease(trial._trial_id, trial.number, params, distributions, fence)
        return None

    def _begin(self) -> Lease | None:
        """Begin a new trial; None if others have used up the budget meanwhile.

        What a sampler chooses depends on the trial's number, so the number must be known before the trial exists: if
        another asker takes it meanwhile, the choice is made again for the next one.
        """
        while True:
            number = len(self._trials())
            params, distributions, attrs = self._choose(number, {})
            template = _running_trial(UNBORN, number, params, distributions, attrs)
            with self._locked() as session:
                trial_id = self.ledger.database.create_trial(session, self._study_id, number, template)
                if trial_id is not None:
                    if not self._allows_trial(self.ledger.spent(session, self._study_id)):
                        session.rollback()
                        return None
                    fence = self.ledger.grant(session, self._study_id, trial_id, self.owner)
                    return Lease(trial_id, number, params, distributions, fence)
            self._forget_trials()

    def _choose(
        self, number: int, given: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, BaseDistribution], dict[str, Any]]:
        """Parameters, distributions and the sampler's own attributes for a trial that is not stored yet."""
        if not len(self.definition.space):  # the objective suggests as it goes
            return {}, {}, {}
        held = HeldWrites(UNBORN)
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

    def _should_prune(self, lease: Lease) -> bool:
        pruner = self.study.pruner
        if isinstance(pruner, NopPruner):
            return False
        reads_running = isinstance(pruner, (SuccessiveHalvingPruner, HyperbandPruner))
        study = self.study if reads_running else StudyView(self.study, remembering=True)
        return pruner.prune(study, self._frozen(lease))

    def _trials(self) -> list[FrozenTrial]:
        return self.study._get_trials(deepcopy=False, use_cache=True)

    def _forget_trials(self) -> None:
        """Let the next look at the trials read them from the database."""
        self.study._thread_local.cached_all_trials = None

    def _notice(self, spent: Spent) -> None:
        """Forget the trials if others have ended since they were read."""
        if spent.ended != self._ended:
            self._ended = spent.ended
            self._forget_trials()

    def _frozen(self, lease: Lease) -> FrozenTrial:
        attrs = cast("dict[str, Any]", _LazyTrialSystemAttrs(lease.trial_id, self.study._storage))
        trial = _running_trial(lease.trial_id, lease.number, lease.params, lease.distributions, attrs)
        trial.intermediate_values = dict(lease.values)
        return trial


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
