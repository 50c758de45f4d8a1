"""An attempt that goes on where an earlier one was: the trial is as if nothing had happened, and has cost the same."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tuner.resumption
from objectives.epoch import Epoch, Hyperparameter
from tuner import StudyDefinition, StudyManager
from tuner.ask_tell import AskTell, Lease
from tuner.ledger import Ending, Spent
from tuner.resumption import MAGIC, Resumption
from tuner.trial_run import Outcome, run_leased

EPOCHS = 6


class Walk:
    """Notes the epochs that it trains."""

    name, direction, description = "walk", "minimize", "for a test"
    hyperparameters = (Hyperparameter("x", 0.5, adjustable=True),)

    def __init__(self, *, size: int = 0, epochs: int = EPOCHS) -> None:
        self.size, self.epochs = size, epochs
        self.trained: list[int] = []

    def evaluate(
        self, params: Mapping[str, Any], *, seed: Any, resume: bytes | None = None
    ) -> Iterator[Epoch]:
        first, value = json.loads(resume) if resume else (0, 1.0)
        for epoch in range(first + 1, self.epochs + 1):
            self.trained.append(epoch)
            value = value * 0.9 + params["x"] / 3
            state = json.dumps([epoch, value]).ljust(self.size).encode()
            adjustment = yield Epoch(epoch, value, {"error": value / 2}, checkpoint=lambda state=state: state)
            params = {**params, **(adjustment or {})}


DEFINITION = StudyDefinition.parse(
    {"name": "walks", "budget": {"trials": 2}, "space": {"x": {"low": 0.0, "high": 1.0}}}
)


def asked(manager: StudyManager) -> tuple[AskTell, Lease]:
    manager.create(DEFINITION)
    ask_tell = manager.ask_tell("walks")
    lease = ask_tell.ask()
    assert lease is not None
    return ask_tell, lease


def run(manager: StudyManager, walk: Walk, *, until: int | None = None, keep: float | None = 0.0) -> Outcome:
    """An attempt, given back after the epoch `until`."""
    ask_tell, lease = asked(manager)
    return run_leased(
        ask_tell, lease, walk, lambda: until is not None and max(walk.trained) >= until, keep_every=keep
    )  # type: ignore[arg-type]


def lose(ask_tell: AskTell, lease: Lease) -> None:
    """As if its worker were killed."""
    ask_tell.ledger.lease_seconds = -1.0
    ask_tell.heartbeat(lease)
    assert ask_tell.reap() == 1
    ask_tell.ledger.lease_seconds = 120.0


def straight_values(x: float) -> list[float]:
    """Those of a training in one go."""
    values, value = [], 1.0
    for _ in range(EPOCHS):
        value = value * 0.9 + x / 3
        values.append(value)
    return values


def test_a_trial_that_was_given_back_goes_on(url: str) -> None:
    with StudyManager(url) as manager:
        assert run(manager, first := Walk(), until=3).state is None
        assert manager.load("walks").trials[0].intermediate_values == {}
        assert manager.ask_tell("walks").spent() == Spent(trials=1)
        run(manager, second := Walk())
        assert (first.trained, second.trained) == ([1, 2, 3], [4, 5, 6])
        trial = manager.load("walks").trials[0]
        spent = manager.ask_tell("walks").spent()
        assert (spent.trials, spent.ended, spent.epochs) == (1, 1, 6)
        assert spent.seconds > 0
        assert trial.value == trial.intermediate_values[6]
        assert manager.ask_tell("walks").checkpoint(0) is None, "what nobody needs any more is deleted"
        assert trial.user_attrs["error"] == trial.value / 2
        assert list(trial.intermediate_values.values()) == straight_values(trial.params["x"])


def test_a_trial_whose_worker_was_lost_goes_on(sqlite_url: str) -> None:
    with StudyManager(sqlite_url) as manager:
        ask_tell, lease = asked(manager)
        walk = Walk()

        def crash(epoch: Epoch) -> None:
            if epoch.number == 4:
                lose(ask_tell, lease)

        outcome = run_leased(ask_tell, lease, walk, on_epoch=crash, keep_every=0.0)  # type: ignore[arg-type]
        assert outcome.state is None
        run(manager, again := Walk())
        assert again.trained == [4, 5, 6], "the third epoch's checkpoint was the last that came through"
        trial = manager.load("walks").trials[0]
        assert list(trial.intermediate_values.values()) == straight_values(trial.params["x"])
        assert trial.user_attrs["attempts"] == 2
        with manager.ledger.transaction() as session:
            history = manager.ledger.history(session, 1, trial._trial_id)
        assert [attempt["ending"] for attempt in history] == [Ending.LOST, Ending.TOLD]


def test_without_keeping_it_begins_at_the_start_again(sqlite_url: str) -> None:
    with StudyManager(sqlite_url) as manager:
        run(manager, Walk(), until=3, keep=None)
        assert manager.ask_tell("walks").checkpoint(0) is None
        run(manager, again := Walk())
        assert again.trained == [1, 2, 3, 4, 5, 6]


def test_adjustments_stay_where_they_were_made(sqlite_url: str) -> None:
    with StudyManager(sqlite_url) as manager:
        ask_tell, lease = asked(manager)
        ask_tell.adjust(0, {"x": 0.125}, by="me")
        walk = Walk()
        run_leased(ask_tell, lease, walk, lambda: len(walk.trained) >= 3, keep_every=0.0)  # type: ignore[arg-type]
        run(manager, again := Walk())
        assert again.trained == [4, 5, 6]
        trial = manager.load("walks").trials[0]
        value, values = 1.0, []
        for epoch in range(1, EPOCHS + 1):
            value = value * 0.9 + (trial.params["x"] if epoch == 1 else 0.125) / 3
            values.append(value)
        assert list(trial.intermediate_values.values()) == values


def test_a_training_that_had_come_to_its_end_is_told(sqlite_url: str) -> None:
    """Its worker was lost between its last checkpoint and its tell."""
    with StudyManager(sqlite_url) as manager:
        assert run(manager, Walk(), until=EPOCHS).state is None
        outcome = run(manager, again := Walk())
        assert again.trained == []
        trial = manager.load("walks").trials[0]
        assert trial.state.name == "COMPLETE"
        assert trial.value == outcome.value == straight_values(trial.params["x"])[-1]


def test_what_is_too_large_is_not_kept(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tuner.resumption, "LARGEST", 1000)
    with StudyManager(sqlite_url) as manager:
        run(manager, Walk(size=2000), until=3)
        assert manager.ask_tell("walks").checkpoint(0) is None
        assert len([record for record in caplog.records if "is too large" in record.message]) == 1
        run(manager, again := Walk())
        assert again.trained == [1, 2, 3, 4, 5, 6]


def test_a_checkpoint_that_cannot_be_kept_harms_no_training(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise tuner.TunerError("no room")

    monkeypatch.setattr(AskTell, "save_checkpoint", refuse)
    with StudyManager(sqlite_url) as manager:
        assert run(manager, Walk()).value is not None
    assert "a checkpoint is not kept: no room" in caplog.text


@given(
    st.dictionaries(st.integers(0, 2**31 - 1), st.floats(allow_nan=False), min_size=1),
    st.floats(0, 1e9),
    st.binary(),
)
def test_what_is_packed_is_unpacked(values: dict[int, float], seconds: float, data: bytes) -> None:
    resumption = Resumption(values, seconds, data)
    assert Resumption.unpack(resumption.pack()) == resumption
    assert Resumption.unpack(data) is None
    assert Resumption.unpack(MAGIC + data) is None
