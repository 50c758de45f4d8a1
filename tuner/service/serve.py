"""`tuner serve`: the service in one process, on one port."""

from __future__ import annotations

import contextlib
import gc
import ipaddress
import logging
import os
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import uvicorn
from filelock import FileLock, Timeout
from sqlalchemy.engine import make_url
from starlette.types import ASGIApp

from tuner import logs
from tuner.errors import ConflictError, DefinitionError, StorageError, TunerError
from tuner.manager import StudyManager
from tuner.schema import absolute
from tuner.secrets import read_secret
from tuner.service.app import api, ready
from tuner.service.auth import TokenInfo, Tokens
from tuner.service.dashboard import Dashboard
from tuner.service.front import Readiness, front
from tuner.service.identity import Role
from tuner.service.metrics import Watched
from tuner.service.pages import Pages
from tuner.service.tokens import add_tokens
from tuner.storage import DEFAULT_URL, safe_url

__all__ = ["Settings", "serve", "service"]

LOOPBACK = ("localhost", "127.0.0.1", "::1")

GRACE_SECONDS = 10
"""For so long requests that are being answered are waited for when the service stops."""

SHORTEST_LEASE = 5.0
"""Seconds: heartbeats, three a lease, need to get through now and then."""

KEEP_ALIVE_SECONDS = 75
"""Workers report about once a minute: their connections stay."""

_log = logging.getLogger("tuner.service")

PROXIES = "127.0.0.0/8,::1"
"""Whose word on the client's address and scheme is taken behind a proxy, unless told otherwise: this machine's."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How the service is served.

    Args:
        storage: the database's URL.
        host: the address to listen on.
        port: 0 takes a free one.
        behind_proxy: a proxy in front encrypts, and says who the client is.
        proxies: the addresses and networks, with commas, that are believed in that.
        tls_cert: a file with the certificate and those it was signed with; goes with `tls_key`.
        tls_key: a file with its private key.
        allowed_hosts: names under which clients reach the service, besides `localhost` and `host`.
        log_level: one of `tuner.logs.LEVELS`.
        admin_token_file: holds a token to be let in as an administrator's; then none is made at the first start.
        worker_token_file: holds one to be let in as a worker's.
        lease_seconds: for how long a trial is its worker's after the last that was heard of it, at least 5.

    Raises:
        DefinitionError: the settings contradict each other, or would let tokens travel unencrypted.
    """

    storage: str = DEFAULT_URL
    host: str = "127.0.0.1"
    port: int = 8080
    behind_proxy: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None
    allowed_hosts: tuple[str, ...] = ()
    log_level: str = "info"
    admin_token_file: Path | None = None
    worker_token_file: Path | None = None
    lease_seconds: float = 120.0
    proxies: str = PROXIES

    def __post_init__(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise DefinitionError("TLS needs both --tls-cert and --tls-key")
        if not (self.is_local or self.is_tls or self.behind_proxy):
            raise DefinitionError(
                f"on {self.host} tokens would travel unencrypted: give --tls-cert and --tls-key, or --behind-proxy "
                "where a proxy in front encrypts, or keep to --host 127.0.0.1"
            )
        if _is_wildcard(self.host) and not self.allowed_hosts:
            raise DefinitionError(
                f"--host {self.host} listens on every address: say with --allowed-host under which names clients "
                "reach the service, as in --allowed-host tuner.example.org"
            )
        for host in self.allowed_hosts:
            if not host or any(sign in host for sign in "/*, ") or (":" in host and not _is_address(host)):
                raise DefinitionError(f"--allowed-host is a name or an address, without a port; got {host!r}")
        for proxy in self.proxies.split(","):
            if not _is_network(proxy.strip()):
                raise DefinitionError(
                    f"--proxies are addresses or networks, with commas between; got {proxy!r}"
                )
        logs.check_level(self.log_level)
        if not self.lease_seconds >= SHORTEST_LEASE:
            raise DefinitionError(
                f"--lease-seconds is at least {SHORTEST_LEASE:g}; got {self.lease_seconds:g}"
            )

    @property
    def is_tls(self) -> bool:
        """Whether the service itself encrypts."""
        return self.tls_cert is not None

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches it."""
        if not _is_address(self.host):
            return self.host == "localhost"
        return ipaddress.ip_address(self.host.strip("[]")).is_loopback

    @property
    def hosts(self) -> tuple[str, ...]:
        """All names and addresses under which it answers."""
        own = () if _is_wildcard(self.host) else (self.host,)
        return (*LOOPBACK, *own, *self.allowed_hosts)


def service(manager: StudyManager, tokens: Tokens, settings: Settings) -> ASGIApp:
    """The whole service as one ASGI application."""
    interface, dashboard = api(manager), Dashboard(manager.ledger.database)
    add_tokens(interface, tokens)
    app = front(
        api=interface,
        pages=Pages(manager, tokens),
        dashboard=dashboard,
        tokens=tokens,
        is_ready=Readiness(partial(ready, manager)),
        hosts=settings.hosts,
    )
    return Watched(app, metrics=interface.state.metrics)


def serve(settings: Settings, say: Callable[[str], None]) -> None:
    """Serve until Ctrl-C or SIGTERM; then requests that are being answered are waited for.

    Args:
        settings: how.
        say: shows a line to whoever started it: the address, and the first token.

    Raises:
        ConflictError: another service has this SQLite file.
        StorageError: the database cannot be opened.
        TunerError: the port is taken, the certificate cannot be used, or the service did not start.
    """
    logs.configure(settings.log_level)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_alone(settings.storage))
        manager = stack.enter_context(StudyManager(settings.storage, lease_seconds=settings.lease_seconds))
        tokens = stack.enter_context(contextlib.closing(Tokens(manager.ledger.database)))
        server = uvicorn.Server(_config(service(manager, tokens, settings), settings))
        listening = stack.enter_context(_listen(settings.host, settings.port))
        if (first := _first_tokens(tokens, settings)) is not None:
            say(f"The first start: this is the administrator's token. It is shown only now.\n\n  {first}\n")
        say(f"tuner serves {safe_url(settings.storage)} on {_address(listening, settings)} (Ctrl-C ends it)")
        gc.freeze()  # what the start has made stays: to look through it again and again cost a third of a long read
        with contextlib.suppress(KeyboardInterrupt):  # the server has stopped by then, and says so once more
            server.run(sockets=[listening])
        if not server.started:
            raise TunerError("the service did not start; its log says why")


def _first_tokens(tokens: Tokens, settings: Settings) -> str | None:
    """Let in the tokens of the files; an administrator's token, if one had to be made, to be shown once."""
    first = tokens.create_first() if settings.admin_token_file is None else None
    files = {Role.ADMIN: settings.admin_token_file, Role.WORKER: settings.worker_token_file}
    for role, file in files.items():
        if file is not None and _provide(tokens, role, file).revoked is not None:
            _log.warning("the %s's token in %s was revoked: it lets nobody in", role.name.lower(), file)
    return first


def _provide(tokens: Tokens, role: Role, file: Path) -> TokenInfo:
    said = f"--{role.name.lower()}-token-file"
    text = read_secret(file, said)
    try:
        return tokens.provide(role, text)
    except (ConflictError, DefinitionError) as error:
        raise type(error)(f"{said} {file}: {error}") from None


def _config(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        ws="none",
        proxy_headers=settings.behind_proxy,
        forwarded_allow_ips=settings.proxies,
        timeout_graceful_shutdown=GRACE_SECONDS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise TunerError(f"cannot use the certificate {settings.tls_cert}: {error}") from None
    return config


@contextmanager
def _alone(url: str) -> Iterator[None]:
    """See that no other service has the SQLite file; on a server there may be any number.

    Raises:
        ConflictError: another has it.
        StorageError: that cannot be seen, as nothing can be written beside the file.
    """
    parsed = make_url(absolute(url))
    if parsed.get_backend_name() != "sqlite":
        yield
        return
    file = (parsed.database or "").removeprefix("file:").partition("?")[0]
    lock = FileLock(f"{file}.service", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ConflictError(
            f"another `tuner serve` has {safe_url(url)} already: SQLite takes one, PostgreSQL any number"
        ) from None
    except OSError as error:
        raise StorageError(f"cannot open {safe_url(url)}: {error}") from None
    try:
        yield
    finally:
        lock.release()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends answers at once only where the protocol is named; else their second part waits 40 ms for the client
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind((host.strip("[]"), port))
        listening.listen(2048)
        return listening
    except OSError as error:
        listening.close()
        raise TunerError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None


def _address(listening: socket.socket, settings: Settings) -> str:
    host = f"[{settings.host.strip('[]')}]" if ":" in settings.host else settings.host
    return f"http{'s' if settings.is_tls else ''}://{host}:{listening.getsockname()[1]}/"


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True


def _is_wildcard(host: str) -> bool:
    return host == "" or (_is_address(host) and ipaddress.ip_address(host.strip("[]")).is_unspecified)
