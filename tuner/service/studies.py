"""Studies over HTTP: create, list, look at, pause, resume, stop, archive."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Sequence
from typing import Annotated

import optuna
from fastapi import APIRouter, Depends, Query, Response
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError

from tuner.definition import StudyDefinition
from tuner.errors import DefinitionError, NotFoundError
from tuner.explain import near_miss
from tuner.ledger import ARCHIVED, Spent
from tuner.manager import Described, StudyManager, definition_of, standing
from tuner.service.desk import Desk, DeskOf
from tuner.service.identity import Identity, Role, needs
from tuner.service.paging import PageSize, PageToken, next_token, start_of
from tuner.service.paths import STUDY, StudyName
from tuner.service.problems import responses
from tuner.service.schemas import Best, Importances, Studies, StudyView, as_number
from tuner.service.trials import Operator, view, viewer
from tuner.storage import Mode

__all__ = ["router", "study_views", "view_of"]

MOST_FOR_IMPORTANCES = 10_000
"""So many completed trials, the latest, are looked at for importances."""

router = APIRouter(prefix="/v1", tags=["studies"])

operator = [Depends(needs(Role.OPERATOR))]
Viewer = Annotated[Identity, Depends(needs(Role.VIEWER))]


@router.post(
    "/studies",
    status_code=201,
    responses={**responses(409), 200: {"model": StudyView, "description": "It was there already, the same."}},
)
def create_study(definition: StudyDefinition, who: Operator, desk: DeskOf, response: Response) -> StudyView:
    """Create a study. The same again is answered with 200, another one under the same name with 409."""
    who.check_study(definition.name)
    if definition.objective is None and not len(definition.space):
        raise DefinitionError(
            "space: a study without an objective needs a space of one parameter or more; "
            "its trials would have none"
        )
    try:
        is_new = desk.manager.ensure(definition)
    except NotFoundError as error:  # no such objective
        raise DefinitionError(error.public) from None
    if not is_new:
        response.status_code = 200
    return view_of(desk, definition.name)


@router.get("/studies", responses=responses())
def studies(
    who: Viewer,
    desk: DeskOf,
    archived: Annotated[bool, Query(description="Archived ones too.")] = False,
    page_size: PageSize = 100,
    page_token: PageToken = None,
) -> Studies:
    """Studies, oldest first, a page at a time."""
    after = start_of(page_token)
    found = [
        study
        for study in desk.manager.all_studies()
        if study._study_id > after
        and who.sees(study.study_name)
        and (archived or not study.user_attrs.get(ARCHIVED))
    ]
    page = found[:page_size]
    return Studies(
        studies=study_views(desk.manager, page),
        next_page_token=next_token(page[-1]._study_id if len(found) > page_size else None),
    )


@router.get(STUDY, dependencies=viewer, responses=responses(404))
def study(study: StudyName, desk: DeskOf) -> StudyView:
    """One study."""
    return view_of(desk, study)


@router.post(f"{STUDY}:pause", dependencies=operator, responses=responses(404, 409))
def pause_study(study: StudyName, desk: DeskOf) -> StudyView:
    """Let no trial begin; those that run go on."""
    desk.manager.pause(study)
    return view_of(desk, study)


@router.post(f"{STUDY}:resume", dependencies=operator, responses=responses(404, 409))
def resume_study(study: StudyName, desk: DeskOf) -> StudyView:
    """Let trials of a paused or stopped study begin again."""
    desk.manager.resume(study)
    return view_of(desk, study)


@router.post(f"{STUDY}:stop", responses=responses(404, 409))
def stop_study(study: StudyName, who: Operator, desk: DeskOf) -> StudyView:
    """Let no trial begin, and those that run end with their next report."""
    desk.manager.stop_study(study, by=who.name)
    return view_of(desk, study)


@router.post(f"{STUDY}:archive", dependencies=operator, responses=responses(404))
def archive_study(study: StudyName, desk: DeskOf) -> StudyView:
    """Take a study out of the list; no trial of it begins."""
    desk.manager.archive(study)
    return view_of(desk, study)


@router.post(f"{STUDY}:unarchive", dependencies=operator, responses=responses(404))
def unarchive_study(study: StudyName, desk: DeskOf) -> StudyView:
    """Put a study back into the list."""
    desk.manager.archive(study, undo=True)
    return view_of(desk, study)


@router.get(f"{STUDY}/best", dependencies=viewer, responses=responses(404))
def best(study: StudyName, desk: DeskOf) -> Best:
    """The best trial, or with several objectives the Pareto front; none before the first completed one."""
    found = desk.manager.load(study)
    if len(found.directions) > 1:
        return Best(trials=[view(trial) for trial in desk.manager.best(study)])
    ledger = desk.manager.ledger
    with ledger.transaction(Mode.READ) as session:
        trial = ledger.database.best(session, found._study_id, found.direction)
    return Best(trials=[] if trial is None else [view(trial)])


@router.get(f"{STUDY}/importances", dependencies=viewer, responses=responses(404))
def importances(
    study: StudyName,
    desk: DeskOf,
    objective: Annotated[
        str | None, Query(max_length=128, description="For which of several, by its name.")
    ] = None,
) -> Importances:
    """By parameter, its share of what decides whether a trial is among the best (PED-ANOVA)."""
    found = desk.manager.load(study)
    place = _place(found, objective)
    ledger = desk.manager.ledger
    with ledger.transaction(Mode.READ) as session:
        complete = ledger.database.latest(session, found._study_id, MOST_FOR_IMPORTANCES, TrialState.COMPLETE)
    chosen = [_of_one(trial, place) for trial in complete if trial.params]
    return Importances(importances=_importances(found.directions[place], chosen), trials=len(chosen))


def view_of(desk: Desk, name: str) -> StudyView:
    """A study as it is shown, by its name."""
    return _study_view(desk.manager, desk.manager.load(name))


def study_views(manager: StudyManager, studies: Sequence[Described]) -> list[StudyView]:
    """Studies as clients see them, without those that somebody has deleted since they were listed."""
    found = []
    for study in studies:
        with contextlib.suppress(NotFoundError):
            found.append(_study_view(manager, study))
    return found


def _study_view(manager: StudyManager, study: Described) -> StudyView:
    """A study as it is shown."""
    ledger, study_id, definition = manager.ledger, study._study_id, _definition(study)
    with ledger.transaction(Mode.READ) as session:
        how = standing(ledger, session, study, definition)
        counts = ledger.database.counts(session, study_id)
        is_single = len(study.directions) == 1
        best = ledger.database.best(session, study_id, study.directions[0]) if is_single else None
    front = None if is_single else len(manager.best(study.study_name))
    spent = how.spent
    return StudyView.model_validate(
        {
            "name": study.study_name,
            "state": how.state.value,
            "status": how.status,
            "is_finished": how.is_finished,
            "objective": None if definition is None else definition.objective,
            "direction": ", ".join(direction.name.lower() for direction in study.directions),
            "objectives": [] if is_single else _objectives(manager.load(study.study_name)),
            "front": front,
            "sampler": None if definition is None else definition.sampler.name,
            "pruner": None if definition is None else definition.pruner.name,
            "counts": {state.name.lower(): counts.get(state, 0) for state in TrialState},
            "best": best
            and {"number": best.number, "value": as_number(best.values[0]), "params": best.params},
            "spent": {
                "trials": spent.trials,
                "ended": spent.ended,
                "epochs": spent.epochs,
                "seconds": spent.seconds,
            },
            **_amounts(definition, spent),
            "definition": None if definition is None else definition.dump(),
        }
    )


def _objectives(study: optuna.Study) -> list[dict[str, str | None]]:
    """The objectives, by the names that optuna-dashboard shows."""
    names: Sequence[str | None] = study.metric_names or [None] * len(study.directions)
    return [
        {"name": name, "direction": direction.name.lower()}
        for name, direction in zip(names, study.directions, strict=True)
    ]


def _definition(study: Described) -> StudyDefinition | None:
    try:
        return definition_of(study)
    except ValidationError:  # somebody changed the attribute by hand
        return None


def _amounts(definition: StudyDefinition | None, spent: Spent) -> dict[str, dict[str, float | None]]:
    """The budget, and what is left of it."""
    if definition is None:
        nothing = dict.fromkeys(("trials", "epochs", "seconds"))
        return {"budget": nothing, "left": nothing}
    budget = {
        "trials": definition.trials,
        "epochs": definition.budget.epochs,
        "seconds": definition.budget.seconds,
    }
    used = {"trials": spent.trials, "epochs": spent.epochs, "seconds": spent.seconds}
    left = {name: None if most is None else max(0, most - used[name]) for name, most in budget.items()}
    return {"budget": budget, "left": left}


def _place(study: optuna.Study, objective: str | None) -> int:
    """The place of an objective among those of a study; of a single one it need not be said.

    Raises:
        DefinitionError: it is none of them, or none of several is said.
    """
    names = study.metric_names or [str(place) for place in range(len(study.directions))]
    if objective in names:
        return names.index(objective)
    if len(study.directions) == 1 and objective is None:
        return 0
    if objective is None:
        raise DefinitionError(
            f"{study.study_name} has several objectives, and importances are those of one: "
            f"say objective, one of {', '.join(names)}"
        )
    raise DefinitionError(
        f"objective: {study.study_name} has none that is named {objective!r}{near_miss(objective, names)}; "
        f"it has: {', '.join(names)}"
    )


def _of_one(trial: FrozenTrial, place: int) -> FrozenTrial:
    """A trial with the value of one objective alone."""
    one = copy.copy(trial)
    one.values = [trial.values[place]]
    return one


def _importances(direction: StudyDirection, trials: list[FrozenTrial]) -> dict[str, float]:
    if len(trials) < 2:
        return {}
    seen = optuna.create_study(storage=optuna.storages.InMemoryStorage(), direction=direction)
    seen.add_trials(trials)  # Optuna reads all trials of a study
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few trials it says so, and takes all parameters for equal
        found = optuna.importance.get_param_importances(seen, evaluator=evaluator)
    return {name: float(share) for name, share in found.items()}
