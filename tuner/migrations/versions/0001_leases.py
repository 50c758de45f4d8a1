"""The first ledger: open leases, and what each study has spent."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "tuner_leases",
        sa.Column("trial_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("study_id", sa.Integer, nullable=False),
        sa.Column("owner", sa.String(255), nullable=False),
        sa.Column("fence", sa.Integer, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("expires_at", sa.Float(53), nullable=False),
        sa.Column("epochs", sa.Integer, nullable=False),
        sa.Column("seconds", sa.Float(53), nullable=False),
    )
    op.create_index("ix_tuner_leases_study_id", "tuner_leases", ["study_id"])
    op.create_table(
        "tuner_spent",
        sa.Column("study_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("trials", sa.Integer, nullable=False),
        sa.Column("ended", sa.Integer, nullable=False),
        sa.Column("epochs", sa.Integer, nullable=False),
        sa.Column("seconds", sa.Float(53), nullable=False),
    )
