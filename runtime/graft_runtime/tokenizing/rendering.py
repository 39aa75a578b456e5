"""Chat templates, rendered in a process for each: one may ask for all time and memory that there is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.tokenizing.spawner import Spawner, spawner
from graft_runtime.tokenizing.template_content import Messages
from graft_runtime.tokenizing.worker import TakesTooMuchError, Workers, limit_processor

RENDER_SECONDS = 5
"""Of a processor, for one conversation."""
MAX_CHARACTERS = 16 << 20
"""Of one rendered conversation."""
MEMORY_BYTES = 1 << 30
MAX_PROCESSES = 16
"""Of templates that were rendered lately."""


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
    """Renders conversations, one at a time with each template. To be called from threads."""

    def __init__(self, seconds: int = RENDER_SECONDS, parent: Spawner = spawner) -> None:
        self._seconds = seconds
        self._workers = Workers(__name__, memory_bytes=MEMORY_BYTES, most=MAX_PROCESSES, parent=parent)

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
        try:
            content = self._workers.ask(template, msgspec.msgpack.encode(asked))
        except TakesTooMuchError as error:
            raise _unsafe(str(error)) from None
        answer = msgspec.msgpack.decode(content, type=_Answer)
        if answer.unsafe:
            self._workers.give_up(template)
            raise _unsafe(answer.fault or "")
        if answer.fault is not None:
            raise TemplateFaultError(answer.fault)
        return answer.text

    @property
    def process_ids(self) -> list[int]:
        """Return the ids of the processes, that of the last template at the end."""
        return self._workers.process_ids

    def start(self) -> None:
        """Make ready, so that the first conversation does not wait for what is imported."""
        self._workers.start()

    def close(self) -> None:
        """End the processes; the next conversation starts another."""
        self._workers.close()


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


def answerer() -> Callable[[bytes], bytes]:
    """Return what answers questions, for the process of a template."""
    from transformers.utils.chat_template_utils import render_jinja_template  # noqa: PLC0415 - in the spawner alone

    def answered(question: bytes) -> bytes:
        asked = msgspec.msgpack.decode(question, type=_Question)
        return msgspec.msgpack.encode(_rendered(asked, render_jinja_template))

    return answered
