"""The OpenAPI document of the API port, from the routes and bodies that it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from graft_runtime.http.answers import (
    AdapterList,
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    CompletionChunk,
    Error,
    Model,
    ModelList,
    Shape,
    Text,
    Tokens,
    Version,
)
from graft_runtime.http.bodies import Body
from graft_runtime.http.pass_answers import Classification, EmbeddingList, Ranking, ScoreList
from graft_runtime.http.response_answers import ResponseEvent, ResponseObject

_SCHEMAS = "#/components/schemas/"
ANSWERS: Mapping[str, type[Shape] | None] = {
    "/v1/completions": Completion,
    "/v1/chat/completions": ChatCompletion,
    "/v1/responses": ResponseObject,
    "/v1/embeddings": EmbeddingList,
    "/classify": Classification,
    "/score": ScoreList,
    "/v1/score": ScoreList,
    "/rerank": Ranking,
    "/v1/rerank": Ranking,
    "/v2/rerank": Ranking,
    "/v1/models": ModelList,
    "/v1/models/{name}": Model,
    "/v1/adapters": AdapterList,
    "/tokenize": Tokens,
    "/detokenize": Text,
    "/version": Version,
    "/health": None,
    "/ping": None,
}
"""What each path answers; None: nothing."""
EVENTS: Mapping[str, type[Shape]] = {
    "/v1/completions": CompletionChunk,
    "/v1/chat/completions": ChatCompletionChunk,
    "/v1/responses": ResponseEvent,
}
"""What each event of a stream holds, by path, but for `[DONE]`."""


def openapi(app: FastAPI, bodies: Mapping[str, Sequence[type[Body]]]) -> dict[str, Any]:
    """Return the document.

    Args:
        app: whose routes it describes.
        bodies: what may be posted, by the route's path: one of these.
    """
    document = get_openapi(title="Graft", version=version("graft-runtime"), routes=app.routes)
    shapes = [Error, *(answer for answer in (*ANSWERS.values(), *EVENTS.values()) if answer is not None)]
    models = [(model, "validation") for model in [*(body for each in bodies.values() for body in each), *shapes]]
    references, defined = models_json_schema(models, ref_template=_SCHEMAS + "{model}")  # type: ignore[arg-type]
    document["components"] = {"schemas": defined["$defs"]}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            answer, event, answers = ANSWERS[path], EVENTS.get(path), operation["responses"]
            answers.pop("422", None)  # FastAPI's own, which no route gives
            answers["default"] = _content("A fault.", references[Error, "validation"])
            answers["200"] = {"description": "An empty answer."}
            if answer is not None:
                answers["200"] = _content("The answer.", references[answer, "validation"])
            if event is not None:
                answers["200"]["content"]["text/event-stream"] = {"schema": references[event, "validation"]}
            if method == "post" and path in bodies:
                schemas = [references[model, "validation"] for model in bodies[path]]
                schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
                operation["requestBody"] = _content("", schema) | {"required": True}
    return document


def _content(description: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}
