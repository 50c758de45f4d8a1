"""The service from Python: the verbs of a study, and a plain objective optimized through them."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import quote

from optuna.trial import TrialState

from objectives.epoch import Objective
from tuner.ask_tell import Lease, Reply, Values
from tuner.client.documents import RemoteTrial, StudyStatus, read
from tuner.client.http import PATIENCE, TIMEOUT, Transport
from tuner.client.remote import RemoteAskTell, study_path
from tuner.definition import StudyDefinition
from tuner.errors import DefinitionError, LeaseLostError, TunerError
from tuner.heartbeat import heartbeat
from tuner.termination import terminations_raised
from tuner.trial_run import Function, Outcome, run_leased

__all__ = ["KEEP_SECONDS", "LONGEST_WAIT", "Client", "RemoteStudy", "Waiting"]

_log = logging.getLogger(__name__)

KEEP_SECONDS = 10.0
"""So often, at most, a checkpoint is uploaded for the next attempt at a trial."""

SHORTEST_WAIT, LONGEST_WAIT = 0.2, 10.0
"""Seconds between two asks while there is no trial."""


class Client:
    """The studies of a service. Close it at the end, for instance with `with`.

    Args:
        url: of the service: `https://HOST[:PORT]`; plain `http://` only on this machine.
        token: what the service gave: `tuner token create` makes one.
        patience: for how many seconds a call is tried again while the service does not answer.
        timeout: for how many seconds one try waits for the answer.
        allow_http: send the token in the clear to another machine: for networks that are one's own.
        ca_file: certificates to trust, in PEM, instead of the usual ones.
        client_id: who asks for trials, for people; request ids are its own. By default the name of this process.

    All methods raise AccessDeniedError where the token may not do this, and ServiceUnavailableError where the service
    does not answer for as long as the patience lasts.

    Raises:
        DefinitionError: the URL would send the token in the clear, or one of the arguments is none.

    Example:
        >>> def objective(trial):
        ...     return (trial.suggest_float("x", -10, 10) - 2) ** 2
        >>> with Client("https://tuner.example.com", token) as client:  # doctest: +SKIP
        ...     study = client.create({"name": "bowl", "budget": {"trials": 40},
        ...                            "space": {"x": {"low": -10, "high": 10}}})
        ...     study.optimize(objective)
        ...     print(study.best().params)
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        patience: float = PATIENCE,
        timeout: float = TIMEOUT,
        allow_http: bool = False,
        ca_file: str | None = None,
        client_id: str | None = None,
    ) -> None:
        self.client_id = client_id
        self.transport = Transport(
            url, token, patience=patience, timeout=timeout, allow_http=allow_http, ca_file=ca_file
        )

    def __repr__(self) -> str:
        return f"Client({self.transport.url!r})"

    def close(self) -> None:
        """Close the connections."""
        self.transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def studies(self, *, archived: bool = False) -> list[StudyStatus]:
        """All studies that the token is for; archived ones only where asked for."""
        pages = _pages(self.transport, "/v1/studies", "studies", {"archived": archived})
        return [read(StudyStatus, study) for study in pages]

    def create(self, definition: StudyDefinition | Mapping[str, Any]) -> RemoteStudy:
        """Create the study that a definition describes, or open it if the same is there already.

        Raises:
            ConflictError: there is a study of this name with another definition.
            DefinitionError: the definition breaks a rule.
        """
        document = definition.dump() if isinstance(definition, StudyDefinition) else dict(definition)
        created: StudyStatus = read(StudyStatus, self.transport.post("/v1/studies", document))
        return RemoteStudy(self.transport, created.name, self.client_id)

    def study(self, name: str) -> RemoteStudy:
        """The study of this name.

        Raises:
            NotFoundError: there is none.
        """
        study = RemoteStudy(self.transport, name, self.client_id)
        study.status()
        return study

    def import_study(self, document: Mapping[str, Any]) -> RemoteStudy:
        """Bring in what `RemoteStudy.export` gave, from this service or another.

        Raises:
            ConflictError: there is a study of this name already.
            DefinitionError: the document breaks a rule.
        """
        imported: StudyStatus = read(StudyStatus, self.transport.post("/v1/studies:import", document))
        return RemoteStudy(self.transport, imported.name, self.client_id)

    def compare(self, definition: StudyDefinition | Mapping[str, Any]) -> dict[str, Any]:
        """Create the studies of a comparison, for workers to run. Returns how far it is; errors as in `create`."""
        document = definition.dump() if isinstance(definition, StudyDefinition) else dict(definition)
        answer: dict[str, Any] = self.transport.post("/v1/comparisons", document)
        return answer

    def comparison(self, name: str) -> dict[str, Any]:
        """How far a comparison is: status, ranking, verdict.

        Raises:
            NotFoundError: there is none of this name.
        """
        answer: dict[str, Any] = self.transport.get(f"/v1/comparisons/{quote(name, safe='')}")
        return answer

    def comparisons(self) -> list[str]:
        """The names of the comparisons that the token is for."""
        return [found["name"] for found in _pages(self.transport, "/v1/comparisons", "comparisons", {})]

    def report(self, comparison: str) -> str:
        """The report of a comparison, as a page of HTML.

        Raises:
            NotFoundError: there is no comparison of this name.
        """
        return self.transport.send("GET", f"/v1/comparisons/{quote(comparison, safe='')}/report").text


class RemoteStudy:
    """A study of a service, by name. What `Client` says of errors holds here too."""

    def __init__(self, transport: Transport, name: str, client_id: str | None = None) -> None:
        self.name, self._transport, self._client_id = name, transport, client_id
        self._side: RemoteAskTell | None = None

    def __repr__(self) -> str:
        return f"RemoteStudy({self._transport.url!r}, {self.name!r})"

    @property
    def ask_tell(self) -> RemoteAskTell:
        """Ask and tell, as workers use it."""
        if self._side is None:
            self._side = RemoteAskTell(self._transport, self.name, self._client_id)
        return self._side

    @property
    def definition(self) -> StudyDefinition:
        """What the study is."""
        return self.ask_tell.definition

    def status(self) -> StudyStatus:
        """How far the study is.

        Raises:
            NotFoundError: there is none of this name.
        """
        status: StudyStatus = read(StudyStatus, self._transport.get(study_path(self.name)))
        return status

    def ask(self, request_id: str | None = None) -> Lease | None:
        """A trial to run, held by a lease; None if there is none now.

        Args:
            request_id: names this request: asked again by the same `client_id`, also after a crash, it is the same
                trial.
        """
        return self.ask_tell.ask(request_id)

    def report(self, lease: Lease, step: int, value: float) -> Reply:
        """Record the value after a step; what to do now: continue, prune, stop or adjust.

        Raises:
            LeaseLostError: another has the trial now.
            ConflictError: another value was reported for this step before.
        """
        return self.ask_tell.report(lease, step, value)

    def heartbeat(self, lease: Lease) -> Reply:
        """Keep the lease: a trial that is not heard of for as long as it lasts is handed to another."""
        return self.ask_tell.heartbeat(lease)

    def keep(self, lease: Lease) -> contextlib.AbstractContextManager[None]:
        """Send heartbeats in the background for as long as a `with` block takes."""
        return heartbeat(self.ask_tell, lease)

    def tell(
        self,
        lease: Lease,
        values: Values | None = None,
        state: str = "complete",
        attrs: Mapping[str, Any] | None = None,
    ) -> str:
        """End the trial; the state in which it ended.

        Args:
            lease: of the trial.
            values: the value of a completed trial; of a pruned one its last. With several objectives one for each, in
                their order, and none of a pruned trial.
            state: complete, pruned or fail.
            attrs: user attributes to keep with it.

        Raises:
            LeaseLostError: another has the trial now.
            ConflictError: something else was told before.
            DefinitionError: there is no such state, no value, or not one for each objective.
        """
        if state not in ("complete", "pruned", "fail"):
            raise DefinitionError(f"a trial ends as complete, pruned or fail; got {state!r}")
        if state == "complete" and values is None:
            raise DefinitionError(
                f"a completed trial needs a number as its value; trial {lease.number} has none"
            )
        ended = self.ask_tell.tell(lease, TrialState[state.upper()], values, attrs)
        return ended.name.lower()

    def release(self, lease: Lease) -> None:
        """Give the trial back unfinished: the next ask hands it out again."""
        self.ask_tell.release(lease)

    def enqueue(self, params: Mapping[str, Any], attrs: Mapping[str, Any] | None = None) -> RemoteTrial:
        """Let a point of one's own be tried next; the sampler chooses what it leaves open.

        Raises:
            DefinitionError: the point is not in the space.
        """
        body = {"params": dict(params), "attrs": dict(attrs or {})}
        trial: RemoteTrial = read(RemoteTrial, self._post("/trials:enqueue", body))
        return trial

    def adjust(self, number: int, values: Mapping[str, Any]) -> None:
        """Let a running trial go on with other hyperparameters after its next report.

        Raises:
            ConflictError: nobody is running it.
            DefinitionError: one cannot be adjusted, or its value is not legal.
        """
        self._post(f"/trials/{number}:adjust", {"values": dict(values)})

    def stop_trial(self, number: int) -> None:
        """Let a running trial end with its next report.

        Raises:
            ConflictError: nobody is running it.
        """
        self._post(f"/trials/{number}:stop", {})

    def trials(self, state: str | None = None) -> list[RemoteTrial]:
        """The trials in their order, or those in one state."""
        query = {} if state is None else {"state": state}
        pages = _pages(self._transport, f"{study_path(self.name)}/trials", "trials", query)
        return [read(RemoteTrial, trial) for trial in pages]

    def trial(self, number: int) -> RemoteTrial:
        """One trial.

        Raises:
            NotFoundError: there is no such trial.
        """
        trial: RemoteTrial = read(
            RemoteTrial, self._transport.get(f"{study_path(self.name)}/trials/{number}")
        )
        return trial

    def best(self) -> RemoteTrial:
        """The best completed trial.

        Raises:
            DefinitionError: the study has several objectives; `best_trials` has their front.
            TunerError: none is complete.
        """
        if len(self.status().objectives) > 1:
            raise DefinitionError(
                f"{self.name} has several objectives, and no best trial: best_trials() has the Pareto front"
            )
        best = self.best_trials()
        if not best:
            raise TunerError(f"{self.name} has no completed trial to call the best")
        return best[0]

    def best_trials(self) -> list[RemoteTrial]:
        """The best completed trial, or with several objectives the Pareto front; none before the first is complete."""
        front = self._transport.get(f"{study_path(self.name)}/best")["trials"]
        return [read(RemoteTrial, trial) for trial in front]

    def importances(self, objective: str | None = None) -> dict[str, float]:
        """How much of the differences between the values each parameter explains, as shares.

        Args:
            objective: for which of several, by its name.

        Raises:
            DefinitionError: there is none of this name, or none of several is named.
        """
        query = {} if objective is None else {"objective": objective}
        answer = self._transport.get(f"{study_path(self.name)}/importances", **query)
        importances: dict[str, float] = answer["importances"]
        return importances

    def export(self) -> dict[str, Any]:
        """The definition and all trials, as a document that `Client.import_study` reads."""
        document: dict[str, Any] = self._post(":export")
        return document

    def pause(self) -> StudyStatus:
        """Hand out no trials until it is resumed; those that run go on."""
        return self._verb("pause")

    def resume(self) -> StudyStatus:
        """Hand out trials again."""
        return self._verb("resume")

    def stop(self) -> StudyStatus:
        """Hand out no trials any more, and let those that run end with their next report."""
        return self._verb("stop")

    def archive(self, *, undo: bool = False) -> StudyStatus:
        """Take the study out of the list, or put it back. Nothing is deleted."""
        return self._verb("unarchive" if undo else "archive")

    def optimize(
        self,
        objective: Objective | Function,
        n_trials: int | None = None,
        *,
        timeout: float | None = None,
        n_jobs: int = 1,
        catch: type[Exception] | Iterable[type[Exception]] = (),
        callbacks: Iterable[Callable[[RemoteStudy, RemoteTrial], None]] = (),
    ) -> None:
        """Run trials of the study here until its budget is used up, as `optuna.Study.optimize` does.

        A trial whose objective raises has failed, which the study keeps with the reason; then what it raised is
        raised, or, if `catch` names it, logged. Numbers that diverged (NaN, `objectives.epoch.Diverged`) are logged
        alone. SIGTERM and Ctrl-C give the running trial back for another to take up. With several jobs a trial is
        given back at its next report, and a function that never reports finishes its trial.

        Args:
            objective: a plain Optuna objective `f(trial) -> float` (or a sequence of floats, one for each of several
                objectives), or an objective of epochs. The function may suggest what is in the study's space, in the
                same ranges.
            n_trials: run at most so many trials; None: as many as there are.
            timeout: begin no trial after so many seconds.
            n_jobs: run so many trials at once, in threads; -1: as many as there are cores.
            catch: exceptions of the objective after which the next trial is run.
            callbacks: called with this study and the trial after each trial's end, by the thread that ran it.

        Raises:
            DefinitionError: the study has no space, or the objective does not accept it.
            NotOfferedError: the function suggests what is not in the space; the trial is given back.
            Exception: what the objective has raised, unless it is in `catch`.
            SystemExit: after SIGTERM, once the trial was given back, where the program does nothing else about it.
        """
        jobs = (os.cpu_count() or 1) if n_jobs == -1 else n_jobs
        if jobs < 1 or (n_trials is not None and n_trials < 1):
            raise DefinitionError(f"n_jobs and n_trials must be at least 1; got {n_jobs} and {n_trials}")
        if not len(self.definition.space):
            raise DefinitionError(
                f"{self.name} has no space: give its definition one, as a service chooses all parameters at the ask"
            )
        if isinstance(objective, Objective):
            self.definition.check_accepted_by(objective)
        deadline = None if timeout is None else time.monotonic() + timeout
        work = _Work(self, objective, _exceptions(catch), tuple(callbacks), n_trials, deadline)
        with terminations_raised():
            if jobs == 1:
                work.go_on()
            else:
                work.in_threads(jobs)

    def _verb(self, verb: str) -> StudyStatus:
        status: StudyStatus = read(StudyStatus, self._post(f":{verb}"))
        return status

    def _post(self, rest: str, body: Mapping[str, Any] | None = None) -> Any:
        return self._transport.post(f"{study_path(self.name)}{rest}", body)


class Waiting:
    """How long to wait before the next ask: ever longer while there is nothing, and not all at the same time."""

    def __init__(self) -> None:
        self._seconds = SHORTEST_WAIT

    def reset(self) -> None:
        """There was a trial."""
        self._seconds = SHORTEST_WAIT

    def next(self) -> float:
        """Seconds to wait, as there was none again."""
        seconds, self._seconds = self._seconds, min(2 * self._seconds, LONGEST_WAIT)
        return seconds * random.uniform(0.5, 1.0)


@dataclass(slots=True)
class _Work:
    """Trials of a study, run here by one thread or several."""

    study: RemoteStudy
    objective: Objective | Function
    catch: tuple[type[Exception], ...]
    callbacks: tuple[Callable[[RemoteStudy, RemoteTrial], None], ...]
    left: int | None
    deadline: float | None
    is_stopping: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _is_paused: bool = False

    def go_on(self) -> None:
        """Run trials until there are none left, or not to be any more."""
        waiting = Waiting()
        while self._may_begin():
            lease = self._ask()
            if lease is None:
                self._give_back_turn()
                if self.ask_tell.is_finished or self.ask_tell.state in ("stopped", "archived"):
                    return
                self._say_pause()
                self.is_stopping.wait(waiting.next())
                continue
            waiting.reset()
            outcome = run_leased(
                self.ask_tell, lease, self.objective, self.is_stopping.is_set, keep_every=KEEP_SECONDS
            )
            self._take(outcome, lease)

    @property
    def ask_tell(self) -> RemoteAskTell:
        return self.study.ask_tell

    def _say_pause(self) -> None:
        """Log, once, that it is a person who is waited for."""
        with self._lock:
            is_news, self._is_paused = not self._is_paused, self.ask_tell.state == "paused"
            if self._is_paused and is_news:
                _log.warning("%s is paused: waiting until somebody resumes it", self.study.name)

    def in_threads(self, jobs: int) -> None:
        """Run so many trials at once; what ends one thread ends all."""
        with ThreadPoolExecutor(jobs, thread_name_prefix="trial") as threads:
            futures = [threads.submit(self._go_on_and_stop_others) for _ in range(jobs)]
            try:
                for future in futures:
                    future.result()
            finally:
                self.is_stopping.set()

    def _go_on_and_stop_others(self) -> None:
        try:
            self.go_on()
        except BaseException:
            self.is_stopping.set()
            raise

    def _may_begin(self) -> bool:
        if self.is_stopping.is_set() or (self.deadline is not None and time.monotonic() >= self.deadline):
            return False
        with self._lock:
            if self.left is None:
                return True
            if self.left == 0:  # not below: a turn that another gives back is one
                return False
            self.left -= 1
            return True

    def _give_back_turn(self) -> None:
        with self._lock:
            if self.left is not None:
                self.left += 1

    def _ask(self) -> Lease | None:
        """A trial; one whose answer a Ctrl-C has kept from being heard is given back."""
        request_id = uuid.uuid4().hex
        try:
            return self.ask_tell.ask(request_id)
        except LeaseLostError:
            return None  # it was, while the answers were lost: another request
        except TunerError:
            raise
        except BaseException:
            with contextlib.suppress(TunerError):
                side = self.ask_tell
                if (lease := side.ask(request_id, patience=side.short_patience)) is not None:
                    side.release(lease)
            raise

    def _take(self, outcome: Outcome, lease: Lease) -> None:
        """Log how a trial ended, tell it the callbacks, and raise what it raised."""
        if outcome.state is None:
            self._give_back_turn()
            return
        name, error = f"{outcome.study} trial {outcome.number}", outcome.error
        if outcome.state is TrialState.FAIL:
            failed = "%s failed with parameters %s because of: %s"
            _log.warning(
                failed,
                name,
                dict(lease.params),
                outcome.failure,
                exc_info=error if outcome.is_error else None,
            )
        else:
            ended = outcome.state.name.lower()
            value = outcome.values if outcome.value is None else outcome.value
            _log.info("%s: %s with value %s, parameters %s", name, ended, value, dict(lease.params))
        if error is not None and outcome.is_error and not isinstance(error, self.catch):
            raise error
        if self.callbacks:
            trial = self.study.trial(outcome.number)
            for callback in self.callbacks:
                callback(self.study, trial)


def _exceptions(catch: Any) -> tuple[type[Exception], ...]:
    """What `catch` names, as a tuple."""
    kinds = (catch,) if isinstance(catch, type) else tuple(catch)
    for kind in kinds:
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            raise DefinitionError(f"catch takes classes of exceptions; got {kind!r}")
    return kinds


def _pages(transport: Transport, path: str, what: str, query: Mapping[str, Any]) -> Iterator[Any]:
    """All items of a list that comes in pages."""
    token: str | None = None
    while True:
        page = transport.get(
            path, **query, page_size=1000, **({} if token is None else {"page_token": token})
        )
        yield from page[what]
        token = page.get("next_page_token")
        if not token:
            return
