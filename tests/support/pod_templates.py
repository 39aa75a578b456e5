"""Overlays of spec.podTemplate: those that everybody may write, and those that take what the administrator allows."""

from __future__ import annotations

from typing import Any


def runtime(**fields: Any) -> dict[str, Any]:
    return {"containers": [{"name": "runtime", **fields}]}


def volume(**source: Any) -> dict[str, Any]:
    return {"volumes": [{"name": "shelf", **source}]}


PLAIN: dict[str, dict[str, Any]] = {
    "scheduling": {
        "nodeSelector": {"zone": "a"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
        "priorityClassName": "low",
        "runtimeClassName": "nvidia",
        "schedulerName": "batch",
    },
    "pull-secrets": {"imagePullSecrets": [{"name": "registry"}]},
    "device-claim": {"resourceClaims": [{"name": "gpu", "resourceClaimName": "gpu"}]},
    "resources": runtime(resources={"limits": {"memory": "8Gi"}, "claims": [{"name": "gpu"}]}),
    "claim": {
        **volume(persistentVolumeClaim={"claimName": "shelf"}),
        **runtime(volumeMounts=[{"name": "shelf", "mountPath": "/mnt/shelf", "subPath": "a", "readOnly": True}]),
    },
    "shared-memory": {
        **volume(emptyDir={"medium": "Memory"}),
        **runtime(volumeMounts=[{"name": "shelf", "mountPath": "/dev/shm"}]),
    },
    "config-map": volume(configMap={"name": "trust"}),
    "cache-on-a-claim": {"volumes": [{"name": "cache", "persistentVolumeClaim": {"claimName": "cache"}}]},
    "threads": runtime(env=[{"name": "OMP_NUM_THREADS", "value": "4"}]),
    "value-of-a-config-map": runtime(
        env=[{"name": "TZ", "valueFrom": {"configMapKeyRef": {"name": "time", "key": "zone"}}}]
    ),
    "probe-times": runtime(startupProbe={"periodSeconds": 5}, livenessProbe={"failureThreshold": 9}),
    "tighter": {
        "hostUsers": False,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        **runtime(
            securityContext={
                "privileged": False,
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
        ),
    },
}
"""By name: what everybody may write."""

BEYOND: dict[str, tuple[dict[str, Any], str]] = {
    "privileged": (runtime(securityContext={"privileged": True}), "containers.securityContext.privileged"),
    "escalation": (
        runtime(securityContext={"allowPrivilegeEscalation": True}),
        "containers.securityContext.allowPrivilegeEscalation",
    ),
    "added-capability": (
        runtime(securityContext={"capabilities": {"add": ["SYS_ADMIN"]}}),
        "containers.securityContext.capabilities.add",
    ),
    "kept-capabilities": (
        runtime(securityContext={"capabilities": {"drop": []}}),
        "containers.securityContext.capabilities.drop",
    ),
    "proc-mount": (runtime(securityContext={"procMount": "Unmasked"}), "containers.securityContext.procMount"),
    "writable-root": (
        runtime(securityContext={"readOnlyRootFilesystem": False}),
        "containers.securityContext.readOnlyRootFilesystem",
    ),
    "seccomp-off": (
        runtime(securityContext={"seccompProfile": {"type": "Unconfined"}}),
        "containers.securityContext.seccompProfile.type",
    ),
    "user": (runtime(securityContext={"runAsUser": 0}), "containers.securityContext.runAsUser"),
    "root": ({"securityContext": {"runAsNonRoot": False}}, "securityContext.runAsNonRoot"),
    "group": ({"securityContext": {"supplementalGroups": [1000]}}, "securityContext.supplementalGroups"),
    "host-network": ({"hostNetwork": True}, "hostNetwork"),
    "host-process-ids": ({"hostPID": True}, "hostPID"),
    "host-users": ({"hostUsers": True}, "hostUsers"),
    "node": ({"nodeName": "control-plane"}, "nodeName"),
    "service-account": ({"serviceAccountName": "admin"}, "serviceAccountName"),
    "api-token": ({"automountServiceAccountToken": True}, "automountServiceAccountToken"),
    "host-path": (volume(hostPath={"path": "/"}), "volumes.hostPath"),
    "image-volume": (volume(image={"reference": "registry.example/models@sha256:0"}), "volumes.image"),
    "secret-volume": (volume(secret={"secretName": "db"}), "volumes.secret"),
    "projected": (volume(projected={"sources": [{"serviceAccountToken": {"path": "t"}}]}), "volumes.projected"),
    "container-storage-interface": (volume(csi={"driver": "x"}), "volumes.csi"),
    "our-config": ({"volumes": [{"name": "config", "configMap": {"name": "mine"}}]}, "volumes.name"),
    "our-home": ({"volumes": [{"name": "scratch", "persistentVolumeClaim": {"claimName": "x"}}]}, "volumes.name"),
    "over-the-code": (
        runtime(volumeMounts=[{"name": "shelf", "mountPath": "/opt/graft"}]),
        "containers.volumeMounts.mountPath",
    ),
    "over-the-code-by-dots": (
        runtime(volumeMounts=[{"name": "shelf", "mountPath": "/mnt/../opt/graft"}]),
        "containers.volumeMounts.mountPath",
    ),
    "mount-propagation": (
        runtime(volumeMounts=[{"name": "shelf", "mountPath": "/mnt/a", "mountPropagation": "Bidirectional"}]),
        "containers.volumeMounts.mountPropagation",
    ),
    "secret-variable": (
        runtime(env=[{"name": "TZ", "valueFrom": {"secretKeyRef": {"name": "db", "key": "password"}}}]),
        "containers.env.valueFrom.secretKeyRef",
    ),
    "all-of-a-secret": (runtime(envFrom=[{"secretRef": {"name": "db"}}]), "containers.envFrom"),
    "preloaded-code": (runtime(env=[{"name": "LD_PRELOAD", "value": "/mnt/a.so"}]), "containers.env.name"),
    "proxy": (runtime(env=[{"name": "HTTPS_PROXY", "value": "http://mine:1"}]), "containers.env.name"),
    "python-s-path": (runtime(env=[{"name": "PYTHONPATH", "value": "/mnt/a"}]), "containers.env.name"),
    "image": (runtime(image="mine:1"), "containers.image"),
    "hook": (runtime(lifecycle={"postStart": {"exec": {"command": ["sh"]}}}), "containers.lifecycle"),
    "probe-command": (runtime(livenessProbe={"exec": {"command": ["sh"]}}), "containers.livenessProbe.exec"),
    "sidecar": ({"containers": [{"name": "log"}]}, "containers.name"),
    "init-container": ({"initContainers": [{"name": "first", "image": "mine:1"}]}, "initContainers"),
    "names-of-hosts": ({"hostAliases": [{"ip": "10.0.0.1", "hostnames": ["huggingface.co"]}]}, "hostAliases"),
}
"""By name: an overlay, and the field that only the administrator can allow."""
