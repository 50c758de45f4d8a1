"""A comparison's result: read from the studies, ranked, judged."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState, create_trial

from tuner import ComparisonDefinition, ComparisonResult
from tuner.comparison import Run, read_comparison
from tuner.errors import NotFoundError


def definition(seeds: int = 10, direction: str = "minimize", arms: int = 3) -> ComparisonDefinition:
    document = {"name": "c", "direction": direction, "budget": {"trials": 4}}
    names = [{"name": name} for name in "abcdef"[:arms]]
    return ComparisonDefinition.parse({**document, "comparison": {"seeds": seeds, "arms": names}})


def run(arm: str, seed: int, best: list[float], epochs: list[float] | None = None) -> Run:
    spent = np.array(epochs or np.arange(1.0, len(best) + 1) * 3)
    return Run(arm, seed, f"c.{arm}.seed-{seed}", np.array(best), spent, len(best), 0, 0, 1.5, {"x": 1}, 0)


def result(finals: dict[str, list[float]], **more: Any) -> ComparisonResult:
    seeds = len(next(iter(finals.values())))
    runs = tuple(
        run(arm, seed, [9.0, value]) for arm, values in finals.items() for seed, value in enumerate(values)
    )
    return ComparisonResult(definition(seeds, arms=len(finals), **more), runs)


def test_a_clear_winner() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=10) / 100
    found = result({"a": list(2 + noise), "b": list(1 + noise), "c": list(3 + noise)})
    assert found.ranking == ["b", "a", "c"]
    assert found.winner == "b"
    assert found.verdict.startswith("b is best over 10 seeds")
    rows = found.table()
    assert [row.mean_rank for row in rows] == [1.0, 2.0, 3.0]
    assert rows[0].p is None
    assert rows[1].p == rows[2].p == pytest.approx(3 * 2 / 2**10)
    assert rows[0].final.median == pytest.approx(1, abs=0.01)
    assert (rows[0].trials, rows[0].epochs, rows[0].seconds) == (20, 60, 15.0)
    assert json.loads(json.dumps(found.to_dict()))["winner"] == "b"


def test_for_a_maximum_the_highest_is_first() -> None:
    found = result({"a": [1.0, 1.1], "b": [2.0, 2.1], "c": [3.0, 3.1]}, direction="maximize")
    assert found.ranking == ["c", "b", "a"]
    assert found.table()[0].best == 3.1


def test_nothing_is_claimed_that_is_not_significant() -> None:
    rng = np.random.default_rng(1)
    same = result({name: list(rng.normal(size=10)) for name in "abc"})
    assert same.winner is None
    assert "no difference is significant" in same.verdict
    assert "too few" not in same.verdict
    few = result({"a": [1.0, 1.1, 1.2], "b": [2.0, 2.1, 2.2], "c": [3.0, 3.1, 3.2]})
    assert few.winner is None
    assert "3 seeds are too few" in few.verdict
    one = result({"a": [1.0], "b": [2.0], "c": [3.0]})
    assert one.winner is None
    assert all(row.p is None for row in one.table())


def test_a_tie_is_called_one() -> None:
    found = result({"a": [1.0, 2.0, 1.0, 2.0], "b": [2.0, 1.0, 2.0, 1.0], "c": [3.0] * 4})
    assert found.verdict == "a, b share the best mean rank over 4 seeds; no winner."


def test_what_is_beaten_is_named_when_not_all_are() -> None:
    rng = np.random.default_rng(2)
    a, noise = rng.normal(size=12), rng.normal(size=12) / 10
    found = result({"a": list(a), "b": list(a + 0.02 + noise), "c": list(a + 5 + noise)})
    assert found.winner is None
    assert f"beats {found.ranking[2]}" in found.verdict


def test_arms_without_any_completed_trial_tie_and_nobody_wins_over_them_by_that() -> None:
    inf = np.inf
    found = result({"a": [1.0, 2.0, 3.0], "b": [inf, inf, inf], "c": [inf, inf, inf]})
    assert found.ranking[0] == "a"
    assert found.winner is None
    assert all(row.p is not None and 0 <= row.p <= 1 for row in found.table()[1:])
    mixed = result({"a": [1.0, inf, inf], "b": [2.0, inf, 1.0], "c": [inf, 2.0, 1.0]})
    assert mixed.winner is None


def test_only_seeds_that_every_arm_has_begun_count() -> None:
    runs = [run(arm, seed, [2.0, 1.0]) for arm in "abc" for seed in (0, 1)]
    empty = Run("c", 2, "c.c.seed-2", np.array([]), np.array([]), 0, 0, 0, 0.0, {}, None)
    found = ComparisonResult(definition(3), (*runs, run("a", 2, [0.0]), run("b", 2, [0.0]), empty))
    assert found.seeds == [0, 1]
    assert found.table()[0].trials == 4


def test_nothing_yet() -> None:
    found = ComparisonResult(definition(1), (run("a", 0, [1.0]),))
    assert (found.table(), found.winner, found.ranking) == ([], None, [])
    assert "Nothing to compare yet" in found.verdict


def test_curves_are_step_functions_of_what_was_spent() -> None:
    runs = (run("a", 0, [5.0, 3.0, 1.0], [2.0, 4.0, 10.0]), run("a", 1, [6.0, 6.0, 2.0], [1.0, 5.0, 9.0]))
    others = tuple(run(arm, seed, [1.0]) for arm in "bc" for seed in (0, 1))
    found = ComparisonResult(definition(2), runs + others)
    by_trials = found.curve("a")
    assert by_trials.spent.tolist() == [1, 2, 3]
    assert by_trials.median.tolist() == [5.5, 4.5, 1.5]
    by_epochs = found.curve("a", "epochs")
    assert (by_epochs.spent[0], by_epochs.spent[-1]) == (2, 9)
    at = dict(zip(by_epochs.spent, by_epochs.median, strict=True))
    assert (at[2], at[3], at[4], at[8], at[9]) == (5.5, 5.5, 4.5, 4.5, 2.5)


def test_read_from_studies_with_pruned_and_failed_trials() -> None:
    storage = optuna.storages.InMemoryStorage()
    trials = [
        (TrialState.FAIL, None, 1),
        (TrialState.COMPLETE, 3.0, 4),
        (TrialState.PRUNED, 0.1, 2),
        (TrialState.COMPLETE, 2.0, 4),
    ]
    for member in definition(1).members:
        study = optuna.create_study(study_name=member.definition.name, storage=storage)
        for state, value, epochs in trials:
            values = dict.fromkeys(range(1, epochs + 1), 9.0)
            attrs = {"training_seconds": 0.5}
            study.add_trial(
                create_trial(state=state, value=value, intermediate_values=values, user_attrs=attrs)
            )
        study.enqueue_trial({})
    found = read_comparison(definition(1), lambda name: optuna.load_study(study_name=name, storage=storage))
    first = found.runs[0]
    assert first.best.tolist() == [np.inf, 3.0, 3.0, 2.0]  # a pruned trial's value is no result
    assert first.epochs.tolist() == [1, 5, 7, 11]
    assert (first.completed, first.pruned, first.failed, first.seconds, first.best_number) == (
        2,
        1,
        1,
        2.0,
        3,
    )

    def nothing(name: str) -> optuna.Study:
        raise NotFoundError(name)

    with pytest.raises(NotFoundError, match="has not been begun"):
        read_comparison(definition(1), nothing)


# --------------------------------------------------------------------------------------------- how often it errs


def verdicts(arms: int, seeds: int, *, lead: float = 0.0, times: int = 400) -> list[ComparisonResult]:
    """Comparisons of arms that differ in nothing, or whose first is ahead; seeds have effects of their own."""
    rng = np.random.default_rng(arms * 100 + seeds)
    luck = 3 * rng.normal(size=(times, 1, seeds))  # shared by all arms, as data and initial weights are
    values = np.exp((luck + rng.normal(size=(times, arms, seeds))) / 2)
    values[:, 0] *= np.exp(-lead / 2)
    return [result(dict(zip("abcdef", finals.tolist(), strict=False))) for finals in values]


def claims(found: ComparisonResult) -> bool:
    """Whether the verdict says that any arm is better than another."""
    claimed = any(found.beats(first, second) for first in found.arms for second in found.arms)
    words = " is best " in found.verdict or " beats " in found.verdict
    assert claimed or not words  # nothing is said that the tests do not say
    assert found.winner is None or words
    return claimed


LONG = pytest.mark.long


@pytest.mark.parametrize(
    ("arms", "seeds"),
    [(2, 10), pytest.param(2, 20, marks=LONG), (3, 10), pytest.param(4, 20, marks=LONG)],
)
def test_where_nothing_differs_a_difference_is_claimed_in_five_of_a_hundred_comparisons(
    arms: int, seeds: int
) -> None:
    rate = np.mean([claims(found) for found in verdicts(arms, seeds)])
    assert 0.03 <= rate <= 0.07


def test_a_known_difference_is_found() -> None:
    assert np.mean([found.winner == "a" for found in verdicts(2, 20, lead=1.6, times=200)]) > 0.9
    winners = [found.winner for found in verdicts(4, 20, lead=2.0, times=200)]
    assert np.mean([winner == "a" for winner in winners]) > 0.9
    assert set(winners) <= {None, "a"}


def test_an_arm_that_is_significantly_worse_does_not_win_by_its_mean_rank() -> None:
    # better in 7 of 12 seeds by a little, worse in 5 by much: a better mean rank, a worse signed-rank sum
    gains = np.array([-0.01] * 7 + [5.0, 6.0, 7.0, 8.0, 9.0])
    found = result({"a": list(10 + gains), "b": [10.0] * 12})
    assert found.ranking[0] == "a"
    assert not found.beats("a", "b")
    assert found.winner is None


def test_who_beats_the_arm_of_the_best_mean_rank_is_named() -> None:
    gains = np.array([-0.01 - 1e-4 * k for k in range(32)] + [5.0 + k for k in range(28)])
    found = result({"a": list(10 + gains), "b": [10.0] * 60})
    assert found.ranking[0] == "a"
    assert found.beats("b", "a")
    assert found.verdict == (
        "a has the best mean rank over 60 seeds, but beats no other significantly; b beats a "
        "(Wilcoxon signed-rank, Holm over all pairs)."
    )


def test_differences_between_others_are_no_silence() -> None:
    noise = np.random.default_rng(15).normal(size=(2, 20))
    found = result({"a": list(noise[1] - 0.1), "b": list(noise[0]), "c": list(noise[0] + 0.1)})
    assert found.winner is None
    assert found.beats("b", "c")
    assert "b beats c" in found.verdict
    assert "no difference is significant" not in found.verdict


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_an_interval_that_includes_0_stands_beside_the_lead(direction: str) -> None:
    rng = np.random.default_rng(17)
    lead = rng.exponential(size=20) * np.where(rng.random(20) < 0.62, 1, -0.35)
    sign = 1 if direction == "minimize" else -1
    found = result({"a": [5.0] * 20, "b": list(5 + sign * lead)}, direction=direction)
    assert found.winner == "a"
    assert "by 0.239 [95% interval −0.0233, 0.581], which includes 0, in the median" in found.verdict


def test_a_maximum_is_led_by_a_positive_difference() -> None:
    found = result({"a": [2.0 + k / 10 for k in range(8)], "b": [1.0] * 8}, direction="maximize")
    assert "a is best over 8 seeds, by 1.35 [95% interval 1" in found.verdict
