"""What rows of one pass may share on a model: tried on it, with rows of unequal length beside each other and alone."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from graft_runtime.model.load import BaseModel
from graft_runtime.model.tasks import end_token
from graft_runtime.runners.trial import agree, cannot_serve, trial_row, trying

logger = logging.getLogger(__name__)

SIDES = ("right", "left")
LENGTHS = (7, 4, 5)
"""Tokens of the rows that are tried."""

Calls = Mapping[str, list[torch.Tensor]]
"""What each module was handed, call by call, by its path."""
Compute = Callable[[Sequence[Sequence[int]], str | None], list[torch.Tensor]]
"""The outputs of rows of token ids in one pass, padded on a side; None: they are of one length."""


@dataclass(frozen=True)
class Sharing:
    """What rows of one pass may share.

    Attributes:
        side: where shorter rows are padded; None: rows of a pass must be of one length.
        batch_wide: paths of the modules whose input is not one slice a row, as relative positions that all rows share.
            Rows with an adapter on one of these can't share a pass with other adapters.
        end: the token that every row must end with, if any.
    """

    side: str | None
    batch_wide: frozenset[str] = frozenset()
    end: int | None = None

    def ended(self, ids: Sequence[int]) -> list[int]:
        """Return these ids with the end that the model looks for, if any."""
        return [*ids] if self.end is None else [*ids, self.end]


def try_sharing(base: BaseModel, compute: Compute) -> Sharing:
    """Take rows through the model alone and together.

    Raises:
        GraftError: NotAModel when the model fails on them, or one row of a pass changes another.
    """
    end = end_token(base.model.config)
    for side in (*SIDES, None):
        lengths = LENGTHS if side else (LENGTHS[0],) * len(LENGTHS)
        rows = [trial_row(base, length, index, end) for index, length in enumerate(lengths)]
        found = _tried(base, compute, rows, side)
        if found is not None:
            logger.info("base model `%s`: %s", base.name, f"rows are padded on the {side}" if side else "no padding")
            return Sharing(side, found, end)
    what = "what it says of one row depends on the others beside it"
    raise cannot_serve(base, what, "use a model of a family whose rows are independent")


def _tried(base: BaseModel, compute: Compute, rows: Sequence[list[int]], side: str | None) -> frozenset[str] | None:
    """Return the modules that are not led by rows; None where the rows don't get what they get alone."""
    expected, alone = [], []
    for row in rows:
        with _recorded(base) as calls, trying(base):
            expected += compute([row], side)
        alone.append(calls)
    with _recorded(base) as together:
        try:
            made = compute(rows, side)
        except torch.AcceleratorError:
            raise
        except Exception as error:  # whatever a model raises on padding
            logger.warning("base model `%s` fails on rows that are padded on the %s: %s", base.name, side, error)
            return None
    if not all(agree(mine, theirs, base.dtype) for mine, theirs in zip(made, expected, strict=True)):
        return None
    longest = max(map(len, rows))
    return frozenset(
        path
        for path, calls in together.items()
        if not all(
            len(calls) == len(one.get(path, ())) and all(
                _is_of_row(mine, theirs, index, (len(rows), longest), left=side == "left", dtype=base.dtype)
                for mine, theirs in zip(calls, one[path], strict=True)
            )
            for index, one in enumerate(alone)
        )
    )  # fmt: skip


def _is_of_row(
    together: torch.Tensor, alone: torch.Tensor, row: int, size: tuple[int, int], *, left: bool, dtype: torch.dtype
) -> bool:
    """Tell whether a module's input of a pass holds, in the place of this row, the module's input of the row alone.

    Args:
        together: of all rows.
        alone: of the row.
        row: its number.
        size: rows of the pass, and tokens of the longest.
        left: whether padding comes first.
        dtype: of the model.
    """
    rows, longest = size
    if together.dim() > 3:  # heads: in any order behind the rows
        return together.shape[0] == rows
    features = together.shape[-1] if together.is_floating_point() and together.shape[-1] == alone.shape[-1] else 1
    flat, own = together.reshape(-1, features), alone.reshape(-1, features)
    if flat.shape[0] != rows * longest and together.shape[0] != rows:
        return False
    each = flat.shape[0] // rows
    mine = flat[row * each : (row + 1) * each]
    mine = mine[each - own.shape[0] :] if left else mine[: own.shape[0]]
    return agree(mine, own, dtype)


@contextmanager
def _recorded(base: BaseModel) -> Iterator[Calls]:
    """Record what the modules with weights of their own are handed inside `with`."""
    calls: dict[str, list[torch.Tensor]] = defaultdict(list)

    def record(path: str, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], torch.Tensor):
            calls[path].append(inputs[0])

    weighted = [
        path for path, module in base.model.named_modules() if any(True for _ in module.parameters(recurse=False))
    ]
    with base.modules.watched(weighted, record):
        yield calls
