"""What every message of the contract is: its JSON, its hash, its version; and an error as it crosses the wire."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from graft_runtime.errors import ErrorCode, GraftError, cut

CONTRACT_VERSION = 1
"""The version that this process speaks: the one that it writes, and the only one that it reads."""
UNMARKED_VERSION = 1
"""Of a message that names no version. Frozen: as `= CONTRACT_VERSION`, a later peer would take old messages for new."""


Text = Annotated[str, AfterValidator(cut)]
"""What people read; the rest of a long one is left out."""


class Wire(BaseModel):
    """Base of all that crosses the wire: camelCase, frozen, unknown fields ignored (a newer peer may send more)."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore")

    def canonical_json(self) -> bytes:
        """Return JSON with sorted keys, without spaces and default values, so that a new field changes no hash.

        So a default never changes, once a release has it: what was written without the field, stored ConfigMaps as
        well, would mean something else under the same hash, and no pod would roll. Another default is another field,
        or another CONTRACT_VERSION. `tests/decisions/data/contract` holds all defaults.
        """
        return json.dumps(self._wire_fields(), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    def content_hash(self) -> str:
        """Return `sha256:` and the hex digest of the canonical JSON."""
        return "sha256:" + hashlib.sha256(self.canonical_json()).hexdigest()

    def _wire_fields(self) -> dict[str, Any]:
        return self.model_dump(mode="json", by_alias=True, exclude_defaults=True)


class Message(Wire):
    """What crosses the wire, or lies in a ConfigMap, by itself. `contractVersion` is always in it.

    In memory there is no version: what a process holds, it has made itself or read with `read`.
    """

    @classmethod
    def read(cls, content: bytes | str) -> Self:
        """Read a message of this process's own version.

        Raises:
            GraftError: UnsupportedContractVersion.
            pydantic.ValidationError: it is none of this kind.
        """
        version = _Marked.model_validate_json(content).contract_version
        if version != CONTRACT_VERSION:
            raise GraftError(
                ErrorCode.UNSUPPORTED_CONTRACT_VERSION,
                f"the {cls.__name__} is of version {version} of the contract between operator and runtime, "
                f"expected version {CONTRACT_VERSION}",
                hint="use an operator and a runtime image of one release; pods of another one have to be replaced",
            )
        return cls.model_validate_json(content)

    def _wire_fields(self) -> dict[str, Any]:
        return super()._wire_fields() | {"contractVersion": CONTRACT_VERSION}


class _Marked(Wire):
    """The part of a message that all versions have in common."""

    contract_version: int = UNMARKED_VERSION


class Fault(Wire):
    """An error as it crosses the wire; the same text as in the log. The same in all versions: it says what is wrong."""

    code: ErrorCode
    message: Text
    """Without the code; with the hint after a blank line."""

    @classmethod
    def of(cls, error: GraftError) -> Fault:
        return cls(code=error.code, message=error.message)
