"""compile(adapter, base) → deltas: reads the weights, folds the scale in, and lets only finite values through."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from graft_runtime.adapters.content import Content, OneByOne, is_finite, read_content
from graft_runtime.adapters.deltas import CompiledAdapter, ModuleDelta, Prefix
from graft_runtime.adapters.files import AdapterFiles, open_weights
from graft_runtime.adapters.fit import fitted
from graft_runtime.adapters.layout import BaseLayout
from graft_runtime.adapters.parts.part import BaseModule, Part
from graft_runtime.adapters.parts.virtual import KeysAndValues
from graft_runtime.adapters.vocabulary import own_rows
from graft_runtime.contract.facts import AdapterFacts, DeltaKind
from graft_runtime.errors import ErrorCode, GraftError, shown

BaseModules = Callable[[str], BaseModule]
"""The modules of a base by their path."""


def _go_on() -> None:
    """Do nothing: there is time."""


def compile_adapter(
    files: AdapterFiles,
    layout: BaseLayout,
    modules: BaseModules,
    *,
    dtype: torch.dtype,
    device: torch.device,
    check_time: Callable[[], None] = _go_on,
) -> CompiledAdapter:
    """Read the weights of a checked adapter and fit the weights to the base.

    Scales are folded into B in float32, and only then A and B are cast to the model's dtype. PEFT keeps them in float32
    and casts the activations instead: the same in float32, and the same up to rounding in half precision, at half the
    memory.

    Args:
        files: checked config and header.
        layout: of the base model.
        modules: of the base model; read, never written.
        dtype: of the model's weights.
        device: of the model's weights.
        check_time: called after each part; raises where too much time is over.

    Raises:
        GraftError: BaseMismatch, ModuleMissing, ShapeMismatch, Corrupt, NoEffect, UnsafeFile, UnsupportedMethod.
    """
    values = Values(files.name)
    deltas: dict[str, ModuleDelta] = {}
    files, own_layout = fitted(files, layout)
    for path, delta in compile_parts(files, files.parts, own_layout, modules, device=device, values=values):
        check_time()
        cast = values.cast(path, delta, dtype)
        deltas[path] = _both(files.name, path, deltas[path], cast) if path in deltas else cast
    prefix = _prefix(files, own_layout, modules, device, values)
    if prefix is not None:
        prefix = prefix.map(lambda tensor: tensor.to(dtype))
        values.note_cast("prefix", (prefix.keys, prefix.values), dtype)
    values.check(prefix is not None or any(delta.changes for delta in deltas.values()))
    facts = _completed(files.facts, deltas, prefix, own_rows(own_layout, layout))
    return CompiledAdapter(facts, deltas, files.recipe.invocation, prefix)


def _completed(
    facts: AdapterFacts, modules: Mapping[str, ModuleDelta], prefix: Prefix | None, rows: int | None
) -> AdapterFacts:
    """Return the facts with those that only the deltas tell."""
    deltas = modules.values()
    prompts = [delta.prompt.shape[0] for delta in deltas if delta.prompt is not None]
    made = {kind for delta in deltas for kind in delta.kinds} | ({DeltaKind.PREFIX} if prefix is not None else set())
    return facts.model_copy(
        update={
            "module_count": len(modules),
            "deltas": frozenset(made) | (facts.deltas & {DeltaKind.INVOCATION}),
            "vocabulary_size": rows,
            "virtual_tokens": sum(prompts) + (prefix.tokens if prefix is not None else 0),
        }
    )


def compile_parts(
    files: AdapterFiles,
    parts: Sequence[Part],
    layout: BaseLayout,
    modules: BaseModules,
    *,
    device: torch.device,
    values: Values,
) -> Iterator[tuple[str, ModuleDelta]]:
    """Yield what each part does to a module, in float32, part by part: only one part is in memory at a time.

    Args:
        files: checked config and header.
        parts: of the adapter, or some of them.
        layout: as `fitted` returns it.
        modules: of the base model.
        device: of the deltas.
        values: takes note of what is not finite.
    """
    with open_weights(files.directory, files.name, version=files.version) as file:
        every = len(parts) == len(files.parts)  # a merge asks for a few at a time
        content = read_content(file, files, device) if every else OneByOne(file, files, device)
        for part in parts:
            yield from part.compile(_Source(part, layout, modules, content, values)).items()


def _prefix(
    files: AdapterFiles, layout: BaseLayout, modules: BaseModules, device: torch.device, values: Values
) -> Prefix | None:
    part = next((part for part in files.parts if isinstance(part, KeysAndValues)), None)
    if part is None:
        return None
    with open_weights(files.directory, files.name, version=files.version) as file:
        return part.prefix(_Source(part, layout, modules, OneByOne(file, files, device), values))


class _Source:
    """What a part is compiled from."""

    def __init__(self, part: Part, layout: BaseLayout, modules: BaseModules, content: Content, values: Values) -> None:
        self.layout, self.largest = layout, content.largest
        self._part, self._modules, self._content, self._values = part, modules, content, values

    def tensor(self, role: str) -> torch.Tensor:
        name, span = self._part.tensors[role]
        tensor = self._content.tensor(span)
        if not math.isfinite(self.largest):
            self._values.note(name, tensor)
        return tensor

    def base(self) -> BaseModule:
        return self._modules(self._part.path)


class Values:
    """Whether an adapter's values can be computed with and do something."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._faults: list[str] = []

    def note(self, tensor_name: str, tensor: torch.Tensor) -> None:
        """Record a fault when a tensor of the file is not finite."""
        if not is_finite(tensor):
            self._faults.append(f"{tensor_name}: values that are not finite")

    def cast(self, path: str, delta: ModuleDelta, dtype: torch.dtype) -> ModuleDelta:
        """Return the delta in the model's dtype.

        Records a fault when the dtype or the scale is too much for the delta's values.
        """
        made = delta if dtype == torch.float32 else delta.map(lambda tensor: tensor.to(dtype))
        if not delta.largest <= torch.finfo(dtype).max:
            self.note_cast(path, made.tensors, dtype)
        return made

    def note_cast(self, what: str, tensors: Sequence[torch.Tensor], dtype: torch.dtype) -> None:
        """Record a fault when tensors that are of the model's dtype now are not finite any more."""
        if not self._faults and not all(is_finite(tensor) for tensor in tensors):
            self._faults.append(f"{what}: values too large for {dtype} once its scale is folded in")

    def check(self, changes: bool) -> None:
        """Check that no fault was recorded and that the adapter changes something.

        Raises GraftError: Corrupt with the faults, NoEffect when nothing changes.
        """
        if self._faults:
            raise GraftError(
                ErrorCode.CORRUPT,
                f"adapter `{self._name}` holds values that can't be computed with",
                details=shown(self._faults),
                hint="its training diverged, or the file is damaged; train or copy it again",
            )
        if not changes:
            raise GraftError(
                ErrorCode.NO_EFFECT,
                f"adapter `{self._name}` changes nothing: A or B of every module is zero, and what it keeps whole is "
                "the base's",
                hint="it was saved before it was trained, or lora_alpha is 0",
            )


def _both(name: str, path: str, one: ModuleDelta, other: ModuleDelta) -> ModuleDelta:
    try:
        return one | other
    except ValueError as error:
        raise GraftError(
            ErrorCode.UNSUPPORTED_METHOD,
            f"adapter `{name}` changes {path} twice in the same way ({error})",
            hint="it combines options of PEFT that exclude each other; train it again",
        ) from None
