"""Metrics for Prometheus. Labels are bounded: routes, not paths; states, not names of studies."""

from __future__ import annotations

import time
from collections.abc import Iterator

from optuna.trial import TrialState
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tuner.errors import StorageError
from tuner.ledger import StudyState
from tuner.manager import StudyManager
from tuner.service.front import PAGES, PROBES
from tuner.service.paths import is_dashboards
from tuner.storage import Mode, patience

__all__ = ["Metrics", "Watched"]

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

OWN = PAGES | PROBES | {"/metrics"}
"""Paths that are labels as they are."""

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"})


class Metrics:
    """What one process of the service has counted, and what the database holds when it is asked."""

    def __init__(self, manager: StudyManager) -> None:
        self.registry = CollectorRegistry()
        labels = ("method", "route", "status")
        self.requests = Counter("tuner_requests_total", "Requests answered.", labels, registry=self.registry)
        self.seconds = Histogram(
            "tuner_request_seconds",
            "How long an answer took.",
            labels[:2],
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.registry.register(_FromDatabase(manager))


class _FromDatabase(Collector):
    """Gauges that are read from the database at each scrape; none while it does not answer."""

    def __init__(self, manager: StudyManager) -> None:
        self._manager = manager

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Nothing: what is described need not be collected when this is registered."""
        return iter(())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Studies and trials by state, the trials in the hands of workers, and the studies that want for some."""
        ledger = self._manager.ledger
        try:
            with patience(1.0), ledger.transaction(Mode.READ) as session:
                studies = ledger.studies_by_state(session)
                trials = ledger.database.counts(session)
                leases = ledger.open_lease_count(session)
                unattended = self._manager.unattended(session)
        except StorageError:
            return
        yield _gauge("tuner_studies", "Studies by state.", {s.value: studies.get(s, 0) for s in StudyState})
        yield _gauge(
            "tuner_trials", "Trials by state.", {s.name.lower(): trials.get(s, 0) for s in TrialState}
        )
        yield _one("tuner_leases", "Trials in the hands of workers.", leases)
        yield _one(
            "tuner_unattended_studies", "Open studies, not finished, of which no trial runs.", unattended
        )


def _one(name: str, text: str, count: int) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily(name, text)
    gauge.add_metric([], count)
    return gauge


def _gauge(name: str, text: str, by_state: dict[str, int]) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily(name, text, labels=["state"])
    for state, count in by_state.items():
        gauge.add_metric([state], count)
    return gauge


class Watched:
    """ASGI middleware, outermost: counts and times what is answered, whoever asked and whatever is said.

    Args:
        app: the whole service.
        metrics: what counts.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self.app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102 - as ASGI says
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, started = 500, time.perf_counter()

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, note)
        finally:
            method = scope["method"] if scope["method"] in METHODS else "other"
            route = _route(scope)
            self._metrics.requests.labels(method, route, str(status)).inc()
            self._metrics.seconds.labels(method, route).observe(time.perf_counter() - started)


def _route(scope: Scope) -> str:
    """A label of which there are few: the API's template, one of our own paths, or where the path begins.

    An answer that was given before the API was asked, as to a token that is not known, is `/v1`.
    """
    path: str = scope["path"]
    if (route := scope.get("route")) is not None:
        return str(getattr(route, "path_format", "other"))
    if path in OWN:
        return path
    first = f"/{path.split('/')[1]}" if path.startswith("/") else ""
    return first if first == "/v1" or is_dashboards(path) else "other"
