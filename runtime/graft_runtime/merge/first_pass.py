"""One pass through a model of any task, before or after a merge."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Any

import torch

from graft_runtime.adapters.unused import check_called
from graft_runtime.merge.sums import Sum
from graft_runtime.model.modules import BaseModules
from graft_runtime.model.observation import Observation, observed
from graft_runtime.model.tasks import end_token
from graft_runtime.runners.trial import prompt_within


def effective(model: Any, merged: Sum) -> tuple[Sum, torch.Tensor, Observation]:
    """Leave out of a merge what does nothing beside the model: modules whose weight it reads without calling them.

    Args:
        model: the base, before it is changed; or hollow.
        merged: what is to be merged.

    Returns:
        What has an effect, and what `first_pass` gives.

    Raises:
        GraftError: NoEffect.
    """
    output, seen = first_pass(model, merged.paths)
    left = merged.without(seen.passed_over)
    for before, after in zip(merged.addends, left.addends, strict=True):
        check_called(before.files.name, before.parts.keys(), after.parts.keys(), "what the model computes")
    return left, output, seen


def first_pass(model: Any, paths: Collection[str]) -> tuple[torch.Tensor, Observation]:
    """Take a prompt through a model.

    Args:
        model: a PreTrainedModel with the head of its task.
        paths: of the modules to look at.

    Returns:
        What the model gives: logits, logits of starts, or hidden states; and what it did with these modules.
    """
    prompt, end = prompt_within(model.get_input_embeddings().weight.shape[0]), end_token(model.config)
    ids = torch.tensor([prompt if end is None else [*prompt, end]], device=model.device)
    taken = inspect.signature(model.forward).parameters
    answer = {"decoder_input_ids": ids} if "decoder_input_ids" in taken else {}
    offered = {"use_cache": False} if "use_cache" in taken else {}
    modules = BaseModules(model)
    with torch.inference_mode(), observed({path: modules.hooked(path) for path in paths}) as seen:
        made = model(input_ids=ids, return_dict=True, **answer, **offered)
    output: torch.Tensor = made[0]
    return output, seen
