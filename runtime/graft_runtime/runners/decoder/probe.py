"""Whether a loaded model may be served by the `decoder` runner: it calls our attention as we understand it, and what it
computes from packed rows is what it computes by itself. What is refused goes to the padded runner.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from graft_runtime.model.hooks import AdapterModules
from graft_runtime.model.linear import compute_with
from graft_runtime.model.load import BaseModel
from graft_runtime.model.native import Native
from graft_runtime.model.norms import fuse_norms, restore_norms
from graft_runtime.runners.decoder.attention import IMPLEMENTATION, Family, LayerShape, Piece, attending
from graft_runtime.runners.decoder.pages import PAGE, pages_for
from graft_runtime.runners.decoder.places import open_places
from graft_runtime.runners.decoder.runner import DecoderRunner
from graft_runtime.runners.decoder.step import PackedRow
from graft_runtime.runners.trial import agree, difference

HANDLED = {"scaling", "dropout", "sliding_window", "softcap", "s_aux", "is_causal"}
"""What our attention does as it is asked, or what is checked here."""
NEUTRAL = {
    "position_ids", "cache_position", "use_cache", "return_dict", "output_attentions", "output_hidden_states",
    "output_router_logits", "logits_to_keep", "past_key_values", "position_embeddings",
}  # fmt: skip
"""Handed through by models, and without meaning for attention."""
KINDS = {"full_attention", "sliding_attention"}
SHORT, LONG = 10, 28
"""Tokens of the two sequences that are compared."""
WINDOW_TRIED = 1024
"""Tokens; a longer window is trusted."""


class RefusedError(Exception):
    """Why the model can't be served by the decoder runner."""


@dataclass(frozen=True)
class _Call:
    """What one layer handed to attention."""

    layer: Any
    causal: bool
    shape: LayerShape
    masked: bool
    options: dict[str, Any]


def probe(base: BaseModel, modules: AdapterModules, *, pages: bool, native: Native | None = None) -> Family:
    """Set the model to our attention, its norms to one operation each, all to what is compiled; or leave it as it was.

    Args:
        base: the model.
        modules: the adapters' hooks on it.
        pages: whether keys and values are to lie in pages.
        native: what is compiled; None: nothing is.

    Raises:
        RefusedError: with the reason.
    """
    stock, fused = base.model.config._attn_implementation, list[nn.Module]()
    try:
        _check_arguments(base)
        lengths = _lengths(base)
        expected = [_stock_logits(base, length) for length in lengths]
        base.model.set_attn_implementation(IMPLEMENTATION)
        fused = fuse_norms(base.model, native)
        compute_with(native, base.model)
        family = _family(base)
        places = open_places(
            family,
            pages=pages,
            tokens=sum(pages_for(length) for length in lengths) * PAGE,
            longest=max(lengths),
            dtype=base.dtype,
            device=base.device,
            native=native,
        )
        _compare(base, DecoderRunner(base, modules, places), lengths, expected)
    except Exception as error:
        base.model.set_attn_implementation(stock)
        restore_norms(fused)
        compute_with(None, base.model)
        if isinstance(error, RefusedError | torch.AcceleratorError):
            raise
        raise RefusedError(f"trying it failed: {type(error).__name__}: {error}") from error
    return family


def _check_arguments(base: BaseModel) -> None:
    missing = {"position_ids", "use_cache"} - set(inspect.signature(base.model.forward).parameters)
    if missing:
        raise RefusedError(f"its forward takes no {' and no '.join(sorted(missing))}")


def _text_config(base: BaseModel) -> Any:
    return base.model.config.get_text_config(decoder=True)


def _lengths(base: BaseModel) -> list[int]:
    """Return the lengths of the sequences that are compared: one leaves the window, if there is a small window."""
    window = getattr(_text_config(base), "sliding_window", None)
    long = max(LONG, window + 8) if isinstance(window, int) and window <= WINDOW_TRIED else LONG
    return [min(length, base.context_length) for length in (SHORT, long)]


def _prompt(base: BaseModel, length: int) -> list[int]:
    return [(index * index * 7 + index * 13 + length) % base.vocabulary_size for index in range(length)]


def _answers(length: int) -> list[int]:
    """Return the tokens of a sequence whose logits are compared: after a span, after another, and while it decodes."""
    return [at for at in (length * 2 // 3, length - 3, length - 2, length - 1) if at >= 0]


def _stock_logits(base: BaseModel, length: int) -> torch.Tensor:
    kept = torch.tensor(_answers(length), device=base.device)
    limited = "logits_to_keep" in inspect.signature(base.model.forward).parameters
    ids = torch.tensor([_prompt(base, length)], device=base.device)
    options = {"logits_to_keep": kept} if limited else {}
    logits: torch.Tensor = base.model(input_ids=ids, use_cache=False, return_dict=True, **options).logits[0]
    return logits if limited else logits[kept]


def _family(base: BaseModel) -> Family:
    """Run the model once and read off what the model's layers ask of attention."""
    calls: list[_Call] = []

    def record(module: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any, **options: Any) -> Any:
        shape = LayerShape(k.shape[1], k.shape[-1], v.shape[-1])
        causal = getattr(module, "is_causal", True) is not False and options.get("is_causal") is not False
        calls.append(_Call(getattr(module, "layer_idx", None), causal, shape, mask is not None, options))
        return q.new_zeros(q.shape[2], q.shape[1], v.shape[-1])

    ids = torch.tensor([_prompt(base, 3)], device=base.device)
    with attending(record):
        base.model(input_ids=ids, position_ids=torch.arange(3, device=base.device)[None], use_cache=False)
    config = _text_config(base)
    layers = [call.layer for call in calls]
    if layers != list(range(config.num_hidden_layers)):
        said = f"layers {layers}" if calls else "none of its layers"
        raise RefusedError(f"{said} of {config.num_hidden_layers} call the attention interface, expected each once")
    return Family(
        tuple(call.shape for call in calls),
        tuple(_window(call, config, index) for index, call in enumerate(calls)),
        any(call.options.get("softcap") is not None for call in calls),
    )


def _window(call: _Call, config: Any, layer: int) -> int | None:
    """Return how many tokens the layer sees. Refuses what our attention would not do."""
    given = {name for name, value in call.options.items() if value is not None and value is not False}
    unknown = given - HANDLED - NEUTRAL
    if unknown:
        raise RefusedError(f"its attention is called with {', '.join(sorted(unknown))}")
    if call.masked or not call.causal or call.options.get("dropout"):
        raise RefusedError("its attention is called with a mask of the model's, with dropout, or is not causal")
    kinds = getattr(config, "layer_types", None)
    declared = getattr(config, "sliding_window", None)
    if kinds is not None:
        if kinds[layer] not in KINDS:
            raise RefusedError(f"layer {layer} is of type {kinds[layer]}, expected one of {', '.join(sorted(KINDS))}")
        declared = declared if kinds[layer] == "sliding_attention" else None
    asked = call.options.get("sliding_window", declared if kinds is not None else None)
    if asked != declared:
        raise RefusedError(f"layer {layer} asks for a window of {asked} tokens, its config says {declared}")
    return declared


def _compare(base: BaseModel, runner: DecoderRunner, lengths: Sequence[int], expected: Sequence[torch.Tensor]) -> None:
    """Check that two sequences beside each other, in spans and token by token, get the model's own logits."""
    got = _packed_logits(base, runner, lengths)
    for made, stock in zip(got, expected, strict=True):
        if not agree(made, stock, base.dtype):
            off = difference(made, stock)
            raise RefusedError(f"packed logits differ from the model's own by {off:.3g} of the largest")


def _packed_logits(base: BaseModel, runner: DecoderRunner, lengths: Sequence[int]) -> list[torch.Tensor]:
    places = [runner.kv.reserve(length) for length in lengths]
    starts = [0 for _ in lengths]
    found: list[list[torch.Tensor]] = [[] for _ in lengths]
    for step in range(len(_answers(max(lengths)))):
        going = [index for index, length in enumerate(lengths) if step < len(_answers(length))]
        rows = []
        for index in going:
            end = _answers(lengths[index])[step] + 1
            ids = _prompt(base, lengths[index])[starts[index] : end]
            rows.append(PackedRow(Piece(places[index], starts[index], len(ids)), ids, (), answers=True))
            starts[index] = end
        packed = runner.pack(rows)
        for row, logits in zip(packed.answering, runner.run(packed), strict=True):
            found[going[row]].append(logits)
    return [torch.stack(logits) for logits in found]
