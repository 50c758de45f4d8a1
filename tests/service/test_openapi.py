"""What the OpenAPI document promises, held against the application: schemathesis, with all of its checks."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator

import pytest
import schemathesis
from api_client import ADMIN
from schemathesis.config import (
    ChecksConfig,
    CoveragePhaseConfig,
    FuzzingPhaseConfig,
    GenerationConfig,
    OperationConfig,
    OperationsConfig,
    PhasesConfig,
    PositiveDataAcceptanceConfig,
    ProjectConfig,
    ProjectsConfig,
    SchemathesisConfig,
    StatefulPhaseConfig,
)
from schemathesis.engine import from_schema
from schemathesis.engine.events import FatalError, NonFatalError, ScenarioFinished
from schemathesis.filters import FilterSet
from schemathesis.schemas import BaseSchema
from starlette.types import ASGIApp, Receive, Scope, Send

from tuner import StudyManager
from tuner.service.app import api
from tuner.service.identity import identify

SECRET = "a-token-for-tests"
FULL = os.environ.get("CHAOS") == "full"  # what is generated at random and in sequences too
HEADERS = {"Authorization": f"Bearer {SECRET}"}

GENERATION = GenerationConfig(deterministic=True, max_examples=3, database="none")
VALID_ONLY = GenerationConfig(
    modes=[schemathesis.GenerationMode.POSITIVE], deterministic=True, max_examples=3, database="none"
)


def whole_definitions() -> OperationConfig:
    """Those besides `POST /v1/studies` whose document holds a study's, each with a thousand ways to be wrong."""
    twins = FilterSet()
    twins.include(method="POST", path=["/v1/comparisons", "/v1/studies:import"])
    return OperationConfig(filter_set=twins, generation=GENERATION if FULL else VALID_ONLY)


CONFIG = SchemathesisConfig(
    seed=0,
    projects=ProjectsConfig(
        default=ProjectConfig(
            headers=HEADERS,
            continue_on_failure=True,
            generation=GENERATION,
            operations=OperationsConfig(operations=[whole_definitions()]),
            phases=PhasesConfig(
                coverage=CoveragePhaseConfig(enabled=True),
                fuzzing=FuzzingPhaseConfig(enabled=FULL),
                stateful=StatefulPhaseConfig(enabled=FULL),
            ),
            checks=ChecksConfig(
                # a document may be of the right shape and still break a rule, such as low <= high
                positive_data_acceptance=PositiveDataAcceptanceConfig(
                    expected_statuses=["2xx", "401", "403", "404", "409", "422"]
                )
            ),
        )
    ),
)


class _Front:
    """In the place of the front: one token."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            given = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
            if given == HEADERS["Authorization"] or scope["path"] == "/v1/openapi.json":
                identify(scope, ADMIN)
        await self.app(scope, receive, send)


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BaseSchema]:
    """The application on a database with a study, a trial that runs and a comparison."""
    with StudyManager(f"sqlite:///{tmp_path_factory.mktemp('openapi')}/tuner.db") as manager:
        app = _Front(api(manager))
        yield schemathesis.openapi.from_asgi("/v1/openapi.json", app, config=CONFIG)


@pytest.mark.slow
def test_the_application_keeps_what_its_document_promises(documented: BaseSchema) -> None:
    failures, statuses = [], Counter[int]()
    for event in from_schema(documented).execute():
        if isinstance(event, (FatalError, NonFatalError)):
            failures.append(str(event.exception))
        if isinstance(event, ScenarioFinished):
            statuses.update(
                i.response.status_code for i in event.recorder.interactions.values() if i.response
            )
            failures += [
                f"{check.name}: {check.failure_info.failure}; {check.failure_info.code_sample}"
                for checks in event.recorder.checks.values()
                for check in checks
                if check.failure_info is not None
            ]
    assert not failures, "\n=====\n".join(failures)
    assert not [status for status in statuses if status >= 500]
    assert {200, 201, 404, 409, 422} <= set(statuses)
