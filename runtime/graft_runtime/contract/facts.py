"""What is known of an adapter, in one type."""

from __future__ import annotations

from graft_runtime.contract.wire import Wire


class AdapterFacts(Wire):
    """What an adapter is: read from its files, completed when it is compiled for a base, and handed on whole from there
    to the reports. A new fact is declared here, and in the operator's `AdapterStatus` where users are to see it.
    """

    method: str
    """PEFT's `peft_type`: `LORA`."""
    rank: int
    """Columns of the active bank that it takes: the most that one of its modules needs."""
    module_count: int
    """Modules of the base that it changes."""
    remapped: str | None = None
    """What was done to find its modules in the base, in words; None when they are where its files say."""
    additive: bool = True
    """It only adds to what the base's weights give, so that several make a weighted sum. Known once it is compiled."""
    scalable: bool = True
    """A weight other than 1 has a meaning for it. Known once it is compiled."""
    vocabulary_size: int | None = None
    """Token ids that it brings rows for; None: those of the base. Known once it is compiled."""
    virtual_tokens: int = 0
    """Positions of the context that it takes before the prompt. Known once it is compiled."""
