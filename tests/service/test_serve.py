"""`tuner serve` as it is started, asked and stopped; its settings; tokens by the command line and over HTTP."""

from __future__ import annotations

import json
import queue
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from command import Program, run
from sqlalchemy.engine import make_url

from tuner.errors import DefinitionError, TunerError
from tuner.schema import with_password
from tuner.service.auth import duration
from tuner.service.serve import Settings, _listen


class Running:
    """A service in a process of its own."""

    def __init__(self, *options: str, folder: Path, **environment: str) -> None:
        self._log = folder / f"log-{time.monotonic_ns()}"
        self.process = Program("serve", *options, folder=folder, environment=environment, log=self._log)
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self.said = self._until("tuner serves")
        found = re.search(r"(https?://\S+):(\d+)/", self.said)
        assert found is not None, self.said
        self.url, self.port = f"{found[1]}:{found[2]}", int(found[2])
        self.token = next(iter(re.findall(r"tuner_[0-9a-f]+_[0-9a-f]{64}", self.said)), "")

    def _read(self) -> None:
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _until(self, sign: str) -> str:
        said = ""
        while sign not in said:
            line = self._lines.get(timeout=60)
            assert line is not None, said + self.log()
            said += line
        return said

    def get(self, path: str, token: str | None = None, **settings: Any) -> httpx.Response:
        shown = token or self.token
        headers = {"Authorization": f"Bearer {shown}"} if shown else {}
        return httpx.get(self.url + path, headers=headers, timeout=30, **settings)

    def log(self) -> str:
        return self._log.read_text()

    def stop(self, sign: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(sign)
        return self.process.wait(30)

    def close(self) -> None:
        self.process.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Starts services, on free ports; those that still run at the end are ended."""
    started: list[Running] = []

    def start(*options: str, **environment: str) -> Running:
        started.append(Running("--port", "0", *options, folder=tmp_path, **environment))
        return started[-1]

    yield start
    for running in started:
        running.close()


def test_the_first_start_prints_a_token_and_no_other(start: Callable[..., Running]) -> None:
    first = start()
    assert first.said.count("tuner_") == 1
    assert "only now" in first.said
    assert first.get("/v1/studies").json()["studies"] == []
    assert httpx.get(first.url + "/v1/studies").status_code == 401
    assert first.stop() == 0
    assert first.token not in first.log()

    again = start()
    assert "tuner_" not in again.said
    assert again.get("/v1/studies", first.token).status_code == 200


def test_tokens_of_files_are_let_in_and_none_is_shown(start: Callable[..., Running], tmp_path: Path) -> None:
    texts = {role: f"tuner_{role[0] * 12}_{'0' * 64}" for role in ("admin", "beginner")}
    for role, text in texts.items():
        (tmp_path / role).write_text(f"{text}\n")
    files = {"TUNER_ADMIN_TOKEN_FILE": "admin", "TUNER_WORKER_TOKEN_FILE": "beginner"}
    running = start(**files)
    assert "tuner_" not in running.said
    assert running.get("/v1/tokens", texts["admin"]).status_code == 200
    assert running.get("/v1/tokens", texts["beginner"]).status_code == 403
    assert running.get("/v1/studies", texts["beginner"]).status_code == 200
    assert "0" * 64 not in running.log()


def test_only_a_workers_token_of_a_file_leaves_the_first_to_be_made(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    (tmp_path / "worker").write_text(f"tuner_{'a' * 12}_{'0' * 64}")
    running = start(TUNER_WORKER_TOKEN_FILE="worker")
    assert running.get("/v1/tokens").status_code == 200


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory"),
        ("", "a secret is one line of printable characters; this is none"),
        ("hunter2", "a token reads tuner_ID_SECRET"),
    ],
)
def test_a_token_file_that_holds_none_stops_the_start(
    tmp_path: Path, content: str | None, reason: str
) -> None:
    if content is not None:
        (tmp_path / "token").write_text(content)
    environment = {"TUNER_ADMIN_TOKEN_FILE": "token"}
    done = run("serve", "--port", "0", folder=tmp_path, environment=environment)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert reason in done.stderr
    assert "hunter2" not in done.stderr


def test_the_databases_password_comes_from_a_file(tmp_path: Path) -> None:
    secret = "p@ss/word:%25"
    assert with_password("sqlite:///x.db", secret) == "sqlite:///x.db"
    assert with_password("postgresql://u:own@h/d", secret) == "postgresql://u:own@h/d"
    url = make_url(with_password("postgresql://u@h/d", secret))
    assert (url.drivername, url.password) == ("postgresql", secret)
    (tmp_path / "password").write_text(f"{secret}\n")
    storage = "postgresql://nobody@localhost:1/d"

    def info(file: str) -> tuple[int, str]:
        environment = {"TUNER_DATABASE_PASSWORD_FILE": file}
        done = run("storage", "info", "--storage", storage, folder=tmp_path, environment=environment)
        return done.returncode, done.stderr

    code, said = info("password")
    assert code == 1
    assert "nobody:***@localhost:1/d" in said
    assert info("none") == (2, "error: TUNER_DATABASE_PASSWORD_FILE none: No such file or directory\n")


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_stops_with_a_request_answered(start: Callable[..., Running], sign: signal.Signals) -> None:
    running = start()
    head = f"POST /v1/tokens HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {running.token}\r\n"
    body = b'{"name": "late", "role": "viewer"}'
    with socket.create_connection(("127.0.0.1", running.port)) as connection:
        connection.sendall(
            f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        )
        connection.sendall(body[:5])
        _eventually(lambda: running.get("/healthz").status_code == 200)
        running.process.send_signal(sign)
        _eventually(lambda: "Shutting down" in running.log())
        connection.sendall(body[5:])
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 201")
    assert running.process.wait(30) == 0
    assert "Traceback" not in running.log()


def test_the_log_is_json_with_the_request_in_it(start: Callable[..., Running]) -> None:
    running = start()
    answer = running.get(f"/v1/%0a%0dnothing?{running.token}", token=running.token)
    with socket.create_connection(("127.0.0.1", running.port)) as connection:
        connection.sendall(b"NONSENSE\r\n\r\n")
        assert b"400" in connection.recv(65536)
    assert running.stop() == 0
    records = [json.loads(line) for line in running.log().splitlines()]
    [record] = [r for r in records if r.get("status") == 404]
    assert record["request_id"] == answer.headers["X-Request-ID"]
    assert running.token.rpartition("_")[2] not in running.log()
    assert "server" not in answer.headers


def test_one_service_a_file_of_sqlite(start: Callable[..., Running], tmp_path: Path) -> None:
    running = start()
    other = run("serve", "--port", "0", folder=tmp_path)
    assert (other.returncode, other.stdout) == (2, "")
    assert "SQLite takes one, PostgreSQL any number" in other.stderr
    assert other.stderr.count("\n") == 1
    running.process.kill()
    running.process.wait()
    assert start().get("/healthz").status_code == 200  # whoever was killed keeps nothing


def test_many_services_on_postgresql(start: Callable[..., Running], postgresql_url: str) -> None:
    one = start("--storage", postgresql_url)
    other = start(OPTUNA_STORAGE=postgresql_url)
    assert "tuner_" not in other.said
    made = httpx.post(
        f"{one.url}/v1/tokens",
        json={"name": "w", "role": "worker"},
        headers={"Authorization": f"Bearer {one.token}"},
    ).json()
    assert other.get("/v1/studies", made["token"]).status_code == 200
    login = httpx.post(f"{one.url}/login", data={"token": made["token"]})
    cookies = {"tuner_login": login.cookies["tuner_login"]}
    assert httpx.get(f"{other.url}/v1/studies", cookies=cookies).status_code == 200
    headers = {"Authorization": f"Bearer {one.token}"}
    assert httpx.delete(f"{one.url}/v1/tokens/{made['id']}", headers=headers).status_code == 204
    assert one.get("/v1/studies", made["token"]).status_code == 401
    _eventually(lambda: other.get("/v1/studies", made["token"]).status_code == 401)
    _eventually(lambda: httpx.get(f"{other.url}/v1/studies", cookies=cookies).status_code == 401)


def test_settings_from_the_environment(start: Callable[..., Running], tmp_path: Path) -> None:
    running = start(
        TUNER_HOST="0.0.0.0",
        TUNER_BEHIND_PROXY="1",
        TUNER_ALLOWED_HOSTS="tuner.example.org other.example.org",
        TUNER_LOG_LEVEL="debug",
        OPTUNA_STORAGE=f"sqlite:///{tmp_path}/elsewhere.db",
    )
    assert (tmp_path / "elsewhere.db").exists()
    address = f"http://127.0.0.1:{running.port}"
    proxied = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https", "Host": "other.example.org"}
    answer = httpx.get(f"{address}/login", headers=proxied)
    assert answer.status_code == 200
    assert "Strict-Transport-Security" in answer.headers
    assert httpx.get(f"{address}/login", headers={"Host": "evil.example"}).status_code == 421
    login = httpx.post(f"{address}/login", headers=proxied, data={"token": running.token})
    assert login.headers["Set-Cookie"].startswith("__Host-tuner_login=")
    assert "Secure" in login.headers["Set-Cookie"]
    _eventually(lambda: '"client": "203.0.113.9"' in running.log())


def test_without_a_proxy_nobody_says_he_is_another(start: Callable[..., Running]) -> None:
    running = start()
    proxied = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https"}
    answer = httpx.get(f"{running.url}/login", headers=proxied)
    assert "Strict-Transport-Security" not in answer.headers
    _eventually(lambda: '"path": "/login"' in running.log())
    assert "203.0.113.9" not in running.log()


def test_only_the_proxy_is_believed(start: Callable[..., Running]) -> None:
    """Whoever else reaches the port, as workers of a container's network do, is who they are."""
    running = start(TUNER_BEHIND_PROXY="1", FORWARDED_ALLOW_IPS="10.1.2.3, 127.0.0.2/32")
    proxied = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https"}
    assert "Strict-Transport-Security" not in httpx.get(f"{running.url}/login", headers=proxied).headers
    proxy = httpx.Client(transport=httpx.HTTPTransport(local_address="127.0.0.2"))
    with proxy:
        assert "Strict-Transport-Security" in proxy.get(f"{running.url}/login", headers=proxied).headers
        spoofed = {**proxied, "X-Forwarded-For": "198.51.100.7, 203.0.113.10"}  # the proxy adds the last
        proxy.get(f"{running.url}/login", headers=spoofed)
    _eventually(lambda: '"client": "203.0.113.10"' in running.log())
    assert '"client": "203.0.113.9"' in running.log()
    assert '"client": "127.0.0.1"' in running.log()
    assert '"client": "198.51.100.7"' not in running.log()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_tls(start: Callable[..., Running], tmp_path: Path) -> None:
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        "key.pem",
        "-out",
        "cert.pem",
    ]
    names = ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*command, *names], check=True, capture_output=True, cwd=tmp_path)
    running = start("--tls-cert", "cert.pem", "--tls-key", "key.pem")
    assert running.url.startswith("https://")
    import ssl

    trust = ssl.create_default_context(cafile=tmp_path / "cert.pem")
    assert running.get("/v1/studies", verify=trust).status_code == 200
    login = httpx.post(f"{running.url}/login", data={"token": running.token}, verify=trust)
    assert "Secure" in login.headers["Set-Cookie"]
    assert "Strict-Transport-Security" in login.headers
    (tmp_path / "key.pem").write_text("nonsense")
    refused = run(
        "serve",
        "--tls-cert",
        "cert.pem",
        "--tls-key",
        "key.pem",
        "--storage",
        "sqlite:///b.db",
        folder=tmp_path,
    )
    assert refused.returncode == 1
    assert "cannot use the certificate cert.pem" in refused.stderr


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused = run("serve", "--port", port, folder=tmp_path)
    assert refused.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in refused.stderr
    assert "tuner_" not in refused.stdout  # the first token is still to come


def test_over_http_an_admin_makes_lists_and_revokes_tokens(start: Callable[..., Running]) -> None:
    running = start()
    with httpx.Client(base_url=running.url, headers={"Authorization": f"Bearer {running.token}"}) as admin:
        wanted = {"name": "gpu-3", "role": "worker", "expires_in_seconds": 3600, "prefix": "vision."}
        key = {"Idempotency-Key": "5f1c"}
        made = admin.post("/v1/tokens", json=wanted, headers=key)
        assert made.status_code == 201
        spaced = {"Authorization": f"bearer  {running.token}", "Cookie": "theme=dark"}
        again = admin.post("/v1/tokens", json=wanted, headers={**key, **spaced})
        assert (again.status_code, again.json()) == (201, made.json())
        assert admin.post("/v1/tokens", json={**wanted, "role": "admin"}, headers=key).status_code == 422
        assert admin.post("/v1/tokens", json={**wanted, "name": "x"}, headers=key).status_code == 409
        assert admin.post("/v1/tokens", json={"name": "v", "role": "viewer"}).status_code == 201
        first = admin.get("/v1/tokens?page_size=2").json()
        [third] = admin.get(f"/v1/tokens?page_token={first['next_page_token']}").json()["tokens"]
        assert [token["name"] for token in (*first["tokens"], third)] == ["admin", "gpu-3", "v"]
        assert "token" not in third
        assert third["prefix"] == ""
        for wrong in (
            {"name": "a b", "role": "worker"},
            {"name": "a", "role": "root"},
            {"name": "a", "role": "admin", "prefix": "x"},
            {"name": "a", "role": "worker", "expires_in_seconds": 0},
            {"name": "a", "role": "worker", "expires_in_seconds": "1"},
            {"name": "a", "role": "worker", "secret": "x"},
            {"name": "a", "role": "worker", "prefix": "%"},
        ):
            refused = admin.post("/v1/tokens", json=wrong)
            assert (refused.status_code, refused.headers["Content-Type"]) == (
                422,
                "application/problem+json",
            ), wrong
        worker = {"Authorization": f"Bearer {made.json()['token']}"}
        assert httpx.get(f"{running.url}/v1/studies", headers=worker).status_code == 200
        for method, path in (("GET", "/v1/tokens"), ("POST", "/v1/tokens"), ("DELETE", "/v1/tokens/x")):
            assert httpx.request(method, running.url + path, headers=worker).status_code == 403
        assert admin.delete(f"/v1/tokens/{made.json()['id']}").status_code == 204
        assert httpx.get(f"{running.url}/v1/studies", headers=worker).status_code == 401
        assert admin.delete("/v1/tokens/nobody").status_code == 404
        paths = admin.get("/v1/openapi.json").json()["paths"]
        assert {"/v1/tokens", "/v1/tokens/{token_id}", "/v1/studies"} <= set(paths)


@pytest.mark.long
def test_tokens_by_the_command_line(start: Callable[..., Running], tmp_path: Path) -> None:
    absent = run("token", "list", folder=tmp_path)
    assert absent.returncode == 2
    assert "no database" in absent.stderr
    running = start()
    made = run("token", "create", "gpu-3", "--role", "worker", "--expires-in", "30d", folder=tmp_path)
    assert re.fullmatch(r"tuner_[0-9a-f]+_[0-9a-f]{64}\n", made.stdout)
    assert running.get("/v1/studies", made.stdout.strip()).status_code == 200
    listed = json.loads(run("token", "list", "--format", "json", folder=tmp_path).stdout)
    assert [(token["name"], token["role"]) for token in listed] == [("admin", "admin"), ("gpu-3", "worker")]
    assert "gpu-3" in run("token", "list", folder=tmp_path).stdout
    assert run("token", "revoke", listed[1]["id"], folder=tmp_path).returncode == 0
    _eventually(lambda: running.get("/v1/studies", made.stdout.strip()).status_code == 401)
    for wrong, said in (
        (["revoke", "nobody"], "no token has the id"),
        (["create", "a b", "--role", "worker"], "a token's name"),
        (["create", "a", "--role", "worker", "--expires-in", "soon"], "as in 30d"),
        (["create", "a", "--role", "admin", "--prefix", "x"], "no prefix"),
        (["create", "a", "--role", "viewer", "--prefix", ""], "would be for all studies"),
    ):
        refused = run("token", *wrong, folder=tmp_path)
        assert refused.returncode == 2
        assert said in refused.stderr
        assert refused.stdout == ""


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"host": "0.0.0.0"}, "unencrypted"),
        ({"host": "192.168.1.5"}, "unencrypted"),
        ({"host": "example.org"}, "unencrypted"),
        ({"host": "::"}, "unencrypted"),
        ({"host": ""}, "unencrypted"),
        ({"host": "0.0.0.0", "behind_proxy": True}, "--allowed-host"),
        ({"tls_cert": Path("cert.pem")}, "both"),
        ({"allowed_hosts": ("*",)}, "a name or an address"),
        ({"allowed_hosts": ("a:80",)}, "a name or an address"),
        ({"allowed_hosts": ("http://a",)}, "a name or an address"),
        ({"log_level": "loud"}, "--log-level"),
        ({"proxies": "*"}, r"--proxies are addresses or networks, .* got '\*'"),
        ({"proxies": "10.0.0.1, proxy"}, "got ' proxy'"),
        ({"proxies": "10.0.0.1/8"}, "got"),
    ],
)
def test_settings_that_do_not_do(settings: dict[str, Any], rule: str) -> None:
    with pytest.raises(DefinitionError, match=rule) as caught:
        Settings(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "hosts"),
    [
        ({}, set()),
        ({"host": "127.0.0.2"}, {"127.0.0.2"}),
        ({"host": "::1"}, set()),
        ({"host": "localhost"}, set()),
        ({"host": "192.168.1.5", "behind_proxy": True}, {"192.168.1.5"}),
        ({"host": "::", "behind_proxy": True, "allowed_hosts": ("a.example", "2001:db8::1")},
         {"a.example", "2001:db8::1"}),
        ({"host": "10.0.0.1", "tls_cert": Path("c"), "tls_key": Path("k")}, {"10.0.0.1"}),
    ],
)  # fmt: skip
def test_settings_that_do(settings: dict[str, Any], hosts: set[str]) -> None:
    assert set(Settings(**settings).hosts) == hosts | {"localhost", "127.0.0.1", "::1"}


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("15m", 900), ("12h", 43200), ("30d", 2592000)])
def test_durations(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "d", "-1d", "1.5h", "1w", "1d ", "1e3s", "9999999d"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(DefinitionError, match="as in 30d"):
        duration(text)


def _eventually(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_answers_are_sent_at_once() -> None:
    with _listen("127.0.0.1", 0) as listening:
        assert listening.proto == socket.IPPROTO_TCP  # by which asyncio knows to set TCP_NODELAY
        with pytest.raises(TunerError, match=r"cannot listen on 127\.0\.0\.1:"):
            _listen("127.0.0.1", listening.getsockname()[1])
