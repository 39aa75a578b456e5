"""An engine in the process of the test, and the oracle that its answers are compared with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.bases import torch_on_one_thread

if TYPE_CHECKING:  # imported late: most tests need no torch
    from tests.support.oracle import Oracle


class InProcessEngine:
    """An Engine whose loader does each job at once, driven by hand.

    Args:
        base: directory of the checkpoint.
        budgets: of the engine; None: those that it has by default.
        start: fields of EngineConfig that are to be otherwise, `dtype`, `merge`, `quantization`.
    """

    def __init__(self, base: Path, budgets: Any = None, **start: Any) -> None:
        from graft_runtime.contract.config import EngineConfig
        from graft_runtime.engine.budgets import Budgets
        from graft_runtime.engine.engine import Engine
        from graft_runtime.engine.loader import Loader
        from graft_runtime.messages import Start

        torch_on_one_thread()
        self.loader = Loader()
        self.load_later: list[Any] | None = None
        """Where jobs of the loader are put instead of being done, once it is a list."""
        self.engine = Engine(self._load, budgets or Budgets())
        options = {"max_sequences": 64, "max_sequence_length": 4096, "max_mounted_adapters": 8, "max_rank": 16}
        dtype, merge = start.pop("dtype", "float32"), start.pop("merge", ())
        quantization = start.pop("quantization", None)
        limits = EngineConfig(**(options | start))
        self.handle(Start(str(base), "tiny", dtype, limits, merge, quantization=quantization))
        self.started = self.step()

    def _load(self, job: Any) -> None:
        if self.load_later is None:
            self.engine.handle(self.loader.do(job))
        else:
            self.load_later.append(job)

    def handle(self, command: Any) -> None:
        self.engine.handle(command)

    def step(self) -> list[Any]:
        return self.engine.step()

    def mount(self, digest: str, directory: Path) -> Any:
        """Mount under this digest; the event that answers."""
        from graft_runtime.messages import Mount

        self.handle(Mount(digest, str(directory), digest))
        (event,) = self.step()
        return event

    def collect(self, events: list[Any]) -> dict[str, list[int]]:
        """Step until nothing is left to do; the tokens of each request. No request may fail."""
        from graft_runtime.messages import Generated

        answers: dict[str, list[int]] = {}
        while events or self.engine.busy:
            for event in events:
                if isinstance(event, Generated):
                    assert event.fault is None, event.fault
                    answers.setdefault(event.request, []).extend(event.tokens)
            events = self.step()
        return answers

    def answers(self, submits: list[Any]) -> dict[str, list[int]]:
        """Ask all at once; the tokens of each by name."""
        for submit in submits:
            self.handle(submit)
        return self.collect([])


@pytest.fixture
def in_process() -> Callable[..., InProcessEngine]:
    """`in_process(base, budgets, **start)`: an engine with this base loaded, without a process of its own."""
    return InProcessEngine


@pytest.fixture(scope="session")
def make_engine() -> Callable[..., InProcessEngine]:
    """As `in_process`, for fixtures that outlive a test."""
    return InProcessEngine


@pytest.fixture
def make_oracle() -> Callable[..., Oracle]:
    """`make_oracle(base)`: what an answer must be, by Transformers and PEFT."""
    from tests.support.oracle import Oracle

    return Oracle


@pytest.fixture
def padded_alone(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """`padded_alone()`: from then on the probe refuses every base, so that the padded runner serves it."""

    def refuse_all() -> None:
        from graft_runtime.engine import route
        from graft_runtime.runners.decoder.probe import RefusedError

        def refuse(*_: Any, **__: Any) -> None:
            raise RefusedError("a test")

        monkeypatch.setattr(route, "probe", refuse)

    return refuse_all
