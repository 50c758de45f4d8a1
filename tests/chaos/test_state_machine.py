"""Whatever is asked, reported and told in whatever order by whomever: the ledger does what a simple model says.

The model is plain Python: what each trial is, who holds which lease, what was spent. After each step the database has
to hold exactly that. Seconds are quarters, so that their sums are exact.
"""

from __future__ import annotations

import math
import subprocess
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import hypothesis.strategies as st
import pytest
import sqlalchemy as sa
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from optuna.trial import TrialState

from tuner import StudyDefinition, StudyManager
from tuner.ask_tell import Answer, AskTell, Lease, Reply
from tuner.definition import Budget
from tuner.errors import ConflictError, LeaseLostError, NotFoundError
from tuner.ledger import Command, Ending, Owner, Spent, StudyState

RUNNING, WAITING, FAIL = TrialState.RUNNING, TrialState.WAITING, TrialState.FAIL
MAX_ATTEMPTS = 2


@dataclass
class Held:
    """A lease in the model."""

    trial: Trial
    fence: int
    attempt: int
    owner: str
    epochs: int = 0
    seconds: float = 0.0
    is_expired: bool = False
    ending: Ending | None = None
    told: tuple[TrialState, float | None] | None = None


@dataclass
class Trial:
    """A trial in the model; `params` are known once it has had a lease."""

    number: int
    state: TrialState
    value: float | None = None
    params: dict[str, Any] | None = None
    enqueued: dict[str, Any] = field(default_factory=dict)
    reports: dict[int, float] = field(default_factory=dict)
    leases: list[Held] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)
    delivered: dict[tuple[int, int], list[Command]] = field(default_factory=dict)

    @property
    def holder(self) -> Held | None:
        return self.leases[-1] if self.leases and self.leases[-1].ending is None else None


@dataclass
class Model:
    """What must hold."""

    budget: Budget
    gone: str
    """An owner whose process is no more."""
    trials: list[Trial] = field(default_factory=list)
    requests: dict[str, Held] = field(default_factory=dict)
    begun: int = 0
    ended: int = 0
    epochs: int = 0
    seconds: float = 0.0
    state: StudyState = StudyState.OPEN

    def is_exhausted(self) -> bool:
        of_epochs = self.budget.epochs is not None and self.epochs >= self.budget.epochs
        return of_epochs or (self.budget.seconds is not None and self.seconds >= self.budget.seconds)

    def allows_trial(self) -> bool:
        return not self.is_exhausted() and (self.budget.trials is None or self.begun < self.budget.trials)

    def takes_points(self) -> bool:
        """Whether a point that is enqueued now would run, after those that wait already."""
        waiting = sum(trial.state is WAITING and not trial.leases for trial in self.trials)
        return replace(self, begun=self.begun + waiting).allows_trial()

    def room(self) -> float:
        if self.is_exhausted():
            return 0
        return math.inf if self.budget.epochs is None else self.budget.epochs - self.epochs

    def open(self) -> list[Held]:
        return [trial.holder for trial in self.trials if trial.holder is not None]

    def let_go(self, held: Held, ending: Ending) -> None:
        trial = held.trial
        held.ending = ending
        if trial.state is not RUNNING:
            self.ended += 1
            held.ending = Ending.BY_HAND
        elif ending is Ending.LOST and held.attempt >= MAX_ATTEMPTS:
            self.ended += 1
            trial.state = FAIL
        else:
            self.epochs -= held.epochs
            self.seconds -= held.seconds
            trial.state, trial.reports = WAITING, {}

    def reap(self) -> int:
        lost = [held for held in self.open() if held.is_expired or held.owner == self.gone]
        for held in lost:
            self.let_go(held, Ending.LOST)
        return len(lost)

    def ask(self, chooses: bool) -> Trial | None:
        """The trial that an ask has to hand out."""
        self.reap()
        if self.state is not StudyState.OPEN:
            return None
        for trial in [] if chooses else self.trials:
            if trial.state is not WAITING or not (trial.leases or self.allows_trial()):
                continue  # what cannot run now is not looked at
            if trial.enqueued.get("x", 0) > 1:
                trial.state = FAIL
            else:
                self.begun += not trial.leases
                return trial
        if not self.allows_trial():
            return None
        self.begun += 1
        self.trials.append(Trial(len(self.trials), RUNNING))
        return self.trials[-1]

    def grant(self, trial: Trial, owner: str, request: str | None) -> Held:
        last = trial.leases[-1] if trial.leases else None
        fence = last.fence + 1 if last else 1
        attempt = last.attempt + (last.ending is Ending.LOST) if last else 1
        held = Held(trial, fence, attempt, owner)
        trial.state = RUNNING
        trial.leases.append(held)
        if request is not None:
            self.requests[request] = held
        return held

    def report(self, held: Held, values: Mapping[int, float], seconds: float) -> Reply:
        trial, known = held.trial, held.trial.reports
        new = [epoch for epoch in sorted(values) if epoch not in known]
        new = new[: int(min(self.room(), len(new)))]
        if new:
            self.seconds += seconds
            held.seconds += seconds
        self.epochs += len(new)
        held.epochs += len(new)
        held.is_expired = False
        trial.reports |= {epoch: values[epoch] for epoch in new}
        if self.is_exhausted():
            return Reply(Answer.STOP)
        delivered = trial.delivered.setdefault((held.fence, max(values)), [])
        if trial.commands or not new:
            delivered += trial.commands
            trial.commands = []
            return reply_to(delivered)
        return Reply(Answer.CONTINUE)


def reply_to(commands: list[Command]) -> Reply:
    by = ", ".join(dict.fromkeys(command.by for command in commands))
    if any(command.kind == "stop" for command in commands):
        return Reply(Answer.STOP, by=by)
    values = {name: value for command in commands for name, value in command.values.items()}
    return Reply(Answer.ADJUST, values, by) if commands else Reply(Answer.CONTINUE)


def same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


QUARTERS = st.integers(0, 8).map(lambda n: n / 4)
VALUES = st.sampled_from([0.1, 0.5, -2.0, math.inf, -math.inf, math.nan])
EPOCHS = st.dictionaries(st.integers(1, 6), VALUES, min_size=1, max_size=4)
ANY = st.integers(0, 40)
"""One of several: its index, modulo how many there are."""


class LedgerMachine(RuleBasedStateMachine):
    """Three owners, one of them gone, and two databases' clients."""

    managers: ClassVar[tuple[StudyManager, StudyManager]]
    gone: ClassVar[str]

    @initialize(
        trials=st.none() | st.integers(1, 6),
        epochs=st.none() | st.integers(1, 5),
        seconds=st.none() | st.just(6.0),
    )
    def begin(self, trials: int | None, epochs: int | None, seconds: float | None) -> None:
        given = {"trials": trials, "epochs": epochs, "seconds": seconds}
        definition = StudyDefinition.parse(
            {
                "name": f"s{uuid.uuid4().hex}",
                "space": {"x": {"low": 0.0, "high": 1.0}, "n": {"type": "int", "low": 1, "high": 9}},
                "sampler": {"name": "random"},
                "budget": {name: amount for name, amount in given.items() if amount is not None},
            }
        )
        self.name = definition.name
        first, second = self.managers
        first.create(definition)
        self.model = Model(definition.budget, self.gone)
        self.owners: list[AskTell] = []
        for manager, owner in ((first, "a"), (second, "b"), (first, self.gone)):
            ask_tell = manager.ask_tell(definition.name)
            ask_tell.owner, ask_tell.max_attempts = owner, MAX_ATTEMPTS
            self.owners.append(self.through(ask_tell))
        self.handles: list[tuple[Lease, Held]] = []
        """Every lease that was ever handed out, as often as it was."""

    def through(self, ask_tell: AskTell) -> AskTell:
        """What an owner speaks to."""
        return ask_tell

    def owner(self, which: int) -> AskTell:
        return self.owners[which % len(self.owners)]

    def handle(self, which: int) -> tuple[Lease, Held]:
        return self.handles[-1 - which % len(self.handles)]

    @rule(
        who=ANY,
        request=st.none() | st.sampled_from(["one", "two", "three"]),
        x=st.none() | st.sampled_from([0.0, 0.25]),
    )
    def ask(self, who: int, request: str | None, x: float | None) -> None:
        ask_tell = self.owner(who)
        held = self.model.requests.get(request or "")
        if held is not None and self.is_taken(held):
            with pytest.raises(LeaseLostError):
                ask_tell.ask(request)
            return
        if held is not None and held.ending is None:  # it is this owner's from now on
            held.owner, held.is_expired = ask_tell.owner, False
        if held is None:
            trial = self.model.ask(x is not None)
            held = None if trial is None else self.model.grant(trial, ask_tell.owner, request)
            if held is not None and x is not None:
                held.trial.enqueued = {"x": x}
        lease = ask_tell.ask(request, params=None if x is None else {"x": x})
        if held is None:
            assert lease is None
            return
        assert lease is not None
        trial = held.trial
        assert (lease.number, lease.fence, lease.attempt) == (trial.number, held.fence, held.attempt)
        trial.params = trial.params or lease.params
        assert lease.params == trial.params  # every attempt's the same
        assert set(lease.params) == {"x", "n"}
        assert lease.params.items() >= trial.enqueued.items()
        assert lease.values.keys() == trial.reports.keys()
        self.handles.append((lease, held))

    def is_taken(self, held: Held) -> bool:
        """Whether the lease of a request is not its own any more; one that was told is answered as before."""
        is_by_hand = held.ending is None and held.trial.state is not RUNNING
        return is_by_hand or held.ending in (Ending.LOST, Ending.RELEASED)

    def is_lost(self, held: Held) -> bool:
        return held.ending is not None or held.trial.state is not RUNNING

    @rule(who=ANY, which=ANY, values=EPOCHS, seconds=QUARTERS)
    def report(self, who: int, which: int, values: dict[int, float], seconds: float) -> None:
        if not self.handles:
            return
        lease, held = self.handle(which)
        known = held.trial.reports
        conflict = any(e in known and not same(known[e], value) for e, value in values.items())
        if self.is_lost(held) or conflict:
            wanted = (LeaseLostError, ConflictError) if self.is_lost(held) else ConflictError
            with pytest.raises(wanted):
                self.owner(who).report_many(lease, values, seconds=seconds)
            return
        wanted_reply = self.model.report(held, values, seconds)
        if len(values) == 1:
            ((epoch, value),) = values.items()
            reply = self.owner(who).report(lease, epoch, value, seconds=seconds)
        else:
            reply = self.owner(who).report_many(lease, values, seconds=seconds)
        assert reply == wanted_reply

    @rule(who=ANY, which=ANY, epoch=st.integers(1, 6), value=VALUES, seconds=QUARTERS)
    def report_the_next(self, who: int, which: int, epoch: int, value: float, seconds: float) -> None:
        """As `report`, of what is most often new."""
        if self.handles:
            _, held = self.handle(which)
            self.report(who, which, {max(held.trial.reports, default=0) + epoch: value}, seconds)

    @rule(who=ANY)
    def ask_for_anything(self, who: int) -> None:
        """As `ask`, more often."""
        self.ask(who, None, None)

    @rule(who=ANY, which=ANY, value=VALUES)
    def use_the_budget_up(self, who: int, which: int, value: float) -> None:
        """Report one epoch more than the budget has room for."""
        if self.handles and self.model.budget.epochs is not None:
            _, held = self.handle(which)
            first = max(held.trial.reports, default=0) + 1
            last = first + self.model.budget.epochs - self.model.epochs
            self.report(who, which, dict.fromkeys(range(first, last + 1), value), 0.25)

    @rule(who=ANY, which=ANY)
    def heartbeat(self, who: int, which: int) -> None:
        if not self.handles:
            return
        lease, held = self.handle(which)
        if self.is_lost(held):
            with pytest.raises(LeaseLostError):
                self.owner(who).heartbeat(lease)
            return
        held.is_expired = False
        assert self.owner(who).heartbeat(lease) == reply_to(held.trial.commands)

    @rule(
        who=ANY,
        which=ANY,
        state=st.sampled_from([TrialState.COMPLETE, TrialState.PRUNED, FAIL]),
        value=VALUES,
        seconds=QUARTERS,
    )
    def tell(self, who: int, which: int, state: TrialState, value: float, seconds: float) -> None:
        if not self.handles:
            return
        lease, held = self.handle(which)
        given = None if state is FAIL else value
        told = (state, given)
        if math.isnan(value):
            told = (FAIL if state is TrialState.COMPLETE else state, None)
        ask_tell = self.owner(who)
        if held.ending is Ending.TOLD and held.told != told:
            with pytest.raises(ConflictError):
                ask_tell.tell(lease, state, given, seconds=seconds)
            return
        if held.ending is not Ending.TOLD and self.is_lost(held):
            with pytest.raises(LeaseLostError):
                ask_tell.tell(lease, state, given, seconds=seconds)
            return
        if held.ending is None:
            self.model.epochs += int(held.epochs == 0 and self.model.room() > 0)
            self.model.seconds += seconds
            self.model.ended += 1
            held.ending, held.told = Ending.TOLD, told
            held.trial.state, held.trial.value = told
        assert ask_tell.tell(lease, state, given, seconds=seconds) is told[0]

    @rule(who=ANY, which=ANY)
    def tell_again(self, who: int, which: int) -> None:
        """What was told, also by one who has forgotten what was reported."""
        done = [(lease, held) for lease, held in self.handles if held.told is not None]
        if done:
            lease, held = done[which % len(done)]
            assert held.told is not None
            lease.values.clear()
            assert self.owner(who).tell(lease, *held.told, seconds=1.0) is held.told[0]

    @rule(who=ANY, which=ANY)
    def release(self, who: int, which: int) -> None:
        if not self.handles:
            return
        lease, held = self.handle(which)
        if held.ending not in (None, Ending.RELEASED):
            with pytest.raises(LeaseLostError):
                self.owner(who).release(lease)
            return
        if held.ending is None:
            self.model.let_go(held, Ending.RELEASED)
        self.owner(who).release(lease)

    @rule(who=ANY, which=ANY, epoch=st.integers(0, 4))
    def rewind(self, who: int, which: int, epoch: int) -> None:
        if not self.handles:
            return
        lease, held = self.handle(which)
        if self.is_lost(held):
            with pytest.raises(LeaseLostError):
                self.owner(who).rewind(lease, epoch)
            return
        self.owner(who).rewind(lease, epoch)
        held.is_expired = False
        held.trial.reports = {e: value for e, value in held.trial.reports.items() if e <= epoch}

    @rule()
    def let_all_leases_run_out(self) -> None:
        ask_tell = self.owners[0]
        with ask_tell.ledger.transaction() as session:
            late = sa.text("UPDATE tuner_leases SET expires_at = 0 WHERE study_id = :study")
            session.execute(late, {"study": ask_tell.study._study_id})
        for held in self.model.open():
            held.is_expired = True

    @rule(who=ANY)
    def reap(self, who: int) -> None:
        assert self.owner(who).reap() == self.model.reap()

    @rule(x=st.sampled_from([0.5, 0.75, 99.0]))
    def enqueue(self, x: float) -> None:
        if self.put_in_line(x):
            self.model.trials.append(Trial(len(self.model.trials), WAITING, enqueued={"x": x}))

    def put_in_line(self, x: float) -> bool:
        """Whether it was taken; Optuna's own function takes everything."""
        if x > 1 or self.model.begun % 2:
            self.owners[0].study.enqueue_trial({"x": x})
            return True
        if not self.model.takes_points():
            with pytest.raises(ConflictError, match="would never run"):
                self.enqueue_at(x)
            return False
        self.enqueue_at(x)
        return True

    def enqueue_at(self, x: float) -> None:
        self.owners[1].enqueue({"x": x})

    @rule(state=st.sampled_from([StudyState.OPEN, StudyState.OPEN, StudyState.PAUSED, StudyState.STOPPED]))
    def set_state(self, state: StudyState) -> None:
        """Pause, stop or resume the study; a stop reaches every trial that runs."""
        self.change(state)
        self.model.state = state
        if state is StudyState.STOPPED:
            for held in self.model.open():
                if held.trial.state is RUNNING:
                    held.trial.commands.append(Command("stop", {}, "eve"))

    def change(self, state: StudyState) -> None:
        manager = self.managers[1]
        if state is StudyState.STOPPED:
            manager.stop_study(self.name, by="eve")
        else:
            (manager.resume if state is StudyState.OPEN else manager.pause)(self.name)

    @rule()
    def ask_by_hand(self) -> None:
        """As `study.optimize` does: it takes what waits, and nobody's lease watches over it."""
        waiting = [trial for trial in self.model.trials if trial.state is WAITING]
        asked = self.owners[1].study.ask()
        if waiting:
            waiting[0].state = RUNNING
        else:
            self.model.trials.append(Trial(len(self.model.trials), RUNNING))
        assert asked.number == (waiting[0] if waiting else self.model.trials[-1]).number

    @rule(which=ANY, value=st.sampled_from([0.5, 3.0]))
    def end_by_hand(self, which: int, value: float) -> None:
        running = [trial for trial in self.model.trials if trial.state is RUNNING]
        if running:
            trial = running[which % len(running)]
            self.owners[1].study.tell(trial.number, value)
            trial.state, trial.value = TrialState.COMPLETE, value

    @rule(who=ANY, number=st.integers(0, 6), x=st.none() | st.sampled_from([0.1, 0.2]))
    def command(self, who: int, number: int, x: float | None) -> None:
        ask_tell = self.owner(who)
        command = Command("stop", {}, "eve") if x is None else Command("adjust", {"x": x}, f"{who % 2}")

        def ask_for_it() -> None:
            if command.kind == "stop":
                ask_tell.stop(number, by=command.by)
            else:
                ask_tell.adjust(number, command.values, by=command.by)

        there = number < len(self.model.trials)
        if there and self.model.trials[number].holder is not None:
            self.model.trials[number].commands.append(command)
            ask_for_it()
        else:
            with pytest.raises(ConflictError if there else NotFoundError):
                ask_for_it()

    @invariant()
    def the_database_holds_what_the_model_says(self) -> None:
        if not hasattr(self, "model"):
            return
        model, ask_tell = self.model, self.owners[0]
        wanted = Spent(model.begun, model.ended, model.epochs, model.seconds, model.state)
        assert ask_tell.spent() == wanted
        assert model.budget.trials is None or model.begun <= model.budget.trials
        assert model.budget.epochs is None or model.epochs <= model.budget.epochs
        trials = ask_tell.ledger.database.get_all_trials(ask_tell.study._study_id)
        assert [trial.number for trial in trials] == [trial.number for trial in model.trials]
        for trial, modelled in zip(trials, model.trials, strict=True):
            assert (trial.state, trial.value) == (modelled.state, modelled.value)
            assert trial.intermediate_values.keys() == modelled.reports.keys()
            assert all(same(trial.intermediate_values[e], v) for e, v in modelled.reports.items())
            assert modelled.params is None or trial.params == modelled.params
        ids = {trial._trial_id: trial.number for trial in trials}
        leases = [
            (ids[lease.trial_id], lease.fence, lease.attempt, lease.owner, lease.epochs, lease.seconds)
            for lease in ask_tell.open_leases()
        ]
        assert leases == [
            (held.trial.number, held.fence, held.attempt, held.owner, held.epochs, held.seconds)
            for held in model.open()
        ]
        assert all(held.attempt <= MAX_ATTEMPTS for held in model.open())

    def teardown(self) -> None:
        """Whatever has happened: with time, everything that was begun under a lease ends."""
        if not hasattr(self, "model"):
            return
        self.set_state(StudyState.OPEN)
        for _ in range(MAX_ATTEMPTS + 1):
            self.let_all_leases_run_out()
            self.reap(0)
            while any(trial.state is WAITING and trial.leases for trial in self.model.trials):
                self.ask(0, None, None)
                self.tell(0, 0, TrialState.COMPLETE, 0.5, 0.0)
        self.the_database_holds_what_the_model_says()
        assert self.model.open() == []
        ask_tell = self.owners[0]
        for trial in ask_tell.study.get_trials(deepcopy=False):
            with ask_tell.ledger.transaction() as session:
                history = ask_tell.ledger.history(session, ask_tell.study._study_id, trial._trial_id)
            modelled = self.model.trials[trial.number]
            assert [lease["ending"] for lease in history] == [held.ending for held in modelled.leases]
            epochs = [lease["epochs"] for lease in history]
            assert len(epochs) == len(modelled.leases)
            assert all(e >= held.epochs for e, held in zip(epochs, modelled.leases, strict=True))


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def one_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database of each kind: making its tables takes longer than a hundred steps."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path_factory.mktemp('chaos')}/tuner.db"
    return str(request.getfixturevalue("postgresql_server").url.format(database="postgres"))


def test_the_ledger_does_what_a_simple_model_says(one_url: str) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    owner = Owner.here()

    class Bound(LedgerMachine):
        managers = (StudyManager(one_url), StudyManager(one_url))

    Bound.gone = str(Owner(owner.host, gone.pid, owner.started))
    examples = settings.default.max_examples // 5  # type: ignore[union-attr]
    run_state_machine_as_test(Bound, settings=settings(max_examples=examples, stateful_step_count=40))
