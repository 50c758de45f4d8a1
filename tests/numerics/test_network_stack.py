"""Networks trained side by side have the numbers that they would have had alone."""

from __future__ import annotations

import numpy as np
import pytest

from objectives.network.architecture import ACTIVATIONS, Architecture
from objectives.network.checkpoint import dump, load
from objectives.network.network import Network
from objectives.network.optimizers import OPTIMIZERS
from objectives.network.schedules import Schedule
from objectives.network.stack import Stack, stack_networks, unstack_network
from objectives.network.trainer import Settings, Trainer

K = 5


def blobs(samples=90, features=6, classes=3):
    rng = np.random.default_rng(0)
    y = rng.integers(classes, size=samples)
    return rng.normal(size=(classes, features))[y] + rng.normal(size=(samples, features)), y


def members(architecture, dtype, **shared):
    """K networks, their settings, each different in all that may differ, and their generators."""
    networks = [Network.random(architecture, np.random.default_rng(k), dtype=dtype) for k in range(K)]
    settings = [
        Settings(
            learning_rate=0.003 * (k + 1),
            momentum=0.5 + 0.1 * k,
            beta_2=0.9 + 0.01 * k,
            epsilon=10.0 ** -(k + 4),
            l1=1e-3 * (k % 2),
            l2=1e-2 * (k % 3),
            dropout=0.1 * k,
            bn_momentum=0.5 + 0.1 * k,
            **shared,
        )
        for k in range(K)
    ]
    return networks, settings, [np.random.default_rng(100 + k) for k in range(K)]


def assert_as_alone(architecture, epochs=4, dtype=np.float64, rtol=1e-9, **shared):
    X, y = blobs()
    networks, settings, rngs = members(architecture, dtype, **shared)
    stack = Stack(networks, X, y, settings, rngs)
    reports = [stack.epoch() for _ in range(epochs)]
    loss, error = stack.loss_and_error(X.astype(dtype), y)
    for k, (network, own, rng) in enumerate(zip(*members(architecture, dtype, **shared), strict=True)):
        alone = Trainer(network, X, y, own, [rng])
        for report in reports:
            expected = alone.epoch()
            assert report.learning_rate[k] == pytest.approx(expected.learning_rate)
            assert report.gradient_norm[k] == pytest.approx(expected.gradient_norm, rel=max(rtol, 1e-9))
        np.testing.assert_allclose(stack[k].parameters, network.parameters, rtol=rtol, atol=rtol / 10)
        np.testing.assert_allclose(stack[k].running, network.running, rtol=rtol, atol=rtol / 10)
        expected_loss, expected_error = network.loss_and_error(X.astype(dtype), y)
        assert loss[k] == pytest.approx(expected_loss, rel=rtol)
        assert error[k] == pytest.approx(expected_error, abs=0.02)


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_as_alone_with_every_optimizer(optimizer, batch_norm):
    assert_as_alone(Architecture((6, 8, 5, 3), batch_norm=batch_norm), optimizer=optimizer, batch_size=13)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_as_alone_with_every_activation(activation):
    assert_as_alone(Architecture((6, 8, 3), activation, batch_norm=True), batch_size=32)


def test_as_alone_without_hidden_layers():
    assert_as_alone(Architecture((6, 3)), batch_size=90, schedule=Schedule("cosine", epochs=4))


def test_as_alone_in_single_precision():
    assert_as_alone(
        Architecture((6, 8, 3), batch_norm=True), epochs=1, dtype=np.float32, rtol=2e-3, batch_size=16
    )


def test_as_alone_where_sums_are_fused():
    """Enough units that sums of squares take the other way."""
    assert_as_alone(Architecture((6, 400, 3), batch_norm=True), epochs=2, batch_size=45, rtol=1e-7)


def test_one_that_diverges_leaves_the_others_alone():
    architecture = Architecture((6, 8, 3))
    X, y = blobs()
    networks, settings, rngs = members(architecture, np.float64, optimizer="sgd")
    wild = [Settings(learning_rate=1e200, optimizer="sgd"), *settings[1:]]
    stack, calm = Stack(networks, X, y, wild, rngs), Stack(*_calm(architecture, X, y, settings))
    for _ in range(3):
        stack.epoch()
        calm.epoch()
    loss, _ = stack.loss_and_error(X, y)
    assert not np.isfinite(loss[0])
    np.testing.assert_array_equal(stack.network.parameters[1:], calm.network.parameters[1:])


def _calm(architecture, X, y, settings):
    networks, _, rngs = members(architecture, np.float64, optimizer="sgd")
    return networks, X, y, settings, rngs


def test_adjusting_and_resuming_a_stack():
    architecture = Architecture((6, 8, 3), batch_norm=True)
    X, y = blobs()

    def build():
        networks, settings, rngs = members(architecture, np.float32)
        return Stack(networks, X, y, settings, rngs)

    whole = build()
    whole.epoch()
    whole.trainer.adjust(learning_rate=np.linspace(0.01, 0.05, K), dropout=np.zeros(K))
    data = dump(whole.trainer.snapshot())
    resumed = build()
    resumed.trainer.restore(load(data))
    for stack in (whole, resumed):
        stack.epoch()
    assert whole.network.parameters.tobytes() == resumed.network.parameters.tobytes()


def test_stacking_and_unstacking_are_inverse():
    architecture = Architecture((3, 4, 5, 2), batch_norm=True)
    rng = np.random.default_rng(0)
    networks = [
        Network(architecture, rng.normal(size=architecture.parameter_count), rng.uniform(1, 2, size=18))
        for _ in range(3)
    ]
    stacked = stack_networks(networks)
    X = rng.normal(size=(7, 3))
    for k, network in enumerate(networks):
        copy = unstack_network(stacked, k)
        np.testing.assert_array_equal(copy.parameters, network.parameters)
        np.testing.assert_array_equal(copy.running, network.running)
        np.testing.assert_allclose(stacked.logits(X)[k], network.logits(X), rtol=1e-12)


def test_what_must_be_shared_is_checked():
    networks, settings, rngs = members(Architecture((6, 8, 3)), np.float64)
    X, y = blobs()
    with pytest.raises(ValueError, match=r"a stack shares its batch_size; got \[32, 7"):
        Stack(networks[:2], X, y, [settings[0], Settings(batch_size=7)], rngs[:2])
    with pytest.raises(ValueError, match="networks of one architecture"):
        stack_networks([networks[0], Network.random(Architecture((6, 3)), rngs[0])])
    with pytest.raises(ValueError, match="got 5 networks, 4 settings, 5 generators"):
        Stack(networks, X, y, settings[:4], rngs)
