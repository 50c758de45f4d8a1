"""Trials over HTTP: leases, retries, several processes, and decisions equal to those made in this process."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import optuna
import pytest
import sqlalchemy as sa
from api_client import Api, serving
from test_studies import STUDY, run_one

import tuner.service.desk
from tuner import StudyDefinition, StudyManager
from tuner.ask_tell import AskTell
from tuner.ledger import Owner
from tuner.service.desk import Desk, owner
from tuner.service.identity import Identity, Role
from tuner.storage import Mode

ASK = "/v1/studies/s/trials:ask"


def at(trial: dict[str, Any]) -> str:
    return f"/v1/studies/{trial['study']}/trials/{trial['number']}"


def begin(service: Api, **more: Any) -> dict[str, Any]:
    service.post("/v1/studies", {**STUDY, **more}, 201)
    trial: dict[str, Any] = service.post(ASK, {"client_id": "w"})["trials"][0]
    return trial


def test_a_trial_from_ask_to_tell(service: Api, url: str) -> None:
    trial = begin(service, fixed={"epochs": 3}, seed=7)
    assert (trial["number"], trial["fence"], trial["attempt"]) == (0, 1, 1)
    assert trial["seed"] == {"study": 7, "trial": 0}
    assert (trial["fixed"], trial["objective"], trial["reports"]) == ({"epochs": 3}, None, [])
    assert set(trial["params"]) == set(trial["distributions"]) == {"x", "c"}
    values = [{"step": 1, "value": 0.5}, {"step": 2, "value": "inf"}, {"step": 3, "value": "nan"}]
    reply = service.post(f"{at(trial)}:report", {"fence": 1, "values": values, "seconds": 2.5})
    assert reply == {"answer": "continue", "adjustment": {}, "by": ""}
    assert service.post(f"{at(trial)}:heartbeat", {"fence": 1})["answer"] == "continue"
    service.post(f"{at(trial)}:annotate", {"fence": 1, "attrs": {"note": "ü", "deep": {"a": [1, None]}}})
    told = {"fence": 1, "state": "complete", "value": "-inf", "attrs": {"more": 2**60}, "seconds": 0.5}
    assert service.post(f"{at(trial)}:tell", told) == {"state": "complete"}
    shown = service.get(at(trial))
    assert (shown["state"], shown["value"], shown["values"]) == ("complete", "-inf", ["-inf"])
    assert shown["reports"] == values
    assert shown["user_attrs"] == {"note": "ü", "deep": {"a": [1, None]}, "more": 2**60}
    with StudyManager(url) as manager:
        (stored,) = manager.load("s").trials
        assert stored.params == trial["params"]
        assert stored.value == -np.inf
        assert manager.ask_tell("s").spent().seconds == 3.0


def test_what_is_sent_again_is_answered_again_and_counted_once(service: Api) -> None:
    service.post("/v1/studies", STUDY, 201)
    asked = {"client_id": "w", "request_id": "r", "count": 2}
    first = service.post(ASK, asked)
    assert [trial["number"] for trial in first["trials"]] == [0, 1]
    assert service.post(ASK, asked) == first
    assert service.post(ASK, {"client_id": "w", "count": 2}, **{"Idempotency-Key": "r"}) == first
    other = service.post(ASK, {**asked, "client_id": "v", "count": 1})["trials"]
    assert [trial["number"] for trial in other] == [2]
    trial = first["trials"][0]
    report = {"fence": 1, "values": [{"step": 1, "value": 0.5}], "seconds": 1.0}
    assert service.post(f"{at(trial)}:report", report) == service.post(f"{at(trial)}:report", report)
    changed = {**report, "values": [{"step": 1, "value": 0.25}]}
    assert service.post(f"{at(trial)}:report", changed, 409)["type"] == "urn:tuner:conflict"
    tell = {"fence": 1, "state": "complete", "value": 1.0}
    assert service.post(f"{at(trial)}:tell", tell) == service.post(f"{at(trial)}:tell", tell)
    assert service.post(f"{at(trial)}:tell", {**tell, "value": 2.0}, 409)["type"] == "urn:tuner:conflict"
    assert service.post(f"{at(trial)}:heartbeat", {"fence": 1}, 409)["type"] == "urn:tuner:lease_lost"
    again = service.post(ASK, asked)["trials"][0]
    assert (again["number"], again["reports"]) == (0, report["values"])
    given_back = first["trials"][1]
    for _ in range(2):
        assert service.post(f"{at(given_back)}:release", {"fence": 1}) == {}
    assert service.post(ASK, asked, 409)["type"] == "urn:tuner:already_requested"
    spent = service.get("/v1/studies/s")["spent"]
    assert spent == {"trials": 3, "ended": 1, "epochs": 1, "seconds": 1.0}
    resumed = service.post(ASK, {"client_id": "w"})["trials"][0]
    assert (resumed["number"], resumed["fence"], resumed["attempt"]) == (1, 2, 1)
    assert resumed["params"] == given_back["params"]


def test_the_end_of_a_budget_is_told(service: Api) -> None:
    service.post("/v1/studies", {**STUDY, "budget": {"trials": 2}}, 201)
    asked = service.post(ASK, {"client_id": "w", "count": 32})
    assert (len(asked["trials"]), asked["is_finished"]) == (2, False)
    assert service.post(ASK, {"client_id": "w"}) == {"trials": [], "state": "open", "is_finished": False}
    for trial in asked["trials"]:
        service.post(f"{at(trial)}:tell", {"fence": 1, "state": "fail"})
    assert service.post(ASK, {"client_id": "w"}) == {"trials": [], "state": "open", "is_finished": True}


def test_a_second_service_goes_on_with_what_the_first_gave(url: str) -> None:
    pruner = {"name": "threshold", "upper": 10.0}
    with serving(url) as first, serving(url) as second:
        trial = begin(first, pruner=pruner)
        first.post(f"{at(trial)}:report", {"fence": 1, "values": [{"step": 1, "value": 1.0}]})
        reply = second.post(f"{at(trial)}:report", {"fence": 1, "values": [{"step": 2, "value": 2.0}]})
        assert reply["answer"] == "continue"
        pruned = first.post(f"{at(trial)}:report", {"fence": 1, "values": [{"step": 3, "value": 20.0}]})
        assert pruned["answer"] == "prune"
        assert second.post(f"{at(trial)}:heartbeat", {"fence": 1})["answer"] == "continue"
        told = {"fence": 1, "state": "pruned", "value": 20.0}
        assert second.post(f"{at(trial)}:tell", told) == first.post(f"{at(trial)}:tell", told)
        assert [r["step"] for r in first.get(at(trial))["reports"]] == [1, 2, 3]


def test_a_lease_that_never_was_and_a_trial_that_is_not(service: Api) -> None:
    trial = begin(service)
    assert service.post(f"{at(trial)}:heartbeat", {"fence": 2}, 409)["type"] == "urn:tuner:lease_lost"
    assert (
        service.post("/v1/studies/s/trials/9:heartbeat", {"fence": 1}, 404)["type"] == "urn:tuner:not_found"
    )
    assert (
        service.post("/v1/studies/x/trials/0:heartbeat", {"fence": 1}, 404)["type"] == "urn:tuner:not_found"
    )
    service.get("/v1/studies/s/trials/9", 404)


def test_a_silent_worker_loses_its_trial_without_anybody_asking(url: str) -> None:
    with serving(url, lease_seconds=0.2, reap_seconds=0.05) as service:
        trial = begin(service)
        deadline = time.monotonic() + 20
        while service.get(at(trial))["state"] != "waiting":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        late = {"fence": 1, "state": "complete", "value": 1.0}
        assert service.post(f"{at(trial)}:tell", late, 409)["type"] == "urn:tuner:lease_lost"


def test_a_study_that_was_deleted_and_made_anew_is_another(
    service: Api, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuner.service.desk, "CHECK_SECONDS", 0.0)
    trial = begin(service, seed=1)
    stock = optuna.storages.RDBStorage(url)
    optuna.delete_study(study_name="s", storage=stock)
    stock.scoped_session.remove()
    stock.engine.dispose()
    service.post(ASK, {"client_id": "w"}, 404)
    service.post("/v1/studies", {**STUDY, "space": {"other": {"low": 0.0, "high": 1.0}}}, 201)
    told = {"fence": 1, "state": "complete", "value": 1.0}
    service.post(f"{at(trial)}:tell", told, 404)  # that trial is not there
    (again,) = service.post(ASK, {"client_id": "w"})["trials"]
    assert (again["number"], set(again["params"])) == (0, {"other"})


def test_the_owner_of_a_lease_is_never_a_process_that_could_be_gone() -> None:
    for name, client in (("1", "2"), ("a/1", "2.0"), ("n", "inf"), ("x" * 128, "y" * 128), ("", "1")):
        text = owner(Identity(name, Role.WORKER), client)
        assert Owner.parse(text) is None
        assert len(text) <= 255


def test_what_a_person_wants_arrives_with_the_next_report(service: Api) -> None:
    trial = begin(service)
    for _ in range(2):  # the same command, once
        service.post(f"{at(trial)}:adjust", {"values": {"learning_rate": 0.5}}, **{"Idempotency-Key": "k"})
    other = {"values": {"learning_rate": 0.25}}
    refused = service.post(f"{at(trial)}:adjust", other, 409, **{"Idempotency-Key": "k"})
    assert refused["type"] == "urn:tuner:conflict"
    heard = {"answer": "adjust", "adjustment": {"learning_rate": 0.5}, "by": "admin"}
    assert service.post(f"{at(trial)}:heartbeat", {"fence": 1}) == heard
    report = {"fence": 1, "values": [{"step": 1, "value": 1.0}]}
    assert service.post(f"{at(trial)}:report", report) == heard
    service.post(f"{at(trial)}:stop")
    report = {"fence": 1, "values": [{"step": 2, "value": 1.0}]}
    assert service.post(f"{at(trial)}:report", report) == {"answer": "stop", "adjustment": {}, "by": "admin"}
    service.post(f"{at(trial)}:tell", {"fence": 1, "state": "pruned", "value": 1.0})
    assert service.post(f"{at(trial)}:stop", None, 409)["type"] == "urn:tuner:conflict"
    service.post("/v1/studies/s/trials/5:stop", None, 404)
    database = service.app.state.desk.manager.ledger.database
    with database.transaction(Mode.READ) as session:
        assert session.scalar(sa.text("SELECT COUNT(*) FROM tuner_commands")) == 2


def test_an_enqueued_point_is_the_next_and_once(service: Api) -> None:
    service.post("/v1/studies", STUDY, 201)
    point = {"params": {"x": 0.25}, "attrs": {"why": "a guess"}}
    queued = service.post("/v1/studies/s/trials:enqueue", point, 201, **{"Idempotency-Key": "k"})
    assert (queued["number"], queued["state"], queued["user_attrs"]) == (0, "waiting", {"why": "a guess"})
    again = service.post("/v1/studies/s/trials:enqueue", point, 201, **{"Idempotency-Key": "k"})
    assert again == queued
    other = {**point, "params": {"x": 0.5}}
    refused = service.post("/v1/studies/s/trials:enqueue", other, 409, **{"Idempotency-Key": "k"})
    assert refused["type"] == "urn:tuner:conflict"
    for params in ({"x": 2.0}, {"y": 1}, {"x": "0.5"}, {"x": True}):
        service.post("/v1/studies/s/trials:enqueue", {"params": params}, 422)
    (trial,) = service.post(ASK, {"client_id": "w"})["trials"]
    assert (trial["number"], trial["params"]["x"]) == (0, 0.25)
    assert "c" in trial["params"]


def test_a_point_for_which_the_budget_has_no_room_is_refused(service: Api) -> None:
    service.post("/v1/studies", {**STUDY, "budget": {"trials": 3}}, 201)
    run_one(service, 1.0)
    point = {"params": {"x": 0.25}}
    for _ in range(2):
        service.post("/v1/studies/s/trials:enqueue", point, 201)
    refused = service.post("/v1/studies/s/trials:enqueue", point, 409)
    assert "no room for another trial: 1 have begun, 2 more wait" in refused["detail"]
    for _ in range(2):
        run_one(service, 1.0)
    assert "3 have begun; this one" in service.post("/v1/studies/s/trials:enqueue", point, 409)["detail"]
    shown = service.get("/v1/studies/s")
    assert (shown["status"], shown["counts"]["complete"], shown["counts"]["waiting"]) == ("finished", 3, 0)


def test_times_are_the_same_wherever_one_reads_them(service: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        monkeypatch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        before = datetime.now(UTC)
        begin(service)
        started = service.get("/v1/studies/s/trials/0")["started"]
    finally:
        monkeypatch.undo()
        time.tzset()
    assert started.endswith("Z")
    assert timedelta() <= datetime.fromisoformat(started) - before < timedelta(minutes=5)


def test_trials_page_by_page_and_by_state(service: Api) -> None:
    service.post("/v1/studies", {**STUDY, "budget": {}}, 201)
    for k in range(7):
        run_one(service, float(k) if k % 2 else None)
    seen, token = [], None
    while True:
        more = {} if token is None else {"page_token": token}
        page = service.get("/v1/studies/s/trials", page_size=3, **more)
        seen += [trial["number"] for trial in page["trials"]]
        if (token := page["next_page_token"]) is None:
            break
    assert seen == list(range(7))
    failed = service.get("/v1/studies/s/trials", state=["fail", "running"], page_size=2)
    assert [trial["number"] for trial in failed["trials"]] == [0, 2]
    rest = service.get("/v1/studies/s/trials", state="fail", page_token=failed["next_page_token"])
    assert ([trial["number"] for trial in rest["trials"]], rest["next_page_token"]) == ([4, 6], None)
    for wrong in ({"page_size": 0}, {"page_size": 1001}, {"page_size": "x"}, {"state": "gone"}):
        service.get("/v1/studies/s/trials", 422, **wrong)


def test_checkpoints_come_back_as_they_went(service: Api) -> None:
    trial = begin(service)
    data, headers = bytes(range(256)) * 4096, {"content-type": "application/octet-stream"}
    put = {"params": {"fence": 1, "epoch": 4}, "content": data, "headers": headers}
    service.get(f"{at(trial)}/checkpoint", 404)
    assert service.call("PUT", f"{at(trial)}/checkpoint", **put).status_code == 200
    response = service.call("GET", f"{at(trial)}/checkpoint")
    assert (response.content, response.headers["x-epoch"]) == (data, "4")
    put["params"] = {"fence": 2, "epoch": 4}
    assert service.call("PUT", f"{at(trial)}/checkpoint", **put).status_code == 409


def test_workers_take_any_study_whose_objective_they_have(service: Api) -> None:
    branin = {
        "objective": "branin",
        "space": {"x0": {"low": -5, "high": 10}, "x1": {"low": 0, "high": 15}},
        "sampler": {"name": "random"},
        "budget": {"trials": 2},
    }
    service.post("/v1/studies", STUDY, 201)
    for name in ("a", "b", "other.c"):
        service.post("/v1/studies", {**branin, "name": name}, 201)
    asked = {"client_id": "w", "objectives": ["branin", "not-here"]}
    seen = []
    for k in range(4):
        found = service.post("/v1/trials:ask", {**asked, "request_id": f"r{k}", "prefix": ""})
        assert found == service.post("/v1/trials:ask", {**asked, "request_id": f"r{k}"})
        assert found["trial"]["objective"] == "branin"
        seen.append(found["study"])
    assert sorted(seen[:3]) == ["a", "b", "other.c"]  # they take turns
    service.post("/v1/studies/a:pause")
    team = service.as_(Identity("t", Role.WORKER, prefix="other."))
    assert team.post("/v1/trials:ask", asked)["study"] == "other.c"
    assert team.post("/v1/trials:ask", asked) == {"trial": None, "study": None}
    assert service.post("/v1/trials:ask", {**asked, "prefix": "b"})["study"] == "b"
    assert service.post("/v1/trials:ask", {**asked, "objectives": ["digits"]})["trial"] is None


def test_many_askers_get_exactly_the_budget(service: Api) -> None:
    service.post("/v1/studies", {**STUDY, "budget": {"trials": 20}}, 201)

    def work(worker: int) -> list[int]:
        numbers = []
        while trials := service.post(ASK, {"client_id": f"w{worker}"})["trials"]:
            (trial,) = trials
            service.post(f"{at(trial)}:tell", {"fence": 1, "state": "complete", "value": 1.0})
            numbers.append(trial["number"])
        return numbers

    with ThreadPoolExecutor(8) as pool:
        numbers = [number for done in pool.map(work, range(8)) for number in done]
    assert sorted(numbers) == list(range(20))
    assert service.get("/v1/studies/s")["counts"]["complete"] == 20


PRUNERS: list[dict[str, Any]] = [
    {"name": "median", "startup_trials": 2},
    {"name": "percentile", "percentile": 30.0, "startup_trials": 2, "warmup_epochs": 1},
    {"name": "successive-halving", "reduction_factor": 2},
    {"name": "hyperband", "max_epochs": 8, "reduction_factor": 2},
    {"name": "threshold", "upper": 0.8},
    {"name": "patient", "patience": 2},
    {"name": "wilcoxon", "p_threshold": 0.2},
]


@pytest.mark.parametrize("pruner", PRUNERS, ids=lambda pruner: pruner["name"])
def test_pruners_decide_over_http_as_in_this_process(sqlite_url: str, pruner: dict[str, Any]) -> None:
    """Two trials at a time, their reports interleaved; through two services, and with bare Optuna on the side."""
    curves = np.random.default_rng(3).uniform(size=(16, 8)).cumsum(axis=1) / np.arange(1, 9)
    document = {**STUDY, "budget": {}, "pruner": pruner, "sampler": {"name": "random"}}
    definition = StudyDefinition.parse(document)
    bare = optuna.create_study(
        study_name="s",
        pruner=definition.pruner.build(),
        sampler=optuna.samplers.RandomSampler(0),
    )
    decided: list[list[str]] = []
    wanted: list[list[str]] = []
    with serving(sqlite_url) as one, serving(sqlite_url) as two:
        one.post("/v1/studies", document, 201)
        for first in range(0, 16, 2):
            pair = [(one.post(ASK, {"client_id": "w"})["trials"][0], bare.ask()) for _ in range(2)]
            running = dict(enumerate(pair))
            for step in range(1, 9):
                for k, (trial, trial_of_bare) in list(running.items()):
                    value = float(curves[first + k, step - 1])
                    service = (one, two)[(step + k) % 2]
                    reply = service.post(
                        f"{at(trial)}:report", {"fence": 1, "values": [{"step": step, "value": value}]}
                    )
                    trial_of_bare.report(value, step)
                    decided.append([f"{trial['number']}.{step}", reply["answer"]])
                    is_pruned = trial_of_bare.should_prune()
                    wanted.append([f"{trial_of_bare.number}.{step}", "prune" if is_pruned else "continue"])
                    if is_pruned or step == 8:
                        state = "pruned" if is_pruned else "complete"
                        one.post(f"{at(trial)}:tell", {"fence": 1, "state": state, "value": value})
                        bare.tell(
                            trial_of_bare,
                            None if is_pruned else value,
                            state=optuna.trial.TrialState[state.upper()],
                        )
                        del running[k]
    assert decided == wanted
    assert {answer for _, answer in decided} == {"continue", "prune"}


def _statements(service: Api, call: Any) -> int:
    engine = service.app.state.desk.manager.ledger.database.engine
    seen: list[str] = []

    def note(_c: Any, _cursor: Any, text: str, *_: Any) -> None:
        if not text.startswith(("PRAGMA", "BEGIN", "SET LOCAL")):
            seen.append(text)

    sa.event.listen(engine, "before_cursor_execute", note)
    call()
    sa.event.remove(engine, "before_cursor_execute", note)
    return len(seen)


def test_asks_that_wait_for_a_sampler_keep_no_report_waiting(
    service: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = begin(service, budget={"trials": 60})
    choose, went_on = AskTell._choose, threading.Event()

    def slow(self: AskTell, *args: Any) -> Any:
        assert went_on.wait(60)
        return choose(self, *args)

    monkeypatch.setattr(AskTell, "_choose", slow)
    with ThreadPoolExecutor(50) as clients:
        asked = [clients.submit(service.post, ASK, {"client_id": "w"}) for _ in range(50)]
        time.sleep(0.5)  # they have come, more than there are threads
        try:
            service.post(f"{at(trial)}:heartbeat", {"fence": 1})
            assert not any(ask.done() for ask in asked)
        finally:
            went_on.set()
    assert sum(len(ask.result()["trials"]) for ask in asked) == 50


def test_http_costs_no_statement_of_its_own(service: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial over HTTP makes the statements that it makes in this process."""
    monkeypatch.setattr(tuner.service.desk, "CHECK_SECONDS", float("inf"))
    service.post("/v1/studies", {**STUDY, "budget": {}}, 201)
    run_one(service)
    (trial,) = service.post(ASK, {"client_id": "w"})["trials"]
    values = {"fence": 1, "values": [{"step": 1, "value": 1.0}]}
    over_http = [
        _statements(service, lambda: service.post(f"{at(trial)}:report", values)),
        _statements(service, lambda: service.post(f"{at(trial)}:heartbeat", {"fence": 1})),
        _statements(service, lambda: service.post(ASK, {"client_id": "w"})),
    ]
    ask_tell: AskTell = service.app.state.desk.study("s")
    local = ask_tell.ask()
    assert local is not None
    assert over_http == [
        _statements(service, lambda: ask_tell.report(local, 1, 1.0)),
        _statements(service, lambda: ask_tell.heartbeat(local)),
        _statements(service, ask_tell.ask),
    ]


def test_a_study_is_opened_once_however_many_ask_for_it_first(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with StudyManager(sqlite_url) as manager:
        manager.create(StudyDefinition.parse(STUDY))
        desk, opened, real = Desk(manager), [], manager.ask_tell

        def slowly(name: str, *, shared: bool = False) -> AskTell:
            opened.append(name)
            time.sleep(0.05)  # the others come meanwhile
            return real(name, shared=shared)

        monkeypatch.setattr(manager, "ask_tell", slowly)
        with ThreadPoolExecutor(8) as pool:
            found = set(pool.map(desk.study, ["s"] * 8))
        assert len(found) == len(opened) == 1
