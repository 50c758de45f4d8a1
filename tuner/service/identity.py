"""Who asks, and what they may. The outermost layer finds out who it is; each endpoint says what is needed.

An endpoint without `needs` is a mistake that a test finds; a request that reaches one without an identity is refused.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from fastapi import HTTPException, Request

__all__ = ["Identity", "Role", "credential", "identify", "identity", "needs"]

_KEY = "tuner_identity"
_SHOWN = "tuner_credential"


class Role(IntEnum):
    """Each may do what those before it may."""

    VIEWER = 1
    """Looks at everything."""
    WORKER = 2
    """Asks, reports and tells."""
    OPERATOR = 3
    """Creates, pauses, stops and archives studies, enqueues and adjusts trials."""
    ADMIN = 4
    """Makes and revokes tokens."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks: the token's name, its role, and the prefix of the studies that it is for (empty: all)."""

    name: str
    role: Role
    prefix: str = ""

    def sees(self, study: str) -> bool:
        """Whether a study is among those it is for."""
        return study.startswith(self.prefix)

    def check_study(self, study: str) -> None:
        """See that a study is among those it is for.

        Raises:
            HTTPException: 403, it is not.
        """
        if not self.sees(study):
            raise HTTPException(403, f"this token is for studies whose names begin with {self.prefix!r} only")


def identify(scope: MutableMapping[str, Any], who: Identity, shown: str = "") -> None:
    """Note in an ASGI scope who asks, and the token or log-in that was shown for it."""
    state = scope.setdefault("state", {})
    assert isinstance(state, dict)
    state[_KEY] = who
    state[_SHOWN] = shown


def identity(request: Request) -> Identity:
    """Who asks.

    Raises:
        HTTPException: 401, nobody found out.
    """
    found = request.scope.get("state", {}).get(_KEY)
    if not isinstance(found, Identity):
        raise HTTPException(401, "a token is needed", headers={"WWW-Authenticate": "Bearer"})
    return found


def credential(request: Request) -> str:
    """The token or log-in by which it was found out who asks.

    Raises:
        HTTPException: 401, nobody found out.
    """
    identity(request)
    shown = request.scope["state"][_SHOWN]
    assert isinstance(shown, str)
    return shown


def needs(role: Role) -> Callable[[Request], Awaitable[Identity]]:
    """A dependency of endpoints that only `role` and those above may use; checks the study in the path, if any."""

    async def check(request: Request) -> Identity:  # asynchronous: for others FastAPI takes a thread
        who = identity(request)
        if who.role < role:
            raise HTTPException(
                403, f"this needs the role {role.name.lower()}; {who.name} has {who.role.name.lower()}"
            )
        if (study := request.path_params.get("study")) is not None:
            who.check_study(study)
        return who

    check.__name__ = f"needs_{role.name.lower()}"
    return check
