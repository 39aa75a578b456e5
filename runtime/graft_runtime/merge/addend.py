"""One adapter of a merge: checked as a mount checks it, then compiled module by module; only one is in memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from graft_runtime.adapters.compile import Values, compile_parts
from graft_runtime.adapters.content import OneByOne
from graft_runtime.adapters.deltas import LowRank, ModuleDelta
from graft_runtime.adapters.files import AdapterFiles, open_weights, read_adapter_files
from graft_runtime.adapters.fit import fitted
from graft_runtime.adapters.layout import BaseLayout
from graft_runtime.adapters.parts.low_rank import LinearLowRank
from graft_runtime.adapters.parts.part import BaseModule, Part
from graft_runtime.adapters.parts.whole import TrainedTokens
from graft_runtime.adapters.unused import unused
from graft_runtime.errors import ErrorCode, GraftError, shown


@dataclass(frozen=True)
class Addend:
    """One adapter of a merge; its weights are still on the disk."""

    files: AdapterFiles
    weight: float
    layout: BaseLayout
    parts: Mapping[str, Sequence[Part]]
    """By the path of the module."""

    @classmethod
    def read(
        cls, directory: Path, *, name: str, weight: float, max_rank: int, layout: BaseLayout, shared: Collection[str]
    ) -> Addend:
        """Check an adapter against the base, its values included, as a mount does.

        Args:
            directory: holds the adapter as PEFT saves it.
            name: how errors call it.
            weight: how much of it.
            max_rank: the highest rank of a module.
            layout: of the base model.
            shared: modules whose weight is another module's as well.

        Raises:
            GraftError: what a mount raises; UnsupportedMethod for what no weight of the base can hold, NoEffect for a
                weight of 0.
        """
        files = read_adapter_files(directory, name=name, max_rank=max_rank)
        files, own_layout = fitted(files, layout)
        parts: dict[str, list[Part]] = {}
        for part in files.parts:
            for path in _paths(part, own_layout):
                parts.setdefault(path, []).append(part)
        addend = cls(files, weight, own_layout, parts)
        addend._check_mergeable(layout, shared)
        addend._check_values()
        return addend

    def without(self, paths: Collection[str]) -> Addend:
        """Return the adapter without these modules, its facts telling which they are."""
        left_out = [path for path in self.parts if path in paths]
        facts = self.files.facts.model_copy(update={"unused": unused(left_out)} if left_out else {})
        parts = {path: parts for path, parts in self.parts.items() if path not in paths}
        return replace(self, files=replace(self.files, facts=facts), parts=parts)

    @property
    def additive(self) -> bool:
        """Tell whether all that the adapter does is ΔW, so that it can be weighted and added to others."""
        return all(part.additive for part in self.files.parts)

    def delta(self, path: str, module: BaseModule, device: torch.device) -> ModuleDelta:
        """Return what this adapter does to a module, in float32.

        The low rank of an embedding is given as the low rank of the rows of the embedding's weight.

        Args:
            path: of the module.
            module: the base's.
            device: of the result.
        """
        values = Values(self.files.name)
        total = ModuleDelta()
        parts = self.parts.get(path, ())
        made = compile_parts(self.files, parts, self.layout, lambda _: module, device=device, values=values)
        for made_path, delta in made:
            if made_path == path:
                total |= delta
        if total.low_rank is not None and path in self.layout.embeddings:
            total = replace(total, low_rank=LowRank(total.low_rank.b, total.low_rank.a))
        return total

    def product(self, path: str, device: torch.device) -> torch.Tensor | None:
        """Return weight · s · B·A of a plain low rank; None for other deltas.

        The result is [output features, input features] in float32. The scale is applied to the product
        and not to B, as PEFT's merge does: the same bits.
        """
        part = self.parts[path][0]
        if len(self.parts[path]) > 1 or not isinstance(part, LinearLowRank) or not part.plain:
            return None
        with open_weights(self.files.directory, self.files.name, version=self.files.version) as file:
            content = OneByOne(file, self.files, device)
            a, b = (content.tensor(part.tensors[role].span) for role in ("lora_A", "lora_B"))
        return (b @ a) * (part.scale * self.weight)

    def _check_mergeable(self, layout: BaseLayout, shared: Collection[str]) -> None:
        if self.weight == 0:
            raise GraftError(
                ErrorCode.NO_EFFECT,
                f"adapter `{self.files.name}` changes nothing: its weight times its scale is 0",
                hint="leave it out of the merge, or give it another weight",
            )
        faults = {
            "it changes modules whose weight is another module's too": [
                path
                for path, parts in self.parts.items()
                if path in shared and not all(_reaches_ties(part, layout) for part in parts)
            ],
            "it has a vocabulary or labels of its own": [
                path for path in self.parts if _rows(layout, path) != _rows(self.layout, path)
            ],
            "it adds a bias where the base has none": [
                part.path for part in self.files.parts if part.biased and not layout.linear[part.path].bias
            ],
            "it changes stacked experts": [path for path in self.parts if path in layout.experts],
            "it takes part in some tokens of a prompt only": list(self.parts) if self.files.recipe.invocation else [],
        }
        for why, paths in faults.items():
            if paths:
                raise GraftError(
                    ErrorCode.UNSUPPORTED_METHOD,
                    f"adapter `{self.files.name}` can't be merged: {why}",
                    details=shown(paths),
                    hint="serve this adapter in hot mode, or train it without these modules",
                )

    def _check_values(self) -> None:
        values = Values(self.files.name)
        changes = False
        with open_weights(self.files.directory, self.files.name, version=self.files.version) as file:
            content = OneByOne(file, self.files, torch.device("cpu"))
            for part in self.files.parts:
                tensors = [content.tensor(tensor.span) for tensor in part.tensors.values()]
                for tensor, value in zip(part.tensors.values(), tensors, strict=True):
                    values.note(tensor.name, value)
                if isinstance(part, LinearLowRank) and part.plain:
                    changes = changes or (all(bool(tensor.any()) for tensor in tensors) and bool(part.scale))
                else:
                    changes = True
        values.check(changes)


def _paths(part: Part, layout: BaseLayout) -> tuple[str, ...]:
    """Return the paths of the modules that a part changes."""
    if isinstance(part, TrainedTokens) and part.shared and part.path in layout.ties:
        return (part.path, layout.ties[part.path])
    return (part.path,)


def _reaches_ties(part: Part, layout: BaseLayout) -> bool:
    """Tell whether a part does the same to every module that shares the weight."""
    return isinstance(part, TrainedTokens) and (part.copy or (part.shared and part.path in layout.ties))


def _rows(layout: BaseLayout, path: str) -> int | None:
    if path in layout.embeddings:
        return layout.embeddings[path].rows
    return layout.linear[path].output_features if path in layout.linear else None
