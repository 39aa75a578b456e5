"""The API models: what is taken, what it means, and how every fault is told at once."""

from __future__ import annotations

from typing import Any

import pytest
from graft_operator.quantities import quantity_bytes
from graft_operator.resource import (
    AdapterDeploymentStatus,
    AdapterSpec,
    AdapterStatus,
    Condition,
    EngineSpec,
    SourceSpec,
    find_source,
    parse_manifest,
    parse_spec,
    source_not_declared,
)
from graft_runtime.contract.adapter_set import AdapterEntry
from graft_runtime.contract.config import EngineConfig
from graft_runtime.errors import ErrorCode, GraftError


def minimal(**fields: Any) -> dict[str, Any]:
    return {
        "baseModel": {"uri": "pvc://models/gemma-3-270m"},
        "sources": [{"name": "models", "claimName": "models"}],
        **fields,
    }


def test_a_minimal_spec_has_the_documented_defaults() -> None:
    spec = parse_spec(minimal())
    assert spec.base_model.served_name == "gemma-3-270m"
    assert spec.base_model.dtype == "auto"
    assert (spec.replicas, spec.adapters, spec.suspend) == (1, (), False)
    assert (spec.accelerator.resource_name, spec.accelerator.count) == (None, 1)
    assert (spec.strategy.max_surge, spec.strategy.max_unavailable) == (1, 0)
    assert spec.startup_timeout_seconds == 1800
    assert spec.adapter_startup_seconds == 300
    assert spec.termination_grace_period_seconds == 120


def test_the_base_s_name_wins_over_its_uri() -> None:
    spec = parse_spec(minimal(baseModel={"uri": "pvc://models/gemma", "name": "chat"}, adapters=[adapter("gemma")]))
    assert spec.base_model.served_name == "chat"
    owned = parse_spec(minimal(baseModel={"uri": "pvc://models/gemma", "name": "google/gemma-3-270m"}))
    assert owned.base_model.served_name == "google/gemma-3-270m"


def adapter(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "uri": f"pvc://models/{name}", **fields}


def test_an_integer_is_a_scale() -> None:
    assert parse_spec(minimal(adapters=[adapter("sql", scale=2)])).adapters[0].scale == 2.0


@pytest.mark.parametrize(
    ("size", "expected"),
    [("1", 1), ("20k", 20_000), ("3M", 3_000_000), ("2Ki", 2048), ("20Gi", 20 * 2**30), ("1Ti", 2**40)],
)
def test_a_cache_size_in_bytes(size: str, expected: int) -> None:
    assert quantity_bytes(size) == expected


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(GraftError) as caught:
        parse_manifest(
            {
                "metadata": {"name": "9support"},
                "spec": minimal(replicas="2", replica=2, strategy={"maxSurge": 0}, adapters=[adapter("a b")]),
            }
        )
    assert caught.value.code is ErrorCode.INVALID_SPEC
    told = "\n".join(caught.value.details)
    assert "`9support` can't be metadata.name" in told
    assert "spec.replicas: Input should be a valid integer" in told
    assert "spec.replica: unknown field" in told
    assert "spec.strategy: maxSurge and maxUnavailable must not both be 0" in told
    assert "spec.adapters[0].name: String should match pattern" in told
    assert "kubectl explain adapterdeployment.spec" in caught.value.message


def test_a_manifest_without_spec_is_told_so() -> None:
    with pytest.raises(GraftError, match="1 fault"):
        parse_manifest({"metadata": {"name": "support"}})


def test_a_rule_is_not_fooled_by_a_line_feed() -> None:
    with pytest.raises(GraftError, match="must name a directory") as caught:
        parse_spec(minimal(adapters=[{"name": "sql", "uri": "pvc://models/sql\n"}]))
    assert "spec.adapters[0].uri" in caught.value.details[0]


def test_a_revision_behind_an_at_is_sent_to_its_field() -> None:
    """As other servers write it."""
    with pytest.raises(GraftError) as caught:
        parse_spec(minimal(adapters=[{"name": "sql", "uri": "hf://acme/sql@main"}]))
    (fault,) = caught.value.details
    assert "`hf://acme/sql@main`" in fault
    assert fault.endswith("no @ before a revision, which the field `revision` names")


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("pvc://shelf/sql", "shelf"),
        ("pvc://shelf-2/sql", None),
        ("file:///mnt/adapters/sql", "adapters"),
        ("file:///mnt/adapters/eu/sql", "eu"),
        ("file:///mnt/adapters-old/sql", None),
        ("file:///etc/passwd", None),
    ],
)
def test_a_uri_lies_in_the_deepest_source_that_holds_it(uri: str, expected: str | None) -> None:
    sources = [
        SourceSpec(name="shelf", claim_name="adapters"),
        SourceSpec(name="adapters", mount_path="/mnt/adapters"),
        SourceSpec(name="eu", mount_path="/mnt/adapters/eu"),
    ]
    found = find_source(sources, uri)
    assert (found.name if found else None) == expected


@pytest.mark.parametrize(
    ("uri", "entry"),
    [
        ("pvc://shelf/sql", "{name: shelf, claimName:"),
        ("file:///mnt/adapters/sql", "mountPath: /mnt/adapters}"),
    ],
)
def test_an_undeclared_source_says_what_to_add(uri: str, entry: str) -> None:
    fault = source_not_declared(uri, "spec.adapters[0].uri")
    assert fault.code is ErrorCode.SOURCE_NOT_DECLARED
    assert f"spec.adapters[0].uri `{uri}`" in fault.what
    assert entry in fault.message


def test_whatever_the_api_takes_the_contract_takes() -> None:
    offered, taken = (model.model_json_schema()["properties"] for model in (EngineSpec, EngineConfig))
    assert {name: limits["type"] for name, limits in offered.items()} == {
        name: limits["type"] for name, limits in taken.items()
    }
    for name, limits in offered.items():
        if limits["type"] == "integer":
            assert limits["minimum"] >= taken[name]["minimum"]
            assert limits["maximum"] <= taken[name]["maximum"]
    extreme = AdapterSpec(name="a" * 63, uri="pvc://m/a", scale=-1000.0)
    assert AdapterEntry.model_validate(
        {"name": extreme.name, "source": {"uri": extreme.uri}, "scale": extreme.scale, "pinned": extreme.pinned}
    )


def test_a_long_message_is_cut_and_not_refused() -> None:
    condition = Condition(type="Ready", status="False", reason="Corrupt", message="x" * 5000)
    assert len(condition.message) == 4096
    assert condition.message.endswith("…")


def test_status_is_written_in_camel_case_and_read_back() -> None:
    status = AdapterDeploymentStatus(
        observed_generation=7,
        adapters=(AdapterStatus(name="sql", uri="pvc://models/sql", ready_replicas=1, desired_replicas=2),),
    )
    written = status.model_dump(mode="json", by_alias=True, exclude_none=True)
    assert written["adapters"][0]["readyReplicas"] == 1
    assert AdapterDeploymentStatus.model_validate({**written, "ofALaterVersion": 1}) == status
