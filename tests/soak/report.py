"""What a soak has found: figures of each attack, the verdict, a table. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

MOST_RATIO = 3.0
"""Of the 99th percentile under attack to the quiet one."""
MEMORY_SHARE, MEMORY_BYTES = 0.1, 48 << 20
"""So much more may the pod hold at the end than at first, whichever is more: allocators keep what they have."""


ENOUGH_REQUESTS = 200
"""Of one attack: fewer have no 99th percentile."""


def most_memory(before: int) -> int:
    """Return the bytes that may be held at the end."""
    return before + max(MEMORY_BYTES, int(MEMORY_SHARE * before))


@dataclass(frozen=True)
class Figures:
    """Of the good clients' requests in one kind of phase."""

    requests: int
    failed: int
    """Turned away or cut; a failed request counts as one that took for ever."""
    p50: float
    """Seconds."""
    p99: float
    """Seconds."""


def figures(seconds: Sequence[float]) -> Figures:
    """Return the figures of requests that took so many seconds each, infinity for those that failed."""
    ordered = sorted(seconds)
    failed = sum(math.isinf(one) for one in ordered)
    return Figures(len(ordered), failed, _at(ordered, 0.5), _at(ordered, 0.99))


def _at(ordered: Sequence[float], share: float) -> float:
    return ordered[math.ceil(share * len(ordered)) - 1] if ordered else math.nan


@dataclass(frozen=True)
class Attacked:
    """One attack: what the good clients had of it, and what it cost."""

    name: str
    clients: Figures
    peak: int
    """Bytes of the pod's processes."""
    probe: float
    """Seconds of the slowest answer of /livez; infinity where there was none."""
    control: float
    """The same of the control port."""
    told: dict[str, int]
    """Answers that the attackers got, by status; states and faults of the adapters that they brought."""


@dataclass(frozen=True)
class Soak:
    """All of it."""

    quiet: Figures
    under_attack: Figures
    attacks: list[Attacked]
    memory_before: dict[str, int]
    """Bytes of each process, once every good name was answered."""
    memory_after: dict[str, int]
    wrong: list[str] = field(default_factory=list)
    """Answers that were another's, and other ends that mislead."""
    restarts: int = 0
    internal: list[str] = field(default_factory=list)
    """Lines of the pod's log that tell of a fault of Graft's own."""

    def faults(self) -> list[str]:
        """Return what must not be."""
        return [*self.damage(), *self.slowness(), *self.kept()]

    def damage(self) -> list[str]:
        """Return what is wrong on a machine of any speed."""
        found = [*self.wrong, *self.internal]
        if self.restarts:
            found.append(f"the pod's processes started again {self.restarts} times")
        return found

    def slowness(self) -> list[str]:
        """Return which answers took too long."""
        found = []
        most = MOST_RATIO * self.quiet.p99
        if not self.under_attack.p99 < most:
            found.append(f"p99 under attack is {self.under_attack.p99:.3f} s, expected less than {most:.3f} s")
        for one in self.attacks:
            if one.clients.requests >= ENOUGH_REQUESTS and not one.clients.p99 < most:
                found.append(f"{one.name}: p99 is {one.clients.p99:.3f} s, expected less than {most:.3f} s")
            if not one.probe < PROBE_SECONDS:
                found.append(f"{one.name}: /livez took {one.probe:.1f} s, the kubelet waits for {PROBE_SECONDS:g} s")
            if not one.control < CONTROL_SECONDS:
                found.append(f"{one.name}: the control port took {one.control:.1f} s")
        return found

    def kept(self) -> list[str]:
        """Return what of the memory has not come back."""
        allowed = most_memory(sum(self.memory_before.values()))
        if (held := sum(self.memory_after.values())) > allowed:
            return [f"{held >> 20} MiB are held at the end, expected at most {allowed >> 20} MiB"]
        return []

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"faults": self.faults()}

    def table(self) -> str:
        """Return the figures as lines of text."""
        columns = f"{'requests':>9}{'failed':>8}{'p50':>8}{'p99':>8}{'ratio':>7}{'MiB':>7}{'livez':>8}{'control':>9}"
        rows = [f"{'attack':<34}{columns}", _row("quiet", self.quiet, self.quiet.p99)]
        for one in self.attacks:
            row = _row(one.name, one.clients, self.quiet.p99)
            told = ", ".join(f"{what} {count}" for what, count in sorted(one.told.items()))
            rows.append(f"{row}{one.peak >> 20:>7}{one.probe:>8.3f}{one.control:>9.3f}  {told}")
        rows.append(_row("all attacks", self.under_attack, self.quiet.p99))
        for when, held in (("before", self.memory_before), ("after", self.memory_after)):
            each = ", ".join(f"{name} {size >> 20}" for name, size in held.items())
            rows.append(f"MiB {when}: {sum(held.values()) >> 20} ({each})")
        return "\n".join([*rows, *(f"FAULT: {fault}" for fault in self.faults())])


PROBE_SECONDS = 5.0
"""As the liveness probe of a pod has it."""
CONTROL_SECONDS = 10.0
"""As the operator has it for an answer."""


def _row(name: str, found: Figures, quiet: float) -> str:
    times = f"{found.p50:>8.3f}{found.p99:>8.3f}{found.p99 / quiet:>7.2f}"
    return f"{name:<34}{found.requests:>9}{found.failed:>8}{times}"
