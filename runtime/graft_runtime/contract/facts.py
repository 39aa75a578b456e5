"""What is known of an adapter, in one type."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field, field_serializer

from graft_runtime.contract.wire import Text, Wire


class DeltaKind(StrEnum):
    """What an adapter may do to a base, and what an engine can compute."""

    LOW_RANK = "LowRank"  # adds B·A·x to a linear module or an embedding
    EXPERTS = "Experts"  # does so for each expert of a mixture
    OFFSET = "Offset"  # adds a vector, weighted as the low rank is
    SHIFT = "Shift"  # adds a vector that no weight scales: a trained bias of the base
    GAIN = "Gain"  # multiplies what goes into a module or comes out of it: DoRA, IA3
    WHOLE = "Whole"  # has weights of its own instead of the base's: tokens, heads, norms
    PROMPT = "Prompt"  # puts embeddings before the prompt
    PREFIX = "Prefix"  # puts keys and values before the prompt
    INVOCATION = "Invocation"  # takes part from certain tokens of the prompt on (aLoRA)


_WEIGHTED = frozenset({DeltaKind.LOW_RANK, DeltaKind.EXPERTS, DeltaKind.OFFSET})
ADDITIVE = _WEIGHTED | {DeltaKind.INVOCATION}
"""Kinds that only add to what the base's weights give."""


class AdapterFacts(Wire):
    """What an adapter is: read from its files, completed when it is compiled for a base, and handed on whole from there
    to the reports. A new fact is declared here, and in the operator's `AdapterStatus` where users are to see it.
    """

    method: str = Field(max_length=64)
    """PEFT's `peft_type`: `LORA`."""
    rank: int = Field(ge=0, le=1_000_000)
    """Columns of the active bank that it takes: the most that one of its modules needs."""
    module_count: int
    """Modules of the base that it changes."""
    deltas: frozenset[DeltaKind]
    """At most these until it is compiled, exactly these from then on."""
    remapped: Text | None = None
    """What was done to find its modules in the base, in words; None when they are where its files say."""
    unused: Text | None = None
    """Modules of it that the model never calls for text, in words: they do nothing. None: there are none."""
    vocabulary_size: int | None = None
    """Token ids that it brings rows for; None: those of the base. Known once it is compiled."""
    virtual_tokens: int = 0
    """Positions of the context that it takes before the prompt. Known once it is compiled."""

    @field_serializer("deltas")
    def _in_order(self, deltas: frozenset[DeltaKind]) -> list[str]:
        return sorted(deltas)

    @property
    def additive(self) -> bool:
        """Tell whether the adapter only adds to what the base's weights give, so that several make a weighted sum."""
        return self.deltas <= ADDITIVE

    @property
    def scalable(self) -> bool:
        """Tell whether a weight other than 1 means something: a weight scales ΔW, which nothing else multiplies."""
        return bool(self.deltas & _WEIGHTED) and DeltaKind.GAIN not in self.deltas
