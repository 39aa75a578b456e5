"""`graft-runtime inspect`: what an adapter is and why it would be refused, for people and as JSON."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from graft_runtime.__main__ import main
from graft_runtime.base_layouts import layouts_directory
from safetensors.torch import load_file, save_file


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


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


def test_modules_with_other_names_are_told(make_adapter: Any, tiny_base: Path, tmp_path: Path, capsys: Any) -> None:
    moved = shutil.copytree(make_adapter("moved", target_modules=["q_proj", "v_proj"]), tmp_path / "moved")
    weights = load_file(moved / "adapter_model.safetensors")
    weights = {name.replace("model.model.layers", "model.layers"): tensor for name, tensor in weights.items()}
    save_file(weights, moved / "adapter_model.safetensors")
    status, text = inspected(capsys, moved, "--base", tiny_base)
    assert (status, "remapped    nothing → model" in text) == (0, True), text
    _, text = inspected(capsys, moved, "--base", tiny_base, "--output", "json")
    assert json.loads(text)["remapped"] == "nothing → model at the start of modules' names"


def test_a_base_is_made_for_the_task(make_adapter: Any, make_base: Any, capsys: Any) -> None:
    base = make_base("llama", task="SEQ_CLS")
    classifier = make_adapter("classifier", base=base, task="SEQ_CLS", modules_to_save=["score"])
    arguments = (classifier, "--base", make_base("llama"), "--task")
    assert inspected(capsys, *arguments, "SEQ_CLS")[0] == 0
    assert inspected(capsys, *arguments, "CAUSAL_LM")[0] == 1


def without_torch(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    script = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from graft_runtime.__main__ import main; main(['inspect', *sys.argv[1:]])"
    )
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_torch_is_needed_for_a_base_alone_that_is_new(
    make_adapter: Any, make_base: Any, tiny_base: Path, capsys: Any
) -> None:
    adapter = make_adapter("light")
    assert without_torch(adapter).returncode == 0
    arguments = (adapter, "--base", tiny_base)
    assert "ModuleNotFoundError" in without_torch(*arguments).stderr
    for base, expected in ((tiny_base, 0), (make_base("gpt2"), 1)):
        told = inspected(capsys, adapter, "--base", base)
        again = without_torch(adapter, "--base", base)
        assert told == (again.returncode, again.stdout)
        assert again.returncode == expected
    for kept in layouts_directory().iterdir():
        kept.write_bytes(kept.read_bytes()[:-1])
    assert "ModuleNotFoundError" in without_torch(*arguments).stderr
    assert inspected(capsys, *arguments)[0] == 0
    assert without_torch(*arguments).returncode == 0


def test_a_cache_that_can_t_be_written_is_no_fault(
    make_adapter: Any, tiny_base: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert inspected(capsys, make_adapter("light"), "--base", tiny_base)[0] == 0
