"""PEFT's other methods on the path of LoRA, against PEFT in float32: alone, and mixed with LoRA and the base."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from graft_runtime.adapters.compile import compile_adapter
from graft_runtime.adapters.deltas import CompiledAdapter
from graft_runtime.adapters.files import read_adapter_files
from graft_runtime.adapters.fit import fit, fitted
from graft_runtime.adapters.layout import EmbeddingShape, LinearShape
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.merge.memory import merge_into
from graft_runtime.model.load import load_base
from graft_runtime.model.modules import BaseModules
from safetensors.torch import load_file, save_file
from tables import SUPPORT

from tests.support.merges import merge_source
from tests.support.methods import EVERY, METHODS, save_method
from tests.support.mixed import PROMPTS, Mixed, peft_logits, same
from tests.support.plain_lora import check_plain

BaseFactory = Callable[..., Path]
GPT2: dict[str, tuple[str, dict[str, Any]]] = {
    "adalora": METHODS["adalora"],
    "biased adalora": ("AdaLoraConfig", {"total_step": 10, "target_modules": ["c_attn"], "bias": "all"}),
    "ia3": ("IA3Config", {"target_modules": ["c_attn", "mlp.c_proj"], "feedforward_modules": ["mlp.c_proj"]}),
    "vera": ("VeraConfig", {"r": 5, "target_modules": EVERY, "save_projection": False}),
    "gralora": ("GraloraConfig", {"r": 4, "alpha": 6, "gralora_k": 2, "target_modules": ["c_attn", "c_fc"]}),
    "norms": ("LNTuningConfig", {"target_modules": ["ln_1", "ln_f"]}),
    "tokens": METHODS["tokens"],
}
FAMILIES: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "llama": METHODS,
    "gpt2": GPT2,
    "tied": {name: METHODS[name] for name in ("tokens", "loha")},
    "qwen2": {name: METHODS[name] for name in ("ia3", "beft", "hra")},  # on biases
    "gemma3": {name: METHODS[name] for name in ("norms", "tokens", "hra")},  # embeddings are scaled
    "bloom": {  # on the padded runner
        "vera": METHODS["vera"],
        "norms": ("LNTuningConfig", {"target_modules": ["input_layernorm", "ln_f"]}),
        "ia3": ("IA3Config", {"target_modules": ["dense_4h_to_h"], "feedforward_modules": ["dense_4h_to_h"]}),
    },
}


@dataclass(frozen=True)
class Built:
    """A base, adapters on it, and what PEFT answers with each."""

    base: Path
    adapters: dict[str, Path]
    expected: dict[str, list[torch.Tensor]]
    plain: list[torch.Tensor]


@pytest.fixture(scope="module")
def built(make_base: BaseFactory, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Built]:
    """`built(family)`, once each."""
    made: dict[str, Built] = {}

    def of(family: str) -> Built:
        if family not in made:
            base, directory = make_base(family), tmp_path_factory.mktemp(family)
            adapters = {
                name: save_method(base, directory / name, config, options, seed=seed)
                for seed, (name, (config, options)) in enumerate(FAMILIES[family].items())
            }
            expected = {name: peft_logits(base, adapter, PROMPTS) for name, adapter in adapters.items()}
            made[family] = Built(base, adapters, expected, peft_logits(base, None, PROMPTS))
        return made[family]

    return of


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_method_alone_and_mixed(
    family: str, built: Callable[[str], Built], make_adapter: Callable[..., Path]
) -> None:
    those = built(family)
    lora = make_adapter("lora", base=those.base)
    adapters = {**those.adapters, "lora": lora}
    expected = {**those.expected, "lora": peft_logits(those.base, lora, PROMPTS)}
    mixed = Mixed(those.base, adapters)
    for name in adapters:
        for alone, theirs in zip(mixed.logits(PROMPTS, [name] * len(PROMPTS)), expected[name], strict=True):
            torch.testing.assert_close(alone, theirs, atol=1e-4, rtol=1e-4)
        assert not all(map(same, expected[name], those.plain)), name
    everybody = [None, *adapters, None]
    prompts = [PROMPTS[index % len(PROMPTS)] for index in range(len(everybody))]
    forward = list(range(len(everybody)))
    for rows in (forward, forward[::-1], forward[1::2] + forward[::2]):
        made = mixed.logits([prompts[row] for row in rows], [everybody[row] for row in rows])
        for row, logits in zip(rows, made, strict=True):
            whose = everybody[row]
            theirs = (expected[whose] if whose else those.plain)[row % len(PROMPTS)]
            torch.testing.assert_close(logits, theirs, atol=1e-4, rtol=1e-4)


WHY = {
    "IA3": "it multiplies features",
    "LN_TUNING": "it keeps modules whole",
    "BEFT": "it adds a bias",
    "biased adalora": "it has trained biases",
}
"""Why a method, or one of these adapters, is no plain LoRA."""


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_method_as_plain_lora(family: str, built: Callable[[str], Built], tmp_path: Path, capsys: Any) -> None:
    those = built(family)
    refused = {}
    for name, adapter in those.adapters.items():
        method = json.loads((adapter / "adapter_config.json").read_text())["peft_type"]
        if not SUPPORT[method].plain or name in WHY:
            refused[name] = WHY.get(name) or WHY[method]
    check_plain(those.base, those.adapters, those.expected, directory=tmp_path, refused=refused, capsys=capsys)


@torch.inference_mode()
def test_every_method_merged(built: Callable[[str], Built]) -> None:
    those = built("llama")
    for name, adapter in those.adapters.items():
        if name == "beft":
            with pytest.raises(GraftError, match="where the base has none"):
                merge_into(loaded(those.base), [merge_source(adapter, name)], max_rank=64)
            continue
        base = loaded(those.base)
        merge_into(base, [merge_source(adapter, name)], max_rank=64)
        for prompt, theirs in zip(PROMPTS, those.expected[name], strict=True):
            made = base.model.cpu()(input_ids=torch.tensor([prompt])).logits[0, -1]
            torch.testing.assert_close(made, theirs, atol=1e-4, rtol=1e-4)


def loaded(base: Path) -> Any:
    return load_base(base, name="tiny", dtype="float32", max_sequence_length=256)


def test_the_reference_tells_what_each_method_can(built: Callable[[str], Built]) -> None:
    those = built("llama")
    mixed = Mixed(those.base, those.adapters)
    for name, adapter in mixed.adapters.items():
        if name != "saved":
            support = SUPPORT[adapter.facts.method]
            assert (support.scaled, support.composed) == (adapter.facts.scalable, adapter.facts.additive), name
            files = read_adapter_files(those.adapters[name], name=name, max_rank=64)
            assert all(part.additive for part in files.parts) == adapter.facts.additive, name
            assert files.facts.rank == adapter.facts.rank
            assert adapter.facts.deltas <= files.facts.deltas, name


def test_a_base_with_more_layers_is_told_by_every_method(built: Callable[[str], Built], tmp_path: Path) -> None:
    layout = loaded(built("llama").base).layout

    def deeper(table: Mapping[str, Any]) -> dict[str, Any]:
        return {**table, **{path.replace("layers.1.", "layers.2."): shape for path, shape in table.items()}}

    deep = replace(layout, linear=deeper(layout.linear), norms=deeper(layout.norms))
    of_layers = {name: adapter for name, adapter in built("llama").adapters.items() if name != "tokens"}
    for name, adapter in of_layers.items():
        copy = shutil.copytree(adapter, tmp_path / name)
        config = json.loads((copy / "adapter_config.json").read_text())
        ends = {path.rpartition(".")[2] for path in config["target_modules"]}  # `all-linear` is saved as whole paths
        (copy / "adapter_config.json").write_text(json.dumps(config | {"target_modules": sorted(ends)}))
        files = read_adapter_files(copy, name=name, max_rank=64)
        fitted(files, layout)
        with pytest.raises(GraftError, match=r"targets \d+ modules that it has no tensors for") as caught:
            fitted(files, deep)
        assert caught.value.code is ErrorCode.BASE_MISMATCH, name
        assert "model.layers.2." in str(caught.value), name


def test_a_base_of_another_size_is_told_by_every_method(built: Callable[[str], Built]) -> None:
    for name, adapter in built("llama").adapters.items():
        files = read_adapter_files(adapter, name=name, max_rank=64)
        layout = loaded(built("llama").base).layout
        halved = replace(
            layout,
            linear={path: LinearShape(30, 30) for path in layout.linear},
            embeddings={path: EmbeddingShape(320, 30) for path in layout.embeddings},
            norms={path: {"weight": 30} for path in layout.norms},
        )
        with pytest.raises(GraftError) as caught:
            fit(files.parts, halved, name=name, base_model=None)
        assert caught.value.code is ErrorCode.SHAPE_MISMATCH, name


Change = Callable[[dict[str, Any], dict[str, torch.Tensor], str], None]
"""Of a config and the tensors of its file; the name is of the first one of the method."""


def of_first(value: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    def change(config: dict[str, Any], tensors: dict[str, torch.Tensor], first: str) -> None:
        tensors[first] = value(tensors[first]).contiguous()

    return change


def with_options(**options: Any) -> Change:
    return lambda config, tensors, first: config.update(options)


def with_tensor(name: str) -> Change:
    return lambda config, tensors, first: tensors.update({name.format(first=first): torch.ones(2)})


FAULTS: dict[str, tuple[Change, ErrorCode]] = {
    "NaN": (of_first(lambda tensor: torch.full_like(tensor, float("nan"))), ErrorCode.CORRUPT),
    "infinite": (of_first(lambda tensor: tensor.index_fill(0, torch.tensor([0]), float("inf"))), ErrorCode.CORRUPT),
    "whole numbers": (of_first(lambda tensor: tensor.to(torch.int32)), ErrorCode.CORRUPT),
    "an unknown tensor": (with_tensor("{first}_other"), ErrorCode.UNSUPPORTED_METHOD),
    "a weight of its own": (with_tensor("base_model.model.model.mlp.weight"), ErrorCode.UNSUPPORTED_METHOD),
    "an option": (with_options(use_magic=True), ErrorCode.UNSUPPORTED_METHOD),
    "other targets": (with_options(target_modules=["nothing"]), ErrorCode.INVALID_CONFIG),
    "a slow pattern": (with_options(target_modules="(a+)+b"), ErrorCode.INVALID_CONFIG),
    "no head": (with_options(modules_to_save=["score"]), ErrorCode.CORRUPT),
    "no tensor": (lambda config, tensors, first: tensors.clear(), ErrorCode.CORRUPT),
}
RANKED = ("adalora", "loha", "lokr", "vera", "miss", "hra", "delora", "gralora", "vblora", "best vblora", "unilora")
"""Methods with more than one dimension or tensor a module."""


def damaged(adapter: Path, directory: Path, change: Change) -> Path:
    directory.mkdir(exist_ok=True)
    config = json.loads((adapter / "adapter_config.json").read_text())
    tensors = load_file(adapter / "adapter_model.safetensors")
    mine = (name for name in sorted(tensors) if "lm_head" not in name and ".model." in name)
    change(config, tensors, next(name for name in mine if tensors[name].is_floating_point()))
    (directory / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "adapter_model.safetensors")
    return directory


def mount(base: Any, directory: Path) -> CompiledAdapter:
    files = read_adapter_files(directory, name="sql", max_rank=64)
    return compile_adapter(files, base.layout, BaseModules(base.model), dtype=torch.float32, device=base.device)


def fault_of(base: Any, directory: Path) -> GraftError:
    with pytest.raises(GraftError) as caught:
        mount(base, directory)
    return caught.value


@pytest.mark.parametrize("fault", list(FAULTS))
def test_faults_of_every_method(fault: str, built: Callable[[str], Built], tmp_path: Path) -> None:
    those = built("llama")
    base = loaded(those.base)
    change, code = FAULTS[fault]
    for name, adapter in those.adapters.items():
        if name != "saved":
            error = fault_of(base, damaged(adapter, tmp_path / name, change))
            assert error.code is code, (name, str(error))


@pytest.mark.parametrize("name", RANKED)
def test_shapes_and_ranks_that_contradict_each_other(name: str, built: Callable[[str], Built], tmp_path: Path) -> None:
    those = built("llama")
    base, adapter = loaded(those.base), those.adapters[name]

    def without_first(config: dict[str, Any], tensors: dict[str, torch.Tensor], first: str) -> None:
        del tensors[first]

    def other_rank(config: dict[str, Any], tensors: dict[str, torch.Tensor], first: str) -> None:
        config["init_r" if name == "adalora" else "r"] = 1

    def padded(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor, tensor])

    if name not in ("miss", "hra"):  # of one tensor a module
        assert fault_of(base, damaged(adapter, tmp_path, without_first)).code is ErrorCode.CORRUPT
    assert fault_of(base, damaged(adapter, tmp_path, other_rank)).code is ErrorCode.INVALID_CONFIG
    nested = fault_of(base, damaged(adapter, tmp_path, of_first(lambda tensor: tensor[None])))
    assert nested.code is ErrorCode.CORRUPT
    twice = fault_of(base, damaged(adapter, tmp_path, of_first(padded)))
    assert twice.code in (ErrorCode.CORRUPT, ErrorCode.SHAPE_MISMATCH, ErrorCode.INVALID_CONFIG)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("loha", "r = 3 of LoHa is a low rank of r² = 9"),
        ("lokr", "LoKr multiplies the ranks of its two matrices, here 4 · 2"),
        ("gralora", "GraLoRA of r = 4 in k = 2 rows is a low rank of r · k"),
    ],
)
def test_a_rank_that_grows_on_the_way_is_explained(name: str, why: str, built: Callable[[str], Built]) -> None:
    with pytest.raises(GraftError) as caught:
        read_adapter_files(built("llama").adapters[name], name="sql", max_rank=6)
    assert caught.value.code is ErrorCode.RANK_TOO_HIGH
    assert why in caught.value.message
    assert "train with a lower r or raise spec.engine.maxRank" in caught.value.message


def test_values_of_options_that_are_not_served(built: Callable[[str], Built], tmp_path: Path) -> None:
    those = built("llama")
    base = loaded(those.base)
    cases: list[tuple[str, dict[str, Any], ErrorCode]] = [
        ("miss", {"init_weights": "bat"}, ErrorCode.UNSUPPORTED_METHOD),
        ("adalora", {"use_dora": True, "layer_replication": [[0, 2]]}, ErrorCode.UNSUPPORTED_METHOD),
        ("adalora", {"rank_pattern": {"q_proj": [1, 2]}}, ErrorCode.INVALID_CONFIG),
        ("ia3", {"feedforward_modules": []}, ErrorCode.INVALID_CONFIG),
        ("vera again", {"save_projection": True}, ErrorCode.CORRUPT),
        ("vera", {"save_projection": False}, ErrorCode.INVALID_CONFIG),
        ("vera", {"projection_prng_key": -1}, ErrorCode.INVALID_CONFIG),
        ("vera", {"bias": "lora_only"}, ErrorCode.INVALID_CONFIG),
        ("tokens", {"token_indices": [5, 5, 2]}, ErrorCode.INVALID_CONFIG),
        ("tokens", {"token_indices": [5, 2]}, ErrorCode.SHAPE_MISMATCH),
        ("hra", {"r": 0, "apply_GS": 3}, ErrorCode.INVALID_CONFIG),
        ("unilora", {"save_indices": False}, ErrorCode.UNSUPPORTED_METHOD),
        ("vblora", {"topk": 13}, ErrorCode.CORRUPT),
    ]
    for name, options, code in cases:
        directory = damaged(those.adapters[name], tmp_path, with_options(**options))
        error = fault_of(base, directory)
        assert error.code is code, (name, str(error))
        if code is ErrorCode.UNSUPPORTED_METHOD:
            assert len(error.details) == len(options)


def test_unilora_saved_again_with_its_indices(built: Callable[[str], Built], tmp_path: Path) -> None:
    """As its error says: PEFT keeps indices only of what was made with a config that asks for them."""
    from peft import PeftConfig, PeftModel
    from transformers import AutoModelForCausalLM

    config, options = METHODS["unilora"]
    base = built("llama").base
    directory = save_method(base, tmp_path / "bare", config, options | {"save_indices": False}, seed=5)
    with pytest.raises(GraftError) as caught:
        read_adapter_files(directory, name="sql", max_rank=64)
    assert caught.value.code is ErrorCode.UNSUPPORTED_METHOD
    assert "PeftModel.from_pretrained(base, directory, config=config)" in caught.value.message
    expected = peft_logits(base, directory, PROMPTS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        asking = PeftConfig.from_pretrained(directory)
        asking.save_indices = True
        model = AutoModelForCausalLM.from_pretrained(base)
        PeftModel.from_pretrained(model, directory, config=asking).save_pretrained(tmp_path / "again")
    made = Mixed(base, {"again": tmp_path / "again"}).logits(PROMPTS, ["again"] * len(PROMPTS))
    for mine, theirs in zip(made, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


def test_adalora_that_gave_ranks_away(built: Callable[[str], Built], tmp_path: Path) -> None:
    kept = {"q_proj": [True, False, True, False, False, True], "v_proj": [False] * 6}

    def pruned(config: dict[str, Any], tensors: dict[str, torch.Tensor], first: str) -> None:
        config["rank_pattern"] = {f"model.layers.0.self_attn.{name}.lora_E": ranks for name, ranks in kept.items()}
        for name, ranks in kept.items():
            path = f"base_model.model.model.layers.0.self_attn.{name}."
            for role in ("lora_A", "lora_E"):
                tensors[path + role] = tensors[path + role][torch.tensor(ranks)]
            tensors[path + "lora_B"] = tensors[path + "lora_B"][:, torch.tensor(ranks)].contiguous()

    those = built("llama")
    adapter = damaged(those.adapters["adalora"], tmp_path, pruned)
    mixed = Mixed(those.base, {"pruned": adapter})
    assert "model.layers.0.self_attn.v_proj" not in mixed.adapters["pruned"].modules
    made = mixed.logits(PROMPTS, ["pruned"] * len(PROMPTS))
    for ours, theirs in zip(made, peft_logits(those.base, adapter, PROMPTS), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_the_projections_of_vera_are_made_again_bit_by_bit(built: Callable[[str], Built], tmp_path: Path) -> None:
    def unsaved(config: dict[str, Any], tensors: dict[str, torch.Tensor], first: str) -> None:
        config["save_projection"] = False
        del tensors["base_model.vera_A"], tensors["base_model.vera_B"]

    those = built("llama")
    base, saved = loaded(those.base), those.adapters["vera"]
    theirs, ours = mount(base, saved), mount(base, damaged(saved, tmp_path, unsaved))
    for path, delta in theirs.modules.items():
        for one, other in zip(delta.tensors, ours.modules[path].tensors, strict=True):
            assert torch.equal(one, other), path


@pytest.mark.parametrize(
    ("name", "ending", "value"),
    [("unilora", "unilora_indices_A", 99), ("unilora", "unilora_indices_B", -1), ("best vblora", "_topk_indices", 9)],
)
def test_indices_of_nothing(name: str, ending: str, value: int, built: Callable[[str], Built], tmp_path: Path) -> None:
    def change(config: dict[str, Any], tensors: dict[str, torch.Tensor], first: str) -> None:
        tensors[next(key for key in tensors if key.endswith(ending))].view(-1)[-1] = value

    those = built("llama")
    error = fault_of(loaded(those.base), damaged(those.adapters[name], tmp_path, change))
    assert error.code is ErrorCode.CORRUPT
    assert ending in error.what
