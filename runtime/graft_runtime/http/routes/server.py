"""What clients and gateways ask about the server itself: /health, /ping, /version."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.pod.pod import Pod


def server_router(pod: Pod) -> APIRouter:
    """Return the routes."""
    router = APIRouter()

    @router.get("/health")
    @router.get("/ping")
    @router.post("/ping")
    async def health() -> Response:
        """Tell whether this pod answers, with an empty 200, as /readyz on the probe port."""
        if not pod.ready:
            raise GraftError(ErrorCode.NOT_READY, "this pod does not answer yet", hint="try again later")
        return Response()

    @router.get("/version")
    async def get_version() -> Response:
        return JSONResponse({"version": version("graft-runtime")})

    return router
