"""The OpenAPI document of the API port, from the routes and bodies that it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from graft_runtime.http.bodies import Body

_SCHEMAS = "#/components/schemas/"
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}


def openapi(app: FastAPI, bodies: Mapping[str, Sequence[type[Body]]], streams: Sequence[str]) -> dict[str, Any]:
    """Return the document.

    Args:
        app: whose routes it describes.
        bodies: what may be posted, by the route's path: one of these.
        streams: paths of the routes that stream as well.
    """
    document = get_openapi(title="Graft", version=version("graft-runtime"), routes=app.routes)
    models = [(model, "validation") for each in bodies.values() for model in each]
    references, defined = models_json_schema(models, ref_template=_SCHEMAS + "{model}")  # type: ignore[arg-type]
    document["components"] = {"schemas": {**defined["$defs"], "Error": _ERROR}}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            answers = operation["responses"]
            answers.pop("422", None)  # FastAPI's own, which no route gives
            answers["default"] = _content("A fault.", {"$ref": _SCHEMAS + "Error"})
            if method == "post" and path in bodies:
                schemas = [references[model, "validation"] for model in bodies[path]]
                schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
                operation["requestBody"] = _content("", schema) | {"required": True}
                if path in streams:
                    answers["200"]["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    return document


def _content(description: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}
