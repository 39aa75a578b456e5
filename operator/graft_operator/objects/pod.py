"""The pod: one container, `runtime`, that meets the restricted Pod Security Standard."""

from __future__ import annotations

from typing import Any

from graft_runtime.contract.config import SOURCE_HOSTS_FILE, SOURCE_TOKEN_FILE
from graft_runtime.contract.environment import MEMORY_LIMIT
from graft_runtime.contract.ports import API_PORT, CONTROL_PORT, PROBE_PORT

from graft_operator.objects.config_maps import cache_bytes
from graft_operator.objects.pool import Pool, adapter_set_name, config_name, keys_name
from graft_operator.quantities import quantity_bytes
from graft_operator.resource import SourceSpec, mount_name
from graft_operator.settings import Settings

CONTAINER = "runtime"
CONFIG_DIRECTORY = "/graft/config"
ADAPTER_SET_DIRECTORY = "/graft/adapter-set"
KEYS_DIRECTORY = "/graft/keys"
CACHE_DIRECTORY = "/graft/cache"
SHARED_CACHE_DIRECTORY = "/graft/shared-cache"
API_KEYS_DIRECTORY = "/graft/api-keys"
STATE_DIRECTORY = "/graft/state"
SOURCES_DIRECTORY = "/graft/sources"
SCRATCH_DIRECTORY = "/tmp"  # noqa: S108 - an emptyDir of the pod's own; the root file system is read-only

EMPTY_DIRECTORIES = ("cache", "state", "scratch")
"""The volumes on the node: what is in them can be fetched again."""

STARTUP_PERIOD_SECONDS = 2


def build_pod_spec(pool: Pool, settings: Settings, config_hash: str) -> dict[str, Any]:
    """Build the pod spec, before podDefaults and spec.podTemplate are laid over it."""
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": pool.spec.termination_grace_period_seconds,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [_container(pool, settings)],
        "volumes": _volumes(pool, settings, config_hash),
    }


def _container(pool: Pool, settings: Settings) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": settings.runtime_image,
        "imagePullPolicy": settings.runtime_image_pull_policy,
        "command": ["graft-runtime"],
        "args": _arguments(pool, settings),
        "env": [
            {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
            # The node's own memory where the container has no limit.
            {"name": MEMORY_LIMIT, "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1"}}},
            {"name": "HOME", "value": SCRATCH_DIRECTORY},
            {"name": "TMPDIR", "value": SCRATCH_DIRECTORY},
        ],
        "ports": [
            {"name": "http", "containerPort": API_PORT, "protocol": "TCP"},
            {"name": "control", "containerPort": CONTROL_PORT, "protocol": "TCP"},
            {"name": "probes", "containerPort": PROBE_PORT, "protocol": "TCP"},
        ],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        # Why it ended, in its own words: the operator tells them while the container waits to be started again.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        **_probes(pool.spec.startup_timeout_seconds),
        "volumeMounts": _mounts(pool),
    }
    accelerator = pool.spec.accelerator
    if accelerator.count:
        resource = accelerator.resource_name or settings.accelerator_resource
        container["resources"] = {"limits": {resource: str(accelerator.count)}}
    return container


def _arguments(pool: Pool, settings: Settings) -> list[str]:
    """Return the arguments. Each path is one whole argument: a node whose pods are processes rewrites it."""
    bind_address = "$(POD_IP)" if settings.bind_address == "podIP" else "0.0.0.0"  # noqa: S104
    arguments = ["serve", "--config-directory", CONFIG_DIRECTORY, "--adapter-set-directory", ADAPTER_SET_DIRECTORY]
    arguments += ["--keys-directory", KEYS_DIRECTORY, "--cache-directory", CACHE_DIRECTORY]
    arguments += ["--state-directory", STATE_DIRECTORY, "--bind-address", bind_address, "--pod-uid", "$(POD_UID)"]
    if pool.spec.cache.claim_name:
        arguments += ["--shared-cache-directory", SHARED_CACHE_DIRECTORY]
    else:
        arguments += ["--cache-bytes", str(cache_bytes(settings.cache_size))]
    arguments += ["--adapter-bytes", str(quantity_bytes(settings.adapter_size))]
    if pool.spec.api_keys is not None:
        arguments += ["--api-keys-directory", API_KEYS_DIRECTORY]
    for source in _sources(pool):
        if source.mount_path or _is_mounted(source):
            arguments += ["--source-mount", source.name, source.mount_path or _source_directory(source)]
    for network in sorted(settings.allowed_networks):
        arguments += ["--allowed-network", network]
    for host in sorted(settings.allowed_endpoints):
        arguments += ["--allowed-host", host]
    if not settings.page:
        arguments.append("--no-page")
    return arguments


def _probes(startup_timeout_seconds: int) -> dict[str, Any]:
    return {
        "startupProbe": {
            "httpGet": {"path": "/startupz", "port": "probes"},
            "periodSeconds": STARTUP_PERIOD_SECONDS,
            "timeoutSeconds": 2,
            "failureThreshold": -(-startup_timeout_seconds // STARTUP_PERIOD_SECONDS),
        },
        "readinessProbe": {
            "httpGet": {"path": "/readyz", "port": "probes"},
            "periodSeconds": 2,
            "timeoutSeconds": 2,
            "failureThreshold": 3,
        },
        "livenessProbe": {
            "httpGet": {"path": "/livez", "port": "probes"},
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 3,
        },
    }


def _volumes(pool: Pool, settings: Settings, config_hash: str) -> list[dict[str, Any]]:
    return [
        {"name": "config", "configMap": {"name": config_name(pool, config_hash)}},
        # A pod boots without it too, with the last set that it accepted or none.
        {"name": "adapter-set", "configMap": {"name": adapter_set_name(pool, config_hash), "optional": True}},
        {"name": "keys", "configMap": {"name": keys_name(pool)}},
        {"name": "cache", "emptyDir": {"sizeLimit": pool.spec.cache.size or settings.cache_size}},
        *(
            [{"name": "shared-cache", "persistentVolumeClaim": {"claimName": claim}}]
            if (claim := pool.spec.cache.claim_name)
            else []
        ),
        {"name": "state", "emptyDir": {}},
        # Optional: where it is gone, no key opens anything, and the pod runs.
        *(
            [{"name": "api-keys", "secret": {"secretName": keys.secret_name, "optional": True}}]
            if (keys := pool.spec.api_keys) is not None
            else []
        ),
        {"name": "scratch", "emptyDir": {}},
        *(_source_volume(source) for source in _sources(pool) if _is_mounted(source)),
    ]


def _mounts(pool: Pool) -> list[dict[str, Any]]:
    return [
        {"name": "config", "mountPath": CONFIG_DIRECTORY, "readOnly": True},
        {"name": "adapter-set", "mountPath": ADAPTER_SET_DIRECTORY, "readOnly": True},
        {"name": "keys", "mountPath": KEYS_DIRECTORY, "readOnly": True},
        {"name": "cache", "mountPath": CACHE_DIRECTORY},
        *([{"name": "shared-cache", "mountPath": SHARED_CACHE_DIRECTORY}] if pool.spec.cache.claim_name else []),
        {"name": "state", "mountPath": STATE_DIRECTORY},
        {"name": "scratch", "mountPath": SCRATCH_DIRECTORY},
        *(
            [{"name": "api-keys", "mountPath": API_KEYS_DIRECTORY, "readOnly": True}]
            if pool.spec.api_keys is not None
            else []
        ),
        *(
            {"name": mount_name(source), "mountPath": _source_directory(source), "readOnly": True}
            for source in _sources(pool)
            if _is_mounted(source)
        ),
    ]


def _sources(pool: Pool) -> list[SourceSpec]:
    """Return the pool's sources by name, so that their order in the spec rolls nothing."""
    return sorted(pool.spec.sources, key=lambda source: source.name)


def _is_mounted(source: SourceSpec) -> bool:
    """Tell whether Graft itself mounts something for a source: a claim, or the Secret with the source's token."""
    return bool(source.claim_name or source.secret_name)


def _source_volume(source: SourceSpec) -> dict[str, Any]:
    if source.claim_name:
        # Read-only at the mount alone: with it here, the kubelet would not let the pod's fsGroup read the files.
        return {"name": mount_name(source), "persistentVolumeClaim": {"claimName": source.claim_name}}
    # Optional: a pod without it starts, and tells which adapters can't be read.
    secret = {
        "secretName": source.secret_name,
        "items": [{"key": key, "path": key} for key in (SOURCE_TOKEN_FILE, SOURCE_HOSTS_FILE)],
        "optional": True,
    }
    return {"name": mount_name(source), "secret": secret}


def _source_directory(source: SourceSpec) -> str:
    return f"{SOURCES_DIRECTORY}/{source.name}"
