"""Texts encoded by strangers' tokenizers, in a process for each: one may take all time and memory that there is."""

from __future__ import annotations

import atexit
import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import msgspec

from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.tokenizing.worker import TakesTooMuchError, Workers, limit_processor

ENCODE_SECONDS = 5
"""Of a processor, for one text."""
MEMORY_BYTES = 2 << 30
MAX_PROCESSES = 8
"""Of tokenizers that were asked lately."""
Text = str | tuple[str, str]


class _Question(msgspec.Struct):
    seconds: int
    tokenizer: str | None = None
    """As JSON: all texts from now on are for this one."""
    text: Text = ""
    """Two are to be one row of tokens."""
    special: bool = False


class _Answer(msgspec.Struct):
    ids: list[int] = []
    type_ids: list[int] = []
    fault: str | None = None


class Encoder:
    """Encodes texts, one at a time with each tokenizer. To be called from threads."""

    def __init__(self, seconds: int = ENCODE_SECONDS) -> None:
        self._seconds = seconds
        self._workers = Workers(__name__, memory_bytes=MEMORY_BYTES, most=MAX_PROCESSES)

    def encode(self, tokenizer: ForeignTokenizer, text: Text, *, special: bool) -> Encoded:
        """Return the token ids of a text or a pair, and the type of each.

        Args:
            tokenizer: whose `identity` and JSON the process needs.
            text: of a request.
            special: whether the tokenizer adds its special tokens.

        Raises:
            GraftError: UnsafeFile, when it takes too much.
            RuntimeError: whatever the tokenizers library says against the text.
        """
        question = _Question(self._seconds, text=text, special=special)

        def first() -> bytes:
            return msgspec.msgpack.encode(_Question(self._seconds, tokenizer.to_str()))

        try:
            content = self._workers.ask(tokenizer.identity, msgspec.msgpack.encode(question), first)
        except TakesTooMuchError as error:
            raise _unsafe(str(error)) from None
        answer = msgspec.msgpack.decode(content, type=_Answer)
        if answer.fault is not None:
            raise RuntimeError(answer.fault)
        return Encoded(answer.ids, answer.type_ids)

    def close(self) -> None:
        """End the processes; the next text starts another."""
        self._workers.close()


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

    def encode_batch_fast(self, texts: Sequence[Text], *, add_special_tokens: bool) -> list[Encoded]:
        """Encode each text or pair. Raises GraftError: UnsafeFile; RuntimeError."""
        return [encoder.encode(self, text, special=add_special_tokens) for text in texts]

    def beside(self, other: Any) -> ForeignTokenizer:
        """Return another tokenizer of the same stages and model, to be encoded with in the same way."""
        return ForeignTokenizer(other)


class Encoded:
    """What encoding gives, as the tokenizers library has it."""

    def __init__(self, ids: list[int], type_ids: list[int]) -> None:
        self.ids, self.type_ids = ids, type_ids


def _unsafe(why: str) -> GraftError:
    return GraftError(
        ErrorCode.UNSAFE_FILE,
        f"the adapter's own tokenizer takes more time or memory for a text than one may: {why}",
        hint="save the base model's tokenizer beside the adapter, with tokens added to it, or none",
    )


def answerer() -> Callable[[bytes], bytes]:
    """Return what answers questions, for the process of a tokenizer."""
    from tokenizers import Tokenizer  # noqa: PLC0415 - in the spawner alone

    fast: Any = None

    def answered(question: bytes) -> bytes:
        nonlocal fast
        asked = msgspec.msgpack.decode(question, type=_Question)
        limit_processor(asked.seconds)
        try:
            if asked.tokenizer is not None:
                fast = Tokenizer.from_str(asked.tokenizer)
                return msgspec.msgpack.encode(_Answer())
            (encoding,) = fast.encode_batch_fast([asked.text], add_special_tokens=asked.special)
            return msgspec.msgpack.encode(_Answer(encoding.ids, encoding.type_ids))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of its Rust is no Exception
            return msgspec.msgpack.encode(_Answer(fault=f"{type(error).__name__}: {error}"[:4096]))

    return answered
