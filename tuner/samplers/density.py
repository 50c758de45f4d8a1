"""Where good points are dense and bad ones are not: proposals without a model of the values.

Bergstra, Bardenet, Bengio and Kégl, "Algorithms for Hyper-Parameter Optimization", NIPS (2011), with one joint density
as in Falkner, Klein and Hutter, "BOHB", ICML (2018); cited as [TPE]. It believes in ranks only, so it goes on where a
Gaussian process is mistaken about the values between its points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy  # its parts are imported when first used: half a second

from tuner.samplers.axes import Axes
from tuner.samplers.gaussian_process import Floats

__all__ = ["Density", "good_and_bad"]

BAD_KEPT = 200
"""So many of the bad points at most, from all over the history: the time of an ask does not grow with it."""


@dataclass(frozen=True, slots=True)
class Density:
    """A mixture of a kernel around each of the rows (n, axes) and a uniform one, all of the same weight.

    Numeric axes have normal kernels cut to [0, 1], of width n^(−1/(d + 4)) / 5; a categorical one keeps the row's
    choice but for a chance of about 1/n for each of the others. Inactive axes are uniform.
    """

    axes: Axes
    rows: Floats

    @property
    def width(self) -> float:
        """The standard deviation of numeric kernels."""
        return float(0.2 * len(self.rows) ** (-1 / (len(self.axes) + 4)))

    def sample(self, rng: np.random.Generator, count: int) -> Floats:
        """Legal rows, shape (count, axes)."""
        axes, n = self.axes, len(self.rows)
        fresh = axes.from_units(rng.uniform(size=(count, len(axes))))
        which = rng.integers(n + 1, size=count)
        parents = np.concatenate([self.rows, np.full((1, len(axes)), np.nan)])[which]
        low, high = scipy.special.ndtr(-parents / self.width), scipy.special.ndtr((1 - parents) / self.width)
        moved = parents + self.width * scipy.special.ndtri(
            low + rng.uniform(size=parents.shape) * (high - low)
        )
        kept = rng.uniform(size=parents.shape) * (1 + axes.choices / n) < 1
        moved = np.where(axes.is_categorical, np.where(kept, parents, fresh), moved)
        return axes.snap(np.where(np.isnan(parents), fresh, moved))

    def log(self, rows: Floats) -> Floats:
        """The logarithm of the density at rows (m, axes), up to a constant that all densities share; (m,)."""
        axes, n = self.axes, len(self.rows)
        total = np.zeros((len(rows), n))
        for i in range(len(axes)):
            x, centre = rows[:, i, None], self.rows[None, :, i]
            if axes.is_categorical[i]:
                chance = (np.equal(x, centre) + 1 / n) / (1 + axes.choices[i] / n) * axes.choices[i]
                term = np.log(chance)
            else:
                mass = scipy.special.ndtr((1 - centre) / self.width) - scipy.special.ndtr(
                    -centre / self.width
                )
                z = (x - centre) / self.width
                term = -0.5 * z * z - np.log(math.sqrt(2 * math.pi) * self.width * mass)
            total += np.where(np.isnan(x) | np.isnan(centre), 0.0, term)
        logs: Floats = np.logaddexp(scipy.special.logsumexp(total, axis=1), 0.0) - math.log(n + 1)
        return logs


def good_and_bad(axes: Axes, rows: Floats, values: Floats, running: Floats) -> tuple[Density, Density]:
    """The densities of the best tenth of the points, 2 to 25, and of the others; [TPE] section 4.

    Running trials are among the others, so that workers spread out.

    Args:
        axes: of the points.
        rows: shape (n, axes), n at least 3.
        values: to be minimized, shape (n,).
        running: shape (r, axes).
    """
    order = np.argsort(values, kind="stable")
    good, bad = np.split(order, [max(2, min(math.ceil(len(values) / 10), 25))])
    bad = np.sort(bad)[np.linspace(0, len(bad) - 1, min(len(bad), BAD_KEPT)).astype(np.intp)]
    return Density(axes, rows[good]), Density(axes, np.concatenate([rows[bad], running]))
