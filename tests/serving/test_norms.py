"""Norms in one operation: only where it is what the module computes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from graft_runtime.model.norms import fuse_norms, restore_norms
from torch import nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

SIZE = 24


class ClampedRMSNorm(LlamaRMSNorm):  # type: ignore[misc]
    """Looks like one and is none."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = super().forward(hidden_states)
        return made.clamp(max=0.5)


class ShiftedRMSNorm(LlamaRMSNorm):  # type: ignore[misc]
    """Has a bias."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.bias = nn.Parameter(torch.zeros(size))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", [LlamaRMSNorm, Qwen3RMSNorm])
def test_a_plain_norm_computes_the_same_in_one_operation(kind: type[nn.Module], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm: Any = kind(SIZE, eps=1e-3).to(dtype)
    norm.weight.data.normal_()
    stock = copy.deepcopy(norm)
    assert fuse_norms(norm) == [norm]
    for shape in ((SIZE,), (3, SIZE), (2, 5, 4, SIZE)):
        given = torch.randn(shape, dtype=dtype)
        made, expected = norm(given), stock(given)
        assert made.dtype == expected.dtype
        torch.testing.assert_close(made, expected, rtol=1e-6 if dtype == torch.float32 else 1.6e-2, atol=1e-6)
    with torch.profiler.profile() as profile:
        norm(torch.randn(3, SIZE, dtype=dtype))
    assert "aten::rms_norm" in {event.name for event in profile.events()}
    assert issubclass(type(norm), kind)
    other = copy.copy(norm)  # as adapters on norms do
    other._parameters = {"weight": norm.weight * 2}
    torch.testing.assert_close(other.forward(given), 2 * norm(given))
    restore_norms([norm])
    assert type(norm) is kind


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [0.1, 100.0])
def test_a_norm_whose_weight_is_shifted_by_one_is_found_beside_large_weights_too(
    size: float, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    norm: Any = Gemma2RMSNorm(SIZE).to(dtype)
    norm.weight.data.normal_().mul_(size)
    stock, given = copy.deepcopy(norm), torch.randn(3, SIZE, dtype=dtype)
    assert fuse_norms(norm) == [norm]
    assert torch.equal(norm(given), stock(given))
    assert type(norm) is not type(stock)


@pytest.mark.parametrize("kind", [ClampedRMSNorm, ShiftedRMSNorm, nn.LayerNorm, nn.RMSNorm])
def test_what_only_looks_like_one_stays_as_it_is(kind: type[nn.Module]) -> None:
    norm: Any = kind(SIZE)
    assert fuse_norms(nn.Sequential(norm, nn.Linear(SIZE, SIZE))) == []
    assert type(norm) is kind
