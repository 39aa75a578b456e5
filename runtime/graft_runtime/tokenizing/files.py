"""A checkpoint's tokenizer files, read with bounds. Holds neither torch nor Transformers."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from graft_runtime.errors import ErrorCode, GraftError

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
ADDED_TOKENS_FILE = "added_tokens.json"

MAX_TOKENIZER_BYTES = 64 << 20
"""Gemma's, with 262,144 tokens, has 32 MiB."""
MAX_SMALL_FILE_BYTES = 8 << 20
MAX_VALUES = 4_000_000
"""Of JSON in tokenizer.json, which take a hundred bytes each once they are read; Gemma's has two million."""
MAX_STAGE_BYTES = 4 << 20

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_PLACED = "added_tokens_decoder"
"""In tokenizer_config.json since Transformers 4.34: it replaces both of the older files."""
_LISTED_TOKENS = ("additional_special_tokens", "extra_special_tokens")


class AddedToken(msgspec.Struct, frozen=True):
    """A token beside the model's own, as tokenizer.json has it."""

    id: int
    content: str
    special: bool = False
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True


class Model(msgspec.Struct, frozen=True):
    """What makes tokens of words: of its fields, those that are judged."""

    vocab: dict[str, int] | list[tuple[str, float]]
    type: str | None = None
    dropout: float | None = None
    max_input_chars_per_word: int = 100

    def tokens(self) -> Iterator[tuple[str, int]]:
        """Iterate over text and id; a Unigram model's ids are the places in its list."""
        if isinstance(self.vocab, dict):
            return iter(self.vocab.items())
        return ((text, number) for number, (text, _) in enumerate(self.vocab))


class _Outline(msgspec.Struct, frozen=True):
    model: msgspec.Raw
    added_tokens: list[AddedToken] = []
    normalizer: msgspec.Raw = msgspec.Raw(b"null")
    pre_tokenizer: msgspec.Raw = msgspec.Raw(b"null")
    post_processor: msgspec.Raw = msgspec.Raw(b"null")
    decoder: msgspec.Raw = msgspec.Raw(b"null")


STAGES = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
ENCODING = STAGES[:2]
"""Those that see all of a text before the model does."""


class Pipeline:
    """A tokenizer.json. Its model, which is nearly all of it, stays text until somebody asks.

    Attributes:
        text: the whole file.
        added: tokens beside the model's, by id.
        stages: normalizer, pre_tokenizer, post_processor and decoder as JSON has them.

    Raises:
        GraftError: Corrupt, UnsafeFile.
    """

    def __init__(self, text: bytes, label: str) -> None:
        self._what = label
        if (values := sum(map(text.count, (b",", b"[", b"{")))) > MAX_VALUES:
            size = f"holds about {values} values, expected at most {MAX_VALUES}"
            raise GraftError(ErrorCode.UNSAFE_FILE, f"{TOKENIZER_FILE} of {label} {size}")
        outline = self._decoded(text, _Outline)
        self.text = text
        self.added = sorted(outline.added_tokens, key=lambda token: token.id)
        raw = {name: bytes(getattr(outline, name)) for name in STAGES}
        for name, part in raw.items():
            if len(part) > MAX_STAGE_BYTES:
                size = f"has {len(part)} bytes, expected at most {MAX_STAGE_BYTES}"
                raise GraftError(ErrorCode.UNSAFE_FILE, f"{name} in {TOKENIZER_FILE} of {label} {size}")
        self.stages: dict[str, Any] = {name: self._decoded(part, Any) for name, part in raw.items()}
        self._model = outline.model

    @cached_property
    def model(self) -> Model:
        """Return the model, decoded. Raises GraftError: Corrupt."""
        model: Model = self._decoded(bytes(self._model), Model)
        return model

    @cached_property
    def model_bytes_hash(self) -> str:
        return hashlib.sha256(memoryview(self._model)).hexdigest()

    @cached_property
    def model_hash(self) -> str:
        """Return the hash of what the model is, however it was written."""
        model = self._decoded(bytes(self._model), dict[str, Any])
        merges = model.get("merges")
        if isinstance(merges, list):  # pairs since tokenizers 0.20, before that text with a space between
            model["merges"] = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in merges]
        unset = {key for key, value in model.items() if value in (None, False)}  # which older versions left out
        return hashlib.sha256(
            msgspec.json.encode({key: model[key] for key in model if key not in unset}, order="sorted")
        ).hexdigest()

    def same_model(self, other: Pipeline) -> bool:
        """Return whether both make the same tokens of the same words."""
        return self.model_bytes_hash == other.model_bytes_hash or self.model_hash == other.model_hash

    def _decoded(self, text: bytes, kind: Any) -> Any:
        try:
            return msgspec.json.decode(text, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise GraftError(
                ErrorCode.CORRUPT,
                f"{TOKENIZER_FILE} of {self._what} is not what the tokenizers library writes: {error}",
                hint="save it again with the tokenizer's save_pretrained()",
            ) from None


@dataclass(frozen=True)
class TokenizerFiles:
    """What a checkpoint says of its tokenizer."""

    pipeline: Pipeline | None
    """Its tokenizer.json, where it has one."""
    config: Mapping[str, Any]
    """tokenizer_config.json."""
    named: Mapping[str, str]
    """`bos_token` and its like → text."""
    listed: tuple[str, ...]
    """Further special tokens."""
    placed: tuple[AddedToken, ...]
    """Tokens that the files beside tokenizer.json add, each with the id that it must have, by id."""


def read_tokenizer_files(directory: Path, label: str, known: Pipeline | None = None) -> TokenizerFiles:
    """Read what there is; nothing is judged but form and size. Blocking.

    Args:
        directory: in the cache.
        label: how errors call the checkpoint.
        known: what need not be taken apart once more.

    Raises:
        GraftError: Corrupt, UnsafeFile.
    """
    config, token_names = read_config(directory, label)
    text = read_bounded(directory / TOKENIZER_FILE, MAX_TOKENIZER_BYTES, label)
    pipeline = known if known is not None and text == known.text else None
    if pipeline is None and text is not None:
        pipeline = Pipeline(text, label)
    placed = config.get(_PLACED)
    added = read_small_file(directory / ADDED_TOKENS_FILE, label) if placed is None else {}
    named = {key: token for key in NAMED_TOKENS if (token := text_of(token_names.get(key))) is not None}
    listed = tuple(token for key in _LISTED_TOKENS for item in _items(token_names.get(key)) if (token := text_of(item)))
    return TokenizerFiles(
        pipeline=pipeline,
        config=config,
        named=named,
        listed=listed,
        placed=_placed(placed or {}, added, {*named.values(), *listed}, label),
    )


def read_config(directory: Path, label: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read tokenizer_config.json; return it, and it with the special tokens that older versions wrote beside it.

    Raises:
        GraftError: Corrupt, UnsafeFile.
    """
    config = read_small_file(directory / CONFIG_FILE, label)
    beside = read_small_file(directory / SPECIAL_TOKENS_FILE, label) if config.get(_PLACED) is None else {}
    return config, {**config, **beside}


def read_small_file(path: Path, label: str) -> dict[str, Any]:
    """Read the JSON object in a file, empty where there is none. Raises GraftError: Corrupt, UnsafeFile."""
    text = read_bounded(path, MAX_SMALL_FILE_BYTES, label)
    if text is None:
        return {}
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()  # half of a character is no text, and can't be sent on
    except (ValueError, RecursionError) as error:
        raise GraftError(ErrorCode.CORRUPT, f"{path.name} of {label} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise GraftError(ErrorCode.CORRUPT, f"{path.name} of {label} is not a JSON object")
    return value


def read_bounded(path: Path, limit: int, label: str) -> bytes | None:
    """Read a regular file's content; None where there is none. Raises GraftError: UnsafeFile."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise GraftError(ErrorCode.UNSAFE_FILE, f"{path.name} of {label} can't be opened: {error.strerror}") from None
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise GraftError(ErrorCode.UNSAFE_FILE, f"{path.name} of {label} is not a regular file")
        text = file.read(limit + 1)
    if len(text) > limit:
        raise GraftError(ErrorCode.UNSAFE_FILE, f"{path.name} of {label} has more than {limit} bytes")
    return text


def text_of(token: Any) -> str | None:
    """Return the text of a token as these files have it: its text, or an object with it."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) and token else None


def _placed(decoder: Any, added: Mapping[str, Any], special: set[str], label: str) -> tuple[AddedToken, ...]:
    try:
        tokens = [msgspec.convert({**token, "id": int(number)}, AddedToken) for number, token in decoder.items()]
        tokens += [
            msgspec.convert({"id": number, "content": text, "special": text in special}, AddedToken)
            for text, number in added.items()
        ]
    except (msgspec.ValidationError, AttributeError, TypeError, ValueError) as error:
        where = CONFIG_FILE if decoder else ADDED_TOKENS_FILE
        raise GraftError(
            ErrorCode.CORRUPT, f"{where} of {label} lists tokens in a form that is none: {error}"
        ) from None
    return tuple(sorted(tokens, key=lambda token: token.id))


def _items(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
