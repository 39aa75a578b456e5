"""A message that asks for something, checked and made a request that holds its adapters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graft_runtime.engine.checks import (
    check_adapters,
    check_encode,
    check_generate,
    check_length,
    check_tokens,
    check_told,
)
from graft_runtime.engine.mounts import Mounts
from graft_runtime.engine.requests import Encoding, Generation, Request, first_position
from graft_runtime.engine.sampling import Draws
from graft_runtime.engine.seen_tokens import SeenTokens
from graft_runtime.engine.serving import Serving
from graft_runtime.errors import GraftError
from graft_runtime.messages import Encode, Generate, ServedAdapter
from graft_runtime.model.rows import RowAdapter, virtual_tokens


class Intake:
    """Where requests come in.

    Args:
        serving: the base that they run on.
        mounts: the adapters that they hold.
        release: lets a digest go that was held.
    """

    def __init__(self, serving: Serving, mounts: Mounts, release: Callable[[str], None]) -> None:
        self._serving, self._mounts, self._release = serving, mounts, release

    def take(self, message: Generate | Encode) -> Request:
        """Make a request of a message; the mounts hold its adapters until it ends.

        Raises:
            GraftError: NotGenerative, NotReady, NotComposable, NotScalable, ContextTooLong, InvalidRequest; nothing is
                held then.
        """
        held: list[str] = []
        try:
            if isinstance(message, Generate):
                check_generate(message, self._serving.base.task, self._serving.runner.context_length)
                check_told(message, tells_prompts=self._serving.loaded.capabilities.tells_prompts)
                return self._generation(message, self._hold(message.adapters, message.prompt, held))
            types = int(getattr(self._serving.base.model.config, "type_vocab_size", 0) or 0)
            check_encode(message, self._serving.base.task, types)
            return self._encoding(message, self._hold(message.adapters, message.ids, held))
        except GraftError:
            for digest in held:
                self._release(digest)
            raise

    def _hold(self, served: Sequence[ServedAdapter], ids: Sequence[int], held: list[str]) -> tuple[RowAdapter, ...]:
        rows = []
        for one in served:
            adapter = self._mounts.hold(one.digest)
            held.append(one.digest)
            rows.append(RowAdapter(adapter, one.weight, first_position(ids, adapter.invocation)))
        check_adapters(rows, self._serving.runner.bank)
        return tuple(rows)

    def _generation(self, message: Generate, adapters: tuple[RowAdapter, ...]) -> Generation:
        virtual = virtual_tokens(adapters)
        taken = len(message.prompt) + virtual
        check_length(taken, self._serving.runner.context_length)
        vocabulary = self._vocabulary(adapters)
        check_tokens(message.prompt, vocabulary)
        check_tokens([*message.sampling.logit_bias], vocabulary)
        most = min(message.max_tokens, self._serving.loaded.room_after(taken))
        return Generation(
            message=message,
            adapters=adapters,
            draws=Draws(message.sampling),
            virtual=virtual,
            max_tokens=most,
            seen=self._seen(message, most),
            vocabulary=vocabulary,
        )

    def _seen(self, message: Generate, most: int) -> SeenTokens | None:
        """Return where a request's tokens are counted; None: it has no penalties."""
        sampling = message.sampling
        penalties = sampling.presence_penalty or sampling.frequency_penalty or sampling.repetition_penalty != 1
        return SeenTokens(self._serving.runner.seen_before(message.prompt), most) if penalties else None

    def _encoding(self, message: Encode, adapters: tuple[RowAdapter, ...]) -> Encoding:
        check_length(len(message.ids) - 1, self._serving.runner.context_length)  # nothing follows the last token
        check_tokens(message.ids, self._vocabulary(adapters))
        return Encoding(message=message, adapters=adapters)

    def _vocabulary(self, adapters: Sequence[RowAdapter]) -> int:
        """Return how many token ids mean something to the adapters of a request, or to the base."""
        own = adapters[0].adapter.facts.vocabulary_size if adapters else None
        return own if own is not None else self._serving.base.vocabulary_size
