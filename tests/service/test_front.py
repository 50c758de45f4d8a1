"""The front: nothing is there without a token but what is meant to be, and no answer or log says too much."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from front_door import Service, log_lines, some_trials, stand_in
from hypothesis import given
from hypothesis import strategies as st
from optuna.artifacts import FileSystemArtifactStore
from optuna.trial import TrialState

from tuner.service.app import api
from tuner.service.auth import LOGIN_SECONDS
from tuner.service.dashboard import WRITES
from tuner.service.front import PUBLIC
from tuner.service.identity import Role
from tuner.service.large_studies import Documents
from tuner.service.pages import _local
from tuner.service.paths import is_dashboards


@pytest.fixture
def service(sqlite_url: str) -> Iterator[Service]:
    """A front over a stand-in."""
    running = Service(sqlite_url)
    yield running
    running.close()


METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")


def bottle_routes(service: Service) -> list[tuple[str, str]]:
    """Every route of the dashboard, with numbers for its variables."""
    import optuna_dashboard

    app = optuna_dashboard.wsgi(storage=service.database)
    paths = {"<:re:(/.*)?>": "/studies/1", "<filename:path>": "bundle.js", "<plot_type>": "edf"}
    found = []
    for route in app.routes:
        rule = route.rule
        for variable, value in paths.items():
            rule = rule.replace(variable, value)
        found.append((route.method, re.sub(r"<[^>]*>", "1", rule)))
    return found


def api_routes(routes: Any) -> list[tuple[str, str]]:
    """Every route of an application, its documentation included."""
    found = []
    for route in routes:
        if hasattr(route, "effective_route_contexts"):  # those of a router that is included
            found += api_routes(route.effective_route_contexts())
        else:
            path = re.sub(r"\{[^}]*\}", "1", route.path)
            found += [(method, path) for method in route.methods]
    return found


# ------------------------------------------------------------------------------------------------------ who is let in


def test_nothing_is_there_without_a_token(service: Service) -> None:
    documented = api_routes(stand_in().routes)
    assert {("GET", "/v1/docs"), ("GET", "/v1/openapi.json"), ("GET", "/metrics")} < set(documented)
    of_api = api_routes(api(service.manager).routes)
    assert {("GET", "/metrics"), ("POST", "/v1/studies"), ("POST", "/v1/trials:ask")} < set(of_api)
    routes = documented + of_api + bottle_routes(service)
    routes += [(m, path) for m in METHODS for path in ("/", "/logout", "/nothing", "/v1/", "//", "/.", "")]
    anybody = service.anybody()
    for method, path in routes:
        for headers in ({}, {"Accept": "text/html"}):
            answer = anybody(method, path, headers=headers)
            if "Accept" in headers and method in ("GET", "HEAD"):
                assert answer.status_code == 303, (method, path)
                assert answer.headers["Location"].startswith("/login"), (method, path)
            else:
                assert answer.status_code == 401, (method, path)
                assert answer.headers["WWW-Authenticate"].startswith("Bearer")


def test_every_path_of_the_dashboard_is_the_dashboards(service: Service) -> None:
    paths = {path for _, path in bottle_routes(service)} - {"/"}
    assert all(map(is_dashboards, paths))
    for other in (
        "/",
        "/v1/studies",
        "/metrics",
        "/login",
        "/api",
        "/dashboards",
        "/favicon.ico/x",
        "api/x",
        "",
    ):
        assert not is_dashboards(other)


@given(path=st.text(st.characters(codec="utf-8"), max_size=20), start=st.sampled_from(sorted(PUBLIC)))
def test_only_the_listed_paths_themselves_are_public(front_of_all: Service, path: str, start: str) -> None:
    for tried in (
        f"/{quote(path)}",
        f"{start}/{quote(path)}",
        f"{start}%00{quote(path)}",
        f"{start};{quote(path)}",
    ):
        answer = front_of_all.anybody()("GET", tried)
        decoded = answer.request.url.path
        assert (answer.status_code == 401) == (decoded not in PUBLIC), tried


@pytest.fixture(scope="module")
def front_of_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One front for all examples: nothing is written."""
    running = Service(f"sqlite:///{tmp_path_factory.mktemp('front')}/tuner.db")
    yield running
    running.close()


def test_what_is_public_is_listed(service: Service) -> None:
    assert frozenset({"/healthz", "/readyz", "/login", "/style.css"}) == PUBLIC
    for path in PUBLIC:
        assert service.anybody()("GET", path).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        [("Authorization", "Bearer")],
        [("Authorization", "Bearer ")],
        [("Authorization", "Bearer tuner_000000000000_" + "0" * 64)],
        [("Authorization", "Basic {token}")],
        [("Authorization", "{token}")],
        [("Authorization", "Bearer {token}"), ("Authorization", "Bearer {token}")],
        [("Authorization", "Bearer {token}x")],
        [("Cookie", "tuner_login={token}")],
        [("Cookie", "__Host-tuner_login={login}")],
        [("Cookie", "tuner_login={login}"), ("Authorization", "Bearer nonsense")],
        [("Authorization", "Bearer {login}")],
        [("X-Token", "{token}")],
    ],
)
def test_what_is_not_quite_a_credential(service: Service, headers: list[tuple[str, str]]) -> None:
    token = service.token(Role.ADMIN)
    login = service.tokens.log_in(token)
    given = [(name, value.format(token=token, login=login)) for name, value in headers]
    answer = service.anybody()("GET", "/v1/who", headers=given)
    assert answer.status_code == 401
    problem = answer.json()
    assert problem["type"] == "urn:tuner:unauthorized"
    assert problem["request_id"] == answer.headers["X-Request-ID"]
    assert answer.headers["Content-Type"] == "application/problem+json"


def test_a_token_in_the_address_is_no_credential(service: Service) -> None:
    answer = service.anybody()("GET", f"/v1/who?token={service.token(Role.ADMIN)}")
    assert answer.status_code == 401


def test_a_token_is_its_holder(service: Service) -> None:
    holder = service.holder(Role.WORKER, "team-a.")
    assert holder("GET", "/v1/who").json() == {"name": "worker", "role": "WORKER", "prefix": "team-a."}
    answer = holder("POST", "/v1/studies", content=b"{}")
    assert answer.status_code == 403
    assert service.holder(Role.OPERATOR)("POST", "/v1/studies", content=b"{}").json()["by"] == "operator"


def test_a_revoked_token_is_no_good_at_once(service: Service) -> None:
    holder, browser = service.holder(Role.ADMIN), service.browser(Role.ADMIN)
    assert holder("GET", "/v1/who").status_code == browser("GET", "/v1/who").status_code == 200
    service.tokens.revoke(service.tokens.all()[0].id)
    assert holder("GET", "/v1/who").status_code == browser("GET", "/v1/who").status_code == 401


def test_who_is_turned_away_hears_why(service: Service) -> None:
    token = service.tokens.create("ann", Role.VIEWER, expires_in=60)[0]
    stale = f"tuner_{token.split('_')[1]}_{'0' * 64}"
    service.tokens._clock = lambda: time.time() + 3600  # type: ignore[method-assign]

    def said(**headers: str) -> str:
        answer = service.anybody()("GET", "/v1/who", headers=headers)
        assert answer.status_code == 401
        assert "reason" not in answer.json()
        return str(answer.json()["detail"])

    assert said() == "a token is needed, in the header Authorization: Bearer …"
    assert said(Authorization=token).startswith(
        "the header Authorization must be there once, and read: Bearer"
    )
    assert re.fullmatch(
        r"this token expired at 20\d\d-\d\d-\d\d \d\d:\d\d UTC", said(Authorization=f"Bearer {token}")
    )
    unknown = "this token is not known here, or was revoked"
    # who has not the whole token hears nothing of it
    assert said(Authorization=f"Bearer {stale}") == said(Authorization="Bearer x") == unknown
    service.tokens.revoke(token.split("_")[1])
    assert said(Authorization=f"Bearer {token}") == unknown
    assert said(Cookie="tuner_login=over") == "this log-in is over; log in again"


def test_a_browser_gets_a_page_where_there_is_none(service: Service) -> None:
    browser = service.browser(Role.VIEWER)
    answer = browser("GET", "/no/such/page", headers={"Accept": "text/html"})
    assert answer.status_code == 404
    assert answer.headers["Content-Type"].startswith("text/html")
    assert "There is no such page." in answer.text
    program = service.holder(Role.VIEWER)
    assert program("GET", "/no/such/page").status_code == 404
    assert (
        browser("GET", "/v1/no", headers={"Accept": "text/html"}).headers["Content-Type"]
        == "application/json"
    )


def test_a_web_socket_is_refused(service: Service) -> None:
    sent: list[Any] = []

    async def connect() -> None:
        async def receive() -> Any:
            return {"type": "websocket.connect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "websocket", "path": "/healthz", "headers": [], "query_string": b""}
        await service.app(scope, receive, send)

    asyncio.run(connect())
    assert sent == [{"type": "websocket.close", "code": 1008}]


# --------------------------------------------------------------------------------------------------------- the log-in


def test_log_in_look_and_log_out(service: Service) -> None:
    browser = service.anybody(headers={"Accept": "text/html"})
    answer = browser("GET", "/v1/report?x=1&y=%2F")
    assert answer.status_code == 303
    form = browser("GET", answer.headers["Location"])
    assert 'name="next" value="/v1/report?x=1&amp;y=%2F"' in form.text
    data = {"token": f" {service.token(Role.VIEWER)}\n", "next": "/v1/report?x=1&y=%2F"}
    answer = browser("POST", "/login", data=data, headers={"Origin": "http://localhost:8080"})
    assert (answer.status_code, answer.headers["Location"]) == (303, "/v1/report?x=1&y=%2F")
    cookie = answer.headers["Set-Cookie"].lower()
    attributes = {part.strip() for part in cookie.split(";")[1:]}
    assert attributes == {"httponly", "samesite=strict", "path=/", f"max-age={LOGIN_SECONDS:.0f}"}
    assert service.token(Role.VIEWER) not in cookie
    login = browser.cookies["tuner_login"]
    assert browser("GET", "/v1/who").json()["role"] == "VIEWER"
    assert "viewer (viewer)" in browser("GET", "/").text

    answer = browser("POST", "/logout", headers={"Origin": "http://localhost:8080"})
    assert (answer.status_code, answer.headers["Location"]) == (303, "/login")
    assert browser("GET", "/").status_code == 303
    stolen = service.anybody(headers={"Cookie": f"tuner_login={login}"})
    assert stolen("GET", "/v1/who").status_code == 401


def test_under_tls_the_cookie_is_secure_and_this_hosts_alone(service: Service) -> None:
    browser = service.browser(Role.VIEWER, base_url="https://localhost:8080")
    answer = browser("GET", "/")
    assert answer.status_code == 200
    assert answer.headers["Strict-Transport-Security"] == "max-age=31536000"
    assert list(browser.cookies) == ["__Host-tuner_login"]
    again = service.anybody(base_url="https://localhost:8080")
    answer = again("POST", "/login", data={"token": service.token(Role.VIEWER)})
    assert "; Secure" in answer.headers["Set-Cookie"]
    assert "Domain" not in answer.headers["Set-Cookie"]
    plain = service.anybody()("GET", "/login")
    assert "Strict-Transport-Security" not in plain.headers


@pytest.mark.parametrize("wrong", ["", "nonsense", "tuner_000000000000_" + "0" * 64, "<script>"])
def test_a_wrong_token_logs_nobody_in(service: Service, wrong: str) -> None:
    answer = service.anybody()("POST", "/login", data={"token": wrong, "next": "/"})
    assert answer.status_code == 401
    assert "no token" in answer.text
    assert "Set-Cookie" not in answer.headers
    assert not wrong or wrong not in answer.text.replace('placeholder="tuner_…"', "")


def test_log_ins_are_limited_by_address(service: Service) -> None:
    one = service.anybody()
    for _ in range(10):
        assert one("POST", "/login", data={"token": "wrong"}).status_code == 401
    answer = one("POST", "/login", data={"token": service.token(Role.VIEWER)})
    assert answer.status_code == 429
    assert 0 < int(answer.headers["Retry-After"]) <= 61
    other = service.anybody(address="10.0.0.10")
    assert other("POST", "/login", data={"token": service.token(Role.VIEWER)}).status_code == 303
    assert service.holder(Role.VIEWER)("GET", "/v1/who").status_code == 200


def test_log_ins_are_limited_in_all(service: Service) -> None:
    for i in range(100):
        service.attempts.begin(f"10.0.1.{i}")
    answer = service.anybody()("POST", "/login", data={"token": service.token(Role.VIEWER)})
    assert answer.status_code == 429
    assert "Retry-After" in answer.headers


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"token=" + b"x" * 5000, "application/x-www-form-urlencoded", 413),
        (b"&".join(b"a=1" for _ in range(100)), "application/x-www-form-urlencoded", 400),
        (b"token=\xff\xfe", "application/x-www-form-urlencoded", 400),
        (b'{"token": 1}', "application/json", 415),
    ],
)
def test_forms_that_are_none(service: Service, content: bytes, kind: str, status: int) -> None:
    answer = service.anybody()("POST", "/login", content=content, headers={"Content-Type": kind})
    assert answer.status_code == status


def test_a_form_that_does_not_come_is_not_waited_for(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuner.service.pages.FORM_SECONDS", 0.05)

    async def slow() -> AsyncIterator[bytes]:
        yield b"token="
        await asyncio.sleep(60)

    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    sent: list[Any] = []

    async def post() -> None:
        chunks = slow()

        async def receive() -> Any:
            return {"type": "http.request", "body": await anext(chunks), "more_body": True}

        async def send(message: Any) -> None:
            sent.append(message)

        pairs = [
            (name.lower().encode(), value.encode())
            for name, value in {**headers, "Host": "localhost"}.items()
        ]
        scope = {"type": "http", "method": "POST", "path": "/login", "query_string": b"", "headers": pairs}
        await service.app(scope, receive, send)

    service.runner.run(post())
    assert sent[0]["status"] == 408


@pytest.mark.parametrize(
    "target",
    [
        "//evil.example",
        "/\\evil.example",
        "https://evil.example",
        "javascript:alert(1)",
        "evil",
        "",
        "/a\nb",
        "/\t/x",
    ],
)
def test_the_log_in_leads_nowhere_else(service: Service, target: str) -> None:
    data = {"token": service.token(Role.VIEWER), "next": target}
    answer = service.anybody()("POST", "/login", data=data)
    assert answer.headers["Location"] == "/"


@given(st.text(max_size=12) | st.from_regex(r"[/\\]{1,3}[a-z.]{0,5}[/\\:@]{0,2}.{0,3}"))
def test_where_the_log_in_leads_is_a_path_of_ours(target: str) -> None:
    led = _local(target)
    assert led.startswith("/")
    assert httpx.URL("http://here.example/login").join(led).host == "here.example"
    assert "\\" not in led
    assert not led.startswith("//")


# ------------------------------------------------------------------------------------------------- hosts and origins


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8080", "[::1]:8080", "[::1]"])
def test_known_hosts(service: Service, host: str) -> None:
    assert service.holder(Role.VIEWER)("GET", "/v1/who", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("localhost.", 421),
        ("", 400),
        ("a b", 400),
        ("localhost:8080@evil", 400),
        ("localhost/x", 400),
        ("localhost\r\nX: 1", 400),
    ],
)
def test_unknown_hosts(service: Service, host: str, status: int) -> None:
    answer = service.holder(Role.ADMIN)("GET", "/v1/who", headers={"Host": host})
    assert answer.status_code == status
    assert service.anybody()("GET", "/login", headers={"Host": host}).status_code == status
    assert service.anybody()("GET", "/healthz", headers={"Host": host}).status_code == 200


def test_two_hosts(service: Service) -> None:
    headers = [("Host", "localhost"), ("Host", "evil.example")]
    assert service.holder(Role.ADMIN)("GET", "/v1/who", headers=headers).status_code == 400


@pytest.mark.parametrize(
    ("headers", "passes"),
    [
        ({"Origin": "http://localhost:8080"}, True),
        ({"Origin": "https://localhost:8080"}, True),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({}, False),
        ({"Origin": "null"}, False),
        ({"Origin": ""}, False),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "http://localhost:8081"}, False),
        ({"Origin": "http://localhost"}, False),
        ({"Origin": "ftp://localhost:8080"}, False),
        ({"Origin": "http://["}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "null"}, False),
    ],
)
def test_a_cookie_counts_only_for_our_own_pages(
    service: Service, headers: dict[str, str], passes: bool
) -> None:
    browser = service.browser(Role.ADMIN)
    answer = browser("POST", "/v1/studies", content=b"{}", headers=headers)
    assert answer.status_code == (200 if passes else 403)
    assert browser("GET", "/v1/who", headers=headers).status_code == 200
    assert (
        service.holder(Role.ADMIN)("POST", "/v1/studies", content=b"{}", headers=headers).status_code == 200
    )


def test_under_tls_a_page_without_it_is_not_ours(service: Service) -> None:
    browser = service.browser(Role.ADMIN, base_url="https://localhost:8080")
    answer = browser("POST", "/logout", headers={"Origin": "http://localhost:8080"})
    assert answer.status_code == 403


def test_no_other_site_logs_anybody_in(service: Service) -> None:
    data = {"token": service.token(Role.VIEWER)}
    answer = service.anybody()("POST", "/login", data=data, headers={"Origin": "http://evil.example"})
    assert answer.status_code == 403
    assert "Set-Cookie" not in answer.headers


# -------------------------------------------------------------------------------------------------------- all answers


@pytest.mark.parametrize(
    "path",
    ["/", "/login", "/healthz", "/v1/who", "/v1/report", "/v1/failure", "/dashboard", "/api/studies", "/nothing",
     "/static/none.js", "/favicon.ico", "/api/nothing", "/csv/1"],
)  # fmt: skip
def test_headers_of_all_answers(service: Service, path: str) -> None:
    for answer in (service.holder(Role.ADMIN)("GET", path), service.anybody()("GET", path)):
        headers = answer.headers
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "same-origin"
        assert "Cache-Control" in headers
        assert not [name for name in headers if name.startswith("access-control")]
        assert re.fullmatch("[0-9a-f]{32}", headers["X-Request-ID"])
        assert len(headers.get_list("X-Request-ID")) == 1


def test_a_preflight_is_answered_with_nothing(service: Service) -> None:
    headers = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    answer = service.anybody()("OPTIONS", "/v1/studies", headers=headers)
    assert answer.status_code == 401
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("0b3e1a2c-77", True),
        ("a.b_c-1", True),
        ("x" * 129, False),
        ("", False),
        ("a b", False),
        ('"}\n{"', False),
        ("é", False),
        ("0" * 64, False),
    ],
)
def test_a_sane_request_id_is_kept(service: Service, given: str, kept: bool) -> None:
    answer = service.anybody()("GET", "/healthz", headers=[(b"X-Request-ID", given.encode("latin-1"))])
    assert (answer.headers["X-Request-ID"] == given) == kept


def test_what_nobody_expected_is_answered_without_details(service: Service) -> None:
    with log_lines() as lines:
        answer = service.holder(Role.ADMIN)("GET", "/v1/failure")
    assert answer.status_code == 500
    assert "foreseen" not in answer.text
    [record] = [
        found for line in lines if "ZeroDivisionError" in (found := json.loads(line)).get("exception", "")
    ]
    assert record["request_id"] == answer.headers["X-Request-ID"]


# --------------------------------------------------------------------------------------------------------------- logs


def test_one_record_a_line_whatever_comes(service: Service) -> None:
    nasty = "/v1/a%0d%0a{%22level%22:%22fake%22}%e2%80%a8%c2%85%00%1b[31m%22%5c" + "x" * 3000
    with log_lines() as lines:
        answer = service.holder(Role.ADMIN)("GET", nasty, headers={"User-Agent": "a\tb", "Accept": "a\tb"})
    records = [json.loads(line) for line in lines]
    assert all("\r" not in line and line.isascii() and "\x1b" not in line for line in lines)
    [record] = [record for record in records if record["message"] == "request"]
    assert record["level"] == "info"
    assert record["path"].startswith('/v1/a\r\n{"level":"fake"}\u2028')
    assert (record["status"], record["who"], record["client"]) == (404, "admin", "10.0.0.9")
    assert record["request_id"] == answer.headers["X-Request-ID"]


def test_no_token_is_ever_logged(service: Service) -> None:
    token = service.token(Role.ADMIN)
    secret = token.rpartition("_")[2]
    login = service.tokens.log_in(token)
    assert login is not None
    secrets = (secret, secret.upper(), login.rpartition("_")[2])
    holder, anybody = service.holder(Role.ADMIN), service.anybody()
    with log_lines() as lines:
        for text in (
            token,
            secret,
            login,
            token.upper(),
            token.replace("_", "%5F"),
            token.replace("_", "%255F"),
        ):
            holder("GET", f"/v1/who?token={text}")
            anybody("GET", f"/v1/{text}")
            holder("GET", f"/v1/{text}", headers={"X-Request-ID": text, "User-Agent": text, "Referer": text})
            holder("GET", f"/api/studies/{text}")
            holder("POST", "/v1/studies", content=text.encode())
            holder("POST", "/api/trials/1/tell", content=text.encode())
            anybody("POST", "/login", data={"token": text, "next": f"/{text}"})
            anybody(
                "GET", "/v1/who", headers={"Authorization": f"Bearer {text}", "Cookie": f"tuner_login={text}"}
            )
            anybody("GET", "/v1/who", headers={"Host": text})
    assert len(lines) > 50
    for line in lines:
        assert not any(secret in line for secret in secrets)


# ------------------------------------------------------------------------------------------------------------- health


def test_health_touches_nothing(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as without:
        without.setattr(service.database, "engine", None)
        without.setattr(service.database, "transaction", None)
        assert service.anybody()("GET", "/healthz").json() == {"status": "ok"}
    answer = service.anybody()("POST", "/healthz")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, HEAD")


def test_ready_while_the_database_answers(service: Service) -> None:
    assert service.anybody()("GET", "/readyz").json() == {"status": "ok"}


def test_not_ready_with_other_tables(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuner.service.app.HEAD", "9999")
    with log_lines() as lines:
        answer = service.anybody()("GET", "/readyz")
    assert answer.status_code == 503
    assert "9999" not in answer.text  # who is not logged in need not know
    assert "needed is 9999" in "".join(lines)


@pytest.fixture
def hanging(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """A service whose database does not answer any more."""
    monkeypatch.setattr("tuner.service.front.LOOKUP_SECONDS", 0.2)
    monkeypatch.setattr("tuner.service.front.READY_SECONDS", 0.2)
    service = Service(sqlite_url)
    service.token(Role.ADMIN)
    goes_on = threading.Event()
    whole = service.database.transaction

    def hang(*args: Any) -> Any:
        goes_on.wait(30)
        return whole(*args)

    monkeypatch.setattr(service.database, "transaction", hang)
    yield service
    goes_on.set()
    service.close()


def test_while_the_database_hangs(hanging: Service) -> None:
    answer = hanging.anybody()("GET", "/readyz")
    assert answer.status_code == 503
    assert answer.headers["Retry-After"]
    assert hanging.anybody()("GET", "/healthz").status_code == 200
    holder = hanging.holder(Role.ADMIN)
    for _ in range(6):  # more than there are threads
        answer = holder("GET", "/v1/who")
        assert answer.status_code == 503
        assert answer.json()["type"] == "urn:tuner:storage_unavailable"
        assert answer.headers["Retry-After"]
    assert hanging.anybody()("GET", "/healthz").status_code == 200


# ------------------------------------------------------------------------------------------------------ the dashboard


def system_attributes(service: Service) -> list[str]:
    """The keys of all system attributes of the study `small` and of its trials."""
    study = service.manager.load("small")
    of_trials = [key for trial in study.get_trials() for key in trial.system_attrs]
    return [*service.database.get_study_system_attrs(study._study_id), *of_trials]


@pytest.fixture
def studied(service: Service) -> Service:
    """A service with a study whose third trial runs."""
    some_trials(service.manager)
    return service


def test_everybody_with_a_token_for_all_studies_looks_at_the_dashboard(studied: Service) -> None:
    for role in Role:
        holder = studied.holder(role)
        assert "text/html" in holder("GET", "/dashboard/studies/1").headers["Content-Type"]
        [summary] = holder("GET", "/api/studies").json()["study_summaries"]
        assert summary["study_name"] == "small"
        assert len(holder("GET", "/api/studies/1?after=0").json()["trials"]) == 3
        assert holder("GET", "/csv/1").text.count("\n") == 4
        assert holder("HEAD", "/dashboard").status_code == 200
        for path in ("/favicon.ico", "/static/bundle.js"):  # some clients say nothing of encodings
            assert holder("GET", path, headers=[("Accept-Encoding", "")]).status_code == 200


@pytest.mark.parametrize("after", ["abc", "-1", "1.5", "", "9999999999"])
def test_a_study_from_no_number_of_trials_on(studied: Service, after: str) -> None:
    answer = studied.holder(Role.VIEWER)("GET", f"/api/studies/1?after={after}")
    assert answer.status_code == 400
    assert answer.json()["detail"] == f"after is a number of trials; got {after!r}"


def status_by_hand(service: Service, path: str, query: bytes = b"") -> int:
    """The status that a viewer's GET is answered with, which says nothing that an HTTP client would add."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    token = service.token(Role.VIEWER).encode()
    scope = {
        **{"type": "http", "http_version": "1.1", "scheme": "http", "method": "GET"},
        **{"path": path, "query_string": query},
        "headers": [(b"host", b"localhost"), (b"authorization", b"Bearer " + token)],
    }
    service.runner.run(service.app(scope, receive, send))
    return int(sent[0]["status"])


def test_the_dashboards_files_are_found_without_a_word_about_encodings(studied: Service) -> None:
    assert status_by_hand(studied, "/favicon.ico") == 200


def test_documents_that_take_long_keep_nothing_else_waiting(
    studied: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where browsers of a team look at a large study at once."""
    goes_on = threading.Event()

    def slow(*_: object) -> tuple[int, bytes]:
        goes_on.wait(30)
        return 200, b"{}"

    monkeypatch.setattr(Documents, "get", slow)
    token = {"Authorization": f"Bearer {studied.token(Role.VIEWER)}"}

    async def look() -> tuple[int, list[int]]:
        transport = httpx.ASGITransport(studied.app)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://localhost", headers=token
        ) as client:
            documents = [asyncio.create_task(client.get("/api/studies/1")) for _ in range(50)]
            try:
                other = await asyncio.wait_for(client.get("/v1/who"), 20)
            finally:
                goes_on.set()
            return other.status_code, [(await document).status_code for document in documents]

    assert studied.runner.run(look()) == (200, [200] * 50)


def test_a_token_for_some_studies_sees_no_dashboard(studied: Service) -> None:
    holder = studied.holder(Role.OPERATOR, "team-a.")
    for method, path in bottle_routes(studied):
        if path == "/":
            continue
        answer = holder(method, path)
        assert answer.status_code == 403
        assert method == "HEAD" or "team-a." in answer.json()["detail"]


def test_only_operators_change_something_in_the_dashboard(studied: Service) -> None:
    for role in (Role.VIEWER, Role.WORKER):
        holder = studied.holder(role)
        for method, path in bottle_routes(studied):
            if method != "GET":
                assert holder(method, path, json={}).status_code == 403, (method, path)
        for method in METHODS[2:]:
            assert holder(method, "/api/studies/1").status_code == 403


def test_operators_change_only_what_is_known_to_be_safe(studied: Service) -> None:
    holder, seen = studied.holder(Role.ADMIN), []
    for method, path in bottle_routes(studied):
        if method == "GET" or any(m == method and re.fullmatch(p, path) for m, p, _ in WRITES):
            continue
        seen.append((method, path))
        answer = holder(method, path, json={"study_name": "other", "directions": ["minimize"]})
        assert answer.status_code == 403, (method, path)
        assert "/v1" in answer.json()["reason"]
    assert ("DELETE", "/api/studies/1") in seen
    assert len(seen) == 16
    assert [study.name for study in studied.manager.studies()] == ["small"]


def test_every_write_is_a_route_of_the_dashboard(studied: Service) -> None:
    routes = bottle_routes(studied)
    for method, pattern, _ in WRITES:
        assert [path for m, path in routes if m == method and re.fullmatch(pattern, path)]


NO_NUMBERS = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    '"nan"',
    '"inf"',
    '"0.5"',
    "true",
    "null",
    "[1]",
    "{}",
    "",
]


@pytest.mark.parametrize("value", NO_NUMBERS)
def test_no_value_poisons_a_study(studied: Service, value: str) -> None:
    holder = studied.holder(Role.OPERATOR)
    body = f'{{"state": "Complete", "values": [{value}]}}'
    answer = holder("POST", "/api/trials/3/tell", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    attrs = f'{{"user_attrs": {{"a": {{"deep": [{value}]}}}}}}'
    answer = holder(
        "POST", "/api/trials/3/user-attrs", content=attrs, headers={"Content-Type": "application/json"}
    )
    is_json = value not in ("NaN", "Infinity", "-Infinity", "1e999")
    assert answer.status_code == (204 if is_json else 422)
    trials = studied.manager.load("small").get_trials()
    assert [trial.state for trial in trials][2] is TrialState.RUNNING
    assert holder("GET", "/api/studies/1?after=0").status_code == 200


@pytest.mark.parametrize("value", [r'"\ud800"', r'"\u0000"', "[" * 300 + "]" * 300, "9" * 500])
def test_no_attribute_of_the_dashboards_keeps_trials_from_being_shown(studied: Service, value: str) -> None:
    attrs, headers = f'{{"user_attrs": {{"a": {value}}}}}', {"Content-Type": "application/json"}
    answer = studied.holder(Role.OPERATOR)("POST", "/api/trials/3/user-attrs", content=attrs, headers=headers)
    assert answer.status_code == 422
    assert not studied.manager.load("small").get_trials()[2].user_attrs


@pytest.mark.parametrize(
    ("path", "document", "status"),
    [
        ("/api/trials/3/tell", {"state": "Complete", "values": [0.25]}, 204),
        ("/api/trials/3/tell/", {"state": "Complete", "values": [0.25]}, 403),
        ("/api/trials/3/tell", {"state": "fail", "values": ["ignored"]}, 204),
        ("/api/trials/3/tell", {"state": "Complete", "values": [1, 2]}, 422),
        ("/api/trials/3/tell", {"state": "Complete", "values": []}, 422),
        ("/api/trials/3/tell", {"state": "Complete", "values": [10**400]}, 422),
        ("/api/trials/3/tell", {"state": "Complete"}, 422),
        ("/api/trials/3/tell", {"state": "Pruned"}, 422),
        ("/api/trials/3/tell", {}, 422),
        ("/api/trials/3/tell", [], 422),
        ("/api/trials/2/tell", {"state": "Complete", "values": [0.25]}, 409),
        ("/api/trials/99/tell", {"state": "Complete", "values": [0.25]}, 404),
        ("/api/trials/٣/tell", {"state": "Complete", "values": [0.25]}, 403),
        ("/api/trials/3/user-attrs", {"user_attrs": {"rating": 5}}, 204),
        ("/api/trials/3/user-attrs", {"user_attrs": {"tuner:x": 5}}, 422),
        ("/api/trials/3/user-attrs", {"user_attrs": {"parent": 5}}, 422),
        ("/api/trials/3/user-attrs", {"user_attrs": {"a\u0000": 5}}, 422),
        ("/api/trials/3/user-attrs", {"user_attrs": {"\ud800": 5}}, 422),
        ("/api/trials/3/user-attrs", {"user_attrs": {}}, 422),
        ("/api/trials/2/user-attrs", {"user_attrs": {"rating": 5}}, 409),
    ],
)
def test_what_operators_tell_through_the_dashboard(
    studied: Service, path: str, document: Any, status: int
) -> None:
    with log_lines() as lines:
        answer = studied.holder(Role.OPERATOR)(
            "POST", path, content=json.dumps(document), headers={"Content-Type": "application/json"}
        )
    assert answer.status_code == status, answer.text
    assert not [line for line in lines if json.loads(line)["level"] == "error"]
    trial = studied.manager.load("small").get_trials()[2]
    if status == 204 and "tell" in path:
        assert trial.state is (TrialState.COMPLETE if document["state"] == "Complete" else TrialState.FAIL)
        assert trial.values == ([0.25] if document["state"] == "Complete" else None)
    else:
        assert trial.state is TrialState.RUNNING
        assert trial.user_attrs.get("rating") == (5 if status == 204 else None)


@pytest.mark.parametrize(
    ("path", "document", "status"),
    [
        ("/api/studies/1/note", {"version": 1, "body": "so far so good"}, 204),
        ("/api/studies/1/3/note", {"version": 1, "body": "odd"}, 204),
        ("/api/studies/1/note", {"version": 0, "body": "late"}, 409),
        ("/api/studies/7/note", {"version": 1, "body": ""}, 404),
        ("/api/studies/7/3/note", {"version": 1, "body": ""}, 404),
        ("/api/studies/1/99/note", {"version": 1, "body": ""}, 404),
        ("/api/studies/1/note", {"version": True, "body": ""}, 422),
        ("/api/studies/1/note", {"version": 1, "body": {"pickle": 1}}, 422),
        ("/api/studies/1/note", {"version": 10**30, "body": ""}, 422),
    ],
)
def test_notes(studied: Service, path: str, document: Any, status: int) -> None:
    assert studied.holder(Role.OPERATOR)("PUT", path, json=document).status_code == status
    keys = system_attributes(studied)
    assert bool(keys) == (status == 204)
    assert all(key.startswith("dashboard:") for key in keys)


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"\xff", "application/json", 400),
        (b"[" * 200_000, "application/json", 422),
        (b'{"state": "Fail", "state": "Complete"}', "application/json", 422),
        (b"{}", "text/plain", 415),
        (b"{}", "", 415),
        (b" " * 300_000, "application/json", 413),
    ],
)
def test_documents_that_are_none(studied: Service, content: bytes, kind: str, status: int) -> None:
    headers = {"Content-Type": kind} if kind else {}
    answer = studied.holder(Role.OPERATOR)("POST", "/api/trials/3/tell", content=content, headers=headers)
    assert answer.status_code == status


def test_the_cma_es_pickle_cannot_be_planted(studied: Service) -> None:
    """Optuna's CMA-ES unpickles system attributes `cma:…` of trials; no path or document sets one."""
    holder = studied.holder(Role.ADMIN)
    poison = "80049500"
    for method, path in bottle_routes(studied):
        if method == "GET" or path == "/":
            continue
        for document in (
            {"system_attrs": {"cma:0": poison}, "user_attrs": {"cma:0": poison}, "state": "Fail"},
            {"output_type": "note", "artifact_key": "cma:0", "version": 1, "body": poison},
            {"mode": "ChooseWorst", "candidates": [1], "clicked": 1, "id": "cma:0", "file": "data:,x"},
        ):
            holder(method, path.replace("/trials/1/", "/trials/3/"), json=document)
    assert all(key.startswith("dashboard:") for key in system_attributes(studied))


def test_artifacts_are_downloads_in_a_sandbox(sqlite_url: str, tmp_path: Any) -> None:
    import optuna

    (tmp_path / "page.html").write_text("<script>alert(1)</script>")
    (tmp_path / "store").mkdir()
    store = FileSystemArtifactStore(tmp_path / "store")
    service = Service(sqlite_url, artifact_store=store)
    some_trials(service.manager)
    study = service.manager.load("small")
    artifact = optuna.artifacts.upload_artifact(
        artifact_store=store, file_path=str(tmp_path / "page.html"), study_or_trial=study
    )
    answer = service.holder(Role.VIEWER)("GET", f"/artifacts/{study._study_id}/{artifact}")
    assert (answer.status_code, answer.text) == (200, "<script>alert(1)</script>")
    assert answer.headers["Content-Disposition"] == "attachment"
    assert answer.headers["Content-Security-Policy"].startswith("sandbox;")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert service.holder(Role.ADMIN)("POST", "/api/artifacts/1", json={}).status_code == 403
    service.close()


def test_a_query_that_is_not_ascii(studied: Service) -> None:
    assert status_by_hand(studied, "/api/studies", b"\xe9") == 400


# ---------------------------------------------------------------------------------------------------------- our pages


def test_the_first_page_lists_what_goes_on(studied: Service) -> None:
    page = studied.browser(Role.VIEWER)("GET", "/").text
    assert '<a href="/dashboard/studies/1">small</a>' in page
    assert "2 of 10" in page
    assert "<script" not in page


def test_the_first_page_shows_only_the_tokens_studies(studied: Service) -> None:
    some_trials(studied.manager, "team-a.one")
    page = studied.holder(Role.VIEWER, "team-a.")("GET", "/").text
    assert "team-a.one" in page
    assert "small" not in page
    assert "/dashboard" not in page


def test_text_of_others_is_text(service: Service) -> None:
    import optuna

    optuna.create_study(storage=service.database, study_name="<script>alert(1)</script>")
    page = service.browser(Role.VIEWER)("GET", "/").text
    assert "&lt;script&gt;alert(1)" in page
    assert "<script" not in page


def test_other_methods_are_not_allowed(service: Service) -> None:
    holder = service.holder(Role.ADMIN)
    for path, allowed in (("/", "GET"), ("/login", "GET, POST"), ("/logout", "POST"), ("/style.css", "GET")):
        answer = holder("DELETE", path)
        assert (answer.status_code, answer.headers["Allow"]) == (405, allowed)


def test_a_browser_is_told_in_a_page(studied: Service) -> None:
    holder = studied.holder(Role.VIEWER, "a", headers={"Accept": "text/html,*/*"})
    answer = holder("GET", "/dashboard")
    assert answer.status_code == 403
    assert answer.text.startswith("<!DOCTYPE html>")
    assert "shows all of them" in answer.text
