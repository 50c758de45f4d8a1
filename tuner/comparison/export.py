"""A result written down: JSON that is enough to find it again, and a table of all trials.

Everything in the JSON document is a function of the definition, the objective and the versions, except what lies under
`made`: the date, the machine and all times. So two documents of one comparison are equal outside `made`, byte by byte,
whatever interrupted it; unless a budget is given in seconds.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from tuner.comparison.result import ComparisonResult
from tuner.comparison.runs import Run, Unit
from tuner.definition import ComparisonDefinition
from tuner.errors import DefinitionError, NotFoundError

__all__ = ["differences", "finite", "load_results", "made", "results_csv", "results_json", "trial_rows"]

FORMAT = 1

MADE = "made"
"""The key of what is not repeatable."""

VERSIONS = ("tuner", "optuna", "numpy", "scipy", "scikit-learn", "cmaes", "torch")


def results_json(result: ComparisonResult) -> str:
    """The document `results.json`."""
    return json.dumps(finite(_document(result)), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def results_csv(result: ComparisonResult) -> str:
    """A line for each finished trial, see `trial_rows`."""
    rows = list(trial_rows(result))
    text = io.StringIO()
    names = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(text, list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def trial_rows(result: ComparisonResult) -> list[dict[str, Any]]:
    """A row for each finished trial: arm, seed, study, trial, state, value, best, epochs, seconds, and its parameters
    under `params.NAME`; `spent_epochs` and `spent_seconds` are sums up to it."""
    return [row for run in result.runs for row in _rows(run)]


def made(result: ComparisonResult) -> dict[str, Any]:
    """When, where and with what a result was made, and what it took."""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "python": platform.python_version(),
        "versions": dict(_versions()),
        "machine": {"system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count()},
        "seconds": {run.study: round(run.seconds, 3) for run in result.runs},
        "anytime": _anytime(result, "seconds"),
        "targets": [_without(asdict(row), "trials", "epochs", "reached") for row in result.targets()],
    }


def load_results(path: Path) -> tuple[ComparisonDefinition, dict[str, Any]]:
    """The definition in a `results.json`, and the whole document.

    Raises:
        NotFoundError: there is no such file.
        DefinitionError: it is none of ours, or its definition cannot be run here.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFoundError(f"{path}: there is no such file") from None
    except (OSError, ValueError) as error:
        raise DefinitionError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT or "definition" not in document:
        raise DefinitionError(f"{path}: is no results.json of format {FORMAT}, as `tuner compare` writes it")
    return ComparisonDefinition.parse(document["definition"], f"{path}: definition"), document


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Where two documents differ outside what cannot be repeated, a line each; empty where the numbers are the same."""
    return list(_differences(_without(before, MADE), _without(after, MADE), ""))


def finite(value: Any) -> Any:
    """The same document with null for numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _document(result: ComparisonResult) -> dict[str, Any]:
    found = result.to_dict()
    return {
        "format": FORMAT,
        **found,
        "ranking": [_without(row, "seconds") for row in found["ranking"]],
        "anytime": {"trials": _anytime(result, "trials"), "epochs": _anytime(result, "epochs")},
        "targets": [_without(asdict(row), "seconds") for row in result.targets()],
        "runs": [_run(run) for run in result.runs],
        "definition": result.definition.dump(),
        MADE: made(result),
    }


def _anytime(result: ComparisonResult, unit: Unit) -> dict[str, Any]:
    return {
        arm: {
            "spent": curve.spent.tolist(),
            "median": curve.median.tolist(),
            "low": curve.low.tolist(),
            "high": curve.high.tolist(),
        }
        for arm, curve in result.anytime(unit).items()
    }


def _run(run: Run) -> dict[str, Any]:
    test = None if run.test is None else {"trial": run.test.number, **run.test.metrics}
    return {
        "arm": run.arm,
        "seed": run.seed,
        "study": run.study,
        "trials": len(run.best),
        "completed": run.completed,
        "pruned": run.pruned,
        "failed": run.failed,
        "best": run.best.tolist(),
        "epochs": run.epochs.tolist(),
        "best_trial": run.best_number,
        "best_params": run.best_params,
        "test": test,
        "points": [_point(trial) for trial in run.trials],
    }


def _point(trial: FrozenTrial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "state": trial.state.name,
        "value": trial.value,
        "params": trial.params,
        "curve": [trial.intermediate_values[epoch] for epoch in sorted(trial.intermediate_values)],
    }


def _rows(run: Run) -> Iterator[dict[str, Any]]:
    clock = run.spent("seconds")
    for i, best in enumerate(run.best.tolist()):
        row = {"arm": run.arm, "seed": run.seed, "study": run.study, "trial": i, "best": best}
        row |= {"spent_epochs": int(run.epochs[i]), "spent_seconds": float(clock[i])}
        if run.trials:
            trial = run.trials[i]
            row |= {"trial": trial.number, "state": trial.state.name, "value": trial.value}
            row |= {"epochs": len(trial.intermediate_values)}
            row |= {f"params.{name}": value for name, value in trial.params.items()}
        yield row


def _versions() -> Iterator[tuple[str, str]]:
    for name in VERSIONS:
        try:
            yield name, version(name)
        except PackageNotFoundError:  # an extra
            continue


def _without(document: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key not in names}


def _differences(before: Any, after: Any, path: str) -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in dict.fromkeys([*before, *after]):
            yield from _differences(before.get(key), after.get(key), f"{path}.{key}" if path else str(key))
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for i, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from _differences(one, other, f"{path}[{i}]")
    elif before != after:
        yield f"{path}: {_short(before)} became {_short(after)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
