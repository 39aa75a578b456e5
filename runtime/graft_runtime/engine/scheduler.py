"""One queue before either runner: who waits, and who runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from graft_runtime.engine.requests import Flow, Request, Turn


class Scheduler:
    """First come, first served; how many run at once, and how, is for the flow to say."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self._waiting: deque[Request] = deque()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self.flow.requests)

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self.flow.requests)

    def add(self, request: Request) -> None:
        self._waiting.append(request)

    def turns(self) -> Sequence[Turn]:
        """Of the next step, with all that there is room for."""
        self.flow.admit(self._waiting)
        return self.flow.turns()

    def stuck(self) -> Request | None:
        """The first in the queue, taken from it, when nothing runs: there will never be more room for it."""
        return self._waiting.popleft() if self._waiting and not self.flow.requests else None

    def again(self, turn: Turn) -> None:
        """The turn failed: each of its requests runs again, by itself, before any other."""
        for request in reversed(list(turn.requests)):
            self.flow.leave(request)
            request.alone = True
            self._waiting.appendleft(request)

    def drop(self, name: str) -> Request | None:
        """The request of this name leaves, whether it waits or runs; None when there is none."""
        for request in self._waiting:
            if request.message.request == name:
                self._waiting.remove(request)
                return request
        for request in self.flow.requests:
            if request.message.request == name:
                self.flow.leave(request)
                return request
        return None
