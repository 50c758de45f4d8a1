"""Can an objective rank samplers? Signal and noise of the training objectives, and the CPU time of a trial.

    python tests/benchmarks/bench_objectives.py [--configurations 64] [--seeds 4] [NAME …]

Draws random configurations of eight hyperparameters, trains each with several seeds on one split, and looks
at the better quarter: signal is the standard deviation of the configurations' mean values, noise the
standard deviation between seeds. Below a ratio of about 2 luck decides between good configurations.
"""

from __future__ import annotations

import argparse
import os
import time
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import entry_points

os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np

from objectives.epoch import Diverged, Seed

NAMES = [
    "digits",
    "digits-shifted",
    "digits-noisy",
    "digits-few",
    "spirals",
    "clusters",
    "imbalanced",
    "breast-cancer",
    "wine",
]


def configuration(rng: np.random.Generator) -> dict:
    return {
        "learning_rate": float(10 ** rng.uniform(-4, 0)),
        "momentum": float(1 - 10 ** rng.uniform(-3, np.log10(0.5))),
        "hidden_units": int(2 ** rng.uniform(4, 7)),
        "batch_size": int(2 ** rng.uniform(4, 8)),
        "layers": int(rng.integers(1, 4)),
        "l2": float(10 ** rng.uniform(-6, -1)),
        "dropout": float(rng.uniform(0, 0.5)),
        "activation": str(rng.choice(["relu", "tanh"])),
    }


def trial(name: str, params: dict, seed: Seed) -> tuple[float, float]:
    """The last value (NaN if it diverged) and the CPU seconds."""
    (entry,) = entry_points(group="tuner.objectives", name=name)
    objective, started, value = entry.load(), time.process_time(), np.nan
    try:
        for epoch in objective.evaluate(params, seed=seed):
            value = epoch.value
    except Diverged:
        value = np.nan
    return value, time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME")
    parser.add_argument("--configurations", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    rng = np.random.default_rng(1)
    chosen = [configuration(rng) for _ in range(options.configurations)]
    shape = (options.configurations, options.seeds)
    print(
        f"{'objective':>16}  {'best':>6}  {'quarter':>7}  {'signal':>6}  {'noise':>6}  ratio  CPU s a trial (median)"
    )
    with ProcessPoolExecutor(options.workers) as workers:
        for name in options.names:
            jobs = [(name, params, Seed(0, k)) for params in chosen for k in range(options.seeds)]
            values, seconds = np.array(list(workers.map(trial, *zip(*jobs, strict=True), chunksize=8))).T
            values = values.reshape(shape)
            values = values[np.argsort(values.mean(axis=1))][: options.configurations // 4]  # NaN comes last
            signal, noise = values.mean(axis=1).std(ddof=1), np.sqrt(values.var(axis=1, ddof=1).mean())
            print(
                f"{name:>16}  {values[0].mean():6.3f}  {values[-1].mean():7.3f}  {signal:6.4f}  {noise:6.4f}"
                f"  {signal / noise:5.2f}  {np.median(seconds):.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
