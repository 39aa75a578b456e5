"""Merging what PEFT's LoRA can be told to train: the merged model answers as PEFT's merge_and_unload() does."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.merge.files import AdapterPath, merge_files
from graft_runtime.merge.memory import merge_into
from graft_runtime.model.load import load_base
from safetensors.torch import load_file, save_file

from tests.support.merges import merge_source
from tests.support.mixed import peft_logits

PROMPT = torch.tensor([[3, 1, 2, 5, 9, 11, 4]])
WEIGHTS = "adapter_model.safetensors"
MERGED: dict[str, tuple[str, dict[str, Any]]] = {
    "dora": ("llama", {"use_dora": True}),
    "biased dora": ("qwen2", {"use_dora": True, "bias": "all"}),
    "dora on a Conv1D": ("gpt2", {"use_dora": True}),
    "lora bias": ("gpt2", {"lora_bias": True}),
    "pissa": ("llama", {"init_lora_weights": "pissa"}),
    "head": ("llama", {"modules_to_save": ["lm_head", "input_layernorm"], "target_modules": ["q_proj"]}),
    "tokens": ("llama", {"trainable_token_indices": [5, 11], "target_modules": ["q_proj"]}),
    "tied tokens": ("tied", {"trainable_token_indices": [5, 11], "target_modules": ["q_proj"]}),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    "biases": ("opt", {"bias": "all"}),
}


def trained(directory: Path, *, with_factors: bool) -> Path:
    """With what PEFT saved besides A and B moved away from the base's."""
    weights = load_file(directory / WEIGHTS)
    generator = torch.Generator().manual_seed(3)
    for name, tensor in weights.items():
        if "base_layer" not in name and (with_factors or "lora_" not in name):
            weights[name] = tensor + 0.2 * torch.randn(tensor.shape, generator=generator)
    save_file(weights, directory / WEIGHTS)
    return directory


@torch.inference_mode()
def merged_by_peft(base: Path, adapter: Path) -> torch.Tensor:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).merge_and_unload()
    return model.eval()(input_ids=PROMPT).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("case", list(MERGED))
@torch.inference_mode()
def test_both_ways_of_merging_are_peft_s(
    case: str, make_base: Callable[..., Path], make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    family, options = MERGED[case]
    base = make_base(family)
    adapter = trained(make_adapter(case, base=base, **options), with_factors="init_lora_weights" in options)
    expected = merged_by_peft(base, adapter)
    loaded = load_base(base, name="tiny", dtype="float32", max_sequence_length=256)
    before = loaded.model(input_ids=PROMPT.to(loaded.device)).logits.cpu()
    assert not torch.allclose(before, expected, atol=1e-2)
    merge_into(loaded, [merge_source(adapter, case)], max_rank=16)
    torch.testing.assert_close(loaded.model.cpu()(input_ids=PROMPT).logits, expected, atol=1e-4, rtol=1e-4)
    merge_files(base, [AdapterPath(adapter)], tmp_path / "output")
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "output")
    torch.testing.assert_close(written(input_ids=PROMPT).logits, expected, atol=1e-4, rtol=1e-4)


UNTIED: dict[str, dict[str, Any]] = {
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "both": {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "whole head": {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]},
    "whole embedding": {"modules_to_save": ["embed_tokens"], "target_modules": ["q_proj"]},
    "tokens apart": {"trainable_token_indices": {"embed_tokens": [5], "lm_head": [9]}, "target_modules": ["q_proj"]},
    "tied adapters": {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True},
}


@pytest.mark.parametrize("case", list(UNTIED))
@torch.inference_mode()
def test_a_tied_head_gets_a_weight_of_its_own(
    case: str, make_base: Callable[..., Path], make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    """Against what PEFT serves: its merge_and_unload writes into both."""
    from transformers import AutoModelForCausalLM

    base = make_base("tied")
    adapter = trained(make_adapter(f"untied {case}", base=base, **UNTIED[case]), with_factors=False)
    (expected,) = peft_logits(base, adapter, [PROMPT[0].tolist()])
    loaded = load_base(base, name="tiny", dtype="float32", max_sequence_length=256)
    embedding = loaded.model.get_input_embeddings().weight.clone()
    merge_into(loaded, [merge_source(adapter, case)], max_rank=16)
    torch.testing.assert_close(loaded.model.cpu()(input_ids=PROMPT).logits[0, -1], expected, atol=1e-4, rtol=1e-4)
    if "head" in case:
        assert torch.equal(loaded.model.get_input_embeddings().weight, embedding.cpu())
    sharded = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(sharded, max_shard_size="20KB")
    assert (sharded / "model.safetensors.index.json").exists()
    for source in (base, sharded):
        output = tmp_path / f"{source.name} merged"
        merge_files(source, [AdapterPath(adapter)], output)
        written, report = AutoModelForCausalLM.from_pretrained(output, output_loading_info=True)
        assert not any(report.values()), report
        torch.testing.assert_close(written(input_ids=PROMPT).logits[0, -1], expected, atol=1e-4, rtol=1e-4)
        again = load_base(output, name="again", dtype="float32", max_sequence_length=256)
        assert again.layout.ties == {}
        lines: list[str] = []
        (output / "config.json").unlink()
        merge_files(source, [AdapterPath(adapter)], output, tell=lines.append)
        assert all("finished already" in line for line in lines), lines


REFUSED: dict[str, dict[str, Any]] = {
    "grown": {"rows": 330, "target_modules": ["q_proj"]},
    "activated": {"alora_invocation_tokens": [2, 5], "target_modules": ["q_proj"]},
    "biased": {"lora_bias": True, "target_modules": ["q_proj"]},
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_no_weight_can_hold_is_refused(case: str, tiny_base: Path, make_adapter: Any, tmp_path: Path) -> None:
    with pytest.raises(GraftError) as caught:
        merge_files(tiny_base, [AdapterPath(make_adapter(case, **REFUSED[case]))], tmp_path / "output")
    assert caught.value.code is ErrorCode.UNSUPPORTED_METHOD
    assert not (tmp_path / "output").exists()


def test_what_does_more_than_to_add_is_merged_alone(tiny_base: Path, make_adapter: Any, tmp_path: Path) -> None:
    normed, plain = AdapterPath(make_adapter("normed", use_dora=True)), AdapterPath(make_adapter("plain"))
    for adapters in ([normed, plain], [AdapterPath(normed.directory, 0.5)]):
        with pytest.raises(GraftError) as caught:
            merge_files(tiny_base, adapters, tmp_path / "output")
        assert caught.value.code is ErrorCode.UNSUPPORTED_METHOD
        assert "`normed`" in caught.value.what
