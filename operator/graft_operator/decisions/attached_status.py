"""The status of an Adapter, with its conditions, and the Events about what turned."""

from __future__ import annotations

from dataclasses import dataclass

from graft_operator.decisions.adapter_status import is_ready, passes
from graft_operator.decisions.conditions import ConditionType, Reason, Verdict, dated
from graft_operator.decisions.observed import AdapterView, Failure
from graft_operator.decisions.verdicts import Verdicts
from graft_operator.resource import AdapterStatus, AttachedAdapterStatus


@dataclass(frozen=True)
class AttachedReport:
    """What is to be told of an Adapter."""

    view: AdapterView
    """As it was observed."""
    status: AttachedAdapterStatus

    @property
    def is_news(self) -> bool:
        """Tell whether something else was told last."""
        return self.status is not self.view.status and self.status != self.view.status


def served(view: AdapterView, adapter: AdapterStatus, now: float) -> AttachedReport:
    """Tell of an Adapter that its pool answers for, or is to.

    Args:
        adapter: what is true of it on the pool's pods.
        now: Unix seconds.
    """
    fields = dict(adapter)
    same = all(getattr(view.status, name) == value for name, value in fields.items())
    return _dated(view, view.status if same else AttachedAdapterStatus(**fields), now)


def refused(view: AdapterView, failure: Failure, now: float) -> AttachedReport:
    """Tell of an Adapter that no pool answers for."""
    status = AttachedAdapterStatus(
        name=view.served_name, history=view.status.history, reason=failure.reason, message=failure.message
    )
    return _dated(view, status, now)


def kept(view: AdapterView, failure: Failure, now: float) -> AttachedReport:
    """Tell of an Adapter whose pool can't be looked at: what was known of it stays."""
    update = {"name": view.served_name, "reason": failure.reason, "message": failure.message}
    return _dated(view, view.status.model_copy(update=update), now)


def _dated(view: AdapterView, status: AttachedAdapterStatus, now: float) -> AttachedReport:
    conditions = dated(_verdicts(status), view.status.conditions, view.generation, now)
    before = view.status
    if status is before and conditions == before.conditions and view.generation == before.observed_generation:
        return AttachedReport(view, before)
    update = {"observed_generation": view.generation, "conditions": conditions}
    return AttachedReport(view, status.model_copy(update=update))


def _verdicts(status: AdapterStatus) -> Verdicts:
    ready = _ready(status)
    waits = status.reason is not None and (passes(status) or status.reason == Reason.POOL_NOT_FOUND)
    stalled = status.reason is not None and not waits
    answered = Verdict(True, Reason.ADAPTER_SERVED, f"{status.ready_replicas} pods answer under `{status.name}`")
    return (
        (ConditionType.AVAILABLE, answered if status.ready_replicas else Verdict(False, ready.reason, ready.message)),
        (ConditionType.READY, ready),
        (
            ConditionType.RECONCILING,
            Verdict(True, ready.reason, ready.message) if waits else Verdict(False, Reason.SETTLED),
        ),
        (
            ConditionType.STALLED,
            Verdict(True, ready.reason, ready.message) if stalled else Verdict(False, Reason.NO_FAULT),
        ),
    )


def _ready(status: AdapterStatus) -> Verdict:
    if status.reason is not None:
        return Verdict(False, status.reason, status.message or "")
    if is_ready(status):
        return Verdict(True, Reason.ALL_READY, f"ready on {status.ready_replicas} of {status.desired_replicas} pods")
    return Verdict(False, Reason.SCALED_TO_ZERO, "spec.replicas of its AdapterDeployment is 0")
