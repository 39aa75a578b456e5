"""One answer of vLLM, as events."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from graft_runtime.messages import Generate, Generated, Sampling, TokenLogprob


def sampling_parameters(generate: Generate) -> Any:
    """Return vLLM's SamplingParams for a request. Token ids go in and out; vLLM knows no end but those it is told."""
    from vllm import SamplingParams  # noqa: PLC0415
    from vllm.sampling_params import RequestOutputKind  # noqa: PLC0415

    sampling = generate.sampling
    return SamplingParams(
        **sampling_fields(sampling),
        max_tokens=generate.max_tokens,
        stop_token_ids=list(generate.stop_tokens),
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def sampling_fields(sampling: Sampling) -> dict[str, Any]:
    """Return what vLLM calls the fields of a `Sampling`."""
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "seed": sampling.seed,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "logit_bias": dict(sampling.logit_bias) or None,
        "min_tokens": sampling.min_tokens,
        "logprobs": sampling.logprobs,
    }


def engine_prompt(generate: Generate) -> dict[str, Any]:
    """Return the prompt; vLLM shares keys and values only among prompts of the same salt."""
    served = "+".join(adapter.digest for adapter in generate.adapters) or "base"
    return {"prompt_token_ids": list(generate.prompt), "cache_salt": f"{served}:{generate.salt}"}


def generated(generate: Generate, output: Any, *, first: bool) -> Generated:
    """Return the event for one output of vLLM.

    Args:
        generate: the request.
        output: vLLM's RequestOutput, with the tokens since the last one.
        first: whether it is the answer's first output.
    """
    completion = output.outputs[0]
    tokens, end = list(completion.token_ids), None
    logprobs = [
        TokenLogprob(place[token].logprob, _top(place, generate.sampling.logprobs or 0))
        for place, token in zip(completion.logprobs or (), tokens, strict=False)
    ]
    if completion.finish_reason == "stop" and tokens and tokens[-1] in generate.stop_tokens:
        end = tokens.pop()
    known = (output.num_cached_tokens or 0) if first else 0
    return Generated(generate.request, tokens, completion.finish_reason, known=known, logprobs=logprobs, end=end)


def _top(place: Mapping[int, Any], count: int) -> list[tuple[int, float]]:
    """Return so many of the likeliest tokens of a place, the best first; vLLM tells of the chosen one beside them."""
    ranked = sorted(place.items(), key=lambda item: item[1].rank or math.inf)
    return [(token, told.logprob) for token, told in ranked[:count]]
