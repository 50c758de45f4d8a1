"""Studies over HTTP, on SQLite and PostgreSQL alike."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from api_client import Api, serving

from tuner import StudyManager
from tuner.errors import TunerError
from tuner.service.identity import Identity, Role

STUDY: dict[str, Any] = {
    "name": "s",
    "space": {"x": {"low": 0.0, "high": 1.0}, "c": {"choices": ["a", 1, False, None, 2.5]}},
    "sampler": {"name": "random"},
    "budget": {"trials": 5, "epochs": 100},
}


def run_one(service: Api, value: float | str | None = 0.5, study: str = "s", **tell: Any) -> dict[str, Any]:
    """Ask, report once, tell."""
    (trial,) = service.post(f"/v1/studies/{study}/trials:ask", {"client_id": "w"})["trials"]
    at = f"/v1/studies/{study}/trials/{trial['number']}"
    service.post(f"{at}:report", {"fence": trial["fence"], "values": [{"step": 1, "value": 0.5}]})
    state = "complete" if value is not None else "fail"
    service.post(f"{at}:tell", {"fence": trial["fence"], "state": state, "value": value, **tell})
    return trial


def test_create_again_and_another(service: Api) -> None:
    made = service.post("/v1/studies", STUDY, 201)
    assert service.post("/v1/studies", STUDY) == made
    assert made["state"] == "open"
    assert made["budget"] == {"trials": 5, "epochs": 100, "seconds": None}
    assert made["left"] == {"trials": 5, "epochs": 100, "seconds": None}
    assert (made["sampler"], made["pruner"], made["objective"], made["best"]) == (
        "random",
        "none",
        None,
        None,
    )
    problem = service.post("/v1/studies", {**STUDY, "seed": 1}, 409)
    assert problem["type"] == "urn:tuner:conflict"
    assert "another seed" in problem["detail"]
    assert service.get("/v1/studies/s") == made


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "a/b"}, "name: must match"),
        ({"objective": "nothing-of-this-name"}, "nothing-of-this-name"),
        ({"budget": {"trials": "5"}}, "budget.trials"),
        ({"budget": {"trials": True}}, "budget.trials"),
        ({"space": {"x": {"low": 2.0, "high": 1.0}}}, "low <= high"),
        ({"space": {f"p{i}": {"low": 0, "high": 1} for i in range(257)}}, "at most 256 parameters; got 257"),
        ({"space": {"x": {"choices": list(range(1025))}}}, "1024"),
        ({"space": {"x": {"type": "int", "low": 0, "high": 2**54}}}, str(2**53)),
        ({"space": {"x": {"choices": ["a" * 513]}}}, "512 characters"),
        ({"space": {"x": {"type": {}, "low": 0, "high": 1}}}, "space.x"),
        ({"system_attrs": {}}, "system_attrs: unknown key"),
        ({"sampler": {"name": "grid", "points": 10**9}}, "sampler"),
        ({"sampler": {"name": "grid", "levels": {"x": [0.5] * 1025, "c": ["a"]}}}, "1024"),
        ({"sampler": {"name": "tpe", "candidates": 10**9}}, "100000"),
        ({"pruner": {"name": "successive-halving", "min_early_stopping_rate": 10**9}}, "64"),
        ({"pruner": {"name": "hyperband", "max_epochs": 10**300}}, str(2**31 - 1)),
    ],
)
def test_what_breaks_a_rule_is_refused_with_the_rule(service: Api, change: dict[str, Any], says: str) -> None:
    problem = service.post("/v1/studies", {**STUDY, **change}, 422)
    assert problem["type"] == "urn:tuner:invalid"
    assert says in problem["detail"]
    assert service.get("/v1/studies")["studies"] == []


@pytest.mark.parametrize("free", [2, 256])
def test_a_grid_for_a_large_budget_is_not_larger_than_grids_are(service: Api, free: int) -> None:
    space = {f"p{k}": {"low": 0.0, "high": 1.0} for k in range(free)}
    grid = {"name": "g", "space": space, "sampler": {"name": "grid"}, "budget": {"trials": 10**15}}
    assert service.post("/v1/studies", grid, 201)["budget"]["trials"] <= 1_000_000


def test_what_a_study_has_come_to(service: Api) -> None:
    service.post("/v1/studies", STUDY, 201)
    run_one(service, 0.5, seconds=1.5)
    best = run_one(service, -2.0)
    run_one(service, None)
    service.post("/v1/studies/s/trials:ask", {"client_id": "w"})
    study = service.get("/v1/studies/s")
    assert study["counts"] == {"running": 1, "waiting": 0, "complete": 2, "pruned": 0, "fail": 1}
    assert study["best"] == {"number": 1, "value": -2.0, "params": best["params"]}
    assert study["spent"] == {"trials": 4, "ended": 3, "epochs": 3, "seconds": 1.5}
    assert study["left"] == {"trials": 1, "epochs": 97, "seconds": None}
    assert [trial["number"] for trial in service.get("/v1/studies/s/best")["trials"]] == [1]


def test_a_list_goes_page_by_page_over_those_one_may_see(service: Api) -> None:
    names = [f"team-{k % 2}.{k}" for k in range(7)]
    for name in names:
        service.post("/v1/studies", {**STUDY, "name": name}, 201)
    service.post("/v1/studies/team-0.2:archive")
    seen, token = [], None
    while True:
        page = service.get("/v1/studies", page_size=2, **({"page_token": token} if token else {}))
        assert len(page["studies"]) <= 2
        seen += [study["name"] for study in page["studies"]]
        if (token := page["next_page_token"]) is None:
            break
    assert seen == [name for name in names if name != "team-0.2"]
    mine = service.as_(Identity("me", Role.VIEWER, prefix="team-1."))
    assert [s["name"] for s in mine.get("/v1/studies")["studies"]] == ["team-1.1", "team-1.3", "team-1.5"]
    assert mine.get("/v1/studies/team-0.0", 403)["type"] == "urn:tuner:forbidden"
    assert len(service.get("/v1/studies", archived=True)["studies"]) == 7
    for wrong in ("x", "YWZ0ZXIgLTE", "é"):
        assert "page_token" in service.get("/v1/studies", 422, page_token=wrong)["detail"]


@pytest.mark.parametrize("state", ["pause", "stop", "archive"])
def test_a_study_that_is_not_open_hands_out_nothing(service: Api, url: str, state: str) -> None:
    service.post("/v1/studies", STUDY, 201)
    assert service.get("/v1/studies/s")["status"] == "open"
    (trial,) = service.post("/v1/studies/s/trials:ask", {"client_id": "w"})["trials"]
    named = {"pause": "paused", "stop": "stopped", "archive": "archived"}[state]
    assert service.post(f"/v1/studies/s:{state}")["state"] == named
    if state == "archive":
        for verb in ("pause", "resume", "stop"):
            refused = service.post(f"/v1/studies/s:{verb}", expect=409)
            assert refused["detail"].endswith("s is archived, and no trial of it begins; put it back first")
    asked = service.post("/v1/studies/s/trials:ask", {"client_id": "w"})
    assert asked == {"trials": [], "state": named, "is_finished": False}
    reply = service.post(
        "/v1/studies/s/trials/0:report", {"fence": trial["fence"], "values": [{"step": 1, "value": 1.0}]}
    )
    assert reply["answer"] == ("stop" if state == "stop" else "continue")
    with (
        StudyManager(url) as manager,
        pytest.raises(TunerError, match=f"s is {named}: it hands out no trials"),
    ):
        manager.run(manager.definition("s"), lambda trial: 0.0)
    undo = "unarchive" if state == "archive" else "resume"
    assert service.post(f"/v1/studies/s:{undo}")["state"] == "open"
    assert len(service.post("/v1/studies/s/trials:ask", {"client_id": "w"})["trials"]) == 1


def test_a_study_of_stock_optuna_is_shown_and_not_run(service: Api, url: str) -> None:
    storage = optuna.storages.RDBStorage(url)
    study = optuna.create_study(study_name="stock", storage=storage, directions=["minimize", "maximize"])
    study.optimize(lambda trial: (trial.suggest_float("x", 0, 1), trial.number % 2), n_trials=4)
    shown = service.get("/v1/studies/stock")
    assert (shown["direction"], shown["definition"], shown["best"]) == ("minimize, maximize", None, None)
    front = service.get("/v1/studies/stock/best")["trials"]
    assert {t["number"] for t in front} == {t.number for t in study.best_trials}
    assert all(len(trial["values"]) == 2 for trial in front)
    assert "several objectives" in service.get("/v1/studies/stock/importances", 422)["detail"]
    assert (
        service.post("/v1/studies/stock/trials:ask", {"client_id": "w"}, 404)["type"] == "urn:tuner:not_found"
    )
    storage.scoped_session.remove()
    storage.engine.dispose()


def test_importances_are_those_of_the_parameters(service: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    space = {"x": {"low": 0.0, "high": 1.0}, "y": {"low": 0.0, "high": 1.0}}
    service.post("/v1/studies", {**STUDY, "space": space, "budget": {}}, 201)
    assert service.get("/v1/studies/s/importances") == {"importances": {}, "trials": 0}
    for _ in range(2):
        run_one(service)
    assert set(service.get("/v1/studies/s/importances")["importances"]) == {"x", "y"}
    for _ in range(4):
        for trial in service.post("/v1/studies/s/trials:ask", {"client_id": "w", "count": 10})["trials"]:
            told = {"fence": 1, "state": "complete", "value": trial["params"]["x"] ** 2}
            service.post(f"/v1/studies/s/trials/{trial['number']}:tell", told)
    found = service.get("/v1/studies/s/importances")
    shares = found["importances"]
    assert found["trials"] == 42
    assert shares["x"] > 0.8
    assert sum(shares.values()) == pytest.approx(1.0)
    monkeypatch.setattr("tuner.service.studies.MOST_FOR_IMPORTANCES", 40)
    latest = service.get("/v1/studies/s/importances")
    assert latest["trials"] == 40
    assert latest["importances"] != shares


def test_nobody_gets_anywhere_without_the_role(service: Api) -> None:
    paths = service.get("/v1/openapi.json")["paths"]
    assert len(paths) > 20
    viewer, nobody = service.as_(Identity("v", Role.VIEWER)), service.as_(None)
    own = {"/metrics": {"get": {}}, "/v1/openapi.json": {"get": {}}}
    for template, methods in {**paths, **own}.items():
        path = template.format(study="s", number="0", name="c")
        for method in methods:
            sent = {"content": b"x", "headers": {"content-type": "application/octet-stream"}}
            sent = sent if method == "put" else {} if method == "get" else {"json": {}}
            assert nobody.call(method.upper(), path, **sent).status_code == 401, path
            if method != "get" or path.endswith("/checkpoint"):
                assert viewer.call(method.upper(), path, **sent).status_code == 403, path


def test_the_document_is_openapi_and_ours(service: Api) -> None:
    document = service.get("/v1/openapi.json")
    assert document["openapi"].startswith("3.1")
    assert "/v1/studies/{study}/trials/{number}:report" in document["paths"]
    names = [op["operationId"] for path in document["paths"].values() for op in path.values()]
    assert len(names) == len(set(names))


def test_paths_that_are_not_there_are_problems(service: Api) -> None:
    assert service.get("/v1/nothing", 404)["type"] == "urn:tuner:not_found"
    assert service.get("/v1/studies/s:nothing", 404)["type"] == "urn:tuner:not_found"
    for path, methods in (("/v1/studies", "GET, POST"), ("/v1/studies/s:pause", "POST"), ("/metrics", "GET")):
        response = service.call("DELETE", path)
        assert (response.status_code, response.json()["type"]) == (405, "urn:tuner:method_not_allowed")
        assert response.headers["allow"] == methods


def test_what_nobody_expected_is_answered_without_details(url: str, caplog: pytest.LogCaptureFixture) -> None:
    with serving(url) as service:
        service.app.state.desk.manager.load = lambda name: 1 / 0
        problem = service.get("/v1/studies/s", 500)
    assert problem["type"] == "urn:tuner:internal"
    assert "division" not in str(problem)
    assert "ZeroDivisionError" in caplog.text


def test_metrics_are_for_who_may_see_all_studies(service: Api) -> None:
    limited = service.as_(Identity("ann", Role.ADMIN, "team-a."))
    assert "team-a." in limited.get("/metrics", 403)["detail"]


def test_how_a_study_stands(service: Api) -> None:
    service.post("/v1/studies", {**STUDY, "budget": {"trials": 1}}, 201)

    def standing() -> tuple[str, str, bool]:
        found = service.get("/v1/studies/s")
        return found["state"], found["status"], found["is_finished"]

    assert standing() == ("open", "open", False)
    service.post("/v1/studies/s:pause")
    assert standing() == ("paused", "paused", False)
    service.post("/v1/studies/s:resume")
    (trial,) = service.post("/v1/studies/s/trials:ask", {"client_id": "w"})["trials"]
    assert standing() == ("open", "open", False)
    tell = {"fence": trial["fence"], "state": "complete", "value": 1}
    service.post("/v1/studies/s/trials/0:tell", tell)
    assert standing() == ("open", "finished", True)
    service.post("/v1/studies/s:stop")
    assert standing() == ("stopped", "finished", True)
    service.post("/v1/studies/s:archive")
    assert standing() == ("archived", "archived", True)


def test_words_tell_nothing_of_the_database(service: Api) -> None:
    service.post("/v1/studies", STUDY, 201)
    said = [
        service.get("/v1/studies/ss", 404),
        service.get("/v1/comparisons/ss", 404),
        service.post("/v1/studies", {**STUDY, "seed": 1}, 409),
    ]
    run_one(service, 0.5)
    again = {"fence": 1, "state": "complete", "value": 1}
    said.append(service.post("/v1/studies/s/trials/0:tell", again, 409))
    said.append(service.post("/v1/studies/s/trials/0:release", {"fence": 1}, 409))
    said.append(service.post("/v1/studies/s/trials/0:tell", {**again, "value": "nan"}, 422))
    assert [each["detail"] for each in said] == [
        "no study is named 'ss'",
        "no comparison is named 'ss'",
        "there is a study 's' already, with another seed; use another name",
        "trial 0 was told complete with 0.5 before; now complete with 1.0",
        "lease 1 on trial 0 is lost (it ended: told)",
        'value: must be a finite number, "inf" or "-inf" (a trial whose value is NaN has failed); got \'nan\'',
    ]


def test_a_study_of_nothing_is_refused(service: Api) -> None:
    assert "needs a space" in service.post("/v1/studies", {"name": "s"}, 422)["detail"]
    assert service.get("/v1/studies")["studies"] == []


def test_a_document_in_the_wrong_place_hears_of_the_right_one(service: Api) -> None:
    arms = [{"name": name, "sampler": {"name": name}} for name in ("random", "tpe")]
    comparison = {"name": "c", "objective": "branin", "comparison": {"seeds": 2, "arms": arms}}
    assert "POST it to /v1/comparisons" in service.post("/v1/studies", comparison, 422)["detail"]
    assert "POST it to /v1/studies" in service.post("/v1/comparisons", STUDY, 422)["detail"]


def test_what_was_enqueued_shows_while_it_waits(service: Api) -> None:
    service.post("/v1/studies", STUDY, 201)
    waiting = service.post("/v1/studies/s/trials:enqueue", {"params": {"x": 0.25}}, 201)
    assert waiting["params"] == {"x": 0.25}
    run_one(service)
    shown = service.get("/v1/studies/s/trials/0")["params"]
    assert shown["x"] == 0.25
    assert set(shown) == {"x", "c"}
