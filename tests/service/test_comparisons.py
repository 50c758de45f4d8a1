"""Comparisons, and studies carried to another database, over HTTP."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from api_client import Api, serving
from test_studies import STUDY, run_one
from test_trials import ASK, at

from objectives.epoch import Seed
from tuner import ComparisonDefinition, StudyManager
from tuner.catalogue import find_objective
from tuner.service.identity import Identity, Role

COMPARISON: dict[str, Any] = {
    "name": "c",
    "objective": "branin",
    "fixed": {"epochs": 2},
    "space": {"x0": {"low": -5, "high": 10}, "x1": {"low": 0, "high": 15}},
    "budget": {"trials": 3},
    "comparison": {
        "seeds": 2,
        "arms": [
            {"name": "random", "sampler": {"name": "random"}},
            {"name": "tpe", "sampler": {"name": "tpe", "startup_trials": 1}},
        ],
    },
}


def _work(service: Api, client: str) -> int:
    """Take trials of any study until there is none; how many."""
    asked = {"client_id": client, "objectives": ["branin"]}
    objective, done = find_objective("branin"), 0
    while True:
        found = service.post("/v1/trials:ask", asked)
        if (trial := found["trial"]) is None:
            if all(m["is_finished"] for m in service.get("/v1/comparisons/c")["members"]):
                return done
            continue
        params = {**trial["fixed"], **trial["params"]}
        for epoch in objective.evaluate(params, seed=Seed(**trial["seed"])):
            report = {"fence": trial["fence"], "values": [{"step": epoch.number, "value": epoch.value}]}
            service.post(f"{at(trial)}:report", report)
        told = {"fence": trial["fence"], "state": "complete", "value": epoch.value}
        service.post(f"{at(trial)}:tell", told)
        done += 1


def test_workers_run_a_comparison_to_the_result_of_a_local_one(url: str, tmp_path: Path) -> None:
    with serving(url) as service:
        made = service.post("/v1/comparisons", COMPARISON, 201)
        assert (made["status"], made["arms"], made["seeds"], made["ranking"]) == (
            "running",
            ["random", "tpe"],
            2,
            [],
        )
        assert [member["study"] for member in made["members"]] == [
            f"c.{arm}.seed-{seed}" for seed in (0, 1) for arm in ("random", "tpe")
        ]
        assert service.post("/v1/comparisons", COMPARISON) == made
        assert service.post("/v1/comparisons", {**COMPARISON, "seed": 5}, 409)["type"] == "urn:tuner:conflict"
        with ThreadPoolExecutor(3) as pool:
            done = sum(pool.map(lambda k: _work(service, f"w{k}"), range(3)))
        assert done == 12
        found = service.get("/v1/comparisons/c")
        report = service.call("GET", "/v1/comparisons/c/report")
    assert found["status"] == "finished"
    assert report.headers["content-type"].startswith("text/html")
    assert "<title>c: comparison" in report.text
    with StudyManager(f"sqlite:///{tmp_path}/local.db") as manager:
        local = manager.compare(ComparisonDefinition.parse(COMPARISON)).to_dict()
        assert manager.comparison_names() == ["c"]
        assert manager.comparison("c") == ComparisonDefinition.parse(COMPARISON)
    assert found["verdict"] == local["verdict"]
    without_seconds = [
        {name: value for name, value in row.items() if name != "seconds"} for row in found["ranking"]
    ]
    assert without_seconds == [
        {name: value for name, value in row.items() if name != "seconds"} for row in local["ranking"]
    ]


def test_comparisons_are_listed_for_those_who_may_see_them(service: Api) -> None:
    for name in ("c", "d", "team.e"):
        service.post("/v1/comparisons", {**COMPARISON, "name": name}, 201)
    first = service.get("/v1/comparisons", page_size=2)
    assert [c["name"] for c in first["comparisons"]] == ["c", "d"]
    rest = service.get("/v1/comparisons", page_size=2, page_token=first["next_page_token"])
    assert rest == {
        "comparisons": [{"name": "team.e", "arms": ["random", "tpe"], "seeds": 2}],
        "next_page_token": None,
    }
    team = service.as_(Identity("t", Role.OPERATOR, prefix="team."))
    assert [c["name"] for c in team.get("/v1/comparisons")["comparisons"]] == ["team.e"]
    team.get("/v1/comparisons/c", 403)
    team.get("/v1/comparisons/c/report", 403)
    team.post("/v1/comparisons", {**COMPARISON, "name": "other"}, 403)
    service.get("/v1/comparisons/none", 404)
    too_many = {**COMPARISON, "name": "f", "comparison": {**COMPARISON["comparison"], "seeds": 10_000}}
    assert "at most 2000 studies" in service.post("/v1/comparisons", too_many, 422)["detail"]
    assert (
        "budget" in service.post("/v1/comparisons", {**COMPARISON, "name": "g", "budget": {}}, 422)["detail"]
    )


def _filled(service: Api) -> dict[str, Any]:
    service.post("/v1/studies", STUDY, 201)
    run_one(service, "inf", attrs={"note": "ü"}, seconds=2.0)
    run_one(service, 0.25)
    run_one(service, None)
    service.post("/v1/studies/s/trials:enqueue", {"params": {"x": 0.75}}, 201)
    document: dict[str, Any] = service.post("/v1/studies/s:export")
    return document


def test_a_study_comes_back_as_it_went(url: str, tmp_path: Path) -> None:
    with serving(url) as here, serving(f"sqlite:///{tmp_path}/there.db") as there:
        document = _filled(here)
        for _ in range(2):  # nobody heard the first answer
            there.post("/v1/studies:import", document, 201, **{"Idempotency-Key": "k"})
        for key in ({}, {"Idempotency-Key": "other"}):
            assert there.post("/v1/studies:import", document, 409, **key)["type"] == "urn:tuner:conflict"
        assert there.post("/v1/studies/s:export") == document
        assert there.get("/v1/studies/s/trials") == here.get("/v1/studies/s/trials")
        assert there.get("/v1/studies/s") == here.get("/v1/studies/s")
        (queued,) = there.post(ASK, {"client_id": "w"})["trials"]
        assert (queued["number"], queued["params"]["x"]) == (3, 0.75)
        assert there.post("/v1/studies", STUDY)["name"] == "s"  # the same definition


def test_what_is_running_runs_again_elsewhere(service: Api, tmp_path: Path) -> None:
    service.post("/v1/studies", STUDY, 201)
    (trial,) = service.post(ASK, {"client_id": "w"})["trials"]
    service.post(f"{at(trial)}:report", {"fence": 1, "values": [{"step": 1, "value": 1.0}]})
    document = service.post("/v1/studies/s:export")
    with serving(f"sqlite:///{tmp_path}/there.db") as there:
        there.post("/v1/studies:import", document, 201)
        (again,) = there.post(ASK, {"client_id": "w"})["trials"]
        assert (again["number"], again["params"], again["reports"]) == (0, trial["params"], [])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"state": "gone"}, "state"),
        ({"value": None}, "needs a value"),
        ({"params": {"x": 7.0}}, "x must lie in"),
        ({"params": {"x": True}}, "x must be a number"),
        ({"distributions": {}}, "needs its distribution"),
        ({"distributions": {"x": {"name": "Evil", "attributes": {}}}}, "distribution"),
        (
            {"distributions": {"x": {"name": "FloatDistribution", "attributes": {"low": 0.0, "high": 2.0}}}},
            "space",
        ),
        ({"reports": [{"step": 1, "value": 1.0}, {"step": 1, "value": 2.0}]}, "once"),
        ({"system_attrs": {"cma:optimizer": "80"}}, "system_attrs"),
        ({"started": "yesterday"}, "yesterday"),
        ({"started": "2026-01-01T00:00:00+00:00"}, "zone"),
        ({"user_attrs": {"training_seconds": "long"}}, "training_seconds"),
    ],
)
def test_a_document_that_breaks_a_rule_makes_no_study(
    sqlite_url: str, change: dict[str, Any], says: str
) -> None:
    trial = {
        "state": "complete",
        "value": 1.0,
        "params": {"x": 0.5},
        "distributions": {
            "x": {
                "name": "FloatDistribution",
                "attributes": {"low": 0.0, "high": 1.0, "step": None, "log": False},
            }
        },
    }
    definition = {"name": "s", "space": {"x": {"low": 0.0, "high": 1.0}}}
    document = {"format": "tuner-study-1", "definition": definition, "trials": [{**trial, **change}]}
    with serving(sqlite_url) as service:
        assert says in service.post("/v1/studies:import", document, 422)["detail"]
        service.get("/v1/studies/s", 404)
        service.post("/v1/studies:import", {**document, "trials": [trial]}, 201)
