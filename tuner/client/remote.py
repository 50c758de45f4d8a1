"""A study behind a service, with the methods by which `tuner.trial_run` runs the trials of one in a database."""

from __future__ import annotations

import itertools
import os
import re
import socket
import uuid
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from optuna.trial import FrozenTrial, TrialState

from tuner.ask_tell import Answer, Lease, Reply, Values, as_values, check_values, without_nan
from tuner.client.documents import (
    AskedTrials,
    HandedTrial,
    RemoteTrial,
    ReplyDocument,
    StudyStatus,
    read,
    wire_number,
)
from tuner.client.http import Transport
from tuner.definition import StudyDefinition
from tuner.errors import NotFoundError
from tuner.samplers import Segment

__all__ = ["LEASE_SECONDS", "RemoteAskTell", "study_path", "this_process"]

LEASE_SECONDS = 60.0
"""How long a lease lasts, until the service has said it."""

MOST_VALUES = 1000
"""So many values go into one report."""

SHORT_PATIENCE = 15.0
"""For so many seconds is tried again what can be left: to give a trial back, as leases run out, and a checkpoint."""

LONGEST_TEXT = 4096
"""Characters of a text that is told with a trial; of a longer one, as a traceback, the end is."""


class RemoteAskTell:
    """Ask and tell for one study of a service; any number of threads may share it.

    Args:
        transport: the way to the service.
        study: its name.
        client_id: who asks, for people; request ids are its own. By default this process.

    Raises:
        NotFoundError: there is no such study, or it was not made from a definition.
    """

    def __init__(self, transport: Transport, study: str, client_id: str | None = None) -> None:
        self.transport, self.client_id = transport, client_id or this_process()
        status: StudyStatus = read(StudyStatus, transport.get(study_path(study)))
        if status.definition is None:
            raise NotFoundError(f"study {study!r} was not made from a definition: it cannot be run from here")
        self.definition: StudyDefinition = read(StudyDefinition, status.definition)
        self.lease_seconds = LEASE_SECONDS
        self._segments: dict[tuple[int, int], Segment] = {}
        self.is_finished = False
        """Whether the last ask said that there will be no further trial."""
        self.state = status.state
        """The study's, as the last ask has seen it."""

    @property
    def short_patience(self) -> float:
        """For how many seconds is tried again what can be left, as leases run out."""
        return min(self.transport.patience, SHORT_PATIENCE)

    def ask(self, request_id: str | None = None, *, patience: float | None = None) -> Lease | None:
        """A trial to run; None if there is none now (`state` and `is_finished` say more).

        Args:
            request_id: names this request: asked again with the same, it is the same trial.
            patience: for how many seconds it is tried again, instead of the transport's.

        Raises:
            LeaseLostError: the request was handed a trial before, which was lost or given back: ask with another.
            ServiceUnavailableError: the service does not answer. So in all other methods.
        """
        body = {"client_id": self.client_id, "request_id": request_id or uuid.uuid4().hex}
        asked: AskedTrials = read(AskedTrials, self._post("trials:ask", body, patience=patience))
        self.state, self.is_finished = asked.state, asked.is_finished
        return self.take(asked.trials[0]) if asked.trials else None

    def take(self, handed: HandedTrial) -> Lease:
        """Hold a trial of this study that was handed out, here or by an ask of any study."""
        self.lease_seconds = handed.lease_seconds or self.lease_seconds
        if (segment := handed.population_segment) is not None:
            self._segments[handed.number, handed.fence] = segment
        return handed.lease

    def report(self, lease: Lease, epoch: int, value: float, *, seconds: float = 0.0) -> Reply:
        """Record the value after an epoch, and say whether to go on; see `AskTell.report`."""
        return self.report_many(lease, {epoch: value}, seconds=seconds)

    def report_many(self, lease: Lease, values: Mapping[int, float], *, seconds: float = 0.0) -> Reply:
        """Record values by epoch, and say whether to go on; see `AskTell.report_many`."""
        if not values:
            raise ValueError("a report needs at least one epoch")
        replies = []
        for part in _parts(dict(sorted(values.items()))):
            pairs = [{"step": epoch, "value": wire_number(value)} for epoch, value in part.items()]
            answer = self._post_trial(lease, "report", {"values": pairs, "seconds": float(seconds)})
            replies.append(_reply(answer))
            seconds = 0.0
            lease.values |= {epoch: float(value) for epoch, value in part.items()}
        reply = _together(replies)
        if reply.answer is Answer.STOP and not reply.by:  # the budget's end: what lay beyond was not recorded
            recorded = {report.step for report in self.trial(lease.number).reports}
            lease.values = {epoch: value for epoch, value in lease.values.items() if epoch in recorded}
        return reply

    def heartbeat(self, lease: Lease) -> Reply:
        """Renew the lease without news; not tried again, as the next one comes soon."""
        return _reply(self._post_trial(lease, "heartbeat", {}, patience=0.0))

    def reap(self) -> int:
        """Lost workers' leases are ended by the service itself."""
        return 0

    def tell(
        self,
        lease: Lease,
        state: TrialState,
        values: Values | None,
        attrs: Mapping[str, Any] | None = None,
        *,
        seconds: float = 0.0,
    ) -> TrialState:
        """End the trial with its value or values, and attributes; the state that it ended in. See `AskTell.tell`."""
        given = as_values(values)
        check_values(self.definition, lease, state, given)
        state, given, attrs = without_nan(self.definition, state, given, attrs or {})
        body: dict[str, Any] = {
            "state": state.name.lower(),
            "seconds": float(seconds),
            "attrs": _short(attrs),
        }
        if given is not None and self.definition.objectives:
            body["values"] = [wire_number(value) for value in given]
        elif given is not None:
            body["value"] = wire_number(given[0])
        answer = self._post_trial(lease, "tell", body)
        self._segments.pop((lease.number, lease.fence), None)
        return TrialState[str(answer["state"]).upper()]

    def release(self, lease: Lease) -> None:
        """Give the trial back unfinished: the next ask hands it out again. Not tried for long: leases run out."""
        self._post_trial(lease, "release", {}, patience=self.short_patience)

    def user_attrs(self, lease: Lease) -> dict[str, Any]:
        """The user attributes of a trial, earlier attempts' included."""
        return dict(self.trial(lease.number).user_attrs)

    def trial(self, number: int) -> RemoteTrial:
        """A trial of the study, as the service has it.

        Raises:
            NotFoundError: there is no such trial.
        """
        trial: RemoteTrial = read(RemoteTrial, self.transport.get(self._path(f"trials/{number}")))
        return trial

    def set_attrs(self, lease: Lease, attrs: Mapping[str, Any]) -> None:
        """Set user attributes of a running trial."""
        self._post_trial(lease, "annotate", {"attrs": dict(attrs)})

    def segment(self, lease: Lease) -> Segment | None:
        """The trial's place in its population; None where it is a whole training."""
        return self._segments.get((lease.number, lease.fence))

    def save_checkpoint(self, lease: Lease, epoch: int, data: bytes) -> None:
        """Keep the training's state after `epoch`, instead of an earlier one; not tried for long, as it can wait."""
        self.transport.send(
            "PUT",
            self._path(f"trials/{lease.number}/checkpoint"),
            query={"fence": lease.fence, "epoch": epoch},
            content=data,
            media_type="application/octet-stream",
            patience=self.short_patience,
        )

    def checkpoint(self, number: int) -> tuple[int, bytes] | None:
        """Epoch and state of the last checkpoint of trial `number`; None if there is none."""
        try:
            answer = self.transport.send("GET", self._path(f"trials/{number}/checkpoint"))
        except NotFoundError:
            return None
        return int(answer.headers["X-Epoch"]), answer.content

    def drop_checkpoints(self, needed: Callable[[Sequence[FrozenTrial]], Container[int]]) -> None:
        """What nobody needs any more is for the service to delete."""

    def _path(self, rest: str) -> str:
        return f"{study_path(self.definition.name)}/{rest}"

    def _post(self, rest: str, body: Mapping[str, Any], *, patience: float | None = None) -> Any:
        return self.transport.post(self._path(rest), body, patience=patience)

    def _post_trial(
        self, lease: Lease, verb: str, body: Mapping[str, Any], *, patience: float | None = None
    ) -> Any:
        with_fence = {"fence": lease.fence, **body}
        return self._post(f"trials/{lease.number}:{verb}", with_fence, patience=patience)


def study_path(study: str) -> str:
    """Where a study is."""
    return f"/v1/studies/{quote(study, safe='')}"


def this_process() -> str:
    """The name of this process as a client, as people may look for it."""
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:100].lstrip("._-")
    return f"{host or 'host'}.{os.getpid()}"


def _reply(answer: Any) -> Reply:
    document: ReplyDocument = read(ReplyDocument, answer)
    return document.reply


def _together(replies: Sequence[Reply]) -> Reply:
    """The reply to a report that was sent in parts: the last, and what a person wanted that came with another."""
    last, wanted = replies[-1], [reply for reply in replies if reply.by]
    if not wanted or (last.answer is Answer.STOP and not last.by):
        return last
    if (stop := next((reply for reply in wanted if reply.answer is Answer.STOP), None)) is not None:
        return stop
    adjustment = {name: value for reply in wanted for name, value in reply.adjustment.items()}
    return Reply(Answer.ADJUST, adjustment, ", ".join(dict.fromkeys(reply.by for reply in wanted)))


def _parts(values: Mapping[int, float]) -> Iterator[dict[int, float]]:
    items = iter(values.items())
    while part := dict(itertools.islice(items, MOST_VALUES)):
        yield part


def _short(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes whose texts are as a service takes them, whatever an objective has raised."""
    return {name: _text(value) if isinstance(value, str) else value for name, value in attrs.items()}


def _text(text: str) -> str:
    """Without NUL and halves of surrogate pairs, and not too long: of a traceback, the end says most."""
    shown = text.replace("\0", r"\0").encode(errors="backslashreplace").decode()
    return shown if len(shown) <= LONGEST_TEXT else f"… {shown[-LONGEST_TEXT:]}"
