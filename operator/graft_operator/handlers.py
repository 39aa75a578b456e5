"""Kopf delivers events, nothing else: no finalizers, daemons, timers, indexes, peering, and no state in our objects."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import kopf

from graft_operator.api import GROUP, KIND, PLURAL, VERSION
from graft_operator.cluster import Access
from graft_operator.settings import Settings
from graft_operator.sync import WATCHED_KINDS, selector_for

OnEvent = Callable[[str, str | None, Mapping[str, Any]], None]

SERVER_TIMEOUT_SECONDS = 240  # an int: it goes into the URL
CLIENT_TIMEOUT_SECONDS = 300.0
CONNECT_TIMEOUT_SECONDS = 10.0
REQUEST_TIMEOUT_SECONDS = 30.0
ERROR_BACKOFFS = (0.2, 0.5, 1.0, 2.0, 3.0)

# Kind → group, version, plural.
RESOURCES = {
    KIND: (GROUP, VERSION, PLURAL),
    "ConfigMap": ("", "v1", "configmaps"),
    "Deployment": ("apps", "v1", "deployments"),
    "NetworkPolicy": ("networking.k8s.io", "v1", "networkpolicies"),
    "Pod": ("", "v1", "pods"),
    "PodDisruptionBudget": ("policy", "v1", "poddisruptionbudgets"),
    "Service": ("", "v1", "services"),
}


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
        registry=_registry(access, on_event),
        settings=_settings(),
        clusterwide=not namespaces,
        namespaces=namespaces,
        standalone=True,
        stop_flag=stop,
    )
    on_started()
    await kopf.run_tasks(tasks, ignored=others)


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.scanning.disabled = True
    settings.networking.request_timeout = REQUEST_TIMEOUT_SECONDS
    settings.networking.connect_timeout = CONNECT_TIMEOUT_SECONDS
    settings.networking.error_backoffs = ERROR_BACKOFFS
    settings.watching.server_timeout = SERVER_TIMEOUT_SECONDS
    settings.watching.client_timeout = CLIENT_TIMEOUT_SECONDS
    settings.watching.connect_timeout = CONNECT_TIMEOUT_SECONDS
    settings.queueing.exit_timeout = 0.5
    for kind in WATCHED_KINDS:
        selector = selector_for(kind)
        if selector is not None:
            settings.watching.label_selectors[RESOURCES[kind]] = selector
    return settings


def _registry(access: Callable[[], Awaitable[Access]], on_event: OnEvent) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        found = await access()
        return kopf.ConnectionInfo(
            server=found.server,
            ca_path=found.ca_path,
            insecure=not found.verify,
            scheme="Bearer" if found.token else None,
            token=found.token,
            certificate_path=found.certificate_path,
            private_key_path=found.private_key_path,
        )

    for kind in WATCHED_KINDS:
        _deliver(registry, kind, on_event)
    return registry


def _deliver(registry: kopf.OperatorRegistry, kind: str, on_event: OnEvent) -> None:
    @kopf.on.event(*RESOURCES[kind], registry=registry, id=f"event-{kind}")
    async def deliver(type: str | None, body: kopf.Body, **_: Any) -> None:  # noqa: A002 - kopf's name
        on_event(kind, type, body)
