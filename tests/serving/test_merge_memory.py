"""A merge in memory equals PEFT's: weights bit for bit where PEFT's rule is the same, logits and greedy answers."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.merge.memory import merge_into
from graft_runtime.messages import BaseFailed, BaseLoaded, Generate, MergeSource, Sampling
from graft_runtime.model.load import BaseModel, load_base
from safetensors.torch import load_file, save_file

from tests.support.merges import merge_source

PROMPT = [256, *b"select * from users"]
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "stabilized": {"r": 8, "lora_alpha": 4, "use_rslora": True},
    "patterned": {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"v_proj": 3, "down_proj": 1.5}},
}


def loaded(base: Path, dtype: str = "float32") -> BaseModel:
    return load_base(base, name="tiny", dtype=dtype, max_sequence_length=4096)


def source(adapter: Path, weight: float = 1.0) -> MergeSource:
    return merge_source(adapter, adapter.name, weight)


def merged_by_peft(base: Path, adapters: Sequence[tuple[Path, float]], dtype: torch.dtype = torch.float32) -> Any:
    """One adapter after the other, each with its weight."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for adapter, weight in adapters:
            wrapped = PeftModel.from_pretrained(model, adapter)
            for module in wrapped.modules():
                if hasattr(module, "scale_layer"):
                    module.scale_layer(weight)
            model = wrapped.merge_and_unload()
    return model


def assert_same_weights(mine: Any, theirs: Any) -> None:
    expected = theirs.state_dict()
    different = [name for name, tensor in mine.state_dict().items() if not torch.equal(tensor, expected[name])]
    assert different == []


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([PROMPT])).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("options", list(OPTIONS))
def test_one_adapter_gives_the_very_bits_of_peft(options: str, dtype: str, tiny_base: Path, make_adapter: Any) -> None:
    adapter, base = make_adapter(options, **OPTIONS[options]), loaded(tiny_base, dtype)
    before = logits(base.model)
    merge_into(base, [source(adapter)], max_rank=16)
    assert_same_weights(base.model, merged_by_peft(tiny_base, [(adapter, 1.0)], getattr(torch, dtype)))
    assert not torch.allclose(logits(base.model), before, atol=0.1)


@pytest.mark.parametrize("family", ["qwen3", "gemma3", "mistral", "gpt2", "opt", "bloom"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_family_gives_the_very_bits_of_peft(family: str, dtype: str, make_base: Any, make_adapter: Any) -> None:
    directory = make_base(family)
    adapter, base = make_adapter(family, base=directory), loaded(directory, dtype)
    merge_into(base, [source(adapter, -0.5)], max_rank=16)
    assert_same_weights(base.model, merged_by_peft(directory, [(adapter, -0.5)], getattr(torch, dtype)))


def test_several_adapters_with_weights_add_up(tiny_base: Path, make_adapter: Any) -> None:
    parts = [
        (make_adapter("everywhere"), 0.7),
        (make_adapter("attention", target_modules=["q_proj", "v_proj"], r=8, use_rslora=True), -1.25),
        (make_adapter("feed-forward", target_modules=["down_proj"]), 2.0),
    ]
    base = loaded(tiny_base)
    merge_into(base, [source(*part) for part in parts], max_rank=16)
    assert_same_weights(base.model, merged_by_peft(tiny_base, parts))


def test_the_sum_is_rounded_once(tiny_base: Path, make_adapter: Any) -> None:
    parts = [(make_adapter("first"), 0.7), (make_adapter("second"), 0.9)]
    base = loaded(tiny_base, "bfloat16")
    merge_into(base, [source(*part) for part in parts], max_rank=16)
    exact = merged_by_peft(tiny_base, parts).to(torch.bfloat16)  # the base is exact in float32: sums there, rounds here
    plain = loaded(tiny_base, "bfloat16").model.state_dict()
    for name, tensor in merged_by_peft_from(tiny_base, parts, plain).items():
        assert torch.equal(base.model.state_dict()[name], tensor), name
    assert logits(base.model).shape == logits(exact).shape


def merged_by_peft_from(
    base: Path, parts: Sequence[tuple[Path, float]], rounded: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """What PEFT adds in float32 to the weights as they are in bfloat16, rounded at the end."""
    model = merged_by_peft(base, [])
    model.load_state_dict({name: tensor.float() for name, tensor in rounded.items()})
    model.save_pretrained(base.parent / "rounded")
    summed = merged_by_peft(base.parent / "rounded", parts)
    return {name: tensor.to(torch.bfloat16) for name, tensor in summed.state_dict().items()}


def test_the_engine_answers_like_the_merged_model(tiny_base: Path, make_adapter: Any, in_process: Any) -> None:
    adapter = make_adapter("served")
    engine = in_process(tiny_base, merge=(source(adapter),))
    (started,) = engine.started
    assert isinstance(started, BaseLoaded)
    answer = engine.answers([Generate("r", PROMPT, 16, sampling=Sampling(temperature=0))])["r"]
    model = merged_by_peft(tiny_base, [(adapter, 1.0)])
    expected = model.generate(
        torch.tensor([PROMPT]), max_new_tokens=16, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert answer == expected[0, len(PROMPT) :].tolist()
    assert engine.answers([Generate("r", PROMPT, 16, sampling=Sampling(temperature=0))])["r"] == answer


# what is refused


def changed(adapter: Path, **tensors: Any) -> Path:
    """Rewrites tensors whose names hold a key."""
    weights = load_file(adapter / "adapter_model.safetensors")
    for part, change in tensors.items():
        weights.update({name: change(tensor) for name, tensor in weights.items() if part in name})
    save_file(weights, adapter / "adapter_model.safetensors")
    return adapter


def refused(base: Path, *parts: MergeSource, dtype: str = "float32") -> GraftError:
    with pytest.raises(GraftError) as caught:
        merge_into(loaded(base, dtype), parts, max_rank=16)
    return caught.value


def test_the_faults_are_those_of_a_mount(tiny_base: Path, make_base: Any, make_adapter: Any) -> None:
    good = source(make_adapter("good"))
    cases = {
        ErrorCode.RANK_TOO_HIGH: source(make_adapter("huge", r=32)),
        ErrorCode.CORRUPT: source(changed(make_adapter("nan"), q_proj=lambda tensor: tensor * float("nan"))),
        ErrorCode.NO_EFFECT: source(changed(make_adapter("zero"), lora_B=torch.zeros_like)),
        ErrorCode.BASE_MISMATCH: source(make_adapter("other", base=make_base("gpt2"))),
    }
    for code, bad in cases.items():
        error = refused(tiny_base, good, bad)
        assert error.code is code
        assert f"`{bad.part.name}`" in error.what
    assert refused(tiny_base, good, source(make_adapter("none"), 0.0)).code is ErrorCode.NO_EFFECT


def test_what_overflows_or_is_lost_in_rounding_is_refused(tiny_base: Path, make_adapter: Any) -> None:
    large = changed(make_adapter("large"), lora_=lambda tensor: tensor * 1e5)
    error = refused(tiny_base, source(large), dtype="float16")
    assert (error.code, "`large`" in error.what) == (ErrorCode.CORRUPT, True)
    error = refused(tiny_base, source(make_adapter("small"), 1e-9), dtype="bfloat16")
    assert error.code is ErrorCode.NO_EFFECT
    assert "rounding" in error.what


def test_what_is_half_merged_can_t_be_served(tiny_base: Path, make_adapter: Any) -> None:
    base = loaded(tiny_base)
    large = changed(make_adapter("late"), **{"layers.1.self_attn.v_proj": lambda tensor: tensor * 1e30})
    with pytest.raises(GraftError):
        merge_into(base, [source(large)], max_rank=16)
    assert {parameter.device.type for parameter in base.model.parameters()} == {"meta"}
    base, bad = loaded(tiny_base), source(make_adapter("bad", r=32))
    before = logits(base.model)
    with pytest.raises(GraftError):
        merge_into(base, [source(make_adapter("good")), bad], max_rank=16)
    assert torch.equal(logits(base.model), before), "nothing was written yet"


def test_a_bad_adapter_fails_the_base(tiny_base: Path, make_adapter: Any, in_process: Any) -> None:
    (event,) = in_process(tiny_base, merge=(source(make_adapter("good")), source(make_adapter("bad", r=32)))).started
    assert isinstance(event, BaseFailed)
    assert event.fault.code == ErrorCode.RANK_TOO_HIGH
    assert json.dumps(event.fault.what).count("bad") == 1
