"""Tokenizing without torch, and chat templates from strangers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from graft_runtime.errors import GraftError
from graft_runtime.tokenizing.defaults import GenerationDefaults, read_defaults
from graft_runtime.tokenizing.text_formats import load_base_format
from graft_runtime.tokenizing.tokenizer import Tokenizer

HELLO = [{"role": "user", "content": "hello"}]
HI = [{"role": "user", "content": "hi"}]
OVER_PARTS = "{% for part in messages[0]['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}!"


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> Tokenizer:
    return load_base_format(tiny_base, tiny_base).text_format.tokenizer


def test_it_tokenizes_as_transformers_does(tokenizer: Tokenizer, tiny_base: Path) -> None:
    from transformers import AutoTokenizer

    oracle = AutoTokenizer.from_pretrained(tiny_base)
    for text in ("hello", " two  spaces\n", "Grüße 😀", "</s><pad>x"):
        assert tokenizer.encode(text) == oracle.encode(text)
    template = load_base_format(tiny_base, tiny_base).text_format.defaults.chat_template
    assert template is not None
    ids = oracle.apply_chat_template(HELLO, add_generation_prompt=True, return_dict=False)
    assert tokenizer.encode_chat(HELLO, template) == ids


def test_bos_comes_once(tiny_base: Path, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    adding = PreTrainedTokenizerFast.from_pretrained(tiny_base, add_bos_token=True)
    adding.save_pretrained(tmp_path)
    tokenizer = load_base_format(tmp_path, tmp_path).text_format.tokenizer
    assert tokenizer.encode("hi") == [256, 71, 72] == tokenizer.encode("<s>hi")
    assert tokenizer.encode_chat(HI, "{{ bos_token }}{{ messages[0]['content'] }}") == [256, 71, 72]


def test_what_a_base_says_of_itself(tiny_base: Path) -> None:
    defaults = load_base_format(tiny_base, tiny_base).text_format.defaults
    assert defaults.stop_tokens == {257}
    assert defaults.chat_template is not None


@pytest.mark.parametrize(
    "template",
    ["{{ messages }}!", [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "{{ messages }}!"}]],
    ids=["text", "named ones"],
)
def test_an_adapter_s_own_defaults_go_over_its_base_s(tokenizer: Tokenizer, tmp_path: Path, template: Any) -> None:
    config = {"chat_template": template, "eos_token": {"content": "<pad>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 8], "temperature": 0.5, "top_k": true}')
    own = read_defaults(tmp_path, tokenizer.token_id, "it")
    base = GenerationDefaults("base's", frozenset({257}), {"temperature": 0.9, "top_p": 0.8})
    assert own.over(base) == GenerationDefaults(
        "{{ messages }}!", frozenset({7, 8, 257, 258}), {"temperature": 0.5, "top_p": 0.8}
    )
    assert GenerationDefaults().over(base) == base


def test_whether_it_samples_is_the_adapter_s_to_say(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for said, temperature in (("false", 0.0), ("true", 1.0), ('true, "temperature": 0.7', 0.7)):
        (tmp_path / "generation_config.json").write_text(f'{{"do_sample": {said}}}')
        own = read_defaults(tmp_path, tokenizer.token_id, "it")
        assert own.over(GenerationDefaults(sampling={"temperature": 0.0})).sampling["temperature"] == temperature


@pytest.mark.parametrize("content", ["", "not JSON", "[1]", "[" * 100_000, b"\xff", '{"a": "' + "b" * (8 << 20) + '"}'])
@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json"])
def test_small_files_that_are_nonsense_are_faults(
    tokenizer: Tokenizer, tmp_path: Path, name: str, content: str | bytes
) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(GraftError, match=f"{name} of it") as caught:
        read_defaults(tmp_path, tokenizer.token_id, "it")
    assert caught.value.code in {"Corrupt", "UnsafeFile"}


def test_end_tokens_without_end_are_a_fault(tokenizer: Tokenizer, tmp_path: Path) -> None:
    generation = tmp_path / "generation_config.json"
    generation.write_text(json.dumps({"eos_token_id": [*range(256)]}))
    assert len(read_defaults(tmp_path, tokenizer.token_id, "it").stop_tokens) == 256
    generation.write_text(json.dumps({"eos_token_id": [*range(1 << 18)]}))
    with pytest.raises(GraftError, match="names 262144 end tokens, expected at most 256") as caught:
        read_defaults(tmp_path, tokenizer.token_id, "it")
    assert caught.value.code == "UnsafeFile"


def test_values_that_mean_nothing_say_nothing(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": 7, "eos_token": []}')
    generation = (
        '{"eos_token_id": [-1, 1e3, %d], "temperature": -1, "top_k": true, "top_p": NaN, "max_new_tokens": 1e999}'
    )
    (tmp_path / "generation_config.json").write_text(generation % 2**70)
    assert read_defaults(tmp_path, tokenizer.token_id, "it") == GenerationDefaults()


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


def test_a_template_gets_text_or_parts_as_it_takes_them(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode_chat(HI, OVER_PARTS) == tokenizer.encode("hi!")
    both = "{% if messages[0]['content'] is string %}{{ messages[0]['content'] }}{% else %}parts{% endif %}!"
    assert tokenizer.encode_chat(HI, both) == tokenizer.encode("hi!")


def test_a_template_that_drops_a_user_s_text_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(GraftError, match="leaves the text of a user's message out") as caught:
        tokenizer.encode_chat(HI, "{% for part in messages[0]['content'] %}{{ part.nothing }}{% endfor %}assistant:")
    assert caught.value.code == "InvalidRequest"


def _with_files(tiny_base: Path, directory: Path, **files: Any) -> Path:
    shutil.copytree(tiny_base, directory, dirs_exist_ok=True)
    for name in ("generation_config.json", "chat_template.jinja"):
        (directory / name).unlink(missing_ok=True)
    for name, content in files.items():
        path = directory / name.replace("__", ".")
        told = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(content if isinstance(content, str) else json.dumps({**told, **content}))
    return directory


END_TOKENS: dict[str, dict[str, Any]] = {
    "config.json": {"config__json": {"eos_token_id": [257, 300]}},
    "one of config.json": {"config__json": {"eos_token_id": 299}},
    "generation_config.json alone, where there is one": {
        "config__json": {"eos_token_id": [257, 300]},
        "generation_config__json": {"eos_token_id": [257, 301]},
    },
}


@pytest.mark.parametrize("files", END_TOKENS.values(), ids=END_TOKENS.keys())
def test_end_tokens_are_those_that_transformers_finds(tiny_base: Path, tmp_path: Path, files: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM

    base = _with_files(tiny_base, tmp_path, **files)
    expected = AutoModelForCausalLM.from_pretrained(base).generation_config.eos_token_id
    expected = {expected} if isinstance(expected, int) else set(expected)
    assert load_base_format(base, base).text_format.defaults.stop_tokens == expected | {257}, (
        "the tokenizer's own is 257"
    )


def test_values_of_the_text_model_count_where_config_json_has_none(tiny_base: Path, tmp_path: Path) -> None:
    base = _with_files(tiny_base, tmp_path, config__json={"eos_token_id": None, "text_config": {"eos_token_id": 300}})
    assert load_base_format(base, base).text_format.defaults.stop_tokens == {257, 300}


@pytest.mark.parametrize(
    ("files", "template"),
    [
        ({"chat_template__json": {"chat_template": "json"}}, "json"),
        ({"chat_template__json": {"chat_template": "json"}, "chat_template__jinja": "jinja"}, "jinja"),
        ({"chat_template__json": {"chat_template": "json"}, "tokenizer_config__json": {"chat_template": "c"}}, "json"),
        ({"tokenizer_config__json": {"chat_template": "config"}}, "config"),
    ],
)
def test_the_chat_template_is_that_of_the_first_file(
    tiny_base: Path, tmp_path: Path, files: dict[str, Any], template: str
) -> None:
    base = _with_files(tiny_base, tmp_path, **files)
    assert load_base_format(base, base).text_format.defaults.chat_template == template
