"""Static steps in CUDA graphs: one each shape, captured when it comes for the second time and then replayed."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch

from graft_runtime.runners.decoder.step import Step

logger = logging.getLogger(__name__)

CAPTURED_AT = 2
"""Steps of a shape: the first sets up what libraries need, the second is captured."""


class CapturedSteps:
    """Graphs share one pool of memory and write their logits to one place.

    Args:
        forward: takes a step through the model.
        rows: of the largest step.
        device: a GPU.
        room: bytes that graphs may take in all; those that were replayed least lately go first.
    """

    def __init__(self, forward: Callable[[Step], torch.Tensor], rows: int, device: torch.device, room: int) -> None:
        self._forward, self._rows, self._device, self._room = forward, rows, device, room
        self._graphs: OrderedDict[Hashable, tuple[torch.cuda.CUDAGraph, int]] = OrderedDict()
        """By shape, with the bytes that each took."""
        self._seen: set[Hashable] = set()
        self._logits: torch.Tensor | None = None
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        self._works = True

    @property
    def count(self) -> int:
        """Return how many graphs there are."""
        return len(self._graphs)

    @property
    def bytes(self) -> int:
        """Return the bytes that all graphs take."""
        return sum(taken for _, taken in self._graphs.values())

    def run(self, step: Step) -> torch.Tensor:
        """Return the logits of all rows, [rows, vocabulary]. The next step overwrites them."""
        if step.shape not in self._graphs and step.shape in self._seen and self._works:
            self._capture(step)
        if step.shape not in self._graphs:
            self._seen.add(step.shape)
            return self._eagerly(step)
        self._graphs.move_to_end(step.shape)
        self._graphs[step.shape][0].replay()
        assert self._logits is not None
        return self._logits[: step.last.shape[0]]

    def _eagerly(self, step: Step) -> torch.Tensor:
        """Run a step on the stream that captures: what libraries set up there must not come up in a capture."""
        now = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(now)
        with torch.cuda.stream(self._stream):
            logits = self._forward(step)
        now.wait_stream(self._stream)
        logits.record_stream(now)
        if self._logits is None:
            with torch.inference_mode(mode=False):
                self._logits = logits.new_empty(self._rows, logits.shape[1])
        return logits

    def _capture(self, step: Step) -> None:
        assert self._logits is not None
        graph = torch.cuda.CUDAGraph()
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(self._device)[0]
        try:
            # Other threads may use the device meanwhile: the loader does.
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                logits = self._forward(step)
                self._logits[: logits.shape[0]].copy_(logits)
        except Exception as error:  # whatever a model does that can't be captured
            torch.cuda.synchronize(self._device)  # raises when the device is broken
            self._works = False
            logger.warning("steps run without CUDA graphs from now on: %s: %s", type(error).__name__, error)
            return
        self._graphs[step.shape] = graph, max(0, free - torch.cuda.mem_get_info(self._device)[0])
        while self.bytes > self._room:
            shape, (oldest, _) = self._graphs.popitem(last=False)
            oldest.reset()
            if shape == step.shape:
                self._works = False
                logger.warning("steps run without CUDA graphs from now on: one needs more than %d bytes", self._room)
