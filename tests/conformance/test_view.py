"""The view: what a sampler sees through lenses, and that nothing of it reaches the database."""

from __future__ import annotations

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from tuner.samplers import BoxLens, HeldWrites, ReverseLogLens, StudyView, ViewSampler

DECAY = FloatDistribution(0.9, 0.999)


@given(st.floats(0.9, 0.999))
def test_the_reverse_log_lens_there_and_back(decay):
    lens = ReverseLogLens()
    seen = lens.inward(DECAY, decay)
    assert lens.see(DECAY)._contains(seen)
    assert lens.outward(DECAY, seen) == pytest.approx(decay, rel=1e-15)


@given(st.floats(0, 1))
def test_the_reverse_log_lens_never_leaves_the_range(unit):
    lens = ReverseLogLens()
    seen = lens.see(DECAY)
    assert DECAY._contains(lens.outward(DECAY, seen.low + unit * (seen.high - seen.low)))


@pytest.mark.parametrize(
    "distribution",
    [
        FloatDistribution(0.1, 0.9, log=True),
        FloatDistribution(0.0, 1.0),
        CategoricalDistribution((1, 2)),
    ],
    ids=str,
)
def test_what_cannot_be_reversed_is_seen_as_it_is(distribution):
    lens = ReverseLogLens()
    assert lens.see(distribution) == distribution
    assert lens.inward(distribution, 0.5) == lens.outward(distribution, 0.5) == 0.5


def study_with(*decays: float) -> optuna.Study:
    study = optuna.create_study()
    for decay in decays:
        study.add_trial(create_trial(params={"decay": decay}, distributions={"decay": DECAY}, value=decay))
    return study


def reversing(name, outer):
    return ReverseLogLens() if name == "decay" else None


def test_a_view_translates_trials_however_they_are_asked_for():
    study = study_with(0.9, 0.99)
    view = StudyView(study, reversing)
    for trials in (
        view.trials,
        view.get_trials(),
        view._storage.get_all_trials(view._study_id),
        view._storage.get_all_trials(view._study_id, states=(TrialState.COMPLETE,)),
    ):
        assert [t.params["decay"] for t in trials] == pytest.approx([0.1, 0.01])
        assert trials[0].distributions["decay"] == ReverseLogLens().see(DECAY)
    assert view.best_trial.params["decay"] == pytest.approx(0.1)
    assert [t.params["decay"] for t in study.trials] == [0.9, 0.99]


def test_views_stack():
    study = study_with(0.9, 0.99, 0.999)
    reversed_view = StudyView(study, reversing)
    box = BoxLens(FloatDistribution(0.005, 0.05, log=True))
    boxed = StudyView(reversed_view, lambda name, outer: box)
    assert [t.params["decay"] for t in boxed.trials] == pytest.approx([0.01])


def test_a_box_hides_trials_outside_and_shows_running_ones_as_they_move():
    study = optuna.create_study()
    box = BoxLens(IntDistribution(2, 4))
    view = StudyView(study, lambda name, outer: box)
    trial = study.ask()
    assert len(view.trials) == 1
    trial.suggest_int("k", 5, 9)
    assert view.trials == []
    assert BoxLens(CategoricalDistribution(("a",))).contains(CategoricalDistribution(("a", "b")), "a")
    assert not BoxLens(CategoricalDistribution(("a",))).contains(CategoricalDistribution(("a", "b")), "b")


def test_finished_trials_are_translated_once():
    study = study_with(*np.linspace(0.9, 0.99, 50))
    asked = []

    def counting(name, outer):
        asked.append(name)
        return ReverseLogLens()

    cache: dict = {}
    for _ in range(5):
        StudyView(study, counting, cache=cache).get_trials(deepcopy=False)
    assert len(asked) == 50


def test_writes_for_an_unborn_trial_are_held_back():
    study = optuna.create_study()
    held = HeldWrites(trial_id=-1)
    view = StudyView(study, held=held)
    view._storage.set_trial_system_attr(-1, "key", [1, 2])
    assert held.system_attrs == view._storage.get_trial_system_attrs(-1) == {"key": [1, 2]}
    trial = study.ask()
    view._storage.set_trial_system_attr(trial._trial_id, "key", "stored")
    assert study.trials[0].system_attrs["key"] == "stored"


def test_a_view_passes_on_what_it_does_not_change():
    study = study_with(0.9)
    view = StudyView(study, reversing)
    assert view.direction == study.direction
    assert view.study_name == study.study_name
    assert view.user_attrs == study.user_attrs
    with pytest.raises(RuntimeError):
        view.stop()


class Recorder(optuna.samplers.RandomSampler):
    """Notes what it sees."""

    def __init__(self):
        super().__init__(0)
        self.seen = []

    def sample_independent(self, study, trial, param_name, param_distribution):
        seen = [t.params for t in study.get_trials(deepcopy=False) if t.state.is_finished()]
        self.seen.append((param_distribution, seen))
        return super().sample_independent(study, trial, param_name, param_distribution)


def test_a_sampler_sees_only_the_inside_and_the_database_only_the_outside():
    recorder = Recorder()
    study = optuna.create_study(sampler=ViewSampler(recorder, reverse_log={"decay"}, seed=0))
    study.optimize(lambda trial: trial.suggest_float("decay", 0.9, 0.999), 3)
    assert all(distribution == ReverseLogLens().see(DECAY) for distribution, _ in recorder.seen)
    values = [trial.params["decay"] for trial in study.trials]
    assert all(0.9 <= value <= 0.999 for value in values)
    assert [p["decay"] for p in recorder.seen[2][1]] == pytest.approx([1 - value for value in values[:2]])
