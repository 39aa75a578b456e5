"""How a base model that classifies names its labels, and makes probabilities of them, by its config.json."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft_runtime.adapters.strict_json import parse_object
from graft_runtime.base.files import read_config, read_object
from graft_runtime.errors import ErrorCode, GraftError

CROSS_ENCODER_FILE = "config_sentence_transformers.json"


@dataclass(frozen=True)
class Labels:
    """The labels of a base model."""

    names: Sequence[str]
    """In order; empty where its config.json has none."""
    problem: str | None
    """Transformers' `problem_type`; None: by the number of labels."""
    activation: str = "Sigmoid"
    """Of torch.nn: what sentence-transformers makes of the one logit of a pair."""

    def name(self, index: int, count: int) -> str:
        """Return the name of one of so many labels: an adapter's head of its own size has its own, which none tells."""
        return self.names[index] if len(self.names) == count else f"LABEL_{index}"

    def scores(self, logits: Sequence[float]) -> list[float]:
        """Return what Transformers' pipeline makes of logits: a share of each, a probability of each, or themselves."""
        if self.problem == "regression":
            return [*logits]
        if self.problem == "multi_label_classification" or len(logits) == 1:
            return [*map(_sigmoid, logits)]
        most = max(logits)
        shares = [math.exp(logit - most) for logit in logits]
        return [share / sum(shares) for share in shares]

    def relevance(self, logits: Sequence[float], model: str) -> float:
        """Return how well the texts of a pair go together. Raises GraftError: InvalidRequest.

        Args:
            logits: of the pair.
            model: the name that was asked, for errors.
        """
        if len(logits) != 1 or self.activation not in _ACTIVATIONS:
            why = f"has {len(logits)} labels, expected one"
            if len(logits) == 1:
                why = f"has the activation {self.activation}, expected {' or '.join(_ACTIVATIONS)}"
            raise GraftError(
                ErrorCode.INVALID_REQUEST,
                f"`{model}` {why}, to say how well two texts go together",
                hint="ask a model that was trained as a cross-encoder, or one that embeds",
                field="model",
            )
        return _ACTIVATIONS[self.activation](logits[0])


def read_labels(directory: Path, name: str) -> Labels:
    """Read the labels of a base model. Raises GraftError: NotAModel.

    Args:
        directory: of its checkpoint.
        name: how errors call it.
    """
    config = parse_object(read_config(directory, name), f"config.json of base model `{name}`", ErrorCode.NOT_A_MODEL)
    problem = config.get("problem_type")
    names = _names(config.get("id2label"))
    return Labels(names, problem if isinstance(problem, str) else None, _activation(directory, config, name))


def _activation(directory: Path, config: Mapping[str, Any], name: str) -> str:
    """Return the class of the activation, from where the versions of sentence-transformers write it."""
    path = directory / CROSS_ENCODER_FILE
    own = read_object(path, name) if path.exists() else {}
    nested = config.get("sentence_transformers")
    told = own.get("activation_fn") or (nested.get("activation_fn") if isinstance(nested, dict) else None)
    told = told or config.get("sbert_ce_default_activation_function") or "Sigmoid"
    return str(told).rpartition(".")[2]


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit)) if logit >= 0 else 1 - 1 / (1 + math.exp(logit))


_ACTIVATIONS: Mapping[str, Callable[[float], float]] = {"Sigmoid": _sigmoid, "Identity": float}


def _names(told: Any) -> list[str]:
    """Return the names in `id2label`, in order; none where it doesn't name each index once."""
    if not isinstance(told, dict) or set(told) != {str(index) for index in range(len(told))}:
        return []
    return [str(told[str(index)]) for index in range(len(told))]
