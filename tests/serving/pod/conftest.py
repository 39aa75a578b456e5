"""A pod's runtime as a process of its own, one for each module of tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support.pod_process import PodProcess


@pytest.fixture(scope="module")
def make_pod(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[Callable[..., PodProcess]]:
    """`make_pod(base=tiny_base, **config)`: a pod with the base on its shelf, not started yet; killed at the end."""
    made: list[PodProcess] = []

    def make(base: Path = tiny_base, **config: Any) -> PodProcess:
        pod = PodProcess(tmp_path_factory.mktemp("pod"), **config)
        pod.put("base", base)
        made.append(pod)
        return pod

    yield make
    for pod in made:
        if pod.process is not None and pod.process.poll() is None:
            pod.kill()


@pytest.fixture(scope="module")
def client(pod: Any) -> Iterator[openai.OpenAI]:
    """OpenAI's client of the module's own `pod`."""
    with openai.OpenAI(base_url=f"http://{pod.address}:8000/v1", api_key="none", max_retries=0) as client:
        yield client
