"""The files of a ConfigMap, Secret, downward API or projected volume. Pure, but for the tokens, which are given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from graft_process_node.downward import PodFacts, UnknownFieldError, pod_field, resource_field
from graft_process_node.process_spec import Reference, data_of

_DEFAULT_MODE = 0o644
PROJECTED_KINDS = ("configMap", "secret", "downwardAPI", "projected")


class VolumeError(ValueError):
    """A volume that can't be filled as things stand; a later try may succeed."""


@dataclass(frozen=True)
class VolumeFile:
    """Content and permission bits."""

    content: bytes
    mode: int = _DEFAULT_MODE


Objects = Mapping[Reference, Mapping[str, Any]]
Token = Callable[[Mapping[str, Any]], bytes]
"""From a `serviceAccountToken` projection to the token."""


def volume_references(volume: Mapping[str, Any]) -> set[Reference]:
    """The ConfigMaps and Secrets that the files of a volume come from."""
    return {
        (kind, name)
        for source_kind, source in _sources(volume)
        if (named := _object_name(source_kind, source)) is not None
        for kind, name in [named]
    }


def volume_files(volume: Mapping[str, Any], facts: PodFacts, objects: Objects, token: Token) -> dict[str, VolumeFile]:
    """The files of one volume by relative path.

    Raises:
        VolumeError: an object or key that is not optional does not exist; a path leaves the volume.
    """
    files: dict[str, VolumeFile] = {}
    for kind, source in _sources(volume):
        default_mode = int(source.get("defaultMode") or _volume_mode(volume))
        if kind == "serviceAccountToken":
            files[_checked(source["path"])] = VolumeFile(token(source), default_mode)
        elif kind == "downwardAPI":
            files.update(_downward_files(source, facts, default_mode))
        else:
            files.update(_object_files(kind, source, facts, objects, default_mode))
    return files


def _sources(volume: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if volume.get("projected"):
        for source in volume["projected"].get("sources") or []:
            yield from ((kind, body or {}) for kind, body in source.items())
        return
    for kind in ("configMap", "secret", "downwardAPI"):
        if volume.get(kind) is not None:
            yield kind, volume[kind]


def _volume_mode(volume: Mapping[str, Any]) -> int:
    return int((volume.get("projected") or {}).get("defaultMode") or _DEFAULT_MODE)


def _object_name(kind: str, source: Mapping[str, Any]) -> Reference | None:
    if kind == "configMap":
        return ("configmaps", str(source["name"]))
    if kind == "secret":  # a volume names it secretName, a projection name
        return ("secrets", str(source.get("secretName") or source.get("name")))
    return None


def _object_files(
    kind: str, source: Mapping[str, Any], facts: PodFacts, objects: Objects, default_mode: int
) -> dict[str, VolumeFile]:
    reference = _object_name(kind, source)
    assert reference is not None
    optional = bool(source.get("optional"))
    described = f"{'ConfigMap' if kind == 'configMap' else 'Secret'} {facts.namespace}/{reference[1]}"
    stored = objects.get(reference)
    if stored is None:
        if optional:
            return {}
        raise VolumeError(f"{described} not found")
    data = data_of(stored, reference[0])
    if not source.get("items"):
        return {_checked(key): VolumeFile(content, default_mode) for key, content in data.items()}
    files = {}
    for item in source["items"]:
        if item["key"] in data:
            files[_checked(item["path"])] = VolumeFile(data[item["key"]], int(item.get("mode") or default_mode))
        elif not optional:
            raise VolumeError(f"{described} has no key `{item['key']}`")
    return files


def _downward_files(source: Mapping[str, Any], facts: PodFacts, default_mode: int) -> dict[str, VolumeFile]:
    files = {}
    for item in source.get("items") or []:
        try:
            if item.get("fieldRef"):
                text = pod_field(facts, item["fieldRef"]["fieldPath"])
            else:
                text = resource_field(facts, item["resourceFieldRef"], "")
        except UnknownFieldError as error:
            raise VolumeError(str(error)) from error
        files[_checked(item["path"])] = VolumeFile(text.encode(), int(item.get("mode") or default_mode))
    return files


def _checked(path: str) -> str:
    parts = PurePosixPath(path).parts
    if path.startswith("/") or ".." in parts or not parts or parts[0].startswith(".."):
        raise VolumeError(f"`{path}` is not a path inside of a volume")
    return path
