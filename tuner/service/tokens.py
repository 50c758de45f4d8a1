"""Tokens over HTTP, for administrators."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, cast

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from tuner.service.auth import TokenInfo, TokenRequest, Tokens
from tuner.service.identity import Role, credential, needs
from tuner.service.paging import PageSize, PageToken, next_token, start_of
from tuner.service.problems import responses
from tuner.service.schemas import NAME
from tuner.service.trials import Key

__all__ = ["add_tokens"]

router = APIRouter(prefix="/v1/tokens", tags=["tokens"], dependencies=[Depends(needs(Role.ADMIN))])


class NewToken(BaseModel):
    """A token to be made."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: Annotated[str, Field(pattern=NAME, description="For people, as in logs. Several may share it.")]
    role: Literal["viewer", "worker", "operator", "admin"]
    expires_in_seconds: Annotated[float, Field(gt=0, le=1e10, allow_inf_nan=False)] | None = None
    prefix: Annotated[str, Field(pattern=rf"^$|{NAME}")] = Field(
        default="", description="Of the names of the studies that it is for; empty: all. Not of an admin's."
    )


class TokenView(BaseModel):
    """What is known of a token."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    name: str
    role: str
    prefix: str
    created: datetime
    expires: datetime | None
    revoked: datetime | None
    last_used: datetime | None = Field(description="To the minute.")


class MadeToken(TokenView):
    """A token that was just made."""

    token: str = Field(description="What its holder shows. Nobody can read it again.")


class TokenViews(BaseModel):
    """A page of tokens, oldest first."""

    tokens: list[TokenView]
    next_page_token: str | None


def add_tokens(app: FastAPI, tokens: Tokens) -> None:
    """Let an application make, list and revoke tokens."""
    app.state.tokens = tokens
    app.include_router(router)


def _tokens(request: Request) -> Tokens:
    return cast("Tokens", request.app.state.tokens)


TokensOf = Annotated[Tokens, Depends(_tokens)]


@router.post("", status_code=201, responses=responses(409))
def create_token(wanted: NewToken, request: Request, tokens: TokensOf, key: Key = None) -> MadeToken:
    """Make a token. This answer is the only place where it can be read.

    The same request again, with the same Idempotency-Key and by the same token, gets the same answer, though the token
    was revoked or has run out since.
    """
    text, info = tokens.create(
        wanted.name,
        Role[wanted.role.upper()],
        prefix=wanted.prefix,
        expires_in=wanted.expires_in_seconds,
        request=None if key is None else TokenRequest(credential(request), key),
    )
    return MadeToken(token=text, **_view(info).model_dump())


@router.get("", responses=responses())
def tokens(tokens: TokensOf, page_size: PageSize = 100, page_token: PageToken = None) -> TokenViews:
    """All tokens, revoked and expired ones too, oldest first, a page at a time."""
    first = start_of(page_token) + 1  # none is ever taken out of the list, so that places stay
    found = tokens.all()
    page = found[first : first + page_size]
    is_more = len(found) > first + page_size
    return TokenViews(
        tokens=[_view(info) for info in page],
        next_page_token=next_token(first + page_size - 1 if is_more else None),
    )


@router.delete("/{token_id}", status_code=204, response_class=Response, responses=responses(404))
def revoke_token(token_id: Annotated[str, Field(max_length=32)], tokens: TokensOf) -> None:
    """End a token and its log-ins. Once more is the same."""
    tokens.revoke(token_id)


def _view(info: TokenInfo) -> TokenView:
    return TokenView.model_validate(info)
