"""The dashboard's document of a whole study, soon again: what it holds of finished trials is kept as text.

A study's page waits for one document with all of its trials, which the dashboard makes anew each time: seconds, at
10,000 of them. But it also tells the trials after a number alone, as its own page asks for when it is looked at for
longer. So the text of the finished ones is kept, only the others are asked for, and both are put together. When the
service starts, this is done ahead for the studies that were worked on last.
"""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast
from wsgiref.util import setup_testing_defaults

import sqlalchemy as sa
from optuna.storages._rdb import models

from tuner.ledger import ARCHIVED
from tuner.storage import Database, Mode

__all__ = ["Documents"]

LARGE = 500
"""Of so many trials on the text is kept."""

STUDIES = 4
"""So many studies' text is kept, those looked at last: at 10,000 trials with 10 reports each has about 25 MB."""

WARM_SECONDS = 30.0
"""So long a study is waited for that is being read ahead."""

SWITCH_SECONDS = 0.0005
"""After so long the thread that reads ahead lets others go on; Python's own is 5 ms."""

ENDED = ("Complete", "Pruned", "Fail")
KEY = '"trials": ['

_STUDIES = cast("sa.Table", models.StudyModel.__table__)
_TRIALS = cast("sa.Table", models.TrialModel.__table__)
_USER_ATTRS = cast("sa.Table", models.StudyUserAttributeModel.__table__)
_ATTRS = cast("sa.Table", models.StudySystemAttributeModel.__table__)

_log = logging.getLogger(__name__)

_decoder = json.JSONDecoder()

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


@dataclass(slots=True)
class _Kept:
    """The text of a study's first trials, all of them finished."""

    mark: object
    """What the text depends on besides these trials."""
    count: int = 0
    text: str = ""

    def add(self, trials: list[str], ended: list[bool]) -> None:
        """Keep more: as many as are finished with no unfinished one before."""
        more = next((i for i, has_ended in enumerate(ended) if not has_ended), len(trials))
        if more:
            self.text = ", ".join([*([self.text] if self.count else []), *trials[:more]])
            self.count += more


class Documents:
    """Documents of studies as the dashboard makes them. Threads may share it.

    Args:
        dashboard: the dashboard.
        database: the one that it shows.
    """

    def __init__(self, dashboard: Wsgi, database: Database) -> None:
        self._dashboard, self._database = dashboard, database
        self._kept: OrderedDict[int, _Kept] = OrderedDict()
        self._lock = threading.Lock()
        self._warming: dict[int, threading.Event] = {}
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="large-studies")

    def get(self, study_id: int) -> tuple[int, bytes]:
        """The status and the text of `/api/studies/{study_id}?after=0`."""
        if study_id in self._warming:  # it is on its way: to make it twice would take twice as long
            self._warming[study_id].wait(WARM_SECONDS)
        mark = self._mark(study_id)
        with self._lock:
            kept = self._kept.get(study_id)
            count, text = (0, "") if kept is None or kept.mark != mark else (kept.count, kept.text)
        status, body = self._fetch(study_id, count)
        if status != 200:
            return status, body
        if not count:
            self._reader.submit(
                self._learn, study_id, mark, body.decode()
            )  # whoever waits need not wait for it
            return status, body
        head, trials, ended, tail = _split(body.decode())
        with self._lock:
            if self._kept.get(study_id) is kept and kept is not None and kept.count == count:
                kept.add(trials, ended)
                self._kept.move_to_end(study_id)
        return status, f"{head}{', '.join([text, *trials])}{tail}".encode()

    def warm(self) -> None:
        """Begin to keep, in the background, the large studies that were worked on last.

        Raises:
            StorageError: the database cannot say which these are.
        """
        self._warming = {study_id: threading.Event() for study_id in self._large()}
        self._reader.submit(self._warm)

    def _warm(self) -> None:
        try:
            with _sharing():
                for study_id, is_done in self._warming.items():
                    mark = self._mark(study_id)
                    status, body = self._fetch(study_id, 0)
                    if status == 200:
                        self._learn(study_id, mark, body.decode())
                    is_done.set()
        except Exception:  # noqa: BLE001 - whoever looks at them waits longer
            _log.exception("reading large studies ahead failed")
        finally:
            for is_done in self._warming.values():
                is_done.set()

    def _large(self) -> list[int]:
        """The ids of the large studies that were worked on last, the latest first; without archived ones."""
        archived = sa.exists().where(
            _USER_ATTRS.c.study_id == _TRIALS.c.study_id,
            _USER_ATTRS.c.key == ARCHIVED,
            _USER_ATTRS.c.value_json == "true",
        )
        query = sa.select(_TRIALS.c.study_id).where(~archived).group_by(_TRIALS.c.study_id)
        query = query.having(sa.func.count() >= LARGE).order_by(sa.func.max(_TRIALS.c.trial_id).desc())
        with self._database.transaction(Mode.READ) as session:
            return list(session.scalars(query.limit(STUDIES)))

    def wait(self) -> None:
        """Wait until what was read is kept."""
        self._reader.submit(lambda: None).result()

    def _learn(self, study_id: int, mark: object, body: str) -> None:
        _, trials, ended, _ = _split(body)
        if len(trials) < LARGE:
            return
        kept = _Kept(mark)
        kept.add(trials, ended)
        with self._lock:
            self._kept[study_id] = kept
            self._kept.move_to_end(study_id)
            while len(self._kept) > STUDIES:
                self._kept.popitem(last=False)

    def _mark(self, study_id: int) -> object:
        """What tells that the text of finished trials is another: notes on them, or another study under this id."""
        notes = (
            _ATTRS.select().where(_ATTRS.c.study_id == study_id).order_by(_ATTRS.c.study_system_attribute_id)
        )
        first = sa.select(_TRIALS.c.trial_id, _TRIALS.c.datetime_start).where(_TRIALS.c.study_id == study_id)
        name = sa.select(_STUDIES.c.study_name).where(_STUDIES.c.study_id == study_id)
        with self._database.transaction(Mode.READ) as session:
            begun = session.execute(first.order_by(_TRIALS.c.trial_id).limit(1)).first()
            return session.scalar(name), begun, session.execute(notes).all()

    def _fetch(self, study_id: int, after: int) -> tuple[int, bytes]:
        environ: dict[str, Any] = {
            "PATH_INFO": f"/api/studies/{study_id}",
            "QUERY_STRING": f"after={after}",
            "wsgi.input": io.BytesIO(),
        }
        setup_testing_defaults(environ)
        status: list[str] = []
        body = b"".join(self._dashboard(environ, lambda line, _headers, *_: status.append(line)))
        return int(status[0].partition(" ")[0]), body


@contextmanager
def _sharing() -> Iterator[None]:
    """Let this thread give way to others sooner: they answer requests."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def _split(body: str) -> tuple[str, list[str], list[bool], str]:
    """A document of a study: what is before its trials, the text of each and whether it is finished, what is after."""
    place = body.index(KEY) + len(KEY)  # no text has unescaped quotes, so that this is the key
    head, trials, ended = body[:place], [], []
    while body[place] != "]":
        if body[place] in ", ":
            place += 1
            continue
        trial, end = _decoder.raw_decode(body, place)  # one at a time, so that other threads get their turns
        trials.append(body[place:end])
        ended.append(trial["state"] in ENDED)
        place = end
    return head, trials, ended, body[place:]
