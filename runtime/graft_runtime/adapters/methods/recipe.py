"""What every PEFT method has: a recipe, made of an adapter's config, that turns its tensors into parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from graft_runtime.adapters.parts.part import Part
from graft_runtime.adapters.tensors import TensorSpan
from graft_runtime.errors import ErrorCode, GraftError, shown


class Recipe(Protocol):
    """One adapter's config, checked, and what its method makes of its tensors."""

    method: str
    """PEFT's name of the method: `LORA`."""
    base_model: str | None
    """What the adapter says that it was trained for; only told, never opened."""
    invocation: tuple[int, ...]
    """See `CompiledAdapter.invocation`."""

    def parts(self, tensors: Mapping[str, TensorSpan]) -> Sequence[Part]:
        """Every tensor in exactly one part, the config checked against them. The base is not known yet.

        Raises:
            GraftError: UnsupportedMethod for tensors of other methods, Corrupt for an incomplete or misshapen set,
                InvalidConfig for a config that contradicts its tensors.
        """
        ...


def foreign_tensors(name: str, method: str, tensors: Sequence[str]) -> GraftError:
    """The error for tensors that the method has no role for."""
    return GraftError(
        ErrorCode.UNSUPPORTED_METHOD,
        f"adapter `{name}` holds {len(tensors)} tensors that are no part of {method} as its config describes it",
        details=shown([f"{tensor}: {_what_it_is(tensor)}" for tensor in tensors]),
        hint="name whole modules in modules_to_save, or merge this adapter with peft's merge_and_unload() and serve "
        "the result as a base model",
    )


def misshapen(name: str, faults: Sequence[str]) -> GraftError:
    """The error for tensors that don't belong together."""
    return GraftError(
        ErrorCode.CORRUPT,
        f"adapter `{name}` is incomplete or misshapen",
        details=shown(faults),
        hint="save it again with peft's save_pretrained()",
    )


def contradiction(name: str, faults: Sequence[str]) -> GraftError:
    """The error for a config that says something else than its tensors."""
    return GraftError(
        ErrorCode.INVALID_CONFIG,
        f"adapter_config.json of adapter `{name}` contradicts its tensors",
        details=shown(faults),
        hint="save the adapter again with peft's save_pretrained(), which writes both files",
    )


def _what_it_is(tensor: str) -> str:
    if not tensor.startswith("base_model.model."):
        return "its name does not begin with base_model.model."
    if tensor.endswith((".weight", ".bias")):
        return "a whole weight that neither modules_to_save nor bias speaks of"
    return "unknown to the method"
