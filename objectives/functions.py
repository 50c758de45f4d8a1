"""Analytic landscapes with known optima: what a sampler, a pruner or an optimizer can be held to.

Each is a `Landscape`, useful in two ways:

* as an objective: `evaluate({"x0": 1.0, "x1": 2.0}, seed=Seed(0))` yields one `Epoch` with f(x), or a
  learning curve that ends there (see `Landscape.evaluate`);
* as mathematics: `value(x)` and `gradient(x)` take points of shape (..., d), and `optimum` is exact.

>>> branin.value(branin.optimum.points).round(6)
array([0.397887, 0.397887, 0.397887])
>>> next(saddle.evaluate({"x0": 0.0, "x1": 1.0}, seed=Seed(study=0))).value
-0.25

Where the centre of the textbook domain is the optimum (or any simple fraction of it is), grids with an odd
number of levels, Sobol sequences and CMA-ES would meet the optimum without having searched. There the upper
bound is moved out until the optimum divides the range in the golden section, the ratio that fractions with
small denominators approximate worst. Formulas are the textbook's, and its domain stays legal.

Most are in S. Surjanovic and D. Bingham, Virtual Library of Simulation Experiments: Test Functions and
Datasets, https://www.sfu.ca/~ssurjano/optimization.html, called "the Library" below.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from objectives.epoch import Adjustment, Epoch, Epochs, Hyperparameter, Seed, complete_params

__all__ = [
    "RATE",
    "Landscape",
    "Optimum",
    "ackley",
    "branin",
    "make_ackley",
    "make_noisy_quadratic",
    "make_rastrigin",
    "make_rosenbrock",
    "make_saddle",
    "narrow_well",
    "noisy_quadratic",
    "plateau",
    "rastrigin",
    "rosenbrock",
    "saddle",
]

Array = NDArray[np.float64]

RATE = 0.8
"""What is left of a learning curve's offset after one more epoch."""

MAX_EPOCHS = 100_000
GOLDEN = (1 + 5**0.5) / 2


@dataclass(frozen=True, slots=True)
class Optimum:
    """The least value in the legal range, and every point that has it."""

    value: float
    points: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Landscape:
    """A function of d variables to be minimized, with its gradient and its optimum; an `Objective`.

    `function` maps points of shape (..., d) to values of shape (...), `slope` to gradients of shape (..., d).
    Both must be importable by name if the landscape is to be pickled. `start` are the defaults, a poor point.
    `noise` is the default standard deviation of the observations.
    """

    name: str
    description: str
    reference: str
    function: Callable[[Array], Array]
    slope: Callable[[Array], Array]
    optimum: Optimum
    bounds: tuple[tuple[float, float], ...]
    start: tuple[float, ...]
    noise: float = 0.0

    def __post_init__(self) -> None:
        for x in (self.start, *self.optimum.points):
            if len(x) != len(self.bounds):
                raise ValueError(f"{self.name} has {len(self.bounds)} bounds but a point {x}")
            if not all(low <= xi <= high for xi, (low, high) in zip(x, self.bounds, strict=True)):
                raise ValueError(f"{self.name} has a point outside its bounds {self.bounds}: {x}")

    @property
    def dimension(self) -> int:
        """The number of variables, d."""
        return len(self.bounds)

    @property
    def direction(self) -> str:
        """Always `minimize`."""
        return "minimize"

    @property
    def metrics(self) -> tuple[str, ...]:
        """What every epoch has besides its value."""
        return ("regret",)

    @property
    def hyperparameters(self) -> tuple[Hyperparameter, ...]:
        """x0, x1, ... with their bounds, then `epochs` and `noise`."""
        coordinates = (
            Hyperparameter(f"x{i}", start, priority=1, description=f"coordinate {i}", low=low, high=high)
            for i, (start, (low, high)) in enumerate(zip(self.start, self.bounds, strict=True))
        )
        epochs = "length of the learning curve; to be fixed, not tuned"
        noise = "standard deviation of an observation; to be fixed, not tuned"
        return (
            *coordinates,
            Hyperparameter("epochs", 1, description=epochs, low=1, high=MAX_EPOCHS, integer=True),
            Hyperparameter("noise", self.noise, description=noise, low=0.0, high=1e6),
        )

    def value(self, x: ArrayLike) -> Array:
        """f at points x of shape (..., d), inside the bounds or not; shape (...).

        Raises:
            ValueError: the last axis is not d long.
        """
        return self.function(self._points(x))

    def gradient(self, x: ArrayLike) -> Array:
        """∇f at points x of shape (..., d); the same shape.

        Raises:
            ValueError: the last axis is not d long.
        """
        return self.slope(self._points(x))

    def evaluate(self, params: Mapping[str, Any], *, seed: Seed, resume: bytes | None = None) -> Epochs:
        """Observe f at (x0, x1, ...), as a learning curve of n = `epochs` epochs.

        Epoch k of n observes

            f(x) + A (RATEᵏ − RATEⁿ) + σ zₖ,    k = 1 … n,

        which decays towards f(x) and, where σ = `noise` is 0, ends exactly there. By default n = 1: f(x) at
        once. A = U · (f(start) − f*) with U uniform on [½, 3⁄2], so that training begins about as bad as the
        default point and the curves of different trials may cross. zₖ is draw k from the standard normal
        distribution of `numpy.random.default_rng(seed)`, and U has a stream of its own: both differ between
        (study, trial) pairs and are the same for the same pair, whatever the parameters are.

        Each epoch's metric `regret` is f(x) − f*, free of offset and noise.

        A checkpoint holds only how many epochs are done (JSON), so it resumes with any parameters, seed and
        number of epochs not less; after the last epoch nothing is left to yield. Nothing is adjustable.

        Raises:
            ValueError: parameters or checkpoint are not legal (at once, not only when iterated), or an
                adjustment was sent.
        """
        settings = complete_params(self.hyperparameters, params)
        epochs = settings["epochs"]
        done = 0 if resume is None else self._epochs_done(resume, epochs)
        x = np.array([settings[f"x{i}"] for i in range(self.dimension)], dtype=np.float64)
        return self._observe(x, epochs, done, float(settings["noise"]), seed)

    def _observe(self, x: Array, epochs: int, done: int, noise: float, seed: Seed) -> Epochs:
        f = float(self.value(x))
        offset = self._offset(seed)
        rng = np.random.default_rng(seed)
        rng.standard_normal(done)  # skip what was drawn before the checkpoint
        for number in range(done + 1, epochs + 1):
            value = f + offset * (RATE**number - RATE**epochs) + noise * rng.standard_normal()
            checkpoint = partial(self._checkpoint, number)
            adjustment = yield Epoch(number, value, {"regret": f - self.optimum.value}, checkpoint)
            self._refuse(adjustment)

    def _offset(self, seed: Seed) -> float:
        """A of the learning curve."""
        stream = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))
        return stream.uniform(0.5, 1.5) * (float(self.value(self.start)) - self.optimum.value)

    def _points(self, x: ArrayLike) -> Array:
        points = np.asarray(x, dtype=np.float64)
        if points.ndim == 0 or points.shape[-1] != self.dimension:
            raise ValueError(f"{self.name} needs points of shape (..., {self.dimension}); got {points.shape}")
        return points

    def _checkpoint(self, number: int) -> bytes:
        return json.dumps({"objective": self.name, "epochs_done": number}).encode()

    def _epochs_done(self, checkpoint: bytes, epochs: int) -> int:
        try:
            state = json.loads(checkpoint)
        except ValueError as error:
            raise ValueError(f"a checkpoint of {self.name} is JSON; got {checkpoint[:40]!r}") from error
        match state:
            case {"objective": self.name, "epochs_done": int(done)} if 1 <= done <= epochs:
                return done
        raise ValueError(f"{self.name} cannot resume a run of {epochs} epochs from {state!r}")

    def _refuse(self, adjustment: Adjustment | None) -> None:
        if adjustment:
            names = ", ".join(map(repr, adjustment))
            raise ValueError(f"{self.name} cannot adjust {names}: nothing is adjustable while it runs")


def _golden_range(low: float, optimum: float = 0.0) -> tuple[float, float]:
    """A range from `low` that `optimum` divides in the golden section, the longer part above."""
    return low, round(optimum + GOLDEN * (optimum - low), 2)


def _sum(terms: Array) -> Array:
    """Over the last axis, from shape (..., d) to (...)."""
    total: Array = terms.sum(axis=-1)
    return total


def _column(values: Array) -> Array:
    """From shape (...) to (..., 1), to be multiplied with points."""
    return values[..., np.newaxis]


def _at_least(least: int, dimension: int) -> None:
    if dimension < least:
        raise ValueError(f"dimension must be at least {least}; got {dimension}")


# Branin -----------------------------------------------------------------------------------------------------

_B, _C, _R, _S, _T = 5.1 / (4 * np.pi**2), 5 / np.pi, 6.0, 10.0, 1 / (8 * np.pi)


def _branin(x: Array) -> Array:
    """(x1 − b x0² + c x0 − r)² + s (1 − t) cos x0 + s; where both parts are least, it is s t."""
    x0, x1 = x[..., 0], x[..., 1]
    return (x1 - _B * x0**2 + _C * x0 - _R) ** 2 + _S * (1 - _T) * np.cos(x0) + _S


def _branin_gradient(x: Array) -> Array:
    x0, x1 = x[..., 0], x[..., 1]
    residual = x1 - _B * x0**2 + _C * x0 - _R
    return np.stack(
        [2 * residual * (_C - 2 * _B * x0) - _S * (1 - _T) * np.sin(x0), 2 * residual],
        axis=-1,
    )


branin = Landscape(
    name="branin",
    description="Branin's function of 2 variables: three equally good minima of value 0.3979, no others",
    reference="L. C. W. Dixon and G. P. Szegö, The global optimization problem: an introduction, "
    "Towards Global Optimization 2 (1978) 1-15; the Library, branin.html",
    function=_branin,
    slope=_branin_gradient,
    optimum=Optimum(_S * _T, ((-np.pi, 12.275), (np.pi, 2.275), (3 * np.pi, 2.475))),
    bounds=((-5.0, 10.0), (0.0, 15.0)),
    start=(2.5, 7.5),
)


# Rosenbrock -------------------------------------------------------------------------------------------------


def _rosenbrock(x: Array) -> Array:
    """Σ 100 (xᵢ₊₁ − xᵢ²)² + (1 − xᵢ)²."""
    here, following = x[..., :-1], x[..., 1:]
    return _sum(100 * (following - here**2) ** 2 + (1 - here) ** 2)


def _rosenbrock_gradient(x: Array) -> Array:
    here, following = x[..., :-1], x[..., 1:]
    residual = following - here**2
    slope = np.zeros_like(x)
    slope[..., :-1] = -400 * here * residual - 2 * (1 - here)
    slope[..., 1:] += 200 * residual
    return slope


def make_rosenbrock(dimension: int, name: str = "rosenbrock") -> Landscape:
    """Rosenbrock's curved valley, Σ 100 (xᵢ₊₁ − xᵢ²)² + (1 − xᵢ)²; minimum 0 at (1, …, 1).

    In 2 and 3 dimensions there is no other minimum; from 4 to 30 there is one more, near (−1, 1, …, 1).

    Raises:
        ValueError: `dimension` is below 2.
    """
    _at_least(2, dimension)
    return Landscape(
        name=name,
        description=f"Rosenbrock's function of {dimension} variables: a curved, flat, steep-walled valley",
        reference="H. H. Rosenbrock, An automatic method for finding the greatest or least value of a "
        "function, The Computer Journal 3 (1960) 175-184; Y.-W. Shang and Y.-H. Qiu, A note on the extended "
        "Rosenbrock function, Evolutionary Computation 14 (2006) 119-126; the Library, rosen.html",
        function=_rosenbrock,
        slope=_rosenbrock_gradient,
        optimum=Optimum(0.0, ((1.0,) * dimension,)),
        bounds=(_golden_range(-5.0, 1.0),) * dimension,
        start=(-1.2, *(1.0,) * (dimension - 1)),
    )


rosenbrock = make_rosenbrock(3)


# Rastrigin --------------------------------------------------------------------------------------------------


def _rastrigin(x: Array) -> Array:
    """10 d + Σ xᵢ² − 10 cos 2πxᵢ, written as Σ xᵢ² + 20 sin² πxᵢ: exactly 0 at the optimum."""
    return _sum(x**2 + 20 * np.sin(np.pi * x) ** 2)


def _rastrigin_gradient(x: Array) -> Array:
    return 2 * x + 20 * np.pi * np.sin(2 * np.pi * x)


def make_rastrigin(dimension: int, name: str = "rastrigin") -> Landscape:
    """Rastrigin's egg box, 10 d + Σ xᵢ² − 10 cos 2πxᵢ; minimum 0 at the origin.

    There is a local minimum near every point with whole coordinates.

    Raises:
        ValueError: `dimension` is below 1.
    """
    _at_least(1, dimension)
    return Landscape(
        name=name,
        description=f"Rastrigin's function of {dimension} variables: a bowl full of regular local minima",
        reference="H. Mühlenbein, M. Schomisch and J. Born, The parallel genetic algorithm as function "
        "optimizer, Parallel Computing 17 (1991) 619-632, after L. A. Rastrigin (1974); the Library, "
        "rastr.html",
        function=_rastrigin,
        slope=_rastrigin_gradient,
        optimum=Optimum(0.0, ((0.0,) * dimension,)),
        bounds=(_golden_range(-5.12),) * dimension,
        start=(3.0,) * dimension,
    )


rastrigin = make_rastrigin(3)


# Ackley -----------------------------------------------------------------------------------------------------


def _ackley_parts(x: Array) -> tuple[Array, Array]:
    """√(mean xᵢ²) and mean(cos 2πxᵢ) − 1, the latter as −2 mean(sin² πxᵢ); both shape (...)."""
    d = x.shape[-1]
    return np.sqrt(_sum(x**2) / d), -2 * _sum(np.sin(np.pi * x) ** 2) / d


def _ackley(x: Array) -> Array:
    """−20 exp(−0.2 √mean xᵢ²) − exp(mean cos 2πxᵢ) + 20 + e, by expm1: exactly 0 at the optimum."""
    radius, ripple = _ackley_parts(x)
    return -20 * np.expm1(-0.2 * radius) - np.e * np.expm1(ripple)


def _ackley_gradient(x: Array) -> Array:
    radius, ripple = map(_column, _ackley_parts(x))
    outward = np.zeros_like(x)
    np.divide(x, radius, out=outward, where=radius > 0)
    cone = 4 * np.exp(-0.2 * radius) * outward
    ripples = 2 * np.pi * np.exp(1 + ripple) * np.sin(2 * np.pi * x)
    d: int = x.shape[-1]
    return (cone + ripples) / d


def make_ackley(dimension: int, name: str = "ackley") -> Landscape:
    """Ackley's function, −20 exp(−0.2 √mean xᵢ²) − exp(mean cos 2πxᵢ) + 20 + e; minimum 0 at the origin.

    The origin is the tip of a cone, where no gradient exists; `gradient` gives the subgradient 0 there.

    Raises:
        ValueError: `dimension` is below 1.
    """
    _at_least(1, dimension)
    return Landscape(
        name=name,
        description=f"Ackley's function of {dimension} variables: ripples on nearly flat land around a cone",
        reference="D. H. Ackley, A Connectionist Machine for Genetic Hillclimbing, Kluwer (1987); "
        "the Library, ackley.html",
        function=_ackley,
        slope=_ackley_gradient,
        optimum=Optimum(0.0, ((0.0,) * dimension,)),
        bounds=(_golden_range(-32.768),) * dimension,
        start=(20.0,) * dimension,
    )


ackley = make_ackley(5)


# Saddle -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Saddle:
    """½ x0² + c (¼ x1⁴ − ½ x1²) = ½ x0² + c (¼ (x1² − 1)² − ¼)."""

    steepness: float

    def __call__(self, x: Array) -> Array:
        x0, x1 = x[..., 0], x[..., 1]
        return x0**2 / 2 + self.steepness * (x1**4 / 4 - x1**2 / 2)


@dataclass(frozen=True, slots=True)
class _SaddleGradient:
    steepness: float

    def __call__(self, x: Array) -> Array:
        x0, x1 = x[..., 0], x[..., 1]
        return np.stack([x0, self.steepness * (x1**3 - x1)], axis=-1)


def make_saddle(steepness: float, name: str = "saddle") -> Landscape:
    """½ x0² + c (¼ x1⁴ − ½ x1²) with c = `steepness`: a strict saddle between two minima of value −c/4.

    The Hessian is diag(1, −c) at the origin, diag(1, 2c) at both minima. Gradient descent from (x0, 0) ends in
    the saddle; from beside that line it escapes, |x1| at first growing by the factor 1 + c · learning rate a
    step. The default point is close beside it.

    Raises:
        ValueError: `steepness` is not positive.
    """
    if not steepness > 0:
        raise ValueError(f"steepness must be positive; got {steepness}")
    factor = "" if steepness == 1 else f"{steepness:g} · "
    return Landscape(
        name=name,
        description=f"x0²/2 + {factor}(x1⁴/4 - x1²/2): a strict saddle at the origin between two minima of value "
        f"{-steepness / 4:g}",
        reference="J. D. Lee, M. Simchowitz, M. I. Jordan and B. Recht, Gradient descent only converges to "
        "minimizers, COLT (2016), after Y. Nesterov, Introductory Lectures on Convex Optimization (2004), "
        "section 1.2.3",
        function=_Saddle(steepness),
        slope=_SaddleGradient(steepness),
        optimum=Optimum(-steepness / 4, ((0.0, -1.0), (0.0, 1.0))),
        bounds=(_golden_range(-2.0),) * 2,
        start=(1.0, 0.01),
    )


saddle = make_saddle(1.0)
"""Bounded below, with a strict saddle."""


# Plateau ----------------------------------------------------------------------------------------------------


def _plateau(x: Array) -> Array:
    """1 − exp(−½ ‖x‖²)."""
    return -np.expm1(-_sum(x**2) / 2)


def _plateau_gradient(x: Array) -> Array:
    return x * _column(np.exp(-_sum(x**2) / 2))


plateau = Landscape(
    name="plateau",
    description="1 - exp(-(x0² + x1²)/2): one well in a plateau of value 1; 92 % of the range exceed 0.9",
    reference="the well of Easom's function without its cosines: E. E. Easom, A survey of global "
    "optimization techniques, thesis, University of Louisville (1990); the Library, easom.html",
    function=_plateau,
    slope=_plateau_gradient,
    optimum=Optimum(0.0, ((0.0, 0.0),)),
    bounds=(_golden_range(-5.0),) * 2,
    start=(6.0, 6.0),
)
"""At distance r from the minimum the gradient is r exp(−r²/2) long: 2·10⁻¹⁵ at the default point."""


# Narrow well ------------------------------------------------------------------------------------------------

_WELL: Array = np.array([6.18, -3.09])
_WELL_WIDTH = 0.5


def _narrow_well_parts(x: Array) -> tuple[Array, Array]:
    """The bowl b = ‖x‖² / ‖q‖² and the well g = exp(−‖x − q‖² / 2w²); both shape (...)."""
    return _sum(x**2) / _sum(_WELL**2), np.exp(-_sum((x - _WELL) ** 2) / (2 * _WELL_WIDTH**2))


def _narrow_well(x: Array) -> Array:
    """(1 − g) b − g: between b ≥ 0 and −1, and −1 only where g = 1, at q."""
    bowl, well = _narrow_well_parts(x)
    return (1 - well) * bowl - well


def _narrow_well_gradient(x: Array) -> Array:
    bowl, well = map(_column, _narrow_well_parts(x))
    return (1 - well) * 2 * x / _sum(_WELL**2) + (bowl + 1) * well * (x - _WELL) / _WELL_WIDTH**2


narrow_well = Landscape(
    name="narrow-well",
    description="a wide bowl down to 0 at the origin, and far off on its slope a narrow well down to -1",
    reference="made here, to mislead as the two funnels do of M. Lunacek, D. Whitley and A. Sutton, "
    "The impact of global structure on search, PPSN X (2008)",
    function=_narrow_well,
    slope=_narrow_well_gradient,
    optimum=Optimum(-1.0, ((6.18, -3.09),)),
    bounds=(_golden_range(-5.0),) * 2,
    start=(-3.0, 6.0),
)
"""Deceptive: (1 − g) b − g with the bowl b = ‖x‖²/‖q‖² and the well g = exp(−‖x − q‖²/2w²), w = ½.

q = (6.18, −3.09) is the global minimum, exactly −1; the origin is a local one, 0 but for e⁻⁹⁵. Values below
0, which the bowl alone never reaches, fill 0.6 % of the range.
"""


# Noisy quadratic --------------------------------------------------------------------------------------------


def _curvatures(x: Array) -> Array:
    """hᵢ = 1 / i for i = 1 … d."""
    return 1 / np.arange(1, x.shape[-1] + 1, dtype=np.float64)


def _quadratic(x: Array) -> Array:
    """½ Σ hᵢ xᵢ²."""
    return _sum(_curvatures(x) * x**2) / 2


def _quadratic_gradient(x: Array) -> Array:
    return _curvatures(x) * x


def make_noisy_quadratic(dimension: int, name: str = "noisy-quadratic", noise: float = 1.0) -> Landscape:
    """A quadratic bowl, ½ Σ xᵢ²/i for i = 1 … d, observed with Gaussian noise; minimum 0 at the origin.

    `noise` is the default of the hyperparameter of that name, the standard deviation; `value` and `gradient`
    are free of it. The paper has noise in the gradient; here it is in the value, which is what a tuner sees.

    Raises:
        ValueError: `dimension` is below 1.
    """
    _at_least(1, dimension)
    return Landscape(
        name=name,
        description=f"a quadratic bowl of {dimension} variables, curvatures 1/i, seen through Gaussian noise",
        reference="G. Zhang et al., Which algorithmic choices matter at which batch sizes? Insights from a "
        "noisy quadratic model, NeurIPS 32 (2019) 8196-8207",
        function=_quadratic,
        slope=_quadratic_gradient,
        optimum=Optimum(0.0, ((0.0,) * dimension,)),
        bounds=(_golden_range(-5.0),) * dimension,
        start=(4.0,) * dimension,
        noise=noise,
    )


noisy_quadratic = make_noisy_quadratic(4)
