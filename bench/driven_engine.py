"""An engine that is driven by hand: its loader works in the same thread, and each call of `step` is one step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graft_runtime.engine.budgets import PLENTY, Budgets
from graft_runtime.engine.engine import Engine
from graft_runtime.engine.loader import BaseReady, Job, Loader, Outcome
from graft_runtime.messages import (
    BaseLoaded,
    Cancel,
    Event,
    Generate,
    Generated,
    Mount,
    Mounted,
    MountFailed,
    Sampling,
    ServedAdapter,
    Start,
    Unmount,
    Unmounted,
)
from graft_runtime.model.load import BaseModel

GREEDY = Sampling(temperature=0)


class BaseAtHand(Loader):
    """A loader whose base model needs no files."""

    def __init__(self, base: BaseModel) -> None:
        super().__init__()
        self._at_hand = base

    def do(self, job: Job) -> Outcome:
        """Do the job; a Start is answered with the base at hand."""
        if not isinstance(job, Start):
            return super().do(job)
        self._base, self._max_rank = self._at_hand, job.limits.max_rank
        return BaseReady(self._at_hand)


class DrivenEngine:
    """An Engine with its base loaded.

    Args:
        loader: of the base and of adapters.
        start: the first message.
        budgets: of the engine.

    Raises:
        RuntimeError: the base can't be served.
    """

    def __init__(self, loader: Loader, start: Start, budgets: Budgets = PLENTY) -> None:
        self.loader = loader
        self.load_later: list[Job] | None = None
        """Where jobs of the loader are put instead of being done, once it is a list."""
        self.engine = Engine(self._load, budgets)
        self.engine.handle(start)
        (event,) = self.engine.step()
        if not isinstance(event, BaseLoaded):
            raise RuntimeError(f"the base can't be served: {event}")  # noqa: TRY004 - no type is wrong
        self.loaded = event

    def _load(self, job: Job) -> None:
        if self.load_later is None:
            self.engine.handle(self.loader.do(job))
        else:
            self.load_later.append(job)

    @property
    def model(self) -> Any:
        """The base's PreTrainedModel."""
        return self.engine.serving.base.model

    def mount(self, digest: str, directory: Path) -> Mounted:
        """Mount the adapter. Raises RuntimeError when it is refused."""
        self.engine.handle(Mount(digest, str(directory), digest))
        return self.mounted(self.engine.step())

    def mounted(self, events: Sequence[Event]) -> Mounted:
        """Return the event that tells of a mount. Raises RuntimeError when it failed."""
        (event,) = (event for event in events if isinstance(event, Mounted | MountFailed))
        if not isinstance(event, Mounted):
            raise RuntimeError(f"the adapter can't be mounted: {event}")  # noqa: TRY004 - no type is wrong
        return event

    def unmount_to_host(self, digest: str) -> None:
        """Unmount the adapter and keep it in host memory."""
        self.engine.handle(Unmount(digest, keep=True))
        (event,) = (event for event in self.engine.step() if isinstance(event, Unmounted))
        assert event.tier == "host", event

    def submit(
        self, name: str, prompt: Sequence[int], tokens: int, adapters: Sequence[ServedAdapter], sampling: Sampling
    ) -> None:
        """Ask for so many tokens after the prompt."""
        self.engine.handle(Generate(name, [*prompt], tokens, tuple(adapters), sampling))

    def step(self) -> dict[str, list[int]]:
        """Run one step; return the new tokens of each request. Raises RuntimeError when a request failed."""
        made: dict[str, list[int]] = {}
        for event in self.engine.step():
            if isinstance(event, Generated):
                if event.fault is not None:
                    raise RuntimeError(f"request {event.request} failed: {event.fault.what}")
                made.setdefault(event.request, []).extend(event.tokens)
        return made

    def drain(self) -> dict[str, list[int]]:
        """Run steps until nothing is left to do; return the tokens of each request."""
        answers: dict[str, list[int]] = {}
        while self.engine.busy:
            for name, tokens in self.step().items():
                answers.setdefault(name, []).extend(tokens)
        return answers

    def cancel(self, names: Sequence[str]) -> None:
        """End these requests."""
        for name in names:
            self.engine.handle(Cancel(name))
        self.drain()
