"""What tests of the runtime look at beside its answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def unfinished(tmp_path: Path) -> Callable[[], list[Path]]:
    """List what copies into the caches of a test are filling, or have left behind."""
    return lambda: sorted(tmp_path.glob("*/partial/*"))
