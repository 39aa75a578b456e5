"""Every way an adapter can be wrong, through the entry that mounts use: what PEFT lets pass with a warning is refused.

What is remapped answers exactly as the file that names its modules rightly.
"""

from __future__ import annotations

import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from graft_runtime.adapters.compile import compile_adapter
from graft_runtime.adapters.files import read_adapter_files
from graft_runtime.adapters.fit import fitted
from graft_runtime.contract.adapter_set import AdapterEntry
from graft_runtime.contract.checkpoints import Source
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.messages import Generate, Mounted, MountFailed, Sampling, ServedAdapter, Unmount, Unmounted
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
LAYER = "base_model.model.model.layers.0.self_attn.q_proj"
Q, V = "q_proj", "v_proj"
PROMPT = [256, 5, 9, 33, 7]


@pytest.fixture(scope="module")
def good(make_adapter: Any) -> Path:
    path: Path = make_adapter("strict", r=4, target_modules=[Q, V])
    return path


_ENGINES: list[Any] = []


@pytest.fixture
def engine(in_process: Any, tiny_base: Path, good: Path) -> Any:
    """One for all tests."""
    if not _ENGINES:
        _ENGINES.append(in_process(tiny_base, max_mounted_adapters=64))
        assert isinstance(_ENGINES[0].mount("good", good), Mounted)
    return _ENGINES[0]


Change = Callable[[Tensors, dict[str, Any]], object]


def written(source: Path, target: Path, change: Change) -> Path:
    """A copy of an adapter, changed."""
    target.mkdir()
    tensors = load_file(source / "adapter_model.safetensors")
    config = json.loads((source / "adapter_config.json").read_text())
    change(tensors, config)
    save_file(tensors, target / "adapter_model.safetensors")
    (target / "adapter_config.json").write_text(json.dumps(config))
    return target


def renamed(pattern: str, replacement: str) -> Change:
    def change(tensors: Tensors, config: dict[str, Any]) -> None:
        for name in list(tensors):
            tensors[re.sub(pattern, replacement, name)] = tensors.pop(name)

    return change


def set_to(**fields: Any) -> Change:
    return lambda _, config: config.update(fields)


def with_tensor(name: str, tensor: torch.Tensor) -> Change:
    return lambda tensors, _: tensors.update({name: tensor})


def without(name: str) -> Change:
    return lambda tensors, _: tensors.pop(name)


def converted(dtype: torch.dtype) -> Change:
    return lambda tensors, _: tensors.update({name: tensor.to(dtype) for name, tensor in tensors.items()})


def widened(tensors: Tensors, config: dict[str, Any]) -> None:
    for name, tensor in tensors.items():
        if "lora_A" in name:
            tensors[name] = torch.cat([tensor, tensor], dim=1)


def filled(value: float) -> Change:
    return lambda tensors, _: tensors[f"{LAYER}.lora_B.weight"][0].fill_(value)


EXTRA = "base_model.model.model.layers.0.mlp.up_proj"
REFUSED: Mapping[str, tuple[Change, ErrorCode, str]] = {
    "a tensor that is no part of it": (
        with_tensor("base_model.model.model.norm.weight", torch.ones(32)),
        ErrorCode.UNSUPPORTED_METHOD,
        "model.norm.weight",
    ),
    "a tensor of an unknown role": (
        with_tensor(f"{LAYER}.lora_C.weight", torch.ones(4)),
        ErrorCode.UNSUPPORTED_METHOD,
        "lora_C.weight",
    ),
    "targets narrower than the tensors": (set_to(target_modules=[Q]), ErrorCode.INVALID_CONFIG, "v_proj"),
    "no target at all": (set_to(target_modules=[]), ErrorCode.INVALID_CONFIG, "q_proj"),
    "a target that matches nothing": (set_to(target_modules=["c_attn"]), ErrorCode.INVALID_CONFIG, "q_proj"),
    "an exclusion that matches": (set_to(exclude_modules=[V]), ErrorCode.INVALID_CONFIG, "v_proj"),
    "layers that leave tensors out": (set_to(layers_to_transform=[0]), ErrorCode.INVALID_CONFIG, "layers.1"),
    "lora_B missing": (without(f"{LAYER}.lora_B.weight"), ErrorCode.CORRUPT, "lora_B is missing"),
    "lora_A missing": (without(f"{LAYER}.lora_A.weight"), ErrorCode.CORRUPT, "lora_A is missing"),
    "a prefix of nothing": (renamed("model.layers", "visual.layers"), ErrorCode.BASE_MISMATCH, "no such module"),
    "another prefix": (renamed("^base_model", "peft_model"), ErrorCode.BASE_MISMATCH, "no such module"),
    "names of another trainer": (
        renamed(".*layers.*(self_attn).(.*)_proj.lora_(A|B).*", r"lora_te_\1_\2.lora_\3"),
        ErrorCode.UNSUPPORTED_METHOD,
        "no part of LORA",
    ),
    "a rank that the config denies": (set_to(r=8), ErrorCode.INVALID_CONFIG, "rank 4"),
    "a rank that a pattern denies": (set_to(rank_pattern={V: 2}), ErrorCode.INVALID_CONFIG, "v_proj"),
    "another hidden size": (widened, ErrorCode.SHAPE_MISMATCH, "lora_A"),
    "a module that the base lacks": (renamed("v_proj", "w_proj"), ErrorCode.INVALID_CONFIG, "w_proj"),
    "NaN": (filled(float("nan")), ErrorCode.CORRUPT, "not finite"),
    "Inf": (filled(float("inf")), ErrorCode.CORRUPT, "not finite"),
    "integers": (converted(torch.int32), ErrorCode.CORRUPT, "I32"),
    "complex numbers": (converted(torch.complex64), ErrorCode.CORRUPT, "C64"),
    "an option of next year": (set_to(use_flux=True), ErrorCode.UNSUPPORTED_METHOD, "use_flux"),
    "an unknown method": (set_to(peft_type="GHOST"), ErrorCode.UNSUPPORTED_METHOD, "LORA"),
    "a method in lower case": (set_to(peft_type="lora"), ErrorCode.UNSUPPORTED_METHOD, "lora"),
    "no method": (lambda _, config: config.pop("peft_type"), ErrorCode.INVALID_CONFIG, "peft_type"),
    "no alpha": (set_to(lora_alpha=None), ErrorCode.INVALID_CONFIG, "lora_alpha"),
    "alpha is a text": (set_to(lora_alpha="8"), ErrorCode.INVALID_CONFIG, "lora_alpha"),
    "no rank": (set_to(r=0), ErrorCode.INVALID_CONFIG, "r is 0"),
    "a negative rank": (set_to(r=-4), ErrorCode.INVALID_CONFIG, "r is -4"),
    "half a rank": (set_to(r=4.5), ErrorCode.INVALID_CONFIG, "r is 4.5"),
    "a rank that is true": (set_to(r=True), ErrorCode.INVALID_CONFIG, "r is True"),
    "Megatron": (set_to(megatron_config={"tensor_model_parallel_size": 2}), ErrorCode.UNSUPPORTED_METHOD, "megatron"),
    "an invocation of a book": (set_to(alora_invocation_tokens=[1] * 257), ErrorCode.INVALID_CONFIG, "at most 256"),
    "zeros": (lambda tensors, _: [t.zero_() for t in tensors.values()], ErrorCode.NO_EFFECT, "nothing"),
    "an alpha of zero": (set_to(lora_alpha=0), ErrorCode.NO_EFFECT, "nothing"),
    "a catastrophic pattern that does not match": (
        set_to(target_modules="(.|.)" * 100 + "!"),
        ErrorCode.INVALID_CONFIG,
        "leave it out",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_is_wrong_is_refused_and_leaves_nothing(engine: Any, good: Path, tmp_path: Path, case: str) -> None:
    change, code, said = REFUSED[case]
    digest = f"bad: {case}"
    told = engine.mount(digest, written(good, tmp_path / "bad", change))
    assert isinstance(told, MountFailed), case
    error = told.fault.error()
    assert error.code == code, error
    assert said in str(error)
    assert isinstance(engine.mount(digest, good), Mounted), "the place is free"
    engine.handle(Unmount(digest))
    assert engine.step() == [Unmounted(digest)]


def logits(engine: Any, directory: Path) -> torch.Tensor:
    """What the model computes with an adapter, by the deltas on it: a trial's own way."""
    digest = f"logits-{directory}"
    told = engine.mount(digest, directory)
    assert isinstance(told, Mounted), told
    answers = engine.answers([Generate("x", PROMPT, 12, (ServedAdapter(digest, 1.0),), Sampling(temperature=0.0))])
    return torch.tensor(answers["x"])


NEUTRAL: Mapping[str, Change] = {
    "unknown options that are not used": set_to(use_flux=None, flux_config={}, flux_layers=[], flux=False),
    "harmless ones": set_to(lora_dropout=0.3, inference_mode=False, revision="main", task_type="SEQ_2_SEQ_LM"),
    "those of old versions": set_to(enable_lora=None, merge_weights=False, fan_in_fan_out=True, peft_version="0.3.0"),
    "a stale base": set_to(base_model_name_or_path="/root/no/such/model"),
    "no base": set_to(base_model_name_or_path=None),
    "no task": set_to(task_type=None, auto_mapping={"base_model_class": "X", "parent_library": "antigravity"}),
    "as torchtune writes it": lambda _, config: [
        config.pop(field) for field in [*config] if field not in ("r", "lora_alpha", "target_modules", "peft_type")
    ],
    "targets by path": set_to(target_modules=[f"layers.{n}.self_attn.{name}" for n in (0, 1) for name in (Q, V)]),
    "targets by pattern": set_to(target_modules=r"^(?!.*vision).*layers\.\d+\..*(?:q|v)_proj$"),
    "layers that are all": set_to(layers_to_transform=[0, 1, 7], layers_pattern="layers"),
    "bfloat16": lambda tensors, _: tensors.update({n: t.bfloat16().float() for n, t in tensors.items()}),
}  # fmt: skip


@pytest.mark.parametrize("case", list(NEUTRAL))
def test_what_changes_nothing_is_taken(engine: Any, good: Path, tmp_path: Path, case: str) -> None:
    told = engine.mount(f"neutral {case}", written(good, tmp_path / "neutral", NEUTRAL[case]))
    assert isinstance(told, Mounted), told
    assert told.facts.remapped is None
    assert "antigravity" not in sys.modules, "a config imports nothing"


REMAPPED: Mapping[str, tuple[Change, str]] = {
    "no prefix": (renamed("^base_model.model.", ""), "base_model.model."),
    "two prefixes": (renamed("^base_model", "base_model.model.base_model"), "base_model.model.model → model"),
    "the adapter's name": (renamed(r"(lora_[AB])", r"\1.default"), "own name"),
    "torch.compile": (renamed("^", "_orig_mod."), "torch"),
    "data parallel": (renamed("^", "module."), "torch"),
    "trained on AutoModel": (renamed("model.model.layers", "model.layers"), "nothing → model"),
    "part of a larger model": (renamed("model.layers", "language_model.model.layers"), "language_model"),
    "the same in Transformers 5": (renamed("model.layers", "model.language_model.layers"), "language_model"),
    "a raw state dict of all that": (
        renamed(r"^base_model.model.model.(.*)(lora_[AB])", r"module._orig_mod.\1\2.sql"),
        "own name",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", list(REMAPPED))
def test_names_that_drifted_are_remapped_and_told(
    engine: Any, good: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    change, said = REMAPPED[case]
    directory = written(good, tmp_path / "drifted", change)
    told = engine.mount(case, directory)
    assert isinstance(told, Mounted), told
    assert told.facts.remapped is not None
    assert said in told.facts.remapped
    assert told.facts.remapped in caplog.text
    right, drifted = (
        compile_adapter(
            read_adapter_files(path, name="x", max_rank=16),
            engine.engine.serving.base.layout,
            engine.engine.serving.base.model.get_submodule,
            dtype=torch.float32,
            device=torch.device("cpu"),
        )
        for path in (good, directory)
    )
    assert drifted.modules.keys() == right.modules.keys()
    for path, delta in right.modules.items():
        assert all(torch.equal(*both) for both in zip(delta.tensors, drifted.modules[path].tensors, strict=True))


def test_a_remapped_adapter_answers_as_the_right_one(engine: Any, good: Path, tmp_path: Path) -> None:
    drifted = written(good, tmp_path / "drifted", REMAPPED["a raw state dict of all that"][0])
    assert torch.equal(logits(engine, drifted), logits(engine, good))


def test_part_of_a_file_is_never_remapped(engine: Any, good: Path, tmp_path: Path) -> None:
    half = written(good, tmp_path / "half", renamed(r"model\.model\.layers\.1", "model.layers.1"))
    (half / "other").mkdir()
    told = engine.mount("half", half)
    assert isinstance(told, Mounted), "each of the two names leads to one module: model.layers.0 and layers.1"
    both = written(
        good, tmp_path / "both", renamed(r"model\.model\.layers\.1\.self_attn\.v", "model.layers.1.self_attn.q")
    )
    refused = engine.mount("both", both)
    assert refused.fault.code in (ErrorCode.MODULE_MISSING, ErrorCode.BASE_MISMATCH)


def test_renames_of_the_model_s_own_family(make_base: Any, make_adapter: Any, in_process: Any, tmp_path: Path) -> None:
    """GPT-NeoX called its head `embed_out` up to Transformers 4."""
    from transformers import AutoModelForCausalLM, GPTNeoXConfig

    base = tmp_path / "base"
    config = GPTNeoXConfig(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        bos_token_id=256, eos_token_id=257,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(base)
    today = make_adapter("today", base=base, target_modules=["query_key_value", "lm_head"])
    former = written(today, tmp_path / "former", renamed("lm_head", "embed_out"))
    config_file = former / "adapter_config.json"
    config_file.write_text(config_file.read_text().replace("lm_head", "embed_out"))
    engine = in_process(base)
    told = engine.mount("former", former)
    assert isinstance(told, Mounted), told
    assert told.facts.remapped == "renamed modules as Transformers did"
    assert torch.equal(logits(engine, former), logits(engine, today))


def shallow(tensors: Tensors, config: dict[str, Any]) -> None:
    for name in [name for name in tensors if "layers.1." in name]:
        del tensors[name]


def test_a_base_with_other_layers(engine: Any, good: Path, tmp_path: Path) -> None:
    deeper = written(good, tmp_path / "deeper", renamed(r"layers\.1", "layers.2"))
    assert engine.mount("deeper", deeper).fault.code == ErrorCode.BASE_MISMATCH
    fewer = engine.mount("fewer", written(good, tmp_path / "fewer", shallow)).fault.error()
    assert fewer.code == ErrorCode.BASE_MISMATCH
    assert fewer.details == ("model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj")
    restricted: dict[str, dict[str, Any]] = {
        "layers": {"layers_to_transform": [0]},
        "paths": {"target_modules": [f"model.layers.0.self_attn.{name}" for name in (Q, V)]},
        "pattern": {"target_modules": r".*layers\.0\..*"},
    }
    for name, fields in restricted.items():
        only = written(tmp_path / "fewer", tmp_path / name, set_to(**fields))
        assert isinstance(engine.mount(name, only), Mounted), name


# what a strict loader must refuse


def test_a_replaced_file_is_not_read(tiny_base: Path, good: Path, engine: Any, tmp_path: Path) -> None:
    base = engine.engine.serving.base
    copy = written(good, tmp_path / "copy", lambda *_: None)
    files = read_adapter_files(copy, name="sql", max_rank=16)
    other = written(good, tmp_path / "other", lambda tensors, _: [t.mul_(2) for t in tensors.values()])
    os.replace(other / "adapter_model.safetensors", copy / "adapter_model.safetensors")
    with pytest.raises(GraftError) as caught:
        compile_adapter(files, base.layout, base.model.get_submodule, dtype=torch.float32, device=torch.device("cpu"))
    assert caught.value.code == ErrorCode.CORRUPT
    assert "replaced" in caught.value.what


def test_no_path_of_a_config_is_opened(good: Path, tmp_path: Path) -> None:
    """Whoever opened one of these would wait for ever."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    paths = set_to(
        base_model_name_or_path=str(pipe),
        revision=str(pipe),
        auto_mapping={"parent_library": str(pipe)},
        corda_config={"cache_file": str(pipe)},
        lora_ga_config={"cache_file": str(pipe)},
    )
    assert read_adapter_files(written(good, tmp_path / "paths", paths), name="sql", max_rank=16).facts.rank == 4


def test_too_many_tensors(good: Path, tmp_path: Path) -> None:
    count = 65_537
    header = json.dumps(
        {f"t{index}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for index in range(count)}
    ).encode()
    bomb = written(good, tmp_path / "bomb", lambda *_: None)
    (bomb / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(GraftError, match="65537 tensors"):
        read_adapter_files(bomb, name="sql", max_rank=16)


def test_a_rank_over_the_limit_costs_nothing(good: Path, tmp_path: Path) -> None:
    """The header is refused before a byte of the gigabyte that it speaks of is read or reserved."""
    wide = 1 << 18
    shapes = {f"{LAYER}.lora_A.weight": [wide, 32], f"{LAYER}.lora_B.weight": [32, wide]}
    header, end = {}, 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + 4 * 32 * wide]}
        end += 4 * 32 * wide
    text = json.dumps(header).encode()
    huge = written(good, tmp_path / "huge", set_to(r=wide))
    with (huge / "adapter_model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)  # a hole: the file takes no room
    with pytest.raises(GraftError) as caught:
        read_adapter_files(huge, name="sql", max_rank=64)
    assert caught.value.code == ErrorCode.RANK_TOO_HIGH


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".hidden", "a\0b", "__base__", "a b", "é", "x" * 64, "-x", "x."])
def test_names_that_no_adapter_may_have(name: str) -> None:
    with pytest.raises(ValidationError):
        AdapterEntry(name=name, source=Source(uri="file:///a"))


def test_a_dot_in_a_name_is_fine() -> None:
    assert AdapterEntry(name="sql.v1.2", source=Source(uri="file:///a")).name == "sql.v1.2"


def test_nothing_is_written_into_the_base(engine: Any, tiny_base: Path, good: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    logits(engine, written(good, tmp_path / "again", lambda *_: None))
    fresh = AutoModelForCausalLM.from_pretrained(tiny_base).state_dict()
    assert all(
        torch.equal(fresh[name], tensor) for name, tensor in engine.engine.serving.base.model.state_dict().items()
    )


def test_fitted_leaves_right_names_alone(engine: Any, good: Path) -> None:
    files = read_adapter_files(good, name="sql", max_rank=16)
    assert fitted(files, engine.engine.serving.base.layout)[0] is files
