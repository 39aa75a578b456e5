"""Prompt tuning, P-tuning and prefix tuning against PEFT in float32: alone, and mixed with LoRA and the base."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from graft_runtime.adapters.files import read_adapter_files
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.messages import Generate, Mounted, MountFailed, Sampling, ServedAdapter
from safetensors.torch import load_file, save_file

from tests.support.methods import save_prompt

PROMPTS = ([3, 1, 2, 5, 9, 11, 4], [7, 8, 300, 6], [1, 2, 5])
WEIGHTS = "adapter_model.safetensors"


@torch.inference_mode()
def greedy(base: Path, adapter: Path | None, prompt: Sequence[int], count: int) -> list[int]:
    """PEFT's, by whole forward passes: its own cache and masks are not what is compared."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(base)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, adapter)
        model.eval()
        ids = list(prompt)
        for _ in range(count):
            tensor = torch.tensor([ids])
            logits = model(input_ids=tensor, attention_mask=torch.ones_like(tensor)).logits
            ids.append(int(logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize(
    ("family", "runner"),
    [(family, "decoder") for family in ("llama", "gemma3", "gpt2", "opt")]
    + [(family, "padded") for family in ("bloom", "gemma3", "mistral")],
)
def test_mixed_with_others(
    family: str,
    runner: str,
    make_base: Callable[..., Path],
    make_adapter: Any,
    *,
    in_process: Any,
    tmp_path: Path,
    padded_alone: Callable[[], None],
) -> None:
    if runner == "padded":
        padded_alone()
    base = make_base(family)
    adapters: dict[str, Path] = {name: save_prompt(base, tmp_path / name, name) for name in ("prompt", "p", "prefix")}
    adapters["long"] = save_prompt(base, tmp_path / "long", "prefix", tokens=12)
    adapters["lora"] = make_adapter("lora", base=base)
    engine = in_process(base)
    assert engine.started[0].runner == runner
    for name, directory in adapters.items():
        assert isinstance(engine.mount(name, directory), Mounted), name
    cases = [(name, prompt) for prompt in PROMPTS for name in (*adapters, None)]
    submits = [
        Generate(
            f"{name} {len(prompt)}",
            list(prompt),
            6,
            (ServedAdapter(name, 1.0),) if name else (),
            sampling=Sampling(temperature=0),
        )
        for name, prompt in cases
    ]
    expected = {}
    for whose, prompt in cases:
        expected[f"{whose} {len(prompt)}"] = greedy(base, adapters[whose] if whose else None, prompt, 6)
    for adapter in adapters:
        assert any(expected[f"{adapter} {len(prompt)}"] != expected[f"None {len(prompt)}"] for prompt in PROMPTS)
    assert engine.answers(submits) == expected
    assert engine.answers(submits[::-1]) == expected
    for submit in submits[:4]:
        assert engine.answers([submit]) == {submit.request: expected[submit.request]}


def test_what_does_not_fit(make_base: Any, in_process: Any, tmp_path: Path) -> None:
    engine = in_process(make_base("llama"))
    for method in ("prompt", "prefix"):
        directory = save_prompt(make_base("llama"), tmp_path / method, method)
        tensors = load_file(directory / WEIGHTS)
        save_file({name: tensor[:, :-1].contiguous() for name, tensor in tensors.items()}, directory / WEIGHTS)
        failed = engine.mount(method, directory)
        assert isinstance(failed, MountFailed)
        assert failed.fault.code in (ErrorCode.SHAPE_MISMATCH, ErrorCode.BASE_MISMATCH)
    engine = in_process(make_base("mamba"))
    failed = engine.mount("state", save_prompt(make_base("llama"), tmp_path / "state", "prefix"))
    assert isinstance(failed, MountFailed)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"num_virtual_tokens": 4}, ErrorCode.INVALID_CONFIG),
        ({"num_virtual_tokens": "5"}, ErrorCode.INVALID_CONFIG),
        ({"num_virtual_tokens": 1 << 19}, ErrorCode.INVALID_CONFIG),
        ({"num_transformer_submodules": 2}, ErrorCode.UNSUPPORTED_METHOD),
        ({"an_option_of_next_year": 1}, ErrorCode.UNSUPPORTED_METHOD),
    ],
)
def test_configs_that_are_refused(tiny_base: Path, tmp_path: Path, changes: dict[str, Any], code: ErrorCode) -> None:
    directory = save_prompt(tiny_base, tmp_path / "sql", "prompt")
    config = json.loads((directory / "adapter_config.json").read_text())
    (directory / "adapter_config.json").write_text(json.dumps(config | changes))
    with pytest.raises(GraftError) as caught:
        read_adapter_files(directory, name="sql", max_rank=8)
    assert caught.value.code is code
