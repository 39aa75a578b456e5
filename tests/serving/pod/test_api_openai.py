"""The official client and plain HTTP against one pod with a base and four adapters."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from graft_runtime.runners.decoder.kept_blocks import BLOCK

CHAT = [{"role": "user", "content": "Grüße! What is 7 × 6?"}]
OWN_TEMPLATE = "{% for message in messages %}[{{ message['content'] }}]{% endfor %}=>"
PROMPTS = ["hello", "the quick brown fox", "1, 2, 3,", "ü€😀"]


@pytest.fixture(scope="module")
def adapters(make_adapter: Callable[..., Path]) -> dict[str, Path]:
    found = {
        "plain": make_adapter("plain"),
        "attention": make_adapter("attention", target_modules=["q_proj", "v_proj"], r=8),
        "rslora": make_adapter("rslora", use_rslora=True, r=2, rank_pattern={"down_proj": 6}),
        "speaker": make_adapter("speaker"),
    }
    (found["speaker"] / "chat_template.jinja").write_text(OWN_TEMPLATE)
    return found


@pytest.fixture(scope="module")
def pod(make_pod: Callable[..., Any], adapters: dict[str, Path]) -> Any:
    pod = make_pod()
    pod.mount_set(pod.set_of(1, *(pod.entry(name, path) for name, path in adapters.items())))
    pod.start()
    pod.wait_ready()
    return pod


@pytest.fixture(scope="module")
def reference(tiny_base: Path, adapters: dict[str, Path]) -> Callable[..., str]:
    """`reference(model, text, count, special=True)`: what Transformers and PEFT answer, greedily, in float32."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        models = {"tiny": AutoModelForCausalLM.from_pretrained(tiny_base)}
        for name, path in adapters.items():
            models[name] = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), path)

    def answer(model: str, text: str, count: int, *, special: bool = True) -> str:
        inputs = tokenizer(text, return_tensors="pt", add_special_tokens=special, return_token_type_ids=False)
        with torch.inference_mode():
            whole = models[model].eval().generate(**inputs, do_sample=False, max_new_tokens=count)
        return str(tokenizer.decode(whole[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))

    return answer


MODELS = ["tiny", "plain", "attention", "rslora", "speaker"]


@pytest.mark.parametrize("model", MODELS)
def test_alone_each_name_answers_as_transformers_and_peft_do(pod: Any, reference: Any, model: str) -> None:
    for prompt in PROMPTS:
        assert pod.text(model, prompt=prompt, max_tokens=24) == reference(model, prompt, 24)


def test_mixed_in_one_batch_each_name_answers_as_alone(pod: Any, reference: Any) -> None:
    work = [(model, prompt) for prompt in PROMPTS for model in MODELS]
    with ThreadPoolExecutor(len(work)) as threads:
        texts = list(threads.map(lambda item: pod.text(item[0], prompt=item[1], max_tokens=24), work))
    assert texts == [reference(model, prompt, 24) for model, prompt in work]


def test_the_models_are_the_base_and_its_adapters(client: openai.OpenAI) -> None:
    models = {model.id: model for model in client.models.list()}
    assert list(models) == MODELS
    assert {name: model.model_dump()["parent"] for name, model in models.items()} == {
        "tiny": None,
        **dict.fromkeys(MODELS[1:], "tiny"),
    }
    assert client.models.retrieve("plain").id == "plain"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


def test_the_client_completes(client: openai.OpenAI, reference: Any) -> None:
    answer = client.completions.create(model="plain", prompt="hello", temperature=0, max_tokens=8)
    assert answer.choices[0].text == reference("plain", "hello", 8)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 8, 13)


def test_the_client_streams_chat_with_usage(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "plain", "messages": CHAT, "temperature": 0, "max_tokens": 32}
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks[:-1]]
    assert "".join(pieces) == whole.choices[0].message.content
    assert len(pieces) > 5
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason == "length"
    assert chunks[-1].choices == []
    usage = chunks[-1].usage
    counts = ("prompt_tokens", "completion_tokens", "total_tokens")
    assert [getattr(usage, count) for count in counts] == [getattr(whole.usage, count) for count in counts]
    assert usage.prompt_tokens_details.cached_tokens == (usage.prompt_tokens - 1) // BLOCK * BLOCK, "kept from `whole`"


def test_the_client_streams_completions(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "rslora", "prompt": ["hello", "bye"], "temperature": 0, "max_tokens": 16}
    whole = client.completions.create(**options)
    texts = ["", ""]
    for chunk in client.completions.create(**options, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in whole.choices]


async def test_the_asynchronous_client_works_too(pod: Any, reference: Any) -> None:
    async with openai.AsyncOpenAI(base_url=f"http://{pod.address}:8000/v1", api_key="none") as client:
        answer = await client.completions.create(model="tiny", prompt="hello", temperature=0, max_tokens=8)
    assert answer.choices[0].text == reference("tiny", "hello", 8)


async def test_a_burst_waits_for_its_places_and_nothing_of_it_fails(pod: Any) -> None:
    """Twelve and a half for each place, as 200 on 16, and the client tries none of them again."""
    options: dict[str, Any] = {"prompt": "hello", "temperature": 0, "max_tokens": 8}
    async with openai.AsyncOpenAI(base_url=f"http://{pod.address}:8000/v1", api_key="none", max_retries=0) as client:
        asked = [client.completions.create(model=MODELS[number % 2], **options) for number in range(100)]
        answers = await asyncio.gather(*asked)
    assert len({answer.choices[0].text for answer in answers}) == 2


def test_the_client_knows_a_prompt_over_the_context_and_an_unknown_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="plain", prompt="a" * 300)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "prompt")
    assert "This model's maximum context length is 256 tokens" in caught.value.message
    with pytest.raises(openai.NotFoundError) as unknown:
        client.completions.create(model="nobody", prompt="a")
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")


def test_chat_follows_the_base_s_template_and_an_adapter_s_own(pod: Any, reference: Any) -> None:
    def said(model: str) -> str:
        body = {"model": model, "messages": CHAT, "temperature": 0, "max_tokens": 16}
        return str(pod.post("/v1/chat/completions", body).json["choices"][0]["message"]["content"])

    content = CHAT[0]["content"]
    assert said("plain") == reference("plain", f"<s><user>{content}\n<assistant>", 16, special=False)
    assert said("speaker") == reference("speaker", f"[{content}]=>", 16, special=False)


def test_text_parts_of_a_message_are_put_together(pod: Any) -> None:
    parts = [{"type": "text", "text": "Grüße! "}, {"type": "text", "text": "What is 7 × 6?"}]
    bodies = [
        {"model": "plain", "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 8}
        for content in (parts, CHAT[0]["content"])
    ]
    first, second = (pod.post("/v1/chat/completions", body).json["choices"] for body in bodies)
    assert first == second


@pytest.mark.parametrize(
    "prompt", ["hello", ["hello"], [71, 68, 75, 75, 78], [[71, 68, 75, 75, 78]]], ids=["text", "texts", "ids", "lists"]
)
def test_every_form_of_a_prompt_means_the_same(pod: Any, reference: Any, prompt: Any) -> None:
    assert pod.text("plain", prompt=prompt) == reference("plain", "hello", 8)


def test_a_stop_string_ends_the_answer_before_it(pod: Any) -> None:
    whole = pod.text("tiny", prompt="the quick brown fox", max_tokens=32)
    stop = whole[10:13]
    reply = pod.complete("tiny", "the quick brown fox", max_tokens=32, stop=[stop, "never to be seen"]).json
    assert reply["choices"][0]["text"] == whole[: whole.index(stop)]
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert reply["usage"]["completion_tokens"] <= 32


def test_a_seed_makes_sampling_repeatable(pod: Any) -> None:
    options = {"temperature": 1, "top_p": 0.95, "top_k": 50, "max_tokens": 24}
    first, again, other = (pod.text("plain", seed=seed, **options) for seed in (7, 7, 8))
    assert first == again != other


def test_answers_say_which_bytes_and_which_request_they_are_of(pod: Any) -> None:
    listed = {adapter["name"]: adapter for adapter in pod.get("/v1/adapters").json["data"]}
    reply = pod.complete("plain")
    assert reply.headers["x-graft-adapter-digest"] == listed["plain"]["digest"]
    assert listed["plain"]["state"] == "Mounted"
    assert listed["attention"]["rank"] == 8
    assert "x-graft-adapter-digest" not in pod.complete("tiny").headers
    assert pod.get("/v1/models", request_id="my-id-1").headers["x-request-id"] == "my-id-1"
    assert len(pod.get("/v1/models", request_id="not plain!").headers["x-request-id"]) == 32


def test_metrics_count_by_adapter_and_no_stranger_makes_a_label(pod: Any) -> None:
    pod.complete("plain")
    pod.complete("a-stranger")
    text = pod.get("/metrics").content.decode()
    assert 'graft_requests_total{adapter="plain",route="completions",status="200"}' in text
    assert 'graft_adapters{state="Mounted"} 4.0' in text
    assert "a-stranger" not in text


def test_neutral_values_of_parameters_that_are_not_supported_pass(pod: Any) -> None:
    neutral = {"n": 1, "presence_penalty": 0.0, "logit_bias": {}, "user": "me", "logprobs": None, "echo": False}
    assert pod.complete("tiny", **neutral).status == 200


def test_events_are_well_formed(pod: Any) -> None:
    body = {"model": "plain", "prompt": "hello", "temperature": 0, "max_tokens": 4, "stream": True}
    reply = pod.post("/v1/completions", body)
    assert reply.headers["content-type"].startswith("text/event-stream")
    *events, done, rest = reply.content.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    assert all(json.loads(event.removeprefix(b"data: "))["object"] == "text_completion" for event in events)
