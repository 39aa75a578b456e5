"""The contract as it crosses the wire, version by version: golden files, defaults that never change, other versions.

Run as a script, this writes the files of the version that is spoken anew. That is right only as long as no release
speaks it, or where a field was added; a change of what is there already wants another CONTRACT_VERSION.
"""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import graft_runtime.contract
import pytest
from graft_runtime.contract import wire
from graft_runtime.contract.adapter_set import AdapterEntry, AdapterSet, AdapterSetVersion, AdapterVersion
from graft_runtime.contract.answer_check import AnswerCheck
from graft_runtime.contract.checkpoints import CheckpointFile, Source
from graft_runtime.contract.config import (
    BaseModelConfig,
    EngineConfig,
    Merge,
    MergePart,
    RuntimeConfig,
    SourceMount,
)
from graft_runtime.contract.control import (
    Accepted,
    AdapterInspection,
    Check,
    CheckpointFiles,
    InspectRequest,
    Peer,
    Peers,
    Resolution,
    ResolveRequest,
)
from graft_runtime.contract.facts import AdapterFacts, DeltaKind
from graft_runtime.contract.quantizations import Quantization
from graft_runtime.contract.status import (
    AdapterReport,
    AdapterState,
    BaseReport,
    BaseState,
    RuntimeStatus,
)
from graft_runtime.contract.tasks import Task
from graft_runtime.contract.wire import CONTRACT_VERSION, Fault, Message, Wire
from graft_runtime.errors import ErrorCode, GraftError
from pydantic_core import to_jsonable_python

ROOT = Path(__file__).parents[2]
FILES = Path(__file__).parent / "data/contract"
CURRENT = FILES / f"v{CONTRACT_VERSION}"
DIGEST = "sha256:" + "a" * 64
SOURCE = Source(uri="hf://acme/sql", revision="main")
FAULT = Fault(code=ErrorCode.RANK_TOO_HIGH, message="rank 128 is over the pool's maxRank 64\n\nhint: raise it")
FACTS = AdapterFacts(
    method="LORA",
    rank=8,
    module_count=4,
    deltas=frozenset({DeltaKind.LOW_RANK, DeltaKind.WHOLE}),
    remapped="nothing → model",
    unused="the model never calls 2 of its modules for text: model.layers.*.mixer.dt_proj",
    vocabulary_size=330,
    virtual_tokens=2,
)
MERGE = Merge(name="both", adapters=(MergePart(name="sql", source=SOURCE, digest=DIGEST, weight=0.5),))
VERSION = AdapterSetVersion(generation=7, hash=DIGEST)

EXAMPLES: dict[str, Wire] = {
    "runtime-config": RuntimeConfig(
        pool_uid="pool",
        base_model=BaseModelConfig(
            name="base",
            source=SOURCE,
            digest=DIGEST,
            dtype="bfloat16",
            task=Task.SEQ_2_SEQ_LM,
            quantization=Quantization.NF4,
            in_place=True,
        ),
        engine=EngineConfig(max_sequences=8, max_sequence_length=1024, max_mounted_adapters=4, max_rank=16),
        sources=(SourceMount(name="hub", kind="remote", uri_prefixes=("hf://acme/",), endpoint="https://hub.test"),),
        adapter_startup_seconds=60,
        drain_seconds=20,
        cache_bytes=1 << 30,
        merge=MERGE,
        composition=True,
        allowed_origins=("https://chat.example.com",),
    ),
    "adapter-set": AdapterSet(
        pool_uid="pool",
        config_hash="0123456789",
        generation=7,
        adapters=(
            AdapterEntry(name="sql", source=SOURCE, digest=DIGEST, revision="c0ffee", scale=0.5, pinned=True),
            AdapterEntry(name="faulty", source=SOURCE, fault=FAULT, inline=False),
            AdapterEntry(
                name="moving",
                source=SOURCE,
                digest=DIGEST,
                required=True,
                check=AnswerCheck(message="How many?", equals="42", max_tokens=8),
                serving=AdapterVersion(source=SOURCE, digest=DIGEST, revision="c0ffee", scale=0.5, check=DIGEST),
            ),
        ),
    ),
    "runtime-status": RuntimeStatus(
        boot_id="boot",
        sequence=12,
        pool_uid="pool",
        config_hash="0123456789",
        ready=True,
        base=BaseReport(
            name="base",
            state=BaseState.SERVING,
            source=SOURCE,
            digest=DIGEST,
            revision="c0ffee",
            runner="decoder",
            merge=MERGE,
        ),
        adapter_set=VERSION,
        adapters=(
            AdapterReport(
                name="sql",
                digest=DIGEST,
                revision="c0ffee",
                state=AdapterState.MOUNTED,
                facts=FACTS,
                bytes=4096,
            ),
            AdapterReport(name="faulty", state=AdapterState.FAILED, fault=FAULT),
            AdapterReport(name="moving", digest=DIGEST, serving=DIGEST, state=AdapterState.CHECKING),
            AdapterReport(name="gone", state=AdapterState.DRAINING, removed=True),
        ),
    ),
    "accepted": Accepted(boot_id="boot", adapter_set=VERSION),
    "resolve-request": ResolveRequest(source=SOURCE),
    "resolution": Resolution(digest=DIGEST, revision="c0ffee"),
    "inspect-request": InspectRequest(source=SOURCE),
    "adapter-inspection": AdapterInspection(
        facts=FACTS,
        parameter_count=1024,
        bytes=4096,
        digest=DIGEST,
        base_model="acme/base",
        unchecked=(Check.TRIAL,),
        fault=FAULT,
    ),
    "peers": Peers(peers=(Peer(address=ip_address("10.0.0.7"), token="JWT"),), base=DIGEST),
    "checkpoint-files": CheckpointFiles(files=(CheckpointFile(path="adapter_config.json", size=512, sha256="b" * 64),)),
    "fault": FAULT,
}


def _models(base: type[Wire]) -> list[type[Wire]]:
    """Of the whole contract, by name."""
    for module in pkgutil.iter_modules(graft_runtime.contract.__path__, "graft_runtime.contract."):
        importlib.import_module(module.name)
    found: set[type[Wire]] = set()
    waiting = [base]
    while waiting:
        for model in waiting.pop().__subclasses__():
            waiting.append(model)
            found.add(model)
    sent = {model for model in found if model.__module__.startswith("graft_runtime.contract.")}  # not the CRD's models
    return sorted(sent - {Message}, key=lambda model: model.__name__)


def _defaults() -> dict[str, dict[str, Any]]:
    return {
        model.__name__: {
            str(field.alias): to_jsonable_python(field.default, by_alias=True)
            for field in model.model_fields.values()
            if not field.is_required()
        }
        for model in _models(Wire)
    }


def _golden(name: str) -> bytes:
    return (CURRENT / f"{name}.json").read_bytes()


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_message_is_read_and_written_byte_for_byte(name: str) -> None:
    example = EXAMPLES[name]
    assert example.canonical_json() == _golden(name)
    read = type(example).read if isinstance(example, Message) else type(example).model_validate_json
    assert read(_golden(name)) == example


def test_every_message_has_a_golden_file() -> None:
    assert {type(example) for example in EXAMPLES.values()} == {*_models(Message), Fault}
    assert {path.stem for path in CURRENT.glob("*.json")} == {*EXAMPLES, "defaults"}


def test_no_default_ever_changes() -> None:
    """What is written leaves defaults out: see Wire.canonical_json."""
    assert _defaults() == json.loads(_golden("defaults"))


def test_every_message_names_its_version_and_unmarked_ones_are_of_version_1() -> None:
    for example in (example for example in EXAMPLES.values() if isinstance(example, Message)):
        fields = json.loads(example.canonical_json())
        assert fields.pop("contractVersion") == CONTRACT_VERSION
        assert type(example).read(json.dumps(fields)) == example
    assert wire.UNMARKED_VERSION == 1
    assert wire._Marked.model_fields["contract_version"].default == 1


@pytest.mark.parametrize("model", _models(Message))
def test_another_version_is_refused_before_anything_else_is_read(model: type[Message]) -> None:
    with pytest.raises(GraftError) as caught:
        model.read(b'{"contractVersion":2,"allElse":"is another"}')
    assert caught.value.code is ErrorCode.UNSUPPORTED_CONTRACT_VERSION
    assert f"{model.__name__} is of version 2" in caught.value.what
    assert caught.value.what.endswith("expected version 1")
    assert caught.value.hint


def test_a_later_peer_does_not_take_an_unmarked_message_for_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {key: value for key, value in json.loads(_golden("adapter-set")).items() if key != "contractVersion"}
    monkeypatch.setattr(wire, "CONTRACT_VERSION", 2)
    with pytest.raises(GraftError, match=r"is of version 1 of the contract .*, expected version 2"):
        AdapterSet.read(json.dumps(fields))
    assert json.loads(EXAMPLES["adapter-set"].canonical_json())["contractVersion"] == 2


def test_another_version_is_another_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    config = EXAMPLES["runtime-config"]
    before = config.content_hash()
    monkeypatch.setattr(wire, "CONTRACT_VERSION", 2)
    assert config.content_hash() != before, "so that a rollout replaces what speaks another version"


def test_messages_are_read_in_one_way_only() -> None:
    names = {model.__name__ for model in _models(Message)}
    for path in [*(ROOT / "operator").rglob("*.py"), *(ROOT / "runtime").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr.startswith("model_validate"):
                assert not (isinstance(node.value, ast.Name) and node.value.id in names), f"{path}: use read()"


if __name__ == "__main__":
    CURRENT.mkdir(parents=True, exist_ok=True)
    for name, example in EXAMPLES.items():
        (CURRENT / f"{name}.json").write_bytes(example.canonical_json())
    text = json.dumps(_defaults(), indent=2, sort_keys=True, ensure_ascii=False)
    (CURRENT / "defaults.json").write_text(text + "\n", encoding="utf-8")
