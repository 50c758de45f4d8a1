"""A front to knock at."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from front_door import Service


@pytest.fixture
def service(sqlite_url: str) -> Iterator[Service]:
    running = Service(sqlite_url)
    yield running
    running.close()
