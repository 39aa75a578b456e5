"""How many parameters a base has, by the headers of its files: vLLM's workers pack weights, and each holds a part."""

from __future__ import annotations

import json
import math
from pathlib import Path

LENGTH_BYTES = 8


def count_parameters(directory: Path) -> int:
    """Return how many parameters the safetensors files of a directory hold. Raises OSError, ValueError."""
    return sum(_count(file) for file in directory.glob("*.safetensors"))


def _count(file: Path) -> int:
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(LENGTH_BYTES), "little")))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
