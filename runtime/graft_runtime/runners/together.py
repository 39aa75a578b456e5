"""Which rows may go through a model that generates together: tried on it, beside each other and alone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import torch

from graft_runtime.model.load import BaseModel
from graft_runtime.model.rows import RowAdapter
from graft_runtime.runners.trial import agree, cannot_serve, trial_row, trying

logger = logging.getLogger(__name__)

LENGTHS = (11, 4, 11)
"""Tokens of the rows that are tried: the first and the second are of unequal length, the first and the third of one."""
ANSWER = (3, 5, 2)
"""What each of them is answered: any tokens will do."""


class Together(Enum):
    """Which rows may begin in one batch."""

    ANY_LENGTH = "rows of any length"
    ONE_LENGTH = "rows of one length"
    ONE_ROW = "one row"

    def allows(self, sizes: Sequence[Hashable]) -> bool:
        """Tell whether rows of these sizes may begin in one batch."""
        match self:
            case Together.ANY_LENGTH:
                return True
            case Together.ONE_LENGTH:
                return len(set(sizes)) == 1
            case Together.ONE_ROW:
                return len(sizes) == 1


@dataclass(frozen=True)
class Sharing:
    """What was found.

    Attributes:
        rows: that may begin in one batch.
        joins: whether a batch can take in the rows of another.
    """

    rows: Together
    joins: bool


class MakesBatches(Protocol):
    """A runner that takes batches through the model."""

    def start(
        self,
        prompts: Sequence[Sequence[int]],
        answers: Sequence[Sequence[int]],
        adapters: Sequence[tuple[RowAdapter, ...]],
    ) -> Any:
        """Return a new batch of these rows; `answers` is what the rows have been answered already."""
        ...

    def shares(self, rows: Sequence[tuple[int, tuple[RowAdapter, ...]]]) -> bool:
        """Tell whether rows may begin in one batch.

        Args:
            rows: the length of each in tokens, virtual ones included, and its adapters.
        """
        ...

    def logits(self, batch: Any) -> torch.Tensor:
        """Return the logits after each row's last token, [rows, vocabulary]."""
        ...


def logits_of(
    runner: MakesBatches, prompts: Sequence[Sequence[int]], adapters: Sequence[tuple[RowAdapter, ...]]
) -> torch.Tensor:
    """Return the logits after each prompt: of one batch if the rows may share it, else of one batch each."""
    rows = list(zip(prompts, adapters, strict=True))
    batches = [rows] if runner.shares([(len(prompt), own) for prompt, own in rows]) else [[row] for row in rows]
    started = [
        runner.start([prompt for prompt, _ in rows], [[] for _ in rows], [own for _, own in rows]) for rows in batches
    ]
    return torch.cat([runner.logits(batch) for batch in started])


def try_together(base: BaseModel, runner: MakesBatches, *, pads: bool, can_join: Callable[[Any], bool]) -> Sharing:
    """Take rows through the model alone and together.

    Args:
        base: the model.
        runner: takes them through it.
        pads: whether rows of unequal length are to be tried.
        can_join: tells of a batch that has been through the model whether others could join it.

    Raises:
        GraftError: NotAModel when the model fails on a row, computes no numbers, or one batch changes another.
    """
    found = _Trial(base, runner).run(pads=pads, can_join=can_join)
    if found.rows is not Together.ANY_LENGTH:
        logger.warning("base model `%s`: a batch begins with %s", base.name, found.rows.value)
    return found


class _Trial:
    def __init__(self, base: BaseModel, runner: MakesBatches) -> None:
        self._base, self._runner = base, runner
        room = max(1, base.context_length - len(ANSWER))
        self._rows = [trial_row(base, min(length, room), index) for index, length in enumerate(LENGTHS)]

    def run(self, *, pads: bool, can_join: Callable[[Any], bool]) -> Sharing:
        with trying(self._base):
            self._alone = self._decode_alone()
        if pads and self._holds(lambda: self._beside([0, 1])):
            joins = self._holds(lambda: self._joined(can_join))
            return Sharing(Together.ANY_LENGTH, joins)
        rows = Together.ONE_LENGTH if self._holds(lambda: self._beside([0, 2])) else Together.ONE_ROW
        return Sharing(rows, joins=False)

    def _decode_alone(self) -> list[torch.Tensor]:
        """Return the logits of each row, [tokens, vocabulary], in batches that take turns. Raises GraftError."""
        (first,) = self._decode([self._start([0])], ANSWER)
        if not bool(first.amax(dim=-1).isfinite().all()):
            raise cannot_serve(self._base, "it computes values that are not finite", "use a wider spec.baseModel.dtype")
        made = self._decode([self._start([row]) for row in range(len(LENGTHS))], ANSWER)
        if not agree(made[0], first, self._base.dtype):
            what = "what it says of one request depends on others that it serves in between"
            raise cannot_serve(self._base, what, "use a model of a family whose rows are independent")
        return [logits[:, 0] for logits in made]

    def _beside(self, rows: Sequence[int]) -> bool:
        """Tell whether two rows of a batch get what they get alone, also once one of them has left."""
        batch = self._start(rows)
        (made,) = self._decode([batch], ANSWER[:2])
        expected = torch.stack([self._alone[row][:2] for row in rows], dim=1)
        batch.keep([1])
        self._extend(batch, ANSWER[1])
        left = self._runner.logits(batch)
        return self._agree(made, expected) and self._agree(left, self._alone[rows[1]][2:3])

    def _joined(self, can_join: Callable[[Any], bool]) -> bool:
        """Tell whether a row that joins another that has come further, and that other, get what they get alone."""
        old, new = self._start([0]), self._start([1])
        self._decode([old], ANSWER[:2])
        self._decode([new], ANSWER[:1])
        if not can_join(old):
            return False
        self._extend(old, ANSWER[1])
        self._extend(new, ANSWER[0])
        old.join(new)
        return self._agree(self._runner.logits(old), torch.stack([self._alone[0][2], self._alone[1][1]]))

    def _holds(self, check: Callable[[], bool]) -> bool:
        try:
            return check()
        except (torch.AcceleratorError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever a model raises
            logger.warning("base model `%s` fails on rows beside each other: %s", self._base.name, error)
            return False

    def _agree(self, made: torch.Tensor, expected: torch.Tensor) -> bool:
        return agree(made, expected, self._base.dtype)

    def _start(self, rows: Sequence[int]) -> Any:
        return self._runner.start([self._rows[row] for row in rows], [[] for _ in rows], [() for _ in rows])

    def _decode(self, batches: Sequence[Any], answer: Sequence[int]) -> list[torch.Tensor]:
        """Return the logits of each batch before each token of an answer, [tokens, rows, vocabulary]."""
        made: list[list[torch.Tensor]] = [[] for _ in batches]
        for place in range(len(answer)):
            for batch, logits in zip(batches, made, strict=True):
                if place:
                    self._extend(batch, answer[place - 1])
                logits.append(self._runner.logits(batch))
        return [torch.stack(logits) for logits in made]

    def _extend(self, batch: Any, token: int) -> None:
        batch.extend([token % self._base.vocabulary_size] * batch.ids.shape[0])
