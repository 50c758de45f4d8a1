"""The training objective: splits, what the value may depend on, cross-validation, early stopping, diagnosis."""

from __future__ import annotations

import dataclasses
import json
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import optuna
import pytest
from command import processes
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, log_loss
from threadpoolctl import threadpool_limits

from objectives.datasets import (
    Data,
    Normalizer,
    folds,
    load_digits,
    split,
    stratified_parts,
    subsample,
)
from objectives.digits import digits, digits_few, digits_scarce, load_noisy, load_shifted
from objectives.epoch import Diverged, Seed
from objectives.network.architecture import Architecture
from objectives.network.diagnosis import BiasVariance, covariate_shifts, input_moments, plateau_epochs
from objectives.network.network import Network
from objectives.network.trainer import Settings, Trainer
from objectives.side_by_side import evaluate_side_by_side
from objectives.synthetic import imbalanced, load_clusters, load_imbalanced, load_spirals
from objectives.tabular import load_breast_cancer, load_wine, wine
from objectives.training import HYPERPARAMETERS, Training, macro_f1

SEED = Seed(study=1, trial=2)


def values(objective, params, seed=SEED):
    return [epoch.value for epoch in objective.evaluate(params, seed=seed)]


# Splits and normalisation -----------------------------------------------------------------------------------


@given(
    y=st.lists(st.integers(0, 3), min_size=1, max_size=80).map(np.array),
    shares=st.sampled_from([(0.6, 0.2, 0.2), (1.0,) * 5, (0.9, 0.1)]),
    seed=st.integers(0, 9),
)
def test_parts_are_disjoint_complete_and_in_proportion(y, shares, seed):
    parts = stratified_parts(y, shares, np.random.default_rng(seed))
    assert sorted(np.concatenate(parts)) == list(range(len(y)))
    for part, share in zip(parts, shares, strict=True):
        quota = share / sum(shares)
        assert abs(len(part) - quota * len(y)) <= 1
        for label in range(4):
            assert abs((y[part] == label).sum() - quota * (y == label).sum()) <= 2


def test_splits_follow_from_the_seed_and_come_from_one_distribution():
    data = load_digits()
    one, same, other = split(data, 0), split(data, 0), split(data, 1)
    np.testing.assert_array_equal(one.train.X, same.train.X)
    assert not np.array_equal(one.train.X, other.train.X)
    assert [len(part.y) for part in one] == [1078, 360, 359]
    for part in one:
        shares = np.bincount(part.y) / len(part.y)
        np.testing.assert_allclose(shares, np.bincount(data.y) / len(data.y), atol=0.006)


def test_splits_share_nothing():
    data = Data(np.arange(500.0)[:, None], np.arange(500) % 3)
    ids = [set(part.X[:, 0]) for part in split(data, 0)]
    assert set.union(*ids) == set(range(500))
    assert sum(map(len, ids)) == 500


def test_folds_cover_the_data_once():
    data = Data(np.arange(53.0)[:, None], np.arange(53) % 2)
    pairs = folds(data, 5, 0)
    assert sorted(x for _, dev in pairs for x in dev.X[:, 0]) == list(range(53))
    for train, dev in pairs:
        assert not set(train.X[:, 0]) & set(dev.X[:, 0])
        assert len(train.y) + len(dev.y) == 53


def test_a_subsample_is_stratified():
    kept = subsample(load_digits(), 200, 0)
    assert len(kept.y) == 200
    assert set(np.bincount(kept.y)) <= {19, 20, 21}
    assert len(digits_few.splits(SEED).train.y) == 200
    assert len(digits_few.splits(SEED).dev.y) == len(digits.splits(SEED).dev.y)


def test_the_reserve_is_what_the_dev_size_leaves_of_the_dev_split():
    splits, reserve = digits_scarce._parts(SEED)
    full = dataclasses.replace(digits_scarce, dev_size=None).splits(SEED)
    assert [len(part.y) for part in splits] == [100, 30, 359]
    together = np.concatenate([splits.dev.X, reserve.X])
    assert sorted(map(tuple, together)) == sorted(map(tuple, full.dev.X))
    assert np.bincount(splits.dev.y, minlength=10).tolist() == [3] * 10
    assert (splits.train.X == full.train.X).all()
    assert (splits.test.X == full.test.X).all()


def test_evaluation_by_the_reserve_is_another_training_measured_on_the_reserve():
    params, (_, reserve) = {"epochs": 3, "evaluation": "reserve"}, digits_scarce._parts(SEED)
    training = digits_scarce.training(digits_scarce.complete(params), SEED)
    *_, epoch = training.epochs(None)
    assert epoch.value == pytest.approx(training.score(reserve)[0], rel=1e-6)
    assert values(digits_scarce, params)[-1] == epoch.value
    own = digits_scarce.training(digits_scarce.complete({}), SEED).network.parameters
    assert not np.array_equal(
        digits_scarce.training(digits_scarce.complete(params), SEED).network.parameters, own
    )
    with pytest.raises(ValueError, match="'reserve' needs data set aside by dev_size; digits-few has none"):
        values(digits_few, {"evaluation": "reserve"})


def test_the_initial_scale_multiplies_the_first_weights():
    networks = [
        digits_few.training(digits_few.complete({"initial_scale": scale}), SEED).network
        for scale in (1.0, 0.25)
    ]
    for name in ("W1", "W2"):
        assert networks[1].named[name] == pytest.approx(networks[0].named[name] / 4, rel=1e-6)
    assert (networks[1].named["gamma1"] == 1).all()


def test_the_gap_and_the_mean_shift_are_what_they_are_said_to_be():
    shifts = []
    for epoch in digits_few.evaluate({"layers": 3, "epochs": 4}, seed=SEED):
        metrics = epoch.metrics
        assert metrics["gap"] == pytest.approx(metrics["dev_loss"] - metrics["train_loss"])
        shifts.append(np.mean([metrics[f"mean_shift_{layer}"] for layer in (2, 3, 4)]))
        assert metrics["mean_shift"] == pytest.approx(np.mean(shifts))
    (linear,) = digits_few.evaluate({"layers": 0, "epochs": 1}, seed=SEED)
    assert "mean_shift" not in linear.metrics


def test_normalisation_closed_forms():
    X = np.array([[1.0, 5.0, 0.0], [3.0, 5.0, 1.0], [5.0, 5.0, 5.0]])
    standard = Normalizer.fit("standard", X)(Data(X, np.zeros(3, int))).X
    np.testing.assert_allclose(standard.mean(axis=0), 0, atol=1e-15)
    np.testing.assert_allclose(standard.std(axis=0), [1, 0, 1])
    squeezed = Normalizer.fit("min_max", X)(Data(X, np.zeros(3, int))).X
    np.testing.assert_allclose(squeezed, [[0, 0, 0], [0.5, 0, 0.2], [1, 0, 1]])
    np.testing.assert_array_equal(Normalizer.fit("none", X)(Data(X, np.zeros(3, int))).X, X)
    with pytest.raises(ValueError, match=r"input_normalization must be one of .*'robust'"):
        Normalizer.fit("robust", X)


def test_normalisation_is_fitted_on_the_train_split_only():
    splits = digits.splits(SEED)
    full = {h.name: h.default for h in HYPERPARAMETERS}
    training = Training(splits.train, splits.dev, full, SEED, classes=10)
    np.testing.assert_array_equal(training.normalizer.shift, splits.train.X.mean(axis=0))
    assert abs(training.train.X.mean(axis=0)).max() < 1e-5
    assert abs(training.dev.X.mean(axis=0)).max() > 1e-2


# The data ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("load", "shape", "classes"),
    [
        (load_digits, (1797, 64), 10),
        (load_shifted, (1797, 144), 10),
        (load_noisy, (1797, 64), 10),
        (load_spirals, (2000, 2), 5),
        (load_clusters, (3000, 40), 4),
        (load_imbalanced, (3000, 20), 3),
        (load_breast_cancer, (569, 30), 2),
        (load_wine, (178, 13), 3),
    ],
)
def test_data_are_what_they_are_said_to_be(load, shape, classes):
    data = load()
    assert data.X.shape == shape
    assert data.y.shape == shape[:1]
    assert set(data.y) == set(range(classes))
    assert np.isfinite(data.X).all()


def test_shifted_digits_are_the_digits_elsewhere():
    original, shifted = load_digits().X, load_shifted().X.reshape(-1, 12, 12)
    np.testing.assert_array_equal(shifted.sum(axis=(1, 2)), original.sum(axis=1))
    places = {
        (top, left)
        for image, digit in zip(shifted[:300], original[:300].reshape(-1, 8, 8), strict=True)
        for top in range(5)
        for left in range(5)
        if (image[top : top + 8, left : left + 8] == digit).all()
    }
    assert len(places) == 25


def test_pixel_noise_has_the_stated_size():
    noise = load_noisy().X - load_digits().X / 16
    assert noise.std() == pytest.approx(0.5, rel=0.01)
    assert noise.mean() == pytest.approx(0, abs=0.005)


def test_imbalanced_classes_are_unequal():
    shares = np.bincount(load_imbalanced().y) / 3000
    assert shares[0] > 0.75
    assert 0.03 < shares[2] < 0.1


# The objective ----------------------------------------------------------------------------------------------


def test_the_value_is_the_dev_cross_entropy():
    """Against scikit-learn's log loss, from the probabilities of the network in the checkpoint's place."""
    splits, full = digits.splits(SEED), {h.name: h.default for h in HYPERPARAMETERS} | {"epochs": 2}
    training = Training(splits.train, splits.dev, full, SEED, classes=10)
    *_, last = training.epochs(None)
    p = training.network.probabilities(training.dev.X).T.astype(np.float64)
    assert last.value == pytest.approx(log_loss(splits.dev.y, p / p.sum(axis=1, keepdims=True)), rel=1e-5)
    assert last.metrics["dev_error"] == (p.argmax(axis=1) != splits.dev.y).mean()
    assert last.value == values(digits, {"epochs": 2})[-1]


def test_the_test_split_has_no_influence_on_tuning():
    spoiled = digits.splits(SEED)
    spoiled = spoiled._replace(test=Data(spoiled.test.X * np.nan, spoiled.test.y))

    class Spoiled(type(digits)):
        def splits(self, seed):
            return spoiled

    objective = Spoiled(name="digits", description="", load=load_digits)
    for params in ({"epochs": 2}, {"epochs": 1, "evaluation": "cross-validation", "folds": 2}):
        assert values(objective, params) == values(digits, params)


def test_test_metrics_are_those_of_the_trained_network():
    params = {"epochs": 3}
    metrics = digits.test_metrics(params, seed=SEED)
    assert metrics["test_error"] < 0.2
    for epoch in digits.evaluate(params, seed=SEED):
        checkpoint = epoch.checkpoint()
    assert digits.test_metrics(params, seed=SEED, resume=checkpoint) == metrics
    assert digits.test_metrics(params, seed=Seed(SEED.study, 77)) != metrics


def test_studies_share_a_split_and_trials_differ_in_their_luck():
    assert values(digits, {"epochs": 1}, Seed(1, 2)) != values(digits, {"epochs": 1}, Seed(1, 3))
    one, other = digits.splits(Seed(1, 2)), digits.splits(Seed(1, 3))
    np.testing.assert_array_equal(one.dev.X, other.dev.X)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"hidden_units": 1.5}, "hidden_units must be a whole number"),
        ({"batch_size": 1}, "at least 2; got 1"),
        ({"activation": "softplus"}, "activation must be one of"),
        ({"learning_rat": 0.1}, "did you mean 'learning_rate'"),
    ],
)
def test_illegal_parameters_are_refused_before_the_first_epoch(params, message):
    with pytest.raises(ValueError, match=message):
        next(digits.evaluate(params, seed=SEED))


def test_divergence_ends_the_trial_with_epoch_and_cause():
    params = {"optimizer": "sgd", "learning_rate": 100.0, "batch_norm": False}
    with pytest.raises(Diverged, match=r"diverged in epoch \d: .*not finite") as caught:
        list(digits.evaluate(params, seed=SEED))
    assert caught.value.epoch == 1


def test_an_infinite_loss_is_a_divergence():
    """Weights that stay finite but give infinite logits: there is nothing to report."""
    params = {"optimizer": "sgd", "learning_rate": 0.1, "batch_norm": False, "layers": 0, "epochs": 2}
    splits, full = digits.splits(SEED), {h.name: h.default for h in HYPERPARAMETERS} | params
    training = Training(splits.train, splits.dev, full, SEED, classes=10)
    training.dev.X[0, 0] = np.inf
    with pytest.raises(Diverged, match=r"epoch 1: train loss .* dev loss nan"):
        list(training.epochs(None))


def test_adjusting_changes_what_follows():
    epochs = digits.evaluate({"epochs": 3}, seed=SEED)
    first = next(epochs)
    second = epochs.send({"learning_rate": 0.5, "momentum": 0.5, "dropout": 0.1, "batch_size": 100})
    assert first.metrics["learning_rate"] == 0.01
    assert second.metrics["learning_rate"] == 0.5
    plain = values(digits, {"epochs": 3})
    assert first.value == plain[0]
    assert second.value != plain[1]


@pytest.mark.parametrize(
    ("adjustment", "message"),
    [
        ({"layers": 2}, "cannot be adjusted while training: layers"),
        ({"colour": 1}, "cannot be adjusted while training: colour"),
        ({"momentum": 1.5}, "momentum must lie in"),
        ({"batch_size": 2.5}, "batch_size must be a whole number"),
    ],
)
def test_adjustments_are_refused_by_name(adjustment, message):
    epochs = digits.evaluate({"epochs": 2}, seed=SEED)
    next(epochs)
    with pytest.raises(ValueError, match=message):
        epochs.send(adjustment)


def test_early_stopping_ends_at_the_best_value():
    params = {"epochs": 60, "patience": 3, "learning_rate": 0.03}
    history = values(digits, params)
    full = values(digits, {"epochs": 60, "learning_rate": 0.03})
    best = int(np.argmin(full[: len(history)]))
    assert len(history) == best + 1 + 3 < 60
    assert history[:-1] == full[: len(history) - 1]
    assert history[-1] == full[best]


def test_a_run_that_is_not_stopped_early_still_ends_at_its_best():
    params = {"epochs": 12, "patience": 12, "learning_rate": 0.1}
    assert values(digits, params)[-1] == min(values(digits, {"epochs": 12, "learning_rate": 0.1}))


def test_early_stopping_resumes_bit_for_bit():
    params = {"epochs": 30, "patience": 2, "learning_rate": 0.05, "schedule": "plateau", "decay_every": 1}
    whole = values(digits, params)
    for epoch in digits.evaluate(params, seed=SEED):
        if epoch.number == 3:
            checkpoint = epoch.checkpoint()
            break
    assert [e.value for e in digits.evaluate(params, seed=SEED, resume=checkpoint)] == whole[3:]


def test_a_checkpoint_keeps_the_best_train_loss():
    splits = digits.splits(SEED)
    full = digits.complete({"epochs": 4})
    first, second = (Training(splits.train, splits.dev, full, SEED, classes=10) for _ in range(2))
    epoch = next(first.epochs(None))
    first.best_train_loss = 1e-9
    next(second.epochs(epoch.checkpoint()))
    assert second.best_train_loss == 1e-9


def test_a_checkpoint_keeps_adjustments():
    epochs = digits.evaluate({"epochs": 4}, seed=SEED)
    next(epochs)
    second = epochs.send({"learning_rate": 0.05, "l2": 0.01})
    checkpoint, rest = second.checkpoint(), [e.value for e in epochs]
    assert [e.value for e in digits.evaluate({"epochs": 4}, seed=SEED, resume=checkpoint)] == rest


def test_population_based_training_resumes_with_other_hyperparameters():
    """Weights, optimizer state and adjustments are the donor's; what is asked for anew is the receiver's."""
    params = {"epochs": 3, "optimizer": "momentum", "learning_rate": 0.1}
    epochs = digits.evaluate(params, seed=SEED)
    next(epochs)
    checkpoint = epochs.send({"l2": 0.01}).checkpoint()
    changed = {**params, "learning_rate": 0.3, "momentum": 0.5}
    (last,) = digits.evaluate(changed, seed=Seed(1, 9), resume=checkpoint)
    by_hand = epochs.send({"learning_rate": 0.3, "momentum": 0.5})
    assert last.metrics["learning_rate"] == 0.3
    assert last.value == by_hand.value


def test_a_fold_that_diverges_is_named():
    params = {**CROSS_VALIDATION, "optimizer": "sgd", "learning_rate": 100.0, "batch_norm": False}
    with pytest.raises(Diverged, match=r"diverged in epoch \d: .*, in fold 1"):
        list(digits.evaluate(params, seed=SEED))


@pytest.mark.parametrize("resume", [b"", b"nonsense"])
def test_what_is_no_checkpoint_is_refused(resume):
    with pytest.raises(ValueError, match="not a checkpoint"):
        next(digits.evaluate({}, seed=SEED, resume=resume))


def test_a_checkpoint_of_another_network_is_refused():
    checkpoint = next(digits.evaluate({"epochs": 2}, seed=SEED)).checkpoint()
    with pytest.raises(ValueError, match="the checkpoint is of another network"):
        next(digits.evaluate({"epochs": 2, "hidden_units": 7}, seed=SEED, resume=checkpoint))
    with pytest.raises(ValueError, match="the checkpoint holds training, not folds"):
        next(digits.evaluate({"evaluation": "cross-validation"}, seed=SEED, resume=checkpoint))


# Cross-validation -------------------------------------------------------------------------------------------

CROSS_VALIDATION = {"evaluation": "cross-validation", "folds": 4, "epochs": 2}


def test_each_fold_is_a_step_and_the_mean_the_score():
    *fold_values, score = values(wine, CROSS_VALIDATION)
    assert len(fold_values) == 4
    assert len(set(fold_values)) == 4
    assert score == pytest.approx(np.mean(fold_values), rel=1e-12)


def test_the_evaluation_can_be_said_in_one():
    params = {"epochs": 2, "evaluation": {"method": "cross-validation", "folds": 4}}
    assert values(wine, params) == values(wine, CROSS_VALIDATION)
    assert wine.complete({"evaluation": {"method": "holdout"}}) == wine.complete({})
    for evaluation, message in (
        ({"fold": 4}, "evaluation takes method and folds; got fold"),
        ({"folds": 1}, "folds"),
    ):
        with pytest.raises(ValueError, match=message):
            wine.complete({"evaluation": evaluation})


def test_folds_are_trained_for_all_their_epochs_on_train_and_dev_together():
    splits = wine.splits(SEED)
    together = Data(*(np.concatenate(pair) for pair in zip(splits.train, splits.dev, strict=True)))
    train, dev = folds(together, 4, SEED.study)[1]
    full = {h.name: h.default for h in wine.hyperparameters} | CROSS_VALIDATION
    *_, last = Training(train, dev, full, SEED, fold=2, classes=3, with_f1=True).epochs(None)
    assert values(wine, CROSS_VALIDATION)[1] == last.value


def test_cross_validation_can_stop_between_folds_and_resume():
    whole = values(wine, CROSS_VALIDATION)
    epochs = wine.evaluate(CROSS_VALIDATION, seed=SEED)
    next(epochs)
    checkpoint = next(epochs).checkpoint()
    epochs.close()
    resumed = [e.value for e in wine.evaluate(CROSS_VALIDATION, seed=SEED, resume=checkpoint)]
    assert resumed == whole[2:]


def test_cross_validation_does_not_mix_hyperparameters():
    checkpoint = next(wine.evaluate(CROSS_VALIDATION, seed=SEED)).checkpoint()
    with pytest.raises(ValueError, match="cannot go on with another learning_rate, l2 than it began with"):
        next(
            wine.evaluate({**CROSS_VALIDATION, "learning_rate": 0.5, "l2": 0.1}, seed=SEED, resume=checkpoint)
        )


def test_optunas_wilcoxon_pruner_stops_between_folds():
    """A good trial, then a bad one: each fold is reported as a step, as `WilcoxonPruner` wants it."""
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        pruner = optuna.pruners.WilcoxonPruner(p_threshold=0.1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(pruner=pruner)
    params = {"evaluation": "cross-validation", "folds": 8, "epochs": 5}

    def run(trial):
        rate = 0.01 if trial.number == 0 else 1e-6
        for epoch in wine.evaluate({**params, "learning_rate": rate}, seed=SEED):
            trial.report(epoch.value, epoch.number)
            if trial.should_prune():
                raise optuna.TrialPruned
        return epoch.value

    study.optimize(run, n_trials=2)
    good, bad = study.trials
    assert good.value == pytest.approx(np.mean([good.intermediate_values[k] for k in range(1, 9)]))
    assert bad.state == optuna.trial.TrialState.PRUNED
    assert len(bad.intermediate_values) < 8


def test_cross_validation_refuses_adjustments():
    epochs = wine.evaluate(CROSS_VALIDATION, seed=SEED)
    next(epochs)
    with pytest.raises(ValueError, match="cannot be adjusted between folds; got learning_rate"):
        epochs.send({"learning_rate": 0.1})


# Diagnosis --------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40).map(np.array))
def test_macro_f1_equals_scikit_learn(pairs):
    labels, predicted = pairs.T
    expected = f1_score(labels, predicted, labels=range(4), average="macro", zero_division=0.0)
    assert macro_f1(labels, predicted, 4) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("train", "dev", "reference", "verdict"),
    [
        (0.15, 0.16, 0.01, "high bias"),
        (0.01, 0.11, 0.00, "high variance"),
        (0.15, 0.30, 0.01, "high bias and high variance"),
        (0.005, 0.01, 0.0, "low bias and low variance"),
        (0.15, 0.16, 0.14, "low bias and low variance"),
    ],
)
def test_bias_and_variance_in_words_and_numbers(train, dev, reference, verdict):
    """The course's examples; in the last a person errs as often as the network."""
    found = BiasVariance(train, dev, reference)
    assert found.verdict == verdict
    assert found.bias == pytest.approx(train - reference)
    assert found.variance == pytest.approx(dev - train)
    assert str(found).startswith(f"{verdict}: bias {train - reference:.1%}")
    assert ("bigger network" in str(found)) == ("high bias" in verdict)
    assert ("more data" in str(found)) == ("high variance" in verdict)


def test_a_trial_is_diagnosed():
    small = [e.metrics for e in digits.evaluate({"learning_rate": 1e-5, "epochs": 3}, seed=SEED)]
    assert "high bias" in str(digits.diagnose(small))
    few = [e.metrics for e in digits_few.evaluate({"epochs": 20}, seed=SEED)]
    assert digits_few.diagnose(few).bias_variance.verdict == "high variance"
    assert few[-1]["variance"] == few[-1]["dev_error"] - few[-1]["train_error"]
    assert imbalanced.diagnose(small).bias_variance.reference_error == pytest.approx(0.05 * 2 / 3)


def test_a_saddle_is_noticed_and_a_minimum_is_not():
    """All weights zero is an exact saddle of a tanh network: only the output biases get a gradient.

    Trained with the full batch, the biases settle and the loss stays at the entropy of the classes; started
    beside the saddle, the same training goes down to a minimum, where the gradient is near zero as well.
    """
    rng = np.random.default_rng(0)
    y = np.arange(40) % 2
    X = rng.normal(size=(40, 2)) * 0.3 + np.stack([2.0 * y - 1, 1 - 2.0 * y], axis=1)
    histories = []
    for scale in (0.0, 0.3):
        network = Network.random(Architecture((2, 4, 2), "tanh"), rng, dtype=np.float64)
        network.parameters *= scale
        settings = Settings(optimizer="sgd", learning_rate=1.0, batch_size=40)
        training = Trainer(network, X, y, settings, [np.random.default_rng(0)])
        norms, losses = [], []
        for _ in range(300):
            norms.append(training.epoch().gradient_norm)
            losses.append(float(network.loss_and_error(X, y)[0]))
        histories.append((losses, norms))
    (stuck, stuck_norms), (free, free_norms) = histories
    assert stuck[-1] == pytest.approx(math.log(2))
    assert len(plateau_epochs(stuck, stuck_norms, best_loss=min(free))) == 300
    assert plateau_epochs(stuck, stuck_norms) == ()
    assert free_norms[-1] < 0.01
    assert 300 not in plateau_epochs(free, free_norms)


def test_covariate_shift_closed_form():
    """Scaling what a layer receives by 1 + a and moving it by b moves mean and variance by known amounts."""
    X = np.random.default_rng(0).normal(size=(500, 3))
    network = Network.random(Architecture((3, 5, 2), "identity"), np.random.default_rng(1), dtype=np.float64)
    before = input_moments(network, X)
    network.named["W1"] *= 1.2
    network.named["b1"][...] = 0.5
    (shift,) = covariate_shifts(before, input_moments(network, X))
    assert shift.variance == pytest.approx(1.2**2 - 1)
    moved = 0.2 * before[0].mean + 0.5
    assert shift.mean == pytest.approx(np.linalg.norm(moved) / np.sqrt(before[0].variance.sum()))
    assert covariate_shifts(before, before)[0] == (0.0, 0.0)


def test_batch_norm_lessens_the_covariate_shift():
    """What the claim says: with a large learning rate, layers see their inputs move less."""
    params = {"layers": 3, "hidden_units": 32, "learning_rate": 0.03, "epochs": 6}
    shifts = {}
    for batch_norm in (False, True):
        epochs = [e.metrics for e in digits.evaluate({**params, "batch_norm": batch_norm}, seed=SEED)]
        shifts[batch_norm] = np.mean([m[f"mean_shift_{layer}"] for m in epochs[1:] for layer in (2, 3, 4)])
    assert shifts[True] < shifts[False]


def test_metrics_are_plain_numbers():
    for epoch in wine.evaluate({"epochs": 1}, seed=SEED):
        assert json.loads(json.dumps(dict(epoch.metrics))) == epoch.metrics
        assert "dev_macro_f1" in epoch.metrics


def test_training_leaves_the_data_alone():
    before = load_digits().X.copy()
    values(digits, {"epochs": 1})
    np.testing.assert_array_equal(load_digits().X, before)


@pytest.mark.long
def test_results_do_not_depend_on_workers_or_threads():
    """The same alone, in threads of a process with one BLAS thread, and in processes however many it has."""
    params = {"epochs": 2, "hidden_units": 300, "layers": 2, "batch_size": 256}
    with threadpool_limits(1, user_api="blas"):
        alone = values(digits, params)
        with ThreadPoolExecutor(3) as workers:
            assert list(workers.map(values, [digits] * 6, [params] * 6)) == [alone] * 6
    with threadpool_limits(2, user_api="blas"):
        assert values(digits, params) == alone
    with processes(2) as workers:
        assert list(workers.map(values, [digits] * 4, [params] * 4)) == [alone] * 4


def test_a_class_that_the_train_split_lacks_is_a_class():
    """One sample of the last class: it lands in one split, and the others still know of it."""
    data = Data(np.random.default_rng(0).normal(size=(60, 3)), np.array([0, 1] * 29 + [0, 2]))
    rare = dataclasses.replace(wine, load=lambda: data)
    for study in range(6):
        assert len(values(rare, {"epochs": 1}, Seed(study))) == 1
        assert rare.test_metrics({"epochs": 1}, seed=Seed(study))["test_error"] <= 1


# Side by side -----------------------------------------------------------------------------------------------


def test_trials_side_by_side_are_the_trials_one_by_one():
    """In single precision rounding grows with the epochs, so three epochs with small steps."""
    rng = np.random.default_rng(0)
    params = [
        {
            "epochs": 3,
            "learning_rate": float(10 ** rng.uniform(-4, -2)),
            "momentum": float(rng.uniform(0.5, 0.99)),
            "dropout": 0.1 * k,
            "l2": 1e-3 * k,
            "schedule": "cosine",
        }
        for k in range(4)
    ]
    seeds = [Seed(1, k) for k in range(4)]
    together = list(evaluate_side_by_side(digits, params, seeds=seeds))
    assert len(together) == 3
    for k, (own, seed) in enumerate(zip(params, seeds, strict=True)):
        for alone, epochs in zip(digits.evaluate(own, seed=seed), together, strict=True):
            assert epochs[k].number == alone.number
            assert epochs[k].value == pytest.approx(alone.value, rel=2e-3)
            assert epochs[k].metrics["learning_rate"] == pytest.approx(alone.metrics["learning_rate"])
            assert epochs[k].metrics["train_error"] == pytest.approx(alone.metrics["train_error"], abs=0.005)


def test_a_trial_that_diverges_leaves_those_beside_it_alone():
    base = {"epochs": 2, "optimizer": "sgd", "batch_norm": False}
    params = [{**base, "learning_rate": 100.0}, {**base, "learning_rate": 0.01}]
    first, second = evaluate_side_by_side(digits, params, seeds=[Seed(1, 0), Seed(1, 1)])
    assert isinstance(first[0], Diverged)
    assert second[0] is first[0]
    assert second[1].value < first[1].value


@pytest.mark.parametrize(
    ("params", "seeds", "message"),
    [
        (({}, {"layers": 2}), (Seed(0), Seed(0)), "must share layers"),
        (({}, {}), (Seed(0), Seed(1)), "must share their study seed"),
        (({"patience": 3}, {}), (Seed(0), Seed(0)), "early stopping"),
    ],
)
def test_what_cannot_go_side_by_side_is_refused(params, seeds, message):
    with pytest.raises(ValueError, match=message):
        next(evaluate_side_by_side(digits, params, seeds=seeds))


def test_objectives_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        digits.name = "other"


@pytest.mark.parametrize("objective", [digits_few, imbalanced])
def test_every_epoch_has_the_metrics_that_an_objective_names_and_no_others_whatever_the_network(objective):
    (epoch,) = objective.evaluate({"epochs": 1, "layers": 0, "batch_norm": False}, seed=Seed(0))
    assert set(epoch.metrics) == set(objective.metrics)
