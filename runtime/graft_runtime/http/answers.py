"""The shapes of what the API port answers, for its OpenAPI document: OpenAI's, with the extensions that Graft has."""

from __future__ import annotations

from typing import Any, Literal, Optional

from pydantic import BaseModel, ConfigDict, create_model

from graft_runtime.contract.facts import AdapterFacts
from graft_runtime.contract.status import AdapterState
from graft_runtime.messages import Tier

FinishReason = Literal["stop", "length", "tool_calls"]


class Shape(BaseModel):
    """An object that has these fields and no other."""

    model_config = ConfigDict(extra="forbid")


class PromptTokensDetails(Shape):
    """More of the tokens of prompts."""

    cached_tokens: int


class Usage(Shape):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class Answer(Shape):
    """What answers have in common."""

    id: str
    created: int
    model: str


class CompletionLogprobs(Shape):
    """Log-probabilities of a completion's tokens."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class WholeCompletionChoice(Shape):
    """One completion."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason


class CompletionPiece(WholeCompletionChoice):
    """More of one completion."""

    finish_reason: FinishReason | None  # type: ignore[assignment]


class Completion(Answer):
    """The answer of /v1/completions."""

    object: Literal["text_completion"]
    choices: list[WholeCompletionChoice]
    usage: Usage


class CompletionChunk(Answer):
    """One event of its stream."""

    object: Literal["text_completion"]
    choices: list[CompletionPiece]
    usage: Usage | None = None


class LikelyToken(Shape):
    """A token that was likely."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChosenToken(LikelyToken):
    """A token of the answer."""

    top_logprobs: list[LikelyToken]


class ChatLogprobs(Shape):
    """Log-probabilities of an answer's tokens."""

    content: list[ChosenToken]
    refusal: None


class FunctionCalled(Shape):
    """What is called."""

    name: str
    arguments: str


class Call(Shape):
    """A call of a tool."""

    id: str
    type: Literal["function"]
    function: FunctionCalled


class FunctionPiece(Shape):
    """More of what is called."""

    name: str | None = None
    arguments: str


class CallPiece(Shape):
    """More of a call."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionPiece


class AssistantMessage(Shape):
    """What the model says."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | None = None
    tool_calls: list[Call] | None = None


class MessagePiece(Shape):
    """More of what the model says."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[CallPiece] | None = None


class ChatChoice(Shape):
    """One answer in a chat."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatPiece(Shape):
    """More of one answer."""

    index: int
    delta: MessagePiece
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatCompletion(Answer):
    """The answer of /v1/chat/completions."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage


class ChatCompletionChunk(Answer):
    """One event of its stream."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatPiece]
    usage: Usage | None = None


class Model(Shape):
    """A model that may be asked: the base, the merge or an adapter."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int | None


class ModelList(Shape):
    """All of them."""

    object: Literal["list"]
    data: list[Model]


class AdapterFault(Shape):
    """Why an adapter can't be asked."""

    code: str
    message: str


class _NamedAdapter(Shape):
    name: str
    digest: str | None
    state: AdapterState
    tier: Tier | None
    bytes: int | None
    error: AdapterFault | None


_FACTS: dict[str, Any] = {
    name: (Optional[field.annotation], ...)  # noqa: UP045 - of a value
    for name, field in AdapterFacts.model_fields.items()
}
Adapter = create_model("Adapter", __base__=_NamedAdapter, __doc__="An adapter of the pod, and its facts.", **_FACTS)


class AdapterList(Shape):
    """All of them."""

    object: Literal["list"]
    data: list[Adapter]


class Tokens(Shape):
    """The answer of /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Text(Shape):
    """The answer of /detokenize."""

    prompt: str


class Version(Shape):
    """The answer of /version."""

    version: str


class ErrorFields(Shape):
    """A fault in OpenAI's words."""

    message: str
    type: str
    param: str | None
    code: str


class Error(Shape):
    """A fault; the last event of a stream may be one as well."""

    error: ErrorFields
