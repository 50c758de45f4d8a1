"""One training step, laid out once as a straight line of bound calls.

At the sizes that are tuned here, most of a step's time is Python's, not arithmetic's. So the forward and
backward pass are not a loop over layer objects: `Step` writes them down once, as a list of functions bound
to preallocated buffers, and training only walks down the list. The textbook version of every layer stands
in the tests as its oracle (`tests/numerics/textbook.py`).

Arrays are (…, units, batch), as in the course: Z = W A + b. A leading axis holds several networks that
train side by side; all the mathematics below is the same with it and without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from objectives.network.architecture import Architecture, Array
from objectives.network.arrays import Call, add_outer, add_scaled, aligned_zeros
from objectives.network.network import LEAK, Network, running_views

__all__ = ["Regularization", "Step"]

LARGE = 65_536
"""Elements from which a fused sum of squares beats a product followed by a BLAS sum."""

CACHED_BYTES = 1_048_576
"""Bytes of training rows gathered at once: small enough to stay in cache, enough to spread the cost."""

MOST_SLOTS = 256
"""Batches gathered at once, at most: each has a line of calls of its own, which takes time to write down."""


class Regularization:
    """L1, L2 and dropout, as arrays that bound calls read, so that they can change while training runs.

    The loss gains l2/2 · Σ W² + l1 · Σ |W| over all weights (not biases, γ or β). Dropout is inverted: a
    hidden activation is kept with probability 1 - dropout and then divided by it, so that nothing changes
    at test time. Each of the three is a number, or an array (networks,) for a stack of networks.
    """

    def __init__(self, lead: tuple[int, ...], dtype: Any) -> None:
        column = (*lead, 1) if lead else ()
        self.l1, self.l2 = np.zeros(column, dtype), np.zeros(column, dtype)
        block = (*lead, 1, 1) if lead else ()
        self.keep, self.kept_scale = np.ones(block, dtype), np.ones(block, dtype)

    def set(self, *, l1: Any, l2: Any, dropout: Any) -> None:
        """Give new values, each a number or (networks,)."""
        self.l1[...] = np.reshape(l1, self.l1.shape)
        self.l2[...] = np.reshape(l2, self.l2.shape)
        self.keep[...] = 1 - np.reshape(dropout, self.keep.shape)
        self.kept_scale[...] = 1 / self.keep

    @property
    def active(self) -> tuple[bool, bool, bool]:
        """Which of L1, L2 and dropout have anything to do."""
        return bool(self.l1.any()), bool(self.l2.any()), any(self.dropping)

    @property
    def dropping(self) -> tuple[bool, ...]:
        """For each network, whether it has dropout."""
        return tuple(bool(keep < 1) for keep in self.keep.reshape(-1))


class Step:
    """Forward and backward pass for batches of one size.

    `gather(X, onehot, order)` copies the rows `order` (…, batches · batch) into the step's slots.
    `lines[i]` is then the straight line of calls that computes the gradient of batch i into `gradient` (…,
    parameters), its squared norm into `square_norms[i]`, and its mean and variance into `history[i]`;
    `update_running` takes those into the network's running statistics.

    Raises:
        ValueError: batch normalisation with a batch of one.
    """

    def __init__(
        self,
        network: Network,
        gradient: Array,
        batch: int,
        *,
        bn_momentum: Any = 0.9,
        regularization: Regularization | None = None,
        rngs: Sequence[np.random.Generator] = (),
        batches: int = 1,
    ) -> None:
        architecture = network.architecture
        if architecture.normalized_sizes and batch < 2:
            raise ValueError(f"batch normalisation needs batches of at least 2; got batch size {batch}")
        self.network, self.gradient, self.batch = network, gradient, batch
        self.lead = network.parameters.shape[:-1]
        self.dtype = network.parameters.dtype
        self.regularization = regularization or Regularization(self.lead, self.dtype)
        self.rngs = rngs
        self.named_gradient = architecture.views(gradient)
        inputs, classes = architecture.sizes[0], architecture.sizes[-1]
        row_bytes = inputs * self.dtype.itemsize * int(np.prod(self.lead, dtype=int))
        self.slots = max(1, min(batches, MOST_SLOTS, CACHED_BYTES // (batch * row_bytes)))
        self.rows = self._empty(self.slots * batch, inputs)
        self.label_rows = self._empty(self.slots * batch, classes)
        self.labels = self._empty(self.slots, classes, batch)
        self.square_norms = np.zeros((self.slots, *self.lead), self.dtype)
        self._buffers: dict[tuple[Any, ...], Array] = {}
        self._allocate(architecture)
        self._set_running_weights(bn_momentum)
        self.lines = [self._line(slot) for slot in range(self.slots)]

    def gather(self, X: Array, onehot: Array, order: np.ndarray[Any, Any]) -> None:
        """Copy rows `order` (…, m) of X (samples, n0) and onehot (samples, classes) into the first slots."""
        stop = order.shape[-1]
        rows, labels = self.rows[..., :stop, :], self.label_rows[..., :stop, :]
        if self.lead and stop < self.rows.shape[-2]:
            rows[...], labels[...] = X[order], onehot[order]
        else:
            X.take(order, 0, rows, "clip")
            onehot.take(order, 0, labels, "clip")
        filled = stop // self.batch
        by_slot = labels.reshape(*self.lead, filled, self.batch, -1).swapaxes(-1, -2)
        # one-hot labels over the batch size: what the mean cross-entropy's gradient subtracts
        np.multiply(by_slot, self.per_sample, self.labels[..., :filled, :, :])

    def update_running(self, filled: int) -> None:
        """Take the statistics of the first `filled` batches into the running ones, oldest first.

        Unrolled over k batches, running = m·running + (1 - m)·batch is mᵏ·running + Σ (1 - m)·mᵏ⁻ʲ·batch_j.
        """
        if self.history.size:
            running = self.network.running
            running *= self.running_keep**filled
            running += (self.history_weights[-filled:] * self.history[:filled]).sum(axis=0)

    def _empty(self, *shape: int) -> Array:
        empty: Array = aligned_zeros((*self.lead, *shape), self.dtype)
        return empty

    def buffer(self, name: str, *shape: int, dtype: Any = None) -> Array:
        """The named buffer (…, *shape), made at its first use."""
        key = (name, *shape)
        if key not in self._buffers:
            self._buffers[key] = aligned_zeros((*self.lead, *shape), self.dtype if dtype is None else dtype)
        return self._buffers[key]

    def _scalar(self, value: float) -> Array:
        """A 0-d array: NumPy takes it faster than a Python number, and without promotion."""
        return np.array(value, self.dtype)

    def _allocate(self, architecture: Architecture) -> None:
        batch, widths = self.batch, architecture.sizes[1:]
        self.ones = np.ones(batch, self.dtype)
        self.mean_weights = np.full(batch, 1 / batch, self.dtype)
        self.per_sample = self._scalar(1 / batch)
        self.outputs = [self._empty(n, batch) for n in widths]  # A of each layer, last the logits
        self.gradients = [self._empty(n, batch) for n in widths]  # dA, then dZ
        self.centred = [self._empty(n, batch) for n in architecture.normalized_sizes]
        scratch = self._empty(max(widths) * batch)
        self.scratch = [
            scratch.reshape(-1)[: int(np.prod(self.lead, dtype=int)) * n * batch].reshape(
                *self.lead, n, batch
            )
            for n in widths
        ]
        self.history = np.zeros((self.slots, self.network.running.size), self.dtype)

    def _set_running_weights(self, bn_momentum: Any) -> None:
        """What batches count for in running = m·running + (1 - m)·batch, by how many came after them.

        The batch variance counts as the unbiased one here, as in PyTorch.
        """
        architecture = self.network.architecture
        self.running_keep, take = np.empty_like(self.network.running), np.empty_like(self.network.running)
        m = np.reshape(bn_momentum, (*self.lead, 1) if self.lead else ())
        for keep in running_views(architecture, self.running_keep, self.lead):
            keep[0][...] = keep[1][...] = m
        for mean, variance in running_views(architecture, take, self.lead):
            mean[...] = 1 - m
            variance[...] = (1 - m) * self.batch / (self.batch - 1)
        ages = np.arange(self.slots - 1, -1, -1)[:, None]
        self.history_weights = (take * self.running_keep.astype(np.float64) ** ages).astype(self.dtype)

    def _line(self, slot: int) -> list[Call]:
        """All calls of one step, in order."""
        part = slice(slot * self.batch, (slot + 1) * self.batch)
        X, Y = self.rows[..., part, :], self.labels[..., slot, :, :]
        writer = _Writer(self, X, running_views(self.network.architecture, self.history[slot], self.lead))
        last = self.network.architecture.depth
        for layer in range(1, last):
            writer.forward_hidden(layer)
        writer.forward_output(last, Y)
        for layer in range(last, 0, -1):
            writer.backward(layer)
        writer.regularize()
        writer.square_norm(self.square_norms[slot : slot + 1].reshape(self.lead))
        return writer.line


class _Writer:
    """Writes down the calls of one step. It never computes: every method appends to `line`.

    Intermediate results live in the step's `buffer`s by name, shared by all slots and reused in every step.
    """

    def __init__(self, step: Step, X: Array, statistics: list[tuple[Array, Array]]) -> None:
        self.step = step
        self.statistics = statistics
        self.line: list[Call] = []
        self.X = X
        self.product: Any = np.matmul if step.lead else np.dot

    def call(self, function: Callable[..., Any], *args: Any, **options: Any) -> None:
        self.line.append(partial(function, *args, **options))

    def inputs(self, layer: int) -> Array:
        """What layer receives, (…, n_(l-1), batch)."""
        return self.X.swapaxes(-1, -2) if layer == 1 else self.step.outputs[layer - 2]

    def row_sums(self, Z: Array, weights: Array, out: Array) -> None:
        """out (…, n) = Z (…, n, batch) @ weights (batch,), through BLAS."""
        if out.flags.c_contiguous:
            self.call(np.dot, Z.reshape(-1, Z.shape[-1]), weights, out.reshape(-1))
        else:
            sums = self.step.buffer("sums", *out.shape[len(self.step.lead) :])
            self.row_sums(Z, weights, sums)
            self.call(np.copyto, out, sums)

    def add_to_rows(self, Z: Array, vector: Array, *, factor: float = 1.0) -> None:
        """Z (…, n, batch) = Z + factor · vector (…, n)."""
        if not vector.flags.c_contiguous:
            terms = self.step.buffer("terms", *vector.shape[len(self.step.lead) :])
            self.call(np.copyto, terms, vector)
            vector = terms
        self.line.append(add_outer(Z, factor, vector, self.step.ones))

    def vector(self, name: str, layer: int) -> Array:
        """A named buffer (…, n_l)."""
        return self.step.buffer(f"{name}{layer}", self.step.network.architecture.sizes[layer])

    def block(self, name: str, layer: int, dtype: Any = None) -> Any:
        """A named buffer (…, n_l, batch)."""
        size = self.step.network.architecture.sizes[layer]
        return self.step.buffer(f"{name}{layer}", size, self.step.batch, dtype=dtype)

    def forward_hidden(self, layer: int) -> None:
        step, architecture = self.step, self.step.network.architecture
        dropout = step.regularization.active[2]
        A = self.block("activated", layer) if dropout else step.outputs[layer - 1]
        W = step.network.named[f"W{layer}"]
        if architecture.batch_norm:
            self.call(self.product, W, self.inputs(layer), step.centred[layer - 1])
            self.normalize(layer, step.centred[layer - 1], A)
        else:
            self.call(self.product, W, self.inputs(layer), A)
            self.add_to_rows(A, step.network.named[f"b{layer}"])
        self.activate(layer, A)
        if dropout:
            self.drop(layer, A)

    def normalize(self, layer: int, Z: Array, Y: Array) -> None:
        """Y = γ (Z - μ)/√(σ² + ε) + β over the batch; Z becomes Z - μ. Ioffe & Szegedy 2015, algorithm 1."""
        step, named = self.step, self.step.network.named
        mean, variance = self.statistics[layer - 1]
        self.row_sums(Z, step.mean_weights, mean)
        self.add_to_rows(Z, mean, factor=-1.0)
        if Z.size < LARGE:
            self.call(np.multiply, Z, Z, Y)
            self.row_sums(Y, step.mean_weights, variance)
        else:
            self.call(np.vecdot, Z, Z, variance)
            self.call(np.multiply, variance, step.per_sample, variance)
        deviation, scale = self.vector("deviation", layer), self.vector("scale", layer)
        self.call(np.add, variance, step._scalar(step.network.architecture.bn_epsilon), deviation)
        self.call(np.sqrt, deviation, deviation)
        self.call(np.divide, named[f"gamma{layer}"], deviation, scale)
        scales = self.block("scales", layer)  # of every sample the same: used twice, and broadcasting is slow
        self.call(np.copyto, scales, scale[..., None])
        self.call(np.multiply, Z, scales, Y)
        self.add_to_rows(Y, named[f"beta{layer}"])

    def activate(self, layer: int, A: Array) -> None:
        """A = g(A) in place, keeping what the gradient needs."""
        activation = self.step.network.architecture.activation
        if activation == "relu":
            self.relu(layer, A)
        elif activation == "leaky_relu":
            slope = self.block("slope", layer)
            self.call(np.greater, A, self.step._scalar(0), slope)
            self.call(np.maximum, slope, self.step._scalar(LEAK), out=slope)
            self.call(np.multiply, A, slope, A)
        elif activation == "tanh":
            self.call(np.tanh, A, A)
        elif activation == "sigmoid":
            half = self.step._scalar(0.5)  # 1/(1+e^-z) = (1 + tanh(z/2))/2
            self.call(np.multiply, A, half, A)
            self.call(np.tanh, A, A)
            self.call(np.multiply, A, half, A)
            self.call(np.add, A, half, A)

    def relu(self, layer: int, A: Array) -> None:
        """ReLU on the bits as an integer, which is negative where the float is: the larger of it and zero.

        Its slope is the sign of that, 0 at 0. -NaN becomes 0 here, so divergence is looked for in the parameters
        and gradients, not in activations.
        """
        bits = A.view(np.int32 if A.dtype == np.float32 else np.int64)
        zeros = self.step.buffer("zeros", *A.shape[len(self.step.lead) :], dtype=bits.dtype)
        # an array of zeros, as one zero takes four times as long
        self.call(np.maximum, bits, zeros, out=bits)
        self.call(np.sign, bits, self.block("slope", layer, bits.dtype))

    def drop(self, layer: int, A: Array) -> None:
        """Inverted dropout (Srivastava et al. 2014): the output is A · (u < keep)/keep with uniform u."""
        step, uniform = self.step, self.block("uniform", layer)
        parts = zip(step.rngs, uniform if step.lead else [uniform], step.regularization.dropping, strict=True)
        for rng, part, dropping in parts:
            if dropping:
                self.line.append(partial(rng.random, None, A.dtype, part))
            else:  # as alone: nothing is drawn, everything is kept
                part[...] = 0
        kept = self.block("kept", layer)
        self.call(np.less, uniform, step.regularization.keep, kept)
        self.call(np.multiply, kept, step.regularization.kept_scale, kept)
        self.call(np.multiply, A, kept, step.outputs[layer - 1])

    def forward_output(self, layer: int, Y: Array) -> None:
        """Softmax, shifted by the largest logit so that it cannot overflow; dZ = (softmax - Y)/batch."""
        step = self.step
        logits, dZ = step.outputs[layer - 1], step.gradients[layer - 1]
        self.call(self.product, step.network.named[f"W{layer}"], self.inputs(layer), logits)
        self.add_to_rows(logits, step.network.named[f"b{layer}"])
        largest, total = step.buffer("largest", step.batch), step.buffer("total", step.batch)
        self.call(np.maximum.reduce, logits, -2, None, largest)
        if step.lead:
            self.call(np.subtract, logits, largest[..., None, :], logits)
        else:
            self.line.append(add_outer(logits, -1.0, np.ones(len(logits), step.dtype), largest))
        self.call(np.exp, logits, dZ)
        if step.lead:
            self.call(np.add.reduce, dZ, -2, None, total)
            self.call(np.multiply, total, step._scalar(step.batch), total)
        else:
            self.call(np.dot, np.full(len(dZ), step.batch, step.dtype), dZ, total)
        self.call(np.divide, dZ, total[..., None, :], dZ)
        self.call(np.subtract, dZ, Y, dZ)

    def backward(self, layer: int) -> None:
        """From dA of a layer (dZ for the last) to its parameters' gradients and dA of the layer below."""
        step, named = self.step, self.step.named_gradient
        dZ = step.gradients[layer - 1]
        if layer < step.network.architecture.depth:
            self.backward_activation(layer, dZ)
        if f"b{layer}" in named:
            self.row_sums(dZ, step.ones, named[f"b{layer}"])
        else:
            self.backward_normalize(layer, dZ)
        self.call(self.product, dZ, self.inputs(layer).swapaxes(-1, -2), named[f"W{layer}"])
        if layer > 1:
            WT = step.network.named[f"W{layer}"].swapaxes(-1, -2)
            self.call(self.product, WT, dZ, step.gradients[layer - 2])

    def backward_activation(self, layer: int, dA: Array) -> None:
        """dA becomes dA ∘ g'(Z), with g' written in terms of A where that is possible."""
        activation = self.step.network.architecture.activation
        A, scratch = self.step.outputs[layer - 1], self.step.scratch[layer - 1]
        if self.step.regularization.active[2]:
            self.call(np.multiply, dA, self.block("kept", layer), dA)
            A = self.block("activated", layer)
        if activation in ("relu", "leaky_relu"):
            slope = self.block("slope", layer)
            self.call(np.multiply, dA.view(slope.dtype), slope, dA.view(slope.dtype))
        elif activation == "tanh":  # 1 - A²
            self.call(np.multiply, A, A, scratch)
            self.call(np.subtract, self.step._scalar(1), scratch, scratch)
            self.call(np.multiply, dA, scratch, dA)
        elif activation == "sigmoid":  # A (1 - A)
            self.call(np.subtract, self.step._scalar(1), A, scratch)
            self.call(np.multiply, A, scratch, scratch)
            self.call(np.multiply, dA, scratch, dA)

    def backward_normalize(self, layer: int, dY: Array) -> None:
        """From dY of `normalize` to dγ, dβ, and dZ in place of dY; with Z centred and s = γ/√(σ² + ε):

        dβ = Σ dY,  dγ = Σ dY·Z/√(σ² + ε),  dZ = s (dY - dβ/m - Z · dγ/(m √(σ² + ε))).
        """
        step, named = self.step, self.step.named_gradient
        Z, scratch = step.centred[layer - 1], step.scratch[layer - 1]
        deviation, scales = self.vector("deviation", layer), self.block("scales", layer)
        dgamma, dbeta = named[f"gamma{layer}"], named[f"beta{layer}"]
        products, along = self.vector("products", layer), self.vector("along", layer)
        self.row_sums(dY, step.ones, dbeta)
        if Z.size < LARGE:
            self.call(np.multiply, dY, Z, scratch)
            self.row_sums(scratch, step.ones, products)
        else:
            self.call(np.vecdot, dY, Z, products)
        self.call(np.divide, products, deviation, dgamma)
        self.call(np.divide, dgamma, deviation, along)
        self.call(np.multiply, Z, along[..., None], scratch)
        self.line.append(add_scaled(dY, -1 / step.batch, scratch))
        self.add_to_rows(dY, dbeta, factor=-1 / step.batch)
        self.call(np.multiply, dY, scales, dY)

    def regularize(self) -> None:
        step = self.step
        count = step.network.architecture.weight_count
        W, dW = step.network.parameters[..., :count], step.gradient[..., :count]
        l1, l2, _ = step.regularization.active
        penalty = step.buffer("penalty", count) if l1 or l2 else W
        if l2:
            self.call(np.multiply, W, step.regularization.l2, penalty)
            self.call(np.add, dW, penalty, dW)
        if l1:
            self.call(np.sign, W, penalty)
            self.call(np.multiply, penalty, step.regularization.l1, penalty)
            self.call(np.add, dW, penalty, dW)

    def square_norm(self, out: Array) -> None:
        gradient = self.step.gradient
        self.call(np.vecdot if self.step.lead else np.dot, gradient, gradient, out)
