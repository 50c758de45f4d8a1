"""Optimizers, schedules, the trainer, checkpoints: against PyTorch, closed forms and uninterrupted runs."""

from __future__ import annotations

import gc
import json
import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import textbook
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from objectives.network.architecture import Architecture
from objectives.network.arrays import aligned_zeros
from objectives.network.checkpoint import CheckpointError, dump, load
from objectives.network.network import Network
from objectives.network.optimizers import CHUNK, LARGEST_WEIGHT, OPTIMIZERS, WeightedSum, create_optimizer
from objectives.network.schedules import SCHEDULES, ReduceOnPlateau, Schedule
from objectives.network.trainer import EarlyStopping, NotFinite, Settings, Trainer

GOLDEN = json.loads(Path(__file__).with_name("golden_torch.json").read_text())


def blobs(samples=60, features=5, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(classes, size=samples)
    centres = rng.normal(size=(classes, features))
    return centres[y] + rng.normal(size=(samples, features)), y


def trainer(
    settings=None, *, sizes=(5, 6, 3), batch_norm=True, dtype=np.float64, samples=60, seed=0, **options
):
    X, y = blobs(samples)
    architecture = Architecture(sizes, batch_norm=batch_norm)
    network = Network.random(architecture, np.random.default_rng(seed), dtype=dtype)
    return Trainer(network, X, y, settings or Settings(**options), [np.random.default_rng(seed + 1)])


# Optimizers -------------------------------------------------------------------------------------------------


def take_steps(optimizer, learning_rate, count):
    for _ in optimizer.steps(learning_rate, count):
        for call in optimizer.line:
            call()


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_trajectories_equal_pytorch(name):
    """50 steps, the scalars worked out in parts of 20, 20 and 10 steps as in three epochs."""
    golden = GOLDEN["trajectories"]
    curvature, p = np.array(golden["curvature"]), np.array(golden["start"])
    g, path = np.zeros(4), []
    optimizer = create_optimizer(name, p, g, momentum=0.9, beta_2=0.99 if name == "rmsprop" else 0.999)
    for steps in (20, 20, 10):
        for _ in optimizer.steps(0.05, steps):
            g[...] = curvature * p + np.cos(p)
            for call in optimizer.line:
                call()
            path.append(p.copy())
    np.testing.assert_allclose(path, golden["paths"][name], rtol=1e-10, atol=1e-12)


def test_momentum_by_hand():
    """v = 0.1·1 = 0.1, p = 1 - 0.5·0.1; v = 0.9·0.1 + 0.1·2 = 0.29, p = 0.95 - 0.5·0.29."""
    p, g = np.array([1.0]), np.array([1.0])
    optimizer = create_optimizer("momentum", p, g, momentum=0.9)
    for gradient, expected in ((1.0, 0.95), (2.0, 0.805)):
        g[0] = gradient
        take_steps(optimizer, 0.5, 1)
        assert p[0] == pytest.approx(expected, rel=1e-12)


def test_chunks_do_not_change_the_result(monkeypatch):
    rng = np.random.default_rng(0)
    start, g = rng.normal(size=(2, 1003)).astype(np.float32)
    results = []
    assert CHUNK % 32 == 0
    for chunk in (CHUNK, 64):
        monkeypatch.setattr("objectives.network.optimizers.CHUNK", chunk)
        p = start.copy()
        optimizer = create_optimizer("adam", p, g)
        take_steps(optimizer, 0.1, 3)
        results.append(p)
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_arrays_with_gaps_between_their_entries_do_as_well(name):
    gaps, g = np.random.default_rng(0).normal(size=(2, 20))
    p, between = gaps[::2].copy(), gaps[1::2].copy()
    take_steps(create_optimizer(name, p, g[::2].copy()), 0.1, 3)
    take_steps(create_optimizer(name, gaps[::2], g[::2]), 0.1, 3)
    np.testing.assert_allclose(gaps[::2], p, rtol=1e-12)
    np.testing.assert_array_equal(gaps[1::2], between)


def test_changing_momentum_keeps_the_moment():
    """The velocity after a change is β_new·v + (1-β_new)·g, with v from before it."""
    p, g = np.array([0.0]), np.array([1.0])
    optimizer = create_optimizer("momentum", p, g, momentum=0.9)
    v = 0.0
    for beta in (0.9, 0.9, 0.5, 0.5):
        optimizer.set_momentum(beta)
        before = p[0]
        take_steps(optimizer, 1.0, 1)
        v = beta * v + (1 - beta) * 1.0
        assert before - p[0] == pytest.approx(v, rel=1e-12)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_the_same_momentum_again_changes_no_bit(name):
    results = []
    for again in (False, True):
        p, g = np.ones(3, np.float32), np.array([0.3, -2.0, 1e-3], np.float32)
        optimizer = create_optimizer(name, p, g, momentum=0.9)
        for _ in range(10):
            take_steps(optimizer, 0.01, 7)
            if again:
                optimizer.set_momentum(0.9)
        results.append(p.tobytes())
    assert results[0] == results[1]


def adam_in_single_precision(momentum=0.9):
    """Parameters p, gradient g and Adam on them."""
    rng = np.random.default_rng(0)
    p, g = rng.normal(size=50).astype(np.float32), rng.normal(size=50).astype(np.float32)
    return p, g, create_optimizer("adam", p, g, momentum=momentum)


def test_denormal_moments_are_flushed_and_parameters_stay_as_they_were():
    """A unit that has died: its gradient stays 0, and Adam's moments pass through denormal numbers."""
    paths = []
    for flush in (False, True):
        p, g, optimizer = adam_in_single_precision()
        seen = False
        for _ in range(40):
            take_steps(optimizer, 0.01, 40)
            g[...] = 0
            if flush:
                optimizer.flush_denormals()
            m = np.abs(optimizer.moments["m"].array)
            seen |= bool(((m > 0) & (m < np.finfo(np.float32).tiny)).any())
        assert seen != flush
        paths.append(p.copy())
    np.testing.assert_array_equal(*paths)


@given(
    decay=st.sampled_from([0.0, 0.003, 0.1, 0.5, 0.9, 0.99, 0.999, 1 - 1e-12]),
    epochs=st.lists(st.integers(1, 90), min_size=1, max_size=5),
)
def test_a_weighted_sum_is_the_sum_and_its_weights_stay_small(decay, epochs):
    terms = np.random.default_rng(0).normal(size=sum(epochs))
    total = WeightedSum(np.zeros(1), np.float64(decay))
    expected, x = 0.0, iter(terms)
    for steps in epochs:
        weights, due = total.plan(steps)
        for step, weight in enumerate(weights):
            if step in due:
                total.renew()
            term = next(x)
            total.array += weight * term
            expected = decay * expected + term
            assert 1 <= weight <= LARGEST_WEIGHT
            assert total.array[0] / weight == pytest.approx(expected, rel=1e-9, abs=1e-9)
        assert weights[-1] == pytest.approx(decay**-total.age)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.99])
def test_thousands_of_steps_do_not_overflow(momentum):
    """0.5⁻³⁰⁰⁰, a weight that was never brought back, would be 10⁹⁰³. The gradients change sign now and then."""
    p, g, optimizer = adam_in_single_precision(momentum)
    reference, exact = textbook.Adam(0.01, momentum), {"p": p.astype(np.float64)}
    for sign in (1, -1, 1):
        g *= sign
        take_steps(optimizer, 0.01, 1000)
        for _ in range(1000):
            reference.step(exact, {"p": g.astype(np.float64)})
    np.testing.assert_allclose(p, exact["p"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
@pytest.mark.parametrize("done", [1, 8, 9, 10, 52, 53, 54])
def test_an_optimizer_resumes_at_every_age_of_its_moments(name, done):
    """Periods are 9 steps for β = 0.5 and 53 for 0.9; there the weights begin anew."""
    results = []
    for interrupted in (False, True):
        p, g = np.ones(3, np.float32), np.array([0.3, -2.0, 1e-3], np.float32)
        settings = {"momentum": 0.5, "beta_2": 0.9}
        optimizer = create_optimizer(name, p, g, **settings)
        take_steps(optimizer, 0.01, done)
        if interrupted:
            data = dump(optimizer.snapshot())
            optimizer = create_optimizer(name, p, g, **settings)
            optimizer.restore(load(data))
        g *= -1
        take_steps(optimizer, 0.02, 60)
        results.append(p.tobytes())
    assert results[0] == results[1]


@pytest.mark.parametrize("name", ["adam", "momentum", "rmsprop"])
@pytest.mark.parametrize("done", [1, 8, 50])
def test_moments_restored_under_another_beta_keep_their_average(name, done):
    p, g = np.ones(3), np.array([0.3, -2.0, 1e-3])
    first = create_optimizer(name, p, g, momentum=0.5, beta_2=0.999)
    take_steps(first, 0.01, done)
    second = create_optimizer(name, p.copy(), g, momentum=0.9, beta_2=0.9)
    second.restore(load(dump(first.snapshot())))
    for moment, before, after in (("m", 0.5, 0.9), ("v", 0.999, 0.9)):
        if moment in first.moments:
            was, now = first.moments[moment], second.moments[moment]
            average = (1 - before) * was.array * before**was.age
            np.testing.assert_allclose((1 - after) * now.array, average, rtol=1e-12)
            assert (now.age, now.decay) == (0, after)


def test_relu_learns_nothing_from_zero():
    """Of rows of zeros, Z is exactly 0 in the hidden layer, where the slope is 0 by convention."""
    network = Network.random(Architecture((4, 5, 3)), np.random.default_rng(0))
    settings = Settings(optimizer="sgd", batch_size=8, learning_rate=0.1)
    Trainer(network, np.zeros((8, 4)), np.arange(8) % 3, settings, [np.random.default_rng(1)]).epoch()
    assert not network.named["b1"].any()
    assert network.named["b2"].any()


@pytest.mark.parametrize("name", ["adam", "momentum", "rmsprop"])
def test_a_checkpoint_of_before_the_weighted_sums_goes_on(name):
    """It has a moment's plain sum, which is what a weighted one is at age 0."""
    results = []
    for is_old in (False, True):
        p, g = np.ones(3), np.array([0.3, -2.0, 1e-3])
        optimizer = create_optimizer(name, p, g)
        take_steps(optimizer, 0.01, 10)
        if is_old:
            kept = optimizer.snapshot()
            for moment, decay in (("m", 0.9), ("v", 0.999)):
                if moment in kept:
                    kept[moment] = kept[moment]["array"] * decay ** kept[moment]["age"]
            optimizer = create_optimizer(name, p, g)
            optimizer.restore(load(dump(kept)))
        take_steps(optimizer, 0.01, 100)
        results.append(p)
    np.testing.assert_allclose(*results, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
def test_what_is_computed_with_begins_at_a_cache_line(dtype):
    for shape in ((), (7,), (3, 5)):
        zeros = aligned_zeros(shape, dtype)
        assert zeros.ctypes.data % 64 == 0
        assert (zeros.shape, zeros.dtype) == (shape, dtype)
        assert not zeros.any()
    training = trainer(dtype=np.float32)
    moments = [moment.array for moment in training.optimizer.moments.values()]
    for array in (training.network.parameters, training.gradient, *moments):
        assert array.ctypes.data % 64 == 0


def test_the_trainer_flushes_denormals_of_dead_units():
    training = trainer(dtype=np.float32, batch_size=2)
    training.epoch()
    training.network.named["beta1"][...] = -1000.0
    for _ in range(60):
        training.epoch()
    m = np.abs(training.network.architecture.views(training.optimizer.moments["m"].array)["W1"])
    assert not m.any(), "1800 steps after its units died, 0.9^1800 of a moment is left"


# The whole training -----------------------------------------------------------------------------------------


def test_fifty_steps_of_batch_norm_and_adam_equal_pytorch():
    golden = GOLDEN["network"]
    X, y = np.array(golden["X"]), np.array(golden["y"])
    architecture = Architecture((5, 6, 4, 3), "tanh", batch_norm=True)
    network = Network.random(architecture, np.random.default_rng(0), dtype=np.float64)
    for i, weights in enumerate(golden["weights"], start=1):
        network.named[f"W{i}"][...] = weights
    training = Trainer(network, X, y, Settings(learning_rate=0.01, batch_size=20), [np.random.default_rng(0)])
    for _ in range(50):
        training.epoch()
    for name, value in golden["parameters"].items():
        np.testing.assert_allclose(network.named[name], value, rtol=1e-7, atol=1e-9, err_msg=name)
    for ours, theirs in zip(network.statistics, golden["running"], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-8)
    np.testing.assert_allclose(network.logits(X).T, golden["logits"], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("batch_size", [1, 7, 60, 1000])
def test_an_epoch_is_the_textbooks_epoch(batch_size):
    """Stochastic, mini-batch and full-batch gradient descent; 60 = 8·7 + 4, so the last batch is smaller."""
    settings = Settings(optimizer="sgd", learning_rate=0.1, batch_size=batch_size)
    training = trainer(settings, batch_norm=False)
    parameters = {name: value.copy() for name, value in training.network.named.items()}
    rng, norms = np.random.default_rng(1), []
    X, Y = training.X, training.onehot
    order = rng.permutation(60)
    for start in range(0, 60, batch_size):
        rows = order[start : start + batch_size]
        gradient = textbook.forward_backward(parameters, X[rows], Y[rows], activation="relu").gradient
        norms.append(sum((g**2).sum() for g in gradient.values()))
        for name, g in gradient.items():
            parameters[name] -= 0.1 * g
    report = training.epoch()
    for name, value in parameters.items():
        np.testing.assert_allclose(training.network.named[name], value, rtol=1e-9, atol=1e-12)
    assert report.gradient_norm == pytest.approx(math.sqrt(np.mean(norms)))
    assert report.learning_rate == 0.1


def test_softmax_regression_reaches_scikit_learns_optimum():
    """Zero hidden layers with L2: loss + l2/2·ΣW² is LogisticRegression's objective at C = 1/(m·l2)."""
    X, y = blobs(200)
    network = Network.random(Architecture((5, 3)), np.random.default_rng(0), dtype=np.float64)
    settings = Settings(optimizer="sgd", learning_rate=0.3, batch_size=200, l2=0.02)
    training = Trainer(network, X, y, settings, [np.random.default_rng(0)])
    for _ in range(4000):
        training.epoch()
    reference = LogisticRegression(C=1 / (200 * 0.02), tol=1e-12, max_iter=10_000).fit(X, y)
    np.testing.assert_allclose(network.named["W1"], reference.coef_, atol=1e-6)
    np.testing.assert_allclose(network.probabilities(X).T, reference.predict_proba(X), atol=1e-6)


def test_batch_norm_lets_a_last_batch_of_one_join_the_one_before():
    training = trainer(batch_size=32, samples=65)
    assert list(training._batches(32)) == [(32, 1), (33, 1)]
    before = training.network.parameters.copy()
    training.epoch()
    assert not np.array_equal(training.network.parameters, before)
    assert list(trainer(batch_size=32, samples=65, batch_norm=False)._batches(32)) == [(32, 2), (1, 1)]


def test_batch_norm_refuses_stochastic_gradient_descent():
    with pytest.raises(ValueError, match="batches of at least 2; got 1"):
        trainer(batch_size=1)


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_batch_norm_trains_with_every_optimizer(optimizer):
    training = trainer(optimizer=optimizer, learning_rate=0.03, batch_size=16)
    before, _ = training.network.loss_and_error(training.X, blobs()[1])
    for _ in range(40):
        training.epoch()
    after, _ = training.network.loss_and_error(training.X, blobs()[1])
    assert after < 0.6 * before


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_divergence_is_noticed_at_once_and_quietly(optimizer):
    """Warnings are errors in these tests, so a warning would fail this one."""
    training = trainer(
        optimizer=optimizer, learning_rate=1e38, batch_norm=False, dtype=np.float32, batch_size=8
    )
    with pytest.raises(NotFinite, match=r"(gradients|parameters) are not finite"):
        [training.epoch() for _ in range(3)]


@pytest.mark.parametrize(
    ("batch_norm", "name"), [(False, "W1"), (False, "b2"), (True, "W1"), (True, "gamma1")]
)
def test_nan_parameters_are_noticed(batch_norm, name):
    """ReLU on the bits turns -NaN into 0, so the parameters themselves have to be looked at."""
    training = trainer(batch_norm=batch_norm)
    training.network.named[name][...] = -np.nan
    with pytest.raises(NotFinite):
        training.epoch()


def held_by_the_network():
    """Bytes allocated in the network's code and still alive; other threads of the test run do not count."""
    gc.collect()
    own = tracemalloc.Filter(inclusive=True, filename_pattern="*/objectives/network/*")
    return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces([own]).traces)


def test_memory_is_constant_over_epochs():
    training = trainer(dropout=0.2, l1=1e-4, l2=1e-4, batch_size=7)
    for _ in range(3):
        training.epoch()
    tracemalloc.start()
    try:
        sizes = []
        for epochs in (5, 50):
            for _ in range(epochs):
                training.epoch()
            sizes.append(held_by_the_network())
    finally:
        tracemalloc.stop()
    assert sizes[0] > 0, "the filter finds nothing"
    assert sizes[1] <= sizes[0] + 500  # a leaked number an epoch would be 50·28 bytes


# Adjusting and resuming -------------------------------------------------------------------------------------

ADJUSTMENTS = {
    "learning_rate": 0.02,
    "momentum": 0.5,
    "l1": 1e-3,
    "l2": 1e-2,
    "dropout": 0.3,
    "batch_size": 9,
}


@pytest.mark.parametrize("name", sorted(ADJUSTMENTS))
def test_an_adjustment_acts_from_the_next_epoch(name):
    plain, adjusted = trainer(optimizer="momentum"), trainer(optimizer="momentum")
    plain.epoch()
    adjusted.epoch()
    np.testing.assert_array_equal(plain.network.parameters, adjusted.network.parameters)
    adjusted.adjust(**{name: ADJUSTMENTS[name]})
    plain.epoch()
    adjusted.epoch()
    assert not np.array_equal(plain.network.parameters, adjusted.network.parameters)


def test_dropout_can_be_adjusted_away_again():
    training = trainer(dropout=0.5)
    training.adjust(dropout=0.0)
    plain = trainer()
    training.epoch()
    plain.epoch()
    np.testing.assert_array_equal(plain.network.parameters, training.network.parameters)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "sgd"}, "cannot be adjusted while training: optimizer"),
        ({"batch_size": 1}, "at least 2; got 1"),
        ({"batch_size": 0}, "batch_size"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\)"),
        ({"learning_rate": -1.0}, "learning_rate"),
    ],
)
def test_other_adjustments_are_refused_and_change_nothing(changes, message):
    training = trainer()
    before = training.settings
    with pytest.raises(ValueError, match=message):
        training.adjust(**changes)
    assert training.settings is before


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
@pytest.mark.parametrize("batch_norm", [False, True])
def test_resuming_is_bit_for_bit_the_uninterrupted_run(optimizer, batch_norm):
    schedule = Schedule("plateau", decay=0.5, every=1)
    settings = Settings(optimizer=optimizer, dropout=0.2, l1=1e-4, l2=1e-3, batch_size=7, schedule=schedule)

    def run(training, epochs):
        for epoch in epochs:
            if epoch == 2:
                training.adjust(momentum=0.7, learning_rate=0.003, batch_size=11)
            report = training.epoch()
            training.observe(1.0 + epoch)
        return training.network.parameters.tobytes(), training.network.running.tobytes(), report.learning_rate

    whole = trainer(settings, batch_norm=batch_norm, dtype=np.float32)
    expected = run(whole, range(7))
    first = trainer(settings, batch_norm=batch_norm, dtype=np.float32)
    run(first, range(4))
    data = dump(first.snapshot())
    resumed = trainer(settings, batch_norm=batch_norm, dtype=np.float32, seed=99)
    resumed.restore(load(data))
    assert run(resumed, range(4, 7)) == expected


def test_training_is_deterministic_for_a_seed():
    runs = []
    for _ in range(2):
        training = trainer(dropout=0.1, dtype=np.float32)
        training.epoch()
        runs.append(training.network.parameters.tobytes())
    assert runs[0] == runs[1]
    other = trainer(dropout=0.1, dtype=np.float32, seed=5)
    other.epoch()
    assert other.network.parameters.tobytes() != runs[0]


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**130), 2**130)
    | st.floats(allow_nan=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5).filter(lambda key: key != "__array__"), values, max_size=4))
def test_checkpoints_keep_plain_values(state):
    assert load(dump(state)) == state


@pytest.mark.parametrize("dtype", ["f4", "f8", "i8", "u1"])
def test_checkpoints_keep_arrays_bit_for_bit(dtype):
    array = np.random.default_rng(0).integers(256, size=64, dtype=np.uint8).view(dtype)
    loaded = load(dump({"a": {"b": [array, 1]}}))["a"]["b"][0]
    assert loaded.dtype == array.dtype
    assert loaded.tobytes() == array.tobytes()


@pytest.mark.parametrize("data", [b"", b"nonsense", b"\x80\x04K\x01.", dump({"a": 1})[:-40]])
def test_other_bytes_are_no_checkpoint(data):
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load(data)


# Schedules and early stopping -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(GOLDEN["schedules"]["rates"]))
def test_schedules_equal_pytorch(name):
    schedule = Schedule(name, decay=0.1, every=3, epochs=12)
    rates = [schedule.factor(epoch) for epoch in range(12)]
    np.testing.assert_allclose(rates, GOLDEN["schedules"]["rates"][name], rtol=1e-12)


def test_reduce_on_plateau_equals_pytorch():
    golden = GOLDEN["schedules"]["plateau"]
    reduce = ReduceOnPlateau(decay=0.1, patience=2)
    assert [reduce.update(loss) for loss in golden["losses"]] == pytest.approx(golden["rates"], rel=1e-12)


def test_warmup_is_linear():
    assert [Schedule(warmup=3).factor(t) for t in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert Schedule("inverse", 1.0, warmup=1).factor(0) == 0.5
    assert Schedule("inverse", 1.0, warmup=1).factor(1) == 0.5


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_without_decay_begins_at_one(name):
    assert Schedule(name, 0.0).factor(0) == 1.0


def test_the_schedule_reaches_the_optimizer():
    schedule = Schedule("exponential", 0.5)
    scheduled = trainer(optimizer="sgd", learning_rate=0.1, schedule=schedule)
    by_hand = trainer(optimizer="sgd", learning_rate=0.1)
    for epoch in range(3):
        by_hand.adjust(learning_rate=0.1 * 0.5**epoch)
        by_hand.epoch()
        assert scheduled.epoch().learning_rate == 0.1 * 0.5**epoch
    np.testing.assert_array_equal(scheduled.network.parameters, by_hand.network.parameters)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "linear"}, "schedule must be one of"),
        ({"name": "step", "decay": 1.5}, "decay"),
        ({"decay": -0.1}, "decay"),
        ({"every": 0}, "every"),
    ],
)
def test_illegal_schedules_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**options)


def test_early_stopping_has_patience_and_restores_the_best():
    training = trainer()
    stopping, best = EarlyStopping(patience=2), None
    stops = []
    for epoch, loss in enumerate([3.0, 1.0, 2.0, 0.5, 0.6, 0.5], start=1):
        training.epoch()
        if loss == 0.5 and best is None:
            best = training.network.parameters.tobytes()
        stops.append(stopping.update(epoch, loss, training.network))
    assert stops == [False, False, False, False, False, True]
    stopping.restore_best(training.network)
    assert training.network.parameters.tobytes() == best
    assert stopping.best_epoch == 4


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "newton"},
        {"batch_size": 0},
        {"dropout": 1.0},
        {"l2": -1.0},
        {"learning_rate": math.nan},
        {"beta_2": 1.0},
        {"bn_momentum": 1.5},
    ],
)
def test_illegal_settings_are_refused_by_name(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Settings(**options)
