"""What lies in vLLM's slots, read in its workers: the one place that knows how vLLM keeps adapters."""

from __future__ import annotations

from typing import Any


class SlotReader:
    """What vLLM mixes into its workers (`worker_extension_cls`)."""

    model_runner: Any

    def graft_slot(self, adapter: int) -> dict[str, tuple[float, float]]:
        """Return the squared norms of A and B of each module in an adapter's slot, by the names of adapters' files.

        Modules whose slot is all zeros are left out.

        Args:
            adapter: vLLM's number of it. One that has no slot has nothing in it.
        """
        manager = self.model_runner.lora_manager._adapter_manager
        if adapter not in manager.lora_index_to_id:
            return {}
        slot = manager.lora_index_to_id.index(adapter)
        found = {}
        for path, module in manager.modules.items():
            names = manager.packed_modules.get(path) or [path]
            halves = zip(_slices(module.lora_a_stacked), _slices(module.lora_b_stacked), strict=True)
            for name, (a, b) in zip(names, halves, strict=True):
                norms = (_squared(a[slot]), _squared(b[slot]))
                if any(norms):
                    found[name] = norms
        return found


def _slices(stacked: Any) -> list[Any]:
    """Return the tensors of a module: vLLM fuses several modules of the model into one."""
    return list(stacked) if isinstance(stacked, tuple | list) else [stacked]


def _squared(tensor: Any) -> float:
    return float(tensor.double().square().sum())
