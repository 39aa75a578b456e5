"""What the engine generates for a request, as text that comes piece by piece."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from graft_runtime.answering.calls import CallPart, Reader, Said
from graft_runtime.errors import GraftError
from graft_runtime.messages import TokenLogprob
from graft_runtime.pod.engine_client import Answer
from graft_runtime.tokenizing.pieces import Detokenizer, StopStrings


@dataclass(frozen=True)
class ToldToken:
    """One token and its log-probability."""

    text: str
    logprob: float | None
    """None of the first of a prompt: nothing comes before it."""
    top: Sequence[tuple[str, float]]
    """The likeliest in its place, the best first."""


@dataclass(frozen=True)
class Piece:
    """What came of one choice."""

    index: int
    text: str
    finish: str | None
    tokens: Sequence[ToldToken] = ()
    """With their log-probabilities, where those are asked for."""
    calls: Sequence[CallPart] = ()
    """Of tools."""
    reasoning: str = ""
    """What the model thinks before it answers."""


def put_together(pieces: Sequence[Piece]) -> Piece:
    """Return all pieces of one choice as one."""
    last = pieces[-1]
    text, tokens = "".join(piece.text for piece in pieces), [token for piece in pieces for token in piece.tokens]
    calls, reasoning = [part for piece in pieces for part in piece.calls], "".join(piece.reasoning for piece in pieces)
    return Piece(last.index, text, last.finish, tokens, calls, reasoning)


@dataclass
class Choice:
    """One answer of a request."""

    index: int
    answer: Answer
    text: Detokenizer
    stops: StopStrings
    echo: str = ""
    """The prompt, where the answer begins with it."""
    spelled: Callable[[int], str] | None = None
    """A token's text, where log-probabilities are asked for."""
    told_prompt: Sequence[int] = ()
    """The prompt, where its log-probabilities are told before those of the answer."""
    reader: Reader | None = None
    """Reads calls of tools and thoughts, where the answer may have any."""
    tokens: int = 0
    """With the one that ends the answer."""
    thoughts: int = 0
    """Those until the last that came before text or calls, where the model has thought."""

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yield the text as it comes. Raises GraftError: the engine's fault."""
        finish, before, told, thinks = None, self.echo, list[ToldToken](), False
        while finish is None:
            tokens, finish = await self.answer.next()
            if self.spelled is not None:
                told += self._told(self.spelled, tokens)
            self.tokens += len(tokens) + (finish == "stop")
            text = self.text.push(tokens)
            if finish is not None:
                text += self.text.finish()
            text = self.stops.push(text)
            if self.stops.hit:
                finish = "stop"
                self.answer.cancel()
            elif finish is not None:
                text += self.stops.finish()
            said = self._said(text, last=finish is not None)
            thinks = (thinks or bool(said.reasoning)) and not (said.text or said.calls)
            if thinks:
                self.thoughts = self.tokens
            if said.text or said.calls or said.reasoning or finish is not None:
                yield Piece(self.index, before + said.text, self._why(finish), told, said.calls, said.reasoning)
                before, told = "", []

    def _said(self, text: str, *, last: bool) -> Said:
        if self.reader is None:
            return Said(text)
        said = self.reader.push(text)
        if not last:
            return said
        rest = self.reader.finish()
        return Said(said.text + rest.text, [*said.calls, *rest.calls], said.reasoning + rest.reasoning)

    def _why(self, finish: str | None) -> str | None:
        """Return why the answer ends, as OpenAI has it: one that the model has ended may be one that calls."""
        called = finish == "stop" and self.reader is not None and self.reader.called
        return "tool_calls" if called else finish

    def _told(self, spelled: Callable[[int], str], tokens: Sequence[int]) -> Iterator[ToldToken]:
        """Yield what is told of new tokens, of the prompt before the first and of the stop token at the end."""
        if self.told_prompt:
            first, *rest = self.told_prompt
            yield ToldToken(spelled(first), None, ())
            yield from _worded(spelled, rest, self.answer.prompt_logprobs)
            self.told_prompt = ()
        end = [] if self.answer.end is None else [self.answer.end]
        told = [*tokens, *end]
        yield from _worded(spelled, told, self.answer.take_logprobs(len(told)))


def _worded(
    spelled: Callable[[int], str], tokens: Sequence[int], logprobs: Sequence[TokenLogprob]
) -> Iterator[ToldToken]:
    for token, one in zip(tokens, logprobs, strict=True):
        top = [(spelled(likely), logprob) for likely, logprob in one.top]
        yield ToldToken(spelled(token), one.logprob, top)


@dataclass(eq=False)
class Generation:
    """A request on its way through the engine; `close` it."""

    model: str
    digest: str | None
    prompt_tokens: int
    choices: list[Choice]
    held: ExitStack
    """Gives back what the request holds: its answers in the engine, its places in the queue, its adapters."""
    _ended: int = 0

    @property
    def generated_tokens(self) -> int:
        return sum(choice.tokens for choice in self.choices)

    @property
    def known_tokens(self) -> int:
        """Return how many tokens of the prompts were not computed again."""
        return sum(choice.answer.known for choice in self.choices)

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yield the pieces of all choices as they come. Raises GraftError: the first fault."""
        if len(self.choices) == 1:
            async for piece in self.choices[0].pieces():
                yield piece
            return
        queue: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        tasks = [asyncio.create_task(_drain(choice, queue)) for choice in self.choices]
        try:
            left = len(tasks)
            while left:
                came = await queue.get()
                if isinstance(came, Exception):
                    raise came
                left -= came.finish is not None
                yield came
        finally:
            for task in tasks:
                task.cancel()

    def choice_ended(self) -> None:
        """Take note that the engine is done with a choice: with the last one it holds nothing, whoever still reads."""
        self._ended += 1
        if self._ended == len(self.choices):
            self.held.close()

    def close(self) -> None:
        """Give back all that the request holds; once or more often."""
        self.held.close()

    def fail(self, error: GraftError) -> None:
        """End every choice with this error."""
        for choice in self.choices:
            choice.answer.fail(error)


async def _drain(choice: Choice, queue: asyncio.Queue[Piece | Exception]) -> None:
    try:
        async for piece in choice.pieces():
            queue.put_nowait(piece)
    except Exception as error:  # whatever it is ends the request
        queue.put_nowait(error)
