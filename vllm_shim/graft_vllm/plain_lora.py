"""The files of a normal form, read: what `graft-runtime convert` writes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft_runtime.contract.facts import AdapterFacts, DeltaKind
from graft_runtime.errors import ErrorCode, GraftError

PREFIX = "base_model.model."
EMBEDDED = 8
"""So many of the tokens whose embedding an adapter changes are in its trial prompt."""


@dataclass(frozen=True)
class PlainLora:
    """What a file holds, as far as the proof needs it."""

    rank: int
    norms: dict[str, tuple[float, float]]
    """The squared norms of A and B by the module's name."""
    tokens: list[int]
    """Some of those whose embedding it changes, where it changes that of few."""
    bytes: int

    @property
    def facts(self) -> AdapterFacts:
        """Return what the files say; the pod knows of the adapter that they were made of."""
        return AdapterFacts(
            method="LORA", rank=self.rank, module_count=len(self.norms), deltas=frozenset({DeltaKind.LOW_RANK})
        )


def read_plain_lora(directory: Path, name: str) -> PlainLora:
    """Read a normal form.

    Args:
        directory: that holds it.
        name: how errors call the adapter.

    Raises:
        GraftError: Corrupt for what is no normal form.
    """
    from safetensors import SafetensorError  # noqa: PLC0415
    from safetensors.torch import load_file  # noqa: PLC0415

    try:
        config = json.loads((directory / "adapter_config.json").read_bytes())
        tensors = load_file(directory / "adapter_model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise GraftError(ErrorCode.CORRUPT, f"the normal form of adapter `{name}` can't be read: {error}") from error
    if config.get("peft_type") != "LORA" or config.get("r") != config.get("lora_alpha"):
        raise _no_normal_form(name, "its config names another method or another scale")
    halves: dict[str, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        path, _, role = key.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        if not key.startswith(PREFIX) or not tensor.isfinite().all():
            raise _no_normal_form(name, f"{key} is not finite, or named otherwise")
        halves.setdefault(path, {})[role.removeprefix("lora_").removeprefix("embedding_")] = tensor
    for path, roles in halves.items():
        if set(roles) != {"A", "B"} or roles["A"].shape[0] != config["r"] or roles["B"].numel() % config["r"]:
            raise _no_normal_form(name, f"{path} has not one A and one B of rank {config['r']}")
    norms = {path: (_squared(roles["A"]), _squared(roles["B"])) for path, roles in halves.items()}
    embedded = [tensors[key] for key in tensors if key.endswith(".lora_embedding_A")]
    tokens = [int(token) for a in embedded for token in a.any(dim=0).nonzero().flatten()[:EMBEDDED]]
    return PlainLora(config["r"], norms, tokens, sum(tensor.nbytes for tensor in tensors.values()))


def _squared(tensor: Any) -> float:
    return float(tensor.double().square().sum())


def _no_normal_form(name: str, why: str) -> GraftError:
    return GraftError(
        ErrorCode.CORRUPT,
        f"adapter `{name}` is no normal form: {why}",
        hint="this engine takes what `graft-runtime convert` writes, and nothing else",
    )
