"""What the tokens of a tokenizer add to a text, in bytes."""

from __future__ import annotations

import re
from collections.abc import Container
from typing import Any

from graft_runtime.tokenizing.pieces import REPLACEMENT

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def token_bytes(fast: Any, skipped: Container[int]) -> list[bytes]:
    """Return the bytes of each token, by its id. Blocking: a second for a large vocabulary.

    A token is decoded behind another, since tokenizers drop a space that a text begins with. One that is no whole
    character is looked up among the ways in which tokenizers write a byte.

    Args:
        fast: of the tokenizers library.
        skipped: tokens that are in no text.
    """
    texts = fast.get_vocab(with_added_tokens=True)
    found = [b""] * (max(texts.values(), default=-1) + 1)
    written = {number: text for text, number in texts.items() if number not in skipped}
    firsts = ((number, fast.decode([number])) for number in sorted(written))
    anchor, before = next(((number, text) for number, text in firsts if text and REPLACEMENT not in text), (None, ""))
    for number, name in written.items():
        text = fast.decode([number] if anchor is None else [anchor, number])
        found[number] = _raw(name) if REPLACEMENT in text else text.removeprefix(before).encode()
    return found


def _raw(written: str) -> bytes:
    """Return the bytes of a token that is no whole text: `<0xE2>`, or GPT-2's characters that stand for bytes each."""
    if (byte := _BYTE.fullmatch(written)) is not None:
        return bytes([int(byte[1], 16)])
    return bytes(_BYTES[character] for character in written) if all(map(_BYTES.__contains__, written)) else b""


def _gpt2_bytes() -> dict[str, int]:
    """Return the characters that stand for bytes: printable ones for themselves, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + at): byte for at, byte in enumerate(others)}


_BYTES = _gpt2_bytes()
