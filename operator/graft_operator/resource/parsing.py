"""From the JSON of a manifest to its model, or one fault that names everything wrong with it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from graft_runtime.errors import ErrorCode, GraftError, shown
from pydantic import ValidationError

from graft_operator.resource.rules import Rule, broken
from graft_operator.resource.spec import AdapterDeploymentSpec

_UNKNOWN_FIELD = "extra_forbidden"

NAME_RULES = (
    Rule(
        "is too long for metadata.name: it may have at most 52 characters, for Kubernetes appends to it to name pods",
        "self.metadata.name.size() <= 52",
        lambda name: len(name) <= 52,
        text="self.metadata.name",
    ),
    Rule(
        "can't be metadata.name: it must start with a letter and hold a-z, 0-9 and - only, for the Service bears it",
        "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        lambda name: re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) is not None,
        text="self.metadata.name",
    ),
)


def parse_spec(spec: Mapping[str, Any]) -> AdapterDeploymentSpec:
    """Read `spec`, camelCase JSON as the API server stores it.

    Raises:
        GraftError: InvalidSpec, with one line for each fault.
    """
    try:
        return AdapterDeploymentSpec.model_validate(spec)
    except ValidationError as error:
        raise _invalid(_faults(error)) from error


def parse_manifest(manifest: Mapping[str, Any]) -> AdapterDeploymentSpec:
    """Read the spec of a whole AdapterDeployment; check its name as well.

    Raises:
        GraftError: InvalidSpec, with one line for each fault.
    """
    faults = broken(NAME_RULES, str(manifest.get("metadata", {}).get("name", "")))
    try:
        spec = AdapterDeploymentSpec.model_validate(manifest.get("spec", {}))
    except ValidationError as error:
        faults += _faults(error)
        raise _invalid(faults) from error
    if faults:
        raise _invalid(faults)
    return spec


def _faults(error: ValidationError) -> list[str]:
    return [
        f"{_path(fault['loc'])}: {'unknown field' if fault['type'] == _UNKNOWN_FIELD else fault['msg']}"
        for fault in error.errors(include_url=False)
    ]


def _path(location: tuple[int | str, ...]) -> str:
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in location)
    return "spec" + "".join(steps)


def _invalid(faults: list[str]) -> GraftError:
    return GraftError(
        ErrorCode.INVALID_SPEC,
        f"the AdapterDeployment has {len(faults)} fault{'s' if len(faults) > 1 else ''}",
        details=shown(faults, 20),
        hint="correct these fields; `kubectl explain adapterdeployment.spec` describes them",
        field="spec",
    )
