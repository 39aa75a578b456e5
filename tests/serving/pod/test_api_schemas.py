"""Each kind of answer and chunk of a real pod, by OpenAI's published schema and by the pod's own /openapi.json."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
from openai import OpenAI
from openai.types import Completion, ErrorObject, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
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
RESPONSE: dict[str, Any] = {"model": "tooled", "input": "Who?", "max_output_tokens": 4, "temperature": 0}
FLAT_TOOL = {"type": "function", "name": "f", "parameters": PARAMETERS}
RESPONSES: dict[str, tuple[dict[str, Any], set[str], str]] = {
    "text": (RESPONSE, {"message"}, "incomplete"),
    "a call": (
        RESPONSE
        | {"tools": [FLAT_TOOL], "tool_choice": "required", "parallel_tool_calls": False}
        | {"max_output_tokens": 99, "temperature": 1},
        {"function_call"},
        "completed",
    ),
    "thoughts": (RESPONSE | {"model": "thinker", "max_output_tokens": 12}, {"reasoning"}, "incomplete"),
    "a form": (
        RESPONSE
        | {"text": {"format": {"type": "json_schema", "name": "x", "schema": PARAMETERS}}, "max_output_tokens": 99},
        {"message"},
        "completed",
    ),
}
"""Each with the kinds of items that it brings, and how it ends."""
RESPONSE_EVENTS: dict[str, type[BaseModel]] = {
    get_args(kind.model_fields["type"].annotation)[0]: kind for kind in get_args(get_args(ResponseStreamEvent)[0])
}
FAULTS: list[tuple[str, str, Any]] = [
    ("POST", "/v1/completions", COMPLETION | {"model": "none"}),
    ("POST", "/v1/completions", COMPLETION | {"prompt": "x" * 5000}),
    ("POST", "/v1/chat/completions", CHAT | {"messages": []}),
    ("POST", "/v1/chat/completions", b"{"),
    ("POST", "/v1/responses", RESPONSE | {"previous_response_id": "resp_1"}),
    ("POST", "/v1/responses", RESPONSE | {"input": "x" * 5000}),
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


def kinds(response: dict[str, Any]) -> set[str]:
    return {item["type"] for item in response["output"]}


def bare(response: dict[str, Any]) -> list[dict[str, Any]]:
    """The items of a response without their ids, which are new in each."""
    return [{key: value for key, value in item.items() if "id" not in key} for item in response["output"]]


def response_events(pod: Any, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a stream, each checked to have its name."""
    reply = pod.post("/v1/responses", body | {"stream": True})
    assert reply.status == 200, reply.content
    told = []
    for lines in filter(None, reply.content.split(b"\n\n")):
        name, data = lines.split(b"\n")
        told.append(json.loads(data.removeprefix(b"data: ")))
        assert name.decode() == f"event: {told[-1]['type']}"
    return told


@pytest.mark.parametrize("name", RESPONSES)
def test_responses_are_openai_s_whole_and_as_events(pod: Any, check: Any, name: str) -> None:
    body, wanted, status = RESPONSES[name]
    reply = pod.post("/v1/responses", body)
    assert reply.status == 200, reply.content
    assert departures(Response, reply.content) == []
    check("/v1/responses", "post", reply.content)
    assert (kinds(reply.json), reply.json["status"]) == (wanted, status)
    events = response_events(pod, body)
    for number, told in enumerate(events):
        assert told["sequence_number"] == number
        assert departures(RESPONSE_EVENTS[told["type"]], json.dumps(told).encode()) == [], told
        check("/v1/responses", "post", json.dumps(told).encode(), "text/event-stream")
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    last = events[-1]["response"]
    assert (events[-1]["type"], kinds(last)) == (f"response.{status}", wanted)
    assert [event["item"] for event in events if event["type"] == "response.output_item.done"] == last["output"]
    if body["temperature"] == 0:
        assert (bare(last), last["usage"]) == (bare(reply.json), reply.json["usage"])
    for kind, field in (("output_text", "text"), ("reasoning_text", "text"), ("function_call_arguments", "arguments")):
        whole = [event[field] for event in events if event["type"] == f"response.{kind}.done"]
        parts = [event["delta"] for event in events if event["type"] == f"response.{kind}.delta"]
        assert "".join(parts) == "".join(whole)


def test_openai_s_client_holds_a_conversation_by_responses(pod: Any) -> None:
    client = OpenAI(base_url=f"http://{pod.address}:8000/v1", api_key="none", max_retries=0)
    chat = CHAT | {"messages": [{"role": "system", "content": "Be."}, *CHAT["messages"]], "temperature": 0}
    said = pod.post("/v1/chat/completions", chat).json
    asked: dict[str, Any] = RESPONSE | {"instructions": "Be."}
    answer = client.responses.create(**asked)
    assert answer.output_text == said["choices"][0]["message"]["content"]
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (said["usage"]["prompt_tokens"], 4)
    told: Any = [*client.responses.create(**asked, stream=True)]
    deltas = [event.delta for event in told if event.type == "response.output_text.delta"]
    assert "".join(deltas) == told[-1].response.output_text == answer.output_text
    forced: Any = {"tools": [FLAT_TOOL], "tool_choice": {"type": "function", "name": "f"}, "max_output_tokens": 99}
    (call,) = client.responses.create(**RESPONSE | forced).output
    assert call.type == "function_call"
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "3"}
    items: Any = [{"role": "user", "content": "Who?"}, call.to_dict(), output]
    after = client.responses.create(**RESPONSE | {"input": items})
    called = {"id": call.call_id, "type": "function", "function": {"name": "f", "arguments": call.arguments}}
    messages = [
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "", "tool_calls": [called]},
        {"role": "tool", "tool_call_id": call.call_id, "content": "3"},
    ]
    same = pod.post("/v1/chat/completions", CHAT | {"messages": messages, "temperature": 0}).json
    assert after.output_text == same["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": []}, "input"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"tools": [FLAT_TOOL], "text": {"format": {"type": "json_object"}}}, "text.format"),
        ({"input": "x" * 5000}, "input"),
        ({"foo": 1}, "foo"),
    ],
)
def test_what_a_response_can_not_be_made_of_is_told(pod: Any, body: dict[str, Any], param: str) -> None:
    reply = pod.post("/v1/responses", RESPONSE | body)
    assert reply.status == 400, reply.content
    assert str(reply.json["error"]["param"]).startswith(param), reply.content


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
