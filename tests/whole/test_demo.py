"""The demo as a person runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from graft_local import demo
from graft_local.gemma import BASE_NAME

pytestmark = [pytest.mark.whole, pytest.mark.cluster, pytest.mark.timeout(900)]


def test_the_demo_ends_well_and_leaves_nothing(tmp_path: Path) -> None:
    state = tmp_path / "demo"
    command = [sys.executable, "-m", "graft_local", "demo", "--state", str(state)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=840)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    for name in (BASE_NAME, *demo.FIRST, demo.FOURTH, demo.MERGED):
        assert f"| {name} " in done.stdout
    assert "HTTP 404" in done.stdout
    assert list(state.iterdir()) == []
