"""What the routes that answer with text have in common: fields of the body, words of the answer."""

from __future__ import annotations

import time
import uuid
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr

from graft_runtime.answering.answers import Generation, Piece
from graft_runtime.answering.asked import NamedAdapter, Prompts, TextRequest
from graft_runtime.answering.callers import Caller
from graft_runtime.errors import GraftError
from graft_runtime.http.bodies import LARGEST_INTEGER, Body, Whole, invalid, shown
from graft_runtime.http.faults import error_body
from graft_runtime.http.neutral import BODY_FIELDS, check_neutral
from graft_runtime.http.routes.forms import FormBody
from graft_runtime.http.streaming import DONE, event

MAX_STOPS = 16
MAX_STOP_TOKENS = 1024
MAX_BIASES = 1024
MAX_ANSWERS = 128
"""Of a request, to all its prompts."""
MAX_LOGPROBS = 20
MAX_ADAPTERS = 4
MAX_WEIGHT = 1000

Number = StrictInt | StrictFloat
Count = Annotated[Whole, Field(ge=1, le=LARGEST_INTEGER)]
TokenId = Annotated[int, Field(ge=0, le=LARGEST_INTEGER)]
"""As the name of a field, so that it comes as text."""
Token = Annotated[Whole, Field(ge=0, le=LARGEST_INTEGER)]
Stop = Annotated[StrictStr, Field(min_length=1, max_length=256)]


class StreamOptions(BaseModel):
    """What else a stream brings."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    include_usage: StrictBool = False
    include_obfuscation: StrictBool | None = None
    """Taken, and without meaning here."""
    continuous_usage_stats: StrictBool | None = None
    """An extension of vLLM's: each chunk tells the tokens so far."""


class WeightedName(BaseModel):
    """One adapter of a composition, and how much of it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    name: Annotated[StrictStr, Field(min_length=1, max_length=256)]
    weight: Annotated[Number, Field(ge=-MAX_WEIGHT, le=MAX_WEIGHT)] = 1.0


class AskedBody(Body):
    """A request for text."""

    stream: StrictBool | None = None

    def asked(self, caller: Caller) -> TextRequest:
        """Return what is asked for, and by whom."""
        raise NotImplementedError


class TextBody(FormBody, AskedBody):
    """The fields that each of these routes takes."""

    model: StrictStr | None = Field(default=None, max_length=256)
    max_tokens: Count | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[Whole, Field(ge=-1, le=LARGEST_INTEGER)] | None = None
    """An extension: only the k likeliest tokens; 0 or -1 for no limit."""
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[Number, Field(gt=0, le=100)] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    logit_bias: (
        Annotated[dict[TokenId, Annotated[Number, Field(ge=-100, le=100)]], Field(max_length=MAX_BIASES)] | None
    ) = None
    n: Annotated[Whole, Field(ge=1, le=MAX_ANSWERS)] | None = None
    seed: Annotated[Whole, Field(ge=-LARGEST_INTEGER, le=LARGEST_INTEGER)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS, fail_fast=True)] | None = None
    stop_token_ids: Annotated[list[Token], Field(max_length=MAX_STOP_TOKENS, fail_fast=True)] | None = None
    min_tokens: Annotated[Whole, Field(ge=0, le=LARGEST_INTEGER)] | None = None
    ignore_eos: StrictBool | None = None
    skip_special_tokens: StrictBool | None = None
    truncate_prompt_tokens: Annotated[Whole, Field(ge=-1, le=LARGEST_INTEGER)] | None = None
    stream_options: StreamOptions | None = None
    cache_salt: StrictStr | None = Field(default=None, min_length=1, max_length=256)
    """An extension, as vLLM has it: only requests of the same salt share what is kept of prompts and answers."""
    adapters: Annotated[list[WeightedName], Field(max_length=MAX_ADAPTERS, fail_fast=True)] | None = None
    """An extension: answer with the weighted sum of these; `model` is the base then."""

    expected: ClassVar[Mapping[str, str]] = {
        "model": "the name of an adapter or of the base model",
        "temperature": "a number from 0 (greedy) to 2",
        "top_p": "a number over 0 and up to 1",
        "top_k": f"a whole number from 1 to {LARGEST_INTEGER}, or 0 or -1 for no limit",
        "max_tokens": f"a whole number from 1 to {LARGEST_INTEGER}",
        "seed": f"a whole number from -{LARGEST_INTEGER} to {LARGEST_INTEGER}",
        "stop": "a string or up to 16 strings of 1 … 256 characters",
        "stream": "true or false",
        "cache_salt": "a string of 1 … 256 characters",
        "adapters": 'a list of up to 4 {"name": adapter, "weight": number}',
        "adapters[]": 'an object {"name": adapter, "weight": number}',
        "adapters[].weight": f"a number from -{MAX_WEIGHT} to {MAX_WEIGHT}",
    }

    @property
    @abstractmethod
    def prompts(self) -> Prompts:
        """Return what is to be answered."""

    @property
    def token_limit(self) -> int | None:
        """Return the most tokens of an answer, as the request has it."""
        return self.max_tokens

    @property
    @abstractmethod
    def told_logprobs(self) -> int | None:
        """Return how many likeliest tokens are told beside each; None: no log-probabilities."""

    @property
    def echoes(self) -> bool:
        """Return whether answers begin with their prompt."""
        return False

    @property
    def continuous_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.continuous_usage_stats)

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def asked(self, caller: Caller) -> TextRequest:
        return TextRequest(
            self.prompts,
            caller,
            model=self.model,
            adapters=[NamedAdapter(adapter.name, adapter.weight) for adapter in self.adapters or ()],
            max_tokens=self.token_limit,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias=self.logit_bias or {},
            choices=self.n or 1,
            logprobs=self.told_logprobs,
            seed=self.seed,
            salt=self.cache_salt or "",
            stop_tokens=frozenset(self.stop_token_ids or ()),
            min_tokens=self.min_tokens or 0,
            ignore_end=bool(self.ignore_eos),
            show_special=self.skip_special_tokens is False,
            truncate=self.truncate_prompt_tokens,
            echo=self.echoes,
            form=self.form,
            stops=[self.stop] if isinstance(self.stop, str) else self.stop or (),
        )

    def check(self) -> None:
        check_neutral(self.model_extra, BODY_FIELDS)
        self.check_form()
        if self.stream_options is not None and not self.stream:
            raise invalid(
                "stream_options", "`stream_options` is given without `stream: true`", "leave it out, or stream"
            )
        if self.truncate_prompt_tokens == 0:
            raise invalid(
                "truncate_prompt_tokens", "`truncate_prompt_tokens` is 0, which leaves no prompt", "send 1 or more"
            )
        if (answers := self.prompts.count * (self.n or 1)) > MAX_ANSWERS:
            raise invalid(
                "n", f"`n` is {self.n}, which makes {answers} answers, expected at most {MAX_ANSWERS}", "lower `n`"
            )
        names = [adapter.name for adapter in self.adapters or ()]
        for index, name in enumerate(names):
            if name in names[:index]:
                field = f"adapters[{index}].name"
                hint = "name each adapter once, with one weight"
                raise invalid(field, f"`{field}` is {shown(name)} once more", hint)


class Words:
    """How a route words its answers."""

    last: ClassVar[bytes] = DONE
    """The last event of a stream that has not failed; nothing where there is none."""

    @abstractmethod
    def whole(self, answers: Sequence[Piece]) -> dict[str, Any]:
        """Return the answer that is not streamed, of which each choice is one piece."""

    def openings(self) -> list[dict[str, Any]]:
        """Return the events that a stream begins with."""
        return []

    @abstractmethod
    def chunks(self, piece: Piece) -> list[dict[str, Any]]:
        """Return what a stream tells of one piece."""

    def closings(self) -> list[dict[str, Any]]:
        """Return the events after the last piece."""
        return []

    def failure(self, error: GraftError) -> dict[str, Any]:
        """Return the last event of a stream that fails."""
        return error_body(error)

    def encoded(self, value: Mapping[str, Any]) -> bytes:
        """Return an event as it goes out."""
        return event(value)


class ChoiceWords(Words):
    """OpenAI's objects with choices."""

    id_prefix: ClassVar[str]
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]

    def __init__(self, generation: Generation, asked: TextBody) -> None:
        self._generation = generation
        self._id = self.id_prefix + uuid.uuid4().hex
        self._created = int(time.time())
        self._tells_usage, self._continuous_usage = asked.include_usage, asked.continuous_usage

    def whole(self, answers: Sequence[Piece]) -> dict[str, Any]:
        return self._envelope(self.whole_object, [*map(self.choice, answers)]) | {"usage": self._usage()}

    def chunks(self, piece: Piece) -> list[dict[str, Any]]:
        usage = {"usage": self._usage()} if self._continuous_usage else {}
        return [self._envelope(self.chunk_object, [self.chunk_choice(piece)]) | usage]

    def closings(self) -> list[dict[str, Any]]:
        """Return how many tokens there were, where that was asked for."""
        return [self._envelope(self.chunk_object, []) | {"usage": self._usage()}] if self._tells_usage else []

    @abstractmethod
    def choice(self, answer: Piece) -> dict[str, Any]:
        """Return one choice of a whole answer."""

    @abstractmethod
    def chunk_choice(self, piece: Piece) -> dict[str, Any]:
        """Return one choice of a chunk."""

    def _envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        model = self._generation.model
        return {"id": self._id, "object": kind, "created": self._created, "model": model, "choices": choices}

    def _usage(self) -> dict[str, Any]:
        prompt, generated = self._generation.prompt_tokens, self._generation.generated_tokens
        usage = {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}
        return usage | {"prompt_tokens_details": {"cached_tokens": self._generation.known_tokens}}
