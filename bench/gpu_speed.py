"""How fast one engine is on the device, and what it does there: steps, prompts, mounts, kernels, waits and memory.

All rounds are interleaved: packed steps and static ones, of the base and of adapters. A step is timed from its call to
its return, tokens on the host included.
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from driven_engine import GREEDY, DrivenEngine
from gpu_profile import count_launches, count_waits, wait
from graft_runtime.messages import Mount, ServedAdapter
from graft_runtime.runners.decoder.runner import DecoderRunner

LLAMA_8B = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
}
LLAMA_SMALL = LLAMA_8B | {
    "vocab_size": 1024,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@dataclass(frozen=True)
class Scale:
    """How large a run is. Lengths are in tokens.

    Attributes:
        model: what LlamaConfig takes.
        ranks: of the adapters.
        rows: how many decode at once, one measure each.
        contexts: the least and the most that a row has before it decodes.
        steps: timed in one round.
        rounds: of each measure.
        prompts: lengths whose first token is timed.
        flood: requests of how many tokens, whose prompts come at once.
    """

    model: dict[str, Any]
    ranks: tuple[int, ...]
    rows: tuple[int, ...]
    contexts: tuple[int, int]
    steps: int
    rounds: int
    prompts: tuple[int, ...]
    flood: tuple[int, int]


FULL = Scale(LLAMA_8B, (16,) * 8, (1, 8, 64), (256, 768), 20, 3, (64, 512, 2048), (8, 2048))
SMALL = Scale(LLAMA_SMALL, (4,) * 3, (1, 3), (8, 70), 3, 2, (8, 70), (2, 70))


def spread(samples: Sequence[float]) -> dict[str, float]:
    """Return the median, and the tenth and the ninetieth percentile."""
    ordered = sorted(samples)
    low, high = (ordered[round(share * (len(ordered) - 1))] for share in (0.1, 0.9))
    return {"value": statistics.median(ordered), "low": low, "high": high}


class Speed:
    """One engine with its adapters mounted, and the measures of it."""

    def __init__(self, engine: DrivenEngine, adapters: Sequence[Path], scale: Scale) -> None:
        self.engine, self.scale = engine, scale
        self.device: torch.device = engine.model.device
        self._chosen = random.Random(0)
        self._adapters = {str(number): directory for number, directory in enumerate(adapters)}
        self._names = 0
        self.mounts = [self._timed_mount(digest) for digest in self._adapters]
        """Seconds of each first mount, from files."""
        self.pack_bytes = sum(event.bytes for _, event in self.mounts)
        """Of all adapters."""

    # what goes in

    def submit(self, lengths: Sequence[int], tokens: int, *, mixed: bool) -> list[str]:
        """Ask for so many tokens after a random prompt of each length, of the base or of the adapters in turns."""
        names = []
        for row, length in enumerate(lengths):
            names.append(f"{self._names}")
            self._names += 1
            prompt = [self._chosen.randrange(self.scale.model["vocab_size"]) for _ in range(length)]
            whose = (ServedAdapter(str(row % len(self._adapters)), 1.0),) if mixed else ()
            self.engine.submit(names[-1], prompt, tokens, whose, GREEDY)
        return names

    def decoding(self, rows: int, *, mixed: bool) -> tuple[list[str], int]:
        """Return the requests that decode from now on, and the tokens that they have before them together."""
        low, high = self.scale.contexts
        lengths = [self._chosen.randint(low, high) for _ in range(rows)]
        names = self.submit(lengths, high * 2, mixed=mixed)
        begun: set[str] = set()
        while len(begun) < rows:
            begun |= self.engine.step().keys()
        for _ in range(3):  # the second of a shape is captured
            self.engine.step()
        return names, sum(lengths)

    # measures

    def decode(self, bandwidth: float) -> list[dict[str, Any]]:
        """Measure steps in which all rows decode.

        Args:
            bandwidth: bytes a second of a copy, read and written.
        """
        found: list[dict[str, Any]] = []
        for rows in self.scale.rows:
            rounds: dict[tuple[bool, bool], list[tuple[list[float], float]]] = {
                (static, mixed): [] for static in (False, True) for mixed in (False, True)
            }
            for _ in range(self.scale.rounds):
                for (static, mixed), measured in rounds.items():
                    with self._steps(static=static):
                        names, tokens = self.decoding(rows, mixed=mixed)
                        times = [self._timed_step() for _ in range(self.scale.steps)]
                        self.engine.cancel(names)
                    floor = self._bytes_of_step(tokens, rows if mixed else 0) / bandwidth
                    measured.append((times, floor / statistics.median(times)))
            for (static, mixed), measured in rounds.items():
                seconds = [took for times, _ in measured for took in times]
                found.append(
                    {
                        "rows": rows,
                        "adapters": min(rows, len(self._adapters)) if mixed else 0,
                        "step": "static" if static else "packed",
                        "step_seconds": spread(seconds),
                        "tokens_per_second": spread([rows / took for took in seconds]),
                        "share_of_bandwidth": spread([share for _, share in measured]),
                    }
                )
                if mixed:
                    pairs = zip(rounds[static, False], measured, strict=True)
                    ratios = [statistics.median(base) / statistics.median(own) for (base, _), (own, _) in pairs]
                    found[-1]["mixed_over_base"] = spread(ratios)
        return found

    @contextmanager
    def _steps(self, *, static: bool) -> Iterator[None]:
        """Let rows that decode run in static steps, or in packed ones."""
        runner = self.engine.engine.serving.runner
        assert isinstance(runner, DecoderRunner)
        kept = runner.static
        runner.static = kept if static else None
        try:
            yield
        finally:
            runner.static = kept

    def graphs(self) -> dict[str, int]:
        """Return how many CUDA graphs there are, and their bytes."""
        runner = self.engine.engine.serving.runner
        assert isinstance(runner, DecoderRunner)
        captured = runner.captured
        return {"graphs": captured.count, "graphs_bytes": captured.bytes} if captured is not None else {}

    def first_token(self) -> list[dict[str, Any]]:
        """Measure the time from a request to its first token, with nothing else to do."""
        found = []
        for length in self.scale.prompts:
            seconds: dict[bool, list[float]] = {False: [], True: []}
            for turn in range(2 * self.scale.rounds + 1):
                for mixed in (False, True):
                    took = self._timed_flood([length], mixed=mixed)
                    if turn:  # the first warms up
                        seconds[mixed].append(took)
            ratios = [adapter / base for base, adapter in zip(seconds[False], seconds[True], strict=True)]
            found.append(
                {
                    "tokens": length,
                    "base_seconds": spread(seconds[False]),
                    "adapter_seconds": spread(seconds[True]),
                    "adapter_over_base": spread(ratios),
                }
            )
        return found

    def prefill(self) -> dict[str, Any]:
        """Measure prompts that come at once, in tokens a second."""
        requests, length = self.scale.flood
        speeds: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(self.scale.rounds):
            for mixed in (False, True):
                speeds[mixed].append(requests * length / self._timed_flood([length] * requests, mixed=mixed))
        return {
            "requests": requests,
            "tokens": length,
            "base_tokens_per_second": spread(speeds[False]),
            "mixed_tokens_per_second": spread(speeds[True]),
        }

    def mounting(self) -> dict[str, Any]:
        """Measure a mount from files, from host memory, and the steps of rows that decode during one from files."""
        from_host: list[float] = []
        longest: list[float] = []
        digest, directory = next(iter(self._adapters.items()))
        for _ in range(2 * self.scale.rounds):
            self.engine.unmount_to_host(digest)
            took, event = self._timed_mount(digest)
            assert event.tier == "host", event
            from_host.append(took)
        names, _ = self.decoding(self.scale.rows[-1], mixed=True)
        quiet = statistics.median(self._timed_step() for _ in range(self.scale.steps))
        for turn in range(self.scale.rounds):
            longest += [max(self._steps_during_mount(f"during-{turn}", directory)) / quiet]
        self.engine.cancel(names)
        return {
            "bytes": self.mounts[0][1].bytes,
            "from_files_seconds": spread([took for took, _ in self.mounts]),
            "from_host_seconds": spread(from_host),
            "longest_step_over_median": spread(longest),
        }

    def kernels(self) -> list[dict[str, Any]]:
        """Count what one step of the most rows gives to the device, and where it makes the host wait for it."""
        found = []
        for static in (False, True):
            for mixed in (False, True):
                with self._steps(static=static):
                    names, _ = self.decoding(self.scale.rows[-1], mixed=mixed)
                    waits = count_waits(self.engine.step, self.device)
                    launches = count_launches(self.engine.step, self.device)
                    self.engine.cancel(names)
                how = {"rows": self.scale.rows[-1], "mixed": mixed, "step": "static" if static else "packed"}
                found.append(how | launches | waits)
        return found

    # parts of measures

    def _timed_step(self) -> float:
        started = time.perf_counter()
        self.engine.step()
        return time.perf_counter() - started

    def _timed_flood(self, lengths: Sequence[int], *, mixed: bool) -> float:
        """Return the seconds from the first request to the last first token."""
        started = time.perf_counter()
        self.submit(lengths, 1, mixed=mixed)
        self.engine.drain()
        return time.perf_counter() - started

    def _timed_mount(self, digest: str) -> tuple[float, Any]:
        wait(self.device)
        started = time.perf_counter()
        event = self.engine.mount(digest, self._adapters[digest])
        wait(self.device)
        return time.perf_counter() - started, event

    def _steps_during_mount(self, digest: str, directory: Path) -> list[float]:
        """Return the seconds of every step while an adapter is loaded beside them, as the loader's thread does it."""
        loaded: list[Any] = []
        times: list[float] = []
        jobs = self.engine.load_later = []
        self.engine.engine.handle(Mount(digest, str(directory), digest))
        thread = threading.Thread(target=lambda: loaded.append(self.engine.loader.do(jobs[0])))
        thread.start()
        while not loaded:
            times.append(self._timed_step())
        thread.join()
        self.engine.load_later = None
        self.engine.engine.handle(loaded[0])
        return [*times, self._timed_step()]

    def _bytes_of_step(self, tokens: int, rows_with_adapters: int) -> float:
        """Return the bytes that a step must read: weights, keys and values, and the columns of active adapters."""
        model = self.engine.model
        config = model.config
        weights = sum(parameter.nbytes for parameter in model.parameters())
        embedding = model.get_input_embeddings().weight.nbytes  # looked up
        features = config.hidden_size // config.num_attention_heads * config.num_key_value_heads
        kept = 2 * features * config.num_hidden_layers * model.dtype.itemsize
        active = min(rows_with_adapters, len(self._adapters)) / len(self._adapters)
        return float(weights - embedding + tokens * kept + active * self.pack_bytes)
