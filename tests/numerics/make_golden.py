"""Makes golden_torch.json with PyTorch, once: python tests/numerics/make_golden.py. Torch is no test
dependency.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

torch.set_default_dtype(torch.float64)
STEPS = 50


def batch_norm():
    rng = np.random.default_rng(0)
    layer = torch.nn.BatchNorm1d(4, eps=1e-5, momentum=0.1)
    gamma, beta = rng.normal(size=(2, 4))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(gamma))
        layer.bias.copy_(torch.tensor(beta))
    batches = []
    for size in (6, 2, 5):
        x = torch.tensor(rng.normal(1, 2, size=(size, 4)), requires_grad=True)
        dy = torch.tensor(rng.normal(size=(size, 4)))
        layer.zero_grad()
        y = layer(x)
        (y * dy).sum().backward()
        batches.append(
            {
                "x": x.tolist(),
                "dy": dy.tolist(),
                "y": y.tolist(),
                "dx": x.grad.tolist(),
                "dgamma": layer.weight.grad.tolist(),
                "dbeta": layer.bias.grad.tolist(),
                "running_mean": layer.running_mean.tolist(),
                "running_variance": layer.running_var.tolist(),
            }
        )
    layer.eval()
    x = torch.tensor(rng.normal(size=(3, 4)))
    evaluation = {"x": x.tolist(), "y": layer(x).tolist()}
    return {"gamma": gamma.tolist(), "beta": beta.tolist(), "batches": batches, "evaluation": evaluation}


def trajectories():
    """On f(p) = Σ c p²/2 + sin p, whose gradient is c p + cos p."""
    curvature, start = torch.tensor([0.5, 1.0, 10.0, 0.0]), torch.tensor([1.0, -2.0, 0.3, 4.0])
    makers = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
        "momentum": lambda p: torch.optim.SGD(p, lr=0.05 * (1 - 0.9), momentum=0.9),
        "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.05, alpha=0.99, eps=1e-8),
        "adam": lambda p: torch.optim.Adam(p, lr=0.05, betas=(0.9, 0.999), eps=1e-8),
    }
    paths = {}
    for name, make in makers.items():
        p = start.clone().requires_grad_()
        optimizer, path = make([p]), []
        for _ in range(STEPS):
            optimizer.zero_grad()
            (curvature * p**2 / 2 + torch.sin(p)).sum().backward()
            optimizer.step()
            path.append(p.tolist())
        paths[name] = path
    return {"curvature": curvature.tolist(), "start": start.tolist(), "paths": paths}


def network():
    """5-6-4-3 with batch norm and Adam, 50 full-batch steps from given weights."""
    rng = np.random.default_rng(1)
    X, y = rng.normal(size=(20, 5)), rng.integers(3, size=20)
    weights = [rng.normal(size=shape) for shape in ((6, 5), (4, 6), (3, 4))]
    linears = [torch.nn.Linear(w.shape[1], w.shape[0], bias=i == 2) for i, w in enumerate(weights)]
    norms = [torch.nn.BatchNorm1d(6), torch.nn.BatchNorm1d(4)]
    with torch.no_grad():
        for linear, w in zip(linears, weights, strict=True):
            linear.weight.copy_(torch.tensor(w))
        linears[2].bias.zero_()
    model = torch.nn.Sequential(
        linears[0], norms[0], torch.nn.Tanh(), linears[1], norms[1], torch.nn.Tanh(), linears[2]
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(torch.tensor(X)), torch.tensor(y))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    named = {f"W{i + 1}": linear.weight.tolist() for i, linear in enumerate(linears)}
    for i, norm in enumerate(norms, start=1):
        named |= {f"gamma{i}": norm.weight.tolist(), f"beta{i}": norm.bias.tolist()}
    return {
        "X": X.tolist(),
        "y": y.tolist(),
        "weights": [w.tolist() for w in weights],
        "losses": losses,
        "parameters": {**named, "b3": linears[2].bias.tolist()},
        "running": [[n.running_mean.tolist(), n.running_var.tolist()] for n in norms],
        "logits": model(torch.tensor(X)).tolist(),
    }


def schedules():
    """Learning rates of 12 epochs from 1.0."""
    from torch.optim import lr_scheduler as s

    makers = {
        "step": lambda o: s.StepLR(o, 3, gamma=0.9),
        "exponential": lambda o: s.ExponentialLR(o, gamma=0.9),
        "cosine": lambda o: s.CosineAnnealingLR(o, T_max=12, eta_min=0.1),
        "inverse_sqrt": lambda o: s.LambdaLR(o, lambda t: (t + 1) ** -0.5),
        "inverse": lambda o: s.LambdaLR(o, lambda t: 1 / (1 + 0.1 * t)),
    }
    rates = {}
    for name, make in makers.items():
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        scheduler, path = make(optimizer), []
        for _ in range(12):
            path.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        rates[name] = path
    losses = [1.0, 0.9, 0.95, 0.91, 0.9, 0.89999, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6]
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler, path = s.ReduceLROnPlateau(optimizer, factor=0.9, patience=2, threshold=1e-4, eps=0.0), []
    for loss in losses:
        scheduler.step(loss)
        path.append(optimizer.param_groups[0]["lr"])
    return {"rates": rates, "plateau": {"losses": losses, "rates": path}}


def main():
    golden = {
        "origin": f"PyTorch {torch.__version__}, float64, made by tests/numerics/make_golden.py",
        "batch_norm": batch_norm(),
        "trajectories": trajectories(),
        "network": network(),
        "schedules": schedules(),
    }
    Path(__file__).with_name("golden_torch.json").write_text(json.dumps(golden))


if __name__ == "__main__":
    main()
