"""Text ↔ token ids, chat templates and what else a checkpoint's files say about talking to it. Holds no torch.

Importing this module is cheap; `Tokenizer.load` pulls in Transformers (seconds) and belongs in a thread.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graft_runtime.api.deadline import time_limit
from graft_runtime.errors import ErrorCode, GraftError

TOKENIZER_FILE = "tokenizer.json"
CHAT_TEMPLATE_FILE = "chat_template.jinja"
COMPANIONS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", CHAT_TEMPLATE_FILE)
MAX_TEMPLATE_CHARACTERS = 256 * 1024
MAX_SMALL_FILE_BYTES = 8 << 20
RENDER_SECONDS = 5.0
"""A chat template comes from whoever made the adapter, and must not keep a thread for ever."""


@dataclass(frozen=True)
class Manner:
    """How one checkpoint wants to be talked to; a base model's, or an adapter's over its base's."""

    chat_template: str | None = None
    stop_tokens: frozenset[int] = frozenset()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Sampling values of generation_config.json: temperature, top_p, top_k, max_new_tokens."""


class Tokenizer:
    """The base model's tokenizer. Safe to use from several threads."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._fast = backend.backend_tokenizer
        self._fast.no_padding()
        self._fast.no_truncation()
        self.size = len(backend)
        """Token ids below this mean something."""

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """Blocking. Raises GraftError: NotAModel."""
        from transformers.tokenization_utils_tokenizers import TokenizersBackend  # noqa: PLC0415 - seconds, and not at start

        try:
            return cls(TokenizersBackend.from_pretrained(str(directory), local_files_only=True))
        except Exception as error:
            raise GraftError(
                ErrorCode.NOT_A_MODEL,
                f"the base model's tokenizer can't be loaded: {type(error).__name__}: {error}",
                hint="save it again with the tokenizer's save_pretrained()",
            ) from error

    def encode(self, text: str) -> list[int]:
        """Plain text, with the special tokens that the tokenizer adds; BOS once, also where the text begins with it."""
        ids = self._encode(text, add_special_tokens=True)
        bos = self._backend.bos_token_id
        return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], template: str) -> list[int]:
        """A conversation, rendered in Jinja's sandbox and ready for the assistant's answer.

        Raises:
            GraftError: InvalidRequest, when the template refuses the messages.
        """
        try:
            with time_limit(RENDER_SECONDS):
                text = self._backend.apply_chat_template(
                    [dict(message) for message in messages],
                    chat_template=template,
                    tokenize=False,
                    add_generation_prompt=True,
                )
        except Exception as error:  # whatever a stranger's template raises
            raise GraftError(
                ErrorCode.INVALID_REQUEST,
                f"the chat template can't render `messages`: {error or type(error).__name__}",
                hint="use the roles and the order that the model was trained for",
                field="messages",
            ) from error
        return self._encode(text, add_special_tokens=False)

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """A batch of one: unlike `encode`, that lets Python's other threads run, and leaves offsets out."""
        (encoding,) = self._fast.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoding.ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._fast.decode(list(ids), skip_special_tokens=True)
        return text

    def token_id(self, token: str) -> int | None:
        found: int | None = self._fast.token_to_id(token)
        return found

    def manner(self, directory: Path) -> Manner:
        """What a base model's directory says. Blocking."""
        manner = read_manner(directory, self.token_id)
        eos = self._backend.eos_token_id
        stops = manner.stop_tokens | ({eos} if isinstance(eos, int) else set())
        template = manner.chat_template or _as_template(getattr(self._backend, "chat_template", None))
        return Manner(template, frozenset(stops), manner.defaults)


def prepare_conversion(source: Path, target: Path) -> None:
    """Puts beside the coming tokenizer.json what a tokenizer needs besides. Blocking."""
    target.mkdir(parents=True, exist_ok=True)
    for name in COMPANIONS:
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)


def over(adapter: Manner, base: Manner) -> Manner:
    """An adapter's manner where it has one, else its base's."""
    return Manner(
        adapter.chat_template or base.chat_template,
        base.stop_tokens | adapter.stop_tokens,
        {**base.defaults, **adapter.defaults},
    )


def read_manner(directory: Path, token_id: Any) -> Manner:
    """What a checkpoint's small files say. Blocking. A file that can't be read says nothing.

    Args:
        directory: in the cache.
        token_id: a token's text → its id or None.
    """
    config, generation = _read(directory / "tokenizer_config.json"), _read(directory / "generation_config.json")
    stops = _as_ids(generation.get("eos_token_id"))
    eos = config.get("eos_token")
    eos = eos.get("content") if isinstance(eos, dict) else eos
    if isinstance(eos, str) and (found := token_id(eos)) is not None:
        stops.add(found)
    return Manner(_template(directory, config), frozenset(stops), _defaults(generation))


def _template(directory: Path, config: Mapping[str, Any]) -> str | None:
    try:
        text = (directory / CHAT_TEMPLATE_FILE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        text = ""
    template = text or _as_template(config.get("chat_template"))
    return template if template and len(template) <= MAX_TEMPLATE_CHARACTERS else None


def _as_template(value: Any) -> str | None:
    """A template as tokenizer_config.json holds it: a string, or a list or mapping of named ones."""
    if isinstance(value, list):
        value = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
    if isinstance(value, dict):
        value = value.get("default")
    return value if isinstance(value, str) and value else None


def _defaults(generation: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling values for requests that name none; `do_sample: false` is greedy."""
    found: dict[str, Any] = {}
    for name in ("temperature", "top_p", "top_k", "max_new_tokens"):
        value = generation.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
            found[name] = value
    if generation.get("do_sample") is False:
        found["temperature"] = 0.0
    return found


def _as_ids(value: Any) -> set[int]:
    values = value if isinstance(value, list) else [value]
    return {item for item in values if isinstance(item, int) and not isinstance(item, bool)}


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            value = json.loads(file.read(MAX_SMALL_FILE_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
