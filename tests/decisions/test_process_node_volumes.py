"""The files of volumes, and their change all at once."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from graft_process_node.atomic_directory import write_files
from graft_process_node.claims import volume_for
from graft_process_node.downward import PodFacts
from graft_process_node.volume_files import VolumeError, VolumeFile, volume_files, volume_references

POD: dict[str, Any] = {
    "metadata": {"name": "web", "namespace": "shop", "uid": "u-1", "labels": {"b": "2", "a": 'x"y'}},
    "spec": {"containers": [{"name": "main", "resources": {"requests": {"cpu": "1"}}}]},
}
FACTS = PodFacts(POD, "127.1.0.5", "127.0.0.1", "local")
OBJECTS: dict[tuple[str, str], dict[str, Any]] = {
    ("configmaps", "settings"): {"data": {"a": "1", "b": "2"}, "binaryData": {"raw": "AAE="}},
    ("secrets", "keys"): {"data": {"pin": base64.b64encode(b"1234").decode()}},
}


def files(**volume: Any) -> dict[str, VolumeFile]:
    return volume_files({"name": "v", **volume}, FACTS, OBJECTS, lambda source: b"token for " + source["path"].encode())


def test_a_config_map_is_a_file_for_each_key() -> None:
    assert files(configMap={"name": "settings", "defaultMode": 0o400}) == {
        "a": VolumeFile(b"1", 0o400),
        "b": VolumeFile(b"2", 0o400),
        "raw": VolumeFile(b"\x00\x01", 0o400),
    }


def test_items_choose_keys_paths_and_modes() -> None:
    items = [{"key": "a", "path": "deep/one", "mode": 0o600}, {"key": "b", "path": "two"}]

    assert files(configMap={"name": "settings", "items": items}) == {
        "deep/one": VolumeFile(b"1", 0o600),
        "two": VolumeFile(b"2"),
    }


def test_a_secret_is_decoded() -> None:
    assert files(secret={"secretName": "keys"}) == {"pin": VolumeFile(b"1234")}


def test_what_is_missing_is_named_unless_it_is_optional() -> None:
    with pytest.raises(VolumeError, match=r"^ConfigMap shop/absent not found$"):
        files(configMap={"name": "absent"})
    with pytest.raises(VolumeError, match=r"^Secret shop/keys has no key `x`$"):
        files(secret={"secretName": "keys", "items": [{"key": "x", "path": "x"}]})
    assert files(configMap={"name": "absent", "optional": True}) == {}
    assert files(secret={"secretName": "keys", "optional": True, "items": [{"key": "x", "path": "x"}]}) == {}


def test_a_projection_joins_its_sources() -> None:
    sources = [
        {"configMap": {"name": "settings", "items": [{"key": "a", "path": "a"}]}},
        {"secret": {"name": "keys"}},
        {"serviceAccountToken": {"path": "token"}},
        {
            "downwardAPI": {
                "items": [
                    {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
                    {"path": "cpu", "resourceFieldRef": {"containerName": "main", "resource": "requests.cpu"}},
                ]
            }
        },
    ]

    found = files(projected={"defaultMode": 0o444, "sources": sources})

    assert {path: file.content for path, file in found.items()} == {
        "a": b"1",
        "pin": b"1234",
        "token": b"token for token",
        "labels": b'a="x\\"y"\nb="2"',
        "cpu": b"1",
    }
    assert {file.mode for file in found.values()} == {0o444}


@pytest.mark.parametrize("path", ["../x", "/x", "a/../../x", "..data", ""])
def test_a_path_that_leaves_the_volume_is_refused(path: str) -> None:
    with pytest.raises(VolumeError, match="is not a path inside of a volume"):
        files(configMap={"name": "settings", "items": [{"key": "a", "path": path}]})


def test_the_objects_that_a_volume_follows_are_known() -> None:
    assert volume_references({"name": "v", "secret": {"secretName": "s"}}) == {("secrets", "s")}
    assert volume_references({"name": "v", "emptyDir": {}}) == set()
    projected = {"sources": [{"configMap": {"name": "c"}}, {"secret": {"name": "s"}}]}
    assert volume_references({"name": "v", "projected": projected}) == {("configmaps", "c"), ("secrets", "s")}


def content(directory: Path) -> dict[str, str]:
    shown = [path for path in directory.iterdir() if not path.name.startswith("..")]
    return {path.name: path.read_text() for path in shown if path.is_file()}


def test_a_directory_changes_all_at_once(tmp_path: Path) -> None:
    place = tmp_path / "v"

    assert write_files(place, {"a": VolumeFile(b"1"), "b": VolumeFile(b"1")})
    held = (place / "..data").resolve()
    assert write_files(place, {"a": VolumeFile(b"2"), "c/d": VolumeFile(b"3", 0o600)})

    assert content(place) == {"a": "2"}
    assert (place / "c" / "d").read_text() == "3"
    assert (place / "c" / "d").stat().st_mode & 0o777 == 0o600
    assert not held.exists(), "the version before is removed"
    assert (place / "a").is_symlink()


def test_what_did_not_change_is_not_written(tmp_path: Path) -> None:
    place = tmp_path / "v"
    write_files(place, {"a": VolumeFile(b"1")})
    version = (place / "..data").resolve()

    assert not write_files(place, {"a": VolumeFile(b"1")})
    assert (place / "..data").resolve() == version


def test_an_empty_volume_is_an_empty_directory(tmp_path: Path) -> None:
    assert write_files(tmp_path / "v", {})
    assert content(tmp_path / "v") == {}


def test_a_volume_is_made_for_its_claim_alone() -> None:
    claim = {
        "metadata": {"name": "shelf", "namespace": "shop", "uid": "c-1"},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "3Gi"}}},
    }

    made = volume_for(claim, Path("/state/claims/shop/shelf"), "local")

    assert made["metadata"]["name"] == "local-c-1"
    assert made["spec"]["claimRef"]["uid"] == "c-1"
    assert made["spec"]["hostPath"] == {"path": "/state/claims/shop/shelf"}
    assert (made["spec"]["capacity"], made["spec"]["accessModes"]) == ({"storage": "3Gi"}, ["ReadWriteMany"])
    assert made["spec"]["storageClassName"] == ""
