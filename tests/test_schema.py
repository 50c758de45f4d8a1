"""Versions of the tables: old ones are refused and brought up to date with all they hold, newer ones are refused."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from command import Tuner, processes
from optuna.trial import TrialState

import tuner.schema
from tuner import StudyDefinition, StudyManager
from tuner.errors import LeaseLostError, StorageError
from tuner.ledger import Spent
from tuner.schema import HEAD, VERSION_TABLE, VERSIONS, info, open_storage, upgrade
from tuner.tables import metadata

MIGRATIONS = Path(tuner.schema.__file__).parent / "migrations"
DEFINITION: dict[str, Any] = {
    "name": "old",
    "space": {"x": {"low": 0.0, "high": 1.0}},
    "sampler": {"name": "random"},
    "budget": {"trials": 3, "epochs": 9},
}


@pytest.fixture
def url(empty_url: str) -> str:
    return empty_url


@pytest.fixture
def engine(url: str) -> Iterator[sa.Engine]:
    engine = sa.create_engine(url)
    yield engine
    engine.dispose()


@pytest.fixture
def old(url: str, engine: sa.Engine) -> str:
    """A database of the first version, unstamped: a trial is done, one runs elsewhere, one is lost."""
    with StudyManager(url) as manager:
        ask_tell = manager.ask_tell(manager.create(StudyDefinition.parse(DEFINITION)).study_name)
        for epochs in (2, 3, 1):
            lease = ask_tell.ask()
            assert lease is not None
            ask_tell.report_many(lease, dict.fromkeys(range(1, epochs + 1), 0.5), seconds=1.5)
            if lease.number == 0:
                ask_tell.tell(lease, TrialState.COMPLETE, 0.25)
        leases = ask_tell.open_leases()
        study_id = ask_tell.study._study_id
    scripts = ScriptDirectory(str(MIGRATIONS))
    with engine.begin() as connection:
        for table in reversed(metadata.sorted_tables):
            table.drop(connection)
        connection.execute(sa.text(f"DROP TABLE {VERSION_TABLE}"))
        with Operations.context(MigrationContext.configure(connection)):
            scripts.get_revision("0001").module.upgrade()
        for lease in leases:
            row = {
                "study": study_id,
                "trial": lease.trial_id,
                "epochs": lease.epochs,
                "seconds": lease.seconds,
            }
            # of the second trial somebody else renews the lease; the third one's ran out long ago
            expires = 0 if lease.epochs == 1 else 4e9
            connection.execute(
                sa.text(
                    "INSERT INTO tuner_leases (trial_id, study_id, owner, fence, attempt, expires_at, epochs, seconds) "
                    "VALUES (:trial, :study, 'elsewhere', 2, 1, :expires, :epochs, :seconds)"
                ),
                {**row, "expires": expires},
            )
        connection.execute(
            sa.text("INSERT INTO tuner_spent VALUES (:study, 3, 1, 6, 4.5), (999, 1, 1, 1, 1.0)"),
            {"study": study_id},
        )
    return url


def test_an_older_version_is_refused_with_what_to_do(old: str) -> None:
    assert info(old).version == "0001"
    with pytest.raises(
        StorageError, match=rf"older version \(0001, needed is {HEAD}\).*tuner storage upgrade"
    ) as caught:
        open_storage(old)
    assert "\n" not in str(caught.value)
    assert info(old).version == "0001"


def test_an_upgrade_keeps_budgets_and_leases(old: str) -> None:
    assert upgrade(old) == ("0001", HEAD)
    assert upgrade(old) == (HEAD, HEAD)
    with StudyManager(old) as manager:
        ask_tell = manager.ask_tell("old")
        assert ask_tell.spent() == Spent(3, 1, 6, 4.5)
        held, lost = ask_tell.open_leases()
        assert (held.fence, held.attempt, held.owner, held.epochs, held.is_lost) == (
            2,
            1,
            "elsewhere",
            3,
            False,
        )
        assert lost.is_lost
        again = ask_tell.ask()
        assert again is not None
        assert (again.number, again.fence, again.attempt) == (2, 3, 2)
        assert ask_tell.spent() == Spent(3, 1, 5, 3.0)  # what the lost one had spent is given back
        assert ask_tell.ask() is None  # the budget of trials is used up, as before
        holder = replace(again, number=1, trial_id=held.trial_id, fence=2, values={})
        ask_tell.report(holder, 4, 0.125)
        ask_tell.tell(holder, TrialState.COMPLETE, 0.125)
        with pytest.raises(LeaseLostError):
            ask_tell.report(replace(again, fence=2), 2, 0.5)
        ask_tell.tell(again, TrialState.COMPLETE, 0.5)
        assert [trial.value for trial in ask_tell.study.trials] == [0.25, 0.125, 0.5]
        assert ask_tell.spent() == Spent(3, 3, 7, 3.0)


def _words(index: Any) -> dict[str, Any]:
    return {**index, "dialect_options": {k: str(v) for k, v in index.get("dialect_options", {}).items()}}


def _definitions(engine: sa.Engine) -> dict[str, Any]:
    """Our tables as the database has them: columns, keys, indices."""
    inspector = sa.inspect(engine)
    return {
        name: {
            "columns": [{**c, "type": str(c["type"])} for c in inspector.get_columns(name)],
            "key": inspector.get_pk_constraint(name)["constrained_columns"],
            "foreign": sorted(inspector.get_foreign_keys(name), key=lambda key: key["constrained_columns"]),
            "indices": sorted(str(_words(index)) for index in inspector.get_indexes(name)),
        }
        for name in metadata.tables
    }


def test_tables_that_were_upgraded_are_those_made_anew(old: str, engine: sa.Engine) -> None:
    upgrade(old)
    with engine.connect() as connection:
        ours = {"include_name": lambda name, kind, _: kind != "table" or name in metadata.tables}
        context = MigrationContext.configure(connection, opts={"compare_type": True, **ours})
        assert compare_metadata(context, metadata) == []
    upgraded = _definitions(engine)
    with engine.begin() as connection:
        for table in reversed(metadata.sorted_tables):
            table.drop(connection)
        metadata.create_all(connection)
    made = _definitions(engine)
    # nothing else of the first version is there
    assert not [name for name in sa.inspect(engine).get_table_names() if name.endswith("_0001")]
    assert upgraded == made


def test_the_known_versions_are_those_of_the_migrations() -> None:
    scripts = ScriptDirectory(str(MIGRATIONS))
    assert scripts.get_heads() == [HEAD]
    assert tuple(script.revision for script in reversed(list(scripts.walk_revisions()))) == VERSIONS


def test_a_newer_version_is_refused(url: str, engine: sa.Engine) -> None:
    open_storage(url).close()
    with engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(StorageError, match=r"newer version.*9999.*upgrade this program"):
        open_storage(url)
    with pytest.raises(StorageError, match=r"9999.*upgrade this program"):
        upgrade(url)
    assert info(url).version == "9999"


def test_a_migration_that_fails_leaves_nothing_behind(
    old: str, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def everything() -> dict[str, Any]:
        inspector = sa.inspect(engine)
        with engine.connect() as connection:
            return {
                name: (
                    [str(column) for column in inspector.get_columns(name)],
                    sorted(map(str, connection.execute(sa.text(f"SELECT * FROM {name}")))),
                )
                for name in inspector.get_table_names()
            }

    before = everything()
    real = Operations.drop_table

    def fail(self: Any, *args: Any, **more: Any) -> Any:  # the migration's last steps
        raise sa.exc.OperationalError("DROP TABLE", {}, Exception("the lights went out"))

    monkeypatch.setattr(Operations, "drop_table", fail)
    with pytest.raises(StorageError, match="the lights went out"):
        upgrade(old)
    assert everything() == before
    monkeypatch.setattr(Operations, "drop_table", real)
    assert upgrade(old) == ("0001", HEAD)


def test_two_upgrades_at_once_do_it_once(old: str) -> None:
    with processes(2) as pool:
        done = list(pool.map(upgrade, [old, old]))
    assert sorted(done) == [("0001", HEAD), (HEAD, HEAD)]
    assert info(old).version == HEAD


# Optuna leaves its connection open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("opens", [open_storage, upgrade])
def test_a_database_of_another_optuna_is_refused_as_it_is(
    url: str, engine: sa.Engine, opens: Callable[[str], Any]
) -> None:
    stock = optuna.storages.RDBStorage(url)
    stock.engine.dispose()
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'v9.9.9.a'")
    with pytest.raises(StorageError, match="optuna"):
        opens(url)
    gc.collect()
    assert not [table for table in sa.inspect(engine).get_table_names() if table.startswith("tuner_")]


def test_a_database_of_stock_optuna_gets_our_tables_and_stays_readable(url: str) -> None:
    stock = optuna.storages.RDBStorage(url)
    study = optuna.create_study(study_name="stock", storage=stock)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    assert (info(url).version, info(url).studies) == (None, 1)
    with StudyManager(url) as manager:
        assert [summary.name for summary in manager.studies()] == ["stock"]
        manager.create(StudyDefinition.parse(DEFINITION))
        ask_tell = manager.ask_tell("old")
        lease = ask_tell.ask()
        assert lease is not None
        ask_tell.tell(lease, TrialState.COMPLETE, 0.5)
    assert optuna.load_study(study_name="old", storage=stock).best_value == 0.5
    assert optuna.load_study(study_name="stock", storage=stock).best_value == study.best_value
    stock.scoped_session.remove()
    stock.engine.dispose()


def test_the_command_line_tells_versions_and_upgrades(
    old: str, tuner: Tuner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, _, err = tuner("studies", "--storage", old)
    assert code == 1
    (line,) = err.splitlines()
    assert "tuner storage upgrade --storage" in line
    found = json.loads(tuner("storage", "info", "--storage", old, "--format", "json")[1])
    assert found == {
        "url": info(old).url,
        "kind": "sqlite" if old.startswith("sqlite") else "postgresql",
        "version": "0001",
        "needed_version": HEAD,
        "optunas_version": info(old).optunas_version,
        "studies": 1,
    }
    upgraded = tuner("storage", "upgrade", "--storage", old)[1]
    assert f"was upgraded from version 0001 (version {HEAD})" in upgraded
    assert f"is up to date (version {HEAD})" in tuner("storage", "upgrade", "--storage", old)[1]
    shown = tuner("storage", "info", "--storage", old)[1]
    assert f"{HEAD} (needed: {HEAD})" in shown


@pytest.mark.parametrize("what", ["info", "upgrade"])
def test_the_command_line_makes_no_database(tuner: Tuner, tmp_path: Path, what: str) -> None:
    code, out, err = tuner("storage", what, "--storage", f"sqlite:///{tmp_path}/missing.db")
    assert (code, out) == (2, "")
    assert "there is no database" in err
    assert [path.name for path in tmp_path.iterdir()] == ["small.toml"]
