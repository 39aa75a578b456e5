"""The texts and numbers that fields of `spec` hold, each with its rules."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated

from graft_runtime.contract.checkpoints import ADAPTER_NAME_PATTERN, DIGEST_PATTERN
from graft_runtime.contract.schemes import (
    DOT_SEGMENT,
    ENDPOINT_PATTERN,
    ENDPOINT_SHAPE,
    SCHEMES,
    Scheme,
    listed,
    prefix_pattern,
    uri_pattern,
)
from pydantic import Field, Strict

from graft_operator.resource.rules import Obeys, Rule

# The API server tells 1 from "1" and true from "yes"; so do we.
Int = Annotated[int, Strict()]
Float = Annotated[float, Strict()]
Bool = Annotated[bool, Strict()]

_REVISION = r"^[A-Za-z0-9]([A-Za-z0-9._/-]{0,253}[A-Za-z0-9])?$"
LAST_PART_IS_A_NAME = r"/[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"
POOL_NAME_PATTERN, POOL_NAME_MAX = r"^[a-z]([-a-z0-9]*[a-z0-9])?$", 52
_DIRECTORY = r"^(/[A-Za-z0-9._-]+)+$"


def cel(pattern: str) -> str:
    """Return a pattern as a text of CEL."""
    return "'" + pattern.replace("\\", "\\\\") + "'"


def matches(pattern: str, text: str) -> bool:
    """Tell whether CEL's `matches` holds."""
    # Python's $ also matches before a last line feed, that of CEL doesn't.
    return re.search(pattern.replace("$", r"\Z"), text) is not None


def starts_with(field: str, schemes: Iterable[Scheme]) -> str:
    """Return in CEL whether a text has one of the schemes."""
    return " || ".join(f"{field}.startsWith('{scheme.start}')" for scheme in schemes) or "false"


def has_scheme(text: str, schemes: Iterable[Scheme]) -> bool:
    """Return whether a text has one of the schemes."""
    return text.startswith(tuple(scheme.start for scheme in schemes))


def starts_of(schemes: Iterable[Scheme]) -> str:
    """Return what URIs of these schemes start with, for a message."""
    return listed(scheme.start for scheme in schemes)


def interval_seconds(text: str) -> int:
    """Return the seconds of an interval such as `1h30m`."""
    return sum(int(number) * _UNIT_SECONDS[unit] for number, unit in re.findall(r"(\d+)([hms])", text))


_UNIT_SECONDS = {"h": 3600, "m": 60, "s": 1}
_ALL = tuple(SCHEMES.values())
_URI = uri_pattern(_ALL)
_PREFIX = prefix_pattern(_ALL)
WITH_REVISIONS = tuple(scheme for scheme in _ALL if scheme.revisions)
WITH_ENDPOINT = tuple(scheme for scheme in _ALL if scheme.endpoint)

URI_RULES = (
    Rule(
        f"must start with {starts_of(_ALL)}, the schemes that this version supports: "
        + ", ".join(f"{scheme.written[0]} is {scheme.meaning}" for scheme in _ALL),
        starts_with("self", _ALL),
        lambda uri: has_scheme(uri, _ALL),
        text="self",
    ),
    Rule(
        "must name a directory or an archive, as in "
        + listed(shape for scheme in _ALL for shape in scheme.written)
        + ": no empty part, no trailing slash, none of ? # % \\ and no white space; no @ before a revision, "
        "which the field `revision` names",
        f"!({starts_with('self', _ALL)}) || self.matches({cel(_URI)})",
        lambda uri: not has_scheme(uri, _ALL) or matches(_URI, uri),
        text="self",
    ),
    Rule(
        "must not hold the parts . or ..: write the path out",
        f"!self.matches({cel(DOT_SEGMENT)})",
        lambda uri: not matches(DOT_SEGMENT, uri),
        text="self",
    ),
)
PREFIX_RULES = (
    Rule(
        "must end with a slash and start with "
        + listed(scheme.start + scheme.prefix for scheme in _ALL if scheme.prefix),
        f"self.matches({cel(_PREFIX)}) && !self.matches({cel(DOT_SEGMENT)})",
        lambda prefix: matches(_PREFIX, prefix) and not matches(DOT_SEGMENT, prefix),
        text="self",
    ),
)
ENDPOINT_RULES = (
    Rule(
        f"must be {ENDPOINT_SHAPE}, without a trailing slash; http:// is for networks that the administrator allows",
        f"self.matches({cel(ENDPOINT_PATTERN)}) && !self.matches({cel(DOT_SEGMENT)})",
        lambda endpoint: matches(ENDPOINT_PATTERN, endpoint) and not matches(DOT_SEGMENT, endpoint),
        text="self",
    ),
)
REVISION_NEEDS_A_SCHEME_WITH_REVISIONS = Rule(
    f"revision is for {starts_of(WITH_REVISIONS)} only: no other source has revisions",
    f"!has(self.revision) || {starts_with('self.uri', WITH_REVISIONS)}",
    lambda checkpoint: checkpoint.revision is None or has_scheme(checkpoint.uri, WITH_REVISIONS),
)
INTERVAL_RULES = (
    Rule(
        "must be at least 1m: each look asks the source",
        "duration(self) >= duration('1m')",
        lambda interval: interval_seconds(interval) >= 60,
        text="self",
    ),
)
MOUNT_PATH_RULES = (
    Rule(
        "must be an absolute directory without the parts . and .. and without a trailing slash, such as /mnt/adapters",
        f"self.matches({cel(_DIRECTORY)}) && !self.matches({cel(DOT_SEGMENT)})",
        lambda path: matches(_DIRECTORY, path) and not matches(DOT_SEGMENT, path),
        text="self",
    ),
    Rule(
        "must lie outside /graft, which Graft uses itself",
        "self != '/graft' && !self.startsWith('/graft/')",
        lambda path: path != "/graft" and not path.startswith("/graft/"),
        text="self",
    ),
)
LABEL_RULES = (
    Rule(
        "must not hold keys that start with graft.dev/: Graft sets those itself",
        "!self.exists(key, key.startsWith('graft.dev/'))",
        lambda labels: not any(key.startswith("graft.dev/") for key in labels),
    ),
)
_APPARMOR = "container.apparmor.security.beta.kubernetes.io/"
ANNOTATION_RULES = (
    *LABEL_RULES,
    Rule(
        f"must not hold keys that start with {_APPARMOR}: an AppArmor profile is a field of securityContext",
        f"!self.exists(key, key.startsWith('{_APPARMOR}'))",
        lambda annotations: not any(key.startswith(_APPARMOR) for key in annotations),
    ),
)

ServedName = Annotated[str, Field(pattern=ADAPTER_NAME_PATTERN, min_length=1, max_length=63)]
PoolName = Annotated[str, Field(pattern=POOL_NAME_PATTERN, min_length=1, max_length=POOL_NAME_MAX)]
DigestText = Annotated[str, Field(pattern=DIGEST_PATTERN, max_length=71)]
Uri = Annotated[str, Field(min_length=1, max_length=1024), Obeys(URI_RULES)]
ResourceName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", min_length=1, max_length=253)]
Revision = Annotated[str, Field(pattern=_REVISION, min_length=1, max_length=255)]
UriPrefix = Annotated[str, Field(min_length=1, max_length=512), Obeys(PREFIX_RULES)]
Endpoint = Annotated[str, Field(min_length=1, max_length=512), Obeys(ENDPOINT_RULES)]
Interval = Annotated[
    str,
    Field(pattern=r"^([0-9]{1,5}h)?([0-9]{1,5}m)?([0-9]{1,5}s)?$", min_length=2, max_length=18),
    Obeys(INTERVAL_RULES),
]
MountPath = Annotated[str, Field(min_length=2, max_length=512), Obeys(MOUNT_PATH_RULES)]
_LabelKey = Annotated[str, Field(max_length=317)]
Labels = Annotated[dict[_LabelKey, Annotated[str, Field(max_length=63)]], Field(max_length=64), Obeys(LABEL_RULES)]
Annotations = Annotated[
    dict[_LabelKey, Annotated[str, Field(max_length=4096)]], Field(max_length=64), Obeys(ANNOTATION_RULES)
]
