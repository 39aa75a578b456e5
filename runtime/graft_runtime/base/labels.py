"""How a base model that classifies names its labels, and makes probabilities of them, by its config.json."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft_runtime.adapters.strict_json import parse_object
from graft_runtime.base.files import read_config
from graft_runtime.errors import ErrorCode


@dataclass(frozen=True)
class Labels:
    """The labels of a base model."""

    names: Sequence[str]
    """In order; empty where its config.json has none."""
    problem: str | None
    """Transformers' `problem_type`; None: by the number of labels."""

    def name(self, index: int, count: int) -> str:
        """Return the name of one of so many labels: an adapter's head of its own size has its own, which none tells."""
        return self.names[index] if len(self.names) == count else f"LABEL_{index}"

    def scores(self, logits: Sequence[float]) -> list[float]:
        """Return what Transformers' pipeline makes of logits: a share of each, a probability of each, or themselves."""
        if self.problem == "regression":
            return [*logits]
        if self.problem == "multi_label_classification" or len(logits) == 1:
            return [1 / (1 + math.exp(-logit)) if logit >= 0 else 1 - 1 / (1 + math.exp(logit)) for logit in logits]
        most = max(logits)
        shares = [math.exp(logit - most) for logit in logits]
        return [share / sum(shares) for share in shares]


def read_labels(directory: Path, name: str) -> Labels:
    """Read the labels of a base model. Raises GraftError: NotAModel.

    Args:
        directory: of its checkpoint.
        name: how errors call it.
    """
    config = parse_object(read_config(directory, name), f"config.json of base model `{name}`", ErrorCode.NOT_A_MODEL)
    problem = config.get("problem_type")
    return Labels(_names(config.get("id2label")), problem if isinstance(problem, str) else None)


def _names(told: Any) -> list[str]:
    """Return the names in `id2label`, in order; none where it doesn't name each index once."""
    if not isinstance(told, dict) or set(told) != {str(index) for index in range(len(told))}:
        return []
    return [str(told[str(index)]) for index in range(len(told))]
