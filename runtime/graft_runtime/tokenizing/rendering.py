"""Chat templates, rendered in a process of their own: one may ask for all time and memory that there is.

`python -m graft_runtime.tokenizing.rendering` is that process. It reads questions and writes an answer to each.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.tokenizing.template_content import Messages
from graft_runtime.tokenizing.worker import LOST, Worker, limit_processor, serve

RENDER_SECONDS = 5
"""Of a processor, for one conversation."""
MAX_CHARACTERS = 16 << 20
"""Of one rendered conversation."""
UNSAFE_SECONDS = 60.0
"""So long a template that has ended its process is not tried again."""


class TemplateOptions(msgspec.Struct, frozen=True):
    """How a conversation ends, and what else its template is told."""

    answer_begins: bool = True
    """The assistant's answer is to begin: `add_generation_prompt`."""
    last_goes_on: bool = False
    """The last message is to be gone on with: `continue_final_message`."""
    values: dict[str, str | int | float | bool | None] = {}
    """Variables of the template: `chat_template_kwargs`."""
    tools: list[dict[str, Any]] = []
    """That the answer may call, as OpenAI has them."""


ANSWER_BEGINS = TemplateOptions()


class _Question(msgspec.Struct):
    template: str
    messages: list[dict[str, Any]]
    named: dict[str, str]
    seconds: int
    options: TemplateOptions


class _Answer(msgspec.Struct):
    text: str = ""
    fault: str | None = None
    unsafe: bool = False


class TemplateFaultError(Exception):
    """What a template said against its messages."""


class Renderer:
    """Renders one conversation at a time. To be called from threads."""

    def __init__(self, seconds: int = RENDER_SECONDS) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._worker = Worker(__name__)
        self._unsafe: dict[str, float] = {}
        """Templates that have ended their process, and until when they are not tried."""

    def render(
        self, template: str, messages: Messages, named: Mapping[str, str], options: TemplateOptions = ANSWER_BEGINS
    ) -> str:
        """Return the prompt.

        Args:
            template: in Jinja, run in its sandbox.
            messages: of the conversation.
            named: `bos_token` and its like → text.
            options: see TemplateOptions.

        Raises:
            GraftError: UnsafeFile, when the template takes too much.
            TemplateFaultError: whatever else it raises.
        """
        asked = _Question(template, [*map(dict, messages)], dict(named), self._seconds, options)
        question = msgspec.msgpack.encode(asked)
        with self._lock:
            if time.monotonic() < self._unsafe.get(template, 0.0):
                raise _unsafe("it did so a moment ago")
            try:
                answer = msgspec.msgpack.decode(self._worker.ask(question), type=_Answer)
            except LOST as error:
                answer = _Answer(fault=str(error), unsafe=True)
            if answer.unsafe:
                self._unsafe = {known: end for known, end in self._unsafe.items() if end > time.monotonic()}
                self._unsafe[template] = time.monotonic() + UNSAFE_SECONDS
                raise _unsafe(answer.fault or "")
        if answer.fault is not None:
            raise TemplateFaultError(answer.fault)
        return answer.text

    @property
    def process_id(self) -> int | None:
        """Return the id of the process; None while there is none."""
        return self._worker.process_id

    def start(self) -> None:
        """Start the process, so that the first conversation does not wait for what it imports."""
        with self._lock:
            self._worker.start()

    def close(self) -> None:
        """End the process; the next conversation starts another."""
        self._worker.close()


def _unsafe(why: str) -> GraftError:
    return GraftError(
        ErrorCode.UNSAFE_FILE,
        f"the chat template takes more time, memory or text than one may: {why}",
        hint="give the checkpoint another chat_template.jinja, or send the whole prompt to /v1/completions",
    )


def _rendered(question: _Question, render_jinja_template: Callable[..., Any]) -> _Answer:
    limit_processor(question.seconds)
    try:
        (text,), _ = render_jinja_template(
            conversations=[question.messages],
            chat_template=question.template,
            add_generation_prompt=question.options.answer_begins,
            continue_final_message=question.options.last_goes_on,
            tools=question.options.tools or None,
            **question.options.values | question.named,
        )
    except MemoryError:
        return _Answer(fault="memory", unsafe=True)
    except Exception as error:  # whatever a stranger's template raises
        return _Answer(fault=str(error)[:MAX_CHARACTERS] or type(error).__name__)
    if len(text) > MAX_CHARACTERS:
        return _Answer(fault=f"{len(text)} characters of text", unsafe=True)
    return _Answer(str(text))


def _serve() -> None:
    from transformers.utils.chat_template_utils import render_jinja_template  # noqa: PLC0415 - in this process alone

    def answered(question: bytes) -> bytes:
        asked = msgspec.msgpack.decode(question, type=_Question)
        return msgspec.msgpack.encode(_rendered(asked, render_jinja_template))

    serve(answered)


if __name__ == "__main__":
    _serve()
