"""Several trainings as one: networks of one architecture side by side, each with its own hyperparameters
and luck.

At small sizes a step's time is mostly Python's. K networks stacked along a leading axis share every call,
so that K trials cost far less than K times one, on a single core. Each has the numbers it would have had
alone, to rounding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from objectives.network.architecture import Array
from objectives.network.network import Network
from objectives.network.trainer import Settings, Trainer

__all__ = ["SHARED", "Stack", "stack_networks", "unstack_network"]

SHARED = ("optimizer", "batch_size", "schedule")
"""Settings that all networks of a stack have in common."""


def stack_networks(networks: Sequence[Network]) -> Network:
    """One network with parameters (K, parameters) of K networks of the same architecture; copies.

    Raises:
        ValueError: architectures differ.
    """
    architecture = networks[0].architecture
    if any(network.architecture != architecture for network in networks):
        raise ValueError(
            f"a stack needs networks of one architecture; got {[n.architecture for n in networks]}"
        )
    stacked = Network(architecture, np.stack([network.parameters for network in networks]))
    for k, network in enumerate(networks):
        for into, out_of in zip(stacked.statistics, network.statistics, strict=True):
            into[0][k], into[1][k] = out_of
    return stacked


def unstack_network(stacked: Network, k: int) -> Network:
    """Network k of a stack, as a copy."""
    network = Network(stacked.architecture, stacked.parameters[k].copy())
    for into, out_of in zip(network.statistics, stacked.statistics, strict=True):
        into[0][...], into[1][...] = out_of[0][k], out_of[1][k]
    return network


class Stack:
    """Trains K networks on the same rows X (m, n0) with labels y (m,), each with its own settings and
    generator.

    The settings may differ in all but `SHARED`. A network that diverges has NaN for its numbers; the others
    go on.

    Raises:
        ValueError: architectures or shared settings differ.
    """

    def __init__(
        self,
        networks: Sequence[Network],
        X: Array,
        y: np.ndarray[Any, Any],
        settings: Sequence[Settings],
        rngs: Sequence[np.random.Generator],
    ) -> None:
        if not len(networks) == len(settings) == len(rngs):
            raise ValueError(
                f"got {len(networks)} networks, {len(settings)} settings, {len(rngs)} generators"
            )
        self.network = stack_networks(networks)
        self.trainer = Trainer(self.network, X, y, merge_settings(settings), rngs)
        self.epoch = self.trainer.epoch

    def __len__(self) -> int:
        return len(self.network.parameters)

    def __getitem__(self, k: int) -> Network:
        """Network k, as a copy."""
        return unstack_network(self.network, k)

    def loss_and_error(self, X: Array, y: np.ndarray[Any, Any]) -> tuple[Array, Array]:
        """Mean cross-entropy (K,) and share of wrong predictions (K,) of each network."""
        with np.errstate(all="ignore"):
            return self.network.loss_and_error(X, y)


def merge_settings(settings: Sequence[Settings]) -> Settings:
    """Settings with arrays (K,) for what may differ."""
    first = settings[0]
    merged: dict[str, Any] = {}
    for name in (f.name for f in dataclasses.fields(Settings)):
        values = [getattr(s, name) for s in settings]
        if name not in SHARED:
            merged[name] = np.array(values, np.float64)
        elif any(value != values[0] for value in values):
            raise ValueError(f"a stack shares its {name}; got {values}")
    return dataclasses.replace(first, **merged)
