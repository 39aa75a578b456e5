"""Heads that share the embedding's weight. A merge that changes one of both gives the head a weight of its own.

In memory the head becomes a parameter beside the embedding; in a checkpoint it is one more file, named in the index.
Either way `tie_word_embeddings` is false then. What is served does not change by that: an adapter on one of the two
never changes what the other computes (PEFT's merge_and_unload writes into both).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from graft_runtime.adapters.layout import BaseLayout
from graft_runtime.adapters.parts.whole import TrainedTokens
from graft_runtime.merge.sums import Sum


def separable(layout: BaseLayout, shared: Collection[str]) -> frozenset[str]:
    """Return the modules that can be given a weight of their own.

    These are an embedding and a head which share a weight with no other module.
    """
    pair = frozenset(path for tie in layout.ties.items() for path in tie)
    return pair if len(pair) == 2 and pair == frozenset(shared) else frozenset()


def separated_head(merged: Sum, layout: BaseLayout) -> str | None:
    """Return the head that needs a weight of its own.

    Returns None while head and embedding stay the same, as with tokens trained in both.
    """
    for embedding, head in layout.ties.items():
        for addend in merged.addends:
            parts = [part for path in (embedding, head) for part in addend.parts.get(path, ())]
            if not all(isinstance(part, TrainedTokens) and (part.shared or part.copy) for part in parts):
                return head
    return None


def untied_config(text: bytes) -> bytes:
    """Return the config.json with `tie_word_embeddings` false: the head has a weight of its own."""
    config = json.loads(text)
    for part in (config, config.get("text_config")):
        if isinstance(part, dict):
            part["tie_word_embeddings"] = False
    return json.dumps(config, indent=2).encode() + b"\n"


def save_head(path: Path, head: str, weight: torch.Tensor) -> None:
    """Write a file of one tensor, the head's weight: [vocabulary, features]."""
    save_file({f"{head}.weight": weight.contiguous()}, path, metadata={"format": "pt"})


def index_with_head(weight_map: Mapping[str, str], total_size: int, head: str, file: str) -> bytes:
    """Return the text of a model.safetensors.index.json that names the head.

    Args:
        weight_map: tensor → file, without the head.
        total_size: bytes of all tensors.
        head: its path.
        file: that holds it.
    """
    files = {**weight_map, f"{head}.weight": file}
    index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(files.items()))}
    return json.dumps(index, indent=2).encode() + b"\n"
