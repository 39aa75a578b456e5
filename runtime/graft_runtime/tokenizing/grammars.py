"""The form that a request wants its answer in, checked and made a grammar of llguidance.

That is done in a process for each form: a schema may ask for all time and memory that there is.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import msgspec

from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.tokenizing.worker import TakesTooMuchError, Workers, limit_processor

COMPILE_SECONDS = 3
"""Of a processor, for one form."""
MAX_CHARACTERS = 1 << 18
"""Of one form."""
MEMORY_BYTES = 1 << 30
MAX_PROCESSES = 2
"""Of forms that were asked for lately: each is asked for once, as what comes of it is kept."""
KEPT = 64
"""Forms whose grammars are kept."""
_WHITESPACE = r"[ \n\r\t]{1,64}"
"""Between the parts of a JSON value: as much as an indented one has, and not all that a model may go on with."""

_ANY_TOKENS = '%llguidance {"no_forcing": true}'
"""A text that must follow may be made of any tokens: how the tokenizer would make it is not known in the engine."""

Kind = Literal["json_schema", "regex", "choice", "lark", "grammar"]


@dataclass(frozen=True)
class AnswerForm:
    """The form of an answer."""

    kind: Kind
    source: str
    """A JSON schema, a regular expression, a JSON list of texts, or a grammar: Lark's, or one of Lark's and GBNF's."""
    field: str
    """Of the request, which holds it."""
    spaced: bool = True
    """JSON may have whitespace between its parts."""


class _Question(msgspec.Struct, frozen=True):
    kind: Kind
    source: str
    spaced: bool
    seconds: int


class _Answer(msgspec.Struct):
    grammar: str = ""
    fault: str | None = None


class Grammars:
    """Makes grammars. To be called from threads.

    Args:
        seconds: of a processor, that one may take.
    """

    def __init__(self, seconds: int = COMPILE_SECONDS) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._workers = Workers(__name__, memory_bytes=MEMORY_BYTES, most=MAX_PROCESSES)
        self._kept: OrderedDict[_Question, _Answer] = OrderedDict()

    def of(self, form: AnswerForm) -> str:
        """Return the grammar of a form, as llguidance reads it. Raises GraftError: InvalidRequest."""
        if len(form.source) > MAX_CHARACTERS:
            raise _refused(form, f"it has {len(form.source)} characters, expected at most {MAX_CHARACTERS}")
        question = _Question(form.kind, form.source, form.spaced, self._seconds)
        try:
            answer = self._kept.get(question) or self._asked(question)
        except TakesTooMuchError as error:
            raise _refused(form, f"it takes more time or memory than one may: {error}") from None
        with self._lock:
            self._kept[question] = answer
            self._kept.move_to_end(question)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        if answer.fault is not None:
            raise _refused(form, answer.fault)
        return answer.grammar

    def close(self) -> None:
        """End the processes; the next form starts another."""
        self._workers.close()

    def _asked(self, question: _Question) -> _Answer:
        asked = msgspec.msgpack.encode(question)
        return msgspec.msgpack.decode(self._workers.ask(hashlib.sha256(asked).hexdigest(), asked), type=_Answer)


grammars = Grammars()
"""Of the whole process."""
atexit.register(grammars.close)


def _refused(form: AnswerForm, why: str) -> GraftError:
    return GraftError(
        ErrorCode.INVALID_REQUEST,
        f"no answer can have the form of `{form.field}`: {why}",
        hint=f"change `{form.field}`, or make it simpler",
        field=form.field,
    )


def grammar_of(kind: Kind, source: str, *, spaced: bool = True) -> str:
    """Return the grammar of a form, in Lark's language. Raises ValueError, TypeError: there is none."""
    from llguidance import grammar_from, regex_to_lark  # noqa: PLC0415 - in the form's process alone

    match kind:
        case "json_schema":
            grammar = f"start: %json {_schema(source, spaced=spaced)}"
        case "regex":
            grammar = f"start: /{regex_to_lark(source)}/"
        case _:
            grammar = grammar_from(kind, source)
    return f"{grammar}\n{_ANY_TOKENS}\n"


def _schema(source: str, *, spaced: bool) -> str:
    schema = json.loads(source)
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise TypeError("it is no JSON schema that anything has the form of")
    options = {"whitespace_flexible": spaced} | ({"whitespace_pattern": _WHITESPACE} if spaced else {})
    return json.dumps(schema | {"x-guidance": options}, ensure_ascii=False)


class _Bytes:
    """A vocabulary of bytes and an end: all that checking a grammar takes."""

    tokens = (*(bytes([byte]) for byte in range(256)), b"")
    eos_token_id = 256
    bos_token_id = None

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


def _told(fault: str) -> str:
    """Return what llguidance says of a fault, for who asked."""
    return fault.removesuffix("\n").removesuffix("<non-verbose/>").strip()[:1024]


def _checked(question: _Question) -> _Answer:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper  # noqa: PLC0415

    limit_processor(question.seconds)
    try:
        grammar = grammar_of(question.kind, question.source, spaced=question.spaced)
        limits = LLParserLimits(verbose_errors=False)
        matcher = LLMatcher(LLTokenizer(TokenizerWrapper(_Bytes())), grammar, log_level=0, limits=limits)
        matcher.compute_bitmask()  # what has no beginning, or takes too much for it, shows here
    except Exception as error:  # whatever the library says against a stranger's text
        return _Answer(fault=_told(str(error)))
    return _Answer(fault=_told(matcher.get_error())) if matcher.is_error() else _Answer(grammar)


def answerer() -> Callable[[bytes], bytes]:
    """Return what answers questions, for the process of a form."""
    import llguidance  # noqa: F401, PLC0415 - in the spawner alone, before it forks

    def answered(question: bytes) -> bytes:
        return msgspec.msgpack.encode(_checked(msgspec.msgpack.decode(question, type=_Question)))

    return answered
