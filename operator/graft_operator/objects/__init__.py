"""Pure builders: a pool in, one Kubernetes object out as the API server takes it; None means that it must not exist.

pool               the pool, and what its objects are called and labelled
config_maps        RuntimeConfig, adapter set and public keys
deployment         the pods
pod_template       spec.podTemplate laid over the pod
service, disruption_budget, network_policy
event, status_body  what is said of an object
lease              which operator leads
"""

from graft_operator.objects.config_maps import build_adapter_set_config_map as build_adapter_set_config_map
from graft_operator.objects.config_maps import build_config_map as build_config_map
from graft_operator.objects.config_maps import build_keys_config_map as build_keys_config_map
from graft_operator.objects.config_maps import build_runtime_config as build_runtime_config
from graft_operator.objects.config_maps import read_adapter_set as read_adapter_set
from graft_operator.objects.deployment import build_deployment as build_deployment
from graft_operator.objects.disruption_budget import build_disruption_budget as build_disruption_budget
from graft_operator.objects.event import build_event as build_event
from graft_operator.objects.lease import build_lease as build_lease
from graft_operator.objects.network_policy import build_network_policy as build_network_policy
from graft_operator.objects.pod_template import overlay as overlay
from graft_operator.objects.pool import CONFIG_HASH_LABEL as CONFIG_HASH_LABEL
from graft_operator.objects.pool import TEMPLATE_HASH_ANNOTATION as TEMPLATE_HASH_ANNOTATION
from graft_operator.objects.pool import KubernetesObject as KubernetesObject
from graft_operator.objects.pool import Pool as Pool
from graft_operator.objects.pool import selector_of as selector_of
from graft_operator.objects.service import build_service as build_service
from graft_operator.objects.service import url_of as url_of
from graft_operator.objects.status_body import build_status_body as build_status_body
