"""The fields of a pod that this node knows (Kubernetes 1.34). See `field_check` for what the rules mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graft_process_node.field_check import Each, Fields, Findings, Only, Rule, Supported, Unenforced, check
from graft_process_node.mounts import enclosing_mount

_YES = Supported()
_IGNORED = Unenforced()

_HTTP_GET = Fields({"path": _YES, "port": _YES, "host": _YES, "scheme": _YES, "httpHeaders": _YES})
_EXEC = Fields({"command": _YES})
_TCP_SOCKET = Fields({"port": _YES, "host": _YES})

_PROBE = Fields(
    {
        "exec": _EXEC,
        "httpGet": _HTTP_GET,
        "tcpSocket": _TCP_SOCKET,
        "initialDelaySeconds": _YES,
        "periodSeconds": _YES,
        "timeoutSeconds": _YES,
        "successThreshold": _YES,
        "failureThreshold": _YES,
        "terminationGracePeriodSeconds": _YES,
    }
)
_HOOK = Fields({"exec": _EXEC, "httpGet": _HTTP_GET, "sleep": _YES})
_LIFECYCLE = Fields({"preStop": _HOOK})

_PORT = Fields({"containerPort": _YES, "name": _YES, "protocol": Only(("TCP",))})
_MOUNT = Fields(
    {
        "name": _YES,
        "mountPath": _YES,
        "readOnly": _YES,  # not enforced; documented, as most pods have one and an event each would say nothing
        "subPath": _YES,
        "subPathExpr": _YES,
        "mountPropagation": Only(("None",)),
        "recursiveReadOnly": Only(("Disabled",)),
    }
)
_RESOURCES = Fields({"requests": _YES, "limits": _IGNORED})

_ENVIRONMENT_VARIABLE = Fields(
    {
        "name": _YES,
        "value": _YES,
        "valueFrom": Fields(
            {"configMapKeyRef": _YES, "secretKeyRef": _YES, "fieldRef": _YES, "resourceFieldRef": _YES}
        ),
    }
)

_CONTAINER_FIELDS: Mapping[str, Rule] = {
    "name": _YES,
    "image": _IGNORED,
    "imagePullPolicy": _YES,  # there is no image to pull; said by the event about `image`
    "command": _YES,
    "args": _YES,
    "workingDir": _YES,
    "env": Each(_ENVIRONMENT_VARIABLE),
    "envFrom": Each(Fields({"prefix": _YES, "configMapRef": _YES, "secretRef": _YES})),
    "ports": Each(_PORT),
    "resources": _RESOURCES,
    "volumeMounts": Each(_MOUNT),
    "terminationMessagePath": _YES,
    "terminationMessagePolicy": _YES,
    "securityContext": _IGNORED,
}
_NEEDS_COMMAND = {"command": "must be set: this node runs no image, so it knows no entrypoint"}

_CONTAINER = Fields(
    {
        **_CONTAINER_FIELDS,
        "startupProbe": _PROBE,
        "readinessProbe": _PROBE,
        "livenessProbe": _PROBE,
        "lifecycle": _LIFECYCLE,
    },
    required=_NEEDS_COMMAND,
)
_INIT_CONTAINER = Fields(_CONTAINER_FIELDS, required=_NEEDS_COMMAND)

_KEYS = {"items": _YES, "defaultMode": _YES, "optional": _YES}
_DOWNWARD = Fields({"items": _YES, "defaultMode": _YES})
_PROJECTED_SOURCE = Fields(
    {
        "configMap": Fields({**_KEYS, "name": _YES}),
        "secret": Fields({**_KEYS, "name": _YES}),
        "downwardAPI": _DOWNWARD,
        "serviceAccountToken": Fields({"path": _YES, "audience": _YES, "expirationSeconds": _YES}),
    }
)
_VOLUME = Fields(
    {
        "name": _YES,
        "configMap": Fields({**_KEYS, "name": _YES}),
        "secret": Fields({**_KEYS, "secretName": _YES}),
        "emptyDir": Fields({"medium": _IGNORED, "sizeLimit": _IGNORED}),
        "projected": Fields({"sources": Each(_PROJECTED_SOURCE), "defaultMode": _YES}),
        "downwardAPI": _DOWNWARD,
        "persistentVolumeClaim": Fields({"claimName": _YES, "readOnly": _IGNORED}),
        "hostPath": Fields({"path": _YES, "type": Only(("Directory", "DirectoryOrCreate", "File", "FileOrCreate"))}),
    }
)

POD_SPEC = Fields(
    {
        "activeDeadlineSeconds": _YES,
        "affinity": _YES,
        "automountServiceAccountToken": _YES,
        "containers": Each(_CONTAINER),
        "initContainers": Each(_INIT_CONTAINER),
        "dnsPolicy": Only(("ClusterFirst", "Default")),  # the machine's own resolver either way
        "enableServiceLinks": _YES,  # the variables are never set; documented, as `true` is the default
        "imagePullSecrets": _IGNORED,
        "nodeName": _YES,
        "nodeSelector": _YES,
        "os": Fields({"name": Only(("linux",))}),
        "overhead": _YES,
        "preemptionPolicy": _YES,
        "priority": _YES,
        "priorityClassName": _YES,
        "readinessGates": _YES,
        "resources": _RESOURCES,
        "restartPolicy": _YES,
        "schedulerName": _YES,
        "schedulingGates": _YES,
        "securityContext": _IGNORED,
        "serviceAccount": _YES,
        "serviceAccountName": _YES,
        "terminationGracePeriodSeconds": _YES,
        "tolerations": _YES,
        "topologySpreadConstraints": _YES,
        "volumes": Each(_VOLUME),
    }
)


def check_pod(pod: Mapping[str, Any]) -> Findings:
    """What the pod asks for beyond what this node does."""
    spec = pod["spec"]
    found = check(spec, POD_SPEC, "spec")
    return Findings((*found.refused, *_nested_mounts(spec)), found.unenforced)


def _nested_mounts(spec: Mapping[str, Any]) -> list[str]:
    """A mount inside another one needs a mount namespace, unless a link in an emptyDir can stand for it."""
    empty = {volume["name"] for volume in spec.get("volumes") or [] if volume.get("emptyDir") is not None}
    faults = []
    for kind in ("initContainers", "containers"):
        for index, container in enumerate(spec.get(kind) or []):
            mounts = container.get("volumeMounts") or []
            for number, mount in enumerate(mounts):
                outer = enclosing_mount(mount, mounts)
                if outer is not None and outer["name"] not in empty:
                    place = f"spec.{kind}[{index}].volumeMounts[{number}].mountPath"
                    inside = f"{mount['mountPath']!r} lies inside the mount {outer['mountPath']!r}"
                    faults.append(f"{place}: {inside}, which is no emptyDir; not supported by this node")
    return faults
