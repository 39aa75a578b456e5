"""Kopf delivers events, nothing else: no finalizers, daemons, timers, indexes, peering, and no state in our objects."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, cast

import kopf

from graft_operator.clients.cluster import Access
from graft_operator.kinds import Kind, watched_kinds
from graft_operator.settings import Settings

OnEvent = Callable[[str, str | None, Mapping[str, Any]], None]

SERVER_TIMEOUT_SECONDS = 240  # an int: it goes into the URL
CLIENT_TIMEOUT_SECONDS = 300.0
CONNECT_TIMEOUT_SECONDS = 10.0
REQUEST_TIMEOUT_SECONDS = 30.0
WORKER_IDLE_SECONDS = 0.2  # kopf has a task for each object that told something lately: thousands at a start
ERROR_BACKOFFS = (0.2, 0.5, 1.0, 2.0, 3.0)


async def watch(
    settings: Settings,
    *,
    access: Callable[[], Awaitable[Access]],
    on_event: OnEvent,
    on_started: Callable[[], None],
    stop: asyncio.Event,
) -> None:
    """Deliver events until `stop` is set.

    Args:
        access: the credentials, asked for again when the API server refuses them.
        on_event: kind, type (ADDED, MODIFIED, DELETED; None where a watch lists anew), object.
        on_started: called once, after kopf took the signal handlers: take them back for a fast and orderly end.
    """
    namespaces = list(settings.watch_namespaces)
    others = asyncio.all_tasks()
    tasks = await kopf.spawn_tasks(
        registry=make_registry(access, on_event),
        settings=_settings(),
        clusterwide=not namespaces,
        namespaces=namespaces,
        standalone=True,
        # Kopf's own would ask for the user's name, which a uid of Kubernetes' choice has not.
        identity=cast("Any", f"graft-operator@{socket.gethostname()}"),
        stop_flag=stop,
    )
    on_started()
    await kopf.run_tasks(tasks, ignored=others)


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.scanning.disabled = True
    settings.persistence.diffbase_storage = _NoDiffBase()
    settings.networking.request_timeout = REQUEST_TIMEOUT_SECONDS
    settings.networking.connect_timeout = CONNECT_TIMEOUT_SECONDS
    settings.networking.error_backoffs = ERROR_BACKOFFS
    settings.watching.server_timeout = SERVER_TIMEOUT_SECONDS
    settings.watching.client_timeout = CLIENT_TIMEOUT_SECONDS
    settings.watching.connect_timeout = CONNECT_TIMEOUT_SECONDS
    settings.queueing.exit_timeout = 0.5
    settings.queueing.idle_timeout = WORKER_IDLE_SECONDS
    for kind in watched_kinds():
        if kind.selector is not None:
            settings.watching.label_selectors[kind.group, kind.version, kind.plural] = kind.selector
    return settings


class _NoDiffBase(kopf.DiffBaseStorage):
    """Keeps nothing: kopf would else copy each object, to find differences that nobody asked for."""

    def build(self, *, body: kopf.Body, extra_fields: Iterable[kopf.FieldSpec] | None = None) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        return None


def make_registry(access: Callable[[], Awaitable[Access]], on_event: OnEvent) -> kopf.OperatorRegistry:
    """Return kopf's handlers: one for the credentials, one for each watched kind."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        current = await access()
        return kopf.ConnectionInfo(
            server=current.server,
            ca_path=current.ca_path,
            insecure=not current.verify,
            scheme="Bearer" if current.token else None,
            token=current.token,
            certificate_path=current.certificate_path,
            private_key_path=current.private_key_path,
        )

    for kind in watched_kinds():
        _deliver(registry, kind, on_event)
    return registry


def _deliver(registry: kopf.OperatorRegistry, kind: Kind, on_event: OnEvent) -> None:
    @kopf.on.event(kind.group, kind.version, kind.plural, registry=registry, id=f"event-{kind.name}")
    async def deliver(event: kopf.RawEvent, **_: Any) -> None:
        # The plain dictionary: kopf's view of it resolves every access from the root.
        on_event(kind.name, event["type"], event["object"])
