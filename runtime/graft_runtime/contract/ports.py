"""The ports of a pod."""

from __future__ import annotations

API_PORT = 8000
CONTROL_PORT = 8001
PROBE_PORT = 8002
"""Probes and metrics: clients of the API can't keep it busy."""


def control_url(address: str) -> str:
    """Return the URL of the control port of the pod at an IP address."""
    return f"http://{f'[{address}]' if ':' in address else address}:{CONTROL_PORT}"
