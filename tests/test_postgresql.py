"""Fresh databases for tests: what one test left there, the next does not find."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from postgresql import Databases

from tuner import StudyDefinition, StudyManager
from tuner.errors import StorageError
from tuner.ledger import Owner
from tuner.storage import patience

DEFINITION = {"name": "s", "space": {"x": {"low": 0, "high": 1}}, "sampler": {"name": "random"}}

PLACE = "SELECT oid FROM pg_database WHERE datname = current_database()"


def connected(url: str) -> sa.Engine:
    return sa.create_engine(url, poolclass=sa.NullPool)


def test_a_database_is_emptied_for_the_next_and_its_ids_begin_anew(postgresql_databases: Databases) -> None:
    ids, urls, places = [], [], []
    for _ in range(2):
        with postgresql_databases.fresh() as url, StudyManager(url) as manager:
            urls.append(url)
            with connected(url).connect() as connection:
                places.append(connection.execute(sa.text(PLACE)).scalar())
            assert manager.studies() == []
            study = manager.create(StudyDefinition.parse(DEFINITION))
            lease = manager.ask_tell("s").ask()
            assert lease is not None
            ids.append((study._study_id, lease.trial_id))
            assert Owner.parse(manager.ask_tell("s").open_leases()[0].owner) == Owner.here()
    assert ids == [(1, 1), (1, 1)]
    assert places[0] == places[1]  # not another copy
    assert urls[0] != urls[1]


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE tuner_leases ADD COLUMN more int",
        "DROP INDEX ix_trials_study_id",
        "UPDATE tuner_alembic_version SET version_num = '0001'",
        "CREATE TABLE more (x int)",
        "INSERT INTO studies (study_name) SELECT repeat('x', 500) || i FROM generate_series(1, 9000) i",
    ],
    ids=lambda change: " ".join(change.split()[:3]),
)
def test_a_database_that_is_not_what_it_was_is_not_given_again(
    postgresql_databases: Databases, change: str
) -> None:
    with postgresql_databases.fresh() as changed, connected(changed).begin() as connection:
        connection.execute(sa.text(change))
    with postgresql_databases.fresh() as url:
        assert url != changed
        with connected(url).connect() as connection:
            assert connection.execute(sa.text("SELECT count(*) FROM studies")).scalar() == 0


def test_who_still_is_connected_is_not_any_more(postgresql_databases: Databases) -> None:
    with postgresql_databases.fresh() as url:
        left = connected(url).connect()
        left.execute(sa.text("INSERT INTO studies (study_name) VALUES ('s')"))  # and not committed
    with pytest.raises(sa.exc.OperationalError, match=r"terminat|closed"):
        left.execute(sa.text("SELECT 1"))
    left.invalidate()


def test_what_a_test_has_left_running_does_not_find_the_next_ones_database(
    postgresql_databases: Databases,
) -> None:
    with postgresql_databases.fresh() as url:
        left = StudyManager(url)
        left.create(StudyDefinition.parse(DEFINITION))
        asking = left.ask_tell("s")
        assert asking.ask() is not None
    with postgresql_databases.fresh() as url, StudyManager(url) as manager, patience(0.1):
        manager.create(StudyDefinition.parse(DEFINITION))
        with pytest.raises(StorageError):
            asking.ask()
        assert manager.load("s").trials == []
    left.close()
