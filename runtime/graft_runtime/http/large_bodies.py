"""Parses large bodies, those of many values in a process each: it holds up nobody, and its memory ends with it."""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Callable
from typing import Any

import msgspec

from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.http.bodies import Parsed, holds_more, invalid, parse_body, parse_object_body
from graft_runtime.threads import Threads
from graft_runtime.tokenizing.worker import TakesTooMuchError, Workers, limit_processor

FEW_VALUES = 1 << 14
"""Parsed within milliseconds, in which no other thread of this process goes on."""
PARSE_SECONDS = 10
"""Of a processor, for one body."""
MEMORY_BYTES = 2 << 30
_ROUTES = ("completions", "chat", "tokens", "classify", "embeddings", "relevance", "responses")
"""Modules with what large bodies are checked by: imported before the process forks."""


class _Answer(msgspec.Struct):
    value: bytes | None = None
    """The JSON object, in MessagePack; without it there is a fault."""
    code: str = ""
    what: str = ""
    hint: str | None = None
    field: str | None = None


class LargeBodies:
    """Parses bodies one by one for their memory: those of few values, and beside them those of many."""

    def __init__(self) -> None:
        self._few, self._many = Threads(1, "parse"), Threads(1, "parse-many")
        self._workers = Workers(__name__, memory_bytes=MEMORY_BYTES)

    async def parse(self, content: bytes, build: Callable[[dict[str, Any]], Parsed]) -> Parsed:
        """Return the body that these bytes hold.

        Args:
            content: of the request.
            build: as `parse_body` has it: a function of a module, or a method of its class.

        Raises:
            GraftError: InvalidRequest, UnsupportedParameter; NoCapacity, when no process can be started.
        """
        if not holds_more(content, (b",", b"[", b"{", b"\\"), FEW_VALUES):
            return await self._few.run(parse_body, content, build)
        return build(await self._many.run(self._checked, content, build))

    def _checked(self, content: bytes, build: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """Return the JSON object of which a process of its own could build a body."""
        try:
            told = self._workers.ask_once(pickle.dumps((content, build)))
        except TakesTooMuchError as error:
            what = f"the request's body takes more time or memory than one may: {error}"
            raise invalid(None, what, "send less at once") from None
        answer = msgspec.msgpack.decode(told, type=_Answer)
        if answer.value is None:
            raise GraftError(ErrorCode(answer.code), answer.what, hint=answer.hint, field=answer.field)
        return msgspec.msgpack.decode(answer.value, type=dict[str, Any])


def answerer() -> Callable[[bytes], bytes]:
    """Return what answers questions, for the process of a body."""
    for name in _ROUTES:
        importlib.import_module(f"graft_runtime.http.routes.{name}")

    def answered(question: bytes) -> bytes:
        limit_processor(PARSE_SECONDS)
        content, build = pickle.loads(question)  # noqa: S301 - the pod's own
        try:
            value = parse_object_body(content)
            build(value)
            return msgspec.msgpack.encode(_Answer(msgspec.msgpack.encode(value)))
        except GraftError as error:
            return msgspec.msgpack.encode(_Answer(None, error.code, error.what, error.hint, error.field))
        except OverflowError:
            fault = invalid(None, "the request's body holds an integer of more than 64 bits", "send a smaller one")
            return msgspec.msgpack.encode(_Answer(None, fault.code, fault.what, fault.hint))

    return answered
