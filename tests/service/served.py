"""The API on a port of this machine, and a network before it that loses answers."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from tuner import StudyManager
from tuner.service.app import api
from tuner.service.identity import Identity, Role, identify

__all__ = ["TOKENS", "LossyProxy", "Served", "told"]

TOKENS = {f"token-of-{role.name.lower()}": Identity(role.name.lower(), role) for role in Role}


class _Shim:
    """Says who asks, by the token, as the service's front does."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            given = dict(scope["headers"]).get(b"authorization", b"").decode().removeprefix("Bearer ")
            if given in TOKENS:
                identify(scope, TOKENS[given])
        await self.app(scope, receive, send)


class Served:
    """The API of a database, served by a thread; it can be stopped, and started again on the same port."""

    def __init__(self, database: str, *, lease_seconds: float = 60.0, port: int = 0) -> None:
        self._database, self._lease_seconds = database, lease_seconds
        self.port = port
        self._server: uvicorn.Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.manager = StudyManager(self._database, lease_seconds=self._lease_seconds)
        # asyncio spares answers the 40 ms of a delayed acknowledgement only where the protocol is named
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", self.port))
        self.port = listening.getsockname()[1]
        app = _Shim(api(self.manager, reap_seconds=0.2))
        config = uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1, lifespan="on")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listening],), daemon=True)
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            time.sleep(0.01)

    def join(self) -> None:
        """Serve for as long as this process lives."""
        self._thread.join()

    def stop(self) -> None:
        if self._server is not None:
            self._server.should_exit = True
            self._thread.join()
            self._server = None
            self.manager.close()

    def __enter__(self) -> Served:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class LossyProxy:
    """Passes bytes on to a port; every so often it swallows what is answered, and cuts the connection."""

    def __init__(self, port: int, *, loses: float, seed: int = 0) -> None:
        self._upstream, self._loses, self._random = port, loses, random.Random(seed)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self.answers = self.swallowed = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> LossyProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        upstream = ("127.0.0.1", self._upstream)
        with contextlib.suppress(OSError), client, socket.create_connection(upstream) as server:
            threading.Thread(target=_pump, args=(client, server), daemon=True).start()
            while answer := server.recv(1 << 16):
                self.answers += 1
                if self._random.random() < self._loses:
                    self.swallowed += 1
                    client.shutdown(socket.SHUT_RDWR)  # closing alone waits for the other thread
                    server.shutdown(socket.SHUT_RDWR)
                    return
                client.sendall(answer)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


def told(trial: Any) -> tuple[Any, ...]:
    """All of a trial that does not depend on when it ran."""
    attrs = {name: value for name, value in trial.user_attrs.items() if name != "training_seconds"}
    reports = {step: repr(value) for step, value in trial.intermediate_values.items()}  # NaN is not itself
    return (trial.number, trial.state, trial.params, trial.values, reports, attrs)
