"""That a request can do no harm to the engine. The API process has told its user so before, and better."""

from __future__ import annotations

import math
from collections.abc import Sequence

from graft_runtime.contract.tasks import Task
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.messages import Encode, Generate, Sampling, ServedAdapter
from graft_runtime.model.bank import Bank
from graft_runtime.model.rows import RowAdapter


def check_generate(message: Generate, task: Task, context_length: int) -> None:
    """Check that the base makes text, that the prompt fits into the context, and that every value has a meaning.

    Raises:
        GraftError: NotGenerative, ContextTooLong, InvalidRequest.
    """
    if not task.generates:
        raise GraftError(ErrorCode.NOT_GENERATIVE, f"the base model is loaded for {task} and makes no text")
    check_length(len(message.prompt), context_length)
    if not (message.prompt and message.max_tokens > 0 and _sane(message.sampling) and _finite(message.adapters)):
        raise GraftError(ErrorCode.INVALID_REQUEST, "an empty prompt, or a value that has no meaning")


def check_told(message: Generate, *, tells_prompts: bool) -> None:
    """Check that a prompt is to be told only where it can be. Raises GraftError: InvalidRequest."""
    if message.tell_prompt and not tells_prompts:
        raise GraftError(ErrorCode.INVALID_REQUEST, "this runner tells no log-probabilities of prompts")


def check_encode(message: Encode, task: Task, types: int) -> None:
    """Check a text for one pass.

    Args:
        message: from the API process.
        task: of the base.
        types: how many kinds of tokens the base tells apart; 0 for a base that tells none, and looks at none.

    Raises:
        GraftError: InvalidRequest.
    """
    if task.generates:
        raise GraftError(ErrorCode.INVALID_REQUEST, f"the base model is loaded for {task}, which makes text alone")
    types_fit = not message.types or (
        len(message.types) == len(message.ids) and (not types or all(0 <= each < types for each in message.types))
    )
    pools = not message.pooled or task is Task.FEATURE_EXTRACTION
    if not (message.ids and types_fit and pools and _finite(message.adapters)):
        raise GraftError(ErrorCode.INVALID_REQUEST, "an empty text, or a value that has no meaning")


def check_length(tokens: int, context_length: int) -> None:
    """Check that a prompt, with the virtual tokens of its adapter, is shorter than the context.

    Raises:
        GraftError: ContextTooLong.
    """
    if tokens >= context_length:
        what = f"the prompt has {tokens} tokens, expected less than the context of {context_length}"
        raise GraftError(ErrorCode.CONTEXT_TOO_LONG, what)


def check_tokens(ids: Sequence[int], vocabulary: int) -> None:
    """Check that every token id of a prompt lies in the vocabulary. Raises GraftError: InvalidRequest."""
    strange = [token for token in ids if not 0 <= token < vocabulary]
    if strange:
        what = f"the prompt holds token {strange[0]}, expected 0 … {vocabulary - 1}"
        raise GraftError(ErrorCode.INVALID_REQUEST, what)


def check_adapters(adapters: Sequence[RowAdapter], bank: Bank) -> None:
    """Check that the adapters of one request can run together, and with the weights asked for.

    Raises:
        GraftError: NotScalable; NotComposable, also when the bank could not hold the adapters even for this request
            alone.
    """
    if len(adapters) > 1 and not all(part.adapter.facts.additive for part in adapters):
        raise GraftError(ErrorCode.NOT_COMPOSABLE, "an adapter of the request does more than add to the base")
    if any(part.weight != 1 and not part.adapter.facts.scalable for part in adapters):
        raise GraftError(ErrorCode.NOT_SCALABLE, "an adapter of the request has no weight but 1")
    if not bank.can_ever_hold(adapters):
        what = f"the request's {len(adapters)} adapters have more columns together than the active bank"
        raise GraftError(ErrorCode.NOT_COMPOSABLE, what, hint="name fewer adapters in one request, or lower ranks")


def _finite(adapters: Sequence[ServedAdapter]) -> bool:
    return all(math.isfinite(served.weight) for served in adapters)


def _sane(sampling: Sampling) -> bool:
    numbers = (sampling.presence_penalty, sampling.frequency_penalty, *sampling.logit_bias.values())
    factors = 0 <= sampling.temperature < math.inf and 0 < sampling.repetition_penalty < math.inf
    shares = 0 < sampling.top_p <= 1 and 0 <= sampling.min_p <= 1
    counts = min(sampling.top_k, sampling.min_tokens, sampling.logprobs or 0) >= 0
    return factors and shares and counts and all(map(math.isfinite, numbers))
