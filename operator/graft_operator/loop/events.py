"""Events about pools and Adapters: as many as somebody reads."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from graft_operator import metrics
from graft_operator.clients.cluster import Cluster, ConflictError, RejectedError, UnavailableError
from graft_operator.clients.shares import Pace
from graft_operator.decisions.conditions import timestamp
from graft_operator.decisions.observed import AdapterView, PoolView
from graft_operator.decisions.transitions import Transition
from graft_operator.objects import build_event

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Events:
    """Writes Events."""

    cluster: Cluster
    clock: Callable[[], float]
    """Unix seconds."""
    paces: tuple[Pace, Pace, Pace] = field(default_factory=lambda: (Pace(25, 0.1), Pace(200, 5.0), Pace(1000, 50.0)))
    """How many there may be about one object, in one namespace, and in all: at once, and a second."""

    async def write(self, view: PoolView | AdapterView, transition: Transition) -> None:
        """Log a transition, and write the Event about it unless there are too many; nothing fails with it."""
        logger.info("%s: %s: %s", view, transition.reason, " ".join(transition.message.split()))
        keys = (view.uid, view.namespace, None)
        if not all(pace.may(key) for pace, key in zip(self.paces, keys, strict=True)):
            metrics.DROPPED_EVENTS.inc()
            return
        event = build_event(
            view.key,
            view.uid,
            kind=transition.kind,
            reason=transition.reason,
            message=transition.message,
            at=timestamp(self.clock()),
        )
        try:
            await self.cluster.create(event)
        except (ConflictError, RejectedError, UnavailableError) as error:
            logger.warning("%s: the event %s was not written: %s", view, transition.reason, error)
