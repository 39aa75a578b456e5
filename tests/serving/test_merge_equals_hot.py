"""A merged base answers as its adapter does in hot mode, for all that a trainer's `all-linear` makes of each family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.merge.files import AdapterPath, merge_files
from graft_runtime.messages import BaseFailed, BaseLoaded, Encode, Encoded, Generate, Mounted, Sampling, ServedAdapter

from tests.support.families import DECODERS, SEQ_2_SEQ, build_family
from tests.support.merges import merge_source
from tests.support.wrapped import IMAGE, build_wrapped, save_wrapped_adapter

PROMPTS = ([3, 1, 2, 5, 9, 11, 4], [7, 8, 30, 6], [1, 2, 5, IMAGE, 8])
GENERATING = (
    *("llama", "mistral", "tied", "qwen2", "qwen3", "gemma3", "gemma2", "gpt_oss", "phi3", "gpt_neox", "gpt2", "opt"),
    *("bloom", "mamba", "t5", "bart"),
)
STACKING = ("mixtral", "qwen3_moe", "nemotron_h", "jamba")
ENCODING = ("bert", "roberta", "deberta", "xlnet")
NOT_AS_TEXT = ("paligemma",)
"""It is not made by AutoModelForCausalLM."""
OTHERS = sorted((DECODERS.keys() | SEQ_2_SEQ.keys()) - {*GENERATING, *STACKING, *NOT_AS_TEXT})
WRAPPED = ("gemma3", "mistral3", "llava", "qwen2_5_vl", "qwen3_vl")
TARGETS = {
    "mamba": ["in_proj", "x_proj", "dt_proj"],  # PEFT makes none of out_proj
    "mamba2": ["in_proj"],
    "falcon_mamba": ["in_proj", "x_proj", "dt_proj"],
    "falcon_h1": ["in_proj", "q_proj", "o_proj", "down_proj"],
    "nemotron_h": {"target_modules": ["q_proj", "in_proj"], "target_parameters": ["gate.weight", "experts.up_proj"]},
    "jamba": {"target_modules": ["q_proj", "dt_proj"], "target_parameters": ["experts.down_proj"]},
}
"""Where PEFT's `all-linear` makes no adapter."""
READ_WITHOUT_CALLS = ("mamba", "falcon_mamba")
LED_S_OWN = "led.encoder.layers.*.self_attn.longformer_self_attn"
UNUSED = {
    **dict.fromkeys(READ_WITHOUT_CALLS, "2 of its modules for text: backbone.layers.*.mixer.dt_proj"),
    "led": "6 of its modules for text: " + ", ".join(f"{LED_S_OWN}.{of}_global" for of in ("key", "query", "value")),
}


def task_of(family: str) -> str:
    return "SEQ_2_SEQ_LM" if family in SEQ_2_SEQ else "SEQ_CLS" if family in ENCODING else "CAUSAL_LM"


def targets_of(family: str) -> dict[str, Any]:
    targets = TARGETS.get(family, "all-linear")
    return targets if isinstance(targets, dict) else {"target_modules": targets}


def answers(engine: Any, adapter: str | None) -> list[Any]:
    """To each prompt: tokens, or what an encoder says of it."""
    served = (ServedAdapter(adapter, 1.0),) if adapter else ()
    if engine.started[0].runner != "encoder":
        asked = [Generate(str(n), list(p), 6, served, sampling=Sampling(temperature=0)) for n, p in enumerate(PROMPTS)]
        made = engine.answers(asked)
        return [made[str(number)] for number in range(len(PROMPTS))]
    for number, prompt in enumerate(PROMPTS):
        engine.handle(Encode(str(number), list(prompt), served))
    events = {event.request: event for event in engine.step() if isinstance(event, Encoded)}
    return [[round(value, 3) for value in msgspec.to_builtins(events[str(n)].values)] for n in range(len(PROMPTS))]


def check(base: Path, adapter: Path, output: Path, in_process: Any) -> Any:
    """Hot, merged in memory, merged into files: the same answers, and not the base's. What the mount told."""
    hot = in_process(base)
    mounted = hot.mount("a", adapter)
    assert isinstance(mounted, Mounted), mounted
    expected = answers(hot, "a")
    assert expected != answers(hot, None)
    merged = in_process(base, merge=(merge_source(adapter),))
    assert isinstance(merged.started[0], BaseLoaded), merged.started
    assert answers(merged, None) == expected
    told: list[str] = []
    merge_files(base, [AdapterPath(adapter)], output, tell=told.append)
    assert answers(in_process(output), None) == expected
    return mounted, told


@pytest.mark.parametrize("family", [*GENERATING, *ENCODING])
def test_every_family(family: str, make_base: Any, make_adapter: Any, in_process: Any, tmp_path: Path) -> None:
    check_all_linear(family, make_base(family, task_of(family)), make_adapter, in_process, tmp_path)


@pytest.mark.parametrize("family", OTHERS)
def test_every_other_family(family: str, make_adapter: Any, in_process: Any, tmp_path: Path) -> None:
    build_family(tmp_path / "base", family)
    check_all_linear(family, tmp_path / "base", make_adapter, in_process, tmp_path)


def check_all_linear(family: str, base: Path, make_adapter: Any, in_process: Any, tmp_path: Path) -> None:
    targets = {"task": task_of(family), "task_type": None, "lora_alpha": 64, **targets_of(family)}
    adapter = make_adapter("all", base=base, **targets)
    mounted, told = check(base, adapter, tmp_path / "output", in_process)
    if family not in UNUSED:
        assert mounted.facts.unused is None
        assert not any("in part" in line for line in told)
        return
    assert mounted.facts.unused == f"the model never calls {UNUSED[family]}"
    if family not in READ_WITHOUT_CALLS:
        assert not any("in part" in line for line in told)
        return
    assert told[0] == f"adapter `all` is merged in part: {mounted.facts.unused}"


@pytest.mark.parametrize("family", [*WRAPPED, *NOT_AS_TEXT])
def test_models_that_take_images(family: str, in_process: Any, tmp_path: Path) -> None:
    base = tmp_path / "base"
    if family in NOT_AS_TEXT:
        build_family(base, family)
    else:
        build_wrapped(family, tmp_path)
    adapter = save_wrapped_adapter(base, tmp_path / "all", target_modules="all-linear", lora_alpha=64)
    mounted, _ = check(base, adapter, tmp_path / "output", in_process)
    assert "model.vis" in mounted.facts.unused, "the tower for images is told to do nothing for text"


@pytest.mark.parametrize("family", STACKING)
def test_stacked_experts_are_not_merged_and_named(
    family: str, make_base: Any, make_adapter: Any, in_process: Any, tmp_path: Path
) -> None:
    base = make_base(family)
    adapter = make_adapter("all", base=base, **targets_of(family))
    hot = in_process(base)
    mounted = hot.mount("a", adapter)
    assert isinstance(mounted, Mounted), mounted
    assert answers(hot, "a") != answers(hot, None)
    (failed,) = in_process(base, merge=(merge_source(adapter),)).started
    assert isinstance(failed, BaseFailed)
    with pytest.raises(GraftError) as caught:
        merge_files(base, [AdapterPath(adapter)], tmp_path / "output")
    for fault in (failed.fault, caught.value):
        assert fault.code == ErrorCode.UNSUPPORTED_METHOD
        assert fault.details
        assert all(path.endswith(".experts") for path in fault.details)
