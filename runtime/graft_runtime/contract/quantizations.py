"""How the weights of a base model are quantised."""

from __future__ import annotations

from enum import StrEnum


class Quantization(StrEnum):
    """A quantisation of the weights of a base's linear modules, by the names of Transformers' options for it."""

    NF4 = "nf4"
    FP4 = "fp4"
    INT8 = "int8"
    INT8_WEIGHT_ONLY = "int8_weight_only"
    FLOAT8_WEIGHT_ONLY = "float8_weight_only"

    @property
    def library(self) -> str:
        """Return what computes with it: the name of the package, and of the `quant_method` in a config.json."""
        return "bitsandbytes" if self in (Quantization.NF4, Quantization.FP4, Quantization.INT8) else "torchao"

    @property
    def bits(self) -> int:
        """Return the bits of a weight, beside its scales."""
        return 4 if self in (Quantization.NF4, Quantization.FP4) else 8
