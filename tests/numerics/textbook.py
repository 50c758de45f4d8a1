"""The network as a textbook writes it: float64, one function a layer, no buffers. The oracle of the fast one."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


def identity(Z):
    return Z, np.ones_like(Z)


def sigmoid(Z):
    A = 1 / (1 + np.exp(-Z))
    return A, A * (1 - A)


def tanh(Z):
    A = np.tanh(Z)
    return A, 1 - A**2


def relu(Z):
    return np.where(Z > 0, Z, 0), np.where(Z > 0, 1.0, 0.0)


def leaky_relu(Z):
    return np.where(Z > 0, Z, 0.01 * Z), np.where(Z > 0, 1.0, 0.01)


ACTIVATIONS = {f.__name__: f for f in (identity, sigmoid, tanh, relu, leaky_relu)}


@dataclass
class BatchNorm:
    """Ioffe & Szegedy 2015, algorithm 1, over the last axis of Z (units, batch), and its chain rule."""

    Z: np.ndarray
    gamma: np.ndarray
    beta: np.ndarray
    epsilon: float = 1e-5

    def __post_init__(self):
        self.mean = self.Z.mean(axis=1, keepdims=True)
        self.variance = self.Z.var(axis=1, keepdims=True)
        self.Z_hat = (self.Z - self.mean) / np.sqrt(self.variance + self.epsilon)
        self.Y = self.gamma[:, None] * self.Z_hat + self.beta[:, None]

    def backward(self, dY):
        """The paper's equations in its order: dZ, dγ, dβ."""
        m = self.Z.shape[1]
        dZ_hat = dY * self.gamma[:, None]
        inverse = 1 / np.sqrt(self.variance + self.epsilon)
        dvariance = (dZ_hat * (self.Z - self.mean) * -0.5 * inverse**3).sum(axis=1, keepdims=True)
        dmean = (-dZ_hat * inverse).sum(axis=1, keepdims=True)
        dmean += dvariance * (-2 * (self.Z - self.mean)).mean(axis=1, keepdims=True)
        dZ = dZ_hat * inverse + dvariance * 2 * (self.Z - self.mean) / m + dmean / m
        return dZ, (dY * self.Z_hat).sum(axis=1), dY.sum(axis=1)


def softmax(Z):
    exp = np.exp(Z - Z.max(axis=0))
    return exp / exp.sum(axis=0)


def cross_entropy(Z, Y):
    """Mean over the batch, for logits Z and one-hot Y, both (classes, batch)."""
    shifted = Z - Z.max(axis=0)
    return -(Y * (shifted - np.log(np.exp(shifted).sum(axis=0)))).sum() / Z.shape[1]


@dataclass
class Pass:
    loss: float
    gradient: dict[str, np.ndarray]
    batch_norms: list[BatchNorm] = field(default_factory=list)


def forward_backward(parameters, X, Y, *, activation, l1=0.0, l2=0.0, masks=None, epsilon=1e-5):
    """Loss and gradient for rows X (m, n0) and one-hot Y (m, classes); masks[l-1] (n_l, m) multiply
    activations.
    """
    depth = sum(name[0] == "W" for name in parameters)
    A, inputs, slopes, norms = X.T, [], [], []
    for layer in range(1, depth + 1):
        inputs.append(A)
        Z = parameters[f"W{layer}"] @ A
        if f"gamma{layer}" in parameters:
            norms.append(BatchNorm(Z, parameters[f"gamma{layer}"], parameters[f"beta{layer}"], epsilon))
            Z = norms[-1].Y
        else:
            Z = Z + parameters[f"b{layer}"][:, None]
        if layer < depth:
            A, slope = ACTIVATIONS[activation](Z)
            mask = 1.0 if masks is None else masks[layer - 1]
            A, slope = A * mask, slope * mask
            slopes.append(slope)
    weights = [parameters[f"W{layer}"] for layer in range(1, depth + 1)]
    loss = cross_entropy(Z, Y.T) + sum(l2 / 2 * (W**2).sum() + l1 * np.abs(W).sum() for W in weights)
    dZ, gradient = (softmax(Z) - Y.T) / len(X), {}
    for layer in range(depth, 0, -1):
        if layer < depth:
            dZ = dZ * slopes[layer - 1]
            if norms:
                dZ, gradient[f"gamma{layer}"], gradient[f"beta{layer}"] = norms[layer - 1].backward(dZ)
        if f"b{layer}" in parameters:
            gradient[f"b{layer}"] = dZ.sum(axis=1)
        W = parameters[f"W{layer}"]
        gradient[f"W{layer}"] = dZ @ inputs[layer - 1].T + l2 * W + l1 * np.sign(W)
        dZ = W.T @ dZ
    return Pass(loss, gradient, norms)


@dataclass
class Adam:
    """Kingma & Ba 2015, algorithm 1, on a dict of parameters."""

    learning_rate: float
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-8
    t: int = 0
    m: dict = field(default_factory=dict)
    v: dict = field(default_factory=dict)

    def step(self, parameters, gradient):
        self.t += 1
        for name, g in gradient.items():
            self.m[name] = self.beta_1 * self.m.get(name, 0) + (1 - self.beta_1) * g
            self.v[name] = self.beta_2 * self.v.get(name, 0) + (1 - self.beta_2) * g**2
            m_hat = self.m[name] / (1 - self.beta_1**self.t)
            v_hat = self.v[name] / (1 - self.beta_2**self.t)
            parameters[name] -= self.learning_rate * m_hat / (np.sqrt(v_hat) + self.epsilon)
