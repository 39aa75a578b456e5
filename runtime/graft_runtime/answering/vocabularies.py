"""Which vocabularies the engine knows: those that requests with a grammar name."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from graft_runtime.messages import Vocabulary
from graft_runtime.tokenizing.tokenizer import Tokenizer

KEPT = 8


class Vocabularies:
    """Tells the engine of tokenizers; it keeps those that were asked for last.

    Args:
        send: hands a message to the engine, in order.
    """

    def __init__(self, send: Callable[[Vocabulary], None]) -> None:
        self._send = send
        self._told: OrderedDict[str, None] = OrderedDict()

    def tell(self, tokenizer: Tokenizer) -> str:
        """Return the name by which requests sent at once may name a tokenizer's vocabulary."""
        name = tokenizer.identity
        if name not in self._told:
            oldest = self._told.popitem(last=False)[0] if len(self._told) >= KEPT else None
            self._send(Vocabulary(name, tokenizer.token_bytes, oldest))
        self._told[name] = None
        self._told.move_to_end(name)
        return name
