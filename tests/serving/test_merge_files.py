"""A merge from files to files: the bits of PEFT's merge, a checkpoint that Transformers loads, resumable."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from graft_runtime.__main__ import main
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.merge import files as merge_module
from graft_runtime.merge.files import AdapterPath, merge_files
from safetensors.torch import load_file


def saved(base: Path, directory: Path, dtype: torch.dtype, shard: str = "20GB") -> Path:
    """The base in another dtype or in shards, with its tokenizer."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    model.save_pretrained(directory, max_shard_size=shard)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(base / name, directory / name)
    return directory


def merged_by_peft(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
        return PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()  # type: ignore[no-any-return]


def assert_is_merge(output: Path, base: Path, adapter: Path) -> None:
    from transformers import AutoModelForCausalLM

    expected = merged_by_peft(base, adapter)
    model, report = AutoModelForCausalLM.from_pretrained(output, dtype="auto", output_loading_info=True)
    assert not any(report.values()), report
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_output_is_what_peft_makes(
    family: str, dtype: torch.dtype, make_base: Any, make_adapter: Any, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    base = saved(make_base(family), tmp_path / "base", dtype)
    adapter = make_adapter(family, base=make_base(family), use_rslora=True)
    merge_files(base, [AdapterPath(adapter)], tmp_path / "output")
    assert_is_merge(tmp_path / "output", base, adapter)
    ids = [AutoTokenizer.from_pretrained(directory)("hello").input_ids for directory in (base, tmp_path / "output")]
    assert ids[0] == ids[1]
    assert {path.name for path in base.iterdir()} <= {path.name for path in (tmp_path / "output").iterdir()}


def test_a_bare_model_s_checkpoint_is_merged(make_base: Any, make_adapter: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    base = saved(make_base("gpt2"), tmp_path / "base", torch.float32)
    weights = load_file(base / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    save_file(bare, base / "model.safetensors", metadata={"format": "pt"})
    adapter = make_adapter("bare", base=make_base("gpt2"))
    merge_files(base, [AdapterPath(adapter)], tmp_path / "output")
    assert_is_merge(tmp_path / "output", base, adapter)


def test_an_interrupted_merge_goes_on(
    tiny_base: Path, make_adapter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = saved(tiny_base, tmp_path / "base", torch.bfloat16, shard="20KB")
    adapter, output = make_adapter("sharded"), tmp_path / "output"
    merge_files(base, [AdapterPath(adapter, 0.5)], tmp_path / "whole")
    shards = sorted(path.name for path in (tmp_path / "whole").glob("*.safetensors"))
    assert len(shards) > 3

    merge_file = merge_module._merge_file
    finished: list[str] = []

    def interrupted(source: Path, target: Path, *rest: Any) -> None:
        if len(finished) == 2:
            target.with_name(target.name + ".partial").write_bytes(b"half of it")
            raise OSError("the disk is gone")
        merge_file(source, target, *rest)
        finished.append(target.name)

    monkeypatch.setattr(merge_module, "_merge_file", interrupted)
    with pytest.raises(OSError, match="the disk is gone"):
        merge_files(base, [AdapterPath(adapter, 0.5)], output)
    assert not (output / "config.json").exists()
    monkeypatch.undo()
    told: list[str] = []
    kept = {name: (output / name).stat().st_mtime_ns for name in finished}
    with pytest.raises(GraftError) as caught:
        merge_files(base, [AdapterPath(adapter, 0.75)], output)
    assert caught.value.code is ErrorCode.INVALID_REQUEST
    merge_files(base, [AdapterPath(adapter, 0.5)], output, tell=told.append)
    assert told[:3] == [
        f"{shards[0]} is finished already",
        f"{shards[1]} is finished already",
        f"{shards[2]} is finished",
    ]
    assert {name: (output / name).stat().st_mtime_ns for name in finished} == kept
    assert {path.name: path.read_bytes() for path in output.iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()
    }


def test_several_adapters_with_weights_by_the_command_line(
    tiny_base: Path, make_adapter: Any, drift: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = make_adapter("first"), make_adapter("second", target_modules=["q_proj", "v_proj"])
    moved = drift(shutil.copytree(second, tmp_path / "moved"))
    arguments = ["merge", f"--base={tiny_base}", f"--adapter={first}=0.5", f"--adapter={moved}"]
    capsys.readouterr()  # what Transformers tells of the adapters
    with pytest.raises(SystemExit) as ended:
        main([*arguments, f"--output={tmp_path / 'both'}"])
    assert ended.value.code == 0
    assert capsys.readouterr().err.splitlines() == [
        "adapter `moved` names its modules otherwise than its base: nothing → model at the start of modules' names",
        "model.safetensors is finished",
    ]
    base, both = load_file(tiny_base / "model.safetensors"), load_file(tmp_path / "both" / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    expected = base[name]
    for adapter, weight in ((first, 0.5), (second, 1.0)):
        lora = load_file(adapter / "adapter_model.safetensors")
        module = "base_model.model." + name.removesuffix(".weight")
        product = lora[f"{module}.lora_B.weight"] @ lora[f"{module}.lora_A.weight"]
        expected = expected + product * (2.0 * weight)
    assert torch.equal(both[name], expected)
    assert torch.equal(both["model.embed_tokens.weight"], base["model.embed_tokens.weight"])
    record = json.loads((tmp_path / "both" / "graft_merge.json").read_text())
    assert [(adapter["name"], adapter["weight"]) for adapter in record["adapters"]] == [("first", 0.5), ("moved", 1.0)]


def test_a_merge_without_effect_leaves_nothing(tiny_base: Path, make_adapter: Any, tmp_path: Path) -> None:
    base, adapter = saved(tiny_base, tmp_path / "base", torch.bfloat16), make_adapter("faint")
    for _ in range(2):
        with pytest.raises(GraftError) as caught:
            merge_files(base, [AdapterPath(adapter, 1e-9)], tmp_path / "output")
        assert caught.value.code is ErrorCode.NO_EFFECT
        assert list((tmp_path / "output").iterdir()) == []


def test_at_most_one_tensor_is_in_memory(tmp_path: Path, make_adapter: Any) -> None:
    """The checkpoint is far larger than what the merge may hold."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 12, "vocab_size": 320}
    config = LlamaConfig(**sizes, num_attention_heads=8, num_key_value_heads=8, tie_word_embeddings=False)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base", max_shard_size="30MB")
    adapter = make_adapter("large", base=tmp_path / "base", target_modules=["down_proj", "q_proj"])
    script = """
import resource, sys
from pathlib import Path
from graft_runtime.merge import files
base, adapter, output = map(Path, sys.argv[1:])
files.empty_model(base, name="warm")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
files.merge_files(base, [files.AdapterPath(adapter)], output)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""
    paths = map(str, (tmp_path / "base", adapter, tmp_path / "output"))
    ended = subprocess.run([sys.executable, "-c", script, *paths], capture_output=True, text=True, check=True)
    size = sum(path.stat().st_size for path in (tmp_path / "output").glob("*.safetensors"))
    assert size > 100 << 20
    assert int(ended.stdout) < 32 << 20


def test_faults_come_before_the_output(tiny_base: Path, make_adapter: Any, make_base: Any, tmp_path: Path) -> None:
    foreign = make_adapter("foreign", base=make_base("gpt2"))
    ended = subprocess.run(
        [sys.executable, "-m", "graft_runtime", "merge", "--base", str(tiny_base), "--adapter", str(foreign),
         "--output", str(tmp_path / "output")],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert ended.returncode == 2
    assert "[code: BaseMismatch]" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "output").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(GraftError) as caught:
        merge_files(tiny_base, [AdapterPath(make_adapter("good"))], tmp_path / "full")
    assert caught.value.code is ErrorCode.INVALID_REQUEST
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["notes.txt"]
