"""A training objective: data and the network of `objectives.network`, as a generator of epochs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from objectives.datasets import (
    NORMALIZATIONS,
    Data,
    Load,
    Normalizer,
    Splits,
    folds,
    random_stream,
    set_aside,
    split,
    subsample,
)
from objectives.epoch import Adjustment, Diverged, Epoch, Epochs, Hyperparameter, Seed, complete_params
from objectives.network.architecture import ACTIVATIONS, INITIALIZATIONS, Architecture
from objectives.network.checkpoint import CheckpointError, dump, load
from objectives.network.diagnosis import (
    BiasVariance,
    Diagnosis,
    Moments,
    covariate_shifts,
    diagnose,
    input_moments,
    on_plateau,
)
from objectives.network.network import Network
from objectives.network.optimizers import OPTIMIZERS
from objectives.network.schedules import SCHEDULES, Schedule
from objectives.network.trainer import ADJUSTABLE, EarlyStopping, NotFinite, Settings, Trainer

__all__ = ["HYPERPARAMETERS", "METRICS", "Training", "TrainingObjective", "one_blas_thread"]

PROBE_ROWS = 256
"""Rows of the dev split on which the layers' inputs are watched."""

EVALUATIONS = ("holdout", "cross-validation", "reserve")

RESERVE = 101
"""The stream of random numbers of `reserve`; those of folds are 1 to 100."""

HYPERPARAMETERS = (
    Hyperparameter("learning_rate", 0.01, 1, "α, the step size", low=1e-8, high=100.0, adjustable=True),
    Hyperparameter(
        "momentum",
        0.9,
        2,
        "β of momentum, β₁ of Adam; tune it on a reverse-log scale",
        low=0.0,
        high=0.999999,
        adjustable=True,
    ),
    Hyperparameter("hidden_units", 64, 2, "units in each hidden layer", low=1, high=8192, integer=True),
    Hyperparameter(
        "batch_size", 64, 2, "samples in a step", low=1, high=1_000_000, integer=True, adjustable=True
    ),
    Hyperparameter("layers", 1, 3, "hidden layers; 0 is softmax regression", low=0, high=20, integer=True),
    Hyperparameter("l2", 0.0, 3, "L2 penalty: l2/2 · Σ W²", low=0.0, high=1e3, adjustable=True),
    Hyperparameter("l1", 0.0, 3, "L1 penalty: l1 · Σ |W|", low=0.0, high=1e3, adjustable=True),
    Hyperparameter(
        "dropout", 0.0, 3, "probability of dropping a hidden activation", low=0.0, high=0.95, adjustable=True
    ),
    Hyperparameter("schedule", "constant", 3, "how the learning rate falls", choices=SCHEDULES),
    Hyperparameter(
        "learning_rate_decay",
        0.1,
        3,
        "how much it falls; see objectives.network.schedules",
        low=0.0,
        high=10.0,
    ),
    Hyperparameter(
        "decay_every",
        10,
        None,
        "epochs between steps, or patience of `plateau`",
        low=1,
        high=100_000,
        integer=True,
    ),
    Hyperparameter("warmup", 0, None, "epochs of linear warm-up", low=0, high=100_000, integer=True),
    Hyperparameter("beta_2", 0.999, None, "β₂ of Adam, β of RMSprop", low=0.0, high=0.9999999),
    Hyperparameter("epsilon", 1e-8, None, "ε of Adam and RMSprop", low=1e-16, high=1.0),
    Hyperparameter("bn_momentum", 0.9, None, "decay of batch norm's moving averages", low=0.0, high=0.999999),
    Hyperparameter("bn_epsilon", 1e-5, None, "ε of batch norm", low=1e-12, high=1.0),
    Hyperparameter(
        "batch_norm", True, None, "normalise pre-activations over the batch", choices=(False, True)
    ),
    Hyperparameter("activation", "relu", None, "g of the hidden layers", choices=ACTIVATIONS),
    Hyperparameter("optimizer", "adam", None, "how steps are made", choices=tuple(OPTIMIZERS)),
    Hyperparameter("initialization", "he", None, "variance of the first weights", choices=INITIALIZATIONS),
    Hyperparameter(
        "initial_scale", 1.0, None, "multiplies the first weights of `initialization`", low=1e-3, high=1e3
    ),
    Hyperparameter(
        "input_normalization", "standard", None, "fitted on the train split only", choices=NORMALIZATIONS
    ),
    Hyperparameter("epochs", 20, None, "passes over the train split", low=1, high=1_000_000, integer=True),
    Hyperparameter(
        "patience",
        0,
        None,
        "epochs without improvement before stopping at the best; 0: never",
        low=0,
        high=1_000_000,
        integer=True,
    ),
    Hyperparameter(
        "evaluation", "holdout", None, "one dev split, k folds, or the reserve", choices=EVALUATIONS
    ),
    Hyperparameter("folds", 5, None, "folds of cross-validation", low=2, high=100, integer=True),
)
"""What every training objective accepts."""

METRICS = (
    *("train_loss", "dev_loss", "train_error", "dev_error", "gap", "parameters"),
    *("learning_rate", "gradient_norm", "seconds", "bias", "variance", "plateau"),
)
"""What every epoch of every training objective has."""


@dataclass(frozen=True)
class TrainingObjective:
    """Trains the network on one set of data; the value is the dev split's cross-entropy (nats; minimise).

    The dev cross-entropy is tuned rather than the error since it varies much less between seeds. The train,
    dev and test splits follow from `seed.study` alone; weights, order of samples and dropout from both
    parts of the seed. No tuned value or metric depends on the test split: `test_metrics` looks at it, once,
    when tuning is over.

    `train_size` keeps only so many samples of the train split (stratified), `dev_size` of the dev split:
    its other samples are a reserve, for judging evaluations. `reference_error` is the error
    that the diagnosis compares the train error with. `macro_f1` adds the dev split's macro-F1 to the
    metrics, for data with unequal classes.

    Metrics of each epoch: `train_loss`, `dev_loss` (cross-entropy without penalties, at test time),
    `train_error`, `dev_error` (share of wrong predictions), `gap` (dev loss minus train loss),
    `parameters` (how many numbers are learned), `learning_rate`, `gradient_norm`, `seconds` (of this epoch).

    The diagnosis in numbers: `bias` (train error minus reference), `variance` (dev minus train error),
    `plateau` (1 if the gradient is near zero while the train loss is above its best), and `mean_shift_l`
    and `variance_shift_l`, the internal covariate shift of layer l's inputs since the epoch before, with
    `mean_shift`, the mean over all these layers and all epochs so far; `diagnose` puts a trial's metrics into
    words.

    With `patience` the last epoch's value and losses are those of the best network, which is restored.
    With `evaluation="cross-validation"` (or `{"method": "cross-validation", "folds": 5}`) step k = 1..folds
    yields the value of fold k, trained for all its epochs, and one last step yields their mean, the score;
    the folds part train and dev split together, never the test split. With `evaluation="reserve"` the value is
    that on the reserve, with other first weights and another order of samples: what a configuration is worth,
    apart from the luck of the evaluation that is judged by it.
    """

    name: str
    description: str
    load: Load
    defaults: Mapping[str, Any] = field(default_factory=dict)
    direction: str = "minimize"
    reference_error: float = 0.0
    train_size: int | None = None
    dev_size: int | None = None
    macro_f1: bool = False

    @property
    def hyperparameters(self) -> tuple[Hyperparameter, ...]:
        """`HYPERPARAMETERS` with this objective's defaults."""
        return tuple(
            dataclasses.replace(h, default=self.defaults.get(h.name, h.default)) for h in HYPERPARAMETERS
        )

    @property
    def metrics(self) -> tuple[str, ...]:
        """What every epoch has besides its value."""
        return (*METRICS, "dev_macro_f1") if self.macro_f1 else METRICS

    def evaluate(self, params: Mapping[str, Any], *, seed: Seed, resume: bytes | None = None) -> Epochs:
        """See `objectives.epoch.Objective`.

        A checkpoint of the last epoch resumes by yielding that epoch again. Adjustments made before the
        checkpoint stay, except of what `params` gives: that is how population-based training goes on from another
        trial's network with other hyperparameters.

        Raises:
            ValueError: from the first `next`, for parameters; from `send`, for adjustments of anything but
                learning_rate, momentum, l1, l2, dropout and batch_size.
            Diverged: gradients, parameters or losses are NaN or infinite.
        """
        full = self.complete(params)
        if full["evaluation"] == "cross-validation":
            yield from self._cross_validate(full, seed, resume)
        else:
            given = {name: full[name] for name in ADJUSTABLE if name in params}
            yield from self.training(full, seed).epochs(resume, given)

    def splits(self, seed: Seed) -> Splits:
        """The train, dev and test split of a study."""
        return self._parts(seed)[0]

    def _parts(self, seed: Seed) -> tuple[Splits, Data | None]:
        """The splits of a study, and the reserve where there is one."""
        return _cached_parts(self.load, seed.study, self.train_size, self.dev_size)

    def diagnose(self, epochs: Sequence[Mapping[str, float]], *, best_loss: float | None = None) -> Diagnosis:
        """The diagnosis of a trial from its metrics; `best_loss` is the best train loss known elsewhere."""
        return diagnose(epochs, reference_error=self.reference_error, best_loss=best_loss)

    def test_metrics(
        self, params: Mapping[str, Any], *, seed: Seed, resume: bytes | None = None
    ) -> dict[str, float]:
        """`test_loss` and `test_error` of a network trained with `params` as in `evaluate`.

        For the incumbent, once, when tuning is over: train it anew under seeds whose `trial` no trial used
        (same `study`, hence the same splits). Given the checkpoint of a finished training, it trains no
        further.
        """
        full = {**self.complete(params), "evaluation": "holdout"}
        training = self.training(full, seed)
        for _ in training.epochs(resume):
            pass
        loss, error = training.score(self.splits(seed).test)
        return {"test_loss": loss, "test_error": error}

    def training(self, full: Mapping[str, Any], seed: Seed) -> Training:
        """A training on the study's train split, watched on its dev split or the reserve; `full` as from
        `complete`.
        """
        splits, reserve = self._parts(seed)
        if full["evaluation"] != "reserve":
            return self._training(splits.train, splits.dev, full, seed)
        if reserve is None:
            raise ValueError(f"evaluation 'reserve' needs data set aside by dev_size; {self.name} has none")
        return self._training(splits.train, reserve, full, seed, RESERVE)

    def _training(
        self, train: Data, dev: Data, full: Mapping[str, Any], seed: Seed, fold: int = 0
    ) -> Training:
        return Training(
            train,
            dev,
            full,
            seed,
            fold,
            classes=max(part.classes for part in self.splits(seed)),
            reference_error=self.reference_error,
            with_f1=self.macro_f1,
        )

    def complete(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """All hyperparameters with their values; ValueError for what is not legal."""
        return complete_params(self.hyperparameters, flatten_evaluation(params))

    def _cross_validate(self, full: dict[str, Any], seed: Seed, resume: bytes | None) -> Epochs:
        splits = self.splits(seed)
        together = Data(*(np.concatenate(pair) for pair in zip(splits.train, splits.dev, strict=True)))
        params = {name: full[name] for name in ADJUSTABLE}
        done = [] if resume is None else _folds_done(resume, params)
        for number, (train, dev) in enumerate(folds(together, full["folds"], seed.study), start=1):
            if number > len(done):
                done.append(self._fold_metrics(train, dev, full, seed, number))
                _refuse((yield _fold_epoch(number, done[-1], done, params)))
        mean = {name: float(np.mean([metrics[name] for metrics in done])) for name in done[0]}
        mean["dev_loss_std"] = float(np.std([metrics["dev_loss"] for metrics in done], ddof=1))
        yield _fold_epoch(len(done) + 1, mean, done, params)

    def _fold_metrics(
        self, train: Data, dev: Data, full: dict[str, Any], seed: Seed, fold: int
    ) -> dict[str, float]:
        try:
            *_, last = self._training(train, dev, full, seed, fold).epochs(None)
        except Diverged as error:
            raise Diverged(error.epoch, f"{error.cause}, in fold {fold}") from None
        return dict(last.metrics)


class Training:
    """One network being trained: what `evaluate` yields, epoch by epoch."""

    def __init__(
        self,
        train: Data,
        dev: Data,
        full: Mapping[str, Any],
        seed: Seed,
        fold: int = 0,
        *,
        classes: int,
        reference_error: float = 0.0,
        with_f1: bool = False,
    ) -> None:
        self.full, self.classes = full, classes
        self.normalizer = Normalizer.fit(full["input_normalization"], train.X)
        self.train, self.dev = self._prepared(train), self._prepared(dev)
        initial, order = random_stream(seed, fold, 0), random_stream(seed, fold, 1)
        sizes = (train.X.shape[1], *([full["hidden_units"]] * full["layers"]), classes)
        architecture = Architecture(
            sizes, full["activation"], batch_norm=full["batch_norm"], bn_epsilon=full["bn_epsilon"]
        )
        self.network = Network.random(
            architecture, initial, initialization=full["initialization"], scale=full["initial_scale"]
        )
        self.trainer = Trainer(self.network, self.train.X, self.train.y, _settings(full), [order])
        self.stopping = EarlyStopping(full["patience"]) if full["patience"] else None
        self.reference_error, self.with_f1 = reference_error, with_f1
        self.last: dict[str, Any] | None = None
        self.best_train_loss = math.inf
        self.shift = 0.0  # summed over the epochs
        self.moments = self._moments()

    def epochs(self, resume: bytes | None, given: Adjustment | None = None) -> Epochs:
        """Train to the end, taking adjustments; from a checkpoint with what is `given` instead of what it holds."""
        if resume is not None:
            self._restore(resume, given or {})
            if self._finished and self.last is not None:
                yield self._epoch(self.last)
        while not self._finished:
            with one_blas_thread():
                self.last = self._train_epoch()
            adjustment = yield self._epoch(self.last)
            if adjustment:
                self._adjust(adjustment)

    def score(self, data: Data) -> tuple[float, float]:
        """Cross-entropy and error on other data, normalised as the train split was."""
        prepared = self._prepared(data)
        with one_blas_thread():
            loss, error = self.network.loss_and_error(prepared.X, prepared.y)
        return float(loss), float(error)

    @property
    def _finished(self) -> bool:
        stopped = self.last is not None and bool(self.last["stopped"])
        return stopped or self.trainer.epochs >= self.full["epochs"]

    def _prepared(self, data: Data) -> Data:
        X, y = self.normalizer(data)
        return Data(np.ascontiguousarray(X, np.float32), y)

    def _train_epoch(self) -> dict[str, Any]:
        number = self.trainer.epochs + 1
        try:
            report = self.trainer.epoch()
        except NotFinite as error:
            raise Diverged(number, str(error)) from None
        metrics = self._losses()
        if not np.isfinite(metrics["dev_loss"] + metrics["train_loss"]):
            raise Diverged(number, f"train loss {metrics['train_loss']}, dev loss {metrics['dev_loss']}")
        self.trainer.observe(metrics["dev_loss"])
        stopped = self._stop(number, metrics["dev_loss"])
        if stopped:
            metrics = self._losses()
        metrics |= {
            "parameters": float(self.network.parameters.size),
            "learning_rate": float(report.learning_rate),
            "gradient_norm": report.gradient_norm,
            "seconds": report.seconds,
        }
        with np.errstate(all="ignore"):  # a training about to diverge overflows its moments first
            metrics |= self._diagnosis(metrics)
        return {"number": number, "metrics": metrics, "stopped": stopped}

    def _diagnosis(self, metrics: Mapping[str, float]) -> dict[str, float]:
        errors = BiasVariance(metrics["train_error"], metrics["dev_error"], self.reference_error)
        loss = metrics["train_loss"]
        self.best_train_loss = min(self.best_train_loss, loss)
        plateau = on_plateau(loss, metrics["gradient_norm"], self.best_train_loss)
        before, self.moments = self.moments, self._moments()
        diagnosis = {"bias": errors.bias, "variance": errors.variance, "plateau": float(plateau)}
        shifts = covariate_shifts(before, self.moments)
        for layer, shift in enumerate(shifts, start=2):
            diagnosis[f"mean_shift_{layer}"] = shift.mean
            diagnosis[f"variance_shift_{layer}"] = shift.variance
        if shifts:
            self.shift += float(np.mean([shift.mean for shift in shifts]))
            diagnosis["mean_shift"] = self.shift / self.trainer.epochs
        return diagnosis

    def _moments(self) -> list[Moments]:
        with one_blas_thread():
            return input_moments(self.network, self.dev.X[:PROBE_ROWS])

    def _losses(self) -> dict[str, float]:
        with np.errstate(all="ignore"):
            train_loss, train_error = self.network.loss_and_error(self.train.X, self.train.y)
            dev_loss, dev_error = self.network.loss_and_error(self.dev.X, self.dev.y)
        losses = {
            "train_loss": float(train_loss),
            "dev_loss": float(dev_loss),
            "train_error": float(train_error),
            "dev_error": float(dev_error),
            "gap": float(dev_loss - train_loss),
        }
        if self.with_f1:
            predicted = self.network.logits(self.dev.X).argmax(axis=0)
            losses["dev_macro_f1"] = macro_f1(self.dev.y, predicted, self.classes)
        return losses

    def _stop(self, number: int, loss: float) -> bool:
        """Whether this was the last epoch under early stopping; if so, the best network is back."""
        if self.stopping is None:
            return False
        stop = self.stopping.update(number, loss, self.network) or number >= self.full["epochs"]
        if stop:
            self.stopping.restore_best(self.network)
        return stop

    def _adjust(self, adjustment: Adjustment) -> None:
        accepted = {h.name: h for h in HYPERPARAMETERS if h.adjustable}
        refused = sorted(set(adjustment) - set(accepted))
        if refused:
            raise ValueError(
                f"cannot be adjusted while training: {', '.join(refused)}; can: {', '.join(sorted(accepted))}"
            )
        for name, value in adjustment.items():
            accepted[name].check(value)
        self.trainer.adjust(**adjustment)

    def _epoch(self, last: Mapping[str, Any]) -> Epoch:
        return Epoch(last["number"], last["metrics"]["dev_loss"], dict(last["metrics"]), self._checkpoint)

    def _checkpoint(self) -> bytes:
        stopping = None if self.stopping is None else dataclasses.asdict(self.stopping)
        training = {
            "trainer": self.trainer.snapshot(),
            "stopping": stopping,
            "last": self.last,
            "best_train_loss": self.best_train_loss,
            "shift": self.shift,
        }
        return dump({"training": training})

    def _restore(self, resume: bytes, given: Adjustment) -> None:
        state = _load(resume, "training")
        try:
            self.trainer.restore(state["trainer"])
            self.trainer.adjust(**given)
        except ValueError as error:
            raise CheckpointError(f"the checkpoint is of another network: {error}") from error
        self.stopping = None if state["stopping"] is None else EarlyStopping(**state["stopping"])
        self.last = state["last"]
        self.best_train_loss = state["best_train_loss"]
        self.shift = state.get("shift", 0.0)  # older checkpoints have none
        self.moments = self._moments()


def macro_f1(labels: Any, predicted: Any, classes: int) -> float:
    """Mean over all classes of F1 = 2·hits/(predicted + actual), 0 for a class that is neither."""
    hits = np.bincount(labels[labels == predicted], minlength=classes)
    total = np.bincount(labels, minlength=classes) + np.bincount(predicted, minlength=classes)
    return float(np.mean(2 * hits / np.maximum(total, 1)))


def flatten_evaluation(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """`evaluation = {method = "cross-validation", folds = 5}` as the two hyperparameters that it stands for."""
    evaluation = params.get("evaluation")
    if not isinstance(evaluation, Mapping):
        return params
    unknown = sorted(set(evaluation) - {"method", "folds"})
    if unknown:
        raise ValueError(f"evaluation takes method and folds; got {', '.join(unknown)}")
    renamed = {"evaluation" if name == "method" else name: value for name, value in evaluation.items()}
    return {**{k: v for k, v in params.items() if k != "evaluation"}, **renamed}


def _settings(full: Mapping[str, Any]) -> Settings:
    names = {f.name for f in dataclasses.fields(Settings)} - {"schedule"}
    schedule = Schedule(
        full["schedule"], full["learning_rate_decay"], full["decay_every"], full["epochs"], full["warmup"]
    )
    return Settings(**{name: full[name] for name in names}, schedule=schedule)


def _fold_epoch(
    number: int, metrics: Mapping[str, float], done: list[dict[str, float]], params: Mapping[str, Any]
) -> Epoch:
    state = {"folds": {"done": done, "params": params}}
    return Epoch(number, metrics["dev_loss"], dict(metrics), lambda: dump(state))


def _folds_done(resume: bytes, params: Mapping[str, Any]) -> list[dict[str, float]]:
    """The metrics of the folds that a checkpoint holds; a mean over folds is that of one set of hyperparameters."""
    state = _load(resume, "folds")
    others = [name for name, value in params.items() if state["params"][name] != value]
    if others:
        raise ValueError(f"cross-validation cannot go on with another {', '.join(others)} than it began with")
    return [dict(metrics) for metrics in state["done"]]


def _refuse(adjustment: Adjustment | None) -> None:
    if adjustment:
        raise ValueError(
            f"cross-validation cannot be adjusted between folds; got {', '.join(sorted(adjustment))}"
        )


def _load(resume: bytes, kind: str) -> Any:
    state = load(resume)
    if kind not in state:
        raise CheckpointError(f"the checkpoint holds {', '.join(sorted(state))}, not {kind}")
    return state[kind]


@cache
def _controller() -> ThreadpoolController:
    import scipy.linalg  # noqa: F401, PLC0415 - its BLAS, which the optimizers use, must be there to be limited

    return ThreadpoolController()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """One BLAS thread: at these sizes a second makes it slower, and results depend on the number of cores.

    OpenBLAS has one setting for the whole process and takes it from the main thread only: whoever trains in
    other threads sets OPENBLAS_NUM_THREADS=1 for the process.
    """
    with _controller().limit(limits=1, user_api="blas"):
        yield


@lru_cache(maxsize=16)
def _cached_parts(
    load_data: Load, study: int, train_size: int | None, dev_size: int | None
) -> tuple[Splits, Data | None]:
    splits, reserve = split(load_data(), study), None
    if train_size is not None:
        splits = splits._replace(train=subsample(splits.train, train_size, study))
    if dev_size is not None:
        dev, reserve = set_aside(splits.dev, dev_size, random_stream(study, 3))
        splits = splits._replace(dev=dev)
    return splits, reserve
