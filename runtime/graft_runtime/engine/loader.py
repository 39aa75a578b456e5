"""What takes seconds, in a thread of its own beside the steps: the base and adapters."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from graft_runtime.adapters.compile import compile_adapter
from graft_runtime.adapters.deltas import CompiledAdapter
from graft_runtime.adapters.files import read_adapter_files
from graft_runtime.contract.facts import AdapterFacts
from graft_runtime.engine.ledger import check_room
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

Job = Start | Mount


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


Outcome = BaseReady | BaseFailed | AdapterReady | MountFailed


class Loader:
    """Does one job at a time, in order; whatever goes wrong becomes a typed fault.

    Args:
        base: that adapters are loaded for; as a rule the first job loads it.
        max_rank: of one adapter, once there is a base.
    """

    def __init__(self, base: BaseModel | None = None, max_rank: int = 0) -> None:
        self._base = base
        self._max_rank = max_rank

    def do(self, job: Job) -> Outcome:
        """Do the job. Raises nothing."""
        if isinstance(job, Start):
            return self._load_base(job)
        return self._load_adapter(job)

    def _load_base(self, start: Start) -> BaseReady | BaseFailed:
        try:
            self._max_rank = start.limits.max_rank
            directory = Path(start.directory)
            needed = weight_bytes(directory, name=start.name, dtype=start.dtype, task=start.task)
            check_room(start.name, needed, device_of_base())
            base = load_base(
                directory,
                name=start.name,
                dtype=start.dtype,
                max_sequence_length=start.limits.max_sequence_length,
                task=start.task,
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

    def _load_adapter(self, mount: Mount) -> AdapterReady | MountFailed:
        if self._base is None:
            what = f"adapter `{mount.name}` can't be mounted: no base model is loaded"
            return MountFailed(mount.digest, EngineFault(ErrorCode.NOT_READY, what))
        try:
            files = read_adapter_files(Path(mount.directory), name=mount.name, max_rank=self._max_rank)
            base = self._base
            adapter = compile_adapter(files, base.layout, base.modules, dtype=base.dtype, device=base.device)
        except Exception as error:
            return MountFailed(mount.digest, fault_of(error, f"adapter `{mount.name}`"))
        return AdapterReady(mount.digest, mount.name, adapter)


class LoaderThread:
    """A Loader beside the steps."""

    def __init__(self, deliver: Callable[[Outcome], None]) -> None:
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._deliver = deliver
        self._loader = Loader()
        threading.Thread(target=self._run, name="loader", daemon=True).start()

    def submit(self, job: Job) -> None:
        """Put a job in the loader's queue and return at once; the outcome is delivered from the loader's thread."""
        self._jobs.put(job)

    def _run(self) -> None:
        while True:
            self._deliver(self._loader.do(self._jobs.get()))


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
