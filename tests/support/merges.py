"""What an engine is told to merge."""

from __future__ import annotations

from pathlib import Path

from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.config import MergePart
from graft_runtime.messages import MergeSource


def merge_source(adapter: Path, name: str = "merged", weight: float = 1.0) -> MergeSource:
    """Make an adapter on the disk a part of a merge."""
    part = MergePart(name=name.replace(" ", "-"), source=Source(uri="file:///adapter"), weight=weight)
    return MergeSource(part, str(adapter))
