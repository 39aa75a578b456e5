"""The header of a safetensors file, read by our own strict parser before any weight is."""

from __future__ import annotations

import math
import os
from typing import Any, BinaryIO, NamedTuple

from graft_runtime.adapters.strict_json import parse_object
from graft_runtime.errors import ErrorCode, GraftError, shown

MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 65_536
MAX_DIMENSIONS = 8
MAX_NAME_CHARACTERS = 512
FIELDS = frozenset({"dtype", "shape", "data_offsets"})
HIGHEST = 1 << 62
"""Numbers of a header are below it."""
LENGTH_BYTES = 8
"""The file begins with the length of its header, little-endian."""

ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
FLOATING = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})


class TensorSpan(NamedTuple):
    """One tensor of a file: `begin` and `end` are bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(file: BinaryIO, what: str) -> dict[str, TensorSpan]:
    """Return the spans of the tensors of an open safetensors file, by name.

    The spans follow each other without a gap and cover the file exactly, and each is as long as its shape and dtype
    say; so no read can leave the file, and no byte of it is unaccounted for.

    Args:
        file: an open file; its length is taken from the file itself.
        what: how an error calls the file.

    Raises:
        GraftError: Corrupt.
    """
    size = os.fstat(file.fileno()).st_size
    first = file.read(LENGTH_BYTES)
    if first == b"version ":
        raise GraftError(
            ErrorCode.CORRUPT,
            f"{what} is a pointer of Git LFS and not the file that it points to",
            hint="fetch the files themselves with `git lfs pull`, and copy those",
        )
    header_bytes = int.from_bytes(first, "little") if size >= LENGTH_BYTES else 0
    start = LENGTH_BYTES + header_bytes
    if not 2 <= header_bytes <= MAX_HEADER_BYTES or start > size:
        raise _corrupt(
            f"{what} is no complete safetensors file: {size} bytes, of which {header_bytes} would be its header "
            f"(expected 2 … {MAX_HEADER_BYTES}, inside the file)"
        )
    entries = parse_object(file.read(header_bytes), f"the header of {what}", ErrorCode.CORRUPT)
    entries.pop("__metadata__", None)
    if len(entries) > MAX_TENSORS:
        raise _corrupt(f"{what} names {len(entries)} tensors, expected at most {MAX_TENSORS}")
    spans: dict[str, TensorSpan] = {}
    faults: list[str] = []
    for name, entry in entries.items():
        if len(name) > MAX_NAME_CHARACTERS:
            raise _corrupt(f"{what} has a tensor whose name has {len(name)} characters, at most {MAX_NAME_CHARACTERS}")
        span = _span(entry, start)
        if isinstance(span, str):
            faults.append(f"{name}: {span}")
        else:
            spans[name] = span
    faults = faults or _gaps(spans, start, size)
    if faults:
        raise _corrupt(f"{what} is malformed or truncated", faults)
    return spans


def _span(entry: Any, start: int) -> TensorSpan | str:
    """Return the span that this entry of the header describes, or what is wrong with the entry."""
    if not isinstance(entry, dict) or entry.keys() != FIELDS:
        return "expected exactly dtype, shape and data_offsets"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        return f"unknown dtype {dtype!r}"
    if not _naturals(shape) or len(shape) > MAX_DIMENSIONS:
        return "shape is not a short list of natural numbers"
    if not _naturals(offsets) or len(offsets) != 2:
        return "data_offsets is not a pair of natural numbers"
    needed = math.prod(shape) * ITEM_BYTES[dtype]
    if offsets[1] - offsets[0] != needed:
        return f"{dtype} {tuple(shape)} needs {needed} bytes, data_offsets {offsets} span {offsets[1] - offsets[0]}"
    return TensorSpan(dtype, tuple(shape), start + offsets[0], start + offsets[1])


def _naturals(value: Any) -> bool:
    if not isinstance(value, list):
        return False
    for item in value:  # noqa: SIM110 - all() of a generator takes twice as long, and there are thousands of lists
        if type(item) is not int or not 0 <= item < HIGHEST:
            return False
    return True


def _gaps(spans: dict[str, TensorSpan], start: int, size: int) -> list[str]:
    position = start
    for name, span in sorted(spans.items(), key=lambda item: (item[1].begin, item[1].end)):
        if span.begin != position:
            return [f"{name} begins at byte {span.begin}, expected {position}"]
        position = span.end
    return [] if position == size else [f"the tensors end at byte {position}, the file at {size}"]


def _corrupt(what: str, faults: list[str] | None = None) -> GraftError:
    return GraftError(ErrorCode.CORRUPT, what, details=shown(faults or []), hint="copy or download the file again")
