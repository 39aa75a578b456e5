"""GET /v1/models, and Graft's own list of adapters."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from graft_runtime.answering.models import Models
from graft_runtime.contract.facts import AdapterFacts
from graft_runtime.contract.status import AdapterReport
from graft_runtime.http.callers import caller_of
from graft_runtime.messages import Tier
from graft_runtime.pod.adapters import Adapters


def models_router(models: Models, adapters: Adapters, context: Callable[[], int | None]) -> APIRouter:
    """Return the routes.

    Args:
        models: the names that requests use.
        adapters: those of the pod.
        context: returns how many tokens prompt and answer may have; None: not known yet.
    """
    router = APIRouter()
    created = int(time.time())

    def card(name: str) -> dict[str, Any]:
        parent = None if name == models.served else models.served
        described = {"id": name, "object": "model", "created": created, "owned_by": "graft"}
        return described | {"root": name, "parent": parent, "max_model_len": context()}

    @router.get("/v1/models")
    async def list_models(request: Request) -> Response:
        caller = caller_of(request)
        return JSONResponse({"object": "list", "data": [card(name) for name in models if caller.may_use(name)]})

    @router.get("/v1/models/{name:path}")
    async def get_model(name: str, request: Request) -> Response:
        caller_of(request).check(name, "model")
        models.check_known(name)
        return JSONResponse(card(name))

    @router.get("/v1/adapters")
    async def list_adapters(request: Request) -> Response:
        names = filter(caller_of(request).may_use, adapters.names())
        reports = [(adapters.report(name), adapters.tier(name)) for name in names]
        data = [_described(report, tier) for report, tier in reports if report is not None]
        return JSONResponse({"object": "list", "data": data})

    return router


def _described(report: AdapterReport, tier: Tier | None) -> dict[str, Any]:
    return {
        "name": report.name,
        "digest": report.digest,
        "state": report.state.value,
        "tier": tier,
        "bytes": report.bytes,
        **(dict.fromkeys(AdapterFacts.model_fields) if report.facts is None else report.facts.model_dump(mode="json")),
        "error": report.fault.model_dump(mode="json") if report.fault is not None else None,
    }
