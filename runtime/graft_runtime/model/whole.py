"""The layout of a model that is loaded from the checkpoint of a larger one: the text model in one that takes images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.models.auto import modeling_auto

from graft_runtime.adapters.layout import BaseLayout
from graft_runtime.model.module_tree import layout_of, without_common_end


def layout_in(directory: Path, model: Any, name: str) -> BaseLayout:
    """Return the layout of a model, beside it that of the larger one that its checkpoint is of, if there is one.

    Args:
        directory: the checkpoint; its config.json can be read.
        model: what was made of it, loaded or not.
        name: how errors call it.
    """
    layout = layout_of(model, name)
    config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    known = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(config.model_type)
    if known is None or known == type(model).__name__ or known not in (config.architectures or ()):
        return layout
    with torch.device("meta"):
        whole = AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
    whole.tie_weights()
    inside = dict(
        without_common_end(outer, inner)
        for outer, inner in zip(_ends(whole), _ends(model), strict=True)
        if outer is not None and inner is not None
    )
    return replace(layout, whole=layout_of(whole, name), inside=inside)


def _ends(model: Any) -> tuple[str | None, str | None]:
    """Return the paths of the input embedding and of the head, between which a text model lies."""
    paths = {id(module): path for path, module in model.named_modules()}
    return paths.get(id(model.get_input_embeddings())), paths.get(id(model.get_output_embeddings()))
