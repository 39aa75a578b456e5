"""What one round of `engine.py` measures, by name, and which ratios come of it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine_load import Asked, Prompts, Stream, await_tokens, uneven
from engine_servers import BASE, Server

EIGHT = 8
RANKS = (8, 8, 16, 16, 32, 32, 64, 64)
EVEN = [f"even-{number}" for number in range(EIGHT)]
MIXED = [f"mixed-{number}" for number in range(len(RANKS))]
MANY = [f"many-{number}" for number in range(64)]
FRESH = [f"fresh-{number}" for number in range(8)]
"""Each is asked for once: in the round of its number."""
KEPT = 24
"""Tokens of a prompt that are new where the others were asked for before."""
SINGLE = 3
"""Requests of one round where each is timed alone."""

RATIOS: Mapping[str, tuple[str, str | None]] = {
    "base_over_transformers": ("base", "transformers"),
    "base_over_vllm_cpu": ("base", "vllm_base"),
    "mixed8_over_peft": ("mixed8", "peft"),
    "mixed8_over_vllm_cpu": ("mixed8", "vllm_mixed8"),
    "mixed8_over_base": ("mixed8", "base"),
    "mixed8_over_base_eager": ("mixed8", "base"),  # steps on a CPU are not compiled: both are the same
    "mixed8_ranks_over_base": ("mixed8_ranks", "base"),
    "idle_over_none": ("base", "none_mounted"),
    "one_base_over_vllm_cpu": ("one_base", "vllm_one_base"),
    "one_adapter_over_vllm_cpu": ("one_adapter", "vllm_one_adapter"),
    "ttft_adapter_over_base_64": ("ttft_adapter_64", "ttft_base_64"),
    "ttft_adapter_over_base_1024": ("ttft_adapter_1024", "ttft_base_1024"),
    "sampled_over_greedy": ("sampled", "base"),
    "uneven_over_even": ("uneven", "base"),
    "arrival_step_over_median": ("arrival_step_over_median", None),
    "mount_step_over_median": ("mount_step_over_median", None),
    "prefix_hit_ttft": ("ttft_hit", "ttft_miss"),
    "decode_over_limit": ("step_at_limit", "step"),
    "http_over_engine": ("http", "engine_alone"),
    "churn64_over_8": ("churn64", "resident8"),
}
"""Of two measures of one round; None: the measure is a ratio already."""


@dataclass(frozen=True)
class Scale:
    """How large a run is. Lengths are in tokens.

    Attributes:
        rows: requests at once.
        prompt: of each.
        answer: of each.
        long_prompt: where first tokens are timed.
        churning: requests that draw from many adapters.
        churn_answer: of each of these.
        memory: bytes that are read to find the memory's bandwidth.
    """

    rows: int
    prompt: int
    answer: int
    long_prompt: int
    churning: int
    churn_answer: int
    memory: int


FULL = Scale(16, 64, 64, 1024, 48, 32, 1 << 30)
SMALL = Scale(4, 12, 16, 48, 8, 4, 1 << 20)


class Measures:
    """The measures of one run.

    Args:
        servers: by name; peers may be missing.
        alone: asks the engine without HTTP.
        scale: of the run.
        model: directory of the base.
        say: prints a line of progress.
    """

    def __init__(
        self,
        servers: Mapping[str, Server],
        alone: Callable[..., float],
        scale: Scale,
        model: Path,
        say: Callable[[str], None],
    ) -> None:
        self._servers, self._alone, self._scale, self._say = servers, alone, scale, say
        config = json.loads((model / "config.json").read_text())
        self._prompts = Prompts(range(8, config["vocab_size"] * 3 // 4))
        self._weights = sum(file.stat().st_size for file in model.glob("*.safetensors"))
        features = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        heads = config["num_key_value_heads"] * features * 2 * config["num_hidden_layers"]
        self._token_bytes = heads * (2 if config.get("dtype") == "bfloat16" else 4)
        self._fresh = iter(FRESH)

    def warm(self) -> None:
        """Let every server answer once with each of its adapters: what is set up first is not measured."""
        for name, server in self._servers.items():
            models = {"peft": EVEN, "vllm with adapters": EVEN, "pod adapted": [*EVEN, *MIXED]}.get(name, [])
            with server.awake() as client:
                client.together(self._requests([BASE, *models], answer=4))
            self._say(f"{name} is warm")
        self._alone(prompts=self._texts(), tokens=4)

    def round(self) -> dict[str, float]:
        """Measure everything once."""
        found: dict[str, float] = {}
        for measure in (self._throughput, self._single, self._first_tokens, self._steps, self._churn):
            found |= measure()
        return found

    # measures

    def _throughput(self) -> dict[str, float]:
        scale, found = self._scale, dict[str, float]()
        sizes = list(uneven(scale.prompt, scale.rows))
        answers = list(reversed(list(uneven(scale.answer, scale.rows))))
        unlike = [Asked(BASE, self._prompts(size), answer) for size, answer in zip(sizes, answers, strict=True)]
        for name, server, asked in (
            ("base", "pod adapted", self._requests([BASE])),
            ("transformers", "transformers", self._requests([BASE])),
            ("vllm_base", "vllm", self._requests([BASE])),
            ("mixed8", "pod adapted", self._requests(EVEN)),
            ("peft", "peft", self._requests(EVEN)),
            ("vllm_mixed8", "vllm with adapters", self._requests(EVEN)),
            ("none_mounted", "pod plain", self._requests([BASE])),
            ("mixed8_ranks", "pod adapted", self._requests(MIXED)),
            ("sampled", "pod adapted", self._requests([BASE], temperature=1.0)),
            ("uneven", "pod adapted", unlike),
        ):
            found |= self._speed(name, server, asked)
        return found

    def _single(self) -> dict[str, float]:
        """Measure one request alone, in tokens a second of the whole answer."""
        found: dict[str, float] = {}
        for name, server, model in (
            ("one_base", "pod adapted", BASE),
            ("vllm_one_base", "vllm", BASE),
            ("one_adapter", "pod adapted", EVEN[0]),
            ("vllm_one_adapter", "vllm with adapters", EVEN[0]),
        ):
            found |= self._speed(name, server, self._requests([model], count=1))
        return found

    def _first_tokens(self) -> dict[str, float]:
        scale, found = self._scale, dict[str, float]()
        with self._servers["pod adapted"].awake() as client:

            def timed(model: str, prompts: Sequence[list[int]]) -> float:
                return statistics.median(client.first_token(Asked(model, prompt, 1)) for prompt in prompts)

            for name, length in (("64", scale.prompt), ("1024", scale.long_prompt)):
                for whose, model in (("base", BASE), ("adapter", EVEN[0])):
                    found[f"ttft_{whose}_{name}"] = timed(model, [self._prompts(length) for _ in range(SINGLE)])
            past = [self._prompts(scale.long_prompt) for _ in range(SINGLE)]
            found["ttft_miss"] = timed(EVEN[1], past)
            found["ttft_hit"] = timed(EVEN[1], [prompt[:-KEPT] + self._prompts(KEPT) for prompt in past])
        self._tell(found)
        return found

    def _steps(self) -> dict[str, float]:
        """Measure the steps that clients see: in which rows decode, in which others arrive, beside a mount."""
        scale, found = self._scale, dict[str, float]()
        with self._servers["pod adapted"].awake() as client:
            running = client.streams(self._requests([BASE]))
            found["http"], found["step"] = running.speed, statistics.median(running.steps())
        bandwidth = self._alone(bytes=scale.memory)
        tokens = scale.rows * (scale.prompt + scale.answer // 2)
        found["memory_bytes_per_second"] = bandwidth
        found["step_at_limit"] = (self._weights + tokens * self._token_bytes) / bandwidth
        found["engine_alone"] = self._alone(prompts=self._texts(), tokens=scale.answer)
        with self._servers["pod churn"].awake() as client:

            def half() -> list[Asked]:
                return self._requests([BASE], count=scale.rows // 2)

            def arrivals(streams: Sequence[Stream]) -> None:
                for _ in range(3):
                    await_tokens(streams[0], scale.answer // 8)
                    client.first_token(Asked(BASE, self._prompts(scale.prompt), 1))

            def mount(streams: Sequence[Stream]) -> None:
                await_tokens(streams[0], scale.answer // 4)
                client.first_token(Asked(next(self._fresh), self._prompts(scale.prompt // 8), 1))

            found["arrival_step_over_median"] = client.streams(half(), arrivals).longest_over_median()
            found["mount_step_over_median"] = client.streams(half(), mount).longest_over_median()
        self._tell(found)
        return found

    def _churn(self) -> dict[str, float]:
        """Measure requests whose adapters are drawn by popularity: of many over eight places, and of eight."""
        scale, found = self._scale, dict[str, float]()
        for name, server, adapters in (("resident8", "pod adapted", EVEN), ("churn64", "pod churn", MANY)):
            drawn = self._prompts.zipf(adapters, scale.churning)
            asked = [Asked(model, self._prompts(scale.prompt // 2), scale.churn_answer) for model in drawn]
            found |= self._speed(name, server, asked)
        return found

    # parts of measures

    def _requests(
        self, models: Sequence[str], *, count: int | None = None, answer: int | None = None, temperature: float = 0.0
    ) -> list[Asked]:
        """Return requests that take turns in these models."""
        scale = self._scale
        names = [models[row % len(models)] for row in range(count or max(scale.rows, len(models)))]
        return [Asked(name, self._prompts(scale.prompt), answer or scale.answer, temperature) for name in names]

    def _texts(self) -> list[list[int]]:
        return [self._prompts(self._scale.prompt) for _ in range(self._scale.rows)]

    def _speed(self, name: str, server: str, asked: Sequence[Asked]) -> dict[str, float]:
        """Return tokens a second under this name; nothing where the server is missing."""
        if server not in self._servers:
            return {}
        with self._servers[server].awake() as client:
            found = {name: client.together(asked, self._scale.rows)}
        self._tell(found)
        return found

    def _tell(self, found: Mapping[str, float]) -> None:
        self._say(", ".join(f"{name} {value:.4g}" for name, value in found.items()))
