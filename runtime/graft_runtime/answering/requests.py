"""The requests of OpenAI's API that we take, checked field by field. No I/O."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr, ValidationError

from graft_runtime.errors import ErrorCode, GraftError

MAX_PROMPTS = 128
MAX_STOPS = 16
MAX_SEED = 2**63 - 1
MAX_ADAPTERS = 4
MAX_WEIGHT = 1000

Number = StrictInt | StrictFloat
Stops = Annotated[list[Annotated[StrictStr, Field(min_length=1, max_length=256)]], Field(max_length=MAX_STOPS)]
TokenId = Annotated[StrictInt, Field(ge=0)]

ANY = object()
"""A parameter that changes no answer, whatever its value."""

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "echo": (False,),
    "suffix": ("",),
    "user": (ANY,),
    "safety_identifier": (ANY,),
    "prompt_cache_key": (ANY,),
    "prompt_cache_retention": (ANY,),
    "metadata": (ANY,),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (ANY,),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "min_tokens": (0,),
    "logits_processors": ([],),
}
"""Known parameters that are not supported, and the values besides null that ask for nothing."""


_SURROGATE = re.compile(rb"\\u[dD]")
"""Half of a character may hide behind it, which is no text: it can't be tokenized or sent back."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)


class StreamOptions(BaseModel):
    """What else a stream brings."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    include_usage: StrictBool = False
    include_obfuscation: StrictBool | None = None
    """Taken, and without meaning here."""


class NamedAdapter(BaseModel):
    """One adapter of a composition, and how much of it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    name: Annotated[StrictStr, Field(min_length=1, max_length=256)]
    weight: Annotated[Number, Field(ge=-MAX_WEIGHT, le=MAX_WEIGHT)] = 1.0


class GenerationRequest(_Strict):
    """What both routes take."""

    model: StrictStr | None = Field(default=None, max_length=256)
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[StrictInt, Field(ge=-1)] | None = None
    """An extension: only the k likeliest tokens; 0 or -1 for no limit."""
    seed: Annotated[StrictInt, Field(ge=-MAX_SEED, le=MAX_SEED)] | None = None
    stop: Annotated[StrictStr, Field(min_length=1, max_length=256)] | Stops | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    adapters: Annotated[list[NamedAdapter], Field(max_length=MAX_ADAPTERS)] | None = None
    """An extension: answer with the weighted sum of these; `model` is the base then."""

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    prompt: (
        StrictStr
        | Annotated[list[StrictStr], Field(max_length=MAX_PROMPTS)]
        | list[TokenId]
        | Annotated[list[list[TokenId]], Field(max_length=MAX_PROMPTS)]
    )

    @property
    def prompts(self) -> list[str | list[int]]:
        """One or more; empty when `prompt` is an empty list."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [[token for token in self.prompt if isinstance(token, int)]]
        return [prompt for prompt in self.prompt if not isinstance(prompt, int)]


class TextPart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    type: Literal["text"]
    text: StrictStr


class ChatMessage(_Strict):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: StrictStr | Annotated[list[TextPart], Field(min_length=1, max_length=1024)]
    name: StrictStr | None = Field(default=None, max_length=256)

    def rendered(self) -> dict[str, Any]:
        """As chat templates know it."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": content} | ({"name": self.name} if self.name is not None else {})


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=4096)
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


Request = TypeVar("Request", CompletionRequest, ChatRequest)


def parse_request(body: bytes, model: type[Request]) -> Request:
    """A request from its body.

    Raises:
        GraftError: InvalidRequest, UnsupportedParameter; `field` names the parameter.
    """
    try:
        value = json.loads(body)
        if _SURROGATE.search(body):
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise GraftError(
            ErrorCode.INVALID_REQUEST,
            f"the request's body is not valid JSON: {error}",
            hint="send one JSON object with Content-Type: application/json",
        ) from None
    if not isinstance(value, dict):
        raise _invalid(None, f"the request's body is a JSON {_type(value)}, expected an object", "send {…}")
    try:
        request = model.model_validate(value)
    except ValidationError as error:
        raise _first_fault(error, value) from None
    _check_extras(request.model_extra or {}, "")
    if isinstance(request, ChatRequest):
        for index, message in enumerate(request.messages):
            _check_message_extras(message.model_extra or {}, f"messages[{index}]")
    if request.stream_options is not None and not request.stream:
        raise _invalid("stream_options", "`stream_options` is given without `stream: true`", "leave it out, or stream")
    _check_adapters(request.adapters or [])
    return request


def _check_adapters(adapters: Sequence[NamedAdapter]) -> None:
    names = [adapter.name for adapter in adapters]
    for index, name in enumerate(names):
        if name in names[:index]:
            where = f"adapters[{index}].name"
            raise _invalid(
                where, f"`{where}` is {_shown(name)} once more", hint="name each adapter once, with one weight"
            )


def _check_extras(extras: Mapping[str, Any], where: str) -> None:
    for name, value in extras.items():
        if name not in _NEUTRAL:
            raise _invalid(name, f"`{where}{name}` is not a parameter of this route", hint="leave it out")
        neutral = _NEUTRAL[name]
        if value is None or ANY in neutral or any(_same(value, other) for other in neutral):
            continue
        raise GraftError(
            ErrorCode.UNSUPPORTED_PARAMETER,
            f"`{name}` is {_shown(value)}, and Graft does not support it",
            hint=f"leave `{name}` out" + (f", or send {json.dumps(neutral[0])}" if neutral else ""),
            field=name,
        )


def _check_message_extras(extras: Mapping[str, Any], where: str) -> None:
    known = {"refusal", "annotations", "audio", "function_call", "tool_calls"}
    for name, value in extras.items():
        if name not in known:
            raise _invalid(f"{where}.{name}", f"`{where}.{name}` is not a field of a message", hint="leave it out")
        if value not in (None, []):
            raise GraftError(
                ErrorCode.UNSUPPORTED_PARAMETER,
                f"`{where}.{name}` is {_shown(value)}, and Graft does not support it",
                hint="send text messages only",
                field=f"{where}.{name}",
            )


def _same(value: Any, other: Any) -> bool:
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _first_fault(error: ValidationError, body: Mapping[str, Any]) -> GraftError:
    """The fault that says most: the deepest one of the first field at fault."""
    faults = error.errors(include_url=False, include_context=False)
    first = faults[0]["loc"][:1]
    same_field = [fault for fault in faults if fault["loc"][:1] == first]
    name = str(first[0]) if first else None
    if all(fault["type"] == "missing" and len(fault["loc"]) == 1 for fault in same_field):
        return _invalid(name, f"`{name}` is missing", hint=f"send `{name}`")
    fault = max(same_field, key=lambda fault: (not fault["type"].endswith("_type"), _depth(fault["loc"], body)))
    path = _path(fault["loc"], body)
    if fault["type"] == "missing":
        return _invalid(path, f"`{path}` is missing", hint=f"send `{path}`")
    shown = _shown(fault["input"])
    if (expected := _EXPECTED.get(_INDEX.sub("[]", path))) is not None:
        return _invalid(path, f"`{path}` is {shown}, expected {expected}", hint=f"change `{path}`")
    expected = fault["msg"][0].lower() + fault["msg"][1:]
    return _invalid(path, f"`{path}` is {shown}: {expected}", hint=f"change `{path}`, or leave it out")


_EXPECTED = {
    "model": "the name of an adapter or of the base model",
    "prompt": "a string, a list of strings, a list of token ids, or a list of such lists (at most 128 prompts)",
    "messages": 'a list of {"role": "system" | "user" | "assistant", "content": text}',
    "temperature": "a number from 0 (greedy) to 2",
    "top_p": "a number over 0 and up to 1",
    "top_k": "a whole number from 1, or 0 or -1 for no limit",
    "max_tokens": "a whole number from 1",
    "max_completion_tokens": "a whole number from 1",
    "seed": "a whole number",
    "stop": "a string or up to 16 strings of 1 … 256 characters",
    "stream": "true or false",
    "adapters": 'a list of up to 4 {"name": adapter, "weight": number}',
    "adapters[]": 'an object {"name": adapter, "weight": number}',
    "adapters[].weight": f"a number from -{MAX_WEIGHT} to {MAX_WEIGHT}",
}
"""What single parameters take; of the rest pydantic speaks well enough."""


_INDEX = re.compile(r"\[\d+\]")


def _depth(location: tuple[int | str, ...], body: Mapping[str, Any]) -> int:
    return len(_steps(location, body))


def _path(location: tuple[int | str, ...], body: Mapping[str, Any]) -> str:
    steps = _steps(location, body)
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).removeprefix(".")


def _steps(location: tuple[int | str, ...], body: Mapping[str, Any]) -> list[int | str]:
    """A fault's location without the names of pydantic's union members: only what is in the body."""
    steps: list[int | str] = []
    value: Any = body
    for step in location:
        if isinstance(step, int) and isinstance(value, list) and step < len(value):
            value = value[step]
        elif isinstance(step, str) and isinstance(value, dict) and (step in value or step in _REQUIRED):
            value = value.get(step)
        else:
            continue
        steps.append(step)
    return steps


_REQUIRED = frozenset({"role", "content", "type", "text", "name"})


def _invalid(field: str | None, what: str, hint: str | None = None) -> GraftError:
    return GraftError(ErrorCode.INVALID_REQUEST, what, field=field, hint=hint)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "…"


def _type(value: Any) -> str:
    names = {list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
