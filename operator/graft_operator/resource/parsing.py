"""From the JSON of a manifest to its model, or one fault that names everything wrong with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from graft_runtime.errors import ErrorCode, GraftError, shown
from pydantic import BaseModel, ValidationError

from graft_operator.kinds import ADAPTER, ADAPTER_DEPLOYMENT, Kind
from graft_operator.resource.checkpoint_specs import AttachedAdapterSpec
from graft_operator.resource.rules import Rule, broken
from graft_operator.resource.spec import AdapterDeploymentSpec
from graft_operator.resource.texts import POOL_NAME_MAX, POOL_NAME_PATTERN, cel, matches

_Spec = TypeVar("_Spec", bound=BaseModel)
_UNKNOWN_FIELD = "extra_forbidden"

NAME_RULES = (
    Rule(
        f"is too long for metadata.name: it may have at most {POOL_NAME_MAX} characters, for Kubernetes appends to it"
        " to name pods",
        f"self.metadata.name.size() <= {POOL_NAME_MAX}",
        lambda name: len(name) <= POOL_NAME_MAX,
        text="self.metadata.name",
    ),
    Rule(
        "can't be metadata.name: it must start with a letter and hold a-z, 0-9 and - only, for the Service bears it",
        f"self.metadata.name.matches({cel(POOL_NAME_PATTERN)})",
        lambda name: matches(POOL_NAME_PATTERN, name),
        text="self.metadata.name",
    ),
)
ATTACHED_NAME_RULES = (
    Rule(
        "is too long for metadata.name: it may have at most 63 characters, as names in requests",
        "self.metadata.name.size() <= 63",
        lambda name: len(name) <= 63,
        text="self.metadata.name",
    ),
)


def parse_spec(spec: Mapping[str, Any]) -> AdapterDeploymentSpec:
    """Read the `spec` of an AdapterDeployment, camelCase JSON as the API server stores it.

    Raises:
        GraftError: InvalidSpec, with one line for each fault.
    """
    return _parsed(AdapterDeploymentSpec, spec, ADAPTER_DEPLOYMENT)


def parse_attached(spec: Mapping[str, Any]) -> AttachedAdapterSpec:
    """Read the `spec` of an Adapter, camelCase JSON as the API server stores it.

    Raises:
        GraftError: InvalidSpec, with one line for each fault.
    """
    return _parsed(AttachedAdapterSpec, spec, ADAPTER)


def parse_manifest(manifest: Mapping[str, Any]) -> AdapterDeploymentSpec | AttachedAdapterSpec:
    """Read the spec of a whole AdapterDeployment or Adapter; check its name as well.

    Raises:
        GraftError: InvalidSpec, with one line for each fault.
    """
    name = str(manifest.get("metadata", {}).get("name", ""))
    spec = manifest.get("spec", {})
    if manifest.get("kind") == ADAPTER.name:
        return _parsed(AttachedAdapterSpec, spec, ADAPTER, broken(ATTACHED_NAME_RULES, name))
    return _parsed(AdapterDeploymentSpec, spec, ADAPTER_DEPLOYMENT, broken(NAME_RULES, name))


def _parsed(model: type[_Spec], spec: Mapping[str, Any], kind: Kind, faults: Sequence[str] = ()) -> _Spec:
    """Read a spec; `faults` are those that were found elsewhere in its object."""
    try:
        parsed = model.model_validate(spec)
    except ValidationError as error:
        raise _invalid([*faults, *_faults(error)], kind) from error
    if faults:
        raise _invalid(list(faults), kind)
    return parsed


def _faults(error: ValidationError) -> list[str]:
    return [
        f"{_path(fault['loc'])}: {'unknown field' if fault['type'] == _UNKNOWN_FIELD else fault['msg']}"
        for fault in error.errors(include_url=False)
    ]


def _path(location: tuple[int | str, ...]) -> str:
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in location)
    return "spec" + "".join(steps)


def _invalid(faults: list[str], kind: Kind) -> GraftError:
    return GraftError(
        ErrorCode.INVALID_SPEC,
        f"the {kind.name} has {len(faults)} fault{'s' if len(faults) > 1 else ''}",
        details=shown(faults, 20),
        hint=f"correct these fields; `kubectl explain {kind.name.lower()}.spec` describes them",
        field="spec",
    )
