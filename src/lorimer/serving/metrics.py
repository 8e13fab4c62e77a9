"""What `/metrics` says, in Prometheus' text: counts and times by adapter, and the engine's state under the names vLLM gave it.

Labels are bounded: an adapter is named by its resolved version, never by what a client wrote; tenants are those the operator made, and
beyond the first hundred that come they count together.
"""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from lorimer.serving.backend import Backend
from lorimer.serving.records import CANCELLED, RequestRecord

TTFT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
LATENCY_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
NO_ADAPTER, COMPOSED = "none", "composed"
NO_TENANT, OTHER_TENANTS, MAX_TENANTS = "none", "other", 100


class Metrics:
    """The counters of one server."""

    def __init__(self, worker: Backend, *, names: Callable[[], Mapping[str, str]] = dict) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("lorimer_requests", "Requests by how they ended", ["adapter", "outcome"], registry=self.registry)
        self.prompt_tokens = Counter("lorimer_prompt_tokens", "Tokens read", ["adapter"], registry=self.registry)
        self.generated_tokens = Counter("lorimer_generated_tokens", "Tokens written", ["adapter"], registry=self.registry)
        self.ttft = Histogram("lorimer_ttft_seconds", "Time to the first token", ["adapter"], buckets=TTFT_BUCKETS, registry=self.registry)
        self.latency = Histogram(
            "lorimer_latency_seconds", "Time to the whole answer", ["adapter"], buckets=LATENCY_BUCKETS, registry=self.registry
        )
        self.tenant_requests = Counter(
            "lorimer_tenant_requests", "Requests by how they ended", ["tenant", "outcome"], registry=self.registry
        )
        self.tenant_tokens = Counter("lorimer_tenant_tokens", "Tokens read and written", ["tenant"], registry=self.registry)
        self.limited = Counter("lorimer_limited_requests", "Requests over a limit", ["tenant", "limit"], registry=self.registry)
        self.unauthenticated = Counter("lorimer_unauthenticated_requests", "Requests without a key that opens", registry=self.registry)
        self._tenants = set[str]()
        gauges = {
            "lorimer_requests_running": ("Sequences in the batch", lambda: worker.num_running),
            "lorimer_requests_waiting": ("Sequences that wait", lambda: worker.num_waiting),
            "lorimer_adapters_resident": ("Adapters in memory", lambda: worker.num_resident),
            "lorimer_adapters_quarantined": ("Adapters that failed their proof", lambda: list(worker.proofs.values()).count(False)),
            "vllm:num_requests_running": ("Sequences in the batch", lambda: worker.num_running),
            "vllm:num_requests_waiting": ("Sequences that wait", lambda: worker.num_waiting),
            "vllm:kv_cache_usage_perc": ("Share of the cache in use, 1 is all", lambda: worker.cache_usage),
            **worker.gauges,
        }
        for name, (help_text, read) in gauges.items():
            self.watch(name, help_text, read)
        self.registry.register(ProofCollector(worker, names))

    def watch(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """A number that is looked at when it is asked for."""
        Gauge(name, help_text, registry=self.registry).set_function(read)

    def observe(self, record: RequestRecord) -> None:
        """Count a request that has ended."""
        adapter = COMPOSED if record.is_composed else record.adapter or NO_ADAPTER
        self.requests.labels(adapter, outcome_of(record.status)).inc()
        self.prompt_tokens.labels(adapter).inc(record.num_prompt_tokens)
        self.generated_tokens.labels(adapter).inc(record.num_generated_tokens)
        if record.ttft_seconds is not None:
            self.ttft.labels(adapter).observe(record.ttft_seconds)
        if record.status < 400:
            self.latency.labels(adapter).observe(record.latency_seconds)
        if record.tenant:
            self.tenant_requests.labels(self._tenant(record.tenant), outcome_of(record.status)).inc()
            self.tenant_tokens.labels(self._tenant(record.tenant)).inc(record.num_prompt_tokens + record.num_generated_tokens)

    def count_invalid(self) -> None:
        """Count a request that was not understood."""
        self.requests.labels(NO_ADAPTER, "refused").inc()

    def count_limited(self, tenant: str, limit: str) -> None:
        """Count a request that was over one of its tenant's limits."""
        self.limited.labels(self._tenant(tenant), limit).inc()

    def count_unauthenticated(self) -> None:
        """Count a request that showed no key, or one that does not open."""
        self.unauthenticated.inc()

    def to_text(self) -> bytes:
        """Prometheus' exposition format."""
        return generate_latest(self.registry)

    def _tenant(self, tenant: str) -> str:
        """A tenant's label."""
        if len(self._tenants) < MAX_TENANTS:
            self._tenants.add(tenant)
        return (tenant or NO_TENANT) if tenant in self._tenants else OTHER_TENANTS


class ProofCollector(Collector):
    """Whether each adapter in memory or in quarantine answers as it did when it was registered; `names` gives their versions by digest."""

    def __init__(self, worker: Backend, names: Callable[[], Mapping[str, str]]) -> None:
        self.worker, self.names = worker, names

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """One gauge, looked at when it is asked for."""
        family = GaugeMetricFamily("lorimer_adapter_proof", "1 if it answers as it did when it was registered", labels=["adapter"])
        proofs = self.worker.proofs
        names = self.names() if proofs else {}
        for digest, is_proved in proofs.items():
            family.add_metric([names.get(digest, digest[:12])], float(is_proved))
        yield family


def outcome_of(status: int) -> str:
    """`ok`, `cancelled`, `refused` or `failed`: few words, since each is a label."""
    if status == CANCELLED:
        return "cancelled"
    return "ok" if status < 400 else "refused" if status < 500 else "failed"
