"""The fast forward and backward pass against the textbook, closed forms, directional derivatives and PyTorch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import textbook
from hypothesis import given, settings
from hypothesis import strategies as st

from objectives.network.architecture import ACTIVATIONS, Architecture
from objectives.network.network import Network, activate, log_softmax, softmax
from objectives.network.step import Regularization, Step

GOLDEN = json.loads(Path(__file__).with_name("golden_torch.json").read_text())


def problem(sizes, batch, *, seed=0, activation="relu", batch_norm=False, dtype=np.float64):
    """A network with all parameters random, rows X and one-hot Y."""
    rng = np.random.default_rng(seed)
    architecture = Architecture(tuple(sizes), activation, batch_norm=batch_norm)
    network = Network(architecture, rng.normal(size=architecture.parameter_count).astype(dtype))
    X = rng.normal(size=(batch, sizes[0])).astype(dtype)
    return network, X, np.eye(sizes[-1], dtype=dtype)[rng.integers(sizes[-1], size=batch)]


def regularization(l1=0.0, l2=0.0, dropout=0.0, dtype=np.float64):
    r = Regularization((), dtype)
    r.set(l1=l1, l2=l2, dropout=dropout)
    return r


def step_gradient(network, X, Y, **options):
    """What one step computes on one batch: the step, after its line was run."""
    step = Step(network, np.zeros_like(network.parameters), len(X), **options)
    step.gather(X, Y, np.arange(len(X)))
    for call in step.lines[0]:
        call()
    return step


def textbook_loss(network, X, Y, flat, **options):
    parameters = network.architecture.views(flat)
    return textbook.forward_backward(
        parameters, X, Y, activation=network.architecture.activation, **options
    ).loss


widths = st.lists(st.integers(1, 7), min_size=0, max_size=3)


@settings(deadline=None, max_examples=150)
@given(
    sizes=st.tuples(st.integers(1, 6), widths, st.integers(2, 5)).map(lambda s: (s[0], *s[1], s[2])),
    batch=st.integers(2, 17),
    activation=st.sampled_from(ACTIVATIONS),
    batch_norm=st.booleans(),
    penalties=st.sampled_from([(0.0, 0.0), (0.1, 0.0), (0.0, 0.3), (0.2, 0.1)]),
    seed=st.integers(0, 2**32 - 1),
)
def test_gradient_equals_the_textbook(*, sizes, batch, activation, batch_norm, penalties, seed):
    network, X, Y = problem(sizes, batch, seed=seed, activation=activation, batch_norm=batch_norm)
    l1, l2 = penalties
    expected = textbook.forward_backward(network.named, X, Y, activation=activation, l1=l1, l2=l2)
    step = step_gradient(network, X, Y, regularization=regularization(l1, l2))
    for name, gradient in step.named_gradient.items():
        np.testing.assert_allclose(gradient, expected.gradient[name], rtol=1e-7, atol=1e-9, err_msg=name)
    assert step.square_norms[0] == pytest.approx((step.gradient**2).sum())


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradient_is_the_directional_derivative(activation, batch_norm):
    network, X, Y = problem((4, 6, 5, 3), 9, activation=activation, batch_norm=batch_norm)
    gradient = step_gradient(network, X, Y, regularization=regularization(0.05, 0.1)).gradient
    along, h = np.random.default_rng(1).normal(size=gradient.shape), 1e-6
    ahead, behind = (
        textbook_loss(network, X, Y, network.parameters + sign * h * along, l1=0.05, l2=0.1)
        for sign in (1, -1)
    )
    assert gradient @ along == pytest.approx((ahead - behind) / (2 * h), rel=1e-6)


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dropout_masks_forward_and_backward_alike(activation, batch_norm):
    network, X, Y = problem((4, 6, 5, 3), 8, activation=activation, batch_norm=batch_norm)
    rng, same = np.random.default_rng(7), np.random.default_rng(7)
    step = step_gradient(network, X, Y, regularization=regularization(dropout=0.4), rngs=[rng])
    masks = [(same.random((n, 8)) < 0.6) / 0.6 for n in (6, 5)]
    expected = textbook.forward_backward(network.named, X, Y, activation=activation, masks=masks)
    for name, gradient in step.named_gradient.items():
        np.testing.assert_allclose(gradient, expected.gradient[name], rtol=1e-9, atol=1e-12, err_msg=name)


def test_dropout_keeps_the_expected_activation():
    network, X, Y = problem((3, 4000, 2), 50, activation="sigmoid")
    plain = step_gradient(network, X, Y).outputs[0].copy()
    dropped = step_gradient(
        network, X, Y, regularization=regularization(dropout=0.3), rngs=[np.random.default_rng(0)]
    ).outputs[0]
    assert (dropped == 0).mean() == pytest.approx(0.3, abs=0.005)
    assert dropped.mean() == pytest.approx(plain.mean(), rel=0.005)


@pytest.mark.parametrize("units", [3, 700])
def test_float32_agrees_with_float64(units):
    """700 units at batch 128 exceed the size from which sums of squares are fused."""
    network, X, Y = problem((5, units, units, 4), 128, batch_norm=True)
    network.parameters *= 0.1
    exact = step_gradient(network, X, Y).gradient
    single = Network(network.architecture, network.parameters.astype(np.float32))
    rough = step_gradient(single, X.astype(np.float32), Y.astype(np.float32)).gradient
    assert np.linalg.norm(rough - exact) < 2e-4 * np.linalg.norm(exact)
    expected = textbook.forward_backward(network.named, X, Y, activation="relu").gradient
    np.testing.assert_allclose(
        network.architecture.views(exact)["gamma1"], expected["gamma1"], rtol=1e-8, atol=1e-12
    )


def test_every_slot_computes_its_own_batch():
    network, X, Y = problem((4, 5, 3), 12, batch_norm=True)
    step = Step(network, np.zeros_like(network.parameters), 4, batches=3)
    step.gather(X, Y, np.arange(12)[::-1])
    for slot, line in enumerate(step.lines):
        for call in line:
            call()
        rows = np.arange(12)[::-1][4 * slot : 4 * slot + 4]
        expected = textbook.forward_backward(network.named, X[rows], Y[rows], activation="relu")
        np.testing.assert_allclose(step.named_gradient["W1"], expected.gradient["W1"], rtol=1e-9, atol=1e-12)
    assert len(step.lines) == 3


# Batch normalisation ----------------------------------------------------------------------------------------


def golden_layer(size):
    """A network 4-4-4 whose first layer is PyTorch's golden batch norm: W1 = I, so that Z = X."""
    golden = GOLDEN["batch_norm"]
    architecture = Architecture((4, 4, 4), "identity", batch_norm=True)
    network = Network(architecture, np.zeros(architecture.parameter_count))
    network.named["W1"][...] = np.eye(4)
    network.named["gamma1"][...], network.named["beta1"][...] = golden["gamma"], golden["beta"]
    return network


def test_batch_norm_equals_pytorch():
    network = golden_layer(4)
    for batch in GOLDEN["batch_norm"]["batches"]:
        x, dy = np.array(batch["x"]), np.array(batch["dy"])
        step = Step(network, np.zeros_like(network.parameters), len(x), bn_momentum=0.9)
        step.gather(x, np.eye(4)[np.zeros(len(x), int)], np.arange(len(x)))
        names = [getattr(call.func, "__name__", "") for call in step.lines[0]]
        # put PyTorch's dy where the loss's gradient arrives: after W2ᵀ dZ, the last product before layer
        # 1's dβ
        back = max(
            i
            for i, call in enumerate(step.lines[0])
            if call.args[-1] is step.gradients[0] and names[i] == "dot"
        )
        for i, call in enumerate(step.lines[0]):
            if i == back:
                np.testing.assert_allclose(step.outputs[0].T, batch["y"], rtol=1e-12, atol=1e-14)
                step.gradients[0][...] = dy.T
            else:
                call()
        step.update_running(1)
        np.testing.assert_allclose(step.gradients[0].T, batch["dx"], rtol=1e-10, atol=1e-13)
        np.testing.assert_allclose(step.named_gradient["gamma1"], batch["dgamma"], rtol=1e-11)
        np.testing.assert_allclose(step.named_gradient["beta1"], batch["dbeta"], rtol=1e-12)
        np.testing.assert_allclose(network.statistics[0][0], batch["running_mean"], rtol=1e-13)
        np.testing.assert_allclose(network.statistics[0][1], batch["running_variance"], rtol=1e-13)
    evaluation = GOLDEN["batch_norm"]["evaluation"]
    inputs = list(network.layer_inputs(np.array(evaluation["x"])))
    np.testing.assert_allclose(inputs[1].T, evaluation["y"], rtol=1e-12)


def test_batch_norm_refuses_a_batch_of_one():
    network, _, _ = problem((3, 4, 2), 1, batch_norm=True)
    with pytest.raises(ValueError, match="batches of at least 2; got batch size 1"):
        Step(network, np.zeros_like(network.parameters), 1)


def test_biases_are_left_out_where_beta_does_their_work():
    assert set(Architecture((3, 4, 2), batch_norm=True).shapes) == {"W1", "W2", "gamma1", "beta1", "b2"}
    assert set(Architecture((3, 4, 2)).shapes) == {"W1", "W2", "b1", "b2"}


def test_batch_norm_undoes_a_shift_and_scale_of_its_inputs():
    """Rows of W scaled by a > 0 leave the output as it was, but for ε."""
    network, X, Y = problem((4, 6, 3), 30, batch_norm=True)
    before = step_gradient(network, X, Y).outputs[1].copy()
    network.named["W1"] *= np.linspace(2, 9, 6)[:, None]
    np.testing.assert_allclose(step_gradient(network, X, Y).outputs[1], before, rtol=1e-3, atol=1e-4)


# Softmax, activations, initialisation -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1.0, 1e4])
def test_softmax_is_stable(dtype, size):
    """Logits of ±1e4, in the step and at test time, against the closed form."""
    architecture = Architecture((2, 2))
    network = Network(architecture, np.zeros(architecture.parameter_count, dtype))
    network.named["W1"][...] = np.array([[size, 0], [0, -size]])
    X, Y = np.eye(2, dtype=dtype), np.eye(2, dtype=dtype)
    with np.errstate(all="raise", under="ignore"):
        step = step_gradient(network, X, Y, regularization=regularization(dtype=dtype))
        p = 1 / (1 + np.exp(-min(size, 700.0)))  # softmax of (size, 0) and of (0, -size)
        np.testing.assert_allclose(step.gradients[0], np.array([[p - 1, p], [1 - p, -p]]) / 2, atol=1e-7)
        loss, error = network.loss_and_error(X, np.array([0, 1]))
    assert loss == pytest.approx((np.logaddexp(0, -size) + np.logaddexp(0, size)) / 2, rel=1e-6)
    assert error == 0.5


@given(st.integers(2, 6), st.integers(1, 5), st.integers(0, 99))
def test_softmax_at_test_time(classes, samples, seed):
    logits = np.random.default_rng(seed).normal(scale=5, size=(classes, samples))
    np.testing.assert_allclose(softmax(logits), textbook.softmax(logits), rtol=1e-12)
    np.testing.assert_allclose(log_softmax(logits), np.log(textbook.softmax(logits)), rtol=1e-9, atol=1e-12)


def test_softmax_at_test_time_is_stable():
    logits = np.array([[1e4, -1e4, 0.0], [-1e4, -1e4, 1e4]])
    np.testing.assert_allclose(softmax(logits), [[1, 0.5, 0], [0, 0.5, 1]])
    np.testing.assert_allclose(log_softmax(logits), [[0, -np.log(2), -1e4], [-2e4, -np.log(2), 0]])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_at_test_time(activation):
    Z = np.linspace(-40, 40, 81)
    np.testing.assert_allclose(
        activate(activation, Z.copy()), textbook.ACTIVATIONS[activation](Z)[0], atol=1e-15
    )


def test_test_time_uses_the_running_statistics():
    network, X, _ = problem((4, 6, 3), 50, batch_norm=True)
    rng = np.random.default_rng(3)
    mean, variance = network.statistics[0]
    mean[...], variance[...] = rng.normal(size=6), rng.uniform(0.5, 2, size=6)
    p = network.named
    Z = (p["W1"] @ X.T - mean[:, None]) / np.sqrt(variance[:, None] + 1e-5)
    A = np.maximum(p["gamma1"][:, None] * Z + p["beta1"][:, None], 0)
    np.testing.assert_allclose(network.logits(X), p["W2"] @ A + p["b2"][:, None], rtol=1e-10)


@pytest.mark.parametrize(("name", "variance"), [("he", 2 / 300), ("xavier", 2 / 500)])
def test_initial_variance(name, variance):
    network = Network.random(
        Architecture((300, 200, 2), batch_norm=True), np.random.default_rng(0), initialization=name
    )
    assert network.named["W1"].var() == pytest.approx(variance, rel=0.02)
    assert network.named["W1"].mean() == pytest.approx(0, abs=4 * np.sqrt(variance / 60_000))
    assert (network.named["gamma1"] == 1).all()
    assert not network.named["beta1"].any()
    assert not network.named["b2"].any()


def test_evaluation_in_parts_is_evaluation_in_one():
    """More rows than are evaluated at once."""
    network, X, _ = problem((2, 3, 3), 10_000)
    y = np.random.default_rng(0).integers(3, size=10_000)
    loss, error = network.loss_and_error(X, y)
    assert loss == pytest.approx(textbook.cross_entropy(network.logits(X), np.eye(3)[y].T), rel=1e-12)
    assert error == (network.logits(X).argmax(axis=0) != y).mean()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": (3,)}, "sizes"),
        ({"sizes": (3, 0, 2)}, "sizes"),
        ({"sizes": (3, 2), "activation": "step"}, "activation must be one of .*got 'step'"),
        ({"sizes": (3, 2), "bn_epsilon": 0.0}, "bn_epsilon"),
    ],
)
def test_illegal_architectures_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Architecture(**options)
