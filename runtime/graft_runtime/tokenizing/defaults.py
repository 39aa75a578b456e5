"""What a checkpoint's small files say for requests: its chat template, its end tokens, its values for sampling."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.tokenizing.files import MAX_SMALL_FILE_BYTES, read_bounded, read_config, read_small_file, text_of

CHAT_TEMPLATE_FILE = "chat_template.jinja"
PROCESSOR_TEMPLATE_FILE = "chat_template.json"
"""Where the processors of models that take images kept their template before Transformers 4.48 or so."""
GENERATION_FILE = "generation_config.json"
MODEL_FILE = "config.json"
TEXT_CONFIGS = ("decoder", "generator", "text_config")
"""Parts of config.json that may hold the values of a text model; Transformers looks at them in this order."""
MAX_TEMPLATE_CHARACTERS = 256 * 1024
MAX_END_TOKENS = 256
"""Of one checkpoint: all of them go with each request."""
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens")
LARGEST = 2**31 - 1
"""Of numbers that mean something: token ids, and as many tokens."""


@dataclass(frozen=True)
class GenerationDefaults:
    """What a request leaves to its checkpoint: a base model's, or an adapter's over its base's."""

    chat_template: str | None = None
    stop_tokens: frozenset[int] = frozenset()
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Values of generation_config.json, by the names in SAMPLING."""

    def over(self, base: GenerationDefaults) -> GenerationDefaults:
        """Return these where there are any, else those of the base; the end tokens of both."""
        return GenerationDefaults(
            self.chat_template or base.chat_template,
            base.stop_tokens | self.stop_tokens,
            {**base.sampling, **self.sampling},
        )


def read_defaults(
    directory: Path, token_id: Callable[[str], int | None], label: str, *, base: bool = False
) -> GenerationDefaults:
    """Read what a checkpoint's small files say. Blocking.

    Args:
        directory: in the cache.
        token_id: a token's text → its id or None.
        label: how errors call the checkpoint.
        base: whether it is a base model, whose config.json names its end tokens where there is no
            generation_config.json.

    Raises:
        GraftError: Corrupt, UnsafeFile.
    """
    config, token_names = read_config(directory, label)
    generation = read_small_file(directory / GENERATION_FILE, label)
    ends = _of_the_model(read_small_file(directory / MODEL_FILE, label)) if base and not generation else generation
    stops = _as_ids(ends.get("eos_token_id"))
    if len(stops) > MAX_END_TOKENS:
        what = f"{GENERATION_FILE} of {label} names {len(stops)} end tokens, expected at most {MAX_END_TOKENS}"
        raise GraftError(ErrorCode.UNSAFE_FILE, what, hint="name those that end an answer in `eos_token_id`")
    eos = text_of(token_names.get("eos_token"))
    if eos is not None and (found := token_id(eos)) is not None:
        stops.add(found)
    return GenerationDefaults(_template(directory, config, label), frozenset(stops), _sampling(generation))


def as_template(value: Any) -> str | None:
    """Return a template as tokenizer_config.json holds it: a string, or a list or mapping of named ones."""
    if isinstance(value, list):
        value = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
    if isinstance(value, dict):
        value = value.get("default")
    return value if isinstance(value, str) and value else None


def _of_the_model(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return config.json over the values of its text model: `GenerationConfig.from_model_config` of Transformers."""
    inner = next((part for name in TEXT_CONFIGS if isinstance(part := config.get(name), dict)), {})
    return {**inner, **{name: value for name, value in config.items() if value is not None}}


def _template(directory: Path, config: Mapping[str, Any], label: str) -> str | None:
    content = read_bounded(directory / CHAT_TEMPLATE_FILE, MAX_SMALL_FILE_BYTES, label)
    try:
        text = content.decode() if content else None
    except UnicodeDecodeError as error:
        raise GraftError(ErrorCode.CORRUPT, f"{CHAT_TEMPLATE_FILE} of {label} is not text in UTF-8: {error}") from None
    of_processor = read_small_file(directory / PROCESSOR_TEMPLATE_FILE, label).get("chat_template")
    template = text or as_template(of_processor) or as_template(config.get("chat_template"))
    if template is not None and len(template) > MAX_TEMPLATE_CHARACTERS:
        size = f"has {len(template)} characters, expected at most {MAX_TEMPLATE_CHARACTERS}"
        raise GraftError(ErrorCode.UNSAFE_FILE, f"the chat template of {label} {size}")
    return template


def _sampling(generation: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sampling values for requests that name none; `do_sample` false is greedy, true is not."""
    found: dict[str, Any] = {}
    for name in SAMPLING:
        value = generation.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= LARGEST:
            found[name] = value
    if generation.get("do_sample") is False:
        found["temperature"] = 0.0
    elif generation.get("do_sample") is True:
        found.setdefault("temperature", 1.0)  # not what its base may have
    return found


def _as_ids(value: Any) -> set[int]:
    values = value if isinstance(value, list) else [value]
    return {item for item in values if isinstance(item, int) and not isinstance(item, bool) and 0 <= item <= LARGEST}
