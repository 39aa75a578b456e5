"""How many answers a pod works on at a time, in all and under each name."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence

from graft_runtime.answering.turnover import Turnover
from graft_runtime.errors import ErrorCode, GraftError


class Admission:
    """Counts the answers that are awaited, and turns requests away.

    The names under way divide three quarters of all places by their shares; the last quarter is for names that come.

    Args:
        max_sequences: places in the batch.
        share: of a name.
    """

    def __init__(self, max_sequences: int, share: Callable[[str], int] = lambda name: 1) -> None:
        self._share = share
        self._turnover = Turnover(max_sequences)
        self._idle = asyncio.Event()
        self._clock = asyncio.get_running_loop().time
        self._entered = self._clock()
        """When the last request came, by the event loop's clock."""
        self._by_name: Counter[str] = Counter()
        self.in_flight = 0
        """Answers that are awaited, waiting ones included."""
        self.refusing = False
        """New requests are turned away."""

    def enter(self, count: int, names: Sequence[str]) -> None:
        """Count a request for this many answers, until `leave`.

        Args:
            count: of its answers.
            names: whose they are: several of a sum.

        Raises:
            GraftError: ShuttingDown, OverShare, Overloaded.
        """
        self._check_open()
        now = self._clock()
        shares = {name: self._share(name) for name in (*self._by_name, *names)}
        places = self._turnover.capacity(now) * 3 // 4
        for name in names:
            share = places * shares[name] // sum(shares.values())
            if (held := self._by_name[name]) and held + count > share:
                raise GraftError(
                    ErrorCode.OVER_SHARE,
                    f"{held} requests to `{name}` are on their way here, its share is {share}",
                    hint="try again later, or give the pool more replicas",
                    field="model",
                    retry_after=self._turnover.seconds(held + count - share, now),
                )
        self.check(count)
        self.in_flight += count
        self._entered = now
        self._by_name.update(dict.fromkeys(names, count))
        self._turnover.entered(self.in_flight, now)

    def check(self, count: int) -> None:
        """Check that the pod has room for this many answers. Raises GraftError: ShuttingDown, Overloaded."""
        self._check_open()
        now = self._clock()
        capacity = self._turnover.capacity(now)
        if self.in_flight and self.in_flight + count > capacity:
            raise GraftError(
                ErrorCode.OVERLOADED,
                f"{self.in_flight} requests are on their way here, the most is {capacity} by now",
                hint="try again later, or give the pool more replicas",
                retry_after=self._turnover.seconds(self.in_flight + count - capacity, now),
            )

    def leave(self, count: int, names: Sequence[str]) -> None:
        """Take note that this many answers are awaited no longer."""
        self.in_flight -= count
        self._by_name -= Counter(dict.fromkeys(names, count))
        self._turnover.left(count, self.in_flight, self._clock())
        self._idle.set()

    @property
    def names(self) -> list[str]:
        """Return the names of the requests under way."""
        return sorted(self._by_name)

    async def wait_quiet(self, seconds: float) -> None:
        """Wait until no answer is awaited, and from now on for `seconds` no request has come."""
        begun = self._clock()
        while self.in_flight or (rest := max(begun, self._entered) + seconds - self._clock()) > 0:
            if self.in_flight:
                self._idle.clear()
                await self._idle.wait()
            else:
                await asyncio.sleep(rest)

    def _check_open(self) -> None:
        if self.refusing:
            raise GraftError(
                ErrorCode.SHUTTING_DOWN, "this pod is shutting down", hint="try again: another one answers"
            )
