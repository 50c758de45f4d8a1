"""optuna-dashboard alone, as it comes: for this machine, without a login."""

from __future__ import annotations

import socket
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from optuna.storages import BaseStorage
from optuna_dashboard import wsgi

from tuner.errors import TunerError

__all__ = ["listening"]


def listening(storage: BaseStorage, host: str, port: int) -> WSGIServer:
    """A server that listens already; port 0 is any that is free.

    Raises:
        TunerError: it cannot listen there.
    """
    app = wsgi(storage)
    try:
        return make_server(host, port, app, _Server, _Handler)
    except OSError as error:
        raise TunerError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None


class _Server(ThreadingMixIn, WSGIServer):
    """Answers each request in a thread, as a page asks for several things at once."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[WSGIRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)


class _Handler(WSGIRequestHandler):
    """Logs no requests."""

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""
