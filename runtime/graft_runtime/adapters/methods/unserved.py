"""PEFT's methods that Graft does not serve, and what to do with an adapter of each."""

from __future__ import annotations

from collections.abc import Mapping

_CONVERT = (
    "convert it with peft's convert_to_lora() or save_as_lora(), or merge it with merge_and_unload() and serve the "
    "result as a base model"
)
_CONVERT_LINEAR = "if no module is a Conv1D, " + _CONVERT
_MERGE = "merge it with peft's merge_and_unload() and serve the result as a base model, or train LoRA"
_PROMPT = "its virtual tokens stand before the prompt and can't be merged; train LoRA"

UNSERVED: Mapping[str, str] = {
    "ADAMSS": _MERGE,
    "ADAPTION_PROMPT": "it adds attention of its own to each layer and can't be merged; train LoRA",
    "BOFT": _MERGE,
    "C3A": _CONVERT,
    "CARTRIDGE": "it is a cache of keys and values and can't be merged; train LoRA",
    "CPT": _PROMPT,
    "DEFT": _MERGE,
    "FOURIERFT": _CONVERT_LINEAR,
    "FROD": _MERGE,
    "GLORA": _MERGE,
    "HIRA": _MERGE,
    "LILY": "its router averages over all requests of a batch, so that one answer depends on others; train LoRA",
    "MULTITASK_PROMPT_TUNING": _PROMPT,
    "OFT": _MERGE,
    "OSF": _MERGE,
    "PEANUT": _MERGE,
    "POLY": "it wants a task id with each request and can't be merged; train one LoRA a task",
    "PSOFT": _CONVERT,
    "PVERA": _MERGE,
    "RANDLORA": _CONVERT,
    "ROAD": _MERGE,
    "SHADOW": "it is a model of its own beside the base and can't be merged; train LoRA",
    "SHIRA": _MERGE,
    "SUPERTUNING": _MERGE,
    "TINYLORA": _CONVERT,
    "WAVEFT": _CONVERT_LINEAR,
    "XLORA": "it mixes other adapters that it names by path and can't be merged; serve those, or train LoRA",
}
"""By `peft_type`."""
