"""Each kind of answer and chunk of a real pod, by OpenAI's published schema and by the pod's own /openapi.json."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from openai.types import Completion, ErrorObject, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from tests.support.openai_types import departures

TOOLED = (
    "{% for tool in tools or [] %}{{ tool.function.name }}<tool_call>{% endfor %}"
    "{% for message in messages %}[{{ message.content }}]{% endfor %}=>"
)
THINKING = "{# </think> #}{% for message in messages %}[{{ message.content }}]{% endfor %}<think>\n"
NULL_ALL_THE_SAME = re.compile(r"choices\.\d+\.(logprobs\.to(ken|p)_logprobs\.0|finish_reason): ")
"""Of a prompt's first token, and of all chunks of completions but the last: OpenAI answers so, against its schema."""
EXTENSIONS = {"reasoning_content", "root", "parent", "max_model_len"}
COMPLETION: dict[str, Any] = {"model": "plain", "prompt": ["hello", "you"], "max_tokens": 4}
CHAT: dict[str, Any] = {"model": "tooled", "messages": [{"role": "user", "content": "Who?"}], "max_tokens": 4}
PARAMETERS = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "f", "parameters": PARAMETERS}}
ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "completion": ("/v1/completions", COMPLETION),
    "completion with log-probabilities": ("/v1/completions", COMPLETION | {"logprobs": 2, "n": 2}),
    "completion after its prompt": ("/v1/completions", COMPLETION | {"logprobs": 2, "echo": True}),
    "chat": ("/v1/chat/completions", CHAT),
    "chat with log-probabilities": ("/v1/chat/completions", CHAT | {"logprobs": True, "top_logprobs": 3, "n": 2}),
    "chat with a call": ("/v1/chat/completions", CHAT | {"tools": [TOOL], "tool_choice": "required", "max_tokens": 99}),
    "chat with thoughts": ("/v1/chat/completions", CHAT | {"model": "thinker", "max_tokens": 12}),
    "chat in a form": ("/v1/chat/completions", CHAT | {"response_format": {"type": "json_object"}}),
}
TYPES: dict[str, tuple[type[BaseModel], type[BaseModel]]] = {
    "/v1/completions": (Completion, Completion),
    "/v1/chat/completions": (ChatCompletion, ChatCompletionChunk),
}
FAULTS: list[tuple[str, str, Any]] = [
    ("POST", "/v1/completions", COMPLETION | {"model": "none"}),
    ("POST", "/v1/completions", COMPLETION | {"prompt": "x" * 5000}),
    ("POST", "/v1/chat/completions", CHAT | {"messages": []}),
    ("POST", "/v1/chat/completions", b"{"),
    ("POST", "/tokenize", {}),
    ("POST", "/detokenize", {"tokens": ["x"]}),
    ("GET", "/v1/models/none", None),
]
OTHERS: list[tuple[str, str, Any]] = [
    ("GET", "/v1/models", None),
    ("GET", "/v1/models/plain", None),
    ("GET", "/v1/adapters", None),
    ("GET", "/version", None),
    ("POST", "/tokenize", {"model": "plain", "prompt": "hello"}),
    ("POST", "/tokenize", {"model": "plain", "prompt": "hello", "return_token_strs": True}),
    ("POST", "/detokenize", {"model": "plain", "tokens": [104, 105]}),
]


@pytest.fixture(scope="module")
def pod(make_pod: Callable[..., Any], make_adapter: Callable[..., Path]) -> Any:
    names = {name: make_adapter(name) for name in ("plain", "tooled", "thinker")}
    for name, template in {"tooled": TOOLED, "thinker": THINKING}.items():
        (names[name] / "chat_template.jinja").write_text(template)
    pod = make_pod()
    pod.mount_set(pod.set_of(1, *(pod.entry(name, path) for name, path in names.items())))
    pod.start()
    pod.wait_ready()
    return pod


@pytest.fixture(scope="module")
def document(pod: Any) -> Any:
    return pod.ask("GET", "/openapi.json").json


@pytest.fixture(scope="module")
def check(document: Any) -> Callable[..., None]:
    """`check(path, method, content, kind, status)`: holds content against what the document says of it."""

    def told(path: str, method: str, content: bytes, kind: str = "application/json", status: str = "200") -> None:
        schema = document["paths"][path][method]["responses"][status]["content"][kind]["schema"]
        validator = jsonschema.Draft202012Validator(schema | {"components": document["components"]})
        assert [*validator.iter_errors(json.loads(content))] == [], content

    return told


def events(pod: Any, path: str, body: dict[str, Any]) -> Iterator[bytes]:
    reply = pod.post(path, body | {"stream": True, "stream_options": {"include_usage": True}})
    assert reply.status == 200, reply.content
    *told, done = (line.removeprefix(b"data: ") for line in reply.content.split(b"\n\n") if line.startswith(b"data: "))
    assert done == b"[DONE]"
    yield from told


def departures_of(kind: type[BaseModel], answer: bytes) -> list[str]:
    found = departures(kind, answer, EXTENSIONS)
    return [departure for departure in found if not NULL_ALL_THE_SAME.match(departure)]


@pytest.mark.parametrize("name", ASKED)
def test_whole_answers_are_openai_s_and_what_the_document_says(pod: Any, check: Any, name: str) -> None:
    path, body = ASKED[name]
    reply = pod.post(path, body)
    assert reply.status == 200, reply.content
    assert departures_of(TYPES[path][0], reply.content) == []
    check(path, "post", reply.content)
    (message,) = [choice["message"] for choice in reply.json["choices"][:1] if "message" in choice] or [{}]
    assert ("tool_calls" in message, "reasoning_content" in message) == ("a call" in name, "thoughts" in name)


@pytest.mark.parametrize("name", ASKED)
def test_chunks_are_openai_s_and_what_the_document_says(pod: Any, check: Any, name: str) -> None:
    path, body = ASKED[name]
    chunks = [*events(pod, path, body)]
    assert len(chunks) > 2
    for chunk in chunks:
        assert departures_of(TYPES[path][1], chunk) == [], chunk
        check(path, "post", chunk, "text/event-stream")
    assert json.loads(chunks[-1])["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize(("method", "path", "body"), FAULTS)
def test_faults_are_openai_s_and_what_the_document_says(
    pod: Any, check: Any, method: str, path: str, body: Any
) -> None:
    reply = pod.ask(method, path, body)
    assert reply.status >= 400
    assert departures(ErrorObject, json.dumps(reply.json["error"]).encode()) == []
    check(path.replace("/none", "/{name}"), method.lower(), reply.content, status="default")


@pytest.mark.parametrize(("method", "path", "body"), OTHERS)
def test_other_answers_are_what_the_document_says(pod: Any, check: Any, method: str, path: str, body: Any) -> None:
    reply = pod.ask(method, path, body)
    assert reply.status == 200, reply.content
    check(path.replace("/plain", "/{name}"), method.lower(), reply.content)


def test_models_are_openai_s(pod: Any) -> None:
    for card in pod.get("/v1/models").json["data"]:
        assert departures(Model, json.dumps(card).encode(), EXTENSIONS) == []


def test_the_checks_see_what_departs(pod: Any, check: Any) -> None:
    answer = pod.post("/v1/chat/completions", CHAT).json
    choice = answer["choices"][0]
    more, less = answer | {"more": 1}, answer | {"choices": [{k: v for k, v in choice.items() if k != "logprobs"}]}
    strange = answer | {"created": "1"}
    for changed in (more, less, strange):
        assert departures(ChatCompletion, json.dumps(changed).encode(), EXTENSIONS) != []
        with pytest.raises(AssertionError):
            check("/v1/chat/completions", "post", json.dumps(changed).encode())
