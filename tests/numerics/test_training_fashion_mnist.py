"""Fashion-MNIST's way to the data, with a stand-in for OpenML: cached, checked, and clear when it cannot be
had.
"""

from __future__ import annotations

import urllib.error
from types import SimpleNamespace

import numpy as np
import pytest
import sklearn.datasets

from objectives import fashion_mnist
from objectives.fashion_mnist import DataUnavailable, load_fashion_mnist


@pytest.fixture
def openml(monkeypatch, tmp_path):
    """A stand-in for `fetch_openml` that counts its calls; `answer` is what it returns or raises."""
    stand_in = SimpleNamespace(calls=0, answer=published())

    def fetch_openml(*args, **options):
        stand_in.calls += 1
        if isinstance(stand_in.answer, Exception):
            raise stand_in.answer
        return stand_in.answer

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", fetch_openml)
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path))
    monkeypatch.setattr(fashion_mnist, "SAMPLES", 200)
    load_fashion_mnist.cache_clear()
    yield stand_in
    load_fashion_mnist.cache_clear()


def published():
    """As OpenML gives it, but for the number of samples: pixels as numbers, labels as strings."""
    rng = np.random.default_rng(0)
    data = rng.integers(256, size=(200, 784)).astype(np.float64)
    return SimpleNamespace(data=data, target=np.array([str(i % 10) for i in range(200)], dtype=object))


def test_it_is_fetched_once_and_then_read_from_the_cache(openml):
    first = load_fashion_mnist()
    np.testing.assert_array_equal(first.X, published().data)
    np.testing.assert_array_equal(first.y, np.arange(200) % 10)
    assert first.X.dtype == np.float32
    load_fashion_mnist.cache_clear()
    openml.answer = urllib.error.URLError("no network")
    np.testing.assert_array_equal(load_fashion_mnist().X, first.X)
    assert openml.calls == 1


def test_offline_without_a_cache_says_what_to_do(openml):
    openml.answer = urllib.error.URLError("Temporary failure in name resolution")
    with pytest.raises(
        DataUnavailable, match=r"could not be fetched from OpenML: .*name resolution.*'digits'"
    ):
        load_fashion_mnist()


def test_a_wrong_checksum_at_openml_is_told(openml):
    openml.answer = ValueError("md5 checksum of local file does not match description")
    with pytest.raises(DataUnavailable, match="md5 checksum"):
        load_fashion_mnist()


def test_a_damaged_cache_is_noticed(openml):
    load_fashion_mnist()
    load_fashion_mnist.cache_clear()
    path = fashion_mnist.cache_path()
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(
        DataUnavailable, match=r"is damaged: its SHA-256 is [0-9a-f]{64}, expected [0-9a-f]{64}"
    ):
        load_fashion_mnist()


def test_other_data_under_the_name_are_refused(openml):
    openml.answer.target[:] = "3"
    with pytest.raises(DataUnavailable, match="not as published"):
        load_fashion_mnist()
    assert not fashion_mnist.cache_path().exists()
