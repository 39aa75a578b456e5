"""One module's part of the active bank. Everything is made when it is first needed, and then kept."""

from __future__ import annotations

import torch

from graft_runtime.adapters.deltas import CompiledAdapter, ModuleDelta
from graft_runtime.adapters.layout import LinearShape

VECTORS = {"offset": 0.0, "gain": 1.0, "shift": 0.0, "input_gain": 1.0}
"""What a slot holds of an adapter that has no such vector, and slot 0 for the base."""


class Columns:
    """One side of the columns of a module, [columns, features]: at one address, whatever the width.

    All that `limit` needs is reserved at once, and a column is zeroed when the width first reaches it. So what no width
    has reached costs a host no memory; on an accelerator the ledger has counted it. A trial alone may need more than
    the limit: the columns are elsewhere until it is over.
    """

    def __init__(self, limit: int, features: int, dtype: torch.dtype, device: torch.device) -> None:
        with torch.inference_mode(mode=False):  # or it could be written to in inference mode only
            self._reserved = torch.empty(limit, features, dtype=dtype, device=device)
        self._zeroed = 0
        self.now = self._reserved[:0]
        """Those that a width has reached."""

    @property
    def bytes(self) -> int:
        """Return the bytes that are reserved."""
        return self._reserved.nbytes

    def widen(self, width: int) -> None:
        """Make all columns up to this width usable; those that are new are zero."""
        if width <= self._reserved.shape[0]:
            self._reserved[self._zeroed : width].zero_()
            self._zeroed = max(self._zeroed, width)
            self.now = self._reserved[: self._zeroed]
        elif self.now.shape[0] < width:
            wider = self._reserved.new_zeros(width, self._reserved.shape[1])
            wider[: self._zeroed] = self._reserved[: self._zeroed]
            self.now = wider


class BankModule:
    """What the active adapters add to one module.

    Args:
        path: of the module.
        shape: of the module if it is linear.
        limit: columns of the bank at its widest.
        dtype: of the model.
        device: of the model.

    Attributes:
        vectors: [slots, features], by the name of `ModuleDelta`'s part.
        groups: the adapters that have rows or parameters of their own here, or a low rank that fits no column.
        tokens_first: whether the module is handed [tokens, rows, ·]; told by the first pass that shows it.
        heads_first: likewise whether a norm of heads is handed [rows, heads, tokens, ·].
    """

    def __init__(
        self, path: str, shape: LinearShape | None, limit: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.path, self.tokens_first, self.heads_first = path, False, False
        self._shape, self._limit, self._dtype, self._device = shape, limit, dtype, device
        self._users: dict[str, set[CompiledAdapter]] = {}
        self._columns: tuple[Columns, Columns] | None = None
        self.vectors: dict[str, torch.Tensor] = {}
        self.groups: dict[CompiledAdapter, ModuleDelta] = {}

    @property
    def used(self) -> bool:
        """Tell whether an active adapter changes this module."""
        return any(self._users.values()) or bool(self.groups)

    @property
    def columns_alone(self) -> bool:
        """Tell whether all that active adapters change here is in the columns."""
        return not self.groups and not any(users for name, users in self._users.items() if name != "low_rank")

    @property
    def columns(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return A, [columns, input features], and B, [columns, output features]; None while no adapter needed them."""
        return None if self._columns is None else (self._columns[0].now, self._columns[1].now)

    @property
    def bytes(self) -> int:
        """Return the bytes that are reserved for columns."""
        return sum(side.bytes for side in self._columns or ())

    @property
    def low_rank_possible(self) -> bool:
        """Tell whether the module is linear."""
        return self._shape is not None

    def uses(self, part: str) -> bool:
        """Tell whether an active adapter has this part here."""
        return bool(self._users.get(part))

    def put(self, adapter: CompiledAdapter, delta: ModuleDelta, slot: int, start: int, width: int) -> None:
        """Copy an adapter's delta into the adapter's columns and slot."""
        if delta.low_rank is not None and self._fits(delta):
            a, b = self._made_columns(width)
            end = start + delta.low_rank.a.shape[0]
            a[start:end], b[start:end] = delta.low_rank.a, delta.low_rank.b
            self._users.setdefault("low_rank", set()).add(adapter)
        own = delta.rows is not None or delta.prompt is not None or bool(delta.parameters) or bool(delta.experts)
        if own or (delta.low_rank is not None and not self._fits(delta)):
            self.groups[adapter] = delta
        for name in VECTORS:
            vector = getattr(delta, name)
            if vector is not None:
                self._vector(name, slot, vector.shape[0])[slot] = vector
                self._users.setdefault(name, set()).add(adapter)

    def clear(self, adapter: CompiledAdapter, slot: int, start: int, columns: int) -> None:
        """Zero the columns that an adapter had here, and set its vectors back to those of the base."""
        for side in self.columns or ():
            side[start : start + columns] = 0
        for name, vectors in self.vectors.items():
            if slot < vectors.shape[0]:
                vectors[slot] = VECTORS[name]
        for users in self._users.values():
            users.discard(adapter)
        self.groups.pop(adapter, None)

    def widen(self, width: int) -> None:
        """Make this many columns usable, if the module has any columns."""
        for side in self._columns or ():
            side.widen(width)

    def low_rank_in_columns(self, delta: ModuleDelta) -> bool:
        """Tell whether a delta's low rank is in the bank's columns, and not in a group."""
        return delta.low_rank is not None and self._fits(delta)

    def vector(self, name: str, slots: torch.Tensor) -> torch.Tensor:
        """Return the vector of the adapter in each token's slot: [tokens, features]."""
        vectors = self.vectors[name]
        return vectors[torch.where(slots < vectors.shape[0], slots, 0)]

    def _fits(self, delta: ModuleDelta) -> bool:
        """Tell whether a low rank is of the base's size.

        An embedding's low rank is looked up, and a head may have grown.
        """
        assert delta.low_rank is not None
        return self._shape is not None and delta.low_rank.b.shape[1] == self._shape.output_features

    def _made_columns(self, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        assert self._shape is not None
        if self._columns is None:
            sizes = (self._shape.input_features, self._shape.output_features)
            a, b = (Columns(self._limit, size, self._dtype, self._device) for size in sizes)
            self._columns = a, b
            self.widen(width)
        return self._columns[0].now, self._columns[1].now

    def _vector(self, name: str, slot: int, features: int) -> torch.Tensor:
        """Return the vectors of this name, with room for this slot."""
        vectors = self.vectors.get(name)
        if vectors is None:
            vectors = torch.full((1, features), VECTORS[name], dtype=self._dtype, device=self._device)
        if vectors.shape[0] <= slot:
            vectors = _grown(vectors, max(16, 2 * slot), VECTORS[name])
        self.vectors[name] = vectors
        return vectors


def _grown(tensor: torch.Tensor, rows: int, value: float) -> torch.Tensor:
    larger = tensor.new_full((rows, tensor.shape[1]), value)
    larger[: tensor.shape[0]] = tensor
    return larger
