"""The Deployment: pods that run `graft-runtime serve`. The API server rolls them behind their readiness."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from graft_operator.kinds import DEPLOYMENT
from graft_operator.objects.pod import EMPTY_DIRECTORIES, build_pod_spec
from graft_operator.objects.pod_template import POD_DEFAULTS, overlay
from graft_operator.objects.pool import (
    CONFIG_HASH_LABEL,
    TEMPLATE_HASH_ANNOTATION,
    KubernetesObject,
    Pool,
    labels_of,
    metadata_of,
    selector_of,
)
from graft_operator.settings import Settings

# What scheduling and pulling the image may take, on top of loading, before a roll counts as stuck.
SECONDS_TO_SCHEDULE = 600
EVICTABLE_ANNOTATION = "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes"
"""Names the volumes on the node that an autoscaler may lose with a pod: what is in ours can be fetched again."""


def build_deployment(pool: Pool, config_hash: str, settings: Settings) -> KubernetesObject:
    """Build the Deployment of the pods, with podDefaults and spec.podTemplate laid over them.

    Args:
        config_hash: of the RuntimeConfig that they mount.

    Raises:
        GraftError: InvalidPodTemplate where one of both can't be laid over the pod.
    """
    spec = pool.spec
    deployment: KubernetesObject = {
        **DEPLOYMENT.type_meta,
        "metadata": metadata_of(pool, pool.name),
        "spec": {
            "replicas": spec.replicas,
            "revisionHistoryLimit": 3,
            "progressDeadlineSeconds": (
                spec.startup_timeout_seconds + spec.adapter_startup_seconds + SECONDS_TO_SCHEDULE
            ),
            "selector": {"matchLabels": selector_of(pool)},
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {
                    "maxSurge": spec.strategy.max_surge,
                    "maxUnavailable": spec.strategy.max_unavailable,
                },
            },
            "template": _pod_template(pool, config_hash, settings),
        },
    }
    deployment["metadata"]["annotations"] = {TEMPLATE_HASH_ANNOTATION: _hash_of(deployment)}
    return deployment


def _pod_template(pool: Pool, config_hash: str, settings: Settings) -> dict[str, Any]:
    extra, defaults = pool.spec.pod_template, settings.pod_defaults
    spec = overlay(build_pod_spec(pool, settings, config_hash), defaults.spec, POD_DEFAULTS)
    metadata: dict[str, Any] = {
        "labels": {
            **labels_of(pool),
            **defaults.labels,
            **extra.metadata.labels,
            **selector_of(pool),
            CONFIG_HASH_LABEL: config_hash,
        },
        "annotations": {
            EVICTABLE_ANNOTATION: ",".join(EMPTY_DIRECTORIES),
            **defaults.annotations,
            **extra.metadata.annotations,
        },
    }
    template = {"metadata": metadata, "spec": overlay(spec, extra.spec)}
    # Each pod bears it, and so tells which template it was made from: the same RuntimeConfig may be in several.
    metadata["annotations"][TEMPLATE_HASH_ANNOTATION] = _hash_of(template)
    return template


def _hash_of(desired: Mapping[str, Any]) -> str:
    """Return ten hex digits of the sha256 of the object as we want it, not as the API server completes it."""
    return hashlib.sha256(json.dumps(desired, sort_keys=True).encode()).hexdigest()[:10]
