"""The ports of a pod."""

from __future__ import annotations

API_PORT = 8000
CONTROL_PORT = 8001
PROBE_PORT = 8002
"""Probes and metrics: clients of the API can't keep it busy."""
