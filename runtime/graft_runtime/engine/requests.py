"""A request on its way through the engine, and what every way of running requests has in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from graft_runtime.engine.constraints import Constraint
from graft_runtime.engine.sampling import Draws
from graft_runtime.engine.seen_tokens import SeenTokens
from graft_runtime.errors import ErrorCode
from graft_runtime.messages import Encode, Encoded, EngineFault, Event, Generate, Generated, TokenLogprob
from graft_runtime.model.rows import RowAdapter

NEVER = 1 << 62
"""A position that no sequence has."""


@dataclass(eq=False, kw_only=True)
class Request:
    """One request, from its arrival to its last event."""

    message: Generate | Encode
    """Which asked for it."""
    adapters: tuple[RowAdapter, ...]
    alone: bool = False
    """It was in a step that failed: it is tried again by itself, so that only the culprit fails."""
    turn: int = 0
    """See `Turns`."""
    waits_since: int = 0
    """Step of the engine at which it came, or others last made way for it."""

    @property
    def name(self) -> str:
        return self.message.request

    @property
    def whose(self) -> frozenset[str]:
        """Return the digests of its adapters: those of the same share the engine with others as one."""
        return frozenset(served.digest for served in self.message.adapters)

    @property
    def share(self) -> int:
        """Return the share of its adapters."""
        return self.message.share if isinstance(self.message, Generate) else 1

    @property
    def tokens_at_most(self) -> int:
        """Return the tokens that it may come to."""
        message = self.message
        return len(message.prompt) + message.max_tokens if isinstance(message, Generate) else len(message.ids)


@dataclass(eq=False, kw_only=True)
class Generation(Request):
    """A request for text."""

    message: Generate
    draws: Draws
    virtual: int
    """Positions before the prompt that are the adapter's."""
    max_tokens: int
    """As asked, and no more than the context has room for."""
    vocabulary: int
    """Token ids that mean something to its adapters, or to the base."""
    seen: SeenTokens | None = None
    """Where it has penalties."""
    constraint: Constraint | None = None
    """Where its answer has a grammar, once that is compiled."""
    prompt_told: dict[int, TokenLogprob] = field(default_factory=dict)
    """What the model gives to the prompt's tokens, by the place before each, where it is asked for."""
    tokens: list[int] = field(default_factory=list)
    known: int = 0
    """Tokens of the prompt whose keys and values were there when it began."""

    @property
    def tells_prompt(self) -> bool:
        """Tell whether the log-probabilities of the prompt are asked for, and not told yet."""
        return self.message.tell_prompt and not self.tokens

    @property
    def length(self) -> int:
        """Return the number of tokens of prompt and answer, and of virtual ones."""
        return self.virtual + len(self.message.prompt) + len(self.tokens)

    def ids(self, start: int, end: int) -> list[int]:
        """Return the tokens of prompt and answer, `start` … `end`; any id stands for a virtual one."""
        virtual = [0] * (min(end, self.virtual) - start)
        start, end = max(0, start - self.virtual), max(0, end - self.virtual)
        prompt = len(self.message.prompt)
        real = self.message.prompt[start:end] + self.tokens[max(0, start - prompt) : max(0, end - prompt)]
        return virtual + real


@dataclass(eq=False, kw_only=True)
class Encoding(Request):
    """A request for what one pass of the model says."""

    message: Encode


@dataclass(frozen=True)
class Result:
    """What a step made of one request."""

    request: Request
    event: Event
    ends: bool
    """Whether that was its last event."""


def failure(message: Generate | Encode, fault: EngineFault) -> Event:
    """Return the last event of a request that has failed."""
    if isinstance(message, Generate):
        return Generated(message.request, [], "error", fault)
    return Encoded(message.request, (), [], fault)


def not_finite(request: Request) -> Result:
    """Return what becomes of a request whose values overflow."""
    names = ", ".join(served.digest for served in request.message.adapters)
    whose = f"adapter {names} computes" if names else "the base model computes"
    fault = EngineFault(
        ErrorCode.CORRUPT,
        f"{whose} values that are not finite on this prompt",
        hint="its weights overflow the dtype of the model; use a wider spec.baseModel.dtype, or train it again",
    )
    return Result(request, failure(request.message, fault), ends=True)


class Turn(Protocol):
    """Requests that go through the model together, once."""

    @property
    def requests(self) -> Sequence[Request]: ...

    def run(self) -> Sequence[Result]:
        """Take them through the model. Returns what became of those that have something to tell."""
        ...

    def settle(self, ended: Sequence[Any]) -> None:
        """Take note of what the turn has computed; these requests leave."""
        ...


class Flow(Protocol):
    """How requests run on one of the runners: which are in, and which go through the model together."""

    @property
    def requests(self) -> Sequence[Request]:
        """Return the requests that run, the oldest first."""
        ...

    @property
    def reserved(self) -> int:
        """Return how many tokens there are keys and values for, or room for keys and values."""
        ...

    def make_room(self) -> Sequence[Request]:
        """Give those that run room for their next token. Returns those that had to leave for it, the oldest first."""
        ...

    def start(self, waiting: Sequence[Any]) -> Sequence[Request]:
        """Let those in that there is room for, the first of the queue before others. Returns which."""
        ...

    def turns(self) -> Sequence[Turn]:
        """Return those of one step: each request is in one of them at most."""
        ...

    def leave(self, request: Any) -> None:
        """Take out a request that runs, and free what it held."""
        ...


def first_position(prompt: Sequence[int], invocation: Sequence[int]) -> int:
    """Return where an adapter begins to take part: the last place where the prompt says its invocation tokens.

    https://arxiv.org/abs/2504.12397 (aLoRA). Without invocation tokens an adapter takes part from the first token on; a
    prompt that does not say the adapter's invocation tokens is the base's.

    Args:
        prompt: token ids.
        invocation: token ids.
    """
    if not invocation:
        return 0
    # Knuth, Morris and Pratt's search from the end: each token is looked at about twice, whatever repeats.
    wanted = invocation[::-1]
    falls = [0]
    """How much of `wanted` still matches where its first 1, 2, … tokens did and the next does not."""
    for token in wanted[1:]:
        falls.append(_matched(wanted, falls, falls[-1], token))
    matched = 0
    for at in range(len(prompt) - 1, -1, -1):
        matched = _matched(wanted, falls, matched, prompt[at])
        if matched == len(wanted):
            return at
    return NEVER


def _matched(wanted: Sequence[int], falls: Sequence[int], matched: int, token: int) -> int:
    """Return how many tokens of `wanted` match up to this one, after so many did before it."""
    while matched and token != wanted[matched]:
        matched = falls[matched - 1]
    return matched + (token == wanted[matched])
