"""Texts encoded by strangers' tokenizers, in a process of their own: one may take all time and memory that there is.

`python -m graft_runtime.tokenizing.encoding` is that process. It reads questions and writes an answer to each.
"""

from __future__ import annotations

import atexit
import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import msgspec

from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.tokenizing.worker import LOST, Worker, limit_processor, serve

ENCODE_SECONDS = 5
"""Of a processor, for one text."""
UNSAFE_SECONDS = 60.0
"""So long a tokenizer that has ended its process is not tried again."""
KEPT_CHARACTERS = 32 << 20
"""Of JSON that the process's tokenizers were made of; there is always room for one."""
MEMORY_BYTES = 2 << 30


class _Question(msgspec.Struct):
    identity: str
    text: str
    special: bool
    seconds: int
    tokenizer: str | None = None
    """As JSON; None: the process may know it."""


class _Answer(msgspec.Struct):
    ids: list[int] = []
    fault: str | None = None
    unknown: bool = False


class Encoder:
    """Encodes one text at a time. To be called from threads."""

    def __init__(self, seconds: int = ENCODE_SECONDS) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._worker = Worker(__name__, MEMORY_BYTES)
        self._unsafe: dict[str, float] = {}
        """Tokenizers that have ended the process, and until when they are not tried."""

    def encode(self, tokenizer: ForeignTokenizer, text: str, *, special: bool) -> list[int]:
        """Return the token ids of a text.

        Args:
            tokenizer: whose `identity` and JSON the process needs.
            text: of a request.
            special: whether the tokenizer adds its special tokens.

        Raises:
            GraftError: UnsafeFile, when it takes too much.
            RuntimeError: whatever the tokenizers library says against the text.
        """
        question = _Question(tokenizer.identity, text, special, self._seconds)
        with self._lock:
            if time.monotonic() < self._unsafe.get(tokenizer.identity, 0.0):
                raise _unsafe("it did so a moment ago")
            try:
                answer = self._asked(question)
                if answer.unknown:
                    answer = self._asked(msgspec.structs.replace(question, tokenizer=tokenizer.to_str()))
            except LOST as error:
                self._unsafe = {known: end for known, end in self._unsafe.items() if end > time.monotonic()}
                self._unsafe[tokenizer.identity] = time.monotonic() + UNSAFE_SECONDS
                raise _unsafe(str(error)) from None
        if answer.fault is not None:
            raise RuntimeError(answer.fault)
        return answer.ids

    def close(self) -> None:
        """End the process; the next text starts another."""
        self._worker.close()

    def _asked(self, question: _Question) -> _Answer:
        return msgspec.msgpack.decode(self._worker.ask(msgspec.msgpack.encode(question)), type=_Answer)


encoder = Encoder()
"""Of the whole process."""
atexit.register(encoder.close)


class ForeignTokenizer:
    """A tokenizer of the tokenizers library that encodes in another process, and does all else in this one.

    Args:
        fast: it; what decodes and looks tokens up was checked to be of bounded work.
    """

    def __init__(self, fast: Any) -> None:
        self._fast = fast

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fast, name)

    @cached_property
    def identity(self) -> str:
        """Return a hash that is another for each tokenizer."""
        return hashlib.sha256(self._fast.to_str().encode()).hexdigest()

    def encode_batch_fast(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[Encoded]:
        """Encode each text. Raises GraftError: UnsafeFile; RuntimeError."""
        return [Encoded(encoder.encode(self, text, special=add_special_tokens)) for text in texts]

    def beside(self, other: Any) -> ForeignTokenizer:
        """Return another tokenizer of the same stages and model, to be encoded with in the same way."""
        return ForeignTokenizer(other)


class Encoded:
    """What encoding gives, as the tokenizers library has it."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids


def _unsafe(why: str) -> GraftError:
    return GraftError(
        ErrorCode.UNSAFE_FILE,
        f"the adapter's own tokenizer takes more time or memory for a text than one may: {why}",
        hint="save the base model's tokenizer beside the adapter, with tokens added to it, or none",
    )


class _Tokenizers:
    """Those that were asked for last."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[Any, int]] = OrderedDict()

    def of(self, question: _Question) -> Any:
        """Return the tokenizer of a question; None for one that is not kept."""
        from tokenizers import Tokenizer  # noqa: PLC0415 - in this process alone

        if question.identity not in self._kept:
            if question.tokenizer is None:
                return None
            self._kept[question.identity] = (Tokenizer.from_str(question.tokenizer), len(question.tokenizer))
        self._kept.move_to_end(question.identity)
        while len(self._kept) > 1 and sum(size for _, size in self._kept.values()) > KEPT_CHARACTERS:
            self._kept.popitem(last=False)
        return self._kept[question.identity][0]


def _serve() -> None:
    tokenizers = _Tokenizers()

    def answered(question: bytes) -> bytes:
        asked = msgspec.msgpack.decode(question, type=_Question)
        return msgspec.msgpack.encode(_encoded(asked, tokenizers))

    serve(answered)


def _encoded(question: _Question, tokenizers: _Tokenizers) -> _Answer:
    limit_processor(question.seconds)
    try:
        fast = tokenizers.of(question)
        if fast is None:
            return _Answer(unknown=True)
        (encoding,) = fast.encode_batch_fast([question.text], add_special_tokens=question.special)
        return _Answer(encoding.ids)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of its Rust is no Exception
        return _Answer(fault=f"{type(error).__name__}: {error}"[:4096])


if __name__ == "__main__":
    _serve()
