"""The Deployment and the overlay of spec.podTemplate."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from graft_operator.objects import KubernetesObject, Pool, build_deployment, build_runtime_config, overlay
from graft_operator.settings import PodDefaults, Settings
from graft_runtime.errors import ErrorCode, GraftError

from tests.support.pools import make_pool

SETTINGS = Settings(namespace="graft-system", runtime_image="graft-runtime:0.1.0")


def pool(**fields: Any) -> Pool:
    sources = [{"name": "models", "claimName": "claim"}, {"name": "shelf", "mountPath": "/mnt/shelf"}]
    return make_pool(**{"sources": sources, "adapters": [], **fields})


def build(pool: Pool, settings: Settings) -> KubernetesObject:
    return build_deployment(pool, build_runtime_config(pool).config_hash(), settings)


def pod(settings: Settings = SETTINGS, **fields: Any) -> dict[str, Any]:
    built: dict[str, Any] = build(pool(**fields), settings)["spec"]["template"]["spec"]
    return built


EXPECTED_CONTAINER = """\
name: runtime
image: graft-runtime:0.1.0
imagePullPolicy: IfNotPresent
command: [graft-runtime]
args: [serve, --config-directory, /graft/config, --adapter-set-directory, /graft/adapter-set, --keys-directory,
  /graft/keys, --cache-directory, /graft/cache, --state-directory, /graft/state, --bind-address, 0.0.0.0, --pod-uid,
  $(POD_UID), --cache-bytes, "102005473280", --adapter-bytes, "4294967296",
  --source-mount, models, /graft/sources/models, --source-mount, shelf, /mnt/shelf]
env:
- {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
- {name: POD_UID, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}
- {name: GRAFT_MEMORY_LIMIT, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: "1"}}}
- {name: HOME, value: /tmp}
- {name: TMPDIR, value: /tmp}
ports:
- {name: http, containerPort: 8000, protocol: TCP}
- {name: control, containerPort: 8001, protocol: TCP}
- {name: probes, containerPort: 8002, protocol: TCP}
securityContext:
  allowPrivilegeEscalation: false
  capabilities: {drop: [ALL]}
  readOnlyRootFilesystem: true
startupProbe: {httpGet: {path: /startupz, port: probes}, periodSeconds: 2, timeoutSeconds: 2, failureThreshold: 900}
readinessProbe: {httpGet: {path: /readyz, port: probes}, periodSeconds: 2, timeoutSeconds: 2, failureThreshold: 3}
livenessProbe: {httpGet: {path: /livez, port: probes}, periodSeconds: 10, timeoutSeconds: 5, failureThreshold: 3}
terminationMessagePolicy: FallbackToLogsOnError
volumeMounts:
- {name: config, mountPath: /graft/config, readOnly: true}
- {name: adapter-set, mountPath: /graft/adapter-set, readOnly: true}
- {name: keys, mountPath: /graft/keys, readOnly: true}
- {name: cache, mountPath: /graft/cache}
- {name: state, mountPath: /graft/state}
- {name: scratch, mountPath: /tmp}
- {name: source-models, mountPath: /graft/sources/models, readOnly: true}
resources: {limits: {nvidia.com/gpu: "1"}}
"""


def test_the_container_speaks_the_runtime_s_command_line() -> None:
    (container,) = pod()["containers"]
    assert container == yaml.safe_load(EXPECTED_CONTAINER)


def test_a_cache_that_pods_share_is_a_claim_beside_their_own() -> None:
    built = pod(cache={"claimName": "shared"})
    (container,) = built["containers"]
    assert {"name": "shared-cache", "persistentVolumeClaim": {"claimName": "shared"}} in built["volumes"]
    assert {"name": "shared-cache", "mountPath": "/graft/shared-cache"} in container["volumeMounts"]
    assert "--cache-bytes" not in container["args"], "it may hold what the claim has room for"
    asked = container["args"].index("--shared-cache-directory")
    assert container["args"][asked + 1] == "/graft/shared-cache"


def test_the_pod_mounts_what_it_is_told_and_nothing_of_the_api() -> None:
    config_hash = build_runtime_config(pool()).config_hash()
    built = pod(cache={"size": "20Gi"})
    hash_with_cache = build_runtime_config(pool(cache={"size": "20Gi"})).config_hash()
    assert hash_with_cache != config_hash
    assert built["automountServiceAccountToken"] is False
    assert built["terminationGracePeriodSeconds"] == 120
    assert built["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert built["volumes"] == [
        {"name": "config", "configMap": {"name": f"support-config-{hash_with_cache}"}},
        {"name": "adapter-set", "configMap": {"name": f"support-set-{hash_with_cache}", "optional": True}},
        {"name": "keys", "configMap": {"name": "support-keys"}},
        {"name": "cache", "emptyDir": {"sizeLimit": "20Gi"}},
        {"name": "state", "emptyDir": {}},
        {"name": "scratch", "emptyDir": {}},
        {"name": "source-models", "persistentVolumeClaim": {"claimName": "claim"}},
    ]
    (mounted,) = [mount for mount in built["containers"][0]["volumeMounts"] if mount["name"] == "source-models"]
    assert mounted["readOnly"] is True, "there, and not at the volume: the kubelet gives the files to the fsGroup"


def test_the_deployment_rolls_as_the_spec_says() -> None:
    built = build(pool(replicas=3, strategy={"maxSurge": 0, "maxUnavailable": 2}), SETTINGS)
    assert built["metadata"]["name"] == "support"
    assert built["spec"]["replicas"] == 3
    assert built["spec"]["selector"] == {"matchLabels": {"graft.dev/deployment": "support"}}
    assert built["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 2}
    assert built["spec"]["progressDeadlineSeconds"] == 1800 + 300 + 600


@pytest.mark.parametrize(("seconds", "threshold"), [(10, 5), (11, 6), (1800, 900)])
def test_the_startup_probe_waits_at_least_as_long_as_the_spec_says(seconds: int, threshold: int) -> None:
    (container,) = pod(startupTimeoutSeconds=seconds)["containers"]
    assert container["startupProbe"]["failureThreshold"] == threshold


def test_without_a_device_there_is_no_limit() -> None:
    (container,) = pod(accelerator={"count": 0})["containers"]
    assert "resources" not in container


def test_the_device_is_what_the_spec_or_else_the_administrator_says() -> None:
    settings = Settings(namespace="graft-system", runtime_image="i", accelerator_resource="amd.com/gpu")
    (container,) = pod(settings)["containers"]
    assert container["resources"] == {"limits": {"amd.com/gpu": "1"}}
    (container,) = pod(settings, accelerator={"resourceName": "intel.com/gpu"})["containers"]
    assert container["resources"] == {"limits": {"intel.com/gpu": "1"}}


def test_autoscalers_may_evict_a_pod_whose_volumes_are_ours() -> None:
    name = "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes"
    template = build(pool(), SETTINGS)["spec"]["template"]
    local = [volume["name"] for volume in template["spec"]["volumes"] if "emptyDir" in volume]
    assert template["metadata"]["annotations"][name].split(",") == local
    own = pool(podTemplate={"metadata": {"annotations": {name: "cache"}}})
    assert build(own, SETTINGS)["spec"]["template"]["metadata"]["annotations"][name] == "cache"


def test_the_administrator_s_defaults_lie_between_the_pod_and_the_user_s_template() -> None:
    runtime = {"name": "runtime", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}}}
    defaults = PodDefaults(
        labels={"team": "a", "cost": "x"},
        annotations={"scrape": "yes", "note": "a"},
        spec={"securityContext": {"fsGroup": 65532}, "containers": [runtime], "runtimeClassName": "nvidia"},
    )
    mine = {
        "metadata": {"labels": {"team": "b"}, "annotations": {"note": "b"}},
        "spec": {"containers": [{"name": "runtime", "resources": {"requests": {"memory": "8Gi"}}}]},
    }
    settings = Settings(namespace="graft-system", runtime_image="i", pod_defaults=defaults)
    template = build(pool(podTemplate=mine), settings)["spec"]["template"]
    (container,) = template["spec"]["containers"]
    assert container["resources"] == {"limits": {"nvidia.com/gpu": "1"}, "requests": {"cpu": "1", "memory": "8Gi"}}
    assert template["spec"]["securityContext"]["fsGroup"] == 65532
    assert template["spec"]["securityContext"]["runAsNonRoot"] is True
    assert template["spec"]["runtimeClassName"] == "nvidia"
    metadata = template["metadata"]
    assert {name: metadata["labels"][name] for name in ("team", "cost")} == {"team": "b", "cost": "x"}
    assert {name: metadata["annotations"][name] for name in ("scrape", "note")} == {"scrape": "yes", "note": "b"}


def test_defaults_that_can_t_be_laid_over_are_told_as_the_administrator_s() -> None:
    defaults = PodDefaults(spec={"containers": [{"name": "runtime", "args": ["x"]}]})
    with pytest.raises(GraftError) as caught:
        pod(Settings(namespace="graft-system", runtime_image="i", pod_defaults=defaults))
    assert caught.value.code is ErrorCode.INVALID_POD_TEMPLATE
    assert caught.value.field == "podDefaults.spec.containers.args"


def test_pods_may_listen_on_their_own_address_alone() -> None:
    settings = Settings(namespace="graft-system", runtime_image="i", bind_address="podIP")
    (container,) = pod(settings)["containers"]
    arguments = container["args"]
    assert arguments[arguments.index("--bind-address") + 1] == "$(POD_IP)"


def labels(**fields: Any) -> dict[str, Any]:
    found: dict[str, Any] = build(pool(**fields), SETTINGS)["spec"]["template"]["metadata"]["labels"]
    return found


def test_pods_bear_the_config_hash_and_the_user_s_labels() -> None:
    found = labels(podTemplate={"metadata": {"labels": {"team": "a", "app.kubernetes.io/name": "mine"}}})
    assert found["graft.dev/config-hash"] == build_runtime_config(pool()).config_hash()
    assert found["graft.dev/deployment"] == "support"
    assert found["app.kubernetes.io/name"] == "mine"
    assert found["team"] == "a"


def template_hash(**fields: Any) -> str:
    annotations = build(pool(**fields), SETTINGS)["metadata"]["annotations"]
    return str(annotations["graft.dev/template-hash"])


def test_the_template_hash_follows_the_desired_object() -> None:
    assert template_hash() == template_hash()
    assert template_hash() == template_hash(adapters=[{"name": "sql", "uri": "pvc://models/sql"}])
    assert template_hash() != template_hash(replicas=2)
    assert template_hash() != template_hash(engine={"maxRank": 8})


OVERLAYS = [
    pytest.param({"nodeSelector": {"zone": "a"}}, "nodeSelector", {"zone": "a"}, id="new-map"),
    pytest.param(
        {"securityContext": {"fsGroup": 1}},
        "securityContext",
        {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}, "fsGroup": 1},
        id="maps-merge",
    ),
    pytest.param(
        {"tolerations": [{"key": "gpu", "operator": "Exists"}]},
        "tolerations",
        [{"key": "gpu", "operator": "Exists"}],
        id="lists-replace",
    ),
]


@pytest.mark.parametrize(("patch", "field", "expected"), OVERLAYS)
def test_the_pod_template_is_laid_over_the_pod(patch: dict[str, Any], field: str, expected: Any) -> None:
    assert pod(podTemplate={"spec": patch})[field] == expected


def test_containers_merge_by_name_and_their_lists_by_their_keys() -> None:
    sidecar = {"name": "log", "image": "log:1"}
    runtime = {
        "name": "runtime",
        "resources": {"limits": {"memory": "4Gi"}},
        "env": [{"name": "HTTPS_PROXY", "value": "http://proxy"}, {"name": "HOME", "value": "/home"}],
        "volumeMounts": [{"name": "shelf", "mountPath": "/mnt/shelf"}],
    }
    shelf = {"name": "shelf", "hostPath": {"path": "/srv"}}
    built = pod(podTemplate={"spec": {"containers": [sidecar, runtime], "volumes": [shelf]}})
    container, added = built["containers"]
    assert added == sidecar
    assert container["image"] == "graft-runtime:0.1.0"
    assert container["resources"] == {"limits": {"nvidia.com/gpu": "1", "memory": "4Gi"}}
    assert {entry["name"]: entry.get("value") for entry in container["env"]} == {
        "POD_IP": None,
        "POD_UID": None,
        "GRAFT_MEMORY_LIMIT": None,
        "HOME": "/home",
        "TMPDIR": "/tmp",
        "HTTPS_PROXY": "http://proxy",
    }
    assert container["volumeMounts"][-1] == {"name": "shelf", "mountPath": "/mnt/shelf"}
    assert built["volumes"][-1] == shelf


def test_a_volume_of_ours_takes_another_source_whole() -> None:
    patch = {"volumes": [{"name": "cache", "hostPath": {"path": "/var/cache/graft"}}]}
    built = pod(podTemplate={"spec": patch}, cache={"size": "1Gi"})
    assert {"name": "cache", "hostPath": {"path": "/var/cache/graft"}} in built["volumes"]


@pytest.mark.parametrize(
    ("patch", "told"),
    [
        ({"$patch": "replace"}, "holds `$patch`"),
        ({"containers": [{"name": "runtime", "$patch": "delete"}]}, "spec.podTemplate.spec.containers holds `$patch`"),
        ({"tolerations": [{"$patch": "replace"}]}, "spec.podTemplate.spec.tolerations holds `$patch`"),
        ({"nodeSelector": None}, "spec.podTemplate.spec.nodeSelector is null"),
        ({"containers": [{"image": "x"}]}, "spec.podTemplate.spec.containers has an entry without `name`"),
        ({"containers": ["runtime"]}, "spec.podTemplate.spec.containers has an entry without `name`"),
        ({"containers": [{"name": "a"}, {"name": "a"}]}, "two entries with name `a`"),
        ({"containers": {"runtime": {}}}, "spec.podTemplate.spec.containers is a map, expected a list"),
        ({"securityContext": []}, "spec.podTemplate.spec.securityContext is a list, expected a map"),
        ({"securityContext": "none"}, "spec.podTemplate.spec.securityContext is 'none', expected a map"),
        ({"automountServiceAccountToken": {}}, "is a map, expected a single value"),
        ({"containers": [{"name": "runtime", "args": ["x"]}]}, "spec.podTemplate.spec.containers.args is set"),
        ({"containers": [{"name": "runtime", "command": ["x"]}]}, "spec.podTemplate.spec.containers.command is set"),
        ({"securityContext": {"runAsGroup": 1}}, "securityContext.runAsGroup is set without runAsUser"),
        ({"terminationGracePeriodSeconds": 5}, "use spec.terminationGracePeriodSeconds"),
    ],
    ids=str,
)
def test_a_pod_template_that_can_t_be_laid_over_is_refused(patch: dict[str, Any], told: str) -> None:
    with pytest.raises(GraftError) as caught:
        pod(podTemplate={"spec": patch})
    assert caught.value.code is ErrorCode.INVALID_POD_TEMPLATE
    assert told in caught.value.what
    assert caught.value.hint


def test_the_overlay_leaves_its_inputs_alone() -> None:
    base = {"containers": [{"name": "runtime", "env": [{"name": "A", "value": "1"}]}]}
    patch = {"containers": [{"name": "runtime", "env": [{"name": "B", "value": "2"}]}]}
    merged = overlay(base, patch)
    assert [entry["name"] for entry in merged["containers"][0]["env"]] == ["A", "B"]
    assert base == {"containers": [{"name": "runtime", "env": [{"name": "A", "value": "1"}]}]}
    assert patch == {"containers": [{"name": "runtime", "env": [{"name": "B", "value": "2"}]}]}
