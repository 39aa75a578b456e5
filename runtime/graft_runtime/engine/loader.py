"""What takes seconds, in threads beside the steps: the base, adapters, and grammars of requests."""

from __future__ import annotations

import itertools
import logging
import math
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from graft_runtime.adapters.compile import compile_adapter
from graft_runtime.adapters.deltas import CompiledAdapter
from graft_runtime.adapters.files import AdapterFiles, read_adapter_files
from graft_runtime.base.quantised_files import check_full
from graft_runtime.contract.facts import AdapterFacts
from graft_runtime.engine.constraints import Constraint, TokenTable
from graft_runtime.engine.ledger import check_adapter_room, check_room
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.merge.memory import merge_into
from graft_runtime.messages import (
    BaseFailed,
    EngineFault,
    Mount,
    MountFailed,
    Start,
)
from graft_runtime.model.load import BaseModel, device_of_base, load_base, weight_bytes

logger = logging.getLogger(__name__)

LOAD_SECONDS = 900.0
"""The most that one adapter may take: PiSSA on a large model takes minutes."""
LONG_WORK = 10**10
"""Operations; an adapter that takes more, about a second, is no longer in the way of others."""


@dataclass(frozen=True)
class Compile:
    """The grammar of a request, and the tokens that it is written with."""

    request: str
    grammar: str
    tokens: TokenTable


Job = Start | Mount | Compile


@dataclass(frozen=True)
class BaseReady:
    """The base model is in the memory of its device."""

    base: BaseModel
    merged: tuple[AdapterFacts, ...] = ()
    """See BaseLoaded."""


@dataclass(frozen=True)
class AdapterReady:
    """The adapter passed every check and is in the memory of the model's device."""

    digest: str
    name: str
    """How errors call it."""
    adapter: CompiledAdapter


@dataclass(frozen=True)
class Compiled:
    """The constraint of a request, or why there is none."""

    request: str
    constraint: Constraint | EngineFault


Outcome = BaseReady | BaseFailed | AdapterReady | MountFailed | Compiled


class Loader:
    """Does jobs; whatever goes wrong becomes a typed fault. Adapters may be loaded in several threads.

    Args:
        base: that adapters are loaded for; as a rule the first job loads it.
        max_rank: of one adapter, once there is a base.
        seconds: that one adapter may take.
    """

    def __init__(self, base: BaseModel | None = None, max_rank: int = 0, seconds: float = LOAD_SECONDS) -> None:
        self._base = base
        self._max_rank = max_rank
        self._seconds = seconds

    def do(self, job: Job) -> Outcome:
        """Do the job. Raises nothing."""
        if isinstance(job, Start):
            return self.load_base(job)
        if isinstance(job, Compile):
            return self.compile(job)
        files = self.read(job)
        return files if isinstance(files, MountFailed) else self.load(job, files)

    def load_base(self, start: Start) -> BaseReady | BaseFailed:
        try:
            self._max_rank = start.limits.max_rank
            directory = Path(start.directory)
            if start.merge:
                check_full(directory, start.name, "a merge")
            needed = weight_bytes(
                directory, name=start.name, dtype=start.dtype, task=start.task, quantization=start.quantization
            )
            check_room(start.name, needed, device_of_base())
            base = load_base(
                directory,
                name=start.name,
                dtype=start.dtype,
                max_sequence_length=start.limits.max_sequence_length,
                task=start.task,
                quantization=start.quantization,
            )
            merged: tuple[AdapterFacts, ...] = ()
            if start.merge:
                base, merged = merge_into(base, start.merge, max_rank=start.limits.max_rank)
            self._base = base
        except Exception as error:
            return BaseFailed(fault_of(error, f"base model `{start.name}`"))
        for source, facts in zip(start.merge, merged, strict=True):
            tell_oddities(source.part.name, facts)
        return BaseReady(base, merged)

    def compile(self, job: Compile) -> Compiled:
        """Compile the grammar of a request."""
        try:
            return Compiled(job.request, job.tokens.constraint(job.grammar))
        except Exception as error:
            return Compiled(job.request, fault_of(error, "the form that the answer is asked in"))

    def read(self, mount: Mount) -> AdapterFiles | MountFailed:
        """Read an adapter's config and header."""
        try:
            return read_adapter_files(Path(mount.directory), name=mount.name, max_rank=self._max_rank)
        except Exception as error:
            return MountFailed(mount.digest, fault_of(error, f"adapter `{mount.name}`"))

    def load(self, mount: Mount, files: AdapterFiles) -> AdapterReady | MountFailed:
        """Read an adapter's weights, and make of them what the engine computes with."""
        base, ends = self._base, time.monotonic() + self._seconds
        if base is None:
            what = f"adapter `{mount.name}` can't be mounted: no base model is loaded"
            return MountFailed(mount.digest, EngineFault(ErrorCode.NOT_READY, what))

        def check_time() -> None:
            if time.monotonic() > ends:
                raise _too_costly(mount.name, self._seconds)

        try:
            values = sum(math.prod(span.shape) for span in files.tensors.values())
            check_adapter_room(mount.name, values * base.dtype.itemsize, base.device)
            adapter = compile_adapter(
                files, base.layout, base.modules, dtype=base.dtype, device=base.device, check_time=check_time
            )
        except Exception as error:
            return MountFailed(mount.digest, fault_of(error, f"adapter `{mount.name}`"))
        return AdapterReady(mount.digest, mount.name, adapter)


class LoaderThreads:
    """A Loader beside the steps: one thread for what is short, one for adapters that take long; the shortest first.

    Grammars have a third, since requests wait for them.

    Args:
        deliver: takes the outcome of each job, in the thread that did it.
        loader: that does them.
    """

    def __init__(self, deliver: Callable[[Outcome], None], loader: Loader | None = None) -> None:
        self._deliver, self._loader = deliver, loader or Loader()
        self._jobs: queue.SimpleQueue[Start | Mount] = queue.SimpleQueue()
        self._grammars: queue.SimpleQueue[Compile] = queue.SimpleQueue()
        self._short, self._long = queue.PriorityQueue[_Load](), queue.PriorityQueue[_Load]()
        self._numbers = itertools.count()
        runs = {"loader": self._run_short, "long loader": self._run_long, "grammars": self._run_grammars}
        for name, run in runs.items():
            threading.Thread(target=run, name=name, daemon=True).start()

    def submit(self, job: Job) -> None:
        """Put a job in the loader's queue and return at once."""
        if isinstance(job, Compile):
            self._grammars.put(job)
        else:
            self._jobs.put(job)

    def _run_short(self) -> None:
        while True:
            while self._short.empty() or not self._jobs.empty():
                self._begin(self._jobs.get())
            self._finish(self._short.get())

    def _run_long(self) -> None:
        while True:
            self._finish(self._long.get())

    def _run_grammars(self) -> None:
        while True:
            self._deliver(self._loader.compile(self._grammars.get()))

    def _begin(self, job: Start | Mount) -> None:
        if isinstance(job, Start):
            self._deliver(self._loader.load_base(job))
            return
        files = self._loader.read(job)
        if isinstance(files, MountFailed):
            self._deliver(files)
            return
        work = sum(part.work for part in files.parts)
        jobs = self._long if work > LONG_WORK else self._short
        jobs.put(_Load(work, files.bytes, next(self._numbers), job, files))

    def _finish(self, job: _Load) -> None:
        self._deliver(self._loader.load(job.mount, job.files))


@dataclass(order=True, frozen=True)
class _Load:
    """An adapter whose files were read, in the order in which such are loaded."""

    work: int
    bytes: int
    number: int
    mount: Mount = field(compare=False)
    files: AdapterFiles = field(compare=False)


def _too_costly(name: str, seconds: float) -> GraftError:
    return GraftError(
        ErrorCode.TOO_COSTLY,
        f"adapter `{name}` is not ready to be mounted after {seconds:g} s, the most that loading one may take",
        hint="save it as plain LoRA: PiSSA and OLoRA by save_pretrained with path_initial_model_for_weight_conversion",
    )


def tell_oddities(name: str, facts: AdapterFacts) -> None:
    """Log what is served otherwise than an adapter's files say."""
    if facts.remapped:
        logger.warning("adapter `%s` names its modules otherwise than its base: %s", name, facts.remapped)
    if facts.unused:
        logger.warning("adapter `%s` is served in part: %s", name, facts.unused)


def fault_of(error: Exception, what: str) -> EngineFault:
    """Return what to tell of an error that stopped `what` from being loaded."""
    if isinstance(error, GraftError):
        return EngineFault.of(error)
    logger.error("%s can't be loaded", what, exc_info=error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        text = f"{what} does not fit into the memory that is left"
        return EngineFault(ErrorCode.NO_CAPACITY, text, hint="give the pod more memory, or mount fewer adapters")
    return EngineFault(ErrorCode.INTERNAL, f"{what} can't be loaded: {type(error).__name__}: {error}")
