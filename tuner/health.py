"""Signs of life, for whoever watches a process: `tuner-health` ends with 0 where a service or worker lives.

It is asked every few seconds, so it loads nothing but the standard library, and a tenth of what `tuner` takes. A worker
shows that it lives by a file that it touches; a service, by answering `/healthz`, which touches no database.
"""

from __future__ import annotations

import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

__all__ = ["ALIVE_FILE", "ALIVE_SECONDS", "main", "sign_of_life"]

ALIVE_FILE = "TUNER_ALIVE_FILE"
"""The environment's variable that names the file which a worker touches."""

ALIVE_SECONDS = 60.0
"""A worker that has not touched its file for so long hangs: it does so every few seconds, also while trials run."""

TOUCH_SECONDS = 2.0

ANSWER_SECONDS = 4.0

LOOPBACK_OF = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
"""Where a service that listens on every address of a kind is found from within."""


def sign_of_life(file: Path | None) -> Callable[[], None]:
    """What a program calls as often as it likes while it lives; None: nothing is touched."""
    if file is None:
        return lambda: None
    touched = float("-inf")

    def touch() -> None:
        nonlocal touched
        if time.monotonic() - touched >= TOUCH_SECONDS:
            file.touch()
            touched = time.monotonic()

    return touch


def main() -> None:
    """The console script: exit code 0 where it lives; 1, with a line that says why, where it does not."""
    file = os.environ.get(ALIVE_FILE)
    why = _hangs(Path(file)) if file else _is_silent(_url())
    if why is not None:
        sys.exit(why)


def _hangs(file: Path) -> str | None:
    """Why a worker is not well; None where it is."""
    try:
        age = time.time() - file.stat().st_mtime
    except OSError as error:
        return f"the worker shows no sign of life: {file}: {error.strerror}"
    if age > ALIVE_SECONDS:
        return f"the worker's last sign of life is {age:.0f} s old; it may be {ALIVE_SECONDS:.0f}"
    return None


def _is_silent(url: str) -> str | None:
    """Why a service is not well; None where it answers."""
    # of this machine, whatever name its certificate has
    itself = ssl.create_default_context()
    itself.check_hostname, itself.verify_mode = False, ssl.CERT_NONE
    no_proxy = urllib.request.ProxyHandler({})
    opener = urllib.request.build_opener(no_proxy, urllib.request.HTTPSHandler(context=itself))
    try:
        opener.open(url, timeout=ANSWER_SECONDS).close()
    except (OSError, urllib.error.URLError) as error:
        return f"{url}: {error}"
    return None


def _url() -> str:
    """Where the service of this machine answers, by the settings that `tuner serve` takes from the environment."""
    host = os.environ.get("TUNER_HOST", "127.0.0.1").strip("[]")
    scheme = "https" if os.environ.get("TUNER_TLS_CERT") else "http"
    host = LOOPBACK_OF.get(host, host)
    host = f"[{host}]" if ":" in host else host
    return f"{scheme}://{host}:{os.environ.get('TUNER_PORT', '8080')}/healthz"
