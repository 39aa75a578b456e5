"""How a request may have its tokens chosen, told and ended, by the official client and its types."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

PROMPT = "the quick brown fox"
CHAT: list[Any] = [{"role": "user", "content": "Say something."}]
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}</>{% endfor %}"
    "{{ mood }}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def pod(make_pod: Callable[..., Any], make_adapter: Callable[..., Path]) -> Any:
    polite = make_adapter("polite")
    (polite / "generation_config.json").write_text(json.dumps({"repetition_penalty": 1.5, "do_sample": False}))
    (polite / "chat_template.jinja").write_text(TEMPLATE)
    pod = make_pod()
    pod.mount_set(pod.set_of(1, pod.entry("polite", polite), pod.entry("plain", make_adapter("plain"))))
    pod.start()
    pod.wait_ready()
    return pod


def test_a_checkpoint_s_own_penalty_holds_where_a_request_names_none(pod: Any) -> None:
    own, same, none = (
        pod.text("polite", prompt=PROMPT, max_tokens=24, **more)
        for more in ({}, {"repetition_penalty": 1.5}, {"repetition_penalty": 1})
    )
    assert own == same != none


def test_several_answers_to_several_prompts_come_in_order(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "plain", "prompt": [PROMPT, "hello"], "n": 3, "max_tokens": 8, "seed": 5}
    answer = client.completions.create(**options)
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert len({choice.text for choice in answer.choices}) == 6, "each draws by itself"
    assert [choice.text for choice in client.completions.create(**options).choices] == [c.text for c in answer.choices]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(PROMPT) + len("hello")
    alone = client.completions.create(**options | {"prompt": "hello", "n": 1})
    assert alone.choices[0].text == answer.choices[3].text


def test_several_answers_in_a_chat_s_stream_are_those_of_the_whole(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "plain", "messages": CHAT, "n": 2, "max_tokens": 8, "seed": 5}
    whole = client.chat.completions.create(**options)
    texts, roles = ["", ""], [0, 0]
    for chunk in client.chat.completions.create(**options, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            roles[choice.index] += choice.delta.role == "assistant"
    assert texts == [choice.message.content for choice in whole.choices]
    assert roles == [1, 1]


def test_log_probabilities_of_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="plain", prompt=PROMPT, max_tokens=6, temperature=0, logprobs=3)
    Completion.model_validate_json(answer.to_json(), strict=True)
    (choice,) = answer.choices
    told = choice.logprobs
    assert told is not None
    assert len(told.tokens or ()) == 6
    assert told.text_offset == [sum(map(len, (told.tokens or [])[:at])) for at in range(6)]
    for token, logprob, top in zip(told.tokens or (), told.token_logprobs or (), told.top_logprobs or (), strict=True):
        assert top[token] == logprob == max(top.values()), "greedy is the likeliest"
        assert 1 <= len(top) <= 3
    plain = client.completions.create(model="plain", prompt=PROMPT, max_tokens=6, temperature=0)
    assert plain.choices[0].text == choice.text
    assert plain.choices[0].logprobs is None


def test_log_probabilities_of_a_chat_whole_and_streamed(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "plain", "messages": CHAT, "max_tokens": 6, "temperature": 0}
    options |= {"logprobs": True, "top_logprobs": 2}
    answer = client.chat.completions.create(**options)
    ChatCompletion.model_validate_json(answer.to_json(), strict=True)
    told = answer.choices[0].logprobs
    assert told is not None
    assert told.content is not None
    assert [len(token.top_logprobs) for token in told.content] == [2] * 6
    assert all(token.top_logprobs[0].logprob == token.logprob for token in told.content)
    streamed: list[Any] = []
    for chunk in client.chat.completions.create(**options, stream=True):
        ChatCompletionChunk.model_validate_json(chunk.to_json(), strict=True)
        if chunk.choices[0].logprobs is not None:
            streamed += chunk.choices[0].logprobs.content or []
    assert [token.token for token in streamed] == [token.token for token in told.content]
    for ours, whole in zip(streamed, told.content, strict=True):  # a kept prompt is computed in other steps
        assert ours.logprob == pytest.approx(whole.logprob, abs=1e-4)
        assert [top.token for top in ours.top_logprobs] == [top.token for top in whole.top_logprobs]


def test_an_end_at_once_is_told_as_well_so_that_log_likelihoods_can_be_measured(pod: Any) -> None:
    """As lm-eval asks: the last entry is of the token that was generated, whichever that was."""
    asked: dict[str, Any] = {"prompt": list(range(70, 80)), "max_tokens": 1, "echo": True, "logprobs": 1}
    plain, ended = (pod.complete("plain", **asked, stop_token_ids=ids).json for ids in ([], list(range(320))))
    for answer in (plain, ended):
        assert answer["usage"] == {
            "prompt_tokens": 10,
            "completion_tokens": 1,
            "total_tokens": 11,
            "prompt_tokens_details": {"cached_tokens": 0},
        }
    assert plain["choices"][0]["logprobs"] == ended["choices"][0]["logprobs"]
    told = plain["choices"][0]["logprobs"]
    assert "".join(told["tokens"][:10]) == "".join(map(chr, range(103, 113))), "the prompt, token for token"
    assert [len(told[name]) for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")] == [11] * 4
    assert (told["token_logprobs"][0], told["top_logprobs"][0]) == (None, None)
    assert all(logprob < 0 for logprob in told["token_logprobs"][1:])


def test_a_bias_of_a_hundred_bans_or_brings_a_token(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "plain", "prompt": PROMPT, "max_tokens": 5, "temperature": 0}
    whole = client.completions.create(**options, logit_bias={"64": 100}).choices[0].text
    assert whole == "aaaaa"
    without = client.completions.create(**options, logit_bias={str(token): -100 for token in range(64)}).choices[0].text
    assert not set(without) & {chr(code) for code in range(33, 97)}
    with pytest.raises(openai.BadRequestError) as fault:
        client.completions.create(**options, logit_bias={"9999": 1})
    assert fault.value.param == "logit_bias"


def test_answers_end_where_the_request_says(pod: Any) -> None:
    whole = pod.complete("plain", PROMPT, max_tokens=40, logprobs=0, ignore_eos=True).json
    assert whole["usage"]["completion_tokens"] == 40
    ended = pod.complete("plain", PROMPT, max_tokens=40, stop_token_ids=list(range(320))).json
    assert (ended["choices"][0]["text"], ended["choices"][0]["finish_reason"]) == ("", "stop")
    assert ended["usage"]["completion_tokens"] == 1, "the token that ends it"
    later = pod.complete("plain", PROMPT, max_tokens=40, stop_token_ids=list(range(256)), min_tokens=1).json
    assert later["usage"]["completion_tokens"] >= 2


def test_a_prompt_may_be_cut_to_its_end(pod: Any) -> None:
    cut = pod.complete("plain", PROMPT, truncate_prompt_tokens=3).json
    assert cut["usage"]["prompt_tokens"] == 3
    assert cut["choices"][0]["text"] == pod.text("plain", prompt=PROMPT[-3:])
    fitted = pod.complete("plain", [70] * 300, truncate_prompt_tokens=-1, max_tokens=6).json
    assert fitted["usage"]["prompt_tokens"] == 250


def test_an_echo_comes_before_the_answer(pod: Any) -> None:
    plain, echoed = (pod.text("plain", prompt=PROMPT, echo=echo) for echo in (False, True))
    assert echoed == PROMPT + plain
    with pod.stream("plain", prompt=PROMPT, echo=True, max_tokens=8) as response:
        lines = [line[6:] for line in response.read().decode().split("\n") if line.startswith("data: {")]
    assert "".join(json.loads(line)["choices"][0]["text"] for line in lines) == echoed


def test_special_tokens_are_shown_where_they_are_asked_for(pod: Any) -> None:
    bias = {"logit_bias": {"256": 100}, "max_tokens": 3, "temperature": 0, "ignore_eos": True}
    assert pod.text("plain", **bias) == ""
    assert pod.text("plain", **bias, skip_special_tokens=False) == "<s>" * 3


def prompt_tokens(pod: Any, messages: Any = CHAT, **fields: Any) -> int:
    reply = pod.post("/v1/chat/completions", {"model": "polite", "messages": messages, "max_tokens": 1} | fields)
    assert reply.status == 200, reply.content
    return int(reply.json["usage"]["prompt_tokens"])


def test_a_template_is_told_what_the_request_says(pod: Any) -> None:
    usual = prompt_tokens(pod)
    assert prompt_tokens(pod, add_generation_prompt=False) == usual - len("<assistant>")
    assert prompt_tokens(pod, chat_template_kwargs={"mood": "sad"}) == usual + 3
    assert prompt_tokens(pod, chat_template_kwargs={"mood": "<s>"}) == usual + 3, "text, and no control token"
    begun = [*CHAT, {"role": "assistant", "content": "Once"}]
    assert prompt_tokens(pod, begun, continue_final_message=True) == usual + len("Once")
    reply = pod.post(
        "/v1/chat/completions", {"model": "polite", "messages": CHAT, "chat_template_kwargs": {"tools": 1}}
    )
    assert (reply.status, reply.json["error"]["param"]) == (400, "chat_template_kwargs.tools")


def test_each_chunk_tells_the_usage_so_far(client: openai.OpenAI) -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(
        client.completions.create(
            model="plain",
            prompt="hello",
            max_tokens=6,
            stream=True,
            stream_options=options,
            extra_body={"ignore_eos": True},
        )
    )
    counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage is not None]
    assert len(counts) == len(chunks)
    assert counts == sorted(counts)
    assert counts[-1] == 6


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 65, "prompt": ["a", "b"]}, "n"),
        ({"n": 0}, "n"),
        ({"min_p": 1.5}, "min_p"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"logprobs": 21}, "logprobs"),
        ({"logit_bias": {"5": 200}}, "logit_bias.5"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x"),
        ({"stop_token_ids": [999]}, "stop_token_ids"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
    ],
)
def test_what_has_no_meaning_is_refused(pod: Any, fields: dict[str, Any], param: str) -> None:
    reply = pod.complete("plain", **fields)
    assert (reply.status, reply.json["error"]["param"]) == (400, param), reply.content
