"""The queue before every runner, and its only owner: who waits, and who runs."""

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
        """Put a request at the end of the queue."""
        self._waiting.append(request)

    def schedule(self) -> Sequence[Turn]:
        """Start what there is room for. Returns the turns of the next step, with all that run."""
        self._put_back(self.flow.make_room())
        if self._waiting:
            started = set(self.flow.start(list(self._waiting)))
            self._waiting = deque(request for request in self._waiting if request not in started)
        return self.flow.turns()

    def stuck(self) -> Request | None:
        """Take out the first in the queue when nothing runs: there will never be more room for it."""
        return self._waiting.popleft() if self._waiting and not self.flow.requests else None

    def again(self, turn: Turn) -> None:
        """Run each request of a turn that failed again, by itself, before any other."""
        for request in turn.requests:
            request.alone = True
        requests = list(turn.requests)
        for request in requests:
            self.flow.leave(request)
        self._put_back(requests)

    def drop(self, name: str) -> Request | None:
        """Take out the request of this name, whether it waits or runs; None when there is none."""
        request = next((request for request in self._waiting if request.name == name), None)
        if request is not None:
            self._waiting.remove(request)
            return request
        request = next((request for request in self.flow.requests if request.name == name), None)
        if request is not None:
            self.flow.leave(request)
        return request

    def _put_back(self, requests: Sequence[Request]) -> None:
        """Put requests back to the front of the queue, in this order."""
        self._waiting.extendleft(reversed(requests))
