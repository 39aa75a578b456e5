"""What a chat template takes as the content of a message: text, or parts as the models that take images have it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any

from graft_runtime.errors import GraftError

Messages = Sequence[Mapping[str, Any]]
PROBE = "graft-probe-1d9f"
"""A text that no template has of its own, and that none has reason to change."""


class ContentFormat(Enum):
    """The form of `content` in which a template shows a user's text."""

    TEXT = "text"
    PARTS = "parts"
    NONE = "none"
    """In no form: the template drops the text."""


def content_format(render: Callable[[Messages], str]) -> ContentFormat:
    """Find out by rendering in which form of `content` the text of a user's message reaches the prompt.

    A template that fails on both forms is taken for one of text: the request's own messages tell what is wrong.

    Args:
        render: messages → the prompt; it may raise whatever the template raises.

    Raises:
        GraftError: the template's, which can't be rendered at all.
    """
    as_text = _shows(render, ContentFormat.TEXT)
    if as_text:
        return ContentFormat.TEXT
    as_parts = _shows(render, ContentFormat.PARTS)
    if as_parts:
        return ContentFormat.PARTS
    return ContentFormat.TEXT if as_text is None and as_parts is None else ContentFormat.NONE


def in_format(messages: Messages, form: ContentFormat) -> list[dict[str, Any]]:
    """Return the messages with their contents, all of them text, in this form."""
    if form is not ContentFormat.PARTS:
        return [dict(message) for message in messages]
    return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]


def texts_in(value: Any) -> Iterator[str]:
    """Yield all text in a value of JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from (key, *texts_in(each))
    elif isinstance(value, Sequence):
        for each in value:
            yield from texts_in(each)


def with_texts(value: Any, change: Callable[[str], str]) -> Any:
    """Return a value of JSON with all of its text changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(key): with_texts(each, change) for key, each in value.items()}
    if isinstance(value, Sequence):
        return [with_texts(each, change) for each in value]
    return value


def _shows(render: Callable[[Messages], str], form: ContentFormat) -> bool | None:
    """Tell whether the probe is in the prompt; None where the template fails."""
    try:
        return PROBE in render(in_format([{"role": "user", "content": PROBE}], form))
    except GraftError:
        raise
    except Exception:  # whatever a stranger's template raises
        return None
