from __future__ import annotations

import pytest

from tuner.words import plural


@pytest.mark.parametrize(
    ("amount", "noun", "words"),
    [
        (0, "trial", "0 trials"),
        (1, "trial", "1 trial"),
        (1_234_567, "epoch", "1,234,567 epochs"),
        (2, "study", "2 studies"),
        (1, "study", "1 study"),
        (1.0, "hour", "1 hour"),
        (0.5, "day", "0.5 days"),
    ],
)
def test_so_many_of_them(amount: float, noun: str, words: str) -> None:
    assert plural(amount, noun) == words
