"""The API `graft.dev/v1alpha1`, AdapterDeployment and Adapter: what a user may write, and what we tell back.

    spec     the model of `spec`, with the rules that the CRD carries as CEL; its parts are in
             checkpoint_specs and pod_specs
    texts    the texts and numbers in their fields
    status   the models of `status`
    rules    a rule that is checked in two places: here in Python, in the API server as CEL
    parsing  from JSON to models, with every fault told
    pod_template_fields  what spec.podTemplate may hold
    sources  which declared source a URI lies in

`crd` turns the models into the CustomResourceDefinitions.
"""

from graft_operator.resource.checkpoint_specs import AdapterSource as AdapterSource
from graft_operator.resource.checkpoint_specs import AdapterSpec as AdapterSpec
from graft_operator.resource.checkpoint_specs import AttachedAdapterSpec as AttachedAdapterSpec
from graft_operator.resource.checkpoint_specs import SourceSpec as SourceSpec
from graft_operator.resource.parsing import ATTACHED_NAME_RULES as ATTACHED_NAME_RULES
from graft_operator.resource.parsing import NAME_RULES as NAME_RULES
from graft_operator.resource.parsing import parse_attached as parse_attached
from graft_operator.resource.parsing import parse_manifest as parse_manifest
from graft_operator.resource.parsing import parse_spec as parse_spec
from graft_operator.resource.pod_specs import CacheSpec as CacheSpec
from graft_operator.resource.pod_specs import EngineSpec as EngineSpec
from graft_operator.resource.pod_template_fields import faults_beyond as faults_beyond
from graft_operator.resource.sources import find_source as find_source
from graft_operator.resource.sources import is_declared as is_declared
from graft_operator.resource.sources import mount_name as mount_name
from graft_operator.resource.sources import source_not_declared as source_not_declared
from graft_operator.resource.spec import MAX_ADAPTERS as MAX_ADAPTERS
from graft_operator.resource.spec import MAX_ATTACHED as MAX_ATTACHED
from graft_operator.resource.spec import AdapterDeploymentSpec as AdapterDeploymentSpec
from graft_operator.resource.status import MAX_HISTORY as MAX_HISTORY
from graft_operator.resource.status import AdapterCounts as AdapterCounts
from graft_operator.resource.status import AdapterDeploymentStatus as AdapterDeploymentStatus
from graft_operator.resource.status import AdapterSetStatus as AdapterSetStatus
from graft_operator.resource.status import AdapterStatus as AdapterStatus
from graft_operator.resource.status import AttachedAdapterStatus as AttachedAdapterStatus
from graft_operator.resource.status import BaseModelStatus as BaseModelStatus
from graft_operator.resource.status import Condition as Condition
from graft_operator.resource.status import EarlierVersion as EarlierVersion
from graft_operator.resource.status import MergedAdapterStatus as MergedAdapterStatus
from graft_operator.resource.status import MergeStatus as MergeStatus
from graft_operator.resource.texts import interval_seconds as interval_seconds
