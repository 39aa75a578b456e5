"""Numbers of requests on the model's device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


def columns(device: torch.device, *values: Sequence[float] | np.ndarray) -> torch.Tensor:
    """Return these on the device, [values, n], float64, by one copy that the host does not await."""
    host = torch.from_numpy(np.asarray(values, dtype=np.float64))
    return (host.pin_memory() if device.type == "cuda" else host).to(device, non_blocking=True)
