"""Metrics for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import generate_latest

from upscale_opt.service.errors import StorageError
from upscale_opt.service.jobs import Store
from upscale_opt.service.tasks import Queue
from upscale_opt.service.worker import ALIVE

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The figures of one service; those of jobs come from the storage when they are asked for.

    Args:
        store: the jobs.
        queue: their queue.
    """

    def __init__(self, store: Store, queue: Queue) -> None:
        self._store = store
        self._queue = queue
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "upscale_opt_requests",
            "Requests answered.",
            ["method", "path", "status"],
            registry=self._registry,
        )
        self.latency = Histogram(
            "upscale_opt_request_seconds",
            "Seconds until a request was answered.",
            ["path"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self.solving = Histogram(
            "upscale_opt_solve_seconds",
            "Seconds that /v1/solve solved.",
            ["solver"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self.streams = Gauge(
            "upscale_opt_event_streams", "Event streams that are open.", registry=self._registry
        )
        self._registry.register(self)

    def text(self) -> bytes:
        """All of them."""
        return generate_latest(self._registry)

    def describe(self) -> list[Any]:
        """Nothing: what the storage says is only known when it is asked."""
        return []

    def collect(self) -> Iterator[Any]:
        """Yield what the storage says."""
        reachable = GaugeMetricFamily(
            "upscale_opt_storage_reachable", "Whether jobs and queue can be reached."
        )
        try:
            counts, totals = self._store.counts(), self._store.totals()
            length, workers = self._queue.length(), self._store.workers(ALIVE)
        except StorageError:
            reachable.add_metric([], 0)
            yield reachable
            return
        reachable.add_metric([], 1)
        yield reachable
        jobs = GaugeMetricFamily("upscale_opt_jobs", "Jobs by state.", labels=["state"])
        for state, count in counts.items():
            jobs.add_metric([state], count)
        yield jobs
        yield GaugeMetricFamily("upscale_opt_queue_length", "Messages in the queue.", length)
        yield GaugeMetricFamily("upscale_opt_workers", "Workers alive.", workers)
        events = CounterMetricFamily(
            "upscale_opt_job_events", "What happened to jobs, since ever.", labels=["event"]
        )
        for name in ("accepted", "done", "failed", "cancelled", "returned"):
            events.add_metric([name], totals.get(name, 0))
        yield events
        yield CounterMetricFamily(
            "upscale_opt_job_solve_seconds",
            "Seconds that workers solved.",
            totals.get("solve_seconds", 0.0),
        )


class Measure:
    """Counts and times every request, as an ASGI middleware.

    Args:
        app: what answers them.
        metrics: where they are counted.
    """

    def __init__(self, app: Any, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass on, and count."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        status = 500

        async def note(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note)
        finally:
            path = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.requests.labels(method, path, str(status)).inc()
            if not path.endswith("/events"):
                self._metrics.latency.labels(path).observe(time.perf_counter() - start)


_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
