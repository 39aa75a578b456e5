"""What is compiled for the processor computes what PyTorch computes, and each row's values are its own."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from graft_runtime.messages import Generate, Mounted, Sampling, ServedAdapter
from graft_runtime.model import linear as linear_module
from graft_runtime.model import native as native_module
from graft_runtime.model.linear import Linear
from graft_runtime.model.native import Asked, Columns, Kept, Native, compiled
from torch.nn import functional

DTYPES = [torch.float32, torch.bfloat16]
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2**-8}
"""Of the largest value."""


@pytest.fixture(scope="module")
def native() -> Native:
    made = compiled()
    assert made is not None
    return made


def values(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def check(made: torch.Tensor, expected: torch.Tensor, roundings: int = 1) -> None:
    assert made.shape == expected.shape
    off = (made.double() - expected).abs().max() / expected.abs().max()
    assert off <= roundings * ROUNDING[made.dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 2, 3, 16, 70])
@torch.inference_mode()
def test_products_with_columns(native: Native, dtype: torch.dtype, rows: int) -> None:
    x, weight, bias = values(rows, 64, dtype=dtype), values(608, 64, dtype=dtype), values(608, dtype=dtype)
    a, b = values(16, 64, dtype=dtype), values(16, 608, dtype=dtype)
    runs = torch.tensor([[0, rows, 0, 8, 0.5], [rows - 1, 1, 3, 9, 1]], dtype=torch.float64)
    expected = functional.linear(x.double(), weight.double(), bias.double())
    z, own = x.double() @ a.double().T, b.double()
    for first, tokens, start, count, share in runs.tolist():
        at, of = slice(int(first), int(first + tokens)), slice(int(start), int(start + count))
        expected[at] += share * z[at, of] @ own[of]
    whole = native.linear(x, weight, bias, Columns(a, b, runs))
    check(whole, expected)
    beside = native.linear(x, weight, bias, None)
    check(beside, functional.linear(x.double(), weight.double(), bias.double()))
    native.add(beside, x, Columns(a, b, runs))
    check(beside, expected, roundings=2)


@pytest.mark.parametrize("dtype", DTYPES)
@torch.inference_mode()
def test_a_row_is_the_same_whatever_is_beside_it(native: Native, dtype: torch.dtype) -> None:
    x, weight = values(17, 64, dtype=dtype), values(96, 64, dtype=dtype)
    x[5], x[11] = float("nan"), float("inf")
    together = native.linear(x, weight, None, None)
    for row in range(17):
        alone = native.linear(x[row : row + 1], weight, None, None)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=0, equal_nan=True)
        assert row in (5, 11) or bool(together[row].isfinite().all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shift", [0.0, 1.0])
@torch.inference_mode()
def test_norms(native: Native, dtype: torch.dtype, shift: float) -> None:
    x, weight = values(2, 3, 5, 64, dtype=dtype).transpose(1, 2), values(64, dtype=dtype)
    expected = functional.rms_norm(x.double(), (64,), weight.double() + shift, 1e-6)
    check(native.norm(x, weight, 1e-6, shift), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 1), (6, 2), (3, 3)])
@pytest.mark.parametrize("asked", [{}, {"window": 5}, {"softcap": 2.0, "sinks": True}])
@torch.inference_mode()
def test_attention(native: Native, dtype: torch.dtype, heads: int, key_heads: int, asked: dict[str, Any]) -> None:
    slots, positions = torch.tensor([3, 0, 2]), torch.tensor([9, 0, 30])
    keys, held = values(4, key_heads, 32, 64, dtype=dtype), values(4, key_heads, 32, 96, dtype=dtype)
    q, k, v = (
        values(count, 3, size, dtype=dtype).transpose(0, 1)
        for count, size in ((heads, 64), (key_heads, 64), (key_heads, 96))
    )
    sinks = values(heads, dtype=dtype) if asked.get("sinks") else None
    window, softcap = asked.get("window"), asked.get("softcap")
    asking = Asked(window, 0.3, softcap, sinks)
    made = native.attend(q, k, v, Kept(keys, held, slots, positions), asking)
    for row, (slot, end) in enumerate(zip(slots.tolist(), positions.tolist(), strict=True)):
        assert torch.equal(keys[slot, :, end], k[row])
        assert torch.equal(held[slot, :, end], v[row])
        low = max(0, end + 1 - window) if window else 0
        seen, of = (
            side[slot, :, low : end + 1].double().repeat_interleave(heads // key_heads, 0) for side in (keys, held)
        )
        scores = (seen @ q[row].double()[:, :, None])[..., 0] * 0.3
        scores = torch.tanh(scores / softcap) * softcap if softcap else scores
        scores = torch.cat([scores, sinks.double()[:, None]], 1) if sinks is not None else scores
        weights = torch.softmax(scores, -1)[:, : end + 1 - low]
        check(made[row], (weights[:, None] @ of)[:, 0])


def test_without_a_compiler_nothing_is_compiled_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert native_module.compiled.__wrapped__() is None
    assert "no C++ compiler" in caplog.text


@pytest.mark.parametrize("compiles", [True, False])
def test_answers_equal_peft_whether_compiled_or_not(
    compiles: bool, make_base: Any, make_adapter: Any, in_process: Any, make_oracle: Any
) -> None:
    base = make_base("wide")
    oracle, engine = make_oracle(base), in_process(base, compile=compiles)
    model = engine.engine.serving.base.model
    linears = [module for module in model.modules() if isinstance(module, Linear)]
    assert linears
    assert all((module.native is not None) == compiles for module in linears)
    methods: dict[str, dict[str, Any]] = {
        "narrow": {"r": 4},
        "wide": {"r": 16, "bias": "all"},
        "magnitude": {"use_dora": True},
    }
    for name, options in methods.items():
        adapter = make_adapter(name, base=base, target_modules="all-linear", **options)
        assert isinstance(engine.mount(name, adapter), Mounted)
        oracle.load(adapter)
    asked = {"base": (), "narrow": ("narrow",), "wide": ("wide",), "magnitude": ("magnitude",), "beside": ("narrow",)}
    prompts = {name: [256, *b"select * from users"][: 5 + 3 * row] for row, name in enumerate(asked)}
    answers = engine.answers(
        [
            Generate(
                name, prompts[name], 12, tuple(ServedAdapter(one, 1.0) for one in adapters), Sampling(temperature=0)
            )
            for name, adapters in asked.items()
        ]
    )
    for name, adapters in asked.items():
        oracle.check(answers[name], prompts[name], adapters[0] if adapters else None)


def test_bfloat16_is_compiled_where_the_processor_has_no_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch, make_base: Any, in_process: Any
) -> None:
    called: list[int] = []
    whole = Native.linear

    def linear(self: Native, x: torch.Tensor, *others: Any) -> torch.Tensor:
        called.append(x.shape[-2])
        return whole(self, x, *others)

    monkeypatch.setattr(linear_module, "_slow_dtypes", lambda: frozenset({torch.bfloat16}))
    monkeypatch.setattr(Native, "linear", linear)
    engine = in_process(make_base("wide"), dtype="bfloat16")
    assert engine.started[0].runner == "decoder", "the probe has compared logits with PyTorch's"
    assert called
