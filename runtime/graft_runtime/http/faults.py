"""Faults as HTTP answers in OpenAI's shape."""

from __future__ import annotations

import math
from typing import Any

from fastapi.responses import JSONResponse

from graft_runtime.contract.wire import Fault
from graft_runtime.errors import ErrorCode, GraftError

RETRY_AFTER_SECONDS = 2
"""Where nothing better is known."""
LONGEST_RETRY_AFTER_SECONDS = 60
"""OpenAI's clients go by their own time where they are told a longer one."""
_CODES = {ErrorCode.CONTEXT_TOO_LONG: "context_length_exceeded", ErrorCode.UNKNOWN_MODEL: "model_not_found"}
"""What OpenAI calls the faults by which clients choose another way, as LiteLLM and LangChain do."""

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable",
}


def error_body(error: GraftError) -> dict[str, Any]:
    """Return `{"error": {message, type, param, code}}`."""
    kind = _TYPES.get(error.code.http_status, "invalid_request_error")
    code = _CODES.get(error.code, error.code.value)
    return {"error": {"message": error.message, "type": kind, "param": error.field, "code": code}}


def error_response(error: GraftError) -> JSONResponse:
    """Return the answer of the API port."""
    status = error.code.http_status
    seconds = math.ceil(min(error.retry_after or RETRY_AFTER_SECONDS, LONGEST_RETRY_AFTER_SECONDS))
    headers = {"Retry-After": str(seconds)} if status in {429, 503} else {}
    headers |= {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    return JSONResponse(error_body(error), status, headers)


def fault_response(error: GraftError) -> JSONResponse:
    """Return the answer of the control port: a Fault."""
    return JSONResponse(Fault.of(error).model_dump(mode="json", by_alias=True), error.code.http_status)
