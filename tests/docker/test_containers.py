"""The image and `docker compose up`, with real containers: a study from outside, and its fate in accidents."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest
from engine import NAME, ROOT, Engine, FailedError, newer_compose
from postgresql import absent
from stack import EPOCHS, TRIALS, Stack, until

from tuner import StudyManager

pytestmark = pytest.mark.docker


# ----------------------------------------------------------------------------------------------------------- the image


def test_image(docker: Engine, built: dict[str, str]) -> None:
    found = json.loads(docker("image", "inspect", built["tuner"]))[0]
    print(f"size {found['Size'] / 1e6:.0f} MB")
    assert found["Size"] <= 400e6
    config = found["Config"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", config["User"])
    assert config["Entrypoint"] == ["/usr/bin/tini", "--", "tuner"]
    assert config["Healthcheck"]["Test"] == ["CMD", "tuner-health"]
    labels = {name.rpartition(".")[2]: value for name, value in config["Labels"].items()}
    assert labels["title"] == "tuner"
    assert labels["version"] == version("tuner")
    tools = "for tool in gcc make strip pip; do command -v $tool && exit 1; done; ! python -c 'import pip'"
    docker("run", "--rm", "--network", "none", "--entrypoint", "sh", built["tuner"], "-c", tools)


LIBRARIES = """
from importlib.metadata import distributions
for found in distributions():
    print(f"{found.name.lower().replace('_', '-').replace('.', '-')}=={found.version}")
"""


def test_image_has_the_versions_that_were_tested(docker: Engine, built: dict[str, str]) -> None:
    inside = docker(
        "run", "--rm", "--network", "none", "--entrypoint", "python", built["tuner"], "-c", LIBRARIES
    )
    found = {line for line in inside.splitlines() if not line.startswith("tuner==")}
    pinned = set((ROOT / "docker/constraints.txt").read_text().splitlines())
    assert len(found) > 50
    assert found - pinned == set()


def test_image_alone_serves_nobody(docker: Engine, built: dict[str, str]) -> None:
    """Without being told how, it neither sends tokens in the clear nor answers to any name."""
    said = docker.run("sh", "-c", f"docker run --rm --network none {built['tuner']} 2>&1; echo exit $?")
    assert "error: on 0.0.0.0 tokens would travel unencrypted" in said
    assert said.endswith("exit 2")


@pytest.mark.parametrize("command", ["docker compose", "docker-compose"])
def test_compose_files_are_valid(docker: Engine, command: str) -> None:
    """For Compose 2 and 1.29: with the proxy in front, and each by itself."""
    newer = {"DOCKER_CONFIG": str(newer_compose())} if docker.is_ours and " " in command else {}
    if docker.run(*command.split(), "version", env=newer, check=False) == "":
        absent(f"there is a Docker engine, but no {command}")
    files = {name: ("--file", str(ROOT / "docker" / name)) for name in ("compose.yaml", "compose.tls.yaml")}
    both = (*command.split(), *files["compose.yaml"], *files["compose.tls.yaml"], "config")
    shown = docker.run(*both, env={**newer, "TUNER_NAME": "tuner.example.org", "TUNER_EDGE": "10.9.8"})
    assert "api tuner.example.org" in shown
    assert "FORWARDED_ALLOW_IPS: 10.9.8.2" in shown
    with pytest.raises(
        FailedError, match="under which the service is reached"
    ):  # nobody is let in under any name
        docker.run(*both, env={**newer, "TUNER_NAME": ""})
    single = (*command.split(), "--file", str(ROOT / "docker/compose.sqlite.yaml"), "config", "--quiet")
    docker.run(*single, env=newer)


@contextmanager
def _sqlite(docker: Engine, image: str) -> Iterator[tuple[str, str]]:
    """The variant of a single container: its id, and its address."""
    env = {
        "TUNER_IMAGE": image,
        "TUNER_PORT": "18081",
        "COMPOSE_PROJECT_NAME": f"{NAME}-sqlite",
        "API_MEMORY": "400m",
    }
    file = ("--file", str(ROOT / "docker/compose.sqlite.yaml"))
    docker.compose(*file, "up", "--detach", "--no-build", env=env)
    try:
        yield docker("ps", "--quiet", "--filter", f"name={NAME}-sqlite"), "http://127.0.0.1:18081"
    finally:
        docker.compose(*file, "down", "--volumes", env=env)


def test_hardened_single_container_on_sqlite(docker: Engine, image: str) -> None:
    with _sqlite(docker, image) as (container, url):
        host = json.loads(docker("inspect", container))[0]["HostConfig"]
        assert host["ReadonlyRootfs"]
        assert host["CapDrop"] == ["ALL"]
        assert host["SecurityOpt"] == ["no-new-privileges:true"]
        assert host["Memory"] == 400 * 2**20
        health = ("inspect", "--format", "{{.State.Health.Status}}", container)
        until(lambda: docker(*health) == "healthy", "healthy container")
        inside = docker(
            "exec", container, "sh", "-c", "id -u; touch /opt/tuner/x 2>&1; grep CapEff /proc/1/status"
        )
        assert inside.startswith("10001\n")
        assert "Read-only file system" in inside
        assert inside.endswith("0" * 16)
        token = re.findall(
            r"tuner_[0-9a-f]+_[0-9a-f]{64}", docker.run("sh", "-c", f"docker logs {container} 2>&1")
        )
        assert len(token) == 1
        headers = {"Authorization": f"Bearer {token[0]}"}
        created = httpx.post(
            f"{url}/v1/studies",
            headers=headers,
            json={"name": "kept", "budget": {"trials": 1}, "space": {"x": {"low": 0, "high": 1}}},
        )
        assert created.status_code == 201, created.text
        docker("stop", container)
        assert docker("inspect", "--format", "{{.State.ExitCode}}", container) == "0"
        docker("start", container)

        def kept() -> bool:
            try:
                return httpx.get(f"{url}/v1/studies/kept", headers=headers, timeout=30).status_code == 200
            except httpx.TransportError:
                return False

        until(kept, "study after the restart")


# --------------------------------------------------------------------------------------------------- the whole service


def _check(stack: Stack, name: str, before: dict[int, float]) -> None:
    """Wait for the study's end: each trial is there once, with its own value; what was there before, still is."""
    until(lambda: len(stack.completed(name)) == TRIALS, f"end of {name}")
    trials = stack.trials(name)
    assert [trial["number"] for trial in trials] == list(range(TRIALS))
    for trial in trials:
        assert trial["state"] == "complete"
        assert trial["value"] == (trial["params"]["x"] + trial["number"]) / EPOCHS
    assert before.items() <= stack.completed(name).items()
    until(lambda: "tuner_leases 0.0" in stack.metrics(), "end of all leases", seconds=30)


def test_study_from_outside_by_three_workers(stack: Stack) -> None:
    stack.create("outside")
    _check(stack, "outside", {})
    _check_ids(stack, "worker")
    said = stack.log("worker")
    assert len([line for line in said if "outside trial" in line["message"]]) == TRIALS
    assert not [line for line in said if line["logger"] == "httpx"]  # which knows no ids
    workers = [
        any("outside" in r.get("path", "") for r in map(json.loads, _lines(stack, c)))
        for c in stack.containers("worker")
    ]
    assert workers == [True] * 3


def _check_ids(stack: Stack, service: str) -> list[dict[str, Any]]:
    """What a service's containers say that they have called: the api's log has each under the same id."""
    calls = [record for record in stack.log(service) if record["message"] == "call"]
    ids = {record["request_id"] for record in stack.log("api") if "request_id" in record}
    assert {call["request_id"] for call in calls if call["result"] == "200"} <= ids
    return calls


def _lines(stack: Stack, container: str) -> list[str]:
    return [
        line
        for line in stack.docker.run("sh", "-c", f"docker logs {container} 2>&1").splitlines()
        if line.startswith("{")
    ]


def test_no_secret_is_in_a_log_or_an_environment(stack: Stack) -> None:
    secrets = [file.read_text().strip() for file in (stack.folder / "secrets").iterdir()]
    shown = stack.compose("logs", "--no-color")
    for service in ("db", "api", "worker", "migrate"):
        for container in stack.containers(service):
            shown += stack.docker("inspect", container)
    assert len(secrets) == 3
    assert not [secret for secret in secrets if secret in shown]


def test_dashboard_after_log_in(stack: Stack) -> None:
    with httpx.Client(base_url=stack.url, trust_env=False, headers={"Origin": stack.url}) as browser:
        assert browser.get("/dashboard").status_code == 401
        entered = browser.post("/login", data={"token": stack.token})
        assert entered.status_code == 303, entered.text
        page = browser.get("/dashboard", headers={"Accept": "text/html"})
        assert page.status_code == 200
        assert "optuna" in page.text.lower()
        assert isinstance(browser.get("/api/studies").json()["study_summaries"], list)


def test_every_container_is_hardened_and_limited(stack: Stack) -> None:
    restarts = {"db": "unless-stopped", "migrate": "no", "api": "unless-stopped", "worker": "unless-stopped"}
    for service, restart in restarts.items():
        for container in stack.containers(service):
            host = json.loads(stack.docker("inspect", container))[0]["HostConfig"]
            assert host["ReadonlyRootfs"], service
            assert host["CapDrop"] == ["ALL"], service
            assert host["SecurityOpt"] == ["no-new-privileges:true"], service
            assert host["Memory"] > 0, service
            assert host["PidsLimit"] > 0, service
            assert host["RestartPolicy"]["Name"] in (restart, "" if restart == "no" else restart), service
            addresses = {
                place["HostIp"] for places in (host["PortBindings"] or {}).values() for place in places
            }
            assert addresses == ({"127.0.0.1"} if service == "api" else set()), service


REACH = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 3).close()
    print("reached")
except OSError as error:
    print("not reached:", error)
"""


def test_worker_cannot_reach_the_database(stack: Stack) -> None:
    [db], [api], worker = stack.containers("db"), stack.containers("api"), stack.containers("worker")[0]
    networks = json.loads(stack.docker("inspect", "--format", "{{json .NetworkSettings.Networks}}", db))
    [address] = [network["IPAddress"] for network in networks.values()]
    for target in ("db", address):
        assert stack.docker("exec", api, "python", "-c", REACH, target, "5432") == "reached"
        assert stack.docker("exec", worker, "python", "-c", REACH, target, "5432").startswith("not reached")
    files = stack.docker("exec", worker, "sh", "-c", "ls /run/secrets")
    assert files == "worker_token"


# ---------------------------------------------------------------------------------------------------------- accidents


def _kill(service: str) -> Callable[[Stack, str], None]:
    def strike(stack: Stack, _study: str) -> None:
        hit = stack.containers(service)
        stack.docker("kill", *hit)
        time.sleep(1)
        stack.docker("start", *hit)

    return strike


def _cut(stack: Stack, study: str) -> None:
    """No way between one worker and the service, until its lease is lost; where it just had none, another worker."""
    network = f"{stack.project}_front"
    for worker in stack.containers("worker"):
        stack.docker("network", "disconnect", network, worker)
        assert stack.docker("exec", worker, "python", "-c", REACH, "api", "8080").startswith("not reached")
        end = time.monotonic() + 20
        while "lost" not in (endings := stack.endings(study)) and time.monotonic() < end:
            time.sleep(0.4)
        stack.docker("network", "connect", network, worker)
        assert stack.docker("exec", worker, "python", "-c", REACH, "api", "8080") == "reached"
        if "lost" in endings:
            return


def _stop(stack: Stack, _study: str) -> None:
    """Workers and service are stopped and started as for an upgrade; the workers give their trials back."""
    workers = stack.containers("worker")
    stack.docker("stop", *workers)
    assert stack.docker("inspect", "--format", "{{.State.ExitCode}}", *workers).split() == ["130"] * len(
        workers
    )
    assert "tuner_leases 0.0" in stack.metrics()
    stack.docker("stop", *stack.containers("api"))
    stack.docker("start", *stack.containers("api"), *workers)


@pytest.mark.parametrize(
    ("name", "strike", "sign"),
    [
        ("workers-killed", _kill("worker"), "lost"),
        ("service-killed", _kill("api"), None),
        ("database-killed", _kill("db"), None),
        ("network-cut", _cut, "lost"),
        ("stopped", _stop, "released"),
    ],
)
def test_nothing_is_lost(
    stack: Stack, name: str, strike: Callable[[Stack, str], None], sign: str | None
) -> None:
    """`sign` is what the leases that were hit ended as, where the accident ends any."""
    stack.create(name)
    before = until(lambda: len(found := stack.completed(name)) >= 2 and found, "trial that has ended")
    assert len(before) < TRIALS - 3  # it strikes in mid-run
    began = time.monotonic()
    strike(stack, name)
    _check(stack, name, before)
    endings = stack.endings(name)
    assert endings["told"] == TRIALS
    assert sign is None or endings.get(sign, 0) >= 1, endings
    took = time.monotonic() - began
    print(f"{name}: {len(before)} had ended; all {TRIALS} after another {took:.0f} s; leases {endings}")


def test_backup_while_in_use_and_restore_as_the_readme_says(stack: Stack, tmp_path: Path) -> None:
    stack.create("backed-up")
    until(lambda: len(stack.completed("backed-up")) >= 2, "trial that has ended")
    run = ("run", "--rm", "--volume", f"{tmp_path}:/backup", "--user", str(os.getuid()), "migrate", "storage")
    stack.compose(*run, "backup", "/backup/monday.db")
    _check(stack, "backed-up", {})
    with StudyManager(f"sqlite:///{tmp_path}/monday.db") as backup:
        kept = {
            trial.number: trial.value
            for trial in backup.load("backed-up").trials
            if trial.state.is_finished()
        }
    assert len(kept) >= 2
    stack.compose("stop", "api", "worker")
    [db] = stack.containers("db")
    for command in ("DROP DATABASE tuner WITH (FORCE)", "CREATE DATABASE tuner"):
        stack.docker(
            "exec", db, "psql", "-h", "/run/postgresql", "-U", "tuner", "-d", "postgres", "-c", command
        )
    assert "holds" in stack.compose(*run, "restore", "/backup/monday.db")
    stack.compose("start", "api", "worker")
    stack.wait()
    _check(stack, "backed-up", kept)  # what ran when it was made, runs again


def test_dask_cluster_runs_the_same_loops(stack: Stack) -> None:
    stack.compose("stop", "worker")
    stack.compose(
        "--profile", "dask", "up", "--detach", "--no-build", "--scale", "worker=0", "--scale", "dask-worker=2"
    )
    stack.create("on-dask")
    _check(stack, "on-dask", {})
    calls = [call for call in _check_ids(stack, "dask-worker") if "on-dask" in call["path"]]
    assert len(calls) >= TRIALS * (EPOCHS + 1)
