"""Text ↔ token ids, and chat templates. Holds no torch.

Importing this module is cheap; loading a tokenizer pulls in Transformers (seconds) and belongs in a thread.
"""

from __future__ import annotations

import atexit
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import msgspec

from graft_runtime.errors import ErrorCode, GraftError, context_too_long
from graft_runtime.tokenizing.defaults import GenerationDefaults, as_template, read_defaults
from graft_runtime.tokenizing.pieces import Detokenizer
from graft_runtime.tokenizing.rendering import ANSWER_BEGINS, Renderer, TemplateOptions
from graft_runtime.tokenizing.spelling import token_bytes
from graft_runtime.tokenizing.template_content import (
    PROBE,
    ContentFormat,
    Messages,
    content_format,
    in_format,
    texts_in,
)
from graft_runtime.tokenizing.users_text import SpecialTokens, UsersText

renderer = Renderer()
"""Of the whole process: a chat template comes from whoever made the adapter."""
atexit.register(renderer.close)
_PROBE_MESSAGES = ({"role": "user", "content": "a question"},)
_PROBE_TOOL = {
    "type": "function",
    "function": {"name": PROBE, "description": "", "parameters": {"type": "object", "properties": {}}},
}


class Tokenizer:
    """Text ↔ token ids as one checkpoint wants it. Safe to use from several threads.

    Args:
        fast: of the tokenizers library, without padding and truncation.
        named: `bos_token` and its like → text, for chat templates.
        identity: equal where the same text gives the same ids, and the same ids the same text.
        adds_bos: whether plain text begins with BOS; None: as `fast` has it.
    """

    def __init__(self, fast: Any, named: Mapping[str, str], identity: str, *, adds_bos: bool | None = None) -> None:
        self.fast, self.named, self.identity = fast, named, identity
        self._bos = self.token_id(named.get("bos_token", ""))
        begun = self._bos is not None and self._encode("", add_special_tokens=True)[:1] == [self._bos]
        self._spelled: dict[int, str] = {}
        self._formats: dict[str, ContentFormat] = {}
        """Of the chat templates that were rendered: an adapter's and its base's, where they share this tokenizer."""
        self._takes_tools: dict[str, bool] = {}
        """The same."""
        self._prepends, self._drops = adds_bos is True and not begun, adds_bos is False and begun

    def encode(
        self, text: str, context: int | None = None, *, special_tokens: bool = True, field: str = "prompt"
    ) -> list[int]:
        """Encode text, with the special tokens that the tokenizer adds; BOS once, also where the text begins with it.

        Args:
            text: a prompt.
            context: the tokens that there may be; a text that is longer than any so many is not looked at.
            special_tokens: whether to add any.
            field: of the request, which holds the text.

        Raises:
            GraftError: ContextTooLong; Corrupt, when the tokenizer fails on it.
        """
        self.check_length(len(text), context, field)
        if not special_tokens:
            return self._encode(text, add_special_tokens=False)
        ids, bos = self._encode(text, add_special_tokens=True), self._bos
        if bos is not None and self._prepends:
            ids = [bos, *ids]
        return ids[1:] if self._drops or ids[:2] == [bos, bos] else ids

    def encode_chat(
        self,
        messages: Messages,
        template: str,
        context: int | None = None,
        options: TemplateOptions = ANSWER_BEGINS,
    ) -> list[int]:
        """Encode a conversation, rendered in Jinja's sandbox.

        The template's control tokens act; those in the messages' text are text.

        Args:
            messages: with text as `content`; a template that walks over the parts of a message gets one part.
            template: in Jinja.
            context: see `encode`.
            options: see TemplateOptions.

        Raises:
            GraftError: InvalidRequest, when the template refuses the messages or drops their text; ContextTooLong;
                UnsafeFile, when the template takes too much; Corrupt, when the tokenizer fails.
        """
        self.check_length(sum(len(message["content"]) for message in messages), context, "messages")
        form = self.content_format(template)
        if form is ContentFormat.NONE:
            raise GraftError(
                ErrorCode.INVALID_REQUEST,
                "the chat template leaves the text of a user's message out of the prompt",
                hint="give the checkpoint a template that renders it, or send the whole prompt to /v1/completions",
                field="messages",
            )
        control = self._holds_control([*messages, options.values, *options.tools])
        try:
            if control:
                named = self._users_text.named
                messages = named(messages)
                options = msgspec.structs.replace(options, values=named(options.values), tools=named(options.tools))
            text = self._render(in_format(messages, form), template, options)
        except GraftError:
            raise
        except Exception as error:  # whatever a stranger's template raises
            raise GraftError(
                ErrorCode.INVALID_REQUEST,
                f"the chat template can't render `messages`: {error or type(error).__name__}",
                hint="use the roles and the order that the model was trained for",
                field="messages",
            ) from error
        self.check_length(len(text), context, "messages")
        if not control:
            return self._encode(text, add_special_tokens=False)
        with library_faults():
            return self._users_text.encode(text)

    def check_length(self, characters: int, context: int | None, field: str) -> None:
        if context is not None and characters > context * self._longest:
            most = f"{context} tokens, of at most {self._longest} characters each"
            raise context_too_long(most, f"`{field}` comes to {characters} characters", field)

    @cached_property
    def _longest(self) -> int:
        """Return the characters of the longest token."""
        return max(map(len, self.fast.get_vocab()), default=1)

    def _holds_control(self, messages: Messages) -> bool:
        texts = set(texts_in(messages))
        if self._special.only_as_written:
            return any(map(self._special.found, texts))
        return any(not self._skipped.isdisjoint(self._encode(text, add_special_tokens=False)) for text in texts)

    @cached_property
    def _special(self) -> SpecialTokens:
        return SpecialTokens(self.fast)

    @cached_property
    def _users_text(self) -> UsersText:
        return UsersText(self.fast, self._special)

    def content_format(self, template: str) -> ContentFormat:
        """Return the form in which a template takes text. Raises GraftError: UnsafeFile."""
        form = self._formats.get(template)
        if form is None:
            form = content_format(lambda messages: self._render(messages, template))
            self._formats[template] = form
        return form

    def takes_tools(self, template: str) -> bool:
        """Tell whether a template shows the tools that it is told. Raises GraftError: UnsafeFile."""
        if template not in self._takes_tools:
            form = self.content_format(template)
            try:
                text = self._render(in_format(_PROBE_MESSAGES, form), template, TemplateOptions(tools=[_PROBE_TOOL]))
            except GraftError:
                raise
            except Exception:  # whatever a stranger's template raises
                text = ""
            self._takes_tools[template] = PROBE in text
        return self._takes_tools[template]

    def _render(self, messages: Messages, template: str, options: TemplateOptions = ANSWER_BEGINS) -> str:
        """Render a conversation. Raises GraftError: UnsafeFile; and whatever else the template raises."""
        return renderer.render(template, messages, self.named, options)

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Encode a batch of one: unlike `encode`, that lets Python's other threads run, and leaves offsets out."""
        with library_faults():
            (encoding,) = self.fast.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return [*encoding.ids]

    def decode(self, ids: Sequence[int], *, show_special: bool = False) -> str:
        """Decode, with special tokens or without. Raises GraftError: Corrupt, when the tokenizer fails on them."""
        with library_faults():
            return str(self.fast.decode(list(ids), skip_special_tokens=not show_special))

    def spelled(self, token: int) -> str:
        """Return the text of one token as it is amid others; a part of a character is a replacement character."""
        if (text := self._spelled.get(token)) is None:
            first = self.decode([token], show_special=True)  # may lack a space, which tokenizers drop at the beginning
            text = self._spelled[token] = self.decode([token, token], show_special=True)[len(first) :]
        return text

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """Return what each token adds to a text, by its id; nothing for special ones and for ids without a token."""
        with library_faults():
            return token_bytes(self.fast, self._skipped)

    def detokenizer(self, before: Sequence[int] = (), *, show_special: bool = False) -> Detokenizer:
        """Return what turns the tokens of an answer into text as they come.

        Args:
            before: the tokens that the answer goes on from.
            show_special: whether special tokens are shown.
        """
        decode = partial(self.decode, show_special=show_special)
        skipped = frozenset[int]() if show_special else self._skipped
        return Detokenizer(decode, before, skipped=skipped, fallback=self._fallback)

    @cached_property
    def _skipped(self) -> frozenset[int]:
        """Return the special tokens, which `decode` leaves out."""
        return frozenset(self._special.texts)

    @cached_property
    def _fallback(self) -> frozenset[int]:
        """Return the tokens `<0x00>` to `<0xFF>`, where the tokenizer decodes them as bytes."""
        newline = self.token_id("<0x0A>")
        if newline is None or self.decode([newline]) != "\n":
            return frozenset()
        found = (self.token_id(f"<0x{byte:02X}>") for byte in range(256))
        return frozenset(index for index in found if index is not None)

    def special_id(self, text: str) -> int | None:
        """Return the special token that is written so: `decode` never shows it. None where there is none."""
        found = self.token_id(text)
        return found if found in self._skipped else None

    def token_id(self, token: str) -> int | None:
        found: int | None = self.fast.token_to_id(token)
        return found

    def token(self, token_id: int) -> str | None:
        """Return its text; None for an id that stands for nothing."""
        found: str | None = self.fast.id_to_token(token_id) if token_id >= 0 else None
        return found


def load_base_tokenizer(directory: Path, checkpoint: Path, identity: str) -> tuple[Tokenizer, GenerationDefaults]:
    """Load a base model's tokenizer, and what requests leave to the model. Blocking.

    Args:
        directory: holds the tokenizer.json.
        checkpoint: the model's.
        identity: see Tokenizer.

    Raises:
        GraftError: NotAModel, Corrupt, UnsafeFile.
    """
    from transformers.tokenization_utils_tokenizers import TokenizersBackend  # noqa: PLC0415 - seconds, and not at start

    try:
        backend = TokenizersBackend.from_pretrained(str(directory), local_files_only=True)
    except Exception as error:
        raise GraftError(
            ErrorCode.NOT_A_MODEL,
            f"the base model's tokenizer can't be loaded: {type(error).__name__}: {error}",
            hint="save it again with the tokenizer's save_pretrained()",
        ) from error
    named = {key: str(token) for key, token in backend.special_tokens_map.items() if isinstance(token, str)}
    tokenizer = Tokenizer(bare(backend.backend_tokenizer), named, identity)
    defaults = read_defaults(checkpoint, tokenizer.token_id, "the base model", base=True)
    eos = backend.eos_token_id
    stops = defaults.stop_tokens | ({eos} if isinstance(eos, int) else set())
    template = defaults.chat_template or as_template(getattr(backend, "chat_template", None))
    return tokenizer, GenerationDefaults(template, frozenset(stops), defaults.sampling)


def bare(fast: Any) -> Any:
    """Drop the padding and truncation that it was saved with. Before anybody uses it."""
    fast.no_padding()
    fast.no_truncation()
    return fast


@contextlib.contextmanager
def library_faults() -> Iterator[None]:
    """Turn what the tokenizers library throws, a panic of its Rust included, into a fault of that tokenizer."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GraftError):
        raise
    except BaseException as error:
        raise GraftError(
            ErrorCode.CORRUPT,
            f"the tokenizer fails on this text: {type(error).__name__}: {error}",
            hint="save it again with the tokenizer's save_pretrained(), and ask for other text meanwhile",
        ) from error
