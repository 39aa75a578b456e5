"""compile(adapter, base) → deltas: every tensor accounted for, scales as PEFT's, only finite values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from graft_runtime.adapters.compile import compile_adapter
from graft_runtime.adapters.deltas import CompiledAdapter
from graft_runtime.adapters.files import read_adapter_files
from graft_runtime.adapters.layout import BaseLayout, EmbeddingShape, LinearShape
from graft_runtime.adapters.methods.lora_config import read_lora_config
from graft_runtime.errors import ErrorCode, GraftError
from safetensors.torch import save_file

Q, V = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"
LAYOUT = BaseLayout(
    "acme/base",
    {Q: LinearShape(8, 8), V: LinearShape(8, 6)},
    embeddings={"model.embed_tokens": EmbeddingShape(8, 8)},
    norms={"model.norm": {"weight": 8}},
)
CONFIG: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}


def no_base(path: str) -> Any:
    raise AssertionError(f"plain LoRA reads no weight of the base, {path}")


def pair(path: str, rank: int = 4, inputs: int = 8, outputs: int = 8) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return {
        f"base_model.model.{path}.lora_A.weight": torch.randn(rank, inputs, generator=generator),
        f"base_model.model.{path}.lora_B.weight": torch.randn(outputs, rank, generator=generator),
    }


def compiled(
    directory: Path,
    tensors: dict[str, torch.Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
    **changes: Any,
) -> CompiledAdapter:
    (directory / "adapter_config.json").write_text(json.dumps(CONFIG | changes))
    save_file(tensors or pair(Q) | pair(V, outputs=6), directory / "adapter_model.safetensors")
    files = read_adapter_files(directory, name="sql", max_rank=64)
    return compile_adapter(files, LAYOUT, no_base, dtype=dtype, device=torch.device("cpu"))


def refusal(directory: Path, tensors: dict[str, torch.Tensor] | None = None, **options: Any) -> GraftError:
    with pytest.raises(GraftError) as caught:
        compiled(directory, tensors, **options)
    assert "`sql`" in caught.value.what
    return caught.value


@pytest.mark.parametrize(
    ("changes", "scale"),
    [
        ({}, 2.0),
        ({"use_rslora": True}, 4.0),
        ({"lora_alpha": 0.5}, 0.125),
        ({"alpha_pattern": {"q_proj": 2}}, 0.5),
        ({"alpha_pattern": {"proj": 2}}, 2.0),  # no key matches in the middle of a name
        ({"alpha_pattern": {".*proj": 2, "q_proj": 99}}, 0.5),  # the first that matches
        ({"alpha_pattern": {"^model.*q_proj": 2}}, 0.5),
        ({"alpha_pattern": {"layers.0.self_attn.q_proj": 2}, "use_rslora": True}, 1.0),
        ({"r": 9, "rank_pattern": {"self_attn.[qv]_proj": 4}}, 2.0),
        ({"fan_in_fan_out": True}, 2.0),
        ({"target_modules": r".*self_attn\.(q|v)_proj"}, 2.0),
        ({"target_modules": "all-linear"}, 2.0),
        ({"layers_to_transform": [0], "layers_pattern": "layers"}, 2.0),
    ],
)
def test_the_scale_is_peft_s(tmp_path: Path, changes: dict[str, Any], scale: float) -> None:
    adapter = compiled(tmp_path, **changes)
    saved = pair(Q)
    delta = adapter.modules[Q].low_rank
    assert delta is not None
    assert torch.equal(delta.a, saved[f"base_model.model.{Q}.lora_A.weight"])
    assert torch.allclose(delta.b, scale * saved[f"base_model.model.{Q}.lora_B.weight"].T)
    assert adapter.bytes == 4 * (4 * 8 + 8 * 4 + 4 * 8 + 6 * 4)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj"]},
        {"target_modules": "q_proj"},
        {"target_modules": ["self_attn.q_proj"]},
        {"target_modules": ["proj", "mlp"]},
        {"target_modules": ["q_proj", "k_proj"], "exclude_modules": ["layers.1.self_attn.q_proj"]},
        {"target_modules": ["q_proj", "k_proj"], "exclude_modules": r".*\.1\..*"},
        {"target_modules": r".*\.(0|2)\..*q_proj"},
        {"target_modules": ["q_proj"], "layers_to_transform": [1, 2]},
        {"target_modules": ["q_proj"], "layers_to_transform": 1, "layers_pattern": ["h", "layers"]},
        {"target_modules": ["q_proj"], "layers_to_transform": 1, "layers_pattern": "blocks"},
        {"target_modules": ["model.layers.1.self_attn.q_proj"], "layers_to_transform": [0]},
    ],
)
def test_targets_and_ranks_agree_with_peft(options: dict[str, Any]) -> None:
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists
    from peft.utils.other import get_pattern_key

    ranks = {r"1\.self_attn\.q_proj": 3, "q_proj": 5, "model.*k_proj": 7}
    paths = [
        f"{prefix}{layer}.{name}"
        for prefix in ("model.layers.", "layers.", "model.h.", "blocks.")
        for layer in range(3)
        for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "mlp.experts.1.q_proj", "xq_proj")
    ]
    theirs = LoraConfig(r=4, rank_pattern=ranks, **options)
    mine = read_lora_config({"peft_type": "LORA", "r": 4, "rank_pattern": ranks, **options}, "sql")
    for path in paths:
        assert (path in mine.targets) == bool(check_target_module_exists(theirs, path)), path
        assert mine.rank_of(path) == ranks.get(get_pattern_key(list(ranks), path), 4), path


@pytest.mark.parametrize("stored", [torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_every_floating_dtype_is_read(tmp_path: Path, stored: torch.dtype) -> None:
    saved = {name: tensor.to(stored) for name, tensor in (pair(Q) | pair(V, outputs=6)).items()}
    adapter = compiled(tmp_path, saved, dtype=torch.bfloat16)
    expected = saved[f"base_model.model.{Q}.lora_A.weight"].to(torch.float32).to(torch.bfloat16)
    assert torch.equal(adapter.modules[Q].tensors[0], expected)


def test_a_file_of_several_dtypes(tmp_path: Path) -> None:
    halves = {name: tensor.to(torch.bfloat16) for name, tensor in pair(V, rank=3, outputs=6).items()}
    adapter = compiled(tmp_path, pair(Q) | halves, rank_pattern={"v_proj": 3})
    assert torch.equal(adapter.modules[V].tensors[0], halves[f"base_model.model.{V}.lora_A.weight"].float())
    assert torch.equal(adapter.modules[Q].tensors[0], pair(Q)[f"base_model.model.{Q}.lora_A.weight"])


def test_what_is_known_of_the_values_bounds_them(tmp_path: Path) -> None:
    adapter = compiled(tmp_path, dtype=torch.bfloat16, lora_alpha=40)
    for delta in adapter.modules.values():
        assert max(tensor.abs().max() for tensor in delta.tensors) <= delta.largest < 100


def test_a_base_of_another_size(tmp_path: Path) -> None:
    error = refusal(tmp_path, pair(Q, inputs=7) | pair(V, outputs=6), base_model_name_or_path="Qwen/Qwen2.5-0.5B")
    assert str(error) == (
        "adapter `sql` can't be mounted on `acme/base`: 1 of 4 tensors don't fit\n"
        f"  {Q}.lora_A: adapter (4, 7), model needs (4, 8)\n\n"
        "hint: adapter_config.json names base model `Qwen/Qwen2.5-0.5B`; set spec.baseModel to the model it was "
        "trained for, or train it for this one   [code: ShapeMismatch]"
    )


def test_modules_that_the_base_does_not_have(tmp_path: Path) -> None:
    beyond = Q.replace("layers.0", "layers.1")
    error = refusal(tmp_path, pair(Q) | pair(beyond))
    assert error.code == ErrorCode.MODULE_MISSING
    assert error.details == (f"{beyond}: the model has no such module",)
    error = refusal(tmp_path, pair("transformer.h.0.attn.c_attn"), target_modules=["c_attn"])
    assert error.code == ErrorCode.BASE_MISMATCH


def test_modules_that_are_not_linear(tmp_path: Path) -> None:
    error = refusal(tmp_path, pair(Q) | pair("model.embed_tokens"), target_modules=["q_proj", "embed_tokens"])
    assert error.code == ErrorCode.UNSUPPORTED_METHOD
    assert error.details == ("model.embed_tokens: an embedding",)


@pytest.mark.parametrize(
    "changes",
    [
        {"r": 8},
        {"rank_pattern": {"q_proj": 2}},
        {"target_modules": ["q_proj"]},
        {"target_modules": "q_proj"},
        {"exclude_modules": ["v_proj"]},
        {"layers_to_transform": [1]},
    ],
)
def test_a_config_that_contradicts_the_tensors(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert refusal(tmp_path, **changes).code == ErrorCode.INVALID_CONFIG


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(tmp_path: Path, value: float) -> None:
    tensors = pair(Q) | pair(V, outputs=6)
    name = f"base_model.model.{V}.lora_B.weight"
    tensors[name][3, 1] = value
    error = refusal(tmp_path, tensors)
    assert error.code == ErrorCode.CORRUPT
    assert error.details == (f"{name}: values that are not finite",)


def test_values_that_overflow_once_scaled_or_cast(tmp_path: Path) -> None:
    tensors = pair(Q) | pair(V, outputs=6)
    tensors[f"base_model.model.{Q}.lora_B.weight"][0, 0] = 4e4
    assert compiled(tmp_path, tensors).modules
    assert refusal(tmp_path, tensors, dtype=torch.float16).code == ErrorCode.CORRUPT
    tensors[f"base_model.model.{Q}.lora_B.weight"][0, 0] = 1e30
    assert refusal(tmp_path, tensors, lora_alpha=1e18).code == ErrorCode.CORRUPT


def test_an_adapter_that_changes_nothing(tmp_path: Path) -> None:
    tensors = pair(Q) | pair(V, outputs=6)
    for name in tensors:
        if "lora_B" in name:
            tensors[name].zero_()
    assert refusal(tmp_path, tensors).code == ErrorCode.NO_EFFECT
    assert refusal(tmp_path, lora_alpha=0).code == ErrorCode.NO_EFFECT


def test_weights_that_are_cut_after_the_check(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    weights = tmp_path / "adapter_model.safetensors"
    save_file(pair(Q) | pair(V, outputs=6), weights)
    files = read_adapter_files(tmp_path, name="sql", max_rank=64)
    with weights.open("r+b") as file:
        file.truncate(weights.stat().st_size // 2)
    with pytest.raises(GraftError) as caught:
        compile_adapter(files, LAYOUT, no_base, dtype=torch.float32, device=torch.device("cpu"))
    assert caught.value.code == ErrorCode.CORRUPT
