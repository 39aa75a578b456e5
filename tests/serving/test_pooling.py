"""One vector of a text: as sentence-transformers makes it, and by the kind of a base that has no modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from graft_runtime.base.pooling import MODES, Dense, Pooling
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.messages import BaseFailed, Encode, Encoded
from graft_runtime.model.pooling import Pooler
from safetensors.torch import save_file

TOLERANCE = 1e-6
STATES = torch.randn(7, 16, generator=torch.Generator().manual_seed(0))
PROMPTS = [[101, *b"hello", 257], [101, *b"select * from users where id = 7", 257], [101, 257]]


def pooler(pooling: Pooling, *, sees_ahead: bool = True) -> Pooler:
    return Pooler(pooling, sees_ahead=sees_ahead, name="base", device=torch.device("cpu"))


@pytest.mark.parametrize("modes", [*([mode] for mode in sorted(MODES)), ["max", "cls", "mean"]], ids=str)
def test_modes_equal_sentence_transformers(modes: list[str]) -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling as Theirs

    features = {"token_embeddings": STATES[None], "attention_mask": torch.ones(1, len(STATES), dtype=torch.int64)}
    theirs = Theirs(16, pooling_mode=modes)(features)["sentence_embedding"][0]
    mine = pooler(Pooling(modes)).vector(STATES)
    assert mine.shape == theirs.shape
    assert (mine - theirs).abs().max() < TOLERANCE


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid"])
def test_linear_layers_equal_sentence_transformers(activation: str, bias: bool, tmp_path: Path) -> None:
    from sentence_transformers.base.modules import Dense as Theirs

    torch.manual_seed(1)
    layer = Theirs(16, 8, bias=bias, activation_function=getattr(torch.nn, activation)())
    layer.save(str(tmp_path))
    theirs = layer({"sentence_embedding": STATES.mean(0)})["sentence_embedding"].detach()
    mine = pooler(Pooling(["mean"], [Dense(tmp_path, activation)])).vector(STATES)
    assert (mine - theirs).abs().max() < TOLERANCE


def test_weights_that_are_no_linear_layer_are_refused(tmp_path: Path) -> None:
    for tensors in ({}, {"residual.weight": torch.ones(2, 2), "linear.weight": torch.ones(2, 2)}):
        if tensors:
            save_file(tensors, tmp_path / "model.safetensors")
        with pytest.raises(GraftError) as caught:
            pooler(Pooling(["mean"], [Dense(tmp_path, "Tanh")]))
        assert caught.value.code is ErrorCode.NOT_A_MODEL


@pytest.mark.parametrize(("family", "takes"), [("bert", "mean"), ("llama", "last")])
def test_a_base_without_modules_is_pooled_by_what_its_states_see(
    family: str, takes: str, make_base: Any, in_process: Any
) -> None:
    engine = in_process(make_base(family, "FEATURE_EXTRACTION"))
    for number, prompt in enumerate(PROMPTS):
        engine.handle(Encode(f"{number} pooled", prompt, pooled=True))
        engine.handle(Encode(f"{number} states", prompt))
    made = {event.request: event for event in engine.step() if isinstance(event, Encoded)}
    for number in range(len(PROMPTS)):
        vector, states = (made[f"{number} {kind}"] for kind in ("pooled", "states"))
        shaped = torch.tensor(states.values).view(states.shape)
        expected = shaped.mean(0) if takes == "mean" else shaped[-1]
        assert (torch.tensor(vector.values) - expected).abs().max() < TOLERANCE


def test_only_a_base_that_embeds_is_pooled(make_base: Any, in_process: Any) -> None:
    engine = in_process(make_base("bert", "SEQ_CLS"))
    engine.handle(Encode("x", PROMPTS[0], pooled=True))
    (answer,) = (event for event in engine.step() if isinstance(event, Encoded))
    assert answer.fault is not None
    assert answer.fault.code == "InvalidRequest"


def test_a_base_with_modules_that_are_not_known_is_not_served(make_base: Any, in_process: Any, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(make_base("bert", "FEATURE_EXTRACTION"), tmp_path / "base")
    (tmp_path / "base" / "modules.json").write_text("[]")
    (failed,) = in_process(tmp_path / "base").started
    assert isinstance(failed, BaseFailed)
    assert failed.fault.code == "NotAModel"
