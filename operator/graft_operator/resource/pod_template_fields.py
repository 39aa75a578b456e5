"""What spec.podTemplate.spec may hold where the administrator allows no more: one table, asked in Python and in CEL.

Nothing in it gives a pod rights or code that Graft's own pods have not. Variables have names that no program loads code
by, volumes go to directories that none is run from, and Graft's own volumes stay what they are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import yaml

from graft_operator.resource.rules import Rule
from graft_operator.resource.texts import cel, matches

Shape = Rule | Mapping[str, Any] | list[Any]
"""A rule for a value, the fields of a map, or the shape of a list's entries."""


def _one_of(*values: str | bool) -> Rule:
    listed = ", ".join(str(value).lower() if isinstance(value, bool) else repr(value) for value in values)
    return Rule(f"expected {listed.replace(chr(39), '`')}", f"self in [{listed}]", lambda value: value in values)


ANY = Rule("", "true", lambda _: True)
RESERVED_VOLUMES = ("config", "adapter-set", "keys", "state", "scratch", "shared-cache")
ENVIRONMENT = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS", "TOKENIZERS_PARALLELISM"),
    *("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "SSL_CERT_FILE", "TZ"),
)
_MOUNTED = r"^(/dev/shm|/mnt(/[A-Za-z0-9_-][A-Za-z0-9._-]*)+)$"
_PROBE = dict.fromkeys(
    ("initialDelaySeconds", "periodSeconds", "timeoutSeconds", "successThreshold", "failureThreshold"), ANY
)
_CONTAINER = {
    "name": _one_of("runtime"),
    "resources": ANY,
    "env": [
        {
            "name": _one_of(*ENVIRONMENT),
            "value": ANY,
            "valueFrom": {"configMapKeyRef": ANY, "fieldRef": ANY, "resourceFieldRef": ANY},
        }
    ],
    "volumeMounts": [
        {
            "name": ANY,
            "mountPath": Rule(
                "expected /dev/shm or a directory below /mnt",
                f"self.matches({cel(_MOUNTED)})",
                lambda path: isinstance(path, str) and matches(_MOUNTED, path),
            ),
            "subPath": ANY,
            "readOnly": ANY,
        }
    ],
    "startupProbe": _PROBE,
    "readinessProbe": _PROBE,
    "livenessProbe": _PROBE,
    "securityContext": {
        "privileged": _one_of(False),
        "allowPrivilegeEscalation": _one_of(False),
        "readOnlyRootFilesystem": _one_of(True),
        "runAsNonRoot": _one_of(True),
        "seccompProfile": {"type": _one_of("RuntimeDefault")},
        "capabilities": {
            "drop": Rule(
                "expected ALL in it", "'ALL' in self", lambda names: isinstance(names, list) and "ALL" in names
            )
        },
    },
}
FIELDS: Mapping[str, Shape] = {
    **dict.fromkeys(("nodeSelector", "tolerations", "affinity", "topologySpreadConstraints"), ANY),
    **dict.fromkeys(("priorityClassName", "runtimeClassName", "schedulerName"), ANY),
    **dict.fromkeys(("resources", "resourceClaims", "imagePullSecrets"), ANY),
    "hostUsers": _one_of(False),
    "securityContext": {"runAsNonRoot": _one_of(True), "seccompProfile": {"type": _one_of("RuntimeDefault")}},
    "containers": [_CONTAINER],
    "volumes": [
        {
            "name": Rule(
                "expected another name than Graft's own volumes",
                f"!(self in {list(RESERVED_VOLUMES)})",
                lambda name: name not in RESERVED_VOLUMES,
            ),
            **dict.fromkeys(("configMap", "emptyDir", "persistentVolumeClaim"), ANY),
        }
    ],
}
"""The fields of the partial pod spec that everybody may set."""


def faults_beyond(spec: Mapping[str, Any], allowed: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield the path of each field that is neither in the table nor allowed, and what is wrong with it.

    A value of another type than Kubernetes' makes no pod and is no matter of this table.

    Args:
        allowed: paths such as `containers.securityContext.runAsUser`; each stands for all below it as well.
    """
    return _faults(FIELDS, spec, (), allowed)


def validations() -> list[dict[str, str]]:
    """Return the table as validations of a ValidatingAdmissionPolicy, which knows `podSpec` and `mayCreatePods`."""
    names = f"variables.podSpec.all(field, field in {list(FIELDS)})"
    checks = {"spec.podTemplate.spec": names}
    for name, shape in FIELDS.items():
        if shape is not ANY:
            checks[f"spec.podTemplate.spec.{name}"] = _check_of_field("variables.podSpec", name, shape, 0)
    return [
        {
            "expression": f"{check} || variables.mayCreatePods",
            "message": f"{place} holds what only those may ask for who may create pods in this namespace themselves:"
            " leave it out, or have one of them apply it",
            "reason": "Forbidden",
        }
        for place, check in checks.items()
    ]


def render_validations(name: str, note: str) -> str:
    """Return the validations as a template of the chart."""
    text = yaml.safe_dump(validations(), sort_keys=False, width=10_000)
    return f'{{{{- define "{name}" -}}}}\n{note}{text}{{{{- end }}}}\n'


def _faults(shape: Shape, value: Any, path: tuple[str, ...], allowed: Collection[str]) -> Iterator[tuple[str, str]]:
    place = ".".join(path)
    if place in allowed:
        return
    if isinstance(shape, Rule):
        if not shape.holds(value):
            yield place, f"is {value!r}, {shape.message}" if not isinstance(value, dict | list) else shape.message
    elif isinstance(shape, Mapping) and isinstance(value, Mapping):
        for name, part in value.items():
            if name in shape:
                yield from _faults(shape[name], part, (*path, name), allowed)
            elif (inner := ".".join((*path, name))) not in allowed:
                yield inner, "is no field that pools may set"
    elif isinstance(shape, list) and isinstance(value, list):
        for entry in value:
            yield from _faults(shape[0], entry, path, allowed)


def _check(shape: Shape, value: str, depth: int) -> str:
    """Return in CEL whether `value` has no more than `shape`."""
    if isinstance(shape, Rule):
        return shape.cel.replace("self", value)
    if isinstance(shape, list):
        return f"{value}.all(entry{depth}, {_check(shape[0], f'entry{depth}', depth + 1)})"
    parts = [f"{value}.all(field{depth}, field{depth} in {list(shape)})"]
    parts += [_check_of_field(value, name, part, depth + 1) for name, part in shape.items() if part is not ANY]
    return " && ".join(parts)


def _check_of_field(value: str, name: str, shape: Shape, depth: int) -> str:
    return f"(!has({value}.{name}) || {_check(shape, f'{value}.{name}', depth)})"
