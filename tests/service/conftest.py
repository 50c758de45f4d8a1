"""What the tests of the service share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from api_client import Api, serving


@pytest.fixture
def service(url: str) -> Iterator[Api]:
    """The API on a fresh database of each kind, for an admin."""
    with serving(url) as service:
        yield service
