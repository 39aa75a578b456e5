"""Which modules a pass through a model calls, and whose weights it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Observation:
    """What a pass through a model did with some of its modules, by their paths."""

    called: set[str] = field(default_factory=set)
    read: set[frozenset[str]] = field(default_factory=set)
    """The modules that have a parameter which was read, whoever asked for it; several where they share it."""

    @property
    def passed_over(self) -> frozenset[str]:
        """Return the modules whose parameters were read though nobody called them: what hangs beside them does nothing.

        A module that is neither read nor called, as those for images where there is none, is not among them.
        """
        return frozenset(path for owners in self.read if not owners & self.called for path in owners)


@contextmanager
def observed(modules: Mapping[str, nn.Module]) -> Iterator[Observation]:
    """Note what is done with these modules inside."""
    seen = Observation()
    owners: dict[int, set[str]] = {}
    for path, module in modules.items():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), set()).add(path)
    with ExitStack() as stack:
        for path, module in modules.items():
            hook = module.register_forward_pre_hook(lambda _, inputs, path=path: seen.called.add(path))
            stack.callback(hook.remove)
        stack.enter_context(_Reads({key: frozenset(paths) for key, paths in owners.items()}, seen.read))
        yield seen


def hollow(model: Any) -> None:
    """Give a model on the device `meta` zeros that take no memory, in place: it computes, with one weight in memory.

    Nothing computes on `meta` that looks at a value, as many models do at their masks.
    """
    model.set_experts_implementation("eager")  # the others want weights that lie in memory
    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    zeros = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
                    parameter = isinstance(tensor, nn.Parameter)
                    other = nn.Parameter(zeros, requires_grad=False) if parameter else zeros
                    held[name] = made.setdefault(id(tensor), other)


class _Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the owners of the tensors that operations are given."""

    def __init__(self, owners: Mapping[int, frozenset[str]], read: set[frozenset[str]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._owners, self._read = owners, read

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if id(leaf) in self._owners:
                self._read.add(self._owners[id(leaf)])
        return func(*args, **(kwargs or {}))
