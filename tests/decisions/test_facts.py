"""What is known of an adapter travels whole from its files to the operator's status, the limits whole to the engine."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import msgspec
from graft_operator.decisions.adapter_status import shown_facts
from graft_operator.resource import AdapterStatus
from graft_operator.resource.pod_specs import EngineSpec
from graft_runtime import messages
from graft_runtime.adapters import deltas, files
from graft_runtime.contract import config, control, status
from graft_runtime.contract.adapter_set import AdapterEntry
from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.config import EngineConfig
from graft_runtime.contract.facts import AdapterFacts, DeltaKind
from graft_runtime.contract.status import AdapterReport
from graft_runtime.contract.wire import Text
from graft_runtime.messages import (
    FRAME_HEADER_BYTES,
    Mounted,
    Start,
    decode_command,
    decode_events,
    encode_command,
    encode_events,
)
from graft_runtime.pod import catalogue, leases, merged
from graft_runtime.pod.aliases import Alias, report
from graft_runtime.pod.catalogue import Artifact
from pydantic import BaseModel

KINDS = frozenset({DeltaKind.OFFSET, DeltaKind.GAIN})
VALUES: dict[Any, Any] = {
    frozenset[DeltaKind]: KINDS,
    str: "HRA",
    int: 3,
    bool: False,
    str | None: "a → b",
    Text | None: "a → b",
    int | None: 330,
}
FACTS = AdapterFacts.model_validate(
    {name: VALUES[field.annotation] for name, field in AdapterFacts.model_fields.items()}
)
"""Every fact has a value that is not its default: one that is lost on the way is missed."""
DIGEST = "sha256:" + "a" * 64


def test_every_fact_reaches_the_status_of_the_pod() -> None:
    (event,) = decode_events(encode_events([Mounted(DIGEST, FACTS, bytes=1)])[FRAME_HEADER_BYTES:])
    assert isinstance(event, Mounted)
    source = Source(uri="pvc://shelf/sql")
    artifact = Artifact(DIGEST, source, "sql")
    artifact.mounted(event, base_rows=320)
    told = report(Alias(AdapterEntry(name="sql", source=source, digest=DIGEST)), artifact)
    assert AdapterReport.model_validate_json(told.canonical_json()).facts == FACTS


def test_the_operator_shows_every_fact_that_its_status_has_a_field_for() -> None:
    shown = shown_facts(FACTS)
    assert shown == {"method": "HRA", "rank": 3, "remapped": "a → b", "unused": "a → b"}
    assert AdapterStatus(name="sql", **shown).remapped == "a → b"
    assert shown_facts(None) == {}


def test_every_limit_reaches_the_engine() -> None:
    other = {name: not field.default for name, field in EngineConfig.model_fields.items() if field.annotation is bool}
    limits = EngineConfig.model_validate(dict.fromkeys(EngineConfig.model_fields, 17) | other)
    start = Start("/nowhere", "tiny", "auto", limits)
    assert decode_command(encode_command(start)[FRAME_HEADER_BYTES:]) == start
    assert not set(Start.__struct_fields__) & EngineConfig.model_fields.keys()
    assert EngineSpec.model_fields.keys() == EngineConfig.model_fields.keys()


def test_no_other_type_on_the_way_declares_a_fact() -> None:
    others = {
        ("BaseLoaded", "vocabulary_size"),  # of the base
        ("Capabilities", "deltas"),  # of the engine
    }
    found = {
        (owner.__name__, name)
        for module in (config, control, status, messages, deltas, files, catalogue, leases, merged)
        for owner in _types(module)
        for name in _fields(owner)
        if name in AdapterFacts.model_fields and owner is not AdapterFacts
    }
    assert found == others


def _types(module: ModuleType) -> Iterator[type]:
    return (found for _, found in inspect.getmembers(module, inspect.isclass) if found.__module__ == module.__name__)


def _fields(owner: type) -> Iterator[str]:
    if issubclass(owner, BaseModel):
        yield from owner.model_fields
    elif issubclass(owner, msgspec.Struct):
        yield from owner.__struct_fields__
    elif dataclasses.is_dataclass(owner):
        yield from (field.name for field in dataclasses.fields(owner))
