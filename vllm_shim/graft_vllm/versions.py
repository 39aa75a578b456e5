"""Which versions of vLLM the shim runs with: what adapters mean to vLLM has changed between versions without a word."""

from __future__ import annotations

from graft_runtime.errors import ErrorCode, GraftError

SEEN = ((0, 32),)
"""Minor versions that the tests have run with."""


def check_version(version: str, *, unseen: bool) -> None:
    """Check that a version of vLLM is one of those that the tests have run with.

    Args:
        version: as vLLM tells it.
        unseen: any other is let through as well.

    Raises:
        GraftError: InvalidSpec.
    """
    parts = version.split(".")
    minor = tuple(int(part) for part in parts[:2] if part.isdigit())
    if minor in SEEN or unseen:
        return
    seen = ", ".join(".".join(map(str, each)) for each in SEEN)
    raise GraftError(
        ErrorCode.INVALID_SPEC,
        f"the engine's image has vLLM {version}, expected one of {seen}",
        hint="take an image with one of these, or start with --unseen-version and compare the answers with PEFT's",
    )
