"""What a series of probe results means, by a kubelet's rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ProbeSettings:
    """Times in seconds; thresholds in results in a row."""

    initial_delay: float = 0.0
    period: float = 10.0
    timeout: float = 1.0
    success_threshold: int = 1
    failure_threshold: int = 3
    termination_grace_period: float | None = None

    @classmethod
    def of(cls, probe: Mapping[str, Any]) -> ProbeSettings:
        """The settings of a probe of a container, with Kubernetes' defaults."""
        grace = probe.get("terminationGracePeriodSeconds")
        return cls(
            initial_delay=float(probe.get("initialDelaySeconds") or 0),
            period=float(probe.get("periodSeconds") or 10),
            timeout=float(probe.get("timeoutSeconds") or 1),
            success_threshold=int(probe.get("successThreshold") or 1),
            failure_threshold=int(probe.get("failureThreshold") or 3),
            termination_grace_period=None if grace is None else float(grace),
        )


@dataclass
class ProbeState:
    """The verdict of one probe of one running container.

    Args:
        settings: the probe's thresholds.
        verdict: `None` until a threshold was reached for the first time.
    """

    settings: ProbeSettings
    verdict: bool | None = None
    _last: bool | None = None
    _in_a_row: int = 0

    def observe(self, success: bool) -> bool:
        """Take in one result.

        Returns:
            Whether the verdict changed.
        """
        self._in_a_row = self._in_a_row + 1 if success == self._last else 1
        self._last = success
        needed = self.settings.success_threshold if success else self.settings.failure_threshold
        if self._in_a_row < needed or self.verdict == success:
            return False
        self.verdict = success
        return True
