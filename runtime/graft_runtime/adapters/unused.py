"""What of an adapter does nothing: modules that a model never calls."""

from __future__ import annotations

import re
from collections.abc import Collection

from graft_runtime.errors import ErrorCode, GraftError

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


def pattern_of(path: str) -> str:
    """Return the path of a module with a star for each number: the same for all layers and experts."""
    return _NUMBER.sub("*", path)


def unused(paths: Collection[str]) -> str | None:
    """Return in words that a model never calls these modules of an adapter; None where there are none."""
    if not paths:
        return None
    patterns = list(dict.fromkeys(map(pattern_of, paths)))
    more = f" and {len(patterns) - 8} more" if len(patterns) > 8 else ""
    return f"the model never calls {len(paths)} of its modules for text: {', '.join(patterns[:8])}{more}"


def check_called(name: str, paths: Collection[str], called: Collection[str], what: str) -> None:
    """Check that the model calls a module of an adapter.

    Args:
        name: how errors call the adapter.
        paths: of its modules.
        called: paths of the modules that the model called.
        what: those modules take part in.

    Raises:
        GraftError: NoEffect.
    """
    if not any(path in called for path in paths):
        raise GraftError(
            ErrorCode.NO_EFFECT,
            f"adapter `{name}` changes nothing: the model calls none of its {len(paths)} modules",
            hint=f"train it on modules that take part in {what}",
        )
