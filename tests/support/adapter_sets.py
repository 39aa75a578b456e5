"""Entries and adapter sets as the operator gives them to pods."""

from __future__ import annotations

from graft_runtime.contract.adapter_set import AdapterEntry, AdapterSet
from graft_runtime.contract.checkpoints import Source


def entry_of(name: object, **fields: object) -> AdapterEntry:
    """Make the entry of an adapter on the claim `shelf`, under its name there."""
    return AdapterEntry.model_validate({"name": name, "source": Source(uri=f"pvc://shelf/{name}"), **fields})


def set_of(generation: int, *entries: AdapterEntry, **fields: str) -> AdapterSet:
    """Make an adapter set of the pool `pool`."""
    return AdapterSet(**{"pool_uid": "pool", "config_hash": "hash", **fields}, generation=generation, adapters=entries)
