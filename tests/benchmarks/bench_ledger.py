"""What the ledger costs: trials per second of its whole loop against bare Optuna's `study.optimize`.

    python tests/benchmarks/bench_ledger.py [--trials 50] [--rounds 7] [--reports 10] [--postgresql URL]

Both run the same function of six parameters, with the same sampler and pruner, on the same database, one after the
other in turns: in bare Optuna through `create_study(storage=URL)`, in ours through a definition, with leases, exact
budgets and heartbeats. The function costs nothing, so that what is measured is what stands around a training.

A PostgreSQL server of its own is started for the measurement where its programs are installed (durable, as it comes:
every commit waits for the disk); `--postgresql URL` takes another.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"

import optuna
from optuna.pruners import MedianPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from tuner import StudyDefinition, StudyManager
from tuner.trial_run import run_trial

SAMPLERS: dict[str, Any] = {"random": lambda: RandomSampler(seed=0), "tpe": lambda: TPESampler(seed=0)}


def train(trial: optuna.Trial, reports: int) -> float:
    """Six suggestions, some reports, a value."""
    x = [trial.suggest_float(f"x{i}", 0.0, 1.0) for i in range(6)]
    value = sum((v - 0.5) ** 2 for v in x)
    for epoch in range(1, reports + 1):
        trial.report(value + 1 / epoch, epoch)
        if trial.should_prune():
            raise optuna.TrialPruned
    return value


class Epochs:
    """The same as an objective of epochs."""

    name = "bench"
    description = "A sum of squares."
    direction = "minimize"
    hyperparameters = ()

    def __init__(self, reports: int) -> None:
        self.reports = reports

    def evaluate(self, params: Any, *, seed: Any, resume: Any = None) -> Iterator[Any]:
        from objectives.epoch import Epoch

        value = sum((params[f"x{i}"] - 0.5) ** 2 for i in range(6))
        for epoch in range(1, self.reports + 1):
            yield Epoch(epoch, value + 1 / epoch)


def bare(url: str, name: str, sampler: BaseSampler, trials: int, reports: int) -> float:
    """Trials per second of `study.optimize`."""
    study = optuna.create_study(storage=url, study_name=name, sampler=sampler, pruner=MedianPruner())
    started = time.perf_counter()
    study.optimize(lambda trial: train(trial, reports), n_trials=trials)
    return trials / (time.perf_counter() - started)


def ours(url: str, name: str, sampler: str, trials: int, reports: int) -> float:
    """Trials per second of ask, report, tell through the ledger."""
    space = {f"x{i}": {"low": 0.0, "high": 1.0} for i in range(6)}
    definition = StudyDefinition.parse(
        {
            "name": name,
            "space": space,
            "sampler": {"name": sampler},
            "pruner": {"name": "median"},
            "budget": {"trials": trials},
        }
    )
    with StudyManager(url) as manager:
        manager.create(definition)
        ask_tell, objective = manager.ask_tell(name), Epochs(max(reports, 1))
        started = time.perf_counter()
        while run_trial(ask_tell, objective) is not None:
            pass
        seconds = time.perf_counter() - started
        assert ask_tell.spent().trials == trials
    return trials / seconds


def measure(kind: str, url: str, sampler: str, options: argparse.Namespace) -> None:
    pairs = []
    for round_ in range(options.rounds):
        for reports in options.reports:
            rates = {}
            for which in ("bare", "ours") if round_ % 2 else ("ours", "bare"):
                name = f"{which}-{sampler}-{reports}-{round_}"
                if which == "bare":
                    rates[which] = bare(url, name, SAMPLERS[sampler](), options.trials, reports)
                else:
                    rates[which] = ours(url, name, sampler, options.trials, reports)
            pairs.append((reports, rates["bare"], rates["ours"]))
    for reports in options.reports:
        mine = [(b, o) for r, b, o in pairs if r == reports]
        ratios = sorted(o / b for b, o in mine)
        print(
            f"{kind:>10} {sampler:>7} {reports:>7}  {statistics.median(b for b, _ in mine):>9.1f}"
            f"  {statistics.median(o for _, o in mine):>9.1f}  {statistics.median(ratios):>5.2f}"
            f"  ({ratios[0]:.2f} to {ratios[-1]:.2f})",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--reports", type=int, nargs="*", default=[1, 10])
    parser.add_argument("--samplers", nargs="*", default=["random", "tpe"])
    parser.add_argument("--kinds", nargs="*", default=["sqlite", "postgresql"])
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    print("  database sampler reports  bare tr./s  ours tr./s  ratio (median, range)")
    with contextlib.ExitStack() as stack:
        for kind in options.kinds:
            if kind == "sqlite":
                folder = stack.enter_context(tempfile.TemporaryDirectory())
                url = f"sqlite:///{folder}/bench.db"
            else:
                sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
                from postgresql import server

                url = stack.enter_context(server(durable=True)).url.format(database="postgres")
            for sampler in options.samplers:
                measure(kind, url, sampler, options)


if __name__ == "__main__":
    main()
