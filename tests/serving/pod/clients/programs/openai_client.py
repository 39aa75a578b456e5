"""OpenAI's client, an earlier version: chat, streams, tools, schemas, a prompt over the context, a cut stream."""

from __future__ import annotations

import json
import sys
from typing import Literal

import openai
from pydantic import BaseModel

BASE_URL, MODEL = sys.argv[1:]
CHAT = [{"role": "user", "content": "Who are you?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


class Mood(BaseModel):
    mood: Literal["good", "bad"]


client = openai.OpenAI(base_url=BASE_URL, max_retries=0)
options = {"model": MODEL, "messages": CHAT, "temperature": 0, "max_tokens": 16}
whole = client.chat.completions.create(**options)
stream = client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
chunks = list(stream)
assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == whole.choices[0].message.content
assert chunks[-1].usage.total_tokens == whole.usage.total_tokens

called = client.chat.completions.create(**options | {"max_tokens": 1200}, tools=[WEATHER], tool_choice="required")
call = called.choices[0].message.tool_calls[0]
assert json.loads(call.function.arguments)["city"] in {"Oslo", "Rome"}
answered = [*CHAT, called.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
assert client.chat.completions.create(**options | {"messages": answered}, tools=[WEATHER]).choices

with client.chat.completions.stream(
    **options | {"max_tokens": 1200}, tools=[WEATHER], tool_choice="required"
) as events:
    streamed = events.get_final_completion()
assert streamed.choices[0].message.tool_calls[0].function.arguments == call.function.arguments

parsed = client.chat.completions.parse(**options | {"max_tokens": 1200}, response_format=Mood)
assert parsed.choices[0].message.parsed.mood in {"good", "bad"}

try:
    client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x" * 5000}])
except openai.BadRequestError as error:
    refused = error.code
else:
    refused = None
assert refused == "context_length_exceeded"

cut = client.completions.create(model=MODEL, prompt="x", max_tokens=3000, stream=True, extra_body={"ignore_eos": True})
next(iter(cut))
cut.close()
print(json.dumps({"text": whole.choices[0].message.content}))
