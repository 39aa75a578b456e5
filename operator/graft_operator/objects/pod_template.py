"""What is laid over the pod, spec.podTemplate and before it the administrator's podDefaults.

Maps merge, lists with a key merge by it, other lists replace.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graft_runtime.errors import ErrorCode, GraftError

from graft_operator.objects.pod import CONTAINER

# The list-map-keys of the Kubernetes API, by the field's path from the pod spec.
_CONTAINER_KEYS = {
    ("env",): "name",
    ("ports",): "containerPort",
    ("volumeMounts",): "mountPath",
    ("volumeDevices",): "devicePath",
    ("resources", "claims"): "name",
}
LIST_KEYS: dict[tuple[str, ...], str] = {
    ("volumes",): "name",
    ("imagePullSecrets",): "name",
    ("hostAliases",): "ip",
    ("resourceClaims",): "name",
    ("topologySpreadConstraints",): "topologyKey",
    ("schedulingGates",): "name",
}
for _containers in ("containers", "initContainers", "ephemeralContainers"):
    LIST_KEYS[(_containers,)] = "name"
    LIST_KEYS |= {(_containers, *path): key for path, key in _CONTAINER_KEYS.items()}


POD_TEMPLATE, POD_DEFAULTS = "spec.podTemplate.spec", "podDefaults.spec"


class _ClashError(Exception):
    """What is wrong at a path of a patch."""


def overlay(base: Mapping[str, Any], patch: Mapping[str, Any], field: str = POD_TEMPLATE) -> dict[str, Any]:
    """Lay `patch` over the pod spec `base`.

    Args:
        field: what holds the patch.

    Raises:
        GraftError: InvalidPodTemplate for `$patch` directives, nulls, entries without their key, clashing types, and
            what would break the contract with the runtime.
    """
    try:
        _refuse_reserved(patch)
        return _with_a_user(_overlay(base, patch, ()))
    except _ClashError as clash:
        place, fault = clash.args
        place = ".".join((field, *place))
        raise GraftError(
            ErrorCode.INVALID_POD_TEMPLATE,
            f"{place} {fault}",
            hint="write a partial pod spec, as under `template.spec` of a Deployment; Graft's container is `runtime`",
            field=place,
        ) from None


def _overlay(base: Mapping[str, Any], patch: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    directives = [name for name in patch if name.startswith("$")]
    if directives:
        raise _ClashError(path, f"holds `{directives[0]}`: patch directives aren't supported")
    merged = dict(base)
    for name, value in patch.items():
        merged[name] = _merge(merged.get(name), value, (*path, name))
    return merged


def _refuse_reserved(patch: Mapping[str, Any]) -> None:
    """Refuse what would break the contract with the runtime; tell which field to use instead."""
    if "terminationGracePeriodSeconds" in patch:
        raise _ClashError(("terminationGracePeriodSeconds",), "is set; use spec.terminationGracePeriodSeconds")
    containers = patch.get("containers")
    for container in containers if isinstance(containers, list) else []:
        if isinstance(container, Mapping) and container.get("name") == CONTAINER:
            for name in ("command", "args"):
                if name in container:
                    raise _ClashError(("containers", name), f"is set on the container `{CONTAINER}`; Graft writes it")


def _with_a_user(spec: dict[str, Any]) -> dict[str, Any]:
    """Return the pod spec; refuse a group alone: the API server takes it, and container runtimes start no such pod."""
    context = spec.get("securityContext") or {}
    if "runAsGroup" in context and "runAsUser" not in context:
        raise _ClashError(("securityContext", "runAsGroup"), "is set without runAsUser: container runtimes refuse that")
    return spec


def _merge(base: Any, patch: Any, path: tuple[str, ...]) -> Any:
    if patch is None:
        raise _ClashError(path, "is null: an overlay can't take fields away")
    if isinstance(patch, Mapping):
        return _overlay(_of_type(base, dict, path), patch, path)
    if isinstance(patch, list):
        key = LIST_KEYS.get(path)
        existing = _of_type(base, list, path)
        if key is not None:
            return _merge_by_key(existing, patch, key, path)
        return [_merge(None, entry, path) for entry in patch]
    if isinstance(base, dict | list):
        raise _ClashError(path, f"is {patch!r}, expected a {'map' if isinstance(base, dict) else 'list'}")
    return patch


def _merge_by_key(base: list[Any], patch: list[Any], key: str, path: tuple[str, ...]) -> list[Any]:
    merged = {entry[key]: entry for entry in base}
    seen = set()
    for entry in patch:
        if not isinstance(entry, Mapping) or not isinstance(entry.get(key), str | int):
            raise _ClashError(path, f"has an entry without `{key}`, by which entries are merged")
        name = entry[key]
        if name in seen:
            raise _ClashError(path, f"has two entries with {key} `{name}`")
        seen.add(name)
        merged[name] = _retained(path, _merge(merged.get(name), entry, path), entry)
    return list(merged.values())


def _retained(path: tuple[str, ...], merged: dict[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """Drop our source of a volume, or our origin of a variable, where the patch gives another: it may have only one."""
    if path[-1] in {"volumes", "env"}:
        return {name: value for name, value in merged.items() if name in patch}
    return merged


def _of_type(base: Any, kind: type, path: tuple[str, ...]) -> Any:
    if base is None:
        return kind()
    if not isinstance(base, kind):
        expected = "a map" if isinstance(base, dict) else "a list" if isinstance(base, list) else "a single value"
        raise _ClashError(path, f"is {'a map' if kind is dict else 'a list'}, expected {expected}")
    return base
