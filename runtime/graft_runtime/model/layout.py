"""The layout of a loaded model, as adapters are checked against."""

from __future__ import annotations

from collections import Counter

from torch import nn
from transformers.pytorch_utils import Conv1D

from graft_runtime.adapters.layout import BaseLayout, LinearShape


def layout_of(model: nn.Module, name: str) -> BaseLayout:
    """Every module by its path; tied modules count once, under the first path."""
    linear: dict[str, LinearShape] = {}
    other: dict[str, str] = {}
    for path, module in model.named_modules():
        shape = linear_shape(module)
        if shape is None:
            other[path] = type(module).__name__
        else:
            linear[path] = shape
    return BaseLayout(name, linear, other)


def shared_weights(model: nn.Module) -> frozenset[str]:
    """The paths of modules whose weight is another module's as well, as a head tied to the embedding."""
    modules = model.named_modules(remove_duplicate=False)
    found = [
        (path, id(module.weight))
        for path, module in modules
        if isinstance(getattr(module, "weight", None), nn.Parameter)
    ]
    holders = Counter(weight for _, weight in found)
    return frozenset(path for path, weight in found if holders[weight] > 1)


def linear_shape(module: nn.Module) -> LinearShape | None:
    """The size of a module that computes y = W·x, or None."""
    if isinstance(module, Conv1D):
        return LinearShape(module.nx, module.nf)
    if isinstance(module, nn.Linear):
        return LinearShape(module.in_features, module.out_features)
    return None
