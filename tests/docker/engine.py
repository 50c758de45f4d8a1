"""A Docker engine to test with: the one that runs, or one of our own, from Debian's packages.

Of our own are two daemons, one after the other, on the same folder. The first builds, in this machine's network and
without one of its own. The second runs containers, in a network namespace that is theirs alone: bridges, names and
published ports work there as they do anywhere, and nothing of this machine's network is touched. The thread of the
tests enters that namespace (`Engine.inside`), so that it is "outside" of the containers, where a user would be.

Images are kept in `FOLDER`: the base (debootstrap, as nothing need be pulled), PostgreSQL, Caddy, and the image under
test by a digest of what it is made of. Run as a script, it makes them: `python engine.py`.

Debian has Compose in two versions: the suite that the rest is from has 1.29, which is installed; the next has 2, which
is put beside it (`newer_compose`). The tests use both.
"""

from __future__ import annotations

import ast
import contextlib
import ctypes
import functools
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

__all__ = ["NAME", "ROOT", "Engine", "FailedError", "NoEngineError", "engine", "images", "newer_compose"]

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FOLDER = Path(os.environ.get("TUNER_DOCKER_CACHE", "/var/cache/tuner-docker"))
RUN = Path("/run") / FOLDER.name
NAME = "tuner-test"
BASE, BUILD = f"{NAME}/base:1", f"{NAME}/build:1"
SUITE, NEXT_SUITE = "bookworm", "trixie"
OFFICIAL = {"base": "python:3.13-slim-bookworm", "postgres": "postgres:17-bookworm"}

PACKAGES = (
    "docker.io",
    "containerd",
    "runc",
    "iptables",
    "iproute2",
    "tini",
    "debootstrap",
    "docker-compose",
)

KEPT_HOURS = 7 * 24

CLONE_NEWNET = 0x40000000

SOURCES = ("docker", ".dockerignore", "pyproject.toml", "tuner", "objectives", "studies")
"""What the image under test is made of."""


class NoEngineError(Exception):
    """There is no engine, and none can be had; the text says what is missing."""


class FailedError(Exception):
    """A command failed; the text has the end of what it said."""


class Engine:
    """A running engine.

    Args:
        environment: with which `docker` and `docker-compose` reach it.
        process: the daemon, where it is ours.
    """

    def __init__(
        self, environment: Mapping[str, str], process: subprocess.Popen[bytes] | None = None
    ) -> None:
        self.environment = {**os.environ, **environment, "DOCKER_BUILDKIT": "0"}
        self._process = process

    @property
    def is_ours(self) -> bool:
        """Whether nobody else's images are in it."""
        return self._process is not None

    def __call__(self, *arguments: str, check: bool = True, timeout: float = 300) -> str:
        """What `docker` prints on standard output."""
        return self.run("docker", *arguments, check=check, timeout=timeout)

    def compose(self, *arguments: str, env: Mapping[str, str], timeout: float = 300) -> str:
        """What Compose prints."""
        return self.run(*_compose(), *arguments, env=env, timeout=timeout)

    def run(
        self, *command: str, check: bool = True, timeout: float = 300, env: Mapping[str, str] | None = None
    ) -> str:
        """What a command prints, with the engine in its environment.

        Raises:
            FailedError: it ends with another code than 0, and that is checked.
        """
        done = subprocess.run(
            command,
            env={**self.environment, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            said = f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}".strip()
            raise FailedError(f"{' '.join(command)} ended with {done.returncode}: {said}")
        return done.stdout.strip()

    def has(self, image: str) -> bool:
        """Whether there is an image of this name."""
        return self("image", "inspect", "--format", "{{.Id}}", image, check=False) != ""

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Put this thread into the network in which published ports are found, and back."""
        if self._process is None:
            yield
            return
        libc = ctypes.CDLL(None, use_errno=True)
        with Path("/proc/thread-self/ns/net").open() as before:
            with Path(f"/proc/{self._process.pid}/ns/net").open() as theirs:
                assert libc.setns(theirs.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
            try:
                yield
            finally:
                assert libc.setns(before.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())


@contextmanager
def engine(*, building: bool = False) -> Iterator[Engine]:
    """An engine for the block: the one that runs, or one of ours.

    Args:
        building: it is to build, with this machine's network; else it is to run containers.

    Raises:
        NoEngineError: there is none, and none can be had.
    """
    running = Engine({})
    if shutil.which("docker") and running("info", "--format", "{{.ServerVersion}}", check=False):
        _compose()
        yield running
        return
    _install()
    FOLDER.mkdir(parents=True, exist_ok=True)
    with FileLock(FOLDER / "lock"), _daemon(building) as process:
        yield Engine({"DOCKER_HOST": f"unix://{RUN}.sock"}, process)


def images() -> dict[str, str]:
    """Make what is missing; the names of the images: of the program, of it with the tests' objective, of the others.

    Raises:
        NoEngineError: there is no engine that could.
    """
    own = _digest(*SOURCES)
    names = {
        "tuner": f"{NAME}/tuner:{own}",
        "walk": f"{NAME}/walk:{own}-{_digest('tests/docker/objective')}-{_short(_with_an_objective())}",
        **{name: f"{NAME}/{name}:{_digest(f'tests/docker/{name}')}" for name in ("postgres", "caddy")},
    }
    with engine(building=True) as build:
        if not build.has(BASE):
            _make_base(build)
        if not build.has(BUILD):
            _make_build(build)
        on = ("--build-arg", f"BASE_IMAGE={BASE}")
        both = (*on, "--build-arg", f"BUILD_IMAGE={BUILD}", "--file", str(ROOT / "docker/Dockerfile"))
        wanted = {
            "postgres": (*on, str(HERE / "postgres")),
            "caddy": (*on, str(HERE / "caddy")),
            "tuner": (*both, str(ROOT)),
        }
        with ThreadPoolExecutor() as threads:  # they wait for their registries
            building = [
                threads.submit(_build, build, names[name], *arguments)
                for name, arguments in wanted.items()
                if not build.has(names[name])
            ]
            if build.is_ours:  # its containers' network, in which tests are, has no way to Debian
                building.append(threads.submit(newer_compose))
        for made in building:
            made.result()
        if not build.has(names["walk"]):
            _build_walk(build, names)
        _drop_old(build, set(names.values()))
    return names


def _with_an_objective() -> str:
    """What docker/README.md has for an image with an objective of one's own."""
    [block] = re.findall(r"```dockerfile\n(.*?)```", (ROOT / "docker/README.md").read_text(), re.DOTALL)
    return str(block)


def _build_walk(build: Engine, names: Mapping[str, str]) -> None:
    """The tests' objective, by the README's Dockerfile, on the bases that there are here."""
    folder = FOLDER / "walk"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(HERE / "objective", folder / "my_package")
    with_pip = f"FROM {BUILD} AS build\nRUN python3 -m venv /pip\nENV PATH=/pip/bin:$PATH"
    stages = {f"FROM {OFFICIAL['base']} AS build": with_pip, "FROM tuner": f"FROM {names['tuner']}"}
    text = _with_an_objective()
    for theirs, ours in stages.items():
        assert text.count(f"{theirs}\n") == 1, theirs
        text = text.replace(f"{theirs}\n", f"{ours}\n")
    (folder / "Dockerfile").write_text(text)
    _build(build, names["walk"], str(folder))
    shutil.rmtree(folder)


def _build(build: Engine, name: str, *arguments: str) -> None:
    print(f"building {name}", file=sys.stderr, flush=True)
    build("build", "--network", "host", "--tag", name, *arguments, timeout=900)


def _drop_old(build: Engine, kept: set[str]) -> None:
    """Of earlier versions of the sources: the layers that are still used stay."""
    for name in build("images", "--format", "{{.Repository}}:{{.Tag}}").split():
        if re.match(rf"{NAME}/(tuner|walk|postgres|caddy):", name) and name not in kept:
            build("rmi", name, check=False)
    if build.is_ours:  # stages of builds that nobody has used for long
        build("image", "prune", "--force", "--filter", f"until={KEPT_HOURS}h", check=False)


_BESIDE = {"__pycache__", "secrets", "kubernetes", "observability", ".yaml", ".md"}
"""Folders and kinds of files that are not in the image, or change nothing in it."""


def _digest(*paths: str) -> str:
    """Of the content of files and folders of the repository, secrets left out."""
    found = hashlib.sha256()
    for path in paths:
        top = ROOT / path
        for file in sorted(top.rglob("*")) if top.is_dir() else [top]:
            name = file.relative_to(ROOT)
            if file.is_file() and not _BESIDE & {*name.parts[:-1], file.suffix}:
                found.update(str(name).encode() + file.read_bytes())
    return found.hexdigest()[:12]


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


# ------------------------------------------------------------------------------------------------------- our own daemon


@functools.cache
def _compose() -> tuple[str, ...]:
    """The command of Compose, of either version."""
    for command in (("docker", "compose"), ("docker-compose",)):
        if (
            shutil.which(command[0])
            and not subprocess.run([*command, "version"], capture_output=True, check=False).returncode
        ):
            return command
    raise NoEngineError("there is a Docker engine, but neither `docker compose` nor docker-compose")


def _install() -> None:
    """See that Debian's engine is installed.

    Raises:
        NoEngineError: it is not, and cannot be; or it could not start here.
    """
    if os.getuid() != 0:
        raise NoEngineError("no Docker engine runs, and only root can start one")
    for reason, check in _NEEDS.items():
        done = subprocess.run(check, shell=True, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise NoEngineError(
                f"no Docker engine runs, and none can be started: {reason} ({said[-1] if said else check})"
            )
    if all(map(shutil.which, ("dockerd", "containerd", "runc", "debootstrap", "ip", "docker-compose"))):
        return
    if shutil.which("apt-get") is None:
        raise NoEngineError("no Docker engine runs, and only on Debian one is installed for the tests")
    print("installing Debian's Docker engine", file=sys.stderr, flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ("apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES)
    with _no_services():
        for command in (("apt-get", "update", "-qq"), install):
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise NoEngineError(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}")


def newer_compose() -> Path:
    """A folder for DOCKER_CONFIG in which `docker compose` is version 2: Debian's package of it, only unpacked.

    Raises:
        NoEngineError: it cannot be had.
    """
    folder = FOLDER / f"compose-{NEXT_SUITE}"
    plugin = folder / "cli-plugins/docker-compose"
    if plugin.exists():
        return folder
    draft = FOLDER / "compose-draft"
    shutil.rmtree(draft, ignore_errors=True)
    for place in ("lists/partial", "cache/archives/partial"):
        (draft / place).mkdir(parents=True)
    debian = "apt-get indextargets --format '$(REPO_URI)' 'Origin: Debian' 'Label: Debian' | head -n 1"
    site = subprocess.run(debian, shell=True, capture_output=True, text=True, check=False).stdout.strip()
    key = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (draft / "sources.list").write_text(f"deb [signed-by={key}] {site} {NEXT_SUITE} main\n")
    settings = {
        "Dir::Etc::sourcelist": draft / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::Lists": draft / "lists",
        "Dir::Cache": draft / "cache",
        "APT::Sandbox::User": "root",
    }
    apt = ["apt-get", "-qq", *(f"--option={name}={value}" for name, value in settings.items())]
    for command in (
        [*apt, "update"],
        [*apt, "download", "docker-compose"],
        ["sh", "-c", "dpkg --extract docker-compose_*.deb unpacked"],
    ):
        done = subprocess.run(command, cwd=draft, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NoEngineError(f"no Compose 2: {' '.join(command)} failed: {done.stderr.strip()[-500:]}")
    plugin.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(draft / "unpacked/usr/libexec/docker/cli-plugins/docker-compose", plugin)
    shutil.rmtree(draft)
    return folder


_NEEDS = {
    "network namespaces cannot be made": "unshare --net true",
    "file systems cannot be mounted": "unshare --mount sh -c 'mount -t tmpfs tmpfs /mnt'",
    "no control groups can be made": "d=/sys/fs/cgroup; test -e $d/memory && d=$d/memory; "
    "mkdir $d/tuner-test && rmdir $d/tuner-test",
}
"""What an engine needs of the kernel and of whoever has put us here, and how it is tried."""


@contextmanager
def _no_services() -> Iterator[None]:
    """Let packages start no services of their own meanwhile, as the engine's would."""
    policy = Path("/usr/sbin/policy-rc.d")
    if policy.exists():
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink()


@contextmanager
def _daemon(building: bool) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon of ours, running."""
    _end_left_over()
    programs = FOLDER / "bin"  # of Debian's two sorts of iptables, the one that needs no modules
    programs.mkdir(exist_ok=True)
    for name in ("iptables", "ip6tables"):
        (programs / name).unlink(missing_ok=True)
        (programs / name).symlink_to("/usr/sbin/xtables-nft-multi")
    options = [
        f"--data-root={FOLDER}/data",
        f"--exec-root={RUN}",
        f"--pidfile={RUN}.pid",
        f"--host=unix://{RUN}.sock",
    ]
    command = ["dockerd", "--ip6tables=false", *options]
    if building:
        command += ["--iptables=false", "--bridge=none"]
    else:
        command = ["unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh", *command]
    log = FOLDER / "dockerd.log"
    with log.open("wb") as file:
        process = subprocess.Popen(  # ends with whoever has started it
            ["setpriv", "--pdeathsig", "TERM", *command],
            stdout=file,
            stderr=file,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PATH": f"{programs}:/usr/sbin:/usr/bin:/sbin:/bin"},
            start_new_session=True,
        )
    try:
        _wait_for(process, log)
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()
        process.wait()
        _unmount()


def _wait_for(process: subprocess.Popen[bytes], log: Path) -> None:
    started = Engine({"DOCKER_HOST": f"unix://{RUN}.sock"})
    for _ in range(150):
        if process.poll() is not None:
            break
        if started("info", "--format", "{{.ServerVersion}}", check=False):
            return
        time.sleep(0.2)
    process.kill()
    lines = log.read_text().strip().splitlines()
    raise NoEngineError(
        f"no Docker engine runs, and one of ours did not start: {lines[-1] if lines else 'no log'}"
    )


def _end_left_over() -> None:
    """End a daemon of ours whose tests were killed."""
    pid = Path(f"{RUN}.pid")
    with contextlib.suppress(OSError, ValueError):
        number = int(pid.read_text())
        if b"dockerd" in Path(f"/proc/{number}/cmdline").read_bytes():
            os.kill(number, signal.SIGTERM)
            for _ in range(100):
                os.kill(number, 0)
                time.sleep(0.1)
    pid.unlink(missing_ok=True)
    _unmount()


def _unmount() -> None:
    """What a daemon that was killed leaves mounted."""
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in sorted((m for m in mounts if m.startswith((f"{RUN}/", f"{FOLDER}/"))), reverse=True):
        subprocess.run(["umount", "--lazy", mount], capture_output=True, check=False)


# ---------------------------------------------------------------------------------------------------------- the images


def _make_base(build: Engine) -> None:
    """Debian's smallest system with Python, without manuals; the official image where that cannot be made."""
    if shutil.which("debootstrap") is None or os.getuid() != 0:
        build("pull", OFFICIAL["base"], timeout=900)
        build("tag", OFFICIAL["base"], BASE)
        return
    print("making the base image, once", file=sys.stderr, flush=True)
    tree = FOLDER / "base"
    shutil.rmtree(tree, ignore_errors=True)
    include = "--include=python3,python3-venv,ca-certificates"
    done = subprocess.run(
        ["debootstrap", "--variant=minbase", include, SUITE, str(tree)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise NoEngineError(f"debootstrap failed: {done.stdout.strip()[-500:]}")
    left_out = (
        "./usr/share/doc/",
        "./usr/share/man/",
        "./usr/share/locale/",
        "./var/cache/apt/",
        "./var/lib/apt/lists/",
        "./dev/",
    )

    def keep(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if member.name.startswith(left_out) else member

    packed = FOLDER / "base.tar"
    with tarfile.open(packed, "w") as archive:
        archive.add(tree, arcname=".", filter=keep)
    build("import", str(packed), BASE)
    packed.unlink()
    shutil.rmtree(tree)


def _make_build(build: Engine) -> None:
    """The base with what pip here needs to reach its registry: the certificates and addresses that it is told of."""
    told = _pip_settings()
    folder = FOLDER / "build"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    lines = [f"FROM {BASE}"]
    if (certificates := told.pop("cert", None)) and Path(certificates).is_file():
        shutil.copy(certificates, folder / "certificates.pem")
        lines += [
            "COPY certificates.pem /etc/ssl/certs/ca-certificates.crt",
            "ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt",
        ]
    lines += [f"ENV PIP_{name.upper().replace('-', '_')}={value}" for name, value in told.items()]
    (folder / "Dockerfile").write_text("\n".join(lines) + "\n")
    build("build", "--tag", BUILD, str(folder))
    shutil.rmtree(folder)


def _pip_settings() -> dict[str, str]:
    """What pip's files and environment say of how it reaches its registry, but for what lies on this machine's disk."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    told = {}
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        name, value = key.rpartition(".")[2], str(ast.literal_eval(value))
        if name in ("cert", "index-url", "trusted-host", "default-timeout", "proxy") and "file:" not in value:
            told[name] = value
    return told


if __name__ == "__main__":
    try:
        print("\n".join(images().values()))
    except NoEngineError as error:
        sys.exit(str(error))
