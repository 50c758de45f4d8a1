"""Handwritten digits: as they are, the quick start, and made harder.

As they are they are too easy to rank samplers with: measured, the spread among good configurations is a
third of the noise between seeds. The three harder ones change the images or take most of the training
examples away.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from objectives.datasets import Data, load_digits
from objectives.training import TrainingObjective

__all__ = [
    "digits",
    "digits_few",
    "digits_noisy",
    "digits_scarce",
    "digits_shifted",
    "load_noisy",
    "load_shifted",
]

CANVAS = 12
SHIFT = 2
NOISE = 0.5


@cache
def load_shifted() -> Data:
    """Each digit placed on a 12×12 canvas, moved from the middle by up to ±2 pixels down and across."""
    data, rng = load_digits(), np.random.default_rng(0)
    images = data.X.reshape(-1, 8, 8)
    canvas = np.zeros((len(images), CANVAS, CANVAS))
    middle = (CANVAS - 8) // 2
    corners = middle + rng.integers(-SHIFT, SHIFT + 1, size=(len(images), 2))
    for image, place, (top, left) in zip(images, canvas, corners, strict=True):
        place[top : top + 8, left : left + 8] = image
    return Data(canvas.reshape(len(images), -1), data.y)


@cache
def load_noisy() -> Data:
    """Pixels scaled to 0..1, with Gaussian noise of standard deviation 0.5 added to each."""
    data, rng = load_digits(), np.random.default_rng(0)
    return Data(data.X / 16 + rng.normal(scale=NOISE, size=data.X.shape), data.y)


digits = TrainingObjective(
    name="digits",
    description="dev cross-entropy of a network on 8×8 digits (quick; too easy to rank samplers)",
    load=load_digits,
)

digits_shifted = TrainingObjective(
    name="digits-shifted",
    description="dev cross-entropy of a network on digits shifted by up to ±2 pixels on a 12×12 canvas",
    load=load_shifted,
)

digits_noisy = TrainingObjective(
    name="digits-noisy",
    description="dev cross-entropy of a network on 8×8 digits with pixel noise 0.5",
    load=load_noisy,
)

digits_few = TrainingObjective(
    name="digits-few",
    description="dev cross-entropy of a network on 8×8 digits, with 200 training examples",
    load=load_digits,
    defaults={"batch_size": 32},
    train_size=200,
)

digits_scarce = TrainingObjective(
    name="digits-scarce",
    description="dev cross-entropy of a network on 8×8 digits, with 100 training and 30 dev examples",
    load=load_digits,
    defaults={"batch_size": 16},
    train_size=100,
    dev_size=30,
)
