"""A study's document, put together from what is kept, is the dashboard's own to the last character."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from typing import Any
from wsgiref.util import setup_testing_defaults

import optuna
import optuna_dashboard
import pytest
from optuna.trial import TrialState

from tuner.schema import open_storage
from tuner.service.large_studies import Documents
from tuner.storage import Database

Stock = Callable[[int], tuple[int, bytes]]


@pytest.fixture(autouse=True)
def _all_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuner.service.large_studies.LARGE", 1)


@pytest.fixture
def database(sqlite_url: str) -> Iterator[Database]:
    opened = open_storage(sqlite_url)
    yield opened
    opened.close()


class Counting:
    """The dashboard, and from which trial on it was asked."""

    def __init__(self, database: Database) -> None:
        self._app = optuna_dashboard.wsgi(storage=database)
        self.asked: list[str] = []

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Any:
        self.asked.append(environ["QUERY_STRING"])
        self._app._inmemory_cache.clear()  # it keeps trials for seconds
        return self._app(environ, start)


@pytest.fixture
def dashboard(database: Database) -> Counting:
    return Counting(database)


@pytest.fixture
def stock(database: Database) -> Stock:
    """What the dashboard itself answers."""

    def stock(study_id: int) -> tuple[int, bytes]:
        environ: dict[str, Any] = {"PATH_INFO": f"/api/studies/{study_id}", "QUERY_STRING": "after=0"}
        setup_testing_defaults(environ)
        environ["wsgi.input"] = io.BytesIO()
        status: list[str] = []
        body = b"".join(Counting(database)(environ, lambda line, *_: status.append(line)))
        return int(status[0][:3]), body

    return stock


def a_study(database: Database) -> optuna.Study:
    study = optuna.create_study(storage=database, study_name='odd "trials": [ name')
    study.set_user_attr("text", '"trials": [{"state": "Complete"}] ü \\"trials\\": [')
    for i in range(6):
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        trial.suggest_categorical("kind", ["a", '"trials": [', "]"])
        trial.report(float("inf") if i == 1 else 0.5, 1)
        trial.set_user_attr("note", ', "state": "Running"')
        study.tell(trial, [0.5, None, float("inf"), None, 0.25, 1.0][i], [
            TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE, TrialState.PRUNED, *[TrialState.COMPLETE] * 2
        ][i])  # fmt: skip
    return study


def test_the_second_answer_is_the_same_and_asks_for_nothing_again(
    database: Database, dashboard: Counting, stock: Stock
) -> None:
    documents = Documents(dashboard, database)
    study = a_study(database)
    for _ in range(3):
        assert documents.get(study._study_id) == stock(study._study_id)
        documents.wait()
    assert dashboard.asked == ["after=0", "after=6", "after=6"]


def test_new_trials_are_asked_for_and_kept_once_all_before_are_finished(
    database: Database, dashboard: Counting, stock: Stock
) -> None:
    documents = Documents(dashboard, database)
    study = a_study(database)
    assert documents.get(1) == stock(1)
    documents.wait()
    slow, quick = study.ask(), study.ask()
    study.tell(quick, 0.125)
    assert documents.get(1) == stock(1)
    slow.report(3.0, 1)
    slow.set_user_attr("reached", 1)
    assert documents.get(1) == stock(1)
    study.tell(slow, 0.1)
    assert documents.get(1) == stock(1)
    assert documents.get(1) == stock(1)
    assert dashboard.asked == ["after=0", "after=6", "after=6", "after=6", "after=8"]


def test_a_note_on_a_finished_trial_shows(database: Database, dashboard: Counting, stock: Stock) -> None:
    documents = Documents(dashboard, database)
    study = a_study(database)
    documents.get(1)
    documents.wait()
    optuna_dashboard.save_note(study, "of the study")
    assert documents.get(1) == stock(1)
    documents.wait()
    database.set_study_system_attr(1, "dashboard:2:note_ver", 1)
    database.set_study_system_attr(1, "dashboard:2:note_str:0", "of the trial")
    assert b"of the trial" in documents.get(1)[1]
    assert documents.get(1) == stock(1)


def test_another_study_under_the_same_id_is_another(
    database: Database, dashboard: Counting, stock: Stock
) -> None:
    documents = Documents(dashboard, database)
    a_study(database)
    documents.get(1)
    documents.wait()
    optuna.delete_study(study_name='odd "trials": [ name', storage=database)
    assert documents.get(1)[0] == stock(1)[0] == 404
    study = optuna.create_study(storage=database, study_name='odd "trials": [ name')
    study.add_trial(optuna.trial.create_trial(value=0.5))
    assert study._study_id == 1  # as SQLite gives ids again
    assert documents.get(1) == stock(1)


def test_an_empty_study_and_one_that_is_not_there(
    database: Database, dashboard: Counting, stock: Stock
) -> None:
    documents = Documents(dashboard, database)
    assert documents.get(1) == stock(1)
    optuna.create_study(storage=database)
    for _ in range(2):
        assert documents.get(1) == stock(1)
        documents.wait()


def test_only_the_last_few_studies_are_kept(
    database: Database, dashboard: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuner.service.large_studies.STUDIES", 1)
    documents = Documents(dashboard, database)
    for name in "ab":
        study = optuna.create_study(storage=database, study_name=name)
        study.add_trial(optuna.trial.create_trial(value=0.5))
    for study_id in (1, 2, 2, 1):
        documents.get(study_id)
        documents.wait()
    assert dashboard.asked == ["after=0", "after=0", "after=1", "after=0"]


def test_what_is_read_ahead_is_not_read_again(
    database: Database, dashboard: Counting, stock: Stock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuner.service.large_studies.LARGE", 6)
    study, before = a_study(database), sys.getswitchinterval()
    small = optuna.create_study(storage=database, study_name="small")
    small.tell(small.ask(), 1.0)
    archived = optuna.create_study(storage=database, study_name="archived")
    archived.add_trials(study.trials)
    archived.set_user_attr("tuner:archived", True)
    documents = Documents(dashboard, database)
    documents.warm()
    assert documents.get(study._study_id) == stock(study._study_id)
    documents.wait()
    assert sys.getswitchinterval() == before
    assert dashboard.asked == ["after=0", "after=6"]


def test_what_cannot_be_read_ahead_is_read_when_it_is_asked_for(
    database: Database, dashboard: Counting, stock: Stock, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, documents = a_study(database), Documents(dashboard, database)

    def fail(study_id: int) -> object:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(documents, "_mark", fail)
        documents.warm()
        documents.wait()
    assert documents.get(study._study_id) == stock(study._study_id)
