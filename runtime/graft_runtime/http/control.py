"""The control port: what the operator says and asks, and what other pods ask. See `contract` for the messages."""

from __future__ import annotations

import asyncio
import math
from typing import TypeVar

from fastapi import APIRouter, Depends, Request, Response
from pydantic import ValidationError

from graft_runtime.contract.adapter_set import AdapterSet
from graft_runtime.contract.control import (
    Accepted,
    InspectRequest,
    Peers,
    Resolution,
    ResolveRequest,
    checkpoint_audience,
)
from graft_runtime.contract.wire import Fault, Message
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.http.checkpoints import checkpoints_router
from graft_runtime.http.control_tokens import check_token
from graft_runtime.http.reading import Bodies
from graft_runtime.pod.pod import Pod
from graft_runtime.threads import Threads

MAX_SET_BYTES = 64 << 20
MAX_RESOLVE_BYTES = 64 << 10
MAX_WAIT_SECONDS = 60.0
RESOLVE_SECONDS = 20.0
INSPECT_SECONDS = 20.0

Asked = TypeVar("Asked", bound=Message)


def control_router(pod: Pod) -> APIRouter:
    """Return the routes of one pod's control port, each behind its token."""

    threads = Threads(2, "control")  # adapters' files may keep others busy

    sets, questions = Bodies(MAX_SET_BYTES, 2 * MAX_SET_BYTES), Bodies(MAX_RESOLVE_BYTES, MAX_SET_BYTES)

    def opened_by(audience: str) -> APIRouter:
        async def authenticated(request: Request) -> None:
            authorization = request.headers.get("authorization")
            await threads.run(check_token, authorization, pod.places.keys, audience)

        return APIRouter(dependencies=[Depends(authenticated)])

    router = opened_by(pod.uid)

    @router.put("/adapter-set")
    async def put_adapter_set(request: Request) -> Response:
        async with sets.read(request) as body:
            version = await pod.sets.accept(await threads.run(_parse, AdapterSet, body))
        return _json(Accepted(boot_id=pod.boot_id, adapter_set=version))

    @router.get("/status")
    async def get_status(request: Request) -> Response:
        query = request.query_params
        since, wait = _number(query.get("since"), -1), _number(query.get("wait"), 0)
        status = await pod.board.poll(query.get("boot", ""), int(since), min(max(wait, 0), MAX_WAIT_SECONDS))
        return Response(status_code=204) if status is None else _json(status)

    @router.post("/resolve")
    async def post_resolve(request: Request) -> Response:
        async with questions.read(request) as body:
            asked = _parse(ResolveRequest, body)
        return _json(await _resolve(pod, asked))

    @router.put("/peers")
    async def put_peers(request: Request) -> Response:
        async with questions.read(request) as body:
            pod.peers.introduce(_parse(Peers, body))
        return Response(status_code=204)

    @router.post("/inspect")
    async def post_inspect(request: Request) -> Response:
        async with questions.read(request) as body:
            asked = _parse(InspectRequest, body)
        try:
            async with asyncio.timeout(INSPECT_SECONDS):
                return _json(await pod.dry_run.inspect(asked.source))
        except TimeoutError:
            raise GraftError(
                ErrorCode.NOT_READY, f"`{asked.source.uri}` is still on its way", hint="ask again"
            ) from None

    checkpoints = opened_by(checkpoint_audience(pod.uid))
    checkpoints.include_router(checkpoints_router(pod))
    both = APIRouter()
    both.include_router(router)
    both.include_router(checkpoints)
    return both


async def _resolve(pod: Pod, asked: ResolveRequest) -> Resolution:
    try:
        async with asyncio.timeout(RESOLVE_SECONDS):
            cached = await pod.fetches.resolve(asked.source, "adapter")
    except TimeoutError:
        return Resolution()
    except GraftError as error:
        return Resolution(fault=Fault.of(error))
    return Resolution(digest=cached.digest, revision=cached.revision)


def _parse(model: type[Asked], body: bytes) -> Asked:
    try:
        return model.read(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(map(str, first["loc"]))
        raise GraftError(
            ErrorCode.INVALID_REQUEST, f"the body is no {model.__name__}: `{path}`: {first['msg']}", field=path
        ) from None


def _number(text: str | None, default: float) -> float:
    try:
        number = float(text) if text is not None else default
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise GraftError(ErrorCode.INVALID_REQUEST, f"{text!r} is not a number")
    return number


def _json(message: Message) -> Response:
    return Response(message.canonical_json(), media_type="application/json")
