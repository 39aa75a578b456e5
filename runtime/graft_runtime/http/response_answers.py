"""The shape of what /v1/responses answers, for the OpenAPI document: OpenAI's, as far as it is used."""

from __future__ import annotations

from typing import Any, Literal

from graft_runtime.http.answers import Shape

Status = Literal["in_progress", "completed", "incomplete"]


class OutputText(Shape):
    """The text of a message."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[Any]


class ReasoningText(Shape):
    """What the model thought."""

    type: Literal["reasoning_text"]
    text: str


class OutputMessage(Shape):
    """What the model says."""

    id: str
    type: Literal["message"]
    status: Status
    role: Literal["assistant"]
    content: list[OutputText]


class OutputReasoning(Shape):
    """What the model thinks before it answers."""

    id: str
    type: Literal["reasoning"]
    status: Status
    summary: list[Any]
    content: list[ReasoningText]


class OutputCall(Shape):
    """A call of a tool."""

    id: str
    type: Literal["function_call"]
    status: Status
    call_id: str
    name: str
    arguments: str


class InputTokensDetails(Shape):
    """More of the tokens of the conversation."""

    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(Shape):
    """More of the tokens of the answer."""

    reasoning_tokens: int


class ResponseUsage(Shape):
    """Tokens of a request."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseFault(Shape):
    """Why an answer failed after it had begun."""

    code: str
    message: str


class Incomplete(Shape):
    """Why an answer is not whole."""

    reason: Literal["max_output_tokens"]


class ResponseObject(Shape):
    """The answer of /v1/responses."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    model: str
    status: Status | Literal["failed"]
    error: ResponseFault | None
    incomplete_details: Incomplete | None
    output: list[OutputMessage | OutputReasoning | OutputCall]
    usage: ResponseUsage | None
    instructions: str | None
    max_output_tokens: int | None
    temperature: float | None
    top_p: float | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: None
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    truncation: Literal["disabled"]


class ResponseEvent(Shape):
    """An event of a stream of /v1/responses: OpenAI's, with the fields of its type."""

    type: Literal[
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
        "response.incomplete",
        "response.failed",
    ]
    sequence_number: int
    response: ResponseObject | None = None
    output_index: int | None = None
    item: OutputMessage | OutputReasoning | OutputCall | None = None
    item_id: str | None = None
    content_index: int | None = None
    part: OutputText | ReasoningText | None = None
    delta: str | None = None
    text: str | None = None
    logprobs: list[Any] | None = None
    arguments: str | None = None
