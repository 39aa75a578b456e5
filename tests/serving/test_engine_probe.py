"""What the probe lets through to the decoder runner, and what it refuses: with a reason, and still served."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from graft_runtime.contract.config import EngineConfig
from graft_runtime.engine.route import choose_runner
from graft_runtime.errors import GraftError
from graft_runtime.messages import BaseLoaded, Generate, Sampling
from graft_runtime.model.bank import Bank
from graft_runtime.model.hooks import AdapterModules
from graft_runtime.model.load import BaseModel, load_base
from graft_runtime.runners.decoder.attention import IMPLEMENTATION
from graft_runtime.runners.decoder.probe import probe
from graft_runtime.runners.decoder.runner import DecoderRunner
from graft_runtime.runners.padded import PaddedRunner


@pytest.fixture
def load(make_base: Any) -> Callable[[str], BaseModel]:
    def load(family: str) -> BaseModel:
        return load_base(make_base(family), name="tiny", dtype="float32", max_sequence_length=256)

    return load


def refused(base: BaseModel, caplog: pytest.LogCaptureFixture) -> str:
    """The reason, from the log; the model is as it was. The padded runner serves it, or can't either."""
    with caplog.at_level(logging.WARNING), contextlib.suppress(GraftError):
        assert isinstance(choose_runner(base, EngineConfig(max_rank=16)), PaddedRunner)
    assert base.model.config._attn_implementation != IMPLEMENTATION
    return caplog.text


def test_a_family_that_follows_the_interface_is_let_through(load: Any) -> None:
    assert isinstance(choose_runner(load("gemma3"), EngineConfig(max_rank=16)), DecoderRunner)
    base = load("gemma3")
    bank = Bank(base.layout.linear, max_rank=16, dtype=base.dtype, device=base.device)
    with torch.inference_mode():
        family = probe(base, AdapterModules(base.model, bank), pages=False)
    assert family.windows == (8, None)
    assert [layer.features for layer in family.layers] == [2 * 2 * 8] * 2


def _calls_with(options: dict[str, Any]) -> Callable[[BaseModel], None]:
    def edit(base: BaseModel) -> None:
        for layer in base.model.model.layers:
            layer.self_attn.register_forward_pre_hook(
                lambda _, args, kwargs: (args, kwargs | options), with_kwargs=True
            )

    return edit


def _no_attention(base: BaseModel) -> None:
    base.model.model.layers[1].self_attn.forward = lambda hidden_states, **_: (torch.zeros_like(hidden_states), None)


def _shared_index(base: BaseModel) -> None:
    base.model.model.layers[1].self_attn.layer_idx = 0


def _chunked(base: BaseModel) -> None:
    base.model.config.layer_types = ["full_attention", "chunked_attention"]
    base.model.config.attention_chunk_size = 8


def _window_beside_the_config(base: BaseModel) -> None:
    base.model.config.layer_types = ["sliding_attention", "full_attention"]
    base.model.config.sliding_window = 8
    _calls_with({"sliding_window": 7})(base)


def _sees_the_batch(base: BaseModel) -> None:
    """Something between the layers looks at all tokens of a pass."""
    base.model.model.layers[0].register_forward_hook(lambda _, __, out: out + out.mean(dim=1, keepdim=True))


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (_calls_with({"position_bias": torch.zeros(1)}), "called with position_bias"),
        (_calls_with({"is_causal": False}), "not causal"),
        (_no_attention, "layers [0] of 2 call the attention interface"),
        (_shared_index, "layers [0, 0] of 2"),
        (_chunked, "type chunked_attention"),
        (_window_beside_the_config, "window of 7 tokens"),
        (_sees_the_batch, "packed logits differ"),
    ],
)
def test_what_is_not_understood_is_refused(
    load: Any, caplog: pytest.LogCaptureFixture, edit: Callable[[BaseModel], None], reason: str
) -> None:
    base = load("llama")
    edit(base)
    assert reason in refused(base, caplog)


def test_bloom_is_served_by_the_padded_runner_and_says_so(
    make_base: Any, in_process: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        engine = in_process(make_base("bloom"))
    (loaded,) = engine.started
    assert isinstance(loaded, BaseLoaded)
    assert loaded.runner == "padded"
    assert "served by the padded runner: " in caplog.text
    assert len(engine.answers([Generate("x", [256, 1], 4, (), Sampling(temperature=0))])["x"]) == 4


def test_a_position_embedding_that_looks_at_the_longest_row_is_capped(make_base: Any, tmp_path: Any) -> None:
    """`dynamic` RoPE turns every row by the longest: past the trained length, one request would change the others."""
    import json
    import shutil

    directory = shutil.copytree(make_base("llama"), tmp_path / "dynamic")
    config = json.loads((directory / "config.json").read_text())
    config["max_position_embeddings"] = 1024
    config["rope_parameters"] = {
        "rope_type": "dynamic",
        "factor": 4.0,
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 256,
    }
    (directory / "config.json").write_text(json.dumps(config))
    base = load_base(directory, name="tiny", dtype="float32", max_sequence_length=4096)
    assert base.context_length == 256
    assert choose_runner(base, EngineConfig(max_rank=16)).context_length == 256
