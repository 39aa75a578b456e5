"""The queue before every runner, and its only owner: who waits, and who runs."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence

from graft_runtime.engine.requests import Flow, Request, Turn
from graft_runtime.engine.turns import Turns
from graft_runtime.engine.ways import who_makes_way

PATIENT_STEPS = 4
"""So long a request waits for one to end before one of the adapters that run most makes way for it."""


class Scheduler:
    """First come, first served, each set of adapters in its turn; how many run, and how, is for the flow to say.

    Where all places are taken, those who run most make way for who waits, and start again later from where they were.
    """

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self._waiting: list[Request] = []
        self._turns = Turns()
        self._step = 0

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
        """Put a request into the queue, behind those whose turn is no later."""
        request.turn = self._turns.of(request.whose, request.tokens_at_most, request.share)
        request.waits_since = self._step
        insort(self._waiting, request, key=_turn)

    def schedule(self) -> Sequence[Turn]:
        """Start what there is room for. Returns the turns of the next step, with all that run."""
        self._step += 1
        self._put_back(self.flow.make_room())
        if self._waiting:
            self._make_way()
            started = set(self.flow.start(list(self._waiting)))
            self._waiting = [request for request in self._waiting if request not in started]
            if started:
                self._turns.started(max(map(_turn, started)))
        return self.flow.turns()

    def stuck(self) -> Request | None:
        """Take out the first in the queue when nothing runs: there will never be more room for it."""
        return self._waiting.pop(0) if self._waiting and not self.flow.requests else None

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

    def _make_way(self) -> None:
        """Have one that runs leave for the first that has waited long, where the adapters of that one run less."""
        for first in self._waiting:
            if self._step - first.waits_since <= PATIENT_STEPS:
                continue
            if (leaving := who_makes_way(self.flow.requests, first)) is not None:
                self.flow.leave(leaving)
                self._waiting.remove(first)
                self._put_back([first, leaving])
                first.waits_since = leaving.waits_since = self._step
                break

    def _put_back(self, requests: Sequence[Request]) -> None:
        """Put requests back to the front of the queue, in this order."""
        first = self._waiting[0].turn if self._waiting else 0
        for request in requests:
            request.turn = min(request.turn, first)
        self._waiting[:0] = requests


def _turn(request: Request) -> int:
    return request.turn
