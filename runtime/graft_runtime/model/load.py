"""Loads a base model: any text model of Transformers for a task of PEFT's, from safetensors, without foreign code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging as transformers_logging

from graft_runtime.adapters.layout import BaseLayout
from graft_runtime.base.files import check_weights, not_a_model
from graft_runtime.base.pooling import Pooling, read_pooling
from graft_runtime.base.quantised_files import config_of, saved_quantization
from graft_runtime.contract.quantizations import Quantization
from graft_runtime.contract.tasks import Task
from graft_runtime.errors import ErrorCode, GraftError, shown
from graft_runtime.model.modules import BaseModules
from graft_runtime.model.quantising import chosen, load_options, own, quantised_bytes
from graft_runtime.model.tasks import auto_class, may_be_missing, task_of
from graft_runtime.model.whole import layout_in

ROPE_OF_THE_LONGEST_ROW = {"dynamic", "longrope"}
DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class BaseModel:
    """A base model that is ready to compute, in eval mode and without gradients."""

    name: str
    task: Task
    model: Any
    """A PreTrainedModel with the head of its task."""
    layout: BaseLayout
    context_length: int
    """Tokens."""
    vocabulary_size: int
    """Rows of the input embedding: every id below is safe to submit."""
    quantization: Quantization | None = None
    """Of the weights of linear modules; None: they are full."""
    pooling: Pooling | None = None
    """Of one that embeds."""

    @property
    def modules(self) -> BaseModules:
        return BaseModules(self.model)

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype  # type: ignore[no-any-return]

    @property
    def device(self) -> torch.device:
        return self.model.device  # type: ignore[no-any-return]


def device_of_base() -> torch.device:
    """Return where base models are loaded: the accelerator, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_base(
    directory: Path,
    *,
    name: str,
    dtype: str,
    max_sequence_length: int,
    task: Task | None = None,
    quantization: Quantization | None = None,
) -> BaseModel:
    """Load the model onto the accelerator, or the CPU where there is none.

    Args:
        directory: config.json and safetensors.
        name: how errors call the model.
        dtype: auto, float32, bfloat16 or float16.
        max_sequence_length: tokens; a cap on the model's own context.
        task: what to load it for; None: what its config.json says.
        quantization: of its linear modules' weights; None: as the checkpoint has them.

    Raises:
        GraftError: NotAModel with the reason, UnsafeFile for pickles and for models that need their own code.
    """
    quantization = chosen(quantization, check_directory(directory, name), name)
    _be_quiet()
    device = device_of_base()
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        task = task or task_of(config)
        how = load_options(quantization, config, DTYPES.get(dtype), device) if quantization else {}
        model, report = _class_for(task, config, name).from_pretrained(
            directory,
            config=config,
            dtype=DTYPES.get(dtype, "auto"),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **how,
        )
    except GraftError:
        raise
    except Exception as error:  # Transformers and safetensors raise every kind there is
        raise not_a_model(name, f"Transformers can't load it: {type(error).__name__}: {error}") from error
    _complete(model, report, task, name)
    model = model.eval().requires_grad_(False)
    if quantization:
        own(model, quantization, name)
        layout = layout_in(directory, empty_model(directory, name=name, task=task), name)
    else:
        model = model.to(device)
        layout = layout_in(directory, model, name)
    return BaseModel(
        name=name,
        task=task,
        model=model,
        layout=layout,
        context_length=_context_length(config, max_sequence_length),
        vocabulary_size=layout.vocabulary,
        quantization=quantization,
        pooling=read_pooling(directory, name) if task is Task.FEATURE_EXTRACTION else None,
    )


def weight_bytes(
    directory: Path, *, name: str, dtype: str, task: Task | None = None, quantization: Quantization | None = None
) -> int:
    """Return the bytes that the weights of a base model take once `load_base` has loaded it.

    Args:
        directory: config.json and safetensors.
        name: how errors call the model.
        dtype: auto, float32, bfloat16 or float16.
        task: what to load it for; None: what its config.json says.
        quantization: as `load_base` takes it.

    Raises:
        GraftError: as `load_base` does.
    """
    loaded = DTYPES.get(dtype)
    model = empty_model(directory, name=name, task=task)
    config = config_of(directory, name)
    if quantization := chosen(quantization, saved_quantization(config, name), name):
        return quantised_bytes(model, quantization, loaded)
    parameters = model.parameters()
    needed: int = sum(each.numel() * (loaded.itemsize if loaded else each.element_size()) for each in parameters)
    if loaded or config.get("dtype") or config.get("torch_dtype"):
        return needed
    stored = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    return min(needed, stored)  # Transformers takes the dtype of the files then


def empty_model(directory: Path, *, name: str, task: Task | None = None) -> Any:
    """Make the model without its weights (on the device `meta`): its modules, shapes and ties.

    Args:
        directory: config.json and safetensors.
        name: how errors call the model.
        task: what to make it for; None: what its config.json says.

    Raises:
        GraftError: as `load_base` does.
    """
    check_directory(directory, name)
    _be_quiet()
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        made_by = _class_for(task or task_of(config), config, name)
        with torch.device("meta"):
            model = made_by.from_config(config, trust_remote_code=False)
        model.tie_weights()
    except GraftError:
        raise
    except Exception as error:
        raise not_a_model(name, f"Transformers can't make it: {type(error).__name__}: {error}") from error
    return model


def check_directory(directory: Path, name: str) -> Quantization | None:
    """Check that a directory holds what could be loaded, before Transformers looks at it.

    Returns:
        How its weights are quantised; None: they are full.

    Raises:
        GraftError: NotAModel, UnsafeFile.
    """
    config = config_of(directory, name)
    model_type = config.get("model_type")
    if model_type not in CONFIG_MAPPING:
        _refuse_unknown_type(config, model_type, name)
    saved = saved_quantization(config, name)
    check_weights(directory, name)
    return saved


def _refuse_unknown_type(config: dict[str, Any], model_type: Any, name: str) -> None:
    if config.get("auto_map"):
        raise GraftError(
            ErrorCode.UNSAFE_FILE,
            f"base model `{name}` needs code of its own, which Graft never runs: config.json has auto_map, and "
            f"model_type {model_type!r} is none of Transformers'",
            hint="use a model that Transformers supports itself",
            field="spec.baseModel.uri",
        )
    raise not_a_model(name, f"config.json has model_type {model_type!r}, which Transformers does not know")


def _class_for(task: Task, config: Any, name: str) -> Any:
    found = auto_class(task, config)
    if found is None:
        raise not_a_model(
            name,
            f"model_type {config.model_type!r} has no model for {task} in Transformers",
            "give a model that generates text, classifies or embeds, and set spec.baseModel.task to what it has a "
            "class for",
        )
    return found


def _complete(model: Any, report: dict[str, Any], task: Task, name: str) -> None:
    """Zero the weights that a checkpoint may lack, and check that every other weight is there in its shape.

    Transformers fills what a checkpoint lacks with random numbers and only warns. A head that only adapters bring is
    zero in the base: the same on every pod.

    Raises:
        GraftError: NotAModel.
    """
    missing = set(report.get("missing_keys", ()))
    fresh = {key for key in missing if may_be_missing(key, task, model)}
    faults = [f"{key}: missing" for key in sorted(missing - fresh)]
    faults += [f"{entry[0]}: {entry[1:]}" for entry in report.get("mismatched_keys", ())]
    faults += [str(fault) for fault in report.get("error_msgs", ())]
    if faults:
        raise GraftError(
            ErrorCode.NOT_A_MODEL,
            f"base model `{name}` is incomplete: {len(faults)} weights are missing or have another shape",
            details=shown(faults),
            hint="copy it again, or correct config.json; is this the checkpoint of a whole model?",
            field="spec.baseModel.uri",
        )
    with torch.no_grad():
        for key in fresh:
            model.get_parameter(key).zero_()


def _context_length(config: Any, max_sequence_length: int) -> int:
    text = config.get_text_config(decoder=True)
    own = getattr(text, "max_position_embeddings", None)
    limits = [max_sequence_length, own, *_rope_limits(text, own)]
    return min(limit for limit in limits if isinstance(limit, int) and limit > 0)


def _rope_limits(config: Any, own: int | None) -> list[int | None]:
    """Return the lengths past which the longest row of a batch turns positions: one request would change the others."""
    parameters = getattr(config, "rope_parameters", None) or {}
    kinds = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    declared = getattr(config, "original_max_position_embeddings", None)
    return [
        kind.get("original_max_position_embeddings") or declared or own
        for kind in kinds
        if kind.get("rope_type") in ROPE_OF_THE_LONGEST_ROW
    ]


def _be_quiet() -> None:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
