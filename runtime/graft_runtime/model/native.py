"""What takes a step's time on a CPU, in machine code that is compiled for this very processor when the engine starts.

The C++ in `cpp` says what each function computes. All sums are in float32, and rounded once.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)

SOURCES = sorted(Path(__file__).with_name("cpp").iterdir())
COMPILERS = ("c++", "g++", "clang++")
OPTIONS = ("-O3", "-std=c++17", "-march=native", "-fopenmp", "-fPIC", "-shared")
LIMIT_SECONDS = 120
DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


@dataclass(frozen=True, eq=False)
class Columns:
    """What the tokens of a pass take of a module's columns.

    Attributes:
        a: [columns, input features].
        b: [columns, output features].
        runs: see `TokenAdapters`.
    """

    a: torch.Tensor
    b: torch.Tensor
    runs: torch.Tensor


@dataclass(frozen=True, eq=False)
class Kept:
    """Keys and values of rows, and where each row's token goes.

    Attributes:
        keys: [slots, key heads, capacity, features].
        values: [slots, key heads, capacity, value features].
        slots: of each row, int64.
        positions: of each row's token, int64.
    """

    keys: torch.Tensor
    values: torch.Tensor
    slots: torch.Tensor
    positions: torch.Tensor


@dataclass(frozen=True, eq=False)
class Asked:
    """What a layer asks of attention.

    Attributes:
        window: tokens that are seen, the own one included; None: all.
        scale: of the products.
        softcap: of the scaled products; None: none.
        sinks: [heads], or None.
    """

    window: int | None
    scale: float
    softcap: float | None = None
    sinks: torch.Tensor | None = None


class _Strides(ctypes.Structure):
    _fields_ = (("row", ctypes.c_int64), ("head", ctypes.c_int64))


class _Attention(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("out", "q", "k", "v", "keys", "values", "slots", "positions", "sinks")),
        ("strides", _Strides * 3),
        *((name, ctypes.c_int64) for name in ("rows", "heads", "key_heads", "features", "value_features", "capacity")),
        ("window", ctypes.c_int64),
        ("scale", ctypes.c_double),
        ("softcap", ctypes.c_double),
    )


class Native:
    """The functions of a compiled library.

    Args:
        library: made of SOURCES.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, size, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float

        def functions(name: str, *arguments: Any) -> Mapping[torch.dtype, Callable[..., None]]:
            found = {dtype: library[f"{name}_{suffix}"] for dtype, suffix in DTYPES.items()}
            for function in found.values():
                function.argtypes, function.restype = arguments, None
            return found

        self._linear = functions("linear", *[pointer] * 6, *[size] * 3, pointer, size, ctypes.c_int)
        self._norm = functions("norm", *[pointer] * 3, *[size] * 2, *[real] * 2)
        self._attend = functions("attend", pointer, ctypes.c_int)
        self._chunk: int = library.chunk()

    def takes(self, dtype: torch.dtype, *features: int) -> bool:
        """Tell whether rows of so many values of this dtype can be computed."""
        return dtype in DTYPES and all(count % self._chunk == 0 for count in features)

    def linear(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, columns: Columns | None
    ) -> torch.Tensor:
        """Return x·Wᵀ + c, with what each token takes of the columns."""
        y = x.new_empty(*x.shape[:-1], weight.shape[0])
        self._add(y, x, weight.data_ptr(), None if bias is None else bias.data_ptr(), columns)
        return y

    def add(self, y: torch.Tensor, x: torch.Tensor, columns: Columns) -> None:
        """Add to y, in place, what each token takes of the columns."""
        self._add(y, x, None, None, columns)

    def _add(
        self, y: torch.Tensor, x: torch.Tensor, weight: int | None, bias: int | None, columns: Columns | None
    ) -> None:
        a, b, runs, count = None, None, None, 0
        if columns is not None:
            a, b, runs = columns.a.data_ptr(), columns.b.data_ptr(), columns.runs.data_ptr()
            count = columns.runs.shape[0]
        x, k, n = x.contiguous(), x.shape[-1], y.shape[-1]
        rows, threads = x.numel() // k, torch.get_num_threads()
        self._linear[x.dtype](y.data_ptr(), x.data_ptr(), weight, bias, a, b, rows, k, n, runs, count, threads)

    def norm(self, x: torch.Tensor, weight: torch.Tensor, epsilon: float, shift: float) -> torch.Tensor:
        """Return x / √(mean(x²) + ε) · (w + shift), the mean over the last dimension."""
        x = x.contiguous()
        y, k = torch.empty_like(x), x.shape[-1]
        self._norm[x.dtype](y.data_ptr(), x.data_ptr(), weight.data_ptr(), x.numel() // k, k, epsilon, shift)
        return y

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kept: Kept, asked: Asked) -> torch.Tensor:
        """Write one key and value of each row to its slot, and return what its query makes of those up to its own.

        Args:
            q: [rows, heads, features].
            k: [rows, key heads, features].
            v: [rows, key heads, value features].
            kept: by the rows.
            asked: of attention.

        Returns:
            [rows, heads, value features].
        """
        keys, values = kept.keys, kept.values
        out = q.new_empty(*q.shape[:2], values.shape[3])
        pointers = [tensor.data_ptr() for tensor in (out, q, k, v, keys, values, kept.slots, kept.positions)]
        sinks = None if asked.sinks is None else asked.sinks.data_ptr()
        strides = (_Strides * 3)(*[_Strides(*tensor.stride()[:2]) for tensor in (q, k, v)])
        shape = *q.shape[:2], keys.shape[1], q.shape[2], values.shape[3], keys.shape[2]
        call = _Attention(*pointers, sinks, strides, *shape, asked.window or 0, asked.scale, asked.softcap or 0)
        self._attend[q.dtype](ctypes.byref(call), torch.get_num_threads())
        return out


@functools.cache
def compiled() -> Native | None:
    """Compile the library, or take it as an earlier process has left it. Return None, and log why, where that fails."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        logger.warning("nothing is compiled: there is no C++ compiler (%s)", ", ".join(COMPILERS))
        return None
    try:
        return Native(ctypes.CDLL(str(_library(compiler))))
    except (OSError, subprocess.SubprocessError) as error:
        told = getattr(error, "stderr", None) or error
        logger.warning("nothing is compiled: %s", str(told).strip()[-400:])
        return None


def _library(compiler: str) -> Path:
    """Return the library for this processor; it is made of these sources by this compiler once."""
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, timeout=LIMIT_SECONDS).stdout
    made_of = [version, " ".join(OPTIONS).encode(), _processor(), *[source.read_bytes() for source in SOURCES]]
    digest = hashlib.sha256(b"\0".join(made_of)).hexdigest()
    name = f"native-{digest[:32]}.so"
    kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "graft", name)
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
            made = Path(scratch, name)
            command = [compiler, *OPTIONS, *[str(source) for source in SOURCES if source.suffix == ".cpp"]]
            subprocess.run(
                [*command, "-o", str(made)], check=True, capture_output=True, text=True, timeout=LIMIT_SECONDS
            )
            made.replace(kept)
    return kept


def _processor() -> bytes:
    """Return what this processor is able to do, as the kernel tells it."""
    lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    return next((line for line in lines if line.startswith((b"flags", b"Features"))), b"")
