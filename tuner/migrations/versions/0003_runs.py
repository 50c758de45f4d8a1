"""Runs of studies, which their workers watch."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make the new table."""
    op.create_table(
        "tuner_runs",
        sa.Column("run_id", sa.String(32), primary_key=True),
        sa.Column("owner", sa.String(255), nullable=False),
    )
