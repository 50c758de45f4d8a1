"""How many times as many trials a second two worker processes end as one, on a real training.

One study of Sobol points a run (every run trains the same networks, of two hidden layers), one and two workers in turn,
each in a fresh SQLite file. The steady rate counts from the outcome at which all workers have started to the last one
at which all are still at work; how long the start takes is told apart. BLAS has one thread in every worker. The ratio
that counts is the median over rounds. It needs two otherwise idle cores: the load is printed, before and after.

    python tests/benchmarks/bench_caviar.py [--trials 60] [--rounds 5] [--epochs 30]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import dataclass

from tuner import StudyDefinition, StudyManager
from tuner.trial_run import Outcome

WARM_UP = 8
"""Outcomes after which every worker has started and opened its study."""


@dataclass(frozen=True, slots=True)
class Measured:
    """`rate` in trials a second; `start` and `end` in seconds."""

    rate: float
    start: float
    end: float


def measure(workers: int, trials: int, epochs: int) -> Measured:
    """One run in a database of its own."""
    definition = StudyDefinition.parse(
        {
            "name": "bench",
            "objective": "digits",
            "budget": {"trials": trials},
            "fixed": {"epochs": epochs, "optimizer": "adam", "layers": 2},
            "space": {
                "learning_rate": {"low": 1e-3, "high": 1e-1, "scale": "log"},
                "hidden_units": {"type": "int", "low": 64, "high": 128},
            },
            "sampler": {"name": "sobol"},
        }
    )
    ended: list[float] = []

    def note(_outcome: Outcome) -> None:
        ended.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder, StudyManager(f"sqlite:///{folder}/bench.db") as manager:
        begun = time.perf_counter()
        manager.run(definition, workers=workers, on_outcome=note)
        over = time.perf_counter()
    steady = ended[WARM_UP : trials - workers + 1]
    return Measured(
        rate=(len(steady) - 1) / (steady[-1] - steady[0]),
        start=ended[0] - begun,
        end=over - ended[-1],
    )


def spread(values: list[float]) -> str:
    """Median (minimum – maximum)."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=30)
    options = parser.parse_args()
    print(f"load at the start: {os.getloadavg()[0]:.2f}")
    found: dict[int, list[Measured]] = {1: [], 2: []}
    for _ in range(options.rounds):
        for workers, measured in found.items():
            measured.append(measure(workers, options.trials, options.epochs))
    for workers, measured in found.items():
        print(
            f"{workers} worker{'s' * (workers > 1)}: {spread([m.rate for m in measured])} trials/s, "
            f"start {spread([m.start for m in measured])} s, end {spread([m.end for m in measured])} s"
        )
    ratios = [two.rate / one.rate for one, two in zip(found[1], found[2], strict=True)]
    print(f"two workers end {spread(ratios)} times as many trials a second as one")
    print(f"load at the end: {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    main()
