"""A bad adapter is refused before a weight is read, with one typed error that names every fault of its kind."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from graft_runtime.adapters.files import read_adapter_files
from graft_runtime.errors import ErrorCode, GraftError
from hypothesis import HealthCheck, given, settings, strategies

Q, V = "base_model.model.model.layers.0.self_attn.q_proj", "base_model.model.model.layers.0.self_attn.v_proj"
SHAPES: dict[str, tuple[int, ...]] = {
    f"{Q}.lora_A.weight": (4, 8),
    f"{Q}.lora_B.weight": (8, 4),
    f"{V}.lora_A.weight": (2, 8),
    f"{V}.lora_B.weight": (6, 2),
}
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj", "v_proj"],
    "rank_pattern": {"v_proj": 2},
    "bias": "none",
    "use_dora": False,
    "modules_to_save": None,
    "base_model_name_or_path": "/root/models/llama",
}


def header_of(shapes: Mapping[str, tuple[int, ...]], dtype: str = "F32", item: int = 4) -> dict[str, Any]:
    header, begin = {}, 0
    for name, shape in shapes.items():
        end = begin + item * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    return header


def weights(header: dict[str, Any] | bytes, data: bytes | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    if data is None:
        assert isinstance(header, dict)
        data = bytes(max(entry["data_offsets"][1] for entry in header.values()))
    return struct.pack("<Q", len(text)) + text + data


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "adapter_model.safetensors").write_bytes(weights(header_of(SHAPES)))
    return tmp_path


def refusal(directory: Path, max_rank: int = 16) -> GraftError:
    with pytest.raises(GraftError) as caught:
        read_adapter_files(directory, name="sql", max_rank=max_rank)
    assert "`sql`" in caught.value.what
    return caught.value


def set_config(directory: Path, **changes: Any) -> None:
    (directory / "adapter_config.json").write_text(json.dumps(CONFIG | changes))


def test_a_good_one_is_described(adapter: Path) -> None:
    files = read_adapter_files(adapter, name="sql", max_rank=4)
    assert (files.facts.method, files.facts.rank, set(files.tensors)) == ("LORA", 4, set(SHAPES))
    assert files.bytes == sum(path.stat().st_size for path in adapter.iterdir())
    last = files.tensors[f"{V}.lora_B.weight"]
    assert (last.dtype, last.shape, last.end) == ("F32", (6, 2), (adapter / "adapter_model.safetensors").stat().st_size)
    assert files.recipe.base_model == "/root/models/llama"


def test_what_peft_saves_is_read(make_adapter: Any) -> None:
    files = read_adapter_files(make_adapter("real", r=8), name="real", max_rank=8)
    assert files.facts.rank == 8
    assert len(files.tensors) == 2 * 7 * 2  # A and B of seven linear modules in two layers


def test_rank_over_the_limit(adapter: Path) -> None:
    error = refusal(adapter, max_rank=3)
    assert error.code == ErrorCode.RANK_TOO_HIGH
    assert error.what == "adapter `sql` has rank 4, the pool takes at most 3 (spec.engine.maxRank)"


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_not_an_adapter(adapter: Path, missing: str) -> None:
    (adapter / missing).unlink()
    error = refusal(adapter)
    assert error.code == ErrorCode.NOT_AN_ADAPTER
    assert missing in error.what


@pytest.mark.parametrize(
    ("left", "said", "hint"),
    [
        ("adapter_model-00001-of-00004.safetensors", "split into shards", "without max_shard_size"),
        ("adapters.safetensors", "MLX", "mlx_lm.fuse"),
        ("pytorch_lora_weights.safetensors", "diffusers", "text models"),
        ("adapters.npz", "MLX", "mlx_lm.fuse"),
        ("adapter_0.pt", "torchtune", "torchtune 0.5"),
        ("lora.safetensors", "mistral-finetune", "rename its tensors"),
        ("lit_model.pth.lora", "LitGPT", "litgpt merge_lora"),
        ("sql.nemo", "NeMo", "hf-peft"),
        ("adapter_model-00001-of-00002.bin", "shards, in pickles", "safe_serialization=True"),
        ("mp_rank_00_model_states.pt", "DeepSpeed", "stage3_gather_16bit_weights_on_model_save"),
        ("sql-f16.gguf", "llama.cpp", "that it was converted from"),
        ("zero_to_fp32.py", "DeepSpeed", "stage3_gather_16bit_weights_on_model_save"),
        ("pytorch_model_fsdp_0", "FSDP", "FULL_STATE_DICT"),
        ("__0_0.distcp", "distributed checkpoint", "gather the weights"),
        ("model-00001-of-00002.safetensors", "a whole model", "spec.baseModel"),
    ],
)
def test_what_stands_in_the_place_of_an_adapter_is_named(adapter: Path, left: str, said: str, hint: str) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / left)
    error = refusal(adapter)
    assert error.code == ErrorCode.NOT_AN_ADAPTER
    assert left in error.what
    assert said in error.what
    assert hint in (error.hint or "")


@pytest.mark.parametrize("shape", [(0,), (0, 4), (12,)], ids=["ZeRO-3", "a shard without rows", "flat"])
def test_weights_that_were_not_gathered_are_named(adapter: Path, shape: tuple[int, ...]) -> None:
    name = f"{V}.lora_B.weight"
    (adapter / "adapter_model.safetensors").write_bytes(weights(header_of(SHAPES | {name: shape})))
    error = refusal(adapter)
    assert error.code == ErrorCode.CORRUPT
    assert "lacks the values of 1 of its 4 tensors" in error.what
    assert "gathered" in error.what
    assert error.details == (f"{name}: {shape}",)
    assert "stage3_gather_16bit_weights_on_model_save" in (error.hint or "")


def test_a_head_that_was_not_gathered_is_named(adapter: Path) -> None:
    set_config(adapter, modules_to_save=["lm_head"])
    head = {"base_model.model.lm_head.weight": (0,)}
    (adapter / "adapter_model.safetensors").write_bytes(weights(header_of(SHAPES | head)))
    assert "gathered" in refusal(adapter).what


def test_a_pointer_of_git_lfs_is_named(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    )
    error = refusal(adapter)
    assert error.code == ErrorCode.CORRUPT
    assert "a pointer of Git LFS" in error.what
    assert "git lfs pull" in (error.hint or "")


def test_a_missing_directory(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere").code == ErrorCode.NOT_AN_ADAPTER


def test_the_folder_that_holds_the_adapter_is_named(adapter: Path) -> None:
    inner = adapter / "inner"
    inner.mkdir()
    (adapter / "adapter_config.json").rename(inner / "adapter_config.json")
    assert refusal(adapter).details == ("the folder 'inner' in it holds an adapter",)


def test_a_pickle_is_not_opened(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    error = refusal(adapter)
    assert error.code == ErrorCode.UNSAFE_FILE
    assert "adapter_model.bin" in error.what


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_links_and_pipes_are_not_followed(adapter: Path, name: str) -> None:
    file = adapter / name
    file.rename(adapter / "elsewhere")
    file.symlink_to("elsewhere")
    assert refusal(adapter).code == ErrorCode.UNSAFE_FILE
    file.unlink()
    os.mkfifo(file)
    assert refusal(adapter).code == ErrorCode.UNSAFE_FILE


def _shift(header: dict[str, Any], name: str, begin: int, end: int) -> dict[str, Any]:
    first, last = header[name]["data_offsets"]
    return header | {name: header[name] | {"data_offsets": [first + begin, last + end]}}


GOOD = header_of(SHAPES)
A = f"{Q}.lora_A.weight"
DAMAGED: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "no header": lambda: b"\x00" * 8,
    "a header longer than the file": lambda: struct.pack("<Q", 1 << 20) + b"{}",
    "a header over the limit": lambda: struct.pack("<Q", 1 << 40) + b"{}",
    "truncated": lambda: weights(GOOD)[:-1],
    "trailing bytes": lambda: weights(GOOD) + b"\x00",
    "not JSON": lambda: weights(b"{nonsense", b""),
    "not UTF-8": lambda: weights(b"\xff\xfe{}", b""),
    "a list": lambda: weights(b"[]", b""),
    "nested deeply": lambda: weights(b'{"a":' * 20_000 + b"1" + b"}" * 20_000, b""),
    "a key twice": lambda: weights(b'{"a":{},"a":{}}', b""),
    "NaN": lambda: weights(b'{"a":NaN}', b""),
    "a huge number": lambda: weights(b'{"a":' + b"9" * 10_000 + b"}", b""),
    "an overlap": lambda: weights(_shift(GOOD, f"{Q}.lora_B.weight", -4, -4), bytes(304)),
    "a span of the wrong length": lambda: weights(_shift(GOOD, A, 0, 4)),
    "a negative offset": lambda: weights(_shift(GOOD, A, -4, -4)),
    "an unknown dtype": lambda: weights(GOOD | {A: GOOD[A] | {"dtype": "F31"}}),
    "a field too many": lambda: weights(GOOD | {A: GOOD[A] | {"file": "/etc/passwd"}}),
    "a shape that is no shape": lambda: weights(GOOD | {A: GOOD[A] | {"shape": [4, -8]}}),
    "a shape of true": lambda: weights(GOOD | {A: GOOD[A] | {"shape": [True, 32]}}),
    "integers": lambda: weights(header_of(SHAPES, "I32")),
    "no tensor": lambda: weights(b"{}", b""),
    "B missing": lambda: weights(header_of({A: (4, 8)})),
    "ranks of A and B differ": lambda: weights(header_of({A: (4, 8), f"{Q}.lora_B.weight": (8, 3)})),
    "three dimensions": lambda: weights(header_of({A: (4,), f"{Q}.lora_B.weight": (8, 4)})),
    "rank zero": lambda: weights(header_of({A: (0, 8), f"{Q}.lora_B.weight": (8, 0)})),
}


@pytest.mark.parametrize("damage", list(DAMAGED))
def test_damaged_weights(adapter: Path, damage: str) -> None:
    (adapter / "adapter_model.safetensors").write_bytes(DAMAGED[damage]())
    assert refusal(adapter).code == ErrorCode.CORRUPT


def test_a_tensor_s_name_is_no_longer_than_a_path_can_be(adapter: Path) -> None:
    weights_file = adapter / "adapter_model.safetensors"
    weights_file.write_bytes(weights(header_of(SHAPES | {"n" * 60_000: (1,)})))
    error = refusal(adapter)
    assert (error.code, "60000 characters" in error.what) == ("Corrupt", True)
    assert len(error.message) < 500


def test_one_error_lists_every_damaged_tensor(adapter: Path) -> None:
    header = {name: entry | {"dtype": "F31"} for name, entry in GOOD.items()}
    (adapter / "adapter_model.safetensors").write_bytes(weights(header))
    assert len(refusal(adapter).details) == len(SHAPES)


def test_tensors_of_other_methods_are_named(adapter: Path) -> None:
    extra = {f"{Q}.hada_w1_a": (8,), "base_model.model.score.weight": (4, 8), "prompt_embeddings": (4, 8)}
    (adapter / "adapter_model.safetensors").write_bytes(weights(header_of(SHAPES | extra)))
    error = refusal(adapter)
    assert error.code == ErrorCode.UNSUPPORTED_METHOD
    assert len(error.details) == 3
    assert "unknown" in error.details[0]
    assert "modules_to_save" in error.details[1]


@pytest.mark.parametrize("ending", ["weight.absmax", "weight.quant_state.bitsandbytes__nf4", "SCB", "weight_format"])
def test_quantised_weights_of_the_base_are_named(adapter: Path, ending: str) -> None:
    extra = {f"base_model.model.lm_head.{ending}": (4,)}
    (adapter / "adapter_model.safetensors").write_bytes(weights(header_of(SHAPES | extra)))
    error = refusal(adapter)
    assert error.code == ErrorCode.UNSUPPORTED_METHOD
    assert f"lm_head.{ending}: what bitsandbytes keeps beside a quantised weight" in error.details[0]
    assert "save_embedding_layers=False" in (error.hint or "")


@pytest.mark.parametrize("method", ["XLORA", "SOMETHING_NEW"])
def test_other_methods_are_refused_by_name(adapter: Path, method: str) -> None:
    set_config(adapter, peft_type=method)
    error = refusal(adapter)
    assert error.code == ErrorCode.UNSUPPORTED_METHOD
    assert method in error.what
    assert error.hint


REFUSED: dict[str, Any] = {
    "layer_replication": [[0, 2]],
    "use_qalora": True,
    "arrow_config": {"top_k": 2},
    "init_lora_weights": "pissa_niter_4",
    "megatron_config": {"a": 1},
    "an_option_of_next_year": 3,
}
WITHOUT_TENSORS: dict[str, Any] = {
    "use_dora": True,
    "lora_bias": True,
    "modules_to_save": ["lm_head"],
    "trainable_token_indices": [1, 2],
}


@pytest.mark.parametrize("option", list(WITHOUT_TENSORS))
def test_options_whose_tensors_are_missing(adapter: Path, option: str) -> None:
    set_config(adapter, **{option: WITHOUT_TENSORS[option]})
    error = refusal(adapter)
    assert error.code == ErrorCode.CORRUPT
    assert option in error.details[0]


@pytest.mark.parametrize("option", list(REFUSED))
def test_options_that_are_not_served(adapter: Path, option: str) -> None:
    set_config(adapter, **{option: REFUSED[option]})
    error = refusal(adapter)
    assert error.code == ErrorCode.UNSUPPORTED_METHOD
    assert option in error.details[0]


def test_one_error_lists_every_option(adapter: Path) -> None:
    set_config(adapter, use_qalora=True, arrow_config={"top_k": 2}, init_lora_weights="loftq")
    assert len(refusal(adapter).details) == 3


@pytest.mark.parametrize("start", [True, False, "gaussian", "eva", "orthogonal", "mica"])
def test_starts_that_leave_the_base_alone_are_served(adapter: Path, start: Any) -> None:
    set_config(adapter, init_lora_weights=start)
    assert read_adapter_files(adapter, name="sql", max_rank=16).facts.rank == 4


INVALID: dict[str, Any] = {
    "r": 0,
    "lora_alpha": None,
    "use_rslora": "yes",
    "rank_pattern": {"v_proj": "2"},
    "alpha_pattern": ["v_proj"],
    "target_modules": 3,
    "exclude_modules": [1],
    "layers_to_transform": ["0"],
    "layers_pattern": {"a": 1},
    "peft_type": None,
}


@pytest.mark.parametrize("field", list(INVALID))
def test_values_without_a_meaning(adapter: Path, field: str) -> None:
    set_config(adapter, **{field: INVALID[field]})
    error = refusal(adapter)
    assert error.code == ErrorCode.INVALID_CONFIG
    assert field in str(error)


def test_one_error_lists_every_value(adapter: Path) -> None:
    set_config(adapter, r=True, lora_alpha=None, use_rslora=3)
    assert len(refusal(adapter).details) == 3


@pytest.mark.parametrize("text", ["", "[]", "{", '{"r": NaN}', '{"r": 1, "r": 2}', '{"a":' * 200 + "1" + "}" * 200])
def test_a_config_that_is_no_config(adapter: Path, text: str) -> None:
    (adapter / "adapter_config.json").write_text(text)
    assert refusal(adapter).code == ErrorCode.INVALID_CONFIG


def test_an_infinite_alpha(adapter: Path) -> None:
    (adapter / "adapter_config.json").write_text(json.dumps(CONFIG).replace('"lora_alpha": 8', '"lora_alpha": 1e999'))
    assert refusal(adapter).code == ErrorCode.INVALID_CONFIG


def test_a_config_over_the_limit(adapter: Path) -> None:
    set_config(adapter, revision="x" * (1 << 20))
    assert refusal(adapter).code == ErrorCode.INVALID_CONFIG


@pytest.mark.parametrize("pattern", ["a" * 2000, "(", r"(.)\1", "(?:(?:a{1,99})){1,99}", "(?:){999999999}"])
@pytest.mark.parametrize(
    "field", ["target_modules", "exclude_modules", "rank_pattern", "alpha_pattern", "layers_pattern"]
)
def test_patterns_that_could_take_for_ever(adapter: Path, field: str, pattern: str) -> None:
    set_config(adapter, **{field: {pattern: 2} if field in ("rank_pattern", "alpha_pattern") else pattern})
    assert refusal(adapter).code == ErrorCode.INVALID_CONFIG


def test_too_many_patterns(adapter: Path) -> None:
    set_config(
        adapter,
        rank_pattern={f"layer{index}": 2 for index in range(5000)},
        alpha_pattern={f".*a.*b{index}": 2 for index in range(65)},
        layers_to_transform=[0],
        layers_pattern=["layers"] * 65,
    )
    assert refusal(adapter).details == (
        "rank_pattern has 5000 keys, expected at most 4096",
        "alpha_pattern has 65 keys with several wildcards, expected at most 64",
        "layers_pattern has 65 items, expected at most 64",
    )
    set_config(adapter, rank_pattern={f"layer{index}" + "x" * 100: 2 for index in range(4000)})
    assert "characters of keys" in refusal(adapter).details[0]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=strategies.data())
def test_bytes_that_changed_give_a_typed_error_or_nothing(adapter: Path, data: strategies.DataObject) -> None:
    """Whatever happens to the bytes of either file: an adapter that passes every check, or a GraftError."""
    name = data.draw(strategies.sampled_from(["adapter_config.json", "adapter_model.safetensors"]))
    whole = json.dumps(CONFIG).encode() if name.endswith("json") else weights(GOOD)
    start = data.draw(strategies.integers(0, len(whole)))
    end = data.draw(strategies.integers(start, min(len(whole), start + 40)))
    (adapter / name).write_bytes(whole[:start] + data.draw(strategies.binary(max_size=12)) + whole[end:])
    with suppress(GraftError):
        assert read_adapter_files(adapter, name="sql", max_rank=16).facts.rank <= 16
    (adapter / "adapter_config.json").write_text(json.dumps(CONFIG))
    (adapter / "adapter_model.safetensors").write_bytes(weights(GOOD))
