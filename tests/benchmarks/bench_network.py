"""How fast the network trains: against its floor, PyTorch eager, the textbook version and scikit-learn.

    python tests/benchmarks/bench_network.py [--rounds 15] [--only stack] [--json FILE]

Everything runs in one process with one BLAS thread. Contestants take turns, round after round; each figure
is the median over rounds of an epoch's time (quartiles in brackets), each ratio the median of the rounds'
ratios. Floor: the matrix products of the same steps alone, `np.dot(out=)` into warm buffers. PyTorch and
scikit-learn are needed here and nowhere else; what is not installed is left out, and said so.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"
sys.path[:0] = [str(Path(__file__).parents[1] / "numerics"), str(Path(__file__).parents[2])]

import numpy as np  # noqa: E402 - reads the environment when it is imported
import scipy.linalg  # noqa: E402, F401 - its BLAS is used as well
import textbook  # noqa: E402
from threadpoolctl import threadpool_info  # noqa: E402

from objectives.network.architecture import Architecture  # noqa: E402
from objectives.network.network import Network  # noqa: E402
from objectives.network.stack import Stack  # noqa: E402
from objectives.network.trainer import Settings, Trainer  # noqa: E402

TURN = 0.02

TABLE = [
    # sizes, batch, samples, × floor must and goal, × PyTorch eager must
    ((64, 32, 10), 32, 1024, 8.0, 6.0, 10.0),
    ((64, 32, 10), 128, 1024, 5.5, 4.3, 10.0),
    ((64, 64, 32, 10), 128, 1024, 4.2, 3.3, 6.0),
    ((784, 256, 128, 10), 64, 2048, 2.0, 1.7, 1.9),
    ((784, 256, 128, 10), 256, 2048, 1.6, 1.4, 1.35),
    ((784, 512, 512, 10), 512, 4096, 1.5, 1.2, 1.0),
]


def data(sizes, samples, dtype=np.float32):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(samples, sizes[0])).astype(dtype)
    return X, rng.integers(sizes[-1], size=samples)


def ours(sizes, batch, samples) -> Callable[[], object]:
    X, y = data(sizes, samples)
    network = Network.random(Architecture(sizes, batch_norm=True), np.random.default_rng(0))
    return Trainer(network, X, y, Settings(batch_size=batch), [np.random.default_rng(1)]).epoch


def floor(sizes, batch, samples) -> Callable[[], object]:
    """Forward and dW of all layers, dX of all but the first."""
    rng = np.random.default_rng(0)

    def array(*shape):
        return rng.normal(size=shape).astype(np.float32)

    A = [array(batch, sizes[0]).T, *(array(n, batch) for n in sizes[1:])]
    W = [array(n, m) for m, n in itertools.pairwise(sizes)]
    dZ, dW, dA = [array(n, batch) for n in sizes[1:]], [w.copy() for w in W], [array(n, batch) for n in sizes]

    def epoch():
        dot = np.dot
        for _ in range(samples // batch):
            for i, w in enumerate(W):
                dot(w, A[i], A[i + 1])
            for i in range(len(W) - 1, -1, -1):
                dot(dZ[i], A[i].T, dW[i])
                if i:
                    dot(W[i].T, dZ[i], dA[i])

    return epoch


def textbook_version(sizes, batch, samples) -> Callable[[], object]:
    X, y = data(sizes, samples, np.float64)
    Y = np.eye(sizes[-1])[y]
    architecture = Architecture(sizes, batch_norm=True)
    flat = architecture.initial(np.random.default_rng(0), "he", np.float64)
    parameters = {name: value.copy() for name, value in architecture.views(flat).items()}
    adam, rng = textbook.Adam(0.001), np.random.default_rng(1)

    def epoch():
        order = rng.permutation(samples)
        for start in range(0, samples, batch):
            rows = order[start : start + batch]
            step = textbook.forward_backward(parameters, X[rows], Y[rows], activation="relu")
            adam.step(parameters, step.gradient)

    return epoch


def torch_eager(sizes, batch, samples, *, fused=False, loader=False) -> Callable[[], object]:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    X, y = (torch.from_numpy(a) for a in data(sizes, samples))
    layers = []
    for n_in, n_out in itertools.pairwise(sizes[:-1]):
        layers += [torch.nn.Linear(n_in, n_out, bias=False), torch.nn.BatchNorm1d(n_out), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(sizes[-2], sizes[-1]))
    loss_of = torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), **({"fused": True} if fused else {}))

    def by_hand():
        order = torch.randperm(samples)
        for start in range(0, samples, batch):
            rows = order[start : start + batch]
            yield X[rows], y[rows]

    batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, y), batch, shuffle=True)

    def epoch():
        for X_batch, y_batch in batches if loader else by_hand():
            optimizer.zero_grad()
            loss_of(model(X_batch), y_batch).backward()
            optimizer.step()

    return epoch


def scikit_learn(sizes, batch, samples) -> Callable[[], object]:
    from sklearn.neural_network import MLPClassifier

    X, y = data(sizes, samples)
    model = MLPClassifier(sizes[1:-1], batch_size=batch, solver="adam", alpha=0.0)
    classes = np.arange(sizes[-1])
    return lambda: model.partial_fit(X, y, classes=classes)


CONTESTANTS = {
    "ours": ours,
    "floor": floor,
    "textbook": textbook_version,
    "torch": torch_eager,
    "torch with DataLoader": lambda *case: torch_eager(*case, loader=True),
    "torch fused": lambda *case: torch_eager(*case, fused=True),
    "torch fused with DataLoader": lambda *case: torch_eager(*case, fused=True, loader=True),
    "scikit-learn": scikit_learn,
}


def print_kernels() -> None:
    """For which processor BLAS has taken its kernels, and who said so: the figures hang on it."""
    for library in threadpool_info():
        if library["user_api"] == "blas":
            print(f"{library['internal_api']} {library['version']}, kernels for {library['architecture']}")
    if chosen := os.environ.get("OPENBLAS_CORETYPE"):
        print(f"OPENBLAS_CORETYPE={chosen} chose these, not the processor")


def available() -> dict[str, Callable]:
    chosen = dict(CONTESTANTS)
    for module, names in (
        ("torch", [name for name in CONTESTANTS if "torch" in name]),
        ("sklearn", ["scikit-learn"]),
    ):
        try:
            print(f"{module} {__import__(module).__version__}")
        except ImportError:
            print(f"{module} is not installed: left out")
            for name in names:
                del chosen[name]
    return chosen


def take_turns(epochs: dict[str, Callable[[], object]], rounds: int) -> dict[str, np.ndarray]:
    """CPU seconds of an epoch, (rounds,) for each contestant, after two to warm up.

    A turn is as many epochs as the first contestant does in `TURN` seconds: trainings run epoch after
    epoch, and the first one after another contestant's turn finds cold caches.
    """
    seconds = {name: np.empty(rounds) for name in epochs}
    for run in epochs.values():
        run()
        run()
    count = math.ceil(TURN / min(timed(next(iter(epochs.values())), 1) for _ in range(3)))
    for i in range(rounds):
        for name, run in epochs.items():
            seconds[name][i] = timed(run, count)
    return seconds


def timed(run: Callable[[], object], count: int) -> float:
    """CPU seconds of one of `count` epochs."""
    started = time.process_time()
    for _ in range(count):
        run()
    return (time.process_time() - started) / count


def spread(values, form="{:.2f}") -> str:
    low, median, high = np.percentile(values, [25, 50, 75])
    return f"{form.format(median)} [{form.format(low)}..{form.format(high)}]"


def bench_table(rounds: int) -> list[dict]:
    contestants, results = available(), []
    print(f"\n{'net, batch':>26}  {'epoch ms':>20}  {'× floor (must, goal)':>32}  how many times faster than")
    for sizes, batch, samples, must, goal, torch_must in TABLE:
        epochs = {name: make(sizes, batch, samples) for name, make in contestants.items()}
        seconds = take_turns(epochs, rounds)
        name = f"{'-'.join(map(str, sizes))}, {batch}"
        faster = {
            other: seconds[other] / seconds["ours"] for other in seconds if other not in ("ours", "floor")
        }
        above = seconds["ours"] / seconds["floor"]
        results.append(
            {"case": name, "floor": np.median(above), **{k: np.median(v) for k, v in faster.items()}}
        )
        print(
            f"{name:>26}  {spread(seconds['ours'] * 1e3):>20}  {spread(above):>20} ({must}, {goal})"
            f"  {'; '.join(f'{k} {spread(v)}' for k, v in faster.items())} (torch must {torch_must})",
            flush=True,
        )
    return results


STACKS = [
    # sizes, batch, samples, networks, times as many trials a second: must
    ((64, 32, 10), 32, 1024, 16, 1.8),
    ((64, 32, 10), 32, 1024, 64, 1.8),
    ((2, 16, 16, 3), 32, 1024, 16, 3.0),
    ((2, 16, 16, 3), 32, 1024, 64, 3.0),
]


def bench_stack(rounds: int) -> list[dict]:
    """K networks trained as one, against one after another."""
    results = []
    print("\nstacked training: how many times as many trials a second as one at a time")
    for sizes, batch, samples, count, must in STACKS:
        X, y = data(sizes, samples)
        architecture = Architecture(sizes, batch_norm=True)
        networks = [Network.random(architecture, np.random.default_rng(k)) for k in range(count)]
        settings = [Settings(batch_size=batch, learning_rate=0.001 * (k + 1)) for k in range(count)]
        rngs = [np.random.default_rng(k) for k in range(count)]
        stack = Stack(networks, X, y, settings, rngs)
        trainers = [Trainer(n, X, y, s, [r]) for n, s, r in zip(networks, settings, rngs, strict=True)]

        def one_at_a_time(trainers=trainers):
            for trainer in trainers:
                trainer.epoch()

        seconds = take_turns({"stack": stack.epoch, "one at a time": one_at_a_time}, rounds)
        times = seconds["one at a time"] / seconds["stack"]
        name = f"{'-'.join(map(str, sizes))}, {batch}, K = {count}"
        results.append({"case": name, "times": np.median(times)})
        print(f"{name:>26}  {spread(times)} (must {must})", flush=True)
    return results


def bench_denormals(rounds: int) -> list[dict]:
    """A network whose ReLUs have died, with and without zeroing Adam's smallest moments once an epoch."""
    X, y = data((64, 32, 10), 1024)

    def dead(flush):
        network = Network.random(Architecture((64, 32, 10), batch_norm=True), np.random.default_rng(0))
        trainer = Trainer(network, X, y, Settings(batch_size=32), [np.random.default_rng(1)])
        trainer.epoch()
        network.named["beta1"][...] = -30.0  # from here on no unit of the hidden layer fires
        if not flush:
            trainer.optimizer.flush_denormals = lambda: None
        for _ in range(40):
            trainer.epoch()
        return trainer.epoch

    seconds = take_turns({"flushed": dead(flush=True), "left alone": dead(flush=False)}, rounds)
    times = seconds["left alone"] / seconds["flushed"]
    print(
        f"\ndead ReLUs: an epoch with denormal moments takes {spread(times)} times one where they are zeroed"
    )
    return [{"case": "denormals", "times": np.median(times)}]


BENCHMARKS = {"table": bench_table, "stack": bench_stack, "denormals": bench_denormals}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", choices=sorted(BENCHMARKS))
    parser.add_argument("--json", type=Path, help="also write the medians to this file")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print_kernels()
    results = {name: run(options.rounds) for name, run in BENCHMARKS.items() if options.only in (None, name)}
    if options.json:
        options.json.write_text(json.dumps(results, indent=1, default=float))


if __name__ == "__main__":
    main()
