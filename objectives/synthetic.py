"""Made data: hard enough to rank samplers, in a tenth of a second a trial."""

from __future__ import annotations

from functools import cache

import numpy as np

from objectives.datasets import Data
from objectives.training import TrainingObjective

__all__ = ["clusters", "imbalanced", "load_clusters", "load_imbalanced", "load_spirals", "spirals"]

ARMS = 5
LABEL_NOISE = 0.05


@cache
def load_spirals() -> Data:
    """Five-arm spirals: 2000 points in the plane, each class an arm that winds once around, with noise 0.15."""
    rng, per_arm = np.random.default_rng(0), 400
    y = np.repeat(np.arange(ARMS), per_arm)
    radius = np.tile(np.linspace(0.1, 1.0, per_arm), ARMS)
    angle = 2 * np.pi * (radius + y / ARMS) + rng.normal(scale=0.15, size=len(y))
    return Data(np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1), y)


@cache
def load_clusters() -> Data:
    """`make_classification`: 40 features, 8 informative, 4 classes of 8 clusters each, 3000 samples."""
    from sklearn.datasets import make_classification  # noqa: PLC0415 - a second's import, only to train

    X, y = make_classification(
        n_samples=3000,
        n_features=40,
        n_informative=8,
        n_redundant=0,
        n_classes=4,
        n_clusters_per_class=8,
        class_sep=2.0,
        flip_y=0.0,
        random_state=0,
    )
    return Data(X, y)


@cache
def load_imbalanced() -> Data:
    """Three classes of 85, 10 and 5 %, 20 features, and 5 % of the labels drawn at random."""
    from sklearn.datasets import make_classification  # noqa: PLC0415

    X, y = make_classification(
        n_samples=3000,
        n_features=20,
        n_informative=6,
        n_redundant=4,
        n_classes=3,
        weights=[0.85, 0.10, 0.05],
        flip_y=LABEL_NOISE,
        random_state=0,
    )
    return Data(X, y)


spirals = TrainingObjective(
    name="spirals",
    description="dev cross-entropy of a network on five-arm spirals in the plane",
    load=load_spirals,
    defaults={"layers": 2, "hidden_units": 32},
)

clusters = TrainingObjective(
    name="clusters",
    description="dev cross-entropy of a network on 4 classes of 8 clusters in 40 dimensions (ranks samplers)",
    load=load_clusters,
)

imbalanced = TrainingObjective(
    name="imbalanced",
    description="dev cross-entropy (and macro-F1) of a network on unequal classes with noisy labels",
    load=load_imbalanced,
    reference_error=LABEL_NOISE * 2 / 3,  # a label drawn at random among three is wrong two times in three
    macro_f1=True,
)
