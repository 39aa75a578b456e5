"""PEFT's own tables of targets, exclusions, layers, ranks and scales, each row against our reading of the same config.

The rows are data (`data/peft_tables.json`, which names their source); `peft` itself is asked too where that is cheap.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from graft_runtime.adapters.methods.lora_config import LoraConfig, read_lora_config
from graft_runtime.errors import ErrorCode, GraftError

TABLES: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "peft_tables.json").read_text())


def read(config: dict[str, Any]) -> LoraConfig:
    return read_lora_config({"peft_type": "LORA", **config}, "sql")


@pytest.mark.parametrize("row", TABLES["targets"], ids=lambda row: f"{row['path']}-{row['config']}")
def test_targets(row: dict[str, Any]) -> None:
    assert (row["path"] in read(row["config"]).targets) == row["targeted"]


@pytest.mark.parametrize("row", TABLES["named"], ids=lambda row: str(row["config"]))
def test_targets_of_a_model(row: dict[str, Any]) -> None:
    config = read(row["config"])
    assert [path for path in row["modules"] if path in config.targets] == row["targeted"]


@pytest.mark.parametrize("row", TABLES["shortened"], ids=lambda row: str(row["target_modules"])[:60])
def test_shortened_lists_mean_the_modules_that_they_stand_for(row: dict[str, Any]) -> None:
    config = read({"target_modules": row["target_modules"]})
    assert all(path in config.targets for path in row["targeted"])
    assert not any(path in config.targets for path in row["others"])


@pytest.mark.parametrize("row", TABLES["parameters"], ids=lambda row: str(row["target_parameters"]))
def test_targeted_parameters(row: dict[str, Any]) -> None:
    config = read({"target_parameters": row["target_parameters"], "target_modules": ["none"]})
    assert [path for path in row["parameters"] if config.names_parameter(path)] == row["targeted"]


@pytest.mark.parametrize("row", TABLES["expanded"], ids=lambda row: f"{row['model']}-{row['kind']}")
def test_what_all_linear_is_saved_as(row: dict[str, Any]) -> None:
    config = read({"target_modules": row["target_modules"]})
    assert all(f"model.layers.0.block.{name}" in config.targets for name in row["target_modules"])
    assert not any(path in config.targets for path in ("lm_head", "embed_out", "model.embed_tokens"))


@pytest.mark.parametrize("row", TABLES["patterns"], ids=lambda row: row["name"])
def test_ranks_and_scales(row: dict[str, Any]) -> None:
    config = read(row["config"])
    for path, rank in row.get("rank", {}).items():
        assert config.rank_of(path) == rank, path
    for path, expected in row.get("scale", {}).items():
        assert config.scale_of(path, config.rank_of(path)) == pytest.approx(expected, rel=1e-12), path


@pytest.mark.parametrize("config", TABLES["refused"], ids=str)
def test_combinations_that_peft_refuses(config: dict[str, Any]) -> None:
    with pytest.raises(GraftError) as caught:
        read(config)
    assert caught.value.code == ErrorCode.INVALID_CONFIG
    assert any("layers_" in detail for detail in caught.value.details)


@pytest.mark.parametrize("config", TABLES["accepted"], ids=str)
def test_combinations_that_peft_takes(config: dict[str, Any]) -> None:
    assert read(config).targets.layers is not None
