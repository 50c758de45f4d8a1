"""A study's document, of texts that are kept, is the dashboard's own."""

from __future__ import annotations

import contextlib
import io
import json
import math
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from typing import Any
from wsgiref.util import setup_testing_defaults

import optuna
import optuna_dashboard
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial
from optuna_dashboard.preferential._system_attrs import report_preferences

from tuner.errors import StorageError
from tuner.schema import open_storage
from tuner.service import large_studies, trial_texts
from tuner.service.large_studies import Documents
from tuner.storage import Database, cached

Read = list[int]


@pytest.fixture
def database(empty_url: str) -> Iterator[Database]:
    opened = open_storage(empty_url)
    yield opened
    opened.close()


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Read:
    """The ids of the trials whose rows are read to be written, in turn."""
    ids: Read = []

    def told(of: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        def telling(*args: Any) -> Iterator[Any]:
            for trial in of(*args):
                ids.append(trial.trial_id)
                yield trial

        return telling

    for name in ("texts_of", "texts_after"):
        monkeypatch.setattr(large_studies, name, told(getattr(trial_texts, name)))
    return ids


def of_stock(database: Database, study_id: int, after: int = 0) -> tuple[int, Any]:
    """What the dashboard itself answers."""
    environ: dict[str, Any] = {"PATH_INFO": f"/api/studies/{study_id}", "QUERY_STRING": f"after={after}"}
    setup_testing_defaults(environ)
    environ["wsgi.input"] = io.BytesIO()
    status: list[str] = []
    body = b"".join(
        optuna_dashboard.wsgi(storage=cached(database))(environ, lambda line, *_: status.append(line))
    )
    return int(status[0][:3]), in_order(json.loads(body))


def of_ours(documents: Documents, study_id: int, after: int = 0) -> tuple[int, Any]:
    status, body = documents.get(study_id, after)
    return status, in_order(json.loads(body))


def in_order(document: Any) -> Any:
    """A document with what is a set to the dashboard in one order."""
    for attrs in ("user_attrs", "union_user_attrs"):
        for part in (document, *document.get("best_trials", [])):
            part.get(attrs, []).sort(key=lambda attr: attr["key"])
    for trial in document.get("best_trials", []):
        trial["params"].sort(key=lambda param: param["name"])
    for param in document.get("union_search_space", []) + document.get("intersection_search_space", []):
        if "choices" in param["distribution"]:
            param["distribution"]["choices"].sort(key=str)
    return document


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


def test_the_second_answer_is_the_same_and_reads_nothing_again(database: Database, read: Read) -> None:
    documents, study = Documents(database), a_study(database)
    for _ in range(3):
        assert of_ours(documents, study._study_id) == of_stock(database, study._study_id)
    assert len(read) == len(set(read)) == 6


def test_only_what_is_new_or_was_unfinished_is_read(database: Database, read: Read) -> None:
    documents, study = Documents(database), a_study(database)

    def same() -> Read:
        read.clear()
        assert of_ours(documents, study._study_id) == of_stock(database, study._study_id)
        return read

    same()
    slow, quick = study.ask(), study.ask()
    study.tell(quick, 0.125)
    assert same() == [slow._trial_id, quick._trial_id]
    slow.report(3.0, 1)
    slow.set_user_attr("reached", 1)
    assert same() == [slow._trial_id]
    study.tell(slow, 0.1)
    assert same() == [slow._trial_id]
    assert same() == []


@pytest.mark.parametrize("after", [0, 1, 5, 6, 7, 999_999_999])
def test_after_some_trials(database: Database, after: int) -> None:
    documents, study = Documents(database), a_study(database)
    study.ask()
    study_id = study._study_id
    assert of_ours(documents, study_id, after) == of_stock(database, study_id, after)


def test_a_note_on_a_trial_shows(database: Database, read: Read) -> None:
    documents, study = Documents(database), a_study(database)
    of_ours(documents, study._study_id)
    optuna_dashboard.save_note(study, "of the study")
    optuna_dashboard.save_note(optuna.trial.Trial(study, study.trials[3]._trial_id), "of the trial")
    status, document = of_ours(documents, study._study_id)
    assert (status, document) == of_stock(database, study._study_id)
    assert document["trials"][3]["note"] == {"version": 1, "body": "of the trial"}
    assert len(read) == 6


@pytest.mark.parametrize(
    "attrs",
    [
        {"constraints": [0.5, -1.0]},
        {"constraints": []},
        {"artifacts:1": json.dumps({"artifact_id": "1", "filename": "a", "mimetype": "b", "encoding": None})},
        {"fixed_params": {"x": 0.25, "kind": None, 'q"': "z"}},
        {"fixed_params": {}},
        {"coarse-to-fine:explanation": {"stage": 1}},
    ],
)
def test_system_attributes_of_trials(database: Database, attrs: dict[str, Any]) -> None:
    documents, study = Documents(database), a_study(database)
    for _ in range(2):
        study.add_trial(create_trial(value=0.5, system_attrs=attrs))
        study.add_trial(create_trial(value=0.5, system_attrs={key: type(value)() for key, value in attrs.items() if
                                                              not isinstance(value, str)}))  # fmt: skip
        assert of_ours(documents, study._study_id) == of_stock(database, study._study_id)


def test_the_front_of_several_objectives(database: Database) -> None:
    study = optuna.create_study(storage=database, directions=["minimize", "maximize", "minimize"])
    for values in [
        (1, 1, 1),
        (0, 1, 1),
        (0, 1, 1),
        (2, 5, 1),
        (2, 4, 1),
        (math.inf, 9, -math.inf),
        (3, 3, 3),
    ]:
        study.add_trial(create_trial(values=values))
    study.ask()
    status, document = of_ours(Documents(database), study._study_id)
    assert (status, document) == of_stock(database, study._study_id)
    assert [trial["number"] for trial in document["best_trials"]] == [1, 2, 3, 5]


def test_a_study_where_people_choose_is_left_to_the_dashboard(database: Database) -> None:
    study = optuna.create_study(storage=database)
    database.set_study_system_attr(study._study_id, "preference:is_preferential", True)
    for _ in range(3):
        study.ask().suggest_float("x", 0, 1)
    report_preferences(study._study_id, database, [(0, 1)])
    for _ in range(2):
        assert of_ours(Documents(database), study._study_id) == of_stock(database, study._study_id)


def test_what_the_dashboard_writes_otherwise_is_left_to_it(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(trial_texts._INFINITE, "INF_POS", '"endless"')  # so that ours is wrong
    documents, study = Documents(database), optuna.create_study(storage=database)
    for i in range(4):
        study.add_trial(create_trial(value=0.5, intermediate_values={1: math.inf}))
        study.add_trial(create_trial(value=0.5))
        assert of_ours(documents, study._study_id) == of_stock(database, study._study_id), i


def test_another_study_under_the_same_id_is_another(sqlite_url: str) -> None:
    database = open_storage(sqlite_url)
    documents, study = Documents(database), a_study(database)
    of_ours(documents, 1)
    optuna.delete_study(study_name=study.study_name, storage=database)
    assert of_ours(documents, 1)[0] == of_stock(database, 1)[0] == 404
    study = optuna.create_study(storage=database, study_name=study.study_name)
    study.add_trial(create_trial(value=0.5))
    assert study._study_id == 1  # as SQLite gives ids again
    assert of_ours(documents, 1) == of_stock(database, 1)
    database.close()


def test_another_study_whose_first_trial_waits_too_is_another(sqlite_url: str) -> None:
    database = open_storage(sqlite_url)
    documents = Documents(database)
    for value in (0.5, 0.25):
        study = optuna.create_study(storage=database, study_name="s")
        study.enqueue_trial({"x": 0.5})
        study.add_trials([create_trial(value=value + i) for i in range(3)])
        assert study._study_id == 1
        assert of_ours(documents, 1) == of_stock(database, 1)
        optuna.delete_study(study_name="s", storage=database)
    database.close()


def test_an_empty_study_and_one_that_is_not_there(database: Database) -> None:
    documents = Documents(database)
    assert of_ours(documents, 1) == of_stock(database, 1)
    study = optuna.create_study(storage=database)
    for _ in range(2):
        assert of_ours(documents, study._study_id) == of_stock(database, study._study_id)


def test_running_trials_with_attributes_that_the_dashboard_writes(database: Database) -> None:
    """Artifacts and constraints are on record before a trial ends: each has its own."""
    documents, study = Documents(database), a_study(database)
    for i in range(3):
        trial_id = study.ask()._trial_id
        artifact = {"artifact_id": f"{i}", "filename": "a", "mimetype": "b", "encoding": None}
        database.set_trial_system_attr(trial_id, f"artifacts:{i}", json.dumps(artifact))
        database.set_trial_system_attr(study.ask()._trial_id, "constraints", [float(i)])
    for _ in range(2):
        assert of_ours(documents, study._study_id) == of_stock(database, study._study_id)


def test_a_reading_that_breaks_off_leaves_no_trial_as_it_was(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents, study = Documents(database), a_study(database)
    running = [study.ask() for _ in range(3)]
    of_ours(documents, study._study_id)
    for trial in running:
        study.tell(trial, 0.5)
    study.ask()

    def broken(of: Callable[..., Iterator[Any]], *args: Any) -> Iterator[Any]:
        yield next(iter(of(*args)))
        raise StorageError("the database does not answer")

    for name in ("texts_of", "texts_after"):
        with monkeypatch.context() as patch:
            patch.setattr(large_studies, name, partial(broken, getattr(trial_texts, name)))
            with pytest.raises(StorageError):
                documents.get(study._study_id)
    status, document = of_ours(documents, study._study_id)
    assert (status, document) == of_stock(database, study._study_id)
    assert [trial["state"] for trial in document["trials"][6:]] == ["Complete"] * 3 + ["Running"]


def test_a_note_on_the_first_trial_leaves_no_others_to_the_dashboard(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[list[int]] = []
    of_few = large_studies._Few.__init__

    def noting(self: Any, database: Database, study_id: int, trial_ids: list[int]) -> None:
        shown.append(trial_ids)
        of_few(self, database, study_id, trial_ids)

    monkeypatch.setattr(large_studies._Few, "__init__", noting)
    documents, study = Documents(database), optuna.create_study(storage=database)
    study.add_trials([create_trial(value=float(i)) for i in range(50)])
    for number in (0, 1):
        optuna_dashboard.save_note(optuna.trial.Trial(study, study.trials[number]._trial_id), "a note")
        for _ in range(2):
            assert of_ours(documents, study._study_id) == of_stock(database, study._study_id)
    assert max(map(len, shown)) == 3


def test_a_study_that_is_deleted_between_two_readings(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = open_storage(sqlite_url)
    documents, study = Documents(database), a_study(database)
    trials = large_studies._Few.get_all_trials

    def too_late(self: Any, study_id: int, *args: Any, **settings: Any) -> list[FrozenTrial]:
        with contextlib.suppress(KeyError):
            database.delete_study(study_id)
        return trials(self, study_id, *args, **settings)

    monkeypatch.setattr(large_studies._Few, "get_all_trials", too_late)
    assert documents.get(study._study_id)[0] == 404
    database.close()


def test_an_address_that_is_no_study_takes_no_others_place(
    database: Database, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_studies, "STUDIES", 1)
    documents, study = Documents(database), a_study(database)
    for study_id in (study._study_id, 999, 998, study._study_id):
        documents.get(study_id)
    assert len(read) == 6
    assert list(documents._kept) == [study._study_id]


def test_no_more_studies_are_kept_while_the_database_fails(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise StorageError("the database does not answer")

    documents = Documents(database)
    monkeypatch.setattr(large_studies, "_identity", fails)
    for study_id in range(1, 3 * large_studies.STUDIES):
        with pytest.raises(StorageError):
            documents.get(study_id)
    assert len(documents._kept) <= large_studies.STUDIES


def test_only_the_last_few_studies_are_kept(
    database: Database, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_studies, "STUDIES", 1)
    documents = Documents(database)
    a, b = [optuna.create_study(storage=database, study_name=name) for name in "ab"]
    for study in (a, b):
        study.add_trial(create_trial(value=0.5))
    for study in (a, b, b, a):
        documents.get(study._study_id)
    assert len(read) == 3


def test_two_who_look_at_once_have_it_read_once(database: Database, read: Read) -> None:
    documents, study = Documents(database), a_study(database)
    answers: list[tuple[int, bytes]] = []
    threads = [
        threading.Thread(target=lambda: answers.append(documents.get(study._study_id))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read) == 6
    assert len(set(answers)) == 1


DISTRIBUTIONS: dict[str, tuple[BaseDistribution, ...]] = {
    "x": (FloatDistribution(-1, 1), FloatDistribution(-2, 0.5), FloatDistribution(0, 1, step=0.25)),
    "rate": (FloatDistribution(1e-9, 1e3, log=True),),
    "n": (IntDistribution(1, 9), IntDistribution(1, 5, step=2), IntDistribution(1, 300, log=True)),
    'kind "é"': (CategoricalDistribution([None, True, 1.5, "a", "ü\"\\"]), CategoricalDistribution(["b", "a"])),
}  # fmt: skip
ATTRIBUTES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=5),
    st.just("x" * 2000), st.just(list(range(600))), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)  # fmt: skip
MOMENTS = st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1))


@st.composite
def trials(draw: st.DrawFn) -> FrozenTrial:
    state = draw(st.sampled_from(TrialState))
    names = draw(st.sets(st.sampled_from(sorted(DISTRIBUTIONS))))
    distributions = {name: draw(st.sampled_from(DISTRIBUTIONS[name])) for name in sorted(names)}
    params = {name: value_of(draw, distribution) for name, distribution in distributions.items()}
    steps = st.dictionaries(st.integers(0, 9), st.floats(width=32), max_size=4)
    trial = create_trial(
        state=state,
        value=draw(st.floats(allow_nan=False)) if state == TrialState.COMPLETE else None,
        params=params,
        distributions=distributions,
        user_attrs=draw(st.dictionaries(st.text("ab\"é", max_size=2), ATTRIBUTES, max_size=3)),
        system_attrs={"fixed_params": params} if draw(st.booleans()) else {},
        intermediate_values=draw(steps),
    )  # fmt: skip
    if state != TrialState.WAITING:
        trial.datetime_start = draw(MOMENTS)
    if state.is_finished():
        trial.datetime_complete = draw(MOMENTS)
    return trial


def value_of(draw: st.DrawFn, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return draw(st.sampled_from(distribution.choices))
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    number = draw(st.floats(0, 1))
    low, high, step = distribution.low, distribution.high, distribution.step
    value = low + number * (high - low)
    value = low + round((value - low) / step) * step if step else value
    return int(value) if isinstance(distribution, IntDistribution) else float(min(value, high))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.lists(trials(), max_size=6), st.lists(trials(), max_size=3))
def test_any_study_is_written_as_the_dashboard_writes_it(
    sqlite_url: str, first: list[FrozenTrial], more: list[FrozenTrial]
) -> None:
    with contextlib.closing(open_storage(sqlite_url)) as database:
        study_id = optuna.create_study(storage=database)._study_id
        documents = Documents(database)
        for number, trial in enumerate([*first, *more]):
            trial.number = number
        for some in (first, more):
            with database.transaction() as session:
                database.add_trials(session, study_id, some)
            assert of_ours(documents, study_id) == of_stock(database, study_id)
