"""The tokens that open the pods' control ports: JWTs signed with Ed25519 for one pod (its UID) and a few minutes."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from graft_runtime.contract.control import TOKEN_ALGORITHM, TOKEN_ISSUER

LIFETIME_SECONDS = 240
OVERLAP_SECONDS = 300
"""A new key signs only after pods had this long to see its public half: a kubelet takes up to a minute and a half to
bring a ConfigMap that changed into its pods."""
PRIVATE_KEY_SUFFIX = ".pem"


@dataclass(frozen=True)
class SigningKey:
    """One private key."""

    created: int
    """Unix seconds."""
    private_key: Ed25519PrivateKey

    @property
    def key_id(self) -> str:
        """Return the first 16 hex digits of the sha256 of the public half's SubjectPublicKeyInfo."""
        information = self.private_key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return hashlib.sha256(information).hexdigest()[:16]

    @property
    def public_pem(self) -> str:
        """Return the public half, SubjectPublicKeyInfo in PEM."""
        return (
            self.private_key.public_key()
            .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
            .decode()
        )

    @property
    def private_pem(self) -> bytes:
        """Return the private half, PKCS #8 in PEM."""
        return self.private_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


def new_key(now: float) -> SigningKey:
    """Make a key, created at `now` (Unix seconds)."""
    return SigningKey(int(now), Ed25519PrivateKey.generate())


class Signer:
    """Signs with the newest key that pods know by now; all public halves are published.

    Args:
        keys: at least one. The oldest signs until pods have had time to learn of others.
        now: Unix seconds.
    """

    def __init__(self, keys: Iterable[SigningKey], now: float) -> None:
        self.keys: tuple[SigningKey, ...] = ()
        self._published: dict[str, float] = {}
        """Key id → since when, in Unix seconds."""
        self.replace(keys, now)

    def replace(self, keys: Iterable[SigningKey], now: float) -> None:
        """Take other keys. The one that signs stays beside them until pods know another."""
        kept = {key.key_id: key for key in keys}
        published = {key_id: self._published.get(key_id, now) for key_id in kept}
        if self.keys and not any(_is_known(since, now) for since in published.values()):
            signing = self._signing_key(now)
            kept[signing.key_id], published[signing.key_id] = signing, self._published[signing.key_id]
        if not kept:
            raise ValueError("a signer needs at least one key")
        self.keys = tuple(sorted(kept.values(), key=lambda key: (key.created, key.key_id)))
        self._published = published

    def public_keys(self) -> dict[str, str]:
        """Return key id → public half in PEM."""
        return {key.key_id: key.public_pem for key in self.keys}

    def token(self, audience: str, now: float) -> str:
        """Return a token for `audience`, valid from `now` (Unix seconds) for four minutes."""
        key = self._signing_key(now)
        claims = {"iss": TOKEN_ISSUER, "aud": audience, "iat": int(now), "exp": int(now) + LIFETIME_SECONDS}
        return jwt.encode(claims, key.private_key, algorithm=TOKEN_ALGORITHM, headers={"kid": key.key_id})

    def _signing_key(self, now: float) -> SigningKey:
        known = [key for key in self.keys if _is_known(self._published[key.key_id], now)]
        return known[-1] if known else self.keys[0]


def _is_known(published: float, now: float) -> bool:
    return published + OVERLAP_SECONDS <= now


def to_secret_data(keys: tuple[SigningKey, ...]) -> dict[str, str]:
    """Return the `data` of the Secret: `CREATED-KEYID.pem` → PKCS #8 in PEM, base64."""
    return {
        f"{key.created:012d}-{key.key_id}{PRIVATE_KEY_SUFFIX}": base64.b64encode(key.private_pem).decode()
        for key in keys
    }


def from_secret_data(data: Mapping[str, str]) -> tuple[SigningKey, ...]:
    """Read the keys in the `data` of the Secret, oldest first.

    Raises:
        ValueError: an entry is not an Ed25519 key in PEM, or its name not `CREATED-KEYID.pem`.
    """
    return tuple(_read_key(name, content) for name, content in sorted(data.items()))


def _read_key(name: str, content: str) -> SigningKey:
    created, _, _ = name.partition("-")
    if not (created.isdigit() and name.endswith(PRIVATE_KEY_SUFFIX)):
        raise ValueError(f"the signing key `{name}` must be called CREATED-KEYID.pem, CREATED in Unix seconds")
    private_key = serialization.load_pem_private_key(base64.b64decode(content), password=None)
    if not isinstance(private_key, Ed25519PrivateKey):
        raise ValueError(f"the signing key `{name}` must be an Ed25519 key, it is {type(private_key).__name__}")  # noqa: TRY004
    return SigningKey(int(created), private_key)
