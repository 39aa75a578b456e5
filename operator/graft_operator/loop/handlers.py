"""Kopf keeps the watches, nothing else: no finalizers, daemons, timers, indexes, peering, and no state in our objects.

It connects, connects again, and asks for credentials; what is on the streams goes past it, to `feed`.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import kopf

from graft_operator.clients.access import Access
from graft_operator.clients.watch_session import Feed, WatchSession
from graft_operator.kinds import watched_kinds
from graft_operator.settings import Settings

SERVER_TIMEOUT_SECONDS = 240  # an int: it goes into the URL
CLIENT_TIMEOUT_SECONDS = 300.0
CONNECT_TIMEOUT_SECONDS = 10.0
REQUEST_TIMEOUT_SECONDS = 30.0
SAME_CREDENTIALS_SECONDS = 1.0
"""After credentials that were refused, until they are tried once more."""
ERROR_BACKOFFS = (0.2, 0.5, 1.0, 2.0, 3.0)


async def watch(
    settings: Settings,
    *,
    access: Callable[[], Awaitable[Access]],
    feed: Feed,
    on_started: Callable[[], None],
    stop: asyncio.Event,
) -> None:
    """Watch until `stop` is set.

    Args:
        access: the credentials, asked for again when the API server refuses them.
        on_started: called once, after kopf took the signal handlers: take them back for a fast and orderly end.
    """
    namespaces = list(settings.watch_namespaces)
    others = asyncio.all_tasks()
    tasks = await kopf.spawn_tasks(
        registry=make_registry(access, feed, namespaces),
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
    settings.networking.request_timeout = REQUEST_TIMEOUT_SECONDS
    settings.networking.connect_timeout = CONNECT_TIMEOUT_SECONDS
    settings.networking.error_backoffs = ERROR_BACKOFFS
    settings.watching.server_timeout = SERVER_TIMEOUT_SECONDS
    settings.watching.client_timeout = CLIENT_TIMEOUT_SECONDS
    settings.watching.connect_timeout = CONNECT_TIMEOUT_SECONDS
    settings.queueing.exit_timeout = 0.5
    for kind in watched_kinds():
        if kind.selector is not None:
            settings.watching.label_selectors[kind.group, kind.version, kind.plural] = kind.selector
    return settings


def make_registry(
    access: Callable[[], Awaitable[Access]], feed: Feed, namespaces: Sequence[str]
) -> kopf.OperatorRegistry:
    """Return kopf's handlers: one for the credentials, and for each watched kind one that makes kopf watch it."""
    registry = kopf.OperatorRegistry()
    last: Access | None = None

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.AiohttpSession:
        nonlocal last
        current = await access()
        if current == last:
            await asyncio.sleep(SAME_CREDENTIALS_SECONDS)
        last = current
        information = kopf.ConnectionInfo(
            server=current.server,
            ca_path=current.ca_path,
            insecure=not current.verify,
            scheme="Bearer" if current.token else None,
            token=current.token,
            certificate_path=current.certificate_path,
            private_key_path=current.private_key_path,
        )
        headers, encryption = information.as_http_headers(), information.as_ssl_context()
        session = WatchSession(feed, tuple(namespaces) or (None,), headers, encryption)
        return kopf.AiohttpSession(server=current.server, aiohttp_session=cast("Any", session))

    for kind in watched_kinds():
        kopf.on.event(kind.group, kind.version, kind.plural, registry=registry, id=f"watch-{kind.name}")(_nothing)
    return registry


async def _nothing(**_: Any) -> None:
    """Do nothing: no event comes this far."""
