"""The engine: takes commands, runs steps, tells events. One thread; the loader works beside it."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from graft_runtime.contract.facts import AdapterFacts
from graft_runtime.engine.budgets import PLENTY, Budgets
from graft_runtime.engine.forming import Forming
from graft_runtime.engine.intake import Intake
from graft_runtime.engine.ledger import room_in_host
from graft_runtime.engine.loader import (
    AdapterReady,
    BaseReady,
    Compiled,
    Job,
    Outcome,
    fault_of,
    tell_oddities,
)
from graft_runtime.engine.mounts import Mounts
from graft_runtime.engine.requests import Request, Turn, failure
from graft_runtime.engine.scheduler import Scheduler
from graft_runtime.engine.serving import Serving
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.messages import (
    BaseFailed,
    Cancel,
    Command,
    Encode,
    EngineFault,
    Event,
    Generate,
    Mount,
    MountFailed,
    Occupancy,
    Start,
    StepDone,
    Unmount,
    Vocabulary,
)
from graft_runtime.model.load import BaseModel

logger = logging.getLogger(__name__)


class EngineBrokenError(Exception):
    """The accelerator is broken, or nothing works any more: the process must exit."""


class Engine:
    """The base model, its adapters, and the requests that run on them.

    Args:
        load: hands a job to the loader; its outcome comes back through `handle`.
        budgets: what it may spend.

    Attributes:
        mounts: the adapters that requests may name.
    """

    def __init__(self, load: Callable[[Job], None], budgets: Budgets = PLENTY) -> None:
        self._load = load
        self._budgets = budgets
        self._start: Start | None = None
        self._serving: Serving | None = None
        self.mounts = Mounts(0)
        self._forming = Forming(load)
        self._events: list[Event] = []
        self._failed_steps = 0
        self._occupancy = Occupancy()

    @property
    def busy(self) -> bool:
        """Tell whether a step would do something."""
        return bool(self._events) or (self._scheduler is not None and self._scheduler.busy)

    @property
    def serving(self) -> Serving:
        """Return the base that serves. Raises GraftError: NotReady."""
        if self._serving is None:
            raise GraftError(ErrorCode.NOT_READY, "the base model is not loaded")
        return self._serving

    @property
    def _scheduler(self) -> Scheduler | None:
        return self._serving.scheduler if self._serving is not None else None

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Admit the requests that fit, take all that run through the model once, and tell what came of the step.

        Raises:
            EngineBrokenError: after an accelerator's error, or three failed steps in a row.
        """
        scheduler = self._scheduler
        if scheduler is not None and scheduler.busy:
            started = self._budgets.clock()
            turns = scheduler.schedule()
            if (stuck := scheduler.stuck()) is not None:
                self._refuse(stuck)
            self._count([self._advance(scheduler, turn) for turn in turns])
            self._tell(StepDone(self._budgets.clock() - started))
            self._tell_occupancy(scheduler)
        events, self._events = self._events, []
        return events

    def handle(self, message: Command | Outcome) -> None:
        """Take a command of the API process or an outcome of the loader; the next step tells what came of either."""
        match message:
            case Generate() | Encode():
                self._take(message)
            case Cancel():
                self._cancel(message)
            case Mount():
                self._mount(message)
            case Vocabulary():
                self._forming.learn(message)
            case Unmount():
                self._events += self.mounts.unmount(message.digest, keep=message.keep)
            case Start() if self._start is None:
                self._start, self.mounts = message, Mounts(message.limits.max_mounted_adapters)
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
            case Compiled():
                self._form(outcome)
            case MountFailed():
                self.mounts.abandon(outcome.digest)
                self._tell(outcome)
            case _:
                self._tell(outcome)

    def _serve(self, base: BaseModel, merged: tuple[AdapterFacts, ...]) -> None:
        assert self._start is not None
        try:
            self._serving = Serving(base, self._start, self._budgets, merged)
        except Exception as error:
            if _is_fatal(error):
                raise EngineBrokenError("the accelerator failed") from error
            self._tell(BaseFailed(fault_of(error, f"base model `{base.name}`")))
            return
        given = self._budgets.host_bytes
        in_host = room_in_host(base.device) if given is None else given
        self.mounts.open(self._serving.device_bytes, in_host, base.device)
        self._tell(self._serving.loaded)

    def _publish_adapter(self, ready: AdapterReady) -> None:
        """Try a loaded adapter on the model; once the trial has passed, requests may name the adapter."""
        digest, adapter = ready.digest, ready.adapter
        try:
            self.mounts.check_room(adapter, ready.name)
            with torch.inference_mode():
                adapter = self.serving.runner.trial(adapter, ready.name)
        except Exception as error:
            if _is_fatal(error):
                raise EngineBrokenError("the accelerator failed") from error
            self.mounts.abandon(digest)
            self._tell(MountFailed(digest, fault_of(error, f"adapter `{ready.name}`"), adapter.bytes))
            return
        tell_oddities(ready.name, adapter.facts)
        self._events += self.mounts.publish(digest, adapter)

    def _mount(self, mount: Mount) -> None:
        if self.mounts.loading(mount.digest):
            self.mounts.begin(mount.digest)
            return
        try:
            mounted = self.mounts.begin(mount.digest, mount.name)
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

    def _take(self, message: Generate | Encode) -> None:
        try:
            self._forming.check(message)
            request = Intake(self.serving, self.mounts, self._release).take(message)
        except GraftError as error:
            self._tell(failure(message, EngineFault.of(error)))
            return
        if not self._forming.hold(request):
            self.serving.scheduler.add(request)

    def _form(self, compiled: Compiled) -> None:
        """Let a request into the queue whose grammar is compiled."""
        request = self._forming.release(compiled.request)
        if request is None:
            return  # cancelled meanwhile
        if isinstance(compiled.constraint, EngineFault):
            self._finish(request, compiled.constraint)
        else:
            request.constraint = compiled.constraint
            self.serving.scheduler.add(request)

    @torch.inference_mode()
    def _cancel(self, cancel: Cancel) -> None:
        scheduler = self._scheduler
        if scheduler is None:
            return
        request = self._forming.release(cancel.request) or scheduler.drop(cancel.request)
        if request is not None:
            self._ended(request)
            self._tell_occupancy(scheduler)  # there may be no step after this

    def _ended(self, request: Request) -> None:
        for served in request.message.adapters:
            self._release(served.digest)

    def _release(self, digest: str) -> None:
        self._events += self.mounts.release(digest)

    # steps

    def _advance(self, scheduler: Scheduler, turn: Turn) -> bool:
        """Take a turn through the model once; return False when the pass failed."""
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
        self._tell(failure(request.message, fault))
        self._ended(request)

    def _failed(self, scheduler: Scheduler, turn: Turn, error: Exception) -> None:
        """Handle a turn that failed.

        The request of a single row fails. Of several requests each runs again by itself, from where it was, and only
        the culprit fails.
        """
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
        if self._failed_steps >= self._budgets.failed_steps:
            raise EngineBrokenError(f"{self._failed_steps} steps in a row failed")


def _is_fatal(error: Exception) -> bool:
    """Tell whether the accelerator is in a state that only a new process leaves."""
    return isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error)
