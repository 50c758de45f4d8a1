"""The network at test time: parameters, running statistics, and the plain forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from objectives.network.architecture import Architecture, Array, Initialization

__all__ = ["Network", "activate", "log_softmax", "running_views", "softmax"]

LEAK = 0.01
"""Slope of leaky ReLU for negative inputs."""

ROWS = 4096
"""Rows evaluated at once, so that memory does not grow with the data."""


class Network:
    """Parameters and running statistics of an `Architecture`, and what it predicts with them.

    `parameters` (…, parameters) is one flat vector with named views in `named`; `running` holds the running
    mean and variance of each batch-normalised layer, apart from the parameters since they are state, not
    learned. A leading axis, if there is one, holds several networks of one architecture (see
    `objectives.network.stack`).
    """

    def __init__(self, architecture: Architecture, parameters: Array, running: Array | None = None) -> None:
        self.architecture = architecture
        self.parameters = parameters
        self.named = architecture.views(parameters)
        lead = parameters.shape[:-1]
        self.running = initial_running(architecture, lead, parameters.dtype) if running is None else running
        self.statistics = running_views(architecture, self.running, lead)

    @classmethod
    def random(
        cls,
        architecture: Architecture,
        rng: np.random.Generator,
        *,
        initialization: Initialization = "he",
        scale: float = 1.0,
        dtype: Any = np.float32,
    ) -> Network:
        """A network with random weights; see `Architecture.initial`."""
        return cls(architecture, architecture.initial(rng, initialization, dtype, scale=scale))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled and copied by its arrays, since copies of the views would no longer be views."""
        return Network, (self.architecture, self.parameters, self.running)

    def layer_inputs(self, X: Array) -> Iterator[Array]:
        """What each layer receives for rows X (m, n0), and last the logits: arrays (…, n_l, m), l = 0..L."""
        A: Array = X.T
        for layer in range(1, self.architecture.depth + 1):
            yield A
            W, b = self._affine(layer)
            A = W @ A
            A += b[..., None]
            if layer < self.architecture.depth:
                activate(self.architecture.activation, A)
        yield A

    def logits(self, X: Array) -> Array:
        """Logits (…, classes, m) for rows X (m, n0), with the running statistics."""
        *_, logits = self.layer_inputs(X)
        return logits

    def probabilities(self, X: Array) -> Array:
        """Class probabilities (…, classes, m) for rows X (m, n0)."""
        return softmax(self.logits(X))

    def loss_and_error(self, X: Array, labels: np.ndarray[Any, Any]) -> tuple[Array, Array]:
        """Mean cross-entropy and share of wrong predictions on rows X (m, n0) with integer labels (m,)."""
        loss = error = np.zeros(self.parameters.shape[:-1])
        for start in range(0, len(X), ROWS):
            y = labels[start : start + ROWS]
            logits = self.logits(X[start : start + ROWS])
            wrong = logits.argmax(axis=-2) != y
            logp = log_softmax(logits)[..., y, np.arange(len(y))]
            loss = loss - logp.sum(axis=-1, dtype=np.float64)
            error = error + wrong.sum(axis=-1)
        return loss / len(X), error / len(X)

    def _affine(self, layer: int) -> tuple[Array, Array]:
        """W and b of a layer; at test time batch normalisation is affine and folds into them."""
        W = self.named[f"W{layer}"]
        if f"b{layer}" in self.named:
            return W, self.named[f"b{layer}"]
        mean, variance = self.statistics[layer - 1]
        scale = self.named[f"gamma{layer}"] / np.sqrt(variance + self.architecture.bn_epsilon)
        return W * scale[..., None].astype(W.dtype), self.named[f"beta{layer}"] - mean * scale


def initial_running(architecture: Architecture, lead: tuple[int, ...], dtype: Any) -> Array:
    """Running statistics before any batch was seen: means 0, variances 1."""
    running = np.zeros(2 * sum(architecture.normalized_sizes) * int(np.prod(lead, dtype=int)), dtype)
    for _, variance in running_views(architecture, running, lead):
        variance[...] = 1
    return running


def running_views(
    architecture: Architecture, flat: Array, lead: tuple[int, ...]
) -> list[tuple[Array, Array]]:
    """Mean and variance (…, n_l) of each normalised layer, as views of one flat vector."""
    start, pairs = 0, []
    for size in architecture.normalized_sizes:
        count = size * int(np.prod(lead, dtype=int))
        mean, variance = flat[start : start + count], flat[start + count : start + 2 * count]
        pairs.append((mean.reshape(*lead, size), variance.reshape(*lead, size)))
        start += 2 * count
    return pairs


def activate(activation: str, Z: Array) -> Array:
    """g(Z), in place."""
    if activation == "relu":
        np.maximum(Z, 0, out=Z)
    elif activation == "leaky_relu":
        np.maximum(Z, LEAK * Z, out=Z)
    elif activation == "tanh":
        np.tanh(Z, out=Z)
    elif activation == "sigmoid":  # 1/(1+e^-z) = (1 + tanh(z/2))/2, which cannot overflow
        Z *= 0.5
        np.tanh(Z, out=Z)
        Z += 1
        Z *= 0.5
    return Z


def softmax(logits: Array) -> Array:
    """Softmax over the classes of logits (…, classes, m)."""
    exp = np.exp(logits - logits.max(axis=-2, keepdims=True))
    probabilities: Array = exp / exp.sum(axis=-2, keepdims=True)
    return probabilities


def log_softmax(logits: Array) -> Array:
    """Logarithm of the softmax over the classes of logits (…, classes, m), without overflow or log(0)."""
    shifted = logits - logits.max(axis=-2, keepdims=True)
    logp: Array = shifted - np.log(np.exp(shifted).sum(axis=-2, keepdims=True))
    return logp
