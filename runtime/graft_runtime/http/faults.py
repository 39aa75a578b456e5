"""Faults as HTTP answers in OpenAI's shape."""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse

from graft_runtime.contract.wire import Fault
from graft_runtime.errors import GraftError

RETRY_AFTER_SECONDS = 2

_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable",
}


def error_body(error: GraftError) -> dict[str, Any]:
    """Return `{"error": {message, type, param, code}}`."""
    kind = _TYPES.get(error.code.http_status, "invalid_request_error")
    return {"error": {"message": error.message, "type": kind, "param": error.field, "code": error.code.value}}


def error_response(error: GraftError) -> JSONResponse:
    """Return the answer of the API port."""
    status = error.code.http_status
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if status in {429, 503} else {}
    return JSONResponse(error_body(error), status, headers)


def fault_response(error: GraftError) -> JSONResponse:
    """Return the answer of the control port: a Fault."""
    return JSONResponse(Fault.of(error).model_dump(mode="json", by_alias=True), error.code.http_status)
