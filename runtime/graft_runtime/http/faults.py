"""Faults as HTTP answers in OpenAI's shape."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from graft_runtime.contract.wire import Fault
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.http.streaming import ClientGoneError

RETRY_AFTER_SECONDS = 2

_TYPES = {401: "authentication_error", 404: "not_found_error", 500: "server_error", 503: "service_unavailable"}


def error_body(error: GraftError) -> dict[str, Any]:
    """Return `{"error": {message, type, param, code}}`."""
    kind = _TYPES.get(error.code.http_status, "invalid_request_error")
    return {"error": {"message": error.message, "type": kind, "param": error.field, "code": error.code.value}}


def error_response(error: GraftError) -> JSONResponse:
    """Return the answer of the API port."""
    status = error.code.http_status
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if status == 503 else {}
    return JSONResponse(error_body(error), status, headers)


def fault_response(error: GraftError) -> JSONResponse:
    """Return the answer of the control port: a Fault."""
    return JSONResponse(Fault.of(error).model_dump(mode="json", by_alias=True), error.code.http_status)


async def read_body(request: Request, limit: int) -> bytes:
    """Read the request's body.

    Raises:
        GraftError: InvalidRequest, when it is over `limit` bytes.
        ClientGoneError: before it was whole.
    """
    content = bytearray()
    try:
        async for chunk in request.stream():
            content += chunk
            if len(content) > limit:
                raise GraftError(
                    ErrorCode.INVALID_REQUEST,
                    f"the request's body has more than {limit} bytes",
                    hint="send less at once",
                )
    except ClientDisconnect:
        raise ClientGoneError from None
    return bytes(content)
