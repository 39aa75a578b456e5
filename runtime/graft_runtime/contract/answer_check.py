"""AnswerCheck: a prompt whose answer tells whether a version of an adapter may take its name."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from graft_runtime.contract.wire import Wire

_Asked = Annotated[str, Field(min_length=1, max_length=1000)]
_Expected = Annotated[str, Field(min_length=1, max_length=200)]


class AnswerCheck(Wire):
    """One of `prompt` and `message`, and one of `contains` and `equals`. Declared here once: `check` of an adapter has
    the same fields."""

    model_config = ConfigDict(use_attribute_docstrings=True, strict=True)

    prompt: _Asked | None = None
    """A text to be gone on with, as `prompt` of /v1/completions."""
    message: _Asked | None = None
    """What a user says, as the only one of `messages` of /v1/chat/completions."""
    contains: _Expected | None = None
    """The answer must hold this text."""
    equals: _Expected | None = None
    """The answer must be this text, white space at both ends apart."""
    max_tokens: int = Field(default=32, ge=1, le=256)
    """Of the answer. Each token is the likeliest."""

    @property
    def expected(self) -> str:
        """Return in words what the answer must be."""
        return f"{self.equals!r}" if self.equals is not None else f"a text that holds {self.contains!r}"

    def passes(self, answer: str) -> bool:
        """Tell whether an answer is as expected."""
        if self.equals is not None:
            return answer.strip() == self.equals.strip()
        return self.contains is not None and self.contains in answer
