"""The variables of a pod's container."""

from __future__ import annotations

MEMORY_LIMIT = "GRAFT_MEMORY_LIMIT"
"""Bytes that the container may take, as the downward API writes them; the node's where it has no limit."""
