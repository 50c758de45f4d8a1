"""Several trials of a training objective at once on one core: caviar in a single process.

Trials that share a shape (`stack_key`) are trained as one stacked network, see `objectives.network.stack`.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any

import numpy as np

from objectives.epoch import Diverged, Epoch, Seed
from objectives.network.stack import Stack
from objectives.training import Training, TrainingObjective, one_blas_thread

__all__ = ["OWN", "evaluate_side_by_side", "stack_key"]

OWN = frozenset(
    {
        *("learning_rate", "momentum", "beta_2", "epsilon", "l1", "l2", "dropout", "bn_momentum"),
        *("initialization", "initial_scale"),
    }
)
"""Hyperparameters in which trials of one stack may differ."""


def stack_key(objective: TrainingObjective, params: Mapping[str, Any], seed: Seed) -> tuple[Any, ...]:
    """Trials with the same key can be evaluated side by side.

    Raises:
        ValueError: illegal parameters, or what a stack cannot do: early stopping, cross-validation, the
            `plateau` schedule.
    """
    full = objective.complete(params)
    if full["patience"] or full["evaluation"] != "holdout" or full["schedule"] == "plateau":
        raise ValueError("early stopping, cross-validation and the plateau schedule cannot go side by side")
    return seed.study, *sorted((name, value) for name, value in full.items() if name not in OWN)


def evaluate_side_by_side(
    objective: TrainingObjective, params: Sequence[Mapping[str, Any]], *, seeds: Sequence[Seed]
) -> Generator[list[Epoch | Diverged], None, None]:
    """After each epoch, what `objective.evaluate` would have yielded for each trial, to rounding.

    A trial that diverged has the `Diverged` in its place, from then on; the others go on. There are no
    checkpoints, no adjustments, and of the metrics only losses, errors, learning rate, gradient norm and
    `seconds`, which is the epoch's time over the number of trials.

    Raises:
        ValueError: from the first `next`: trials do not share their `stack_key`, or it refuses one of them.
    """
    keys = {stack_key(objective, p, seed) for p, seed in zip(params, seeds, strict=True)}
    if len(keys) != 1:
        differing = sorted({name for key in keys for name, _ in set(key[1:]) ^ set(next(iter(keys))[1:])})
        raise ValueError(f"trials side by side must share {', '.join(differing) or 'their study seed'}")
    trainings = [
        objective.training(objective.complete(p), seed) for p, seed in zip(params, seeds, strict=True)
    ]
    first = trainings[0]
    stack = Stack(
        [t.network for t in trainings],
        first.train.X,
        first.train.y,
        [t.trainer.settings for t in trainings],
        [t.trainer.rngs[0] for t in trainings],
    )
    diverged: dict[int, Diverged] = {}
    for number in range(1, first.full["epochs"] + 1):
        with one_blas_thread():
            metrics = _epoch(stack, first)
        for k, own in enumerate(metrics):
            if (
                k not in diverged
                and not np.isfinite([own["train_loss"], own["dev_loss"], own["gradient_norm"]]).all()
            ):
                diverged[k] = Diverged(
                    number, f"gradient norm {own['gradient_norm']}, dev loss {own['dev_loss']}"
                )
        yield [diverged.get(k) or Epoch(number, own["dev_loss"], own) for k, own in enumerate(metrics)]


def _epoch(stack: Stack, first: Training) -> list[dict[str, float]]:
    """Train all for an epoch; the metrics of each."""
    report = stack.epoch()
    train_loss, train_error = stack.loss_and_error(first.train.X, first.train.y)
    dev_loss, dev_error = stack.loss_and_error(first.dev.X, first.dev.y)
    columns = {
        "train_loss": train_loss,
        "dev_loss": dev_loss,
        "train_error": train_error,
        "dev_error": dev_error,
        "learning_rate": report.learning_rate,
        "gradient_norm": report.gradient_norm,
        "seconds": np.full(len(stack), report.seconds / len(stack)),
    }
    return [{name: float(column[k]) for name, column in columns.items()} for k in range(len(stack))]
