"""Population-based training, from the rules of who copies whom to runs on the real network."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import optuna
import pytest
from command import Tuner
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState

from objectives.digits import digits_few
from objectives.epoch import Epoch, Epochs, Hyperparameter, Seed, complete_params
from tuner import StudyDefinition, StudyManager
from tuner.errors import DefinitionError, NotFoundError
from tuner.population import lineage, schedule
from tuner.samplers import OrderedLens, PopulationSampler, ReverseLogLens, segment_of
from tuner.samplers.population import Segment, moved
from tuner.scales import from_unit, to_unit
from tuner.trial_run import run_trial

# the rules ----------------------------------------------------------------------------------------------------

LENSES = {"decay": ReverseLogLens(), "order": OrderedLens()}
DISTRIBUTIONS: dict[str, BaseDistribution] = {
    "rate": FloatDistribution(1e-4, 1.0, log=True),
    "decay": FloatDistribution(0.5, 0.999),
    "size": IntDistribution(4, 400, log=True),
    "order": CategoricalDistribution((8, 16, 32, 64, 128, 256)),
    "kind": CategoricalDistribution(("a", "b", "c")),
    "units": IntDistribution(1, 9),
}
EXPLORED = ("rate", "decay", "size", "order", "kind")


def place(name: str, value: Any) -> float:
    distribution, lens = DISTRIBUTIONS[name], LENSES.get(name)
    if lens is None:
        return to_unit(distribution, value)
    return to_unit(lens.see(distribution), lens.inward(distribution, value))


def at(name: str, unit: float) -> Any:
    distribution, lens = DISTRIBUTIONS[name], LENSES.get(name)
    if lens is None:
        return from_unit(distribution, unit)
    return lens.outward(distribution, from_unit(lens.see(distribution), unit))


def segment(trial: FrozenTrial) -> Segment:
    found = segment_of(trial.system_attrs)
    assert found is not None
    return found


@given(
    st.sampled_from([name for name in DISTRIBUTIONS if name != "kind"]),
    st.floats(0, 1),
    st.floats(0.01, 0.5),
    st.booleans(),
)
def test_a_parameter_moves_by_the_step_on_its_scale_and_stays_in_the_space(
    name: str, unit: float, step: float, up: bool
) -> None:
    distribution, old = DISTRIBUTIONS[name], at(name, unit)
    new = moved(distribution, LENSES.get(name), old, step if up else -step)
    assert distribution._contains(distribution.to_internal_repr(new))
    assert new != old
    if isinstance(distribution, FloatDistribution):
        before, after = place(name, old), place(name, new)
        assert abs(after - before) == pytest.approx(step, abs=1e-9)
        has_room = before + step <= 1 if up else before - step >= 0
        assert (after > before) == (up if has_room else not up)


def test_where_values_are_few_a_step_leads_to_the_next() -> None:
    choices, lens = DISTRIBUTIONS["order"], LENSES["order"]
    assert [moved(choices, lens, value, 0.02) for value in (8, 64, 256)] == [16, 128, 128]
    assert moved(IntDistribution(1, 2), None, 1, -0.1) == 2
    assert moved(IntDistribution(3, 3), None, 3, 0.1) == 3


Fate = st.sampled_from(["complete"] * 5 + ["fail", "pruned"])


@settings(max_examples=60)
@given(
    minimize=st.booleans(),
    population=st.integers(2, 9),
    quantile=st.floats(0.05, 0.5),
    workers=st.integers(1, 12),
    generations=st.integers(1, 6),
    seed=st.integers(0, 10**6),
    fates=st.lists(st.tuples(Fate, st.integers(-5, 5), st.integers(0, 11)), min_size=20, max_size=70),
)
def test_who_copies_whom(
    *,
    minimize: bool,
    population: int,
    quantile: float,
    workers: int,
    generations: int,
    seed: int,
    fates: list[tuple[str, int, int]],
) -> None:
    """A study of random values, failures and orders; what is said of exploit and explore, counted anew."""
    sampler = PopulationSampler(
        explore=EXPLORED,
        lenses=LENSES,
        population=population,
        quantile=quantile,
        step=0.1,
        resample=0.0,
        seed=seed,
    )
    study = optuna.create_study(direction="minimize" if minimize else "maximize", sampler=sampler)
    running: list[optuna.Trial] = []
    for fate, value, which in fates:
        while len(running) < workers:
            before = study.get_trials(deepcopy=False)
            running.append(study.ask(DISTRIBUTIONS))
            new = study.get_trials(deepcopy=False)[-1]
            check_choice(new, before, minimize, population, quantile)
        trial = running.pop(which % len(running))
        if segment(study.get_trials(deepcopy=False)[trial.number]).generation == generations:
            trial.set_user_attr("member_ended", "all epochs are trained")
        state = {"complete": TrialState.COMPLETE, "fail": TrialState.FAIL, "pruned": TrialState.PRUNED}[fate]
        study.tell(trial, float(value) if fate == "complete" else None, state=state)
    places = [(segment(t).member, segment(t).generation) for t in study.get_trials(deepcopy=False)]
    assert len(set(places)) == len(places)  # no two workers get the same segment
    assert all(generation <= generations for _, generation in places)


def check_choice(
    new: FrozenTrial, before: Sequence[FrozenTrial], minimize: bool, population: int, quantile: float
) -> None:
    it = segment(new)
    members = Counter(segment(t).member for t in before)
    if it.parent is None:
        assert (it.generation, it.member, it.born, it.changes) == (1, new.number, new.number, {})
        return
    parent = next(t for t in before if t.number == it.parent)
    last = [t for t in before if segment(t).member == it.member][-1]
    assert it.generation == members[it.member] + 1 == segment(last).generation + 1
    assert it.born == segment(parent).born
    assert last.state.is_finished()
    finished = [t for t in before if t.state.is_finished() and segment(t).generation == it.generation - 1]
    good = [t for t in finished if t.state is TrialState.COMPLETE]
    good.sort(key=lambda t: ((t.value or 0.0) * (1 if minimize else -1), t.number))
    bad = [t for t in finished if t.state is not TrialState.COMPLETE]
    share = max(1, int(quantile * len(finished)))
    bottom = [*bad, *(good + bad)[len(finished) - share :]] if len(finished) > 1 else bad
    if parent.number == last.number:
        assert new.params == parent.params
        assert it.changes == {}
        assert last.state is TrialState.COMPLETE
        return
    assert last in bottom
    alive = [t for t in good if "member_ended" not in t.user_attrs]
    assert parent in alive[: min(share, max(1, int(quantile * population)))]
    assert {n for n in new.params if new.params[n] != parent.params[n]} == set(it.changes) <= set(EXPLORED)
    for name, (old, value) in it.changes.items():
        assert (old, value) == (parent.params[name], new.params[name])
        if isinstance(DISTRIBUTIONS[name], FloatDistribution):
            assert abs(place(name, value) - place(name, old)) == pytest.approx(0.1, abs=1e-9)
    assert {"rate", "decay", "size", "order"} <= set(it.changes)


def test_members_begin_first_and_go_on_generation_by_generation() -> None:
    study = optuna.create_study(sampler=PopulationSampler(population=3, resample=1.0))
    for _ in range(9):
        trial = study.ask(DISTRIBUTIONS)
        study.tell(trial, float(trial.number % 3))
    shown = [(segment(t).generation, segment(t).member, segment(t).parent) for t in study.trials]
    assert shown[:3] == [(1, 0, None), (1, 1, None), (1, 2, None)]
    assert shown[3:6] == [(2, 0, 0), (2, 1, 1), (2, 2, 0)]  # the last is the worst, the first the best
    assert shown[6:] == [(3, 0, 3), (3, 1, 4), (3, 2, 3)]
    drawn = segment(study.trials[5]).changes
    assert {name for name in drawn if name in ("rate", "decay")} == {"rate", "decay"}


def test_a_point_of_ones_own_begins_a_member() -> None:
    study = optuna.create_study(sampler=PopulationSampler(population=2))
    for _ in range(3):
        study.tell(study.ask(DISTRIBUTIONS), 0.0)
    study.enqueue_trial({"rate": 0.5})
    trial = study.ask(DISTRIBUTIONS)
    assert trial.params["rate"] == 0.5
    assert (segment(study.trials[3]).generation, segment(study.trials[3]).member) == (1, 3)


# on the real network ------------------------------------------------------------------------------------------

DIGITS: dict[str, Any] = {
    "name": "p",
    "objective": "digits-few",
    "seed": 3,
    "budget": {"trials": 20},
    "fixed": {"epochs": 8, "optimizer": "adam"},
    "space": {
        "learning_rate": {"low": 1e-4, "high": 1.0, "scale": "log"},
        "momentum": {"low": 0.1, "high": 0.999, "scale": "reverse_log"},
        "batch_size": {"choices": [16, 32, 64], "ordered": True},
        "hidden_units": {"type": "int", "low": 8, "high": 32},
    },
    "sampler": {"name": "population-based", "population": 5, "interval": 2},
}


def digits_study(**more: Any) -> StudyDefinition:
    return StudyDefinition.parse({**DIGITS, **more})


def told(study: optuna.Study) -> list[tuple[Any, ...]]:
    return [
        (t.params, t.value, t.intermediate_values, t.state, t.system_attrs["population"])
        for t in study.get_trials(deepcopy=False)
    ]


def test_a_lineage_is_one_uninterrupted_training_bit_for_bit(sqlite_url: str) -> None:
    """Going on unchanged changes nothing, and what was changed can be sent into a training that never stopped."""
    manager = StudyManager(sqlite_url)
    study = manager.run(digits_study())
    trials = study.get_trials(deepcopy=False)
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 20
    assert [min(t.intermediate_values) for t in trials] == [1] * 5 + [3] * 5 + [5] * 5 + [7] * 5
    unchanged = changed = 0
    for trial in trials[15:]:
        assert trial.user_attrs["member_ended"] == "all 8 epochs are trained"
        stretches = lineage(trials, trial.number)
        hyperparameters = schedule(stretches)
        assert list(hyperparameters) == list(range(1, 9))
        values = {n: v for s in stretches for n, v in trials[s.number].intermediate_values.items()}
        assert hyperparameters[8] == trial.params  # recorded are those that it was trained with
        training = digits_few.evaluate(
            {**DIGITS["fixed"], **hyperparameters[1]}, seed=Seed(3, segment(trial).born)
        )
        epoch = next(training)
        for number in range(1, 9):
            assert (epoch.number, epoch.value) == (number, values[number])
            if number < 8:
                send = {
                    n: v for n, v in hyperparameters[number + 1].items() if v != hyperparameters[number][n]
                }
                changed, unchanged = changed + bool(send), unchanged + (not send)
                epoch = training.send(send)
    assert changed >= 3
    assert unchanged >= 20


def test_several_workers_and_both_databases(url: str) -> None:
    """The budget is exact, each segment begins where its parent ended, and no network is missed."""
    manager = StudyManager(url)
    definition = walk_study(budget={"epochs": 100})
    study = manager.run(definition, Walk(), workers=4)
    trials = study.get_trials(deepcopy=False)
    assert sum(len(t.intermediate_values) for t in trials) == 100
    places = [(segment(t).member, segment(t).generation) for t in trials]
    assert len(set(places)) == len(places)
    for trial in trials:
        assert trial.state in (TrialState.COMPLETE, TrialState.PRUNED)  # pruned: by the end of the budget
        if not trial.intermediate_values:
            continue
        parent = segment(trial).parent
        begins = 1 if parent is None else max(trials[parent].intermediate_values) + 1
        assert min(trial.intermediate_values) == begins
        if trial.state is TrialState.COMPLETE:
            path = schedule(lineage(trials, trial.number))
            assert trial.value == Walk.after([params["rate"] for params in path.values()])


@pytest.mark.parametrize("budget", [{"trials": 7}, {"epochs": 13}, {"epochs": 15}])
def test_budgets_are_exact(sqlite_url: str, budget: dict[str, int]) -> None:
    manager = StudyManager(sqlite_url)
    study = manager.run(walk_study(budget=budget), Walk())
    epochs = [len(t.intermediate_values) for t in study.trials]
    if "trials" in budget:
        assert epochs == [3] * 7
    else:
        assert epochs == [3] * (budget["epochs"] // 3) + [budget["epochs"] % 3] * (budget["epochs"] % 3 > 0)
    last = TrialState.COMPLETE if epochs[-1] == 3 else TrialState.PRUNED
    assert study.trials[-1].state is last


def test_the_budget_of_seconds_ends_the_study(sqlite_url: str) -> None:
    study = StudyManager(sqlite_url).run(walk_study(budget={"seconds": 0.2}), Walk(pause=0.02))
    spent = StudyManager(sqlite_url).ask_tell("w").spent()
    assert spent.seconds >= 0.2
    assert sum(len(t.intermediate_values) for t in study.trials) == spent.epochs <= 10


def test_what_was_given_back_runs_again_from_the_same_network(url: str) -> None:
    """Left after some of its epochs, with all objects made anew: the same study as in one go."""
    sampler = {"name": "population-based", "population": 3, "interval": 3, "explore": ["rate"]}
    whole, left = (walk_study(name=name, budget={"trials": 6}, sampler=sampler) for name in ("whole", "left"))
    expected = StudyManager(url).run(whole, Walk())
    assert any(segment(t).changes for t in expected.trials)
    StudyManager(url).create(left)
    outcomes = []
    for stop_after in cycle([1, 9, 2, 9]):
        manager, answers = StudyManager(url), iter([False] * (stop_after - 1))
        outcomes.append(run_trial(manager.ask_tell("left"), Walk(), partial(next, answers, True)))
        manager.close()
        if outcomes[-1] is None:
            break
    assert [outcome.state for outcome in outcomes if outcome] == [None, TrialState.COMPLETE] * 6
    assert told(StudyManager(url).open("left")) == told(expected)


KILLED = """
import os, signal, sys
from objectives.digits import digits_few
from tuner import StudyManager
from tuner.trial_run import run_trial

left = int(sys.argv[2])

def on_epoch(_):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)

ask_tell = StudyManager(sys.argv[1]).ask_tell("p")
while run_trial(ask_tell, digits_few, on_epoch=on_epoch):
    pass
"""


@pytest.mark.long
def test_a_killed_run_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    """Its process is killed in the middle of a beginning, of a segment that goes on, and of one that copies."""
    expected = StudyManager(f"sqlite:///{tmp_path}/whole.db").run(digits_study())
    url = f"sqlite:///{tmp_path}/killed.db"
    manager = StudyManager(url)
    manager.create(digits_study())
    whole = expected.get_trials(deepcopy=False)
    copying = next(t.number for t in whole if segment(t).changes)
    going_on = next(t.number for t in whole if segment(t).parent is not None and not segment(t).changes)
    killed = sorted({1, going_on, copying, 15})
    begun = 0
    for number in killed:
        epochs = 2 * (number - begun) + 1  # after the first of the trial's two
        done = subprocess.run([sys.executable, "-c", KILLED, url, str(epochs)], check=False)
        assert done.returncode == -signal.SIGKILL
        begun = number
    study = manager.run(digits_study())
    assert told(study) == told(expected)
    attempts = {t.number: t.user_attrs.get("attempts", 1) for t in study.get_trials(deepcopy=False)}
    assert {number for number, count in attempts.items() if count > 1} == set(killed)


# a small objective --------------------------------------------------------------------------------------------


class Walk:
    """Goes down by `rate` an epoch, and remembers all its rates: so that a value tells its whole path."""

    name = "walk"
    description = "a path-dependent sum"
    direction = "minimize"
    hyperparameters: tuple[Hyperparameter, ...] = (
        Hyperparameter("rate", 0.5, low=0.0, high=1.0, adjustable=True),
        Hyperparameter("x", 0.0, low=0.0, high=1.0),
        Hyperparameter("epochs", 9, low=1, high=99, integer=True),
    )

    def __init__(self, *, ends: int = 99, checkpoints: bool = True, pause: float = 0.0) -> None:
        self.ends, self.checkpoints, self.pause = ends, checkpoints, pause

    @staticmethod
    def after(rates: Sequence[float]) -> float:
        total = 1.0
        for number, rate in enumerate(rates, start=1):
            total -= (1 - abs(rate - 0.3)) / (10 + number)
        return total

    def evaluate(self, params: Mapping[str, Any], *, seed: Seed, resume: bytes | None = None) -> Epochs:
        full = complete_params(self.hyperparameters, params)
        rates: list[float] = [] if resume is None else json.loads(resume)
        rate = full["rate"]
        while len(rates) < min(full.get("epochs", 9), self.ends):
            time.sleep(self.pause)
            rates.append(rate)
            checkpoint = (lambda: json.dumps(rates).encode()) if self.checkpoints else None
            adjustment = yield Epoch(len(rates), self.after(rates), checkpoint=checkpoint)
            rate = (adjustment or {}).get("rate", rate)


class EndlessWalk(Walk):
    """Does not say how many epochs it has."""

    hyperparameters = Walk.hyperparameters[:2]


def walk_study(**more: Any) -> StudyDefinition:
    document: dict[str, Any] = {
        "name": "w",
        "space": {"rate": {"low": 0.0, "high": 1.0}, "x": {"low": 0.0, "high": 1.0}},
        "sampler": {"name": "population-based", "population": 4, "interval": 3, "explore": ["rate"]},
    }
    return StudyDefinition.parse({**document, **more})


def test_the_lineage_is_on_each_trial_for_the_dashboard(sqlite_url: str) -> None:
    trials = StudyManager(sqlite_url).run(walk_study(budget={"trials": 12}), Walk()).trials
    for trial in trials:
        it = segment(trial)
        assert (trial.user_attrs["generation"], trial.user_attrs["member"]) == (it.generation, it.member)
        assert trial.user_attrs.get("parent") == it.parent
        assert list(trial.user_attrs.get("explored", {})) == list(it.changes)
    explored = [t for t in trials if "explored" in t.user_attrs]
    assert explored
    for trial in explored:
        old, new = segment(trial).changes["rate"]
        assert trial.user_attrs["explored"]["rate"] == f"{old:.4g} → {new:.4g}"
        assert list(segment(trial).changes) == ["rate"]  # x cannot be adjusted
        assert trial.params["x"] == trials[segment(trial).parent or 0].params["x"]


def test_only_checkpoints_that_somebody_may_continue_are_kept(url: str) -> None:
    manager = StudyManager(url)
    study = manager.run(walk_study(budget={"trials": 36}), Walk())  # three waves of four members
    ask_tell = manager.ask_tell("w")
    held = [t.number for t in study.trials if ask_tell.checkpoint(t.number) is not None]
    best = study.best_trial.number
    assert best in held
    found = ask_tell.checkpoint(best)
    assert found is not None
    assert Walk.after(json.loads(found[1])) == study.best_value
    for generation in (
        1,
        2,
    ):  # of a finished population the best of each generation, for members still to come
        one = min((t for t in study.trials if segment(t).generation == generation), key=lambda t: t.value)
        assert one.number in held
    assert len(held) == 3
    assert len({segment(t).member for t in study.trials}) == 12


def test_a_training_that_ends_early_ends_its_member(sqlite_url: str) -> None:
    study = StudyManager(sqlite_url).run(walk_study(budget={"trials": 9}), Walk(ends=5))
    second = [t for t in study.trials if segment(t).generation == 2]
    assert [list(t.intermediate_values) for t in second] == [[4, 5]] * 4
    assert {t.user_attrs["member_ended"] for t in second} == {"the training ended with epoch 5"}
    assert {t.state for t in second} == {TrialState.COMPLETE}
    assert segment(study.trials[8]).generation == 1  # a new member begins


def test_a_training_that_does_not_say_how_long_it_is(sqlite_url: str) -> None:
    """It ends with a generation: only the next segment learns that there is nothing left."""
    study = StudyManager(sqlite_url).run(walk_study(budget={"trials": 13}), EndlessWalk(ends=6))
    third = [t for t in study.trials if segment(t).generation == 3]
    assert [(t.state, t.intermediate_values) for t in third] == [(TrialState.PRUNED, {})] * 4
    assert {t.user_attrs["member_ended"] for t in third} == {"the training ended with epoch 6"}
    assert segment(study.trials[12]).generation == 1


def test_a_person_adjusts_a_segment_and_the_member_goes_on_with_that(sqlite_url: str) -> None:
    manager = StudyManager(sqlite_url)
    sampler = {"name": "population-based", "population": 2, "interval": 3, "explore": ["rate"]}
    manager.create(walk_study(budget={"trials": 4}, sampler=sampler))

    def nudge(epoch: Epoch) -> None:
        if epoch.number == 1:
            manager.ask_tell("w").adjust(0, {"rate": 0.3}, by="ada")

    run_trial(manager.ask_tell("w"), Walk(), on_epoch=nudge)
    manager.run(walk_study(budget={"trials": 4}, sampler=sampler), Walk())
    trials = manager.load("w").trials
    start = trials[0].params["rate"]
    assert trials[2].params["rate"] == 0.3  # the best goes on, as it ended
    stretches = lineage(trials, 2)
    assert [(s.first, s.last, s.number, s.params["rate"]) for s in stretches] == [
        (1, 2, 0, start),
        (3, 3, 0, 0.3),
        (4, 6, 2, 0.3),
    ]
    assert stretches[1].changes == {"rate": (start, 0.3)}
    assert trials[2].value == Walk.after([start, start, 0.3, 0.3, 0.3, 0.3])


def test_a_stopped_segment_ends_its_member(sqlite_url: str) -> None:
    manager = StudyManager(sqlite_url)
    manager.create(walk_study(budget={"trials": 4}))
    run_trial(manager.ask_tell("w"), Walk(), on_epoch=lambda _: manager.stop("w", 0, by="ada"))
    (trial,) = manager.load("w").trials
    assert (trial.state, trial.user_attrs["member_ended"]) == (TrialState.COMPLETE, "stopped by ada")
    manager.run(walk_study(budget={"trials": 4}), Walk())
    assert [segment(t).generation for t in manager.load("w").trials] == [1] * 4


# errors in words ----------------------------------------------------------------------------------------------


def test_an_objective_without_checkpoints_stops_the_run_at_once(sqlite_url: str) -> None:
    manager = StudyManager(sqlite_url)
    with pytest.raises(DefinitionError, match="needs checkpoints, and objective 'walk' gives none") as error:
        manager.run(walk_study(budget={"trials": 9}), Walk(checkpoints=False))
    assert len(str(error.value).splitlines()) == 1
    assert len(manager.load("w").trials) == 1


def test_a_checkpoint_that_is_gone_fails_its_trial_and_the_member_copies_another(sqlite_url: str) -> None:
    manager = StudyManager(sqlite_url)
    manager.run(walk_study(name="w", budget={"trials": 9}), Walk())
    ask_tell = manager.ask_tell("w")
    last = manager.load("w").trials[5]
    with ask_tell.ledger.transaction() as session:
        ask_tell.ledger.drop_checkpoint(session, ask_tell.study._study_id, last._trial_id)
    more = type(ask_tell)(ask_tell.study, walk_study(budget={"trials": 11}), ask_tell.ledger)
    failed = run_trial(more, Walk())
    assert failed is not None
    assert failed.failure is not None
    assert "the checkpoint of trial 5, which trial 9 continues, is gone" in failed.failure


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"space": {"layers": {"type": "int", "low": 1, "high": 2}}},
            "needs a parameter in the space .* learning_rate",
        ),
        (
            {"sampler": {"name": "population-based", "explore": ["hidden_units"]}},
            "cannot adjust 'hidden_units'",
        ),
        (
            {"sampler": {"name": "population-based", "explore": ["momentun"]}},
            r"'momentun' is not in the space \(did you mean 'momentum'\?\)",
        ),
        ({"sampler": {"name": "population-based", "quantile": 0.6}}, "quantile"),
        ({"objective": "branin", "fixed": {}, "space": {"x0": {"low": 0, "high": 1}}}, "it can: nothing"),
        ({"sampler": {"name": "population-based", "stages": "by-priority"}}, "cannot tune by priority"),
        (
            {
                "space": {
                    "momentum": {"choices": [0.5, 0.9]},
                    "learning_rate": {"low": 0.1, "high": 1, "when": {"momentum": 0.9}},
                },
                "sampler": {"name": "population-based", "explore": ["momentum"]},
            },
            "'momentum' decides which parameters there are",
        ),
    ],
)
def test_what_cannot_be_explored_is_refused_when_the_definition_is_read(
    changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(DefinitionError, match=words) as error:
        digits_study(**changes)
    assert len(str(error.value).splitlines()) == 1


def test_what_an_objective_in_python_cannot_adjust_is_refused_before_the_run(sqlite_url: str) -> None:
    manager = StudyManager(sqlite_url)
    sampler = {"name": "population-based"}
    with pytest.raises(
        DefinitionError, match="'walk' cannot adjust x while it trains; name what it can: rate"
    ):
        manager.run(walk_study(budget={"trials": 4}, sampler=sampler), Walk())
    with pytest.raises(DefinitionError, match="a plain function needs trials that are whole trainings"):
        manager.run(walk_study(budget={"trials": 4}), lambda trial: 0.0)
    assert manager.studies() == []


def test_a_panda_session_is_refused(sqlite_url: str) -> None:
    session = StudyManager(sqlite_url).panda(digits_study())
    with pytest.raises(DefinitionError, match="a panda session needs trials that are whole trainings"):
        session.__enter__()


def test_a_lineage_that_is_not_there(sqlite_url: str) -> None:
    manager = StudyManager(sqlite_url)
    manager.create(walk_study())
    with pytest.raises(NotFoundError, match="w has no completed trial yet"):
        manager.lineage("w")
    manager.run(walk_study(name="r", sampler={"name": "random"}, budget={"trials": 1}), Walk())
    with pytest.raises(NotFoundError, match="trial 7 has no lineage: there is no such trial"):
        manager.lineage("r", 7)
    with pytest.raises(NotFoundError, match="trial 0 has no lineage: no trial of population-based training"):
        manager.lineage("r")


def test_lineage_on_the_command_line(tuner: Tuner, sqlite_url: str) -> None:
    manager = StudyManager(sqlite_url)
    manager.run(walk_study(budget={"trials": 12}), Walk())
    code, out, _ = tuner("lineage", "w", "--storage", sqlite_url)
    rows = [line.split() for line in out.splitlines()]
    assert (code, rows[0]) == (0, ["epochs", "trial", "member", "rate", "x", "value"])
    assert [row[0] for row in rows[1:4]] == ["1–3", "4–6", "7–9"]
    assert int(rows[3][1]) == manager.load("w").best_trial.number
    exploited = next(t for t in manager.load("w").trials if segment(t).changes)
    code, out, _ = tuner("lineage", "w", str(exploited.number), "--storage", sqlite_url)
    assert "*" in out.splitlines()[-2]
    code, out, _ = tuner("lineage", "w", "--format", "json", "--storage", sqlite_url)
    assert [s["last"] for s in json.loads(out)] == [3, 6, 9]
    code, _, err = tuner("lineage", "w", "99", "--storage", sqlite_url)
    assert (code, err) == (2, "error: trial 99 has no lineage: there is no such trial\n")
