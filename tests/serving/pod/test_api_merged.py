"""A merged pool through the real server: its one name, what it reports, and how it gets there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from graft_runtime.contract.checkpoints import Digest, Source
from graft_runtime.contract.config import Merge, MergePart
from graft_runtime.contract.status import AdapterState, BaseState, RuntimeStatus
from graft_runtime.errors import ErrorCode

from tests.support.waiting import wait_until

OTHER_DIGEST: Digest = "sha256:" + "0" * 64


def merge_of(*parts: MergePart) -> Merge:
    return Merge(name="both", adapters=parts)


def part(name: str, adapter: Path, weight: float = 1.0) -> MergePart:
    return MergePart(name=name, source=Source(uri=f"pvc://shelf/{name}-{adapter.parent.name}"), weight=weight)


def status(pod: Any) -> RuntimeStatus:
    found = pod.status()
    assert found is not None
    return found  # type: ignore[no-any-return]


def has_started(pod: Any) -> bool:
    return bool(pod.probe("/startupz") == 200)


@pytest.fixture(scope="module")
def adapters(make_adapter: Any, drift: Any) -> dict[str, Path]:
    """The modules of `sql` have moved."""
    return {"billing": make_adapter("billing"), "sql": drift(make_adapter("sql", target_modules=["q_proj", "v_proj"]))}


@pytest.fixture(scope="module")
def merged(make_pod: Callable[..., Any], adapters: dict[str, Path]) -> Any:
    """A pod that serves `both`: billing and half of sql."""
    pod = make_pod(merge=merge_of(part("billing", adapters["billing"]), part("sql", adapters["sql"], 0.5)))
    entries = [pod.entry(name, adapter, pinned=True) for name, adapter in adapters.items()]
    pod.mount_set(pod.set_of(1, *entries))
    pod.start()
    pod.wait_ready()
    return pod


def test_only_the_merge_is_served(merged: Any) -> None:
    assert [card["id"] for card in merged.get("/v1/models").json["data"]] == ["both"]
    assert merged.get("/v1/models/both").status == 200
    text = merged.text("both")
    for name in ("tiny", "billing", "sql", "nobody"):
        reply = merged.complete(name)
        assert (reply.status, reply.json["error"]["code"]) == (404, "model_not_found")
        assert "`both`" in reply.json["error"]["message"]
        assert merged.get(f"/v1/models/{name}").status == 404
    omitted = merged.post("/v1/completions", {"prompt": "hello", "temperature": 0, "max_tokens": 8})
    assert (omitted.status, omitted.json["model"], omitted.json["choices"][0]["text"]) == (200, "both", text)
    chat = merged.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2})
    assert chat.status == 200
    assert 'adapter="both"' in merged.get("/metrics").content.decode()


def test_the_status_names_what_is_merged(merged: Any) -> None:
    found = status(merged)
    assert found.base.merge is not None
    assert (found.base.name, found.base.merge.name) == ("tiny", "both")
    assert [(one.name, one.weight) for one in found.base.merge.adapters] == [("billing", 1.0), ("sql", 0.5)]
    assert {
        (one.name, one.state, one.facts and one.facts.rank, one.facts and one.facts.remapped) for one in found.adapters
    } == {
        ("billing", AdapterState.MERGED, 4, None),
        ("sql", AdapterState.MERGED, 4, "nothing → model at the start of modules' names"),
    }
    digests = [str(one.digest) for one in found.base.merge.adapters]
    assert merged.complete("both").headers["x-graft-adapter-digest"] == ", ".join(digests)
    assert [(one["name"], one["state"]) for one in merged.get("/v1/adapters").json["data"]] == [
        ("billing", "Merged"),
        ("sql", "Merged"),
    ]


def test_another_version_in_a_later_set_is_reported_and_not_served(merged: Any, adapters: dict[str, Path]) -> None:
    text = merged.text("both")
    entries = [merged.entry("billing", adapters["billing"], digest=OTHER_DIGEST), merged.entry("sql", adapters["sql"])]
    assert merged.push(merged.set_of(2, *entries)).status == 200
    report = merged.report("billing")
    assert (report.state, report.digest, report.fault.code) == (
        AdapterState.FAILED,
        OTHER_DIGEST,
        ErrorCode.MERGE_OUTDATED,
    )
    assert merged.report("sql").state is AdapterState.MERGED
    assert merged.text("both") == text
    assert merged.probe("/readyz") == 200


def test_the_base_waits_for_the_digests(make_pod: Callable[..., Any], adapters: dict[str, Path]) -> None:
    adapter = adapters["billing"]
    pod = make_pod(merge=merge_of(part("billing", adapter)))
    pod.start()
    wait_until(lambda: pod.probe("/livez") == 200)
    known = pod.entry("billing", adapter)
    unresolved = known.model_copy(update={"digest": None})
    assert pod.push(pod.set_of(1, unresolved)).status == 200
    wait_until(lambda: (fault := status(pod).base.fault) and fault.code is ErrorCode.RESOLVING)
    assert status(pod).base.state is BaseState.FETCHING
    assert (pod.probe("/startupz"), pod.probe("/readyz"), pod.complete("both").status) == (503, 503, 503)
    elsewhere = known.model_copy(update={"source": Source(uri="pvc://shelf/elsewhere")})
    assert pod.push(pod.set_of(2, elsewhere)).status == 200, "another source is none of this merge"
    assert pod.push(pod.set_of(3, unresolved.model_copy(update={"fault": not_found()}))).status == 200
    wait_until(lambda: status(pod).base.state is BaseState.FAILED)
    assert pod.probe("/startupz") == 200, "a restart would not help"
    assert pod.push(pod.set_of(4, known.model_copy(update={"digest": OTHER_DIGEST}))).status == 200
    wait_until(lambda: (fault := status(pod).base.fault) and fault.code is ErrorCode.DIGEST_MISMATCH)
    assert pod.report("billing").fault.code is ErrorCode.DIGEST_MISMATCH
    assert pod.push(pod.set_of(5, known)).status == 200
    pod.wait_ready()
    assert pod.report("billing").state is AdapterState.MERGED
    assert status(pod).base.fault is None
    assert pod.text("both")


def not_found() -> Any:
    from graft_runtime.contract.wire import Fault

    return Fault(code=ErrorCode.NOT_FOUND, message="the shelf is empty")


def test_a_bad_adapter_fails_the_base_for_good(make_pod: Callable[..., Any], make_adapter: Any, make_base: Any) -> None:
    """One that the files show, and one that only the base shows."""
    for adapter, code in (
        (make_adapter("huge", r=32), ErrorCode.RANK_TOO_HIGH),
        (make_adapter("foreign", base=make_base("gpt2")), ErrorCode.BASE_MISMATCH),
    ):
        pod = make_pod(merge=merge_of(part("bad", adapter)))
        pod.mount_set(pod.set_of(1, pod.entry("bad", adapter)))
        pod.start()
        wait_until(partial(has_started, pod))
        found = status(pod)
        assert found.base.fault is not None
        assert (found.base.state, found.base.fault.code) == (BaseState.FAILED, code)
        assert [(one.state, one.fault.code) for one in found.adapters if one.fault] == [(AdapterState.FAILED, code)]
        assert pod.probe("/readyz") == 503
        reply = pod.complete("both")
        assert (reply.status, reply.json["error"]["code"]) == (400, code), "trying again would not help"
        pod.kill()
