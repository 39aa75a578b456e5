"""The fields that ask for an answer in a given form: OpenAI's `response_format`, and vLLM's names for more."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr

from graft_runtime.http.bodies import Body, invalid
from graft_runtime.http.neutral import check_neutral
from graft_runtime.tokenizing.grammars import MAX_CHARACTERS, AnswerForm

MAX_CHOICES = 1024
_ANY_OBJECT = {"type": "object"}
_NEUTRAL_OPTIONS = {
    "disable_fallback": (True, False),
    "disable_additional_properties": (False,),
    "whitespace_pattern": (),
    "structural_tag": (),
}

Source = Annotated[StrictStr, Field(min_length=1, max_length=MAX_CHARACTERS)]
Schema = dict[str, Any] | StrictBool | Source
"""A JSON schema, or the text of one."""
Choices = Annotated[list[Source], Field(min_length=1, max_length=MAX_CHOICES)]


class NamedSchema(BaseModel):
    """A JSON schema as OpenAI has it."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
    name: StrictStr | None = Field(default=None, max_length=256)
    description: StrictStr | None = None
    schema_: dict[str, Any] | StrictBool | None = Field(default=None, alias="schema")
    strict: StrictBool | None = None
    """Answers always have the form of the schema."""


class ResponseFormat(BaseModel):
    """The form of the answer as OpenAI has it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None


class StructuredOutputs(BaseModel):
    """The form of the answer as vLLM has it: one of these fields."""

    model_config = ConfigDict(extra="allow", frozen=True, populate_by_name=True)
    json_: Schema | None = Field(default=None, alias="json")
    regex: Source | None = None
    choice: Choices | None = None
    grammar: Source | None = None
    json_object: StrictBool | None = None
    disable_any_whitespace: StrictBool = False


class FormBody(Body):
    """The fields that ask for a form."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | None = None
    """This and those below: vLLM's names until its version 0.12."""
    guided_regex: Source | None = None
    guided_choice: Annotated[list[Source], Field(max_length=MAX_CHOICES)] | None = None
    guided_grammar: Source | None = None

    @property
    def form(self) -> AnswerForm | None:
        """Return the form that is asked for."""
        return next(self._forms(), None)

    def check_form(self) -> None:
        """Check that one form is asked for at most. Raises GraftError: InvalidRequest, UnsupportedParameter."""
        if (outputs := self.structured_outputs) is not None:
            check_neutral(outputs.model_extra, _NEUTRAL_OPTIONS, "structured_outputs")
        asked = self.response_format
        if asked is not None and asked.type == "json_schema" and (asked.json_schema or NamedSchema()).schema_ is None:
            field = "response_format.json_schema.schema"
            raise invalid(field, f"`{field}` is missing", hint=f"send `{field}`")
        fields = [form.field for form in self._forms()]
        if len(fields) > 1:
            raise invalid(
                fields[1], f"`{fields[0]}` and `{fields[1]}` both ask for a form, and one can be given", "leave one out"
            )

    def _forms(self) -> Iterator[AnswerForm]:
        if (asked := self.response_format) is not None:
            if asked.type == "json_object":
                yield AnswerForm("json_schema", _text(_ANY_OBJECT), "response_format")
            elif asked.json_schema is not None and asked.json_schema.schema_ is not None:
                yield AnswerForm("json_schema", _text(asked.json_schema.schema_), "response_format")
        yield from _structured(self.structured_outputs)
        if self.guided_json is not None:
            yield AnswerForm("json_schema", _text(self.guided_json), "guided_json")
        if self.guided_regex is not None:
            yield AnswerForm("regex", self.guided_regex, "guided_regex")
        if self.guided_choice:
            yield AnswerForm("choice", _text(self.guided_choice), "guided_choice")
        if self.guided_grammar is not None:
            yield AnswerForm("grammar", self.guided_grammar, "guided_grammar")


def _structured(asked: StructuredOutputs | None) -> Iterator[AnswerForm]:
    if asked is None:
        return
    spaced = not asked.disable_any_whitespace
    if asked.json_ is not None:
        yield AnswerForm("json_schema", _text(asked.json_), "structured_outputs.json", spaced)
    if asked.regex is not None:
        yield AnswerForm("regex", asked.regex, "structured_outputs.regex")
    if asked.choice is not None:
        yield AnswerForm("choice", _text(asked.choice), "structured_outputs.choice")
    if asked.grammar is not None:
        yield AnswerForm("grammar", asked.grammar, "structured_outputs.grammar")
    if asked.json_object:
        yield AnswerForm("json_schema", _text(_ANY_OBJECT), "structured_outputs.json_object", spaced)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
