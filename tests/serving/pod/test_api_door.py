"""What clients, proxies and browsers do before any model is asked: methods, encodings, origins."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.config import BaseModelConfig

OWNED = "acme/tiny-1b"
PAGE = "https://chat.example.com"


@pytest.fixture(scope="module")
def pod(make_pod: Callable[..., Any]) -> Any:
    pod = make_pod(allowed_origins=(PAGE,))
    pod.mount_set(pod.set_of(1))
    pod.start(program=(str(Path(__file__).with_name("plain_engine.py")),))
    pod.wait_ready()
    return pod


BODY = {"model": "tiny", "prompt": "hello", "max_tokens": 3}
PREFLIGHT = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "authorization,x-stainless-os"}


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/completions", "POST"),
        ("PUT", "/v1/models", "GET, HEAD"),
        ("DELETE", "/v1/models/tiny", "GET, HEAD"),
    ],
)
def test_another_method_is_told_which_there_are(pod: Any, method: str, path: str, allowed: str) -> None:
    reply = pod.ask(method, path)
    assert (reply.status, reply.headers["allow"]) == (405, allowed)
    assert f"{method} {path}" in reply.json["error"]["message"]


def test_what_can_be_got_has_a_head(pod: Any) -> None:
    got, head = pod.ask("GET", "/v1/models"), pod.ask("HEAD", "/v1/models")
    assert (head.status, head.content) == (200, b"")
    assert head.headers["content-length"] == got.headers["content-length"] == str(len(got.content))
    assert pod.ask("HEAD", "/v1/models/nobody").status == 404
    assert pod.ask("HEAD", "/v1/completions").status == 405


def test_people_get_a_page_that_needs_nothing_from_elsewhere(pod: Any) -> None:
    page = pod.ask("GET", "/")
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'" in policy
    named = re.findall(r'(?:href|src)="([^#"]+)"', page.content.decode())
    assert named == ["page.css", "page.js"]
    files = [pod.ask("GET", f"/{name}") for name in named]
    assert [file.headers["content-type"] for file in files] == [
        f"text/{kind}; charset=utf-8" for kind in ("css", "javascript")
    ]
    assert not any(b"http:" in file.content or b"https:" in file.content for file in (page, *files))
    script = files[1].content.decode()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|srcdoc|\beval\b|Function\(", script)
    assert pod.ask("POST", "/").status == 404


def test_a_packed_body_is_answered_like_a_plain_one(pod: Any) -> None:
    packed = gzip.compress(json.dumps(BODY).encode())
    replies = [pod.post("/v1/completions", BODY), pod.ask("POST", "/v1/completions", packed, Content_Encoding="gzip")]
    assert [reply.status for reply in replies] == [200, 200]
    assert replies[0].json["choices"] == replies[1].json["choices"]
    strange = pod.ask("POST", "/v1/completions", packed, Content_Encoding="zstd")
    assert (strange.status, "`zstd`" in strange.json["error"]["message"]) == (400, True)


def test_pages_of_the_origins_that_the_pool_allows_may_ask_and_others_may_not(pod: Any) -> None:
    asked = pod.ask("OPTIONS", "/v1/chat/completions", Origin=PAGE, **PREFLIGHT)
    assert (asked.status, asked.headers["access-control-allow-origin"]) == (200, PAGE)
    assert "x-stainless-os" in asked.headers["access-control-allow-headers"].lower()
    answer = pod.ask("POST", "/v1/completions", BODY, Origin=PAGE)
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, PAGE)
    assert "x-request-id" in answer.headers["access-control-expose-headers"].lower()
    fault = pod.ask("POST", "/v1/completions", b"{", Origin=PAGE)
    assert (fault.status, fault.headers["access-control-allow-origin"]) == (400, PAGE)
    stranger = pod.ask("OPTIONS", "/v1/chat/completions", Origin="https://other.example.com", **PREFLIGHT)
    assert stranger.status == 400
    assert "access-control-allow-origin" not in stranger.headers


@pytest.fixture(scope="module")
def owned(make_pod: Callable[..., Any]) -> Any:
    """Return a pod with a base that is named as on the Hub."""
    source = Source(uri="pvc://shelf/base")
    pod = make_pod(base_model=BaseModelConfig(name=OWNED, source=source, dtype="float32"))
    pod.mount_set(pod.set_of(1))
    pod.start(program=(str(Path(__file__).with_name("plain_engine.py")),))
    pod.wait_ready()
    return pod


def test_a_pool_that_names_no_origin_allows_none(owned: Any) -> None:
    asked = owned.ask("OPTIONS", "/v1/chat/completions", Origin=PAGE, **PREFLIGHT)
    assert (asked.status, asked.headers["allow"]) == (405, "POST")
    answer = owned.ask("POST", "/v1/completions", BODY | {"model": OWNED}, Origin=PAGE)
    assert answer.status == 200
    assert "access-control-allow-origin" not in answer.headers


def test_a_base_may_be_named_as_on_the_hub(owned: Any) -> None:
    assert [card["id"] for card in owned.get("/v1/models").json["data"]] == [OWNED]
    assert owned.get(f"/v1/models/{OWNED}").json["id"] == OWNED
    assert owned.get("/v1/models/acme/other").status == 404
    assert owned.complete(OWNED).json["model"] == OWNED


def test_a_text_is_tokenized_and_its_tokens_are_text_again(pod: Any) -> None:
    made = pod.post("/tokenize", {"model": "tiny", "prompt": "hello", "return_token_strs": True}).json
    assert made == {
        "count": 5,
        "max_model_len": 4096,
        "tokens": [71, 68, 75, 75, 78],
        "token_strs": ["h", "e", "l", "l", "o"],
    }
    assert pod.post("/detokenize", {"model": "tiny", "tokens": [256, *made["tokens"]]}).json == {"prompt": "<s>hello"}
    chat = pod.post("/tokenize", {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}).json
    shown = pod.post("/detokenize", {"model": "tiny", "tokens": chat["tokens"]}).json["prompt"]
    assert shown == "<s><user>hello\n<assistant>"
    assert chat["token_strs"] is None


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {"model": "tiny", "prompt": ["a", "b"]}, 400, "prompt"),
        ("/tokenize", {"model": "nobody", "prompt": "a"}, 404, "model"),
        ("/tokenize", {"model": "tiny"}, 400, "prompt"),
        ("/detokenize", {"model": "tiny", "tokens": [320]}, 400, "tokens"),
        ("/detokenize", {"model": "tiny", "tokens": [-1]}, 400, "tokens[0]"),
        ("/detokenize", {"model": "tiny", "tokens": [1], "mood": 1}, 400, "mood"),
    ],
)
def test_what_can_not_be_tokenized_is_told_so(
    pod: Any, path: str, body: dict[str, Any], status: int, param: str
) -> None:
    reply = pod.post(path, body)
    assert (reply.status, reply.json["error"]["param"]) == (status, param), reply.content


def test_gateways_and_load_generators_find_what_they_ask_first(pod: Any) -> None:
    assert [pod.ask(*asked).status for asked in (("GET", "/health"), ("GET", "/ping"), ("POST", "/ping"))] == [200] * 3
    assert pod.ask("HEAD", "/health").status == 200
    assert pod.ask("GET", "/version").json == {"version": version("graft-runtime")}
    (card,) = pod.get("/v1/models").json["data"]
    assert {name: card[name] for name in ("id", "object", "owned_by", "root", "parent", "max_model_len")} == {
        "id": "tiny",
        "object": "model",
        "owned_by": "graft",
        "root": "tiny",
        "parent": None,
        "max_model_len": 4096,
    }


def test_the_document_of_the_api_has_its_routes_and_what_they_take(pod: Any) -> None:
    document = pod.ask("GET", "/openapi.json").json
    posted = {path for path, operations in document["paths"].items() if "post" in operations}
    texts = {"/v1/completions", "/v1/chat/completions", "/v1/responses", "/tokenize", "/detokenize", "/ping"}
    passes = {"/v1/embeddings", "/classify", "/score", "/v1/score", "/rerank", "/v1/rerank", "/v2/rerank"}
    assert posted == texts | passes
    schemas = document["components"]["schemas"]
    for name in re.findall(r'"\$ref": "#/components/schemas/(\w+)"', json.dumps(document)):
        assert name in schemas
    taken = document["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert taken == {"$ref": "#/components/schemas/CompletionBody"}
    assert schemas["CompletionBody"]["required"] == ["prompt"]
    assert {"n", "logprobs", "min_p", "stop"} <= schemas["CompletionBody"]["properties"].keys()
    fault = document["paths"]["/tokenize"]["post"]["responses"]["default"]["content"]["application/json"]["schema"]
    assert fault == {"$ref": "#/components/schemas/Error"}


def test_gateways_read_load_and_adapters_by_the_names_of_vllm(pod: Any) -> None:
    pod.complete("tiny")
    lines = pod.get("/metrics").content.decode().splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
        assert values[f'vllm:{name}{{model_name="tiny"}}'] == "0.0"
    info = 'vllm:lora_requests_info{max_lora="8",running_lora_adapters="",waiting_lora_adapters=""}'
    assert float(values[info]) > 1e9
    for name in ("time_to_first_token", "e2e_request_latency"):
        assert float(values[f'vllm:{name}_seconds_count{{model_name="tiny"}}']) >= 1
    assert 'vllm:inter_token_latency_seconds_count{model_name="tiny"}' in values
    assert not [line for line in lines if "_created" in line]
