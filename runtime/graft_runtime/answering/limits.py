"""What a request may ask of the model that answers it, and what it leaves to the model's checkpoint. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from graft_runtime.answering.asked import TextRequest
from graft_runtime.answering.composition import Target
from graft_runtime.contract.tasks import Task
from graft_runtime.errors import ErrorCode, GraftError, context_too_long
from graft_runtime.messages import BaseLoaded, Sampling
from graft_runtime.pod.base_life import LoadedBase
from graft_runtime.tokenizing.defaults import GenerationDefaults


def check_generates(base: LoadedBase, model: str) -> None:
    """Check that the base makes text. Raises GraftError: NotGenerative."""
    if not base.loaded.task.generates:
        raise GraftError(
            ErrorCode.NOT_GENERATIVE,
            f"`{model}` makes no text: its base model is loaded for {base.loaded.task}",
            hint="send this request to a pool with a model that generates",
            field="model",
        )


def check_task(base: LoadedBase, model: str, *tasks: Task) -> None:
    """Check that the base is loaded for one of these tasks. Raises GraftError: InvalidRequest."""
    if base.loaded.task not in tasks:
        expected = " or ".join(tasks)
        raise GraftError(
            ErrorCode.INVALID_REQUEST,
            f"`{model}` can't answer this: its base model is loaded for {base.loaded.task}, expected {expected}",
            hint="send this request to a pool whose base model is of that task",
            field="model",
        )


def check_prompt(request: TextRequest, prompt: list[int], loaded: BaseLoaded, target: Target) -> None:
    """Check one prompt and what is asked for with it. Raises GraftError: InvalidRequest, ContextTooLong."""
    parameter = request.prompts.field
    if not prompt:
        raise GraftError(
            ErrorCode.INVALID_REQUEST,
            f"`{parameter}` comes to no token at all, expected at least one",
            hint="send some text",
            field=parameter,
        )
    size = target.vocabulary_size
    check_ids(prompt, size, parameter)
    check_ids([*request.logit_bias], size, "logit_bias")
    check_ids([*request.stop_tokens], size, "stop_token_ids")
    context, asked = loaded.context_length - target.virtual_tokens, request.max_tokens
    if len(prompt) >= context or (asked or 1) > loaded.room_after(len(prompt) + target.virtual_tokens):
        tokens = f"`{parameter}` has {len(prompt)} tokens"
        what = f"{tokens} and up to {asked} are to follow" if asked else tokens
        whole = "with the answer" if loaded.task is Task.CAUSAL_LM else "of each"
        raise context_too_long(f"{context} tokens {whole}", what, parameter)


def check_count(count: int, context: int, field: str) -> None:
    """Check that so many token ids fit the context. Raises GraftError: ContextTooLong."""
    if count > context:
        raise context_too_long(f"{context} tokens", f"`{field}` has {count} tokens", field)


def check_ids(ids: Sequence[int], size: int, field: str) -> None:
    """Check that token ids mean something to the model. Raises GraftError: InvalidRequest.

    Args:
        ids: the ids.
        size: of the vocabulary.
        field: of the request, which holds them.
    """
    strange = next((token for token in ids if token >= size), None)
    if strange is not None:
        raise GraftError(
            ErrorCode.INVALID_REQUEST,
            f"`{field}` holds the token id {strange}, expected ids from 0 to {size - 1}",
            hint="tokenize with the tokenizer of the model that you name",
            field=field,
        )


def token_limit(request: TextRequest, defaults: GenerationDefaults, room: int) -> int:
    """Return the most tokens of an answer that has room for so many."""
    default = defaults.sampling.get("max_new_tokens")
    if default is None or default < 1:
        default = request.prompts.default_tokens or room
    asked = request.max_tokens
    return min(asked if asked is not None else int(default), room)


def sampling_of(request: TextRequest, defaults: GenerationDefaults, number: int) -> Sampling:
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
