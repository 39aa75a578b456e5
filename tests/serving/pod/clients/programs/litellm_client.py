"""LiteLLM: chat, streams, tools, JSON schemas, a router that falls back where a prompt is over the context."""

from __future__ import annotations

import json
import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or it asks the internet
import litellm

BASE_URL, MODEL = sys.argv[1:]
litellm.suppress_debug_info = True
litellm.telemetry = False
CHAT = [{"role": "user", "content": "Who are you?"}]
NAMED = {"model": f"hosted_vllm/{MODEL}", "api_base": BASE_URL, "api_key": "none"}
OPTIONS = {**NAMED, "messages": CHAT, "temperature": 0, "max_tokens": 16}
SCHEMA = {
    "type": "object",
    "properties": {"mood": {"enum": ["good", "bad"]}},
    "required": ["mood"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "judge", "parameters": SCHEMA}}

whole = litellm.completion(**OPTIONS)
text = whole.choices[0].message.content
assert "".join(chunk.choices[0].delta.content or "" for chunk in litellm.completion(**OPTIONS, stream=True)) == text

LONG = OPTIONS | {"max_tokens": 1200}
called = litellm.completion(**LONG, tools=[TOOL], tool_choice={"type": "function", "function": {"name": "judge"}})
assert json.loads(called.choices[0].message.tool_calls[0].function.arguments)["mood"] in {"good", "bad"}
schema = {"type": "json_schema", "json_schema": {"name": "mood", "strict": True, "schema": SCHEMA}}
formed = litellm.completion(**LONG, response_format=schema)
assert json.loads(formed.choices[0].message.content)["mood"] in {"good", "bad"}

TOO_LONG = [{"role": "user", "content": "x" * 5000}]
try:
    litellm.completion(**OPTIONS | {"messages": TOO_LONG})
except litellm.ContextWindowExceededError:
    pass
else:
    raise AssertionError("a prompt over the context was taken")
try:
    litellm.completion(**OPTIONS | {"model": "hosted_vllm/nobody"})
except litellm.NotFoundError:
    pass
else:
    raise AssertionError("an unknown model was taken")

router = litellm.Router(
    model_list=[
        {"model_name": "small", "litellm_params": NAMED},
        {"model_name": "large", "litellm_params": {**NAMED, "mock_response": "the larger one"}},
    ],
    context_window_fallbacks=[{"small": ["large"]}],
    num_retries=0,
)
fallen = router.completion(model="small", messages=TOO_LONG)
assert fallen.choices[0].message.content == "the larger one"
print(json.dumps({"text": text}))
