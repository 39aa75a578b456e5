"""How long a container that ended waits before it runs again: at once, then 10 s, doubling to 5 minutes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class BackOff:
    """The waits of one container.

    Args:
        first_seconds: the wait before the second restart; the first restart comes at once.
        longest_seconds: no wait is longer.
        forget_after_seconds: a run as long as this makes the next restart a first one again.
    """

    first_seconds: float = 10.0
    longest_seconds: float = 300.0
    forget_after_seconds: float = 600.0
    _next: float = 0.0

    def after_run(self, ran_seconds: float) -> float:
        """The wait, in seconds, after a run that lasted `ran_seconds`."""
        if ran_seconds >= self.forget_after_seconds:
            self._next = 0.0
        wait = self._next
        self._next = min(self.longest_seconds, max(self.first_seconds, 2 * wait))
        return wait


def runs_again(restart_policy: str, exit_code: int) -> bool:
    """Whether a container that ended with `exit_code` runs again."""
    return restart_policy == "Always" or (restart_policy == "OnFailure" and exit_code != 0)
