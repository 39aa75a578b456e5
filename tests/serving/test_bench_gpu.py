"""`bench/gpu.py` runs from end to end where there is no GPU, so that it does where there is one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "gpu.py"


@pytest.mark.timeout(300)  # ten small engines in a process of its own
def test_the_gpu_bench_runs_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "benchmarks.json"
    out.write_text('{"other": 1}')
    done = subprocess.run(
        [sys.executable, BENCH, "--device", "cpu", "--small", "--out", out],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads(out.read_text())
    assert written["other"] == 1, "other measures stay"
    found = written["gpu"]
    assert found["small"], "and says that it measured nothing"
    assert len(found["correct"]) == 10
    exact = [one for one in found["correct"] if one["dtype"] == "float32"]
    assert [(one["right"], one["equal_answers"]) for one in exact] == [(True, one["answers"]) for one in exact]
    assert [(one["rows"], one["step"]) for one in found["decode"]] == [
        (rows, step) for rows in (1, 3) for step in ("packed", "packed", "static", "static")
    ]
    assert all(0 < one["share_of_bandwidth"]["value"] < 1 for one in found["decode"])
    assert found["mounting"]["from_host_seconds"]["value"] < found["mounting"]["from_files_seconds"]["value"]
    base, mixed, static, static_mixed = (one["kernels"] for one in found["kernels"])
    assert 0 < base < mixed
    assert 0 < static < static_mixed
