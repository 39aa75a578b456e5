"""What every PEFT method has: a recipe, made of an adapter's config, that turns its tensors into parts."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, TypeVar, runtime_checkable

from graft_runtime.adapters.parts.part import Part
from graft_runtime.adapters.tensors import TensorSpan
from graft_runtime.errors import ErrorCode, GraftError, shown

MATCHING_SECONDS = 5.0
"""All patterns against all modules; honest ones take milliseconds."""


SomePart = TypeVar("SomePart", bound=Part)


class Recipe(Protocol):
    """One adapter's config, checked, and what its method makes of its tensors."""

    @property
    def method(self) -> str:
        """Return PEFT's name of the method: `LORA`."""
        ...

    @property
    def base_model(self) -> str | None:
        """Return the base that the adapter says it was trained for; the base's name is only told, never opened."""
        ...

    @property
    def invocation(self) -> tuple[int, ...]:
        """Return the tokens that `CompiledAdapter.invocation` describes."""
        ...

    def parts(self, tensors: Mapping[str, TensorSpan]) -> Sequence[Part]:
        """Put every tensor in exactly one part and check the config against the tensors. The base is not known yet.

        Raises:
            GraftError: UnsupportedMethod for tensors of other methods, Corrupt for an incomplete or misshapen set,
                InvalidConfig for a config that contradicts its tensors.
        """
        ...


def options_not_served(name: str, method: str, refused: Sequence[str]) -> GraftError:
    """Return the error for options of a method that are refused by name."""
    return GraftError(
        ErrorCode.UNSUPPORTED_METHOD,
        f"adapter `{name}` uses options of {method} that Graft does not serve",
        details=shown(refused, 8),
        hint="train it without them, or merge this adapter with peft's merge_and_unload() and serve the result as "
        "a base model",
    )


def each_in_time(parts: Sequence[SomePart], check: Callable[[SomePart], Iterable[str]]) -> list[str]:
    """Return all parts' faults by a check that matches patterns of strangers; one fault if the check takes too long."""
    deadline, faults = time.monotonic() + MATCHING_SECONDS, list[str]()
    for part in parts:
        if time.monotonic() > deadline:
            return [f"matching its patterns against {len(parts)} modules takes over {MATCHING_SECONDS} s"]
        faults += check(part)
    return faults


@runtime_checkable
class Targeting(Protocol):
    """A recipe whose config says which modules of a base have an adapter, not only which tensors there are."""

    def targeted(self, path: str) -> bool:
        """Tell whether this module has an adapter."""
        ...


@runtime_checkable
class Saving(Protocol):
    """A recipe whose config names modules that are saved whole."""

    saved: tuple[str, ...]
    """modules_to_save."""


@runtime_checkable
class Stacking(Protocol):
    """A recipe whose config names parameters that stack the weights of several modules."""

    def names_parameter(self, path: str) -> bool:
        """Tell whether this parameter has an adapter."""
        ...


def foreign_tensors(name: str, method: str, tensors: Sequence[str]) -> GraftError:
    """Return the error for tensors that the method has no role for."""
    return GraftError(
        ErrorCode.UNSUPPORTED_METHOD,
        f"adapter `{name}` holds {len(tensors)} tensors that are no part of {method} as its config describes it",
        details=shown([f"{tensor}: {_what_it_is(tensor)}" for tensor in tensors]),
        hint="save it without the quantised weights of the base: save_pretrained(..., save_embedding_layers=False)"
        if any(map(_QUANTISED.search, tensors))
        else "name whole modules in modules_to_save, or merge this adapter with peft's merge_and_unload() and serve "
        "the result as a base model",
    )


def misshapen(name: str, faults: Sequence[str]) -> GraftError:
    """Return the error for tensors that don't belong together."""
    return GraftError(
        ErrorCode.CORRUPT,
        f"adapter `{name}` is incomplete or misshapen",
        details=shown(faults),
        hint="save it again with peft's save_pretrained()",
    )


def contradiction(name: str, faults: Sequence[str]) -> GraftError:
    """Return the error for a config that says something else than its tensors."""
    return GraftError(
        ErrorCode.INVALID_CONFIG,
        f"adapter_config.json of adapter `{name}` contradicts its tensors",
        details=shown(faults),
        hint="save the adapter again with peft's save_pretrained(), which writes both files",
    )


_QUANTISED = re.compile(r"\.(?:(?:nested_)?(?:absmax|quant_map)|quant_state\.[^.]+|SCB|weight_format)$")


def _what_it_is(tensor: str) -> str:
    if _QUANTISED.search(tensor):
        return "what bitsandbytes keeps beside a quantised weight"
    if not tensor.startswith("base_model.model."):
        return "its name does not begin with base_model.model."
    if tensor.endswith((".weight", ".bias")):
        return "a whole weight that neither modules_to_save nor bias speaks of"
    return "unknown to the method"
