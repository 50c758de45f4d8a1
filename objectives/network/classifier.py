"""The network as a scikit-learn estimator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from objectives.network.architecture import Activation, Architecture, Array, Initialization
from objectives.network.network import Network
from objectives.network.optimizers import OptimizerName
from objectives.network.schedules import Schedule, ScheduleName
from objectives.network.trainer import EarlyStopping, Settings, Trainer

__all__ = ["NetworkClassifier"]


class NetworkClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A multilayer network, trained by mini-batches on the cross-entropy.

    Computes in float32 if X is float32, otherwise in float64. With `patience`, `dev_share` of the training
    data is held out (stratified), training stops when its loss has not improved for so many epochs, and the
    best network is restored. The other parameters are those of `Architecture`, `Settings` and `Schedule`. A seed
    gives the same network at the same number of BLAS threads; one (OPENBLAS_NUM_THREADS=1) is the fastest.

    Attributes after `fit`: `classes_` (classes,), `n_features_in_`, `network_`, `epochs_` (epochs trained),
    `losses_` (loss on the training data after each epoch, or on the held-out data with `patience`).

    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> NetworkClassifier(epochs=30, random_state=0).fit(X, y).score(X, y) > 0.9
    True
    """

    classes_: np.ndarray[Any, Any]
    epochs_: int
    losses_: list[float]
    network_: Network
    _seed: int
    _state: dict[str, Any] | None

    def __init__(
        self,
        hidden_units: Sequence[int] = (64,),
        *,
        activation: Activation = "relu",
        batch_norm: bool = True,
        bn_epsilon: float = 1e-5,
        bn_momentum: float = 0.9,
        optimizer: OptimizerName = "adam",
        learning_rate: float = 0.01,
        momentum: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        batch_size: int = 32,
        epochs: int = 50,
        l1: float = 0.0,
        l2: float = 0.0,
        dropout: float = 0.0,
        schedule: ScheduleName = "constant",
        learning_rate_decay: float = 0.1,
        decay_every: int = 10,
        warmup: int = 0,
        initialization: Initialization = "he",
        patience: int = 0,
        dev_share: float = 0.1,
        random_state: Any = None,
    ) -> None:
        self.hidden_units = hidden_units
        self.activation = activation
        self.batch_norm = batch_norm
        self.bn_epsilon = bn_epsilon
        self.bn_momentum = bn_momentum
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.batch_size = batch_size
        self.epochs = epochs
        self.l1 = l1
        self.l2 = l2
        self.dropout = dropout
        self.schedule = schedule
        self.learning_rate_decay = learning_rate_decay
        self.decay_every = decay_every
        self.warmup = warmup
        self.initialization = initialization
        self.patience = patience
        self.dev_share = dev_share
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> NetworkClassifier:
        """Train `epochs` epochs from new random weights on rows X (m, features) with labels y (m,).

        Raises:
            ValueError: the data or a parameter is not legal; batch normalisation needs at least 2 samples.
            NotFinite: training diverged.
        """
        X, y = self._validated(X, y, reset=True)
        self.classes_, labels = np.unique(y, return_inverse=True)
        seed = check_random_state(self.random_state).randint(2**31)
        self._start(seed)
        X, labels, held_out = self._hold_out(X, labels, seed)
        trainer = self._trainer(X, labels)
        stopping = EarlyStopping(self.patience) if self.patience else None
        for _ in range(self.epochs):
            loss = self._epoch(trainer, *(held_out or (X, labels)))
            if stopping and stopping.update(self.epochs_, loss, self.network_):
                break
        if stopping:
            stopping.restore_best(self.network_)
        self._state = trainer.snapshot()
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> NetworkClassifier:
        """Train one more epoch on rows X (m, features), labels y (m,); the first call needs all `classes`.

        Raises:
            ValueError: the data are not legal, no classes were given at first, or y holds a class not among
            them.
        """
        first = not hasattr(self, "classes_")
        if first and classes is None:
            raise ValueError("classes must be passed on the first call to partial_fit")
        X, y = self._validated(X, y, reset=first)
        if first:
            self.classes_ = np.unique(classes)
            self._start(check_random_state(self.random_state).randint(2**31))
        elif classes is not None and not np.array_equal(self.classes_, np.unique(classes)):
            raise ValueError(f"classes {np.unique(classes)} are not those of the first call, {self.classes_}")
        unknown = np.setdiff1d(y, self.classes_)
        if len(unknown):
            raise ValueError(f"y holds {unknown}, which are not among the classes {self.classes_}")
        labels = np.searchsorted(self.classes_, y)
        trainer = self._trainer(X, labels)
        self._epoch(trainer, X, labels)
        self._state = trainer.snapshot()
        return self

    def predict_proba(self, X: Any) -> Array:
        """Probabilities (m, classes) of rows X (m, features), in the order of `classes_`."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        X = X.astype(self.network_.parameters.dtype, copy=False)
        return np.ascontiguousarray(self.network_.probabilities(X).T)

    def predict(self, X: Any) -> np.ndarray[Any, Any]:
        """The most probable class (m,) of rows X (m, features)."""
        labels: np.ndarray[Any, Any] = self.predict_proba(X).argmax(axis=1)
        predicted: np.ndarray[Any, Any] = self.classes_[labels]
        return predicted

    def _validated(self, X: Any, y: Any, *, reset: bool) -> tuple[Array, Any]:
        least = 2 if self.batch_norm and len(self.hidden_units) else 1
        X, y = validate_data(
            self, X, y, dtype=[np.float64, np.float32], ensure_min_samples=least, reset=reset
        )
        check_classification_targets(y)
        return X, y

    def _start(self, seed: int) -> None:
        """New random weights."""
        self._seed = seed
        self._state = None
        self.epochs_, self.losses_ = 0, []

    def _hold_out(self, X: Array, y: Any, seed: int) -> tuple[Array, Any, tuple[Array, Any] | None]:
        if not self.patience:
            return X, y, None
        X, X_dev, y, y_dev = train_test_split(X, y, test_size=self.dev_share, stratify=y, random_state=seed)
        return X, y, (X_dev, y_dev)

    def _trainer(self, X: Array, labels: Any) -> Trainer:
        """A trainer of these data that carries on where the last one stopped."""
        initial, order = np.random.default_rng(self._seed).spawn(2)
        if self._state is None:
            sizes = (X.shape[1], *self.hidden_units, len(self.classes_))
            architecture = Architecture(
                sizes, self.activation, batch_norm=bool(self.batch_norm), bn_epsilon=self.bn_epsilon
            )
            self.network_ = Network.random(
                architecture, initial, initialization=self.initialization, dtype=X.dtype
            )
        trainer = Trainer(self.network_, X, labels, self._settings(), [order])
        if self._state is not None:
            trainer.restore({**self._state, "settings": {}})
        return trainer

    def _settings(self) -> Settings:
        schedule = Schedule(
            self.schedule, self.learning_rate_decay, self.decay_every, max(1, self.epochs), self.warmup
        )
        return Settings(
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            beta_2=self.beta_2,
            epsilon=self.epsilon,
            optimizer=self.optimizer,
            batch_size=self.batch_size,
            l1=self.l1,
            l2=self.l2,
            dropout=self.dropout,
            bn_momentum=self.bn_momentum,
            schedule=schedule,
        )

    def _epoch(self, trainer: Trainer, X: Array, y: Any) -> float:
        trainer.epoch()
        loss = float(self.network_.loss_and_error(X.astype(self.network_.parameters.dtype, copy=False), y)[0])
        trainer.observe(loss)
        self.epochs_ += 1
        self.losses_.append(loss)
        return loss
