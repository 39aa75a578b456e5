"""What a base model is loaded for: its task, by what config.json says, and the class of Transformers that serves it."""

from __future__ import annotations

from typing import Any

from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTextEncoding,
    AutoModelForTokenClassification,
)
from transformers.models.auto import modeling_auto

from graft_runtime.contract.tasks import Task

_AUTO_CLASSES: dict[Task, Any] = {
    Task.CAUSAL_LM: AutoModelForCausalLM,
    Task.SEQ_2_SEQ_LM: AutoModelForSeq2SeqLM,
    Task.SEQ_CLS: AutoModelForSequenceClassification,
    Task.TOKEN_CLS: AutoModelForTokenClassification,
    Task.QUESTION_ANS: AutoModelForQuestionAnswering,
    Task.FEATURE_EXTRACTION: AutoModel,
}
"""As PEFT pairs them (its `task_type` and `AutoPeftModelFor…`)."""
_ARCHITECTURES = {
    Task.CAUSAL_LM: (
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,  # without images they are the language model in them
    ),
    Task.SEQ_2_SEQ_LM: (modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,),
    Task.SEQ_CLS: (modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,),
    Task.TOKEN_CLS: (modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,),
    Task.QUESTION_ANS: (modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,),
    Task.FEATURE_EXTRACTION: (
        modeling_auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES,
        modeling_auto.MODEL_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,  # to fill gaps is no task of PEFT: what is below its head is
        modeling_auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES,
    ),
}
_TRAINED_HEADS = {Task.SEQ_CLS, Task.TOKEN_CLS, Task.QUESTION_ANS}
"""PEFT trains these heads with the adapter and saves them in it."""


def task_of(config: Any) -> Task:
    """Return the task that a checkpoint was saved for, by its `architectures`.

    Where the `architectures` say nothing, the task is that of a causal language model.

    Args:
        config: a PretrainedConfig.
    """
    named = set(getattr(config, "architectures", None) or ())
    for task, mappings in _ARCHITECTURES.items():
        if any(named & _names(mapping, config.model_type) for mapping in mappings):
            bare = task is Task.FEATURE_EXTRACTION and named & _names(mappings[1], config.model_type)
            # A bare encoder-decoder, as facebook/bart-base is, is the whole of a model that generates, but for ties.
            return Task.SEQ_2_SEQ_LM if bare and config.is_encoder_decoder else task
    generates_from_encoder = config.is_encoder_decoder and _exists(Task.SEQ_2_SEQ_LM, config)
    return Task.SEQ_2_SEQ_LM if generates_from_encoder else Task.CAUSAL_LM


def auto_class(task: Task, config: Any) -> Any | None:
    """Return the Auto class that makes this model for the task; None where Transformers has none."""
    if not _exists(task, config):
        return None
    if task is Task.FEATURE_EXTRACTION and config.is_encoder_decoder and config.model_type in _text_encoders():
        return AutoModelForTextEncoding  # the encoder alone
    if task is Task.CAUSAL_LM and not _names(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, config.model_type):
        return None if config.is_encoder_decoder else AutoModelForImageTextToText
    return _AUTO_CLASSES[task]


def may_be_missing(key: str, task: Task, model: Any) -> bool:
    """Tell whether a checkpoint may lack this weight: a head that adapters bring along, or what no output depends on.

    Args:
        key: as Transformers reports it.
        task: what the model was loaded for.
        model: the PreTrainedModel.
    """
    if task is Task.FEATURE_EXTRACTION:
        return key.startswith("pooler.")  # hidden states are what we give
    return task in _TRAINED_HEADS and not key.startswith(f"{model.base_model_prefix}.")


def end_token(config: Any) -> int | None:
    """Return what rows must end with; None: nothing.

    Encoder-decoders that classify look at the state of the last end token.

    Args:
        config: a PretrainedConfig.
    """
    return config.eos_token_id if config.is_encoder_decoder and isinstance(config.eos_token_id, int) else None


def _exists(task: Task, config: Any) -> bool:
    return any(_names(mapping, config.model_type) for mapping in _ARCHITECTURES[task][:2])


def _text_encoders() -> Any:
    return modeling_auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES


def _names(mapping: Any, model_type: str) -> set[str]:
    found = mapping.get(model_type, ())
    return {found} if isinstance(found, str) else set(found)
