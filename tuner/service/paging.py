"""Lists a page at a time. A token says after what the next page begins; to clients it means nothing."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated

from fastapi import Query

from tuner.errors import DefinitionError

__all__ = ["PageSize", "PageToken", "next_token", "start_of"]

PageSize = Annotated[int, Query(ge=1, le=1000, description="At most so many.")]
PageToken = Annotated[
    str | None, Query(max_length=64, description="The `next_page_token` of the page before.")
]


def next_token(last: int | None) -> str | None:
    """The token of the page after the one that ends with `last`; None if there is no other."""
    return None if last is None else base64.urlsafe_b64encode(f"after {last}".encode()).decode().rstrip("=")


def start_of(token: str | None) -> int:
    """After what a page begins; -1 for the first.

    Raises:
        DefinitionError: it is no token.
    """
    if token is None:
        return -1
    try:
        text = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True).decode(
            "ascii"
        )
        word, last = text.split(" ")
        after = int(last)
    except (binascii.Error, UnicodeError, ValueError):
        raise DefinitionError(f"page_token: {token!r} is no token of a page before") from None
    if word != "after" or not 0 <= after < 2**31 or next_token(after) != token:
        raise DefinitionError(f"page_token: {token!r} is no token of a page before")
    return after
