"""What only a GPU shows: skipped where there is none. All of tests/serving runs on a GPU where there is one."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests of this folder where torch sees no GPU."""
    mine = [item for item in items if HERE in item.path.parents]
    if not mine:
        return
    import torch

    if torch.cuda.is_available():
        sys.path.append(str(HERE.parents[1] / "bench"))
        importlib.import_module("older_torch")  # which stands in for what an older PyTorch lacks
    else:
        for item in mine:
            item.add_marker(pytest.mark.skip(reason="torch sees no GPU on this machine"))


@pytest.fixture(autouse=True)
def empty_device() -> Iterator[None]:
    """Give back what earlier tests had of the device's memory, and forget how much that was."""
    import gc

    import torch

    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
