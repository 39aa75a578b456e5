"""No base is Ready that can't answer: every runner is tried at load, and what fails is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from graft_runtime.errors import ErrorCode
from graft_runtime.messages import BaseFailed, Generate, Mounted, MountFailed, Sampling
from graft_runtime.runners.together import Together
from safetensors.torch import load_file, save_file

from tests.support.bases import save_tokenizer

Forward = Callable[..., Any]


def _raises(_: Forward) -> Forward:
    def forward(self: Any, input_ids: Any = None, past_key_values: Any = None, **_: Any) -> Any:
        raise RuntimeError("no such kernel")

    return forward


def _is_out_of_memory(_: Forward) -> Forward:
    def forward(self: Any, input_ids: Any = None, past_key_values: Any = None, **_: Any) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    return forward


def _counts_passes(stock: Forward) -> Forward:
    """What it says depends on how often it was asked: nothing that rows could be kept apart by."""
    passes = [0.0]

    def forward(self: Any, input_ids: Any = None, past_key_values: Any = None, **more: Any) -> Any:
        passes[0] += 1
        made = stock(self, input_ids=input_ids, past_key_values=past_key_values, **more)
        made.logits = made.logits * passes[0]
        return made

    return forward


def _takes_no_cache(_: Forward) -> Forward:
    return lambda self, input_ids=None: None


@pytest.mark.parametrize(
    ("edit", "code", "what"),
    [
        (_raises, "NotAModel", "BloomForCausalLM failed on a trial: RuntimeError: no such kernel"),
        (_is_out_of_memory, "NoCapacity", "does not fit into the memory that is left"),
        (_counts_passes, "NotAModel", "what it says of one request depends on others"),
        (_takes_no_cache, "NotAModel", "BloomForCausalLM takes no cache"),
    ],
)
def test_a_base_that_the_padded_runner_can_t_run_fails(
    edit: Callable[[Forward], Forward],
    code: str,
    what: str,
    make_base: Any,
    in_process: Any,
    *,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transformers import BloomForCausalLM

    monkeypatch.setattr(BloomForCausalLM, "forward", edit(BloomForCausalLM.forward))
    (failed,) = in_process(make_base("bloom")).started
    assert isinstance(failed, BaseFailed)
    assert failed.fault.code == code
    assert what in failed.fault.what


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_a_base_of_values_that_are_no_numbers_fails(
    family: str, make_base: Any, in_process: Any, tmp_path: Path
) -> None:
    import shutil

    directory = shutil.copytree(make_base(family), tmp_path / "base")
    weights = load_file(directory / "model.safetensors")
    name = next(name for name in weights if "norm" in name)
    save_file(weights | {name: weights[name] * torch.nan}, directory / "model.safetensors", {"format": "pt"})
    (failed,) = in_process(directory).started
    assert isinstance(failed, BaseFailed)
    assert (failed.fault.code, "values that are not finite" in failed.fault.what) == ("NotAModel", True)


def test_a_base_with_a_cache_that_is_not_ours_fails(tmp_path: Path, in_process: Any) -> None:
    import transformers as hf

    config = hf.MiniMaxConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=4,
        layer_types=["linear_attention", "full_attention"],
    )
    hf.MiniMaxForCausalLM(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    (failed,) = in_process(tmp_path).started
    assert isinstance(failed, BaseFailed)
    assert (failed.fault.code, "MiniMax uses cache of its own" in failed.fault.what) == ("NotAModel", True)


def test_a_base_that_takes_no_text_fails(tmp_path: Path, in_process: Any) -> None:
    import transformers as hf

    tower: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    hf.ViTModel(hf.ViTConfig(**tower, num_attention_heads=4, image_size=28, patch_size=14)).save_pretrained(tmp_path)
    (failed,) = in_process(tmp_path).started
    assert isinstance(failed, BaseFailed)
    assert (failed.fault.code, "ViTModel takes no token ids" in failed.fault.what) == ("NotAModel", True)


def _mixes_rows(stock: Forward) -> Forward:
    def forward(self: Any, input_ids: Any = None, past_key_values: Any = None, **more: Any) -> Any:
        made = stock(self, input_ids=input_ids, past_key_values=past_key_values, **more)
        made.logits = made.logits + made.logits.flip(0)
        return made

    return forward


def test_rows_that_can_t_be_kept_apart_get_a_batch_each(
    make_base: Any, in_process: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import BloomForCausalLM

    prompts = ([1, 2, 3, 4], [5, 6, 7, 8], [9, 8])
    submits = [Generate(str(row), ids, 6, (), Sampling(temperature=0)) for row, ids in enumerate(prompts)]
    expected = in_process(make_base("bloom")).answers(submits)
    monkeypatch.setattr(BloomForCausalLM, "forward", _mixes_rows(BloomForCausalLM.forward))
    engine = in_process(make_base("bloom"))
    assert engine.engine.serving.runner.together.rows is Together.ONE_ROW
    assert engine.answers(submits) == expected


def test_an_adapter_that_would_reach_other_rows_is_not_mounted(
    make_base: Any, make_adapter: Any, in_process: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its base hands a module the rows in another order than the others: no model of Transformers does."""
    from transformers.models.bloom.modeling_bloom import BloomMLP

    stock = BloomMLP.forward
    monkeypatch.setattr(
        BloomMLP, "forward", lambda self, states, residual: stock(self, states.flip(0), residual.flip(0)).flip(0)
    )
    base = make_base("bloom")
    engine = in_process(base)
    failed = engine.mount("mlp", make_adapter("mlp", base=base, target_modules=["dense_h_to_4h"]))
    assert isinstance(failed, MountFailed), failed
    assert failed.fault.code == ErrorCode.UNSUPPORTED_METHOD
    assert "changes what the base says in the same pass" in failed.fault.what
    assert failed.fault.details[0] == "transformer.h.0.mlp.dense_h_to_4h"
    assert isinstance(engine.mount("qkv", make_adapter("qkv", base=base, target_modules=["query_key_value"])), Mounted)
