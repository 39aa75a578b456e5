"""POST /v1/embeddings, in OpenAI's shape."""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field, PlainValidator, StrictBool, StrictStr

from graft_runtime.answering.asked import TextRequest
from graft_runtime.answering.callers import Caller
from graft_runtime.answering.passes import Passed, Passes
from graft_runtime.contract.tasks import Task
from graft_runtime.http.bodies import Body, Whole, invalid
from graft_runtime.http.generations import Generations
from graft_runtime.http.neutral import ANY, check_neutral
from graft_runtime.http.routes.completions import Prompt, checked, texts_of

MAX_TEXTS = 2048
"""OpenAI's."""
Encoding = Literal["float", "base64"]


class EmbeddingBody(Body):
    """The request."""

    model: StrictStr | None = Field(default=None, max_length=256)
    input: Annotated[
        Prompt, PlainValidator(partial(checked, field="input", most=MAX_TEXTS), json_schema_input_type=Prompt)
    ]
    encoding_format: Encoding | None = None
    dimensions: Annotated[Whole, Field(ge=1)] | None = None
    add_special_tokens: StrictBool | None = None

    expected: ClassVar[Mapping[str, str]] = {
        "model": "the name of an adapter or of the base model",
        "encoding_format": "`float` or `base64`",
        "dimensions": "how many numbers of each vector to send, a whole number from 1",
    }

    def check(self) -> None:
        check_neutral(self.model_extra, {"user": (ANY,)})

    def asked(self, caller: Caller) -> TextRequest:
        """Return what is asked for, and by whom."""
        special = self.add_special_tokens is not False
        return TextRequest(texts_of(self.input, special_tokens=special, field="input"), caller, model=self.model)


def embedded(body: EmbeddingBody, passed: Passed) -> dict[str, Any]:
    """Return the answer. Raises GraftError: InvalidRequest, where there are fewer dimensions than are asked for."""
    pooling, tokens = passed.base.pooling, passed.prompt_tokens
    assert pooling is not None, "the base embeds"
    there = len(passed.outputs[0].values)
    if body.dimensions is not None and body.dimensions > there:
        what = f"`dimensions` is {body.dimensions}, expected at most {there}: `{passed.model}` makes vectors of so many"
        raise invalid("dimensions", what, "lower `dimensions`, or leave it out")
    write = _packed if body.encoding_format == "base64" else list
    data = [
        {"object": "embedding", "index": index, "embedding": write(pooling.cut(output.values, body.dimensions))}
        for index, output in enumerate(passed.outputs)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": passed.model, "usage": usage}


def _packed(vector: list[float]) -> str:
    """Return the base64 of 32-bit floats, the lowest byte first."""
    floats = array("f", vector)
    if sys.byteorder == "big":
        floats.byteswap()
    return base64.b64encode(floats.tobytes()).decode()


def embeddings_router(generations: Generations, passes: Passes) -> APIRouter:
    """Return the route."""
    router = APIRouter()

    async def run(body: EmbeddingBody, caller: Caller) -> Passed:
        return await passes.run(body.asked(caller), Task.FEATURE_EXTRACTION, pooled=True)

    @router.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        return await generations.pass_texts(request, "embeddings", EmbeddingBody, run, embedded)

    return router
