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
        self.user_cache = self._counter("user_cache", "Histories for the foundation model, kept or not", "outcome")
        self.user_cache_bytes = self._gauge("user_cache_bytes", "Encoded histories that are kept")
        self.without = self._counter("answers_without_foundation", "Answers by experts without embeddings")
        self.store_failures = self._counter("store_failures", "Reads that the online store did not answer in time")
        self.behind = self._counter("behind", "Requests computed after their answer, or given up", "outcome")
        self.kept = self._counter("kept", "Batches of vectors put into store and log, or lost", "outcome")
        self.events = self._counter("events", "Engagements taken in", "outcome")
        self.stream_behind = self._gauge(
            "stream_behind_seconds", "How long ago all was known that the followed topic held", "topic"
        )
        self.refused = self._counter("refused", "Requests and connections refused", "reason")
        self.swaps = self._counter("swaps", "Newer models loaded, or not", "outcome")
        self.loaded = self._counter("precision_models", "Models made compact, or not", "model", "outcome")
        self.answered = self._counter("precision_answers", "Batches answered by compact models", "model", "kernels")
        self.watched = self._counter("precision_watched", "Of those, batches scored in float32 too", "model")
        self.strayed = self._counter("precision_strayed", "Compact models given up for float32", "model")
        self.ne_cost = self._gauge("precision_ne_cost_percent", "Expected change of NE over watched batches", "model")
        self.layer_error = self._gauge(
            "precision_layer_error", "Expected relative error of a layer, by moments of live traffic", "model", "layer"
        )
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
