"""Over HTTP: adapters with tokenizers, vocabularies and defaults of their own, and weighted sums of adapters."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from graft_runtime.contract.adapter_set import AdapterEntry
from graft_runtime.contract.config import EngineConfig

from tests.support.waiting import wait_until

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # peft's

CHAT = [{"role": "user", "content": "a<|tool|>b"}]


@pytest.fixture(scope="module")
def adapters(make_adapter: Callable[..., Path], tiny_base: Path) -> dict[str, Path]:
    found = {name: make_adapter(name) for name in ("plain", "other", "third", "marked", "broken", "beyond", "scaled")}
    found["activated"] = make_adapter("activated", alora_invocation_tokens=[64, 65])  # `ab`
    found["dora"] = make_adapter("dora", use_dora=True)
    found["grown"] = _grown(tiny_base, make_adapter("grown"))
    found["prompted"] = _prompted(tiny_base, found["plain"].parent.with_name("prompted"))
    _save_tokenizer(tiny_base, found["marked"], 1)
    _save_tokenizer(tiny_base, found["beyond"], 70)
    (found["marked"] / "generation_config.json").write_text('{"max_new_tokens": 3, "do_sample": false}')
    (found["third"] / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    (found["broken"] / "tokenizer.json").write_text('{"model": 1}')
    return found


def _save_tokenizer(base: Path, adapter: Path, count: int) -> None:
    """The base's, with so many tokens added: `<|tool|>` is 259."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|tool|>"]})
    tokenizer.add_tokens([f"<|{number}|>" for number in range(1, count)])
    tokenizer.save_pretrained(adapter)


def _grown(base: Path, adapter: Path) -> Path:
    """The adapter with rows for 331 tokens, of which it says the last or the first, and a tokenizer that has them."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(331)
    with torch.no_grad():
        model.get_input_embeddings().weight[330] = model.get_input_embeddings().weight[97]
        model.get_output_embeddings().weight[:330] = 0
        model.get_output_embeddings().weight[330] = torch.ones(32)
    PeftModel.from_pretrained(model, adapter).save_pretrained(adapter, save_embedding_layers=True)
    _save_tokenizer(base, adapter, 72)
    return adapter


def _prompted(base: Path, directory: Path) -> Path:
    """Six virtual tokens before every prompt."""
    from peft import PromptTuningConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=6)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def idle_pod(make_pod: Callable[..., Any]) -> Any:
    return make_pod(
        engine=EngineConfig(max_sequences=8, max_rank=16, max_mounted_adapters=3), drain_seconds=1, composition=True
    )


@pytest.fixture(scope="module")
def entries(idle_pod: Any, adapters: dict[str, Path]) -> list[AdapterEntry]:
    scales = {"scaled": 0.5, "dora": 2.0}
    entries = [idle_pod.entry(name, path, scale=scales.get(name, 1.0)) for name, path in adapters.items()]
    return [*entries, idle_pod.entry("whole", adapters["dora"])]


@pytest.fixture(scope="module")
def pod(idle_pod: Any, entries: list[AdapterEntry]) -> Any:
    pod = idle_pod
    pod.mount_set(pod.set_of(1, *entries))
    pod.start()
    pod.wait_ready()
    return pod


def summed(pod: Any, parts: dict[str, float], **fields: Any) -> Any:
    adapters = [{"name": name, "weight": weight} for name, weight in parts.items()]
    return pod.complete("tiny", adapters=adapters, **fields)


def test_a_sum_is_asked_of_a_pool_that_allows_it_alone(pod: Any, make_pod: Callable[..., Any], adapters: Any) -> None:
    strict = make_pod()
    strict.mount_set(strict.set_of(1, strict.entry("plain", adapters["plain"])))
    strict.start()
    strict.wait_ready()
    reply = strict.complete("tiny", adapters=[{"name": "plain"}])
    assert (reply.status, reply.json["error"]["code"], reply.json["error"]["param"]) == (
        400,
        "NotComposable",
        "adapters",
    )
    assert "spec.composition" in reply.json["error"]["message"]
    assert "x-graft-adapters" not in strict.complete("plain").headers
    assert summed(pod, {"plain": 1.0, "other": 0.5}).headers["x-graft-adapters"] == "plain, other"


def test_an_adapter_s_own_tokens_are_tokens(pod: Any) -> None:
    def tokens(model: str) -> int:
        return int(pod.complete(model, "a<|tool|>b", max_tokens=1).json["usage"]["prompt_tokens"])

    assert (tokens("plain"), tokens("marked")) == (10, 3)
    assert pod.text("marked", prompt="a<|tool|>b") == pod.text("marked", prompt=[64, 259, 65])


def test_an_adapter_s_own_control_tokens_are_text_in_a_message(pod: Any) -> None:
    chat = {"messages": CHAT, "max_tokens": 1}
    counts = [pod.post("/v1/chat/completions", chat | {"model": model}).json["usage"] for model in ("plain", "marked")]
    assert counts[0]["prompt_tokens"] == counts[1]["prompt_tokens"]


def test_an_adapter_s_own_defaults_are_its_own(pod: Any) -> None:
    def said(model: str) -> Any:
        return pod.post("/v1/completions", {"model": model, "prompt": "hello", "seed": 1}).json

    assert said("marked")["usage"]["completion_tokens"] == 3
    assert said("marked")["choices"][0]["text"] == pod.text("marked", max_tokens=3)
    assert said("plain")["usage"]["completion_tokens"] == 16


def test_token_ids_are_those_of_the_name_that_is_asked(pod: Any) -> None:
    for model, size in (("tiny", 320), ("plain", 320), ("marked", 320), ("grown", 331)):
        assert pod.complete(model, [1, size - 1]).status == 200
        reply = pod.complete(model, [1, size])
        assert (reply.status, reply.json["error"]["code"]) == (400, "InvalidRequest")
        assert f"0 to {size - 1}" in reply.json["error"]["message"]
    mixed = [{"name": "plain", "weight": 1}, {"name": "other", "weight": 1}]
    assert pod.complete("tiny", [320], adapters=mixed).status == 400


def test_virtual_tokens_are_part_of_the_context(pod: Any) -> None:
    for model, room in (("tiny", 256), ("prompted", 250)):
        assert pod.complete(model, [1] * (room - 1), max_tokens=1).status == 200
        assert pod.complete(model, [1] * (room - 4), max_tokens=None).json["usage"]["completion_tokens"] <= 4
        reply = pod.complete(model, [1] * room, max_tokens=1, stream=True)
        assert (reply.status, reply.json["error"]["code"]) == (400, "context_length_exceeded")
        assert f"This model's maximum context length is {room} tokens" in reply.json["error"]["message"]


def test_text_of_a_grown_vocabulary_comes_out(pod: Any) -> None:
    assert "<|71|>" in pod.text("grown", prompt="hello", max_tokens=3)


FAULTS = [
    ("broken", "Corrupt", "tokenizer.json of adapter `broken`"),
    ("beyond", "TokenizerMismatch", "up to 328, and the base model has 320 rows (0 … 319)"),
    ("dora", "NotScalable", "scale 2"),
]


@pytest.mark.parametrize(("name", "code", "says"), FAULTS)
def test_what_can_t_be_served_as_it_is_says_so(pod: Any, name: str, code: str, says: str) -> None:
    report = pod.report(name)
    assert (report.state, report.fault.code) == ("Failed", code)
    assert says in report.fault.message
    reply = pod.complete(name)
    assert (reply.status, reply.json["error"]["code"]) == (400, code)
    assert reply.json["error"]["message"] == report.fault.message


def test_a_dry_run_tells_of_the_tokenizer_too(pod: Any, entries: list[AdapterEntry]) -> None:
    def fault(name: str) -> Any:
        found = pod.inspect(next(entry.source for entry in entries if entry.name == name)).fault
        return found and found.code.value

    assert fault("marked") is None
    assert fault("broken") == "Corrupt"
    assert fault("beyond") == "TokenizerMismatch"
    assert fault("grown") is None


def test_a_weighted_sum_answers_through_the_official_client(pod: Any, client: openai.OpenAI) -> None:
    parts = [{"name": "plain", "weight": 0.5}, {"name": "other", "weight": 0.25}, {"name": "third", "weight": -1}]
    options: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": 16, "extra_body": {"adapters": parts}}
    raw = client.completions.with_raw_response.create(prompt="hello", **options)
    text = raw.parse().choices[0].text
    digests = {adapter["name"]: adapter["digest"] for adapter in pod.get("/v1/adapters").json["data"]}
    assert raw.headers["x-graft-adapter-digest"] == ", ".join(digests[part["name"]] for part in parts)
    streamed = [chunk.choices[0].text for chunk in client.completions.create(prompt="hello", stream=True, **options)]
    assert "".join(streamed) == text
    singly = [pod.text(name, max_tokens=16) for name in ("plain", "other", "third", "tiny")]
    assert text not in singly
    messages: Any = [{"role": "user", "content": "hello"}]
    chat = client.chat.completions.create(messages=messages, **options)
    pieces = list(client.chat.completions.create(messages=messages, stream=True, **options))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == chat.choices[0].message.content


def test_a_sum_is_talked_to_as_the_first_that_says_how(pod: Any) -> None:
    def prompt_tokens(**fields: Any) -> int:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}
        return int(pod.post("/v1/chat/completions", body | fields).json["usage"]["prompt_tokens"])

    assert prompt_tokens() == prompt_tokens(adapters=[{"name": "plain"}, {"name": "other"}]) == 24
    assert prompt_tokens(adapters=[{"name": "plain"}, {"name": "third"}]) == 5


def test_weights_multiply_scales_and_sum_up(pod: Any) -> None:
    long = {"prompt": "the quick brown fox", "max_tokens": 24}
    assert summed(pod, {"plain": 1}, **long).json["choices"] == pod.complete("plain", **long).json["choices"]
    assert summed(pod, {"scaled": 1}, **long).json["choices"] == pod.complete("scaled", **long).json["choices"]
    assert summed(pod, {"scaled": 2}, **long).json["choices"] != pod.complete("scaled", **long).json["choices"]
    assert summed(pod, {"plain": 0}, **long).json["choices"] == pod.complete("tiny", **long).json["choices"]
    assert summed(pod, {"whole": 1}, **long).json["choices"] == pod.complete("whole", **long).json["choices"]


def test_an_activated_adapter_answers_from_its_invocation_on(pod: Any) -> None:
    texts = {prompt: [pod.text(name, prompt=prompt) for name in ("tiny", "activated")] for prompt in ("xyz", "xabc")}
    assert texts["xyz"][0] == texts["xyz"][1]
    assert texts["xabc"][0] != texts["xabc"][1]
    assert summed(pod, {"activated": 1, "plain": 0}, prompt="xabc").json["choices"][0]["text"] == texts["xabc"][1]


def test_a_sum_ends_when_the_time_of_one_of_its_adapters_is_over(pod: Any, entries: list[AdapterEntry]) -> None:
    parts = [{"name": "plain", "weight": 0.5}, {"name": "other", "weight": 0.5}]
    whole = pod.status().adapter_set.generation
    with pod.stream("tiny", adapters=parts) as response:
        response.readline()
        os.kill(pod.engine_pid, signal.SIGSTOP)
        try:
            assert pod.push(pod.set_of(whole + 1, *(entry for entry in entries if entry.name != "other"))).status == 200
            wait_until(lambda: pod.report("other").state == "Draining")
            events = response.read().split(b"\n\n")
        finally:
            os.kill(pod.engine_pid, signal.SIGCONT)
    assert json.loads(events[-2].strip().removeprefix(b"data: "))["error"]["code"] == "model_not_found"
    assert pod.push(pod.set_of(whole + 2, *entries)).status == 200
    wait_until(lambda: pod.complete("other").status == 200)


BAD: list[tuple[str, dict[str, Any], int, str, str, str]] = [
    (
        "an adapter as model",
        {"model": "plain", "adapters": [{"name": "other"}]},
        400,
        "InvalidRequest",
        "model",
        "tiny",
    ),
    ("a stranger", {"adapters": [{"name": "plain"}, {"name": "x"}]}, 404, "model_not_found", "adapters[1].name", "'x'"),
    ("the base", {"adapters": [{"name": "tiny"}]}, 404, "model_not_found", "adapters[0].name", "'tiny'"),
    ("twice", {"adapters": [{"name": "a"}, {"name": "a"}]}, 400, "InvalidRequest", "adapters[1].name", "once"),
    ("five", {"adapters": [{"name": str(n)} for n in range(5)]}, 400, "InvalidRequest", "adapters", "up to 4"),
    ("no list", {"adapters": "plain"}, 400, "InvalidRequest", "adapters", "up to 4"),
    ("names only", {"adapters": ["plain"]}, 400, "InvalidRequest", "adapters[0]", "object"),
    ("no name", {"adapters": [{"weight": 1}]}, 400, "InvalidRequest", "adapters[0].name", "missing"),
    (
        "a huge weight",
        {"adapters": [{"name": "plain", "weight": 1e9}]},
        400,
        "InvalidRequest",
        "adapters[0].weight",
        "1000",
    ),
    ("true", {"adapters": [{"name": "plain", "weight": True}]}, 400, "InvalidRequest", "adapters[0].weight", "true"),
    ("a scale", {"adapters": [{"name": "plain", "scale": 1}]}, 400, "InvalidRequest", "adapters[0].scale", "1"),
    ("dora", {"adapters": [{"name": "plain"}, {"name": "whole"}]}, 400, "NotComposable", "adapters", "`whole` (LORA)"),
    ("dora, weighted", {"adapters": [{"name": "whole", "weight": 2}]}, 400, "NotComposable", "adapters", "no weight"),
    ("dora, scaled", {"adapters": [{"name": "dora"}]}, 400, "NotScalable", "adapters", "scale 2"),
    (
        "tokenizers",
        {"adapters": [{"name": "plain"}, {"name": "marked"}]},
        400,
        "NotComposable",
        "adapters",
        "tokenizers",
    ),
    (
        "too many",
        {"adapters": [{"name": n} for n in ("plain", "other", "third", "scaled")]},
        400,
        "NotComposable",
        "adapters",
        "at most 3",
    ),
    ("a prompt", {"adapters": [{"name": "plain"}, {"name": "prompted"}]}, 400, "NotComposable", "adapters", "PROMPT"),
    ("a broken one", {"adapters": [{"name": "plain"}, {"name": "broken"}]}, 400, "Corrupt", "adapters", "`broken`"),
]


@pytest.mark.parametrize("case", BAD, ids=[case[0] for case in BAD])
def test_a_sum_that_is_none_is_told_so(pod: Any, case: tuple[str, dict[str, Any], int, str, str, str]) -> None:
    _, fields, status, code, param, says = case
    reply = pod.post("/v1/completions", {"model": "tiny", "prompt": "hello", "max_tokens": 2} | fields)
    error = reply.json["error"]
    assert (reply.status, error["code"], error["param"]) == (status, code, param), error
    assert says in error["message"]
    assert "hint: " in error["message"]


def test_sums_are_counted_as_such_and_logged_with_their_parts(pod: Any) -> None:
    assert summed(pod, {"plain": 0.5, "other": 2}).status == 200
    assert (
        'graft_requests_total{adapter="composed",route="completions",status="200"}'
        in pod.get("/metrics").content.decode()
    )
    lines = [json.loads(line) for line in pod.log.splitlines() if '"adapters"' in line and '"route"' in line]
    assert lines[-1]["adapters"] == [{"name": "plain", "weight": 0.5}, {"name": "other", "weight": 2}]
    assert len(lines[-1]["digest"].split(", ")) == 2


def test_nothing_asked_of_adapters_is_the_model_itself(pod: Any) -> None:
    nothings: tuple[Any, ...] = (None, [])
    for nothing in nothings:
        assert pod.text("plain", adapters=nothing) == pod.text("plain")
