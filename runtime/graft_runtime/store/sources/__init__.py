"""The sources of a pool: one module for each way to read one, and the table of them by scheme (`declared`)."""

from graft_runtime.store.sources.declared import Sources
from graft_runtime.store.sources.directory import Directory

__all__ = ["Directory", "Sources"]
