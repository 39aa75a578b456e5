"""Whether an engine can do what an adapter or a request asks of it: decided before a weight is read."""

from __future__ import annotations

from graft_runtime.contract.facts import AdapterFacts
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.messages import Capabilities


def adapter_fault(name: str, facts: AdapterFacts, engine: Capabilities) -> GraftError | None:
    """Return why an engine can't compute with an adapter; None when it can.

    Args:
        name: how errors call the adapter.
        facts: of the adapter.
        engine: what the engine of the pool is capable of.
    """
    foreign = sorted(facts.deltas - engine.deltas)
    if not foreign:
        return None
    return GraftError(
        ErrorCode.UNSUPPORTED_METHOD,
        f"adapter `{name}` ({facts.method}) can't be served on this engine: it does not compute {', '.join(foreign)}",
        hint=f"train one of {', '.join(sorted(engine.deltas))} only, or serve it from a pool with another engine",
    )


def weight_fault(name: str, weight: float, engine: Capabilities) -> GraftError | None:
    """Return why an engine can't serve an adapter with a weight; None when it can."""
    if weight == 1 or engine.weights:
        return None
    return GraftError(
        ErrorCode.NOT_SCALABLE,
        f"adapter `{name}` has weight {weight:g}, and this engine serves adapters with weight 1 alone",
        hint="leave scale and weight out (1), or serve it from a pool with another engine",
    )
