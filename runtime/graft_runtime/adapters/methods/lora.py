"""LoRA: y = W·x + s·B·(A·x), with s = alpha/r, or alpha/√r for rsLoRA; rank and alpha may differ by module.

The tensors lead: each of the file belongs to exactly one module and role. The config gives the scale, and is checked
against the tensors. `fan_in_fan_out` is not read: whether the base keeps a weight transposed is the base's to say.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from graft_runtime.adapters.layout import BaseLayout
from graft_runtime.adapters.methods.lora_config import LoraConfig
from graft_runtime.adapters.tensors import FLOATING, TensorSpan
from graft_runtime.errors import ErrorCode, GraftError, shown

PREFIX = "base_model.model."
ROLES = {".lora_A.weight": "A", ".lora_B.weight": "B"}
MATCHING_SECONDS = 5.0
"""All patterns against all modules; honest ones take milliseconds."""

_FOREIGN = {
    ".lora_magnitude_vector": "DoRA's magnitudes",
    ".lora_embedding_A": "LoRA on an embedding",
    ".lora_embedding_B": "LoRA on an embedding",
    ".lora_B.bias": "lora_bias",
    ".lora_A.bias": "lora_bias",
    ".trainable_tokens_delta": "trainable tokens",
    ".base_layer.weight": "a saved copy of a base weight (save_embedding_layers)",
}


@dataclass(frozen=True)
class LowRankPlan:
    """What one module gains: `scale` · `b` · `a`, by the names of the tensors."""

    path: str
    a: str
    b: str
    rank: int
    scale: float


def check_tensors(tensors: Mapping[str, TensorSpan], name: str) -> int:
    """That these are the tensors of a plain LoRA adapter: A and B for each module, two-dimensional, of one rank.

    Returns:
        The highest rank of a module.

    Raises:
        GraftError: UnsupportedMethod for tensors of other methods, Corrupt for an incomplete or misshapen set.
    """
    foreign = [f"{tensor}: {_what_it_is(tensor)}" for tensor in tensors if _split(tensor) is None]
    if foreign:
        raise GraftError(
            ErrorCode.UNSUPPORTED_METHOD,
            f"adapter `{name}` holds {len(foreign)} tensors that are no part of plain LoRA",
            details=shown(foreign),
            hint="expected names like base_model.model.<module>.lora_A.weight; train plain LoRA, or merge this adapter "
            "with peft's merge_and_unload() and serve the result as a base model",
        )
    pairs = _pairs(tensors)
    faults = [] if pairs else ["it holds no tensor"]
    faults += [fault for path, roles in pairs.items() for fault in _pair_faults(path, roles, tensors)]
    if faults:
        raise GraftError(
            ErrorCode.CORRUPT,
            f"adapter `{name}` is incomplete or misshapen",
            details=shown(faults),
            hint="save it again with peft's save_pretrained()",
        )
    return max(tensors[roles["A"]].shape[0] for roles in pairs.values())


def plan(config: LoraConfig, tensors: Mapping[str, TensorSpan], layout: BaseLayout, name: str) -> list[LowRankPlan]:
    """What each module of the base gains, every tensor accounted for.

    Args:
        config: of this adapter.
        tensors: of this adapter; `check_tensors` has passed them.
        layout: of the base model.
        name: how errors call the adapter.

    Raises:
        GraftError: BaseMismatch, ModuleMissing, ShapeMismatch, UnsupportedMethod, InvalidConfig.
    """
    pairs = _pairs(tensors)
    _check_modules(config, pairs, tensors, layout, name)
    deadline = time.monotonic() + MATCHING_SECONDS
    plans, faults = [], []
    for path, roles in pairs.items():
        if time.monotonic() > deadline:
            raise _invalid(
                name, [f"matching its patterns against {len(pairs)} modules takes over {MATCHING_SECONDS} s"]
            )
        rank = tensors[roles["A"]].shape[0]
        expected = config.rank_of(path)
        if rank != expected:
            faults.append(f"{path}: the tensors have rank {rank}, r and rank_pattern say {expected}")
        if not config.targets(path):
            faults.append(f"{path}: it has tensors, but target_modules and the options beside it leave it out")
        plans.append(LowRankPlan(path, roles["A"], roles["B"], rank, config.alpha_of(path) / _divisor(config, rank)))
    if faults:
        raise _invalid(name, faults)
    return plans


def _divisor(config: LoraConfig, rank: int) -> float:
    return math.sqrt(rank) if config.rank_stabilized else float(rank)


def _split(tensor: str) -> tuple[str, str] | None:
    """The module path and the role, or None for what is no tensor of LoRA."""
    for ending, role in ROLES.items():
        if tensor.endswith(ending) and tensor.startswith(PREFIX):
            return tensor.removeprefix(PREFIX).removesuffix(ending), role
    return None


def _pairs(tensors: Iterable[str]) -> dict[str, dict[str, str]]:
    pairs: dict[str, dict[str, str]] = {}
    for tensor in tensors:
        if (found := _split(tensor)) is not None:
            pairs.setdefault(found[0], {})[found[1]] = tensor
    return pairs


def _what_it_is(tensor: str) -> str:
    for ending, what in _FOREIGN.items():
        if tensor.endswith(ending):
            return what
    if not tensor.startswith(PREFIX):
        return f"its name does not begin with {PREFIX}"
    return "a whole weight (modules_to_save or bias)" if tensor.endswith((".weight", ".bias")) else "unknown to LoRA"


def _pair_faults(path: str, roles: Mapping[str, str], tensors: Mapping[str, TensorSpan]) -> list[str]:
    if missing := [role for role in ("A", "B") if role not in roles]:
        return [f"{path}: lora_{missing[0]} is missing"]
    a, b = tensors[roles["A"]], tensors[roles["B"]]
    if strange := [span.dtype for span in (a, b) if span.dtype not in FLOATING]:
        return [f"{path}: dtype {strange[0]}, expected a floating point one"]
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or 0 in (*a.shape, *b.shape):
        return [f"{path}: lora_A {a.shape} and lora_B {b.shape}, expected (r, in) and (out, r)"]
    return []


def _check_modules(
    config: LoraConfig,
    pairs: Mapping[str, Mapping[str, str]],
    tensors: Mapping[str, TensorSpan],
    layout: BaseLayout,
    name: str,
) -> None:
    wrong_kind = [f"{path}: {layout.other[path]}" for path in pairs if path in layout.other]
    if wrong_kind:
        raise GraftError(
            ErrorCode.UNSUPPORTED_METHOD,
            f"adapter `{name}` has LoRA on modules that are not linear",
            details=shown(wrong_kind),
            hint="name linear modules only in target_modules",
        )
    missing = [path for path in pairs if path not in layout.linear]
    misfits = [
        misfit
        for path, roles in pairs.items()
        if path in layout.linear
        for misfit in _misfits(path, roles, tensors, layout)
    ]
    if not missing and not misfits:
        return
    faults = [f"{path}: the model has no such module" for path in missing] + misfits
    count = 2 * len(missing) + len(misfits)
    raise GraftError(
        _mismatch(len(missing), len(pairs)),
        f"adapter `{name}` can't be mounted on `{layout.name}`: {count} of {len(tensors)} tensors don't fit",
        details=shown(faults),
        hint=_base_hint(config),
    )


def _misfits(
    path: str, roles: Mapping[str, str], tensors: Mapping[str, TensorSpan], layout: BaseLayout
) -> Iterable[str]:
    shape = layout.linear[path]
    a, b = tensors[roles["A"]].shape, tensors[roles["B"]].shape
    if a[1] != shape.input_features:
        yield f"{path}.lora_A: adapter {a}, model needs {(a[0], shape.input_features)}"
    if b[0] != shape.output_features:
        yield f"{path}.lora_B: adapter {b}, model needs {(shape.output_features, b[1])}"


def _mismatch(missing: int, modules: int) -> ErrorCode:
    if missing == modules:
        return ErrorCode.BASE_MISMATCH
    return ErrorCode.MODULE_MISSING if missing else ErrorCode.SHAPE_MISMATCH


def _base_hint(config: LoraConfig) -> str:
    trained = f"adapter_config.json names base model `{config.base_model}`; " if config.base_model else ""
    return f"{trained}set spec.baseModel to the model it was trained for, or train it for this one"


def _invalid(name: str, faults: list[str]) -> GraftError:
    return GraftError(
        ErrorCode.INVALID_CONFIG,
        f"adapter_config.json of adapter `{name}` contradicts its tensors",
        details=shown(faults),
        hint="save the adapter again with peft's save_pretrained(), which writes both files",
    )
