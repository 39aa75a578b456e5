"""What single texts of a spec may be: URIs, prefixes, endpoints, paths, labels; each rule in Python and in CEL."""

from __future__ import annotations

import re
from typing import Annotated

from graft_runtime.contract import ADAPTER_NAME_PATTERN, DIGEST_PATTERN
from pydantic import Field

from graft_operator.api.rules import Rule, check, validations

LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SEGMENTS = r"(/[^/?#%\\ \t\r\n]+)+"
_HUB_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}"
_URI = rf"^((pvc://{LABEL}|file://){_SEGMENTS}|hf://{_HUB_PART}/{_HUB_PART}(/[^/?#%\\ \t\r\n]+)*)$"
_HUB_PREFIX = rf"^hf://({_HUB_PART}/([^/?#%\\ \t\r\n]+/)*)?$"
_ENDPOINT = r"^https?://[A-Za-z0-9.:\[\]-]+(/[A-Za-z0-9._~-]+)*$"
_REVISION = r"^[A-Za-z0-9_][A-Za-z0-9._/+-]*$"
_SCHEMES = ("hf://", "pvc://", "file://")
LAST_PART_IS_A_NAME = r"/[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"
_DIRECTORY = r"^(/[A-Za-z0-9._-]+)+$"
_DOT_SEGMENT = r"/\.{1,2}(/|$)"


def cel(pattern: str) -> str:
    """A pattern as a literal of CEL."""
    return "'" + pattern.replace("\\", "\\\\") + "'"


def matches(pattern: str, text: str) -> bool:
    """Whether CEL's matches() says yes."""
    # Python's $ also matches before a last line feed, that of CEL doesn't.
    return re.search(pattern.replace("$", r"\Z"), text) is not None


URI_RULES = (
    Rule(
        "must start with hf://, pvc:// or file://, the schemes that this version supports: hf://OWNER/NAME names a"
        " repository of a Hugging Face Hub, pvc://SOURCE/PATH a directory in the claim of an entry of spec.sources,"
        " file:///PATH one below the mountPath of an entry",
        "self.startsWith('hf://') || self.startsWith('pvc://') || self.startsWith('file://')",
        lambda uri: uri.startswith(_SCHEMES),
        text="self",
    ),
    Rule(
        "must name a directory, as in hf://OWNER/NAME[/FOLDER], pvc://SOURCE/PATH or file:///PATH:"
        " no empty part, no trailing slash, none of ? # % \\ and no white space",
        "!(self.startsWith('hf://') || self.startsWith('pvc://') || self.startsWith('file://'))"
        f" || self.matches({cel(_URI)})",
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
URI_PREFIX_RULES = (
    Rule(
        "must end with a slash after hf://, an owner, a repository or a folder, as in hf://acme/ or hf://acme/billing/",
        f"self.matches({cel(_HUB_PREFIX)}) && !self.matches({cel(_DOT_SEGMENT)})",
        lambda prefix: matches(_HUB_PREFIX, prefix) and not matches(_DOT_SEGMENT, prefix),
        text="self",
    ),
)
ENDPOINT_RULES = (
    Rule(
        "must be a URL such as https://hub.example.com, without a trailing slash, user, query or fragment"
        " (http:// only inside a network that the administrator allows)",
        f"self.matches({cel(_ENDPOINT)})",
        lambda endpoint: matches(_ENDPOINT, endpoint),
        text="self",
    ),
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
UriPrefix = Annotated[
    str,
    Field(min_length=5, max_length=512, json_schema_extra=validations(URI_PREFIX_RULES)),
    check(URI_PREFIX_RULES),
]
Endpoint = Annotated[
    str,
    Field(min_length=8, max_length=512, json_schema_extra=validations(ENDPOINT_RULES)),
    check(ENDPOINT_RULES),
]
Revision = Annotated[str, Field(pattern=_REVISION, min_length=1, max_length=256)]
ResourceName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", min_length=1, max_length=253)]
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
