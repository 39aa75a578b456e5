"""Two real pods of which one has its sources, and the other has them no more."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from graft_runtime.contract.control import CheckpointFiles, Peer, Peers, checkpoint_audience

from tests.support.pod_process import POD_UID, PodProcess
from tests.support.waiting import wait_until

CHECKPOINTS = checkpoint_audience(POD_UID)


@pytest.fixture(scope="module")
def pod(make_pod: Callable[..., PodProcess], make_adapter: Callable[..., Path]) -> PodProcess:
    """Serves `billing`, and has read another adapter once."""
    found = make_pod()
    found.mount_set(found.set_of(1, found.entry("billing", make_adapter("billing"))))
    found.start()
    found.wait_ready()
    return found


def digest_of(pod: PodProcess, name: str) -> str:
    return str(pod.report(name).digest)


def test_a_pod_without_any_source_serves_what_another_one_serves(
    pod: PodProcess, make_pod: Callable[..., PodProcess]
) -> None:
    born = make_pod()
    (born.shelf / "base").rename(born.directory / "gone")
    source = next(path.name for path in pod.shelf.iterdir() if path.name.startswith("billing"))
    entry = {"name": "billing", "source": {"uri": f"pvc://shelf/{source}"}, "digest": digest_of(pod, "billing")}
    adapter_set = born.set_of(1).model_copy(update={"adapters": ()})
    born.mount_set(type(adapter_set).model_validate(adapter_set.model_dump() | {"adapters": (entry,)}))
    born.start()
    told: Any = wait_until(lambda: born.probe("/livez") == 200 and (status := born.status()) and status.base.fault)
    assert told.code == "NotFound"

    serving = pod.status()
    assert serving is not None
    peer = Peer(address=ip_address(pod.address), token=pod.token(aud=CHECKPOINTS))
    introduction = Peers(peers=(peer,), base=serving.base.digest)
    assert born.control("PUT", "/peers", introduction.canonical_json()).status == 204
    born.wait_ready()
    assert born.text("billing") == pod.text("billing")
    assert born.text("tiny") == pod.text("tiny")
    assert digest_of(born, "billing") == digest_of(pod, "billing")
    born.kill()


def test_what_a_pod_serves_is_handed_over_with_a_token_for_it(pod: PodProcess) -> None:
    path, token = f"/checkpoints/{digest_of(pod, 'billing')}", pod.token(aud=CHECKPOINTS)
    listed = CheckpointFiles.read(pod.control("GET", path, token=token).content).files
    assert {file.path for file in listed} >= {"adapter_config.json", "adapter_model.safetensors"}
    for file in listed:
        assert len(pod.control("GET", f"{path}/{file.path}", token=token).content) == file.size


@pytest.mark.parametrize("path", ["/checkpoints/{digest}", "/checkpoints/{digest}/adapter_config.json"])
def test_nobody_else_is_given_anything(pod: PodProcess, path: str) -> None:
    path = path.format(digest=digest_of(pod, "billing"))
    for audience in (POD_UID, checkpoint_audience("another")):
        assert pod.control("GET", path, token=pod.token(aud=audience)).status == 401
    assert pod.control("GET", path, token="none").status == 401


@pytest.mark.parametrize(("method", "path"), [("PUT", "/adapter-set"), ("PUT", "/peers"), ("GET", "/status")])
def test_a_token_for_checkpoints_opens_nothing_else(pod: PodProcess, method: str, path: str) -> None:
    assert pod.control(method, path, {}, token=pod.token(aud=CHECKPOINTS)).status == 401


def test_what_this_pod_does_not_serve_is_not_handed_over(pod: PodProcess, make_adapter: Callable[..., Path]) -> None:
    resolved: Any = pod.entry("sql", make_adapter("sql"), digest=None)
    answer = pod.control("POST", "/resolve", {"source": {"uri": resolved.source.uri}})
    digest = answer.json["digest"]
    for path in (digest, f"{digest}/adapter_config.json", "sha256:" + "0" * 64, "..", digest_of(pod, "billing") + "/x"):
        assert pod.control("GET", f"/checkpoints/{path}", token=pod.token(aud=CHECKPOINTS)).status == 404


def test_pods_that_share_a_cache_need_the_sources_once(
    make_pod: Callable[..., PodProcess], make_adapter: Callable[..., Path], pod: PodProcess, tmp_path: Path
) -> None:
    serving = pod.status()
    assert serving is not None
    base = pod.config.base_model.model_copy(update={"digest": serving.base.digest})
    first, second = make_pod(base_model=base), make_pod(base_model=base)
    entry = first.entry("billing", make_adapter("billing"))
    for each in (first, second):
        each.mount_set(each.set_of(1, entry))
    first.start("--shared-cache-directory", str(tmp_path), "--pod-uid", "first")
    first.wait_ready()
    (second.shelf / "base").rename(second.directory / "gone")
    second.start("--shared-cache-directory", str(tmp_path), "--pod-uid", "second")
    second.wait_ready()
    assert second.text("billing") == first.text("billing")
    assert not list((second.directory / "cache").glob("sha256/*"))
    for each in (first, second):
        each.kill()
