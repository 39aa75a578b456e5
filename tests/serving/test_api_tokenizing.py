"""Tokenizing without torch, and chat templates from strangers."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from graft_runtime.errors import GraftError
from graft_runtime.tokenizing import tokenizer as tokenizing
from graft_runtime.tokenizing.manner import Manner, over, read_manner
from graft_runtime.tokenizing.tokenizer import Tokenizer
from graft_runtime.tokenizing.voices import load_base_voice

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> Tokenizer:
    return load_base_voice(tiny_base, tiny_base).voice.tokenizer


def test_it_tokenizes_as_transformers_does(tokenizer: Tokenizer, tiny_base: Path) -> None:
    from transformers import AutoTokenizer

    oracle = AutoTokenizer.from_pretrained(tiny_base)
    for text in ("hello", " two  spaces\n", "Grüße 😀", "</s><pad>x"):
        assert tokenizer.encode(text) == oracle.encode(text)
    template = load_base_voice(tiny_base, tiny_base).voice.manner.chat_template
    assert template is not None
    ids = oracle.apply_chat_template(HELLO, add_generation_prompt=True, return_dict=False)
    assert tokenizer.encode_chat(HELLO, template) == ids


def test_bos_comes_once(tiny_base: Path, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    adding = PreTrainedTokenizerFast.from_pretrained(tiny_base, add_bos_token=True)
    adding.save_pretrained(tmp_path)
    tokenizer = load_base_voice(tmp_path, tmp_path).voice.tokenizer
    assert tokenizer.encode("hi") == [256, 71, 72] == tokenizer.encode("<s>hi")
    assert tokenizer.encode_chat(HELLO, "{{ bos_token }}hi") == [256, 71, 72]


def test_what_a_base_says_of_itself(tiny_base: Path) -> None:
    manner = load_base_voice(tiny_base, tiny_base).voice.manner
    assert manner.stop_tokens == {257}
    assert manner.chat_template is not None


@pytest.mark.parametrize(
    "template",
    ["{{ messages }}!", [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "{{ messages }}!"}]],
    ids=["text", "named ones"],
)
def test_an_adapter_s_own_manner_goes_over_its_base_s(tokenizer: Tokenizer, tmp_path: Path, template: Any) -> None:
    config = {"chat_template": template, "eos_token": {"content": "<pad>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 8], "temperature": 0.5, "top_k": true}')
    own = read_manner(tmp_path, tokenizer.token_id, "it")
    base = Manner("base's", frozenset({257}), {"temperature": 0.9, "top_p": 0.8})
    assert over(own, base) == Manner("{{ messages }}!", frozenset({7, 8, 257, 258}), {"temperature": 0.5, "top_p": 0.8})
    assert over(Manner(), base) == base


def test_whether_it_samples_is_the_adapter_s_to_say(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for said, temperature in (("false", 0.0), ("true", 1.0), ('true, "temperature": 0.7', 0.7)):
        (tmp_path / "generation_config.json").write_text(f'{{"do_sample": {said}}}')
        own = read_manner(tmp_path, tokenizer.token_id, "it")
        assert over(own, Manner(defaults={"temperature": 0.0})).defaults["temperature"] == temperature


@pytest.mark.parametrize("content", ["", "not JSON", "[1]", "[" * 100_000, b"\xff", '{"a": "' + "b" * (8 << 20) + '"}'])
@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json"])
def test_small_files_that_are_nonsense_are_faults(
    tokenizer: Tokenizer, tmp_path: Path, name: str, content: str | bytes
) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(GraftError, match=f"{name} of it") as caught:
        read_manner(tmp_path, tokenizer.token_id, "it")
    assert caught.value.code in {"Corrupt", "UnsafeFile"}


def test_values_that_mean_nothing_say_nothing(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": 7, "eos_token": []}')
    generation = (
        '{"eos_token_id": [-1, 1e3, %d], "temperature": -1, "top_k": true, "top_p": NaN, "max_new_tokens": 1e999}'
    )
    (tmp_path / "generation_config.json").write_text(generation % 2**70)
    assert read_manner(tmp_path, tokenizer.token_id, "it") == Manner()


HOSTILE = {
    "a refusal": ("{{ raise_exception('system only') }}", "system only"),
    "bad syntax": ("{% for %}", "can't render"),
    "an unknown filter": ("{{ messages | nothing }}", "can't render"),
    "a way out of the sandbox": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    "another way out": ("{{ messages.append.__globals__ }}{{ (messages|attr('__class__')).x.y }}", "can't render"),
    "a change of the messages": ("{{ messages.clear() }}", "unsafe"),
    "a range without end": ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
}


@pytest.mark.parametrize(("template", "says"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_bad_template_is_an_error_of_the_request(tokenizer: Tokenizer, template: str, says: str) -> None:
    with pytest.raises(GraftError, match=says) as caught:
        tokenizer.encode_chat(HELLO, template)
    assert caught.value.code == "InvalidRequest"


def test_a_template_without_end_is_stopped(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizing, "RENDER_SECONDS", 0.2)
    ranges = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    started = time.monotonic()
    with pytest.raises(GraftError, match=r"took more than 0\.2 s"):
        tokenizer.encode_chat(HELLO, ranges)
    assert time.monotonic() - started < 10
    assert tokenizer.encode_chat(HELLO, "hi") == [71, 72], "the thread is fit for the next one"
