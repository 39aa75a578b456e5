"""Processes for what strangers' files do, one for each file: it may be ended at any question, and holds up no other."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.tokenizing.frames import is_silent, read_frame, write_frame
from graft_runtime.tokenizing.spawner import Spawner, spawner

SILENT_SECONDS = 60.0
"""Until a process is given up for lost."""
START_SECONDS = 300.0
"""The same for its beginning, with a processor that others use."""
SLOW_SECONDS = 0.25
"""Of one question: whoever takes longer lets all others of this machine go first from then on."""
SLOW_NICENESS = 5
"""Beside that of this process."""
UNSAFE_SECONDS = 60.0
"""So long a file that has ended its process is not asked again."""
IDLE_SECONDS = 30.0
"""So long the process of a file that nobody asks is kept."""
LOST = (EOFError, OSError, TimeoutError)


class TakesTooMuchError(Exception):
    """A file's process was ended: what it took too much of, or that it did so a moment ago."""


@dataclass
class _Asked:
    """A file that was asked, for one thread at a time."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    worker: _Worker | None = None
    unsafe_until: float = 0.0
    asked_at: float = 0.0


class Workers:
    """Processes for one kind of files. To be called from threads.

    Args:
        module: what they do; its `answerer()` returns what answers a question.
        memory_bytes: that each may have of its own.
        most: processes that are kept, each of a file that was asked lately.
        parent: starts them.
    """

    def __init__(self, module: str, *, memory_bytes: int, most: int = 0, parent: Spawner = spawner) -> None:
        parent.prepare(module)
        self._module, self._memory_bytes, self._most, self._parent = module, memory_bytes, most, parent
        self._lock = threading.Lock()
        self._asked: OrderedDict[str, _Asked] = OrderedDict()
        """By the file; the one that was asked last is last."""

    def start(self) -> None:
        """Make ready to start processes."""
        self._parent.start()

    def ask(self, file: str, question: bytes, first: Callable[[], bytes] | None = None) -> bytes:
        """Return the answer of a file's process to a question.

        Args:
            file: its text, or what else tells it from others.
            question: to be answered.
            first: makes what a new process is asked before.

        Raises:
            TakesTooMuchError: it has none, and is not asked again for a while.
            GraftError: NoCapacity, when no process can be started.
        """
        asked = self._of(file)
        with asked.lock:
            if time.monotonic() < asked.unsafe_until:
                raise TakesTooMuchError("it did so a moment ago")
            if asked.worker is not None and asked.worker.has_ended:  # by others, as nothing was asked
                self._end(asked)
            begins = asked.worker is None
            worker = asked.worker = asked.worker or self._begun()
            try:
                if begins and first is not None:
                    worker.ask(first())
                return worker.ask(question)
            except LOST as error:
                self._end(asked)
                asked.unsafe_until = time.monotonic() + UNSAFE_SECONDS
                raise TakesTooMuchError(str(error)) from None

    def ask_once(self, question: bytes) -> bytes:
        """Return the answer to a question of a process that ends with it.

        Raises:
            TakesTooMuchError: it has none.
            GraftError: NoCapacity, when no process can be started.
        """
        with contextlib.closing(self._begun()) as worker:
            try:
                return worker.ask(question, yields=False)  # one of these at a time is no more than its share
            except LOST as error:
                raise TakesTooMuchError(str(error)) from None

    def give_up(self, file: str) -> None:
        """Ask a file no more for a while."""
        self._of(file).unsafe_until = time.monotonic() + UNSAFE_SECONDS

    @property
    def process_ids(self) -> list[int]:
        """Return the ids of the processes, that of the file that was asked last at the end."""
        with self._lock:
            return [asked.worker.process_id for asked in self._asked.values() if asked.worker is not None]

    def close(self) -> None:
        """End the processes; the next question starts another."""
        with self._lock:
            known = list(self._asked.values())
        for asked in known:
            if (worker := asked.worker) is not None:
                worker.kill()  # whoever waits for it has its turn now
            with asked.lock:
                self._end(asked)

    def _begun(self) -> _Worker:
        for _ in range(2):  # the parent may have ended meanwhile
            try:
                return _Worker(self._parent.spawn(self._module, self._memory_bytes))
            except LOST as error:
                self._parent.close()
                why = f"a process for text can't be started: {error}"
        raise GraftError(ErrorCode.NO_CAPACITY, why, hint="look at the pod's limits of processes and of memory")

    def _of(self, file: str) -> _Asked:
        with self._lock:
            asked = self._asked.setdefault(file, _Asked())
            asked.asked_at = time.monotonic()
            self._asked.move_to_end(file)
            self._forget(asked)
            return asked

    def _forget(self, kept: _Asked) -> None:
        """End processes that are idle, or beyond the most that are kept, but for those that answer just now."""
        now, more = time.monotonic(), sum(one.worker is not None for one in self._asked.values()) - self._most + 1
        for file, asked in list(self._asked.items()):
            if asked is kept or not asked.lock.acquire(blocking=False):
                continue
            with contextlib.ExitStack() as held:
                held.callback(asked.lock.release)
                idle = now - asked.asked_at > IDLE_SECONDS
                if asked.worker is not None and (more > 0 or idle):
                    self._end(asked)
                    more -= 1
                if idle and asked.unsafe_until <= now:
                    del self._asked[file]

    @staticmethod
    def _end(asked: _Asked) -> None:
        if asked.worker is not None:
            asked.worker.close()
            asked.worker = None


class _Worker:
    """One process. For one thread at a time."""

    def __init__(self, talk: socket.socket) -> None:
        self._talk = talk
        try:
            self.process_id = int(read_frame(talk, time.monotonic() + START_SECONDS))
            self._process = os.pidfd_open(self.process_id)
        except LOST:
            talk.close()
            raise

    def ask(self, question: bytes, *, yields: bool = True) -> bytes:
        """Return its answer; where it `yields`, it lets others go first once it is slow. Raises one of LOST."""
        deadline = time.monotonic() + SILENT_SECONDS
        self._talk.settimeout(SILENT_SECONDS)
        write_frame(self._talk, question)
        if yields and is_silent(self._talk.fileno(), SLOW_SECONDS):
            with contextlib.suppress(OSError):
                niceness = os.getpriority(os.PRIO_PROCESS, os.getpid()) + SLOW_NICENESS
                os.setpriority(os.PRIO_PROCESS, self.process_id, niceness)
        return read_frame(self._talk, deadline)

    @property
    def has_ended(self) -> bool:
        """Return whether the process is no more."""
        return not is_silent(self._process, 0)

    def kill(self) -> None:
        """End the process, whoever waits for its answer."""
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self._process, signal.SIGKILL)

    def close(self) -> None:
        """End the process, when nobody waits for it."""
        self.kill()
        os.close(self._process)
        self._talk.close()


def limit_processor(seconds: int) -> None:
    """Have the kernel end this process once it has used so many more seconds of a processor."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    until = int(used.ru_utime + used.ru_stime) + 1 + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (until, resource.getrlimit(resource.RLIMIT_CPU)[1]))
