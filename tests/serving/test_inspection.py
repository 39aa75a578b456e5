"""`graft-runtime inspect`: what an adapter is and why it would be refused, for people and as JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from graft_runtime.__main__ import main
from safetensors.torch import load_file


def inspected(capsys: Any, *arguments: str | Path) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        main(["inspect", *map(str, arguments)])
    return int(str(ended.value.code)), capsys.readouterr().out


def test_a_good_adapter(make_adapter: Any, tiny_base: Path, capsys: Any) -> None:
    adapter = make_adapter("billing", r=8)
    status, text = inspected(capsys, adapter, "--base", tiny_base, "--output", "json")
    report = json.loads(text)
    tensors = load_file(adapter / "adapter_model.safetensors").values()
    assert status == 0
    assert report["digest"].startswith("sha256:")
    assert (report["method"], report["rank"], report["moduleCount"]) == ("LORA", 8, 14)
    assert report["parameterCount"] == sum(tensor.numel() for tensor in tensors)
    assert report["fault"] is None
    status, text = inspected(capsys, adapter)
    assert status == 0
    assert "LORA, rank 8" in text
    assert "refused" not in text


def test_why_it_would_be_refused(make_adapter: Any, make_base: Any, tmp_path: Path, capsys: Any) -> None:
    adapter = make_adapter("sql", r=8)
    cases: list[tuple[list[Any], str]] = [
        ([adapter, "--max-rank", "4"], "RankTooHigh"),
        ([adapter, "--base", make_base("gpt2")], "BaseMismatch"),
        ([adapter, "--base", tmp_path], "NotAModel"),
        ([tmp_path], "NotAnAdapter"),
        ([tmp_path / "nowhere"], "NotAnAdapter"),
    ]
    for arguments, code in cases:
        status, text = inspected(capsys, *arguments)
        assert (status, f"[code: {code}]" in text) == (1, True), text
        _, text = inspected(capsys, *arguments, "--output", "json")
        assert json.loads(text)["fault"]["code"] == code


def test_without_a_base_it_needs_no_torch(make_adapter: Any) -> None:
    script = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from graft_runtime.__main__ import main; main(['inspect', sys.argv[1]])"
    )
    command = [sys.executable, "-c", script, str(make_adapter("light"))]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 0, ended.stderr
