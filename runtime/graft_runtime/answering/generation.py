"""From a checked request to the engine: which model, which tokens, which adapter, how many at once."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from graft_runtime.answering.admission import Admission, Admitted
from graft_runtime.answering.answers import Choice, Generation
from graft_runtime.answering.composition import Speaker, alone, together
from graft_runtime.answering.requests import ChatRequest, CompletionRequest, GenerationRequest
from graft_runtime.contract.tasks import Task
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.messages import BaseLoaded, Generate, Sampling
from graft_runtime.pod.base_life import LoadedBase
from graft_runtime.pod.leases import Lease
from graft_runtime.pod.pod import Pod
from graft_runtime.tokenizing.manner import Manner
from graft_runtime.tokenizing.pieces import StopStrings
from graft_runtime.tokenizing.voices import Voice

ADAPTER_WAIT_SECONDS = 30.0
COMPLETION_TOKENS = 16
"""OpenAI's default for /v1/completions."""
TOKENIZING_THREADS = 2


class Generator:
    """Starts generations on a pod."""

    def __init__(self, pod: Pod) -> None:
        self._pod = pod
        self.admission = Admission(pod.config.engine.max_sequences)
        self._threads = ThreadPoolExecutor(TOKENIZING_THREADS, thread_name_prefix="tokenize")

    async def start(self, request: CompletionRequest | ChatRequest) -> Generation:
        """Checks a request against what is served, waits for its adapter and hands it to the engine.

        Raises:
            GraftError: InvalidRequest, UnknownModel, NotGenerative, ContextTooLong, NoChatTemplate, NotReady,
                Overloaded, NotComposable, ShuttingDown, or the fault of an adapter.
        """
        model = self._known_model(request.model)
        names = self._known_adapters(request, model)
        count = len(request.prompts) if isinstance(request, CompletionRequest) else 1
        admitted = self.admission.enter(count)
        leases: tuple[Lease, ...] = ()
        try:
            base = self._pod.base.serving()
            _check_generates(base, model)
            if names:
                leases = await self._hold(names, "adapters" if request.adapters else "model")
            speaker = await self._speaker(request, leases, base.loaded.vocabulary_size)
            prompts = await self._tokenize(request, base, speaker)
            choices = self._submit(request, prompts, base, speaker)
        except BaseException:
            admitted.close()
            for lease in leases:
                lease.release()
            raise
        return _generation(
            model, speaker, merged=self._pod.adapters.merged_digest, prompts=prompts, choices=choices, admitted=admitted
        )

    async def _hold(self, names: list[str], field: str) -> tuple[Lease, ...]:
        asked = time.monotonic()
        try:
            leases = await self._pod.adapters.acquire(names, ADAPTER_WAIT_SECONDS)
        except GraftError as error:
            told = field if field != "model" else error.field  # an adapter's own fault is none of `model`
            raise GraftError(error.code, error.what, details=error.details, hint=error.hint, field=told) from error
        for lease in leases:
            self._pod.metrics.lent(lease.found, time.monotonic() - asked)
        return leases

    async def _speaker(self, request: GenerationRequest, leases: tuple[Lease, ...], base_rows: int) -> Speaker:
        if not request.adapters:
            lease = leases[0] if leases else None
            return alone(lease, await self._pod.base.voice(lease), base_rows)
        voices = [await self._pod.base.voice(lease) for lease in leases]
        return together(request.adapters, leases, voices, base_rows)

    def _known_adapters(self, request: GenerationRequest, model: str) -> list[str]:
        """The names to hold: those of `adapters`, else `model` where it is an adapter's."""
        served = self._pod.config.served_name
        if not request.adapters:
            return [model] if model != served else []
        if model != served:
            raise GraftError(
                ErrorCode.INVALID_REQUEST,
                f"`model` is {model!r} beside `adapters`, expected the base model's name",
                hint=f"send `{served}` as `model`, and `{model}` in `adapters` where it is to take part",
                field="model",
            )
        for index, part in enumerate(request.adapters):
            if not self._pod.adapters.is_served(part.name):
                raise self._pod.adapters.unknown(part.name, f"adapters[{index}].name")
        return [part.name for part in request.adapters]

    def _known_model(self, name: str | None) -> str:
        served = self._pod.config.served_name
        name = name if name is not None else self._pod.adapters.default_model
        if name is None:
            raise GraftError(
                ErrorCode.INVALID_REQUEST,
                "`model` is missing",
                hint=f"name an adapter, or `{served}` for the base model; GET /v1/models lists them",
                field="model",
            )
        if name != served and not self._pod.adapters.is_served(name):
            raise self._pod.adapters.unknown(name)
        return name

    # tokens

    async def _tokenize(self, request: GenerationRequest, base: LoadedBase, speaker: Speaker) -> list[list[int]]:
        loop = asyncio.get_running_loop()
        prompts = await loop.run_in_executor(self._threads, _prompts, request, speaker.voice)
        for index, prompt in enumerate(prompts):
            _check_prompt(request, prompt, index, base.loaded, speaker)
        return prompts

    def _submit(
        self, request: GenerationRequest, prompts: list[list[int]], base: LoadedBase, speaker: Speaker
    ) -> list[Choice]:
        manner, tokenizer = speaker.voice.manner, speaker.voice.tokenizer
        sampling = _sampling(request, manner)
        stop_tokens = tuple(sorted(manner.stop_tokens))
        choices = []
        goes_on = base.loaded.task is Task.CAUSAL_LM
        texts = [tokenizer.detokenizer(prompt if goes_on else ()) for prompt in prompts]
        for index, prompt in enumerate(prompts):
            limit = _token_limit(request, manner, base.loaded.room_after(len(prompt) + speaker.virtual_tokens))

            def make(name: str, prompt: list[int] = prompt, limit: int = limit) -> Generate:
                return Generate(name, prompt, limit, speaker.adapters, sampling, stop_tokens)

            choices.append(Choice(index, self._pod.engine.submit(make), texts[index], StopStrings(request.stops)))
        return choices


def _generation(
    model: str,
    speaker: Speaker,
    *,
    merged: str | None,
    prompts: list[list[int]],
    choices: list[Choice],
    admitted: Admitted,
) -> Generation:
    def closed() -> None:
        admitted.close()
        for lease in speaker.leases:
            lease.release()

    generation = Generation(model, speaker.digest or merged, sum(map(len, prompts)), choices, closed)
    for lease in speaker.leases:
        lease.revoked = partial(generation.fail, _removed(lease.alias.entry.name))
    return generation


def _removed(name: str) -> GraftError:
    what = f"`{name}` was removed, and the time for running requests is over"
    return GraftError(ErrorCode.UNKNOWN_MODEL, what, field="model")


def _prompts(request: GenerationRequest, voice: Voice) -> list[list[int]]:
    """Runs in a thread."""
    if isinstance(request, CompletionRequest):
        if not request.prompts or "" in request.prompts or [] in request.prompts:
            raise GraftError(
                ErrorCode.INVALID_REQUEST,
                "`prompt` is empty, expected at least one token",
                hint="send a text or token ids",
                field="prompt",
            )
        return [prompt if isinstance(prompt, list) else voice.tokenizer.encode(prompt) for prompt in request.prompts]
    assert isinstance(request, ChatRequest)
    template = voice.manner.chat_template
    if template is None:
        raise GraftError(
            ErrorCode.NO_CHAT_TEMPLATE,
            f"`{request.model}` has no chat template, so it can't take `messages`",
            hint="use /v1/completions, or put a chat_template.jinja beside the adapter's or the base model's files",
            field="messages",
        )
    messages = [message.rendered() for message in request.messages]
    return [voice.tokenizer.encode_chat(messages, template)]


def _check_generates(base: LoadedBase, model: str) -> None:
    if not base.loaded.task.generates:
        raise GraftError(
            ErrorCode.NOT_GENERATIVE,
            f"`{model}` makes no text: its base model is loaded for {base.loaded.task}",
            hint="send this request to a pool with a model that generates",
            field="model",
        )


def _check_prompt(
    request: GenerationRequest, prompt: list[int], index: int, loaded: BaseLoaded, speaker: Speaker
) -> None:
    parameter = "messages" if isinstance(request, ChatRequest) else "prompt"
    if not prompt:
        raise GraftError(
            ErrorCode.INVALID_REQUEST,
            f"`{parameter}` comes to no token at all, expected at least one",
            hint="send some text",
            field=parameter,
        )
    size = speaker.vocabulary_size
    strange = next((token for token in prompt if token >= size), None)
    if strange is not None:
        raise GraftError(
            ErrorCode.INVALID_REQUEST,
            f"`prompt` {index} holds the token id {strange}, expected ids from 0 to {size - 1}",
            hint="tokenize with the tokenizer of the model that you name",
            field="prompt",
        )
    context, asked = loaded.context_length - speaker.virtual_tokens, request.token_limit
    if len(prompt) >= context or (asked or 1) > loaded.room_after(len(prompt) + speaker.virtual_tokens):
        tokens = f"`{parameter}` has {len(prompt)} tokens"
        what = f"{tokens} and up to {asked} are to follow" if asked else tokens
        apart = loaded.task is not Task.CAUSAL_LM
        raise GraftError(
            ErrorCode.CONTEXT_TOO_LONG,
            f"{what}; the context holds {context} {'of each' if apart else 'with the answer'}",
            hint="shorten the prompt or lower max_tokens; spec.engine.maxSequenceLength may allow more",
            field=parameter,
        )


def _token_limit(request: GenerationRequest, manner: Manner, room: int) -> int:
    default = manner.defaults.get("max_new_tokens")
    if default is None or default < 1:
        default = room if isinstance(request, ChatRequest) else COMPLETION_TOKENS
    asked = request.token_limit
    return min(asked if asked is not None else int(default), room)


def _sampling(request: GenerationRequest, manner: Manner) -> Sampling:
    defaults = manner.defaults
    temperature = request.temperature if request.temperature is not None else defaults.get("temperature", 1.0)
    top_p = request.top_p if request.top_p is not None else defaults.get("top_p", 1.0)
    top_k = request.top_k if request.top_k is not None else int(defaults.get("top_k", 0))
    return Sampling(
        temperature=float(temperature),
        top_p=float(top_p) if 0 < top_p <= 1 else 1.0,
        top_k=max(top_k, 0),
        seed=request.seed,
    )
