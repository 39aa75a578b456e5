"""JSON bodies of requests: checked field by field, with one fault that names its field. No I/O."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, StrictInt, ValidationError

from graft_runtime.adapters.strict_json import parse_object
from graft_runtime.errors import ErrorCode, GraftError, cut

Parsed = TypeVar("Parsed")

MAX_VALUES = 1 << 20
"""In one body: as many token ids as the longest context has. Each value takes some sixty bytes once it is read."""
MAX_LEVELS = 64
"""Of objects and lists in one body: schemas of objects in objects take three each."""
LARGEST_INTEGER = 2**63 - 1
"""What numbers of a request are held in beyond this process."""
_BEGINNINGS = (b",", b"[", b"{")
"""Of values; some may be text."""
_SURROGATE = re.compile(rb"\\u[dD]")
"""Half of a character may hide behind it, which is no text: it can't be tokenized or sent back."""
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
"""One that does not end goes to the end of the body; no place is looked at twice."""
_INDEX = re.compile(r"\[\d+\]")
_REQUIRED = frozenset({"role", "content", "type", "text", "name", "function", "arguments"})


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[StrictInt, BeforeValidator(_whole)]
"""A whole number; to JSON 8.0 is one."""


class Body(BaseModel):
    """The body of a route. Fields that it does not declare are in `model_extra`, for `check`."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    expected: ClassVar[Mapping[str, str]] = {}
    """What single fields take, by their path; of the rest pydantic speaks well enough."""

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Self:
        """Return the body that an object is. Raises GraftError: InvalidRequest, UnsupportedParameter."""
        try:
            body = cls.model_validate(value)
        except ValidationError as error:
            raise _first_fault(error, value, cls.expected) from None
        body.check()
        return body

    def check(self) -> None:
        """Check what single fields don't show. Raises GraftError: InvalidRequest, UnsupportedParameter."""


AnyBody = TypeVar("AnyBody", bound=Body)


def parse_body(content: bytes, build: Callable[[dict[str, Any]], Parsed]) -> Parsed:
    """Return the body that these bytes hold.

    Args:
        content: of the request.
        build: makes it of the JSON object, as `Body.of` does.

    Raises:
        GraftError: InvalidRequest, UnsupportedParameter; `field` names the parameter.
    """
    return build(parse_object_body(content))


def parse_object_body(content: bytes) -> dict[str, Any]:
    """Return the JSON object that these bytes hold. Raises GraftError: InvalidRequest."""
    try:
        _check_size(content)
        value = parse_object(
            content, "the request's body", ErrorCode.INVALID_REQUEST, constant=float, levels=MAX_LEVELS
        )
        if b"\\" in content and _SURROGATE.search(content):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise _no_object(f"the request's body holds text that is none: {error}") from None
    except GraftError as error:
        raise _no_object(error.what) from None
    return value


def invalid(field: str | None, what: str, hint: str | None = None) -> GraftError:
    """Return the 400 for a field."""
    return GraftError(ErrorCode.INVALID_REQUEST, what, field=field, hint=hint)


def shown(value: Any) -> str:
    """Return a value as JSON, shortened."""
    return cut(json.dumps(value, ensure_ascii=False, default=str), 80)


def holds_more(content: bytes, marks: Sequence[bytes], most: int) -> bool:
    """Return whether there are more than so many of these bytes, at a glance where there are few in a long text."""
    for mark in marks:
        at = content.find(mark)
        while at >= 0:
            most -= 1
            if most < 0:
                return True
            at = content.find(mark, at + 1)
    return False


def _no_object(what: str) -> GraftError:
    return invalid(None, what, "send one JSON object with Content-Type: application/json")


def _check_size(content: bytes) -> None:
    """Check how many values there are before room is made for them. Raises GraftError: InvalidRequest."""
    if len(content) <= MAX_VALUES or not holds_more(content, _BEGINNINGS, MAX_VALUES):
        return
    outside = _STRING.sub(b"", content)
    if (values := sum(map(outside.count, _BEGINNINGS))) > MAX_VALUES:
        raise invalid(None, f"the request's body holds about {values} values, expected at most {MAX_VALUES}")


def _first_fault(error: ValidationError, body: Mapping[str, Any], expected: Mapping[str, str]) -> GraftError:
    """Return the fault that says most: the deepest one of the first field at fault."""
    faults = error.errors(include_url=False, include_context=False)
    first = faults[0]["loc"][:1]
    same_field = [fault for fault in faults if fault["loc"][:1] == first]
    name = str(first[0]) if first else None
    if all(fault["type"] == "missing" and len(fault["loc"]) == 1 for fault in same_field):
        return invalid(name, f"`{name}` is missing", hint=f"send `{name}`")
    fault = max(same_field, key=lambda fault: (not fault["type"].endswith("_type"), len(_steps(fault["loc"], body))))
    path = _path(fault["loc"], body)
    if fault["type"] == "missing":
        return invalid(path, f"`{path}` is missing", hint=f"send `{path}`")
    value = shown(fault["input"])
    if (wanted := expected.get(_INDEX.sub("[]", path))) is not None:
        return invalid(path, f"`{path}` is {value}, expected {wanted}", hint=f"change `{path}`")
    why = fault["msg"][0].lower() + fault["msg"][1:]
    return invalid(path, f"`{path}` is {value}: {why}", hint=f"change `{path}`, or leave it out")


def _path(location: tuple[int | str, ...], body: Mapping[str, Any]) -> str:
    steps = _steps(location, body)
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).removeprefix(".")


def _steps(location: tuple[int | str, ...], body: Mapping[str, Any]) -> list[int | str]:
    """Return a fault's location without the names of pydantic's union members: only what is in the body."""
    steps: list[int | str] = []
    value: Any = body
    for step in location:
        if isinstance(step, int) and isinstance(value, list) and step < len(value):
            value = value[step]
        elif isinstance(step, str) and isinstance(value, dict) and (step in value or step in _REQUIRED):
            value = value.get(step)
        else:
            continue
        steps.append(step)
    return steps
