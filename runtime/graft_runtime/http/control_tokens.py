"""Who may call the control port: the bearer of a token that the operator signed for this pod and this use of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jwt

from graft_runtime.contract.control import PUBLIC_KEY_SUFFIX, TOKEN_ALGORITHM, TOKEN_ISSUER
from graft_runtime.errors import ErrorCode, GraftError

LEEWAY_SECONDS = 60
MAX_LIFETIME_SECONDS = 300
_KEY_ID = re.compile(r"[0-9a-f]{16}")
_BEARER = "Bearer "


def check_token(authorization: str | None, keys: Path, audience: str) -> None:
    """Check an Authorization header.

    Args:
        authorization: the header's value.
        keys: the directory of public keys; read anew each time, since keys rotate.
        audience: that the token must name.

    Raises:
        GraftError: Unauthenticated.
    """
    if authorization is None or not authorization.startswith(_BEARER):
        raise _refused("the request carries no bearer token")
    token = authorization.removeprefix(_BEARER)
    try:
        key = _public_key(jwt.get_unverified_header(token), keys)
        claims = jwt.decode(
            token,
            key,
            algorithms=[TOKEN_ALGORITHM],
            audience=audience,
            issuer=TOKEN_ISSUER,
            leeway=LEEWAY_SECONDS,
            options={"require": ["exp", "iat", "aud", "iss"]},
        )
    except jwt.PyJWTError as error:
        raise _refused(f"the token does not hold: {error}") from None
    if claims["exp"] - claims["iat"] > MAX_LIFETIME_SECONDS:
        raise _refused(f"the token is valid for more than {MAX_LIFETIME_SECONDS} s")


def _public_key(header: dict[str, Any], keys: Path) -> bytes:
    key_id = header.get("kid")
    if not isinstance(key_id, str) or _KEY_ID.fullmatch(key_id) is None:
        raise _refused("the token names no key (kid)")
    try:
        return (keys / f"{key_id}{PUBLIC_KEY_SUFFIX}").read_bytes()
    except OSError:
        raise _refused(f"the token's key {key_id} is not among this pod's public keys") from None


def _refused(why: str) -> GraftError:
    return GraftError(
        ErrorCode.UNAUTHENTICATED,
        f"the control port refuses this call: {why}",
        hint="only the operator of this pool calls it, or a pod that it gave a token for this one",
    )
