"""The signing keys: one Secret in the operator's own namespace, made on the first start, read again now and then.

To rotate, a person adds a key to the Secret, or puts one in place of the old; once pods have its public half it signs.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from graft_operator.clients.cluster import Cluster, ClusterError, ConflictError
from graft_operator.clients.control_tokens import Signer, SigningKey, from_secret_data, new_key, to_secret_data
from graft_operator.kinds import SECRET
from graft_operator.objects import KubernetesObject
from graft_operator.settings import Settings

logger = logging.getLogger(__name__)

REFRESH_SECONDS = 300.0


class Keyring:
    """Made by `open`; signs with what the Secret held when it was read last."""

    def __init__(self, cluster: Cluster, settings: Settings, keys: tuple[SigningKey, ...]) -> None:
        self._cluster = cluster
        self._settings = settings
        self._signer = Signer(keys, time.time())

    @classmethod
    async def open(cls, cluster: Cluster, settings: Settings) -> Keyring:
        """Read the Secret, or make it.

        Raises:
            ClusterError: the Secret can't be read or made. ValueError: it holds something else.
        """
        return cls(cluster, settings, await _read_or_create(cluster, settings, None))

    def public_keys(self) -> Mapping[str, str]:
        """Return the public keys for the pods: key id → PEM."""
        return self._signer.public_keys()

    def sign(self, audience: str, now: float) -> str:
        """Return a token for this audience, valid from `now` (Unix seconds)."""
        return self._signer.token(audience, now)

    async def watch(self, changed: Callable[[], None], seconds: float = REFRESH_SECONDS) -> None:
        """Read the Secret again every `seconds`, for ever, and call `changed` when the public keys are others."""
        while True:
            await asyncio.sleep(seconds)
            try:
                if await self.refresh():
                    changed()
            except ClusterError as error:
                logger.warning("the signing keys were not read again, trying later: %s", error)
            except ValueError:
                logger.exception("the signing keys can't be read, going on with the known ones")

    async def refresh(self) -> bool:
        """Read the Secret again, or make it anew from the keys in memory; tell whether keys changed."""
        before = self.public_keys()
        self._signer.replace(await _read_or_create(self._cluster, self._settings, self._signer.keys), time.time())
        return self.public_keys() != before


async def _read_or_create(
    cluster: Cluster, settings: Settings, known: tuple[SigningKey, ...] | None
) -> tuple[SigningKey, ...]:
    while True:
        secret = await cluster.get(SECRET.name, settings.namespace, settings.signing_key_secret)
        if secret is not None and secret.get("data"):
            return from_secret_data(secret["data"])
        keys = known or (new_key(time.time()),)
        try:
            await _write(cluster, settings, secret, keys)
        except ConflictError:
            continue  # another operator was faster: use its keys
        logger.info("made the signing key Secret %s/%s", settings.namespace, settings.signing_key_secret)
        return keys


async def _write(
    cluster: Cluster, settings: Settings, secret: KubernetesObject | None, keys: tuple[SigningKey, ...]
) -> None:
    body = {
        **SECRET.type_meta,
        "metadata": {
            "namespace": settings.namespace,
            "name": settings.signing_key_secret,
            "labels": {"app.kubernetes.io/managed-by": "graft"},
        },
        "type": "Opaque",
        "data": to_secret_data(keys),
    }
    if secret is None:
        await cluster.create(body)
        return
    # The chart may have made an empty one.
    metadata = secret["metadata"]
    await cluster.apply(body, uid=metadata["uid"], resource_version=metadata["resourceVersion"])
