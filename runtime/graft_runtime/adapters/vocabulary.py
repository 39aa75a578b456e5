"""Whether there is a row of an embedding for every token id that an adapter's own tokenizer makes."""

from __future__ import annotations

from graft_runtime.adapters.layout import BaseLayout
from graft_runtime.errors import ErrorCode, GraftError


def own_rows(own: BaseLayout, layout: BaseLayout) -> int | None:
    """Return the number of rows of the adapter's own input embedding; None when that is the base's number of rows.

    Args:
        own: the layout with the sizes that the adapter has, as `fit` returns it.
        layout: of the base.
    """
    if layout.input_embedding is None:
        return None
    rows = own.embeddings[layout.input_embedding].rows
    return None if rows == layout.embeddings[layout.input_embedding].rows else rows


def vocabulary_fault(name: str, highest: int | None, own: int | None, base: int) -> GraftError | None:
    """Return an error when the adapter's own tokenizer makes ids that no row of an embedding stands for; else None.

    Args:
        name: of the adapter.
        highest: the highest id that its own tokenizer makes and the base's does not; None for none.
        own: rows that the adapter brings; None: those of the base.
        base: rows of the base.
    """
    rows = own if own is not None else base
    if highest is None or highest < rows:
        return None
    whose = "adapter's embedding" if own is not None else "base model"
    return GraftError(
        ErrorCode.TOKENIZER_MISMATCH,
        f"the tokenizer of adapter `{name}` makes token ids up to {highest}, and the {whose} has {rows} rows "
        f"(0 … {rows - 1})",
        hint="save the adapter with its resized embeddings (save_embedding_layers=True), or with the base's tokenizer",
    )
