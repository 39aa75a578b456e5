"""The names of an adapter's tensors: which module each belongs to, and what it is there.

PEFT's grammar: `base_model.model.` + the path of the module in the task model + the name of the parameter, without the
adapter's own name (save_and_load.py, get_peft_model_state_dict).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from graft_runtime.adapters.parts.part import Part, Tensor
from graft_runtime.adapters.parts.whole import Bias, WholeModule
from graft_runtime.adapters.tensors import TensorSpan

PREFIX = "base_model.model."
EMBEDDINGS = frozenset(
    {"embed_tokens", "lm_head", "wte", "word_embeddings", "embed_in", "embed_out", "shared", "tok_embeddings"}
)
"""How modules are called that PEFT saves whole without being asked, when the vocabulary has another size than the
base's (`save_embedding_layers`)."""

_SHADOW = re.compile(r"\.(?:modules_to_save|original_module)\.(?=(?:weight|bias)$)")
"""PEFT writes an embedding of another size with all that it wraps it in: the base's weight and the trained one once
more, beside the trained one under the module's own name. The last is the one that PEFT loads."""

CLASSIFIERS = frozenset({"classifier", "score", "qa_outputs"})
"""What PEFT writes into modules_to_save for the tasks that have a head (peft_model.py)."""


@dataclass(frozen=True)
class Keys:
    """Tensors by module and role.

    Attributes:
        modules: path → role → tensor.
        rest: the tensors that have no role in the method, by name.
    """

    modules: Mapping[str, Mapping[str, Tensor]]
    rest: Mapping[str, TensorSpan]


def by_module(tensors: Mapping[str, TensorSpan], roles: Mapping[str, str]) -> Keys:
    """Sort the tensors of a file by module and role.

    Args:
        tensors: of the file.
        roles: how a tensor's name ends → its role.
    """
    modules: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, TensorSpan] = {}
    for name, span in tensors.items():
        ending = _ending(name, roles)
        if ending is None or not name.startswith(PREFIX):
            rest[name] = span
        else:
            path = name[len(PREFIX) : -len(ending)]
            modules.setdefault(path, {})[roles[ending]] = Tensor(name, span)
    return Keys(modules, rest)


def _ending(name: str, roles: Iterable[str]) -> str | None:
    for ending in roles:
        if name.endswith(ending):
            return ending
    return None


def whole_weights(
    rest: Mapping[str, TensorSpan], saved: Collection[str], *, biases: bool
) -> tuple[list[Part], list[str]]:
    """Find the parts of whole weights and biases among the tensors that have no role in the method.

    Args:
        rest: tensors.
        saved: the config's modules_to_save. PEFT saves a module when its path, or that of one that it is in, ends in
            one of these names, dots or not (other.py, _set_trainable).
        biases: whether biases of the base were trained along.

    Returns:
        The parts, and the names of the tensors that are none of these.
    """
    modules: dict[str, dict[str, Tensor]] = {}
    parts: list[Part] = []
    foreign: list[str] = []
    for name, span in rest.items():
        shadowed = _SHADOW.sub(".", name)
        if shadowed != name and shadowed in rest:
            continue
        path, _, parameter = name.removeprefix(PREFIX).rpartition(".")
        own = path.removesuffix(".base_layer").removesuffix(".token_adapter")  # of the layers that PEFT wraps it in
        if not name.startswith(PREFIX) or parameter not in ("weight", "bias"):
            foreign.append(name)
        elif is_saved(path, saved) or (parameter == "weight" and (own != path or is_embedding(path))):
            modules.setdefault(own, {})[parameter] = Tensor(name, span)
        elif parameter == "bias" and biases:
            parts.append(Bias(own, {"bias": Tensor(name, span)}))
        else:
            foreign.append(name)
    return [*parts, *(WholeModule(path, roles) for path, roles in modules.items())], foreign


def is_embedding(path: str) -> bool:
    """Tell whether a module is called as input embeddings and heads are."""
    return path.rpartition(".")[2] in EMBEDDINGS


def is_saved(path: str, saved: Collection[str]) -> bool:
    """Tell whether modules_to_save names this module or one that it is in."""
    if not saved:
        return False
    steps = path.split(".")
    return any(".".join(steps[:end]).endswith(tuple(saved)) for end in range(1, len(steps) + 1))


def absent(saved: Collection[str], parts: Iterable[Part]) -> list[str]:
    """Return what is wrong when modules_to_save is set; a base has not every head that modules_to_save may name.

    PEFT adds the names of `CLASSIFIERS` itself, whether the base has one of these or not: that is checked beside it.
    """
    if CLASSIFIERS.issuperset(saved) or any(is_saved(part.path, saved) for part in parts):
        return []
    return [f"modules_to_save names {', '.join(saved)}, no tensor is of these"]


def incomplete(parts: Sequence[Part]) -> list[str]:
    """Return what is wrong with parts by themselves; a file without any part is wrong."""
    if not parts:
        return ["it holds no tensor"]
    return [fault for part in parts for fault in part.faults()]


def highest_rank(parts: Iterable[Part]) -> int:
    """Return the number of columns of the bank that an adapter of these parts takes."""
    return max((part.rank for part in parts), default=0)
