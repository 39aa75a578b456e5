"""Checks that block a pool or a single adapter, in order; the first failure is reported."""

from __future__ import annotations

from collections.abc import Callable

from graft_runtime.contract.schemes import host_is_allowed, host_of, scheme_of
from graft_runtime.errors import ErrorCode, GraftError, shown

from graft_operator.decisions.wanted_adapters import WantedAdapter
from graft_operator.resource import (
    AdapterDeploymentSpec,
    faults_beyond,
    find_source,
    is_declared,
    source_not_declared,
)
from graft_operator.settings import Settings

UriCheck = Callable[[AdapterDeploymentSpec, str, str, Settings], GraftError | None]


def base_fault(spec: AdapterDeploymentSpec, settings: Settings) -> GraftError | None:
    """Return why the base model may not be served."""
    return _first(spec, spec.base_model.uri, "spec.baseModel.uri", settings)


def merge_fault(spec: AdapterDeploymentSpec, settings: Settings) -> GraftError | None:
    """Return why what is to be merged may not be."""
    merged = (adapter for adapter in spec.adapters if adapter.name in spec.merged_names)
    faults = (_first(spec, adapter.uri, f"adapter `{adapter.name}`: uri", settings) for adapter in merged)
    return next((fault for fault in faults if fault is not None), None)


def pod_template_fault(spec: AdapterDeploymentSpec, settings: Settings) -> GraftError | None:
    """Return why the overlay may not be laid over the pods."""
    faults = dict(faults_beyond(spec.pod_template.spec, settings.allowed_pod_template_fields))
    if not faults:
        return None
    told = [f"spec.podTemplate.spec.{field} {fault}" for field, fault in faults.items()]
    return GraftError(
        ErrorCode.FIELD_NOT_ALLOWED,
        told[0],
        details=shown(told[1:]),
        hint=f"leave it out, or have the administrator add {', '.join(list(faults)[:5])} to the chart's value"
        " allowedPodTemplateFields",
        field=f"spec.podTemplate.spec.{next(iter(faults))}",
    )


def adapter_fault(spec: AdapterDeploymentSpec, adapter: WantedAdapter, settings: Settings) -> GraftError | None:
    """Return why this adapter may not be served."""
    if spec.merge is not None and adapter.name not in spec.merged_names:
        return GraftError(
            ErrorCode.POOL_IS_MERGED,
            f"{adapter.label} is not served: the pool is merged, and serves `{spec.merge.name}` alone",
            hint="add it to spec.merge.adapters, or remove spec.merge to serve adapters by name",
        )
    return _first(spec, adapter.source.uri, f"{adapter.label}: uri", settings)


def _scheme_is_not_allowed(spec: AdapterDeploymentSpec, uri: str, field: str, settings: Settings) -> GraftError | None:
    scheme = uri.partition("://")[0]
    if scheme in settings.allowed_schemes:
        return None
    return GraftError(
        ErrorCode.SOURCE_NOT_DECLARED,
        f"{field} `{uri}` has the scheme {scheme}, the administrator allows {', '.join(settings.allowed_schemes)}",
        hint="use an allowed scheme, or have the chart's value allowedSchemes extended",
        field=field,
    )


def _source_is_not_declared(spec: AdapterDeploymentSpec, uri: str, field: str, settings: Settings) -> GraftError | None:
    return None if is_declared(spec.sources, uri) else source_not_declared(uri, field)


def _host_is_not_allowed(spec: AdapterDeploymentSpec, uri: str, field: str, settings: Settings) -> GraftError | None:
    scheme, source = scheme_of(uri), find_source(spec.sources, uri)
    if not settings.allowed_endpoints or scheme is None or scheme.mount != "remote":
        return None
    host = host_of(uri, source.endpoint if source is not None else None).partition(":")[0]
    if host_is_allowed(host, settings.allowed_endpoints):
        return None
    return GraftError(
        ErrorCode.FORBIDDEN_ADDRESS,
        f"{field} `{uri}` is on the host `{host}`, the administrator allows {', '.join(settings.allowed_endpoints)}",
        hint="use an allowed host, or have the chart's value allowedEndpoints extended",
        field=field,
    )


_URI_CHECKS: tuple[UriCheck, ...] = (_scheme_is_not_allowed, _source_is_not_declared, _host_is_not_allowed)


def _first(spec: AdapterDeploymentSpec, uri: str, field: str, settings: Settings) -> GraftError | None:
    findings = (check(spec, uri, field, settings) for check in _URI_CHECKS)
    return next((finding for finding in findings if finding is not None), None)
