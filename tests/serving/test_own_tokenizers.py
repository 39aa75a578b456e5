"""An adapter's own tokenizer: as Transformers loads it, in memory once where it is like its base's, never trusted."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from graft_runtime.contract.checkpoints import ADAPTER_FILE_PATTERNS
from graft_runtime.errors import GraftError
from graft_runtime.tokenizing.defaults import CHAT_TEMPLATE_FILE, GENERATION_FILE
from graft_runtime.tokenizing.files import (
    ADDED_TOKENS_FILE,
    CONFIG_FILE,
    MAX_TOKENIZER_BYTES,
    SPECIAL_TOKENS_FILE,
    TOKENIZER_FILE,
)
from graft_runtime.tokenizing.text_formats import (
    BaseTextFormat,
    TextFormat,
    TextFormats,
    highest_token,
    load_base_format,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

TEXTS = ["hello", " two  spaces\n", "Grüße 😀", "<s>twice", "<|tool|>call<|end|>", "a<pad></s>b", ""]


def test_all_that_is_read_is_part_of_the_digest() -> None:
    files = (TOKENIZER_FILE, CONFIG_FILE, SPECIAL_TOKENS_FILE, ADDED_TOKENS_FILE, CHAT_TEMPLATE_FILE, GENERATION_FILE)
    assert set(files) <= set(ADAPTER_FILE_PATTERNS)


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> BaseTextFormat:
    return load_base_format(tiny_base, tiny_base)


@pytest.fixture
def grown(tiny_base: Path, tmp_path: Path) -> Path:
    """The base's tokenizer with two tokens added, as Trainer saves it beside an adapter."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|tool|>"]})
    tokenizer.add_tokens(["<|end|>"])
    tokenizer.eos_token = "<|end|>"
    tokenizer.save_pretrained(tmp_path / "grown")
    return tmp_path / "grown"


async def text_format(base: BaseTextFormat, directory: Path, text_formats: TextFormats | None = None) -> TextFormat:
    if text_formats is None:
        text_formats = TextFormats()
        text_formats.base_loaded(base)
    return await text_formats.of(str(directory), directory, "mine")


def same_without_a_pod(base: Path, directory: Path, load: Callable[[], TextFormat]) -> TextFormat:
    """What a pod makes of a tokenizer, once `inspect` has said the same of it. Raises GraftError."""
    try:
        own = load()
    except GraftError as error:
        with pytest.raises(GraftError, match=f"^{re.escape(str(error))}$"):
            highest_token(base, directory, "adapter `mine`")
        raise
    assert highest_token(base, directory, "adapter `mine`") == own.highest_token
    return own


def edited(directory: Path, change: Callable[[Any], None], name: str = "tokenizer.json") -> Path:
    content = json.loads((directory / name).read_text())
    change(content)
    (directory / name).write_text(json.dumps(content))
    return directory


async def test_added_tokens_are_tokens_and_special_ones_leave_the_text(base: BaseTextFormat, grown: Path) -> None:
    from transformers import AutoTokenizer

    own, oracle = await text_format(base, grown), AutoTokenizer.from_pretrained(grown)
    for text in TEXTS:
        ids = own.tokenizer.encode(text)
        assert ids == oracle.encode(text)
        assert own.tokenizer.decode(ids) == oracle.decode(ids, skip_special_tokens=True)
    assert own.tokenizer.encode("<|tool|>") == [259] != base.text_format.tokenizer.encode("<|tool|>")
    assert own.highest_token == 260
    assert own.defaults.stop_tokens == {257, 260}, "the base's end token means the same here"
    template = own.defaults.chat_template
    assert template is not None
    messages = [{"role": "user", "content": "a tool b"}]
    chat = oracle.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert own.tokenizer.encode_chat(messages, template) == chat
    messages = [{"role": "user", "content": "a<|tool|>b<|end|>"}]
    ids = own.tokenizer.encode_chat(messages, template)
    assert not {259, 260} & {*ids}, "what a user writes is no special token"


async def test_what_is_alike_is_in_memory_once(
    base: BaseTextFormat, tiny_base: Path, grown: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    text_formats = TextFormats()
    text_formats.base_loaded(base)
    padding = AutoTokenizer.from_pretrained(tiny_base)
    padding("a", padding="max_length", truncation=True, max_length=4)  # what training leaves behind in the file
    padding.save_pretrained(tmp_path / "padding")
    assert '"padding": null' not in (tmp_path / "padding/tokenizer.json").read_text()
    same = await text_format(base, tmp_path / "padding", text_formats)
    assert same.tokenizer.fast is base.text_format.tokenizer.fast
    assert same.highest_token is None
    first = await text_format(base, grown, text_formats)
    edited(grown, lambda content: content.update(padding=None)).rename(tmp_path / "again")
    second = await text_format(base, tmp_path / "again", text_formats)
    assert first.tokenizer.fast is second.tokenizer.fast is not base.text_format.tokenizer.fast


async def test_a_vocabulary_of_its_own_is_used(base: BaseTextFormat, grown: Path) -> None:
    def merge(content: Any) -> None:
        vocabulary = content["model"]["vocab"]
        vocabulary["he"] = vocabulary.pop(next(token for token, number in vocabulary.items() if number == 200))
        content["model"]["merges"] = [["h", "e"]]

    own = await text_format(base, edited(grown, merge))
    assert own.tokenizer.encode("hello") == [200, 75, 75, 78]
    assert own.tokenizer.decode([200, 75]) == "hel"
    assert own.highest_token == 260


async def test_what_the_base_s_tokenizer_makes_too_is_no_fault(tiny_base: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.add_tokens([f"<|{number}|>" for number in range(100)])  # its embedding has 320 rows
    for name in ("large", "less"):
        tokenizer.save_pretrained(tmp_path / name)
    large = load_base_format(tmp_path / "large", tiny_base)
    edited(tmp_path / "less", lambda content: content["added_tokens"].pop())
    assert (await text_format(large, tmp_path / "less")).highest_token is None


async def test_end_tokens_of_the_base_that_mean_something_else_here_are_none(base: BaseTextFormat, grown: Path) -> None:
    def other(content: Any) -> None:
        for token in content["added_tokens"]:
            token["content"] = {"</s>": "<think>"}.get(token["content"], token["content"])

    (edited(grown, other) / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}')
    assert (await text_format(base, grown)).defaults.stop_tokens == {260}


async def test_tokens_added_beside_the_base_s_tokenizer_get_the_ids_that_the_files_name(
    base: BaseTextFormat, tmp_path: Path
) -> None:
    (tmp_path / "added_tokens.json").write_text('{"<|tool|>": 259, "<|end|>": 260}')
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": {"content": "<|end|>"}}')
    own = await text_format(base, tmp_path)
    assert own.tokenizer.encode("a<|end|>") == [64, 260]
    assert own.tokenizer.decode([64, 259, 260]) == "a<|tool|>"
    assert own.defaults.stop_tokens == {257, 260}
    (tmp_path / "added_tokens.json").write_text('{"<|tool|>": 270}')
    with pytest.raises(GraftError, match=r"'<\|tool\|>': id 270, makes 259") as caught:
        await text_format(base, tmp_path)
    assert caught.value.code == "Corrupt"


@pytest.mark.parametrize("adds", [True, False])
async def test_bos_is_as_the_adapter_s_files_say(
    base: BaseTextFormat, tmp_path: Path, tiny_base: Path, adds: bool
) -> None:
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(tiny_base, add_bos_token=adds).save_pretrained(tmp_path / "whole")
    (tmp_path / "config").mkdir()
    (tmp_path / "config/tokenizer_config.json").write_text(json.dumps({"add_bos_token": adds}))
    for directory in (tmp_path / "whole", tmp_path / "config"):
        own = await text_format(base, directory)
        assert own.tokenizer.encode("hi") == [256] * adds + [71, 72], directory
        assert own.tokenizer.encode("<s>hi") == [256, 71, 72]


def nested(content: Any) -> None:
    part: Any = {"type": "NFC"}
    for _ in range(100):
        part = {"type": "Sequence", "normalizers": [part]}
    content["normalizer"] = part


def growing(content: Any) -> None:
    replace = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}
    content["normalizer"] = {"type": "Sequence", "normalizers": [replace] * 15}


def with_pattern(content: Any) -> None:
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, content["pre_tokenizer"]]}


def with_template(content: Any) -> None:
    piece = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, *[piece] * 10_000],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [256], "tokens": ["<s>"]}},
    }


def sequence(stage: str, parts: str, kind: str, count: int) -> Callable[[Any], None]:
    fields: dict[str, dict[str, Any]] = {
        "ByteLevel": {"add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "BertNormalizer": dict.fromkeys(("clean_text", "handle_chinese_chars", "strip_accents", "lowercase"), True),
        "Metaspace": {"replacement": "x", "prepend_scheme": "always", "split": True},
    }
    part = {"type": kind, **fields[kind]}
    return lambda content: content.update({stage: {"type": "Sequence", parts: [part] * count}})


def of_words(content: Any) -> None:
    content["model"] = {
        "type": "WordPiece",
        "vocab": {"[UNK]": 0, "a": 1, "##a": 2},
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 1000,
    }


def of_long_pieces(content: Any) -> None:
    content["model"] = {"type": "Unigram", "vocab": [["?", 0.0], ["a" * 200, -1.0]], "unk_id": 0}


HOSTILE: dict[str, tuple[Callable[[Any], None], str, str]] = {
    "a slow pattern": (with_pattern, "UnsafeFile", "none of the base model's"),
    "text that grows": (growing, "UnsafeFile", "normalizer makes"),
    "an endless template": (with_template, "UnsafeFile", "entries"),
    "a foreign character map": (
        lambda content: content.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        "UnsafeFile",
        "precompiled_charsmap",
    ),
    "chance": (lambda content: content["model"].update(dropout=0.5), "UnsafeFile", "dropout"),
    "a token like a book": (lambda content: content["model"]["vocab"].update({"x" * 2000: 300}), "UnsafeFile", "2000"),
    "an added one": (
        lambda content: content["added_tokens"].append(content["added_tokens"][0] | {"id": 300, "content": "x" * 2000}),
        "UnsafeFile",
        "2000",
    ),
    "a negative id": (lambda content: content["added_tokens"][0].update(id=-1), "UnsafeFile", "id -1"),
    "an unknown part": (lambda content: content.update(decoder={"type": "Python"}), "UnsafeFile", "a part 'Python'"),
    "an unknown model": (
        lambda content: content["model"].update(type="Python"),
        "UnsafeFile",
        "model.type is 'Python'",
    ),
    "40 of ByteLevel": (
        sequence("pre_tokenizer", "pretokenizers", "ByteLevel", 40),
        "UnsafeFile",
        "pre_tokenizer has more than 16 parts",
    ),
    "two of ByteLevel": (
        sequence("pre_tokenizer", "pretokenizers", "ByteLevel", 2),
        "UnsafeFile",
        "pre_tokenizer has 2 parts 'ByteLevel', expected at most one",
    ),
    "two of Metaspace": (
        sequence("pre_tokenizer", "pretokenizers", "Metaspace", 2),
        "UnsafeFile",
        "pre_tokenizer has 2 parts 'Metaspace', expected at most one",
    ),
    "500 of BertNormalizer": (
        sequence("normalizer", "normalizers", "BertNormalizer", 500),
        "UnsafeFile",
        "normalizer has more than 16 parts",
    ),
    "words of 1,000 characters": (of_words, "UnsafeFile", "max_input_chars_per_word is 1000, expected at most 128"),
    "pieces of 200 characters": (of_long_pieces, "UnsafeFile", "a piece of 200 characters, expected at most 128"),
    "a merge of nothing": (
        lambda content: content["model"].update(merges=[["nobody", "knows"]]),
        "Corrupt",
        "can't be loaded",
    ),
    "nesting": (nested, "UnsafeFile", "normalizer has more than 16 parts"),
    "no model": (lambda content: content.pop("model"), "Corrupt", "model"),
    "ids that are text": (lambda content: content["model"]["vocab"].update(a="1"), "Corrupt", "tokenizers library"),
    "ids beyond an integer": (lambda content: content["model"]["vocab"].update(a=2**70), "Corrupt", "can't be loaded"),
}


@pytest.mark.parametrize("case", HOSTILE.values(), ids=HOSTILE.keys())
async def test_a_broken_or_hostile_tokenizer_is_a_fault(
    base: BaseTextFormat, grown: Path, case: tuple[Callable[[Any], None], str, str]
) -> None:
    change, code, says = case
    with pytest.raises(GraftError, match=says) as caught:
        await text_format(base, edited(grown, change))
    assert caught.value.code == code
    assert "`mine`" in caught.value.message


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "Corrupt"),
        (b"{}", "Corrupt"),
        (b"\xff\xfe", "Corrupt"),
        (b"[" * 100_000, "Corrupt"),
        (b'{"model": ' + b"[" * 100_000, "Corrupt"),
        (b'{"a": [' + b"[]," * 5_000_000, "UnsafeFile"),
        (None, "UnsafeFile"),
    ],
    ids=["nothing", "an empty object", "no text", "depth", "depth in the model", "a bomb", "a giant"],
)
async def test_a_tokenizer_that_is_no_json_of_the_library_is_a_fault(
    base: BaseTextFormat, tmp_path: Path, content: bytes | None, code: str
) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_bytes(content or b"{")
    if content is None:
        os.truncate(file, MAX_TOKENIZER_BYTES + 1)
    with pytest.raises(GraftError, match=r"tokenizer\.json of adapter `mine`") as caught:
        await text_format(base, tmp_path)
    assert caught.value.code == code


@pytest.mark.parametrize("file", [CONFIG_FILE, SPECIAL_TOKENS_FILE])
async def test_special_tokens_of_a_mebibyte_are_refused(base: BaseTextFormat, grown: Path, file: str) -> None:
    fields = {"extra_special_tokens": ["x" * (1 << 20)]}
    content = json.loads((grown / CONFIG_FILE).read_text())
    (grown / CONFIG_FILE).write_text(json.dumps(content | fields if file == CONFIG_FILE else {}))
    (grown / SPECIAL_TOKENS_FILE).write_text(json.dumps(fields))
    with pytest.raises(GraftError, match="a special token has 1048576 characters, expected at most 1024") as caught:
        await text_format(base, grown)
    assert caught.value.code == "UnsafeFile"


async def test_added_tokens_are_bounded_together(base: BaseTextFormat, grown: Path) -> None:
    tokens = {f"{number:x>1000}": 1000 + number for number in range(5000)}
    (grown / CONFIG_FILE).write_text("{}")
    (grown / ADDED_TOKENS_FILE).write_text(json.dumps(tokens))
    with pytest.raises(GraftError, match="characters together, expected at most 4194304") as caught:
        await text_format(base, grown)
    assert caught.value.code == "UnsafeFile"


async def test_a_template_that_takes_long_to_try_keeps_no_other_adapter_waiting(
    base: BaseTextFormat, tmp_path: Path
) -> None:
    text_formats, done = TextFormats(), list[str]()
    text_formats.base_loaded(base)
    long = "{% for a in range(3000) %}{% for b in range(900) %}{% endfor %}{% endfor %}{{ messages[0].content }}"
    for name, template in (("long", long), ("short", "{{ messages[0].content }}")):
        (tmp_path / name).mkdir()
        (tmp_path / name / CHAT_TEMPLATE_FILE).write_text(template)

    async def load(name: str) -> None:
        await text_format(base, tmp_path / name, text_formats)
        done.append(name)

    await asyncio.gather(load("long"), load("short"))
    assert done == ["short", "long"]


@pytest.mark.parametrize("fields", [{"bos_token": "\ud800"}, {"chat_template": "{{ '\ud800' }}"}, {"\udfff": 1}])
async def test_half_a_character_is_no_text(base: BaseTextFormat, grown: Path, fields: dict[str, Any]) -> None:
    edited(grown, lambda config: config.update(fields), "tokenizer_config.json")
    with pytest.raises(GraftError, match="surrogates not allowed") as caught:
        await text_format(base, grown)
    assert caught.value.code == "Corrupt"


async def test_code_and_links_are_refused(base: BaseTextFormat, grown: Path) -> None:
    edited(grown, lambda config: config.update(auto_map={"AutoTokenizer": ["x.Y", None]}), "tokenizer_config.json")
    with pytest.raises(GraftError, match="never run") as caught:
        await text_format(base, grown)
    assert caught.value.code == "UnsafeFile"
    (grown / "tokenizer_config.json").unlink()
    (grown / "tokenizer_config.json").symlink_to("/etc/passwd")
    with pytest.raises(GraftError, match="can't be opened") as caught:
        await text_format(base, grown)
    assert caught.value.code == "UnsafeFile"


async def test_paths_in_a_config_are_not_opened(base: BaseTextFormat, grown: Path) -> None:
    names = ("vocab_file", "tokenizer_file", "gguf_file", "tokenizer_object", "name_or_path")
    paths = dict.fromkeys(names, "/etc/passwd")
    edited(grown, lambda config: config.update(paths), "tokenizer_config.json")
    assert (await text_format(base, grown)).tokenizer.encode("a<|end|>") == [64, 260]


async def test_what_fails_in_the_library_is_a_fault_of_the_text(base: BaseTextFormat, grown: Path) -> None:
    def unknown(content: Any) -> None:
        content["model"]["vocab"]["zz"] = content["model"]["vocab"].pop("z")
        content["model"]["type"] = "WordPiece"
        content["model"] |= {"unk_token": "nowhere", "continuing_subword_prefix": "", "max_input_chars_per_word": 10}

    own = await text_format(base, edited(grown, unknown))
    assert own.tokenizer.encode("hello")
    with pytest.raises(GraftError, match="fails on this text") as caught:
        own.tokenizer.encode("zebra")
    assert caught.value.code == "Corrupt"


LEAVES = (
    "null",
    "true",
    "-1",
    "0",
    "300",
    str(2**70),
    "0.5",
    '""',
    '"<s>"',
    '"aaaaa"',
    "[]",
    "{}",
    "[[]]",
    '{"type": "BPE"}',
)


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_of_a_tokenizer_is_a_tokenizer_or_a_fault(
    base: BaseTextFormat, tiny_base: Path, grown: Path, data: Any
) -> None:
    """One value after another of the JSON is replaced by one of another kind; what loads, works, also where nobody
    serves it.
    """
    content = json.loads((base_file := grown / "tokenizer.json").read_text())
    for _ in range(data.draw(st.integers(1, 3))):
        place = content
        while True:
            keys: list[Any] = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys[-8:]))
            if isinstance(place[key], dict | list) and place[key] and data.draw(st.integers(0, 4)):
                place = place[key]
            else:
                place[key] = json.loads(data.draw(st.sampled_from(LEAVES)))
                break
    directory = grown / "changed"
    directory.mkdir(exist_ok=True)
    (directory / base_file.name).write_text(json.dumps(content))
    with contextlib.suppress(GraftError):
        own = same_without_a_pod(tiny_base, directory, lambda: asyncio.run(text_format(base, directory)))
        for text in TEXTS:
            with contextlib.suppress(GraftError):
                ids = own.tokenizer.encode(text)
                own.tokenizer.decode(ids)
                assert max(ids, default=0) <= max(own.highest_token or 0, 258)


async def test_many_text_formats_are_not_all_kept(
    base: BaseTextFormat, grown: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["graft_runtime.tokenizing.text_formats"]
    monkeypatch.setattr(module, "MAX_BYTES", 1)
    text_formats = TextFormats()
    text_formats.base_loaded(base)
    first = await text_formats.of("1", grown, "mine")
    assert await text_formats.of("1", grown, "mine") is first
    edited(grown, lambda content: content["added_tokens"].pop())
    await text_formats.of("2", grown, "mine")
    assert await text_formats.of("1", grown, "mine") is not first


WITHOUT_TORCH = """
import asyncio, sys
from pathlib import Path
from graft_runtime.tokenizing.text_formats import TextFormats, load_base_format

async def main(base, own):
    text_formats = TextFormats()
    text_formats.base_loaded(load_base_format(base, base))
    text_format = await text_formats.of("digest", own, "mine")
    text_format.tokenizer.encode_chat([{"role": "user", "content": "<|tool|>"}], text_format.defaults.chat_template)

asyncio.run(main(*map(Path, sys.argv[1:])))
print("tokenizers" in sys.modules, "torch" in sys.modules)
"""


def test_a_tokenizer_needs_no_torch(tiny_base: Path, grown: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, str(tiny_base), str(grown)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    assert ended.stdout.split() == ["True", "False"]
