"""Alembic migrations of the ledger's tables, run by `tuner storage upgrade`."""
