"""Limits over HTTP: what is too large, malformed or no number is refused before anything is done, never with a 500."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import anyio
import pytest
import sqlalchemy as sa
from api_client import ADMIN, Api, As, serving
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message
from test_studies import STUDY

from tuner.ask_tell import AskTell
from tuner.errors import StorageUnavailableError
from tuner.service.limits import BODY_BYTES, INLINE_BYTES, LARGE_BYTES, Limits, RefusedError, check_json
from tuner.storage import Mode

AT = "/v1/studies/s/trials/0"
ASK = "/v1/studies/s/trials:ask"


@pytest.fixture
def trial(service: Api) -> Api:
    """A running trial: number 0, fence 1."""
    service.post("/v1/studies", STUDY, 201)
    service.post(ASK, {"client_id": "w"})
    return service


@pytest.mark.parametrize(
    "number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", '"0.5"', "true", "null", "[]", "9" * 500]
)
def test_what_is_no_number_is_refused(trial: Api, number: str) -> None:
    bodies = [
        (f"{AT}:report", f'{{"fence": 1, "values": [{{"step": 1, "value": {number}}}]}}'),
        (f"{AT}:report", f'{{"fence": 1, "seconds": {number}, "values": [{{"step": 1, "value": 1}}]}}'),
        (f"{AT}:tell", f'{{"fence": 1, "state": "complete", "value": {number}}}'),
        (f"{AT}:heartbeat", f'{{"fence": {number}}}'),
        (f"{ASK}", f'{{"client_id": "w", "count": {number}}}'),
        ("/v1/studies", f'{{"name": "t", "space": {{"x": {{"low": {number}, "high": 1}}}}}}'),
        ("/v1/studies/s/trials:enqueue", f'{{"params": {{"x": {number}}}}}'),
    ]
    for path, body in bodies:
        assert trial.raw(path, body.encode(), 422)["type"] == "urn:tuner:invalid"
    shown = trial.get(AT)
    assert (shown["state"], shown["reports"]) == ("running", [])


@pytest.mark.parametrize(
    "report",
    [
        {"step": 2**31, "value": 1.0},
        {"step": -1, "value": 1.0},
        {"step": 1.5, "value": 1.0},
        {"step": True, "value": 1.0},
        {"step": 1, "value": "Infinity"},
        {"step": 1, "value": "1"},
        {"step": 1},
        {"step": 1, "value": 1.0, "more": 1},
    ],
)
def test_reports_that_are_none_are_refused(trial: Api, report: dict[str, Any]) -> None:
    trial.post(f"{AT}:report", {"fence": 1, "values": [report]}, 422)
    assert trial.get(AT)["reports"] == []


def test_what_databases_differ_in_is_one_answer(trial: Api) -> None:
    """NUL, long names, half surrogates, large integers: refused, or kept exactly, on SQLite as on PostgreSQL."""
    trial.post(f"{AT}:report", {"fence": 1, "values": [{"step": 2**31 - 1, "value": 1e308}]})
    keep = {"a" * 200: "x" * 60_000, "n": 2**53 + 1, "big": 10**300, "tiny": 5e-324, "": None}
    trial.post(f"{AT}:annotate", {"fence": 1, "attrs": keep}, 422)  # the empty name
    del keep[""]
    trial.post(f"{AT}:annotate", {"fence": 1, "attrs": keep})
    shown = trial.get(AT)
    assert shown["user_attrs"] == keep
    assert shown["reports"] == [{"step": 2**31 - 1, "value": 1e308}]
    refused: list[dict[str, Any]] = [
        {"a\0b": 1},
        {"a": "b\0"},
        {"a": {"b": ["\0"]}},
        {"a" * 201: 1},
        {"a": "x" * 70_000},
        {str(k): k for k in range(257)},
        {"training_seconds": "long"},
        {"ended_with": 1},
        {"adjustments": [1]},
    ]
    for attrs in refused:
        trial.post(f"{AT}:annotate", {"fence": 1, "attrs": attrs}, 422)
        trial.post(f"{AT}:tell", {"fence": 1, "state": "fail", "attrs": attrs}, 422)
    trial.raw(f"{AT}:annotate", b'{"fence": 1, "attrs": {"a": "\\ud800"}}', 422)
    for name in ("a\0", "a" * 129, "é", ".a", "a b", ""):
        trial.post("/v1/studies", {**STUDY, "name": name}, 422)
        trial.post(ASK, {"client_id": name}, 422)
    trial.post("/v1/studies", {**STUDY, "name": "a" * 128}, 201)
    for path in (
        "/v1/studies/%00",
        f"/v1/studies/{'a' * 129}",
        f"/v1/studies/s/trials/{2**31}",
        "/v1/studies/s/trials/-1",
    ):
        trial.get(path, 422)
    assert trial.get(AT)["user_attrs"] == keep


def test_attributes_of_a_trial_are_bounded_in_all(trial: Api) -> None:
    for start in range(0, 1000, 250):
        attrs = {f"a{k}": k for k in range(start, start + 250)}
        trial.post(f"{AT}:annotate", {"fence": 1, "attrs": attrs})
    assert "at most 1000" in trial.post(f"{AT}:annotate", {"fence": 1, "attrs": {"b": 1}}, 422)["detail"]


def test_no_system_attribute_can_be_set(trial: Api) -> None:
    pickle = (
        "80049526000000000000008c05706f736978948c0673797374656d9493948c0b746f756368202f746d702f789485945294"
    )
    attack = {"cma:optimizer": pickle, "cma:0:optimizer:0": pickle, "system_attrs": {"cma:optimizer": pickle}}
    trial.post(f"{AT}:annotate", {"fence": 1, "attrs": attack})
    trial.post(f"{AT}:tell", {"fence": 1, "state": "complete", "value": 1.0, "attrs": attack})
    queued = {"params": {"x": 0.5}, "attrs": attack}
    trial.post("/v1/studies/s/trials:enqueue", queued, 201, **{"Idempotency-Key": "cma:optimizer"})
    trial.post("/v1/studies/s/trials:enqueue", {**queued, "system_attrs": attack}, 422)
    (again,) = trial.post(ASK, {"client_id": "cma", "request_id": "cma:optimizer"})["trials"]
    assert again["number"] == 1
    database = trial.app.state.desk.manager.ledger.database
    with database.transaction(Mode.READ) as session:
        keys = session.scalars(sa.text("SELECT key FROM trial_system_attributes")).all()
    assert all(key.startswith(("tuner:enqueued:http:", "fixed_params")) for key in keys)
    assert keys


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"", 422),
        (b"\xff\xfe{\x00}\x00", 400),
        (b"\xef\xbb\xbf{}", 400),
        (b'{"client_id": "w"} x', 400),
        (b"'w'", 400),
        (b"[" * 100_000, 422),
        (b"[" * 40 + b"]" * 40, 422),
        (b'{"client_id": "w", "client_id": "v"}', 422),
        (b'{"client_id": "w", "x": ' + json.dumps({str(k): 1 for k in range(20_001)}).encode() + b"}", 422),
        (b'"w"', 422),
        (b"[]", 422),
        (b"null", 422),
    ],
    ids=lambda value: value[:12].hex() if isinstance(value, bytes) else None,
)
def test_what_is_not_json_is_refused(trial: Api, body: bytes, status: int) -> None:
    trial.raw(ASK, body, status)
    assert trial.get("/v1/studies/s")["counts"]["running"] == 1


def test_other_types_of_bodies_are_refused(trial: Api) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/octet-stream", ""):
        trial.raw(ASK, b'{"client_id": "w"}', 415, **{"content-type": kind})
    trial.raw(ASK, b'{"client_id": "w"}', 200, **{"content-type": "application/json; charset=utf-8"})
    put = {"params": {"fence": 1, "epoch": 1}, "content": b"x", "headers": {"content-type": "text/plain"}}
    assert trial.call("PUT", f"{AT}/checkpoint", **put).status_code == 415


def _post_chunks(service: Api, path: str, chunks: int, headers: dict[str, str]) -> tuple[int, int]:
    """Post so many chunks of 64 KiB; the status, and how many were read."""
    read = 0
    status = 0

    async def receive() -> Message:
        nonlocal read
        read += 1
        return {"type": "http.request", "body": bytes(65536), "more_body": read < chunks}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "state": {},
    }
    anyio.run(As(service.app, ADMIN), scope, receive, send)
    return status, read


@pytest.mark.parametrize("is_said", [True, False])
def test_a_large_body_is_refused_with_flat_memory(sqlite_url: str, is_said: bool) -> None:
    with serving(sqlite_url) as service:
        headers = {"content-type": "application/json"} | (
            {"content-length": str(16 * 2**20)} if is_said else {}
        )
        tracemalloc.start()
        try:
            answer = _post_chunks(service, "/v1/studies", 256, headers)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert answer == (413, 0 if is_said else BODY_BYTES // 65536 + 1)
    assert peak < 4 * BODY_BYTES


def test_a_body_that_does_not_come_is_not_waited_for_for_ever() -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        await anyio.sleep_forever()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    async def never(*_: Any) -> None:
        raise AssertionError

    scope = {"type": "http", "method": "POST", "path": "/v1/studies", "headers": [], "state": {}}
    anyio.run(Limits(never, read_seconds=0.01), scope, receive, send)
    assert sent[0]["status"] == 408


def test_a_body_that_breaks_off_is_not_taken_for_a_whole_one(trial: Api) -> None:
    async def put(messages: list[Message]) -> int:
        scope = {
            "type": "http",
            "method": "PUT",
            "path": f"{AT}/checkpoint",
            "query_string": b"fence=1&epoch=1",
            "headers": [(b"content-type", b"application/octet-stream"), (b"content-length", b"9")],
        }
        sent: list[Any] = []

        async def send(message: Message) -> None:
            sent.append(message)

        async def receive() -> Message:
            return messages.pop(0)

        await As(trial.app)(scope, receive, send)
        return int(sent[0]["status"])

    first = {"type": "http.request", "body": b"whole", "more_body": True}
    rest = {"type": "http.request", "body": b"body", "more_body": False}
    assert anyio.run(put, [dict(first), rest]) == 200
    assert anyio.run(put, [dict(first), {"type": "http.disconnect"}]) == 400
    assert trial.call("GET", f"{AT}/checkpoint").content == b"wholebody"


def test_a_body_that_takes_long_to_check_keeps_nobody_waiting(
    service: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, others = threading.Event(), threading.Event()

    def slow(body: bytes, **_: Any) -> None:
        begun.set()
        assert others.wait(30)

    monkeypatch.setattr("tuner.service.limits.check_json", slow)
    body = b"{}".ljust(INLINE_BYTES + 1)
    sender = threading.Thread(target=lambda: service.raw("/v1/studies:import", body, 422))
    sender.start()
    assert begun.wait(30)
    service.get("/v1/studies")
    others.set()
    sender.join()


def test_a_checkpoint_may_be_larger_but_not_at_will(trial: Api) -> None:
    headers = {"content-type": "application/octet-stream"}
    put = {"params": {"fence": 1, "epoch": 1}, "headers": headers}
    assert trial.call("PUT", f"{AT}/checkpoint", content=bytes(LARGE_BYTES), **put).status_code == 200
    assert trial.call("PUT", f"{AT}/checkpoint", content=bytes(LARGE_BYTES + 1), **put).status_code == 413
    assert len(trial.call("GET", f"{AT}/checkpoint").content) == LARGE_BYTES


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(10**50), 10**50)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(exclude_characters="\0", codec="utf-8")),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.text(st.characters(exclude_characters="\0", codec="utf-8")), inner)
        ),
    )
)
def test_all_strict_json_goes_through(document: Any) -> None:
    check_json(json.dumps(document).encode())


@given(st.binary())
def test_any_bytes_are_json_or_refused(body: bytes) -> None:
    with contextlib.suppress(RefusedError):  # and nothing else
        check_json(body)
        json.loads(body.decode(), parse_constant=lambda text: 1 / 0)


def test_a_database_that_does_not_answer_is_a_503(service: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    service.post("/v1/studies", STUDY, 201)

    def fail(*_: Any, **__: Any) -> None:
        raise StorageUnavailableError("gone")

    monkeypatch.setattr(service.app.state.desk.manager.ledger.database, "transaction", fail)
    response = service.call("POST", ASK, json={"client_id": "w"})
    assert (response.status_code, response.headers["retry-after"]) == (503, "2")
    assert response.json()["type"] == "urn:tuner:storage_unavailable"


def _hang(service: Api, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let the database be silent until the function returned is called."""
    answers = threading.Event()
    database = service.app.state.desk.manager.ledger.database
    real = database.transaction

    def hang(mode: Mode = Mode.DURABLE) -> Any:
        answers.wait(60)
        return real(mode)

    monkeypatch.setattr(database, "transaction", hang)
    return answers.set


def test_a_database_that_hangs_is_a_503_and_nothing_is_orphaned(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(url, answer_seconds=0.2) as service:
        service.post("/v1/studies", STUDY, 201)
        recover = _hang(service, monkeypatch)
        asked = {"client_id": "w", "request_id": "r"}
        assert service.call("POST", ASK, json=asked).status_code == 503
        recover()
        monkeypatch.undo()
        deadline = time.monotonic() + 30
        while service.get("/v1/studies/s")["counts"]["running"] == 0:  # the ask that was late
            assert time.monotonic() < deadline
            time.sleep(0.05)
        (trial,) = service.post(ASK, asked)["trials"]
        assert trial["number"] == 0
        assert service.get("/v1/studies/s")["counts"]["running"] == 1


def test_a_long_choice_is_waited_for(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    choose = AskTell._choose

    def slowly(*arguments: Any) -> Any:
        time.sleep(0.5)
        return choose(*arguments)

    monkeypatch.setattr(AskTell, "_choose", slowly)
    with serving(sqlite_url, answer_seconds=0.1) as service:
        service.post("/v1/studies", STUDY, 201)
        assert len(service.post(ASK, {"client_id": "w"})["trials"]) == 1
