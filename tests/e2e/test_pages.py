"""The commands of the pages for those who run Graft, as they stand there, asked of a pool that serves."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.cluster import ADAPTERS, Pool

pytestmark = pytest.mark.quick

PAGES = ("README.md", "docs/install.md", "docs/operations.md", "docs/reference.md")
ASKS = ("get", "describe", "explain", "rollout", "wait", "annotate")
"""Verbs of the commands that can be run here; what the others do has tests of its own."""
MAY_BE_SILENT = ("@.reason", "lease", "events")
"""In commands that list what a pool without faults doesn't have."""
NAMES = "NAME|gemma|support"
"""What the pages call a pool."""


def commands() -> list[str]:
    pages = ((Path(__file__).parents[2] / page).read_text() for page in PAGES)
    found = re.findall(r"`(kubectl [^`]+)`|^(kubectl [^#\n]+)", "\n".join(pages), re.MULTILINE)
    asked = rf"kubectl (-n graft-system )?({'|'.join(ASKS)}) "
    return sorted({command.strip() for pair in found for command in pair if re.match(asked, command)})


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_pages_does_what_it_is_for(command: str, pool: Pool, tmp_path: Path) -> None:
    pool.wait_until_settled()
    config = tmp_path / "config"
    shutil.copy(pool.cluster.kubeconfig, config)
    environment = os.environ | {"KUBECONFIG": str(config)}
    binary = Path(pool.cluster.kubectl_binary).parent
    environment["PATH"] = f"{binary}:{environment['PATH']}"
    here = f"kubectl config set-context --current --namespace={pool.namespace}"
    named = re.sub(rf"\b({NAMES})\b", pool.name, command)
    done = subprocess.run(
        ["bash", "-euc", f"{here} >/dev/null; {named}"], check=False, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr
    assert done.stdout.strip() or any(word in command for word in MAY_BE_SILENT)


def test_the_pages_hold_such_commands() -> None:
    assert len(commands()) > 8


def test_describing_a_pool_tells_who_answers_and_where(pool: Pool) -> None:
    told = pool.kubectl("describe", "ad", pool.name)
    assert all(name in told for name in ADAPTERS)
    assert re.search(r"Type:\s+Ready", told)
    assert re.search(r"sha256:[0-9a-f]{64}", told)
