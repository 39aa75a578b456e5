"""The ports of a pod."""

from __future__ import annotations

API_PORT = 8000
CONTROL_PORT = 8001
