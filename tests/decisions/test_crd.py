"""The generated CustomResourceDefinition: committed as generated, structural, bounded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from graft_operator.resource.crd import ADAPTERS, DEFINITIONS, POOLS, Definition, build_crd, render

ROOT = Path(__file__).parents[2]
SCHEMAS = {
    definition.kind.name: build_crd(definition)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for definition in DEFINITIONS
}


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, part in schema.get("properties", {}).items():
        yield from nodes(part, f"{path}.{name}")
    for name in ("items", "additionalProperties"):
        if name in schema:
            yield from nodes(schema[name], f"{path}.{name}")


OURS = [
    (f"{kind}{path}", node)
    for kind, schema in SCHEMAS.items()
    for path, node in nodes(schema)
    if path.startswith((".spec", ".status"))
]


@pytest.mark.parametrize("path", render(), ids=str)
def test_the_committed_file_is_the_generated_one(path: Path) -> None:
    assert (ROOT / path).read_bytes() == render()[path].encode(), "run `make generate`"


@pytest.mark.parametrize("definition", DEFINITIONS, ids=lambda definition: str(definition.kind.name))
def test_the_file_says_what_the_builder_built(definition: Definition) -> None:
    assert yaml.safe_load(render()[definition.crd_file]) == build_crd(definition)


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
        "Adapter.status.conditions": ["type"],
        "AdapterDeployment.spec.adapters": ["name"],
        "AdapterDeployment.spec.merge.adapters": ["name"],
        "AdapterDeployment.spec.sources": ["name"],
        "AdapterDeployment.status.adapterSets": ["configHash"],
        "AdapterDeployment.status.adapters": ["name"],
        "AdapterDeployment.status.conditions": ["type"],
        "AdapterDeployment.status.merge.adapters": ["name"],
    }


def test_nothing_in_the_status_has_a_default_but_that_nobody_has_seen_the_object() -> None:
    defaults = {path for path, node in OURS if "default" in node and ".status" in path}
    assert defaults == {"Adapter.status", "AdapterDeployment.status"}
    assert SCHEMAS["AdapterDeployment"]["properties"]["spec"]["properties"]["strategy"]["default"] == {
        "maxSurge": 1,
        "maxUnavailable": 0,
    }


def test_the_pool_of_an_adapter_can_be_selected_by_and_not_changed() -> None:
    (version,) = build_crd(ADAPTERS)["spec"]["versions"]
    assert version["selectableFields"] == [{"jsonPath": ".spec.adapterDeploymentName"}]
    rules = [rule["rule"] for rule in version["schema"]["openAPIV3Schema"]["x-kubernetes-validations"]]
    assert any("self.spec.adapterDeploymentName == oldSelf.spec.adapterDeploymentName" in rule for rule in rules)
    assert "selectableFields" not in build_crd(POOLS)["spec"]["versions"][0]


@pytest.mark.parametrize("definition", DEFINITIONS, ids=lambda definition: str(definition.kind.name))
def test_the_chart_keeps_its_copy_on_uninstall(definition: Definition) -> None:
    text = render()[definition.chart_file]
    first, *rest = text.splitlines(keepends=True)
    condition = f'and .Values.crds.enabled (not (include "graft.crdOwner" (list . "{definition.crd_name}")))'
    assert first == "{{- if " + condition + " }}\n"
    assert "{{" not in "".join(rest[:-1])
    document = yaml.safe_load("".join(rest[:-1]))
    assert document["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert document == build_crd(definition)
