"""Answers in a given form: what masks let through is valid, and forms that ask for too much are refused in time."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from graft_runtime.answering.call_styles import FAMILIES, Family, Tools
from graft_runtime.engine.constraints import Constraint, TokenTable
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.http.routes.tools import whole_calls
from graft_runtime.messages import Cancel, Generate, Generated, Sampling, Vocabulary
from graft_runtime.tokenizing import worker
from graft_runtime.tokenizing.grammars import AnswerForm, Grammars, grammar_of

from tests.support.schemas import HOSTILE, random_schema

SCHEMAS = 500
TOKENS = [bytes([byte]) for byte in range(256)] + [b'{"', b'":', b", ", b'"}', b"true", b"12", b"", "größe".encode()]
CLOSING = [b"}", b'"}', b"]", b'"']
CHECKER = jsonschema.Draft202012Validator.FORMAT_CHECKER
WORDS = grammar_of("choice", json.dumps(["yes", "no"]))
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def table() -> TokenTable:
    return TokenTable(TOKENS)


@pytest.fixture(scope="module")
def grammars() -> Iterator[Grammars]:
    grammars = Grammars(seconds=1)
    yield grammars
    grammars.close()


def allowed(constraint: Constraint) -> tuple[list[int], bool]:
    """Return the tokens that may come next, and whether the end may."""
    mask = constraint.mask()
    words = mask.allowing([], len(TOKENS))
    return [token for token in range(len(TOKENS)) if words[token // 32] >> token % 32 & 1], mask.may_end


def written(constraint: Constraint, draw: random.Random, patience: int = 25) -> str:
    """Return an answer of random tokens, which is ended as soon as it may once it is long."""
    text = b""
    for count in range(2_000):
        tokens, may_end = allowed(constraint)
        assert tokens or may_end, text
        if may_end and (not tokens or count > patience or draw.random() < 0.1):
            return text.decode()
        closing = [token for end in CLOSING for token in tokens if TOKENS[token] == end]
        hurry = closing and draw.random() < (0.5 if count > patience else 0.2)
        token = draw.choice(closing if hurry else tokens)
        assert TOKENS[token], "a token that is in no text"
        text += TOKENS[token]
        constraint.advance(token)
    raise AssertionError(f"it does not end: {text[:200]!r}")


def test_what_masks_let_through_is_valid_to_a_validator(table: TokenTable) -> None:
    draw, answers = random.Random(0), set()
    for _ in range(SCHEMAS):
        schema = random_schema(draw)
        text = written(table.constraint(grammar_of("json_schema", json.dumps(schema))), draw)
        jsonschema.Draft202012Validator(schema, format_checker=CHECKER).validate(json.loads(text))
        answers.add(text)
    assert len(answers) > SCHEMAS / 2, "they differ"


@pytest.mark.parametrize("name", HOSTILE)
def test_a_form_that_asks_for_too_much_is_refused_or_followed_in_bounded_steps(
    grammars: Grammars, table: TokenTable, name: str
) -> None:
    draw = random.Random(0)
    with contextlib.suppress(GraftError):
        constraint = table.constraint(grammars.of(AnswerForm("json_schema", json.dumps(HOSTILE[name]), "a form")))
        for _ in range(200):
            tokens, may_end = allowed(constraint)
            assert tokens or may_end
            if not tokens:
                break
            constraint.advance(draw.choice(tokens))


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("json_schema", '{"type": 5}'),
        ("json_schema", '{"not": {"type": "string"}}'),
        ("json_schema", "nothing"),
        ("regex", "(a"),
        ("grammar", "root ::= ("),
        ("json_schema", json.dumps({"x": "y" * 300_000})),
    ],
)
def test_a_form_that_is_none_is_refused_by_its_field(grammars: Grammars, kind: Any, source: str) -> None:
    with pytest.raises(GraftError) as caught:
        grammars.of(AnswerForm(kind, source, "structured_outputs.json"))
    assert (caught.value.code, caught.value.field) == (ErrorCode.INVALID_REQUEST, "structured_outputs.json")


def test_a_form_that_ends_its_process_is_refused_and_the_next_one_is_made(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = worker._Worker.ask

    def killed(process: worker._Worker, question: bytes) -> bytes:
        os.kill(process.process_id, signal.SIGKILL)
        return ask(process, question)

    with monkeypatch.context() as patch:
        patch.setattr(worker._Worker, "ask", killed)
        with pytest.raises(GraftError, match="more time or memory"):
            grammars.of(AnswerForm("regex", "killed", "guided_regex"))
    assert grammars.of(AnswerForm("regex", "made", "guided_regex"))


def test_a_form_that_takes_long_keeps_no_other_waiting(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    ask, go_on = worker._Worker.ask, threading.Event()

    def long(process: worker._Worker, question: bytes) -> bytes:
        assert b"long" not in question or go_on.wait(60)
        return ask(process, question)

    monkeypatch.setattr(worker._Worker, "ask", long)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(grammars.of, AnswerForm("regex", "long", "guided_regex"))
        try:
            assert grammars.of(AnswerForm("regex", "short", "guided_regex"))
            assert not waiting.done()
        finally:
            go_on.set()
        assert waiting.result()


@pytest.mark.parametrize(
    ("kind", "source", "texts"),
    [
        ("choice", json.dumps(["yes", 'a "b"\n', "größe/\\"]), {"yes", 'a "b"\n', "größe/\\"}),
        ("regex", "(a|b)c?", {"a", "b", "ac", "bc"}),
        ("grammar", 'start: "x" digit\ndigit: "1" | "2"', {"x1", "x2"}),
        ("grammar", 'root ::= "x" digit\ndigit ::= "1" | "2"', {"x1", "x2"}),
    ],
)
def test_other_kinds_of_forms(table: TokenTable, kind: Any, source: str, texts: set[str]) -> None:
    grammar, draw = grammar_of(kind, source), random.Random(1)
    assert {written(table.constraint(grammar), draw) for _ in range(60)} == texts


@pytest.mark.parametrize("family", [*FAMILIES, None])
def test_calls_that_are_forced_can_be_read_and_have_the_tools_parameters(
    table: TokenTable, family: Family | None
) -> None:
    described = [{"type": "function", "function": {"name": name, "parameters": PERSON}} for name in ("f", "g::=")]
    templates = {"mistral with names": "[TOOL_CALLS][ARGS]", "mistral": "[TOOL_CALLS]", "hermes": "<tool_call>"}
    template = templates.get(family.name, "<|python_tag|>") if family is not None else ""
    draw, names = random.Random(2), []
    for tools in (Tools(described, described, forced=True), Tools(described, described[1:], forced=True, most=1)):
        grammar = table.constraint(grammar_of(tools.form(template).kind, tools.form(template).source))
        reader = tools.reader(template)
        assert reader is not None
        said = [reader.push(written(grammar, draw)), reader.finish()]
        assert "".join(one.text for one in said) == ""
        calls = whole_calls([part for one in said for part in one.calls])
        for call in calls:
            jsonschema.validate(json.loads(call["function"]["arguments"]), PERSON)
        names.append([call["function"]["name"] for call in calls])
    assert {*names[0]} <= {"f", "g::="}
    assert names[0]
    assert names[1] == ["g::="]


def test_json_without_whitespace_has_none(table: TokenTable) -> None:
    grammar = grammar_of("json_schema", json.dumps(PERSON), spaced=False)
    text = written(table.constraint(grammar), random.Random(3))
    assert text == json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":"))


@pytest.mark.parametrize("padded", [False, True])
def test_each_row_of_a_batch_has_the_form_that_it_asks_for(
    in_process: Callable[..., Any], tiny_base: Path, padded_alone: Any, *, padded: bool
) -> None:
    if padded:
        padded_alone()
    engine = in_process(tiny_base)
    engine.handle(Vocabulary("bytes", TOKENS))
    person = grammar_of("json_schema", json.dumps(PERSON))

    def asked(name: str, grammar: str | None, **more: Any) -> Generate:
        return Generate(name, [72, 101, 108], 200, grammar=grammar, vocabulary="bytes", **more)

    drawn = Sampling(temperature=1.0, seed=5, repetition_penalty=1.2, logprobs=2)
    plain = Generate("plain", [72, 101, 108], 30, sampling=Sampling(temperature=0))
    submits = [
        asked("person", person, sampling=Sampling(temperature=0)),
        asked("drawn", person, sampling=drawn, stop_tokens=(262,)),
        asked("word", WORDS, stop_tokens=(262,)),
        asked("early", WORDS, sampling=Sampling(min_tokens=20), stop_tokens=(262,)),
        plain,
    ]
    (alone,) = in_process(tiny_base).answers([plain]).values()
    answers = engine.answers(submits)
    texts = {
        name: b"".join(TOKENS[token] for token in tokens).decode()
        for name, tokens in answers.items()
        if name != "plain"
    }
    for name in ("person", "drawn"):
        jsonschema.validate(json.loads(texts[name]), PERSON)
    assert texts["person"] != texts["drawn"]
    assert {texts["word"], texts["early"]} <= {"yes", "no"}
    assert answers["plain"] == alone


def test_a_stop_token_ends_an_answer_where_its_form_may_end(in_process: Callable[..., Any], tiny_base: Path) -> None:
    engine = in_process(tiny_base)
    engine.handle(Vocabulary("bytes", TOKENS))
    grammar = grammar_of("regex", "a{2,50}")
    sampling = Sampling(temperature=0, logit_bias={262: 100.0})
    engine.handle(Generate("a", [1, 2], 80, sampling=sampling, stop_tokens=(262,), grammar=grammar, vocabulary="bytes"))
    events = []
    while engine.engine.busy:
        events += [event for event in engine.step() if isinstance(event, Generated)]
    assert [token for event in events for token in event.tokens] == [97, 97]
    assert (events[-1].finish, events[-1].end) == ("stop", 262)


def test_a_request_is_cancelled_while_its_grammar_is_compiled(in_process: Callable[..., Any], tiny_base: Path) -> None:
    engine = in_process(tiny_base)
    engine.handle(Vocabulary("bytes", TOKENS))
    engine.load_later = []
    engine.handle(Generate("a", [1, 2], 8, grammar=WORDS, vocabulary="bytes"))
    engine.handle(Cancel("a"))
    (job,) = engine.load_later
    engine.handle(engine.loader.do(job))
    assert not [event for event in engine.step() if isinstance(event, Generated)]
    assert not engine.engine.busy


def test_a_vocabulary_that_the_engine_has_not_is_a_fault_of_the_request(
    in_process: Callable[..., Any], tiny_base: Path
) -> None:
    engine = in_process(tiny_base)
    engine.handle(Vocabulary("bytes", TOKENS))
    engine.handle(Vocabulary("others", TOKENS, instead_of="bytes"))
    engine.handle(Generate("a", [1, 2], 8, grammar=WORDS, vocabulary="bytes"))
    (event,) = [event for event in engine.step() if isinstance(event, Generated)]
    assert event.fault is not None
    assert event.fault.code == ErrorCode.INVALID_REQUEST
