"""The generated CustomResourceDefinition: committed as generated, structural, bounded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from graft_operator.resource.crd import CHART_FILE, CRD_FILE, VALIDATIONS_FILE, build_crd, render

ROOT = Path(__file__).parents[2]
SCHEMA = build_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, part in schema.get("properties", {}).items():
        yield from nodes(part, f"{path}.{name}")
    for name in ("items", "additionalProperties"):
        if name in schema:
            yield from nodes(schema[name], f"{path}.{name}")


OURS = [(path, node) for path, node in nodes(SCHEMA) if path.startswith((".spec", ".status"))]


@pytest.mark.parametrize("path", [CRD_FILE, CHART_FILE, VALIDATIONS_FILE], ids=str)
def test_the_committed_file_is_the_generated_one(path: Path) -> None:
    assert (ROOT / path).read_bytes() == render()[path].encode(), "run `make generate`"


def test_the_file_says_what_the_builder_built() -> None:
    assert yaml.safe_load(render()[CRD_FILE]) == build_crd()


@pytest.mark.parametrize(("path", "node"), OURS, ids=[path for path, _ in OURS])
def test_every_string_list_and_map_has_a_maximum(path: str, node: dict[str, Any]) -> None:
    match node["type"]:
        case "string":
            assert "maxLength" in node or "enum" in node
        case "array":
            assert "maxItems" in node
        case "integer" | "number":
            assert "maximum" in node or "eneration" in path
        case "object":
            assert "properties" in node or "maxProperties" in node
        case other:
            assert other == "boolean"


@pytest.mark.parametrize(("path", "node"), OURS, ids=[path for path, _ in OURS])
def test_the_schema_is_structural(path: str, node: dict[str, Any]) -> None:
    assert not node.keys() & {"$ref", "anyOf", "oneOf", "allOf", "title", "$defs", "const"}
    assert node.get("additionalProperties") is not False
    assert path.endswith(("items", "additionalProperties")) or node.get("description"), "explain every field"


def test_lists_of_named_things_merge_by_name() -> None:
    maps = {path: node["x-kubernetes-list-map-keys"] for path, node in OURS if "x-kubernetes-list-map-keys" in node}
    assert maps == {
        ".spec.adapters": ["name"],
        ".spec.merge.adapters": ["name"],
        ".spec.sources": ["name"],
        ".status.adapterSets": ["configHash"],
        ".status.adapters": ["name"],
        ".status.conditions": ["type"],
        ".status.merge.adapters": ["name"],
    }


def test_nothing_in_the_status_has_a_default_but_that_nobody_has_seen_the_object() -> None:
    assert {path for path, node in OURS if "default" in node and path.startswith(".status")} == {".status"}
    assert SCHEMA["properties"]["spec"]["properties"]["strategy"]["default"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_the_chart_keeps_its_copy_on_uninstall() -> None:
    text = render()[CHART_FILE]
    first, *rest = text.splitlines(keepends=True)
    assert first == '{{- if and .Values.crds.enabled (not (include "graft.crdOwner" .)) }}\n'
    assert "{{" not in "".join(rest[:-1])
    document = yaml.safe_load("".join(rest[:-1]))
    assert document["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert document == build_crd()
