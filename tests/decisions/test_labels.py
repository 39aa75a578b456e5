"""How labels are named, and what is made of their logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from graft_runtime.base.labels import read_labels

LOGITS = [2.0, -1.0, 700.0]


@pytest.mark.parametrize(
    ("problem", "logits", "expected"),
    [
        (None, LOGITS, torch.softmax(torch.tensor(LOGITS), -1)),
        ("single_label_classification", LOGITS, torch.softmax(torch.tensor(LOGITS), -1)),
        ("multi_label_classification", LOGITS, torch.sigmoid(torch.tensor(LOGITS))),
        ("regression", LOGITS, torch.tensor(LOGITS)),
        (None, [-800.0], torch.sigmoid(torch.tensor([-800.0]))),
        (None, [3.0], torch.sigmoid(torch.tensor([3.0]))),
    ],
)
def test_scores_are_those_of_transformers_pipeline(
    tmp_path: Path, problem: str | None, logits: list[float], expected: torch.Tensor
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"problem_type": problem}))
    assert read_labels(tmp_path, "base").scores(logits) == pytest.approx(expected.tolist(), abs=1e-6)


@pytest.mark.parametrize(
    ("told", "count", "name"),
    [
        ({"0": "good", "1": "bad"}, 2, "bad"),
        ({"0": "good", "1": "bad"}, 3, "LABEL_1"),
        ({"1": "bad"}, 2, "LABEL_1"),
        ({"0": "good", "1": 7}, 2, "7"),
        (None, 2, "LABEL_1"),
        (["good", "bad"], 2, "LABEL_1"),
    ],
)
def test_labels_have_the_base_s_names_where_it_has_one_for_each(
    tmp_path: Path, told: Any, count: int, name: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"id2label": told}))
    assert read_labels(tmp_path, "base").name(1, count) == name
