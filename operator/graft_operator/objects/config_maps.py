"""The ConfigMaps that pods mount: their RuntimeConfig, the adapter set, the public keys of the control port."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from graft_runtime.contract.adapter_set import ADAPTER_SET_FILE, AdapterSet
from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.config import (
    RUNTIME_CONFIG_FILE,
    BaseModelConfig,
    EngineConfig,
    Merge,
    MergePart,
    RuntimeConfig,
    SourceMount,
)
from graft_runtime.contract.control import PUBLIC_KEY_SUFFIX
from graft_runtime.errors import GraftError

from graft_operator.kinds import CONFIG_MAP
from graft_operator.objects.pool import (
    CONFIG_HASH_LABEL,
    KubernetesObject,
    Pool,
    adapter_set_name,
    config_name,
    keys_name,
    metadata_of,
)
from graft_operator.quantities import quantity_bytes
from graft_operator.resource import MAX_ADAPTERS, MAX_ATTACHED, AdapterDeploymentSpec, SourceSpec

MAX_SET_ADAPTERS = MAX_ADAPTERS + MAX_ATTACHED
"""Of a set that is read: what a spec may list, and what may be attached beside it."""
# Of a pod's grace period, the seconds that streams and processes get to end after the drain.
SECONDS_TO_END = 10


def build_runtime_config(pool: Pool) -> RuntimeConfig:
    """Build the RuntimeConfig of the pool's pods. Its hash changes with nothing but its fields."""
    spec = pool.spec
    return RuntimeConfig(
        pool_uid=pool.uid,
        base_model=BaseModelConfig(
            name=spec.base_model.served_name,
            source=Source(uri=spec.base_model.uri, revision=spec.base_model.revision),
            digest=spec.base_model.digest,
            dtype=spec.base_model.dtype,
            task=spec.base_model.task,
            quantization=spec.base_model.quantization,
            in_place=spec.base_model.in_place,
        ),
        engine=EngineConfig(**spec.engine.model_dump()),
        sources=tuple(_source_mount(source) for source in sorted(spec.sources, key=lambda source: source.name)),
        adapter_startup_seconds=spec.adapter_startup_seconds,
        drain_seconds=spec.termination_grace_period_seconds - SECONDS_TO_END,
        cache_bytes=cache_bytes(spec.cache.size) if spec.cache.size else None,
        adapter_bytes=quantity_bytes(spec.cache.adapter_size) if spec.cache.adapter_size else None,
        merge=_merge(spec),
        composition=spec.composition,
        allowed_origins=spec.allowed_origins,
    )


def build_config_map(pool: Pool, config: RuntimeConfig) -> KubernetesObject:
    """Build the ConfigMap of the RuntimeConfig as pods mount it; named after its hash, so it never changes."""
    config_hash = config.config_hash()
    return {
        **_config_map(pool, config_name(pool, config_hash), config_hash),
        "data": {RUNTIME_CONFIG_FILE: config.canonical_json().decode()},
    }


def build_adapter_set_config_map(pool: Pool, adapter_set: AdapterSet) -> KubernetesObject:
    """Build the ConfigMap with the adapter set of the pods of `adapter_set.config_hash`."""
    return {
        **_config_map(pool, adapter_set_name(pool, adapter_set.config_hash), adapter_set.config_hash),
        "binaryData": {ADAPTER_SET_FILE: base64.b64encode(adapter_set.to_gzip()).decode()},
    }


def read_adapter_set(config_map: Mapping[str, Any]) -> AdapterSet | None:
    """Return the adapter set in a ConfigMap; None where there is none, or none that the operator could have written."""
    content = (config_map.get("binaryData") or {}).get(ADAPTER_SET_FILE)
    return _unpacked(content) if isinstance(content, str) else None


@lru_cache(maxsize=16)
def _unpacked(content: str) -> AdapterSet | None:
    """Unpack a set. A pass asks several times for the same; kept with each ConfigMap, sets could fill the memory."""
    try:
        found = AdapterSet.from_gzip(base64.b64decode(content, validate=True))
    except (GraftError, ValueError, OSError, EOFError):
        return None
    return found if len(found.adapters) <= MAX_SET_ADAPTERS else None


def build_keys_config_map(pool: Pool, keys: Mapping[str, str]) -> KubernetesObject:
    """Build the ConfigMap with the public keys that the control port trusts: key id → SubjectPublicKeyInfo in PEM."""
    return {
        **CONFIG_MAP.type_meta,
        "metadata": metadata_of(pool, keys_name(pool)),
        "data": {f"{key_id}{PUBLIC_KEY_SUFFIX}": pem for key_id, pem in sorted(keys.items())},
    }


def _config_map(pool: Pool, name: str, config_hash: str) -> KubernetesObject:
    metadata = metadata_of(pool, name)
    metadata["labels"] = {**metadata["labels"], CONFIG_HASH_LABEL: config_hash}
    return {**CONFIG_MAP.type_meta, "metadata": metadata}


def _merge(spec: AdapterDeploymentSpec) -> Merge | None:
    """Return all that the spec says of the merge, so that a change of any of it rolls the pods."""
    if spec.merge is None:
        return None
    adapters = {adapter.name: adapter for adapter in spec.adapters}
    parts = [(part, adapters[part.name]) for part in spec.merge.adapters]
    return Merge(
        name=spec.merge.name,
        adapters=tuple(
            MergePart(
                name=part.name,
                source=Source(uri=adapter.uri, revision=adapter.revision),
                digest=adapter.digest,
                weight=part.weight * adapter.scale,
            )
            for part, adapter in parts
        ),
    )


def _source_mount(source: SourceSpec) -> SourceMount:
    prefixes = () if source.kind == "claim" else source.prefixes  # those of a claim follow from its name
    return SourceMount(name=source.name, kind=source.kind, uri_prefixes=prefixes, endpoint=source.endpoint)


def cache_bytes(size: str) -> int:
    """Return what the runtime may fill of a volume of this size."""
    # The kubelet evicts a pod whose emptyDir grows over its limit; directories and partial files need room as well.
    return max(1, quantity_bytes(size) * 19 // 20)
