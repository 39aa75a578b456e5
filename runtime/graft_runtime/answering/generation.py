"""From a checked request to the engine: its adapters, its tokens, and what limits the answer."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from graft_runtime.answering.admission import Admission
from graft_runtime.answering.answers import Choice, Generation
from graft_runtime.answering.asked import TextRequest, Texts
from graft_runtime.answering.callers import Caller
from graft_runtime.answering.composition import Target, single_target, summed_target
from graft_runtime.answering.limits import (
    check_count,
    check_generates,
    check_ids,
    check_prompt,
    sampling_of,
    token_limit,
)
from graft_runtime.answering.models import Models
from graft_runtime.answering.prompt_threads import PromptThreads
from graft_runtime.answering.readers import form_of, reader_of
from graft_runtime.answering.vocabularies import Vocabularies
from graft_runtime.contract.tasks import Task
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.messages import BaseLoaded, Generate, Tier
from graft_runtime.pod.adapters import NamedAdapters
from graft_runtime.pod.base_life import LoadedBase
from graft_runtime.pod.engine_client import Answer
from graft_runtime.pod.leases import Lease
from graft_runtime.threads import Turns
from graft_runtime.tokenizing.grammars import AnswerForm, grammars
from graft_runtime.tokenizing.pieces import StopStrings
from graft_runtime.tokenizing.text_formats import TextFormat

ADAPTER_WAIT_SECONDS = 30.0
FORM_THREADS = 8
"""For forms of answers; each name's requests take one at a time."""


class Base(Protocol):
    """What a generation needs of the base model."""

    def serving(self) -> LoadedBase:
        """Return the base that serves. Raises GraftError: NotReady."""

    async def text_format(self, lease: Lease | None) -> TextFormat:
        """Return how an adapter, or the base (None), reads and writes."""


class Submit(Protocol):
    """Hands a request to the engine."""

    def __call__(self, make: Callable[[str], Generate]) -> Answer:
        """Start the request that `make` makes of its id."""


@dataclass(frozen=True)
class Tokenized:
    """A prompt as tokens."""

    ids: list[int]
    context: int
    """The most tokens that prompt and answer may have."""
    texts: list[str] | None
    """Of each token, where they are asked for."""


@dataclass(frozen=True)
class Ready:
    """What a request needs, found and held."""

    model: str
    base: LoadedBase
    target: Target
    held: contextlib.ExitStack
    digest: str | None
    """Of the adapters, or of those that are merged; None: the base model."""

    @property
    def context(self) -> int:
        """Return the tokens that there are for prompt and answer."""
        return self.base.loaded.context_length - self.target.virtual_tokens


class Generator:
    """Starts generations.

    Args:
        models: the names that requests use.
        adapters: those of the pod.
        base: the pod's.
        submit: the engine's.
        vocabularies: that the engine knows.
        admission: how many at once.
        lent: called with each adapter that a request got: the tier that it was in, and the seconds that it took.
    """

    def __init__(
        self,
        models: Models,
        adapters: NamedAdapters,
        base: Base,
        submit: Submit,
        vocabularies: Vocabularies,
        *,
        admission: Admission,
        lent: Callable[[Tier | None, float], None],
    ) -> None:
        self._models, self._adapters, self._base, self._submit = models, adapters, base, submit
        self._vocabularies, self._admission, self._lent = vocabularies, admission, lent
        self.threads = PromptThreads()
        self._forms = Turns(FORM_THREADS, "forms")

    def check_room(self) -> None:
        """Raise GraftError where no request is taken now: ShuttingDown, Overloaded."""
        self._admission.check(1)

    async def start(self, request: TextRequest) -> Generation:
        """Check a request against what is served, wait for its adapters and hand it to the engine.

        Raises:
            GraftError: InvalidRequest, UnknownModel, NotGenerative, ContextTooLong, NoChatTemplate, NotReady,
                OverShare, Overloaded, NotComposable, ShuttingDown, or the fault of an adapter.
        """
        async with self.ready(request, generates=True) as ready:
            prompts = await self._tokenize(request, ready)
            grammar = await self._grammar(form_of(request, ready.target), ready)
            choices = self._choices(request, prompts, grammar, ready)
            generation = Generation(ready.model, ready.digest, sum(map(len, prompts)), choices, ready.held.pop_all())
        for choice in choices:
            choice.answer.ended = generation.choice_ended
        for lease in ready.target.leases:
            lease.holder = generation
        return generation

    async def tokenize(self, request: TextRequest, *, spelled: bool) -> Tokenized:
        """Return the token ids of a request's prompt, as `start` would have them.

        Args:
            request: with one prompt.
            spelled: whether the text of each token is wanted.

        Raises:
            GraftError: as `start`.
        """
        async with self.ready(request, generates=False) as ready:
            text_format, context = ready.target.text_format, ready.context

            def work() -> Tokenized:
                ids, *more = request.prompts.encode(text_format, ready.model, context)
                if more:
                    what = f"`prompt` has {1 + len(more)} prompts, expected one"
                    raise GraftError(ErrorCode.INVALID_REQUEST, what, hint="send one at a time", field="prompt")
                size = ready.target.vocabulary_size
                if spelled:
                    check_ids(ids, size, "prompt")
                return Tokenized(ids, context, [*map(text_format.tokenizer.spelled, ids)] if spelled else None)

            return await self.threads.run(text_format, ready.base.text_format, request.prompts.characters, work)

    async def detokenize(self, model: str | None, ids: Sequence[int], caller: Caller) -> str:
        """Return the text of token ids, special ones included. Raises GraftError: as `start`."""
        request = TextRequest(Texts([list(ids)]), caller, model=model)
        async with self.ready(request, generates=False) as ready:
            check_count(len(ids), ready.context, "tokens")
            check_ids(ids, ready.target.vocabulary_size, "tokens")
            text_format = ready.target.text_format
            decode = partial(text_format.tokenizer.decode, show_special=True)
            return await self.threads.run(text_format, ready.base.text_format, len(ids), decode, ids)

    @contextlib.asynccontextmanager
    async def ready(self, request: TextRequest, *, generates: bool) -> AsyncIterator[Ready]:
        """Hold a place in the queue and what is to answer, mounted, until the block ends or `held` is taken over."""
        model, names = self._models.resolve(request)
        with contextlib.ExitStack() as held:
            place = request.answers, names or [model]
            self._admission.enter(*place)
            held.callback(self._admission.leave, *place)
            base = self._base.serving()
            if generates:
                check_generates(base, model)
            leases = await self._acquire(names, "adapters" if request.adapters else "model") if names else ()
            for lease in leases:
                held.callback(lease.release)
            target = await self._target(request, leases, base.loaded)
            yield Ready(model, base, target, held, target.digest or self._adapters.merged_digest)

    async def _acquire(self, names: list[str], field: str) -> tuple[Lease, ...]:
        asked = time.monotonic()
        try:
            leases = await self._adapters.acquire(names, ADAPTER_WAIT_SECONDS)
        except GraftError as error:
            at = field if field != "model" else error.field  # an adapter's own fault is none of `model`
            raise GraftError(error.code, error.what, details=error.details, hint=error.hint, field=at) from error
        for lease in leases:
            self._lent(lease.tier, time.monotonic() - asked)
        return leases

    async def _target(self, request: TextRequest, leases: Sequence[Lease], base: BaseLoaded) -> Target:
        if not request.adapters:
            lease = leases[0] if leases else None
            return single_target(lease, await self._base.text_format(lease), base)
        text_formats = [await self._base.text_format(lease) for lease in leases]
        return summed_target(request.adapters, leases, text_formats, base)

    async def _tokenize(self, request: TextRequest, ready: Ready) -> list[list[int]]:
        context, text_format = ready.context, ready.target.text_format
        encode = partial(request.prompts.encode, text_format, ready.model, context)
        characters = request.prompts.characters
        prompts = await self.threads.run(text_format, ready.base.text_format, characters, encode)
        if (kept := request.truncate) is not None:
            room = kept if kept > 0 else max(1, context - (request.max_tokens or 1))
            prompts = [prompt[-room:] for prompt in prompts]
        for prompt in prompts:
            check_prompt(request, prompt, ready.base.loaded, ready.target)
        return prompts

    async def _grammar(self, form: AnswerForm | None, ready: Ready) -> str | None:
        """Return the grammar of an answer's form, and have the tokens that it is written with at hand."""
        if form is None:
            return None
        if not ready.base.loaded.capabilities.grammars:
            raise GraftError(
                ErrorCode.UNSUPPORTED_PARAMETER,
                f"`{form.field}` asks for an answer in a given form, and this engine gives none",
                hint=f"leave `{form.field}` out",
                field=form.field,
            )
        text_format = ready.target.text_format
        await self.threads.run(text_format, ready.base.text_format, 0, getattr, text_format.tokenizer, "token_bytes")
        return await self._forms.run(ready.model, grammars.of, form)

    def _choices(
        self, request: TextRequest, prompts: list[list[int]], grammar: str | None, ready: Ready
    ) -> list[Choice]:
        base, target = ready.base, ready.target
        defaults, tokenizer = target.text_format.defaults, target.text_format.tokenizer
        ends_of_text = {token for stop in request.stops if (token := tokenizer.special_id(stop)) is not None}
        ends = ends_of_text | request.stop_tokens | (frozenset() if request.ignore_end else defaults.stop_tokens)
        goes_on = base.loaded.task is Task.CAUSAL_LM
        tell_prompt = request.echo and request.logprobs is not None
        if tell_prompt and not base.loaded.capabilities.tells_prompts:
            raise GraftError(
                ErrorCode.UNSUPPORTED_PARAMETER,
                "`echo` with `logprobs` asks for what this base's runner tells not: log-probabilities of prompts",
                hint="leave one of them out",
                field="echo",
            )
        vocabulary = "" if grammar is None else self._vocabularies.tell(tokenizer)
        echoes = [_echo(request, *item, target) for item in enumerate(prompts)]
        choices = []
        for index in range(request.answers):
            at, number = divmod(index, request.choices)
            prompt = prompts[at]
            make = partial(
                Generate,
                prompt=prompt,
                max_tokens=token_limit(request, defaults, base.loaded.room_after(len(prompt) + target.virtual_tokens)),
                adapters=target.adapters,
                sampling=sampling_of(request, defaults, number),
                stop_tokens=tuple(sorted(ends)),
                tell_prompt=tell_prompt,
                salt=request.salt,
                grammar=grammar,
                vocabulary=vocabulary,
                share=min((lease.share for lease in target.leases), default=1),
            )
            reader = reader_of(request, prompt, target, ready.model)
            special = request.show_special or (reader is not None and reader.special)
            text = tokenizer.detokenizer(prompt if goes_on else (), show_special=special)
            spelled = tokenizer.spelled if request.logprobs is not None else None
            answer = self._submit(make)
            ready.held.callback(answer.cancel)
            told = prompt if tell_prompt else ()
            choices.append(Choice(index, answer, text, StopStrings(request.stops), echoes[at], spelled, told, reader))
        return choices


def _echo(request: TextRequest, index: int, prompt: list[int], target: Target) -> str:
    """Return what an answer begins with of its prompt."""
    if not request.echo:
        return ""
    if request.truncate is not None:
        return target.text_format.tokenizer.decode(prompt)
    return request.prompts.echo(index, prompt, target.text_format)
