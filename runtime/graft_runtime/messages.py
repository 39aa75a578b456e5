"""The typed messages between the API process and the engine process: MessagePack over one socket pair.

    API process ── Start Mount Unmount Vocabulary Generate Encode Cancel ──► engine process
    API process ◄── Events: one batch a step ────────────────────────────────── engine process

The engine knows token ids and served identities (digests and scales), not names and not HTTP.

More than 300 lines: it is one list, in which each field is explained once.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from graft_runtime.contract.config import EngineConfig, MergePart
from graft_runtime.contract.facts import AdapterFacts, DeltaKind
from graft_runtime.contract.quantizations import Quantization
from graft_runtime.contract.tasks import Task
from graft_runtime.contract.wire import Wire
from graft_runtime.errors import ErrorCode, GraftError

Tier = Literal["device", "host", "disk"]
"""Where an adapter is: its pack in the memory of the model's device, or compiled in host memory, or its files."""


class _Message(msgspec.Struct, frozen=True, tag=True, array_like=True):
    pass


class EngineFault(msgspec.Struct, frozen=True, array_like=True):
    """A GraftError on the wire."""

    code: str
    what: str
    details: tuple[str, ...] = ()
    hint: str | None = None

    @classmethod
    def of(cls, error: GraftError) -> EngineFault:
        return cls(error.code.value, error.what, error.details, error.hint)

    def error(self) -> GraftError:
        return GraftError(ErrorCode(self.code), self.what, details=self.details, hint=self.hint)


# API process → engine process


class MergeSource(msgspec.Struct, frozen=True, array_like=True):
    """One adapter to fold into the base, and the directory that holds it."""

    part: MergePart
    directory: str


class Start(_Message, frozen=True, tag=True, array_like=True):
    """The first message: load this base model. Answered by BaseLoaded or BaseFailed."""

    directory: str
    name: str
    dtype: str
    limits: EngineConfig
    merge: tuple[MergeSource, ...] = ()
    """Folded into the base before it serves; a bad one fails the base."""
    task: Task | None = None
    """None: what the checkpoint's own config.json says."""
    quantization: Quantization | None = None
    """Of the weights of linear modules; None: as the checkpoint has them."""


class Mount(_Message, frozen=True, tag=True, array_like=True):
    """Read, check and compile this adapter. Answered by Mounted or MountFailed. Mounting twice is mounting once."""

    digest: str
    directory: str
    name: str
    """For the text of errors only."""


class Unmount(_Message, frozen=True, tag=True, array_like=True):
    """Let this adapter go once no request runs on it. Answered by Unmounted."""

    digest: str
    keep: bool = False
    """In host memory, for the next time; else it is forgotten there as well."""


class Vocabulary(_Message, frozen=True, tag=True, array_like=True):
    """What the tokens of a tokenizer stand for; requests with a grammar name it. Answered by nothing."""

    name: str
    tokens: list[bytes]
    """What each adds to a text; nothing where it may be in none."""
    instead_of: str | None = None
    """Another, which no later request names."""


class ServedAdapter(msgspec.Struct, frozen=True, array_like=True):
    """One adapter under a request: y = W·x + weight · B·(A·x), alpha/r being part of B."""

    digest: str
    weight: float


class Sampling(msgspec.Struct, frozen=True, array_like=True):
    """How the next token is chosen. Greedy when temperature is 0."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0: no limit."""
    seed: int | None = None
    min_p: float = 0.0
    """The least share of the likeliest token's probability."""
    repetition_penalty: float = 1.0
    """Of tokens of prompt and answer: positive logits are divided by it, others multiplied."""
    presence_penalty: float = 0.0
    """Taken off the logit of a token that the answer has."""
    frequency_penalty: float = 0.0
    """Taken off for each time."""
    logit_bias: dict[int, float] = {}
    min_tokens: int = 0
    """No stop token comes before there are so many."""
    logprobs: int | None = None
    """Tell log-probabilities: of each token, and of so many of the likeliest."""


class Generate(_Message, frozen=True, tag=True, array_like=True):
    """Ask for the tokens that follow `prompt`, until a stop token, `max_tokens`, or Cancel. Answered by Generated."""

    request: str
    prompt: list[int]
    max_tokens: int
    adapters: tuple[ServedAdapter, ...] = ()
    """Empty: the base model."""
    sampling: Sampling = Sampling()
    stop_tokens: tuple[int, ...] = ()
    salt: str = ""
    """Keys and values are shared only among requests of the same salt."""
    tell_prompt: bool = False
    """Tell the log-probabilities of the prompt as well, of as many of the likeliest as `sampling` has it."""
    share: int = 1
    """Of the engine, against that of requests to other adapters: so much less each of its tokens counts."""
    grammar: str | None = None
    """Of llguidance, which the answer follows; it ends where the grammar does."""
    vocabulary: str = ""
    """Which tokens the grammar is written with, where there is one."""


class Encode(_Message, frozen=True, tag=True, array_like=True):
    """Ask a model that classifies, finds answers or embeds what it says of a text. Answered by Encoded."""

    request: str
    ids: list[int]
    """With whatever the model wants around a text."""
    adapters: tuple[ServedAdapter, ...] = ()
    """Empty: the base model."""
    types: list[int] | None = None
    """Token types, as many as ids, for a pair of texts; None: one text."""
    pooled: bool = False
    """One vector for the text is made of its hidden states; it is not scaled."""


class Cancel(_Message, frozen=True, tag=True, array_like=True):
    """Free this request's place. Answered by nothing, also where the request is unknown."""

    request: str


Command = Start | Mount | Unmount | Vocabulary | Generate | Encode | Cancel


# engine process → API process


class Capabilities(msgspec.Struct, frozen=True, array_like=True):
    """What an engine can do with adapters."""

    deltas: frozenset[DeltaKind]
    """What it computes."""
    weights: bool
    """An adapter under a request may have a weight other than 1."""
    adapters_per_request: int
    """The most that one request may sum; 1: no sums."""
    tiers: tuple[Tier, ...] = ("device", "disk")
    """Where it keeps adapters, or reads them from, the fastest first."""
    device_bytes: int | None = None
    """Of the device's memory for mounted adapters; None: as many adapters as its limits say, whatever their size."""
    tells_prompts: bool = False
    """It gives log-probabilities of prompts."""
    grammars: bool = False
    """Answers follow a grammar where one is asked for."""
    takes_normal_forms: bool = False
    """It takes nothing but normal forms, which the pod makes of adapters; it tells of those what it has read there."""


class BaseLoaded(_Message, frozen=True, tag=True, array_like=True):
    """The base model serves."""

    runner: str
    context_length: int
    """Tokens by model and limits, of prompt and answer, or of each where the prompt has an encoder of its own."""
    vocabulary_size: int
    parameter_count: int
    dtype: str
    task: Task
    capabilities: Capabilities
    merged: tuple[AdapterFacts, ...] = ()
    """Of each adapter that was merged, in the order of the merge."""
    capacity_tokens: int | None = None
    """That keys and values may be kept of; None: the engine does not know."""
    quantization: Quantization | None = None
    """Of the weights of linear modules; None: they are full."""

    def room_after(self, prompt: int) -> int:
        """Return how many tokens can follow a prompt of this many."""
        return self.context_length - (prompt if self.task is Task.CAUSAL_LM else 1)


class BaseFailed(_Message, frozen=True, tag=True, array_like=True):
    """The base model can't be served; the process goes on answering nothing else."""

    fault: EngineFault


class Mounted(_Message, frozen=True, tag=True, array_like=True):
    """The adapter passed every check and its weights are in the memory of the model's device."""

    digest: str
    facts: AdapterFacts
    bytes: int
    """In the memory of the model's device."""
    tier: Tier = "disk"
    """Where it was before. `host`: compiled and tried already."""


class MountFailed(_Message, frozen=True, tag=True, array_like=True):
    """The adapter is not mounted and left nothing behind."""

    digest: str
    fault: EngineFault
    bytes: int | None = None
    """That it would take in the memory of the model's device; None: nobody knows."""


class Unmounted(_Message, frozen=True, tag=True, array_like=True):
    """No request runs on the adapter and its memory on the device is free."""

    digest: str
    tier: Tier | None = None
    """Where it is kept, if it was to be: in host memory, or on disk alone where that has no room for it."""


class Dropped(_Message, frozen=True, tag=True, array_like=True):
    """These have left host memory, since others needed the room."""

    digests: list[str]


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """What the model gives to a token, before biases, penalties and temperature."""

    logprob: float
    top: list[tuple[int, float]]
    """The likeliest tokens in its place, the best first."""


class Generated(_Message, frozen=True, tag=True, array_like=True):
    """Tokens of one request, in order. `finish` is set on the last: `stop`, `length`, or `error` with a fault.

    A stop token ends the answer and is not among its tokens. A cancelled request gets nothing further.
    """

    request: str
    tokens: list[int]
    finish: str | None = None
    fault: EngineFault | None = None
    known: int = 0
    """Tokens of the prompt whose keys and values were there from requests before; told with the first token."""
    logprobs: list[TokenLogprob] = []
    """Of each token, the one that ends the answer included, where they were asked for."""
    prompt_logprobs: list[TokenLogprob] = []
    """Of the prompt's tokens from the second on, with the first event, where they were asked for."""
    end: int | None = None
    """The stop token."""


class Encoded(_Message, frozen=True, tag=True, array_like=True):
    """What the model says of one text, or the fault.

    By the base's task, as logits: labels [labels], labels of each token [tokens, labels], start and end of an answer
    [2, tokens]; or, where it has no head, hidden states [tokens, features], pooled [features]. The last dimension
    changes first.
    """

    request: str
    shape: tuple[int, ...]
    values: list[float]
    fault: EngineFault | None = None


class StepDone(_Message, frozen=True, tag=True, array_like=True):
    """After each step of the engine."""

    seconds: float


class Occupancy(_Message, frozen=True, tag=True, array_like=True):
    """How full the engine is, whenever that has changed; `reserved` is in tokens of keys and values."""

    running: int = 0
    waiting: int = 0
    reserved: int = 0


Event = (
    BaseLoaded | BaseFailed | Mounted | MountFailed | Unmounted | Dropped | Generated | Encoded | StepDone | Occupancy
)


def _plain(value: object) -> object:
    """Return what goes over the socket for a type of the contract."""
    if isinstance(value, Wire):
        return value.model_dump(mode="json")
    raise NotImplementedError(f"messages hold no {type(value).__name__}")


def _typed(expected: type, value: object) -> object:
    """Return the value of a type of the contract; pydantic's ValidationError is a ValueError as msgspec's is."""
    if issubclass(expected, Wire):
        return expected.model_validate(value)
    raise NotImplementedError(f"messages hold no {expected.__name__}")


_encoder = msgspec.msgpack.Encoder(enc_hook=_plain)
_command_decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command, dec_hook=_typed)
decode_command = _command_decoder.decode
decode_events = msgspec.msgpack.Decoder(list[Event], dec_hook=_typed).decode
"""These decode the body of a frame. They raise msgspec.ValidationError."""

FRAME_HEADER_BYTES = 4
"""Big-endian length of the MessagePack body that follows."""
MAX_FRAME_BYTES = 1 << 28


def frame_header(body: bytes) -> bytes:
    """Return what a body's frame begins with. Raises ValueError when it is too long."""
    if len(body) > MAX_FRAME_BYTES:
        raise ValueError(f"a message of {len(body)} bytes is over the limit of {MAX_FRAME_BYTES}")
    return len(body).to_bytes(FRAME_HEADER_BYTES, "big")


def encode_command(command: Command) -> bytes:
    """Encode a command as one frame, header included."""
    return _frame(_encoder.encode(command))


def encode_events(events: list[Event]) -> bytes:
    """Encode events as one frame, header included."""
    return _frame(_encoder.encode(events))


def _frame(body: bytes) -> bytes:
    return frame_header(body) + body
