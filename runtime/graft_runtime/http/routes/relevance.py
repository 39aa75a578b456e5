"""POST /score in vLLM's shape, and /rerank in that of Jina and Cohere."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr

from graft_runtime.answering.callers import Caller
from graft_runtime.answering.pairs import Pairs
from graft_runtime.answering.passes import Passed, Passes
from graft_runtime.http.bodies import Body, Whole, invalid
from graft_runtime.http.generations import Generations
from graft_runtime.http.neutral import ANY, check_neutral

MAX_PAIRS = 2048
_Texts = Annotated[list[StrictStr], Field(min_length=1, max_length=MAX_PAIRS)]
_NEUTRAL = {"user": (ANY,)}


class ScoreBody(Body):
    """The request of /score."""

    model: StrictStr | None = Field(default=None, max_length=256)
    text_1: StrictStr | _Texts
    text_2: StrictStr | _Texts

    expected: ClassVar[Mapping[str, str]] = {
        "model": "the name of an adapter or of the base model",
        "text_1": f"a string or a list of up to {MAX_PAIRS} strings",
        "text_2": f"a string or a list of up to {MAX_PAIRS} strings",
    }

    def check(self) -> None:
        check_neutral(self.model_extra, _NEUTRAL)
        first, second = _listed(self.text_1), _listed(self.text_2)
        if len(first) not in {1, len(second)}:
            what = f"`text_1` has {len(first)} texts and `text_2` {len(second)}, expected one or as many"
            raise invalid("text_1", what, "send one text to hold against all others, or pairs")

    def pairs(self) -> Pairs:
        """Return what is asked for: one text and each of the others, or one of each."""
        first, second = _listed(self.text_1), _listed(self.text_2)
        return Pairs([*zip(first * (len(second) // len(first)), second, strict=True)], "text_2")


class Document(BaseModel):
    """A document of /rerank."""

    model_config = ConfigDict(extra="allow", frozen=True)

    text: StrictStr


class RerankBody(Body):
    """The request of /rerank."""

    model: StrictStr | None = Field(default=None, max_length=256)
    query: StrictStr
    documents: Annotated[list[StrictStr | Document], Field(min_length=1, max_length=MAX_PAIRS)]
    top_n: Annotated[Whole, Field(ge=0)] | None = None
    return_documents: StrictBool | None = None

    expected: ClassVar[Mapping[str, str]] = {
        "model": "the name of an adapter or of the base model",
        "query": "a string",
        "top_n": "how many of the best to send, a whole number; 0: all",
    }

    def check(self) -> None:
        check_neutral(self.model_extra, _NEUTRAL)
        for index, document in enumerate(self.documents):
            if isinstance(document, Document):
                check_neutral(document.model_extra, {}, f"documents[{index}]")

    @property
    def texts(self) -> list[str]:
        """Return the documents."""
        return [each.text if isinstance(each, Document) else each for each in self.documents]

    def pairs(self) -> Pairs:
        """Return what is asked for: the query and each document."""
        return Pairs([(self.query, text) for text in self.texts], "documents")


def _listed(texts: str | list[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else texts


def scored(_: ScoreBody, passed: Passed) -> dict[str, Any]:
    """Return the answer of /score."""
    return {
        "id": f"score-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": passed.model,
        "data": [{"index": at, "object": "score", "score": score} for at, score in enumerate(passed.scores)],
        "usage": _usage(passed),
    }


def reranked(body: RerankBody, passed: Passed) -> dict[str, Any]:
    """Return the answer of /rerank: the best first, equal ones in their order."""
    results: list[dict[str, Any]] = [
        {"index": at, "relevance_score": score}
        | ({} if body.return_documents is False else {"document": {"text": text}})
        for at, (text, score) in enumerate(zip(body.texts, passed.scores, strict=True))
    ]
    results.sort(key=lambda result: -result["relevance_score"])
    return {
        "id": f"rerank-{uuid.uuid4().hex}",
        "model": passed.model,
        "results": results[: body.top_n or None],
        "usage": _usage(passed),
    }


def _usage(passed: Passed) -> dict[str, int]:
    return {"prompt_tokens": passed.prompt_tokens, "total_tokens": passed.prompt_tokens}


def relevance_router(generations: Generations, passes: Passes) -> APIRouter:
    """Return the routes."""
    router = APIRouter()

    async def run(body: ScoreBody | RerankBody, caller: Caller) -> Passed:
        return await passes.score(body.pairs(), caller, body.model)

    @router.post("/score")
    @router.post("/v1/score")
    async def score(request: Request) -> Response:
        return await generations.pass_texts(request, "score", ScoreBody, run, scored)

    @router.post("/rerank")
    @router.post("/v1/rerank")
    @router.post("/v2/rerank")
    async def rerank(request: Request) -> Response:
        return await generations.pass_texts(request, "rerank", RerankBody, run, reranked)

    return router
