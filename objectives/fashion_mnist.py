"""Fashion-MNIST: 70,000 grey images of clothes, 28×28, ten classes; for those who have a network.

The data come from OpenML through scikit-learn, which checks the file against OpenML's MD5. What was parsed
is kept in a cache file with its SHA-256, which is checked whenever it is read. Nothing is downloaded before
the first epoch.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from objectives.datasets import Data
from objectives.training import TrainingObjective

__all__ = ["DataUnavailable", "fashion_mnist", "load_fashion_mnist"]

SAMPLES, PIXELS, CLASSES = 70_000, 784, 10


class DataUnavailable(OSError):  # noqa: N818 - says what is wrong
    """The data are neither in the cache nor to be had, or what is there is not what it should be."""


@cache
def load_fashion_mnist() -> Data:
    """70,000 rows of 784 pixels, 0..255, in float32.

    Raises:
        DataUnavailable: no network and nothing cached, or a checksum is wrong.
    """
    path = cache_path()
    if not path.exists():
        write(path, *download())
    X, y = read(path)
    return Data(X.astype(np.float32), y.astype(np.int64))


def cache_path() -> Path:
    """Where the parsed data are kept, in scikit-learn's data directory (set by SCIKIT_LEARN_DATA)."""
    from sklearn.datasets import get_data_home  # noqa: PLC0415 - a second's import, only to train

    return Path(get_data_home()) / "fashion-mnist.npz"


def download() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Pixels (70000, 784) and labels (70000,) as bytes, from OpenML."""
    from sklearn.datasets import fetch_openml  # noqa: PLC0415

    parser = "pandas" if importlib.util.find_spec("pandas") else "liac-arff"
    try:
        bunch = fetch_openml("Fashion-MNIST", version=1, as_frame=False, parser=parser)
    except (OSError, ValueError) as error:  # no connection; or a checksum that does not match
        raise DataUnavailable(
            f"Fashion-MNIST is not cached at {cache_path()} and could not be fetched from OpenML: {error}. "
            "Run it once on a machine with a network, or choose an objective whose data come with scikit-learn, "
            "such as 'digits'."
        ) from error
    X, y = np.asarray(bunch.data).astype(np.uint8), np.asarray(bunch.target).astype(np.uint8)
    counts = np.bincount(y, minlength=CLASSES)
    if X.shape != (SAMPLES, PIXELS) or not (counts == SAMPLES // CLASSES).all():
        raise DataUnavailable(f"OpenML's Fashion-MNIST is not as published: {X.shape}, classes {counts}")
    return X, y


def write(path: Path, X: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> None:
    """Keep the data in `path`, and their SHA-256 beside it; whole or not at all."""
    with io.BytesIO() as file:
        np.savez_compressed(file, X=X, y=y)
        content = file.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    checksum_path(path).write_text(hashlib.sha256(content).hexdigest())
    partial = path.with_suffix(".partial")
    partial.write_bytes(content)
    partial.replace(path)


def read(path: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The data that `write` kept."""
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    expected = checksum_path(path).read_text() if checksum_path(path).exists() else "none on record"
    if found != expected:
        raise DataUnavailable(
            f"{path} is damaged: its SHA-256 is {found}, expected {expected}. Delete it to fetch it again."
        )
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return file["X"], file["y"]


def checksum_path(path: Path) -> Path:
    """Where the SHA-256 of the cache file is."""
    return path.with_suffix(".sha256")


fashion_mnist = TrainingObjective(
    name="fashion-mnist",
    description="dev cross-entropy of a network on Fashion-MNIST (downloads 30 MB from OpenML once)",
    load=load_fashion_mnist,
    defaults={"layers": 2, "hidden_units": 256, "batch_size": 256, "learning_rate": 0.001, "epochs": 10},
)
