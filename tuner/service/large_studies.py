"""The dashboard's document of a whole study, soon: trials are written here, all else the dashboard says itself.

A study's page waits for one document with all of its trials. At 10,000 of them the dashboard takes seconds for it, as
it makes objects of all rows, and looks at all of them anew for each answer. Here rows become text as they are read, and
the text of finished trials is kept, since these never change. For what the document says besides (spaces, best trials,
notes, figures) the dashboard is asked, but it is shown a few trials only, one of each shape, as it would say the same
of all. What it writes of those few is compared with ours; finished trials of a shape that it writes otherwise, as a
later version might, are left to it.
"""

from __future__ import annotations

import io
import json
import re
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Container, Mapping, Sequence, Set
from typing import Any, cast
from wsgiref.util import setup_testing_defaults

import optuna_dashboard
import sqlalchemy as sa
from optuna.storages._cached_storage import _CachedStorage
from optuna.storages._rdb import models
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.orm import Session

from tuner.pareto import on_front
from tuner.service.trial_texts import Shape, TrialText, texts_after, texts_of
from tuner.storage import Database, Mode

__all__ = ["Documents"]

STUDIES = 4
"""So many studies' text is kept, those looked at last: at 10,000 trials with 10 reports each has about 25 MB."""

WRITTEN = frozenset({"artifacts", "constraints"})
"""System attributes of a trial that stand in the document: such trials are left to the dashboard."""

PREFERENTIAL = "preference:"
"""What the names of system attributes begin with of studies where people choose: they are left to the dashboard."""

KEY = '"trials": ['

_STUDIES = cast("sa.Table", models.StudyModel.__table__)
_STUDY_ATTRS = cast("sa.Table", models.StudySystemAttributeModel.__table__)
_TRIALS = cast("sa.Table", models.TrialModel.__table__)

_decoder = json.JSONDecoder()


class Documents:
    """Documents of studies as the dashboard makes them. Threads may share it.

    Args:
        database: the one that the dashboard shows.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._kept: OrderedDict[int, _Document] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, study_id: int, after: int = 0) -> tuple[int, bytes]:
        """The status and the text of `/api/studies/{study_id}?after={after}`: without the first `after` trials."""
        with self._lock:
            document = self._kept.pop(study_id, None) or _Document(self._database, study_id)
            self._kept[study_id] = document
        is_there = True
        try:
            status, body = document.get(after)
            is_there = status == 200
            return status, body
        finally:
            with self._lock:
                if not is_there and self._kept.get(study_id) is document:
                    del self._kept[study_id]  # an address that is none takes no other's place
                while len(self._kept) > STUDIES:
                    self._kept.popitem(last=False)


class _Document:
    """One study's."""

    def __init__(self, database: Database, study_id: int) -> None:
        self._database, self._study_id = database, study_id
        self._lock = threading.Lock()  # whoever asks while it is read waits for it: twice takes twice as long
        self._identity: object = None
        self._trials = _Trials()

    def get(self, after: int) -> tuple[int, bytes]:
        with self._lock:
            while True:
                few, named = self._read()
                status, body = self._of_dashboard(few)
                if status != 200:
                    return status, body
                head, written, tail = _split(body.decode())
                if len(written) < len(few):  # the study was deleted meanwhile
                    self._trials = _Trials()
                elif self._trials.agree(written, named):
                    break
            texts = self._trials.texts(written, after)
        return status, f"{head}{', '.join(texts)}{tail}".encode()

    def _read(self) -> tuple[list[int], set[int]]:
        """Read what is new; the ids of the trials to show the dashboard, and of those that the study has notes on."""
        with self._database.transaction(Mode.READ) as session:
            if (identity := _identity(session, self._study_id)) != self._identity:
                self._identity, self._trials = identity, _Trials()
            self._trials.read(session, self._study_id)
            attrs = session.scalars(_ATTR_NAMES.where(_STUDY_ATTRS.c.study_id == self._study_id)).all()
            of_study = models.StudyDirectionModel.study_id == self._study_id
            directions = session.scalars(_DIRECTIONS.where(of_study)).all()
        named = {int(digits) for name in attrs for digits in re.findall(r"[0-9]{1,18}", name)}
        if any(name.startswith(PREFERENTIAL) for name in attrs):
            return self._trials.all(), named
        return self._trials.few(named, [direction.name.lower() for direction in directions]), named

    def _of_dashboard(self, trial_ids: Sequence[int]) -> tuple[int, bytes]:
        """The document as if the study had these trials only."""
        # one that has not seen the study before: it would remember what it saw
        app = optuna_dashboard.wsgi(storage=_Few(self._database, self._study_id, trial_ids))
        environ: dict[str, Any] = {"PATH_INFO": f"/api/studies/{self._study_id}", "wsgi.input": io.BytesIO()}
        setup_testing_defaults(environ)
        status: list[str] = []
        body = b"".join(app(environ, lambda line, _headers, *_: status.append(line)))
        return int(status[0].partition(" ")[0]), body


class _Trials:
    """A study's trials as texts, and which few of them stand for all."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._places: dict[int, int] = {}  # in `_texts`, by id
        self._unfinished: dict[int, Shape] = {}  # by id
        self._finished: defaultdict[Shape, list[int]] = defaultdict(list)  # ids
        self._values: dict[int, list[float]] = {}  # of completed trials, by id
        self._agrees: dict[Shape, bool] = {}  # whether the dashboard writes it as we do, once compared

    def read(self, session: Session, study_id: int) -> None:
        """Read what is new: later trials, and those that were unfinished."""
        last = max(self._places, default=-1)
        for trial in texts_of(session, list(self._unfinished)):
            self._take(trial)
        for trial in texts_after(session, study_id, last):
            self._take(trial)

    def _take(self, trial: TrialText) -> None:
        place = self._places.setdefault(trial.trial_id, len(self._texts))
        self._texts[place : place + 1] = [trial.text]
        if not trial.shape.state.is_finished():
            self._unfinished[trial.trial_id] = trial.shape
            return
        self._unfinished.pop(trial.trial_id, None)
        self._finished[trial.shape].append(trial.trial_id)
        if trial.shape.state == TrialState.COMPLETE:
            self._values[trial.trial_id] = trial.values

    def all(self) -> list[int]:
        """The ids of all trials."""
        return sorted(self._places)

    def few(self, named: Set[int], directions: Sequence[str]) -> list[int]:
        """The ids of the trials that stand for all, and of those that the dashboard must write.

        Args:
            named: ids in the names of the study's system attributes, as those of notes on trials contain them.
            directions: the study's, `minimize` or `maximize`.
        """
        few = set(named & self._places.keys())
        few.update({shape: trial_id for trial_id, shape in self._unfinished.items()}.values())
        few.update(i for i, shape in self._unfinished.items() if not shape.system_attrs.isdisjoint(WRITTEN))
        for shape, ids in self._finished.items():
            few.update([_model(ids, named)] if self._agrees.get(shape, True) else ids)
        if len(directions) > 1:
            is_best = on_front(list(self._values.values()), directions)
            few.update(trial_id for trial_id, best in zip(self._values, is_best, strict=True) if best)
        return sorted(few)

    def agree(self, written: Mapping[int, str], named: Set[int]) -> bool:
        """Whether the dashboard writes finished trials as they are written here, or as it was known to write them.

        Where it is found not to, all trials of that shape are among the few from now on. What it writes of `named`
        trials may be the study's, as a note is, and tells nothing of their shape.
        """
        agree = True
        for shape, ids in self._finished.items():
            if shape not in self._agrees and (model := _model(ids, named)) not in named:
                ours = self._texts[self._places[model]]
                is_ours = shape.system_attrs.isdisjoint(WRITTEN)
                self._agrees[shape] = is_ours and json.loads(written[model]) == json.loads(ours)
                agree = agree and self._agrees[shape]
        return agree

    def texts(self, written: Mapping[int, str], after: int) -> list[str]:
        """The texts of all trials but the first `after`; of some those that the dashboard has written."""
        texts = self._texts[after:]
        for trial_id, text in written.items():
            if (place := self._places[trial_id] - after) >= 0:
                texts[place] = text
        return texts


def _model(ids: Sequence[int], named: Set[int]) -> int:
    """The trial that is compared: the first that the study says nothing about, or one that is shown anyhow."""
    return next((trial_id for trial_id in ids if trial_id not in named), ids[0])


class _Few(_CachedStorage):
    """A database with one study of a few trials.

    Args:
        database: the database.
        study_id: the study's id.
        trial_ids: the trials' ids.
    """

    def __init__(self, database: Database, study_id: int, trial_ids: Sequence[int]) -> None:
        super().__init__(database)
        self._database, self._study_id, self._trial_ids = database, study_id, trial_ids

    def get_all_studies(self) -> list[FrozenStudy]:
        """The study, if it is there: the dashboard finds a study in the list of all."""
        try:
            return [
                FrozenStudy(
                    study_name=self.get_study_name_from_id(self._study_id),
                    direction=None,
                    directions=self.get_study_directions(self._study_id),
                    user_attrs=self.get_study_user_attrs(self._study_id),
                    system_attrs=self.get_study_system_attrs(self._study_id),
                    study_id=self._study_id,
                )
            ]
        except KeyError:
            return []

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """The few."""
        with self._database.transaction(Mode.READ) as session:
            found = self._database.trials(session, self._trial_ids)
        return [trial for trial in found if states is None or trial.state in states]


_DIRECTIONS = sa.select(models.StudyDirectionModel.direction).order_by(models.StudyDirectionModel.objective)
_ATTR_NAMES = sa.select(_STUDY_ATTRS.c.key)


def _identity(session: Session, study_id: int) -> object:
    """What tells a study from another that had this id before, which SQLite gives again."""
    start = _TRIALS.c.datetime_start
    begun = sa.select(_TRIALS.c.trial_id, start).where(_TRIALS.c.study_id == study_id, start.is_not(None))
    name = session.scalar(sa.select(_STUDIES.c.study_name).where(_STUDIES.c.study_id == study_id))
    return name, session.execute(begun.order_by(_TRIALS.c.trial_id).limit(1)).first()


def _split(body: str) -> tuple[str, dict[int, str], str]:
    """A document of a study: what is before its trials, the text of each by its id, what is after."""
    place = body.index(KEY) + len(KEY)  # no text has unescaped quotes, so that this is the key
    head, trials = body[:place], {}
    while body[place] != "]":
        if body[place] in ", ":
            place += 1
            continue
        trial, end = _decoder.raw_decode(body, place)
        trials[trial["trial_id"]] = body[place:end]
        place = end
    return head, trials, body[place:]
