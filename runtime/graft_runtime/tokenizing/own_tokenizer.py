"""An adapter's own tokenizer, built from its files and its base's.

Nearly always it is the base's with tokens added, so what is alike is shared: the same tokenizer altogether, or the same
model (vocabulary and merges: hundreds of megabytes, and seconds) with other tokens beside it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from graft_runtime.errors import ErrorCode, GraftError, shown
from graft_runtime.tokenizing.checks import check_tokenizer, template_ids
from graft_runtime.tokenizing.encoding import ForeignTokenizer
from graft_runtime.tokenizing.files import (
    ADDED_TOKENS_FILE,
    CONFIG_FILE,
    ENCODING,
    SPECIAL_TOKENS_FILE,
    STAGES,
    TOKENIZER_FILE,
    AddedToken,
    Pipeline,
    TokenizerFiles,
    read_tokenizer_files,
)
from graft_runtime.tokenizing.tokenizer import bare

_NO_MODEL = {"type": "WordLevel", "vocab": {"?": 0}, "unk_token": "?"}


@dataclass(frozen=True)
class Recipe:
    """What a tokenizer is made of."""

    pipeline: Pipeline
    places: tuple[AddedToken, ...]
    """Tokens to add to those of the pipeline, by id."""
    specials: tuple[str, ...]
    """Tokens to mark as special, or to add as such."""

    def identity(self, base: Pipeline | None = None) -> str:
        """Return a hash that is equal for recipes of the same tokenizer over the same base. Blocking."""
        same = base is None or self.pipeline.same_model(base)
        model = (base or self.pipeline).model_bytes_hash if same else self.pipeline.model_hash
        said = [model, self.pipeline.stages, self.pipeline.added, self.places, self.specials]
        return hashlib.sha256(msgspec.json.encode(said, order="sorted")).hexdigest()


def recipe(files: TokenizerFiles, base: Recipe | None = None) -> Recipe:
    """Return what it is made of. An adapter's without a tokenizer.json adds its tokens to those of its base."""
    inherited = base if files.pipeline is None else None
    pipeline = files.pipeline or (base.pipeline if base is not None else None)
    assert pipeline is not None
    places = [*(inherited.places if inherited else ()), *files.placed]
    names = [*(inherited.specials if inherited else ()), *files.named.values(), *files.listed]
    known = {token.content: token for token in pipeline.added}
    new = {token.content: token for token in places if token.content not in known}
    marked = {token.content for token in [*known.values(), *new.values()] if token.special}
    return Recipe(
        pipeline,
        tuple(sorted(new.values(), key=lambda token: token.id)),
        tuple(dict.fromkeys(name for name in names if name not in marked)),
    )


def brings_one(directory: Path) -> bool:
    """Return whether an adapter's checkpoint says anything of a tokenizer."""
    files = {TOKENIZER_FILE, CONFIG_FILE, SPECIAL_TOKENS_FILE, ADDED_TOKENS_FILE}
    return not files.isdisjoint(os.listdir(directory))


def read_own(directory: Path, base: Recipe, label: str) -> tuple[TokenizerFiles, Recipe]:
    """Read what an adapter says of its tokenizer, and what that is made of; check that it may run here. Blocking.

    Args:
        directory: of the adapter.
        base: its base's.
        label: how errors call the adapter.

    Raises:
        GraftError: Corrupt, UnsafeFile.
    """
    files = read_tokenizer_files(directory, label, base.pipeline)
    check_tokenizer(files, base.pipeline, label)
    return files, recipe(files, base)


def build(own: Recipe, base: Recipe, base_fast: Any, label: str) -> Any:
    """Build a tokenizer of the tokenizers library. Blocking.

    One that splits or tokenizes text otherwise than its base's encodes in another process.

    Args:
        own: checked; see `read_own`.
        base: the recipe of the base's.
        base_fast: the base's tokenizer.
        label: how errors call the adapter.

    Raises:
        GraftError: Corrupt.
    """
    same_model = own.pipeline.same_model(base.pipeline)
    with _library_faults(label):
        fast = _over_the_base_s_model(own, base_fast) if same_model else None
        fast = _with_tokens(own, _alone(own) if fast is None else fast)
    _check_places(own, fast, label)
    stages, known = own.pipeline.stages, base.pipeline.stages
    return fast if same_model and all(stages[name] == known[name] for name in ENCODING) else ForeignTokenizer(fast)


def assembled(made_of: Recipe, label: str) -> Any:
    """Build a tokenizer that shares nothing, as `build` makes it. Blocking. Raises GraftError: Corrupt."""
    with _library_faults(label):
        return _with_tokens(made_of, _alone(made_of))


def highest(own: Recipe, fast: Any, base: Recipe, base_fast: Any) -> int | None:
    """Return the highest token id that it can make and its base's tokenizer can't; None for none. Blocking.

    Some bases' tokenizers know more tokens than the model (Gemma 3's, one of images): no fault of an adapter's.
    """
    numbers = [*template_ids(own.pipeline.stages["post_processor"]), *(token.id for token in own.pipeline.added)]
    numbers += [token.id for token in own.places]
    numbers += [number for text in own.specials if (number := fast.token_to_id(text)) is not None]
    if not own.pipeline.same_model(base.pipeline):
        numbers += (number for _, number in own.pipeline.model.tokens())
    known = range(1 << 32)  # what the library takes
    strange = (n for n in numbers if n not in known or fast.id_to_token(n) != base_fast.id_to_token(n))
    return max(strange, default=None)


def _over_the_base_s_model(own: Recipe, base_fast: Any) -> Any:
    """Put the stages and added tokens of `own` over the model that is in memory; None where ids would differ."""
    stages = msgspec.json.encode({"version": "1.0", "model": _NO_MODEL, "added_tokens": [], **own.pipeline.stages})
    staged = _tokenizers().Tokenizer.from_str(stages.decode())
    fast = _tokenizers().Tokenizer(base_fast.model)
    for name in STAGES:
        if (stage := getattr(staged, name)) is not None:
            setattr(fast, name, stage)
    fast.add_tokens([_library_token(token) for token in own.pipeline.added])
    return fast if all(fast.token_to_id(token.content) == token.id for token in own.pipeline.added) else None


def _alone(made_of: Recipe) -> Any:
    return bare(_tokenizers().Tokenizer.from_str(made_of.pipeline.text.decode()))


def _with_tokens(made_of: Recipe, fast: Any) -> Any:
    fast.add_tokens([_library_token(token) for token in made_of.places])
    fast.add_special_tokens(list(made_of.specials))
    return fast


@contextlib.contextmanager
def _library_faults(label: str) -> Iterator[None]:
    """Turn what the tokenizers library throws, a panic of its Rust included, into a fault of that tokenizer."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of its Rust is no Exception
        raise GraftError(
            ErrorCode.CORRUPT,
            f"the tokenizer of {label} can't be loaded: {type(error).__name__}: {error}",
            hint="save it again with the tokenizer's save_pretrained()",
        ) from error


def _check_places(own: Recipe, fast: Any, label: str) -> None:
    tokens = [*own.pipeline.added, *own.places]
    wrong = [token for token in tokens if fast.token_to_id(token.content) != token.id]
    if wrong:
        faults = [f"{token.content!r}: id {token.id}, makes {fast.token_to_id(token.content)}" for token in wrong]
        raise GraftError(
            ErrorCode.CORRUPT,
            f"{len(wrong)} tokens of {label} don't get the ids that its files name",
            details=shown(faults),
            hint=f"save tokenizer.json as well, beside {CONFIG_FILE} and {ADDED_TOKENS_FILE}",
        )


def _library_token(token: AddedToken) -> Any:
    return _tokenizers().AddedToken(
        token.content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=token.special,
    )


def _tokenizers() -> Any:
    import tokenizers  # noqa: PLC0415 - not at start

    return tokenizers
