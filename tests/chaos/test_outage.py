"""The database server crashes in mid-run and comes back, soon or late."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from optuna.trial import TrialState
from postgresql import Server, server, server_programs

import tuner.storage
from objectives.epoch import Epoch, Hyperparameter, Seed
from tuner import StudyDefinition, StudyManager
from tuner.ask_tell import AskTell
from tuner.errors import StorageUnavailableError

pytestmark = pytest.mark.slow

DEFINITION: dict[str, Any] = {
    "name": "s",
    "space": {"x": {"low": 0.0, "high": 1.0}},
    "sampler": {"name": "random"},
    "budget": {"trials": 80},
}


class Quick:
    name, direction, description = "quick", "minimize", "for a test"
    hyperparameters = (Hyperparameter("x", 0.5),)

    def evaluate(self, params: dict[str, Any], *, seed: Seed, resume: Any = None) -> Iterator[Epoch]:
        for epoch in (1, 2, 3):
            yield Epoch(epoch, params["x"] / epoch)


@pytest.fixture
def crashing() -> Iterator[Server]:
    """A server of its own that keeps each commit through its crash."""
    if server_programs() is None:
        from postgresql import absent

        absent("PostgreSQL's server programs are not installed")
    with server(durable=True) as running:
        yield running


def test_a_run_goes_on_by_itself_after_a_crash_of_the_server(
    crashing: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[int, Any] = {}
    tell = AskTell.tell

    def tell_and_note(self: AskTell, lease: Any, state: TrialState, values: Any, *a: Any, **k: Any) -> Any:
        ended = tell(self, lease, state, values, *a, **k)
        told[lease.number] = values
        return ended

    monkeypatch.setattr(AskTell, "tell", tell_and_note)
    outcomes = []
    some = [threading.Event() for _ in range(2)]

    def note(outcome: Any) -> None:
        outcomes.append(outcome)
        for n, event in enumerate(some, start=1):
            if len(outcomes) >= 20 * n:
                event.set()

    def crash() -> None:
        for event in some:
            assert event.wait(120)
            crashing.stop()
            crashing.start()

    crashes = threading.Thread(target=crash)
    crashes.start()
    manager = StudyManager(crashing.url.format(database="postgres"))
    study = manager.run(StudyDefinition.parse(DEFINITION), Quick(), workers=3, on_outcome=note)
    crashes.join()
    trials = study.trials
    assert [trial.number for trial in trials] == list(range(80))
    assert all(trial.state is TrialState.COMPLETE for trial in trials)
    assert told == {trial.number: trial.values for trial in trials}
    spent = manager.ask_tell("s").spent()
    assert (spent.trials, spent.ended) == (80, 80)
    # a crash may take the last reports back, as they do not wait for the disk, but the books with them
    assert spent.epochs == sum(len(trial.intermediate_values) for trial in trials)
    assert manager.ask_tell("s").open_leases() == []


@pytest.mark.long
def test_a_server_that_stays_away_is_an_error_in_words_and_its_trials_are_handed_out_later(
    crashing: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuner.storage, "PATIENCE", 1.0)
    manager = StudyManager(crashing.url.format(database="postgres"))
    manager.create(StudyDefinition.parse(DEFINITION))
    ask_tell = manager.ask_tell("s")
    lease = ask_tell.ask()
    assert lease is not None
    ask_tell.report(lease, 1, 0.5)
    crashing.stop()
    for action in (
        ask_tell.ask,
        lambda: ask_tell.report(lease, 2, 0.5),
        lambda: ask_tell.tell(lease, TrialState.COMPLETE, 0.5),
        lambda: ask_tell.adjust(0, {"x": 0.5}),
        ask_tell.spent,
    ):
        with pytest.raises(StorageUnavailableError) as caught:
            action()
        text = str(caught.value)
        assert text.startswith("postgresql+psycopg://tuner@/postgres")
        assert text.count("(tried again for 1 s)") == 1
        assert "\n" not in text
    crashing.start()
    with ask_tell.ledger.transaction() as session:
        session.execute(sa.text("UPDATE tuner_leases SET expires_at = 0"))
    again = ask_tell.ask()
    assert again is not None
    assert (again.number, again.params, again.attempt) == (lease.number, lease.params, 2)
    ask_tell.tell(again, TrialState.COMPLETE, 0.25)
    assert ask_tell.study.trials[0].value == 0.25
