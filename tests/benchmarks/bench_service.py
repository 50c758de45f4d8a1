"""What the service costs: trials per second of 8 HTTP clients against bare, in-process Optuna on the same database.

    python tests/benchmarks/bench_service.py [--trials 80] [--rounds 5] [--reports 1 10] [--clients 8]

`tuner serve` runs as a process of its own, with tokens, leases and exact budgets; its clients are threads of this one,
which ask, report and tell by plain HTTP. Bare Optuna is `study.optimize` in this process, with nothing in between. Both
run the same function, which costs nothing, with the same sampler and pruner, in turns. The times of single requests
(median and 95th percentile) are those that a client sees while all of them ask.

A PostgreSQL server of its own is started where its programs are installed (durable: every commit waits for the disk).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import httpx
import optuna
from bench_ledger import SAMPLERS, bare
from postgresql import server


class Timed:
    """An HTTP client that notes how long its requests take, by what they are."""

    def __init__(self, url: str, token: str) -> None:
        self._http = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=60)
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def post(self, what: str, path: str, body: Any) -> Any:
        started = time.perf_counter()
        answer = self._http.post(f"/v1/studies{path}", json=body)
        self.seconds[what].append(time.perf_counter() - started)
        answer.raise_for_status()
        return answer.json()


def work(client: Timed, study: str, reports: int) -> int:
    """Run trials until there are none; how many there were."""
    own, done = f"client-{threading.get_ident()}", 0
    while handed := client.post("ask", f"/{study}/trials:ask", {"client_id": own})["trials"]:
        trial = handed[0]
        path, fence = f"/{study}/trials/{trial['number']}", trial["fence"]
        value, state = sum((x - 0.5) ** 2 for x in trial["params"].values()), "complete"
        for step in range(1, reports + 1):
            values = [{"step": step, "value": value + 1 / step}]
            answer = client.post("report", f"{path}:report", {"fence": fence, "values": values})["answer"]
            if answer == "prune":
                state = "pruned"
                break
        client.post("tell", f"{path}:tell", {"fence": fence, "state": state, "value": value})
        done += 1
    return done


@contextlib.contextmanager
def served(storage: str) -> Iterator[tuple[str, str]]:
    """`tuner serve` on a database; its URL and a token."""
    command = [sys.executable, "-c", "from tuner.cli import main; main()", "serve", "--port", "0"]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            [*command, "--storage", storage, "--log-level", "error"],
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
        ) as process,
    ):
        assert process.stdout is not None
        token = url = None
        while token is None or url is None:
            line = process.stdout.readline()
            assert line, "tuner serve ended"
            token = token or (found[0] if (found := re.search(r"tuner_\w+", line)) else None)
            url = url or (found[0].rstrip("/") if (found := re.search(r"http://\S+", line)) else None)
        try:
            yield url, token
        finally:
            process.terminate()


def over_http(clients: list[Timed], name: str, sampler: str, trials: int, reports: int) -> float:
    """Trials per second of all clients together."""
    space = {f"x{i}": {"low": 0.0, "high": 1.0} for i in range(6)}
    document = {"name": name, "space": space, "budget": {"trials": trials}}
    clients[0].post("create", "", {**document, "sampler": {"name": sampler}, "pruner": {"name": "median"}})
    started = time.perf_counter()
    with ThreadPoolExecutor(len(clients)) as pool:
        done = sum(pool.map(lambda client: work(client, name, reports), clients))
    assert done == trials
    return trials / (time.perf_counter() - started)


def measure(  # noqa: PLR0917
    kind: str, storage: str, url: str, token: str, sampler: str, options: argparse.Namespace
) -> None:
    """Print a line for each number of reports."""
    for reports in options.reports:
        pairs, clients = [], [Timed(url, token) for _ in range(options.clients)]
        for round_ in range(options.rounds):
            rates = {}
            for which in ("bare", "http") if round_ % 2 else ("http", "bare"):
                name = f"{which}-{sampler}-{reports}-{round_}"
                if which == "bare":
                    rates[which] = bare(storage, name, SAMPLERS[sampler](), options.trials, reports)
                else:
                    rates[which] = over_http(clients, name, sampler, options.trials, reports)
            pairs.append((rates["bare"], rates["http"]))
        ratios = sorted(over / plain for plain, over in pairs)
        times = {
            what: sorted(1000 * s for client in clients for s in client.seconds[what])
            for what in ("ask", "tell")
        }
        print(
            f"{kind:>10} {sampler:>7} {reports:>7}  {statistics.median(b for b, _ in pairs):>9.1f}"
            f"  {statistics.median(h for _, h in pairs):>9.1f}  {statistics.median(ratios):>5.2f}"
            f"  ({ratios[0]:.2f} to {ratios[-1]:.2f})  "
            + "  ".join(
                f"{what} {statistics.median(of):.0f}, {statistics.quantiles(of, n=20)[-1]:.0f} ms"
                for what, of in times.items()
            ),
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--reports", type=int, nargs="*", default=[1, 10])
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--samplers", nargs="*", default=["random", "tpe"])
    parser.add_argument("--kinds", nargs="*", default=["sqlite", "postgresql"])
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    print(f"load at the start: {os.getloadavg()[0]:.2f}; {options.clients} clients")
    print(
        "  database sampler reports  bare tr./s  http tr./s  ratio (median, range)  median, 95th percentile"
    )
    with contextlib.ExitStack() as stack:
        for kind in options.kinds:
            if kind == "sqlite":
                storage = f"sqlite:///{stack.enter_context(tempfile.TemporaryDirectory())}/bench.db"
            else:
                storage = stack.enter_context(server(durable=True)).url.format(database="postgres")
            with served(storage) as (url, token):
                for sampler in options.samplers:
                    measure(kind, storage, url, token, sampler, options)
    print(f"load at the end: {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    main()
