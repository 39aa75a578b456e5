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
from graft_runtime.base.kept_layouts import layout_of_checkpoint
from graft_runtime.contract.tasks import Task
from graft_runtime.model.load import load_base
from graft_runtime.model.stored import stored_layout
from safetensors.torch import load_file, save_file

from tests.support.quantised import save_quantised


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
    assert (report["facts"]["method"], report["facts"]["rank"], report["facts"]["moduleCount"]) == ("LORA", 8, 14)
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


def test_modules_that_moved_are_told(make_adapter: Any, drift: Any, tiny_base: Path, capsys: Any) -> None:
    adapter = drift(make_adapter("drifted", target_modules=["q_proj", "v_proj"]))
    for arguments in ((), ("--base", tiny_base)):
        status, text = inspected(capsys, adapter, *arguments)
        said = "remapped    nothing → model at the start"
        assert (status, said in text) == (0, bool(arguments))
        report = json.loads(inspected(capsys, adapter, *arguments, "--output", "json")[1])
        assert (report["facts"]["remapped"] or "").startswith("nothing → model") is bool(arguments)
    weights = load_file(adapter / "adapter_model.safetensors")
    weights = {name.removeprefix("base_model.model."): tensor for name, tensor in weights.items()}
    save_file(weights, adapter / "adapter_model.safetensors")
    assert "put base_model.model. in front" in inspected(capsys, adapter)[1], "that needs no base"


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


def test_a_kept_layout_is_the_model_s(make_base: Any) -> None:
    for family, task in (("llama", None), ("gpt2", None), ("t5", Task.SEQ_2_SEQ_LM), ("mixtral", None)):
        base = make_base(family, task or "CAUSAL_LM")

        def made(base: Path = base, task: Task | None = task) -> Any:
            return stored_layout(base, name="base", task=task)

        assert layout_of_checkpoint(base, task, made) == layout_of_checkpoint(
            base, task, lambda: pytest.fail("it is kept")
        )
        loaded = load_base(base, name="base", dtype="float32", max_sequence_length=64, task=task)
        assert layout_of_checkpoint(base, task, made) == loaded.layout


def test_what_was_not_checked_is_told(make_adapter: Any, tiny_base: Path, tmp_path: Path, capsys: Any) -> None:
    adapter, silent = make_adapter("unchecked"), shutil.copytree(tiny_base, tmp_path / "silent")
    (silent / "tokenizer.json").unlink()
    spoken = shutil.copytree(adapter, tmp_path / "spoken")
    shutil.copyfile(tiny_base / "tokenizer.json", spoken / "tokenizer.json")
    for arguments, unchecked in (
        ((spoken,), ["Base", "Tokenizer", "Values", "Trial"]),
        ((spoken, "--base", silent), ["Tokenizer", "Values", "Trial"]),
        ((spoken, "--base", tiny_base), ["Values", "Trial"]),
        ((adapter, "--base", silent), ["Values", "Trial"]),
    ):
        status, text = inspected(capsys, *arguments)
        assert (status, text.count("not checked")) == (0, len(unchecked))
        assert json.loads(inspected(capsys, *arguments, "--output", "json")[1])["unchecked"] == unchecked


def test_values_are_checked_on_the_files_of_a_base(
    make_adapter: Any, make_base: Any, capsys: Any, tmp_path: Path
) -> None:
    for base in (make_base("llama"), make_base("gpt2")):
        start = make_adapter("pissa", base=base, init_lora_weights="pissa")
        adapters = [start, make_adapter("dora", base=base, use_dora=True), make_adapter("plain", base=base)]
        for adapter in adapters:
            arguments = (adapter, "--base", base, "--values", "--output", "json")
            status, text = inspected(capsys, *arguments)
            assert (status, json.loads(text)["unchecked"]) == (0, ["Trial"]), text
    damaged = shutil.copytree(adapters[2], tmp_path / "damaged")
    weights = load_file(damaged / "adapter_model.safetensors")
    name = next(name for name in weights if "lora_B" in name)
    for factor, dtype, code in (
        (float("nan"), "float32", "Corrupt"),
        (1e30, "float16", "Corrupt"),
        (0.0, "float32", "NoEffect"),
    ):
        values = {key: tensor * (factor if key == name or not factor else 1) for key, tensor in weights.items()}
        save_file(values, damaged / "adapter_model.safetensors")
        status, text = inspected(capsys, damaged, "--base", base, "--values", "--dtype", dtype, "--name", "bad")
        assert (status, f"[code: {code}]" in text, "adapter `bad`" in text) == (1, True, True), text
        assert inspected(capsys, damaged, "--base", base)[0] == 0, "nobody looked"


def test_its_own_tokenizer_is_judged_beside_the_base_s(make_adapter: Any, tiny_base: Path, capsys: Any) -> None:
    from transformers import AutoTokenizer

    adapter, grown = make_adapter("words"), make_adapter("grown", rows=331)
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.save_pretrained(adapter)
    assert inspected(capsys, adapter, "--base", tiny_base)[0] == 0
    tokenizer.add_tokens([f"<|{number}|>" for number in range(70)])
    tokenizer.save_pretrained(adapter)
    tokenizer.save_pretrained(grown)
    status, text = inspected(capsys, adapter, "--base", tiny_base)
    assert (status, "[code: TokenizerMismatch]" in text) == (1, True)
    assert "makes token ids up to 328, and the base model has 320 rows (0 … 319)" in text
    assert inspected(capsys, adapter)[0] == 0, "without a base nobody knows"
    assert inspected(capsys, grown, "--base", tiny_base)[0] == 0, "it brings rows for them"
    (adapter / "tokenizer.json").write_text("{}")
    report = json.loads(inspected(capsys, adapter, "--base", tiny_base, "--output", "json")[1])
    assert (report["fault"]["code"], report["unchecked"]) == ("Corrupt", ["Tokenizer", "Values", "Trial"])


def test_values_are_not_checked_beside_files_that_are_quantised(
    make_adapter: Any, tiny_base: Path, tmp_path: Path, capsys: Any
) -> None:
    base, adapter = save_quantised(tiny_base, tmp_path / "base", "nf4"), make_adapter("dora", use_dora=True)
    status, text = inspected(capsys, adapter, "--base", base, "--values", "--output", "json")
    assert (status, json.loads(text)["unchecked"]) == (0, ["Values", "Trial"])
