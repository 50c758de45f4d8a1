"""The ledger's own tables, beside Optuna's in the same database.

A change here needs a migration in `tuner/migrations/versions` and the new `HEAD` in `tuner/schema.py`; a test holds
that a database that was upgraded and one that was made anew are the same.

Rows end with their study or trial where the database sees to it (PostgreSQL; SQLite through our connections). A stock
optuna-dashboard that deletes a study in SQLite leaves them behind, and SQLite gives the ids away again: so every key
of what belongs to a study begins with its id, and a new study begins by forgetting what has its id.
"""

from __future__ import annotations

import sqlalchemy as sa
from optuna.storages._rdb import models
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

__all__ = ["CheckpointRow", "CommandRow", "LeaseRow", "RunRow", "SpentRow", "TokenRow", "metadata"]

Seconds = sa.Float(53)
"""Seconds since 1970 by the database's clock, or a duration; 53 bits, as `REAL` has only 24 in PostgreSQL."""


class Base(DeclarativeBase):
    """Tables of our own, apart from Optuna's."""


metadata = Base.metadata


def _study() -> Mapped[int]:
    """The study that a row belongs to, and with which it goes."""
    key = sa.ForeignKey(models.StudyModel.__table__.c.study_id, ondelete="CASCADE")
    return mapped_column(sa.Integer, key, primary_key=True, autoincrement=False)


def _trial() -> Mapped[int]:
    key = sa.ForeignKey(models.TrialModel.__table__.c.trial_id, ondelete="CASCADE")
    return mapped_column(sa.Integer, key, primary_key=True, autoincrement=False)


class SpentRow(Base):
    """What a study has used, and whether it goes on. The row is the lock under which budgets are counted."""

    __tablename__ = "tuner_spent"

    study_id: Mapped[int] = _study()
    trials: Mapped[int] = mapped_column(default=0)
    """Trials begun, each counted once however many attempts it takes."""
    ended: Mapped[int] = mapped_column(default=0)
    epochs: Mapped[int] = mapped_column(default=0)
    seconds: Mapped[float] = mapped_column(Seconds, default=0.0)
    state: Mapped[str] = mapped_column(sa.String(16), default="open", server_default="open")
    """`open`, `paused` or `stopped`: every ask looks here."""


class LeaseRow(Base):
    """One attempt at a trial: who has it, until when, what it spent, and how it ended. At most one is open."""

    __tablename__ = "tuner_leases"

    study_id: Mapped[int] = _study()
    trial_id: Mapped[int] = _trial()
    fence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """Grows with every lease on the trial; whoever names an older one is refused."""
    attempt: Mapped[int]
    """Grows with every lease after a lost one; a trial that was given back is not held against anybody."""
    owner: Mapped[str] = mapped_column(sa.String(255))
    request_id: Mapped[str] = mapped_column(sa.String(128))
    granted_at: Mapped[float] = mapped_column(Seconds)
    expires_at: Mapped[float] = mapped_column(Seconds)
    ended_at: Mapped[float | None] = mapped_column(Seconds)
    ending: Mapped[str | None] = mapped_column(sa.String(16))
    """None while it is open, then an `Ending`."""
    told: Mapped[str | None] = mapped_column(sa.Text)
    """What was told, as JSON, to know the same again from another."""
    epochs: Mapped[int] = mapped_column(default=0)
    seconds: Mapped[float] = mapped_column(Seconds, default=0.0)
    commands: Mapped[int] = mapped_column(default=0)
    """How many commands wait for the next report: so a report need not look for them."""


_open = LeaseRow.ending.is_(None)
sa.Index("tuner_leases_request", LeaseRow.study_id, LeaseRow.request_id, unique=True)
sa.Index(
    "tuner_leases_open",
    LeaseRow.study_id,
    LeaseRow.trial_id,
    unique=True,
    sqlite_where=_open,
    postgresql_where=_open,
)


class CommandRow(Base):
    """What a person asks of a running trial: to adjust hyperparameters, or to stop. Delivered with a report's reply."""

    __tablename__ = "tuner_commands"
    __table_args__ = (sa.Index("tuner_commands_trial", "study_id", "trial_id"),)

    command_id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(
        sa.ForeignKey(models.StudyModel.__table__.c.study_id, ondelete="CASCADE")
    )
    trial_id: Mapped[int] = mapped_column(
        sa.ForeignKey(models.TrialModel.__table__.c.trial_id, ondelete="CASCADE")
    )
    command_key: Mapped[str] = mapped_column(sa.String(32), unique=True)
    """Names it to whoever gives it: given again, as nobody heard that it was taken, it is the same command."""
    kind: Mapped[str] = mapped_column(sa.String(16))
    """`adjust` or `stop`."""
    values_json: Mapped[str] = mapped_column(sa.Text)
    by: Mapped[str] = mapped_column(sa.String(255))
    asked_at: Mapped[float] = mapped_column(Seconds)
    delivered_fence: Mapped[int | None]
    delivered_epoch: Mapped[int | None]
    """With which report of which lease it was delivered: the same report again gets the same reply."""


class CheckpointRow(Base):
    """A training's state after an epoch, to go on from: for the next attempt, or for another trial's beginning."""

    __tablename__ = "tuner_checkpoints"

    study_id: Mapped[int] = _study()
    trial_id: Mapped[int] = _trial()
    epoch: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    data: Mapped[bytes] = mapped_column(sa.LargeBinary)


class RunRow(Base):
    """A run of studies, for as long as it goes on: its workers look here, wherever they are, and stop with it."""

    __tablename__ = "tuner_runs"

    run_id: Mapped[str] = mapped_column(sa.String(32), primary_key=True)
    owner: Mapped[str] = mapped_column(sa.String(255))


class TokenRow(Base):
    """Who may use the service: a token, known by its digest only, and what it is good for."""

    __tablename__ = "tuner_tokens"

    token_id: Mapped[str] = mapped_column(sa.String(32), primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(128))
    digest: Mapped[str] = mapped_column(sa.String(64))
    role: Mapped[str] = mapped_column(sa.String(16))
    prefix: Mapped[str] = mapped_column(sa.String(128), default="")
    """Of the names of the studies that it is for; empty: all."""
    created_at: Mapped[float] = mapped_column(Seconds)
    expires_at: Mapped[float | None] = mapped_column(Seconds)
    revoked_at: Mapped[float | None] = mapped_column(Seconds)
    last_used_at: Mapped[float | None] = mapped_column(Seconds)


sa.Index("tuner_tokens_digest", TokenRow.digest, unique=True)
