"""What a merge adds to each module: read tensor by tensor, summed in float32, rounded once."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from graft_runtime.adapters.compile import Values, is_finite, read_tensor
from graft_runtime.adapters.files import AdapterFiles, open_weights, read_adapter_files
from graft_runtime.adapters.fit import fit
from graft_runtime.adapters.layout import BaseLayout
from graft_runtime.adapters.parts.low_rank import LinearLowRank
from graft_runtime.errors import ErrorCode, GraftError, shown


@dataclass(frozen=True)
class Addend:
    """One adapter of a merge; its weights are still on the disk."""

    files: AdapterFiles
    weight: float
    plans: Mapping[str, LinearLowRank]
    """By the path of the module."""

    @classmethod
    def read(
        cls, directory: Path, *, name: str, weight: float, max_rank: int, layout: BaseLayout, shared: Collection[str]
    ) -> Addend:
        """Checks an adapter against the base, its values included, as a mount does.

        Args:
            directory: holds the adapter as PEFT saves it.
            name: how errors call it.
            weight: how much of it.
            max_rank: the highest rank of a module.
            layout: of the base model.
            shared: modules whose weight is another module's as well.

        Raises:
            GraftError: what a mount raises; UnsupportedMethod for a shared weight, NoEffect for a weight of 0.
        """
        files = read_adapter_files(directory, name=name, max_rank=max_rank)
        fit(files.parts, layout, name=name, base_model=files.recipe.base_model)
        addend = cls(files, weight, _plain(files))
        addend._check_shared(shared)
        addend._check_values()
        return addend

    def delta(self, path: str, device: torch.device) -> torch.Tensor:
        """What this adapter adds to a module: [output features, input features] in float32, on `device`."""
        plan = self.plans[path]
        with open_weights(self.files.directory, self.files.name) as file:
            a, b = (read_tensor(file, self.files, plan.tensors[role].name).to(device) for role in ("lora_A", "lora_B"))
        return (b @ a) * (plan.scale * self.weight)

    def _check_shared(self, shared: Collection[str]) -> None:
        faults = [path for path in self.plans if path in shared]
        if faults:
            raise GraftError(
                ErrorCode.UNSUPPORTED_METHOD,
                f"adapter `{self.files.name}` can't be merged: it changes modules whose weight is another module's too",
                details=shown(faults),
                hint="merging would change both, as a head tied to the embedding; serve this adapter in hot mode, or "
                "train it without these modules",
            )

    def _check_values(self) -> None:
        if self.weight == 0:
            raise GraftError(
                ErrorCode.NO_EFFECT,
                f"adapter `{self.files.name}` changes nothing: its weight times its scale is 0",
                hint="leave it out of the merge, or give it another weight",
            )
        values = Values(self.files.name)
        changes = False
        with open_weights(self.files.directory, self.files.name) as file:
            for plan in self.plans.values():
                factors = [read_tensor(file, self.files, tensor.name) for tensor in plan.tensors.values()]
                for tensor, factor in zip(plan.tensors.values(), factors, strict=True):
                    values.note(tensor.name, factor)
                changes = changes or (all(bool(factor.any()) for factor in factors) and bool(plan.scale))
        values.check(changes)


def _plain(files: AdapterFiles) -> dict[str, LinearLowRank]:
    """The parts of a plain LoRA adapter by the path of the module. Raises GraftError: UnsupportedMethod for others."""
    plain = {
        part.path: part
        for part in files.parts
        if isinstance(part, LinearLowRank) and part.start is None and part.tensors.keys() == {"lora_A", "lora_B"}
    }
    if len(plain) == len(files.parts):
        return plain
    raise GraftError(
        ErrorCode.UNSUPPORTED_METHOD,
        f"adapter `{files.name}` is more than plain LoRA, which is all that can be merged",
        details=shown([part.path for part in files.parts if part is not plain.get(part.path)]),
        hint="serve it in hot mode, or merge it with peft's merge_and_unload()",
    )


class Sum:
    """The adapters of a merge on the modules of a base, in the order of the merge."""

    def __init__(self, addends: Sequence[Addend]) -> None:
        self._addends = addends
        self._changed = False
        self._dtype: torch.dtype | None = None

    @property
    def names(self) -> str:
        """The adapters, for people."""
        return ", ".join(f"`{addend.files.name}`" for addend in self._addends)

    @property
    def addends(self) -> Sequence[Addend]:
        return self._addends

    @property
    def paths(self) -> tuple[str, ...]:
        """The modules that change."""
        return tuple(dict.fromkeys(path for addend in self._addends for path in addend.plans))

    def onto(self, path: str, weight: torch.Tensor, *, transposed: bool) -> torch.Tensor:
        """A module's new weight.

        Args:
            path: of the module.
            weight: [output features, input features], or the other way round where `transposed`; any floating type.

        Returns:
            The same shape, type and device, in memory of its own.

        Raises:
            GraftError: Corrupt when values of the sum are not finite.
        """
        total = weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
        for addend in self._addends:
            if path in addend.plans:
                delta = addend.delta(path, weight.device)
                total += delta.T if transposed else delta
        merged = total.to(weight.dtype)
        if not is_finite(merged) and is_finite(weight):
            raise GraftError(
                ErrorCode.CORRUPT,
                f"merging {self.names} gives {path} values that are too large for {weight.dtype}",
                hint="lower the weights, use a wider spec.baseModel.dtype, or train again",
            )
        self._changed = self._changed or not torch.equal(merged, weight)
        self._dtype = weight.dtype
        return merged

    def check_effect(self) -> None:
        """That some weight has changed. Raises GraftError: NoEffect."""
        if not self._changed:
            raise GraftError(
                ErrorCode.NO_EFFECT,
                f"merging {self.names} changes nothing: all it adds is lost in rounding to {self._dtype}",
                hint="use a wider spec.baseModel.dtype, raise the weights, or serve in hot mode",
            )
