"""Comparisons over HTTP: create, list, look at; and studies carried from one database to another."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse, JSONResponse

from tuner.comparison import ComparisonResult
from tuner.definition import ComparisonDefinition
from tuner.errors import DefinitionError, NotFoundError
from tuner.report import finite, page
from tuner.service.desk import Desk, DeskOf, request_digest
from tuner.service.identity import Identity
from tuner.service.paging import PageSize, PageToken, next_token, start_of
from tuner.service.paths import STUDY, ComparisonName, StudyName
from tuner.service.problems import responses
from tuner.service.schemas import ComparisonBrief, Comparisons, ComparisonView, ExportedStudy, StudyView
from tuner.service.studies import Viewer, operator, view_of
from tuner.service.trials import Key, Operator
from tuner.transfer import StudyDocument

__all__ = ["router"]

MOST_MEMBERS = 2000

router = APIRouter(prefix="/v1", tags=["comparisons"])


@router.post(
    "/comparisons",
    status_code=201,
    responses={
        **responses(409),
        200: {"model": ComparisonView, "description": "It was there already, the same."},
    },
)
def create_comparison(
    definition: ComparisonDefinition, who: Operator, desk: DeskOf, response: Response
) -> ComparisonView:
    """Create a comparison: a study for each arm and seed. Workers that take any study run them."""
    who.check_study(definition.name)
    members = len(definition.comparison.arms) * definition.comparison.seeds
    if members > MOST_MEMBERS:
        raise DefinitionError(
            f"a comparison has at most {MOST_MEMBERS} studies (arms × seeds); got {members}"
        )
    try:
        is_new = desk.manager.create_comparison(definition)
    except NotFoundError as error:  # no such objective
        raise DefinitionError(error.public) from None
    if not is_new:
        response.status_code = 200
    return _view(desk, definition)


@router.get("/comparisons", responses=responses())
def comparisons(
    who: Viewer, desk: DeskOf, page_size: PageSize = 100, page_token: PageToken = None
) -> Comparisons:
    """Comparisons by name, a page at a time."""
    names = [name for name in desk.manager.comparison_names() if who.sees(name)]
    first = start_of(page_token) + 1
    shown = names[first : first + page_size]
    last = first + len(shown)
    return Comparisons(
        comparisons=[_brief(desk.manager.comparison(name)) for name in shown],
        next_page_token=next_token(last - 1 if last < len(names) else None),
    )


@router.get("/comparisons/{name:segment}", responses=responses(404))
def comparison(name: ComparisonName, who: Viewer, desk: DeskOf) -> ComparisonView:
    """How far a comparison is, its ranking and its verdict."""
    return _view(desk, _seen(desk, who, name))


@router.get("/comparisons/{name:segment}/report", response_class=HTMLResponse, responses=responses(404))
def comparison_report(name: ComparisonName, who: Viewer, desk: DeskOf) -> HTMLResponse:
    """The report as one page."""
    return HTMLResponse(page(desk.manager.result(_seen(desk, who, name))))


@router.post(
    f"{STUDY}:export",
    dependencies=operator,
    response_class=JSONResponse,
    responses={**responses(404), 200: {"model": ExportedStudy}},
)
def export_study(study: StudyName, desk: DeskOf) -> JSONResponse:
    """A study with all of its trials, as one document."""
    return JSONResponse(desk.manager.export_study(study))


@router.post("/studies:import", status_code=201, responses=responses(409))
def import_study(document: StudyDocument, who: Operator, desk: DeskOf, key: Key = None) -> StudyView:
    """Make the study that a document describes; never over one that is there."""
    name = document.definition.name
    who.check_study(name)
    try:
        request_id = None if key is None else request_digest(who, "", "import", key)
        desk.manager.import_study(document, request_id=request_id)
    except NotFoundError as error:  # no such objective
        raise DefinitionError(error.public) from None
    return view_of(desk, name)


def _seen(desk: Desk, who: Identity, name: str) -> ComparisonDefinition:
    who.check_study(name)
    return desk.manager.comparison(name)


def _brief(definition: ComparisonDefinition) -> ComparisonBrief:
    arms = [arm.name for arm in definition.comparison.arms]
    return ComparisonBrief(name=definition.name, arms=arms, seeds=definition.comparison.seeds)


def _view(desk: Desk, definition: ComparisonDefinition) -> ComparisonView:
    progress = desk.manager.progress(definition)
    members = [
        {
            "study": member.definition.name,
            "arm": member.arm,
            "seed": member.seed,
            "state": spent.state.value,
            "trials": spent.ended,
            "is_finished": is_finished,
        }
        for member, (spent, is_finished) in zip(definition.members, progress, strict=True)
    ]
    result: ComparisonResult = desk.manager.result(definition)
    found: dict[str, Any] = finite(result.to_dict())
    return ComparisonView.model_validate(
        {
            **_brief(definition).model_dump(),
            "status": "finished" if all(member["is_finished"] for member in members) else "running",
            "members": members,
            "compared_seeds": found["seeds"],
            **{name: found[name] for name in ("verdict", "winner", "friedman_p", "ranking")},
            "definition": definition.dump(),
        }
    )
