"""What Prometheus reads. Labels are bounded: names of the catalogue only, and not endlessly many."""

from __future__ import annotations

from collections import Counter as CountOf
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from graft_runtime.contract.status import AdapterReport
from graft_runtime.messages import Dropped, Tier, Unmounted
from graft_runtime.pod.adapters import AdapterEvent
from graft_runtime.pod.vllm_metrics import Load, VllmMetrics

disable_created_metrics()  # a line of each counter and histogram that nobody reads

MAX_NAMES = 200
OTHER = "other"
COMPOSED = "composed"
"""The label of requests that name several adapters."""
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)


class Metrics:
    """The metrics of one pod.

    Args:
        model: the name of the base model, or of the merge.
    """

    def __init__(self, model: str) -> None:
        self.registry = CollectorRegistry()
        self.vllm = VllmMetrics(self.registry, model)
        self._names: set[str] = set()
        self.requests = self._counter("requests", "Requests answered.", ["adapter", "route", "status"])
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts.", ["adapter"])
        self.known_tokens = self._counter(
            "known_prompt_tokens", "Tokens of prompts that were kept from earlier requests.", ["adapter"]
        )
        self.generated_tokens = self._counter("generated_tokens", "Tokens generated.", ["adapter"])
        self.key_requests = self._counter("key_requests", "Requests answered, by API key.", ["key", "status"])
        self.key_tokens = self._counter("key_tokens", "Tokens by API key.", ["key", "kind"])
        self.first_token_seconds = Histogram(
            "graft_first_token_seconds",
            "From the request's arrival to its first text.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.step_seconds = Histogram(
            "graft_step_seconds", "One step of the engine.", buckets=_STEP_SECONDS, registry=self.registry
        )
        self.adapter_hits = self._counter("adapter_hits", "Adapters of requests, by where each was found.", ["tier"])
        self.adapter_evictions = self._counter("adapter_evictions", "Adapters that made room for others.", ["tier"])
        self.adapter_wait_seconds = Histogram(
            "graft_adapter_wait_seconds",
            "From a request's arrival until its adapter is mounted.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._running = self._gauge("running_sequences", "Sequences in the running batch.")
        self._waiting = self._gauge("waiting_sequences", "Sequences that wait for a place in it.")
        self._reserved = self._gauge("reserved_tokens", "Tokens for which keys and values are reserved.")
        self._adapters = Gauge("graft_adapters", "Adapters of the catalogue.", ["state"], registry=self.registry)

    def _counter(self, name: str, text: str, labels: list[str]) -> Counter:
        return Counter(f"graft_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"graft_{name}", text, registry=self.registry)

    def label(self, name: str | None, *, known: bool) -> str:
        """Return the label for an adapter or base model: its name, or `other` for strangers and past the limit."""
        if name is None or not known:
            return OTHER
        if name not in self._names and len(self._names) >= MAX_NAMES:
            return OTHER
        self._names.add(name)
        return name

    def lent(self, tier: Tier | None, seconds: float) -> None:
        """Count an adapter that a request got: the tier that it was in, and the seconds until it was mounted."""
        self.adapter_hits.labels(tier or "source").inc()
        self.adapter_wait_seconds.observe(seconds)

    def count_evictions(self, event: AdapterEvent) -> None:
        """Count the adapters that have made room for others, by the tier that they left."""
        if isinstance(event, Dropped):
            self.adapter_evictions.labels("host").inc(len(event.digests))
        elif isinstance(event, Unmounted) and event.tier is not None:
            self.adapter_evictions.labels("device").inc()

    def render(self, reports: Iterable[AdapterReport], load: Load) -> bytes:
        """Return the text that Prometheus scrapes."""
        self.vllm.show(load)
        occupancy = load.occupancy
        self._running.set(occupancy.running)
        self._waiting.set(occupancy.waiting)
        self._reserved.set(occupancy.reserved)
        self._adapters.clear()
        for state, count in CountOf(report.state.value for report in reports).items():
            self._adapters.labels(state).set(count)
        text: bytes = generate_latest(self.registry)
        return text
