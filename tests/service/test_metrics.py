"""What /metrics counts: whatever was answered, whoever asked; and the studies that want for workers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import pytest
from front_door import Knocker
from optuna.trial import TrialState
from prometheus_client.parser import text_string_to_metric_families

from tuner import StudyDefinition, StudyManager
from tuner.errors import StorageUnavailableError
from tuner.service.auth import Tokens
from tuner.service.identity import Role
from tuner.service.serve import Settings, service

STUDY: dict[str, Any] = {"name": "s", "budget": {"trials": 2}, "space": {"x": {"low": 0, "high": 1}}}


class Whole:
    """The service as `tuner serve` has it, without the network."""

    def __init__(self, url: str) -> None:
        self.manager = StudyManager(url)
        self.tokens = Tokens(self.manager.ledger.database)
        self.app = service(self.manager, self.tokens, Settings(storage=url))
        self.runner = asyncio.Runner()
        token = self.tokens.create("ann", Role.ADMIN)[0]
        self.ann = Knocker(self.app, self.runner, headers={"Authorization": f"Bearer {token}"})
        self.nobody = Knocker(self.app, self.runner)

    def samples(self, name: str) -> dict[tuple[str, ...], float]:
        """The values of a metric by its labels."""
        text = self.ann("GET", "/metrics").text
        return {
            tuple(sample.labels.values()): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name
        }

    def close(self) -> None:
        self.tokens.close()
        self.runner.close()
        self.manager.close()


@pytest.fixture
def whole(sqlite_url: str) -> Iterator[Whole]:
    running = Whole(sqlite_url)
    yield running
    running.close()


def test_routes_are_labels_and_paths_are_not(whole: Whole) -> None:
    assert whole.ann("POST", "/v1/studies", json=STUDY).status_code == 201
    whole.ann("GET", "/v1/studies/s")
    whole.ann("GET", "/v1/studies/nothing-here")
    whole.ann("GET", "/v1/nothing-at-all")
    whole.ann("GET", "/somewhere/else")
    whole.ann("BREW", "/somewhere/else")
    found = whole.samples("tuner_requests_total")
    assert found == {
        ("POST", "/v1/studies", "201"): 1,
        ("GET", "/v1/studies/{study}", "200"): 1,
        ("GET", "/v1/studies/{study}", "404"): 1,
        ("GET", "/v1", "404"): 1,
        ("GET", "other", "404"): 1,
        ("other", "other", "404"): 1,
    }
    text = whole.ann("GET", "/metrics").text
    assert 'tuner_studies{state="open"} 1.0' in text
    assert not re.search("nothing-|somewhere|BREW", text)


def test_who_is_turned_away_is_counted(whole: Whole) -> None:
    for path in ("/v1/studies", "/v1/studies/s/trials:ask", "/metrics", "/api/studies", "/x"):
        assert whole.nobody("GET", path).status_code == 401
    assert whole.ann("GET", "/v1/studies", headers={"Host": "evil.example"}).status_code == 421
    assert whole.ann("GET", "/v1/studies", headers={"Host": "a b"}).status_code == 400
    found = whole.samples("tuner_requests_total")
    assert found == {
        ("GET", "/v1", "401"): 2,
        ("GET", "/metrics", "401"): 1,
        ("GET", "/api", "401"): 1,
        ("GET", "other", "401"): 1,
        ("GET", "/v1", "421"): 1,
        ("GET", "/v1", "400"): 1,
    }


def test_pages_and_the_dashboard_are_counted(whole: Whole) -> None:
    for path in ("/", "/login", "/healthz", "/readyz", "/api/studies", "/dashboard/studies/1"):
        assert whole.ann("GET", path).status_code == 200, path
    assert whole.ann("GET", "/static/nothing").status_code == 404
    found = whole.samples("tuner_requests_total")
    assert found == {
        **{("GET", path, "200"): 1 for path in ("/", "/login", "/healthz", "/readyz", "/api", "/dashboard")},
        ("GET", "/static", "404"): 1,
    }
    assert whole.samples("tuner_request_seconds_count").keys() >= {("GET", "/dashboard"), ("GET", "/static")}


def test_what_a_silent_database_keeps_from_being_answered_is_counted(
    whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*_: object) -> None:
        raise StorageUnavailableError("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(whole.tokens, "verify", silent)
        assert whole.ann("GET", "/v1/studies").status_code == 503
    whole.ann("GET", "/metrics")  # whose token is remembered, after that
    with monkeypatch.context() as patch:
        patch.setattr(whole.manager, "all_studies", silent)
        assert whole.ann("GET", "/v1/studies").status_code == 503
    found = whole.samples("tuner_requests_total")
    assert found["GET", "/v1", "503"] == 1
    assert found["GET", "/v1/studies", "503"] == 1


def test_studies_that_nobody_works_on(url: str) -> None:
    """Those that are open, have a trial to give, and of which nobody has any."""
    with StudyManager(url) as manager:

        def count() -> int:
            with manager.ledger.transaction() as session:
                return manager.unattended(session)

        assert count() == 0
        manager.create(StudyDefinition.parse(STUDY))
        manager.create(StudyDefinition.parse({**STUDY, "name": "other"}))
        assert count() == 2
        ask_tell = manager.ask_tell("s")
        lease = ask_tell.ask()
        assert lease is not None
        assert count() == 1
        ask_tell.release(lease)
        assert count() == 2
        manager.pause("other")
        assert count() == 1
        manager.resume("other")
        manager.archive("other")
        assert count() == 1
        for ends in ("release", "tell", "tell"):
            lease = ask_tell.ask()
            assert lease is not None
            if ends == "release":
                ask_tell.release(lease)
            else:
                ask_tell.tell(lease, TrialState.COMPLETE, 1.0)
        assert count() == 0  # finished, and never closed by anybody


@pytest.mark.parametrize("definition", [{**STUDY, "of_a_later_version": 1}, "s", None])
def test_a_definition_that_cannot_be_read_hides_no_metrics(whole: Whole, definition: Any) -> None:
    for name in ("s", "other"):
        assert whole.ann("POST", "/v1/studies", json={**STUDY, "name": name}).status_code == 201
    whole.manager.load("s").set_user_attr("tuner:definition", definition)
    assert whole.ann("GET", "/metrics").status_code == 200
    assert whole.samples("tuner_studies")["open",] == 2
    assert whole.samples("tuner_unattended_studies") == {(): 1}


def test_a_trial_beyond_the_budget_that_was_lost_has_to_run_again(url: str) -> None:
    with StudyManager(url) as manager:
        manager.create(StudyDefinition.parse({**STUDY, "budget": {"trials": 1}}))
        ask_tell = manager.ask_tell("s")
        lease = ask_tell.ask()
        assert lease is not None
        ask_tell.release(lease)
        with manager.ledger.transaction() as session:
            assert manager.ledger.spent(session, manager.load("s")._study_id).trials == 1
            assert manager.unattended(session) == 1
