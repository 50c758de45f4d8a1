"""What a network looks like, and where each of its parameters lies in one flat vector."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from objectives.network.arrays import aligned_zeros

__all__ = ["ACTIVATIONS", "INITIALIZATIONS", "Activation", "Architecture", "Array", "Initialization"]

Array: TypeAlias = npt.NDArray[np.floating[Any]]
"""A float32 or float64 array."""

Activation = Literal["identity", "sigmoid", "tanh", "relu", "leaky_relu"]
Initialization = Literal["he", "xavier"]

ACTIVATIONS: tuple[Activation, ...] = ("identity", "sigmoid", "tanh", "relu", "leaky_relu")
INITIALIZATIONS: tuple[Initialization, ...] = ("he", "xavier")


@dataclass(frozen=True, slots=True)
class Architecture:
    """A multilayer network for classification.

    `sizes` are the widths n0, n1, …, nL: inputs, hidden layers, classes; two widths are softmax regression.
    Layer l computes Z = W A + b (W: n_l × n_(l-1)) and A = g(Z); with `batch_norm` the hidden layers compute
    A = g(γ·Ẑ + β) instead, where Ẑ is Z normalised over the batch, and have no bias, since β does its work.
    The last layer gives logits for the softmax.
    """

    sizes: tuple[int, ...]
    activation: Activation = "relu"
    batch_norm: bool = False
    bn_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        if len(self.sizes) < 2 or min(self.sizes) < 1:
            raise ValueError(f"sizes needs at least inputs and classes, each positive; got {self.sizes}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {list(ACTIVATIONS)}; got {self.activation!r}")
        if not self.bn_epsilon > 0:
            raise ValueError(f"bn_epsilon must be positive; got {self.bn_epsilon}")

    @property
    def depth(self) -> int:
        """L, the number of layers with weights."""
        return len(self.sizes) - 1

    @property
    def normalized_sizes(self) -> tuple[int, ...]:
        """Widths of the batch-normalised layers."""
        return self.sizes[1:-1] if self.batch_norm else ()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Each parameter's shape, in the order of the flat vector: all weights first, then the vectors."""
        weights = {f"W{i}": (self.sizes[i], self.sizes[i - 1]) for i in range(1, self.depth + 1)}
        vectors: dict[str, tuple[int, ...]] = {}
        for layer in range(1, self.depth + 1):
            normalized = self.batch_norm and layer < self.depth
            for name in ("gamma", "beta") if normalized else ("b",):
                vectors[f"{name}{layer}"] = (self.sizes[layer],)
        return {**weights, **vectors}

    @property
    def weight_count(self) -> int:
        """How many of the flat vector's leading entries are weights, the part that L1 and L2 act on."""
        return sum(math.prod(shape) for name, shape in self.shapes.items() if name[0] == "W")

    @property
    def parameter_count(self) -> int:
        """Length of the flat vector."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def views(self, flat: Array) -> Mapping[str, Array]:
        """The named parameters of `flat` (…, parameters) as views of shape (…, *shape)."""
        lead, start, named = flat.shape[:-1], 0, {}
        for name, shape in self.shapes.items():
            stop = start + math.prod(shape)
            named[name] = flat[..., start:stop].view()
            named[name].shape = lead + shape  # assigning the shape never copies: it is a view or an error
            start = stop
        return named

    def initial(
        self, rng: np.random.Generator, initialization: Initialization, dtype: Any, *, scale: float = 1.0
    ) -> Array:
        """A new flat vector (parameters,): random weights, γ = 1, biases and β = 0.

        The weights of a layer with n_in inputs and n_out outputs are normal with variance 2/n_in (`he`: He et
        al. 2015, for ReLU) or 2/(n_in + n_out) (`xavier`: Glorot & Bengio 2010, for tanh and sigmoid); `scale`
        multiplies them.
        """
        if initialization not in INITIALIZATIONS:
            raise ValueError(f"initialization must be one of {list(INITIALIZATIONS)}; got {initialization!r}")
        flat: Array = aligned_zeros((self.parameter_count,), dtype)
        for name, value in self.views(flat).items():
            if name[0] == "W":
                n_out, n_in = value.shape
                fan = n_in if initialization == "he" else n_in + n_out
                value[...] = rng.normal(scale=scale * math.sqrt(2 / fan), size=value.shape)
            elif name.startswith("gamma"):
                value[...] = 1
        return flat
