"""Tokens and log-ins: who is let in.

A token reads `tuner_ID_SECRET`. The database knows it by its SHA-256 digest only, which is enough for 256 random bits.
A log-in is a token of its own, for the browser's cookie: its id is that of the token it was made with, a dash and a
number, and it is good for as long as that one is. So both are checked in one place, and revoking a token ends its
log-ins too, whichever process of the service they came through.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
import re
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy.orm import Session

from tuner.errors import ConflictError, DefinitionError, NotFoundError, StorageError
from tuner.service.identity import Identity, Role
from tuner.storage import Database, Mode, patiently
from tuner.tables import TokenRow

__all__ = ["NAME", "Attempts", "TokenInfo", "TokenRequest", "Tokens", "duration"]

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
"""What a token's name may be, as a study's."""

REMEMBERED_SECONDS = 3.0
"""For so long a token that was good is not looked up again: the time that another process takes to notice that it was
revoked."""

USE_SECONDS = 60.0
"""A token's last use is written at most so often."""

LOGIN_SECONDS = 12 * 3600.0

PROVIDED = "provided-"
"""Begins the name of a token that was not made here; the role follows."""

_LOCK = "SELECT pg_advisory_xact_lock(7462)"
"""Held by whoever makes tokens that are to be there once."""

_SECRET = "of-requests"
"""The id of a row that is no token: its digest is a secret, by which tokens are made that may be asked for again."""

_TOKEN = re.compile(r"tuner_([0-9a-f]{12})_([0-9a-f]{64})")
_LOGIN = re.compile(r"([0-9a-f]{12}-[0-9a-f]{12})_([0-9a-f]{64})")
_KEPT = 1000

_tokens = cast("sa.Table", TokenRow.__table__)
_is_login = _tokens.c.token_id.contains("-")
"""Or the secret: neither is shown."""


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """What is known of a token. Its secret is not. Times are UTC."""

    id: str
    name: str
    role: str
    prefix: str
    """Of the names of the studies that it is for; empty: all."""
    created: datetime
    expires: datetime | None
    revoked: datetime | None
    last_used: datetime | None
    """To the minute."""


@dataclass(frozen=True, slots=True)
class _Known:
    """A token that was found good."""

    who: Identity
    until: float
    """By the clock: from then on it is looked up again, or has expired."""


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """A request for a token: the token or log-in that its sender has shown, and the id that it has at each try."""

    credential: str
    request_id: str


class Tokens:
    """The tokens and log-ins of one database. All threads may use it.

    Args:
        database: where they are kept.
        clock: seconds since 1970.
    """

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self._database, self._clock = database, clock
        self._known: dict[str, _Known] = {}
        self._revoked = 0
        self._lock = threading.Lock()
        self._notes = ThreadPoolExecutor(1, thread_name_prefix="token-use")

    @property
    def url(self) -> str:
        """The database's."""
        return self._database.url

    def close(self) -> None:
        """Wait until the last uses are written. What is noted later is lost."""
        self._notes.shutdown()

    def create(
        self,
        name: str,
        role: Role,
        *,
        prefix: str = "",
        expires_in: float | None = None,
        request: TokenRequest | None = None,
    ) -> tuple[str, TokenInfo]:
        """Make a token: its text, which nobody can read again, and what is known of it.

        Args:
            name: for people, as in logs; several tokens may share it.
            role: what it may do.
            prefix: of the names of the studies that it is for; empty: all.
            expires_in: seconds; None: never.
            request: that asks for it; the same again gets the same token, though it is over by then.

        Raises:
            DefinitionError: the name, the prefix or the time is not legal.
            ConflictError: the same request asked for another token before.
        """
        _check(name, role, prefix, expires_in)
        with self._database.transaction() as session:
            if request is None:
                return self._insert(session, _text(), name, role, prefix=prefix, expires_in=expires_in)
            if not self._database.is_sqlite:  # there, whoever writes is alone
                session.execute(sa.text(_LOCK))
            text = _text(self._derived(session, request))
            row = session.execute(sa.select(_tokens).where(_tokens.c.token_id == _id(text))).first()
            if row is None:
                return self._insert(session, text, name, role, prefix=prefix, expires_in=expires_in)
            expires_at = None if expires_in is None else row.created_at + expires_in
            wanted = (_digest(text), name, role.name.lower(), prefix, expires_at)
            if (row.digest, row.name, row.role, row.prefix, row.expires_at) != wanted:
                raise ConflictError("another token was asked for under this Idempotency-Key before")
            return text, _info(row)

    def create_first(self) -> str | None:
        """Make an administrator's token where no token was ever made; None where one was."""
        with self._database.transaction() as session:
            if not self._database.is_sqlite:  # there, whoever writes is alone
                session.execute(sa.text(_LOCK))
            if session.scalar(sa.select(sa.exists(sa.select(_tokens.c.token_id)))):
                return None
            return self._insert(session, _text(), "admin", Role.ADMIN)[0]

    def provide(self, role: Role, text: str) -> TokenInfo:
        """Let in a token that was made elsewhere, as from a secret's file; once more is the same.

        One that was provided for this role before, and is another, is revoked: so who changes the secret, changes it
        here. One that was revoked stays so, and revokes no other: a process that starts with an old file would lock
        all out.

        Raises:
            DefinitionError: the text is no token.
            ConflictError: there is another token of this id.
        """
        if (found := _TOKEN.fullmatch(text)) is None:
            raise DefinitionError(
                "a token reads tuner_ID_SECRET, of 12 and 64 hexadecimal digits; this is none"
            )
        token_id, name = found[1], f"{PROVIDED}{role.name.lower()}"
        earlier = sa.and_(
            _tokens.c.name == name, _tokens.c.token_id != token_id, _tokens.c.revoked_at.is_(None)
        )
        with self._database.transaction() as session:
            if not self._database.is_sqlite:  # there, whoever writes is alone
                session.execute(sa.text(_LOCK))
            row = session.execute(sa.select(_tokens).where(_tokens.c.token_id == token_id)).first()
            if row is not None and (row.digest, row.role) != (_digest(text), role.name.lower()):
                raise ConflictError(
                    f"there is another token of the id {token_id}: make a new one for {role.name.lower()}"
                )
            if row is None:
                values = {"name": name, "role": role.name.lower(), "prefix": "", "expires_at": None}
                info = self._add(session, text, token_id, values)
            elif row.revoked_at is not None:
                return _info(row)
            else:
                info = _info(row)
            for old in session.scalars(sa.select(_tokens.c.token_id).where(earlier)).all():
                self._end(session, old)
        self._forget()
        return info

    @patiently
    def all(self) -> list[TokenInfo]:
        """All tokens, the oldest first; revoked and expired ones too."""
        query = sa.select(_tokens).where(~_is_login).order_by(_tokens.c.created_at, _tokens.c.token_id)
        with self._database.transaction(Mode.READ) as session:
            return [_info(row) for row in session.execute(query)]

    def revoke(self, token_id: str) -> None:
        """End a token and its log-ins. Once more is the same.

        Raises:
            NotFoundError: there is no such token.
        """
        mine = _tokens.c.token_id == token_id
        with self._database.transaction() as session:
            if session.scalar(sa.select(_tokens.c.token_id).where(mine, ~_is_login)) is None:
                raise NotFoundError(f"no token has the id {token_id!r}")
            self._end(session, token_id)
        self._forget()

    def remembered(self, text: str) -> Identity | None:
        """Who has a token or log-in that was found good a moment ago. Touches no database."""
        with self._lock:
            known = self._known.get(_digest(text))
        return known.who if known is not None and self._clock() < known.until else None

    def verify(self, text: str) -> Identity | None:
        """Who has a token; None where it is no good: unknown, expired or revoked.

        Raises:
            StorageUnavailableError: the database does not answer.
        """
        return self._verify(_TOKEN, text)

    def expired(self, text: str) -> datetime | None:
        """When a token ran out, for whoever has it whole; None of one that did not, is not known, or was revoked.

        Raises:
            StorageUnavailableError: the database does not answer.
        """
        if (found := _TOKEN.fullmatch(text)) is None:
            return None
        with self._database.transaction(Mode.READ) as session:
            row = session.execute(sa.select(_tokens).where(_tokens.c.token_id == found[1])).first()
        if row is None or row.revoked_at is not None or not hmac.compare_digest(row.digest, _digest(text)):
            return None
        return _info(row).expires

    def verify_login(self, text: str) -> Identity | None:
        """Who has a log-in; None where it is no good, or its token no more.

        Raises:
            StorageUnavailableError: the database does not answer.
        """
        return self._verify(_LOGIN, text)

    def log_in(self, text: str) -> str | None:
        """A log-in for whoever has this token, good for `LOGIN_SECONDS` at most; None where the token is no good.

        Raises:
            StorageUnavailableError: the database does not answer.
        """
        if (found := _TOKEN.fullmatch(text)) is None:
            return None
        now, token_id = self._clock(), found[1]
        with self._database.transaction() as session:
            row = self._good(session, token_id, text, now)
            if row is None:
                return None
            session.execute(sa.delete(_tokens).where(_is_login, _tokens.c.expires_at <= now))
            login = f"{token_id}-{secrets.token_hex(6)}_{secrets.token_hex(32)}"
            expires_at = min(now + LOGIN_SECONDS, row.expires_at or float("inf"))
            values = {"name": row.name, "role": row.role, "prefix": row.prefix, "expires_at": expires_at}
            self._add(session, login, login.partition("_")[0], values)
        return login

    def log_out(self, text: str) -> None:
        """End a log-in; one that is over already, too."""
        if (found := _LOGIN.fullmatch(text)) is not None:
            mine = sa.and_(_tokens.c.token_id == found[1], _tokens.c.digest == _digest(text))
            with self._database.transaction() as session:
                session.execute(sa.delete(_tokens).where(mine))
            self._forget()

    def _verify(self, form: re.Pattern[str], text: str) -> Identity | None:
        if (found := form.fullmatch(text)) is None:
            return None
        now, revoked = self._clock(), self._revoked
        with self._database.transaction(Mode.READ) as session:
            row = self._good(session, found[1], text, now)
            parent = row
            if row is not None and form is _LOGIN:
                parent = self._good(session, found[1].partition("-")[0], None, now)
        if row is None or parent is None:
            return None
        if parent.last_used_at is None or parent.last_used_at <= now - USE_SECONDS:
            self._notes.submit(self._note_use, parent.token_id, now)
        who = Identity(row.name, Role[row.role.upper()], row.prefix)
        ends = [moment for moment in (row.expires_at, parent.expires_at) if moment is not None]
        self._remember(text, _Known(who, min([now + REMEMBERED_SECONDS, *ends])), revoked)
        return who

    def _good(self, session: Session, token_id: str, text: str | None, now: float) -> Any:
        """The row of a token that is not over, and, where its text is given, has that; None otherwise."""
        row = session.execute(sa.select(_tokens).where(_tokens.c.token_id == token_id)).first()
        if (
            row is None
            or row.revoked_at is not None
            or (row.expires_at is not None and row.expires_at <= now)
        ):
            return None
        if text is not None and not hmac.compare_digest(row.digest, _digest(text)):
            return None
        return row

    def _derived(self, session: Session, request: TokenRequest) -> bytes:
        """The same bytes for the same request.

        Two secrets make them: the sender's, which the database does not hold, and one of the database's own. So neither
        who reads the database nor who has a credential that was revoked can find them out.
        """
        secret = session.scalar(sa.select(_tokens.c.digest).where(_tokens.c.token_id == _SECRET))
        if secret is None:
            text = secrets.token_hex(32)
            self._add(session, text, _SECRET, {"name": _SECRET, "role": "viewer", "prefix": ""})
            secret = _digest(text)
        said = f"{request.credential}\n{request.request_id}".encode()
        return hmac.digest(bytes.fromhex(secret), said, "sha512")

    def _insert(
        self,
        session: Session,
        text: str,
        name: str,
        role: Role,
        *,
        prefix: str = "",
        expires_in: float | None = None,
    ) -> tuple[str, TokenInfo]:
        now = self._clock()
        expires_at = None if expires_in is None else now + expires_in
        values = {"name": name, "role": role.name.lower(), "prefix": prefix, "expires_at": expires_at}
        return text, self._add(session, text, _id(text), {"created_at": now, **values})

    def _add(self, session: Session, text: str, token_id: str, values: dict[str, Any]) -> TokenInfo:
        row = {"token_id": token_id, "digest": _digest(text), "created_at": self._clock(), **values}
        return _info(session.execute(sa.insert(_tokens).values(row).returning(*_tokens.c)).one())

    def _end(self, session: Session, token_id: str) -> None:
        alive = sa.and_(_tokens.c.token_id == token_id, _tokens.c.revoked_at.is_(None))
        session.execute(sa.update(_tokens).where(alive).values(revoked_at=self._clock()))
        session.execute(sa.delete(_tokens).where(_tokens.c.token_id.startswith(f"{token_id}-")))

    def _note_use(self, token_id: str, now: float) -> None:
        is_old = sa.or_(_tokens.c.last_used_at.is_(None), _tokens.c.last_used_at <= now - USE_SECONDS)
        mine = sa.and_(_tokens.c.token_id == token_id, is_old)
        with contextlib.suppress(StorageError), self._database.transaction(Mode.RELAXED) as session:
            session.execute(sa.update(_tokens).where(mine).values(last_used_at=now))

    def _remember(self, text: str, known: _Known, revoked: int) -> None:
        with self._lock:
            if revoked != self._revoked:  # perhaps this one, since it was looked up
                return
            if len(self._known) >= _KEPT:
                self._known.clear()
            self._known[_digest(text)] = known

    def _forget(self) -> None:
        with self._lock:
            self._revoked += 1
            self._known.clear()


def duration(text: str) -> float:
    """The seconds of a duration as people write it: `90s`, `15m`, `12h`, `30d`.

    Raises:
        DefinitionError: it is none.
    """
    found = re.fullmatch(r"([0-9]{1,6})([smhd])", text)
    if found is None:
        raise DefinitionError(f"a duration is a number and s, m, h or d, as in 30d; got {text!r}")
    return float(int(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[found[2]])


class Attempts:
    """Log-ins that failed within the last minute, which bound how many more are tried.

    Args:
        each: from one address (of IPv6, from one network of 64 bits).
        in_all: from all addresses.
        seconds: how long one counts.
        clock: in seconds.
    """

    def __init__(
        self,
        *,
        each: int = 10,
        in_all: int = 100,
        seconds: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._each, self._all, self._seconds, self._clock = each, in_all, seconds, clock
        self._failed: deque[tuple[float, str]] = deque()

    def begin(self, address: str) -> float:
        """Count an attempt as failed until `succeeded`; or how many seconds to wait, where there are too many."""
        now, source = self._clock(), _network(address)
        while self._failed and self._failed[0][0] <= now - self._seconds:
            self._failed.popleft()
        mine = [moment for moment, other in self._failed if other == source]
        waits = [
            moments[-limit] + self._seconds - now
            for moments, limit in ((mine, self._each), ([moment for moment, _ in self._failed], self._all))
            if len(moments) >= limit
        ]
        if not waits:
            self._failed.append((now, source))
        return max(waits, default=0.0)

    def succeeded(self, address: str) -> None:
        """The latest attempt from this address was no failure."""
        source = _network(address)
        latest = max((i for i, (_, other) in enumerate(self._failed) if other == source), default=None)
        if latest is not None:
            del self._failed[latest]


def _network(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    return address if parsed.version == 4 else str(ipaddress.ip_network((parsed, 64), strict=False))


def _check(name: str, role: Role, prefix: str, expires_in: float | None) -> None:
    if re.fullmatch(NAME, name) is None:
        raise DefinitionError(
            f"a token's name is 1 to 128 letters, digits and . _ - and begins with a letter or digit; got {name!r}"
        )
    if prefix and re.fullmatch(NAME, prefix) is None:
        raise DefinitionError(f"no study's name begins with {prefix!r}")
    if prefix and role is Role.ADMIN:
        raise DefinitionError("an admin makes tokens for all studies, so that its own can have no prefix")
    if expires_in is not None and not 0 < expires_in <= 1e10:
        raise DefinitionError(f"a token expires after more than 0 and at most 1e10 seconds; got {expires_in}")


def _info(row: Any) -> TokenInfo:
    moments = (row.created_at, row.expires_at, row.revoked_at, row.last_used_at)
    created, expires, revoked, last_used = (
        None if moment is None else datetime.fromtimestamp(moment, UTC) for moment in moments
    )
    assert created is not None
    return TokenInfo(row.token_id, row.name, row.role, row.prefix, created, expires, revoked, last_used)


def _text(of: bytes | None = None) -> str:
    """A token's text, of at least 38 bytes, by default random ones."""
    digits = (of or secrets.token_bytes(38)).hex()
    return f"tuner_{digits[:12]}_{digits[12:76]}"


def _id(text: str) -> str:
    return text.split("_")[1]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()
