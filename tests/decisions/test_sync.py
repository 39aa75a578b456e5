"""What watches can't tell: the first load and unseen deletions; and the key that two operators make at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, cast

import pytest
from graft_operator.clients.cluster import Cluster, ConflictError, Page, RejectedError, UnavailableError
from graft_operator.clients.control_tokens import new_key, to_secret_data
from graft_operator.clients.keyring import Keyring
from graft_operator.keys import ObjectKey, PoolKey
from graft_operator.kinds import ADAPTER_DEPLOYMENT, POD
from graft_operator.loop.store import Store
from graft_operator.loop.sync import Sync
from graft_operator.settings import Settings

from tests.support.bodies import makers, pod_body, pool_body

SETTINGS = Settings(namespace="graft-system", runtime_image="runtime", watch_namespaces=("team",))
KEY = PoolKey("team", "support")


class Api:
    """Stands in for the API server: objects by kind, and what goes wrong first."""

    def __init__(self, *bodies: tuple[str, dict[str, Any]]) -> None:
        self.bodies = list(bodies)
        self.errors: list[Exception] = []
        self.secret: dict[str, Any] | None = None
        self.rival: dict[str, Any] | None = None
        self.listed: list[tuple[str, str | None, str | None]] = []
        self.unreadable: dict[str, str] = {}
        self.forbidden: dict[str, str] = {}
        """Namespace → the kind that may not be listed there."""

    async def pages(self, kind: str, namespace: str | None, label_selector: str | None) -> AsyncIterator[Page]:
        self.listed.append((kind, namespace, label_selector))
        if self.errors:
            raise self.errors.pop(0)
        if self.forbidden.get(namespace or "") == kind:
            raise RejectedError("forbidden", 403)
        bodies = [body for found, body in self.bodies if found == kind]
        here = [body for body in bodies if namespace in (None, body["metadata"]["namespace"])]
        yield Page(here, "77", self.unreadable.get(kind))

    async def get(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        if self.errors:
            raise self.errors.pop(0)
        return self.secret

    async def create(self, body: dict[str, Any]) -> dict[str, Any]:
        if self.rival is not None:
            self.secret, self.rival = self.rival, None
            raise ConflictError("exists", 409)
        self.secret = body
        return body


def pod(name: str) -> tuple[str, dict[str, Any]]:
    return "Pod", pod_body(name)


def sync_of(api: Api, store: Store) -> Sync:
    return Sync(cast(Cluster, api), store, SETTINGS, retry_seconds=0)


@pytest.fixture
def store() -> Store:
    return Store(lambda key: None)


async def test_the_first_load_waits_for_the_definition(store: Store) -> None:
    api = Api(*makers(), pod("a"))
    api.errors = [RejectedError("the server could not find the requested resource", 404), UnavailableError("later")]
    found = sync_of(api, store)
    await found.load()
    assert found.loaded
    assert store.pool(KEY) is not None
    assert [view.name for view in store.pods(KEY)] == ["a"]
    assert ("AdapterDeployment", "team", None) in api.listed
    assert ("Pod", "team", "graft.dev/deployment") in api.listed


async def test_missing_rights_end_the_process_at_once(store: Store) -> None:
    api = Api()
    api.errors = [RejectedError("forbidden", 403)]
    with pytest.raises(RejectedError):
        await sync_of(api, store).load()


@pytest.mark.parametrize("kind", ["AdapterDeployment", "Pod"])
async def test_a_namespace_that_is_gone_with_its_rights_keeps_no_other_back(store: Store, kind: str) -> None:
    settings = replace(SETTINGS, watch_namespaces=("gone", "team"))
    api = Api(*makers())
    for _, body in api.bodies:
        body["metadata"]["namespace"] = "gone"
    api.forbidden = {"gone": kind}
    found = Sync(cast(Cluster, api), store, settings, retry_seconds=0)
    await found.load()
    assert found.loaded
    assert ("Pod", "team", "graft.dev/deployment") in api.listed
    with pytest.raises(RejectedError):
        await found.list(ADAPTER_DEPLOYMENT, "gone")
    api.forbidden = {}
    await found.list(POD, "gone")
    assert store.pool(PoolKey("gone", "support")) is not None, "served without a restart"


async def test_a_namespace_that_can_be_read_in_part_is_not_served(store: Store) -> None:
    settings = replace(SETTINGS, watch_namespaces=("team", "other"))
    api = Api(*makers())
    api.forbidden = {"team": "Pod"}
    await Sync(cast(Cluster, api), store, settings, retry_seconds=0).load()
    assert store.pool(KEY) is None, "its pods would be told to be missing"


async def test_rights_that_are_missing_in_all_namespaces_end_the_process(store: Store) -> None:
    settings = replace(SETTINGS, watch_namespaces=("team", "other"))
    api = Api()
    api.forbidden = {"team": "Pod", "other": "AdapterDeployment"}
    with pytest.raises(RejectedError):
        await Sync(cast(Cluster, api), store, settings, retry_seconds=0).load()


async def test_a_list_forgets_what_was_deleted_unseen(store: Store) -> None:
    api = Api(*makers(), pod("a"), pod("b"))
    found = sync_of(api, store)
    await found.load()
    api.bodies = [pod("b")]
    await found.list(ADAPTER_DEPLOYMENT, None)
    await found.list(POD, None)
    assert store.pool(KEY) is None
    assert set(store.keys_of("Pod")) == {ObjectKey("Pod", "team", "b")}


async def test_a_watch_goes_on_from_where_the_first_load_ended(store: Store) -> None:
    api = Api()
    found = sync_of(api, store)
    await found.load()
    listed = len(api.listed)
    assert await found.list(POD, "team") == "77"
    assert len(api.listed) == listed
    assert await found.list(POD, "team") == "77"
    assert len(api.listed) == listed + 1, "a watch that begins anew begins with a list"


async def test_an_object_that_cannot_be_read_keeps_nobody_from_the_others(store: Store) -> None:
    broken = {"metadata": {**pool_body()["metadata"], "name": "broken", "ownerReferences": "none", "generation": []}}
    odd = pod_body("odd", conditions="none")
    api = Api(*makers(), ("AdapterDeployment", broken), ("Pod", odd), pod("a"))
    await sync_of(api, store).load()
    assert [view.name for view in store.pods(KEY)] == ["a"]


async def test_nothing_is_forgotten_after_a_list_with_gaps(store: Store) -> None:
    api = Api(*makers(), pod("a"))
    found = sync_of(api, store)
    await found.load()
    api.bodies, api.unreadable = makers(), {"Pod": "a"}
    await found.list(POD, None)
    assert [view.name for view in store.pods(KEY)] == ["a"]


@pytest.mark.parametrize("event", ["ADDED", "MODIFIED"])
async def test_an_event_shows_an_object_until_one_says_that_it_is_deleted(store: Store, event: str) -> None:
    found = sync_of(Api(), store)
    found.take(ADAPTER_DEPLOYMENT, event, pool_body())
    assert store.pool(KEY) is not None
    found.take(ADAPTER_DEPLOYMENT, "DELETED", pool_body())
    assert store.pool(KEY) is None


async def test_the_first_operator_makes_the_key_and_the_next_one_reads_it() -> None:
    api = Api()
    first = await Keyring.open(cast(Cluster, api), SETTINGS)
    second = await Keyring.open(cast(Cluster, api), SETTINGS)
    assert first.public_keys() == second.public_keys()


async def test_of_two_operators_that_make_the_key_at_once_one_wins() -> None:
    api = Api()
    rival = new_key(0)
    api.rival = {"metadata": {}, "data": to_secret_data((rival,))}
    assert set((await Keyring.open(cast(Cluster, api), SETTINGS)).public_keys()) == {rival.key_id}


async def test_a_deleted_secret_is_made_again_from_the_known_keys() -> None:
    api = Api()
    keyring = await Keyring.open(cast(Cluster, api), SETTINGS)
    before, api.secret = keyring.public_keys(), None
    assert not await keyring.refresh()
    assert keyring.public_keys() == before
    assert api.secret is not None


async def test_a_key_that_was_added_is_published() -> None:
    api = Api()
    keyring = await Keyring.open(cast(Cluster, api), SETTINGS)
    assert api.secret is not None
    added = new_key(1)
    api.secret = {**api.secret, "data": api.secret["data"] | to_secret_data((added,))}
    assert await keyring.refresh()
    assert added.key_id in keyring.public_keys()


async def test_keys_are_read_again_for_ever_whatever_goes_wrong() -> None:
    api, changes = Api(), asyncio.Queue[None]()
    keyring = await Keyring.open(cast(Cluster, api), SETTINGS)
    assert api.secret is not None
    api.errors = [UnavailableError("later"), ValueError("no key")]
    added = new_key(1)
    api.secret = {**api.secret, "data": api.secret["data"] | to_secret_data((added,))}
    watching = asyncio.create_task(keyring.watch(lambda: changes.put_nowait(None), seconds=0))
    await asyncio.wait_for(changes.get(), 10)
    assert added.key_id in keyring.public_keys()
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert changes.empty(), "keys that are as before are no change"
