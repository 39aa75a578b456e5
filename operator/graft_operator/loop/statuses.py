"""Writes the statuses of pools and Adapters that changed, and the Events about what turned."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import reduce

from graft_operator.clients.cluster import Cluster, ConflictError, RejectedError
from graft_operator.clients.shares import Pace
from graft_operator.decisions.attached_status import AttachedReport
from graft_operator.decisions.conditions import Reason
from graft_operator.decisions.observed import AdapterView, PoolView
from graft_operator.decisions.readers import read_adapter, read_pool
from graft_operator.decisions.transitions import Transition, attached_transitions
from graft_operator.decisions.undeclared import definition_outdated, undeclared_fields, without
from graft_operator.keys import ObjectKey
from graft_operator.kinds import ADAPTER, KINDS
from graft_operator.loop.events import Events
from graft_operator.loop.raced import RacedError
from graft_operator.loop.store import Store
from graft_operator.objects import KubernetesObject, build_status_body
from graft_operator.resource import AdapterDeploymentStatus, AttachedAdapterStatus

Status = AdapterDeploymentStatus | AttachedAdapterStatus
REPAIRS_AT_ONCE, REPAIRS_A_SECOND = 5, 1 / 60
"""Of one object: who changes it again and again must not have us write as often."""
WRITES_AT_ONCE = 8
"""Of the Adapters of one pool."""


@dataclass
class StatusMemory:
    """What is remembered of a pool's statuses between passes."""

    reported: dict[ObjectKey, Status] = field(default_factory=dict)
    """Each status as it was after it was written last."""
    undeclared: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Kind → fields of its status that the CustomResourceDefinition does not know."""


@dataclass(frozen=True)
class Statuses:
    """Writes statuses, each where it is another one than is there."""

    cluster: Cluster
    store: Store
    events: Events
    repairs: Pace
    """How often what others change is set right."""

    async def report(
        self, view: PoolView, status: AdapterDeploymentStatus, transitions: Iterable[Transition], memory: StatusMemory
    ) -> None:
        """Write the status of a pool.

        Raises:
            RacedError, UnavailableError: run the pass again.
        """
        if await self._write(view, status, memory):
            for transition in transitions:
                await self.events.write(view, transition)

    async def report_attached(self, reports: Iterable[AttachedReport], memory: StatusMemory) -> None:
        """Write the statuses of Adapters, several at once.

        Raises:
            RacedError, UnavailableError: run the pass again; the others were written.
        """
        changed = [report for report in reports if report.is_news]
        room = asyncio.Semaphore(WRITES_AT_ONCE)

        async def write(report: AttachedReport) -> None:
            async with room:
                if await self._write(report.view, report.status, memory):
                    for transition in attached_transitions(report.view.status, report.status):
                        await self.events.write(report.view, transition)

        ended = await asyncio.gather(*map(write, changed), return_exceptions=True)
        for error in (outcome for outcome in ended if isinstance(outcome, BaseException)):
            raise error

    async def _write(self, view: PoolView | AdapterView, status: Status, memory: StatusMemory) -> bool:
        """Write a status; return False where nothing was written."""
        if status == view.status or self._is_contested(view, memory):
            return False
        return await self._apply(view, build_status_body(view.key, view.resource_version, status), memory)

    async def _apply(self, view: PoolView | AdapterView, body: KubernetesObject, memory: StatusMemory) -> bool:
        """Apply a status, as far as the CustomResourceDefinition knows it; return False where the object is gone."""
        kind = view.key.kind
        try:
            answer = await self.cluster.apply_status(body)
        except ConflictError as error:
            raise RacedError(f"the status was not written: {error}") from error
        except RejectedError as error:
            if error.status == 404:
                return False
            fields = undeclared_fields(str(error))
            known = reduce(without, fields, body)
            if known == body:
                raise
            if fields != memory.undeclared.get(kind):
                memory.undeclared[kind] = fields
                await self.events.write(view, definition_outdated(KINDS[kind], fields))
            return await self._apply(view, known, memory)
        self.store.put(kind, answer, mark=False)
        memory.reported[view.key] = (read_adapter if kind == ADAPTER.name else read_pool)(answer).status
        return True

    def _is_contested(self, view: PoolView | AdapterView, memory: StatusMemory) -> bool:
        """Tell whether somebody else writes the status again and again, or tells of it: ours waits then."""
        if memory.reported.get(view.key) in (None, view.status):
            return False
        key = view.uid, "status"
        if self.repairs.wait(key):
            return True
        told = any(condition.reason == Reason.CONTESTED for condition in view.status.conditions)
        self.repairs.count(key, REPAIRS_AT_ONCE if told else 1)
        return False
