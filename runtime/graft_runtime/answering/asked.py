"""What a request asks for, whatever the route that it came by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.tokenizing.text_formats import TextFormat

COMPLETION_TOKENS = 16
"""OpenAI's default for /v1/completions."""


class Prompts(Protocol):
    """What is to be answered: one prompt or more."""

    @property
    def field(self) -> str:
        """Return the request's field that holds the prompts."""

    @property
    def default_tokens(self) -> int | None:
        """Return the tokens of an answer where neither request nor checkpoint limits them.

        None: as many as there is room for.
        """

    @property
    def count(self) -> int:
        """Return how many prompts there are."""

    def encode(self, text_format: TextFormat, model: str, context: int) -> list[list[int]]:
        """Return the token ids of each. Blocking.

        Args:
            text_format: of the model.
            model: its name, for errors.
            context: tokens; a text that can't come to so few is refused unread.

        Raises:
            GraftError: InvalidRequest, NoChatTemplate, ContextTooLong, Corrupt.
        """


@dataclass(frozen=True)
class Texts:
    """Prompts as text or token ids."""

    texts: Sequence[str | list[int]]

    field = "prompt"
    default_tokens = COMPLETION_TOKENS

    @property
    def count(self) -> int:
        return len(self.texts)

    def encode(self, text_format: TextFormat, model: str, context: int) -> list[list[int]]:
        if not self.texts or "" in self.texts or [] in self.texts:
            raise GraftError(
                ErrorCode.INVALID_REQUEST,
                "`prompt` is empty, expected at least one token",
                hint="send a text or token ids",
                field="prompt",
            )
        encode = text_format.tokenizer.encode
        return [text if isinstance(text, list) else encode(text, context) for text in self.texts]


@dataclass(frozen=True)
class Conversation:
    """One prompt, made of messages by a chat template."""

    messages: Sequence[Mapping[str, Any]]
    """As chat templates know them: role, content, name."""

    field = "messages"
    default_tokens = None
    count = 1

    def encode(self, text_format: TextFormat, model: str, context: int) -> list[list[int]]:
        if text_format.defaults.chat_template is None:
            raise GraftError(
                ErrorCode.NO_CHAT_TEMPLATE,
                f"`{model}` has no chat template, so it can't take `messages`",
                hint="use /v1/completions, or put a chat_template.jinja beside the adapter's or the base model's files",
                field="messages",
            )
        return [text_format.tokenizer.encode_chat(self.messages, text_format.defaults.chat_template, context)]


@dataclass(frozen=True)
class NamedAdapter:
    """One adapter of a composition, and how much of it."""

    name: str
    weight: float


@dataclass(frozen=True)
class TextRequest:
    """A request for text. None: as the checkpoint's generation_config.json has it."""

    prompts: Prompts
    model: str | None = None
    adapters: Sequence[NamedAdapter] = ()
    """To be summed; `model` is the base's then."""
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stops: Sequence[str] = ()
    salt: str = ""
    """Only requests of the same salt share what the engine keeps of prompts and answers."""
