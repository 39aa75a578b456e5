"""Where the weights of a model lie: the only module that finds one by its path.

Layouts, methods that need the base's weight (DoRA, PiSSA, HRA …), trials, hooks and merges all ask here. So a model may
keep its weights in another form, several projections in one tensor say, or quantised, once this module knows it.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from graft_runtime.model.quantised import QuantisedLinear

Inputs = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class LoadedModule:
    """The parameters of one module of a loaded model, whichever way they lie."""

    module: Any

    @property
    def weight(self) -> torch.Tensor:
        """Return the weight: [output features, input features], or [rows, features] of an embedding."""
        weight: torch.Tensor = self.module.weight.detach()
        return weight.T if self.transposed("weight") else weight

    @property
    def bias(self) -> torch.Tensor | None:
        """Return the bias: [output features]; None where the module has none."""
        bias = getattr(self.module, "bias", None)
        return bias.detach() if isinstance(bias, torch.Tensor) else None

    @property
    def quantised(self) -> bool:
        """Tell whether `weight` is what a quantised one stands for."""
        return isinstance(self.module, QuantisedLinear)

    def parameter(self, name: str) -> torch.Tensor:
        """Return a parameter as it lies in the model and in a checkpoint."""
        parameter: torch.Tensor = self.module.get_parameter(name)
        return parameter

    def transposed(self, name: str) -> bool:
        """Return whether a parameter lies as [input features, output features]."""
        return name == "weight" and isinstance(self.module, Conv1D)

    @torch.no_grad()
    def write(self, name: str, values: torch.Tensor) -> None:
        """Overwrite a parameter, which only a merge does.

        Args:
            name: of the parameter.
            values: as `weight` and `bias` give them.
        """
        self.parameter(name).copy_(values.T if self.transposed(name) else values)


class BaseModules:
    """The modules of a model by their path.

    Args:
        model: a PreTrainedModel, loaded or on the device `meta`.
    """

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, path: str) -> LoadedModule:
        """Return the parameters of a module."""
        return LoadedModule(self.hooked(path))

    def hooked(self, path: str) -> nn.Module:
        """Return the module whose call computes what this path stands for."""
        return self._model.get_submodule(path)  # type: ignore[no-any-return]

    @contextmanager
    def watched(self, paths: Collection[str], seen: Callable[[str, Inputs], None]) -> Iterator[None]:
        """Call `seen` with the path and the inputs of each of these modules that the model calls inside."""
        with ExitStack() as hooks:
            for path in paths:
                hook = self.hooked(path).register_forward_pre_hook(lambda _, inputs, path=path: seen(path, inputs))
                hooks.callback(hook.remove)
            yield

    def same_weight(self, one: str, other: str) -> bool:
        """Return whether two modules have one weight, as a head that is tied to the embedding."""
        return self(one).parameter("weight") is self(other).parameter("weight")

    def shared_weights(self) -> frozenset[str]:
        """Return the paths of the modules whose weight is another module's as well."""
        modules = self._model.named_modules(remove_duplicate=False)
        weights = [(path, getattr(module, "weight", None)) for path, module in modules]
        found = [(path, id(weight)) for path, weight in weights if isinstance(weight, nn.Parameter)]
        holders = Counter(weight for _, weight in found)
        return frozenset(path for path, weight in found if holders[weight] > 1)

    def untie(self, head: str) -> None:
        """Give the head a weight of its own, of the same values."""
        weight = self(head).parameter("weight").detach().clone()
        self.hooked(head).weight = nn.Parameter(weight, requires_grad=False)
        self._model.config.tie_word_embeddings = False


def with_parameters(module: Any, parameters: Mapping[str, torch.Tensor]) -> Any:
    """Return a copy of the module with other parameters in the place of some; those of the module stay as they are."""
    other = copy.copy(module)
    other._parameters = {**module._parameters, **parameters}
    return other
