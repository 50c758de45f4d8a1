"""Optuna's own conformance suite, held by the storage through which everything is written and read."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from optuna.storages import BaseStorage
from optuna.testing.pytest_storages import StorageTestCase
from postgresql import Server

from tuner.schema import open_storage
from tuner.storage import cached

# the suite drops the copies that it unpickles, with their connections
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def one_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One database of each kind for the whole suite: making its tables takes longer than a test."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path_factory.mktemp('storage')}/tuner.db"
    else:
        server: Server = request.getfixturevalue("postgresql_server")
        with server.database("conformance") as url:
            yield url
    gc.collect()  # what the suite drops is not found in the midst of another file's test


@pytest.fixture
def storage(one_url: str) -> Iterator[BaseStorage]:
    database = open_storage(one_url)
    yield cached(database)
    with database.transaction() as session:
        for table in (
            "trial_values",
            "trial_intermediate_values",
            "trial_params",
            "trial_user_attributes",
            "trial_system_attributes",
            "trials",
            "study_directions",
            "study_user_attributes",
            "study_system_attributes",
            "studies",
        ):
            session.execute(sa.text(f"DELETE FROM {table}"))
    database.close()


class TestDatabase(StorageTestCase):
    """Every test of the suite, behind Optuna's cache, as studies use it."""
