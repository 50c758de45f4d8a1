"""How soon the dashboard shows a large study: behind the login, against a stock optuna-dashboard on the same database.

    python tests/benchmarks/bench_dashboard.py [--trials 10000] [--rounds 5]

What a study's page waits for is one document with all of its trials. It is fetched from `tuner serve` and from a stock
optuna-dashboard in turns, both processes of their own, over HTTP: once as soon as they are up (cold), then again
and again. Our own first page, which lists the study, is timed too. The goal is below one second, cold too.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "browser"))

import httpx
import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial
from programs import free_port, running_dashboard

from tuner import StudyDefinition, StudyManager

PARAMETERS = 6


def fill(url: str, trials: int, reports: int) -> None:
    """A study of so many completed trials, with intermediate values."""
    space = {f"x{i}": {"low": 0.0, "high": 1.0} for i in range(PARAMETERS)}
    definition = {
        "name": "large",
        "space": space,
        "sampler": {"name": "random"},
        "budget": {"trials": trials},
    }
    rng, began = np.random.default_rng(0), datetime.now()
    distribution = FloatDistribution(0.0, 1.0)
    made = []
    for number in range(trials):
        params = dict(zip(space, rng.uniform(size=PARAMETERS).tolist(), strict=True))
        value = sum((x - 0.5) ** 2 for x in params.values())
        trial = create_trial(
            state=TrialState.COMPLETE,
            params=params,
            distributions=dict.fromkeys(params, distribution),
            value=value,
            intermediate_values={epoch: value + 1 / epoch for epoch in range(1, reports + 1)},
            user_attrs={"epochs": reports, "training_seconds": 1.0},
        )
        trial.number = number
        trial.datetime_start = began + timedelta(seconds=number)
        trial.datetime_complete = began + timedelta(seconds=number + 1)
        made.append(trial)
    with StudyManager(url) as manager:
        study = manager.create(StudyDefinition.parse(definition))
        database = manager.ledger.database
        with database.transaction() as session:
            database.add_trials(session, study._study_id, made)


@contextmanager
def served(url: str, folder: Path) -> Iterator[httpx.Client]:
    """A client of `tuner serve`, as its administrator."""
    command = [sys.executable, "-c", "from tuner.cli import main; main()", "serve"]
    options = ["--storage", url, "--port", str(free_port()), "--log-level", "error"]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            said = ""
            while "tuner serves" not in said:
                line = process.stdout.readline()
                if not line:
                    raise RuntimeError(f"the service did not come up:\n{(folder / 'log').read_text()}")
                said += line
            token = re.findall(r"tuner_\w+", said)[0]
            address = re.findall(r"http://\S+", said)[0]
            headers = {"Authorization": f"Bearer {token}"}
            with httpx.Client(base_url=address, headers=headers, timeout=120) as client:
                yield client
        finally:
            process.terminate()


def seconds(client: httpx.Client, path: str) -> float:
    """How long an answer takes, read to its end."""
    started = time.perf_counter()
    answer = client.get(path)
    took = time.perf_counter() - started
    answer.raise_for_status()
    return took


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--reports", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = f"sqlite:///{folder}/tuner.db"
        fill(url, options.trials, options.reports)
        ours = stack.enter_context(served(url, folder))
        stock = stack.enter_context(
            httpx.Client(
                base_url=stack.enter_context(running_dashboard(url, folder / "stock-log")), timeout=120
            )
        )
        path = "/api/studies/1?after=0"
        taken: dict[str, list[float]] = {"stock": [], "ours": [], "first page": []}
        for round_ in range(options.rounds + 1):
            turns = [("stock", stock, path), ("ours", ours, path)]
            for name, client, wanted in turns if round_ % 2 else turns[::-1]:
                taken[name].append(seconds(client, wanted))
            taken["first page"].append(seconds(ours, "/"))
    print(f"{options.trials:,} trials; seconds: cold, then the median of {options.rounds} (and the worst)")
    for name, each in taken.items():
        cold, *warm = each
        print(f"{name:>12}  {cold:6.2f}  {statistics.median(warm):6.2f}  ({max(warm, default=math.nan):.2f})")
    ratio = statistics.median(o / s for o, s in zip(taken["ours"][1:], taken["stock"][1:], strict=True))
    print(f"ours / stock, the median of the rounds: {ratio:.2f}")


if __name__ == "__main__":
    main()
