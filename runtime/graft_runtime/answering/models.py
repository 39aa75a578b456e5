"""The names that requests use: the base model's or the merge's, and those of adapters."""

from __future__ import annotations

from collections.abc import Iterator

from graft_runtime.answering.asked import TextRequest
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.pod.adapters import NamedAdapters


class Models:
    """The models of one pod.

    Args:
        served: the name of the base model, or of the merge.
        adapters: the adapters beside it.
        composition: whether a request may name several, which a gateway that goes by `model` does not see.
    """

    def __init__(self, served: str, adapters: NamedAdapters, *, composition: bool) -> None:
        self.served, self._adapters, self._composition = served, adapters, composition

    def __iter__(self) -> Iterator[str]:
        yield self.served
        yield from (name for name in self._adapters.names() if name != self.served and self._adapters.is_served(name))

    def is_known(self, name: str) -> bool:
        """Return whether requests may name it."""
        return name == self.served or self._adapters.is_served(name)

    def check_known(self, name: str) -> None:
        """Raise GraftError, UnknownModel, for a name that requests may not use."""
        if not self.is_known(name):
            raise self._adapters.unknown(name)

    def resolve(self, request: TextRequest) -> tuple[str, list[str]]:
        """Return the model that a request names, and the adapters that are to be mounted for it.

        Raises:
            GraftError: InvalidRequest, Forbidden, UnknownModel, NotComposable.
        """
        model = request.model if request.model is not None else self._adapters.default_model
        if model is None:
            raise GraftError(
                ErrorCode.INVALID_REQUEST,
                "`model` is missing",
                hint=f"name an adapter, or `{self.served}` for the base model; GET /v1/models lists them",
                field="model",
            )
        request.caller.check(model, "model")
        for index, part in enumerate(request.adapters):
            request.caller.check(part.name, f"adapters[{index}].name")
        self.check_known(model)
        if not request.adapters:
            return model, [model] if model != self.served else []
        if not self._composition:
            raise GraftError(
                ErrorCode.NOT_COMPOSABLE,
                "`adapters` asks for a sum of adapters, which this pool does not allow",
                hint="name one adapter in `model`; `spec.composition: true` allows sums",
                field="adapters",
            )
        if model != self.served:
            raise GraftError(
                ErrorCode.INVALID_REQUEST,
                f"`model` is {model!r} beside `adapters`, expected the base model's name",
                hint=f"send `{self.served}` as `model`, and `{model}` in `adapters` where it is to take part",
                field="model",
            )
        for index, part in enumerate(request.adapters):
            if not self._adapters.is_served(part.name):
                raise self._adapters.unknown(part.name, f"adapters[{index}].name")
        return model, [part.name for part in request.adapters]
