"""What answers a request: the base model, an adapter, or a weighted sum of adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from graft_runtime.answering.asked import NamedAdapter
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.messages import BaseLoaded, Capabilities, ServedAdapter
from graft_runtime.pod.leases import Lease
from graft_runtime.tokenizing.defaults import GenerationDefaults
from graft_runtime.tokenizing.text_formats import TextFormat


@dataclass(frozen=True)
class Target:
    """What answers a request, mounted and held for it."""

    leases: tuple[Lease, ...]
    adapters: tuple[ServedAdapter, ...]
    """Each digest once; the weight of each is its part times the scale of its entry."""
    text_format: TextFormat
    vocabulary_size: int
    """Token ids that mean something to it."""
    virtual_tokens: int = 0
    """Of the context, before the prompt."""

    @property
    def digest(self) -> str | None:
        """Return the digests of the adapters, in the order of the request; None: the base model."""
        return ", ".join(lease.digest for lease in self.leases) or None


def single_target(lease: Lease | None, text_format: TextFormat, base: BaseLoaded) -> Target:
    """Return the target for one adapter as it is, or for the base model."""
    if lease is None:
        return Target((), (), text_format, base.vocabulary_size)
    rows = lease.facts.vocabulary_size or base.vocabulary_size
    return Target((lease,), (lease.served,), text_format, rows, lease.facts.virtual_tokens)


def summed_target(
    parts: Sequence[NamedAdapter], leases: Sequence[Lease], text_formats: Sequence[TextFormat], base: BaseLoaded
) -> Target:
    """Return the target for the sum of several: base + Σ weight · scale · what the adapter adds.

    Their tokenizer is one; chat template and defaults come from the first that has them, end tokens from all.

    Args:
        parts: as the request names them.
        leases: of each.
        text_formats: of each.
        base: the model below, and what its engine is capable of.

    Raises:
        GraftError: NotComposable.
    """
    faults = list(_faults(parts, leases, text_formats, base.capabilities))
    if faults:
        raise GraftError(
            ErrorCode.NOT_COMPOSABLE,
            f"`adapters` can't answer together: {'; '.join(faults)}",
            hint="compose adapters that only add to the base model's weights, as LoRA does, and that share a tokenizer",
            field="adapters",
        )
    weights: dict[str, float] = {}
    for part, lease in zip(parts, leases, strict=True):
        weights[lease.digest] = weights.get(lease.digest, 0.0) + part.weight * lease.served.weight
    served = tuple(ServedAdapter(digest, weight) for digest, weight in weights.items())
    defaults = GenerationDefaults()
    for text_format in reversed(text_formats):
        defaults = text_format.own.over(defaults)
    rows = leases[0].facts.vocabulary_size or base.vocabulary_size  # of several, all have the same
    return Target(tuple(leases), served, replace(text_formats[0], own=defaults), rows, leases[0].facts.virtual_tokens)


def _faults(
    parts: Sequence[NamedAdapter], leases: Sequence[Lease], text_formats: Sequence[TextFormat], engine: Capabilities
) -> list[str]:
    faults = []
    if len(parts) > engine.adapters_per_request:
        faults.append(f"they are {len(parts)}, and this engine takes {engine.adapters_per_request} in a request")
    if not engine.weights and any(part.weight != 1 for part in parts):
        faults.append("this engine serves adapters with weight 1 alone")
    for part, lease in zip(parts, leases, strict=True):
        facts = lease.facts
        if len(parts) > 1 and not facts.additive:
            faults.append(f"`{part.name}` ({facts.method}) does more than add to the base model's weights")
        elif part.weight != 1 and not facts.scalable:
            faults.append(f"`{part.name}` ({facts.method}) has no weight but 1, not {part.weight:g}")
    identities = [text_format.tokenizer.identity for text_format in text_formats]
    others = [part.name for part, identity in zip(parts, identities, strict=True) if identity != identities[0]]
    if others:
        faults.append(f"`{parts[0].name}` and `{others[0]}` have different tokenizers")
    rows = {lease.facts.vocabulary_size for lease in leases}
    if len(rows) > 1:
        faults.append("they have embeddings of different vocabularies")
    return faults
