"""The token of a source's Secret. It goes to the hosts that the Secret itself names, and to no other."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from graft_runtime.contract.config import SOURCE_HOSTS_FILE, SOURCE_TOKEN_FILE, hosts_of
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.store.sources.directory import Place

MAX_BYTES = 16 << 10
_SERVICE_ACCOUNT = "system:serviceaccount:"


def read_token(place: Place) -> str | None:
    """Read the token of a source, at each use, so that a Secret that changes needs no restart; None without a Secret.

    Raises:
        GraftError: Unauthorized where there is none, TokenNotBound where it is not for the source's host.
    """
    if place.directory is None or place.mount is None:
        return None
    secret = f"the Secret of the source `{place.mount.name}`"
    token = _read(place.directory / SOURCE_TOKEN_FILE).strip()
    if not token or not token.isprintable():
        raise GraftError(
            ErrorCode.UNAUTHORIZED,
            f"`{place.uri}` can't be read: {secret} holds no usable key `{SOURCE_TOKEN_FILE}`",
            hint=f"kubectl create secret generic NAME --from-file={SOURCE_TOKEN_FILE}=FILE"
            f" --from-literal={SOURCE_HOSTS_FILE}={place.host}",
        )
    if _is_of_a_service_account(token):
        raise GraftError(
            ErrorCode.TOKEN_NOT_BOUND,
            f"`{place.uri}` can't be read: {secret} holds a token of a Kubernetes service account: it is sent nowhere",
            hint="name a Secret with a token of that server",
        )
    hosts = hosts_of(_read(place.directory / SOURCE_HOSTS_FILE))
    if place.host not in hosts:
        raise GraftError(
            ErrorCode.TOKEN_NOT_BOUND,
            f"`{place.uri}` can't be read: {secret} does not say that its token is for `{place.host}`; its key"
            f" `{SOURCE_HOSTS_FILE}` names {', '.join(hosts) or 'no host'}",
            hint=f"if it is meant for that host, add {place.host} to the Secret's key `{SOURCE_HOSTS_FILE}`",
        )
    return token


def _read(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return opened.read(MAX_BYTES).decode("ascii")
    except (OSError, UnicodeDecodeError):
        return ""


def _is_of_a_service_account(token: str) -> bool:
    """Tell whether a token is one that Kubernetes signs for its service accounts, of a Secret or of a pod."""
    _, _, rest = token.partition(".")
    body = rest.partition(".")[0]
    try:
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except (ValueError, RecursionError):
        return False
    return isinstance(claims, dict) and str(claims.get("sub")).startswith(_SERVICE_ACCOUNT)
