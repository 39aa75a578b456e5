"""Every bad request gets one clear 4xx in OpenAI's shape, and what serves goes on serving."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from graft_runtime.contract.adapter_set import AdapterEntry
from graft_runtime.contract.checkpoints import Source


@pytest.fixture(scope="module")
def adapters(make_adapter: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    good = make_adapter("good")
    truncated, pickled, shapeless, empty = (
        make_adapter("truncated"),
        make_adapter("pickled"),
        make_adapter("shapeless"),
        tmp_path_factory.mktemp("nothing") / "empty",
    )
    weights = truncated / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    config = shapeless / "adapter_config.json"
    config.write_text(config.read_text().replace('"LORA"', '"SHAPESHIFT"'))
    empty.mkdir()
    large = make_adapter("large", r=32)
    return {
        "good": good,
        "truncated": truncated,
        "pickled": pickled,
        "shapeless": shapeless,
        "large": large,
        "empty": empty,
    }


@pytest.fixture(scope="module")
def pod(make_pod: Callable[..., Any], adapters: dict[str, Path]) -> Any:
    pod = make_pod()
    never = [f"sha256:{number:064x}" for number in range(4)]
    entries = [pod.entry(name, adapters[name]) for name in ("good", "truncated", "shapeless", "large")]
    entries += [
        pod.entry("pickled", adapters["pickled"], digest=never[1]),
        pod.entry("empty", adapters["empty"], digest=never[2]),
        pod.entry("other", adapters["good"], digest=never[0]),
        pod.entry("unresolved", adapters["good"], digest=None, inline=False),
        AdapterEntry(name="nowhere", source=Source(uri="pvc://x/y"), digest=never[3]),
    ]
    pod.mount_set(pod.set_of(1, *entries))
    pod.start()
    pod.wait_ready()
    return pod


OK = {"model": "good", "prompt": "hello", "max_tokens": 4}
HELLO = [{"role": "user", "content": "hello"}]
PART, LIMIT = "messages[0].content[0].type", "max_completion_tokens"

COMPLETIONS: list[tuple[str, Any, int, str, str | None, str]] = [
    # what, body, status, code, param, what the message must say
    ("an unknown model", OK | {"model": "nobody"}, 404, "model_not_found", "model", "'nobody'"),
    ("no model", {"prompt": "hello"}, 400, "InvalidRequest", "model", "missing"),
    ("a model that is no name", OK | {"model": 3}, 400, "InvalidRequest", "model", "name of an adapter"),
    ("malformed JSON", b'{"model": ', 400, "InvalidRequest", None, "valid JSON"),
    ("no UTF-8", b"\xff\xfe\xff", 400, "InvalidRequest", None, "valid JSON"),
    ("nothing", b"", 400, "InvalidRequest", None, "valid JSON"),
    ("JSON that is no object", [1], 400, "InvalidRequest", None, "expected an object"),
    ("JSON nested without end", b"[" * 100_000, 400, "InvalidRequest", None, "nested"),
    ("no prompt", {"model": "good"}, 400, "InvalidRequest", "prompt", "missing"),
    ("an empty prompt", OK | {"prompt": ""}, 400, "InvalidRequest", "prompt", "empty"),
    ("no prompts", OK | {"prompt": []}, 400, "InvalidRequest", "prompt", "empty"),
    ("an empty prompt among others", OK | {"prompt": ["a", ""]}, 400, "InvalidRequest", "prompt", "empty"),
    ("a prompt of another type", OK | {"prompt": {"a": 1}}, 400, "InvalidRequest", "prompt", "list of strings"),
    ("too many prompts", OK | {"prompt": ["a"] * 129}, 400, "InvalidRequest", "prompt", "128"),
    ("a prompt over the context", OK | {"prompt": "a" * 300}, 400, "context_length_exceeded", "prompt", "256"),
    ("prompt and answer over it", OK | {"max_tokens": 9999}, 400, "context_length_exceeded", "prompt", "9999"),
    ("a token outside the vocabulary", OK | {"prompt": [1, 320]}, 400, "InvalidRequest", "prompt", "0 to 319"),
    ("a token beyond any integer", OK | {"prompt": [2**70]}, 400, "InvalidRequest", "prompt", "0 to 319"),
    ("a negative token", OK | {"prompt": [1, -1]}, 400, "InvalidRequest", "prompt[1]", "-1"),
    ("max_tokens 0", OK | {"max_tokens": 0}, 400, "InvalidRequest", "max_tokens", "from 1"),
    ("max_tokens below 0", OK | {"max_tokens": -5}, 400, "InvalidRequest", "max_tokens", "from 1"),
    ("max_tokens as text", OK | {"max_tokens": "4"}, 400, "InvalidRequest", "max_tokens", "from 1"),
    ("a NaN", b'{"model":"good","prompt":"a","temperature":NaN}', 400, "InvalidRequest", "temperature", "NaN"),
    ("an infinity", b'{"model":"good","prompt":"a","top_p":Infinity}', 400, "InvalidRequest", "top_p", "Infinity"),
    ("a negative temperature", OK | {"temperature": -0.1}, 400, "InvalidRequest", "temperature", "from 0"),
    ("top_p 0", OK | {"top_p": 0}, 400, "InvalidRequest", "top_p", "over 0"),
    ("top_k below -1", OK | {"top_k": -2}, 400, "InvalidRequest", "top_k", "no limit"),
    ("an empty stop string", OK | {"stop": ""}, 400, "InvalidRequest", "stop", "256 characters"),
    ("an unknown field", OK | {"temprature": 1}, 400, "InvalidRequest", "temprature", "not a parameter"),
    ("a known parameter", OK | {"best_of": 2}, 400, "UnsupportedParameter", "best_of", "does not support"),
    ("true for 1", OK | {"best_of": True}, 400, "UnsupportedParameter", "best_of", "does not support"),
    ("logprobs", OK | {"logprobs": 21}, 400, "InvalidRequest", "logprobs", "20"),
    ("a seed of another type", OK | {"seed": "x"}, 400, "InvalidRequest", "seed", "whole number"),
    ("stream options alone", OK | {"stream_options": {}}, 400, "InvalidRequest", "stream_options", "stream"),
    ("an adapter with too high a rank", OK | {"model": "large"}, 400, "RankTooHigh", None, "rank 32"),
    ("a truncated adapter", OK | {"model": "truncated"}, 400, "Corrupt", None, "truncated"),
    ("a pickled adapter", OK | {"model": "pickled"}, 400, "UnsafeFile", None, "pickle"),
    ("an unknown method", OK | {"model": "shapeless"}, 400, "UnsupportedMethod", None, "SHAPESHIFT"),
    ("no adapter at all", OK | {"model": "empty"}, 400, "NotAnAdapter", None, "adapter_config.json"),
    ("other bytes than named", OK | {"model": "other"}, 400, "DigestMismatch", None, "expected sha256:000"),
    ("a source that is not declared", OK | {"model": "nowhere"}, 400, "SourceNotDeclared", None, "pvc://x/y"),
    ("an adapter without a version", OK | {"model": "unresolved"}, 503, "Resolving", "model", "not known yet"),
]
CHAT = {"model": "good", "messages": HELLO}


def said(**message: Any) -> dict[str, Any]:
    return {"model": "good", "messages": [message]}


CHATS: list[tuple[str, Any, int, str, str | None, str]] = [
    ("no messages", CHAT | {"messages": []}, 400, "InvalidRequest", "messages", "a list"),
    ("no content", said(role="user"), 400, "InvalidRequest", "messages[0].content", "missing"),
    ("a strange role", said(role="x", content="a"), 400, "InvalidRequest", "messages[0].role", "'user'"),
    ("a picture", said(role="user", content=[{"type": "image_url"}]), 400, "InvalidRequest", PART, "text"),
    ("an unknown field", said(role="user", content="a", mood=1), 400, "InvalidRequest", "messages[0].mood", "field"),
    ("tools", CHAT | {"tools": [{"type": "function"}]}, 400, "InvalidRequest", "tools[0].function", "missing"),
    ("max_completion_tokens 0", CHAT | {LIMIT: 0}, 400, "InvalidRequest", LIMIT, "from 1"),
    ("a prompt", CHAT | {"prompt": "a"}, 400, "InvalidRequest", "prompt", "not a parameter"),
]
CASES = [("/v1/completions", *row) for row in COMPLETIONS] + [("/v1/chat/completions", *row) for row in CHATS]


@pytest.mark.parametrize("case", CASES, ids=[f"{case[0].split('/')[2]}-{case[1]}" for case in CASES])
def test_a_bad_request_gets_one_clear_error(pod: Any, case: tuple[str, str, Any, int, str, str | None, str]) -> None:
    path, _, body, status, code, param, says = case
    reply = pod.post(path, body)
    assert reply.status == status, reply.content
    error = reply.json["error"]
    assert (error["code"], error["param"]) == (code, param), error
    assert says in error["message"]
    assert "hint: " in error["message"]
    assert error["type"] == {400: "invalid_request_error", 404: "not_found_error", 503: "service_unavailable"}[status]
    assert ("retry-after" in reply.headers) == (status == 503)


def test_the_good_one_serves_all_the_while(pod: Any) -> None:
    assert len(pod.text("good")) > 0
    states = {adapter["name"]: adapter["state"] for adapter in pod.get("/v1/adapters").json["data"]}
    assert states.pop("good") == "Mounted"
    assert states.pop("unresolved") == "Unresolved"
    assert set(states.values()) == {"Failed"}


def test_an_error_in_a_stream_s_request_is_an_error_and_no_stream(pod: Any) -> None:
    reply = pod.post("/v1/completions", OK | {"model": "large", "stream": True})
    assert (reply.status, reply.json["error"]["code"]) == (400, "RankTooHigh")


def test_a_body_without_end_is_cut_off(pod: Any) -> None:
    reply = pod.post("/v1/completions", b" " * (9 << 20))
    assert (reply.status, reply.json["error"]["code"]) == (413, "BodyTooLarge")
    assert "bytes" in reply.json["error"]["message"]


def test_what_is_no_route_is_told_so(pod: Any) -> None:
    assert pod.get("/v1/nothing").status == 404
    reply = pod.get("/v1/completions")
    assert (reply.status, reply.json["error"]["code"]) == (405, "InvalidRequest")
