"""Whether the engine answers on the device as Transformers does on a CPU in float32: five families, mixed adapters."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from driven_engine import GREEDY, DrivenEngine
from gpu_models import FAMILIES, projections, save_adapters, save_tiny_base
from graft_runtime.contract.config import EngineConfig
from graft_runtime.engine.loader import Loader
from graft_runtime.messages import ServedAdapter, Start
from safetensors.torch import load_file

RANKS = (4, 8, 16)
LIMITS = EngineConfig(max_sequences=16, max_sequence_length=256, max_mounted_adapters=8, max_rank=max(RANKS))
NEW_TOKENS = 24
NEAR_TIE = 1e-4
"""Greedy tokens may differ where the best two logits of the reference are closer than this."""
ERROR_ALLOWED = {"float32": 1e-4, "bfloat16": 0.1}
"""‖logits − reference‖ / ‖reference‖ after the prompts; twice what Transformers' own bfloat16 has, if that is more."""
GAP_ALLOWED = {"float32": 1e-4, "bfloat16": 0.15}
"""How far the reference's logit of a chosen token may lie below its best, over its largest. An expert that is chosen
otherwise in bfloat16 shows here."""


@dataclass(frozen=True)
class Row:
    """One request: adapters by their number, with their weights."""

    prompt: list[int]
    adapters: tuple[tuple[int, float], ...]


def make_rows() -> list[Row]:
    """Return prompts of unequal length: for the base, each adapter, one at half its weight, and a sum of two."""
    chosen = random.Random(0)
    whose: list[tuple[tuple[int, float], ...]] = [(), ((0, 1.0),), ((1, 1.0),), ((2, 1.0),), (), ((1, 0.5),)]
    whose.append(((0, 1.0), (2, 0.5)))
    lengths = [5, 40, 11, 23, 17, 9, 30]
    return [
        Row([chosen.randrange(3, 320) for _ in range(length)], adapters)
        for length, adapters in zip(lengths, whose, strict=True)
    ]


class Reference:
    """The stock model on the CPU; adapters are added to its weights for one row at a time."""

    def __init__(self, base: Path, adapters: Sequence[Path], dtype: torch.dtype) -> None:
        self._model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=dtype).eval()
        self._adapters = [load_file(directory / "adapter_model.safetensors") for directory in adapters]

    @torch.inference_mode()
    def logits(self, row: Row, answer: Sequence[int]) -> torch.Tensor:
        """Return the logits after the prompt and after each token of the answer but the last, [tokens, vocabulary]."""
        ids = torch.tensor([[*row.prompt, *answer[:-1]]])
        with self._added(row):
            made: torch.Tensor = self._model(input_ids=ids, use_cache=False).logits[0, len(row.prompt) - 1 :]
        return made.float()

    @contextmanager
    def _added(self, row: Row) -> Iterator[None]:
        before = {path: linear.weight.data for path, linear in projections(self._model).items()}
        for path, linear in projections(self._model).items():
            for number, weight in row.adapters:
                a, b = (
                    self._adapters[number][f"base_model.model.{path}.lora_{part}.weight"].float() for part in ("A", "B")
                )
                linear.weight.data = (linear.weight.data.float() + 2 * weight * (b @ a)).to(linear.weight.dtype)
        try:
            yield
        finally:
            for path, linear in projections(self._model).items():
                linear.weight.data = before[path]


@contextmanager
def recorded_logits(model: Any) -> Iterator[list[torch.Tensor]]:
    """Collect what the model's head computes meanwhile, [answers, vocabulary] a step."""
    steps: list[torch.Tensor] = []
    head = model.get_output_embeddings()
    hook = head.register_forward_hook(lambda _, __, made: steps.append(made.reshape(-1, made.shape[-1]).float().cpu()))
    try:
        yield steps
    finally:
        hook.remove()


def error_of_logits(made: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest ‖row − reference‖ / ‖reference‖; infinite when two rows are nearest to the same reference.

    The order of the rows is the engine's.
    """
    errors = torch.cdist(made, expected) / expected.norm(dim=-1)
    nearest = errors.argmin(dim=1)
    if sorted(nearest.tolist()) != list(range(len(expected))):
        return float("inf")
    return float(errors.min(dim=1).values.max())


def judge_answer(logits: torch.Tensor, answer: Sequence[int]) -> tuple[bool, float]:
    """Return whether the answer is the reference's greedy one up to a near tie, and its largest gap.

    Args:
        logits: of the reference, before each token of this answer, [tokens, vocabulary].
        answer: the tokens.
    """
    best = logits.topk(2)
    below = best.values[:, 0] - logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
    gap = float((below / logits.abs().amax(dim=-1)).max())
    for token, best_token, margin in zip(answer, best.indices[:, 0].tolist(), best.values.diff(dim=1), strict=True):
        if token != best_token:
            return float(-margin) < NEAR_TIE, gap
    return True, gap


def run_rows(base: Path, dtype: str, adapters: Sequence[Path], rows: Sequence[Row]) -> tuple[Any, Any, list[list[int]]]:
    """Answer the rows at once. Return the engine's BaseLoaded, the logits after the prompts, and the answers."""
    engine = DrivenEngine(Loader(), Start(str(base), "tiny", dtype, LIMITS))
    for number, directory in enumerate(adapters):
        engine.mount(str(number), directory)
    for name, row in enumerate(rows):
        served = [ServedAdapter(str(number), weight) for number, weight in row.adapters]
        engine.submit(str(name), row.prompt, NEW_TOKENS, served, GREEDY)
    with recorded_logits(engine.model) as steps:
        first = engine.step()
    answers = engine.drain()
    names = [str(name) for name in range(len(rows))]
    return engine.loaded, steps[0], [first[name] + answers[name] for name in names]


def check_family(family: str, root: Path) -> Iterator[dict[str, Any]]:
    """Compare one family in float32 and in bfloat16; return the measures, and whether all are within bounds."""
    save_tiny_base(root / "base", family)
    model = transformers.AutoModelForCausalLM.from_pretrained(root / "base")
    adapters, rows = save_adapters(root, model, RANKS, size=0.5), make_rows()
    reference = Reference(root / "base", adapters, torch.float32)
    stock = Reference(root / "base", adapters, torch.bfloat16)
    first, stock_first = (torch.stack([model.logits(row, [0])[0] for row in rows]) for model in (reference, stock))
    stock_error = error_of_logits(stock_first, first)
    for dtype in ("float32", "bfloat16"):
        loaded, logits, answers = run_rows(root / "base", dtype, adapters, rows)
        judged = [
            judge_answer(reference.logits(row, answer), answer) for row, answer in zip(rows, answers, strict=True)
        ]
        error, gap, equal = (
            error_of_logits(logits, first),
            max(gap for _, gap in judged),
            sum(same for same, _ in judged),
        )
        allowed = ERROR_ALLOWED[dtype] if dtype == "float32" else max(ERROR_ALLOWED[dtype], 2 * stock_error)
        yield {
            "family": family,
            "dtype": dtype,
            "runner": loaded.runner,
            "logits_error": error,
            "logits_error_of_stock_bfloat16": stock_error,
            "largest_gap": gap,
            "equal_answers": equal,
            "answers": len(rows),
            "right": error <= allowed and gap <= GAP_ALLOWED[dtype] and (dtype != "float32" or equal == len(rows)),
        }


def check_families() -> Iterator[dict[str, Any]]:
    """Check every family."""
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as scratch:
            yield from check_family(family, Path(scratch))
