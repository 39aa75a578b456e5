"""Pods that lack bytes are told of those that serve, once, and again before their tokens end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, cast

from graft_operator.clients.introductions import Introductions
from graft_operator.clients.runtime_client import PodAddress, RuntimeClient, RuntimeUnreachableError
from graft_operator.decisions.introductions import RENEW_SECONDS
from graft_operator.decisions.observed import Observed
from graft_operator.keys import PoolKey
from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.status import AdapterState, BaseReport, BaseState

from tests.support.pools import BILLING, plan_of, running, sha

BASE = Source(uri="pvc://shelf/base")
KEY = PoolKey("team", "support")


def reporting(observed: Observed, uid: str, **changes: Any) -> Observed:
    """Let a pod report otherwise."""
    known = observed.reports[uid]
    assert known.status is not None
    status = known.status.model_copy(update=changes)
    return replace(observed, reports={**observed.reports, uid: replace(known, status=status)})


def without_bytes(observed: Observed, uid: str) -> Observed:
    """Let a pod have none of its adapters yet, and all others all of them."""
    for pod in observed.pods:
        status = observed.reports[pod.uid].status
        assert status is not None
        state = {"state": AdapterState.FETCHING, "bytes": None} if pod.uid == uid else {"bytes": 4096}
        adapters = tuple(report.model_copy(update=state) for report in status.adapters)
        observed = reporting(observed, pod.uid, adapters=adapters)
    return observed


def introduced(observed: Observed) -> dict[str, tuple[tuple[str, ...], str | None]]:
    return {
        told.pod.uid: (tuple(peer.uid for peer in told.peers), told.base) for told in plan_of(observed).introductions
    }


def test_who_has_all_bytes_is_told_of_nobody() -> None:
    assert introduced(without_bytes(running(BILLING), "none")) == {}


def test_who_lacks_an_adapter_is_told_of_those_that_serve() -> None:
    lacking = without_bytes(running(BILLING), "pod-1")
    assert introduced(lacking) == {"pod-1": (("pod-0",), None)}
    assert plan_of(lacking).requeue_after <= RENEW_SECONDS


def test_who_lacks_its_base_is_told_which_one_the_others_serve_from_the_same_source() -> None:
    fetching = BaseReport(name="base", state=BaseState.FETCHING, source=BASE)
    serving = BaseReport(name="base", state=BaseState.SERVING, source=BASE, digest=sha("base"))
    lacking = reporting(without_bytes(running(BILLING), "none"), "pod-1", base=fetching)
    lacking = reporting(lacking, "pod-0", base=serving)
    assert introduced(lacking) == {"pod-1": (("pod-0",), sha("base"))}
    elsewhere = serving.model_copy(update={"source": Source(uri="pvc://shelf/other")})
    assert introduced(reporting(lacking, "pod-0", base=elsewhere)) == {"pod-1": (("pod-0",), None)}


def test_a_pod_that_serves_nothing_is_nobody_s_peer() -> None:
    fetching = BaseReport(name="base", state=BaseState.FETCHING)
    lacking = without_bytes(running(BILLING), "pod-1")
    assert introduced(reporting(lacking, "pod-0", base=fetching)) == {"pod-0": (("pod-1",), None)}


def test_a_pod_that_ends_is_asked_last() -> None:
    lacking = without_bytes(running(BILLING, replicas=3), "pod-2")
    pods = tuple(replace(pod, deleting=True) if pod.uid == "pod-0" else pod for pod in lacking.pods)
    assert introduced(replace(lacking, pods=pods)) == {"pod-2": (("pod-1", "pod-0"), None)}


class Client:
    """Notes who was told of whom."""

    def __init__(self) -> None:
        self.told: list[tuple[str, list[str]]] = []

    async def introduce(self, pod: PodAddress, peers: Iterable[PodAddress], base: str | None) -> None:
        self.told.append((pod.uid, [peer.uid for peer in peers]))
        raise RuntimeUnreachableError("which is no harm")


async def test_a_pod_is_told_once_and_again_before_its_tokens_end() -> None:
    client, now = Client(), 100.0
    introductions = Introductions(cast(RuntimeClient, client), lambda: now)
    wanted = plan_of(without_bytes(running(BILLING), "pod-1")).introductions
    for _ in range(3):
        introductions.make(KEY, wanted)
        await asyncio.sleep(0)
    assert client.told == [("pod-1", ["pod-0"])]

    now += RENEW_SECONDS
    introductions.make(KEY, wanted)
    await asyncio.sleep(0)
    assert len(client.told) == 2
    introductions.make(KEY, (replace(wanted[0], boot_id="another"),))
    await asyncio.sleep(0)
    assert len(client.told) == 3, "a pod that has started again knows nobody"
    introductions.make(KEY, ())
    introductions.make(KEY, wanted)
    await introductions.close()
