"""What every objective registered under `tuner.objectives` must do. A new objective needs no line here."""

from __future__ import annotations

import importlib.metadata
import math

import numpy as np
import pytest

from objectives.epoch import Epoch, Objective, Seed

SEED = Seed(study=3, trial=5)
QUICK = {"epochs": 3}
"""Few epochs, for objectives that have this hyperparameter."""

ENTRIES = {entry.name: entry for entry in importlib.metadata.entry_points(group="tuner.objectives")}


@pytest.fixture(params=sorted(ENTRIES))
def objective(request, monkeypatch, tmp_path):
    if request.param == "fashion-mnist":
        stand_in_for_download(monkeypatch, tmp_path)
    yield ENTRIES[request.param].load()
    if request.param == "fashion-mnist":
        forget_stand_in()


def stand_in_for_download(monkeypatch, tmp_path):
    """Fashion-MNIST's data are not here, so its suite runs on random images of the same shape, read from
    its cache.
    """
    from objectives import fashion_mnist

    rng = np.random.default_rng(0)
    path = tmp_path / "fashion-mnist.npz"
    fashion_mnist.write(
        path, rng.integers(256, size=(300, 784), dtype=np.uint8), np.arange(300, dtype=np.uint8) % 10
    )
    monkeypatch.setattr(fashion_mnist, "cache_path", lambda: path)
    forget_stand_in()


def forget_stand_in():
    from objectives import fashion_mnist, training

    fashion_mnist.load_fashion_mnist.cache_clear()
    training._cached_parts.cache_clear()


def quick(objective, **params):
    return {**{name: value for name, value in QUICK.items() if name in names(objective)}, **params}


def names(objective):
    return {h.name for h in objective.hyperparameters}


def run(objective, params=None, seed=SEED, resume=None):
    params = quick(objective) if params is None else params
    return [frozen(epoch) for epoch in objective.evaluate(params, seed=seed, resume=resume)]


def frozen(epoch):
    """An epoch without its wall time."""
    return epoch.number, epoch.value, {k: v for k, v in epoch.metrics.items() if k != "seconds"}


def test_objectives_are_registered():
    assert "digits" in ENTRIES


def test_it_follows_the_protocol(objective):
    assert isinstance(objective, Objective)
    assert ENTRIES[objective.name].load() is objective
    assert objective.direction in {"minimize", "maximize"}
    assert objective.description


def test_hyperparameters_are_distinct_and_their_defaults_legal(objective):
    assert len(names(objective)) == len(objective.hyperparameters)
    for hyperparameter in objective.hyperparameters:
        hyperparameter.check(hyperparameter.default)
        assert hyperparameter.priority in {1, 2, 3, None}


def test_epochs_count_from_one_and_have_finite_values(objective):
    epochs = list(objective.evaluate(quick(objective), seed=SEED))
    assert [epoch.number for epoch in epochs] == list(range(1, len(epochs) + 1))
    assert epochs
    for epoch in epochs:
        assert isinstance(epoch, Epoch)
        assert math.isfinite(epoch.value)
        assert all(isinstance(value, (int, float)) for value in epoch.metrics.values())
        assert set(getattr(objective, "metrics", ())) <= epoch.metrics.keys()  # what it names is always there


def test_the_same_seed_gives_the_same_numbers(objective):
    assert run(objective) == run(objective)


def test_unknown_hyperparameters_are_refused_by_name(objective):
    with pytest.raises(ValueError, match="no_such_thing"):
        next(objective.evaluate({"no_such_thing": 1}, seed=SEED))


def test_values_out_of_range_are_refused_by_name(objective):
    for hyperparameter in objective.hyperparameters:
        if hyperparameter.high is not None:
            with pytest.raises(ValueError, match=hyperparameter.name):
                next(objective.evaluate({hyperparameter.name: hyperparameter.high + 1}, seed=SEED))


def test_closing_it_early_is_quiet(objective):
    epochs = objective.evaluate(quick(objective), seed=SEED)
    next(epochs)
    epochs.close()
    assert next(epochs, None) is None


def test_a_checkpoint_resumes_bit_for_bit(objective):
    whole = run(objective)
    epochs = objective.evaluate(quick(objective), seed=SEED)
    for done, epoch in enumerate(epochs, start=1):
        if epoch.checkpoint is None:
            ours = type(objective).__module__.startswith("objectives.")
            assert len(whole) == 1 or not ours, "of ours, only those of one epoch may do without checkpoints"
        elif done < len(whole):
            assert run(objective, resume=epoch.checkpoint()) == whole[done:]


def test_a_finished_checkpoint_trains_no_further(objective):
    whole = run(objective)
    for epoch in objective.evaluate(quick(objective), seed=SEED):
        last = epoch.checkpoint() if epoch.checkpoint else None
    if last is not None:
        assert run(objective, resume=last) in ([], whole[-1:])


def test_adjustable_hyperparameters_are_taken_while_it_runs(objective):
    for hyperparameter in objective.hyperparameters:
        if hyperparameter.adjustable:
            epochs = objective.evaluate(quick(objective), seed=SEED)
            next(epochs)
            assert epochs.send({hyperparameter.name: hyperparameter.default}).number == 2


def test_other_hyperparameters_are_refused_by_name_while_it_runs(objective):
    if not any(h.adjustable for h in objective.hyperparameters):
        return  # what an objective without any does with `send` is its own affair
    for hyperparameter in objective.hyperparameters:
        if not hyperparameter.adjustable:
            epochs = objective.evaluate(quick(objective), seed=SEED)
            next(epochs)
            with pytest.raises(ValueError, match=hyperparameter.name):
                epochs.send({hyperparameter.name: hyperparameter.default})
