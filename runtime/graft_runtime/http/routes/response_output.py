"""The items of an answer of /v1/responses, and the events that tell of them as they come."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

from graft_runtime.answering.answers import Piece
from graft_runtime.answering.calls import CallPart

Event = dict[str, Any]
_TEXTS = {"message": "output_text", "reasoning": "reasoning_text"}
"""Of items with one part of text: the type of the part."""
_PREFIXES = {"message": "msg_", "reasoning": "rs_", "function_call": "fc_"}


class OutputItems:
    """Makes items of the pieces of one answer."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        """Those that are whole, and last the one that is being told."""
        self._open = False
        """The last one is being told."""

    def push(self, piece: Piece) -> list[Event]:
        """Take a piece; return what it changes."""
        return [*self._pushed(piece)]

    def close(self, status: str) -> list[Event]:
        """End the item that is being told, if there is one, with this status; return what that changes."""
        return [*self._closed(status)]

    def _pushed(self, piece: Piece) -> Iterator[Event]:
        if piece.reasoning:
            yield from self._said("reasoning", piece.reasoning)
        if piece.text:
            yield from self._said("message", piece.text)
        for part in piece.calls:
            yield from self._called(part)

    def _said(self, kind: str, text: str) -> Iterator[Event]:
        logprobs: dict[str, Any] = {"logprobs": []} if kind == "message" else {}
        if not self._open or self.items[-1]["type"] != kind:
            more: dict[str, Any] = {"role": "assistant"} if kind == "message" else {"summary": []}
            yield from self._begun({"type": kind, "content": []} | more)
            part = {"type": _TEXTS[kind], "text": ""} | logprobs | ({"annotations": []} if kind == "message" else {})
            self.items[-1]["content"].append(part)
            yield self._told("response.content_part.added", content_index=0, part=dict(part))
        self.items[-1]["content"][0]["text"] += text
        yield self._told(f"response.{_TEXTS[kind]}.delta", content_index=0, delta=text, **logprobs)

    def _called(self, part: CallPart) -> Iterator[Event]:
        if part.name is not None:
            yield from self._begun({"type": "function_call", "call_id": part.id, "name": part.name, "arguments": ""})
        if part.arguments:
            self.items[-1]["arguments"] += part.arguments
            yield self._told("response.function_call_arguments.delta", delta=part.arguments)

    def _begun(self, item: dict[str, Any]) -> Iterator[Event]:
        yield from self._closed("completed")
        self._open = True
        self.items.append({"id": _PREFIXES[item["type"]] + uuid.uuid4().hex, "status": "in_progress"} | item)
        yield self._of_item("response.output_item.added")

    def _closed(self, status: str) -> Iterator[Event]:
        if not self._open:
            return
        self._open, item = False, self.items[-1]
        item["status"] = status
        if item["type"] == "function_call":
            yield self._told("response.function_call_arguments.done", arguments=item["arguments"])
        else:
            part = item["content"][0]
            logprobs: dict[str, Any] = {"logprobs": []} if item["type"] == "message" else {}
            yield self._told(f"response.{part['type']}.done", content_index=0, text=part["text"], **logprobs)
            yield self._told("response.content_part.done", content_index=0, part=dict(part))
        yield self._of_item("response.output_item.done")

    def _of_item(self, kind: str) -> Event:
        item = self.items[-1]
        parts = {"content": [dict(part) for part in item["content"]]} if "content" in item else {}
        return {"type": kind, "output_index": len(self.items) - 1, "item": item | parts}

    def _told(self, kind: str, **fields: Any) -> Event:
        return {"type": kind, "item_id": self.items[-1]["id"], "output_index": len(self.items) - 1} | fields
