"""The public face: create, open, run, compare, list and archive studies in one database."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from typing import Any, Protocol, Self

import optuna
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError
from sqlalchemy.orm import Session as OpenSession

from objectives.epoch import Epoch, Objective
from tuner import noticeboard
from tuner.adjustment import check_adjustment, login
from tuner.ask_tell import AskTell, has_budget
from tuner.catalogue import find_objective, missing_attributes
from tuner.caviar import run_studies
from tuner.comparison import ComparisonResult, read_comparison
from tuner.comparison.runs import TEST_VALUES
from tuner.definition import Budget, ComparisonDefinition, StudyDefinition, find_definition
from tuner.errors import ConflictError, DefinitionError, NotFoundError, TunerError
from tuner.executors import Where, find_executor
from tuner.explain import near_miss
from tuner.ledger import ARCHIVED, COMPARISON, DEFINITION, Ledger, Spent, StudyState
from tuner.panda import Session
from tuner.pareto import front_of
from tuner.population import Stretch, lineage, require_whole_trainings
from tuner.retraining import Incumbent, can_test, measure_incumbents
from tuner.runs import Runs, Working
from tuner.samplers import PopulationSettings, build_sampler
from tuner.schema import absolute, open_storage
from tuner.storage import DEFAULT_URL, Database, Mode, cached, patiently, safe_url
from tuner.transfer import StudyDocument, dump, trials_of
from tuner.trial_run import Function, Outcome, run_trial

__all__ = ["StudyManager", "StudySummary"]

IMPORTED = "tuner:imported"
"""The attribute that names the request by which a study was imported."""

COMPARISON_DOCUMENT = "tuner:comparison:"
"""Begins the attribute of a comparison's first study that holds its definition; the name follows."""


@dataclass(frozen=True, slots=True)
class StudySummary:
    """One line of a list of studies.

    `state` is whether it hands out trials, and `status` how it stands, as in `Standing`; `trials` counts by state;
    `best_value` is None before the first completed one, and with several objectives: then `front` has the values of the
    trials on the Pareto front.
    """

    name: str
    objective: str | None
    sampler: str | None
    direction: str
    trials: Mapping[str, int]
    budget: int | None
    best_value: float | None
    started: datetime | None
    archived: bool
    state: StudyState = StudyState.OPEN
    status: str = "open"
    front: Sequence[Sequence[float]] = ()

    @property
    def finished(self) -> int:
        """How many trials have ended."""
        return sum(n for state, n in self.trials.items() if TrialState[state].is_finished())


class StudyManager:
    """All studies in one database.

    Args:
        storage: the database's URL.
        lease_seconds: for how long a trial is its worker's after the last that was heard of it.

    Raises:
        StorageError: the database cannot be opened.

    Example:
        >>> if __name__ == "__main__":  # worker processes import the script
        ...     manager = StudyManager("sqlite:///tuner.db")
        ...     study = manager.run(StudyDefinition.load("studies/digits.toml"), workers=2)
        ...     print(study.best_params)
    """

    def __init__(self, storage: str = DEFAULT_URL, *, lease_seconds: float = 120.0) -> None:
        self.url = storage
        self._database: Database = open_storage(storage)
        self._ledger = Ledger(self._database, lease_seconds=lease_seconds)

    @property
    def ledger(self) -> Ledger:
        """Of the database."""
        return self._ledger

    def close(self) -> None:
        """Close the database; the manager opens it again when it is used again."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def create(self, definition: StudyDefinition) -> optuna.Study:
        """Create the study that `definition` describes, or open it if it is there already.

        Raises:
            ConflictError: there is a study of this name with another definition.
            DefinitionError: the objective does not accept it, or an optional dependency is missing.
        """
        self.ensure(definition)
        return self.open(definition.name)

    @patiently
    def ensure(self, definition: StudyDefinition, attrs: Mapping[str, Any] | None = None) -> bool:
        """See that the study that `definition` describes is there; whether it was not.

        Args:
            definition: of the study.
            attrs: further user attributes of a new study.

        Raises:
            ConflictError: there is a study of this name with another definition.
            DefinitionError: the objective does not accept it, or an optional dependency is missing.
            NotFoundError: there is no such objective.
        """
        definition = definition.study
        self._check(definition)
        try:
            with self._ledger.transaction() as session:
                self._create(session, definition, attrs or {})
        except optuna.exceptions.DuplicatedStudyError:
            self._check_same(definition)
            return False
        return True

    def _check(self, definition: StudyDefinition) -> None:
        """See that a study can be, before anything is written."""
        definition.check_objective()
        build_sampler(definition.sampler, definition.context)

    def _create(self, session: OpenSession, definition: StudyDefinition, attrs: Mapping[str, Any]) -> int:
        """Create a study with its books; its id."""
        described = {
            DEFINITION: definition.dump(full=True),
            "objective": definition.objective,
            "sampler": definition.sampler.name,
            "pruner": definition.pruner.name,
            "seed": definition.seed,
        }
        study_id = self._database.create_study(
            session,
            definition.name,
            [StudyDirection[direction.upper()] for direction in definition.directions],
            {**attrs, **described},
            [objective.name for objective in definition.objectives],
        )
        self._ledger.open_study(session, study_id)
        return study_id

    def _ensure_member(self, definition: StudyDefinition, attrs: Mapping[str, Any]) -> None:
        """See that a study of a comparison is there, and says that it is one."""
        if self.ensure(definition, attrs):
            return
        study = self.load(definition.name)
        before = study.user_attrs
        for (
            key,
            value,
        ) in attrs.items():  # it was made before comparisons were noted, or this one has more seeds
            if before.get(key) != value:
                study.set_user_attr(key, value)

    def open(self, name: str) -> optuna.Study:
        """A plain `optuna.Study`, with its sampler and pruner where it has a definition of ours.

        Raises:
            NotFoundError: there is no such study.
            MissingDependencyError: its sampler needs something that is not installed.
        """
        study = self.load(name)
        if (definition := definition_of(study)) is not None:
            _equip(study, definition)
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
            local = f" in {safe_url(self.url)}{hint}"
            raise NotFoundError(f"no study is named {name!r}", local=local) from None

    @patiently
    def best(self, name: str) -> list[FrozenTrial]:
        """The best trial of a study, or with several objectives its Pareto front, in the order of their numbers.

        Returns:
            Trials; none before the first is complete.

        Raises:
            NotFoundError: there is no such study.
        """
        study = self.load(name)
        if len(study.directions) > 1:
            return front_of(study.get_trials(deepcopy=False), study.directions)
        try:
            return [study.best_trial]
        except ValueError:  # Optuna's word for none
            return []

    def definition(self, name: str) -> StudyDefinition:
        """The definition of a study.

        Raises:
            NotFoundError: there is no such study, or it was not made from a definition.
        """
        return _require_definition(self.load(name))

    def described(self, study: str) -> StudyDefinition:
        """The definition of the study that a name means: one in the database, a file, or a name in `studies/`.

        Raises:
            NotFoundError: there is no such study or definition.
        """
        if study in {summary.study_name for summary in self._storage.get_all_studies()}:
            return self.definition(study)
        try:
            return StudyDefinition.load(find_definition(study))
        except NotFoundError as error:
            raise NotFoundError(f"no such study in {safe_url(self.url)}, and {error}") from None

    def _find(self, study: StudyDefinition | str, point: Mapping[str, Any]) -> StudyDefinition:
        """The definition of the study that is meant; where it is not there, it is created once the point is checked."""
        definition = self.described(study) if isinstance(study, str) else study
        definition.space.check(point)
        self.create(definition)
        return definition

    def run(
        self,
        definition: StudyDefinition,
        objective: Objective | Function | None = None,
        *,
        workers: int = 1,
        executor: Where | None = None,
        on_outcome: Callable[[Outcome], None] = lambda outcome: None,
    ) -> optuna.Study:
        """Run a study until its budget is used up; a study that was interrupted goes on where it was.

        Args:
            definition: what to run.
            objective: what to train, if not the definition's registered one: an objective of epochs, or a plain Optuna
                objective `f(trial) -> float`, or a sequence of floats for several objectives.
            workers: how many trials run at once.
            executor: `processes`, `threads`, `dask://HOST:PORT`, or any `concurrent.futures.Executor`, which stays open
                (`tuner.executors` says what it must do); by default processes, or threads for an objective given here.
            on_outcome: called with each trial's end.

        Raises:
            ConflictError: there is a study of this name with another definition.
            DefinitionError: there is no objective or no such executor, or the definition has no budget.
            MissingDependencyError: the executor is Dask, or the sampler one, that is not installed.
            TunerError: too many trials failed in a row, or workers cannot start, keep dying or are not there.
        """
        self._run(
            [definition.study],
            objective,
            workers=workers,
            per_study=workers,
            executor=executor,
            on_outcome=on_outcome,
        )
        return self.open(definition.name)

    def compare(
        self,
        definition: ComparisonDefinition,
        objective: Objective | Function | None = None,
        *,
        workers: int = 1,
        executor: Where | None = None,
        on_outcome: Callable[[Outcome], None] = lambda outcome: None,
    ) -> ComparisonResult:
        """Run a comparison, arms interleaved seed by seed, and return its result; goes on where it was interrupted.

        Within a study trials run one after the other, so that the result does not depend on `workers`. At the end the
        best point of each run is trained anew for its test values (`test_repeats`), where the objective has test data,
        and the result is put up on the member studies, where optuna-dashboard shows it. Arguments and errors are those
        of `run`.
        """
        members = [member.definition for member in definition.members]
        self._run(
            members,
            objective,
            workers=workers,
            per_study=1,
            executor=executor,
            on_outcome=on_outcome,
            attrs=_member_attrs(definition),
        )
        self._measure(definition, objective, workers=workers, executor=executor)
        result = self.result(definition)
        self.post(result)
        return result

    def post(self, result: ComparisonResult) -> None:
        """Put a comparison's result up on its member studies, as notes and figures that optuna-dashboard shows."""
        noticeboard.post(result, self.load)

    def _measure(
        self,
        definition: ComparisonDefinition,
        objective: Objective | Function | None,
        *,
        workers: int,
        executor: Where | None,
    ) -> None:
        """Find the test values that are not there yet."""
        repeats = definition.comparison.test_repeats
        members = [m.definition for m in definition.members if can_test(m.definition.objective, objective)]
        found = [incumbent for member in members if (incumbent := self._untested(member, repeats))]

        def keep(incumbent: Incumbent, metrics: Sequence[Mapping[str, float] | None]) -> None:
            document = {"trial": incumbent.number, "metrics": list(metrics)}
            self.load(incumbent.study).set_user_attr(TEST_VALUES, document)

        measure_incumbents(
            found,
            objective,
            repeats,
            workers=workers,
            executor=executor or ("processes" if objective is None else "threads"),
            on_tested=keep,
        )

    def _untested(self, definition: StudyDefinition, repeats: int) -> Incumbent | None:
        """The best trial of a study, unless its test values are known, or its parameters are not how it was trained."""
        study = self.load(definition.name)
        trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if not repeats or not trials or isinstance(definition.sampler, PopulationSettings):
            return None
        choose = min if definition.direction == "minimize" else max
        best = choose(trials, key=lambda trial: trial.value or 0.0)  # the first of equals, as in the result
        known = study.user_attrs.get(TEST_VALUES)
        if best.user_attrs.get("adjustments") or (
            known is not None and known["trial"] == best.number and len(known["metrics"]) >= repeats
        ):
            return None
        params = {**definition.fixed, **best.params}
        return Incumbent(definition.name, definition.objective, best.number, params, definition.seed)

    def create_comparison(self, definition: ComparisonDefinition) -> bool:
        """See that all studies of a comparison are there, for workers anywhere to run; whether it is new.

        Raises:
            ConflictError: there is another comparison of this name, or a study that is another's.
            DefinitionError: an objective does not accept it, or a study has no budget.
            NotFoundError: there is no such objective.
        """
        is_new = definition.name not in self.comparison_names()
        if not is_new and self.comparison(definition.name) != definition:
            raise ConflictError(
                f"there is a comparison {definition.name!r} already, which is another; use another name"
            )
        definition.check_objective()
        members, there = [member.definition for member in definition.members], self.all_studies()
        names = {study.study_name for study in there}
        for member in members:  # all checks before the first study is there
            _require_budget(member)
            build_sampler(member.sampler, member.context)
            if member.name in names:
                self._check_same(member)
        attrs = _member_attrs(definition)
        for member in members:
            self._ensure_member(member, attrs[member.name])
        return is_new

    @patiently
    def comparison_names(self) -> list[str]:
        """The names of the comparisons in the database, sorted."""
        with self._ledger.transaction(Mode.READ) as session:
            keys = self._database.study_attr_keys(session, COMPARISON_DOCUMENT)
        return sorted(key.removeprefix(COMPARISON_DOCUMENT) for key in keys)

    @patiently
    def comparison(self, name: str) -> ComparisonDefinition:
        """The definition of a comparison that was made in this database.

        Raises:
            NotFoundError: there is none of this name.
        """
        with self._ledger.transaction(Mode.READ) as session:
            document = self._database.study_attr(session, f"{COMPARISON_DOCUMENT}{name}")
        if document is None:
            hint = near_miss(name, self.comparison_names())
            raise NotFoundError(f"no comparison is named {name!r}", local=f" in {safe_url(self.url)}{hint}")
        return ComparisonDefinition.model_validate(document)

    @patiently
    def progress(self, definition: ComparisonDefinition) -> list[tuple[Spent, bool]]:
        """What each member of a comparison has spent, in their order, and whether it has no trial left."""
        ids = {study.study_name: study._study_id for study in self.all_studies()}
        found = []
        with self._ledger.transaction(Mode.READ) as session:
            for member in definition.members:
                study_id = ids.get(member.definition.name)
                if study_id is None:
                    found.append((Spent(), False))
                    continue
                spent = self._ledger.spent(session, study_id)
                has_more = has_budget(member.definition, spent, member.definition.trials)
                found.append((spent, not has_more and not self._ledger.is_unfinished(session, study_id)))
        return found

    @patiently
    def export_study(self, name: str) -> dict[str, Any]:
        """A study with all of its trials as one document in plain types, see `tuner.transfer`.

        Raises:
            NotFoundError: there is no such study, or it was not made from a definition.
        """
        definition, study = self.definition(name), self.load(name)
        with self._ledger.transaction(Mode.READ) as session:
            spent = self._ledger.spent(session, study._study_id)
            trials = study.get_trials(deepcopy=False)
        return dump(definition, trials, spent)

    @patiently
    def import_study(self, document: StudyDocument, *, request_id: str | None = None) -> None:
        """Make the study that a document describes, with its trials, in one transaction.

        Args:
            document: the study.
            request_id: names this request: asked again with the same, it is done already.

        Raises:
            ConflictError: there is a study of this name.
            DefinitionError: a trial breaks a rule, or the objective does not accept the definition.
            NotFoundError: there is no such objective.
        """
        definition, trials = document.definition, trials_of(document)
        self._check(definition)
        ended = sum(trial.state.is_finished() for trial in trials)
        epochs, seconds = document.spent.epochs, document.spent.seconds
        try:
            with self._ledger.transaction() as session:
                study_id = self._create(session, definition, {IMPORTED: request_id} if request_id else {})
                self._database.add_trials(session, study_id, trials)
                self._ledger.spend(
                    session, study_id, trials=ended, ended=ended, epochs=epochs, seconds=seconds
                )
        except optuna.exceptions.DuplicatedStudyError:
            if request_id is not None and self.load(definition.name).user_attrs.get(IMPORTED) == request_id:
                return
            raise ConflictError(
                f"there is a study {definition.name!r} already; nothing was imported"
            ) from None

    def panda(
        self,
        study: StudyDefinition | str,
        params: Mapping[str, Any] | None = None,
        objective: Objective | None = None,
        *,
        by: str | None = None,
    ) -> Session:
        """Babysit one trial of a study: a context manager that begins it, see `tuner.panda.Session`.

        Args:
            study: a definition, or the name of a study in the database or of a definition in `studies/`.
            params: chosen by hand, any of the space; the sampler chooses the rest. None: the sampler chooses all, or
                a trial that was given back is taken up again.
            objective: what to train, if not the definition's registered one.
            by: the person's name, for the record; by default the login.

        Raises:
            NotFoundError: there is no such study or definition.
            ConflictError: there is a study of this name with another definition.
            DefinitionError: there is no objective of epochs.
        """
        ask_tell = self.ask_tell(self._find(study, params or {}).name)
        return Session(ask_tell, _objective_of_epochs(ask_tell.definition, objective), params, by=by)

    def try_point(
        self,
        study: StudyDefinition | str,
        params: Mapping[str, Any],
        objective: Objective | None = None,
        *,
        on_begin: Callable[[Mapping[str, Any]], None] = lambda params: None,
        on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    ) -> FrozenTrial:
        """Evaluate a point chosen by hand: a trial of the study, in its budget, that its sampler learns from.

        Args:
            study: a definition, or the name of a study in the database or of a definition in `studies/`.
            params: any of the study's space; the sampler chooses the rest.
            objective: what to train, if not the definition's registered one.
            on_begin: called with the whole point, before it is trained.
            on_epoch: called after each epoch.

        Raises:
            NotFoundError: there is no such study or definition.
            ConflictError: there is a study of this name with another definition.
            DefinitionError: the point is not in the space, or there is no objective of epochs.
            TunerError: the budget is used up, or the trial was given back or lost.
        """
        definition = self._find(study, params)
        ask_tell = self.ask_tell(definition.name)
        training = _objective_of_epochs(definition, objective)
        outcome = run_trial(
            ask_tell,
            training,
            params=params,
            on_begin=lambda lease: on_begin(lease.params),
            on_epoch=on_epoch,
        )
        if outcome is None:
            raise TunerError(f"the budget of {definition.name} is used up: no trial can be begun")
        if outcome.state is None:
            raise TunerError(f"trial {outcome.number} of {definition.name} was lost to another worker")
        trial: FrozenTrial = self.load(definition.name).trials[outcome.number]
        return trial

    def adjust(self, name: str, number: int, values: Mapping[str, Any], *, by: str | None = None) -> None:
        """Change hyperparameters of a trial that another process runs: they arrive with its next report.

        Raises:
            NotFoundError: there is no such study.
            DefinitionError: one cannot be adjusted while it trains, or its value is not legal.
            ConflictError: the trial does not run.
        """
        ask_tell = self.ask_tell(name)
        objective = _objective_of_epochs(ask_tell.definition, None)
        checked = check_adjustment(objective, values)
        ask_tell.adjust(number, checked, by=_person(by))

    def lineage(self, name: str, number: int | None = None) -> list[Stretch]:
        """How a network of population-based training was trained: its hyperparameters by epoch, through all its trials.

        Args:
            name: of the study.
            number: of the trial; by default the best.

        Raises:
            NotFoundError: there is no such study or trial, or no trial is complete.
            DefinitionError: the study has several objectives, and no number is given.
        """
        study = self.load(name)
        if number is None:
            if len(study.directions) > 1:
                raise DefinitionError(
                    f"{name} has several objectives, and no best trial: give a trial's number"
                )
            if not (best := self.best(name)):
                raise NotFoundError(f"{name} has no completed trial yet")
            number = best[0].number
        return lineage(study.get_trials(deepcopy=False), number)

    def stop(self, name: str, number: int, *, by: str | None = None) -> None:
        """End a trial that another process runs, after its next report.

        Raises:
            NotFoundError: there is no such study.
            ConflictError: the trial does not run.
        """
        self.ask_tell(name).stop(number, by=_person(by))

    def result(self, definition: ComparisonDefinition) -> ComparisonResult:
        """What a comparison has found so far.

        Raises:
            NotFoundError: it has not been begun.
        """
        return read_comparison(definition, self.load)

    @patiently
    def all_studies(self) -> list[FrozenStudy]:
        """All studies as the database has them, archived ones and those without a definition too; oldest first."""
        return sorted(self._storage.get_all_studies(), key=lambda study: study._study_id)

    @patiently
    def studies(self, *, archived: bool = False) -> list[StudySummary]:
        """All studies, oldest first; archived ones only where asked for."""
        found = self._storage.get_all_studies()
        with self._ledger.transaction(Mode.READ) as session:
            standings = [standing(self._ledger, session, study, definition_of(study)) for study in found]
        summaries = [_summary(study, how, self._storage) for study, how in zip(found, standings, strict=True)]
        return [summary for summary in summaries if archived or not summary.archived]

    @patiently
    def archive(self, name: str, *, undo: bool = False) -> None:
        """Take a study out of the list, or put it back. Studies are never deleted: SQLite would use their ids again.

        Raises:
            NotFoundError: there is no such study.
        """
        self.load(name).set_user_attr(ARCHIVED, not undo)

    @patiently
    def pause(self, name: str) -> None:
        """Let no trial of a study begin, wherever its workers are; those that run go on.

        Raises:
            NotFoundError: there is no such study.
            ConflictError: it is archived.
        """
        self._set_state(name, StudyState.PAUSED)

    @patiently
    def resume(self, name: str) -> None:
        """Let trials of a study that was paused or stopped begin again.

        Raises:
            NotFoundError: there is no such study.
            ConflictError: it is archived.
        """
        self._set_state(name, StudyState.OPEN)

    @patiently
    def stop_study(self, name: str, *, by: str | None = None) -> None:
        """Let no trial of a study begin, and those that run end with their next report.

        Raises:
            NotFoundError: there is no such study.
            ConflictError: it is archived.
        """
        self._set_state(name, StudyState.STOPPED)
        ask_tell = self.ask_tell(name)
        running = {lease.trial_id for lease in ask_tell.open_leases()}
        for trial in ask_tell.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial._trial_id in running:
                with contextlib.suppress(ConflictError):  # it has ended meanwhile
                    ask_tell.stop(trial.number, by=_person(by))

    @patiently
    def state(self, name: str) -> StudyState:
        """Whether a study hands out trials.

        Raises:
            NotFoundError: there is no such study.
        """
        study_id = self.load(name)._study_id
        with self._ledger.transaction(Mode.READ) as session:
            return self._ledger.spent(session, study_id).state

    @patiently
    def checkpoints(self, name: str) -> dict[int, int]:
        """By number of the trial, the epoch after which its training was kept, for whoever continues it.

        Raises:
            NotFoundError: there is no such study.
        """
        study = self.load(name)
        with self._ledger.transaction(Mode.READ) as session:
            epochs = self._ledger.checkpointed(session, study._study_id)
        trials = study.get_trials(deepcopy=False) if epochs else []
        return {trial.number: epochs[trial._trial_id] for trial in trials if trial._trial_id in epochs}

    @patiently
    def overdue(self) -> list[str]:
        """The names of the studies that have a trial whose lease has run out."""
        with self._ledger.transaction(Mode.READ) as session:
            study_ids = set(self._ledger.overdue(session))
        return (
            [study.study_name for study in self._storage.get_all_studies() if study._study_id in study_ids]
            if study_ids
            else []
        )

    def ask_tell(self, name: str, *, shared: bool = False) -> AskTell:
        """Ask and tell for a study, as workers use it; `shared` as `AskTell` says.

        Raises:
            NotFoundError: there is no such study, or it was not made from a definition.
        """
        study = self.load(name)
        definition = _require_definition(study)
        _equip(study, definition)
        return AskTell(study, definition, self._ledger, shared=shared)

    def working(self, names: Sequence[str]) -> list[Working]:
        """What workers do now in these studies, here and elsewhere: by trial, the oldest first."""
        return Runs(self._ledger).working(names)

    def unattended(self, session: OpenSession) -> int:
        """How many studies could hand out a trial now, or have one to run again, while nobody has any of theirs."""
        return sum(
            found.must_run_again or _has_room(found.definition, found.spent)
            for found in self._ledger.unattended(session)
        )

    @cached_property
    def _storage(self) -> BaseStorage:
        return cached(self._database)

    def _run(
        self,
        definitions: Sequence[StudyDefinition],
        objective: Objective | Function | None,
        *,
        workers: int,
        per_study: int,
        executor: Where | None,
        on_outcome: Callable[[Outcome], None],
        attrs: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        if workers < 1:
            raise DefinitionError(f"workers must be at least 1; got {workers}")
        if executor is None:  # what is given in Python, perhaps a closure, need not be picklable
            executor = "processes" if objective is None else "threads"
        find_executor(executor)
        for definition in definitions:  # all checks before the first study is there
            _check_runnable(definition, objective)
        for definition in definitions:
            self._ensure_member(definition, (attrs or {}).get(definition.name, {}))
        names = [definition.name for definition in definitions]
        if all(self.state(name) is not StudyState.OPEN for name in names):
            self._require_run(names)  # else it would wait for trials in the hands of others
        run_studies(
            names,
            _OpenStudy(absolute(self.url), objective),
            self._ledger,
            workers=workers,
            per_study=per_study,
            executor=executor,
            on_outcome=on_outcome,
        )
        self._require_run(names)

    def _require_run(self, names: Sequence[str]) -> None:
        """See that no study was left unfinished because it is paused, stopped or archived.

        Raises:
            TunerError: some were; the text names them.
        """
        states = {name: self.state(name) for name in names}
        left = {
            name: state
            for name, state in states.items()
            if state is not StudyState.OPEN and not self.ask_tell(name).is_finished()
        }
        if left:
            raise TunerError(
                "\n".join(
                    f"{name} is {state}: it hands out no trials "
                    f"(finished ones are kept; resume it, then run again: {_reopening(name, state)})"
                    for name, state in left.items()
                )
            )

    def _set_state(self, name: str, state: StudyState) -> None:
        study = self.load(name)
        if study.user_attrs.get(ARCHIVED):
            raise ConflictError(
                f"{name} is archived, and no trial of it begins; put it back first",
                local=f" (tuner archive --undo {name})",
            )
        study_id = study._study_id
        with self._ledger.transaction() as session:
            self._ledger.set_state(session, study_id, state)

    def _check_same(self, definition: StudyDefinition) -> None:
        try:
            there, wanted = self.definition(definition.name), definition
        except NotFoundError:
            raise ConflictError(
                f"there is a study {definition.name!r} already that was not made from a definition; "
                "use another name",
                local=" or another database",
            ) from None
        differing = [
            name for name in StudyDefinition.model_fields if getattr(there, name) != getattr(wanted, name)
        ]
        if differing:
            raise ConflictError(
                f"there is a study {definition.name!r} already, with another {', '.join(differing)}; "
                "use another name",
                local=" or another database",
            )


class Described(Protocol):
    """What is read of a study as a whole: Optuna's `Study` and `FrozenStudy` have it."""

    @property
    def study_name(self) -> str:
        """Its name."""

    @property
    def directions(self) -> list[StudyDirection]:
        """One an objective."""

    @property
    def user_attrs(self) -> dict[str, Any]:
        """Our own among them."""

    _study_id: int


def definition_of(study: Described) -> StudyDefinition | None:
    """The definition that a study was made from; None where it was made elsewhere.

    Raises:
        pydantic.ValidationError: somebody changed it by hand.
    """
    document = study.user_attrs.get(DEFINITION)
    return None if document is None else StudyDefinition.model_validate(document)


@lru_cache(4096)
def _read_definition(document: str) -> StudyDefinition:
    """A definition from what the database holds: whoever watches reads all of them, again and again."""
    return StudyDefinition.model_validate_json(document)


def _has_room(document: str, spent: Spent) -> bool:
    """Whether a study could hand out a trial; one whose definition cannot be read hands out none."""
    try:
        definition = _read_definition(document)
    except ValidationError:
        return False
    return has_budget(definition, spent, definition.trials)


def _require_definition(study: Described) -> StudyDefinition:
    definition = definition_of(study)
    if definition is None:
        raise NotFoundError(f"study {study.study_name!r} was not made from a definition")
    return definition


def _equip(study: optuna.Study, definition: StudyDefinition) -> None:
    """Give a study its sampler and pruner."""
    study.sampler = build_sampler(definition.sampler, definition.context)
    study.pruner = definition.pruner.build()


def _check_runnable(definition: StudyDefinition, objective: Objective | Function | None) -> None:
    _require_budget(definition)
    if objective is None:
        _objective_name(definition)
    elif isinstance(objective, Objective):
        definition.check_accepted_by(objective)
    elif hasattr(objective, "evaluate"):  # meant as an objective of epochs, but not all of one
        kind = type(objective).__name__
        raise DefinitionError(f"{kind} is no objective: it has no {missing_attributes(objective)}")
    else:
        require_whole_trainings(definition, "a plain function")


def _reopening(name: str, state: StudyState) -> str:
    """The command that lets trials begin again."""
    return f"tuner archive {name} --undo" if state is StudyState.ARCHIVED else f"tuner resume {name}"


def _require_budget(definition: StudyDefinition) -> None:
    if definition.budget == Budget():
        raise DefinitionError(f"{definition.name}: budget: give trials, epochs or seconds; got none")


def _member_attrs(definition: ComparisonDefinition) -> dict[str, dict[str, Any]]:
    """What each study of a comparison says of it, by its name: the first keeps the whole definition."""
    names = [member.definition.name for member in definition.members]
    attrs: dict[str, dict[str, Any]] = {name: {COMPARISON: definition.name} for name in names}
    attrs[names[0]][f"{COMPARISON_DOCUMENT}{definition.name}"] = definition.dump(full=True)
    return attrs


def _objective_of_epochs(definition: StudyDefinition, given: Objective | None) -> Objective:
    if given is not None:
        if not isinstance(given, Objective):
            raise DefinitionError(
                f"a training that is watched must be an objective of epochs; {type(given).__name__} has no "
                f"{missing_attributes(given)}"
            )
        definition.check_accepted_by(given)
        return given
    return find_objective(_objective_name(definition))


def _objective_name(definition: StudyDefinition) -> str:
    if definition.objective is None:
        raise DefinitionError(f"{definition.name}: names no objective, and none is given")
    return definition.objective


def _person(by: str | None) -> str:
    """Who wants a running trial adjusted or stopped; never empty, as that would read as the budget."""
    return by or login() or "hand"


class _OpenStudy:
    """Opens studies in a worker, over one manager for all of its process. What is open does not travel with it."""

    def __init__(self, url: str, objective: Objective | Function | None) -> None:
        self.url, self._objective = url, objective
        self._managers: dict[int, StudyManager] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return _OpenStudy, (self.url, self._objective)

    def __call__(self, name: str) -> tuple[AskTell, Objective | Function]:
        ask_tell = self.ask_tell(name)
        if self._objective is not None:
            return ask_tell, self._objective
        assert ask_tell.definition.objective is not None
        return ask_tell, find_objective(ask_tell.definition.objective)

    @patiently  # a worker may start in the middle of a run, after another was lost
    def ask_tell(self, name: str) -> AskTell:
        """The study alone, without what it trains."""
        with self._lock:
            manager = self._managers.get(os.getpid())  # after a fork, one's own
            if manager is None:
                manager = self._managers[os.getpid()] = StudyManager(self.url)
        return manager.ask_tell(name)

    def close(self) -> None:
        """Close what was opened in this process."""
        if manager := self._managers.get(os.getpid()):
            manager.close()


@dataclass(frozen=True, slots=True)
class Standing:
    """How a study stands. It is finished when its budget is used up and all that was begun has ended."""

    spent: Spent
    state: StudyState
    is_finished: bool

    @property
    def status(self) -> str:
        """In a word: open, paused, stopped, finished or archived."""
        return "finished" if self.is_finished and self.state is not StudyState.ARCHIVED else self.state.value


def standing(
    ledger: Ledger, session: OpenSession, study: Described, definition: StudyDefinition | None
) -> Standing:
    """How a study stands; one without a definition has no budget, and is never finished."""
    spent = ledger.spent(session, study._study_id)
    has_room = definition is None or has_budget(definition, spent, definition.trials)
    is_finished = not has_room and not ledger.is_unfinished(session, study._study_id)
    state = StudyState.ARCHIVED if study.user_attrs.get(ARCHIVED) else spent.state
    return Standing(spent, state, is_finished)


def _summary(study: Any, how: Standing, storage: BaseStorage) -> StudySummary:
    trials = storage.get_all_trials(study._study_id, deepcopy=False)
    counts = {state.name: sum(t.state == state for t in trials) for state in TrialState}
    directions, is_single = [d.name.lower() for d in study.directions], len(study.directions) == 1
    values = [t.values[0] for t in trials if t.state == TrialState.COMPLETE and is_single]
    front = [] if is_single else front_of(trials, study.directions)
    definition = definition_of(study)
    return StudySummary(
        name=study.study_name,
        objective=definition.objective if definition else None,
        sampler=definition.sampler.name if definition else None,
        direction=", ".join(directions),
        trials={state: n for state, n in counts.items() if n},
        budget=definition.trials if definition else None,
        best_value=(min if directions == ["minimize"] else max)(values, default=None),
        started=min((t.datetime_start for t in trials if t.datetime_start), default=None),
        archived=how.state is StudyState.ARCHIVED,
        state=how.state,
        status=how.status,
        front=tuple(tuple(trial.values) for trial in front),
    )
