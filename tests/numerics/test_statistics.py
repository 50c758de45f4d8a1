"""Statistics against SciPy, published tables and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tuner.statistics import Spread, friedman_p, holm, mean_ranks, pairwise_p, spread, wilcoxon_p


def test_mean_ranks_share_ties() -> None:
    values = np.array([[1.0, 1.0, 3.0], [2.0, 1.0, 1.0], [3.0, 5.0, np.inf]])
    assert mean_ranks(values).tolist() == pytest.approx([(1 + 1.5 + 2) / 3, (2 + 1.5 + 1) / 3, 3.0])


def test_holm_on_the_example_of_his_paper_as_r_computes_it() -> None:
    # R: p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm")
    assert holm(np.array([0.03, 0.01, 0.05, 0.02, 0.04])) == pytest.approx([0.09, 0.05, 0.09, 0.08, 0.09])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_raw_and_bonferroni_and_keeps_the_order(raw: list[float]) -> None:
    p = np.array(raw)
    adjusted = holm(p)
    assert np.all(adjusted >= p)
    assert np.all(adjusted <= np.minimum(1, p * len(p)) + 1e-15)
    assert np.all(np.diff(adjusted[np.argsort(p)]) >= 0)
    assert adjusted.min() == pytest.approx(min(1.0, p.min() * len(p)))


def test_friedman_and_wilcoxon_are_scipys() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4, 12)) + np.arange(4)[:, None] / 2
    assert friedman_p(values) == stats.friedmanchisquare(*values).pvalue
    assert wilcoxon_p(values[0], values[3]) == stats.wilcoxon(values[0], values[3]).pvalue
    assert wilcoxon_p(values[0], values[0]) == 1.0
    assert friedman_p(values[:2]) is None
    assert friedman_p(values[:, :1]) is None
    assert friedman_p(np.ones((3, 4))) is None


def test_pairwise_is_symmetric_and_adjusts_over_all_pairs() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=(3, 10)) + np.array([[0.0], [0.0], [9.0]])
    p = pairwise_p(values)
    assert np.array_equal(p, p.T)
    assert np.all(np.diag(p) == 1)
    assert p[0, 2] == pytest.approx(3 * 2 / 2**10)  # all ten seeds one way, the smallest of three


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=12))
def test_spread_is_numpys_where_all_is_finite(values: list[float]) -> None:
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75], method="median_unbiased")
    found = spread(np.array(values))
    assert (found.low, found.median, found.high) == pytest.approx((low, median, high), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("worst", [np.inf, -np.inf])
def test_spread_keeps_infinite_values_as_the_worst(worst: float) -> None:
    found = spread(np.array([1.0, worst, 2.0, worst, 3.0]))
    assert found.median == (3.0 if worst > 0 else 1.0)
    assert worst in (found.low, found.high)
    assert spread(np.array([worst, worst])) == Spread(worst, worst, worst)


def test_null_comparisons_find_a_difference_as_rarely_as_they_should() -> None:
    rng = np.random.default_rng(2)
    found = sum(bool((pairwise_p(rng.normal(size=(4, 10))) < 0.05).any()) for _ in range(300))
    assert found / 300 <= 0.07  # at most 5% are promised, whichever arms look best
