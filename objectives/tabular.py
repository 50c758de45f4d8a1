"""Small real tables: breast cancer (569 × 30, 2 classes) and wine (178 × 13, 3 classes)."""

from __future__ import annotations

from functools import cache

import numpy as np

from objectives.datasets import Data
from objectives.training import TrainingObjective

__all__ = ["breast_cancer", "load_breast_cancer", "load_wine", "wine"]


@cache
def load_breast_cancer() -> Data:
    """Wisconsin breast cancer: 30 measurements of cell nuclei, malignant (0) or benign (1)."""
    from sklearn import datasets  # noqa: PLC0415 - a second's import, only to train

    bunch = datasets.load_breast_cancer()
    return Data(bunch.data.astype(np.float64), bunch.target.astype(np.int64))


@cache
def load_wine() -> Data:
    """Wine: 13 chemical measurements, three cultivars."""
    from sklearn import datasets  # noqa: PLC0415

    bunch = datasets.load_wine()
    return Data(bunch.data.astype(np.float64), bunch.target.astype(np.int64))


breast_cancer = TrainingObjective(
    name="breast-cancer",
    description="dev cross-entropy (and macro-F1) of a network on the Wisconsin breast cancer data",
    load=load_breast_cancer,
    defaults={"hidden_units": 32, "batch_size": 32},
    macro_f1=True,
)

wine = TrainingObjective(
    name="wine",
    description="dev cross-entropy (and macro-F1) of a network on the wine data",
    load=load_wine,
    defaults={"hidden_units": 16, "batch_size": 16},
    macro_f1=True,
)
