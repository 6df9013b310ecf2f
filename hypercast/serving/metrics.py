"""What a service counts, for Prometheus. One registry a service: two in one process do not mix.

Names, units and labels are listed in docs/serving.md.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

NAMESPACE = "hypercast"
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5)


class Metrics:
    """All of a service's metrics."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Answered requests", "path", "status")
        self.seconds = self._histogram("rank_seconds", "From a request's arrival to its answer")
        self.stage_seconds = self._histogram("stage_seconds", "A stage of ranking, with its waiting", "stage")
        self.candidates = self._counter("candidates", "Scored candidates, by rung of the ladder", "rung")
        self.statuses = self._counter("embeddings", "Scored candidates, by status of the embedding", "status")
        self.foundation = self._counter("foundation", "What came of asking the foundation model", "outcome")
        self.without = self._counter("answers_without_foundation", "Answers by experts without embeddings")
        self.store_failures = self._counter("store_failures", "Reads that the online store did not answer in time")
        self.behind = self._counter("behind", "Requests computed after their answer, or given up", "outcome")
        self.kept = self._counter("kept", "Batches of vectors put into store and log, or lost", "outcome")
        self.events = self._counter("events", "Engagements taken in", "outcome")
        self.refused = self._counter("refused", "Requests and connections refused", "reason")
        self.swaps = self._counter("swaps", "Newer models loaded, or not", "outcome")
        self.waiting = self._gauge("waiting", "Jobs that wait", "lane")
        self.connections = self._gauge("connections", "Open connections")
        self.watermark = self._gauge("watermark_seconds", "Watermark of the snapshot in use, seconds since 1970")

    def value(self, name: str, **labels: str) -> float:
        """A metric's value, 0 where it has none yet; counters end in ``_total``."""
        return self.registry.get_sample_value(f"{NAMESPACE}_{name}", labels) or 0.0

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(name, meaning, labels, namespace=NAMESPACE, registry=self.registry)

    def _gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        return Gauge(name, meaning, labels, namespace=NAMESPACE, registry=self.registry)

    def _histogram(self, name: str, meaning: str, *labels: str) -> Histogram:
        return Histogram(name, meaning, labels, namespace=NAMESPACE, registry=self.registry, buckets=SECONDS)
