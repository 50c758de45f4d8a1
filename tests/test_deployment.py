"""What is deployed beside the image: manifests that Kubernetes takes, dashboards and alerts of metrics that exist."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tuner import StudyDefinition, StudyManager
from tuner.service.app import api
from tuner.service.metrics import OWN, Metrics

DOCKER = Path(__file__).parent.parent / "docker"
MANIFESTS = [
    pytest.param(document, id=f"{file.stem}-{document['kind']}")
    for file in sorted((DOCKER / "kubernetes").glob("*.yaml"))
    for document in yaml.safe_load_all(file.read_text())
]
METRIC = re.compile(r"\b(tuner_[a-z_]+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)(=~|!~|=)"([^"]*)"')


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_manifest_is_what_kubernetes_takes(manifest: dict[str, Any]) -> None:
    for version in ("1.28", kubernetes_validate.latest_version()):
        kubernetes_validate.validate(manifest, version, strict=True)


def _pods() -> Iterator[tuple[str, dict[str, Any]]]:
    for parameter in MANIFESTS:
        [manifest] = parameter.values
        if manifest["kind"] in ("Deployment", "Job"):
            yield manifest["metadata"]["name"], manifest["spec"]["template"]["spec"]


def test_pods_are_hardened_and_their_secrets_are_files() -> None:
    pods = dict(_pods())
    assert pods.keys() == {"tuner-api", "tuner-migration", "tuner-worker"}
    for pod in pods.values():
        [container] = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert all("secretKeyRef" not in variable.get("valueFrom", {}) for variable in container["env"])
        assert pod["enableServiceLinks"] is False
        assert container["resources"]["limits"]["memory"]
    secrets = {
        name: [item["key"] for item in volume["secret"].get("items", [])]
        for name, pod in pods.items()
        for volume in pod["volumes"]
        if "secret" in volume
    }
    assert secrets["tuner-worker"] == ["worker-token"]
    assert secrets["tuner-migration"] == ["database-password"]


def test_service_is_asked_before_it_gets_requests_and_workers_follow_the_trials() -> None:
    [api] = dict(_pods())["tuner-api"]["containers"]
    assert api["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert api["livenessProbe"]["httpGet"]["path"] == "/healthz"
    [scaler] = [m.values[0] for m in MANIFESTS if m.values[0]["kind"] == "HorizontalPodAutoscaler"]
    assert scaler["spec"]["scaleTargetRef"]["name"] == "tuner-worker"
    [metric] = scaler["spec"]["metrics"]
    assert metric["external"]["metric"]["name"] == "tuner_leases"


def test_prometheus_may_ask_a_pod_at_its_address() -> None:
    """The kubelet puts in what stands before a variable in the list, nothing that follows."""
    [container] = dict(_pods())["tuner-api"]["containers"]
    names = [variable["name"] for variable in container["env"]]
    hosts = next(v["value"] for v in container["env"] if v["name"] == "TUNER_ALLOWED_HOSTS")
    assert hosts.split()[-1] == "$(POD_IP)"
    assert names.index("POD_IP") < names.index("TUNER_ALLOWED_HOSTS")


COMPOSE_FILES = ("compose.yaml", "compose.sqlite.yaml", "compose.tls.yaml")


def _is_what_the_specification_says(file: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", file]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", COMPOSE_FILES)
def test_compose_file_is_what_the_specification_says(name: str, tmp_path: Path) -> None:
    """The Compose specification's own schema; Compose 1.29 and 2 themselves read the files in tests/docker."""
    done = _is_what_the_specification_says(DOCKER / name)
    assert done.returncode == 0, done.stdout
    document = yaml.safe_load((DOCKER / name).read_text())
    next(iter(document["services"].values()))["memory_limits"] = "1g"
    (tmp_path / name).write_text(yaml.safe_dump(document))
    done = _is_what_the_specification_says(tmp_path / name)
    assert done.returncode == 1
    assert "memory_limits" in done.stdout


@pytest.mark.parametrize("file", COMPOSE_FILES)
def test_every_service_is_hardened_and_limited(file: str) -> None:
    services = yaml.safe_load((DOCKER / file).read_text())["services"]
    for name, service in services.items():
        if "image" not in service:  # only adds to one that another file has
            continue
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert {"mem_limit", "pids_limit"} <= service.keys(), name
        assert service["logging"]["options"].keys() == {"max-size", "max-file"}, name


def test_readme_lists_the_settings() -> None:
    """Those of Compose's files: the variables are there, with their defaults."""
    rows = re.findall(r"^\| (`[A-Z_`, ]+) \| (.*?) \|", (DOCKER / "README.md").read_text(), re.MULTILINE)
    listed = {name: default for names, default in rows for name in re.findall(r"`([A-Z_]+)`", names)}
    used: dict[str, str] = {}
    for name in COMPOSE_FILES:
        text = re.sub(r"(^|\s)#.*", "", (DOCKER / name).read_text())
        for variable, default in re.findall(r"\$\{([A-Z_]+)(?::?-([^}]*)|:\?[^}]*)?\}", text):
            used[variable] = used.get(variable) or default
    assert listed.keys() == used.keys()
    for variable, default in used.items():
        assert default in listed[variable], variable


def test_secret_that_the_readme_makes_is_the_one_that_pods_want() -> None:
    [command] = re.findall(
        r"kubectl create secret generic (.*?)\nkubectl", (DOCKER / "README.md").read_text(), re.DOTALL
    )
    made = dict(re.findall(r"--from-file=([\w-]+)=(\S+)", command))
    wanted = set()
    for _, pod in _pods():
        for volume in pod["volumes"]:
            if "secret" in volume:
                assert volume["secret"]["secretName"] == command.split()[0]
                wanted |= {item["key"] for item in volume["secret"].get("items", [])}
        for variable in pod["containers"][0]["env"]:
            if str(variable.get("value")).startswith("/run/secrets/tuner/"):
                wanted.add(variable["value"].rpartition("/")[2])
    assert wanted == made.keys()
    script = (DOCKER / "secrets.sh").read_text()
    for file in made.values():
        assert f"keep {file.removeprefix('secrets/')} " in script


@pytest.mark.parametrize("file", ["compose.yaml", "compose.sqlite.yaml"])
def test_one_service_builds_the_image_and_the_others_wait_for_it(file: str) -> None:
    """Compose builds all at once, and fails at a first start where two give their image the same name."""
    services = yaml.safe_load((DOCKER / file).read_text())["services"]
    [builder] = [name for name, service in services.items() if "build" in service]

    def waits(name: str) -> bool:
        return name == builder or any(map(waits, services[name].get("depends_on", ())))

    image = services[builder]["image"]
    assert [name for name, service in services.items() if service["image"] == image and not waits(name)] == []


def test_the_image_is_built_of_versions_that_will_do() -> None:
    """Each library that is asked for by name is pinned, within its bounds; and nothing is said of where it is from."""
    pinned = {}
    for line in (DOCKER / "constraints.txt").read_text().splitlines():
        if not line.startswith("#"):
            found = re.fullmatch(r"([a-z0-9-]+)==([0-9][0-9a-z.]*)", line)
            assert found is not None, line
            pinned[found[1]] = found[2]
    project = tomllib.loads((DOCKER.parent / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    asked = [
        *project["build-system"]["requires"],
        *subprocess.run(
            [
                sys.executable,
                DOCKER / "requirements.py",
                DOCKER.parent / "pyproject.toml",
                "postgresql",
                "dask",
            ],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines(),
    ]
    assert {*extras["postgresql"], *extras["dask"], *project["project"]["dependencies"]} < set(asked)
    for requirement in map(Requirement, asked):
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement}: {version}; run: make constraints"


def test_secrets_are_made_whole_and_once(tmp_path: Path) -> None:
    script = shutil.copy(DOCKER / "secrets.sh", tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/od").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "bin/od").chmod(0o755)
    without = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    failed = subprocess.run([script], env=without, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert "no random bytes" in failed.stderr
    assert not list((tmp_path / "secrets").iterdir())
    subprocess.run([script], check=True, capture_output=True)
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    made = {file.name: file.read_text() for file in (tmp_path / "secrets").iterdir()}
    assert len(set(made.values())) == 3
    for name in ("admin_token", "worker_token"):
        assert re.fullmatch(r"tuner_[0-9a-f]{12}_[0-9a-f]{64}\n", made[name])
    assert re.fullmatch(r"[0-9a-f]{48}\n", made["database_password"])
    subprocess.run([script], check=True, capture_output=True)
    assert {file.name: file.read_text() for file in (tmp_path / "secrets").iterdir()} == made


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, str]]]:
    """The labels of each sample that /metrics has, after answers of each kind to each route."""
    url = f"sqlite:///{tmp_path_factory.mktemp('metrics')}/tuner.db"
    with StudyManager(url) as manager:
        manager.create(StudyDefinition(name="one", space={"x": {"low": 0, "high": 1}}, budget={"trials": 1}))
        own = Metrics(manager)
        routes = api(manager).openapi()["paths"]
        for path, methods in {**routes, **{page: ["get"] for page in OWN}}.items():
            for method in methods:
                for status in ("200", "401", "403", "421", "429", "500"):
                    own.requests.labels(method.upper(), path, status).inc()
                own.seconds.labels(method.upper(), path).observe(0.1)
        text = generate_latest(own.registry).decode()
    found: dict[str, list[dict[str, str]]] = {"up": [{"job": "tuner"}]}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


def _expressions() -> Iterator[str]:
    for group in yaml.safe_load((DOCKER / "observability/alerts.yaml").read_text())["groups"]:
        yield from (rule["expr"] for rule in group["rules"])
    for panel in json.loads((DOCKER / "observability/grafana-dashboard.json").read_text())["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    worker = yaml.safe_load_all((DOCKER / "kubernetes/worker.yaml").read_text())
    [scaler] = [document for document in worker if document["kind"] == "HorizontalPodAutoscaler"]
    yield from (metric["external"]["metric"]["name"] for metric in scaler["spec"]["metrics"])


@pytest.mark.parametrize("expression", sorted(set(_expressions())))
def test_metric_that_is_named_exists(expression: str, metrics: dict[str, list[dict[str, str]]]) -> None:
    named = METRIC.findall(expression)
    assert named or "up{" in expression
    for name, matchers in named:
        assert name in metrics
        found = MATCHER.findall(matchers)
        assert len(found) == len([part for part in matchers.split(",") if part])
        for label, sign, value in found:
            there = {labels[label] for labels in metrics[name]}
            for one in [value] if sign == "=" else value.split("|"):
                pattern = re.escape(one) if sign == "=" else one
                assert any(re.fullmatch(pattern, known) for known in there), (label, one, there)


def test_readme_lists_the_metrics(metrics: dict[str, list[dict[str, str]]]) -> None:
    readme = (DOCKER / "README.md").read_text()
    listed = set(re.findall(r"`(tuner_[a-z_]+)`", readme))
    own = {re.sub(r"_(bucket|sum|count)$", "", name) for name in metrics if name.startswith("tuner_")}
    own = {name for name in own if not name.endswith("_created")}
    assert listed == own
