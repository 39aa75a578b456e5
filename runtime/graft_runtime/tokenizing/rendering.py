"""Chat templates, rendered in a process of their own: one may ask for all time and memory that there is.

`python -m graft_runtime.tokenizing.rendering` is that process. It reads questions and writes an answer to each.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import IO, Any

import msgspec

from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.messages import FRAME_HEADER_BYTES, frame
from graft_runtime.one_shot import bound_memory
from graft_runtime.tokenizing.template_content import Messages

RENDER_SECONDS = 5
"""Of a processor, for one conversation."""
SILENT_SECONDS = 60.0
"""Until the process is given up for lost."""
START_SECONDS = 300.0
"""The same for its first answer, with a processor that others use."""
MEMORY_BYTES = 1 << 30
MAX_CHARACTERS = 16 << 20
"""Of one rendered conversation."""
UNSAFE_SECONDS = 60.0
"""So long a template that has ended its process is not tried again."""


class _Question(msgspec.Struct):
    template: str
    messages: list[dict[str, Any]]
    named: dict[str, str]
    seconds: int


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
        self._process: subprocess.Popen[bytes] | None = None
        self._answered = False
        """Whether the process has answered anything: it imports for seconds first."""
        self._unsafe: dict[str, float] = {}
        """Templates that have ended their process, and until when they are not tried."""

    def render(self, template: str, messages: Messages, named: Mapping[str, str]) -> str:
        """Return the prompt, ready for the assistant's answer.

        Args:
            template: in Jinja, run in its sandbox.
            messages: of the conversation.
            named: `bos_token` and its like → text.

        Raises:
            GraftError: UnsafeFile, when the template takes too much.
            TemplateFaultError: whatever else it raises.
        """
        question = msgspec.msgpack.encode(_Question(template, [*map(dict, messages)], dict(named), self._seconds))
        with self._lock:
            if time.monotonic() < self._unsafe.get(template, 0.0):
                raise _unsafe("it did so a moment ago")
            try:
                answer = self._ask(question)
            except (EOFError, OSError, TimeoutError) as error:
                self.close()
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
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the process, so that the first conversation does not wait for what it imports."""
        with self._lock:
            self._started()

    def close(self) -> None:
        """End the process; the next conversation starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _ask(self, question: bytes) -> _Answer:
        process = self._started()
        deadline = time.monotonic() + (SILENT_SECONDS if self._answered else START_SECONDS)
        assert process.stdin is not None
        assert process.stdout is not None
        _write(process.stdin, question)
        source = process.stdout.fileno()
        length = int.from_bytes(_read(source, FRAME_HEADER_BYTES, deadline), "big")
        answer = msgspec.msgpack.decode(_read(source, length, deadline), type=_Answer)
        self._answered = True
        return answer

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            pipe = subprocess.PIPE
            self._process = subprocess.Popen([sys.executable, "-m", __name__], stdin=pipe, stdout=pipe, bufsize=0)
            self._answered = False
            bound_memory(self._process.pid, MEMORY_BYTES)
        return self._process


def _unsafe(why: str) -> GraftError:
    return GraftError(
        ErrorCode.UNSAFE_FILE,
        f"the chat template takes more time, memory or text than one may: {why}",
        hint="give the checkpoint another chat_template.jinja, or send the whole prompt to /v1/completions",
    )


def _write(target: IO[bytes], content: bytes) -> None:
    rest = memoryview(frame(content))
    while rest:
        rest = rest[os.write(target.fileno(), rest) :]


def _read(source: int, size: int, deadline: float | None = None) -> bytes:
    """Read so many bytes. Raises EOFError when there are no more, TimeoutError at the deadline."""
    content = bytearray()
    while len(content) < size:
        if deadline is not None and not select.select([source], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError("it gave no answer")
        piece = os.read(source, min(size - len(content), 1 << 20))
        if not piece:
            raise EOFError("its process was ended")
        content += piece
    return bytes(content)


def _rendered(question: _Question, render_jinja_template: Callable[..., Any]) -> _Answer:
    used = resource.getrusage(resource.RUSAGE_SELF)
    until = int(used.ru_utime + used.ru_stime) + 1 + question.seconds
    resource.setrlimit(resource.RLIMIT_CPU, (until, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    try:
        (text,), _ = render_jinja_template(
            conversations=[question.messages],
            chat_template=question.template,
            add_generation_prompt=True,
            **question.named,
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

    source, answers = sys.stdin.fileno(), os.dup(sys.stdout.fileno())
    with contextlib.redirect_stdout(sys.stderr), os.fdopen(answers, "wb", 0) as target, contextlib.suppress(EOFError):
        while True:
            length = int.from_bytes(_read(source, FRAME_HEADER_BYTES), "big")
            question = msgspec.msgpack.decode(_read(source, length), type=_Question)
            _write(target, msgspec.msgpack.encode(_rendered(question, render_jinja_template)))


if __name__ == "__main__":
    _serve()
