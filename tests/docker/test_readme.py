"""docker/README.md, followed by a newcomer: each of its commands is run, by Compose 2, in the order in which one would.

What cannot be done without other machines is named in `NOT_HERE`, and what stands for others in the walk in `Walk`.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from engine import NAME, ROOT, Engine, FailedError, newer_compose
from postgresql import absent
from stack import until

pytestmark = pytest.mark.docker

README = (ROOT / "docker/README.md").read_text()

NOT_HERE = {"On Kubernetes 0": "there is no cluster"}

LINES_NOT_HERE = (
    "docker compose build --pull              # or pull the new image\n",
    "docker compose --file compose.sqlite.yaml build --pull\n",
)
"""Nothing is pulled here, and containers have no way out."""

PROJECT, PORT = f"{NAME}-readme", 18082


def _blocks() -> dict[str, str]:
    found = {}
    for section in README.split("\n## ")[1:]:
        for number, block in enumerate(re.findall(r"```sh\n(.*?)```", section, re.DOTALL)):
            found[f"{section.splitlines()[0]} {number}"] = block
    return found


BLOCKS = _blocks()


class Walk:
    """A shell in a copy of the folder `docker`."""

    def __init__(self, docker: Engine, folder: Path, images: dict[str, str], config: Path | None) -> None:
        self.docker, self.folder, self.images = docker, folder, images
        self.ran: set[str] = set()
        self._environment = {
            **docker.environment,
            "TUNER_IMAGE": images["walk"],
            "POSTGRES_IMAGE": images["postgres"],
            "CADDY_IMAGE": images["caddy"],
            "TUNER_PORT": str(PORT),
            "COMPOSE_PROJECT_NAME": PROJECT,
            **({} if config is None else {"DOCKER_CONFIG": str(config)}),
        }
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{PORT}", timeout=30, trust_env=False)

    def __call__(self, name: str, **instead: str) -> str:
        """Run a block of the README; what it prints. `instead`: a word of it, and what stands here in its place."""
        block = BLOCKS[name]
        for line in LINES_NOT_HERE:
            block = block.replace(line, "")
        words = {"127.0.0.1:8080": f"127.0.0.1:{PORT}", "docker_front": f"{PROJECT}_front", **instead}
        for word, ours in words.items():
            block = block.replace(word, ours)
        self.ran.add(name)
        return self.shell(block)

    def shell(self, script: str) -> str:
        """What a script prints, on either stream; each of its commands must go well."""
        done = subprocess.run(
            ["sh", "-eu", "-c", script],
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=400,
            check=False,
        )
        if done.returncode:
            raise FailedError(f"{script}\nended with {done.returncode}: {done.stdout[-3000:]}")
        return done.stdout

    def running(self, service: str) -> list[str]:
        """The ids of a service's containers that run."""
        labels = (f"com.docker.compose.project={PROJECT}", f"com.docker.compose.service={service}")
        return self.docker("ps", "--quiet", *(f"--filter=label={label}" for label in labels)).split()

    def token(self, file: str = "secrets/admin_token") -> dict[str, str]:
        """The header with a token of a file."""
        return {"Authorization": f"Bearer {(self.folder / file).read_text().strip()}"}

    def get(self, path: str, expect: int = 200, **settings: Any) -> httpx.Response:
        """An answer of the service, as an administrator unless told otherwise; waits until it is ready."""
        until(self._is_ready, "service that is ready")
        headers = {**self.token(), **settings.pop("headers", {})}
        answer = self.http.get(path, headers=headers, **settings)
        assert answer.status_code == expect, answer.text
        return answer

    def create(self, name: str, trials: int = 6) -> None:
        """A study that the workers take up."""
        document = {
            "name": name,
            "objective": "walk",
            "budget": {"trials": trials},
            "fixed": {"pause": 0.1, "epochs": 4},
            "space": {"x": {"low": 0.0, "high": 1.0}},
        }
        assert self.http.post("/v1/studies", json=document, headers=self.token()).status_code == 201

    def values(self, name: str) -> dict[int, float]:
        """The values of a study's completed trials."""
        found = self.get(f"/v1/studies/{name}/trials", params={"page_size": 100}).json()["trials"]
        return {trial["number"]: trial["value"] for trial in found if trial["state"] == "complete"}

    def clients(self, path: str) -> list[str]:
        """From where a path was asked for, as the log has it."""
        lines = self.docker.run("sh", "-c", f"docker logs {self.running('api')[0]} 2>&1").splitlines()
        records = [json.loads(line) for line in lines if line.startswith("{")]
        return [record["client"] for record in records if record.get("path") == path]

    def _is_ready(self) -> bool:
        try:
            return self.http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False


@pytest.fixture(scope="module")
def walk(docker: Engine, built: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    folder = tmp_path_factory.mktemp("readme") / "docker"
    ignored = shutil.ignore_patterns("secrets", ".env", "*.token", "header", "*.db")
    shutil.copytree(ROOT / "docker", folder, ignore=ignored)
    walk = Walk(docker, folder, built, newer_compose() if docker.is_ours else None)
    try:
        walk.shell("docker compose version --short | grep ^v*2")
    except FailedError:
        absent("there is a Docker engine, but no Compose 2")
    try:
        yield walk
    finally:
        walk.http.close()
        for file in ("compose.yaml", "compose.sqlite.yaml"):
            walk.shell(
                f"docker compose --file {file} --profile dask down --volumes --remove-orphans --timeout 1"
            )


def test_start_and_log_in(walk: Walk) -> None:
    said = walk("Start 0")
    assert len(re.findall(r"\(healthy\)|starting", said)) >= 6
    assert len(walk.running("worker")) == 4
    token = (walk.folder / "secrets/admin_token").read_text().strip()
    with httpx.Client(base_url=walk.http.base_url, headers={"Origin": str(walk.http.base_url)}) as browser:
        assert browser.post("/login", data={"token": token}).status_code == 303
        for path in ("/", "/dashboard"):
            assert browser.get(path, headers={"Accept": "text/html"}).status_code == 200


def test_first_study_by_curl(walk: Walk) -> None:
    assert '"name":"first"' in walk("First study by curl 0").replace(" ", "")
    assert (walk.folder / "header").stat().st_mode & 0o777 == 0o600
    until(lambda: '"value"' in walk("First study by curl 1"), "best trial", seconds=400)
    until(
        lambda: len(walk.values("first")) >= 1 and walk.get("/v1/studies/first").json()["is_finished"], "end"
    )
    walk("First study by curl 2")
    assert (walk.folder / "ann.token").stat().st_mode & 0o777 == 0o600
    assert walk.get("/v1/studies", headers=walk.token("ann.token")).json()["studies"][0]["name"] == "first"


def test_scale(walk: Walk) -> None:
    walk("Scale 0")
    assert len(walk.running("worker")) == 8
    walk.shell("WORKER_SCALE=2 docker compose up --detach")
    assert len(walk.running("worker")) == 2


def test_dask(walk: Walk) -> None:
    walk("Scale 1")
    assert len(walk.running("dask-worker")) == 2
    walk.docker("stop", *walk.running("worker"))
    walk.create("on-dask")
    until(lambda: len(walk.values("on-dask")) == 6, "end of the study on Dask")
    dask = "dask-worker-loops dask-worker dask-scheduler"
    walk.shell(f"docker compose --profile dask rm --stop --force {dask} && docker compose up --detach")


def test_metrics_for_prometheus(walk: Walk) -> None:
    walk("Watch 0")
    assert (walk.folder / "prometheus.token").stat().st_mode & 0o777 == 0o600
    text = walk.get("/metrics", headers=walk.token("prometheus.token")).text
    assert 'route="/v1/studies/{study}"' in text


def test_change_of_a_token(walk: Walk) -> None:
    old = walk.token("secrets/worker_token")
    walk.get("/v1/studies", headers=old)
    walk("Settings 0")
    assert walk.token("secrets/worker_token") != old
    walk.get("/v1/studies", 401, headers=old)
    assert len(walk.running("worker")) == 4
    walk.create("after-the-change")
    until(lambda: len(walk.values("after-the-change")) == 6, "end of a study by workers with the new token")


def test_options_of_a_command(walk: Walk) -> None:
    [command] = re.findall(r"`(docker compose run [^`]* --help)`", README)
    said = re.sub(r"\W+", " ", walk.shell(command))
    for variable in ("TUNER_ALLOWED_HOSTS", "FORWARDED_ALLOW_IPS", "TUNER_LEASE_SECONDS"):
        assert variable in said


def test_back_up_and_restore(walk: Walk) -> None:
    before = walk.values("first")
    walk("Back up and restore 0")
    assert (walk.folder / "monday.db").stat().st_mode & 0o777 == 0o600
    walk.create("later", 1)
    walk("Back up and restore 1")
    assert walk.values("first") == before
    walk.get("/v1/studies/later", 404)
    walk.get("/v1/studies", headers=walk.token("ann.token"))


def test_upgrade(walk: Walk) -> None:
    before = walk.values("first")
    walk("Upgrade 0")
    assert (walk.folder / "before.db").exists()
    assert walk.values("first") == before


SPOOFED = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https"}

AS_A_WORKER = """
import urllib.request
asked = urllib.request.Request("http://api:8080/login?worker", headers={"X-Forwarded-For": "203.0.113.10",
                                                                    "X-Forwarded-Proto": "https"})
print("Strict-Transport-Security" in urllib.request.urlopen(asked).headers)
"""


def test_behind_tls(walk: Walk) -> None:
    """With a name for which Caddy makes the certificate itself; a worker from outside comes that way, too."""
    if not walk.docker.is_ours:
        absent("ports 80 and 443 are this machine's, not the tests'")
    name = "tuner.localhost"
    walk("Behind TLS 0", **{"tuner.example.org": name})
    [proxy] = walk.running("proxy")
    root = "/data/caddy/pki/authorities/local/root.crt"
    until(lambda: walk.docker("exec", proxy, "ls", root, check=False), "certificate")
    walk.docker("cp", f"{proxy}:{root}", str(walk.folder / "root.crt"))
    curl = f"curl --silent --fail-with-body --include --cacert root.crt --resolve {name}:443:127.0.0.1"
    spoof = " ".join(f"--header '{key}: {value}'" for key, value in SPOOFED.items())
    through = until(
        lambda: walk.shell(f"{curl} {spoof} https://{name}/login || true"), "answer through the proxy"
    )
    assert "strict-transport-security" in through.lower()
    assert "Strict-Transport-Security" not in walk.http.get("/login", headers=SPOOFED).headers
    worker = walk.running("worker")[0]
    assert walk.docker("exec", worker, "python", "-c", AS_A_WORKER) == "False"
    clients = walk.clients("/login")
    assert len(clients) >= 3
    assert not [client for client in clients if client.startswith("203.0.113.")]
    _test_worker_of_another_machine(walk, name)


def _test_worker_of_another_machine(walk: Walk, name: str) -> None:
    """On a network that is none of the service's, by the proxy's port on this machine's address."""
    walk("Scale 2")
    walk.shell("docker compose stop worker")
    walk.docker("network", "create", f"{PROJECT}-elsewhere")
    gateway = walk.docker(
        "network", "inspect", "--format", "{{(index .IPAM.Config 0).Gateway}}", f"{PROJECT}-elsewhere"
    )
    there = (
        f"docker run --network {PROJECT}-elsewhere --add-host {name}:{gateway} "
        '--volume "$PWD/root.crt:/root.crt:ro" --env SSL_CERT_FILE=/root.crt '
    )
    walk.shell("chmod a+r root.crt")
    try:
        walk(
            "Scale 3",
            **{
                "docker run ": there,
                "tuner.example.org": name,
                "--name tuner-worker": f"--name {PROJECT}-far",
                "tuner worker\n": f"{walk.images['walk']} worker\n",
            },
        )
        walk.create("far-away")
        until(lambda: len(walk.values("far-away")) == 6, "end of the study by a worker elsewhere")
        health = ("inspect", "--format", "{{.State.Health.Status}}", f"{PROJECT}-far")
        until(lambda: walk.docker(*health) == "healthy", "healthy worker")
    finally:
        walk.docker("rm", "--force", f"{PROJECT}-far", check=False)
        walk.docker("network", "rm", f"{PROJECT}-elsewhere", check=False)


def test_behind_a_proxy_of_ones_own(walk: Walk) -> None:
    (walk.folder / ".env").write_text("")
    walk.shell("docker compose up --detach --remove-orphans")
    walk("Behind TLS 1")
    assert re.fullmatch(r"FORWARDED_ALLOW_IPS=[0-9.]+\n", (walk.folder / ".env").read_text())
    answer = walk.get("/login", headers=SPOOFED)
    assert "Strict-Transport-Security" in answer.headers
    until(lambda: SPOOFED["X-Forwarded-For"] in walk.clients("/login"), "client in the log")
    worker = walk.running("worker")[0]
    assert walk.docker("exec", worker, "python", "-c", AS_A_WORKER) == "False"


def test_a_single_container_on_sqlite(walk: Walk) -> None:
    walk.shell("docker compose down --volumes --timeout 1; rm .env")
    [token] = until(
        lambda: re.findall(r"tuner_[0-9a-f]{12}_[0-9a-f]{64}", walk("Start 1")), "token in the log"
    )
    (walk.folder / "secrets/admin_token").unlink()
    (walk.folder / "secrets/admin_token").write_text(token)
    until(walk._is_ready, "service that is ready")
    walk.create("kept", 1)
    walk("Back up and restore 2")
    walk.create("later", 1)
    walk("Back up and restore 3")
    assert (walk.folder / "on-sqlite.db").stat().st_mode & 0o777 == 0o600
    walk.get("/v1/studies/kept")
    walk.get("/v1/studies/later", 404)
    walk("Upgrade 1")
    walk.get("/v1/studies/kept")


def test_all_of_the_readme_was_tried(walk: Walk) -> None:
    """The last: it tells which blocks none of the others has run."""
    assert BLOCKS.keys() - walk.ran == NOT_HERE.keys()
    for line in LINES_NOT_HERE:
        assert line in README
