"""Two texts as one row of tokens, for models that were trained on pairs."""

from __future__ import annotations

from graft_runtime.tokenizing.tokenizer import Tokenizer, library_faults


def encode_pair(
    tokenizer: Tokenizer, pair: tuple[str, str], context: int, field: str
) -> tuple[list[int], list[int] | None]:
    """Return the token ids of a pair, and the type of each where not all are of the first text's.

    Args:
        tokenizer: puts its special tokens around both.
        pair: in the order that the model was trained on.
        context: the tokens that there may be; texts that are longer than any so many are not looked at.
        field: of the request, which holds the longer ones.

    Raises:
        GraftError: ContextTooLong; Corrupt, when the tokenizer fails on them.
    """
    tokenizer.check_length(sum(map(len, pair)), context, field)
    with library_faults():
        (encoding,) = tokenizer.fast.encode_batch_fast([pair], add_special_tokens=True)
    return [*encoding.ids], [*encoding.type_ids] if any(encoding.type_ids) else None
