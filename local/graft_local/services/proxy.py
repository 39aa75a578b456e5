"""The proxy: follows Services and pods, listens and forwards."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from graft_process_node.kube.api_client import ApiClient, JsonObject
from graft_process_node.kube.event_recorder import EventRecorder
from graft_process_node.kube.reflector import Reflector

from graft_local.services.connection import forward
from graft_local.services.routes import Address, Route, make_routes, unsupported_parts

_log = logging.getLogger(__name__)
_RETRY_SECONDS = 1.0


async def run(kubeconfig: Path) -> None:
    """Route every ClusterIP Service of the cluster, until cancelled.

    Args:
        kubeconfig: of an identity that may watch Services and pods and create events.
    """
    async with ApiClient(kubeconfig) as client:
        proxy = _Proxy(client)
        try:
            await proxy.run()
        finally:
            await proxy.close()


class _Proxy:
    def __init__(self, client: ApiClient) -> None:
        self._recorder = EventRecorder(client, "service-proxy")
        self._services = Reflector(client, "/api/v1/services", self._service_changed)
        self._pods = Reflector(client, "/api/v1/pods", lambda *_: self._dirty.set())
        self._dirty = asyncio.Event()
        self._routes: dict[Address, Route] = {}
        self._listeners: dict[Address, asyncio.Server] = {}
        self._turns: dict[Address, int] = {}
        self._connections: set[asyncio.Task[None]] = set()
        self._faults: set[Address] = set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for duty in (self._recorder, self._services, self._pods):
                group.create_task(duty.run())
            await self._services.listed.wait()
            await self._pods.listed.wait()
            while True:
                await self._dirty.wait()
                self._dirty.clear()
                self._routes = make_routes(self._services.objects.values(), self._pods.objects.values())
                if not await self._match_listeners():
                    asyncio.get_running_loop().call_later(_RETRY_SECONDS, self._dirty.set)

    async def close(self) -> None:
        """Stop listening, and break off what is open."""
        for server in self._listeners.values():
            server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _service_changed(self, _before: JsonObject | None, service: JsonObject | None) -> None:
        self._dirty.set()
        if service is None:
            return
        parts = unsupported_parts(service)
        if parts and parts != (unsupported_parts(_before) if _before else []):
            self._warn(service, "Unsupported", f"not done by this cluster's proxy: {', '.join(parts)}")

    def _warn(self, service: JsonObject, reason: str, message: str) -> None:
        self._recorder.report(service, reason, message, warning=True, kind="Service")

    async def _match_listeners(self) -> bool:
        """Listen where a route begins and nowhere else; open connections go on.

        Returns:
            Whether every route has its listener.
        """
        for address in self._listeners.keys() - self._routes.keys():
            self._listeners.pop(address).close()
            self._turns.pop(address, None)
        complete = True
        for address in self._routes.keys() - self._listeners.keys():
            try:
                self._listeners[address] = await asyncio.start_server(partial(self._accept, address), *address)
                self._faults.discard(address)
            except OSError as error:
                complete = False
                self._report(address, error)
        return complete

    def _report(self, address: Address, error: OSError) -> None:
        if address in self._faults:
            return
        self._faults.add(address)
        _log.warning("can't listen on %s:%d: %s", *address, error)
        service = self._services.objects.get(self._routes[address].service_uid)
        if service is not None:
            self._warn(service, "ListenFailed", f"can't listen on {address[0]}:{address[1]}: {error}")

    def _accept(self, address: Address, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(forward(reader, writer, self._in_turn(address)))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    def _in_turn(self, address: Address) -> Sequence[Address]:
        """The targets, beginning with the next one in turn; the others stand by."""
        route = self._routes.get(address)
        targets = route.targets if route else ()
        if not targets:
            return ()
        turn = self._turns.get(address, 0) % len(targets)
        self._turns[address] = turn + 1
        return (*targets[turn:], *targets[:turn])
