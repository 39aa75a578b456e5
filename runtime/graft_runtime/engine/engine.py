"""The engine: takes commands, runs steps, tells events. One thread; the loader works beside it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import torch

from graft_runtime.contract.facts import AdapterFacts, DeltaKind
from graft_runtime.contract.tasks import Task
from graft_runtime.engine.batches import BatchFlow
from graft_runtime.engine.checks import check_adapters, check_length, check_request, check_tokens
from graft_runtime.engine.ledger import room_in_host
from graft_runtime.engine.loader import AdapterReady, BaseReady, Job, Outcome, fault_of
from graft_runtime.engine.mounts import Mounts
from graft_runtime.engine.packed import PackedFlow
from graft_runtime.engine.requests import Flow, Generation, Request, Turn, first_position
from graft_runtime.engine.route import choose_runner
from graft_runtime.engine.sampling import Draws
from graft_runtime.engine.scheduler import Scheduler
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.messages import (
    BaseFailed,
    BaseLoaded,
    Cancel,
    Capabilities,
    Command,
    EngineFault,
    Event,
    Generate,
    Generated,
    Mount,
    MountFailed,
    Occupancy,
    Start,
    StepDone,
    Tier,
    Unmount,
)
from graft_runtime.model.load import BaseModel
from graft_runtime.model.rows import RowAdapter, virtual_tokens
from graft_runtime.runners.decoder.runner import DecoderRunner
from graft_runtime.runners.padded import PaddedRunner
from graft_runtime.runners.runner import Runner
from graft_runtime.runners.seq2seq import Seq2SeqRunner

logger = logging.getLogger(__name__)

FAILED_STEPS = 3
"""In a row, and the process gives up: a fresh one may do better."""


ADAPTERS_PER_REQUEST = 4
_OF_PROMPTS = frozenset({DeltaKind.PROMPT, DeltaKind.PREFIX})


class EngineBrokenError(Exception):
    """The accelerator is broken, or nothing works any more: the process must exit."""


class _Serving:
    """What exists once the base is loaded."""

    def __init__(self, base: BaseModel, start: Start) -> None:
        self.base = base
        self.runner = choose_runner(base, max_rank=start.limits.max_rank)
        flow = _flow(self.runner, start.limits.max_sequences)
        self.scheduler = Scheduler(flow) if flow is not None else None


def _capabilities(task: Task) -> Capabilities:
    """Return what this engine does with adapters: all that they can be compiled to, where it has a meaning."""
    deltas = frozenset(DeltaKind) if task.generates else frozenset(DeltaKind) - _OF_PROMPTS
    tiers: tuple[Tier, ...] = ("device", "host", "disk")
    return Capabilities(deltas, weights=True, adapters_per_request=ADAPTERS_PER_REQUEST, tiers=tiers)


def _flow(runner: Runner, max_sequences: int) -> Flow | None:
    """How requests for text run; None on a model that makes none."""
    if isinstance(runner, DecoderRunner):
        return PackedFlow(runner, max_sequences)
    return BatchFlow(runner, max_sequences) if isinstance(runner, PaddedRunner | Seq2SeqRunner) else None


class Engine:
    """The base model, its adapters, and the requests that run on them.

    Args:
        load: hands a job to the loader; its outcome comes back through `handle`.
    """

    def __init__(self, load: Callable[[Job], None]) -> None:
        self._load = load
        self._start: Start | None = None
        self._serving: _Serving | None = None
        self._mounts = Mounts(0)
        self._events: list[Event] = []
        self._failed_steps = 0
        self._occupancy = Occupancy()

    @property
    def busy(self) -> bool:
        """Whether a step would do something."""
        return bool(self._events) or (self._scheduler is not None and self._scheduler.busy)

    @property
    def _scheduler(self) -> Scheduler | None:
        return self._serving.scheduler if self._serving is not None else None

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Admits what fits, takes all that run through the model once, and tells what came of it.

        Raises:
            EngineBrokenError: after an accelerator's error, or three failed steps in a row.
        """
        scheduler = self._scheduler
        if scheduler is not None and scheduler.busy:
            started = time.perf_counter()
            turns = scheduler.schedule()
            if (stuck := scheduler.stuck()) is not None:
                self._refuse(stuck)
            self._count([self._advance(scheduler, turn) for turn in turns])
            self._tell(StepDone(time.perf_counter() - started))
            self._tell_occupancy(scheduler)
        events, self._events = self._events, []
        return events

    def handle(self, message: Command | Outcome) -> None:
        """Takes a command of the API process or an outcome of the loader; the next step tells what came of it."""
        match message:
            case Generate():
                self._generate(message)
            case Cancel():
                self._cancel(message)
            case Mount():
                self._mount(message)
            case Unmount():
                self._events += self._mounts.unmount(message.digest, keep=message.keep)
            case Start() if self._start is None:
                self._start, self._mounts = message, Mounts(message.limits.max_mounted_adapters)
                self._load(message)
            case Start():
                logger.error("a second Start is ignored")
            case _:
                self._publish(message)

    def _tell(self, event: Event) -> None:
        self._events.append(event)

    def _tell_occupancy(self, scheduler: Scheduler) -> None:
        now = Occupancy(scheduler.running, scheduler.waiting, scheduler.flow.reserved)
        if now != self._occupancy:
            self._occupancy = now
            self._tell(now)

    # what the loader brings

    def _publish(self, outcome: Outcome) -> None:
        match outcome:
            case BaseReady():
                self._serve(outcome.base, outcome.merged)
            case AdapterReady():
                self._publish_adapter(outcome)
            case MountFailed():
                self._mounts.abandon(outcome.digest)
                self._tell(outcome)
            case _:
                self._tell(outcome)

    def _serve(self, base: BaseModel, merged: tuple[AdapterFacts, ...]) -> None:
        assert self._start is not None
        try:
            self._serving = _Serving(base, self._start)
        except GraftError as error:
            self._tell(BaseFailed(EngineFault.of(error)))
            return
        self._mounts.open_host(room_in_host(base.device), base.device)
        self._tell(
            BaseLoaded(
                runner=self._serving.runner.name,
                context_length=self._serving.runner.context_length,
                vocabulary_size=base.vocabulary_size,
                parameter_count=sum(parameter.numel() for parameter in base.model.parameters()),
                dtype=str(base.dtype).removeprefix("torch."),
                task=base.task,
                capabilities=_capabilities(base.task),
                merged=merged,
            )
        )

    def _publish_adapter(self, ready: AdapterReady) -> None:
        """Requests may name it once a trial on the model has passed."""
        digest, adapter = ready.digest, ready.adapter
        try:
            with torch.inference_mode():
                self._ready().runner.trial(adapter, ready.name)
        except Exception as error:
            if _is_fatal(error):
                raise EngineBrokenError("the accelerator failed") from error
            self._mounts.abandon(digest)
            self._tell(MountFailed(digest, fault_of(error, f"adapter `{ready.name}`")))
            return
        self._events += self._mounts.publish(digest, adapter)

    def _mount(self, mount: Mount) -> None:
        if self._mounts.loading(mount.digest):
            self._mounts.begin(mount.digest)
            return
        try:
            mounted = self._mounts.begin(mount.digest)
        except Exception as error:
            if _is_fatal(error):
                raise EngineBrokenError("the accelerator failed") from error
            self._tell(MountFailed(mount.digest, fault_of(error, f"adapter `{mount.name}`")))
            return
        if mounted is None:
            self._load(mount)
        else:
            self._tell(mounted)

    # requests

    def _generate(self, message: Generate) -> None:
        held: list[str] = []
        try:
            serving = self._ready()
            check_request(message, serving.base.task, serving.runner.context_length)
            adapters = []
            for served in message.adapters:
                adapter = self._mounts.hold(served.digest)
                held.append(served.digest)
                adapters.append(RowAdapter(adapter, served.weight, first_position(message.prompt, adapter.invocation)))
            check_adapters(adapters, serving.runner.bank)
            virtual = virtual_tokens(adapters)
            check_length(len(message.prompt) + virtual, serving.runner.context_length)
            vocabulary = adapters[0].adapter.facts.vocabulary_size if adapters else None
            vocabulary = vocabulary if vocabulary is not None else serving.base.vocabulary_size
            check_tokens(message, vocabulary)
        except GraftError as error:
            for digest in held:
                self._release(digest)
            self._tell(Generated(message.request, [], "error", EngineFault.of(error)))
            return
        taken = len(message.prompt) + virtual if serving.base.task is Task.CAUSAL_LM else 1
        room = serving.runner.context_length - taken
        assert serving.scheduler is not None, "such a request was refused"
        serving.scheduler.add(
            Generation(
                message=message,
                adapters=tuple(adapters),
                draws=Draws(message.sampling),
                virtual=virtual,
                max_tokens=min(message.max_tokens, room),
                vocabulary=vocabulary,
            )
        )

    def _ready(self) -> _Serving:
        if self._serving is None:
            raise GraftError(ErrorCode.NOT_READY, "the base model is not loaded")
        return self._serving

    @torch.inference_mode()
    def _cancel(self, cancel: Cancel) -> None:
        scheduler = self._scheduler
        if scheduler is None:
            return
        request = scheduler.drop(cancel.request)
        if request is not None:
            self._ended(request)
            self._tell_occupancy(scheduler)  # there may be no step after this

    def _ended(self, request: Request) -> None:
        for served in request.message.adapters:
            self._release(served.digest)

    def _release(self, digest: str) -> None:
        self._events += self._mounts.release(digest)

    # steps

    def _advance(self, scheduler: Scheduler, turn: Turn) -> bool:
        """One pass through the model. False when it failed."""
        try:
            results = turn.run()
            for result in results:
                self._tell(result.event)
                if result.ends:
                    self._ended(result.request)
            turn.settle([result.request for result in results if result.ends])
        except Exception as error:
            self._failed(scheduler, turn, error)
            return False
        return True

    def _finish(self, request: Request, fault: EngineFault) -> None:
        self._tell(request.failed(fault))
        self._ended(request)

    def _failed(self, scheduler: Scheduler, turn: Turn, error: Exception) -> None:
        """One row: it fails. Several: each runs again by itself, from where it was, and only the culprit fails."""
        logger.error("a step of %d rows failed", len(turn.requests), exc_info=error)
        if _is_fatal(error):
            raise EngineBrokenError("the accelerator failed") from error
        if len(turn.requests) > 1:
            scheduler.again(turn)
            return
        request = turn.requests[0]
        scheduler.flow.leave(request)
        code = ErrorCode.NO_CAPACITY if isinstance(error, torch.OutOfMemoryError) else ErrorCode.INTERNAL
        fault = EngineFault(code, f"the engine failed on this request: {type(error).__name__}: {error}")
        self._finish(request, fault)

    def _refuse(self, request: Request) -> None:
        fault = EngineFault(
            ErrorCode.NO_CAPACITY, "this request does not fit into the memory, though nothing else runs"
        )
        self._finish(request, fault)

    def _count(self, results: list[bool]) -> None:
        self._failed_steps = 0 if any(results) or not results else self._failed_steps + 1
        if self._failed_steps >= FAILED_STEPS:
            raise EngineBrokenError(f"{FAILED_STEPS} steps in a row failed")


def _is_fatal(error: Exception) -> bool:
    """Whether the accelerator is in a state that only a new process leaves."""
    return isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error)
