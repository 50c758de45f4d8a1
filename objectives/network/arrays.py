"""Arrays where the processor likes them, and calls of BLAS that NumPy does not offer.

The calls are made once and called in every step. They write in place, to contiguous arrays of float32 or
float64: of any other, SciPy would quietly write to a copy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Call", "add_outer", "add_scaled", "aligned_zeros"]

Call: TypeAlias = Callable[[], Any]


def aligned_zeros(shape: tuple[int, ...], dtype: Any) -> Any:
    """Zeros that begin at a multiple of 64 bytes, a cache line: NumPy's own arrays begin at one of 16, and
    vector instructions that straddle two lines cost an eighth of an optimizer's step.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def add_scaled(y: npt.NDArray[Any], factor: Any, x: npt.NDArray[Any]) -> Call:
    """y = y + factor · x, for arrays of one shape and a number or an array () that is read at each call.

    BLAS's axpy: one pass, where NumPy needs two and somewhere to keep factor · x.
    """
    _check_contiguous(y, x)
    axpy = _blas("axpy", y)
    return partial(axpy, x.reshape(-1), y.reshape(-1), y.size, factor)


def add_outer(Z: npt.NDArray[Any], factor: float, column: npt.NDArray[Any], row: npt.NDArray[Any]) -> Call:
    """Z (…, n, m) = Z + factor · column (…, n) · row (m,).

    BLAS's ger: with a row of ones, a third to a half of the time of NumPy's broadcasting.
    """
    _check_contiguous(Z, column)
    rows, column = Z.reshape(-1, Z.shape[-1]), column.reshape(-1)
    ger = _blas("ger", Z)
    stride = overwrite = 1  # by position, which halves the call's time
    return partial(ger, factor, row, column, stride, stride, rows.T, overwrite, overwrite, overwrite)


def _check_contiguous(*arrays: npt.NDArray[Any]) -> None:
    if not all(array.flags.c_contiguous for array in arrays):
        raise ValueError("BLAS writes in place to contiguous arrays only")


def _blas(name: str, array: npt.NDArray[Any]) -> Callable[..., Any]:
    """The routine of that name for the array's precision."""
    from scipy.linalg import blas  # noqa: PLC0415 - a tenth of a second, and only training needs it

    routine: Callable[..., Any] = getattr(blas, {"f": "s", "d": "d"}[array.dtype.char] + name)
    return routine
