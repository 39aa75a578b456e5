"""Bases whose weights are quantised answer as Transformers and PEFT do on the same quantised base."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.config import MergePart
from graft_runtime.contract.quantizations import Quantization
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.merge.files import AdapterPath, merge_files
from graft_runtime.messages import BaseFailed, Generate, MergeSource, Mounted, MountFailed, Sampling, ServedAdapter
from graft_runtime.model import quantising
from graft_runtime.model.load import load_base, weight_bytes
from graft_runtime.model.quantised import QuantisedLinear

from tests.support.bases import build_base
from tests.support.methods import METHODS, save_method
from tests.support.quantised import loading, save_quantised

NEW_TOKENS = 8
PROMPTS = [[256, *b"?"], [256, *b"select * from users"]]
FOUR = ["nf4", "int8", "int8_weight_only", "float8_weight_only"]


@pytest.fixture(scope="module")
def adapters(tiny_base: Path, make_adapter: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """LoRA, DoRA and IA3 for the tiny base."""
    ia3 = save_method(tiny_base, tmp_path_factory.mktemp("ia3") / "ia3", *METHODS["ia3"], seed=3)
    return {
        "lora": make_adapter("lora"),
        "dora": make_adapter("dora", use_dora=True, target_modules=["q_proj", "down_proj"]),
        "ia3": ia3,
    }


@pytest.fixture(scope="module")
def saved(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`saved(quantization)`: the tiny base, saved quantised."""
    return functools.cache(lambda kind: save_quantised(tiny_base, tmp_path_factory.mktemp("saved") / "base", kind))


def check(engine: Any, oracle_of: Callable[[], Any], adapters: dict[str, Path]) -> None:
    """Compare the base and each adapter, alone and in one batch, with PEFT, which takes one kind of adapters each."""
    lora, ia3 = oracle_of(), oracle_of()
    for name, adapter in adapters.items():
        assert isinstance(engine.mount(name, adapter), Mounted)
        (ia3 if name == "ia3" else lora).load(adapter, name)
    oracles = {None: lora, "lora": lora, "dora": lora, "ia3": ia3}

    def submit(request: str, prompt: list[int], name: str | None) -> Generate:
        served = (ServedAdapter(name, 1.0),) if name else ()
        return Generate(request, prompt, NEW_TOKENS, served, Sampling(temperature=0))

    rows = [(prompt, name) for name in oracles for prompt in PROMPTS]
    assert len({tuple(oracles[name].answer(PROMPTS[1], name, tokens=NEW_TOKENS).tokens) for name in oracles}) == 4
    mixed = engine.answers([submit(str(index), *row) for index, row in enumerate(rows)])
    for index, (prompt, asked) in enumerate(rows):
        assert len(mixed[str(index)]) == NEW_TOKENS
        oracles[asked].check(mixed[str(index)], prompt, asked, tokens=NEW_TOKENS)
    for asked, oracle in oracles.items():
        alone = engine.answers([submit("alone", PROMPTS[1], asked)])["alone"]
        oracle.check(alone, PROMPTS[1], asked, tokens=NEW_TOKENS)


@pytest.mark.parametrize("quantization", FOUR)
def test_a_full_checkpoint_is_quantised_and_answers_as_peft(
    quantization: str, tiny_base: Path, adapters: dict[str, Path], in_process: Any, make_oracle: Any
) -> None:
    engine = in_process(tiny_base, quantization=Quantization(quantization))
    assert engine.started[0].quantization == quantization
    check(engine, lambda: make_oracle(tiny_base, by_token=quantization == "int8", **loading(quantization)), adapters)


@pytest.mark.parametrize("quantization", ["nf4", "int8", "float8_weight_only"])
def test_a_checkpoint_that_is_saved_quantised_answers_as_peft(
    quantization: str, saved: Callable[[str], Path], adapters: dict[str, Path], in_process: Any, make_oracle: Any
) -> None:
    base = saved(quantization)
    engine = in_process(base)
    assert engine.started[0].quantization == quantization
    check(engine, lambda: make_oracle(base, by_token=quantization == "int8", **loading(None)), adapters)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose linear modules keep their weights transposed."""
    return build_base(tmp_path_factory.mktemp("gpt2") / "base", "gpt2")


def test_weights_that_lie_transposed_are_quantised_as_well(
    gpt2: Path, make_adapter: Any, in_process: Any, make_oracle: Any
) -> None:
    engine, oracle = in_process(gpt2, quantization=Quantization.NF4), make_oracle(gpt2, **loading("nf4"))
    adapter = make_adapter("dora", base=gpt2, use_dora=True, target_modules=["c_attn"])
    assert isinstance(engine.mount("dora", adapter), Mounted)
    oracle.load(adapter, "dora")
    for name in (None, "dora"):
        served = (ServedAdapter(name, 1.0),) if name else ()
        asked = Generate("one", PROMPTS[1], NEW_TOKENS, served, Sampling(temperature=0))
        oracle.check(engine.answers([asked])["one"], PROMPTS[1], name, tokens=NEW_TOKENS)


@pytest.mark.parametrize("quantization", ["fp4", *FOUR])
def test_the_bytes_that_are_told_before_are_those_that_it_takes(quantization: str, tiny_base: Path) -> None:
    how: dict[str, Any] = {"name": "tiny", "dtype": "bfloat16", "quantization": Quantization(quantization)}
    told = weight_bytes(tiny_base, **how)
    model = load_base(tiny_base, max_sequence_length=64, **how).model
    quantised = [module for module in model.modules() if isinstance(module, QuantisedLinear)]
    theirs = {id(module.quantised) for module in quantised}
    taken = sum(each.nbytes for each in model.parameters() if id(each) not in theirs)
    taken += sum(module.bytes for module in quantised)
    assert len(quantised) == 14
    assert 0 <= taken - told <= 14 * 1200, "maps of values, the same for any weight, are not counted"


def test_the_bytes_of_a_checkpoint_that_is_saved_quantised(tiny_base: Path, saved: Callable[[str], Path]) -> None:
    told = weight_bytes(saved("nf4"), name="tiny", dtype="float32")
    assert told == weight_bytes(tiny_base, name="tiny", dtype="float32", quantization=Quantization.NF4)
    assert told < weight_bytes(tiny_base, name="tiny", dtype="float32")


def test_an_input_beyond_the_threshold_changes_no_other_row(tiny_base: Path) -> None:
    base = load_base(tiny_base, name="tiny", dtype="float32", max_sequence_length=64, quantization=Quantization.INT8)
    module: Any = base.model.model.layers[0].mlp.gate_proj
    rows = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    before = module(rows)
    rows[2, 5], rows[4, 9] = 40.0, -11.0
    after = module(rows)
    others = [0, 1, 3, 5]
    assert torch.equal(after[others], before[others])
    assert torch.equal(after, torch.cat([module(row[None]) for row in rows]))
    exact = rows @ module.weight.T
    assert (after - exact).abs().max() < 0.02 * exact.abs().max()


def test_nothing_to_quantise_is_an_error(gpt2: Path) -> None:
    with pytest.raises(GraftError, match="torchao quantises no module of a GPT2LMHeadModel") as refused:
        load_base(
            gpt2, name="tiny", dtype="float32", max_sequence_length=64, quantization=Quantization.INT8_WEIGHT_ONLY
        )
    assert refused.value.code == ErrorCode.NOT_A_MODEL


def test_a_pool_that_asks_for_another_quantisation_than_the_checkpoint_s(saved: Callable[[str], Path]) -> None:
    with pytest.raises(GraftError, match=r"are quantised \(int8\), and the pool asks for nf4") as refused:
        load_base(saved("int8"), name="tiny", dtype="float32", max_sequence_length=64, quantization=Quantization.NF4)
    assert refused.value.field == "spec.baseModel.quantization"


def test_without_the_library_the_extra_is_named(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantising, "find_spec", lambda package: None if package == "bitsandbytes" else package)
    with pytest.raises(GraftError, match=r"nf4 weights take bitsandbytes, .* does not have") as refused:
        weight_bytes(tiny_base, name="tiny", dtype="float32", quantization=Quantization.NF4)
    assert "graft-runtime[pod,quantization]" in (refused.value.hint or "")


def test_an_adapter_that_took_its_start_out_of_the_full_weight(
    tiny_base: Path, make_adapter: Any, in_process: Any
) -> None:
    engine = in_process(tiny_base, quantization=Quantization.NF4)
    failed = engine.mount("pissa", make_adapter("pissa", init_lora_weights="pissa"))
    assert isinstance(failed, MountFailed)
    assert failed.fault.code == ErrorCode.UNSUPPORTED_METHOD
    assert "the base's is quantised" in failed.fault.what


def test_a_merge_goes_into_the_full_weights_only(
    saved: Callable[[str], Path], adapters: dict[str, Path], in_process: Any, tmp_path: Path
) -> None:
    part = MergePart(name="lora", source=Source(uri="pvc://shelf/lora"))
    (failed,) = in_process(saved("nf4"), merge=(MergeSource(part, str(adapters["lora"])),)).started
    assert isinstance(failed, BaseFailed)
    assert "are quantised (nf4); a merge takes the full ones" in failed.fault.what
    with pytest.raises(GraftError, match=r"are quantised \(nf4\); a merge takes the full ones"):
        merge_files(saved("nf4"), [AdapterPath(adapters["lora"])], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
