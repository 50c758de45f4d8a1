"""What comparisons show besides a ranking: importance, agreement and interaction, against SciPy and Optuna directly."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial
from scipy import stats

from tuner import ComparisonDefinition
from tuner.comparison import ComparisonResult, Run, findings
from tuner.comparison.findings import agreement, importance, interaction, paired
from tuner.comparison.importance import importance_shares, unit_points
from tuner.errors import DefinitionError
from tuner.evidence import find
from tuner.statistics import Estimate, holm, wilcoxon_p

SPACE = {
    "a": {"low": 1e-4, "high": 1.0, "scale": "log", "priority": 1},
    "b": {"low": 0.5, "high": 0.999, "scale": "reverse_log", "priority": 2},
    "c": {"type": "int", "low": 8, "high": 128, "scale": "log", "priority": 3},
}


def definition(arms: list[str], *, seeds: int = 2, **comparison: Any) -> ComparisonDefinition:
    named = [{"name": arm} for arm in arms]
    return ComparisonDefinition.parse(
        {"name": "c", "space": SPACE, "comparison": {"seeds": seeds, "arms": named, **comparison}}
    )


def run_of(arm: str, seed: int, points: list[dict[str, Any]], losses: list[float]) -> Run:
    """A run of trials; a loss of infinity is a failed one."""
    distributions = {name: p.distribution for name, p in definition([*"ab"]).space.items()}
    trials = []
    for number, (point, loss) in enumerate(zip(points, losses, strict=True)):
        state = TrialState.FAIL if math.isinf(loss) else TrialState.COMPLETE
        value = None if math.isinf(loss) else loss
        trial = create_trial(state=state, value=value, params=point, distributions=distributions)
        trial.number = number
        trials.append(trial)
    best = np.minimum.accumulate(losses)
    spent = np.arange(1.0, len(losses) + 1)
    number = int(np.argmin(losses))
    failed = sum(map(math.isinf, losses))
    n = len(losses) - failed
    return Run(arm, seed, f"c.{arm}.{seed}", best, spent, n, 0, failed, 1.0, {}, number, trials=tuple(trials))


def points(rng: np.random.Generator, count: int) -> list[dict[str, Any]]:
    return [
        {
            "a": float(10 ** rng.uniform(-4, 0)),
            "b": float(1 - 10 ** rng.uniform(-3, np.log10(0.5))),
            "c": int(rng.integers(8, 129)),
        }
        for _ in range(count)
    ]


def loss_of(point: dict[str, Any]) -> float:
    """A valley in log a, a slope in log(1 − b), next to nothing of c."""
    return float((np.log10(point["a"]) + 2) ** 2 - 0.4 * np.log10(1 - point["b"]) + 0.01 * np.log(point["c"]))


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> ComparisonResult:
    """Two problems of the same importance, one in units of a thousand."""
    monkeypatch.setattr(findings, "RESAMPLES", 3)
    rng = np.random.default_rng(0)
    runs = []
    for arm, unit in (("one", 1.0), ("thousand", 1000.0)):
        for seed in range(2):
            chosen = points(rng, 40)
            runs.append(run_of(arm, seed, chosen, [unit * loss_of(point) for point in chosen]))
    return ComparisonResult(definition(["one", "thousand"], finding="importance"), tuple(runs))


def test_points_are_places_on_their_scales(known: ComparisonResult) -> None:
    trials = known.runs[0].trials
    found, distributions = unit_points(known.definition.space, trials)
    assert distributions == dict.fromkeys("abc", FloatDistribution(0, 1))
    for trial, point in zip(trials, found, strict=True):
        assert point["a"] == pytest.approx((np.log10(trial.params["a"]) + 4) / 4)
        share = (np.log10(1 - trial.params["b"]) + 3) / (np.log10(0.5) + 3)
        assert point["b"] == pytest.approx(1 - share)
        assert 0 <= point["c"] <= 1


def test_shares_are_those_of_optunas_evaluators(known: ComparisonResult) -> None:
    trials = known.runs[0].trials
    found, distributions = unit_points(known.definition.space, trials)
    losses = np.array([trial.value or 0.0 for trial in trials])
    study = optuna.create_study()
    for point, loss in zip(found, losses.tolist(), strict=True):
        study.add_trial(create_trial(value=loss, params=dict(point), distributions=distributions))
    evaluators: dict[Any, Any] = {
        "PED-ANOVA": optuna.importance.PedAnovaImportanceEvaluator(),
        "fANOVA": optuna.importance.FanovaImportanceEvaluator(n_trees=16, max_depth=6, seed=0),
    }
    for method, evaluator in evaluators.items():
        told = optuna.importance.get_param_importances(study, evaluator=evaluator)
        shares = importance_shares(found, distributions, losses, method)
        assert shares == pytest.approx([told[name] / sum(told.values()) for name in "abc"])


def test_importance_is_found_where_it_is_known(
    known: ComparisonResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuner.comparison.importance.TREES", 4)
    steps: list[tuple[int, int]] = []
    found = importance(known, lambda done, of: steps.append((done, of)))
    assert steps[-1] == (2 * 2 * 4, 2 * 2 * 4)
    assert len(steps) == steps[-1][0]
    for method in found:
        shares = {name: estimate.value for name, estimate in method.shares.items()}
        assert shares["a"] > shares["b"] > shares["c"] >= 0
        assert sum(shares.values()) == pytest.approx(1)
        assert method.steps[1, 2].value == pytest.approx(shares["a"] - shares["b"])
        low, high = method.shares["a"].low, method.shares["a"].high
        assert low is not None
        assert high is not None
        assert low < high
        order, tau = method.orders["thousand"]
        assert order[0] == "a"
        assert tau == pytest.approx(stats.kendalltau([-"abc".index(n) for n in order], [3, 2, 1]).statistic)
        assert all((estimate.low or 0.0) >= 0 for estimate in method.shares.values())
    assert importance(known) == found
    assert known.verdict.startswith("The arms are problems, not competitors")
    told = find(known)
    assert told.verdict.startswith("holds")
    assert told.lines[0] == "| parameter | share of importance, PED-ANOVA | share of importance, fANOVA |"
    assert [line.split()[1] for line in told.lines[2:5]] == ["a", "b", "c"]


def test_problems_that_share_their_points_are_resampled_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """One problem twice is no more evidence than once: its interval is as wide."""
    monkeypatch.setattr(findings, "RESAMPLES", 20)
    monkeypatch.setattr(findings, "METHODS", ("PED-ANOVA",))
    drawn = [points(np.random.default_rng(seed), 40) for seed in range(2)]

    def found(arms: list[str]) -> findings.Importance:
        runs = [
            run_of(arm, seed, chosen, [loss_of(p) for p in chosen])
            for arm in arms
            for seed, chosen in enumerate(drawn)
        ]
        (one,) = importance(ComparisonResult(definition(arms, finding="importance"), tuple(runs)))
        return one

    once, twice = found(["one", "other"]), found([*"pqrs"])
    for name, estimate in once.shares.items():
        again = twice.shares[name]
        assert (again.value, again.low, again.high) == pytest.approx(
            (estimate.value, estimate.low, estimate.high)
        )


@pytest.mark.parametrize(
    ("steps", "verdict"),
    [
        ([(0.1, 0.3), (0.1, 0.3)], "holds"),
        ([(0.1, 0.3), (-0.1, 0.3)], "not shown: tier 1 above tier 2 by PED-ANOVA only"),
        ([(-0.1, 0.3), (-0.1, 0.3)], "not shown: tier 1 above tier 2 not shown"),
        (
            [(0.1, 0.3), (-0.3, -0.1)],
            "does not hold: tier 1 above tier 2 by PED-ANOVA only, the other way by fANOVA",
        ),
    ],
)
def test_what_importance_says(
    steps: list[tuple[float, float]], verdict: str, known: ComparisonResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interval that includes 0 shows nothing; only one below 0 says that a claim does not hold."""
    made = [
        findings.Importance(method, {}, {(1, 2): Estimate((low + high) / 2, low, high)}, {})
        for method, (low, high) in zip(findings.METHODS, steps, strict=True)
    ]
    monkeypatch.setattr("tuner.evidence.importance", lambda *_: made)
    assert find(known).verdict == verdict


def test_of_one_tier_nothing_is_claimed(known: ComparisonResult) -> None:
    document = known.definition.dump()
    for parameter in document["space"].values():
        parameter["priority"] = 2
    told = find(ComparisonResult(ComparisonDefinition.parse(document), known.runs))
    assert told.verdict == "judge by the numbers"
    assert "| a | " in told.lines[2]


def test_values_count_by_their_ranks_and_failures_as_the_worst(
    known: ComparisonResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(findings, "METHODS", ("PED-ANOVA",))
    worst = [
        run_of(
            run.arm,
            run.seed,
            [dict(t.params) for t in run.trials],
            [
                math.inf if (t.value or 0) > np.median(run.trials[0].value or 0) * 1.5 else t.value or 0.0
                for t in run.trials
            ],
        )
        for run in known.runs
    ]
    failing = ComparisonResult(known.definition, tuple(worst))
    assert any(run.failed for run in worst)
    assert importance(failing)[0].shares["a"].value > 0.5
    as_ranks = [
        run_of(
            run.arm,
            run.seed,
            [dict(t.params) for t in run.trials],
            np.exp([t.value or 0.0 for t in run.trials]).tolist(),
        )
        for run in known.runs[:2]
    ]
    ranked = ComparisonResult(known.definition, (*as_ranks, *known.runs[2:]))
    assert importance(ranked) == importance(known)


def test_importance_needs_one_space_without_conditions() -> None:
    arms = [{"name": "x"}, {"name": "y", "fixed": {"c": 8}}]
    other = ComparisonDefinition.parse(
        {"name": "c", "space": SPACE, "comparison": {"finding": "importance", "arms": arms}}
    )
    with pytest.raises(DefinitionError, match="one space for all arms; y has another"):
        importance(ComparisonResult(other, ()))
    space = {"a": {"choices": ["x", "y"]}, "b": {"low": 0.0, "high": 1.0, "when": {"a": "x"}}}
    sampler = {"name": "random"}
    conditional = ComparisonDefinition.parse(
        {
            "name": "c",
            "space": space,
            "sampler": sampler,
            "comparison": {"arms": [{"name": "x"}, {"name": "y"}]},
        }
    )
    with pytest.raises(DefinitionError, match="none of them under a condition"):
        importance(ComparisonResult(conditional, ()))


def test_agreement_is_spearmans_over_the_points_that_both_tried() -> None:
    rng = np.random.default_rng(1)
    wanted: dict[str, list[float]] = {"good": [], "bad": []}
    runs = []
    for seed in range(8):
        chosen = points(rng, 20)
        truth = rng.normal(size=12)
        runs.append(run_of("truth", seed, chosen[:12], truth.tolist()))
        for arm, noise, count in (("good", 0.3, 12), ("bad", 5.0, 20)):
            values = np.concatenate([truth, np.zeros(8)])[:count] + noise * rng.normal(size=count)
            runs.append(run_of(arm, seed, chosen[:count], values.tolist()))
            wanted[arm].append(float(stats.spearmanr(values[:12], truth).statistic))
    comparison = definition(
        ["good", "bad", "truth"], seeds=8, finding="agreement", reference="truth", expected=["good", "bad"]
    )
    result = ComparisonResult(comparison, tuple(runs))
    for one in agreement(result):
        assert one.correlations == pytest.approx(wanted[one.arm])
    lines = find(result).lines
    (told,) = [line for line in lines if line.startswith("- Rank correlation with truth")]
    assert f"good {np.median(wanted['good']):.2f} [" in told
    p = stats.wilcoxon(wanted["good"], wanted["bad"]).pvalue
    assert any(line.startswith("- Of these, good − bad: median") and f"{p:.2g}" in line for line in lines)


def test_failures_agree_as_the_worst_and_points_must_be_the_same() -> None:
    chosen = points(np.random.default_rng(0), 4)
    values, fails = [1.0, 2.0, 3.0, math.inf], [1.5, 2.5, math.inf, math.inf]
    comparison = definition(["x", "truth"], seeds=1, finding="agreement", reference="truth")
    runs = (run_of("x", 0, chosen, fails), run_of("truth", 0, chosen, values))
    (found,) = agreement(ComparisonResult(comparison, runs))
    assert found.correlations == pytest.approx([stats.spearmanr([1, 2, 3.5, 3.5], [1, 2, 3, 4]).statistic])
    others = (run_of("x", 0, chosen[::-1], values), runs[1])
    with pytest.raises(
        DefinitionError, match=r"the same points; trial 0 of c\.x\.0 and of c\.truth\.0 differ"
    ):
        agreement(ComparisonResult(comparison, others))


def test_who_orders_nothing_does_not_agree_and_one_point_is_no_order() -> None:
    chosen = points(np.random.default_rng(0), 4)
    comparison = definition(["x", "truth"], seeds=1, finding="agreement", reference="truth")
    truth = run_of("truth", 0, chosen, [1.0, 2.0, 3.0, 4.0])
    failed = run_of("x", 0, chosen, [math.inf] * 4)
    (found,) = agreement(ComparisonResult(comparison, (failed, truth)))
    assert found.correlations.tolist() == [0.0]
    with pytest.raises(DefinitionError, match=r"needs two or more points that both tried; c\.x\.0 has 1"):
        agreement(ComparisonResult(comparison, (run_of("x", 0, chosen[:1], [1.0]), truth)))


@pytest.mark.parametrize(
    "finding",
    [{"finding": "importance"}, {"finding": "interaction"}, {"finding": "agreement", "reference": "a"}, {}],
)
def test_where_no_seed_can_be_judged_nothing_is_said(finding: dict[str, Any]) -> None:
    arms = [*"abcd"]
    chosen = points(np.random.default_rng(0), 3)
    runs = tuple(run_of(arm, seed, chosen, [1.0, 2.0, 3.0]) for arm in arms for seed in range(2))
    comparison = definition(arms, judge="metric", metric="no_such", expected=["a", "b"], **finding)
    found = find(ComparisonResult(comparison, runs))
    assert found.verdict == "nothing to judge yet"
    assert found.lines == []


def interacting(*columns: np.ndarray[Any, Any]) -> ComparisonResult:
    arms = ["with-8", "without-8", "with-128", "without-128"]
    point = points(np.random.default_rng(0), 1)
    runs = [
        run_of(arm, seed, point, [float(value)])
        for arm, column in zip(arms, columns, strict=True)
        for seed, value in enumerate(column)
    ]
    return ComparisonResult(definition(arms, seeds=len(columns[0]), finding="interaction"), tuple(runs))


def test_an_interaction_is_the_difference_of_differences_with_holms_p() -> None:
    rng = np.random.default_rng(0)
    a, b, c, d = (rng.normal(size=12) + mean for mean in (0, 4, 0, 1))
    found = interaction(interacting(a, b, c, d))
    raw = np.array([wilcoxon_p(b, a), wilcoxon_p(b - a, d - c)])
    assert raw[1] == pytest.approx(stats.wilcoxon((b - a) - (d - c)).pvalue)
    begin, end = found.effects.values()
    assert [begin.p, found.shrinks.p] == pytest.approx(holm(raw).tolist())
    assert end.p == pytest.approx(wilcoxon_p(d, c))
    assert begin.difference.value == pytest.approx(np.median(b - a))
    assert found.shrinks.difference.value == pytest.approx(np.median((b - a) - (d - c)))
    assert list(found.effects) == ["without-8 − with-8", "without-128 − with-128"]
    lines = [line for line in find(interacting(a, b, c, d)).lines if ", p " in line]
    assert [line.rpartition(", ")[2] for line in lines] == [
        "Holm over two questions",
        "not adjusted",
        "Holm over two questions",
    ]


def test_what_an_interaction_says() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(4, 16)) / 10
    low, high = 0.0, 3.0

    def verdict(*means: float) -> str:
        return find(interacting(*(np.array(means)[:, None] + noise))).verdict

    assert verdict(low, high, low, 1.0) == "holds"
    assert verdict(low, high, low, high) == (
        "not shown: an effect in the first pair, but no significant change to the last"
    )
    assert verdict(high, low, high, low).startswith("does not hold: the effect is the other way round")
    assert verdict(low, 1.0, low, high) == "does not hold: an effect in the first pair, and it grows"
    assert verdict(low, low, low, high) == "not shown: no significant effect in the first pair"


def test_paired_differences_with_runs_that_failed() -> None:
    found = paired(np.array([math.inf] * 7), np.array([1.0] * 7))
    assert found.is_above
    assert found.is_settled
    assert found.p == pytest.approx(2 * 0.5**7)
