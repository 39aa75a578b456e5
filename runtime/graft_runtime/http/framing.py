"""Requests whose framing two servers may read in two ways: refused before a route sees them."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.http.faults import error_response

_TWO_LENGTHS = GraftError(
    ErrorCode.INVALID_REQUEST,
    "the request has `Content-Length` and `Transfer-Encoding`: it may end in two places",
    hint="send one of them",
)


class OneLength:
    """Refuses a request that tells its length in two ways, and ends its connection: what follows may be anything."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        names = {name for name, _ in scope.get("headers", ())}
        if not names >= {b"content-length", b"transfer-encoding"}:
            await self._app(scope, receive, send)
            return
        answer = error_response(_TWO_LENGTHS)
        answer.headers["connection"] = "close"
        await answer(scope, receive, send)
