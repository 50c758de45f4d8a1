"""The same machine as the ledger's, its owners speaking HTTP with two services on one database.

A third owner, whose process is gone, works on the database itself meanwhile, as `tuner run` would. What HTTP does not
offer (an ask with a point, a rewind, a NaN that is told) the owners do on the database, too.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test
from optuna.trial import TrialState

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "service"))

from api_client import ADMIN, Api, serving
from test_state_machine import MAX_ATTEMPTS, LedgerMachine, one_url

from tuner import StudyManager
from tuner.ask_tell import Answer, AskTell, Lease, Reply
from tuner.errors import ConflictError, LeaseLostError, NotFoundError
from tuner.ledger import Owner, StudyState
from tuner.service.desk import owner, request_digest
from tuner.service.identity import Identity, Role
from tuner.service.schemas import as_number

__all__ = ["one_url"]

CLIENT = "w"

ERRORS = {
    "lease_lost": LeaseLostError,
    "already_requested": LeaseLostError,
    "conflict": ConflictError,
    "not_found": NotFoundError,
}


class Beside:
    """Works on the database itself; its requests are the service's clients', too."""

    def __init__(self, ask_tell: AskTell) -> None:
        self._inner = ask_tell

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def ask(self, request: str | None = None, *, params: Mapping[str, Any] | None = None) -> Lease | None:
        named = None if request is None else request_digest(ADMIN, CLIENT, request, 0)
        return self._inner.ask(named, params=params)


class OverHttp(Beside):
    """Says the same through a service."""

    def __init__(self, ask_tell: AskTell, service: Api) -> None:
        super().__init__(ask_tell)
        ask_tell.owner = owner(ADMIN, CLIENT)
        self._service, self._path = service, f"/v1/studies/{ask_tell.study.study_name}"

    def post(self, path: str, body: Any, who: Identity = ADMIN) -> Any:
        response = self._service.as_(who).call("POST", f"{self._path}{path}", json=body)
        answer = response.json()
        if response.is_success:
            return answer
        raise ERRORS[answer["type"].removeprefix("urn:tuner:")](answer["detail"])

    def ask(self, request: str | None = None, *, params: Mapping[str, Any] | None = None) -> Lease | None:
        if params is not None:
            return super().ask(request, params=params)
        named = {} if request is None else {"request_id": request}
        answer = self.post("/trials:ask", {"client_id": CLIENT, **named})
        if not answer["trials"]:
            return None
        (handed,) = answer["trials"]
        lease = self._inner.lease(handed["number"], handed["fence"])
        reports = {each["step"]: float(each["value"]) for each in handed["reports"]}
        assert (handed["params"], handed["attempt"]) == (lease.params, lease.attempt)
        assert repr(reports) == repr(dict(sorted(lease.values.items())))  # NaN is not itself
        return lease

    def report(self, lease: Lease, epoch: int, value: float, *, seconds: float) -> Reply:
        return self.report_many(lease, {epoch: value}, seconds=seconds)

    def report_many(self, lease: Lease, values: Mapping[int, float], *, seconds: float) -> Reply:
        written = [{"step": step, "value": as_number(value)} for step, value in values.items()]
        return self._reply(lease, "report", values=written, seconds=seconds)

    def heartbeat(self, lease: Lease) -> Reply:
        return self._reply(lease, "heartbeat")

    def tell(self, lease: Lease, state: TrialState, value: float | None, *, seconds: float) -> TrialState:
        if value is not None and math.isnan(value):
            return self._inner.tell(lease, state, value, seconds=seconds)
        written = None if value is None else as_number(value)
        told = {"state": state.name.lower(), "value": written, "seconds": seconds}
        ended = self.post(f"/trials/{lease.number}:tell", {"fence": lease.fence, **told})
        return TrialState[ended["state"].upper()]

    def release(self, lease: Lease) -> None:
        assert self.post(f"/trials/{lease.number}:release", {"fence": lease.fence}) == {}

    def adjust(self, number: int, values: Mapping[str, Any], *, by: str) -> None:
        self.post(f"/trials/{number}:adjust", {"values": dict(values)}, Identity(by, Role.ADMIN))

    def stop(self, number: int, *, by: str) -> None:
        self.post(f"/trials/{number}:stop", None, Identity(by, Role.ADMIN))

    def _reply(self, lease: Lease, verb: str, **more: Any) -> Reply:
        answer = self.post(f"/trials/{lease.number}:{verb}", {"fence": lease.fence, **more})
        return Reply(Answer(answer["answer"]), answer["adjustment"], answer["by"])


class HttpMachine(LedgerMachine):
    """Two clients of two services, and a process beside them that is gone."""

    services: ClassVar[tuple[Api, Api]]

    def through(self, ask_tell: AskTell) -> AskTell:
        if ask_tell.owner == self.gone:
            return cast("AskTell", Beside(ask_tell))
        service = self.services[ask_tell.owner == "b"]
        service.app.state.desk.study(self.name).max_attempts = MAX_ATTEMPTS
        return cast("AskTell", OverHttp(ask_tell, service))

    def enqueue_at(self, x: float) -> None:
        self.http("/trials:enqueue", {"params": {"x": x}})

    def change(self, state: StudyState) -> None:
        verbs = {StudyState.OPEN: "resume", StudyState.PAUSED: "pause", StudyState.STOPPED: "stop"}
        answer = self.http(f":{verbs[state]}", None)
        assert answer["state"] == state.value

    def http(self, path: str, body: Any) -> Any:
        return cast("OverHttp", self.owners[1]).post(path, body, Identity("eve", Role.ADMIN))


@pytest.fixture
def services(one_url: str) -> Iterator[tuple[Api, Api]]:
    with ExitStack() as stack:
        first, second = (stack.enter_context(serving(one_url, reap_seconds=3600)) for _ in range(2))
        yield first, second


def test_the_service_does_what_a_simple_model_says(one_url: str, services: tuple[Api, Api]) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    here = Owner.here()

    class Bound(HttpMachine):
        managers = (StudyManager(one_url), StudyManager(one_url))

    Bound.services, Bound.gone = services, str(Owner(here.host, gone.pid, here.started))
    examples = settings.default.max_examples // 10  # type: ignore[union-attr]
    run_state_machine_as_test(Bound, settings=settings(max_examples=examples, stateful_step_count=30))
