"""The service in containers, seen from outside: its Compose project, and its HTTP."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from engine import NAME, Engine

__all__ = ["EPOCHS", "TRIALS", "Stack", "definition", "until"]

TRIALS, EPOCHS = 12, 4
PORT = 18080


def definition(name: str) -> dict[str, Any]:
    """A study whose trials take a second each."""
    return {
        "name": name,
        "objective": "walk",
        "budget": {"trials": TRIALS},
        "fixed": {"pause": 0.25, "epochs": EPOCHS},
        "space": {"x": {"low": 0.0, "high": 1.0}},
        "sampler": {"name": "random"},
    }


def until(question: Callable[[], Any], what: str, *, seconds: float = 120) -> Any:
    """The first answer that is true; an error that names `what` where none comes."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := question():
            return answer
        time.sleep(0.4)
    raise AssertionError(f"in {seconds:.0f} s there was no {what}")


class Stack:
    """A Compose project."""

    def __init__(self, docker: Engine, folder: Path, image: str, postgres: str) -> None:
        self.docker, self.folder = docker, folder
        self.project = f"{NAME}-stack"
        self.url = f"http://127.0.0.1:{PORT}"
        self._environment = {
            "TUNER_IMAGE": image,
            "POSTGRES_IMAGE": postgres,
            "TUNER_PORT": str(PORT),
            "TUNER_LEASE_SECONDS": "6",
            "COMPOSE_PROJECT_NAME": self.project,
        }
        token = (folder / "secrets/admin_token").read_text().strip()
        self.token = token
        self._http = httpx.Client(
            base_url=self.url, headers={"Authorization": f"Bearer {token}"}, timeout=30, trust_env=False
        )

    def compose(self, *arguments: str, timeout: float = 300) -> str:
        """What Compose prints."""
        project = ("--file", str(self.folder / "compose.yaml"), "--project-directory", str(self.folder))
        return self.docker.compose(*project, *arguments, env=self._environment, timeout=timeout)

    def up(self, *options: str) -> None:
        """Start what is not running, and wait for the service."""
        self.compose("up", "--detach", "--no-build", *options)
        self.wait()

    def wait(self) -> None:
        """Until the service can serve."""
        until(self._is_ready, "service that is ready")

    def close(self) -> None:
        """Remove all of it, volumes too."""
        self._http.close()
        self.compose("--profile", "dask", "down", "--volumes", "--timeout", "1")

    def containers(self, service: str) -> list[str]:
        """The ids of a service's containers, stopped ones too."""
        of = [
            f"label=com.docker.compose.project={self.project}",
            f"label=com.docker.compose.service={service}",
        ]
        return self.docker("ps", "--all", "--quiet", *(f"--filter={label}" for label in of)).split()

    def call(self, method: str, path: str, **settings: Any) -> Any:
        """What the service answers, from JSON; tried again while it does not."""

        def once() -> httpx.Response | None:
            try:
                answer = self._http.request(method, path, **settings)
            except httpx.TransportError:
                return None
            return None if answer.status_code == 503 else answer

        answer: httpx.Response = until(once, f"answer to {method} {path}")
        assert answer.is_success, answer.text
        return answer.json()

    def create(self, name: str) -> None:
        """A study that the workers take up."""
        self.call("POST", "/v1/studies", json=definition(name))

    def trials(self, name: str) -> list[dict[str, Any]]:
        """All trials of a study, in their order."""
        found: list[dict[str, Any]] = self.call(
            "GET", f"/v1/studies/{name}/trials", params={"page_size": 100}
        )["trials"]
        return sorted(found, key=lambda trial: trial["number"])

    def completed(self, name: str) -> dict[int, float]:
        """The values of completed trials by number."""
        return {t["number"]: t["value"] for t in self.trials(name) if t["state"] == "complete"}

    def endings(self, name: str) -> dict[str, int]:
        """How the leases of a study ended, as the database has it."""
        query = (
            "SELECT ending, COUNT(*) FROM tuner_leases JOIN studies USING (study_id) "
            f"WHERE study_name = '{name}' GROUP BY ending"
        )
        [db] = self.containers("db")
        psql = (
            "exec",
            db,
            "psql",
            "-h",
            "/run/postgresql",
            "-U",
            "tuner",
            "--tuples-only",
            "--no-align",
            "-c",
            query,
        )
        return {
            ending: int(count)
            for ending, count in (line.split("|") for line in self.docker(*psql).splitlines())
        }

    def metrics(self) -> str:
        """As Prometheus reads them."""
        return self._http.get("/metrics").text

    def log(self, service: str) -> list[dict[str, Any]]:
        """The records that a service's containers have logged."""
        lines = [line for c in self.containers(service) for line in self._log_of(c)]
        return [json.loads(line) for line in lines if line.startswith("{")]

    def _log_of(self, container: str) -> list[str]:
        done = self.docker.run("sh", "-c", f"docker logs {container} 2>&1")
        return done.splitlines()

    def _is_ready(self) -> bool:
        try:
            return self._http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False
