"""Which adapters are mounted, who holds them, and what stays of those that leave."""

from __future__ import annotations

import pytest
import torch
from graft_runtime.adapters.deltas import CompiledAdapter, LowRank, ModuleDelta
from graft_runtime.contract.facts import AdapterFacts
from graft_runtime.engine.mounts import Mounts
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.messages import Dropped, Mounted, Unmounted

CPU = torch.device("cpu")


def adapter() -> CompiledAdapter:
    """Of 8 bytes."""
    facts = AdapterFacts(method="LORA", rank=1, module_count=1, deltas=frozenset())
    return CompiledAdapter(facts, {"q": ModuleDelta(LowRank(torch.zeros(1, 1), torch.zeros(1, 1)))})


@pytest.fixture
def mounts() -> Mounts:
    """With `a` mounted, room for one more, and for one in host memory."""
    made = Mounts(2)
    made.open(16, 8, CPU)
    mount(made, "a")
    return made


def mount(mounts: Mounts, digest: str) -> str:
    """The tier that it comes from."""
    if (found := mounts.begin(digest)) is not None:
        return found.tier
    assert mounts.loading(digest)
    (published,) = mounts.publish(digest, adapter())
    assert isinstance(published, Mounted)
    return published.tier


def refused(mounts: Mounts, digest: str) -> str:
    with pytest.raises(GraftError) as caught:
        mounts.hold(digest)
    return caught.value.code


def test_mounting_twice_is_mounting_once(mounts: Mounts) -> None:
    assert mount(mounts, "a") == "device"
    assert mounts.begin("b") is None
    assert mounts.begin("b") is None
    assert mounts.digests == {"a", "b"}


def test_no_more_bytes_than_there_are(mounts: Mounts) -> None:
    mounts.open(15, 8, CPU)
    assert mounts.begin("b") is None
    with pytest.raises(GraftError, match=r"`big` needs 0 MiB .* 0 MiB of it are left"):
        mounts.check_room(adapter(), "big")
    mounts.abandon("b")
    mounts.unmount("a", keep=True)
    assert mount(mounts, "b") == "disk"
    with pytest.raises(GraftError) as caught:
        mounts.begin("a")
    assert caught.value.code is ErrorCode.NO_CAPACITY
    mounts.unmount("b", keep=False)
    assert mount(mounts, "a") == "host", "it stayed there"


def test_no_more_than_the_limit(mounts: Mounts) -> None:
    assert mounts.begin("b") is None, "one that is on its way counts"
    with pytest.raises(GraftError) as caught:
        mounts.begin("c")
    assert caught.value.code is ErrorCode.NO_CAPACITY
    mounts.abandon("b")
    assert mount(mounts, "c") == "disk"


def test_only_what_is_mounted_can_be_held(mounts: Mounts) -> None:
    mounts.begin("b")
    assert [refused(mounts, digest) for digest in ("b", "none")] == [ErrorCode.NOT_READY] * 2
    assert isinstance(mounts.hold("a"), CompiledAdapter)
    assert mounts.unmount("a", keep=False) == []
    assert refused(mounts, "a") == ErrorCode.NOT_READY, "it is leaving"
    assert mount(mounts, "a") == "device"
    assert mounts.hold("a") is not None


def test_it_leaves_with_the_last_request_that_holds_it(mounts: Mounts) -> None:
    mounts.hold("a")
    mounts.hold("a")
    assert mounts.unmount("a", keep=False) == []
    assert mounts.release("a") == []
    assert mounts.release("a") == [Unmounted("a")]
    assert mounts.digests == frozenset()
    assert mounts.unmount("a", keep=False) == [Unmounted("a")], "it is gone already"


def test_one_that_is_unmounted_on_its_way_leaves_when_it_arrives(mounts: Mounts) -> None:
    mounts.begin("b")
    assert mounts.unmount("b", keep=False) == []
    assert mounts.publish("b", adapter()) == [Unmounted("b")]
    assert mounts.digests == {"a"}


def test_host_memory_keeps_what_it_has_room_for(mounts: Mounts) -> None:
    mount(mounts, "b")
    assert mounts.unmount("a", keep=True) == [Unmounted("a", "host")]
    assert mounts.unmount("b", keep=True) == [Dropped(["a"]), Unmounted("b", "host")]
    assert mount(mounts, "b") == "host"
    assert (mounts.host.bytes, mount(mounts, "a")) == (0, "disk")
    mounts.open(16, 7, CPU)
    assert mounts.unmount("a", keep=True) == [Unmounted("a", "disk")]


def test_what_nobody_wants_is_forgotten_in_host_memory_as_well(mounts: Mounts) -> None:
    mounts.unmount("a", keep=True)
    assert mounts.unmount("a", keep=True) == [Unmounted("a")]
    assert mounts.host.bytes == 8
    assert mounts.unmount("a", keep=False) == [Unmounted("a")]
    assert mounts.host.bytes == 0
