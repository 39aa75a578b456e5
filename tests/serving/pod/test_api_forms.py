"""Answers in a given form over HTTP: OpenAI's client, vLLM's names, an adapter with its own tokenizer, one batch."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import jsonschema
import openai
import pytest
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessageFunctionToolCall
from pydantic import BaseModel

CHAT: Any = [{"role": "user", "content": "Who?"}]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "tags": {"type": "array", "items": {"enum": ["x", "größe"]}, "maxItems": 2},
    },
    "required": ["name", "tags"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": SCHEMA}}


TOOLED = (
    "{% for tool in tools or [] %}{{ tool.function.name }}<tool_call>{% endfor %}{% for message in messages %}"
    "[{{ message.role }}:{{ message.content }}{% for call in message.tool_calls or [] %}"
    "{{ call.function.name }}({{ call.function.arguments.a }}){% endfor %}]{% endfor %}=>"
)
THINKING = "{# </think> #}{% for message in messages %}[{{ message.content }}]{% endfor %}<think>\n"
CALLED: Any = [
    *CHAT,
    {
        "role": "assistant",
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 2}'}}],
    },
    {"role": "tool", "tool_call_id": "1", "content": "42"},
]


def tool(name: str) -> Any:
    parameters = {
        "type": "object",
        "properties": {"a": {"enum": [1, 2]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "description": "", "parameters": parameters}}


class Mood(BaseModel):
    mood: Literal["good", "bad"]
    sure: bool


@pytest.fixture(scope="module")
def pod(make_pod: Callable[..., Any], make_adapter: Callable[..., Path], tiny_base: Path) -> Any:
    from transformers import AutoTokenizer

    pod = make_pod()
    names = {"plain": make_adapter("plain"), "own": make_adapter("own")}
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.add_tokens(['{"name":'])
    tokenizer.save_pretrained(names["own"])
    templates = {"tooled": TOOLED, "strange": TOOLED.replace("<tool_call>", ""), "thinker": THINKING}
    for name, template in templates.items():
        names[name] = make_adapter(name)
        (names[name] / "chat_template.jinja").write_text(template)
    pod.mount_set(pod.set_of(1, *(pod.entry(name, path) for name, path in names.items())))
    pod.start()
    pod.wait_ready()
    return pod


@pytest.fixture(scope="module")
def no_blanks(tiny_base: Path) -> dict[str, int]:
    """Return a bias against whitespace, of which a random model writes as much as it may."""
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(tiny_base).convert_tokens_to_ids(["Ġ", "Ċ", "ĉ", "č"])
    return {str(token): -100 for token in ids}


def text_of(pod: Any, **body: Any) -> str:
    reply = pod.post("/v1/chat/completions", {"model": "tiny", "messages": CHAT, "max_tokens": 200} | body)
    assert reply.status == 200, reply.content
    choice = reply.json["choices"][0]
    assert choice["finish_reason"] == "stop"
    return str(choice["message"]["content"])


def test_openai_s_client_parses_its_own_types(client: openai.OpenAI, no_blanks: dict[str, int]) -> None:
    answer = client.chat.completions.parse(
        model="plain", messages=CHAT, response_format=Mood, temperature=0, logit_bias=no_blanks
    )
    assert isinstance(answer.choices[0].message.parsed, Mood)


def test_each_row_of_a_batch_has_its_own_form(pod: Any, no_blanks: dict[str, int]) -> None:
    def ask(at: int) -> str:
        model, seed = ("tiny", "plain", "own")[at % 3], at
        form = {"response_format": FORMAT} if at % 2 else {"structured_outputs": {"choice": ["yes", "no"]}}
        more = {"logit_bias": no_blanks, "logprobs": True, "presence_penalty": 0.5}
        return text_of(pod, model=model, seed=seed, **more, **form)

    with ThreadPoolExecutor(12) as threads:
        texts = list(threads.map(ask, range(12)))
    for text in texts[1::2]:
        jsonschema.validate(json.loads(text), SCHEMA)
    assert {*texts[::2]} <= {"yes", "no"}
    assert len({*texts[1::2]}) > 1


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"guided_regex": "[ab]{3}"}, {"length": 3}),
        ({"guided_choice": ["one", "two"]}, {"length": 3}),
        ({"guided_grammar": 'root ::= "abc"'}, {"text": "abc"}),
        ({"guided_json": {"const": [1, 2]}}, {"json": [1, 2]}),
        ({"guided_json": '{"const": [1, 2]}'}, {"json": [1, 2]}),
        ({"structured_outputs": {"json": {"const": {"a": 1}}, "disable_any_whitespace": True}}, {"text": '{"a":1}'}),
        ({"structured_outputs": {"regex": "a{4}"}}, {"text": "aaaa"}),
    ],
)
def test_vllm_s_names(pod: Any, no_blanks: dict[str, int], fields: dict[str, Any], pattern: dict[str, Any]) -> None:
    text = text_of(pod, logit_bias=no_blanks, **fields)
    found = {"length": len(text), "text": text}
    assert json.loads(text) == pattern["json"] if "json" in pattern else pattern.items() <= found.items()


def test_a_stream_of_json_is_json(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_object"}
    bias: Any = {"92": 20}  # `}`
    stream = client.chat.completions.create(
        model="tiny", messages=CHAT, response_format=form, stream=True, logit_bias=bias, max_tokens=200
    )
    assert isinstance(json.loads("".join(chunk.choices[0].delta.content or "" for chunk in stream)), dict)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": FORMAT | {"json_schema": {"name": "a", "schema": {"type": 7}}}}, "response_format"),
        ({"response_format": FORMAT, "guided_regex": "a"}, "guided_regex"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
        ({"guided_json": {"type": "string", "pattern": "^(?=a)"}}, "guided_json"),
    ],
)
def test_a_form_that_can_t_be_given_is_refused(pod: Any, fields: dict[str, Any], param: str) -> None:
    reply = pod.post("/v1/chat/completions", {"model": "tiny", "messages": CHAT} | fields)
    assert reply.status == 400, reply.content
    assert reply.json["error"]["param"] == param


@pytest.mark.parametrize("model", ["tooled", "strange"])
def test_an_answer_that_must_call_calls(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(
        model=model, messages=CHAT, tools=[tool("f"), tool("g")], tool_choice="required", parallel_tool_calls=False
    )
    choice = answer.choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    (call,) = choice.message.tool_calls or []
    assert isinstance(call, ChatCompletionMessageFunctionToolCall)
    assert call.function.name in {"f", "g"}
    assert json.loads(call.function.arguments)["a"] in {1, 2}


def test_a_call_that_is_named_is_streamed_as_openai_s_client_puts_it_together(client: openai.OpenAI) -> None:
    named: Any = {"type": "function", "function": {"name": "g"}}
    with client.chat.completions.stream(
        model="tooled", messages=CALLED, tools=[tool("f"), tool("g")], tool_choice=named
    ) as stream:
        kinds = {event.type for event in stream}
        answer = stream.get_final_completion()
    (call,) = answer.choices[0].message.tool_calls or []
    assert (answer.choices[0].finish_reason, call.function.name) == ("stop", "g"), "as OpenAI ends a call that is named"
    assert json.loads(call.function.arguments)["a"] in {1, 2}
    assert "tool_calls.function.arguments.delta" in kinds


def test_tools_calls_and_their_results_are_in_the_prompt(pod: Any) -> None:
    def prompt(**more: Any) -> str:
        made = pod.post("/tokenize", {"model": "tooled", "messages": CALLED, "tools": [tool("f")]} | more).json
        return str(pod.post("/detokenize", {"model": "tooled", "tokens": made["tokens"]}).json["prompt"])

    conversation = "[user:Who?][assistant:f(2)][tool:42]=>"
    assert prompt() == f"f<tool_call>{conversation}"
    assert prompt(tool_choice="none") == conversation


@pytest.mark.parametrize(
    ("model", "fields", "param"),
    [
        ("tiny", {"tools": [tool("f")]}, "tools"),
        ("strange", {"tools": [tool("f")]}, "tools"),
        ("tooled", {"tool_choice": "required"}, "tool_choice"),
        ("tooled", {"tools": [tool("f"), tool("f")]}, "tools[1].function.name"),
        ("tooled", {"tools": [tool("f")], "response_format": FORMAT}, "response_format"),
        ("tooled", {"tools": [{"type": "browser"}]}, "tools[0].type"),
        (
            "tooled",
            {"tools": [tool("f")], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "tool_choice.function.name",
        ),
    ],
)
def test_tools_that_can_t_be_called_are_refused(pod: Any, model: str, fields: dict[str, Any], param: str) -> None:
    reply = pod.post("/v1/chat/completions", {"model": model, "messages": CHAT, "max_tokens": 4} | fields)
    assert reply.status == 400, reply.content
    assert reply.json["error"]["param"] == param


def test_thoughts_are_told_apart_from_the_answer(pod: Any, client: openai.OpenAI) -> None:
    body: dict[str, Any] = {"model": "thinker", "messages": CHAT, "temperature": 0, "max_tokens": 12}
    message = pod.post("/v1/chat/completions", body).json["choices"][0]["message"]
    assert (message["content"], len(message["reasoning_content"]) > 0) == ("", True), "it never says </think>"
    deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(**body, stream=True)]
    assert "".join(getattr(delta, "reasoning_content", "") for delta in deltas) == message["reasoning_content"]
    assert text_of(pod, model="thinker", structured_outputs={"choice": ["yes"]}) == "yes"


WAYS: dict[str, dict[str, Any]] = {
    "plain": {"n": 2},
    "log-probabilities": {"logprobs": True, "top_logprobs": 2},
    "a form": {"response_format": FORMAT},
    "calls": {"model": "tooled", "tools": [tool("f"), tool("g")], "tool_choice": "required"},
    "a call": {"model": "tooled", "tools": [tool("f")], "tool_choice": "required", "parallel_tool_calls": False},
    "thoughts": {"model": "thinker"},
}


@pytest.mark.parametrize("way", WAYS)
def test_answers_and_chunks_are_of_openai_s_own_types(pod: Any, way: str) -> None:
    body = {"model": "plain", "messages": CHAT, "max_tokens": 24, "seed": 1} | WAYS[way]
    ChatCompletion.model_validate(pod.post("/v1/chat/completions", body).json, strict=True)
    streamed = pod.post("/v1/chat/completions", body | {"stream": True, "stream_options": {"include_usage": True}})
    lines = [line.removeprefix("data: ") for line in streamed.content.decode().split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    for line in lines:
        ChatCompletionChunk.model_validate(json.loads(line), strict=True)


@pytest.mark.parametrize("way", [{}, {"n": 2, "logprobs": 2}, {"guided_choice": ["yes"]}])
def test_completions_and_models_are_of_openai_s_own_types(pod: Any, way: dict[str, Any]) -> None:
    body = {"model": "plain", "prompt": "a", "max_tokens": 4} | way
    Completion.model_validate(pod.post("/v1/completions", body).json, strict=True)
    streamed = pod.post("/v1/completions", body | {"stream": True}).content.decode().split("\n\n")
    for line in streamed[:-2]:
        chunk = json.loads(line.removeprefix("data: "))
        for choice in chunk["choices"]:
            choice["finish_reason"] = choice["finish_reason"] or "stop"  # the type, which is of whole ones, has no null
        Completion.model_validate(chunk, strict=True)
    for card in pod.get("/v1/models").json["data"]:
        Model.model_validate(card, strict=True)
