"""POST /v1/completions."""

from __future__ import annotations

from itertools import accumulate
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import Field, PlainValidator, StrictBool

from graft_runtime.answering.answers import Generation, Piece, ToldToken
from graft_runtime.answering.asked import Texts
from graft_runtime.http.bodies import Whole, invalid, shown
from graft_runtime.http.generations import Generations
from graft_runtime.http.routes.text import MAX_LOGPROBS, ChoiceWords, TextBody

MAX_PROMPTS = 128
Prompt = str | list[str] | list[int] | list[list[int]]

_PROMPT = f"a string, a list of strings, a list of token ids, or a list of such lists (at most {MAX_PROMPTS} prompts)"
_ITEMS = {str: "a string", list: "a list of token ids", int: "a token id, which is a whole number from 0"}


def checked(prompt: Any, field: str = "prompt", most: int = MAX_PROMPTS) -> Prompt:
    """Return a prompt that is one. Its first item decides what all must be, and the first fault ends it.

    Args:
        prompt: as the body has it.
        field: of the body, which holds it.
        most: prompts that there may be.

    Raises:
        GraftError: InvalidRequest.
    """
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, list):
        raise invalid(field, f"`{field}` is {shown(prompt)}, expected {_PROMPT}", f"change `{field}`")
    kind = type(prompt[0]) if prompt else str
    if kind is not int and len(prompt) > most:
        raise invalid(field, f"`{field}` has {len(prompt)} prompts, expected at most {most}", "send fewer")
    _check_items(field, prompt, kind if kind in _ITEMS else str)
    for at, ids in enumerate(prompt if kind is list else ()):
        _check_items(f"{field}[{at}]", ids, int)
    return prompt


def _check_items(path: str, items: list[Any], kind: Any) -> None:
    for at, item in enumerate(items):
        if type(item) is not kind or (kind is int and item < 0):
            field = f"{path}[{at}]"
            raise invalid(field, f"`{field}` is {shown(item)}, expected {_ITEMS[kind]}", f"change `{field}`")


def texts_of(prompt: Prompt, *, special_tokens: bool, field: str = "prompt") -> Texts:
    """Return the texts of a prompt: none of an empty list."""
    if isinstance(prompt, str):
        return Texts([prompt], special_tokens, field)
    if prompt and isinstance(prompt[0], int):
        return Texts([[token for token in prompt if isinstance(token, int)]], field=field)
    return Texts([each for each in prompt if not isinstance(each, int)], special_tokens, field)


class CompletionBody(TextBody):
    """The request."""

    prompt: Annotated[Prompt, PlainValidator(checked, json_schema_input_type=Prompt)]
    logprobs: Annotated[Whole, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: StrictBool | None = None
    add_special_tokens: StrictBool | None = None

    @property
    def prompts(self) -> Texts:
        """Return the prompts: none where `prompt` is an empty list."""
        return texts_of(self.prompt, special_tokens=self.add_special_tokens is not False)

    @property
    def told_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def echoes(self) -> bool:
        return bool(self.echo)


class CompletionWords(ChoiceWords):
    """The answer."""

    id_prefix = "cmpl-"
    whole_object = chunk_object = "text_completion"

    def __init__(self, generation: Generation, asked: TextBody) -> None:
        super().__init__(generation, asked)
        self._offsets = [0 for _ in generation.choices]

    def choice(self, answer: Piece) -> dict[str, Any]:
        logprobs = self._logprobs(answer) if answer.tokens else None
        return {"index": answer.index, "text": answer.text, "logprobs": logprobs, "finish_reason": answer.finish}

    def chunk_choice(self, piece: Piece) -> dict[str, Any]:
        return self.choice(piece)

    def _logprobs(self, piece: Piece) -> dict[str, Any]:
        ends = [*accumulate((len(token.text) for token in piece.tokens), initial=self._offsets[piece.index])]
        self._offsets[piece.index] = ends[-1]
        return {
            "tokens": [token.text for token in piece.tokens],
            "token_logprobs": [token.logprob for token in piece.tokens],
            "top_logprobs": [None if token.logprob is None else _likeliest(token) for token in piece.tokens],
            "text_offset": ends[:-1],
        }


def _likeliest(token: ToldToken) -> dict[str, float]:
    """Return the likeliest tokens by their text, the one that was chosen among them; of equal texts the best."""
    assert token.logprob is not None
    return dict([(token.text, token.logprob), *reversed(token.top)])


def completions_router(generations: Generations) -> APIRouter:
    """Return the route."""
    router = APIRouter()

    @router.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await generations.answer(request, "completions", CompletionBody, CompletionWords)

    return router
