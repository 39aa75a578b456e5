"""From a checked request to the engine: its adapters, its tokens, and what limits the answer."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from graft_runtime.answering.admission import Admission
from graft_runtime.answering.answers import Choice, Generation
from graft_runtime.answering.asked import TextRequest
from graft_runtime.answering.composition import Target, single_target, summed_target
from graft_runtime.answering.models import Models
from graft_runtime.contract.tasks import Task
from graft_runtime.errors import ErrorCode, GraftError, context_too_long
from graft_runtime.messages import BaseLoaded, Generate, Sampling, Tier
from graft_runtime.pod.adapters import NamedAdapters
from graft_runtime.pod.base_life import LoadedBase
from graft_runtime.pod.engine_client import Answer
from graft_runtime.pod.leases import Lease
from graft_runtime.threads import Threads
from graft_runtime.tokenizing.defaults import GenerationDefaults
from graft_runtime.tokenizing.pieces import StopStrings
from graft_runtime.tokenizing.text_formats import TextFormat

ADAPTER_WAIT_SECONDS = 30.0
TOKENIZING_THREADS = 2


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


class Generator:
    """Starts generations.

    Args:
        models: the names that requests use.
        adapters: those of the pod.
        base: the pod's.
        submit: the engine's.
        admission: how many at once.
        lent: called with each adapter that a request got: the tier that it was in, and the seconds that it took.
    """

    def __init__(
        self,
        models: Models,
        adapters: NamedAdapters,
        base: Base,
        submit: Submit,
        *,
        admission: Admission,
        lent: Callable[[Tier | None, float], None],
    ) -> None:
        self._models, self._adapters, self._base, self._submit = models, adapters, base, submit
        self._admission, self._lent = admission, lent
        self._threads = Threads(TOKENIZING_THREADS, "tokenize")

    def check_room(self) -> None:
        """Raise GraftError where no request is taken now: ShuttingDown, Overloaded."""
        self._admission.check(1)

    async def start(self, request: TextRequest) -> Generation:
        """Check a request against what is served, wait for its adapters and hand it to the engine.

        Raises:
            GraftError: InvalidRequest, UnknownModel, NotGenerative, ContextTooLong, NoChatTemplate, NotReady,
                OverShare, Overloaded, NotComposable, ShuttingDown, or the fault of an adapter.
        """
        model, names = self._models.resolve(request)
        with contextlib.ExitStack() as held:
            place = request.answers, names or [model]
            self._admission.enter(*place)
            held.callback(self._admission.leave, *place)
            base = self._base.serving()
            _check_generates(base, model)
            leases = await self._acquire(names, "adapters" if request.adapters else "model") if names else ()
            for lease in leases:
                held.callback(lease.release)
            target = await self._target(request, leases, base.loaded)
            prompts = await self._tokenize(request, model, base, target)
            choices = self._choices(request, prompts, base, target, held)
            digest = target.digest or self._adapters.merged_digest
            generation = Generation(model, digest, sum(map(len, prompts)), choices, held.pop_all())
        for choice in choices:
            choice.answer.ended = generation.choice_ended
        for lease in leases:
            lease.holder = generation
        return generation

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

    async def _tokenize(self, request: TextRequest, model: str, base: LoadedBase, target: Target) -> list[list[int]]:
        context = base.loaded.context_length - target.virtual_tokens
        prompts = await self._threads.run(request.prompts.encode, target.text_format, model, context)
        if (kept := request.truncate) is not None:
            room = kept if kept > 0 else max(1, context - (request.max_tokens or 1))
            prompts = [prompt[-room:] for prompt in prompts]
        for index, prompt in enumerate(prompts):
            _check_prompt(request, prompt, index, base.loaded, target)
        return prompts

    def _choices(
        self,
        request: TextRequest,
        prompts: list[list[int]],
        base: LoadedBase,
        target: Target,
        held: contextlib.ExitStack,
    ) -> list[Choice]:
        defaults, tokenizer = target.text_format.defaults, target.text_format.tokenizer
        special = {token for stop in request.stops if (token := tokenizer.special_id(stop)) is not None}
        ends = special | request.stop_tokens | (frozenset() if request.ignore_end else defaults.stop_tokens)
        goes_on = base.loaded.task is Task.CAUSAL_LM
        tell_prompt = request.echo and request.logprobs is not None
        if tell_prompt and not base.loaded.capabilities.tells_prompts:
            raise GraftError(
                ErrorCode.UNSUPPORTED_PARAMETER,
                "`echo` with `logprobs` asks for what this base's runner tells not: log-probabilities of prompts",
                hint="leave one of them out",
                field="echo",
            )
        echoes = [_echo(request, *item, target) for item in enumerate(prompts)]
        choices = []
        for index in range(request.answers):
            at, number = divmod(index, request.choices)
            prompt = prompts[at]
            make = partial(
                Generate,
                prompt=prompt,
                max_tokens=_token_limit(request, defaults, base.loaded.room_after(len(prompt) + target.virtual_tokens)),
                adapters=target.adapters,
                sampling=_sampling(request, defaults, number),
                stop_tokens=tuple(sorted(ends)),
                tell_prompt=tell_prompt,
                salt=request.salt,
            )
            text = tokenizer.detokenizer(prompt if goes_on else (), show_special=request.show_special)
            spelled = tokenizer.spelled if request.logprobs is not None else None
            answer = self._submit(make)
            held.callback(answer.cancel)
            told = prompt if tell_prompt else ()
            choices.append(Choice(index, answer, text, StopStrings(request.stops), echoes[at], spelled, told))
        return choices


def _echo(request: TextRequest, index: int, prompt: list[int], target: Target) -> str:
    """Return what an answer begins with of its prompt."""
    if not request.echo:
        return ""
    if request.truncate is not None:
        return target.text_format.tokenizer.decode(prompt)
    return request.prompts.echo(index, prompt, target.text_format)


def _check_generates(base: LoadedBase, model: str) -> None:
    if not base.loaded.task.generates:
        raise GraftError(
            ErrorCode.NOT_GENERATIVE,
            f"`{model}` makes no text: its base model is loaded for {base.loaded.task}",
            hint="send this request to a pool with a model that generates",
            field="model",
        )


def _check_prompt(request: TextRequest, prompt: list[int], index: int, loaded: BaseLoaded, target: Target) -> None:
    parameter = request.prompts.field
    if not prompt:
        raise GraftError(
            ErrorCode.INVALID_REQUEST,
            f"`{parameter}` comes to no token at all, expected at least one",
            hint="send some text",
            field=parameter,
        )
    size = target.vocabulary_size
    for token in (*request.logit_bias, *request.stop_tokens):
        if token >= size:
            field = "logit_bias" if token in request.logit_bias else "stop_token_ids"
            what = f"`{field}` names the token id {token}, expected ids from 0 to {size - 1}"
            hint = "tokenize with the tokenizer of the model that you name"
            raise GraftError(ErrorCode.INVALID_REQUEST, what, hint=hint, field=field)
    strange = next((token for token in prompt if token >= size), None)
    if strange is not None:
        raise GraftError(
            ErrorCode.INVALID_REQUEST,
            f"`prompt` {index} holds the token id {strange}, expected ids from 0 to {size - 1}",
            hint="tokenize with the tokenizer of the model that you name",
            field="prompt",
        )
    context, asked = loaded.context_length - target.virtual_tokens, request.max_tokens
    if len(prompt) >= context or (asked or 1) > loaded.room_after(len(prompt) + target.virtual_tokens):
        tokens = f"`{parameter}` has {len(prompt)} tokens"
        what = f"{tokens} and up to {asked} are to follow" if asked else tokens
        whole = "with the answer" if loaded.task is Task.CAUSAL_LM else "of each"
        raise context_too_long(f"{context} tokens {whole}", what, parameter)


def _token_limit(request: TextRequest, defaults: GenerationDefaults, room: int) -> int:
    default = defaults.sampling.get("max_new_tokens")
    if default is None or default < 1:
        default = request.prompts.default_tokens or room
    asked = request.max_tokens
    return min(asked if asked is not None else int(default), room)


def _sampling(request: TextRequest, defaults: GenerationDefaults, number: int) -> Sampling:
    """Return how the tokens of an answer are chosen: as the request has it, or else its checkpoint.

    Args:
        number: of the answer among those to the same prompt; each draws by itself.
    """

    def value(name: str, neutral: float) -> float:
        asked = getattr(request, name)
        return float(defaults.sampling.get(name, neutral) if asked is None else asked)

    top_p, min_p, repetition = value("top_p", 1.0), value("min_p", 0.0), value("repetition_penalty", 1.0)
    return Sampling(
        temperature=value("temperature", 1.0),
        top_p=top_p if 0 < top_p <= 1 else 1.0,
        top_k=max(int(value("top_k", 0)), 0),
        seed=None if request.seed is None else request.seed + number,
        min_p=min_p if min_p <= 1 else 0.0,
        repetition_penalty=repetition or 1.0,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        logit_bias=dict(request.logit_bias),
        min_tokens=request.min_tokens,
        logprobs=request.logprobs,
    )
