"""Leases keep their history: request ids, endings, what was told; commands to running trials; checkpoints; runs.

SQLite cannot add a foreign key to a table that is there, so both tables are made anew and filled from the old ones.
Rows whose study or trial is gone are left behind.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

STUDY = ("studies.study_id",)
TRIAL = ("trials.trial_id",)


def _study(*, primary_key: bool = True) -> sa.Column[int]:
    key = sa.ForeignKey(*STUDY, ondelete="CASCADE")
    return sa.Column(
        "study_id", sa.Integer, key, primary_key=primary_key, autoincrement=False, nullable=False
    )


def _trial(*, primary_key: bool = True) -> sa.Column[int]:
    key = sa.ForeignKey(*TRIAL, ondelete="CASCADE")
    return sa.Column(
        "trial_id", sa.Integer, key, primary_key=primary_key, autoincrement=False, nullable=False
    )


def upgrade() -> None:
    """Make the new tables and carry over what is open."""
    op.drop_index("ix_tuner_leases_study_id", "tuner_leases")
    op.rename_table("tuner_leases", "tuner_leases_0001")
    op.rename_table("tuner_spent", "tuner_spent_0001")
    if op.get_bind().dialect.name == "postgresql":  # an index keeps its name, and its name is taken
        op.execute("ALTER INDEX tuner_leases_pkey RENAME TO tuner_leases_0001_pkey")
        op.execute("ALTER INDEX tuner_spent_pkey RENAME TO tuner_spent_0001_pkey")
    op.create_table(
        "tuner_spent",
        _study(),
        sa.Column("trials", sa.Integer, nullable=False),
        sa.Column("ended", sa.Integer, nullable=False),
        sa.Column("epochs", sa.Integer, nullable=False),
        sa.Column("seconds", sa.Float(53), nullable=False),
    )
    op.create_table(
        "tuner_leases",
        _study(),
        _trial(),
        sa.Column("fence", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("owner", sa.String(255), nullable=False),
        sa.Column("request_id", sa.String(128), nullable=False),
        sa.Column("granted_at", sa.Float(53), nullable=False),
        sa.Column("expires_at", sa.Float(53), nullable=False),
        sa.Column("ended_at", sa.Float(53), nullable=True),
        sa.Column("ending", sa.String(16), nullable=True),
        sa.Column("told", sa.Text, nullable=True),
        sa.Column("epochs", sa.Integer, nullable=False),
        sa.Column("seconds", sa.Float(53), nullable=False),
        sa.Column("commands", sa.Integer, nullable=False),
    )
    op.create_index("tuner_leases_request", "tuner_leases", ["study_id", "request_id"], unique=True)
    is_open = sa.text("ending IS NULL")
    op.create_index(
        "tuner_leases_open",
        "tuner_leases",
        ["study_id", "trial_id"],
        unique=True,
        sqlite_where=is_open,
        postgresql_where=is_open,
    )
    op.create_table(
        "tuner_commands",
        sa.Column("command_id", sa.Integer, primary_key=True),
        _study(primary_key=False),
        _trial(primary_key=False),
        sa.Column("command_key", sa.String(32), nullable=False, unique=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("values_json", sa.Text, nullable=False),
        sa.Column("by", sa.String(255), nullable=False),
        sa.Column("asked_at", sa.Float(53), nullable=False),
        sa.Column("delivered_fence", sa.Integer, nullable=True),
        sa.Column("delivered_epoch", sa.Integer, nullable=True),
    )
    op.create_index("tuner_commands_trial", "tuner_commands", ["study_id", "trial_id"])
    op.create_table(
        "tuner_checkpoints",
        _study(),
        _trial(),
        sa.Column("epoch", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "tuner_runs",
        sa.Column("run_id", sa.String(32), primary_key=True),
        sa.Column("owner", sa.String(255), nullable=False),
    )
    op.execute(
        "INSERT INTO tuner_spent (study_id, trials, ended, epochs, seconds) "
        "SELECT study_id, trials, ended, epochs, seconds FROM tuner_spent_0001 "
        "WHERE study_id IN (SELECT study_id FROM studies)"
    )
    op.execute(
        "INSERT INTO tuner_leases (study_id, trial_id, fence, attempt, owner, request_id, granted_at, expires_at, "
        "epochs, seconds, commands) "
        "SELECT study_id, trial_id, fence, attempt, owner, 'before-0002-' || trial_id, expires_at, expires_at, "
        "epochs, seconds, 0 FROM tuner_leases_0001 "
        "WHERE study_id IN (SELECT study_id FROM studies) AND trial_id IN (SELECT trial_id FROM trials)"
    )
    op.drop_table("tuner_leases_0001")
    op.drop_table("tuner_spent_0001")
