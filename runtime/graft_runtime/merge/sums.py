"""What a merge makes of each module: computed in float32, rounded once."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch

from graft_runtime.adapters.content import is_finite
from graft_runtime.adapters.deltas import ModuleDelta
from graft_runtime.adapters.parts.part import BaseModule
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.merge.addend import Addend


class Sum:
    """The adapters of a merge on the modules of a base, in the order of the merge.

    Raises:
        GraftError: UnsupportedMethod when one that does more than to add stands beside others, or has a weight.
    """

    def __init__(self, addends: Sequence[Addend]) -> None:
        self._addends = addends
        self._changed = False
        self._dtype: torch.dtype | None = None
        self._check_together()

    @property
    def names(self) -> str:
        """Return the adapters' names, for people."""
        return ", ".join(f"`{addend.files.name}`" for addend in self._addends)

    @property
    def addends(self) -> Sequence[Addend]:
        return self._addends

    @property
    def paths(self) -> tuple[str, ...]:
        """Return the paths of the modules that change."""
        return tuple(dict.fromkeys(path for addend in self._addends for path in addend.parts))

    def without(self, paths: Collection[str]) -> Sum:
        """Return the sum without what the adapters do to these modules, which is nothing where nobody calls them."""
        return Sum([addend.without(paths) for addend in self._addends])

    def parameters(self, path: str) -> tuple[str, ...]:
        """Return the names of the parameters of a module that a merge may change."""
        layout = self._addends[0].layout
        if path in layout.norms:
            return tuple(layout.norms[path])
        return ("weight", "bias") if path in layout.linear and layout.linear[path].bias else ("weight",)

    def onto(self, path: str, module: BaseModule) -> Mapping[str, torch.Tensor]:
        """Compute a module's new parameters.

        Args:
            path: of the module.
            module: the base's.

        Returns:
            By name, those that the merge changes: the weight as [output features, input features] whichever way the
            base keeps it. The base's type and device, in memory of their own.

        Raises:
            GraftError: Corrupt when values of the sum are not finite.
        """
        made = self._computed(path, module)
        return {name: self._rounded(path, name, tensor, getattr(module, name)) for name, tensor in made.items()}

    def check_effect(self) -> None:
        """Check that some weight has changed. Raises GraftError: NoEffect."""
        if not self._changed:
            raise GraftError(
                ErrorCode.NO_EFFECT,
                f"merging {self.names} changes nothing: all it adds is lost in rounding to {self._dtype}",
                hint="use a wider spec.baseModel.dtype, raise the weights, or serve in hot mode",
            )

    def _check_together(self) -> None:
        odd = [addend for addend in self._addends if not addend.additive]
        if odd and (len(self._addends) > 1 or odd[0].weight != 1):
            raise GraftError(
                ErrorCode.UNSUPPORTED_METHOD,
                f"adapter `{odd[0].files.name}` can't be weighted or added to others: it does more than to add ΔW",
                hint="merge it alone, with weight 1 and scale 1",
            )

    def _computed(self, path: str, module: BaseModule) -> Mapping[str, torch.Tensor]:
        made: dict[str, torch.Tensor] = {}
        device = (module.weight if module.bias is None else module.bias).device
        for addend in (addend for addend in self._addends if path in addend.parts):
            product = addend.product(path, device)
            if product is not None:
                made["weight"] = made.get("weight", _exact(module.weight)) + product
            else:
                made |= with_delta(made, module, addend.delta(path, module, device), addend.weight)
        return made

    def _rounded(self, path: str, name: str, tensor: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        rounded = tensor.to(base.dtype)
        if not is_finite(rounded) and is_finite(base):
            raise GraftError(
                ErrorCode.CORRUPT,
                f"merging {self.names} gives {path}.{name} values that are too large for {base.dtype}",
                hint="lower the weights, use a wider spec.baseModel.dtype, or train again",
            )
        self._changed = self._changed or not torch.equal(rounded, base)
        self._dtype = base.dtype
        return rounded


def with_delta(
    made: Mapping[str, torch.Tensor], module: BaseModule, delta: ModuleDelta, weight: float
) -> dict[str, torch.Tensor]:
    """Return the parameters of a module that computes alone what the base and a delta compute together.

    Args:
        made: what other deltas have made of them, by name.
        module: the base's.
        delta: in float32; that of an embedding as of its weight's rows.
        weight: of the delta.

    Returns:
        Those that the delta changes, by name, in float32 or better: W' = gain ⊙ (W + weight · B·A) ⊙ input_gain, with
        rows of W replaced before, and c' = gain ⊙ (c + weight · offset) + shift.
    """
    changed = dict(delta.parameters)
    if any(part is not None for part in (delta.rows, delta.low_rank, delta.gain, delta.input_gain)):
        changed["weight"] = _weight(made.get("weight", _exact(module.weight)), delta, weight)
    moved = any(part is not None for part in (delta.rows, delta.offset, delta.gain, delta.shift))
    if moved and module.bias is not None:
        changed["bias"] = _bias(made.get("bias", _exact(module.bias)), delta, weight)
    return changed


def _weight(total: torch.Tensor, delta: ModuleDelta, weight: float) -> torch.Tensor:
    if delta.rows is not None:
        total[delta.rows.index] = delta.rows.weight.to(total.dtype)
    if delta.low_rank is not None:
        total += weight * (delta.low_rank.b.T @ delta.low_rank.a)
    if delta.gain is not None:
        total *= delta.gain[:, None]
    if delta.input_gain is not None:
        total *= delta.input_gain
    return total


def _bias(total: torch.Tensor, delta: ModuleDelta, weight: float) -> torch.Tensor:
    if delta.rows is not None and delta.rows.bias is not None:
        total[delta.rows.index] = delta.rows.bias.to(total.dtype)
    if delta.offset is not None:
        total += weight * delta.offset
    if delta.gain is not None:
        total *= delta.gain
    return total if delta.shift is None else total + delta.shift


def _exact(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy in float32 or better."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32), copy=True)
