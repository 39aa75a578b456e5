"""The pool on a cluster of its own, clients who ask it all the time, and what they must be answered."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from graft_local import demo, helm
from graft_local.cluster import LocalCluster
from graft_local.demo_client import wait_until_routed

from tests.support.load import Asked, Load
from tests.support.waiting import wait_until
from tests.whole.kills.pool import ADAPTERS, BASE, CLAIM, EXTRA, NAMESPACE, POOL, SYSTEM, Pool

PROMPTS = ("hello", "1, 2, 3,")
LEAD = 1e-4
"""Of each token of the expected answers over the next best: what else is in a batch must not decide."""


@pytest.fixture(scope="package")
def checkpoints(tiny_base: Path, make_adapter: Callable[..., Path]) -> dict[str, Path]:
    """By name; the base's as well."""
    return {BASE: tiny_base} | {name: make_adapter(name) for name in (*ADAPTERS, EXTRA)}


@pytest.fixture(scope="package")
def pool(tmp_path_factory: pytest.TempPathFactory, checkpoints: dict[str, Path]) -> Iterator[Pool]:
    """Ready. Faults of its control plane hurt nobody else."""
    with LocalCluster.start(tmp_path_factory.mktemp("kills")) as cluster:
        helm.install(
            cluster.kubeconfig, "graft", demo.CHART, namespace=SYSTEM, values=demo.CHART_VALUES, create_namespace=True
        )
        cluster.kubectl("create", "namespace", NAMESPACE)
        shelf = cluster.claim_directory(NAMESPACE, "shelf")
        for name, checkpoint in checkpoints.items():
            shutil.copytree(checkpoint, shelf / ("base" if name == BASE else name))
        Pool(cluster, "").kubectl("apply", "-f", "-", input=json.dumps(CLAIM))
        Pool(cluster, "").apply(*ADAPTERS)
        Pool(cluster, "").kubectl("wait", "--for=condition=Ready", f"ad/{POOL}", "--timeout=200s", timeout=210.0)
        address = demo.service_address(cluster, NAMESPACE, POOL)
        wait_until_routed(address)
        yield Pool(cluster, address)


@pytest.fixture(scope="package")
def expected(pool: Pool, checkpoints: dict[str, Path]) -> Callable[[str, str, int], str]:
    """`expected(name, prompt, tokens)`: what Transformers and PEFT answer, greedily, in float32."""
    from transformers import AutoTokenizer

    from tests.support.oracle import Oracle

    base, *adapters = pool.names
    tokenizer = AutoTokenizer.from_pretrained(checkpoints[base])
    oracle = Oracle(checkpoints[base])
    for name in adapters:
        oracle.load(checkpoints[name], name)

    def answer(name: str, prompt: str, tokens: int) -> str:
        made = oracle.answer(tokenizer(prompt).input_ids, None if name == base else name, tokens=tokens)
        ended = [*made.tokens, tokenizer.eos_token_id].index(tokenizer.eos_token_id) + 1
        assert min(made.margins[:ended]) > LEAD, f"{name} may go on from {prompt!r} in two ways"
        return str(tokenizer.decode(made.tokens[:ended], skip_special_tokens=True))

    return answer


@pytest.fixture(scope="package")
def load(pool: Pool, expected: Callable[[str, str, int], str]) -> Iterator[Load]:
    """Running, and every name was answered."""
    digests = pool.digests()

    def asked(tokens: int, *, streamed: bool) -> list[Asked]:
        found = [
            Asked(name, prompt, tokens, streamed, expected(name, prompt, tokens), digests.get(name))
            for prompt in PROMPTS
            for name in pool.names
        ]
        assert len({one.text for one in found}) == len(found), "the answers must tell the names apart"
        return found

    kinds = {
        "short": asked(12, streamed=False),
        "kept connection": asked(24, streamed=False),
        "stream": asked(24, streamed=True),
        "long stream": asked(120, streamed=True),
    }
    load = Load(pool.address, kinds)
    try:
        began, count = time.monotonic(), 4 * len(pool.names) * len(PROMPTS)
        wait_until(lambda: len(load.results(began)) >= count, "each client has asked for every name", 60)
        yield load
    finally:
        load.stop()
