"""Tokens for the control port, read as a pod reads them; rotation with overlap."""

from __future__ import annotations

import base64

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from graft_operator.clients.control_tokens import (
    LIFETIME_SECONDS,
    OVERLAP_SECONDS,
    Signer,
    from_secret_data,
    new_key,
    to_secret_data,
)
from jwt.types import Options

NOW = 1_800_000_000


def test_a_pod_accepts_its_own_token_and_no_other() -> None:
    signer = Signer((new_key(NOW),), NOW)
    token = signer.token("pod-a", NOW)
    key = signer.public_keys()[jwt.get_unverified_header(token)["kid"]]
    options: Options = {"verify_exp": False, "verify_iat": False}
    claims = jwt.decode(token, key, algorithms=["EdDSA"], audience="pod-a", issuer="graft-operator", options=options)
    assert claims["exp"] - claims["iat"] == LIFETIME_SECONDS <= 300
    with pytest.raises(jwt.InvalidAudienceError):
        jwt.decode(token, key, algorithms=["EdDSA"], audience="pod-b", options=options)


def test_keys_survive_the_secret() -> None:
    keys = (new_key(NOW), new_key(NOW + 1))
    assert Signer(from_secret_data(to_secret_data(keys)), NOW).public_keys() == Signer(keys, NOW).public_keys()


DELIVERED_SECONDS = 90
"""What a kubelet takes at most to bring a ConfigMap that changed into its pods: its period and its cache's."""


def signing(signer: Signer, now: float) -> str:
    return str(jwt.get_unverified_header(signer.token("pod", now))["kid"])


def test_a_new_key_is_published_at_once_and_signs_once_pods_know_it() -> None:
    """It counts when the operator saw it first: a key may lie in a drawer before it comes into the Secret."""
    old, new = new_key(NOW), new_key(NOW + 1)
    signer = Signer((old,), NOW)
    seen = NOW + 100_000
    signer.replace((old, new), seen)
    assert set(signer.public_keys()) == {old.key_id, new.key_id}
    assert signing(signer, seen + DELIVERED_SECONDS) == old.key_id
    assert signing(signer, seen + OVERLAP_SECONDS) == new.key_id
    signer.replace((old, new), seen + OVERLAP_SECONDS + 1)
    assert signing(signer, seen + OVERLAP_SECONDS + 1) == new.key_id, "to read the same again changes nothing"


def test_a_key_that_another_took_the_place_of_signs_until_pods_know_that_one() -> None:
    old, new = new_key(NOW), new_key(NOW + 1000)
    signer = Signer((old,), NOW)
    seen = NOW + 1000
    signer.replace((new,), seen)
    assert set(signer.public_keys()) == {old.key_id, new.key_id}
    assert signing(signer, seen + DELIVERED_SECONDS) == old.key_id
    signer.replace((new,), seen + OVERLAP_SECONDS)
    assert set(signer.public_keys()) == {new.key_id}, "the old one is worth nothing any more"
    assert signing(signer, seen + OVERLAP_SECONDS) == new.key_id


def test_an_operator_that_starts_between_two_keys_signs_with_the_one_that_pods_know() -> None:
    old, new = new_key(NOW), new_key(NOW + 1000)
    signer = Signer((new, old), NOW + 1001)
    assert signing(signer, NOW + 1001 + DELIVERED_SECONDS) == old.key_id
    assert signing(signer, NOW + 1001 + OVERLAP_SECONDS) == new.key_id


def test_the_very_first_key_signs_at_once() -> None:
    key = new_key(NOW)
    assert jwt.get_unverified_header(Signer((key,), NOW).token("pod", NOW))["kid"] == key.key_id


def test_a_key_id_names_the_public_key() -> None:
    key = new_key(NOW)
    assert len(key.key_id) == 16
    assert key.key_id == from_secret_data(to_secret_data((key,)))[0].key_id


def test_what_is_no_ed25519_key_is_refused() -> None:
    other = generate_private_key(SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(ValueError, match="must be an Ed25519 key"):
        from_secret_data({"000000000001-a.pem": base64.b64encode(other).decode()})
    with pytest.raises(ValueError, match=r"CREATED-KEYID\.pem"):
        from_secret_data({"key.pem": base64.b64encode(other).decode()})


def test_a_signer_without_keys_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="at least one key"):
        Signer((), NOW)
