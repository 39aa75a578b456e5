"""How each served name is talked to: the tokenizer and the manner of the base model, or an adapter's own over them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.tokenizing.files import TokenizerFiles, read_tokenizer_files
from graft_runtime.tokenizing.manner import Manner, over, read_manner
from graft_runtime.tokenizing.own_tokenizer import Recipe, assembled, brings_one, build, highest, read_own, recipe
from graft_runtime.tokenizing.tokenizer import Tokenizer, load_base_tokenizer

MAX_VOICES = 1024
"""So many adapters' templates, defaults and tokenizers are kept in memory."""
MAX_BYTES = 1 << 30
"""For tokenizers besides the base's; there is always room for one."""
MODEL_BYTES_PER_FILE_BYTE = 12
ADDED_TOKEN_BYTES = 1024
TRIAL_TEXT = "Hello, world! 1 + 1 = 2\n\tÜber 你好 😀"


@dataclass(frozen=True)
class Voice:
    """How one name, or several that are asked together, reads and writes."""

    tokenizer: Tokenizer
    own: Manner
    base: Manner = field(default_factory=Manner)
    """What it does not say itself is as here."""
    highest_token: int | None = None
    """Of those that an adapter's own tokenizer makes and its base's does not; None for none."""
    bytes: int = 0
    """That its tokenizer takes beside the base's, about."""

    @property
    def manner(self) -> Manner:
        return over(self.own, self.base)


@dataclass(frozen=True)
class BaseVoice:
    """The base model's, and what others are built from."""

    voice: Voice
    recipe: Recipe
    files: TokenizerFiles


def load_base_voice(tokenizer: Path, checkpoint: Path) -> BaseVoice:
    """Blocking.

    Args:
        tokenizer: the directory with tokenizer.json.
        checkpoint: the model's.

    Raises:
        GraftError: NotAModel.
    """
    with _of_the_base():
        files = read_tokenizer_files(tokenizer, "the base model")
        made_of = recipe(files)
        voice = Voice(*load_base_tokenizer(tokenizer, checkpoint, made_of.identity()))
    return BaseVoice(voice, made_of, files)


def highest_token(base: Path, directory: Path, what: str) -> int | None:
    """As `Voice.highest_token`, after the same checks, of checkpoints that nobody serves. Blocking.

    Args:
        base: the model's checkpoint, with a tokenizer.json if the adapter brings a tokenizer.
        directory: the adapter's.
        what: how errors call the adapter.

    Raises:
        GraftError: NotAModel, Corrupt, UnsafeFile.
    """
    if not brings_one(directory):
        read_manner(directory, lambda _: None, what)
        return None
    with _of_the_base():
        base_recipe = recipe(read_tokenizer_files(base, "the base model"))
    files, own = read_own(directory, base_recipe, what)
    identity = own.identity(base_recipe.pipeline)
    if identity == base_recipe.identity():
        read_manner(directory, lambda _: None, what)
        return None
    with _of_the_base():
        base_fast = assembled(base_recipe, "the base model")
    fast = build(own, base_recipe, base_fast, what)
    tokenizer = _tried(Tokenizer(fast, files.named, identity))
    read_manner(directory, tokenizer.token_id, what)
    return highest(own, fast, base_recipe, base_fast)


@contextlib.contextmanager
def _of_the_base() -> Iterator[None]:
    """Whatever is wrong is wrong with the base model."""
    try:
        yield
    except GraftError as error:
        raise GraftError(ErrorCode.NOT_A_MODEL, error.what, details=error.details, hint=error.hint) from error


def _tried(tokenizer: Tokenizer) -> Tokenizer:
    """Raises GraftError: Corrupt, when it fails on an ordinary text."""
    tokenizer.decode(tokenizer.encode(TRIAL_TEXT))
    return tokenizer


class Voices:
    """The voices of one pod. One event loop; what blocks runs in threads."""

    def __init__(self) -> None:
        self._base: asyncio.Future[BaseVoice] = asyncio.get_running_loop().create_future()
        self._kept: OrderedDict[str, Voice] = OrderedDict()
        self._loading = asyncio.Lock()

    def base_loaded(self, base: BaseVoice) -> None:
        """Adapters can be judged from now on."""
        self._base.set_result(base)

    async def of(self, digest: str, directory: Path, name: str) -> Voice:
        """An adapter's. Waits for the base's.

        Args:
            digest: of the adapter.
            directory: in the cache.
            name: how errors call the adapter.

        Raises:
            GraftError: Corrupt, UnsafeFile.
        """
        if (kept := self._kept.get(digest)) is not None:
            self._kept.move_to_end(digest)
            return kept
        base = await asyncio.shield(self._base)
        async with self._loading:  # one at a time: two that are alike would be built twice
            voice = self._kept.get(digest)
            if voice is None:
                voice = await asyncio.to_thread(self._load, base, directory, f"adapter `{name}`")
            self._keep(digest, voice)
            return voice

    def _keep(self, digest: str, voice: Voice) -> None:
        self._kept[digest] = voice
        self._kept.move_to_end(digest)
        while len(self._kept) > 1 and (len(self._kept) > MAX_VOICES or self._bytes() > MAX_BYTES):
            self._kept.popitem(last=False)

    def _bytes(self) -> int:
        return sum({voice.tokenizer.identity: voice.bytes for voice in self._kept.values()}.values())

    def _load(self, base: BaseVoice, directory: Path, what: str) -> Voice:
        files, own = read_own(directory, base.recipe, what)
        identity = own.identity(base.recipe.pipeline)
        shares = identity == base.voice.tokenizer.identity
        fast = base.voice.tokenizer.fast if shares else self._built(own, identity, base, what)
        inherited = {} if files.pipeline is not None and files.named else base.voice.tokenizer.named
        tokenizer = Tokenizer(fast, {**inherited, **files.named}, identity, adds_bos=_adds_bos(files, base.files))
        if not shares:
            _tried(tokenizer)
        return Voice(
            tokenizer,
            read_manner(directory, tokenizer.token_id, what),
            _understood(base.voice, tokenizer),
            None if shares else highest(own, fast, base.recipe, base.voice.tokenizer.fast),
            0 if shares else _bytes_of(own, base.recipe),
        )

    def _built(self, own: Recipe, identity: str, base: BaseVoice, what: str) -> Any:
        alike = (voice.tokenizer for voice in self._kept.values() if voice.tokenizer.identity == identity)
        found = next(alike, None)
        return found.fast if found is not None else build(own, base.recipe, base.voice.tokenizer.fast, what)


def _understood(base: Voice, tokenizer: Tokenizer) -> Manner:
    """The base's manner, without end tokens that mean something else to this tokenizer."""
    kept = [token for token in base.manner.stop_tokens if tokenizer.token(token) == base.tokenizer.token(token)]
    return replace(base.manner, stop_tokens=frozenset(kept))


def _bytes_of(own: Recipe, base: Recipe) -> int:
    added = (len(own.pipeline.added) + len(own.places) + len(own.specials)) * ADDED_TOKEN_BYTES
    return added + (0 if own.pipeline.same_model(base.pipeline) else len(own.pipeline.text) * MODEL_BYTES_PER_FILE_BYTE)


def _adds_bos(files: TokenizerFiles, base: TokenizerFiles) -> bool | None:
    """What tokenizer_config.json says where no tokenizer.json speaks, if it says other than the base's."""
    if files.pipeline is not None:
        return None
    told = files.config.get("add_bos_token")
    return told if isinstance(told, bool) and told != base.config.get("add_bos_token") else None
