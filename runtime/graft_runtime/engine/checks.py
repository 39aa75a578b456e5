"""That a request can do no harm to the engine. The API process has told its user so before, and better."""

from __future__ import annotations

import math
from collections.abc import Sequence

from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.messages import Sampling, Submit
from graft_runtime.model.bank import Bank
from graft_runtime.model.load import BaseModel
from graft_runtime.model.rows import RowAdapter


def check_request(submit: Submit, base: BaseModel, context_length: int) -> None:
    """Raises GraftError: NotGenerative, ContextTooLong, InvalidRequest."""
    if not base.task.generates:
        raise GraftError(ErrorCode.NOT_GENERATIVE, f"the base model is loaded for {base.task} and makes no text")
    if len(submit.prompt) >= context_length:
        what = f"the prompt has {len(submit.prompt)} tokens, expected less than the context of {context_length}"
        raise GraftError(ErrorCode.CONTEXT_TOO_LONG, what)
    strange = [token for token in submit.prompt if not 0 <= token < base.vocabulary_size]
    if strange:
        what = f"the prompt holds token {strange[0]}, expected 0 … {base.vocabulary_size - 1}"
        raise GraftError(ErrorCode.INVALID_REQUEST, what)
    weights = [served.weight for served in submit.adapters]
    if not (submit.prompt and submit.max_tokens > 0 and _sane(submit.sampling) and all(map(math.isfinite, weights))):
        raise GraftError(ErrorCode.INVALID_REQUEST, "an empty prompt, or a value that has no meaning")


def check_columns(adapters: Sequence[RowAdapter], bank: Bank) -> None:
    """Raises GraftError: NoCapacity when the bank could not hold these adapters even for this request alone."""
    if not bank.can_ever_hold(adapters):
        what = f"the request's {len(adapters)} adapters have more columns together than the active bank"
        raise GraftError(ErrorCode.NO_CAPACITY, what, hint="name fewer adapters in one request, or lower ranks")


def _sane(sampling: Sampling) -> bool:
    finite = math.isfinite(sampling.temperature) and sampling.temperature >= 0
    return finite and 0 < sampling.top_p <= 1 and sampling.top_k >= 0
