"""Whether a stranger's tokenizer may run in the process that every tenant shares: bounded work, and no code.

An adapter's tokenizer may bring other words than its base's and other special tokens. What normalizes, splits and
decodes must be of known parts: no regular expression that nobody knows (they are matched by backtracking, in a thread
that can't be stopped), and no rule by which text grows a hundredfold.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from graft_runtime.errors import ErrorCode, GraftError, cut, shown
from graft_runtime.tokenizing.files import Model, Pipeline, TokenizerFiles
from graft_runtime.tokenizing.stages import MODELS, stage_faults

MAX_TOKENS = 1 << 20
MAX_TOKEN_CHARACTERS = 1024
MAX_ADDED_TOKENS = 1 << 18
"""Beside the model's own; those that speak have 200,000."""
MAX_ADDED_CHARACTERS = 4 << 20
"""Of all of them: the machine that looks for them in a text takes 30 times as many bytes."""
MAX_ENTRIES = 4096
"""Objects, lists and values in the stages around the model."""
MAX_GROWTH = 64
"""Characters that normalizing or decoding may make of one."""
MAX_WORD_CHARACTERS = 128
"""Of WordPiece's words and of Unigram's pieces: both models take time that is quadratic in them. BERT's has 100."""
MAX_TEMPLATE_TOKENS = 64

PUBLISHED_PATTERNS = frozenset(
    {
        r" {2,}",
        r"\s",
        r"\s+",
        r"\d",
        r"\p{N}{1,3}",
        r"[\r\n]",
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    }
)
"""Of GPT-2, Qwen, Llama and Mistral, with which Transformers saves tokenizers of bases that have another."""


def check_tokenizer(files: TokenizerFiles, base: Pipeline, label: str) -> None:
    """Check that a tokenizer may run here. Raises GraftError: UnsafeFile, Corrupt.

    Args:
        files: of an adapter.
        base: its base's, of which every part is known.
        label: how errors call the adapter.
    """
    if "auto_map" in files.config:
        raise GraftError(
            ErrorCode.UNSAFE_FILE,
            f"tokenizer_config.json of {label} has `auto_map`: a tokenizer that is Python code, which is never run",
            hint="save a tokenizer of the tokenizers library beside the adapter, or none to use the base model's",
        )
    added = [*files.placed, *(files.pipeline.added if files.pipeline is not None else ())]
    faults = [*_token_faults([(token.content, token.id) for token in added]), *_added_faults(files, len(added))]
    if files.pipeline is not None:
        faults += _stage_faults(files.pipeline, base)
        if not files.pipeline.same_model(base):
            faults += _model_faults(files.pipeline.model)
    if faults:
        raise GraftError(
            ErrorCode.UNSAFE_FILE,
            f"the tokenizer of {label} is not one that may run here",
            details=shown(faults),
            hint="save the base model's tokenizer beside the adapter, with tokens added to it, or none",
        )


def template_ids(processor: Any) -> Iterator[int]:
    """Return ids that a post-processor adds: `ids` of a template, the pairs `cls` and `sep` of BERT's and RoBERTa's."""
    for part in _entries([processor]):
        if isinstance(part, dict):
            ids = part.get("ids")
            pairs = [pair for key in ("cls", "sep") if isinstance(pair := part.get(key), list)]
            found = [*(ids if isinstance(ids, list) else ()), *(item for pair in pairs for item in pair)]
            yield from (item for item in found if isinstance(item, int))


def _stage_faults(pipeline: Pipeline, base: Pipeline) -> Iterator[str]:
    entries = sum(1 for _ in _entries(pipeline.stages.values()))
    if entries > MAX_ENTRIES:
        yield f"normalizer, pre_tokenizer, post_processor and decoder have {entries} entries, at most {MAX_ENTRIES}"
        return
    yield from stage_faults(pipeline.stages, base.stages)
    for pattern in _values(pipeline, "Regex") - _values(base, "Regex") - PUBLISHED_PATTERNS:
        yield f"the pattern {cut(pattern, 60)!r} is none of the base model's"
    if _values(pipeline, "precompiled_charsmap") - _values(base, "precompiled_charsmap"):
        yield "normalizer.precompiled_charsmap is not the base model's"
    for stage in ("normalizer", "decoder"):
        if (growth := _growth(pipeline.stages[stage])) > MAX_GROWTH:
            yield f"{stage} makes {growth} characters or more of one, expected at most {MAX_GROWTH}"
    if (count := sum(1 for _ in template_ids(pipeline.stages["post_processor"]))) > MAX_TEMPLATE_TOKENS:
        yield f"post_processor adds {count} tokens, expected at most {MAX_TEMPLATE_TOKENS}"


def _model_faults(model: Model) -> Iterator[str]:
    yield from _token_faults(list(model.tokens()))
    if model.type is not None and model.type not in MODELS:
        yield f"model.type is {cut(model.type, 40)!r}, expected {', '.join(sorted(MODELS))}"
    if model.dropout:
        yield f"model.dropout is {model.dropout:g}, expected none: the same text would not give the same tokens"
    if model.max_input_chars_per_word > MAX_WORD_CHARACTERS:
        words = model.max_input_chars_per_word
        yield f"model.max_input_chars_per_word is {words}, expected at most {MAX_WORD_CHARACTERS}"
    if (
        isinstance(model.vocab, list)
        and (longest := max((len(text) for text, _ in model.vocab), default=0)) > MAX_WORD_CHARACTERS
    ):
        yield f"model.vocab has a piece of {longest} characters, expected at most {MAX_WORD_CHARACTERS}"


def _added_faults(files: TokenizerFiles, placed: int) -> Iterator[str]:
    """Return what is wrong with the tokens beside the model's, of which so many have an id in the files."""
    named = [*files.named.values(), *files.listed]
    if (count := placed + len(files.listed)) > MAX_ADDED_TOKENS:
        yield f"{count} tokens are added, expected at most {MAX_ADDED_TOKENS}"
    if (longest := max(map(len, named), default=0)) > MAX_TOKEN_CHARACTERS:
        yield f"a special token has {longest} characters, expected at most {MAX_TOKEN_CHARACTERS}"
    tokens = [*files.placed, *(files.pipeline.added if files.pipeline is not None else ())]
    if (characters := sum(map(len, named)) + sum(len(token.content) for token in tokens)) > MAX_ADDED_CHARACTERS:
        yield f"added tokens have {characters} characters together, expected at most {MAX_ADDED_CHARACTERS}"


def _token_faults(tokens: list[tuple[str, int]]) -> Iterator[str]:
    if len(tokens) > MAX_TOKENS:
        yield f"it has {len(tokens)} tokens, expected at most {MAX_TOKENS}"
    longest, number = max(tokens, key=lambda token: len(token[0]), default=("", 0))
    if len(longest) > MAX_TOKEN_CHARACTERS:
        yield f"token {number} has {len(longest)} characters, expected at most {MAX_TOKEN_CHARACTERS}"
    lowest = min((number for _, number in tokens), default=0)
    if lowest < 0:
        yield f"a token has the id {lowest}, expected ids from 0"


def _entries(values: Iterable[Any]) -> Iterator[Any]:
    """Iterate over these values and all inside them."""
    waiting = list(values)
    while waiting:
        part = waiting.pop()
        yield part
        waiting.extend(part.values() if isinstance(part, dict) else part if isinstance(part, list) else ())


def _values(pipeline: Pipeline, key: str) -> set[str]:
    """Iterate over all that stands under this key in its stages."""
    parts = _entries(pipeline.stages.values())
    return {str(part[key]) for part in parts if isinstance(part, dict) and part.get(key)}


def _growth(stage: Any) -> int:
    """Return the characters that a stage makes of one: the product of what each of its parts does."""
    growth = 1
    for part in _entries([stage]):
        if isinstance(part, dict):
            growth *= _growth_of(part)
        if growth > MAX_GROWTH:
            break
    return growth


def _growth_of(part: dict[str, Any]) -> int:
    texts = (part.get(key) for key in ("content", "prepend", "replacement", "prefix", "suffix", "cleanup"))
    longest = max((len(text) for text in texts if isinstance(text, str)), default=0)
    pattern = part.get("pattern")
    replaced = pattern.get("String") if isinstance(pattern, dict) else None
    if isinstance(replaced, str) and replaced:
        return max(1, -(-longest // len(replaced)))
    return longest + 1 if pattern is not None else max(1, longest)
