"""What the Pareto fronts of samplers dominate after 50 trials, on problems whose fronts are known.

ZDT1 (convex front), ZDT2 (concave), Fonseca and Fleming's, and VLMOP3 (three objectives), in the unit cube. Figures are
hypervolumes up to a reference point: median and quartiles over seeds, the same for all samplers.

    python tests/benchmarks/bench_fronts.py --seeds 12
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence

import numpy as np
import optuna
from optuna._hypervolume import compute_hypervolume
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from tuner import CoarseToFineSampler

TRIALS = 50
Values = tuple[float, ...]


def zdt1(x: Sequence[float]) -> Values:
    g = 1 + 9 * float(np.mean(x[1:]))
    return x[0], g * (1 - math.sqrt(x[0] / g))


def zdt2(x: Sequence[float]) -> Values:
    g = 1 + 9 * float(np.mean(x[1:]))
    return x[0], g * (1 - (x[0] / g) ** 2)


def fonseca(x: Sequence[float]) -> Values:
    z, a = 8 * np.asarray(x) - 4, 1 / math.sqrt(3)
    return 1 - math.exp(-np.sum((z - a) ** 2)), 1 - math.exp(-np.sum((z + a) ** 2))


def vlmop3(x: Sequence[float]) -> Values:
    a, b = 6 * np.asarray(x) - 3
    s = a * a + b * b
    second = (3 * a - 2 * b + 4) ** 2 / 8 + (a - b + 1) ** 2 / 27 + 15
    return s / 2 + math.sin(s), second, 1 / (s + 1) - 1.1 * math.exp(-s)


PROBLEMS: dict[str, tuple[Callable[[Sequence[float]], Values], int, list[float]]] = {
    "zdt1": (zdt1, 4, [11.0, 11.0]),
    "zdt2": (zdt2, 4, [11.0, 11.0]),
    "fonseca": (fonseca, 3, [1.1, 1.1]),
    "vlmop3": (vlmop3, 2, [10.0, 62.0, 0.5]),
}
"""Function, parameters, reference point."""

SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "coarse-to-fine": lambda seed: CoarseToFineSampler(seed=seed),
    "tpe": lambda seed: TPESampler(seed=seed),
    "random": RandomSampler,
}


def hypervolume(problem: str, sampler: BaseSampler) -> float:
    """What the front of a study dominates, up to the reference point."""
    function, parameters, reference = PROBLEMS[problem]
    study = optuna.create_study(directions=["minimize"] * len(reference), sampler=sampler)
    study.optimize(lambda t: function([t.suggest_float(f"x{i}", 0, 1) for i in range(parameters)]), TRIALS)
    front = np.array([trial.values for trial in study.best_trials])
    inside = front[(front < reference).all(axis=1)]
    return float(compute_hypervolume(inside, np.array(reference))) if len(inside) else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=12)
    seeds = range(parser.parse_args().seeds)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    print("| problem | sampler | median [quartiles] | least | most |\n|---|---|---|---|---|")
    for problem in PROBLEMS:
        for name, make in SAMPLERS.items():
            found = [hypervolume(problem, make(seed)) for seed in seeds]
            low, middle, high = np.quantile(found, [0.25, 0.5, 0.75])
            spread = f"{middle:.4g} [{low:.4g}, {high:.4g}]"
            print(f"| {problem} | {name} | {spread} | {min(found):.4g} | {max(found):.4g} |", flush=True)


if __name__ == "__main__":
    main()
