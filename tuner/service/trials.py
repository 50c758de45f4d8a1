"""Trials over HTTP: ask, report, tell, and all that a person may want of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from optuna.distributions import distribution_to_json
from optuna.trial import FrozenTrial, TrialState

from tuner.adjustment import check_adjustment
from tuner.ask_tell import AskTell, Lease, known_params
from tuner.ask_tell import Reply as AskTellReply
from tuner.catalogue import find_objective
from tuner.errors import DefinitionError, LeaseLostError, NotFoundError
from tuner.ledger import Candidate, StudyState
from tuner.population import drop_old_checkpoints
from tuner.samplers import PopulationSettings, segment_of
from tuner.service.desk import Desk, DeskOf, command_key, owner, request_digest
from tuner.service.identity import Identity, Role, needs
from tuner.service.paging import PageSize, PageToken, next_token, start_of
from tuner.service.paths import STUDY, TRIAL, Number, StudyName
from tuner.service.problems import AlreadyRequestedError, responses
from tuner.service.route import Route, takes_long
from tuner.service.schemas import (
    LARGEST,
    Adjust,
    Annotate,
    Ask,
    AskAny,
    Asked,
    AskedAny,
    Empty,
    Ended,
    Enqueue,
    Fenced,
    Handed,
    Reply,
    Report,
    Tell,
    Trials,
    TrialView,
    as_number,
    number_of,
)
from tuner.storage import Mode

__all__ = ["router", "view"]

MOST_REPORTS = 100_000
"""Of one trial."""

MOST_ATTRS = 1000
"""Of one trial."""

MOST_WAITING = 10_000
"""Enqueued trials of one study that have not begun."""

router = APIRouter(prefix="/v1", tags=["trials"], route_class=Route)

Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=128)]
Worker = Annotated[Identity, Depends(needs(Role.WORKER))]
Operator = Annotated[Identity, Depends(needs(Role.OPERATOR))]
viewer = [Depends(needs(Role.VIEWER))]
worker = [Depends(needs(Role.WORKER))]


@router.post(f"{STUDY}/trials:ask", responses=responses(404, 409))
@takes_long
def ask(study: StudyName, body: Ask, who: Worker, desk: DeskOf, key: Key = None) -> Asked:
    """Hand out trials to run, each under a lease. The same request again gets the same."""
    request = body.request_id or key

    def hand(ask_tell: AskTell) -> Asked:
        leases = []
        for index in range(body.count):
            request_id = None if request is None else request_digest(who, body.client_id, request, index)
            lease = _ask(ask_tell, request_id, owner(who, body.client_id))
            if lease is None:
                break
            desk.remember(study, lease)
            leases.append(lease)
        return Asked(
            trials=[_handed(ask_tell, lease) for lease in leases],
            state=ask_tell.seen_state.value,
            is_finished=not leases and ask_tell.is_finished(),
        )

    return desk.asking(study, hand)


@router.post("/trials:ask", responses=responses(409))
@takes_long
def ask_any(body: AskAny, who: Worker, desk: DeskOf, key: Key = None) -> AskedAny:
    """Hand out a trial of any open study whose objective the worker has; studies take turns."""
    request = body.request_id or key
    request_id = None if request is None else request_digest(who, body.client_id, "any", request)
    ledger = desk.manager.ledger
    with ledger.transaction(Mode.READ) as session:
        seen = [
            candidate
            for candidate in ledger.candidates(session, sorted(set(body.objectives)))
            if candidate.name.startswith(body.prefix) and who.sees(candidate.name)
        ]
        before = None
        if request_id is not None:
            before = ledger.asked_before(session, [candidate.study_id for candidate in seen], request_id)
    for candidate in seen:
        if candidate.study_id == before or (before is None and _may_have_trials(desk, candidate)):
            found = _ask_one(desk, candidate, body, request_id, owner(who, body.client_id))
            if found is not None:
                return found
    return AskedAny(trial=None, study=None)


@router.post(
    f"{TRIAL}:report",
    dependencies=worker,
    responses=responses(404, 409),
)
def report(study: StudyName, number: Number, body: Report, desk: DeskOf) -> Reply:
    """Record values by step, keep the lease, and hear whether to go on. The same again gets the same, counted once.

    With several objectives too it is one number a step, as a record: nobody prunes by it.
    """
    ask_tell, lease = desk.lease(study, number, body.fence)
    values = {reported.step: number_of(reported.value) for reported in body.values}
    if len(lease.values.keys() | values.keys()) > MOST_REPORTS:
        raise DefinitionError(f"a trial has at most {MOST_REPORTS} reports")
    return _reply(ask_tell.report_many(lease, values, seconds=body.seconds))


@router.post(
    f"{TRIAL}:heartbeat",
    dependencies=worker,
    responses=responses(404, 409),
)
def heartbeat(study: StudyName, number: Number, body: Fenced, desk: DeskOf) -> Reply:
    """Keep the lease without news. Says stop or adjust if the next report will."""
    ask_tell, lease = desk.lease(study, number, body.fence)
    return _reply(ask_tell.heartbeat(lease))


@router.post(
    f"{TRIAL}:tell",
    dependencies=worker,
    responses=responses(404, 409),
)
def tell(study: StudyName, number: Number, body: Tell, desk: DeskOf) -> Ended:
    """End a trial with its value, or one for each objective.

    The same again gets the same; another is a conflict, a late one is refused.
    """
    ask_tell, lease = desk.lease(study, number, body.fence)
    state = ask_tell.tell(lease, TrialState[body.state.upper()], body.told, body.attrs, seconds=body.seconds)
    desk.forget(study, lease)
    if state is TrialState.COMPLETE and isinstance(ask_tell.definition.sampler, PopulationSettings):
        drop_old_checkpoints(ask_tell)
    return Ended(state=_state(state))


@router.post(
    f"{TRIAL}:release",
    dependencies=worker,
    responses=responses(404, 409),
)
def release(study: StudyName, number: Number, body: Fenced, desk: DeskOf) -> Empty:
    """Give a trial back unfinished: it is handed out again, and no attempt is held against it."""
    ask_tell, lease = desk.lease(study, number, body.fence)
    ask_tell.release(lease)
    desk.forget(study, lease)
    return Empty()


@router.post(
    f"{TRIAL}:annotate",
    dependencies=worker,
    responses=responses(404, 409),
)
def annotate(study: StudyName, number: Number, body: Annotate, desk: DeskOf) -> Empty:
    """Set user attributes of a running trial."""
    ask_tell, lease = desk.lease(study, number, body.fence)
    if len(ask_tell.user_attrs(lease).keys() | body.attrs.keys()) > MOST_ATTRS:
        raise DefinitionError(f"a trial has at most {MOST_ATTRS} attributes")
    ask_tell.set_attrs(lease, body.attrs)
    return Empty()


async def _body(request: Request) -> bytes:
    return await request.body()


CHECKPOINT = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}


@router.put(
    f"{TRIAL}/checkpoint",
    dependencies=worker,
    responses=responses(404, 409),
    openapi_extra={"requestBody": {**CHECKPOINT, "required": True}},
)
def save_checkpoint(  # noqa: PLR0917 - FastAPI gives them by name
    study: StudyName,
    number: Number,
    fence: Annotated[int, Query(ge=1, le=LARGEST)],
    epoch: Annotated[int, Query(ge=0, le=LARGEST)],
    data: Annotated[bytes, Depends(_body)],
    desk: DeskOf,
) -> Empty:
    """Keep the training's state after an epoch, instead of an earlier one."""
    if not data:
        raise DefinitionError("a checkpoint needs a body; got none")
    ask_tell, lease = desk.lease(study, number, fence)
    ask_tell.save_checkpoint(lease, epoch, data)
    return Empty()


@router.get(
    f"{TRIAL}/checkpoint",
    dependencies=worker,
    response_class=Response,
    responses={
        **responses(404),
        200: {"description": "The training's state; X-Epoch says after which epoch.", **CHECKPOINT},
    },
)
def checkpoint(study: StudyName, number: Number, desk: DeskOf) -> Response:
    """The last checkpoint of a trial, for whoever continues it."""
    found = desk.study(study).checkpoint(number)
    if found is None:
        raise NotFoundError(f"trial {number} of {study} has no checkpoint")
    epoch, data = found
    return Response(data, media_type="application/octet-stream", headers={"X-Epoch": str(epoch)})


@router.post(f"{TRIAL}:adjust", responses=responses(404, 409))
def adjust(  # noqa: PLR0917 - FastAPI gives them by name
    study: StudyName, number: Number, body: Adjust, who: Operator, desk: DeskOf, key: Key = None
) -> Empty:
    """Let a running trial go on with other hyperparameters after its next report."""
    ask_tell = desk.study(study)
    named = command_key(who, key, "adjust", study, number)
    ask_tell.adjust(number, _checked(ask_tell, body.values), by=who.name or "hand", key=named)
    return Empty()


@router.post(f"{TRIAL}:stop", responses=responses(404, 409))
def stop(study: StudyName, number: Number, who: Operator, desk: DeskOf, key: Key = None) -> Empty:
    """Let a running trial end with its next report."""
    named = command_key(who, key, "stop", study, number)
    desk.study(study).stop(number, by=who.name or "hand", key=named)
    return Empty()


@router.post(f"{STUDY}/trials:enqueue", status_code=201, responses=responses(404, 409))
def enqueue(study: StudyName, body: Enqueue, who: Operator, desk: DeskOf, key: Key = None) -> TrialView:
    """Let a point chosen by hand be the next to run."""
    ask_tell = desk.study(study)
    ledger, study_id = ask_tell.ledger, ask_tell.study._study_id
    with ledger.transaction(Mode.READ) as session:
        waiting = ledger.database.counts(session, study_id).get(TrialState.WAITING, 0)
    if waiting >= MOST_WAITING:
        raise DefinitionError(f"at most {MOST_WAITING} trials may wait; {waiting} do")
    request_id = None if key is None else request_digest(who, "", "enqueue", key)
    number = ask_tell.enqueue(body.params, body.attrs, request_id=request_id)
    return view(_trial(ask_tell, number))


@router.get(f"{STUDY}/trials", dependencies=viewer, responses=responses(404))
def trials(
    study: StudyName,
    desk: DeskOf,
    state: Annotated[
        list[Literal["running", "waiting", "complete", "pruned", "fail"]] | None, Query(max_length=5)
    ] = None,
    page_size: PageSize = 100,
    page_token: PageToken = None,
) -> Trials:
    """Trials by number, a page at a time."""
    ledger, study_id = desk.manager.ledger, desk.manager.load(study)._study_id
    states = [TrialState[name.upper()] for name in state or ()]
    with ledger.transaction(Mode.READ) as session:
        found = ledger.database.page(
            session, study_id, after=start_of(page_token), limit=page_size + 1, states=states
        )
        kept = ledger.checkpointed(session, study_id)
    page = found[:page_size]
    return Trials(
        trials=[view(trial, kept) for trial in page],
        next_page_token=next_token(page[-1].number if len(found) > page_size else None),
    )


@router.get(TRIAL, dependencies=viewer, responses=responses(404))
def trial(study: StudyName, number: Number, desk: DeskOf) -> TrialView:
    """One trial."""
    ledger, study_id = desk.manager.ledger, desk.manager.load(study)._study_id
    with ledger.transaction(Mode.READ) as session:
        trial_id = ledger.database.trial_id(session, study_id, number)
        if trial_id is None:
            raise NotFoundError(f"{study} has no trial {number}")
        return view(ledger.database.trial(session, trial_id), ledger.checkpointed(session, study_id))


def view(trial: FrozenTrial, kept: Mapping[int, int] = MappingProxyType({})) -> TrialView:
    """A trial as it is shown; `kept` has the epochs of the checkpoints that there are, by the ids of their trials."""
    values = None if trial.values is None else [as_number(value) for value in trial.values]
    failure = trial.user_attrs.get("failure")
    return TrialView.model_validate(
        {
            "number": trial.number,
            "state": _state(trial.state),
            "value": values[0] if values and len(values) == 1 else None,
            "values": values,
            "params": known_params(trial),
            "user_attrs": trial.user_attrs,
            "reports": _reports(trial.intermediate_values),
            "started": _time(trial.datetime_start),
            "ended": _time(trial.datetime_complete),
            "failure": failure if isinstance(failure, str) else None,
            "checkpoint_epoch": kept.get(trial._trial_id),
        }
    )


def _time(local: datetime | None) -> str | None:
    """A time of Optuna's, which are this machine's own, for clients in other zones."""
    return None if local is None else local.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _ask(ask_tell: AskTell, request_id: str | None, who: str, *, alone: bool = False) -> Lease | None:
    try:
        return ask_tell.ask(request_id, owner=who, alone=alone)
    except LeaseLostError as error:
        raise AlreadyRequestedError(f"{error}; ask with another request id") from None


def _ask_one(
    desk: Desk, candidate: Candidate, body: AskAny, request_id: str | None, who: str
) -> AskedAny | None:
    """A trial of one study; None if it has none."""
    try:
        ask_tell = desk.study(candidate.name)
        if ask_tell.definition.objective not in body.objectives:
            return None
        # of a comparison each study's trials run one after the other: so the result does not depend on the workers
        lease = _ask(ask_tell, request_id, who, alone=candidate.is_member)
    except NotFoundError:  # it was deleted meanwhile
        return None
    if lease is None:
        if ask_tell.is_finished():
            desk.note_finished(candidate.study_id, candidate.name)
        return None
    desk.remember(candidate.name, lease)
    return AskedAny(trial=_handed(ask_tell, lease), study=candidate.name)


def _may_have_trials(desk: Desk, candidate: Candidate) -> bool:
    return (
        candidate.state is StudyState.OPEN
        and not (candidate.is_busy and candidate.is_member)
        and not desk.is_finished(candidate.study_id, candidate.name)
    )


def _handed(ask_tell: AskTell, lease: Lease) -> Handed:
    definition = ask_tell.definition
    segment = None
    if isinstance(definition.sampler, PopulationSettings):
        segment = segment_of(ask_tell.study._storage.get_trial(lease.trial_id).system_attrs)
    return Handed.model_validate(
        {
            "study": definition.name,
            "number": lease.number,
            "fence": lease.fence,
            "attempt": lease.attempt,
            "lease_seconds": ask_tell.ledger.lease_seconds,
            "params": lease.params,
            "distributions": {
                name: json.loads(distribution_to_json(distribution))
                for name, distribution in lease.distributions.items()
            },
            "reports": _reports(lease.values),
            "seed": {
                "study": definition.seed,
                "trial": lease.number if segment is None else segment.born,
            },
            "objective": definition.objective,
            "direction": ", ".join(definition.directions),
            "objectives": [objective.model_dump() for objective in definition.objectives],
            "fixed": definition.fixed,
            "segment": None if segment is None else segment.dump(),
        }
    )


def _reports(values: dict[int, float]) -> list[dict[str, Any]]:
    return [{"step": step, "value": as_number(value)} for step, value in sorted(values.items())]


def _reply(reply: AskTellReply) -> Reply:
    return Reply(answer=reply.answer.value, adjustment=dict(reply.adjustment), by=reply.by)


def _state(state: TrialState) -> Any:
    return state.name.lower()


def _checked(ask_tell: AskTell, values: dict[str, Any]) -> dict[str, Any]:
    """An adjustment, checked where the objective is known here; else its worker refuses what it cannot do."""
    name = ask_tell.definition.objective
    try:
        return values if name is None else check_adjustment(find_objective(name), values)
    except NotFoundError:
        return values


def _trial(ask_tell: AskTell, number: int) -> FrozenTrial:
    database, study_id = ask_tell.ledger.database, ask_tell.study._study_id
    with ask_tell.ledger.transaction(Mode.READ) as session:
        return database.trial(session, cast("int", database.trial_id(session, study_id, number)))
