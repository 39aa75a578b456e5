"""What departs from OpenAI's published schema, as the types of its client hold it, in an answer."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

ALWAYS_THERE = {
    "Choice": {"logprobs"},
    "CompletionChoice": {"logprobs"},
    "ChatCompletionMessage": {"content", "refusal"},
    "ChatCompletionTokenLogprob": {"bytes"},
    "TopLogprob": {"bytes"},
    "ErrorObject": {"code", "param"},
}
"""Fields that OpenAI's schema requires and that may be null; the client's types let them be left out."""


def departures(kind: type[BaseModel], answer: bytes, extensions: Collection[str] = ()) -> list[str]:
    """Return each field that is missing, unknown or of another type, by its path.

    Args:
        kind: the client's type.
        answer: JSON.
        extensions: unknown fields that may be there.
    """
    try:
        read = kind.model_validate_json(answer, strict=True)
    except ValidationError as error:
        return [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
    return [path for path in _departures(read, "") if path.rpartition(".")[2] not in extensions]


def _departures(read: Any, path: str) -> Iterator[str]:
    if isinstance(read, list):
        for item in read:
            yield from _departures(item, f"{path}[]")
    if isinstance(read, BaseModel):
        yield from (f"{path}.{name}" for name in read.model_extra or ())
        for name in ALWAYS_THERE.get(type(read).__name__, set()) - read.model_fields_set:
            yield f"{path}.{name} is missing"
        for name in read.model_fields_set & type(read).model_fields.keys():
            yield from _departures(getattr(read, name), f"{path}.{name}")
