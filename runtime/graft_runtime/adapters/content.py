"""The values in an adapter's file, read into our own memory: never a map of a file that others could truncate."""

from __future__ import annotations

import math
import os
from typing import BinaryIO, Protocol

import torch

from graft_runtime.adapters.files import AdapterFiles
from graft_runtime.adapters.tensors import TensorSpan
from graft_runtime.errors import ErrorCode, GraftError

TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "U8": torch.uint8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}
MEASURED = frozenset({"F32", "F16", "BF16"})
"""Dtypes whose least and most torch finds as they are."""
MAX_AT_ONCE = 256 << 20
"""Bytes of a file that is read in one piece: rank 16 on all linear modules of an 8B is 84 MB in bfloat16, twice that in
float32."""


class Content(Protocol):
    """The tensors of one file."""

    largest: float
    """No value is beyond it, in either direction; NaN or infinity where one is, and where nobody looked."""

    def tensor(self, span: TensorSpan) -> torch.Tensor:
        """Return the tensor in float32, on the device. Raises GraftError: Corrupt.

        The tensor may lie in the memory of the whole content.
        """
        ...


class InOnePiece:
    """All tensors of one dtype, read at once: many small reads, copies and looks take longer."""

    def __init__(self, data: torch.Tensor, begin: int, dtype: torch.dtype) -> None:
        self._values = data.view(dtype)
        self._begin, self._size = begin, dtype.itemsize
        self.largest = largest(self._values)

    def tensor(self, span: TensorSpan) -> torch.Tensor:
        """Return the tensor as `Content.tensor` says."""
        offset = (span.begin - self._begin) // self._size
        return self._values.as_strided(span.shape, _strides(span.shape), offset).float()


class OneByOne:
    """Each tensor read by itself: of a large file, or one of several dtypes."""

    largest = math.inf

    def __init__(self, file: BinaryIO, files: AdapterFiles, device: torch.device) -> None:
        self._file, self._files, self._device = file, files, device

    def tensor(self, span: TensorSpan) -> torch.Tensor:
        """Return the tensor as `Content.tensor` says."""
        data = _read(self._file, self._files, span.begin, span.end).view(TORCH_DTYPES[span.dtype])
        return data.reshape(span.shape).to(self._device).to(torch.float32)  # half the bytes to copy, or fewer


def read_content(file: BinaryIO, files: AdapterFiles, device: torch.device) -> Content:
    """Read the tensors of an open file, for a caller who wants all of them.

    Args:
        file: the weights.
        files: of the adapter.
        device: where the tensors go.

    Raises:
        GraftError: Corrupt.
    """
    spans = files.tensors.values()
    begin, end = min((span.begin for span in spans), default=0), max((span.end for span in spans), default=0)
    dtypes = {span.dtype for span in spans}
    if len(dtypes) != 1 or not dtypes <= MEASURED or end - begin > MAX_AT_ONCE:
        return OneByOne(file, files, device)
    return InOnePiece(_read(file, files, begin, end).to(device), begin, TORCH_DTYPES[dtypes.pop()])


def largest(tensor: torch.Tensor) -> float:
    """Return the size of the value that is furthest from zero; NaN where a value is NaN.

    The search is twenty times as fast as a look at each value.
    """
    if not tensor.numel():
        return 0.0
    least, most = torch.aminmax(tensor.T if tensor.dim() == 2 and not tensor.is_contiguous() else tensor)
    return max(-least.item(), most.item())


def is_finite(tensor: torch.Tensor) -> bool:
    """Tell whether every value is a finite number."""
    return math.isfinite(largest(tensor))


def _strides(shape: tuple[int, ...]) -> list[int]:
    """Return the strides of a contiguous tensor of this shape."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return strides[::-1]


def _read(file: BinaryIO, files: AdapterFiles, begin: int, end: int) -> torch.Tensor:
    data = torch.empty(end - begin, dtype=torch.uint8)
    if os.preadv(file.fileno(), [data.numpy().data], begin) != len(data):
        raise GraftError(ErrorCode.CORRUPT, f"the weights of adapter `{files.name}` were cut while they were read")
    return data
