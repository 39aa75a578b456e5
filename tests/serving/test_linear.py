"""Linear modules of a base: each form of the product gives the same values, and in each the weight can be read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graft_runtime.engine import packing
from graft_runtime.messages import Generate, Mounted, Sampling, ServedAdapter
from graft_runtime.model import linear
from graft_runtime.model.linear import Linear, add_product, own_linears, product
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

NEW_TOKENS = 16
PROMPTS = [[256, *b"hello"], [256, *b"select * from users where id = 7"], [256, *b"?"]]


@pytest.fixture
def without_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute as a processor does that has no instructions for half precision."""
    monkeypatch.setattr(linear, "_slow_dtypes", lambda: frozenset({torch.bfloat16, torch.float16}))


@pytest.fixture
def packed_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pack float32 as bfloat16 is packed where the processor has instructions for it."""
    monkeypatch.setattr(packing, "packable", lambda weight: weight.dtype == torch.float32)


def made(outputs: int, inputs: int, *, bias: bool, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias=bias, dtype=dtype).requires_grad_(False)


def test_only_plain_linears_become_ours_and_stay_where_they_are() -> None:
    class Other(nn.Linear):
        pass

    head = made(8, 4, bias=True)
    model = nn.ModuleDict({"head": head, "same": head, "conv": Conv1D(4, 8), "other": Other(4, 8)})
    own_linears(model)
    assert [type(model[name]) for name in ("head", "same", "conv", "other")] == [Linear, Linear, Conv1D, Other]
    assert model["head"] is model["same"] is head


@pytest.mark.parametrize("bias", [False, True])
@torch.inference_mode()
def test_a_packed_weight_gives_the_product_and_can_be_read(bias: bool) -> None:
    plain = made(96, 40, bias=bias)
    model = nn.ModuleDict({"one": made(96, 40, bias=bias)})
    own_linears(model)
    assert model["one"].pack()  # type: ignore[operator]
    for tokens in (1, 3, 16, 100):
        x = torch.randn(1, tokens, 40)
        torch.testing.assert_close(model["one"](x), plain(x), rtol=1e-5, atol=1e-5)
    assert torch.equal(model["one"].weight, plain.weight)  # type: ignore[arg-type]
    assert [name for name, _ in model.named_parameters()] == (["one.bias"] if bias else [])


def test_a_weight_that_computes_otherwise_when_packed_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.ModuleDict({"one": made(96, 40, bias=True)})
    own_linears(model)
    weight, reorder = model["one"].weight, torch.ops.mkldnn._reorder_linear_weight
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", lambda weight, rows: reorder(weight.flip(0), rows))
    assert not model["one"].pack()  # type: ignore[operator]
    assert model["one"].weight is weight


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [1, 5])
@torch.inference_mode()
def test_a_widened_product_is_rounded_once(without_instructions: None, dtype: torch.dtype, tokens: int) -> None:
    one, x = made(5000, 72, bias=True, dtype=dtype), torch.randn(1, tokens, 72, dtype=dtype)
    assert one.weight.numel() > linear._PIECE
    exact = functional.linear(x.double(), one.weight.double(), one.bias.double())
    got = product(x, one.weight, one.bias)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-5)


@torch.inference_mode()
def test_columns_are_added_in_float32_where_the_processor_has_nothing_less(without_instructions: None) -> None:
    y, z, b = (torch.randn(*size, dtype=torch.bfloat16) for size in ((6, 40), (6, 16), (16, 40)))
    exact = y.double() + z.double() @ b.double()
    add_product(y, z, b)
    torch.testing.assert_close(y.double(), exact, rtol=2**-8, atol=1e-5)


@pytest.mark.usefixtures("packed_floats")
@pytest.mark.parametrize("family", ["tied", "gemma3", "opt", "mixtral"])
def test_answers_on_packed_weights_equal_peft(
    family: str, make_base: Any, make_adapter: Any, in_process: Any, make_oracle: Any
) -> None:
    base = make_base(family)
    oracle, engine = make_oracle(base), in_process(base)
    modules = engine.engine.serving.base.modules
    assert not isinstance(
        modules("model.layers.0.self_attn.o_proj" if family != "opt" else "model.decoder.layers.0.fc1").weight,
        nn.Parameter,
    )
    targets = ["fc1", "fc2"] if family == "opt" else ["o_proj"]
    for kind, options in {"plain": {}, "magnitude": {"use_dora": True}}.items():  # DoRA reads the base's weight
        adapter = make_adapter(kind, base=base, r=4, lora_alpha=8, target_modules=targets, **options)
        assert isinstance(engine.mount(kind, adapter), Mounted)
        oracle.load(adapter)
    names: list[str | None] = [None, "plain", "magnitude"]
    rows = [(prompt, name) for name in names for prompt in PROMPTS]
    submits = [
        Generate(str(index), prompt, NEW_TOKENS, (ServedAdapter(name, 1.0),) if name else (), Sampling(temperature=0))
        for index, (prompt, name) in enumerate(rows)
    ]
    answers = engine.answers(submits)
    for index, (prompt, name) in enumerate(rows):
        oracle.check(answers[str(index)], prompt, name)


def test_a_head_that_shares_its_weight_is_packed_where_there_is_room(
    packed_floats: None, monkeypatch: pytest.MonkeyPatch, make_base: Any, in_process: Any
) -> None:
    roomy = in_process(make_base("tied")).engine.serving.base.model
    assert not isinstance(roomy.lm_head.weight, nn.Parameter)
    assert torch.equal(roomy.lm_head.weight, roomy.model.embed_tokens.weight)
    monkeypatch.setattr(packing, "free_memory", lambda: 0)
    tight = in_process(make_base("tied"))
    assert tight.engine.serving.base.model.lm_head.weight is tight.engine.serving.base.model.model.embed_tokens.weight
    assert tight.started[0].parameter_count == sum(each.numel() for each in {*roomy.parameters()}) + sum(
        module.weight.numel()
        for path, module in roomy.named_modules()
        if isinstance(module, Linear) and path != "lm_head"
    )
