"""What answers a request: the base model, an adapter, or a weighted sum of adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from graft_runtime.answering.asked import NamedAdapter
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.messages import ServedAdapter
from graft_runtime.pod.leases import Lease
from graft_runtime.tokenizing.manner import Manner, over
from graft_runtime.tokenizing.voices import Voice


@dataclass(frozen=True)
class Speaker:
    """What answers a request, mounted and held for it."""

    leases: tuple[Lease, ...]
    adapters: tuple[ServedAdapter, ...]
    """Each digest once; the weight of each is its part times the scale of its entry."""
    voice: Voice
    vocabulary_size: int
    """Token ids that mean something to it."""
    virtual_tokens: int = 0
    """Of the context, before the prompt."""

    @property
    def digest(self) -> str | None:
        """Of the adapters, in the order of the request; None: the base model."""
        return ", ".join(lease.digest for lease in self.leases) or None


def alone(lease: Lease | None, voice: Voice, base_rows: int) -> Speaker:
    """One adapter as it is, or the base model."""
    if lease is None:
        return Speaker((), (), voice, base_rows)
    facts = lease.facts
    return Speaker((lease,), (lease.served,), voice, facts.vocabulary_size or base_rows, facts.virtual_tokens)


def together(
    parts: Sequence[NamedAdapter], leases: Sequence[Lease], voices: Sequence[Voice], base_rows: int
) -> Speaker:
    """The sum of several: base + Σ weight · scale · what the adapter adds.

    Their tokenizer is one; chat template and defaults come from the first that has them, end tokens from all.

    Args:
        parts: as the request names them.
        leases: of each.
        voices: of each.
        base_rows: token ids that the base has.

    Raises:
        GraftError: NotComposable.
    """
    faults = list(_faults(parts, leases, voices))
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
    manner = Manner()
    for voice in reversed(voices):
        manner = over(voice.own, manner)
    voice, facts = replace(voices[0], own=manner), leases[0].facts  # several have neither of what follows
    return Speaker(tuple(leases), served, voice, facts.vocabulary_size or base_rows, facts.virtual_tokens)


def _faults(parts: Sequence[NamedAdapter], leases: Sequence[Lease], voices: Sequence[Voice]) -> list[str]:
    faults = []
    for part, lease in zip(parts, leases, strict=True):
        facts = lease.facts
        if len(parts) > 1 and not facts.additive:
            faults.append(f"`{part.name}` ({facts.method}) does more than add to the base model's weights")
        elif part.weight != 1 and not facts.scalable:
            faults.append(f"`{part.name}` ({facts.method}) has no weight but 1, not {part.weight:g}")
    first = voices[0].tokenizer.identity
    others = [part.name for part, voice in zip(parts, voices, strict=True) if voice.tokenizer.identity != first]
    if others:
        faults.append(f"`{parts[0].name}` and `{others[0]}` have different tokenizers")
    rows = {lease.facts.vocabulary_size for lease in leases}
    if len(rows) > 1:
        faults.append("they have embeddings of different vocabularies")
    return faults
