"""Runs as the database knows them: whether a run goes on, what its workers do now, and what others hold at its end.

Workers may be anywhere: threads, processes, machines of a cluster. What all of them can see is the database, so that is
where a run says that it goes on: a row for as long as it does. A worker that finds the row gone gives its trial back
after the epoch, and a task that reaches a worker late does nothing.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import cast

import sqlalchemy as sa
from optuna.storages._rdb import models
from sqlalchemy.orm import Session

from tuner.ledger import HeldLease, Ledger, Owner
from tuner.storage import Mode, patiently
from tuner.tables import LeaseRow, RunRow

__all__ = ["Runs", "Working", "short"]

_log = logging.getLogger(__name__)

POLL_SECONDS = 0.5

_runs = cast("sa.Table", RunRow.__table__)
_leases = cast("sa.Table", LeaseRow.__table__)
_studies = cast("sa.Table", models.StudyModel.__table__)
_trials = cast("sa.Table", models.TrialModel.__table__)


@dataclass(frozen=True, slots=True)
class Working:
    """A trial that a worker has in hand. `epochs` is what it has reported so far; `owner` the worker, for people."""

    study: str
    number: int
    epochs: int
    owner: str = ""


class Runs:
    """The runs in one database."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    @property
    def url(self) -> str:
        """The database's."""
        return self._ledger.database.url

    @patiently
    def begin(self) -> str:
        """Say that a run of this process begins. Returns its id."""
        run_id = uuid.uuid4().hex
        with self._ledger.transaction() as session:
            for other, owner in session.execute(sa.select(_runs.c.run_id, _runs.c.owner)).all():
                if _is_gone(owner):  # it was killed, and could not say that it ends
                    session.execute(sa.delete(_runs).where(_runs.c.run_id == other))
            session.execute(sa.insert(_runs).values(run_id=run_id, owner=str(Owner.here())))
        return run_id

    @patiently
    def end(self, run_id: str) -> None:
        """Say that the run is over: its workers stop after the epoch they are in."""
        with self._ledger.transaction() as session:
            session.execute(sa.delete(_runs).where(_runs.c.run_id == run_id))

    @patiently
    def goes_on(self, run_id: str) -> bool:
        """Whether the run is not over."""
        with self._ledger.transaction(Mode.READ) as session:
            query = sa.select(_runs.c.run_id).where(_runs.c.run_id == run_id)
            return session.execute(query).first() is not None

    @patiently
    def working(self, studies: Sequence[str]) -> list[Working]:
        """What living workers do now, here or elsewhere, in these studies: by trial, the oldest first."""
        query = (
            sa.select(_studies.c.study_name, _studies.c.study_id, _trials.c.trial_id, _trials.c.number)
            .join_from(_leases, _trials, _trials.c.trial_id == _leases.c.trial_id)
            .join(_studies, _studies.c.study_id == _leases.c.study_id)
            .where(_leases.c.ending.is_(None))
            .order_by(_leases.c.trial_id)
        )
        with self._ledger.transaction(Mode.READ) as session:
            wanted = set(studies)
            trials = [row for row in session.execute(query).all() if row.study_name in wanted]
            leased = self._leased_in(session, {row.study_name: row.study_id for row in trials})
        held = {row.trial_id: row for _, row in leased if not row.is_lost}
        return [
            Working(row.study_name, row.number, held[row.trial_id].epochs, short(held[row.trial_id].owner))
            for row in trials
            if row.trial_id in held
        ]

    def settle(self, studies: Sequence[str], sleep: Callable[[float], None] = time.sleep) -> list[str]:
        """Wait until nobody may have left a trial of these studies behind; returns those to ask again.

        For a run that has no trial running itself. Each trial that is leased still is watched until it ends, until its
        lease runs out or its process is gone (it is to run again: its study is returned at once), or until the lease is
        renewed: then its owner lives and keeps it. So this takes no longer than a lease lasts.
        """
        ids = self._study_ids(studies)
        before: dict[int, HeldLease] = {}
        living: set[int] = set()
        for polls in count():
            leased = self._leased(ids)
            if lost := [name for name, row in leased if row.is_lost]:
                return list(dict.fromkeys(lost))
            for name, row in leased:
                if polls == 4:
                    _log.warning("%s: waiting for a trial in the hands of %s", name, short(row.owner))
                if row.trial_id not in living and _is_renewed(before.get(row.trial_id, row), row):
                    living.add(row.trial_id)
                    _log.warning("%s: a trial is left to %s, which works on it", name, short(row.owner))
            if all(row.trial_id in living for _, row in leased):
                return []
            before = {row.trial_id: row for _, row in leased}
            sleep(POLL_SECONDS)
        raise AssertionError

    @patiently
    def _study_ids(self, studies: Sequence[str]) -> dict[str, int]:
        return {name: self._ledger.database.get_study_id_from_name(name) for name in studies}

    @patiently
    def _leased(self, ids: dict[str, int]) -> list[tuple[str, HeldLease]]:
        with self._ledger.transaction(Mode.READ) as session:
            return self._leased_in(session, ids)

    def _leased_in(self, session: Session, ids: dict[str, int]) -> list[tuple[str, HeldLease]]:
        """The leases of running trials, each with its study's name."""
        return [
            (name, row)
            for name, study_id in ids.items()
            for row in self._ledger.open_leases(session, study_id)
            if self._ledger.database.is_running(session, row.trial_id)  # else it was ended by hand
        ]


def _is_gone(owner: str) -> bool:
    parsed = Owner.parse(owner)
    return parsed is not None and parsed.is_gone()


def _is_renewed(before: HeldLease, now: HeldLease) -> bool:
    return now.fence != before.fence or now.expires_in > before.expires_in


def short(owner: str) -> str:
    """An owner for people: its host's name and process id; of who came over HTTP, its token's name and own."""
    parsed = Owner.parse(owner)
    return (
        owner.removeprefix("http:")
        if parsed is None
        else f"process {parsed.pid} on {parsed.host.partition(':')[0]}"
    )
