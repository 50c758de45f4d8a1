"""Studies with several objectives over HTTP: by the API, by the client, by workers, and in the dashboard."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import optuna
import pytest
from api_client import Api, serving
from front_door import Service
from optuna.trial import TrialState
from optuna_dashboard import wsgi
from served import Served, told

from tuner import StudyDefinition, StudyManager
from tuner.ask_tell import Answer
from tuner.client import Client
from tuner.client.worker import WorkerSettings, work
from tuner.errors import ConflictError, DefinitionError
from tuner.service.identity import Role
from tuner.trial_run import Outcome

STUDY = {
    "name": "s",
    "objectives": [{"name": "error"}, {"name": "speed", "direction": "maximize"}],
    "budget": {"trials": 6},
    "space": {"x": {"low": 0.0, "high": 1.0}, "units": {"type": "int", "low": 1, "high": 9}},
    "sampler": {"name": "tpe", "startup_trials": 3},
}
OBJECTIVES = [{"name": "error", "direction": "minimize"}, {"name": "speed", "direction": "maximize"}]
ASK = "/v1/studies/s/trials:ask"


def at(trial: dict[str, Any]) -> str:
    return f"/v1/studies/s/trials/{trial['number']}"


def asked(service: Api) -> dict[str, Any]:
    (trial,) = service.post(ASK, {"client_id": "w"})["trials"]
    return dict(trial)


def complete(service: Api, *values: Any) -> None:
    trial = asked(service)
    body = {"fence": trial["fence"], "state": "complete", "values": list(values)}
    assert service.post(f"{at(trial)}:tell", body) == {"state": "complete"}


def test_from_create_to_the_front(service: Api) -> None:
    created = service.post("/v1/studies", STUDY, 201)
    assert service.post("/v1/studies", STUDY, 200)["name"] == "s"
    assert (created["objectives"], created["front"], created["best"]) == (OBJECTIVES, 0, None)
    assert service.get("/v1/studies/s/best") == {"trials": []}
    trial = asked(service)
    assert (trial["direction"], trial["objectives"]) == ("minimize, maximize", OBJECTIVES)
    report = {"fence": trial["fence"], "values": [{"step": 1, "value": 0.5}]}
    assert service.post(f"{at(trial)}:report", report)["answer"] == "continue"
    tell = {"fence": trial["fence"], "state": "complete", "values": [0.5, "inf"]}
    for _ in range(2):
        assert service.post(f"{at(trial)}:tell", tell) == {"state": "complete"}
    other = {**tell, "values": [0.5, 3.0]}
    assert service.post(f"{at(trial)}:tell", other, 409)["type"] == "urn:tuner:conflict"
    for values in ([0.25, 1.0], [0.25, 1.0], [0.75, 1.0], [0.5, 0.5], [-1, "-inf"]):
        complete(service, *values)
    trials = service.get("/v1/studies/s/trials")["trials"]
    assert [(t["value"], t["values"]) for t in trials[:2]] == [(None, [0.5, "inf"]), (None, [0.25, 1.0])]
    assert trials[0]["reports"] == [{"step": 1, "value": 0.5}]
    front = service.get("/v1/studies/s/best")["trials"]
    assert [t["number"] for t in front] == [0, 1, 2, 5]
    shown = service.get("/v1/studies/s")
    assert (shown["status"], shown["front"], shown["best"]) == ("finished", 4, None)
    assert service.get("/v1/studies")["studies"] == [shown]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"state": "complete", "value": 1.0}, "s has 2 objectives (error, speed); got 1"),
        ({"state": "complete", "values": [1.0]}, "s has 2 objectives (error, speed); got 1"),
        ({"state": "complete", "values": [1.0, 2.0, 3.0]}, "got 1, 2, 3"),
        ({"state": "complete", "values": []}, "got none"),
        ({"state": "complete", "values": [1.0] * 9}, "values: list should have at most 8 items"),
        ({"state": "complete", "values": [1.0, "nan"]}, 'values.1: must be a finite number, "inf" or "-inf"'),
        ({"state": "complete", "values": [1.0, True]}, "values.1: must be a finite number"),
        ({"state": "complete", "values": [1.0, 2.0], "value": 1.0}, "with value or values, not both"),
        ({"state": "complete"}, "a completed trial needs a value"),
        ({"state": "fail", "values": [1.0, 2.0]}, "a failed trial has no value; got 1.0, 2.0"),
        ({"state": "fail", "values": []}, "a failed trial has no value; got an empty list"),
        ({"state": "pruned", "values": [1.0, 2.0]}, "a pruned trial of several objectives has no values"),
    ],
)
def test_what_makes_no_sense_is_refused(sqlite_url: str, body: dict[str, Any], says: str) -> None:
    with serving(sqlite_url) as service:
        service.post("/v1/studies", STUDY, 201)
        trial = asked(service)
        refused = service.post(f"{at(trial)}:tell", {"fence": trial["fence"], **body}, 422)
        assert says in refused["detail"]
        assert service.get(at(trial))["state"] == "running"


def test_definitions_that_cannot_be_are_refused(service: Api) -> None:
    pruned = service.post("/v1/studies", {**STUDY, "pruner": {"name": "median"}}, 422)
    assert "pruner 'median' stops trials by one value" in pruned["detail"]
    unable = service.post("/v1/studies", {**STUDY, "sampler": {"name": "cma-es"}}, 422)
    assert "these can: grid, random, sobol, tpe, gp" in unable["detail"]
    arms = {"arms": [{"name": "a"}, {"name": "b"}]}
    judged = service.post("/v1/comparisons", {**STUDY, "comparison": arms}, 422)
    assert "a comparison judges its arms by one value" in judged["detail"]
    assert service.get("/v1/studies")["studies"] == []


def test_a_study_that_is_deleted_meanwhile_hides_no_others(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a script of Optuna's, while the list of studies is made."""
    service = Service(sqlite_url, api=None)
    try:
        with serving(sqlite_url) as interface:
            for name in ("gone", "s"):
                interface.post("/v1/studies", {**STUDY, "name": name}, 201)
            found = StudyManager.all_studies

            def too_late(self: StudyManager) -> Any:
                studies = found(self)
                if any(study.study_name == "gone" for study in studies):
                    optuna.delete_study(study_name="gone", storage=service.database)
                return studies

            monkeypatch.setattr(StudyManager, "all_studies", too_late)
            assert [study["name"] for study in interface.get("/v1/studies")["studies"]] == ["s"]
            monkeypatch.undo()
            interface.post("/v1/studies", {**STUDY, "name": "gone"}, 201)
            page = service.browser(Role.VIEWER)
            monkeypatch.setattr(StudyManager, "all_studies", too_late)
            answer = page("GET", "/")
            assert answer.status_code == 200
            assert "gone" not in answer.text
    finally:
        service.close()


def test_a_pruned_trial_harms_no_later_ask(service: Api) -> None:
    service.post("/v1/studies", STUDY, 201)
    for values in ([1.0, 1.0], [2.0, 2.0], [3.0, 1.0]):
        complete(service, *values)
    trial = asked(service)
    fence = {"fence": trial["fence"]}
    service.post(f"{at(trial)}:report", {**fence, "values": [{"step": 1, "value": 0.5}]})
    assert service.post(f"{at(trial)}:tell", {**fence, "state": "pruned"}) == {"state": "pruned"}
    complete(service, 1.0, 1.0)  # TPE has looked at it


def test_importances_are_those_of_one(service: Api) -> None:
    service.post("/v1/studies", {**STUDY, "budget": {"trials": 40}, "sampler": {"name": "random"}}, 201)
    for _ in range(40):
        trial = asked(service)
        values = [trial["params"]["x"], trial["params"]["units"]]
        service.post(f"{at(trial)}:tell", {"fence": trial["fence"], "state": "complete", "values": values})
    path = "/v1/studies/s/importances"
    assert "say objective, one of error, speed" in service.get(path, 422)["detail"]
    assert "did you mean 'speed'?" in service.get(path, 422, objective="sped")["detail"]
    by = {name: service.get(path, objective=name)["importances"] for name in ("error", "speed")}
    assert by["error"]["x"] > 0.9
    assert by["speed"]["units"] > 0.9


def test_a_study_comes_back_as_it_went(service: Api, tmp_path: Path) -> None:
    service.post("/v1/studies", STUDY, 201)
    complete(service, 1.0, "-inf")
    document = service.post("/v1/studies/s:export")
    with serving(f"sqlite:///{tmp_path}/there.db") as there:
        there.post("/v1/studies:import", document, 201)
        assert there.post("/v1/studies/s:export") == document
        assert there.get("/v1/studies/s") == service.get("/v1/studies/s")
        assert there.get("/v1/studies/s/best") == service.get("/v1/studies/s/best")


# ---------------------------------------------------------------------------------------------------------- the client


@pytest.fixture
def served(sqlite_url: str) -> Iterator[Served]:
    with Served(sqlite_url) as running:
        yield running


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    with Client(served.url, "token-of-admin") as opened:
        yield opened


def function(trial: optuna.Trial) -> Any:
    x, units = trial.suggest_float("x", 0, 1), trial.suggest_int("units", 1, 9)
    answers = {2: x, 3: (x, math.nan), 4: [(x - 0.5) ** 2, float("inf")]}
    return answers.get(trial.number, ((x - 0.5) ** 2, units))


def test_a_function_has_the_same_trials_as_in_one_process(
    served: Served, client: Client, tmp_path: Path
) -> None:
    wanted = {**STUDY, "budget": {"trials": 20}}
    study = client.create(wanted)
    study.optimize(function)
    with StudyManager(f"sqlite:///{tmp_path}/local.db") as manager:
        local = manager.run(study.definition, function)
        remote = served.manager.load("s").trials
        assert [told(trial)[:-1] for trial in remote] == [told(trial)[:-1] for trial in local.trials]
        assert [trial.number for trial in study.best_trials()] == [t.number for t in local.best_trials]
    states = [trial.state for trial in study.trials()]
    assert states == ["complete"] * 2 + ["fail"] * 2 + ["complete"] * 16
    assert study.trial(3).failure == "speed is not a number"
    assert study.trial(4).values is not None
    assert (study.trial(4).value, study.trial(4).values[1]) == (None, math.inf)
    status = study.status()
    assert ([o.name for o in status.objectives], status.best) == (["error", "speed"], None)
    assert status.front == len(study.best_trials())
    with pytest.raises(DefinitionError, match=r"no best trial: best_trials\(\) has the Pareto front"):
        study.best()
    assert set(study.importances("error")) == {"x", "units"}


def test_step_by_step(client: Client) -> None:
    study = client.create(STUDY)
    lease = study.ask()
    assert lease is not None
    assert study.report(lease, 1, 0.5).answer is Answer.CONTINUE
    with pytest.raises(DefinitionError, match="has 2 objectives"):
        study.tell(lease, 0.5)
    assert study.tell(lease, [0.5, 2.0]) == "complete"
    assert study.tell(lease, [0.5, 2.0]) == "complete"
    with pytest.raises(ConflictError):
        study.tell(lease, [0.5, 3.0])
    lease = study.ask()
    assert lease is not None
    assert study.tell(lease, [0.5, math.nan]) == "fail"
    (best,) = study.best_trials()
    assert best.values == [0.5, 2.0]


def test_one_objective_has_one_best_trial(client: Client) -> None:
    study = client.create({**STUDY, "objectives": []})
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1) + trial.suggest_int("units", 1, 9))
    (best,) = study.best_trials()
    assert best == study.best()
    assert (study.status().objectives, study.status().front) == ([], None)


# ------------------------------------------------------------------------------------------------------------ workers


def test_a_worker_has_the_values_of_a_local_run(served: Served, client: Client, tmp_path: Path) -> None:
    document = {
        "name": "trade",
        "objective": "digits-few",
        "objectives": [{"name": "dev_error"}, {"name": "parameters"}],
        "budget": {"trials": 5},
        "fixed": {"epochs": 3},
        "space": {"hidden_units": {"type": "int", "low": 2, "high": 32, "scale": "log"}},
        "sampler": {"name": "tpe", "startup_trials": 3},
    }
    study = client.create(document)
    outcomes: list[Outcome] = []
    settings = WorkerSettings(served.url, "token-of-worker", study="trade")
    work(settings, executor="threads", workers=1, on_outcome=outcomes.append)
    with StudyManager(f"sqlite:///{tmp_path}/local.db") as manager:
        local = manager.run(study.definition)
        assert [trial.values for trial in study.trials()] == [trial.values for trial in local.trials]
    assert sorted(outcome.values or () for outcome in outcomes) == sorted(
        tuple(t.values) for t in local.trials
    )
    unknown = {**document, "name": "u", "objectives": [{"name": "dev_eror"}, {"name": "parameters"}]}
    with pytest.raises(DefinitionError, match="did you mean 'dev_error'"):
        client.create(unknown)


# ------------------------------------------------------------------------------------------- what optuna-dashboard is


def test_the_document_of_the_dashboard_names_the_objectives(served: Served, client: Client) -> None:
    """What the stock dashboard draws the Pareto front from."""
    study = client.create(STUDY)
    for values in itertools.product([1.0, 2.0], [1.0, 2.0]):
        lease = study.ask()
        assert lease is not None
        study.report(lease, 1, 0.5)
        study.tell(lease, values)
    app = wsgi(served.manager._storage)
    with httpx.Client(transport=httpx.WSGITransport(app=app), base_url="http://dashboard") as browser:
        document = json.loads(browser.get("/api/studies/1?after=0").text)
        table = browser.get("/csv/1").text
    assert document["directions"] == ["minimize", "maximize"]
    assert document["objective_names"] == ["error", "speed"]
    assert [trial["number"] for trial in document["best_trials"]] == [1]
    assert table.splitlines()[0].startswith("Number,State,error,speed")


def test_the_first_page_says_how_large_the_front_is(sqlite_url: str) -> None:
    service = Service(sqlite_url)
    try:
        service.manager.create(StudyDefinition.parse(STUDY))
        page = service.browser(Role.VIEWER)
        assert "front of" not in page("GET", "/").text
        ask_tell = service.manager.ask_tell("s")
        for values in itertools.product([1.0, 2.0], [2.0, 2.0]):
            lease = ask_tell.ask()
            assert lease is not None
            ask_tell.tell(lease, TrialState.COMPLETE, values)
        assert "front of 2" in page("GET", "/").text
    finally:
        service.close()
