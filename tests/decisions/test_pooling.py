"""How a checkpoint has vectors made of hidden states, by sentence-transformers' files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from graft_runtime.base.pooling import Dense, Pooling, read_pooling
from graft_runtime.errors import ErrorCode, GraftError

MODELS = "sentence_transformers.models"
TRANSFORMER = {"idx": 0, "name": "0", "path": "", "type": f"{MODELS}.Transformer"}
POOLING = {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{MODELS}.Pooling"}
DENSE = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.base.modules.dense.Dense"}
NORMALIZE = {"idx": 3, "name": "3", "path": "3_Normalize", "type": f"{MODELS}.Normalize"}
DROPOUT = {"idx": 4, "name": "4", "path": "4_Dropout", "type": f"{MODELS}.Dropout"}
IDENTITY = {"activation_function": "torch.nn.modules.linear.Identity"}


def checkpoint(directory: Path, modules: Any, **configs: Any) -> Path:
    """A base's directory. `pooling` and `dense` are those modules' configs, `transformer` is the first one's."""
    places = {"pooling": "1_Pooling/config.json", "dense": "2_Dense/config.json"}
    files = {"modules.json": modules} | {places.get(key, "sentence_bert_config.json"): configs[key] for key in configs}
    for path, content in files.items():
        (directory / path).parent.mkdir(exist_ok=True)
        (directory / path).write_text(content if isinstance(content, str) else json.dumps(content))
    return directory


def test_without_modules_the_kind_of_the_base_decides_and_vectors_are_scaled(tmp_path: Path) -> None:
    assert read_pooling(tmp_path, "base") == Pooling((), (), scales=True, max_tokens=None)


@pytest.mark.parametrize(
    ("config", "modes"),
    [
        ({"word_embedding_dimension": 32, "pooling_mode_cls_token": True}, ["cls"]),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, ["max", "mean"]),
        ({"pooling_mode_lasttoken": True, "pooling_mode_cls_token": False, "include_prompt": True}, ["lasttoken"]),
        ({"pooling_mode_cls_token": False}, ["mean"]),
        ({"embedding_dimension": 32, "pooling_mode": "weightedmean"}, ["weightedmean"]),
        ({"pooling_mode": ["mean_sqrt_len_tokens", "cls"]}, ["mean_sqrt_len_tokens", "cls"]),
    ],
)
def test_modes_are_read_as_old_and_new_versions_write_them(tmp_path: Path, config: Any, modes: list[str]) -> None:
    directory = checkpoint(tmp_path, [TRANSFORMER, POOLING], pooling=config)
    assert read_pooling(directory, "base") == Pooling(modes, [], scales=False)


def test_all_modules_are_read(tmp_path: Path) -> None:
    directory = checkpoint(
        tmp_path,
        [TRANSFORMER, POOLING, DROPOUT, DENSE, NORMALIZE],
        pooling={"pooling_mode": "mean"},
        dense=IDENTITY | {"in_features": 32, "out_features": 8, "bias": True},
        transformer={"max_seq_length": 128, "do_lower_case": False},
    )
    dense = [Dense(directory / "2_Dense", "Identity")]
    assert read_pooling(directory, "base") == Pooling(["mean"], dense, scales=True, max_tokens=128)


@pytest.mark.parametrize(
    ("transformer", "tokenizer", "most"),
    [
        ({"max_seq_length": 128}, {"model_max_length": 64}, 128),
        ({"max_seq_length": None}, {"model_max_length": 64}, 64),
        ({"modality_config": {"text": {}}}, {"model_max_length": 64}, 64),
        ({}, {"model_max_length": 10**30}, None),
        ({}, {}, None),
    ],
)
def test_a_text_may_have_as_many_tokens_as_either_file_says(
    tmp_path: Path, transformer: Any, tokenizer: Any, most: int | None
) -> None:
    directory = checkpoint(tmp_path, [TRANSFORMER, POOLING], pooling={}, transformer=transformer)
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    assert read_pooling(directory, "base").max_tokens == most


@pytest.mark.parametrize(
    ("modules", "configs", "why"),
    [
        ([], {}, "the modules of none"),
        ({}, {}, "no list of modules"),
        ("[", {}, "not valid JSON"),
        ([TRANSFORMER], {}, "the modules Transformer"),
        ([POOLING, TRANSFORMER], {}, "the modules Pooling, Transformer"),
        ([TRANSFORMER, POOLING, NORMALIZE, DENSE], {}, "the modules"),
        ([TRANSFORMER, POOLING | {"type": f"{MODELS}.WeightedLayerPooling"}], {}, "WeightedLayerPooling"),
        ([TRANSFORMER | {"path": "0_Transformer"}, POOLING], {}, "the modules"),
        ([TRANSFORMER, POOLING | {"path": "../1_Pooling"}], {}, "no list of modules"),
        ([TRANSFORMER, POOLING | {"path": ".."}], {}, "no list of modules"),
        ([TRANSFORMER, POOLING | {"path": "/etc"}], {}, "no list of modules"),
        ([TRANSFORMER, POOLING | {"type": 7}], {}, "no list of modules"),
        ([TRANSFORMER, POOLING], {}, "1_Pooling/config.json can't be read: No such file"),
        ([TRANSFORMER, POOLING], {"pooling": {"pooling_mode": "median"}}, "'median'"),
        ([TRANSFORMER, POOLING], {"pooling": {"pooling_mode": [["cls"]]}}, "expected some of"),
        ([TRANSFORMER, POOLING], {"pooling": {}, "transformer": {"do_lower_case": True}}, "do_lower_case"),
        ([TRANSFORMER, POOLING], {"pooling": {}, "transformer": {"modality_config": {"message": {}}}}, "chat template"),
        ([TRANSFORMER, POOLING, DENSE], {"pooling": {}, "dense": {"activation_function": "os.system"}}, "os.system"),
        (
            [TRANSFORMER, POOLING, DENSE],
            {"pooling": {}, "dense": {"activation_function": "torch.nn.modules.activation.PReLU"}},
            "PReLU",
        ),
        ([TRANSFORMER, POOLING, DENSE], {"pooling": {}, "dense": {"use_residual": True}}, "more than a linear layer"),
        (
            [TRANSFORMER, POOLING, DENSE],
            {"pooling": {}, "dense": {"module_input_name": "token_embeddings"}},
            "more than a linear layer",
        ),
    ],
)
def test_what_is_not_known_is_refused_and_not_guessed(tmp_path: Path, modules: Any, configs: Any, why: str) -> None:
    with pytest.raises(GraftError) as caught:
        read_pooling(checkpoint(tmp_path, modules, **configs), "base")
    assert caught.value.code is ErrorCode.NOT_A_MODEL
    assert why in caught.value.what


@pytest.mark.parametrize(
    ("scales", "dimensions", "expected"),
    [
        (True, None, [3 / 13, 4 / 13, 12 / 13]),
        (True, 2, [0.6, 0.8]),
        (False, 2, [3.0, 4.0]),
        (False, None, [3.0, 4.0, 12.0]),
    ],
)
def test_vectors_are_scaled_after_they_are_cut(scales: bool, dimensions: int | None, expected: list[float]) -> None:
    assert Pooling(scales=scales).cut([3.0, 4.0, 12.0], dimensions) == pytest.approx(expected)


def test_a_vector_of_zeros_stays_one() -> None:
    assert Pooling().cut([0.0, 0.0], None) == [0.0, 0.0]
    assert not any(map(math.isnan, Pooling().cut([0.0, 0.0], 1)))
