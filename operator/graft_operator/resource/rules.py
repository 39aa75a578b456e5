"""Rules beyond a schema, each written twice, side by side: in CEL for the API server, in Python for us."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, model_validator
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError
from pydantic_core.core_schema import no_info_after_validator_function


@dataclass(frozen=True)
class Rule:
    """One rule: the same meaning twice, one message."""

    message: str
    """What was expected and what to do; the API server puts the field's path before it."""
    cel: str
    """An expression over `self`, the JSON value."""
    holds: Callable[[Any], bool]
    """The same over the parsed value."""
    text: str | None = None
    """For a rule on a text: its CEL expression; the text is shown before the message."""

    def to_schema(self) -> dict[str, str]:
        """Return the entry of `x-kubernetes-validations`."""
        schema = {"rule": self.cel, "message": self.message}
        if self.text:
            schema["messageExpression"] = f"'`' + {self.text} + '` ' + {json.dumps(self.message)}"
        return schema

    def message_for(self, value: object) -> str:
        """Return the message as the API server shows it."""
        return f"`{value}` {self.message}" if self.text else self.message


def broken(rules: Sequence[Rule], value: object) -> list[str]:
    """Return the messages of the rules that `value` breaks."""
    return [rule.message_for(value) for rule in rules if not rule.holds(value)]


@dataclass(frozen=True)
class Obeys:
    """Annotates the type of a single value with its rules: enforced in both places."""

    rules: tuple[Rule, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_after_validator_function(self._obey, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(schema), **_validations(self.rules)}

    def _obey(self, value: Any) -> Any:
        _refuse(broken(self.rules, value))
        return value


def _validations(rules: Sequence[Rule]) -> dict[str, Any]:
    return {"x-kubernetes-validations": [rule.to_schema() for rule in rules]}


def list_map(key: str) -> dict[str, Any]:
    """Return the schema marks of a list whose entries `key` tells apart, merged one by one on server-side apply."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}


def unique(value: Sequence[Any]) -> Sequence[Any]:
    """Refuse two entries of one name, as `list_map("name")` does in the API server."""
    names = [entry.name for entry in value]
    twice = sorted({name for name in names if names.count(name) > 1})
    _refuse([f"Duplicate value: two entries are named `{name}`; rename or remove one" for name in twice])
    return value


def _refuse(faults: Sequence[str]) -> None:
    if faults:
        raise PydanticCustomError("rule", "{message}", {"message": "; ".join(faults)})


class Ruled(BaseModel):
    """Base of everything a user writes: camelCase, frozen, unknown fields refused, `rules` enforced in both places."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
    )
    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _obeys_its_rules(self) -> Self:
        _refuse(broken(type(self).rules, self))
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core_schema)
        if cls.rules:
            handler.resolve_ref_schema(schema).update(_validations(cls.rules))
        return schema
