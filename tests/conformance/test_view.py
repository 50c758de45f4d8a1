"""The view: what a sampler sees through lenses, and that nothing of it reaches the database."""

from __future__ import annotations

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from tuner.samplers import (
    BoxLens,
    HeldWrites,
    OrderedLens,
    ReverseLogLens,
    SeenTrials,
    StudyView,
    ViewSampler,
)
from tuner.scales import from_unit

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
        IntDistribution(1, 8, log=True),
    ],
    ids=str,
)
def test_what_cannot_be_reversed_is_seen_as_it_is(distribution):
    lens = ReverseLogLens()
    assert lens.see(distribution) == distribution
    assert lens.inward(distribution, 0.5) == lens.outward(distribution, 0.5) == 0.5


REVERSIBLE = [
    IntDistribution(-9, 0),
    IntDistribution(1, 64),
    IntDistribution(0, 100, step=10),
    FloatDistribution(0.9, 0.99, step=0.01),
    FloatDistribution(0.5, 0.95, step=0.05),
]


@pytest.mark.parametrize("distribution", REVERSIBLE, ids=str)
def test_integers_and_steps_have_a_reverse_log_scale_too(distribution):
    """Every value there and back, the seen range filled, larger values seen as smaller."""
    lens = ReverseLogLens()
    step = distribution.step
    count = round((distribution.high - distribution.low) / step) + 1
    values = [distribution.low + k * step for k in range(count)]
    seen = [lens.inward(distribution, value) for value in values]
    assert seen == sorted(seen, reverse=True)
    assert all(lens.see(distribution)._contains(s) for s in seen)
    assert [lens.outward(distribution, s) for s in seen] == pytest.approx(values)
    for place in np.linspace(0, 1, 200):
        value = lens.outward(distribution, from_unit(lens.see(distribution), place))
        assert distribution._contains(value)
        assert isinstance(value, int) == isinstance(distribution, IntDistribution)


def test_reverse_log_steps_have_their_nearest_share_of_the_log_scale():
    """1 − β in 0.01, 0.02 … 0.1: each value owns the log scale's stretch half a step around it."""
    distribution = FloatDistribution(0.9, 0.99, step=0.01)
    lens = ReverseLogLens()
    places = (np.arange(20_000) + 0.5) / 20_000
    values = [round(1 - lens.outward(distribution, from_unit(lens.see(distribution), p)), 2) for p in places]
    seen = lens.see(distribution)
    for k in range(1, 11):
        share = np.log((k + 0.5) / (k - 0.5)) / np.log(seen.high / seen.low)
        assert values.count(k / 100) / 20_000 == pytest.approx(share, abs=1e-3)


def test_ordered_choices_are_seen_as_places():
    choices = CategoricalDistribution((8, 16, 32))
    lens = OrderedLens()
    assert lens.see(choices) == IntDistribution(0, 2)
    assert [lens.inward(choices, c) for c in choices.choices] == [0, 1, 2]
    assert [lens.outward(choices, i) for i in range(3)] == [8, 16, 32]
    assert lens.see(DECAY) == DECAY


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

    cache = SeenTrials()
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
