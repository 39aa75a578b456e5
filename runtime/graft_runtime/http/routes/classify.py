"""POST /classify, in vLLM's shape."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Request, Response
from pydantic import Field, PlainValidator, StrictBool, StrictStr

from graft_runtime.answering.asked import TextRequest
from graft_runtime.answering.callers import Caller
from graft_runtime.answering.passes import Passed, Passes
from graft_runtime.contract.tasks import Task
from graft_runtime.http.bodies import Body
from graft_runtime.http.generations import Generations
from graft_runtime.http.neutral import ANY, check_neutral
from graft_runtime.http.routes.completions import Prompt, checked, texts_of


class ClassifyBody(Body):
    """The request."""

    model: StrictStr | None = Field(default=None, max_length=256)
    input: Annotated[Prompt, PlainValidator(partial(checked, field="input"), json_schema_input_type=Prompt)]
    add_special_tokens: StrictBool | None = None

    expected: ClassVar[Mapping[str, str]] = {"model": "the name of an adapter or of the base model"}

    def check(self) -> None:
        check_neutral(self.model_extra, {"user": (ANY,)})

    def asked(self, caller: Caller) -> TextRequest:
        """Return what is asked for, and by whom."""
        special = self.add_special_tokens is not False
        return TextRequest(texts_of(self.input, special_tokens=special, field="input"), caller, model=self.model)


def classified(_: ClassifyBody, passed: Passed) -> dict[str, Any]:
    """Return the answer."""
    tokens, labels = passed.prompt_tokens, passed.base.labels
    assert labels is not None, "the base classifies"
    data = []
    for index, output in enumerate(passed.outputs):
        scores = labels.scores(output.values)
        label = labels.name(max(range(len(scores)), key=scores.__getitem__), len(scores))
        data.append({"index": index, "label": label, "probs": scores, "num_classes": len(scores)})
    usage = {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}
    return {
        "id": f"classify-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": passed.model,
        "data": data,
        "usage": usage | {"prompt_tokens_details": {"cached_tokens": 0}},
    }


def classify_router(generations: Generations, passes: Passes) -> APIRouter:
    """Return the route."""
    router = APIRouter()

    async def run(body: ClassifyBody, caller: Caller) -> Passed:
        return await passes.run(body.asked(caller), Task.SEQ_CLS)

    @router.post("/classify")
    async def classify(request: Request) -> Response:
        return await generations.pass_texts(request, "classify", ClassifyBody, run, classified)

    return router
