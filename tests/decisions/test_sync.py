"""What watches can't tell: the first load and unseen deletions; and the key that two operators make at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest
from graft_operator.clients.cluster import Cluster, ConflictError, RejectedError, UnavailableError
from graft_operator.clients.control_tokens import new_key, to_secret_data
from graft_operator.clients.keyring import Keyring
from graft_operator.keys import PoolKey
from graft_operator.kinds import watched_kinds
from graft_operator.loop.store import Store
from graft_operator.loop.sync import Sync, SyncLimits
from graft_operator.settings import Settings

from tests.support.waiting import until

SETTINGS = Settings(namespace="graft-system", runtime_image="runtime", watch_namespaces=("team",))
KEY = PoolKey("team", "support")


class Api:
    """Stands in for the API server: objects by kind, and what goes wrong first."""

    def __init__(self, *bodies: tuple[str, dict[str, Any]]) -> None:
        self.bodies = list(bodies)
        self.errors: list[Exception] = []
        self.secret: dict[str, Any] | None = None
        self.rival: dict[str, Any] | None = None
        self.listed: list[tuple[str, str | None, str | None, bool]] = []

    async def list(
        self, kind: str, namespace: str | None, label_selector: str | None, *, metadata_only: bool = False
    ) -> Sequence[dict[str, Any]]:
        self.listed.append((kind, namespace, label_selector, metadata_only))
        if self.errors:
            raise self.errors.pop(0)
        return [body for found, body in self.bodies if found == kind]

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


def pool() -> tuple[str, dict[str, Any]]:
    metadata = {"namespace": "team", "name": "support", "uid": "p", "resourceVersion": "1"}
    return "AdapterDeployment", {"metadata": metadata, "spec": {}}


def pod(name: str) -> tuple[str, dict[str, Any]]:
    labels = {"graft.dev/deployment": "support"}
    metadata = {"namespace": "team", "name": name, "uid": name, "resourceVersion": "1", "labels": labels}
    return "Pod", {"metadata": metadata}


def sync_of(api: Api, store: Store, **limits: float) -> Sync:
    return Sync(cast(Cluster, api), store, SETTINGS, SyncLimits(**limits))


@pytest.fixture
def store() -> Store:
    return Store(lambda key: None)


async def test_the_first_load_waits_for_the_definition(store: Store) -> None:
    api = Api(pool(), pod("a"))
    api.errors = [RejectedError("the server could not find the requested resource", 404), UnavailableError("later")]
    found = sync_of(api, store, retry_seconds=0)
    await found.load()
    assert found.loaded
    assert store.pool(KEY) is not None
    assert [view.name for view in store.pods(KEY)] == ["a"]
    assert ("AdapterDeployment", "team", None, False) in api.listed
    assert ("Pod", "team", "graft.dev/deployment", False) in api.listed


async def test_missing_rights_end_the_process_at_once(store: Store) -> None:
    api = Api()
    api.errors = [RejectedError("forbidden", 403)]
    with pytest.raises(RejectedError):
        await sync_of(api, store).load()


async def test_what_was_deleted_unseen_is_pruned(store: Store) -> None:
    api = Api(pool(), pod("a"), pod("b"))
    found = sync_of(api, store)
    await found.load()
    api.bodies = [pod("b")]
    await found.prune()
    assert store.pool(KEY) is None
    assert [view.name for view in store.pods(KEY)] == ["b"]
    assert api.listed[-1][3], "metadata is enough"


async def test_one_pruning_for_a_burst_of_news_and_only_after_its_end(store: Store) -> None:
    api = Api()
    found = sync_of(api, store, prune_soon_seconds=0.02)
    running = asyncio.create_task(found.run())
    for _ in range(20):
        found.take(*pool_event(None))
        assert not api.listed
        await asyncio.sleep(0)
    await until(lambda: len(api.listed) == len(watched_kinds()))
    await asyncio.sleep(0.05)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert len(api.listed) == len(watched_kinds())


def pool_event(event: str | None) -> tuple[str, str | None, dict[str, Any]]:
    kind, body = pool()
    return kind, event, body


@pytest.mark.parametrize("event", [None, "ADDED", "MODIFIED"])
async def test_an_event_shows_an_object_until_one_says_that_it_is_deleted(store: Store, event: str | None) -> None:
    found = sync_of(Api(), store)
    found.take(*pool_event(event))
    assert store.pool(KEY) is not None
    found.take(*pool_event("DELETED"))
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
