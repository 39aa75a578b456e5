"""The texts and numbers that fields of `spec` hold, each with its rules."""

from __future__ import annotations

import re
from typing import Annotated

from graft_runtime.contract.checkpoints import ADAPTER_NAME_PATTERN, DIGEST_PATTERN
from pydantic import Field, Strict

from graft_operator.resource.rules import Rule, check, validations

# The API server tells 1 from "1" and true from "yes"; so do we.
Int = Annotated[int, Strict()]
Float = Annotated[float, Strict()]
Bool = Annotated[bool, Strict()]

LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SEGMENTS = r"(/[^/?#%\\ \t\r\n]+)+"
_OWNER = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_HOST = r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?(:[0-9]{1,5})?"
_ARCHIVE = rf"https://{_HOST}{_SEGMENTS}\.(tar\.gz|zip)"
_URI = rf"^((pvc://{LABEL}|file://){_SEGMENTS}|hf://{_OWNER}/{_OWNER}({_SEGMENTS})?|{_ARCHIVE})$"
_PREFIX = rf"^(hf://{_OWNER}|https://{_HOST})({_SEGMENTS})?/$"
_ENDPOINT = rf"^https?://{_HOST}({_SEGMENTS})?$"
_REVISION = r"^[A-Za-z0-9]([A-Za-z0-9._/-]{0,253}[A-Za-z0-9])?$"
_SCHEMES = ("hf://", "pvc://", "file://", "https://")
_HAS_SCHEME = " || ".join(f"self.startsWith('{scheme}')" for scheme in _SCHEMES)
LAST_PART_IS_A_NAME = r"/[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"
_DIRECTORY = r"^(/[A-Za-z0-9._-]+)+$"
_DOT_SEGMENT = r"/\.{1,2}(/|$)"


def cel(pattern: str) -> str:
    """A pattern as a text of CEL."""
    return "'" + pattern.replace("\\", "\\\\") + "'"


def matches(pattern: str, text: str) -> bool:
    """Whether CEL's `matches` holds."""
    # Python's $ also matches before a last line feed, that of CEL doesn't.
    return re.search(pattern.replace("$", r"\Z"), text) is not None


URI_RULES = (
    Rule(
        "must start with hf://, pvc://, file:// or https://, the schemes that this version supports: hf://OWNER/NAME is"
        " a repository of the Hub, pvc://SOURCE/PATH a directory in the claim of an entry of spec.sources, file:///PATH"
        " one below the mountPath of an entry, https://HOST/PATH.tar.gz an archive",
        _HAS_SCHEME,
        lambda uri: uri.startswith(_SCHEMES),
        text="self",
    ),
    Rule(
        "must name a directory or an archive, as in hf://OWNER/NAME, hf://OWNER/NAME/FOLDER, pvc://SOURCE/PATH,"
        " file:///PATH or https://HOST/PATH.tar.gz (or .zip): no empty part, no trailing slash, none of ? # % \\ and no"
        " white space",
        f"!({_HAS_SCHEME}) || self.matches({cel(_URI)})",
        lambda uri: not uri.startswith(_SCHEMES) or matches(_URI, uri),
        text="self",
    ),
    Rule(
        "must not hold the parts . or ..: write the path out",
        f"!self.matches({cel(_DOT_SEGMENT)})",
        lambda uri: not matches(_DOT_SEGMENT, uri),
        text="self",
    ),
)
PREFIX_RULES = (
    Rule(
        "must end with a slash and start with hf://OWNER/ or https://HOST/",
        f"self.matches({cel(_PREFIX)}) && !self.matches({cel(_DOT_SEGMENT)})",
        lambda prefix: matches(_PREFIX, prefix) and not matches(_DOT_SEGMENT, prefix),
        text="self",
    ),
)
ENDPOINT_RULES = (
    Rule(
        "must be https://HOST, without a trailing slash; http:// is for networks that the administrator allows",
        f"self.matches({cel(_ENDPOINT)}) && !self.matches({cel(_DOT_SEGMENT)})",
        lambda endpoint: matches(_ENDPOINT, endpoint) and not matches(_DOT_SEGMENT, endpoint),
        text="self",
    ),
)
REVISION_IS_OF_THE_HUB = Rule(
    "revision is for hf:// only: no other source has revisions",
    "!has(self.revision) || self.uri.startsWith('hf://')",
    lambda checkpoint: checkpoint.revision is None or checkpoint.uri.startswith("hf://"),
)
MOUNT_PATH_RULES = (
    Rule(
        "must be an absolute directory without the parts . and .. and without a trailing slash, such as /mnt/adapters",
        f"self.matches({cel(_DIRECTORY)}) && !self.matches({cel(_DOT_SEGMENT)})",
        lambda path: matches(_DIRECTORY, path) and not matches(_DOT_SEGMENT, path),
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

ServedName = Annotated[str, Field(pattern=ADAPTER_NAME_PATTERN, min_length=1, max_length=63)]
DigestText = Annotated[str, Field(pattern=DIGEST_PATTERN, max_length=71)]
Uri = Annotated[str, Field(min_length=1, max_length=1024, json_schema_extra=validations(URI_RULES)), check(URI_RULES)]
ResourceName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", min_length=1, max_length=253)]
Revision = Annotated[str, Field(pattern=_REVISION, min_length=1, max_length=255)]
UriPrefix = Annotated[
    str, Field(min_length=1, max_length=512, json_schema_extra=validations(PREFIX_RULES)), check(PREFIX_RULES)
]
Endpoint = Annotated[
    str, Field(min_length=1, max_length=512, json_schema_extra=validations(ENDPOINT_RULES)), check(ENDPOINT_RULES)
]
MountPath = Annotated[
    str,
    Field(min_length=2, max_length=512, json_schema_extra=validations(MOUNT_PATH_RULES)),
    check(MOUNT_PATH_RULES),
]
Labels = Annotated[
    dict[Annotated[str, Field(max_length=317)], Annotated[str, Field(max_length=63)]],
    Field(max_length=64, json_schema_extra=validations(LABEL_RULES)),
    check(LABEL_RULES),
]
Annotations = Annotated[
    dict[Annotated[str, Field(max_length=317)], Annotated[str, Field(max_length=4096)]],
    Field(max_length=64, json_schema_extra=validations(LABEL_RULES)),
    check(LABEL_RULES),
]
