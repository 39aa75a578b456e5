"""The claims and Secrets that a spec names, and whether the administrator lets pools use them.

They are looked up only where he says by labels which ones pools may use: otherwise the operator needs no right to read
Secrets, and pods alone find out for which hosts a token is.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from graft_runtime.contract.config import SOURCE_HOSTS_FILE, hosts_of
from graft_runtime.errors import ErrorCode, GraftError

from graft_operator.kinds import CLAIM, SECRET
from graft_operator.resource import AdapterDeploymentSpec, SourceSpec
from graft_operator.settings import Settings

SERVICE_ACCOUNT_TOKEN = "kubernetes.io/service-account-token"  # noqa: S105 - a type of Secrets


@dataclass(frozen=True)
class Reference:
    """A claim or a Secret of the pool's namespace that a field of its spec names."""

    kind: str
    name: str
    field: str
    source: SourceSpec | None = None


@dataclass(frozen=True)
class Referred:
    """What counts of a claim or a Secret."""

    labels: Mapping[str, str]
    type: str = ""
    hosts: tuple[str, ...] = ()
    """Of a Secret: those that its token is for."""


Known = Mapping[tuple[str, str], Referred | None]
"""Kind and name → what was found; None: there is none."""


def references_of(spec: AdapterDeploymentSpec, settings: Settings) -> Iterator[Reference]:
    """Yield what has to be looked up."""
    for source in spec.sources:
        place = f"spec.sources[{source.name}]"
        if source.claim_name and settings.allowed_claims:
            yield Reference(CLAIM.name, source.claim_name, f"{place}.claimName", source)
        if source.secret_name and settings.allowed_secrets:
            yield Reference(SECRET.name, source.secret_name, f"{place}.secretName", source)
    if spec.api_keys is not None and settings.allowed_secrets:
        yield Reference(SECRET.name, spec.api_keys.secret_name, "spec.apiKeys.secretName")
    if spec.cache.claim_name and settings.allowed_claims:
        yield Reference(CLAIM.name, spec.cache.claim_name, "spec.cache.claimName")
    volumes = spec.pod_template.spec.get("volumes")
    for volume in volumes if settings.allowed_claims and isinstance(volumes, list) else ():
        claim = volume.get("persistentVolumeClaim") if isinstance(volume, Mapping) else None
        if isinstance(claim, Mapping) and isinstance(claim.get("claimName"), str):
            field = f"spec.podTemplate.spec.volumes[{volume.get('name')}].persistentVolumeClaim.claimName"
            yield Reference(CLAIM.name, claim["claimName"], field)


def read_referred(body: Mapping[str, Any]) -> Referred:
    """Read a claim or a Secret. Of a Secret's values none but the hosts is kept."""
    try:
        hosts = base64.b64decode((body.get("data") or {}).get(SOURCE_HOSTS_FILE, ""), validate=True).decode(
            "ascii", "replace"
        )
    except binascii.Error:
        hosts = ""
    return Referred(body["metadata"].get("labels") or {}, body.get("type") or "", hosts_of(hosts))


def reference_fault(spec: AdapterDeploymentSpec, known: Known, settings: Settings) -> GraftError | None:
    """Return why a claim or a Secret may not be used."""
    found = ((each, known.get((each.kind, each.name))) for each in references_of(spec, settings))
    faults = (_fault(reference, referred, settings) for reference, referred in found)
    return next((fault for fault in faults if fault is not None), None)


def _fault(reference: Reference, found: Referred | None, settings: Settings) -> GraftError | None:
    told = f"{reference.field} names the {reference.kind} `{reference.name}`"
    labels = settings.allowed_claims if reference.kind == CLAIM.name else settings.allowed_secrets
    if found is None or not labels.items() <= found.labels.items():
        wanted = ", ".join(f"{key}={value}" for key, value in labels.items())
        value = "allowedClaims" if reference.kind == CLAIM.name else "allowedSecrets"
        return GraftError(
            ErrorCode.FIELD_NOT_ALLOWED,
            f"{told}, {'which is not there' if found is None else f'without the labels {wanted}'}",
            hint=f"name one with the labels {wanted}, which the administrator asks for by the chart's value {value}",
            field=reference.field,
        )
    if reference.kind == SECRET.name and reference.source is not None:
        return _token_fault(reference, reference.source, found, told)
    return None


def _token_fault(reference: Reference, source: SourceSpec, found: Referred, told: str) -> GraftError | None:
    if found.type == SERVICE_ACCOUNT_TOKEN:
        return GraftError(
            ErrorCode.TOKEN_NOT_BOUND,
            f"{told}, which holds the token of a Kubernetes service account: such a token is sent nowhere",
            hint="name a Secret with a token of the source's server",
            field=reference.field,
        )
    missing = next((host for host in source.hosts if host not in found.hosts), None)
    if missing is None:
        return None
    return GraftError(
        ErrorCode.TOKEN_NOT_BOUND,
        f"{told}, which does not say that its token is for `{missing}`; its key `{SOURCE_HOSTS_FILE}` names"
        f" {', '.join(found.hosts) or 'no host'}",
        hint=f"if it is meant for that host, add {missing} to the Secret's key `{SOURCE_HOSTS_FILE}`",
        field=reference.field,
    )
