"""The table of kinds: a kind that is added there is listed, watched and stored, and marks its pool, by itself."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, cast

import pytest
from graft_operator.clients.access import Access
from graft_operator.clients.cluster import Cluster, Page
from graft_operator.keys import ObjectKey, PoolKey
from graft_operator.kinds import ADAPTER_DEPLOYMENT, KINDS, POD, Kind, watched_kinds
from graft_operator.loop.handlers import make_registry
from graft_operator.loop.store import Store
from graft_operator.loop.sync import Sync
from graft_operator.settings import Settings

KEY = PoolKey("team", "support")
SETTINGS = Settings(namespace="graft-system", runtime_image="runtime", watch_namespaces=("team",))
TOY = {
    "metadata": {"namespace": "team", "name": "spinning-top", "uid": "t", "resourceVersion": "1"},
    "spec": {"adapterDeploymentName": "support"},
}


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Kind:
    """A kind that names its pool in a field of its spec."""

    def pool_of(body: Mapping[str, Any]) -> PoolKey:
        return PoolKey(body["metadata"]["namespace"], body["spec"]["adapterDeploymentName"])

    kind = Kind("Toy", "toys.dev", "v2", "toys", pool_of)
    monkeypatch.setitem(KINDS, kind.name, kind)
    return kind


class Listing:
    """Stands in for the API server: one Toy, and what was listed."""

    def __init__(self) -> None:
        self.listed: list[str] = []

    async def pages(self, kind: str, namespace: str | None, label_selector: str | None) -> AsyncIterator[Page]:
        self.listed.append(kind)
        yield Page([TOY] if kind == "Toy" else [], "1")


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        (ADAPTER_DEPLOYMENT, "/apis/graft.dev/v1alpha1/namespaces/team/adapterdeployments/x"),
        (POD, "/api/v1/namespaces/team/pods/x"),
    ],
)
def test_the_path_of_an_object(kind: Kind, path: str) -> None:
    assert kind.path("team", "x") == path


def test_the_path_of_all_objects() -> None:
    assert POD.path(None) == "/api/v1/pods"


async def test_a_new_kind_is_listed_and_stored_and_marks_its_pool(toy: Kind) -> None:
    marked: list[PoolKey] = []
    store, api = Store(marked.append), Listing()
    await Sync(cast(Cluster, api), store, SETTINGS).load()
    assert api.listed == [kind.name for kind in watched_kinds()]
    assert marked == [KEY]
    assert [(child.kind, child.name) for child in store.children(KEY)] == [("Toy", "spinning-top")]
    store.remove(ObjectKey("Toy", "team", "spinning-top"), "t")
    assert store.children(KEY) == ()
    assert marked == [KEY, KEY]


def test_a_new_kind_is_watched(toy: Kind) -> None:
    async def access() -> Access:
        raise AssertionError

    feed = Sync(cast(Cluster, Listing()), Store(lambda key: None), SETTINGS)
    registry = make_registry(access, feed, SETTINGS.watch_namespaces)
    selectors = [handler.selector for handler in registry._watching.get_all_handlers()]
    assert [selector and (selector.group, selector.version, selector.any_name) for selector in selectors] == [
        (kind.group, kind.version, kind.plural) for kind in watched_kinds()
    ]
    assert ("toys.dev", "v2", "toys") in [(kind.group, kind.version, kind.plural) for kind in watched_kinds()]
