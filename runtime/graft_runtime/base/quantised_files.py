"""How a checkpoint is quantised, by its config.json. Holds no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graft_runtime.adapters.strict_json import parse_object
from graft_runtime.base.files import not_a_model, read_config
from graft_runtime.contract.quantizations import Quantization
from graft_runtime.errors import ErrorCode, GraftError

_TORCHAO = {
    "Int8WeightOnlyConfig": Quantization.INT8_WEIGHT_ONLY,
    "Float8WeightOnlyConfig": Quantization.FLOAT8_WEIGHT_ONLY,
}
_UNQUANTISE = {
    method: f"use a copy in bfloat16; to make one, load it with Transformers and {config}(dequantize=True) as its "
    "quantization_config, take quantization_config out of its config, and save it with save_pretrained()"
    for method, config in (("mxfp4", "Mxfp4Config"), ("fp8", "FineGrainedFP8Config"))
}
"""What to do with checkpoints that were never published otherwise, as those of GPT-OSS and DeepSeek."""


def config_of(directory: Path, name: str) -> dict[str, Any]:
    """Return what config.json says. Raises GraftError: NotAModel."""
    return parse_object(read_config(directory, name), f"config.json of base model `{name}`", ErrorCode.NOT_A_MODEL)


def saved_quantization(config: Mapping[str, Any], name: str) -> Quantization | None:
    """Return how the weights in a checkpoint are quantised; None: they are full.

    Args:
        config: what its config.json says.
        name: how errors call the base model.

    Raises:
        GraftError: NotAModel for quantisations that Graft does not compute with.
    """
    text = config.get("text_config")
    said = config.get("quantization_config") or (isinstance(text, dict) and text.get("quantization_config"))
    if not said:
        return None
    found = _found(said) if isinstance(said, dict) else None
    if found is not None:
        return found
    how = str(said.get("quant_method", "")) if isinstance(said, dict) else ""
    raise not_a_model(
        name,
        f"its weights are quantised by {how or 'a method that is not named'} (quantization_config in config.json); "
        "expected full weights, or some that Transformers saved with bitsandbytes, or with torchao as "
        f"{' or '.join(_TORCHAO)}",
        _UNQUANTISE.get(how, "use the checkpoint that it was quantised from, with spec.baseModel.quantization: nf4"),
    )


def _found(said: Mapping[str, Any]) -> Quantization | None:
    match said.get("quant_method"):
        case "bitsandbytes":
            if said.get("load_in_8bit"):
                return None if said.get("llm_int8_has_fp16_weight") else Quantization.INT8
            named = said.get("bnb_4bit_quant_type", "fp4")
            return Quantization(named) if said.get("load_in_4bit") and named in ("nf4", "fp4") else None
        case "torchao" if not said.get("include_input_output_embeddings"):
            kinds = said.get("quant_type")
            default = kinds.get("default") if isinstance(kinds, dict) and len(kinds) == 1 else None
            return _TORCHAO.get(str(default.get("_type"))) if isinstance(default, dict) else None
        case _:
            return None


def check_full(directory: Path, name: str, why: str) -> None:
    """Check that the weights of a checkpoint are full.

    Args:
        directory: of the checkpoint.
        name: how errors call the base model.
        why: what needs them.

    Raises:
        GraftError: NotAModel.
    """
    saved = saved_quantization(config_of(directory, name), name)
    if saved is not None:
        raise GraftError(
            ErrorCode.NOT_A_MODEL,
            f"the weights of base model `{name}` are quantised ({saved}); {why} takes the full ones",
            hint="use the checkpoint that it was quantised from",
            field="spec.baseModel.uri",
        )
