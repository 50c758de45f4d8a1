"""The best points of finished runs trained anew, for their values on the test data.

A dev value that is the best of many flatters: it was chosen. So when a comparison is finished, each run's best point is
trained again with seeds that no trial had (`Seed(study, FRESH + k)`, the same for all arms, on the same split of the
data), and only then measured on the test split, once. That is what an objective's `test_metrics` does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Future
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

from objectives.epoch import Seed
from tuner.catalogue import find_objective
from tuner.errors import TunerError
from tuner.executors import GOES_ON, Where, ended_first, find_executor, one_thread, submit
from tuner.termination import interruptions_held

__all__ = ["FRESH", "Incumbent", "Tested", "can_test", "measure_incumbents"]

FRESH = 1_000_000_000
"""Added to the number of the repeat it gives a trial's number that no study reaches."""

Metrics: TypeAlias = dict[str, float] | None
"""What one training gave on the test data; None where it failed."""


@runtime_checkable
class Tested(Protocol):
    """An objective that keeps test data apart."""

    def test_metrics(self, params: Mapping[str, Any], *, seed: Seed) -> Mapping[str, float]:
        """Train with `params` and measure on the test data; the first metric is the counterpart of the value."""


@dataclass(frozen=True, slots=True)
class Incumbent:
    """The best trial of a run: its study, objective (None: the one given in Python), number and hyperparameters."""

    study: str
    objective: str | None
    number: int
    params: Mapping[str, Any]
    seed: int


def can_test(name: str | None, given: object) -> bool:
    """Whether the objective, registered or given, keeps test data apart."""
    return isinstance(given if given is not None or name is None else find_objective(name), Tested)


def measure_incumbents(
    incumbents: Sequence[Incumbent],
    given: Any,
    repeats: int,
    *,
    workers: int,
    executor: Where,
    on_tested: Callable[[Incumbent, list[Metrics]], None],
) -> None:
    """Train each incumbent anew `repeats` times and measure it on the test data.

    Args:
        incumbents: what to train.
        given: an objective given in Python, else None.
        repeats: how often, each time with another seed.
        workers: how many train at once.
        executor: where, as for `run_studies`.
        on_tested: called in this thread for each incumbent, once all of its trainings are through.

    Raises:
        TunerError: a worker died; those that were through before are done.
        KeyboardInterrupt: passed on, without waiting for those that train.
    """
    if not incumbents:
        return
    found: dict[str, dict[int, Metrics]] = {incumbent.study: {} for incumbent in incumbents}
    with one_thread(), find_executor(executor)(workers) as pool, interruptions_held():
        running: dict[Future[Any], str] = {}
        what: dict[Future[Any], tuple[Incumbent, int]] = {}
        try:
            for incumbent in incumbents:
                objective = incumbent.objective if given is None else given
                for repeat in range(repeats):
                    seed = Seed(incumbent.seed, FRESH + repeat)
                    future = submit(pool, running, incumbent.study, _train, objective, incumbent.params, seed)
                    what[future] = incumbent, repeat
            while running:
                for future in ended_first(pool, running):
                    del running[future]
                    incumbent, repeat = what[future]
                    done = found[incumbent.study]
                    done[repeat] = future.result()
                    if len(done) == repeats:
                        on_tested(incumbent, [done[k] for k in range(repeats)])
        except BrokenExecutor:
            raise TunerError(f"a worker died while it trained for the test values {GOES_ON}") from None
        except BaseException:
            for future in what:
                future.cancel()
            pool.leave()
            raise


def _train(objective: Any, params: Mapping[str, Any], seed: Seed) -> Metrics:
    one_thread()
    tested: Any = find_objective(objective) if isinstance(objective, str) else objective
    try:
        metrics = {name: float(value) for name, value in tested.test_metrics(params, seed=seed).items()}
    except (Exception, SystemExit):  # noqa: BLE001 - whatever a training raises, the others go on
        return None
    return metrics if all(map(math.isfinite, metrics.values())) else None
