"""`graft-runtime convert`: plain LoRA that does exactly what an adapter does; what is none is refused unread.

`test_adapter_methods` and `test_adapter_variants` convert an adapter of every method and option.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from graft_runtime.adapters import compile as compiling
from graft_runtime.adapters.files import read_adapter_files
from graft_runtime.compiler.normal_form import NormalForm, normal_form
from graft_runtime.compiler.stored_modules import StoredModules
from graft_runtime.errors import ErrorCode, GraftError
from safetensors.torch import load_file, save_file

from tests.support.bases import load_for
from tests.support.methods import METHODS, STACKED, save_method, save_prompt
from tests.support.mixed import PROMPTS, peft_logits
from tests.support.plain_lora import converted, plain_logits

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
AdapterFactory = Callable[..., Path]


def formed(base: Path, *adapters: tuple[Path, float], dtype: str = "float32", max_rank: int = 64) -> NormalForm:
    files = [(read_adapter_files(path, name=path.name, max_rank=1024), weight) for path, weight in adapters]
    return normal_form(files, StoredModules(base), dtype=getattr(torch, dtype), max_rank=max_rank)


def refusal(base: Path, *adapters: tuple[Path, float], **how: Any) -> GraftError:
    with pytest.raises(GraftError) as caught:
        formed(base, *adapters, **how)
    return caught.value


def changed(adapter: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Path:
    """Change the tensors of an adapter in place."""
    tensors = load_file(adapter / WEIGHTS)
    save_file({name: change(name, tensor).contiguous() for name, tensor in tensors.items()}, adapter / WEIGHTS)
    return adapter


def assert_same(mine: list[torch.Tensor], theirs: list[torch.Tensor], what: object = "") -> None:
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4, msg=lambda text: f"{what}: {text}")


def test_the_files_are_lora_without_an_option(tiny_base: Path, make_adapter: AdapterFactory, tmp_path: Path) -> None:
    adapter = make_adapter("ranks", rank_pattern={"q_proj": 2}, use_rslora=True, base=tiny_base)
    (adapter / "tokenizer.json").write_text("{}")
    assert converted(tiny_base, tmp_path / "plain", adapter, dtype="bfloat16") == 0
    config = json.loads((tmp_path / "plain" / CONFIG).read_text())
    tensors = load_file(tmp_path / "plain" / WEIGHTS)
    assert set(config) == {
        *("peft_type", "task_type", "base_model_name_or_path", "inference_mode"),
        *("r", "lora_alpha", "target_modules"),
    }
    assert (config["peft_type"], config["task_type"]) == ("LORA", "CAUSAL_LM")
    assert config["r"] == config["lora_alpha"] == 4
    assert len(tensors) == 2 * len(config["target_modules"]) == 28
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"].shape == (4, 32)
    assert (tmp_path / "plain" / "tokenizer.json").read_text() == "{}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain"]


def test_one_rounding_to_another_dtype(tiny_base: Path, make_adapter: AdapterFactory) -> None:
    adapter = make_adapter("rounded", lora_alpha=7)
    exact, rounded = (formed(tiny_base, (adapter, 0.3), dtype=dtype) for dtype in ("float32", "bfloat16"))
    for path, low_rank in exact.modules.items():
        assert torch.equal(rounded.modules[path].a, low_rank.a.bfloat16())
        assert torch.equal(rounded.modules[path].b, low_rank.b.bfloat16())


@pytest.mark.filterwarnings("ignore")
def test_a_weighted_sum(tiny_base: Path, make_adapter: AdapterFactory, tmp_path: Path) -> None:
    from peft import PeftModel

    config, options = METHODS["loha"]
    adapters = {
        make_adapter("lora", r=3, target_modules=["k_proj", "lm_head"]): 0.5,
        save_method(tiny_base, tmp_path / "loha", config, options, seed=2): -0.25,
    }
    model = load_for("CAUSAL_LM", tiny_base)
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    total = {name: tensor.clone() for name, tensor in base.items()}
    for adapter, weight in adapters.items():
        merged = PeftModel.from_pretrained(load_for("CAUSAL_LM", tiny_base), adapter).merge_and_unload().state_dict()
        for name, tensor in merged.items():
            total[name] += weight * (tensor - base[name])
    model.load_state_dict(total)
    named = [f"{adapter}={weight}" for adapter, weight in adapters.items()]
    assert converted(tiny_base, tmp_path / "sum", *named) == 0
    with torch.inference_mode():
        theirs = [model(input_ids=torch.tensor([prompt])).logits[0, -1] for prompt in PROMPTS]
    assert_same(plain_logits(tiny_base, {"sum": tmp_path / "sum"})["sum"], theirs)
    assert json.loads((tmp_path / "sum" / CONFIG).read_text())["r"] == 3 + 9


def test_modules_that_moved_and_routers(
    make_base: Callable[..., Path],
    make_adapter: AdapterFactory,
    drift: Callable[[Path], Path],
    tmp_path: Path,
    capsys: Any,
) -> None:
    tiny, mixture = make_base("llama"), make_base("mixtral")
    straight = make_adapter("straight", base=tiny, target_modules=["q_proj"])
    moved = drift(shutil.copytree(straight, tmp_path / "moved"))
    routed = make_adapter("routed", base=mixture, target_modules=["gate", "v_proj"])
    expected = {"moved": peft_logits(tiny, straight, PROMPTS), "routed": peft_logits(mixture, routed, PROMPTS)}
    for base, adapter in ((tiny, moved), (mixture, routed)):
        output = tmp_path / "plain" / adapter.name
        assert converted(base, output, adapter) == 0
        assert_same(plain_logits(base, {adapter.name: output})[adapter.name], expected[adapter.name], adapter.name)
    assert "names its modules otherwise than its base: nothing → model" in capsys.readouterr().err


def test_what_is_no_plain_lora_is_refused_before_a_weight_is_read(
    make_base: Callable[..., Path], make_adapter: AdapterFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny, mixture = make_base("llama"), make_base("qwen3_moe")
    config, options = METHODS["loha"]
    loha = save_method(tiny, tmp_path / "loha", config, options, seed=1)
    tokens = make_adapter("tokens", target_modules=["q_proj"], trainable_token_indices=[5, 300, 2, 7, 8])
    grown = make_adapter("grown", rows=325, target_modules=["embed_tokens", "lm_head", "q_proj"])
    resized = save_method(
        tiny, tmp_path / "resized", "TrainableTokensConfig", {"token_indices": [325]}, seed=3, rows=330
    )
    stacked = make_adapter("stacked", base=mixture, **STACKED["down"])
    pissa = make_adapter("pissa", target_modules=["k_proj"], init_lora_weights="pissa", r=4)
    cases: list[tuple[GraftError, ErrorCode, str]] = []

    def unread(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(compiling, "open_weights", unread)
    for method in ("prompt", "p", "prefix"):
        error = refusal(tiny, (save_prompt(tiny, tmp_path / method, method), 1))
        cases.append((error, ErrorCode.UNSUPPORTED_METHOD, "before the prompt"))
    unserved = ErrorCode.UNSUPPORTED_METHOD
    cases += [
        (refusal(tiny, (grown, 1)), unserved, "a vocabulary or labels of its own"),
        (refusal(tiny, (resized, 1)), unserved, "a vocabulary or labels of its own"),
        (refusal(mixture, (stacked, 1)), unserved, "stacked experts"),
        (refusal(tiny, (tokens, 0.5)), unserved, "can't be weighted or added to others"),
        (refusal(tiny, (tokens, 1), (loha, 1)), unserved, "can't be weighted or added to others"),
        (refusal(tiny, (loha, 0)), ErrorCode.NO_EFFECT, "its weight is 0"),
        (refusal(tiny, (loha, 1), max_rank=8), ErrorCode.RANK_TOO_HIGH, "r = 3 of LoHa is a low rank of r² = 9"),
        (refusal(tiny, (pissa, 1), max_rank=7), ErrorCode.RANK_TOO_HIGH, "of rank 8, expected at most 7"),
        (refusal(tiny, (loha, 1), (pissa, 1), max_rank=16), ErrorCode.RANK_TOO_HIGH, "of rank 17"),
        (refusal(tiny, (tokens, 1), max_rank=4), ErrorCode.RANK_TOO_HIGH, "of rank 5"),
        (refusal(make_base("gpt2"), (loha, 1)), ErrorCode.BASE_MISMATCH, "tensors don't fit"),
    ]
    for error, code, text in cases:
        assert error.code is code, str(error)
        assert text in str(error)


def test_a_copy_of_the_embedding_counts_by_its_rows_that_differ(
    tiny_base: Path, make_adapter: AdapterFactory, tmp_path: Path
) -> None:
    """PEFT writes the embedding along where it is targeted, and loads what is there."""
    adapter = make_adapter("copied", target_modules=["embed_tokens", "q_proj"])

    def moved(rows: int) -> Callable[[str, torch.Tensor], torch.Tensor]:
        return lambda name, tensor: torch.cat([tensor[:rows] + 0.25, tensor[rows:]]) if "base_layer" in name else tensor

    few = changed(shutil.copytree(adapter, tmp_path / "few"), moved(6))
    assert converted(tiny_base, tmp_path / "plain", few) == 0
    assert_same(plain_logits(tiny_base, {"few": tmp_path / "plain"})["few"], peft_logits(tiny_base, few, PROMPTS))
    assert json.loads((tmp_path / "plain" / CONFIG).read_text())["r"] == 4 + 6
    many = changed(shutil.copytree(adapter, tmp_path / "many"), moved(61))
    assert refusal(tiny_base, (many, 1)).code is ErrorCode.RANK_TOO_HIGH
    assert refusal(tiny_base, (few, 2)).code is ErrorCode.UNSUPPORTED_METHOD


ABSURD = [
    (1e30, 1, "float32", "expected at most 1000 times"),
    (1e30, 1, "bfloat16", "expected at most 1000 times"),
    (1, 1e9, "float32", "expected at most 1000 times"),
    (1, 1e39, "float32", "expected at most 1000 times"),
    (100, 1, "float16", None),
    (float("nan"), 1, "float32", "values that are not finite"),
    (0, 1, "float32", "changes nothing"),
]
"""By what one B is multiplied, the weight of the adapter, the dtype that is asked for, and what is said."""


def test_absurd_values(tiny_base: Path, make_adapter: AdapterFactory, tmp_path: Path) -> None:
    sane = make_adapter("sane")
    for number, (factor, weight, dtype, said) in enumerate(ABSURD):

        def scaled(name: str, tensor: torch.Tensor, factor: float = factor) -> torch.Tensor:
            return tensor * factor if ".1.mlp.up_proj.lora_B" in name or not factor else tensor

        adapter = changed(shutil.copytree(sane, tmp_path / str(number)), scaled)
        if said is None:
            assert formed(tiny_base, (adapter, weight), dtype=dtype).rank == 4
            continue
        error = refusal(tiny_base, (adapter, weight), dtype=dtype)
        assert error.code is (ErrorCode.CORRUPT if factor else ErrorCode.NO_EFFECT)
        assert said in str(error)


def test_a_change_as_large_as_a_base_without_values(
    tiny_base: Path, make_adapter: AdapterFactory, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    weights = {name: tensor * 0 if "q_proj" in name else tensor for name, tensor in weights.items()}
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    adapter = make_adapter("on nothing", base=base, target_modules=["q_proj"])
    assert converted(base, tmp_path / "plain", adapter) == 0
    made = plain_logits(base, {"plain": tmp_path / "plain"})["plain"]
    assert_same(made, peft_logits(base, adapter, PROMPTS))


def test_a_directory_that_is_there_is_left_as_it_is(
    tiny_base: Path, make_adapter: AdapterFactory, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = make_adapter("sql", target_modules=["q_proj"])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").write_text("mine")
    assert converted(tiny_base, tmp_path / "full", adapter) == 2
    assert "[code: InvalidRequest]" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["notes"]

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("graft_runtime.compiler.plain_lora.save_file", full)
        assert converted(tiny_base, tmp_path / "new", adapter) == 2
    assert "No space left" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    (tmp_path / "empty").mkdir()
    assert converted(tiny_base, tmp_path / "empty", adapter) == 0
    assert {path.name for path in (tmp_path / "empty").iterdir()} == {CONFIG, WEIGHTS}


OPTIONS: dict[str, list[Any]] = {
    "r": [1, 2, 5],
    "lora_alpha": [1, 8, 17],
    "use_rslora": [True],
    "rank_pattern": [{"q_proj": 3}, {"layers.1.mlp.up_proj": 1, "v_proj": 6}],
    "alpha_pattern": [{"^model.layers.1.self_attn.q_proj": 2}, {"down_proj": 30}],
    "target_modules": ["all-linear", ["q_proj", "down_proj"], ["embed_tokens", "v_proj"], ["lm_head", "k_proj"]],
    "exclude_modules": [["k_proj", "up_proj"]],
    "layers_to_transform": [[1]],
    "init_lora_weights": ["pissa", "olora", "gaussian"],
    "trainable_token_indices": [[3, 1], {"embed_tokens": [5, 7, 9]}],
    "use_dora": [True],
    "bias": ["all"],
    "modules_to_save": [["norm"], ["lm_head"]],
    "alora_invocation_tokens": [[2, 5]],
}
"""Of LoRA, a few at once."""
NO_PLAIN_LORA = {"use_dora", "lora_bias", "modules_to_save", "alora_invocation_tokens"}


@pytest.mark.parametrize("seed", range(8))
def test_options_by_chance(seed: int, tiny_base: Path, make_adapter: AdapterFactory, tmp_path: Path) -> None:
    chance = random.Random(seed)
    for _ in range(100):
        chosen = chance.sample(sorted(OPTIONS), chance.randrange(2, 6))
        options = {name: chance.choice(OPTIONS[name]) for name in chosen}
        try:
            adapter = changed(
                make_adapter(f"chance{seed}", seed=seed, **options),
                lambda name, tensor: tensor + 0.1 * torch.randn(tensor.shape) if "base_layer" not in name else tensor,
            )
            read_adapter_files(adapter, name="chance", max_rank=64)
        except (ValueError, TypeError, GraftError):
            continue  # PEFT makes no such adapter, or Graft takes none
        break
    status = converted(tiny_base, tmp_path / "plain", adapter)
    assert (status == 2) is bool(options.keys() & NO_PLAIN_LORA), options
    if status == 0:
        made = plain_logits(tiny_base, {"plain": tmp_path / "plain"})["plain"]
        assert_same(made, peft_logits(tiny_base, adapter, PROMPTS), options)
