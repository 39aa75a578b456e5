"""JSON schemas at random, as people write them, and schemas that ask for too much."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]

_PATTERNS = ["^[A-Z]{2,4}-[0-9]+$", "^a+b?$", "^(yes|no|maybe)$", "^[^,]{1,8}$"]
_FORMATS = ["date", "time", "date-time", "uuid", "ipv4", "email", "duration"]


def random_schema(draw: random.Random, depth: int = 3) -> Schema:
    """Return a schema of at most so many levels below its own."""
    kinds: list[Callable[[random.Random, int], Schema]] = [_string, _number, _integer, _word]
    if depth:
        kinds += [_object, _object, _object, _array, _either, _recursive]
    return draw.choice(kinds)(draw, depth)


def _object(draw: random.Random, depth: int) -> Schema:
    names = draw.sample(["name", "größe", "id", 'a "quoted" key', "x y", "tags", "when", "价格"], draw.randint(0, 5))
    schema: Schema = {"type": "object", "properties": {name: random_schema(draw, depth - 1) for name in names}}
    schema["required"] = draw.sample(names, draw.randint(0, len(names)))
    if draw.random() < 0.7:
        schema["additionalProperties"] = False
    elif draw.random() < 0.5:
        schema["additionalProperties"] = random_schema(draw, 0)
    return schema


def _array(draw: random.Random, depth: int) -> Schema:
    schema: Schema = {"type": "array", "items": random_schema(draw, depth - 1)}
    if draw.random() < 0.5:
        schema["minItems"] = draw.randint(0, 3)
        schema["maxItems"] = schema["minItems"] + draw.randint(0, 3)
    return schema


def _string(draw: random.Random, _: int) -> Schema:
    schema: Schema = {"type": "string"}
    match draw.randint(0, 3):
        case 0:
            schema["minLength"] = draw.randint(0, 5)
            schema["maxLength"] = schema["minLength"] + draw.randint(0, 9)
        case 1:
            schema["pattern"] = draw.choice(_PATTERNS)
        case 2:
            schema["format"] = draw.choice(_FORMATS)
    return schema


def _integer(draw: random.Random, _: int) -> Schema:
    low = draw.randint(-1000, 1000)
    bounds = draw.choice([{}, {"minimum": low}, {"minimum": low, "exclusiveMaximum": low + draw.randint(1, 5000)}])
    return {"type": "integer"} | bounds


def _number(draw: random.Random, _: int) -> Schema:
    low = round(draw.uniform(-50, 50), 2)
    return {"type": "number"} | draw.choice([{}, {"minimum": low, "maximum": low + 10}, {"exclusiveMinimum": low}])


def _word(draw: random.Random, _: int) -> Schema:
    constant = draw.choice(["red", "a\nb", "\\", 7, -1.5, None, True, {"k": [1, "x"]}])
    return draw.choice([{"type": "boolean"}, {"type": "null"}, {"enum": ["red", "grün", 3, None]}, {"const": constant}])


def _either(draw: random.Random, depth: int) -> Schema:
    return {"anyOf": [random_schema(draw, depth - 1) for _ in range(draw.randint(1, 3))]}


def _recursive(draw: random.Random, depth: int) -> Schema:
    tree = {
        "type": "object",
        "properties": {
            "value": random_schema(draw, 0),
            "next": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]},
        },
        "required": ["value", "next"],
        "additionalProperties": False,
    }
    return {"$defs": {"tree": tree}, "$ref": "#/$defs/tree"} if depth == 3 else random_schema(draw, depth - 1)


def nested(inner: Schema, levels: int) -> Schema:
    """Return a schema of arrays in arrays."""
    for _ in range(levels):
        inner = {"type": "array", "items": inner}
    return inner


_DOUBLING = {f"a{at}": {"allOf": [{"$ref": f"#/$defs/a{at + 1}"}] * 2} for at in range(60)}
HOSTILE: dict[str, Schema] = {
    "repeats of repeats": {"type": "string", "pattern": "^((a{1,300}){1,300}){1,300}$"},
    "many states": {"type": "string", "pattern": "^(.*[ab].{18}){2}$"},
    "backtracking": {"type": "string", "pattern": "^(a|aa){500}b{1000}$"},
    "lookahead": {"type": "string", "pattern": "^(?=a)(?!b).*$"},
    "back reference": {"type": "string", "pattern": r"^(a*)\1$"},
    "a loop": {"$ref": "#"},
    "a loop of several": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "doubling": {"$defs": _DOUBLING | {"a60": {"type": "null"}}, "$ref": "#/$defs/a0"},
    "deep": nested({"type": "integer"}, 120),
    "long": {"type": "array", "items": {"type": "integer"}, "minItems": 10**9},
    "large numbers": {"type": "number", "multipleOf": 1e-4, "minimum": 1e-300, "maximum": 1e300},
    "many words": {"enum": [str(at) * 4 for at in range(9_000)]},
    "many objects": {
        "anyOf": [
            {"type": "object", "properties": {f"k{at}": {"type": "string"} for at in range(first, first + 20)}}
            for first in range(200)
        ]
    },
    "many properties": {"type": "object", "properties": {f"p{at}": {"type": "string"} for at in range(3_000)}},
    "many patterns": {"allOf": [{"type": "string", "pattern": f".*a.{{{at}}}b.*"} for at in range(40)]},
    "elsewhere": {"$ref": "http://127.0.0.1/schema.json"},
    "file": {"$ref": "file:///etc/passwd"},
}
"""Each by what it is."""
