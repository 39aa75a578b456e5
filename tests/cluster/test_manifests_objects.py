"""What the builders make, against the API server: taken with strict fields, stable on a second apply, restricted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from graft_local.cluster import LocalCluster
from graft_operator import objects
from graft_operator.objects import Pool
from graft_operator.resource import parse_spec
from graft_operator.settings import PodDefaults, Settings
from graft_runtime.contract.adapter_set import AdapterEntry, AdapterSet
from graft_runtime.contract.checkpoints import Source

pytestmark = pytest.mark.cluster

VALUES = yaml.safe_load((Path(__file__).parents[2] / "charts/graft/values.yaml").read_text())
SETTINGS = Settings(
    namespace="graft-system",
    runtime_image="graft-runtime:0.1.0",
    pod_defaults=PodDefaults(spec=VALUES["podDefaults"]["spec"]),
)
CLAIM = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "20Gi"}}}
SPEC = parse_spec(
    {
        "baseModel": {"uri": "pvc://models/gemma"},
        "sources": [
            {"name": "models", "claimName": "models"},
            {"name": "shelf", "mountPath": "/mnt/shelf"},
            {"name": "artefact", "mountPath": "/mnt/artefact"},
        ],
        "cache": {"size": "20Gi"},
        "podTemplate": {
            "metadata": {"labels": {"team": "a"}, "annotations": {"note": "x"}},
            "spec": {
                "nodeSelector": {"zone": "a"},
                "tolerations": [{"key": "gpu", "operator": "Exists"}],
                "containers": [
                    {
                        "name": "runtime",
                        "resources": {"limits": {"memory": "4Gi"}},
                        "env": [{"name": "TMPDIR", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                        "volumeMounts": [
                            {"name": "shelf", "mountPath": "/mnt/shelf"},
                            {"name": "artefact", "mountPath": "/mnt/artefact"},
                        ],
                    }
                ],
                "volumes": [
                    {"name": "shelf", "persistentVolumeClaim": {"claimName": "shelf"}},
                    {"name": "artefact", "image": {"reference": "registry.example/model:1", "pullPolicy": "Always"}},
                    {"name": "cache", "ephemeral": {"volumeClaimTemplate": {"spec": CLAIM}}},
                ],
            },
        },
    }
)
ENTRY = AdapterEntry(name="billing", source=Source(uri="pvc://models/billing"))
SET = AdapterSet(pool_uid="1", config_hash="abc", generation=1, adapters=(ENTRY,))


def built(namespace: str) -> list[dict[str, Any]]:
    pool = Pool(namespace, "support", "11111111-2222-3333-4444-555555555555", 1, SPEC)
    budget = objects.build_disruption_budget(pool)
    assert budget is not None
    config = objects.build_runtime_config(pool)
    return [
        objects.build_deployment(pool, config.config_hash(), SETTINGS),
        objects.build_service(pool),
        objects.build_config_map(pool, config),
        objects.build_adapter_set_config_map(pool, SET),
        objects.build_keys_config_map(pool, {"0123456789abcdef": "-----BEGIN PUBLIC KEY-----\n"}),
        budget,
        objects.build_network_policy(pool, SETTINGS),
    ]


def test_objects_are_taken_and_a_second_apply_changes_nothing(local_cluster: LocalCluster, namespace: str) -> None:
    # The owner doesn't exist here; without it the garbage collector would take the objects away.
    documents = [
        {**document, "metadata": {**document["metadata"], "ownerReferences": []}} for document in built(namespace)
    ]
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": documents})
    versions = []
    for _ in range(2):
        applied = local_cluster.kubectl(
            "apply", "--server-side", "--field-manager=graft", "--validate=strict", "-o", "json", "-f", "-", input=text
        )
        versions.append(
            {
                (item["kind"], item["metadata"]["name"]): item["metadata"].get("generation", 1)
                for item in json.loads(applied)["items"]
            }
        )
    assert versions[0] == versions[1]
    assert len(versions[0]) == len(documents)


def test_owner_references_are_taken(local_cluster: LocalCluster, namespace: str) -> None:
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": built(namespace)})
    shown = local_cluster.kubectl("apply", "--server-side", "--dry-run=server", "-o", "name", "-f", "-", input=text)
    assert len(shown.split()) == len(built(namespace))


def test_the_pod_is_taken_where_only_restricted_ones_are(local_cluster: LocalCluster, namespace: str) -> None:
    local_cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    template = built(namespace)[0]["spec"]["template"]
    pod = {"apiVersion": "v1", "kind": "Pod", **template, "metadata": {**template["metadata"], "name": "support-0"}}
    local_cluster.kubectl(
        "--namespace", namespace, "apply", "--dry-run=server", "--validate=strict", "-f", "-", input=json.dumps(pod)
    )
