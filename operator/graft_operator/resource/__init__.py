"""The API `graft.dev/v1alpha1`: what a user may write, and what we tell back.

    spec     the models of `spec`, with the rules that the CRD carries as CEL
    texts    the texts and numbers in their fields
    status   the models of `status`
    rules    a rule that is checked in two places: here in Python, in the API server as CEL
    parsing  from JSON to models, with every fault told
    sources  which declared source a URI lies in

`crd` turns the models into the CustomResourceDefinition.
"""

from graft_operator.resource.parsing import NAME_RULES, parse_manifest, parse_spec
from graft_operator.resource.rules import Rule
from graft_operator.resource.sources import find_source, is_declared, mount_name, source_not_declared
from graft_operator.resource.spec import (
    AcceleratorSpec,
    AdapterDeploymentSpec,
    AdapterSpec,
    BaseModelSpec,
    CacheSpec,
    EngineSpec,
    MergePartSpec,
    MergeSpec,
    PodTemplateMetadata,
    PodTemplateSpec,
    SourceSpec,
    StrategySpec,
)
from graft_operator.resource.status import (
    AdapterCounts,
    AdapterDeploymentStatus,
    AdapterSetStatus,
    AdapterStatus,
    BaseModelStatus,
    Condition,
    ConditionStatus,
    MergedAdapterStatus,
    MergeStatus,
)

__all__ = [
    "NAME_RULES",
    "AcceleratorSpec",
    "AdapterCounts",
    "AdapterDeploymentSpec",
    "AdapterDeploymentStatus",
    "AdapterSetStatus",
    "AdapterSpec",
    "AdapterStatus",
    "BaseModelSpec",
    "BaseModelStatus",
    "CacheSpec",
    "Condition",
    "ConditionStatus",
    "EngineSpec",
    "MergePartSpec",
    "MergeSpec",
    "MergeStatus",
    "MergedAdapterStatus",
    "PodTemplateMetadata",
    "PodTemplateSpec",
    "Rule",
    "SourceSpec",
    "StrategySpec",
    "find_source",
    "is_declared",
    "mount_name",
    "parse_manifest",
    "parse_spec",
    "source_not_declared",
]
