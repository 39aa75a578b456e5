"""What some work gives to the device: kernels, copies, and waits of the host."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

LONGEST = 16
"""Kernels that are told by name."""
NAME_LENGTH = 120


def wait(device: torch.device) -> None:
    """Return when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def count_waits(act: Callable[[], Any], device: torch.device) -> dict[str, Any]:
    """Return how often the host waits for the device, and from which lines of Python."""
    if device.type != "cuda":
        return {"host_syncs": 0, "host_sync_lines": {}}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            act()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    said = [warning for warning in caught if "synchroniz" in str(warning.message)]
    lines = Counter(f"{Path(warning.filename).name}:{warning.lineno}" for warning in said)
    return {"host_syncs": len(said), "host_sync_lines": dict(lines.most_common())}


def count_launches(act: Callable[[], Any], device: torch.device) -> dict[str, Any]:
    """Count the kernels and copies on the device; on a CPU the operators that PyTorch runs."""
    on_device = device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU]
    if on_device:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        act()
        wait(device)
    counts: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    for event in profile.events():
        if event.device_type.name == "CUDA" if on_device else event.name.startswith("aten::"):
            name = event.name[:NAME_LENGTH]
            counts[name] += 1
            seconds[name] += (event.time_range.end - event.time_range.start) / 1e6
    copies = sum(count for name, count in counts.items() if name.startswith(("Memcpy", "Memset")))
    return {
        "kernels": sum(counts.values()) - copies,
        "copies": copies,
        "device_seconds": sum(seconds.values()),
        "longest": [
            {"name": name, "count": counts[name], "seconds": took} for name, took in seconds.most_common(LONGEST)
        ],
    }
