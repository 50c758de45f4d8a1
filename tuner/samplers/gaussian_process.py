"""A small Gaussian process for choosing points: NumPy and SciPy only, a few hundred points at most.

Points are rows of features, in groups: a numeric axis is one feature in [0, 1], a categorical one has a feature for
each choice, √½ where it is chosen, so that two choices are at distance 1 (Hamming). Lower values are better.

Sources, cited as [RW], [H] and [A]: Rasmussen and Williams, "Gaussian Processes for Machine Learning" (2006);
Hvarfner, Hellsten and Nardi, "Vanilla Bayesian Optimization Performs Great in High Dimensions", ICML (2024); Ament et
al., "Unexpected Improvements to Expected Improvement for Bayesian Optimization", NeurIPS (2023).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy  # its parts are imported when first used: half a second
from numpy.typing import NDArray

__all__ = [
    "Floats",
    "GaussianProcess",
    "Hyperparameters",
    "Prior",
    "fit",
    "log_expected_improvement",
    "matern52",
    "warp",
]

Floats = NDArray[np.float64]

JITTER = 1e-9
"""Added to the diagonal, so that equal points do not make it singular."""


@dataclass(frozen=True, slots=True)
class Prior:
    """Log-normal priors of length scales ℓ and noise-to-signal ratio λ.

    log ℓ ~ N(`length` + ½ log d, `length_spread`²), growing with the number of axes d as in [H];
    log λ ~ N(`noise`, `noise_spread`²).
    """

    length: float = -0.5
    length_spread: float = 1.0
    noise: float = -6.0
    noise_spread: float = 2.0


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """Length scales ℓ, shape (axes,), and noise-to-signal ratio λ; the amplitude follows from them and the data."""

    lengths: Floats
    noise: float


def matern52(squared: Floats) -> Floats:
    """Matérn 5/2 of squared distances r²: (1 + √5 r + 5/3 r²) exp(−√5 r), [RW] eq. 4.17; any shape."""
    r = np.sqrt(5 * squared)
    kernel: Floats = (1 + r + r * r / 3) * np.exp(-r)
    return kernel


def _matern52_slope(squared: Floats) -> Floats:
    """The derivative of `matern52` with respect to r²: −5/6 (1 + √5 r) exp(−√5 r)."""
    r = np.sqrt(5 * squared)
    slope: Floats = (-5 / 6) * (1 + r) * np.exp(-r)
    return slope


def warp(values: Floats) -> Floats:
    """Values made fit for a Gaussian model, shape (n,): the better half as it is, the worse half by its rank.

    How bad a bad point is matters little and would spoil the model where a training diverges. With median m and
    s² the mean square of m − y over the better half, the worse half becomes the upper half of a normal distribution,
    m + s Φ⁻¹(q), q from ½ to 1 by rank. Infinite values are only ranked. The
    result has mean 0 and variance 1, or is all 0.
    """
    n = len(values)
    order = np.argsort(values, kind="stable")
    kept = min((n + 1) // 2, int(np.isfinite(values).sum()))
    if not kept:
        return np.zeros(n)
    warped = values.astype(np.float64).copy()
    median = values[order[kept - 1]]
    spread = math.sqrt(np.mean((median - values[order[:kept]]) ** 2)) or 1.0
    worse = order[kept:]
    levels = 0.5 + 0.5 * (np.arange(1, len(worse) + 1) - 0.5) / max(1, len(worse))
    warped[worse] = median + spread * scipy.special.ndtri(levels)
    return _standardized(_ties_shared(values, warped))


def _ties_shared(values: Floats, warped: Floats) -> Floats:
    """Equal values get the mean of what their places got."""
    _, group = np.unique(values, return_inverse=True)
    sums, counts = np.bincount(group, weights=warped), np.bincount(group)
    shared: Floats = (sums / counts)[group]
    return shared


def _standardized(values: Floats) -> Floats:
    centred: Floats = values - values.mean()
    scale = float(centred.std())
    return centred / scale if scale > 0 else centred


@dataclass(frozen=True, slots=True)
class GaussianProcess:
    """A process conditioned on points: posterior means and deviations.

    `features` (n, f), `axis` (f,) says which axis a feature belongs to; `weights` (n,) = (K + λI)⁻¹ (y − mean).
    """

    features: Floats
    axis: NDArray[np.intp]
    hyperparameters: Hyperparameters
    values: Floats
    mean: float
    amplitude: float
    factor: Floats
    weights: Floats

    @classmethod
    def condition(
        cls, features: Floats, axis: NDArray[np.intp], values: Floats, hyperparameters: Hyperparameters
    ) -> GaussianProcess:
        """The posterior given `values` (n,) at `features` (n, f); [RW] algorithm 2.1, the amplitude profiled out."""
        scaled = features / hyperparameters.lengths[axis]
        kernel = matern52(_squared_distances(scaled, scaled))
        kernel.flat[:: len(values) + 1] += hyperparameters.noise + JITTER
        factor = scipy.linalg.cholesky(kernel, lower=True, check_finite=False)
        ones = scipy.linalg.cho_solve((factor, True), np.ones(len(values)), check_finite=False)
        mean = float(ones @ values) / (float(ones.sum()) + MEAN_PRECISION)
        weights = scipy.linalg.cho_solve((factor, True), values - mean, check_finite=False)
        amplitude = _amplitude(float((values - mean) @ weights), mean, len(values))
        return cls(features, axis, hyperparameters, values, mean, amplitude, factor, weights)

    def predict(self, features: Floats) -> tuple[Floats, Floats]:
        """Posterior mean and standard deviation of the noiseless function at (m, f), both (m,); [RW] eq. 2.25, 2.26."""
        across = self._across(features)
        mean = self.mean + across @ self.weights
        half = scipy.linalg.solve_triangular(self.factor, across.T, lower=True, check_finite=False)
        explained: Floats = np.einsum("ij,ij->j", half, half)
        deviation: Floats = np.sqrt(self.amplitude * np.maximum(1 - explained, 1e-12))
        return mean, deviation

    def predict_mean(self, features: Floats) -> Floats:
        """The posterior mean alone, (m,)."""
        mean: Floats = self.mean + self._across(features) @ self.weights
        return mean

    def improvement_gradient(self, features: Floats, best: float) -> tuple[float, Floats]:
        """`log_expected_improvement` on `best` at one point, features (f,), and its gradient there, (f,).

        With mean μ, deviation s, z = (best − μ) / s and h(z) = φ(z) + z Φ(z): ∂ log (s h) = (φ ∂s / s − Φ ∂μ / s) / h.
        """
        inverse_squares = self.hyperparameters.lengths[self.axis] ** -2.0
        apart = features - self.features
        squared = (apart * apart) @ inverse_squares
        across = matern52(squared)
        slopes = _matern52_slope(squared)[:, None] * apart * (2 * inverse_squares)  # of `across`, (n, f)
        solved = scipy.linalg.cho_solve((self.factor, True), across, check_finite=False)
        unexplained = max(1 - float(across @ solved), 1e-12)
        mean = self.mean + float(across @ self.weights)
        deviation = math.sqrt(self.amplitude * unexplained)
        z = np.array([(best - mean) / deviation])
        log_h = _log_h(z)
        density = float(np.exp(-0.5 * z * z - 0.5 * math.log(2 * math.pi) - log_h)[0])  # φ / h
        mass = float(np.exp(scipy.special.log_ndtr(z) - log_h)[0])  # Φ / h
        gradient: Floats = (
            -density * (solved @ slopes) / unexplained - mass * (self.weights @ slopes) / deviation
        )
        return math.log(deviation) + float(log_h[0]), gradient

    def with_pending(self, features: Floats) -> GaussianProcess:
        """Conditioned also on points that are being evaluated, as if they had given their predicted means.

        Ginsbourger, Le Riche and Carraro's "kriging believer" (2010): the mean stays, the deviation there shrinks.
        """
        if not len(features):
            return self
        values = np.concatenate([self.values, self.predict_mean(features)])
        both = np.concatenate([self.features, features])
        return GaussianProcess.condition(both, self.axis, values, self.hyperparameters)

    def _across(self, features: Floats) -> Floats:
        lengths = self.hyperparameters.lengths[self.axis]
        return matern52(_squared_distances(features / lengths, self.features / lengths))


MEAN_PRECISION = 0.1
"""A normal prior of the constant mean around 0, in units of the amplitude."""


def _amplitude(quadratic: float, mean: float, n: int) -> float:
    """The amplitude σ² that fits best, (y − m)ᵀ(K + λI)⁻¹(y − m) / n, with m's prior and a pseudo-observation of 1."""
    return (quadratic + MEAN_PRECISION * mean * mean + 1) / (n + 1)


def _squared_distances(first: Floats, second: Floats) -> Floats:
    """‖a − b‖² for all rows a (m, f) and b (n, f): shape (m, n)."""
    squared = first @ second.T
    squared *= -2
    squared += np.einsum("ij,ij->i", first, first)[:, None]
    squared += np.einsum("ij,ij->i", second, second)[None, :]
    return np.maximum(squared, 0, out=squared)


def fit(
    features: Floats,
    axis: NDArray[np.intp],
    values: Floats,
    prior: Prior | None = None,
    steps: int = 20,
) -> Hyperparameters:
    """Hyperparameters of maximal posterior density, by L-BFGS from the prior's centre.

    Args:
        features: shape (n, f).
        axis: shape (f,), the axis of each feature; axes are numbered from 0.
        values: shape (n,), warped.
        prior: of length scales and noise.
        steps: at most so many iterations.
    """
    prior = prior or Prior()
    axes = int(axis.max()) + 1
    start = np.append(np.full(axes, prior.length + 0.5 * math.log(axes)), prior.noise)
    spread = np.append(np.full(axes, prior.length_spread), prior.noise_spread)
    distances = _axis_distances(features, axis, axes)
    bounds = [(math.log(0.02), math.log(50.0))] * axes + [(math.log(1e-6), math.log(4.0))]
    found = scipy.optimize.minimize(
        _negative_log_posterior,
        start,
        args=(distances, values, start, spread),
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": steps, "maxfun": 2 * steps},
    ).x
    return Hyperparameters(np.exp(found[:-1]), float(np.exp(found[-1])))


def _axis_distances(features: Floats, axis: NDArray[np.intp], axes: int) -> Floats:
    """Squared distances of all pairs by axis, shape (n², axes)."""
    n = len(features)
    squared = np.zeros((n, n, axes))
    for feature, of_axis in zip(features.T, axis, strict=True):
        squared[:, :, of_axis] += (feature[:, None] - feature[None, :]) ** 2
    return squared.reshape(n * n, axes)


def _negative_log_posterior(
    theta: Floats, distances: Floats, values: Floats, centre: Floats, spread: Floats
) -> tuple[float, Floats]:
    """− log p(y | θ) − log p(θ) but for constants, and its gradient; θ = (log ℓ₁ … log ℓ_d, log λ).

    With A = K + λI and σ² profiled out: ½ (n + 1) log σ² + ½ log |A|; its gradient is
    ½ tr((A⁻¹ − w wᵀ / σ²) ∂A), w = A⁻¹ (y − mean), [RW] eq. 5.9.
    """
    n = len(values)
    inverse_squares = np.exp(-2 * theta[:-1])
    squared = distances @ inverse_squares
    noise = math.exp(theta[-1])
    A = matern52(squared).reshape(n, n)
    A.flat[:: n + 1] += noise + JITTER
    factor, failed = scipy.linalg.lapack.dpotrf(A, lower=1, clean=1)
    if failed:
        return 1e10, np.zeros_like(theta)
    inverse, _ = scipy.linalg.lapack.dpotri(factor, lower=1)
    inverse = np.tril(inverse) + np.tril(inverse, -1).T
    row = inverse.sum(axis=1)
    mean = float(row @ values) / (float(row.sum()) + MEAN_PRECISION)
    weights = inverse @ (values - mean)
    amplitude = _amplitude(float((values - mean) @ weights), mean, n)
    loss = 0.5 * (n + 1) * math.log(amplitude) + float(np.log(np.diag(factor)).sum())
    outer = inverse - np.outer(weights, weights) / amplitude
    by_distance = outer.ravel() * _matern52_slope(squared)
    slope_lengths = -(by_distance @ distances) * inverse_squares
    slope_noise = 0.5 * noise * float(np.trace(outer))
    z = (theta - centre) / spread
    gradient: Floats = np.append(slope_lengths, slope_noise) + z / spread
    return loss + 0.5 * float(z @ z), gradient


def log_expected_improvement(mean: Floats, deviation: Floats, best: float) -> Floats:
    """log E[max(best − f, 0)] for f ~ N(mean, deviation²), accurate far into the tail; [A] eq. 8 and 9."""
    z = (best - mean) / deviation
    return np.log(deviation) + _log_h(z)


def _log_h(z: Floats) -> Floats:
    """log(φ(z) + z Φ(z))."""
    result = np.empty_like(z)
    near = z > -1
    zn = z[near]
    result[near] = np.log(np.exp(-0.5 * zn * zn) / math.sqrt(2 * math.pi) + zn * scipy.special.ndtr(zn))
    zf = z[~near]
    # φ(z) (1 − |z| √(π/2) erfcx(|z|/√2)); the bracket tends to 1/z², beyond 10⁵ rounding would eat it
    far = np.minimum(zf, -1e5)
    bracket = np.where(
        zf < -1e5,
        -2 * np.log(-far),
        scipy.special.log1p(
            np.maximum(math.sqrt(math.pi / 2) * zf * scipy.special.erfcx(-zf / math.sqrt(2)), -1 + 1e-12)
        ),
    )
    result[~near] = -0.5 * zf * zf - 0.5 * math.log(2 * math.pi) + bracket
    return result
