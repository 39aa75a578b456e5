"""vLLM, where `make test-vllm` has installed it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.pod_process import PodProcess
from tests.support.vllm_engine import VllmEngine


@pytest.fixture(scope="session", autouse=True)
def vllm_python() -> Path:
    """The interpreter of vLLM's environment."""
    if "VLLM_PYTHON" not in os.environ:
        pytest.skip("`make test-vllm` installs vLLM, and says where in VLLM_PYTHON")
    return Path(os.environ["VLLM_PYTHON"])


@pytest.fixture(scope="module")
def start_vllm(vllm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], VllmEngine]]:
    """`start_vllm()`: an engine that waits for its pod; killed at the end."""
    started: list[VllmEngine] = []

    def start() -> VllmEngine:
        started.append(VllmEngine(vllm_python, tmp_path_factory.mktemp("vllm")))
        return started[-1]

    yield start
    for engine in started:
        engine.kill()


@pytest.fixture(scope="session")
def base(make_base: Callable[..., Path]) -> Path:
    """A Llama with heads of 64, as vLLM's attention for CPUs wants 32 at least."""
    return make_base("wide llama")


@pytest.fixture(scope="module")
def make_vllm_pod(
    tmp_path_factory: pytest.TempPathFactory, base: Path, start_vllm: Callable[[], VllmEngine]
) -> Iterator[Callable[..., Any]]:
    """`make_vllm_pod(**config)`: a pod that has not started, and its engine, which waits for it."""
    made: list[PodProcess] = []

    def make(**config: Any) -> tuple[PodProcess, VllmEngine]:
        pod = PodProcess(tmp_path_factory.mktemp("pod"), **config)
        pod.put("base", base)
        made.append(pod)
        return pod, start_vllm()

    yield make
    for pod in made:
        if pod.process is not None and pod.process.poll() is None:
            pod.kill()
