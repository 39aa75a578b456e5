"""Fields that clients send and nothing here acts on, and the values with which they ask for nothing.

What would change an answer and is not done is refused; null asks for nothing, whatever its name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.http.bodies import invalid, shown

ANY = object()
"""A field that changes no answer, whatever its value."""
Neutral = Mapping[str, tuple[Any, ...]]
"""Fields that are not supported → the values besides null that ask for nothing."""

_OPENAI: Neutral = {
    "best_of": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "echo": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (ANY,),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "web_search_options": (),
    "moderation": (),
    "user": (ANY,),
    "safety_identifier": (ANY,),
    "prompt_cache_key": (ANY,),
    "prompt_cache_options": (ANY,),
    "prompt_cache_retention": (ANY,),
    "metadata": (ANY,),
    "store": (ANY,),
    "service_tier": (ANY,),
}
"""https://platform.openai.com/docs/api-reference/chat/create, …/completions/create: the defaults there."""
_VLLM: Neutral = {
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "chat_template_kwargs": ({},),
    "add_special_tokens": (False,),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "include_stop_str_in_output": (False,),
    "spaces_between_special_tokens": (True,),
    "prompt_logprobs": (),
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "chat_template": (),
    "documents": ([],),
    "include_reasoning": (True,),
    "guided_decoding_backend": (ANY,),
    "logits_processors": ([],),
    "mm_processor_kwargs": ({},),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "kv_transfer_params": ({},),
    "vllm_xargs": ({},),
    "priority": (0,),
    "request_id": (ANY,),
    "cache_salt": (ANY,),
}
"""https://docs.vllm.ai/en/stable/serving/openai_compatible_server/: the extra parameters, and their defaults."""
_OTHERS: Neutral = {
    "typical_p": (1,),
    "tfs_z": (1,),
    "top_a": (0,),
    "mirostat": (0,),
    "repeat_penalty": (1,),
    "xtc_probability": (0,),
    "dry_multiplier": (0,),
    "cache_prompt": (ANY,),
    "regex": (),
    "ebnf": (),
    "json_schema": (),
    "no_stop_trim": (False,),
    "separate_reasoning": (True,),
    "stream_reasoning": (True,),
}
"""https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md (`cache_prompt` and before),
https://docs.sglang.ai/basic_usage/sampling_params.html: as they have it off."""

BODY_FIELDS: Neutral = {**_OTHERS, **_VLLM, **_OPENAI}
MESSAGE_FIELDS: Neutral = {
    "id": (ANY,),
    "annotations": (ANY,),
    "provider_specific_fields": (ANY,),
    "audio": ([],),
    "function_call": ([], {}),
    "refusal": ("",),
    "thinking_blocks": ([],),
    "prefix": (False,),
    "partial": (False,),
}
"""What servers put into answers and clients send back: OpenAI's `annotations`, `audio`, `function_call`, LiteLLM's
`provider_specific_fields`, `thinking_blocks`, agents' `id`; `prefix`, `partial`: Mistral's, Moonshot's."""
PART_FIELDS: Neutral = {"cache_control": (ANY,), "annotations": (ANY,), "id": (ANY,)}
"""Anthropic's `cache_control`, as LiteLLM passes it on; LangChain's content blocks have an `id`."""


def check_neutral(extras: Mapping[str, Any] | None, known: Neutral, where: str = "") -> None:
    """Check that fields which are not supported ask for nothing.

    Args:
        extras: the fields.
        known: those that exist.
        where: the object that holds them, for errors: a message, or "" for the body itself.

    Raises:
        GraftError: InvalidRequest for fields that do not exist, UnsupportedParameter.
    """
    for name, value in (extras or {}).items():
        field = f"{where}.{name}" if where else name
        neutral = known.get(name, ())
        if value is None or ANY in neutral or any(_same(value, other) for other in neutral):
            continue
        if name not in known:
            what = f"a field of `{where}`" if where else "a parameter of this route"
            raise invalid(field, f"`{field}` is not {what}", hint="leave it out")
        leave_out = f"leave `{name}` out" + (f", or send {json.dumps(neutral[0])}" if neutral else "")
        raise GraftError(
            ErrorCode.UNSUPPORTED_PARAMETER,
            f"`{field}` is {shown(value)}, and Graft does not support it",
            hint="send text messages only" if where else leave_out,
            field=field,
        )


def _same(value: Any, other: Any) -> bool:
    return value == other and isinstance(value, bool) == isinstance(other, bool)
