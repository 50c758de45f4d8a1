"""The transport: what is tried again, what becomes of a refusal, and that the token stays where it belongs."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest

from tuner.client.http import Transport
from tuner.errors import (
    AccessDeniedError,
    ConflictError,
    DefinitionError,
    LeaseLostError,
    NotFoundError,
    ServiceUnavailableError,
    StorageUnavailableError,
    TunerError,
)

URL, TOKEN = "https://tuner.example.com", "a-secret-token"


def transport(answer: Callable[[httpx.Request], httpx.Response], **more: Any) -> Transport:
    return Transport(URL, TOKEN, transport=httpx.MockTransport(answer), **more)


def problem(status: int, slug: str, detail: str, **headers: str) -> httpx.Response:
    document = {"type": f"urn:tuner:{slug}", "title": "t", "status": status, "detail": detail}
    kind = {"Content-Type": "application/problem+json"}
    return httpx.Response(status, json=document, headers={**kind, **headers})


@pytest.mark.parametrize(
    ("status", "slug", "error"),
    [
        (400, "malformed", DefinitionError),
        (401, "unauthorized", AccessDeniedError),
        (403, "forbidden", AccessDeniedError),
        (404, "not_found", NotFoundError),
        (409, "conflict", ConflictError),
        (409, "lease_lost", LeaseLostError),
        (409, "already_requested", LeaseLostError),
        (413, "too_large", DefinitionError),
        (422, "invalid", DefinitionError),
        (500, "internal", TunerError),
        (503, "storage_unavailable", ServiceUnavailableError),
    ],
)
def test_a_refusal_is_the_error_that_the_same_mistake_is_here(
    status: int, slug: str, error: type[TunerError]
) -> None:
    calls = transport(lambda _: problem(status, slug, f"two\nlines, and the {TOKEN}"), patience=0.0)
    with pytest.raises(TunerError) as caught:
        calls.post("/v1/studies")
    assert type(caught.value) is error
    assert str(caught.value) == "two lines, and the …"


def test_a_proxys_page_is_no_problem_document() -> None:
    calls = transport(lambda _: httpx.Response(404, text="<html>"))
    with pytest.raises(NotFoundError, match=r"^https://tuner\.example\.com answered 404 Not Found$"):
        calls.get("/v1/studies")
    for document in ({"detail": [{"loc": ["x"], "msg": "no"}]}, ["no"], {"error": {"code": 404}}):
        with pytest.raises(NotFoundError, match=r"com answered 404 Not Found$"):
            transport(lambda _, document=document: httpx.Response(404, json=document)).get("/v1/studies")
    with pytest.raises(TunerError, match="no JSON"):
        transport(lambda _: httpx.Response(200, text="<html>")).get("/")
    with pytest.raises(TunerError, match=r"sends on to https://other"):
        transport(lambda _: httpx.Response(301, headers={"Location": "https://other"})).get("/")


def test_what_is_tried_again_keeps_its_id() -> None:
    seen: list[tuple[str, bytes]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append((request.headers["Idempotency-Key"], request.content))
        match len(seen):
            case 1:
                raise httpx.ReadError("cut")
            case 2:
                raise httpx.ReadTimeout("late")
            case 3:
                return problem(503, "storage_unavailable", "not now", **{"Retry-After": "0"})
            case 4:
                return httpx.Response(502, text="<html>")
        return httpx.Response(200, json={"ok": True})

    calls = transport(answer)
    assert calls.post("/v1/studies", {"name": "a"}) == {"ok": True}
    assert len(seen) == 5
    assert len(set(seen)) == 1
    calls.post("/v1/studies", {"name": "a"})
    assert seen[-1][0] != seen[0][0], "another call has another id"


def test_patience_ends() -> None:
    tries = []

    def answer(_request: httpx.Request) -> httpx.Response:
        tries.append(1)
        raise httpx.ConnectError("refused")

    with pytest.raises(StorageUnavailableError, match=r"cannot be reached: refused \(tried again for 1 s\)"):
        transport(answer, patience=1.0).get("/")
    assert len(tries) > 1


def test_the_service_says_how_long_to_wait() -> None:
    """A wait that goes beyond the patience is not begun: this test would take an hour."""
    later = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    for header in ("3600", later):
        busy = transport(lambda _, header=header: problem(429, "x", "slowly", **{"Retry-After": header}))
        with pytest.raises(ServiceUnavailableError, match="slowly"):
            busy.get("/")
    odd = transport(lambda _: problem(429, "x", "slowly", **{"Retry-After": "soon"}), patience=0.1)
    with pytest.raises(ServiceUnavailableError, match="slowly"):
        odd.get("/")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://tuner.example.com", "in the clear"),
        ("http://192.168.1.5:8000", r"--allow-http \(in Python allow_http=True\)"),
        ("ftp://tuner.example.com", "https://HOST"),
        ("tuner.example.com", "https://HOST"),
        ("https://me:secret@tuner.example.com", "leave it out"),
        ("https://tuner.example.com/?token=secret", "leave it out"),
        ("http://localhost.example.com", "in the clear"),
    ],
)
def test_a_url_that_would_give_the_token_away_is_refused(url: str, reason: str) -> None:
    with pytest.raises(DefinitionError, match=reason) as caught:
        Transport(url, TOKEN)
    assert "secret" not in str(caught.value)


def test_what_may_go_in_the_clear() -> None:
    for url in ("http://127.0.0.1:8000", "http://localhost:8000/", "http://[::1]:8000/prefix/"):
        Transport(url, TOKEN).close()
    Transport("http://tuner.internal", TOKEN, allow_http=True).close()
    assert Transport("http://localhost:8000/prefix/", TOKEN).url == "http://localhost:8000/prefix"


@pytest.mark.parametrize("token", ["", " ", "two words", "line\nline", "tökén"])
def test_what_is_no_token_is_not_shown(token: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        Transport(URL, token)
    assert not token.strip() or token not in str(caught.value)


def test_a_transport_goes_to_another_process_and_shows_no_token() -> None:
    calls = Transport(URL, f" {TOKEN}\n", patience=3.0, allow_http=True)
    again = pickle.loads(pickle.dumps(calls))
    assert (again.url, again.patience) == (URL, 3.0)
    assert TOKEN not in repr(calls)


def test_what_is_no_json_is_not_sent() -> None:
    calls = transport(lambda _: httpx.Response(200, json={}))
    for body in ({"x": float("nan")}, {"x": object()}):
        with pytest.raises(DefinitionError, match="plain JSON"):
            calls.post("/", body)


def test_certificates_of_ones_own(tmp_path: Any) -> None:
    (tmp_path / "no.pem").write_text("none")
    for name in ("no.pem", "absent.pem"):
        with pytest.raises(DefinitionError, match=r"holds no certificates"):
            Transport(URL, TOKEN, ca_file=str(tmp_path / name))


def test_a_call_has_one_name_in_the_logs_of_both_sides(caplog: pytest.LogCaptureFixture) -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return (
            problem(503, "storage_unavailable", "later") if len(asked) == 1 else httpx.Response(200, json={})
        )

    with caplog.at_level("INFO", "tuner.client.http"):
        calls = transport(answer, patience=30.0)
        calls.post("/v1/studies")
        calls.get("/v1/studies")
    [first, again, other] = [request.headers["X-Request-ID"] for request in asked]
    assert first == again != other
    assert "Idempotency-Key" not in asked[2].headers
    logged = [record.fields for record in caplog.records if record.getMessage() == "call"]  # type: ignore[attr-defined]
    assert [(call["request_id"], call["method"], call["result"]) for call in logged] == [
        (first, "POST", "200"),
        (other, "GET", "200"),
    ]


def test_a_call_that_is_refused_is_logged_with_the_reason_and_without_the_token(
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls = transport(lambda _: problem(409, "conflict", f"no, {TOKEN}"))
    with caplog.at_level("INFO", "tuner.client.http"), pytest.raises(ConflictError):
        calls.post("/v1/studies")
    assert [record.fields["result"] for record in caplog.records] == ["no, …"]  # type: ignore[attr-defined]
