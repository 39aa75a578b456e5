"""What the operator counts: its passes, its requests, and how its pools are."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from graft_operator.resource import AdapterDeploymentStatus

REGISTRY = CollectorRegistry()
PASSES = Counter("graft_operator_passes", "Passes over pools", ["result"], registry=REGISTRY)
PASS_SECONDS = Histogram(
    "graft_operator_pass_seconds",
    "How long a pass takes",
    registry=REGISTRY,
    buckets=(0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0),
)
REQUESTS = Counter(
    "graft_operator_requests",
    "Requests to the API server; watches and what keeps the lease are not counted",
    ["method", "status"],
    registry=REGISTRY,
)
UNREADABLE = Counter(
    "graft_operator_unreadable_objects",
    "Objects and events that were left out, for they can't be read",
    ["kind"],
    registry=REGISTRY,
)
DROPPED_EVENTS = Counter(
    "graft_operator_dropped_events", "Events that were not written, for there were too many", registry=REGISTRY
)
LEADING = Gauge("graft_operator_leading", "1 where this operator leads; 0: it stands by", registry=REGISTRY)
OBSERVED = Gauge(
    "graft_operator_observed_timestamp_seconds",
    "Unix time at which a pass had ended over each pool that was there at the start; 0: not yet",
    registry=REGISTRY,
)
CONDITIONS = Gauge(
    "graft_pool_condition", "1 where the condition is True", ["namespace", "name", "condition"], registry=REGISTRY
)
ADAPTERS = Gauge(
    "graft_pool_adapters",
    "Adapters of a pool: desired, ready, failed",
    ["namespace", "name", "state"],
    registry=REGISTRY,
)
CONDITION_TYPES = ("Available", "Ready", "Reconciling", "Stalled")
ADAPTER_STATES = ("desired", "ready", "failed")


def set_pool(namespace: str, name: str, status: AdapterDeploymentStatus) -> None:
    """Set the gauges of a pool."""
    for condition in status.conditions:
        CONDITIONS.labels(namespace, name, condition.type).set(condition.status == "True")
    for state in ADAPTER_STATES:
        ADAPTERS.labels(namespace, name, state).set(getattr(status.adapter_counts, state))


def forget_pool(namespace: str, name: str) -> None:
    """Drop the gauges of a pool that is gone."""
    for condition in CONDITION_TYPES:
        CONDITIONS.remove_by_labels({"namespace": namespace, "name": name, "condition": condition})
    for state in ADAPTER_STATES:
        ADAPTERS.remove_by_labels({"namespace": namespace, "name": name, "state": state})


def exposition() -> bytes:
    """Return all metrics in Prometheus' text format."""
    return bytes(generate_latest(REGISTRY))
