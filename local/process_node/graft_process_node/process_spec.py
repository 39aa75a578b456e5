"""From a container of a pod's spec to a process: arguments, environment, directory. Pure."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft_process_node.downward import PodFacts, UnknownFieldError, pod_field, resource_field
from graft_process_node.expansion import expand
from graft_process_node.mounts import InvalidMountError, Mounts, container_mounts

_VARIABLE_NAME = re.compile(r"[^=\x00]+")

Reference = tuple[str, str]
"""What a pod refers to: ("configmaps" or "secrets", name), in the pod's namespace."""


class ContainerConfigError(ValueError):
    """A container that can't be made into a process as things stand; a later try may succeed."""


@dataclass(frozen=True)
class ProcessSpec:
    """A process to be started.

    Args:
        arguments: the program, then its arguments.
        environment: all of it.
        directory: where it starts.
        mounts: what its paths were rewritten by; their links are still to be made.
    """

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    directory: str
    mounts: Mounts


@dataclass(frozen=True)
class Surroundings:
    """What a container's process is made from besides its own spec.

    Args:
        facts: the pod.
        volumes: the pod's volumes by name, and where they lie.
        objects: the ConfigMaps and Secrets that it refers to; an absent one does not exist.
        image_environment: the variables that an image would bring.
        service_account_directory: where the token and the KUBECONFIG of the pod lie, if it has one.
        home: working directory where the spec names none.
        termination_log: the file that stands for the container's `terminationMessagePath`.
    """

    facts: PodFacts
    volumes: Mapping[str, Path]
    objects: Mapping[Reference, Mapping[str, Any]]
    image_environment: Mapping[str, str]
    home: Path
    termination_log: Path
    kubeconfig: Path | None = None


def build_process(container: Mapping[str, Any], around: Surroundings) -> ProcessSpec:
    """The process of one container.

    Raises:
        ContainerConfigError: it refers to something that is not there, or that this node does not know.
    """
    try:
        return _build(container, around)
    except (UnknownFieldError, InvalidMountError) as error:
        raise ContainerConfigError(str(error)) from error


def references(container: Mapping[str, Any]) -> set[Reference]:
    """The ConfigMaps and Secrets that a container's environment is made from."""
    found: set[Reference] = set()
    for source in container.get("envFrom") or []:
        if source.get("configMapRef"):
            found.add(("configmaps", source["configMapRef"]["name"]))
        if source.get("secretRef"):
            found.add(("secrets", source["secretRef"]["name"]))
    for variable in container.get("env") or []:
        origin = variable.get("valueFrom") or {}
        if origin.get("configMapKeyRef"):
            found.add(("configmaps", origin["configMapKeyRef"]["name"]))
        if origin.get("secretKeyRef"):
            found.add(("secrets", origin["secretKeyRef"]["name"]))
    return found


def data_of(stored: Mapping[str, Any], kind: str) -> dict[str, bytes]:
    """The keys of a ConfigMap (`data` and `binaryData`) or a Secret."""
    if kind == "secrets":
        return {key: base64.b64decode(value) for key, value in (stored.get("data") or {}).items()}
    plain = {key: value.encode() for key, value in (stored.get("data") or {}).items()}
    binary = {key: base64.b64decode(value) for key, value in (stored.get("binaryData") or {}).items()}
    return plain | binary


def _build(container: Mapping[str, Any], around: Surroundings) -> ProcessSpec:
    declared = dict(_from_sources(container, around))
    for variable in container.get("env") or []:
        value = _value(variable, container, around, declared)
        if value is not None:
            declared[variable["name"]] = value
    mounts = container_mounts(container, around.volumes, declared)
    mounts = Mounts({**mounts.places, _termination_path(container): str(around.termination_log)}, mounts.links)
    declared = {name: mounts.rewrite(value) for name, value in declared.items()}
    environment = {**around.image_environment, **_standing_in(container, around, mounts), **declared}
    words = [*(container.get("command") or []), *(container.get("args") or [])]
    return ProcessSpec(
        arguments=tuple(mounts.rewrite(expand(word, environment)) for word in words),
        environment=environment,
        directory=mounts.rewrite(container.get("workingDir") or "") or str(around.home),
        mounts=mounts,
    )


def _termination_path(container: Mapping[str, Any]) -> str:
    return str(container.get("terminationMessagePath") or "/dev/termination-log")


def _standing_in(container: Mapping[str, Any], around: Surroundings, mounts: Mounts) -> dict[str, str]:
    """Variables for what processes find without being told in an image: the API server, and /tmp."""
    found = {"HOSTNAME": around.facts.name, "HOME": str(around.home)}
    if "/tmp" in mounts.places:  # noqa: S108 - the path inside of the container
        found["TMPDIR"] = mounts.places["/tmp"]  # noqa: S108
    if around.kubeconfig is not None and service_account_mount(container) is not None:
        found["KUBECONFIG"] = str(around.kubeconfig)
    return found


def service_account_mount(container: Mapping[str, Any]) -> str | None:
    """The volume that API access comes from: the admission plugin mounts it there unless automounting is off."""
    for mount in container.get("volumeMounts") or []:
        if mount["mountPath"].rstrip("/") == "/var/run/secrets/kubernetes.io/serviceaccount":
            return str(mount["name"])
    return None


def _from_sources(container: Mapping[str, Any], around: Surroundings) -> Iterator[tuple[str, str]]:
    for source in container.get("envFrom") or []:
        kind = "configmaps" if source.get("configMapRef") else "secrets"
        reference = source.get("configMapRef") or source.get("secretRef") or {}
        stored = _stored(kind, reference, around)
        if stored is None:
            continue
        for key, value in data_of(stored, kind).items():
            name = (source.get("prefix") or "") + key
            if _VARIABLE_NAME.fullmatch(name):
                yield name, value.decode(errors="replace")


def _value(
    variable: Mapping[str, Any], container: Mapping[str, Any], around: Surroundings, so_far: Mapping[str, str]
) -> str | None:
    origin = variable.get("valueFrom") or {}
    if origin.get("fieldRef"):
        return pod_field(around.facts, origin["fieldRef"]["fieldPath"])
    if origin.get("resourceFieldRef"):
        return resource_field(around.facts, origin["resourceFieldRef"], container["name"])
    if origin.get("configMapKeyRef"):
        return _key("configmaps", origin["configMapKeyRef"], around)
    if origin.get("secretKeyRef"):
        return _key("secrets", origin["secretKeyRef"], around)
    return expand(variable.get("value") or "", so_far)


def _key(kind: str, reference: Mapping[str, Any], around: Surroundings) -> str | None:
    stored = _stored(kind, reference, around)
    if stored is None:
        return None
    value = data_of(stored, kind).get(reference["key"])
    if value is not None:
        return value.decode(errors="replace")
    if reference.get("optional"):
        return None
    raise ContainerConfigError(f"couldn't find key {reference['key']} in {_named(kind, reference, around)}")


def _stored(kind: str, reference: Mapping[str, Any], around: Surroundings) -> Mapping[str, Any] | None:
    stored = around.objects.get((kind, reference["name"]))
    if stored is None and not reference.get("optional"):
        raise ContainerConfigError(f"{_named(kind, reference, around)} not found")
    return stored


def _named(kind: str, reference: Mapping[str, Any], around: Surroundings) -> str:
    word = "ConfigMap" if kind == "configmaps" else "Secret"
    return f"{word} {around.facts.namespace}/{reference['name']}"
