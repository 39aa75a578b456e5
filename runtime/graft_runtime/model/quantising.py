"""How Transformers is told to load a base quantised, and what that takes."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from transformers import BitsAndBytesConfig, TorchAoConfig
from transformers.quantizers.auto import AutoHfQuantizer

from graft_runtime.base.files import not_a_model
from graft_runtime.contract.quantizations import Quantization
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.model.modules import BaseModules
from graft_runtime.model.quantised import own_quantised

_BLOCK, _BLOCK_OF_SCALES = 64, 256
"""Of bitsandbytes: weights of four bits that share a scale, and such scales that share one."""


def chosen(wanted: Quantization | None, saved: Quantization | None, name: str) -> Quantization | None:
    """Return how the base is to be quantised.

    Args:
        wanted: by the pool; None: as the checkpoint is.
        saved: how the checkpoint is quantised; None: its weights are full.
        name: how errors call the base model.

    Raises:
        GraftError: NotAModel where the two differ, or where the library is not installed.
    """
    if wanted is not None and saved is not None and wanted != saved:
        raise GraftError(
            ErrorCode.NOT_A_MODEL,
            f"the weights of base model `{name}` are quantised ({saved}), and the pool asks for {wanted}",
            hint=f"leave spec.baseModel.quantization out, or set it to {saved}; {wanted} takes a checkpoint of full"
            " weights",
            field="spec.baseModel.quantization",
        )
    found = wanted or saved
    missing = [package for package in ("accelerate", found.library) if find_spec(package) is None] if found else []
    if found and missing:
        raise not_a_model(
            name,
            f"{found} weights take {' and '.join(missing)}, which this image does not have",
            "use Graft's image, or install graft-runtime[pod,quantization] into yours",
        )
    return found


def load_options(quantization: Quantization, config: Any, dtype: torch.dtype | None, device: torch.device) -> Any:
    """Return the arguments of `from_pretrained` for a base that is quantised.

    Args:
        quantization: what the weights become.
        config: of the model; where it says how its checkpoint is quantised, that holds.
        dtype: of all other weights; None: what the checkpoint says.
        device: that the weights are loaded to.
    """
    if _said(config) is not None:
        return {"device_map": {"": device}}
    return {"device_map": {"": device}, "quantization_config": _to_be(quantization, config, dtype)}


def _said(config: Any) -> Any:
    found = getattr(config, "quantization_config", None)
    return found or getattr(config.get_text_config(decoder=True), "quantization_config", None)


def _to_be(quantization: Quantization, config: Any, dtype: torch.dtype | None) -> Any:
    if quantization in (Quantization.NF4, Quantization.FP4):
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quantization.value,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype or config.dtype or torch.float32,
        )
    if quantization is Quantization.INT8:
        return BitsAndBytesConfig(load_in_8bit=True)
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig  # noqa: PLC0415 - part of an extra

    kinds = {
        Quantization.INT8_WEIGHT_ONLY: Int8WeightOnlyConfig,
        Quantization.FLOAT8_WEIGHT_ONLY: Float8WeightOnlyConfig,
    }
    return TorchAoConfig(kinds[quantization]())


def own(model: Any, quantization: Quantization, name: str) -> None:
    """Make the quantised modules of a loaded model ours. Raises GraftError: NotAModel where it has none."""
    if not own_quantised(model):
        raise not_a_model(
            name,
            f"{quantization.library} quantises no module of a {type(model).__name__}",
            "leave spec.baseModel.quantization out, or take nf4 or int8 where it is another",
        )


def quantised_bytes(model: Any, quantization: Quantization, dtype: torch.dtype | None) -> int:
    """Return the bytes that a model takes once it is loaded quantised.

    Args:
        model: on the device `meta`; its modules are no longer what they were.
        quantization: what the weights become.
        dtype: of all other weights; None: the model's own.
    """
    said = _said(model.config)
    config = said or _to_be(quantization, model.config, dtype)
    quantizer = AutoHfQuantizer.from_config(config, pre_quantized=False)
    sizes = {name: parameter.shape for name, parameter in model.named_parameters()}
    with torch.device("meta"):
        quantizer.preprocess_model(model, device_map=None)
    modules: Any = BaseModules(model)
    needed = 0
    for name, parameter in model.named_parameters():
        size = sizes[name].numel()
        if quantizer.param_needs_quantization(model, name):
            rows = modules.hooked(name.rpartition(".")[0]).out_features
            needed += size * quantization.bits // 8
            needed += _scale_bytes(quantizer.quantization_config, quantization, size, rows)
        else:
            needed += size * (dtype or parameter.dtype).itemsize
    return needed


def _scale_bytes(config: Any, quantization: Quantization, size: int, rows: int) -> int:
    """Return the bytes of the scales of one weight."""
    if quantization.bits == 8:
        return 4 * rows
    blocks = -(-size // _BLOCK)
    if not config.bnb_4bit_use_double_quant:
        return 4 * blocks
    return blocks + 4 * -(-blocks // _BLOCK_OF_SCALES)
