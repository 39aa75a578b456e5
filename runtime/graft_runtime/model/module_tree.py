"""The modules of a loaded model as a layout, which adapters are checked against."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, apply_renamings
from transformers.pytorch_utils import Conv1D

from graft_runtime.adapters.layout import AttentionShape, BaseLayout, EmbeddingShape, ExpertsShape, LinearShape
from graft_runtime.base.files import not_a_model
from graft_runtime.model.modules import BaseModules

HEADS = frozenset({"score", "classifier", "qa_outputs", "classifier.out_proj", "classification_head.out_proj"})
"""How the last module of a classifier is called; an adapter may know other labels than the base."""

READ_WHOLE = frozenset({"rel_embeddings"})
"""Embeddings whose weight is read without calling them (DeBERTa's relative positions): there is no row to change."""


def layout_of(model: nn.Module, name: str) -> BaseLayout:
    """Return every module by its path; a module that is in the model twice counts once, under the first path.

    Raises:
        GraftError: NotAModel for a model that takes no token ids.
    """
    linear: dict[str, LinearShape] = {}
    embeddings: dict[str, EmbeddingShape] = {}
    norms: dict[str, dict[str, int]] = {}
    experts: dict[str, ExpertsShape] = {}
    other: dict[str, str] = {}
    routers: dict[str, LinearShape] = {}
    for path, module in model.named_modules():
        if (router := _router(module)) is not None:
            routers[path] = router
        elif (shape := linear_shape(module)) is not None:
            linear[path] = shape
        elif isinstance(module, nn.Embedding) and _looks_up(module) and path.rpartition(".")[2] not in READ_WHOLE:
            embeddings[path] = EmbeddingShape(module.num_embeddings, module.embedding_dim)
        elif (held := _experts(module)) is not None:
            experts[path] = held
        elif vectors := _vectors(module):
            norms[path] = vectors
        else:
            other[path] = type(module).__name__
    paths = {id(module): path for path, module in model.named_modules()}
    modules = BaseModules(model)
    embedding, head = _path(model, "get_input_embeddings", paths), _path(model, "get_output_embeddings", paths)
    return BaseLayout(
        name,
        linear,
        other,
        embeddings,
        norms,
        experts=experts,
        routers=routers,
        ties=_ties(modules, embedding, head),
        twins=_twins(modules, embedding, embeddings),
        attention=_attention(model),
        input_embedding=embedding if embedding in embeddings and not _has_encoder(model) else None,
        resizable=frozenset(path for path in (embedding, head, *(HEADS & linear.keys())) if path is not None),
        former=former_names(model),
        wrapper=getattr(model, "base_model_prefix", ""),
        vocabulary=_vocabulary(model, name) if isinstance(model, PreTrainedModel) else 0,
    )


def _vocabulary(model: Any, name: str) -> int:
    """Return how many tokens a model has rows for. Raises GraftError: NotAModel."""
    try:
        return int(model.get_input_embeddings().weight.shape[0])
    except (AttributeError, NotImplementedError):
        raise not_a_model(name, f"{type(model).__name__} takes no token ids") from None


def former_names(model: Any) -> dict[str, str]:
    """Return how earlier versions of Transformers called what is in this model: the beginning of a path → today's.

    From Transformers' own table of renamed weights, read backwards, as `save_pretrained` does to write the old names.
    """
    if not isinstance(model, PreTrainedModel):
        return {}
    transforms = get_model_conversion_mapping(model, add_legacy=False)[::-1]
    renamings = [each.reverse_transform() for each in transforms if isinstance(each, WeightRenaming)]
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    found: dict[str, str] = {}
    for scope in sorted({each.scope_prefix or "" for each in renamings}):  # of a model in the model; "" has all of them
        found |= _renamed(names, [each for each in renamings if scope in ("", each.scope_prefix)])
    return found


def _renamed(names: Iterable[str], renamings: Sequence[WeightRenaming]) -> dict[str, str]:
    """Return the former beginnings of names that were renamed, where each stands for one of today's."""
    found: dict[str, set[str]] = {}
    for name in names:
        old, new = without_common_end(apply_renamings(name, renamings), name)
        if old != new:
            found.setdefault(old, set()).add(new)
    return {old: new for old, (new, *others) in found.items() if not others}


def without_common_end(one: str, other: str) -> tuple[str, str]:
    """Return both paths without the steps that they end with alike; at least one step of each is left."""
    ones, others = one.split("."), other.split(".")
    while len(ones) > 1 and len(others) > 1 and ones[-1] == others[-1]:
        ones.pop()
        others.pop()
    return ".".join(ones), ".".join(others)


def linear_shape(module: nn.Module) -> LinearShape | None:
    """Return the size of a module that computes y = W·x + b; None for others."""
    if isinstance(module, Conv1D):
        return LinearShape(module.nx, module.nf, bias=True, transposed=True)
    if isinstance(module, nn.Linear):
        return LinearShape(module.in_features, module.out_features, bias=module.bias is not None)
    return None


def _looks_up(module: nn.Embedding) -> bool:
    """Tell whether an embedding takes token ids and nothing else; some embeddings compute positions from a mask."""
    return type(module).forward is nn.Embedding.forward or hasattr(module, "embed_scale")


def _vectors(module: nn.Module) -> dict[str, int]:
    """Return the sizes of a module's parameters when all of them are vectors and the module has no submodules."""
    parameters = dict(module.named_parameters())
    if any(True for _ in module.children()) or any(parameter.dim() != 1 for parameter in parameters.values()):
        return {}
    return {name: parameter.shape[0] for name, parameter in parameters.items()}


def _path(model: Any, getter: str, paths: dict[int, str]) -> str | None:
    try:
        module = getattr(model, getter)()
    except (AttributeError, NotImplementedError):
        return None
    return paths.get(id(module)) if module is not None else None


def _ties(modules: BaseModules, embedding: str | None, head: str | None) -> dict[str, str]:
    if embedding is None or head is None:
        return {}
    return {embedding: head} if modules.same_weight(embedding, head) else {}


def _twins(modules: BaseModules, embedding: str | None, embeddings: Iterable[str]) -> tuple[str, ...]:
    if embedding is None:
        return ()
    return tuple(path for path in embeddings if path != embedding and modules.same_weight(embedding, path))


def _attention(model: Any) -> AttentionShape | None:
    """Return the shape that the config gives, as Transformers' caches are made.

    A cache holds keys and values only, the same on every layer.
    """
    config = getattr(model, "config", None)
    if config is None or _has_encoder(model) or getattr(model, "_is_stateful", False):
        return None
    config = config.get_text_config(decoder=True)
    layers, heads = getattr(config, "num_hidden_layers", None), getattr(config, "num_attention_heads", None)
    if not isinstance(layers, int) or not isinstance(heads, int):
        return None
    features = getattr(config, "head_dim", None) or config.hidden_size // heads
    return AttentionShape(layers, getattr(config, "num_key_value_heads", None) or heads, features)


def _has_encoder(model: Any) -> bool:
    """Tell whether a decoder reads what an encoder made of the prompt."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def _router(module: nn.Module) -> LinearShape | None:
    """Return the size of a module that scores experts by a weight of its own; None for others."""
    weight = getattr(module, "weight", None)
    if "Router" not in type(module).__name__ or not isinstance(weight, nn.Parameter) or weight.dim() != 2:
        return None
    return LinearShape(weight.shape[1], weight.shape[0])


def _experts(module: Any) -> ExpertsShape | None:
    """Return the sizes of a module that Transformers' experts interface (integrations/moe.py) calls; else None."""
    if not hasattr(module, "_apply_gate") or not hasattr(module, "is_transposed") or module.has_post_expert_norm:
        return None
    parameters, count = {}, 0
    for name in ("gate_up_proj" if module.has_gate else "up_proj", "down_proj"):
        weight = getattr(module, name, None)
        if not isinstance(weight, nn.Parameter) or weight.dim() != 3:
            return None
        count, rows, columns = weight.shape
        parameters[name] = (rows, columns) if module.is_transposed else (columns, rows)
    return ExpertsShape(count, parameters, interleaved=not module.is_concatenated)
