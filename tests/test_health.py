"""Signs of life: what `tuner-health` says of a worker and of a service, and how little it loads for that."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tuner.health import ALIVE_FILE, ALIVE_SECONDS, main, sign_of_life


def health(monkeypatch: pytest.MonkeyPatch, **environment: str) -> str | None:
    """Why it is not well; None where it is."""
    for name in (ALIVE_FILE, "TUNER_HOST", "TUNER_PORT", "TUNER_TLS_CERT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    try:
        main()
    except SystemExit as stopped:
        return str(stopped.code)
    return None


def test_worker_lives_while_it_touches_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "alive"
    assert "no sign of life" in (health(monkeypatch, TUNER_ALIVE_FILE=str(file)) or "")
    touch = sign_of_life(file)
    touch()
    assert health(monkeypatch, TUNER_ALIVE_FILE=str(file)) is None
    long_ago = time.time() - ALIVE_SECONDS - 5
    os.utime(file, (long_ago, long_ago))
    assert "is 65 s old; it may be 60" in (health(monkeypatch, TUNER_ALIVE_FILE=str(file)) or "")
    touch()  # not again within seconds
    assert health(monkeypatch, TUNER_ALIVE_FILE=str(file)) is not None


def test_without_a_file_nothing_is_touched() -> None:
    sign_of_life(None)()


@pytest.fixture
def served() -> Iterator[int]:
    """The port of a service that answers /healthz and nothing else."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/healthz" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_service_lives_while_it_answers(served: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # is not the way to this machine
    assert health(monkeypatch, TUNER_PORT=str(served)) is None
    assert health(monkeypatch, TUNER_PORT=str(served), TUNER_HOST="0.0.0.0") is None
    why = health(monkeypatch, TUNER_PORT="9")
    assert (why or "").startswith("http://127.0.0.1:9/healthz: ")


@pytest.mark.parametrize("host", ["::", "[::]", "::1", "[::1]"])
def test_service_on_ipv6_is_asked_there(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that listens on every address of version 6 is at none of version 4."""
    why = health(monkeypatch, TUNER_HOST=host, TUNER_PORT="9")
    assert (why or "").startswith("http://[::1]:9/healthz: ")


def test_it_loads_nothing_but_the_standard_library() -> None:
    script = "import sys, tuner.health; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "tuner" in loaded
    assert not loaded & {"numpy", "optuna", "sqlalchemy", "pydantic", "typer", "rich", "httpx", "objectives"}
