"""The scikit-learn estimator: the whole check suite with nothing excused, and what the suite does not ask."""

from __future__ import annotations

import copy
import os
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from objectives.network.classifier import NetworkClassifier

X, Y = load_iris(return_X_y=True)


@parametrize_with_checks(
    [
        NetworkClassifier(),
        NetworkClassifier((), batch_norm=False),
        NetworkClassifier((16, 8), batch_norm=False),
    ]
)
def test_it_is_a_scikit_learn_classifier(estimator, check):
    if "array_api" in str(check) and "SCIPY_ARRAY_API" not in os.environ:
        pytest.skip("checked below in a process of its own: SciPy reads SCIPY_ARRAY_API when it is imported")
    check(estimator)


@pytest.mark.slow
def test_it_takes_what_the_array_api_allows():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "scikit_learn and array_api"],
        env={**os.environ, "SCIPY_ARRAY_API": "1"}, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert re.search(r"^3 passed", done.stdout, re.MULTILINE), done.stdout


def test_it_works_in_cross_validation_and_grid_search():
    pipeline = make_pipeline(StandardScaler(), NetworkClassifier(epochs=20, random_state=0))
    assert cross_val_score(pipeline, X, Y, cv=5).mean() > 0.93
    grid = {"networkclassifier__learning_rate": [1e-6, 0.01]}
    search = GridSearchCV(pipeline, grid, cv=3, error_score="raise").fit(X, Y)
    assert search.best_params_ == {"networkclassifier__learning_rate": 0.01}


def test_it_agrees_with_scikit_learns_network_on_what_is_learned():
    """Both reach the same error on iris; only the ways there differ."""
    Z = StandardScaler().fit_transform(X)
    ours = NetworkClassifier((32,), epochs=100, random_state=0).fit(Z, Y)
    theirs = MLPClassifier((32,), max_iter=1000, random_state=0).fit(Z, Y)
    assert (ours.predict(Z) == theirs.predict(Z)).mean() > 0.95


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_it_computes_in_the_precision_of_the_data(dtype):
    model = NetworkClassifier(epochs=2, random_state=0).fit(X.astype(dtype), Y)
    assert model.predict_proba(X.astype(dtype)).dtype == dtype


def test_partial_fits_are_a_fit():
    """Epoch by epoch, with the optimizer's state carried over, also through pickle."""
    whole = NetworkClassifier(epochs=4, random_state=0).fit(X, Y)
    parts = NetworkClassifier(epochs=4, random_state=0).partial_fit(X, Y, classes=[0, 1, 2])
    parts = pickle.loads(pickle.dumps(parts.partial_fit(X, Y)))
    parts = copy.deepcopy(parts.partial_fit(X, Y)).partial_fit(X, Y)
    np.testing.assert_array_equal(parts.network_.parameters, whole.network_.parameters)
    assert parts.losses_ == whole.losses_
    assert parts.epochs_ == 4


def test_partial_fit_knows_classes_that_a_batch_lacks():
    model = NetworkClassifier(random_state=0).partial_fit(X[:100], Y[:100], classes=[0, 1, 2])
    assert model.predict_proba(X).shape == (150, 3)
    with pytest.raises(ValueError, match="not among the classes"):
        model.partial_fit(X, Y + 1)
    with pytest.raises(ValueError, match="not those of the first call"):
        model.partial_fit(X, Y, classes=[0, 1])


def test_string_labels_come_back():
    names = np.array(["setosa", "versicolor", "virginica"])
    model = NetworkClassifier(epochs=30, random_state=0).fit(X, names[Y])
    assert model.score(X, names[Y]) > 0.93


def test_patience_stops_early_at_the_best_network():
    model = NetworkClassifier(epochs=500, patience=5, dev_share=0.3, learning_rate=0.05, random_state=0).fit(
        X, Y
    )
    assert model.epochs_ == int(np.argmin(model.losses_)) + 1 + 5
    assert model.epochs_ < 500


@pytest.mark.parametrize("changed", [{"momentum": 0.9}, {"beta_2": 0.9}])
@pytest.mark.parametrize("epochs", [8, 17])
def test_a_changed_beta_does_not_throw_training_off(changed: dict[str, float], epochs: int) -> None:
    X, y = load_iris(return_X_y=True)
    classifier = NetworkClassifier((16,), momentum=0.5, random_state=0, batch_size=16)
    for _ in range(epochs):
        classifier.partial_fit(X, y, classes=np.unique(y))
    classifier.set_params(**changed)
    for _ in range(2):
        classifier.partial_fit(X, y)
    assert max(classifier.losses_[-2:]) < 0.6
