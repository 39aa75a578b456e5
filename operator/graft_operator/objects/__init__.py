"""Pure builders: a pool in, one Kubernetes object out as the API server takes it; None means that it must not exist.

pool               the pool, and what its objects are called and labelled
config_maps        RuntimeConfig, adapter set and public keys
deployment         the pods
pod_template       spec.podTemplate laid over the pod
service, disruption_budget, network_policy
event, status_body  what is said of an object
"""

from graft_operator.objects.config_maps import (
    build_adapter_set_config_map,
    build_config_map,
    build_keys_config_map,
    build_runtime_config,
    read_adapter_set,
)
from graft_operator.objects.deployment import build_deployment
from graft_operator.objects.disruption_budget import build_disruption_budget
from graft_operator.objects.event import build_event
from graft_operator.objects.network_policy import build_network_policy
from graft_operator.objects.pod_template import overlay
from graft_operator.objects.pool import (
    CONFIG_HASH_LABEL,
    TEMPLATE_HASH_ANNOTATION,
    KubernetesObject,
    Pool,
    adapter_set_name,
    config_name,
    keys_name,
    labels_of,
    owner_reference,
    selector_of,
)
from graft_operator.objects.service import build_service, url_of
from graft_operator.objects.status_body import build_status_body

__all__ = [
    "CONFIG_HASH_LABEL",
    "TEMPLATE_HASH_ANNOTATION",
    "KubernetesObject",
    "Pool",
    "adapter_set_name",
    "build_adapter_set_config_map",
    "build_config_map",
    "build_deployment",
    "build_disruption_budget",
    "build_event",
    "build_keys_config_map",
    "build_network_policy",
    "build_runtime_config",
    "build_service",
    "build_status_body",
    "config_name",
    "keys_name",
    "labels_of",
    "overlay",
    "owner_reference",
    "read_adapter_set",
    "selector_of",
    "url_of",
]
