"""The course of a learning curve, told from its values alone."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from objectives.network.diagnosis import course

FALLING = [2.0 * 0.8**epoch for epoch in range(10)]
CURVES = {
    "just begun": [1.0, 0.5],
    "improving": FALLING,
    "plateau": [*FALLING, *[FALLING[-1] - 1e-4] * 6],
    "getting worse": [*FALLING, 0.3, 0.4, 0.5],
    "diverging": [1.0, 0.9, 1.5, 4.0],
    "oscillating": [1.0, 0.5, 0.4, 0.6, 0.35, 0.62, 0.36, 0.6, 0.34],
}


@pytest.mark.parametrize(("word", "values"), CURVES.items())
def test_each_course_has_its_word(word: str, values: list[float]) -> None:
    assert course(values).startswith(word)


def test_the_best_epoch_is_named() -> None:
    assert "best in epoch 10;" in course(CURVES["getting worse"])
    assert course(FALLING) == "improving: best in epoch 10"


def test_a_curve_that_never_moved_is_a_plateau_and_infinity_diverges() -> None:
    assert course([0.7] * 8).startswith("plateau")
    assert course([1.0, 0.5, math.inf]).startswith("diverging")


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
def test_a_curve_to_be_maximized_is_the_same_curve_upside_down(values: list[float]) -> None:
    assert course(values) == course([-value for value in values], minimize=False)
