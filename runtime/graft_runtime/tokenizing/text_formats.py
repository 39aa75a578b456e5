"""How each served name reads and writes text: tokenizer and defaults of the base, or an adapter's own over them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.threads import Threads
from graft_runtime.tokenizing.defaults import GenerationDefaults, read_defaults
from graft_runtime.tokenizing.encoding import ForeignTokenizer
from graft_runtime.tokenizing.files import TokenizerFiles, read_tokenizer_files
from graft_runtime.tokenizing.own_tokenizer import Recipe, assembled, brings_one, build, highest, read_own, recipe
from graft_runtime.tokenizing.tokenizer import Tokenizer, load_base_tokenizer, renderer

MAX_TEXT_FORMATS = 1024
"""So many adapters' templates, defaults and tokenizers are kept in memory."""
MAX_BYTES = 1 << 30
"""For tokenizers besides the base's; there is always room for one."""
MODEL_BYTES_PER_FILE_BYTE = 12
ADDED_TOKEN_BYTES = 1024
TRIALS = 8
"""Adapters whose tokenizers and templates are tried at a time."""
TRIAL_TEXT = "Hello, world! 1 + 1 = 2\n\tÜber 你好 😀"
LONG_TEXTS = ("a" * 65_536, f"{' ' * 256}{'a' * 128}" * 128, f"{TRIAL_TEXT}\ufdfa" * 1024)
"""What tokenizers that are slow are slow on: a long word, many blanks and words, many scripts."""


@dataclass(frozen=True)
class TextFormat:
    """How one name, or several that are asked together, reads and writes."""

    tokenizer: Tokenizer
    own: GenerationDefaults
    base: GenerationDefaults = field(default_factory=GenerationDefaults)
    """For what `own` leaves unset."""
    highest_token: int | None = None
    """Of those that an adapter's own tokenizer makes and its base's does not; None for none."""
    bytes: int = 0
    """That its tokenizer takes beside the base's, about."""

    @property
    def defaults(self) -> GenerationDefaults:
        return self.own.over(self.base)


@dataclass(frozen=True)
class BaseTextFormat:
    """The base model's, and what others are built from."""

    text_format: TextFormat
    recipe: Recipe
    files: TokenizerFiles


def load_base_format(tokenizer: Path, checkpoint: Path) -> BaseTextFormat:
    """Load the base model's. Blocking.

    Args:
        tokenizer: the directory with tokenizer.json.
        checkpoint: the model's.

    Raises:
        GraftError: NotAModel.
    """
    with _of_the_base():
        files = read_tokenizer_files(tokenizer, "the base model")
        made_of = recipe(files)
        text_format = TextFormat(*load_base_tokenizer(tokenizer, checkpoint, made_of.identity()))
    if text_format.defaults.chat_template is not None:
        renderer.start()
    return BaseTextFormat(text_format, made_of, files)


def highest_token(base: Path, directory: Path, label: str) -> int | None:
    """Return what `TextFormat.highest_token` is, after the same checks, of checkpoints that nobody serves. Blocking.

    Args:
        base: the model's checkpoint, with a tokenizer.json if the adapter brings a tokenizer.
        directory: the adapter's.
        label: how errors call the adapter.

    Raises:
        GraftError: NotAModel, Corrupt, UnsafeFile.
    """
    if not brings_one(directory):
        read_defaults(directory, lambda _: None, label)
        return None
    with _of_the_base():
        base_recipe = recipe(read_tokenizer_files(base, "the base model"))
    files, own = read_own(directory, base_recipe, label)
    identity = own.identity(base_recipe.pipeline)
    if identity == base_recipe.identity():
        read_defaults(directory, lambda _: None, label)
        return None
    with _of_the_base():
        base_fast = assembled(base_recipe, "the base model")
    fast = build(own, base_recipe, base_fast, label)
    tokenizer = _tried(Tokenizer(fast, files.named, identity))
    read_defaults(directory, tokenizer.token_id, label)
    return highest(own, fast, base_recipe, base_fast)


@contextlib.contextmanager
def _of_the_base() -> Iterator[None]:
    """Blame the base model for whatever is wrong."""
    try:
        yield
    except GraftError as error:
        raise GraftError(ErrorCode.NOT_A_MODEL, error.what, details=error.details, hint=error.hint) from error


def _tried(tokenizer: Tokenizer) -> Tokenizer:
    """Try it on an ordinary text, and on long ones, which alone may be beyond it.

    Raises:
        GraftError: Corrupt, when it fails on the ordinary one; UnsafeFile, when it takes too much for any.
    """
    tokenizer.decode(tokenizer.encode(TRIAL_TEXT))
    for text in LONG_TEXTS if isinstance(tokenizer.fast, ForeignTokenizer) else ():
        try:
            tokenizer.encode(text)
        except GraftError as error:
            if error.code is not ErrorCode.CORRUPT:
                raise
    return tokenizer


class TextFormats:
    """The text formats of one pod. One event loop; what blocks runs in threads."""

    def __init__(self) -> None:
        self._base: asyncio.Future[BaseTextFormat] = asyncio.get_running_loop().create_future()
        self._kept: OrderedDict[str, TextFormat] = OrderedDict()
        self._loading = asyncio.Lock()
        self._trials = Threads(TRIALS, "try-text-format")

    def base_loaded(self, base: BaseTextFormat) -> None:
        """Judge adapters from now on, beside this base."""
        self._base.set_result(base)

    async def of(self, digest: str, directory: Path, name: str) -> TextFormat:
        """Return an adapter's. Wait for the base's.

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
            text_format = self._kept.get(digest)
            if text_format is None:
                built = [one.tokenizer for one in self._kept.values()]
                text_format = await asyncio.to_thread(_load, base, built, directory, f"adapter `{name}`")
        if digest not in self._kept:  # each in a process of its own: one that takes long is in nobody's way
            await self._trials.run(_try, text_format, base.text_format.tokenizer)
        self._keep(digest, text_format)
        return text_format

    def _keep(self, digest: str, text_format: TextFormat) -> None:
        self._kept[digest] = text_format
        self._kept.move_to_end(digest)
        while len(self._kept) > 1 and (len(self._kept) > MAX_TEXT_FORMATS or self._bytes() > MAX_BYTES):
            self._kept.popitem(last=False)

    def _bytes(self) -> int:
        return sum({text_format.tokenizer.identity: text_format.bytes for text_format in self._kept.values()}.values())


def _load(base: BaseTextFormat, kept: Sequence[Tokenizer], directory: Path, label: str) -> TextFormat:
    files, own = read_own(directory, base.recipe, label)
    identity = own.identity(base.recipe.pipeline)
    base_tokenizer = base.text_format.tokenizer
    shares = identity == base_tokenizer.identity
    fast = next((one.fast for one in (base_tokenizer, *kept) if one.identity == identity), None)
    if fast is None:
        fast = build(own, base.recipe, base_tokenizer.fast, label)
    inherited = {} if files.pipeline is not None and files.named else base_tokenizer.named
    tokenizer = Tokenizer(fast, {**inherited, **files.named}, identity, adds_bos=_adds_bos(files, base.files))
    defaults = read_defaults(directory, tokenizer.token_id, label)
    return TextFormat(
        tokenizer,
        defaults,
        _understood(base.text_format, tokenizer),
        None if shares else highest(own, fast, base.recipe, base_tokenizer.fast),
        0 if shares else _bytes_of(own, base.recipe),
    )


def _try(text_format: TextFormat, base: Tokenizer) -> None:
    """Try what an adapter brings of its own. Raises GraftError: Corrupt, UnsafeFile."""
    tokenizer, template = text_format.tokenizer, text_format.own.chat_template
    if tokenizer.identity != base.identity:
        _tried(tokenizer)
    if template is not None:
        tokenizer.content_format(template)


def _understood(base: TextFormat, tokenizer: Tokenizer) -> GenerationDefaults:
    """Return the base's defaults without end tokens that mean something else to this tokenizer."""
    kept = [token for token in base.defaults.stop_tokens if tokenizer.token(token) == base.tokenizer.token(token)]
    return replace(base.defaults, stop_tokens=frozenset(kept))


def _bytes_of(own: Recipe, base: Recipe) -> int:
    added = (len(own.pipeline.added) + len(own.places) + len(own.specials)) * ADDED_TOKEN_BYTES
    return added + (0 if own.pipeline.same_model(base.pipeline) else len(own.pipeline.text) * MODEL_BYTES_PER_FILE_BYTE)


def _adds_bos(files: TokenizerFiles, base: TokenizerFiles) -> bool | None:
    """Return what tokenizer_config.json says where no tokenizer.json speaks, if it says other than the base's."""
    if files.pipeline is not None:
        return None
    adds = files.config.get("add_bos_token")
    return adds if isinstance(adds, bool) and adds != base.config.get("add_bos_token") else None
