"""What `/metrics` says, in Prometheus' text: counts and times by adapter, and the engine's state under the names vLLM gave it.

Labels are bounded: an adapter is named by its resolved version, never by what a client wrote.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from lorimer.serving.records import CANCELLED, RequestRecord
from lorimer.serving.worker import EngineWorker

TTFT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
LATENCY_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
NO_ADAPTER = "none"


class Metrics:
    """The counters of one server."""

    def __init__(self, worker: EngineWorker) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("lorimer_requests", "Requests by how they ended", ["adapter", "outcome"], registry=self.registry)
        self.prompt_tokens = Counter("lorimer_prompt_tokens", "Tokens read", ["adapter"], registry=self.registry)
        self.generated_tokens = Counter("lorimer_generated_tokens", "Tokens written", ["adapter"], registry=self.registry)
        self.ttft = Histogram("lorimer_ttft_seconds", "Time to the first token", ["adapter"], buckets=TTFT_BUCKETS, registry=self.registry)
        self.latency = Histogram(
            "lorimer_latency_seconds", "Time to the whole answer", ["adapter"], buckets=LATENCY_BUCKETS, registry=self.registry
        )
        gauges = {
            "lorimer_requests_running": ("Sequences in the batch", lambda: worker.num_running),
            "lorimer_requests_waiting": ("Sequences that wait", lambda: worker.num_waiting),
            "lorimer_adapters_resident": ("Adapters in memory", lambda: worker.num_resident),
            "vllm:num_requests_running": ("Sequences in the batch", lambda: worker.num_running),
            "vllm:num_requests_waiting": ("Sequences that wait", lambda: worker.num_waiting),
            "vllm:kv_cache_usage_perc": ("Share of the cache in use, 1 is all", lambda: worker.cache_usage),
        }
        for name, (help_text, read) in gauges.items():
            Gauge(name, help_text, registry=self.registry).set_function(read)

    def observe(self, record: RequestRecord) -> None:
        """Count a request that has ended."""
        adapter = record.adapter or NO_ADAPTER
        self.requests.labels(adapter, outcome_of(record.status)).inc()
        self.prompt_tokens.labels(adapter).inc(record.num_prompt_tokens)
        self.generated_tokens.labels(adapter).inc(record.num_generated_tokens)
        if record.ttft_seconds is not None:
            self.ttft.labels(adapter).observe(record.ttft_seconds)
        if record.status < 400:
            self.latency.labels(adapter).observe(record.latency_seconds)

    def count_invalid(self) -> None:
        """Count a request that was not understood."""
        self.requests.labels(NO_ADAPTER, "refused").inc()

    def to_text(self) -> bytes:
        """Prometheus' exposition format."""
        return generate_latest(self.registry)


def outcome_of(status: int) -> str:
    """`ok`, `cancelled`, `refused` or `failed`: few words, since each is a label."""
    if status == CANCELLED:
        return "cancelled"
    return "ok" if status < 400 else "refused" if status < 500 else "failed"
