"""The schemes of URIs: one table for the operator's rules, messages and mounts, and for the runtime's readers.

A new scheme is a row of `SCHEMES` and a reader in `graft_runtime/store/sources`. Patterns hold in RE2 (CEL) and in
Python alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

MountKind = Literal["claim", "directory", "remote"]
"""How a pod reaches a source: a mounted PersistentVolumeClaim, a directory that the pod has, or the network."""

LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_REFUSED = r"?#%\\"
"""In a path: there is one way to write it, so nothing in it is escaped."""
_SEGMENTS = rf"(/[^/{_REFUSED} \t\r\n]+)+"
_OWNER = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_HOST = r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?(:[0-9]{1,5})?"
DOT_SEGMENT = r"/\.{1,2}(/|$)"
ENDPOINT_SHAPE = "https://HOST"
ENDPOINT_PATTERN = rf"^https?://{_HOST}({_SEGMENTS})?$"


@dataclass(frozen=True)
class Scheme:
    """One scheme. Shapes and patterns are of what follows `name://`."""

    name: str
    mount: MountKind
    shapes: tuple[str, ...]
    """How its URIs are written, the plainest first."""
    pattern: str
    meaning: str
    """What the plainest shape names."""
    prefix: str = ""
    """The shape of an entry of `uriPrefixes`; empty where the scheme takes none, being mounted."""
    prefix_pattern: str = ""
    """Of such a prefix up to its first slash; segments and a slash may follow."""
    revisions: bool = False
    """Whether its sources have revisions."""
    endpoint: str | None = None
    """The server that is asked where a source names no other; None: the URI itself names it."""
    models: bool = True
    """Whether it holds base models; all of them hold adapters."""
    allowed: bool = False
    """Whether pools may use it, where the administrator says nothing."""

    @property
    def start(self) -> str:
        """Return what the URIs of the scheme start with."""
        return f"{self.name}://"

    @property
    def written(self) -> tuple[str, ...]:
        """Return the shapes, scheme included."""
        return tuple(self.start + shape for shape in self.shapes)

    def below(self, place: str) -> str:
        """Return the prefix of the URIs in a place: the name of a claim's source, or an absolute directory."""
        return f"{self.start}{place}/"


HUB = Scheme(
    name="hf",
    mount="remote",
    shapes=("OWNER/NAME", "OWNER/NAME/FOLDER"),
    pattern=rf"{_OWNER}/{_OWNER}({_SEGMENTS})?",
    meaning="a repository of the Hub",
    prefix="OWNER/",
    prefix_pattern=_OWNER,
    revisions=True,
    endpoint="https://huggingface.co",
    allowed=True,
)
CLAIM = Scheme(
    name="pvc",
    mount="claim",
    shapes=("SOURCE/PATH",),
    pattern=rf"{LABEL}{_SEGMENTS}",
    meaning="a directory in the claim of an entry of spec.sources",
    allowed=True,
)
DIRECTORY = Scheme(
    name="file",
    mount="directory",
    shapes=("/PATH",),
    pattern=_SEGMENTS,
    meaning="a directory below the mountPath of an entry",
)
ARCHIVE = Scheme(
    name="https",
    mount="remote",
    shapes=("HOST/PATH.tar.gz", "HOST/PATH.zip"),
    pattern=rf"{_HOST}{_SEGMENTS}\.(tar\.gz|zip)",
    meaning="an archive",
    prefix="HOST/",
    prefix_pattern=_HOST,
    models=False,
)

SCHEMES: dict[str, Scheme] = {scheme.name: scheme for scheme in (HUB, CLAIM, DIRECTORY, ARCHIVE)}
"""By name."""


def scheme_of(uri: str) -> Scheme | None:
    """Return the scheme of a URI; None for one that is not served."""
    name, colon, _ = uri.partition("://")
    return SCHEMES.get(name) if colon else None


def uri_pattern(schemes: Iterable[Scheme]) -> str:
    """Return the pattern of whole URIs of these schemes."""
    return f"^({'|'.join(scheme.start + scheme.pattern for scheme in schemes)})$"


def prefix_pattern(schemes: Iterable[Scheme]) -> str:
    """Return the pattern of whole entries of `uriPrefixes`."""
    starts = "|".join(scheme.start + scheme.prefix_pattern for scheme in schemes if scheme.prefix)
    return f"^({starts})({_SEGMENTS})?/$"


def deepest_prefix(prefixes: Iterable[str], uri: str) -> str | None:
    """Return the longest of the prefixes that a URI lies below or is itself; None where it lies below none of them.

    Whole segments count, so that a final slash of a prefix or of the URI makes no difference.
    """
    holding = [prefix for prefix in prefixes if _with_slash(uri).startswith(_with_slash(prefix))]
    return max(holding, key=len, default=None)


def path_below(prefix: str, uri: str) -> tuple[str, ...]:
    """Return the path from a prefix of `deepest_prefix` to its URI, segment by segment."""
    return tuple(part for part in _with_slash(uri)[len(_with_slash(prefix)) :].split("/") if part not in {"", "."})


def host_of(uri: str, endpoint: str | None) -> str:
    """Return the host that a remote URI is read from, with its port where there is one.

    Args:
        endpoint: of its source, where that names one.
    """
    scheme = scheme_of(uri)
    return urlsplit(endpoint or (scheme.endpoint if scheme else None) or uri).netloc.lower()


def host_is_allowed(host: str, allowed: Iterable[str]) -> bool:
    """Tell whether a host is one of the allowed: `hub.example`, or `*.hub.example` for all below it."""
    name = host.lower()
    return any(
        name.endswith(pattern[1:].lower()) if pattern.startswith("*.") else name == pattern.lower()
        for pattern in allowed
    )


def refused_character(uri: str) -> str | None:
    """Return the first character of a URI that none may hold; None where there is none."""
    match = re.search(f"[{_REFUSED}\\x00-\\x1f\\x7f]", uri)
    return match[0] if match else None


def listed(words: Iterable[str]) -> str:
    """Return words as a sentence lists them: `a, b or c`."""
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def _with_slash(text: str) -> str:
    return text if text.endswith("/") else text + "/"
