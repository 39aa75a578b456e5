"""The contract's hashes, its gzip and its validation."""

from __future__ import annotations

import math

import pytest
from graft_runtime.contract.adapter_set import AdapterSet
from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.config import BaseModelConfig, EngineConfig, RuntimeConfig
from pydantic import ValidationError

from tests.support.adapter_sets import entry_of, set_of

DIGEST = "sha256:" + "a" * 64


def a_config(**changes: object) -> RuntimeConfig:
    base = BaseModelConfig(name="tiny", source=Source(uri="pvc://models/tiny"))
    return RuntimeConfig.model_validate({"pool_uid": "u-1", "base_model": base, **changes})


def test_a_default_written_out_changes_no_hash() -> None:
    assert a_config().config_hash() == a_config(engine=EngineConfig(max_rank=64), sources=()).config_hash()
    assert (
        set_of(1, entry_of("sql")).content_hash() == set_of(1, entry_of("sql", scale=1.0, pinned=False)).content_hash()
    )


def test_a_value_changes_the_hash() -> None:
    assert a_config().config_hash() != a_config(engine=EngineConfig(max_rank=32)).config_hash()
    assert set_of(1, entry_of("sql")).content_hash() != set_of(1, entry_of("sql", digest=DIGEST)).content_hash()


def test_the_generation_is_no_part_of_the_entries() -> None:
    first, second = set_of(1, entry_of("sql")), set_of(7, entry_of("sql"))
    assert first.entries_hash() == second.entries_hash()
    assert first.content_hash() != second.content_hash()


def test_a_set_survives_gzip_and_the_same_set_is_the_same_bytes() -> None:
    adapter_set = set_of(3, entry_of("sql", digest=DIGEST, scale=0.5), entry_of("billing", pinned=True))
    assert AdapterSet.from_gzip(adapter_set.to_gzip()) == adapter_set
    assert adapter_set.to_gzip() == adapter_set.to_gzip()


def test_a_newer_peer_may_send_fields_we_do_not_know() -> None:
    body = b'{"poolUid":"u","configHash":"h","generation":1,"adapters":[],"fromTheFuture":1}'
    assert AdapterSet.read(body).generation == 1


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"name": "-sql"}, id="name starts with a dash"),
        pytest.param({"name": "a/b"}, id="name with a slash"),
        pytest.param({"name": "a" * 64}, id="name too long"),
        pytest.param({"digest": "sha256:abc"}, id="digest too short"),
        pytest.param({"scale": math.nan}, id="scale not a number"),
        pytest.param({"scale": math.inf}, id="scale infinite"),
    ],
)
def test_a_bad_entry_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        entry_of(**{"name": "sql", **changes})
