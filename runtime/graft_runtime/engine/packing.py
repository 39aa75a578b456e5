"""Base weights in the order that the processor multiplies fastest."""

from __future__ import annotations

import logging

from graft_runtime.memory import free_memory
from graft_runtime.model.linear import Linear, packable
from graft_runtime.model.load import BaseModel

logger = logging.getLogger(__name__)

SHARE_OF_A_COPY = 4
"""Of what is free, the part that a packed head may take whose weight stays, since it is the embedding's as well."""


def pack_weights(base: BaseModel) -> None:
    """Pack the weights of the linear modules where that is faster, one by one, and let go of what they were.

    A weight that another module has as well stays beside its packed copy, if there is room for both.

    Args:
        base: whose weights nothing is merged into any more.
    """
    shared, packed, copied = base.modules.shared_weights(), 0, 0
    for path in base.layout.linear:
        module = base.modules.hooked(path)
        if type(module) is Linear and packable(module.weight):
            size, copy = module.weight.nbytes, path in shared
            if copy and size > free_memory() // SHARE_OF_A_COPY:
                continue
            if not module.pack():
                logger.warning(
                    "the weights of base model `%s` stay as they are: packed ones compute otherwise", base.name
                )
                return
            packed, copied = packed + size, copied + size * copy
    if packed:
        logger.info("memory: packed weights %d MiB, %d MiB of them copies", packed >> 20, copied >> 20)
