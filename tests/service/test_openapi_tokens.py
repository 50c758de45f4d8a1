"""Tokens over HTTP keep what the OpenAPI document promises, through the whole service: schemathesis, all its checks."""

from __future__ import annotations

import copy
from collections import Counter
from contextlib import closing

import pytest
import schemathesis
from schemathesis.engine import from_schema
from schemathesis.engine.events import FatalError, NonFatalError, ScenarioFinished
from test_openapi import CONFIG

from tuner import StudyManager
from tuner.service.auth import Tokens
from tuner.service.identity import Role
from tuner.service.serve import Settings, service


@pytest.mark.long
@pytest.mark.slow
def test_tokens_keep_what_their_document_promises(sqlite_url: str) -> None:
    failures, statuses = [], Counter[int]()
    with StudyManager(sqlite_url) as manager, closing(Tokens(manager.ledger.database)) as tokens:
        config = copy.deepcopy(CONFIG)
        headers = {"Authorization": f"Bearer {tokens.create('admin', Role.ADMIN)[0]}"}
        config.projects.default.headers = headers
        app = service(manager, tokens, Settings(allowed_hosts=("testserver",)))
        whole = schemathesis.openapi.from_asgi("/v1/openapi.json", app, config=config, headers=headers)
        for event in from_schema(whole.include(path_regex="^/v1/tokens")).execute():
            if isinstance(event, (FatalError, NonFatalError)):
                failures.append(repr(event))
            if isinstance(event, ScenarioFinished):
                given = event.recorder
                statuses.update(i.response.status_code for i in given.interactions.values() if i.response)
                checks = [check for group in given.checks.values() for check in group if check.failure_info]
                failures += [f"{check.name}: {check.failure_info}" for check in checks]
    assert not failures, "\n=====\n".join(failures)
    assert max(statuses) < 500
    assert {200, 201, 401, 404, 422} <= set(statuses)
