"""Who asks, and which names he may use."""

from __future__ import annotations

from dataclasses import dataclass

from graft_runtime.errors import ErrorCode, GraftError

EVERY_MODEL = "*"


@dataclass(frozen=True)
class Caller:
    """Whoever sent a request.

    Attributes:
        name: of his key; None where keys are not asked for.
        models: that he may use; EVERY_MODEL among them stands for all.
    """

    name: str | None
    models: frozenset[str]

    def may_use(self, model: str) -> bool:
        """Tell whether he may use a name."""
        return EVERY_MODEL in self.models or model in self.models

    def check(self, model: str, field: str) -> None:
        """Check that he may use the name that he sent in a field, whether or not it is served.

        Raises:
            GraftError: Forbidden.
        """
        if not self.may_use(model):
            raise GraftError(
                ErrorCode.FORBIDDEN,
                f"the API key `{self.name}` may not use {model!r}",
                hint="GET /v1/models lists what it may use; whoever runs the pool can add to it",
                field=field,
            )


ANYBODY = Caller(None, frozenset({EVERY_MODEL}))
"""Of a pool that asks for no keys."""
