"""What every message of the contract is: its JSON, its hash, its version; and an error as it crosses the wire."""

from __future__ import annotations

import hashlib
import json

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from graft_runtime.errors import ErrorCode, GraftError

CONTRACT_VERSION = 1


class Wire(BaseModel):
    """Base of all that crosses the wire: camelCase, frozen, unknown fields ignored (a newer peer may send more)."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore")

    def canonical_json(self) -> bytes:
        """Sorted keys, no spaces, default values left out: a new field with a default changes no hash."""
        value = self.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    def content_hash(self) -> str:
        """`sha256:` and the hex digest of the canonical JSON."""
        return "sha256:" + hashlib.sha256(self.canonical_json()).hexdigest()


class Fault(Wire):
    """An error as it crosses the wire; the same text as in the log."""

    code: ErrorCode
    message: str
    """Without the code; with the hint after a blank line."""

    @classmethod
    def of(cls, error: GraftError) -> Fault:
        return cls(code=error.code, message=error.message)
