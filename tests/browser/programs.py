"""The two programs that the browser tests and the pictures need: Chromium, and a stock optuna-dashboard."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find_chromium() -> str:
    """The path of a Chromium: the environment's CHROMIUM, or the one that is installed.

    Raises:
        FileNotFoundError: there is none.
    """
    given = os.environ.get("CHROMIUM")
    names = [given] if given else ["/usr/bin/chromium", "chromium", "chromium-browser", "google-chrome"]
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        raise FileNotFoundError("there is no Chromium (Debian: apt install chromium; or set CHROMIUM)")
    return found


def find_dashboard() -> str:
    """The console script of optuna-dashboard beside this Python.

    Raises:
        FileNotFoundError: it is not installed there.
    """
    script = Path(sys.executable).with_name("optuna-dashboard")
    if not script.exists():
        raise FileNotFoundError("optuna-dashboard is not installed beside this Python")
    return str(script)


@contextmanager
def running_dashboard(url: str, log: Path) -> Iterator[str]:
    """optuna-dashboard on the database at `url`, in a process of its own; yields its address.

    Raises:
        RuntimeError: it did not come up; with what it wrote.
    """
    port = free_port()
    command = [find_dashboard(), url, "--host", "127.0.0.1", "--port", str(port)]
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process,
    ):
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_until_up(address, process, log)
            yield address
        finally:
            process.kill()  # it only reads here; and it must not outlive us


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_up(address: str, process: subprocess.Popen[bytes], log: Path, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"{address}/api/meta", timeout=5):
                return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.1)
    raise RuntimeError(f"optuna-dashboard did not come up:\n{log.read_text()}")
