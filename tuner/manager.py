"""The public face: create, open, run, compare, list and archive studies in one database."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, Self

import optuna
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from objectives.epoch import Objective
from tuner.ask_tell import AskTell
from tuner.catalogue import find_objective, missing_attributes
from tuner.caviar import ExecutorName, run_studies
from tuner.comparison import ComparisonResult, read_comparison
from tuner.definition import Budget, ComparisonDefinition, StudyDefinition
from tuner.errors import ConflictError, DefinitionError, NotFoundError
from tuner.explain import near_miss
from tuner.ledger import Ledger
from tuner.samplers import build_sampler
from tuner.schema import open_storage
from tuner.storage import DEFAULT_URL, Database, cached, patiently, safe_url
from tuner.trial_run import Function, Outcome

__all__ = ["StudyManager", "StudySummary"]

DEFINITION = "tuner:definition"
ARCHIVED = "tuner:archived"


@dataclass(frozen=True, slots=True)
class StudySummary:
    """One line of a list of studies. `trials` counts by state; `best_value` is None before the first completed one."""

    name: str
    objective: str | None
    sampler: str | None
    direction: str
    trials: Mapping[str, int]
    budget: int | None
    best_value: float | None
    started: datetime | None
    archived: bool

    @property
    def finished(self) -> int:
        """How many trials have ended."""
        return sum(n for state, n in self.trials.items() if TrialState[state].is_finished())


class StudyManager:
    """All studies in one database.

    Args:
        storage: the database's URL.

    Raises:
        StorageError: the database cannot be opened.

    Example:
        >>> if __name__ == "__main__":  # worker processes import the script
        ...     manager = StudyManager("sqlite:///tuner.db")
        ...     study = manager.run(StudyDefinition.load("studies/digits.toml"), workers=2)
        ...     print(study.best_params)
    """

    def __init__(self, storage: str = DEFAULT_URL) -> None:
        self.url = storage
        self._database: Database = open_storage(storage)
        self._ledger = Ledger(self._database)

    def close(self) -> None:
        """Close the database; the manager opens it again when it is used again."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @patiently
    def create(self, definition: StudyDefinition) -> optuna.Study:
        """Create the study that `definition` describes, or open it if it is there already.

        Raises:
            ConflictError: there is a study of this name with another definition.
            DefinitionError: the objective does not accept it, or an optional dependency is missing.
        """
        definition = definition.study
        definition.check_objective()
        build_sampler(definition.sampler, definition.context)  # before anything is written
        attrs = {
            DEFINITION: definition.dump(full=True),
            "objective": definition.objective,
            "sampler": definition.sampler.name,
            "pruner": definition.pruner.name,
            "seed": definition.seed,
        }
        direction = optuna.study.StudyDirection[definition.direction.upper()]
        try:
            with self._ledger.transaction() as session:
                study_id = self._database.create_study(session, definition.name, direction, attrs)
                self._ledger.open_study(session, study_id)
        except optuna.exceptions.DuplicatedStudyError:
            self._check_same(definition)
        return self.open(definition.name)

    def open(self, name: str) -> optuna.Study:
        """A plain `optuna.Study`, with its sampler and pruner where it has a definition of ours.

        Raises:
            NotFoundError: there is no such study.
            MissingDependencyError: its sampler needs something that is not installed.
        """
        study = self.load(name)
        document = study.user_attrs.get(DEFINITION)
        if document is not None:
            definition = StudyDefinition.model_validate(document)
            study.sampler = build_sampler(definition.sampler, definition.context)
            study.pruner = definition.pruner.build()
        return study

    @patiently
    def load(self, name: str) -> optuna.Study:
        """A plain `optuna.Study` to look at; its sampler and pruner are Optuna's defaults.

        Raises:
            NotFoundError: there is no such study.
        """
        try:
            return optuna.load_study(study_name=name, storage=self._storage)
        except KeyError:
            names = [study.study_name for study in self._storage.get_all_studies()]
            longer = [other for other in names if other.startswith(f"{name}.")]
            hint = f"; there are: {', '.join(longer[:3])}, …" if longer else near_miss(name, names)
            raise NotFoundError(f"no study is named {name!r} in {safe_url(self.url)}{hint}") from None

    def definition(self, name: str) -> StudyDefinition:
        """The definition of a study.

        Raises:
            NotFoundError: there is no such study, or it was not made from a definition.
        """
        document = self.load(name).user_attrs.get(DEFINITION)
        if document is None:
            raise NotFoundError(f"study {name!r} was not made from a definition")
        return StudyDefinition.model_validate(document)

    def run(
        self,
        definition: StudyDefinition,
        objective: Objective | Function | None = None,
        *,
        workers: int = 1,
        executor: ExecutorName | None = None,
        on_outcome: Callable[[Outcome], None] = lambda outcome: None,
    ) -> optuna.Study:
        """Run a study until its budget is used up; a study that was interrupted goes on where it was.

        Args:
            definition: what to run.
            objective: what to train, if not the definition's registered one: an objective of epochs, or a plain Optuna
                objective `f(trial) -> float`.
            workers: how many trials run at once.
            executor: `processes` or `threads`; by default processes, or threads for an objective given here.
            on_outcome: called with each trial's end.

        Raises:
            ConflictError: there is a study of this name with another definition.
            DefinitionError: there is no objective, or the definition has no budget.
            TunerError: too many trials failed in a row.
        """
        run_studies(
            self._create_all([definition.study], objective),
            _OpenStudy(self.url, objective),
            workers=workers,
            per_study=workers,
            executor=executor or _executor_for(objective),
            on_outcome=on_outcome,
        )
        return self.open(definition.name)

    def compare(
        self,
        definition: ComparisonDefinition,
        objective: Objective | Function | None = None,
        *,
        workers: int = 1,
        executor: ExecutorName | None = None,
        on_outcome: Callable[[Outcome], None] = lambda outcome: None,
    ) -> ComparisonResult:
        """Run a comparison, arms interleaved seed by seed, and return its result; goes on where it was interrupted.

        Within a study trials run one after the other, so that the result does not depend on `workers`. Arguments and
        errors are those of `run`.
        """
        run_studies(
            self._create_all([member.definition for member in definition.members], objective),
            _OpenStudy(self.url, objective),
            workers=workers,
            per_study=1,
            executor=executor or _executor_for(objective),
            on_outcome=on_outcome,
        )
        return self.result(definition)

    def result(self, definition: ComparisonDefinition) -> ComparisonResult:
        """What a comparison has found so far.

        Raises:
            NotFoundError: it has not been begun.
        """
        return read_comparison(definition, self.load)

    @patiently
    def studies(self, *, archived: bool = False) -> list[StudySummary]:
        """All studies, oldest first; archived ones only where asked for."""
        summaries = [_summary(study, self._storage) for study in self._storage.get_all_studies()]
        return [summary for summary in summaries if archived or not summary.archived]

    @patiently
    def archive(self, name: str, *, undo: bool = False) -> None:
        """Take a study out of the list, or put it back. Studies are never deleted: SQLite would use their ids again.

        Raises:
            NotFoundError: there is no such study.
        """
        self.load(name).set_user_attr(ARCHIVED, not undo)

    def ask_tell(self, name: str) -> AskTell:
        """Ask and tell for a study, as workers use it.

        Raises:
            NotFoundError: there is no such study, or it was not made from a definition.
        """
        return AskTell(self.open(name), self.definition(name), self._ledger)

    @cached_property
    def _storage(self) -> BaseStorage:
        return cached(self._database)

    def _create_all(
        self, definitions: Sequence[StudyDefinition], objective: Objective | Function | None
    ) -> list[str]:
        for definition in definitions:  # all checks before the first study is there
            _check_runnable(definition, objective)
        for definition in definitions:
            self.create(definition)
        return [definition.name for definition in definitions]

    def _check_same(self, definition: StudyDefinition) -> None:
        try:
            there, wanted = self.definition(definition.name), definition
        except NotFoundError:
            raise ConflictError(
                f"there is a study {definition.name!r} already that was not made from a definition; "
                "use another name or another database"
            ) from None
        differing = [
            name for name in StudyDefinition.model_fields if getattr(there, name) != getattr(wanted, name)
        ]
        if differing:
            raise ConflictError(
                f"there is a study {definition.name!r} already, with another {', '.join(differing)}; "
                "use another name or another database"
            )


def _check_runnable(definition: StudyDefinition, objective: Objective | Function | None) -> None:
    if definition.budget == Budget():
        raise DefinitionError(f"{definition.name}: budget: give trials, epochs or seconds; got none")
    if objective is None:
        if definition.objective is None:
            raise DefinitionError(f"{definition.name}: names no objective, and none is given")
    elif isinstance(objective, Objective):
        definition.check_accepted_by(objective)
    elif hasattr(objective, "evaluate"):  # meant as an objective of epochs, but not all of one
        kind = type(objective).__name__
        raise DefinitionError(f"{kind} is no objective: it has no {missing_attributes(objective)}")


def _executor_for(objective: Objective | Function | None) -> ExecutorName:
    # what is given in Python, perhaps a closure, need not be picklable
    return "processes" if objective is None else "threads"


@dataclass
class _OpenStudy:
    """Opens studies in a worker, over one manager for them all; picklable as long as none is open."""

    url: str
    objective: Objective | Function | None

    def __post_init__(self) -> None:
        self._managers: dict[int, StudyManager] = {}

    @patiently  # a worker may start in the middle of a run, after another was lost
    def __call__(self, name: str) -> tuple[AskTell, Objective | Function]:
        if os.getpid() not in self._managers:
            self._managers[os.getpid()] = StudyManager(self.url)
        ask_tell = self._managers[os.getpid()].ask_tell(name)
        if self.objective is not None:
            return ask_tell, self.objective
        assert ask_tell.definition.objective is not None
        return ask_tell, find_objective(ask_tell.definition.objective)


def _summary(study: Any, storage: BaseStorage) -> StudySummary:
    trials = storage.get_all_trials(study._study_id, deepcopy=False)
    counts = {state.name: sum(t.state == state for t in trials) for state in TrialState}
    directions = [direction.name.lower() for direction in study.directions]
    values = [t.values[0] for t in trials if t.state == TrialState.COMPLETE and len(directions) == 1]
    document = study.user_attrs.get(DEFINITION)
    definition = None if document is None else StudyDefinition.model_validate(document)
    return StudySummary(
        name=study.study_name,
        objective=definition.objective if definition else None,
        sampler=definition.sampler.name if definition else None,
        direction=", ".join(directions),
        trials={state: n for state, n in counts.items() if n},
        budget=definition.trials if definition else None,
        best_value=(min if directions == ["minimize"] else max)(values, default=None),
        started=min((t.datetime_start for t in trials if t.datetime_start), default=None),
        archived=bool(study.user_attrs.get(ARCHIVED)),
    )
