"""The page at `/`: which adapters there are, and what each of two models answers to the same prompt."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import NamedTuple

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class _File(NamedTuple):
    name: str
    media_type: str


_FILES: Mapping[str, _File] = {
    "/": _File("index.html", "text/html"),
    "/page.css": _File("page.css", "text/css"),
    "/page.js": _File("page.js", "text/javascript"),
}
"""By path."""


class WithPage:
    """Answers for the page's files, which hold nothing of the pool's and need no key; all else is the application's."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        here = files(__name__)
        self._files = {path: (here / file.name).read_bytes() for path, file in _FILES.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "GET" and scope["path"] in self._files:
            path = scope["path"]
            response = Response(self._files[path], media_type=_FILES[path].media_type, headers=_HEADERS)
            await response(scope, receive, send)
        else:
            await self._app(scope, receive, send)
