"""Asks every request of a port for its key, before anything else looks at it."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from graft_runtime.answering.callers import ANYBODY, Caller
from graft_runtime.errors import GraftError
from graft_runtime.http.api_keys import ApiKeys
from graft_runtime.http.faults import error_response
from graft_runtime.pod.metrics import OTHER, Metrics

_CALLER = "graft.caller"


class WithCaller:
    """Lets a request through that has a key, and says whose it is. A route that is added later has no way round it.

    Args:
        app: what answers.
        keys: in force; None: the pool asks for none.
        metrics: count requests by key.
    """

    def __init__(self, app: ASGIApp, keys: ApiKeys | None, metrics: Metrics) -> None:
        self._app, self._keys, self._metrics = app, keys, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._keys is None:
            await self._app({**scope, _CALLER: ANYBODY}, receive, send)
            return
        authorization = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        name = OTHER

        async def counting(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                self._metrics.key_requests.labels(name, str(message["status"])).inc()
            await send(message)

        try:
            caller = self._keys.caller(authorization.decode("latin-1"))
            name = caller.name or OTHER
            self._keys.count(caller)
        except GraftError as error:
            await error_response(error)(scope, receive, counting)
            return
        await self._app({**scope, _CALLER: caller}, receive, counting)


def caller_of(request: Request) -> Caller:
    """Return who sent a request."""
    caller: Caller = request.scope[_CALLER]
    return caller
