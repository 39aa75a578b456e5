"""A pod whose base model and adapter are on a private Hub: from the token in the Secret to an answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from graft_runtime.contract.adapter_set import AdapterEntry
from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.config import BaseModelConfig, SourceMount
from graft_runtime.contract.control import Resolution, ResolveRequest
from graft_runtime.contract.status import AdapterState, BaseState

from tests.support.waiting import wait_until

TUNED = Source(uri="hf://acme/tuned/final", revision="v1")


def files_of(directory: Path, below: str = "") -> dict[str, bytes]:
    return {below + path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


@pytest.fixture
def full_hub(hub: Any, tiny_base: Path, make_adapter: Callable[..., Path]) -> Any:
    """With a base model and an adapter for it."""
    hub.put("acme/base", hub.commit, files_of(tiny_base), "v1")
    hub.put("acme/tuned", hub.commit, files_of(make_adapter("tuned"), "final/"), "v1")
    return hub


def test_from_a_private_hub_to_an_answer(full_hub: Any, secret: Path, make_pod: Callable[..., Any]) -> None:
    hub = full_hub
    hub.token = "hf_new"
    pod = make_pod(
        base_model=BaseModelConfig(name="base", source=Source(uri="hf://acme/base", revision="v1"), dtype="float32"),
        sources=(SourceMount(name="acme", kind="remote", uri_prefixes=("hf://acme/",), endpoint=hub.url),),
    )
    pod.mount_set(pod.set_of(1))
    pod.start("--source-mount", "acme", str(secret), "--allowed-network", "127.0.0.0/8")

    refused = wait_until(lambda: pod.probe("/livez") and pod.status().base.fault)
    assert (refused.code, "hf_very_secret" in pod.log) == ("Unauthorized", False)
    (secret / "token").write_text("hf_new")  # as the kubelet does when the Secret changes
    pod.wait_ready()
    base = pod.status().base
    assert (base.state, base.revision) == (BaseState.SERVING, hub.commit)

    reply = pod.control("POST", "/resolve", ResolveRequest(source=TUNED).model_dump(mode="json", by_alias=True))
    found = Resolution.read(reply.content)
    assert (found.fault, found.revision) == (None, hub.commit)
    entry = AdapterEntry(name="tuned", source=TUNED, digest=found.digest, revision=found.revision)
    assert pod.push(pod.set_of(2, entry)).status == 200
    report: Any = wait_until(lambda: (found := pod.report("tuned")) and found.state is AdapterState.MOUNTED and found)
    assert (report.revision, report.digest) == (hub.commit, found.digest)
    assert pod.text("tuned", seed=1) != pod.text("base", seed=1)
    assert "hf_new" not in pod.log
