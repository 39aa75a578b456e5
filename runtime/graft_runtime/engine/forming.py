"""Requests whose answers have a grammar, until that is compiled."""

from __future__ import annotations

from collections.abc import Callable

from graft_runtime.engine.constraints import TokenTable
from graft_runtime.engine.loader import Compile
from graft_runtime.engine.requests import Generation, Request
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.messages import Encode, Generate, Vocabulary


class Forming:
    """Holds them back, so that no step waits for a grammar.

    Args:
        load: hands a job to the loader.
    """

    def __init__(self, load: Callable[[Compile], None]) -> None:
        self._load = load
        self._tokens: dict[str, TokenTable] = {}
        """By the names of their vocabularies."""
        self._held: dict[str, Generation] = {}

    def learn(self, vocabulary: Vocabulary) -> None:
        """Let requests name a vocabulary."""
        self._tokens.pop(vocabulary.instead_of or "", None)
        self._tokens[vocabulary.name] = TokenTable(vocabulary.tokens)

    def check(self, message: Generate | Encode) -> None:
        """Check that a grammar's vocabulary is known. Raises GraftError: InvalidRequest."""
        if isinstance(message, Generate) and message.grammar is not None and message.vocabulary not in self._tokens:
            raise GraftError(ErrorCode.INVALID_REQUEST, f"the vocabulary `{message.vocabulary}` is not known")

    def hold(self, request: Request) -> bool:
        """Have a request's grammar compiled and hold the request until then; return False where it has none."""
        if not isinstance(request, Generation) or request.message.grammar is None:
            return False
        self._held[request.name] = request
        self._load(Compile(request.name, request.message.grammar, self._tokens[request.message.vocabulary]))
        return True

    def release(self, name: str) -> Generation | None:
        """Return a request that was held; None where it is not, or not any more."""
        return self._held.pop(name, None)
