"""Real and made data, random stratified train/dev/test splits, and normalisation fitted on the train split
only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from objectives.epoch import Seed

__all__ = [
    "NORMALIZATIONS",
    "Data",
    "Load",
    "Normalization",
    "Normalizer",
    "Splits",
    "folds",
    "load_digits",
    "random_stream",
    "set_aside",
    "split",
    "stratified_parts",
    "subsample",
]

Array: TypeAlias = npt.NDArray[np.floating[Any]]
Labels: TypeAlias = npt.NDArray[np.integer[Any]]
Normalization = Literal["standard", "min_max", "none"]

NORMALIZATIONS: tuple[Normalization, ...] = ("standard", "min_max", "none")


class Data(NamedTuple):
    """Rows X (m, features) with integer labels y (m,) from 0."""

    X: Array
    y: Labels

    def take(self, rows: Any) -> Data:
        """The given rows."""
        return Data(self.X[rows], self.y[rows])

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return int(self.y.max()) + 1


Load: TypeAlias = Callable[[], Data]


class Splits(NamedTuple):
    """Random parts of one distribution: to train on, to tune on, and to look at once at the very end."""

    train: Data
    dev: Data
    test: Data


def random_stream(seed: Seed | int, *key: int) -> np.random.Generator:
    """An independent generator for each (seed, key)."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def stratified_parts(y: Labels, shares: tuple[float, ...], rng: np.random.Generator) -> list[Labels]:
    """Random disjoint index arrays that cover y (m,), each with its share of every class, as near as can be.

    Samples are shuffled, ordered by class, and dealt out in proportion, so that part sizes are exact to
    rounding.
    """
    order = rng.permutation(len(y))
    order = order[np.argsort(y[order], kind="stable")]
    # sample i of the class-ordered list goes to the part whose quota is furthest behind
    quotas = np.asarray(shares) / np.sum(shares)
    owner = np.empty(len(y), np.int64)
    dealt = np.zeros(len(shares))
    for i in range(len(y)):
        owner[i] = part = int(np.argmax(quotas * (i + 1) - dealt))
        dealt[part] += 1
    return [rng.permutation(order[owner == part]) for part in range(len(shares))]


def split(data: Data, seed: int, shares: tuple[float, float, float] = (0.6, 0.2, 0.2)) -> Splits:
    """Random stratified train, dev and test parts; the same for the same seed."""
    parts = stratified_parts(data.y, shares, random_stream(seed, 0))
    return Splits(*(data.take(rows) for rows in parts))


def subsample(data: Data, count: int, seed: int) -> Data:
    """`count` samples, random and stratified; the same for the same seed."""
    return set_aside(data, count, random_stream(seed, 2))[0]


def set_aside(data: Data, count: int, rng: np.random.Generator) -> tuple[Data, Data]:
    """`count` samples, random and stratified, and the others."""
    kept, others = stratified_parts(data.y, (count, len(data.y) - count), rng)
    return data.take(kept), data.take(others)


def folds(data: Data, count: int, seed: int) -> list[tuple[Data, Data]]:
    """k-fold cross-validation: (train, dev) pairs whose dev parts are disjoint, stratified, and cover the
    data.
    """
    parts = stratified_parts(data.y, (1.0,) * count, random_stream(seed, 1))
    rest = [np.concatenate([p for j, p in enumerate(parts) if j != i]) for i in range(count)]
    return [(data.take(train), data.take(dev)) for train, dev in zip(rest, parts, strict=True)]


@dataclass(frozen=True)
class Normalizer:
    """x → (x - shift)/scale by feature; features that never vary on the train split are only shifted.

    `standard` gives the train split mean 0 and variance 1, `min_max` the range [0, 1], `none` leaves it as
    it is.
    """

    shift: Array
    scale: Array

    @classmethod
    def fit(cls, kind: Normalization, X: Array) -> Normalizer:
        """Fit on the train split's rows X (m, features)."""
        if kind == "standard":
            shift, scale = X.mean(axis=0), X.std(axis=0)
        elif kind == "min_max":
            shift, scale = X.min(axis=0), np.ptp(X, axis=0)
        elif kind == "none":
            shift, scale = np.zeros(X.shape[1]), np.ones(X.shape[1])
        else:
            raise ValueError(f"input_normalization must be one of {list(NORMALIZATIONS)}; got {kind!r}")
        return cls(shift, np.where(scale > 0, scale, 1))

    def __call__(self, data: Data) -> Data:
        """The normalised data."""
        return Data((data.X - self.shift) / self.scale, data.y)


@functools.cache
def load_digits() -> Data:
    """scikit-learn's digits: 1797 real images of 8×8 pixels, 0..16, ten classes."""
    from sklearn import datasets  # noqa: PLC0415 - a second's import, only for those who train

    bunch = datasets.load_digits()
    return Data(bunch.data.astype(np.float64), bunch.target.astype(np.int64))
