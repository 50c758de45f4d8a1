"""The service: a study can be paused and stopped, and tokens say who may use it."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Every study there is goes on."""
    op.add_column("tuner_spent", sa.Column("state", sa.String(16), nullable=False, server_default="open"))
    op.create_table(
        "tuner_tokens",
        sa.Column("token_id", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("prefix", sa.String(128), nullable=False),
        sa.Column("created_at", sa.Float(53), nullable=False),
        sa.Column("expires_at", sa.Float(53), nullable=True),
        sa.Column("revoked_at", sa.Float(53), nullable=True),
        sa.Column("last_used_at", sa.Float(53), nullable=True),
    )
    op.create_index("tuner_tokens_digest", "tuner_tokens", ["digest"], unique=True)
