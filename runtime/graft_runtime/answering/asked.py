"""What a request asks for, whatever the route that it came by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from graft_runtime.answering.call_styles import Tools
from graft_runtime.answering.callers import Caller
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.tokenizing.grammars import AnswerForm
from graft_runtime.tokenizing.rendering import ANSWER_BEGINS, TemplateOptions
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

    @property
    def converses(self) -> bool:
        """Return whether a chat template makes the prompt."""

    @property
    def characters(self) -> int:
        """Return how many characters of text there are to be made tokens of."""

    def encode(self, text_format: TextFormat, model: str, context: int) -> list[list[int]]:
        """Return the token ids of each. Blocking.

        Args:
            text_format: of the model.
            model: its name, for errors.
            context: tokens; a text that can't come to so few is refused unread.

        Raises:
            GraftError: InvalidRequest, NoChatTemplate, ContextTooLong, Corrupt.
        """

    def echo(self, index: int, prompt: Sequence[int], text_format: TextFormat) -> str:
        """Return one of the prompts as text.

        Args:
            index: which.
            prompt: its token ids.
            text_format: of the model.
        """


@dataclass(frozen=True)
class Texts:
    """Prompts as text or token ids."""

    texts: Sequence[str | list[int]]
    special_tokens: bool = True
    """Whether a text gets the special tokens that the tokenizer adds."""
    field: str = "prompt"

    converses = False
    default_tokens = COMPLETION_TOKENS

    @property
    def count(self) -> int:
        return len(self.texts)

    @property
    def characters(self) -> int:
        return sum(len(text) for text in self.texts if isinstance(text, str))

    def encode(self, text_format: TextFormat, model: str, context: int) -> list[list[int]]:
        if not self.texts or "" in self.texts or [] in self.texts:
            raise GraftError(
                ErrorCode.INVALID_REQUEST,
                f"`{self.field}` is empty, expected at least one token",
                hint="send a text or token ids",
                field=self.field,
            )
        encode = partial(
            text_format.tokenizer.encode, context=context, special_tokens=self.special_tokens, field=self.field
        )
        return [text if isinstance(text, list) else encode(text) for text in self.texts]

    def echo(self, index: int, prompt: Sequence[int], text_format: TextFormat) -> str:
        """Return a prompt as text."""
        text = self.texts[index]
        return text if isinstance(text, str) else text_format.tokenizer.decode(prompt)


@dataclass(frozen=True)
class Conversation:
    """One prompt, made of messages by a chat template."""

    messages: Sequence[Mapping[str, Any]]
    """As chat templates know them: role, content, name."""

    template: TemplateOptions = ANSWER_BEGINS
    field: str = "messages"
    """Of the request, which holds the messages."""

    converses = True
    default_tokens = None
    count = 1

    @property
    def characters(self) -> int:
        return _characters([self.messages, self.template.tools, self.template.values])

    def encode(self, text_format: TextFormat, model: str, context: int) -> list[list[int]]:
        if text_format.defaults.chat_template is None:
            raise GraftError(
                ErrorCode.NO_CHAT_TEMPLATE,
                f"`{model}` has no chat template, so it can't take `{self.field}`",
                hint="use /v1/completions, or put a chat_template.jinja beside the adapter's or the base model's files",
                field=self.field,
            )
        template = text_format.defaults.chat_template
        if self.template.tools and not text_format.tokenizer.takes_tools(template):
            raise GraftError(
                ErrorCode.UNSUPPORTED_PARAMETER,
                f"the chat template of `{model}` does not show `tools` to the model",
                hint="ask a model whose template takes tools, or leave `tools` out",
                field="tools",
            )
        try:
            return [text_format.tokenizer.encode_chat(self.messages, template, context, self.template)]
        except GraftError as error:
            if error.field != "messages":
                raise
            what = error.what.replace("`messages`", f"`{self.field}`")
            raise GraftError(error.code, what, details=error.details, hint=error.hint, field=self.field) from error

    def echo(self, index: int, prompt: Sequence[int], text_format: TextFormat) -> str:
        return text_format.tokenizer.decode(prompt)


def _characters(value: Any) -> int:
    """Return how many characters of text a value holds, at any depth."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(len(key) + _characters(inner) for key, inner in value.items())
    return sum(map(_characters, value)) if isinstance(value, Sequence) else 0


@dataclass(frozen=True)
class NamedAdapter:
    """One adapter of a composition, and how much of it."""

    name: str
    weight: float


@dataclass(frozen=True)
class TextRequest:
    """A request for text. None: as the checkpoint's generation_config.json has it."""

    prompts: Prompts
    caller: Caller
    model: str | None = None
    adapters: Sequence[NamedAdapter] = ()
    """To be summed; `model` is the base's then."""
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stops: Sequence[str] = ()
    salt: str = ""
    """Only requests of the same salt share what the engine keeps of prompts and answers."""
    stop_tokens: frozenset[int] = frozenset()
    min_tokens: int = 0
    ignore_end: bool = False
    """The checkpoint's end tokens end no answer."""
    show_special: bool = False
    """Special tokens are shown in the text."""
    truncate: int | None = None
    """Only so many tokens of a prompt's end count; -1: as many as there is room for."""
    choices: int = 1
    """Answers to each prompt."""
    logprobs: int | None = None
    """Log-probabilities of each token, and of so many of the likeliest."""
    echo: bool = False
    """The answer begins with the prompt."""
    form: AnswerForm | None = None
    """That each answer must have."""
    tools: Tools | None = None
    """That the answer may call."""

    @property
    def answers(self) -> int:
        """Return how many answers are asked for in all."""
        return self.prompts.count * self.choices
