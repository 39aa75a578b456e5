"""The whole system, once: a cluster of its own, the chart, Gemma in fp32 and the example adapters; and the oracle."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from graft_local import demo
from graft_local.cache import cache_directory
from graft_local.cluster import LocalCluster
from graft_local.demo_client import wait_until_routed
from graft_local.errors import LocalClusterError
from graft_local.gemma import BASE_NAME, ensure_checkpoint
from graft_local.progress import Progress

from tests.support.processes import process_of
from tests.support.waiting import wait_until

NEAR_TIE = 1e-4


@dataclass(frozen=True)
class Pool:
    """The pool `gemma` in the namespace `demo` of a cluster whose chart is installed."""

    cluster: LocalCluster
    address: str

    def kubectl(self, *arguments: str, **options: Any) -> str:
        return self.cluster.kubectl("-n", demo.NAMESPACE, *arguments, **options)

    @staticmethod
    def manifest(example: str) -> str:
        """One of the examples, but with fp32 weights, so that it can be compared token for token."""
        manifest = yaml.safe_load((demo.EXAMPLES / example).read_text())
        manifest["spec"]["baseModel"]["dtype"] = "float32"
        return str(yaml.safe_dump(manifest))

    def apply(self, example: str) -> None:
        """Apply one of the examples and wait until it is Ready."""
        self.kubectl("apply", "-f", "-", input=self.manifest(example))
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        self.kubectl("wait", "--for=condition=Ready", f"ad/{demo.POOL}", "--timeout=300s", timeout=330.0)

    def pods(self) -> dict[str, int]:
        return demo.pods(self.cluster, demo.NAMESPACE, demo.POOL)

    def eventually(self, holds: Callable[[], bool], what: str, seconds: float = 120.0) -> None:
        """Wait until it holds; what can't be asked just now is asked again."""
        wait_until(holds, what, seconds, retried=(LocalClusterError,))

    def kill(self, *words: str) -> None:
        """kill -9 the one process of this cluster whose command line holds all of `words`."""
        os.kill(process_of(self.cluster, *words), signal.SIGKILL)


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    return ensure_checkpoint(cache_directory(), Progress())


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[Pool]:
    with LocalCluster.start(tmp_path_factory.mktemp("whole")) as cluster:
        demo.set_up(cluster)
        cluster.kubectl("-n", demo.NAMESPACE, "apply", "-f", str(demo.EXAMPLES / "claims.yaml"))
        Pool(cluster, "").apply("gemma.yaml")
        address = demo.service_address(cluster, demo.NAMESPACE, demo.POOL)
        wait_until_routed(address)
        yield Pool(cluster, address)


class Oracle:
    """Transformers and PEFT, greedy, in fp32."""

    def __init__(self, checkpoint: Path) -> None:
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._torch = torch
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        base = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        names = sorted(path.name for path in (demo.EXAMPLES / "adapters").iterdir())
        directory = demo.EXAMPLES / "adapters"
        self._model = PeftModel.from_pretrained(base, directory / names[0], adapter_name=names[0])
        for name in names[1:]:
            self._model.load_adapter(directory / name, adapter_name=name)
        self._model.eval()
        self._known: dict[tuple[str, str, int], list[tuple[int, float]]] = {}

    def tokens(self, name: str, prompt: str, most: int) -> list[tuple[int, float]]:
        """Up to `most` tokens after `prompt`, the end token left out: (id, lead of the best logit over the next)."""
        key = (name, prompt, most)
        if key not in self._known:
            self._known[key] = self._greedy(name, prompt, most)
        return self._known[key]

    def _greedy(self, name: str, prompt: str, most: int) -> list[tuple[int, float]]:
        if name == BASE_NAME:
            with self._model.disable_adapter():
                return self._steps(prompt, most)
        self._model.set_adapter(name)
        return self._steps(prompt, most)

    def _steps(self, prompt: str, most: int) -> list[tuple[int, float]]:
        found: list[tuple[int, float]] = []
        ids = self.tokenizer(prompt, return_tensors="pt").input_ids
        cache = None
        with self._torch.inference_mode():
            while len(found) < most:
                output = self._model(input_ids=ids, past_key_values=cache, use_cache=True)
                cache = output.past_key_values
                best = output.logits[0, -1].topk(2)
                token = int(best.indices[0])
                if token == self.tokenizer.eos_token_id:
                    break
                found.append((token, float(best.values[0] - best.values[1])))
                ids = best.indices[None, :1]
        return found

    def check(self, name: str, prompt: str, most: int, text: str) -> None:
        """`text` is what these tokens spell; it may differ from a token on whose lead is below 1e-4."""
        tokens = self.tokens(name, prompt, most)
        ids = [token for token, _ in tokens]
        expected = self.tokenizer.decode(ids, skip_special_tokens=True)
        if text == expected:
            return
        agreeing = (at for at in range(len(ids)) if not text.startswith(self.tokenizer.decode(ids[: at + 1])))
        differs_at = next(agreeing, None)
        assert differs_at is not None, f"`{name}` goes on after {expected!r}: {text!r}"
        lead = tokens[differs_at][1]
        assert lead <= NEAR_TIE, f"`{name}`: token {differs_at} (lead {lead:.2g}) of {expected!r} differs in {text!r}"


@pytest.fixture(scope="session")
def oracle(checkpoint: Path) -> Oracle:
    with warnings.catch_warnings():
        # PEFT asks the model for an attribute that Transformers has deprecated.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        return Oracle(checkpoint)
