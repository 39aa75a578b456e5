"""The fields of a pod that this node knows (Kubernetes 1.34). See `field_check` for what the rules mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graft_process_node.field_check import Each, Fields, Findings, Only, Rule, Supported, Unenforced, check
from graft_process_node.mounts import enclosing_mount


def _fields(honoured: str, *, required: Mapping[str, str] | None = None, **others: Rule) -> Fields:
    """Return an object's rule: the names in `honoured` are honoured whatever they hold, the others by their rules."""
    return Fields({**dict.fromkeys(honoured.split(), Supported()), **others}, required or {})


_IGNORED = Unenforced()
_EXEC = _fields("command")
_HTTP_GET = _fields("path port host scheme httpHeaders")
_PROBE = _fields(
    "initialDelaySeconds periodSeconds timeoutSeconds successThreshold failureThreshold terminationGracePeriodSeconds",
    exec=_EXEC,
    httpGet=_HTTP_GET,
    tcpSocket=_fields("port host"),
)
_PORT = _fields("containerPort name", protocol=Only(("TCP",)))
_MOUNT = _fields(
    # readOnly is not enforced; documented, as most pods have one and an event each would say nothing
    "name mountPath readOnly subPath subPathExpr",
    mountPropagation=Only(("None",)),
    recursiveReadOnly=Only(("Disabled",)),
)
_RESOURCES = _fields("requests", limits=_IGNORED)
_VARIABLE = _fields("name value", valueFrom=_fields("configMapKeyRef secretKeyRef fieldRef resourceFieldRef"))
_INIT_CONTAINER = _fields(
    # imagePullPolicy: there is no image to pull; said by the event about `image`
    "name imagePullPolicy command args workingDir terminationMessagePath terminationMessagePolicy",
    required={"command": "must be set: this node runs no image, so it knows no entrypoint"},
    image=_IGNORED,
    env=Each(_VARIABLE),
    envFrom=Each(_fields("prefix configMapRef secretRef")),
    ports=Each(_PORT),
    resources=_RESOURCES,
    volumeMounts=Each(_MOUNT),
    securityContext=_IGNORED,
)
_OF_CONTAINERS = {
    **dict.fromkeys(("startupProbe", "readinessProbe", "livenessProbe"), _PROBE),
    "lifecycle": _fields("", preStop=_fields("sleep", exec=_EXEC, httpGet=_HTTP_GET)),
}
_CONTAINER = Fields({**_INIT_CONTAINER.fields, **_OF_CONTAINERS}, _INIT_CONTAINER.required)

_DOWNWARD = _fields("items defaultMode")
_PROJECTED = _fields(
    "",
    configMap=_fields("name items defaultMode optional"),
    secret=_fields("name items defaultMode optional"),
    downwardAPI=_DOWNWARD,
    serviceAccountToken=_fields("path audience expirationSeconds"),
)
_VOLUME = _fields(
    "name",
    configMap=_fields("name items defaultMode optional"),
    secret=_fields("secretName items defaultMode optional"),
    emptyDir=_fields("", medium=_IGNORED, sizeLimit=_IGNORED),
    projected=_fields("defaultMode", sources=Each(_PROJECTED)),
    downwardAPI=_DOWNWARD,
    persistentVolumeClaim=_fields("claimName", readOnly=_IGNORED),
    hostPath=_fields("path", type=Only(("Directory", "DirectoryOrCreate", "File", "FileOrCreate"))),
)

POD_SPEC = _fields(
    # enableServiceLinks: the variables are never set; documented, as `true` is the default
    "activeDeadlineSeconds affinity automountServiceAccountToken enableServiceLinks nodeName nodeSelector overhead"
    " preemptionPolicy priority priorityClassName readinessGates restartPolicy schedulerName schedulingGates"
    " serviceAccount serviceAccountName terminationGracePeriodSeconds tolerations topologySpreadConstraints",
    containers=Each(_CONTAINER),
    initContainers=Each(_INIT_CONTAINER),
    dnsPolicy=Only(("ClusterFirst", "Default")),  # the machine's own resolver either way
    imagePullSecrets=_IGNORED,
    os=_fields("", name=Only(("linux",))),
    resources=_RESOURCES,
    securityContext=_IGNORED,
    volumes=Each(_VOLUME),
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
