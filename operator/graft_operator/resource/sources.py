"""Which declared source a URI lies in. What lies on a mount outside every source is never served."""

from __future__ import annotations

from collections.abc import Iterable

from graft_runtime.contract.schemes import CLAIM, deepest_prefix, scheme_of
from graft_runtime.errors import ErrorCode, GraftError

from graft_operator.resource.checkpoint_specs import SourceSpec


def find_source(sources: Iterable[SourceSpec], uri: str) -> SourceSpec | None:
    """Return the source that `uri` lies in; where directories nest, the deepest one."""
    by_prefix = {prefix: source for source in sources for prefix in source.prefixes}
    deepest = deepest_prefix(by_prefix, uri)
    return by_prefix[deepest] if deepest is not None else None


def is_declared(sources: Iterable[SourceSpec], uri: str) -> bool:
    """Return whether pods may read `uri`: what is mounted has to be declared, what is public has not."""
    scheme = scheme_of(uri)
    return (scheme is not None and scheme.mount == "remote") or find_source(sources, uri) is not None


def mount_name(source: SourceSpec) -> str:
    """Return the name of the pod's volume for a source that is a claim or has a Secret."""
    return f"source-{source.name}"


def source_not_declared(uri: str, field: str) -> GraftError:
    """Return the fault of a URI that lies in no source; the fault's hint says which entry to add."""
    scheme, (_, _, rest) = scheme_of(uri), uri.partition("://")
    if scheme is CLAIM:
        entry = f"{{name: {rest.partition('/')[0]}, claimName: <a PersistentVolumeClaim of this namespace>}}"
    else:
        entry = f"{{name: <a name>, mountPath: {rest.rpartition('/')[0] or '/'}}}, and mount it by spec.podTemplate"
    return GraftError(
        ErrorCode.SOURCE_NOT_DECLARED,
        f"{field} `{uri}` lies in no source that spec.sources declares",
        hint=f"add to spec.sources: {entry}",
        field=field,
    )
