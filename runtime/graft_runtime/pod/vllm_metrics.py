"""What gateways and load balancers read of a model server, by vLLM's names.

https://gateway-api-inference-extension.sigs.k8s.io/guides/implementers/,
https://docs.vllm.ai/en/stable/usage/metrics/: names, labels and what they mean.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Gauge, Histogram

from graft_runtime.messages import Occupancy

_MODEL = "model_name"
_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
_BETWEEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
_WHOLE = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0)


@dataclass(frozen=True)
class Load:
    """What a pod is doing right now."""

    occupancy: Occupancy
    capacity_tokens: int | None
    """That keys and values may be kept of; None before the base serves."""
    most_adapters: int
    """That may be mounted at once."""
    running_adapters: Sequence[str]
    """Asked for, and mounted."""
    waiting_adapters: Sequence[str]
    """Asked for, and not mounted yet."""


class VllmMetrics:
    """The metrics of one pod by these names.

    Args:
        registry: to enter them in.
        model: the name of the base model, or of the merge.
    """

    def __init__(self, registry: CollectorRegistry, model: str) -> None:
        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"vllm:{name}", text, [_MODEL], registry=registry).labels(model)

        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"vllm:{name}_seconds", text, [_MODEL], registry=registry, buckets=buckets).labels(model)

        self._running = gauge("num_requests_running", "Requests in the running batch.")
        self._waiting = gauge("num_requests_waiting", "Requests that wait for a place in it.")
        self._usage = gauge("kv_cache_usage_perc", "The share of the room for keys and values that is reserved.")
        labels = ["max_lora", "running_lora_adapters", "waiting_lora_adapters"]
        self._adapters = Gauge(
            "vllm:lora_requests_info", "Adapters that are asked for, by Unix time.", labels, registry=registry
        )
        self.first = histogram("time_to_first_token", "From a request's arrival to its first text.", _FIRST)
        self.between = histogram("inter_token_latency", "Between pieces of text of one answer.", _BETWEEN)
        self.whole = histogram("e2e_request_latency", "From a request's arrival to its end.", _WHOLE)

    def show(self, load: Load) -> None:
        """Set what is read of the present."""
        self._running.set(load.occupancy.running)
        self._waiting.set(load.occupancy.waiting)
        self._usage.set(load.occupancy.reserved / load.capacity_tokens if load.capacity_tokens else 0)
        self._adapters.clear()
        named = (",".join(load.running_adapters), ",".join(load.waiting_adapters))
        self._adapters.labels(str(load.most_adapters), *named).set(time.time())
